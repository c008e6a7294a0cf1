//! What load balancers' addresses ask of the node that announces them.
//!
//! Invariant: a pure function of the services as they are planned.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::intent::{Endpoint, EndpointState, ServicePort};

/// What one address asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// `namespace/name` of its services.
    pub services: BTreeSet<String>,
    /// The nodes that can serve any of them; None: all can.
    pub nodes: Option<BTreeSet<String>>,
}

pub type Demands = BTreeMap<IpAddr, Demand>;

impl Demand {
    fn join(&mut self, other: Demand) {
        self.services.extend(other.services);
        self.nodes = self.nodes.take().zip(other.nodes).map(|(mine, theirs)| mine.into_iter().chain(theirs).collect());
    }
}

/// Adds what `from` asks.
pub fn join(into: &mut Demands, from: &Demands) {
    for (addr, demand) in from {
        match into.get_mut(addr) {
            Some(before) => before.join(demand.clone()),
            None => _ = into.insert(*addr, demand.clone()),
        }
    }
}

/// What a service's ports ask. `is_here` says whether an endpoint without a node's name is on this one, `own`.
pub fn of(ports: &[ServicePort], own: &str, is_here: impl Fn(&Endpoint) -> bool) -> Demands {
    let mut demands = Demands::new();
    for port in ports.iter().filter(|port| port.traffic.announced) {
        for addr in &port.traffic.balancer_ips {
            let nodes = port.traffic.external_local.then(|| serving(port, *addr, own, &is_here));
            let services = [format!("{}/{}", port.namespace, port.name)].into();
            join(&mut demands, &[(*addr, Demand { services, nodes })].into());
        }
    }
    demands
}

/// The nodes that have endpoints which would get connections that stay there: ready ones, else those that leave and
/// still serve (KEP-1669), as the plan chooses them.
fn serving(port: &ServicePort, addr: IpAddr, own: &str, is_here: &impl Fn(&Endpoint) -> bool) -> BTreeSet<String> {
    let node = |e: &Endpoint| match &e.node {
        Some(node) => Some(node.clone()),
        None => is_here(e).then(|| own.to_owned()),
    };
    let family = || port.endpoints.iter().filter(|e| e.addr.is_ipv4() == addr.is_ipv4());
    let ready = family().filter(|e| matches!(e.state, EndpointState::Ready | EndpointState::Spare)).filter_map(node);
    let leaving = family().filter(|e| matches!(e.state, EndpointState::Draining { .. })).filter_map(node);
    ready.chain(leaving).collect()
}
