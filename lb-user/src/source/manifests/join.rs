//! A service and its slices → the ports to balance.
//!
//! Invariant: a pure function of the documents, the time and what it gave before (a terminating
//! endpoint keeps the deadline it once got). Not here: which addresses a service is given.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::Rules;
use super::document::{self, Service, Slice, SlicePort, Wish};
use super::names::{self, Named};
use crate::config::Error;
use crate::intent::{Endpoint, EndpointState, Protocol, ServicePort, Traffic};
use crate::moment::Moment;
use crate::source::endpoints::{self, preferred};

/// What became of one service.
#[derive(Clone, Debug, Default)]
pub(super) struct Joined {
    pub ports: Vec<ServicePort>,
    pub named: Arc<Named>,
    /// When each terminating endpoint's remaining connections end.
    pub deadlines: HashMap<(IpAddr, u16), Moment>,
    pub notices: Vec<Error>,
}

/// When and where services are joined.
#[derive(Clone, Copy, Debug)]
pub(super) struct Occasion<'a> {
    pub now: Moment,
    pub rules: &'a Rules,
    /// This node's zone.
    pub zone: Option<&'a str>,
}

pub(super) fn join(
    service: &Service,
    given: &[IpAddr],
    slices: &[Arc<Slice>],
    before: Option<&Joined>,
    moment: &Occasion<'_>,
) -> Result<Joined, Error> {
    let mut joined = Joined { named: names::of(service, given, slices), ..Joined::default() };
    if !service.balanced {
        return Ok(joined);
    }
    let mut addresses = service.addresses.clone();
    addresses.extend(given.iter().filter(|addr| !service.addresses.contains(addr)));
    let asks = service
        .balancer(moment.rules.classless)
        .is_some_and(|balancer| matches!(balancer.wish, Wish::These(_)) || !balancer.is_settled());
    if addresses.is_empty() && !asks && service.ports.iter().all(|p| p.node_port.is_none()) {
        joined
            .notices
            .push(service.said.message(format!("Service {} has no address: it gives no clusterIP", service.name)));
    }
    let traffic = traffic(service, given, moment.rules.classless);
    let ends = moment.now + moment.rules.draining;
    let deadline = |at: (IpAddr, u16)| before.and_then(|b| b.deadlines.get(&at)).copied().unwrap_or(ends);
    for port in &service.ports {
        let mut endpoints = Endpoints::default();
        for slice in slices {
            for target in targets(slice, port) {
                if port.protocol == Protocol::Sctp && target.port != port.port {
                    return Err(sctp(service, port.port, target));
                }
                for said in &slice.endpoints {
                    let at = (said.addr, target.port);
                    let state = match phase(service, said) {
                        Phase::Ready => EndpointState::Ready,
                        Phase::Leaving => {
                            let until = deadline(at);
                            joined.deadlines.insert(at, until);
                            match said.serving.unwrap_or(true) {
                                true => EndpointState::Draining { until },
                                false => EndpointState::Ending { until },
                            }
                        }
                        Phase::Absent => continue,
                    };
                    let weight = service.weights.get(&said.addr).copied().unwrap_or(1);
                    let node = said.node.clone();
                    endpoints.add(Endpoint { addr: said.addr, port: target.port, weight, node, state }, said);
                }
            }
        }
        joined.ports.push(ServicePort {
            namespace: service.name.namespace.clone(),
            name: service.name.name.clone(),
            port_name: port.name.clone(),
            protocol: port.protocol,
            port: port.port,
            node_port: port.node_port,
            addresses: addresses.clone(),
            affinity: service.affinity,
            traffic: traffic.clone(),
            endpoints: endpoints.prefer(moment),
        });
    }
    Ok(joined)
}

/// With the load balancer's addresses that are ours to give.
fn traffic(service: &Service, given: &[IpAddr], classless: bool) -> Traffic {
    let announced = service.balancer(classless).is_some();
    let mut traffic = Traffic { announced, ..service.traffic.clone() };
    traffic.balancer_ips.extend(given.iter().copied().filter(|addr| !service.addresses.contains(addr)));
    traffic
}

/// The ports of a slice that are meant by a service's port.
fn targets<'s>(slice: &'s Slice, port: &'s document::ServicePort) -> impl Iterator<Item = &'s SlicePort> {
    slice.ports.iter().filter(move |t| t.name == port.name && t.protocol == port.protocol)
}

enum Phase {
    Ready,
    Leaving,
    Absent,
}

/// A terminating endpoint leaves, whatever else is said of it; but a service that wants endpoints
/// before they are ready also wants them after.
fn phase(service: &Service, said: &endpoints::Endpoint) -> Phase {
    if said.terminating && !(service.selection.not_ready_too && said.ready == Some(true)) {
        Phase::Leaving
    } else if said.ready.unwrap_or(true) {
        Phase::Ready
    } else {
        Phase::Absent
    }
}

/// Each endpoint once: slices may name one twice while it moves between them; the more alive wins.
#[derive(Default)]
struct Endpoints<'s> {
    list: Vec<(Endpoint, &'s endpoints::Endpoint)>,
    index: HashMap<(IpAddr, u16), usize>,
}

impl<'s> Endpoints<'s> {
    fn add(&mut self, endpoint: Endpoint, said: &'s endpoints::Endpoint) {
        let alive = |e: &Endpoint| match e.state {
            EndpointState::Ready => 2,
            EndpointState::Spare | EndpointState::Draining { .. } => 1,
            EndpointState::Ending { .. } => 0,
        };
        match self.index.get(&(endpoint.addr, endpoint.port)) {
            Some(&i) if alive(&endpoint) > alive(&self.list[i].0) => self.list[i] = (endpoint, said),
            Some(_) => {}
            None => {
                self.index.insert((endpoint.addr, endpoint.port), self.list.len());
                self.list.push((endpoint, said));
            }
        }
    }

    /// Makes spare, in each family, those that are meant for others than this node.
    fn prefer(mut self, here: &Occasion<'_>) -> Vec<Endpoint> {
        for v4 in [true, false] {
            let is_ready = |e: &Endpoint| e.state == EndpointState::Ready && e.addr.is_ipv4() == v4;
            let ready: Vec<&endpoints::Endpoint> =
                self.list.iter().filter(|(e, _)| is_ready(e)).map(|(_, said)| *said).collect();
            let near = preferred(&ready, &here.rules.node, here.zone);
            let ready = self.list.iter_mut().map(|(e, _)| e).filter(|e| is_ready(e));
            for (endpoint, _) in ready.zip(near).filter(|(_, near)| !near) {
                endpoint.state = EndpointState::Spare;
            }
        }
        self.list.into_iter().map(|(endpoint, _)| endpoint).collect()
    }
}

/// SCTP's checksum covers its ports, and addresses alone are rewritten (RFC 9260 §6.8).
fn sctp(service: &Service, port: u16, target: &SlicePort) -> Error {
    target.said.message(format!(
        "`{}` is not the SCTP port of Service {} ({port}); expected the same port, since SCTP's checksum covers ports and only addresses are translated",
        target.port, service.name
    ))
}
