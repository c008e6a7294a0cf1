//! Sockets: UDP and TCP where one may ask, and the agent's own.
//!
//! Invariant: it has a thread of its own, so that no plan delays a name; whatever a client does, it holds a bounded
//! share of it, for a bounded time. A socket that can't be had is tried again, and what runs stays.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket, UnixListener};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use super::fast::Fast;
use super::forward::Forwarder;
use super::guard::Guard;
use super::handler::{Client, Handler, Outcome};
use super::metrics::{Event, Metrics};
use super::wire::HEADER;
use super::{Settings, Snapshot, resolv};
use crate::config::Dns;
use crate::peers::Peers;

/// Connections at once, of all and of one client.
const CONNECTIONS: usize = 512;
const OF_ONE: usize = 64;
/// Queries of a connection that wait for others.
const PIPELINE: usize = 64;
/// How long nothing may come on a connection, or an answer be left unread.
const IDLE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(1);
/// What the kernel keeps for a socket until it is read.
const BUFFER: usize = 1 << 20;
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The agent's own socket, and who may ask there.
#[derive(Clone)]
struct Own {
    socket: PathBuf,
    peers: Arc<Peers>,
}

/// The thread, as long as it is held.
#[derive(Debug)]
pub struct Server {
    config: watch::Sender<Option<Dns>>,
    snapshot: watch::Sender<Option<Arc<Snapshot>>>,
}

impl Server {
    /// Begins; nobody is answered before there is a configuration.
    pub fn start(socket: PathBuf, peers: Arc<Peers>) -> Result<Server> {
        let (config, config_by) = watch::channel(None);
        let (snapshot, snapshot_by) = watch::channel(None);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let own = Own { socket, peers };
        let work = move || runtime.block_on(run(&own, config_by, snapshot_by));
        thread::Builder::new().name("dns".into()).spawn(work).context("a thread that answers for names")?;
        Ok(Server { config, snapshot })
    }

    pub fn configure(&self, config: Option<&Dns>) {
        self.config.send_if_modified(|old| {
            let other = old.as_ref() != config;
            if other {
                *old = config.cloned();
            }
            other
        });
    }

    pub fn publish(&self, snapshot: Snapshot) {
        self.snapshot.send_replace(Some(Arc::new(snapshot)));
    }
}

async fn run(own: &Own, mut config: watch::Receiver<Option<Dns>>, snapshot: watch::Receiver<Option<Arc<Snapshot>>>) {
    let metrics = Arc::<Metrics>::default();
    // Those of the former configuration end when these are replaced.
    let mut tasks = JoinSet::new();
    loop {
        let now = config.borrow_and_update().clone();
        tasks.abort_all();
        // Their sockets are to be free before others want the same.
        while tasks.join_next().await.is_some() {}
        if let Some(now) = now {
            let handler = Arc::new(handler(now, snapshot.clone(), metrics.clone()));
            serve(&mut tasks, &handler, own);
        }
        tokio::select! {
            changed = config.changed() => if changed.is_err() {
                return;
            },
            // None of them ends by itself.
            Some(ended) = tasks.join_next() => {
                error!("a part of what answers for names has ended ({ended:?}); all of it begins anew");
                sleep(RETRY).await;
            }
        }
    }
}

/// What answers by a configuration.
pub fn handler(config: Dns, snapshot: watch::Receiver<Option<Arc<Snapshot>>>, metrics: Arc<Metrics>) -> Handler {
    Handler {
        guard: Guard::new(config.allow_from.clone(), config.allow_transfer.clone(), config.rate_limit),
        forwarder: Forwarder::new(&config, metrics.clone()),
        settings: Settings::new(config),
        snapshot,
        metrics,
    }
}

fn serve(tasks: &mut JoinSet<()>, handler: &Arc<Handler>, own: &Own) {
    let connections = Arc::<Connections>::default();
    for at in handler.settings.config.listens() {
        let this = handler.clone();
        tasks.spawn(async move { udp(this, bound(at, "UDP", udp_socket).await).await });
        let (this, connections) = (handler.clone(), connections.clone());
        tasks.spawn(async move { tcp(this, bound(at, "TCP", tcp_socket).await, connections).await });
    }
    tasks.spawn(by_command(handler.clone(), own.clone()));
    if handler.settings.config.upstreams.is_empty() {
        tasks.spawn(follow_resolv_conf(handler.clone(), RESOLV_CONF.into()));
    }
}

