//! What names stand for: services, their endpoints, and pods.
//!
//! Invariant: a copy shares all with its original, and a change costs what changed. Addresses are the ones
//! that the service really has, those given here among them. Not here: names' form and records ([`crate::dns`]).

use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;

use super::document::{Documents, Naming, Service, ServiceName, Slice};
pub use crate::source::endpoints::Port;

/// Everything that has a name.
#[derive(Clone, Debug, Default)]
pub struct Names {
    pub services: OrdMap<ServiceName, Arc<Named>>,
    /// Pods' addresses by namespace, and how many pods have each.
    pub pods: OrdMap<(String, IpAddr), usize>,
    /// How many objects are in each, or say that it is there.
    pub namespaces: OrdMap<String, usize>,
}

/// What a service's name stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    pub target: Target,
    pub ports: Vec<Port>,
    /// Those that are ready.
    pub endpoints: Vec<Endpoint>,
    /// Addresses for the world outside: of the load balancer, and external IPs.
    pub external: Vec<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Its own addresses.
    Addresses(Vec<IpAddr>),
    /// Its endpoints'.
    Endpoints,
    /// Another name's.
    Name(String),
}

impl Default for Target {
    fn default() -> Self {
        Target::Addresses(Vec::new())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub addr: IpAddr,
    pub hostname: Option<String>,
    pub ports: Arc<[Port]>,
}

impl Names {
    /// Whether nothing differs; may say no of the same.
    pub fn is_same(&self, other: &Names) -> bool {
        let Names { services, pods, namespaces } = self;
        services.ptr_eq(&other.services) && pods.ptr_eq(&other.pods) && namespaces.ptr_eq(&other.namespaces)
    }

    pub fn replace(&mut self, name: &ServiceName, now: Option<&Arc<Named>>) {
        let before = self.services.get(name);
        if before.map(|named| &**named) == now.map(|named| &**named) {
            return;
        }
        match (before.is_some(), now.is_some()) {
            (false, true) => more(&mut self.namespaces, name.namespace.clone()),
            (true, false) => fewer(&mut self.namespaces, &name.namespace),
            _ => {}
        }
        match now {
            Some(named) => _ = self.services.insert(name.clone(), named.clone()),
            None => _ = self.services.remove(name),
        }
    }

    /// Other documents' pods and namespaces in place of these.
    pub(super) fn swap(&mut self, out: &[Arc<Documents>], into: &[Arc<Documents>]) {
        for (documents, change) in [(into, true), (out, false)] {
            for name in documents.iter().flat_map(|d| &d.namespaces) {
                let name = &name.name;
                if change { more(&mut self.namespaces, name.clone()) } else { fewer(&mut self.namespaces, name) }
            }
            for pod in documents.iter().flat_map(|d| &d.pods) {
                let namespace = &pod.name.namespace;
                if change {
                    more(&mut self.namespaces, namespace.clone())
                } else {
                    fewer(&mut self.namespaces, namespace)
                }
                for &addr in pod.object.addresses.iter().filter(|_| !pod.object.ended) {
                    let key = (namespace.clone(), addr);
                    if change { more(&mut self.pods, key) } else { fewer(&mut self.pods, &key) }
                }
            }
        }
    }
}

fn more<K: Ord + Clone>(counts: &mut OrdMap<K, usize>, key: K) {
    *counts.entry(key).or_insert(0) += 1;
}

fn fewer<K: Ord + Clone>(counts: &mut OrdMap<K, usize>, key: &K) {
    match counts.get(key) {
        Some(&n) if n > 1 => _ = counts.insert(key.clone(), n - 1),
        _ => _ = counts.remove(key),
    }
}

/// Out of a service's documents and the addresses that it is given.
pub(super) fn of(service: &Service, given: &[IpAddr], slices: &[Arc<Slice>]) -> Arc<Named> {
    let ports = service.ports.iter().map(|p| Port { name: p.name.clone(), protocol: p.protocol, port: p.port });
    let others = given.iter().filter(|addr| !service.addresses.contains(addr));
    let all: Vec<IpAddr> = service.addresses.iter().chain(others).copied().collect();
    let mut named = Named { ports: ports.collect(), ..Named::default() };
    match &service.naming {
        Naming::Cluster(cluster) => {
            named.external = all.iter().copied().filter(|addr| !cluster.contains(addr)).collect();
            // Where no cluster gives any, it is reached at the others.
            named.target = Target::Addresses(if cluster.is_empty() { all } else { cluster.clone() });
        }
        Naming::Headless => {
            named.target = Target::Endpoints;
            named.external = all;
        }
        Naming::External(name) => named.target = Target::Name(name.clone()),
    }
    for slice in slices {
        let port = |p: &super::document::SlicePort| Port { name: p.name.clone(), protocol: p.protocol, port: p.port };
        let ports: Arc<[Port]> = slice.ports.iter().map(port).collect();
        for said in slice.endpoints.iter().filter(|e| e.ready.unwrap_or(true)) {
            named.endpoints.push(Endpoint { addr: said.addr, hostname: said.hostname.clone(), ports: ports.clone() });
        }
    }
    // Slices may name one twice while it moves between them.
    named.endpoints.sort_by(|a, b| (a.addr, &a.hostname).cmp(&(b.addr, &b.hostname)));
    named.endpoints.dedup();
    Arc::new(named)
}
