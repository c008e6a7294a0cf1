//! What there is once only: documents by service, and who listens where.
//!
//! Invariant: an index is turned back by swapping the same documents the other way.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::document::{Documents, Endpoints, Placed, Said, Service, ServiceName, Slice, SlicePort};
use super::join::Joined;
use super::select::Selected;
use crate::config::Error;
use crate::intent::{Protocol, ServicePort};
use crate::policy::Policy;
use crate::source::endpoints::{self, Labels, Node, Nodes, Pod};

/// Which documents there are, by service.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    pub services: BTreeMap<ServiceName, Vec<Arc<Service>>>,
    slices: BTreeMap<ServiceName, Vec<Arc<Slice>>>,
    endpoints: BTreeMap<ServiceName, Vec<Arc<Endpoints>>>,
    selected: Selected,
    node_documents: BTreeMap<String, Vec<Arc<Placed<String, Node>>>>,
    namespaces: BTreeMap<String, Vec<Arc<Placed<String, Labels>>>>,
    policies: BTreeMap<ServiceName, Vec<Arc<Placed<ServiceName, Policy>>>>,
    pub nodes: Nodes,
}

/// What is wrong, and with which services.
#[derive(Debug)]
pub(super) struct Wrong {
    pub error: Error,
    pub about: Vec<ServiceName>,
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
        for endpoints in out.iter().flat_map(|d| &d.endpoints) {
            remove(&mut self.endpoints, &endpoints.name, endpoints);
        }
        for endpoints in into.iter().flat_map(|d| &d.endpoints) {
            self.endpoints.entry(endpoints.name.clone()).or_default().push(endpoints.clone());
        }
        for namespace in out.iter().flat_map(|d| &d.namespaces) {
            remove(&mut self.namespaces, &namespace.name, namespace);
        }
        for namespace in into.iter().flat_map(|d| &d.namespaces) {
            self.namespaces.entry(namespace.name.clone()).or_default().push(namespace.clone());
        }
        for policy in out.iter().flat_map(|d| &d.policies) {
            remove(&mut self.policies, &policy.name, policy);
        }
        for policy in into.iter().flat_map(|d| &d.policies) {
            self.policies.entry(policy.name.clone()).or_default().push(policy.clone());
        }
        self.selected.swap(out, into);
        self.swap_nodes(out, into);
    }

    fn swap_nodes(&mut self, out: &[Arc<Documents>], into: &[Arc<Documents>]) {
        for node in out.iter().flat_map(|d| &d.nodes) {
            remove(&mut self.node_documents, &node.name, node);
        }
        for node in into.iter().flat_map(|d| &d.nodes) {
            self.node_documents.entry(node.name.clone()).or_default().push(node.clone());
        }
        for name in out.iter().chain(into).flat_map(|d| &d.nodes).map(|node| &node.name) {
            match self.node_documents.get(name).and_then(|list| list.first()) {
                Some(node) => _ = self.nodes.insert(name.clone(), node.object.clone()),
                None => _ = self.nodes.remove(name),
            }
        }
    }

    /// A namespace's labels; every one has that of its name.
    pub fn labels(&self, namespace: &str) -> Labels {
        let said = self.namespaces.get(namespace).and_then(|list| list.first());
        let mut labels = said.map(|said| said.object.clone()).unwrap_or_default();
        labels.insert("kubernetes.io/metadata.name".into(), namespace.into());
        labels
    }

    pub fn pod(&self, name: &ServiceName) -> Option<&Pod> {
        self.selected.pods.get(name).and_then(|list| list.first()).map(|pod| &pod.object)
    }

    pub fn pods(&self) -> impl Iterator<Item = (&ServiceName, &Pod)> {
        self.selected.pods.iter().filter_map(|(name, list)| Some((name, &list.first()?.object)))
    }

    /// Ordered by name.
    pub fn policies(&self) -> impl Iterator<Item = &Policy> {
        self.policies.values().filter_map(|list| list.first()).map(|policy| &policy.object)
    }

    /// The services that these documents are about.
    pub fn touched(&self, documents: &[Arc<Documents>]) -> BTreeSet<ServiceName> {
        let all = || documents.iter();
        let mut names = self.selected.services_of(all().flat_map(|d| d.pods.iter().map(|pod| &**pod)));
        names.extend(all().flat_map(|d| d.services.iter().map(|s| s.name.clone())));
        names.extend(all().flat_map(|d| d.slices.iter().map(|s| s.service.clone())));
        names.extend(all().flat_map(|d| d.endpoints.iter().map(|e| e.name.clone())));
        names
    }

    /// The endpoints of a service: as its slices say; without any, as its Endpoints do; else as its pods make them.
    pub fn slices(&self, service: &Service) -> Vec<Arc<Slice>> {
        let mine = |slices: &[Arc<Slice>]| -> Vec<Arc<Slice>> {
            slices.iter().filter(|slice| !(service.balanced && slice.for_others)).cloned().collect()
        };
        let slices = self.slices.get(&service.name).map(|slices| mine(slices));
        if let Some(slices) = slices.filter(|slices| !slices.is_empty()) {
            return slices;
        }
        let subsets = self.endpoints.get(&service.name).and_then(|list| list.first());
        if let Some(subsets) = subsets.filter(|list| !list.object.iter().any(|s| service.balanced && s.for_others)) {
            return subsets.object.clone();
        }
        let computed = endpoints::slices(&service.selection, self.selected.pods_for(service), &self.nodes);
        computed.into_iter().map(|slice| Arc::new(of_pods(service, slice))).collect()
    }

    /// Refuses what is there twice: of these services, and of the new documents.
    pub fn unique(&self, names: &BTreeSet<ServiceName>, new: &[Arc<Documents>]) -> Result<(), Vec<Wrong>> {
        let mut wrong = Vec::new();
        let mut twice = |what: String, first: &Said, second: &Said, about: &[&ServiceName]| {
            let error = second.message(format!("{what} is given twice, also at {}", first.line()));
            wrong.push(Wrong { error, about: about.iter().map(|&name| name.clone()).collect() });
        };
        for name in names {
            if let Some([first, second, ..]) = self.services.get(name).map(Vec::as_slice) {
                twice(format!("Service {name}"), &first.said, &second.said, &[name]);
            }
            if let Some([first, second, ..]) = self.endpoints.get(name).map(Vec::as_slice) {
                twice(format!("Endpoints {name}"), &first.said, &second.said, &[name]);
            }
            let slices = self.slices.get(name).map_or(&[][..], |v| v);
            for pair in slices.windows(2).filter(|pair| pair[0].name == pair[1].name) {
                let slice = format!("EndpointSlice {}/{}", name.namespace, pair[1].name);
                twice(slice, &pair[0].said, &pair[1].said, &[name]);
            }
        }
        let pods: BTreeSet<_> = new.iter().flat_map(|d| d.pods.iter().map(|pod| &pod.name)).collect();
        for name in pods {
            if let Some([first, second, ..]) = self.selected.pods.get(name).map(Vec::as_slice) {
                twice(format!("Pod {name}"), &first.said, &second.said, &[]);
            }
        }
        let nodes: BTreeSet<_> = new.iter().flat_map(|d| d.nodes.iter().map(|node| &node.name)).collect();
        for name in nodes {
            if let Some([first, second, ..]) = self.node_documents.get(name).map(Vec::as_slice) {
                twice(format!("Node {name}"), &first.said, &second.said, &[]);
            }
        }
        let namespaces: BTreeSet<_> = new.iter().flat_map(|d| d.namespaces.iter().map(|n| &n.name)).collect();
        for name in namespaces {
            if let Some([first, second, ..]) = self.namespaces.get(name).map(Vec::as_slice) {
                twice(format!("Namespace {name}"), &first.said, &second.said, &[]);
            }
        }
        let policies: BTreeSet<_> = new.iter().flat_map(|d| d.policies.iter().map(|policy| &policy.name)).collect();
        for name in policies {
            if let Some([first, second, ..]) = self.policies.get(name).map(Vec::as_slice) {
                twice(format!("NetworkPolicy {name}"), &first.said, &second.said, &[]);
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    fn line(&self, name: &ServiceName) -> String {
        self.services.get(name).and_then(|s| s.first()).map_or(String::new(), |s| format!(" ({})", s.said.line()))
    }
}

/// A slice as if somebody had written it where the service is.
fn of_pods(service: &Service, slice: endpoints::Slice) -> Slice {
    let said = |name: &str| service.ports.iter().find(|p| p.name == name).map_or(&service.said, |p| &p.said).clone();
    let port = |p: endpoints::Port| SlicePort { said: said(&p.name), name: p.name, protocol: p.protocol, port: p.port };
    Slice {
        name: service.name.name.clone(),
        service: service.name.clone(),
        for_others: false,
        said: service.said.clone(),
        ports: slice.ports.into_iter().map(port).collect(),
        endpoints: slice.endpoints,
    }
}

pub(super) fn remove<K: Ord, T>(map: &mut BTreeMap<K, Vec<Arc<T>>>, key: &K, gone: &Arc<T>) {
    if let Some(list) = map.get_mut(key) {
        list.retain(|there| !Arc::ptr_eq(there, gone));
        if list.is_empty() {
            map.remove(key);
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
    ) -> Result<(), Vec<Wrong>> {
        let mut mine = Taken::default();
        let mut wrong = Vec::new();
        for (name, joined) in joined {
            let ports = index.services.get(name).and_then(|s| s.first()).map_or(&[][..], |s| &s.ports);
            for (port, said) in joined.ports.iter().zip(ports) {
                let service = |first: &ServiceName| format!("{first}{}", index.line(first));
                let mut clash = |what: String, first: String, other: Option<&ServiceName>| {
                    let text = format!("{name} and {first} both want {what}; expected one of them to change");
                    let about = [name].into_iter().chain(other).cloned().collect();
                    wrong.push(Wrong { error: said.said.message(text), about });
                };
                let old = |name: &&ServiceName| !affected.contains(*name);
                for addr in &port.addresses {
                    let key = (*addr, port.port, port.protocol);
                    let before = mine.addresses.insert(key, name.clone());
                    let other = before.as_ref().or(self.addresses.get(&key).filter(old));
                    if let Some(first) = other.map(service).or_else(|| published.get(&key).cloned()) {
                        clash(format!("{}", Listen(*addr, port.port, port.protocol)), first, other);
                    }
                }
                for key in node_ports(joined, port) {
                    let before = mine.node_ports.insert(key, name.clone());
                    if let Some(first) = before.as_ref().or(self.node_ports.get(&key).filter(old)) {
                        let what = format!("node port {}/{}", key.0, key.1.name());
                        clash(what, service(first), Some(first));
                    }
                }
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    pub fn replace(&mut self, name: &ServiceName, before: Option<&Joined>, after: Option<&Joined>) {
        for port in before.into_iter().flat_map(|j| &j.ports) {
            for addr in &port.addresses {
                let key = (*addr, port.port, port.protocol);
                if self.addresses.get(&key) == Some(name) {
                    self.addresses.remove(&key);
                }
            }
            for key in before.into_iter().flat_map(|joined| node_ports(joined, port)) {
                if self.node_ports.get(&key) == Some(name) {
                    self.node_ports.remove(&key);
                }
            }
        }
        for port in after.into_iter().flat_map(|j| &j.ports) {
            for addr in &port.addresses {
                self.addresses.insert((*addr, port.port, port.protocol), name.clone());
            }
            for key in after.into_iter().flat_map(|joined| node_ports(joined, port)) {
                self.node_ports.insert(key, name.clone());
            }
        }
    }
}

/// The node ports of a service's port: its own, and with the first one that of the service's health checks.
fn node_ports<'a>(joined: &'a Joined, port: &'a ServicePort) -> impl Iterator<Item = (u16, Protocol)> + 'a {
    let first = joined.ports.first().is_some_and(|first| std::ptr::eq(first, port));
    let health_check = port.traffic.health_check.filter(|_| first).map(|port| (port, Protocol::Tcp));
    port.node_port.map(|number| (number, port.protocol)).into_iter().chain(health_check)
}

struct Listen(IpAddr, u16, Protocol);

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", std::net::SocketAddr::new(self.0, self.1), self.2.name())
    }
}
