//! What there is once only: documents by service, and who listens where.
//!
//! Invariant: an index is turned back by swapping the same documents the other way.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::document::{Documents, Service, ServiceName, Slice};
use super::join::Joined;
use crate::config::Errors;
use crate::intent::Protocol;

/// Which documents there are, by service.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    pub services: BTreeMap<ServiceName, Vec<Arc<Service>>>,
    pub slices: BTreeMap<ServiceName, Vec<Arc<Slice>>>,
}

/// Who listens where.
#[derive(Clone, Debug, Default)]
pub(super) struct Taken {
    addresses: HashMap<(IpAddr, u16, Protocol), ServiceName>,
    node_ports: HashMap<(u16, Protocol), ServiceName>,
}

impl Index {
    pub fn swap(&mut self, out: &[Arc<Documents>], into: &[Arc<Documents>]) {
        for service in out.iter().flat_map(|d| &d.services) {
            remove(&mut self.services, &service.name, service);
        }
        for slice in out.iter().flat_map(|d| &d.slices) {
            remove(&mut self.slices, &slice.service, slice);
        }
        for service in into.iter().flat_map(|d| &d.services) {
            self.services.entry(service.name.clone()).or_default().push(service.clone());
        }
        for slice in into.iter().flat_map(|d| &d.slices) {
            let list = self.slices.entry(slice.service.clone()).or_default();
            let place = list.partition_point(|s| s.name <= slice.name);
            list.insert(place, slice.clone());
        }
    }

    /// Refuses a service or slice that is there twice.
    pub fn unique(&self, names: &BTreeSet<ServiceName>) -> Result<(), Errors> {
        let mut errors = Vec::new();
        for name in names {
            if let Some([first, second, ..]) = self.services.get(name).map(Vec::as_slice) {
                errors
                    .push(second.said.message(format!("Service {name} is given twice, also at {}", first.said.line())));
            }
            for pair in
                self.slices.get(name).map_or(&[][..], |v| v).windows(2).filter(|pair| pair[0].name == pair[1].name)
            {
                let slice = format!("EndpointSlice {}/{}", name.namespace, pair[1].name);
                errors.push(pair[1].said.message(format!("{slice} is given twice, also at {}", pair[0].said.line())));
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(Errors(errors)) }
    }

    fn line(&self, name: &ServiceName) -> String {
        self.services.get(name).and_then(|s| s.first()).map_or(String::new(), |s| format!(" ({})", s.said.line()))
    }
}

fn remove<T>(map: &mut BTreeMap<ServiceName, Vec<Arc<T>>>, name: &ServiceName, gone: &Arc<T>) {
    if let Some(list) = map.get_mut(name) {
        list.retain(|there| !Arc::ptr_eq(there, gone));
        if list.is_empty() {
            map.remove(name);
        }
    }
}

impl Taken {
    /// Refuses two services at one address, port and protocol, and one where the configuration forwards a port.
    pub fn check(
        &self,
        affected: &BTreeSet<ServiceName>,
        joined: &BTreeMap<ServiceName, Arc<Joined>>,
        index: &Index,
        published: &BTreeMap<(IpAddr, u16, Protocol), String>,
    ) -> Result<(), Errors> {
        let mut mine = Taken::default();
        let mut errors = Vec::new();
        for (name, joined) in joined {
            let ports = index.services.get(name).and_then(|s| s.first()).map_or(&[][..], |s| &s.ports);
            for (port, said) in joined.ports.iter().zip(ports) {
                let service = |first: &ServiceName| format!("{first}{}", index.line(first));
                let mut clash = |what: String, first: String| {
                    errors.push(
                        said.said
                            .message(format!("{name} and {first} both want {what}; expected one of them to change")),
                    );
                };
                let old = |name: &&ServiceName| !affected.contains(*name);
                for addr in &port.addresses {
                    let key = (*addr, port.port, port.protocol);
                    let before = mine.addresses.insert(key, name.clone());
                    let before = before.as_ref().or(self.addresses.get(&key).filter(old)).map(service);
                    if let Some(first) = before.or_else(|| published.get(&key).cloned()) {
                        clash(format!("{}", Listen(*addr, port.port, port.protocol)), first);
                    }
                }
                if let Some(node_port) = port.node_port {
                    let before = mine.node_ports.insert((node_port, port.protocol), name.clone());
                    if let Some(first) =
                        before.as_ref().or(self.node_ports.get(&(node_port, port.protocol)).filter(old))
                    {
                        clash(format!("node port {node_port}/{}", protocol(port.protocol)), service(first));
                    }
                }
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(Errors(errors)) }
    }

    pub fn replace(&mut self, name: &ServiceName, before: Option<&Joined>, after: Option<&Joined>) {
        for port in before.into_iter().flat_map(|j| &j.ports) {
            for addr in &port.addresses {
                let key = (*addr, port.port, port.protocol);
                if self.addresses.get(&key) == Some(name) {
                    self.addresses.remove(&key);
                }
            }
            if let Some(node_port) = port.node_port.filter(|p| self.node_ports.get(&(*p, port.protocol)) == Some(name))
            {
                self.node_ports.remove(&(node_port, port.protocol));
            }
        }
        for port in after.into_iter().flat_map(|j| &j.ports) {
            for addr in &port.addresses {
                self.addresses.insert((*addr, port.port, port.protocol), name.clone());
            }
            if let Some(node_port) = port.node_port {
                self.node_ports.insert((node_port, port.protocol), name.clone());
            }
        }
    }
}

struct Listen(IpAddr, u16, Protocol);

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", std::net::SocketAddr::new(self.0, self.1), protocol(self.2))
    }
}

pub(super) fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}