/// A socket, however often it takes.
async fn bound<S>(at: SocketAddr, kind: &str, bind: fn(SocketAddr) -> io::Result<S>) -> S {
    let mut said = String::new();
    loop {
        match bind(at) {
            Ok(socket) => {
                info!("names are answered at {at} ({kind})");
                return socket;
            }
            Err(why) if why.to_string() != said => {
                error!("cannot listen at {at} ({kind}) for names: {why}; trying again every second");
                said = why.to_string();
            }
            Err(_) => {}
        }
        sleep(RETRY).await;
    }
}

fn socket(at: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(at), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    // The address may come later.
    if at.is_ipv4() {
        socket.set_freebind_v4(true)?;
    } else {
        socket.set_only_v6(true)?;
        socket.set_freebind_v6(true)?;
    }
    Ok(socket)
}

fn udp_socket(at: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket(at, Type::DGRAM, Protocol::UDP)?;
    // Queries that wait for others still hold the socket of a former configuration: the newest gets what comes.
    socket.set_recv_buffer_size(BUFFER)?;
    socket.bind(&at.into())?;
    UdpSocket::from_std(socket.into())
}

fn tcp_socket(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(at, Type::STREAM, Protocol::TCP)?;
    socket.bind(&at.into())?;
    socket.listen(256)?;
    TcpListener::from_std(socket.into())
}

/// Answers what comes over UDP.
pub async fn udp(handler: Arc<Handler>, socket: UdpSocket) {
    let (socket, mut fast) = (Arc::new(socket), Fast::default());
    let mut buffer = vec![0; 4_096];
    loop {
        let Ok((len, from)) = socket.recv_from(&mut buffer).await else {
            // Of an answer before that nobody took.
            sleep(Duration::from_millis(1)).await;
            continue;
        };
        let client = Client { addr: Some(from.ip()), stream: false };
        match fast.begin(&handler, &buffer[..len], &client) {
            Ok(bytes) => send(&handler, &socket, bytes, from).await,
            Err(Outcome::Silence) => {}
            Err(Outcome::Reply(bytes)) => send(&handler, &socket, &bytes, from).await,
            Err(Outcome::Replies(all)) => {
                for bytes in all {
                    send(&handler, &socket, &bytes, from).await;
                }
            }
            Err(Outcome::Later(asking)) => {
                let (handler, socket) = (handler.clone(), socket.clone());
                tokio::spawn(async move {
                    let bytes = handler.finish(*asking).await;
                    send(&handler, &socket, &bytes, from).await;
                });
            }
        }
    }
}

async fn send(handler: &Handler, socket: &UdpSocket, bytes: &[u8], to: SocketAddr) {
    let sent = match socket.try_send_to(bytes, to) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.send_to(bytes, to).await,
        sent => sent,
    };
    if sent.is_err() {
        handler.metrics.event(Event::SendFailed);
    }
}

/// How many connections are open, by client.
#[derive(Debug, Default)]
pub struct Connections(Mutex<HashMap<IpAddr, usize>>);

/// One of them.
struct Open {
    all: Arc<Connections>,
    client: IpAddr,
}

impl Connections {
    fn open(self: &Arc<Self>, client: IpAddr) -> Option<Open> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let full = all.values().sum::<usize>() >= CONNECTIONS || all.get(&client).is_some_and(|n| *n >= OF_ONE);
        if full {
            return None;
        }
        *all.entry(client).or_default() += 1;
        Some(Open { all: self.clone(), client })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut all = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.client);
            }
        }
    }
}

/// Answers what comes over TCP.
pub async fn tcp(handler: Arc<Handler>, listener: TcpListener, connections: Arc<Connections>) {
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let Ok((stream, from)) = listener.accept().await else {
            // There are no descriptors left, or it has gone again.
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        let Some(open) = connections.open(from.ip()) else {
            handler.metrics.event(Event::ConnectionsFull);
            continue;
        };
        _ = stream.set_nodelay(true);
        let (handler, client) = (handler.clone(), Client { addr: Some(from.ip()), stream: true });
        tasks.spawn(async move {
            connection(handler, stream, client).await;
            drop(open);
        });
    }
}

