//! The endpoint controller: services with a selector, pods and nodes → endpoints.
//!
//! Invariant: a pure function, by the rules of Kubernetes' EndpointSlice controller. It states which
//! endpoints there are and how they are; [`near`] says which of them a node is meant to use. Not here:
//! reading objects, who gets traffic, and the controller's bookkeeping (slices of 100 endpoints at the
//! most, their names, the annotation `topology-mode: Auto`), on which no table depends.

mod near;
mod select;

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

pub use self::near::preferred;
pub use self::select::{Expression, Operator, Selector};
use crate::intent::Protocol;

pub type Labels = BTreeMap<String, String>;

/// What a service says of its pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// The service's own name, by which pods say that they are named below it.
    pub service: String,
    /// Empty: none, so that somebody else names the endpoints.
    pub selector: Labels,
    pub ports: Vec<ServicePort>,
    /// Families to have endpoints of; true = IPv4.
    pub families: Vec<bool>,
    /// publishNotReadyAddresses
    pub not_ready_too: bool,
    pub distribution: Distribution,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    pub name: String,
    pub protocol: Protocol,
    pub target: Target,
}

/// targetPort
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Number(u16),
    /// Of a port of the pod's containers.
    Name(String),
}

/// trafficDistribution
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Distribution {
    #[default]
    Anywhere,
    /// PreferSameZone, and its older name PreferClose.
    SameZone,
    SameNode,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    pub labels: Labels,
    pub node: Option<String>,
    pub hostname: Option<String>,
    /// The service that it is named below.
    pub subdomain: Option<String>,
    /// podIPs
    pub addresses: Vec<IpAddr>,
    /// Of its containers, then of its restartable init containers.
    pub ports: Vec<ContainerPort>,
    /// The condition Ready.
    pub ready: bool,
    /// It has a deletionTimestamp.
    pub terminating: bool,
    /// Its phase is Succeeded or Failed.
    pub ended: bool,
    /// Its addresses are the node's.
    pub host_network: bool,
    /// That it asks for, one a family at the most.
    pub fixed: Vec<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPort {
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// The label topology.kubernetes.io/zone.
    pub zone: Option<String>,
    /// The label node.kubernetes.io/exclude-from-external-load-balancers: it announces no addresses.
    pub excluded: bool,
    /// Those of type InternalIP.
    pub addresses: Vec<IpAddr>,
    /// Its pods have addresses of these.
    pub pod_blocks: Vec<IpNet>,
}

/// By name.
pub type Nodes = BTreeMap<String, Node>;

/// Endpoints of one family that have the same ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    pub v4: bool,
    pub ports: Vec<Port>,
    pub endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// May be empty.
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub addr: IpAddr,
    pub hostname: Option<String>,
    pub node: Option<String>,
    pub zone: Option<String>,
    /// None counts as ready.
    pub ready: Option<bool>,
    /// None counts as serving.
    pub serving: Option<bool>,
    pub terminating: bool,
    pub hints: Hints,
}

/// For whom an endpoint is meant; empty: for anybody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    pub zones: Vec<String>,
    pub nodes: Vec<String>,
}

/// Whether a selector picks labels. The empty one picks nothing.
pub fn selects(selector: &Labels, labels: &Labels) -> bool {
    !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// The endpoints of a service among the pods of its namespace: IPv4 first, in the order of ports and addresses.
pub fn slices<'p>(service: &Selection, pods: impl IntoIterator<Item = &'p Pod>, nodes: &Nodes) -> Vec<Slice> {
    let mut found: BTreeMap<(bool, Vec<Port>), Vec<Endpoint>> = BTreeMap::new();
    for pod in pods {
        if !selects(&service.selector, &pod.labels) || pod.ended || !is_placed(service, pod, nodes) {
            continue;
        }
        let ports: Vec<Port> = service.ports.iter().filter_map(|port| resolve(port, pod)).collect();
        for &v4 in &service.families {
            if let Some(&addr) = pod.addresses.iter().find(|addr| addr.is_ipv4() == v4) {
                found.entry((!v4, ports.clone())).or_default().push(endpoint(service, pod, addr, nodes));
            }
        }
    }
    let slice = |((v6, ports), mut endpoints): ((bool, _), Vec<Endpoint>)| {
        endpoints.sort_by_key(|e| e.addr);
        Slice { v4: !v6, ports, endpoints }
    };
    found.into_iter().map(slice).collect()
}

/// Whether the pod's node is there, where anybody says which nodes there are: what is on a node that is gone
/// answers no more, though the pod may be listed for a while.
fn is_placed(service: &Selection, pod: &Pod, nodes: &Nodes) -> bool {
    let known = pod.node.as_ref().is_none_or(|node| nodes.contains_key(node));
    known || nodes.is_empty() || service.not_ready_too
}

/// None where no container has a port of that name and protocol.
fn resolve(service: &ServicePort, pod: &Pod) -> Option<Port> {
    let port = match &service.target {
        Target::Number(port) => *port,
        Target::Name(name) => pod.ports.iter().find(|p| p.name == *name && p.protocol == service.protocol)?.port,
    };
    Some(Port { name: service.name.clone(), protocol: service.protocol, port })
}

fn endpoint(service: &Selection, pod: &Pod, addr: IpAddr, nodes: &Nodes) -> Endpoint {
    let zone = pod.node.as_ref().and_then(|node| nodes.get(node)?.zone.clone());
    let hints = match service.distribution {
        Distribution::Anywhere => Hints::default(),
        Distribution::SameZone => Hints { zones: zone.iter().cloned().collect(), nodes: Vec::new() },
        Distribution::SameNode => {
            Hints { zones: zone.iter().cloned().collect(), nodes: pod.node.iter().cloned().collect() }
        }
    };
    let named = pod.subdomain.as_deref() == Some(&*service.service);
    Endpoint {
        addr,
        hostname: pod.hostname.clone().filter(|_| named),
        node: pod.node.clone(),
        zone,
        ready: Some(service.not_ready_too || (pod.ready && !pod.terminating)),
        serving: Some(pod.ready),
        terminating: pod.terminating,
        hints,
    }
}

#[cfg(test)]
mod tests;
