//! The ports at which load balancers learn whether this node has endpoints of a service whose traffic stays on the
//! node that it comes to (`healthCheckNodePort`), answered as kube-proxy does.
//!
//! Invariant: a port is listened at exactly as long as a service names it; one that can't be is told once, and tried
//! again every second. Answers are those of the tables in force. Not here: which endpoints are on this node.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::{error, info};

use crate::apply::HealthCheck;
use crate::intent::{Endpoint, EndpointState, ServicePort};

const RETRY: Duration = Duration::from_secs(1);
/// How long one asker may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Askers at once, at one port.
const ASKERS: usize = 64;

const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// What is said at each port.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answers {
    pub ports: BTreeMap<u16, Answer>,
    /// Where they are reached; none: at all addresses.
    pub nets: Vec<IpNet>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub namespace: String,
    pub name: String,
    /// Endpoints on this node that are ready, of the family that has more: a pod of both is one.
    pub endpoints: usize,
}

impl Answers {
    /// Of all services.
    pub fn new(services: &[ServicePort], nets: &[IpNet], is_here: impl Fn(&Endpoint) -> bool) -> Self {
        let mut ready: BTreeMap<u16, (&ServicePort, BTreeSet<IpAddr>)> = BTreeMap::new();
        for service in services {
            let Some(port) = service.traffic.health_check else { continue };
            let (_, addrs) = ready.entry(port).or_insert_with(|| (service, BTreeSet::new()));
            let is_ready = |e: &&Endpoint| matches!(e.state, EndpointState::Ready | EndpointState::Spare);
            addrs.extend(service.endpoints.iter().filter(is_ready).filter(|e| is_here(e)).map(|e| e.addr));
        }
        let answer = |(port, (service, addrs)): (u16, (&ServicePort, BTreeSet<IpAddr>))| {
            let (namespace, name) = (service.namespace.clone(), service.name.clone());
            let v4 = addrs.iter().filter(|addr| addr.is_ipv4()).count();
            (port, Answer { namespace, name, endpoints: v4.max(addrs.len() - v4) })
        };
        Answers { ports: ready.into_iter().map(answer).collect(), nets: nets.to_vec() }
    }
}

/// Of a port: why it isn't listened at; None: it is.
pub type News = (u16, Option<String>);

/// All listeners, as long as it is held.
#[derive(Debug)]
pub struct HealthChecks {
    answers: watch::Sender<Answers>,
    listeners: BTreeMap<u16, JoinHandle<()>>,
    tell: mpsc::UnboundedSender<News>,
    news: mpsc::UnboundedReceiver<News>,
    troubles: BTreeMap<u16, Option<String>>,
}

impl Default for HealthChecks {
    fn default() -> Self {
        let (tell, news) = mpsc::unbounded_channel();
        let (listeners, troubles) = (BTreeMap::new(), BTreeMap::new());
        HealthChecks { answers: watch::Sender::new(Answers::default()), listeners, tell, news, troubles }
    }
}

impl Drop for HealthChecks {
    fn drop(&mut self) {
        self.listeners.values().for_each(JoinHandle::abort);
    }
}

impl HealthChecks {
    /// Other answers from now on; whether other ports are listened at.
    pub fn set(&mut self, answers: Answers) -> bool {
        let mut changed = false;
        self.listeners.retain(|port, listener| {
            let stays = answers.ports.contains_key(port);
            if !stays {
                listener.abort();
                self.troubles.remove(port);
                changed = true;
            }
            stays
        });
        for &port in answers.ports.keys() {
            self.listeners.entry(port).or_insert_with(|| {
                changed = true;
                tokio::spawn(listen(port, self.answers.subscribe(), self.tell.clone()))
            });
        }
        self.answers.send_if_modified(|old| (*old != answers).then(|| *old = answers).is_some());
        changed
    }

    /// Waits until a port is listened at, or can't be.
    pub async fn changed(&mut self) {
        // There is a sender as long as this is.
        let Some((port, trouble)) = self.news.recv().await else { return };
        if !self.listeners.contains_key(&port) {
            return;
        }
        match &trouble {
            Some(why) => error!("the health check node port {port} can't be listened at, and is tried again: {why}"),
            None => info!("health checks are answered at port {port}"),
        }
        self.troubles.insert(port, trouble);
    }

    /// What is to be known of each port.
    pub fn known(&self) -> BTreeMap<u16, HealthCheck> {
        let answers = self.answers.borrow();
        let of = |(&port, answer): (&u16, &Answer)| {
            let service = format!("{}/{}", answer.namespace, answer.name);
            (port, HealthCheck { service, trouble: self.troubles.get(&port).cloned().flatten() })
        };
        answers.ports.iter().map(of).collect()
    }
}

/// Listens at a port, for ever.
async fn listen(port: u16, answers: watch::Receiver<Answers>, tell: mpsc::UnboundedSender<News>) {
    let mut told = None;
    loop {
        match bind(port).await {
            Ok(listeners) => {
                _ = tell.send((port, None));
                let [one, other] = listeners;
                tokio::join!(serve(one, port, &answers), serve(other, port, &answers));
            }
            Err(error) => {
                let why = error.to_string();
                if told.as_ref() != Some(&why) {
                    _ = tell.send((port, Some(why.clone())));
                    told = Some(why);
                }
            }
        }
        sleep(RETRY).await;
    }
}

/// Sockets for both families: one, but where the kernel or its settings want two, or have one family alone.
async fn bind(port: u16) -> io::Result<[Option<TcpListener>; 2]> {
    let v6 = TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await;
    if let Err(error) = &v6
        && error.kind() == ErrorKind::AddrInUse
    {
        return v6.map(|v6| [Some(v6), None]);
    }
    let v4 = TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).await;
    match (v6, v4) {
        (Ok(v6), v4) => Ok([Some(v6), v4.ok()]),
        (Err(_), v4) => v4.map(|v4| [None, Some(v4)]),
    }
}

async fn serve(listener: Option<TcpListener>, port: u16, answers: &watch::Receiver<Answers>) {
    let Some(listener) = listener else { return };
    let askers = Arc::new(Semaphore::new(ASKERS));
    loop {
        let Ok(turn) = askers.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // Of that connection, or too many open files.
            Err(_) => {
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if is_reached(&stream, &answers.borrow().nets) {
            let answers = answers.clone();
            tokio::spawn(async move {
                let answer = service_fn(|_| {
                    let answer = response(answers.borrow().ports.get(&port));
                    async { Ok::<_, Infallible>(answer) }
                });
                let connection = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), answer);
                // Whoever asks badly or too slowly has no answer.
                _ = timeout(PATIENCE, connection).await;
                drop(turn);
            });
        }
    }
}

fn is_reached(stream: &TcpStream, nets: &[IpNet]) -> bool {
    let Ok(at) = stream.local_addr() else { return false };
    nets.is_empty() || nets.iter().any(|net| net.contains(&at.ip().to_canonical()))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    service: Name<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct Name<'a> {
    namespace: &'a str,
    name: &'a str,
}

/// None: the service has just gone.
fn response(answer: Option<&Answer>) -> Response<Full<Bytes>> {
    let (namespace, name, endpoints) = answer.map_or(("", "", 0), |a| (&a.namespace, &a.name, a.endpoints));
    let body = Body { service: Name { namespace, name }, local_endpoints: endpoints, service_proxy_healthy: true };
    let text = serde_json::to_vec(&body).unwrap_or_default();
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = if endpoints == 0 { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(WEIGHT, HeaderValue::from(endpoints));
    response
}

#[cfg(test)]
mod tests;