/// Answers what comes on one connection, in whatever order answers are there (RFC 7766).
async fn connection(handler: Arc<Handler>, stream: impl AsyncRead + AsyncWrite + Send + 'static, client: Client) {
    let (mut read, mut write) = tokio::io::split(stream);
    let (send, mut queue) = mpsc::channel::<Vec<u8>>(PIPELINE);
    let writer = tokio::spawn(async move {
        while let Some(bytes) = queue.recv().await {
            let mut framed = (bytes.len() as u16).to_be_bytes().to_vec();
            framed.extend(bytes);
            if !matches!(timeout(IDLE, write.write_all(&framed)).await, Ok(Ok(()))) {
                return;
            }
        }
        _ = write.shutdown().await;
    });
    let waiting = Arc::new(Semaphore::new(PIPELINE));
    loop {
        let bytes = match timeout(IDLE, frame(&mut read)).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(_)) => break,
            Err(_) => {
                handler.metrics.event(Event::ConnectionIdle);
                break;
            }
        };
        let sent = match handler.begin(&bytes, &client) {
            // Nobody who speaks the protocol sends such a thing, or so much of it.
            Outcome::Silence => break,
            Outcome::Reply(bytes) => send.send(bytes).await.is_ok(),
            Outcome::Replies(all) => {
                let mut sent = true;
                for bytes in all {
                    sent = sent && send.send(bytes).await.is_ok();
                }
                sent
            }
            Outcome::Later(asking) => {
                let Ok(permit) = waiting.clone().acquire_owned().await else { break };
                let (handler, send) = (handler.clone(), send.clone());
                tokio::spawn(async move {
                    let bytes = handler.finish(*asking).await;
                    _ = send.send(bytes).await;
                    drop(permit);
                });
                true
            }
        };
        if !sent {
            break;
        }
    }
    drop(send);
    _ = writer.await;
}

async fn frame(read: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let len = usize::from(read.read_u16().await?);
    if len < HEADER {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; len];
    read.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// The agent's own socket, for the command line. All that is asked there changes nothing.
async fn by_command(handler: Arc<Handler>, Own { socket: path, peers }: Own) {
    let listener = loop {
        // Left by an agent before: no other one runs.
        _ = std::fs::remove_file(&path);
        let rights = |listener| peers.admit(&path, &path).map(|()| listener);
        match UnixListener::bind(&path).and_then(rights) {
            Ok(listener) => break listener,
            Err(why) => {
                warn!("cannot listen at {}, so that `stellwerk dns` doesn't work: {why}", path.display());
                sleep(Duration::from_secs(60)).await;
            }
        }
    };
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => match peers.right(&stream) {
                Ok(Ok(_)) => {
                    _ = tasks.spawn(connection(handler.clone(), stream, Client { addr: None, stream: true }));
                }
                Ok(Err(refused)) => warn!("a question for names is refused: {refused}"),
                Err(error) => warn!("a question for names is refused: the kernel doesn't say who asks: {error}"),
            },
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

/// The node's own name servers, also when they become others.
async fn follow_resolv_conf(handler: Arc<Handler>, path: PathBuf) {
    let mut before = None;
    loop {
        let stamp = std::fs::metadata(&path).ok().map(|m| (m.ino(), m.mtime(), m.mtime_nsec(), m.size()));
        if before != Some(stamp) {
            before = Some(stamp);
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let mut servers = resolv::servers(&text);
            // Asked to ask itself, it would do so for ever.
            let config = &handler.settings.config;
            let ours = config.listens();
            servers.retain(|at| !ours.contains(at) && !config.addresses.contains(&at.ip()));
            let all: Vec<String> = servers.iter().map(ToString::to_string).collect();
            match all.is_empty() {
                true => warn!("{} names no name server: only the cluster's names are answered", path.display()),
                false => info!("other names are asked of {} ({})", all.join(", "), path.display()),
            }
            handler.forwarder.set_rest(&servers);
        }
        sleep(RETRY).await;
    }
}
