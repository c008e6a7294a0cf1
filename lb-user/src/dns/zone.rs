//! The cluster's zone: what a name below its domain stands for.
//!
//! Invariant: pure; a copy shares all with its original, and following a change costs what changed. Names are
//! those of "Kubernetes DNS-Based Service Discovery" 1.1.0, and where it is silent CoreDNS'. Not here: records.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use super::name;
use crate::config::Pods;
use crate::intent::Protocol;
use crate::source::manifests::ServiceName;
use crate::source::manifests::names::{Endpoint, Named, Names, Target};

/// What may be asked for at a moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Of the wish in force; the zone's serial.
    pub revision: u64,
    pub zone: Zone,
    /// This node's own addresses: it asks from any of them.
    pub node: Arc<BTreeSet<IpAddr>>,
}

#[derive(Clone, Debug, Default)]
pub struct Zone {
    names: Names,
    /// Services that an address is of, or an endpoint's.
    owners: OrdMap<IpAddr, Arc<[ServiceName]>>,
    /// Services that aren't served as they are wished for: nothing is known of their names yet.
    held: Arc<BTreeSet<ServiceName>>,
}

/// What a name asks for, by its labels alone.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Asked<'l> {
    /// A name above others: the zone's own, `svc`, `pod`.
    Above,
    Version,
    NameServer,
    Namespace(&'l str),
    Service {
        namespace: &'l str,
        name: &'l str,
        part: Part<'l>,
    },
    Pod {
        namespace: &'l str,
        name: &'l str,
    },
    Nothing,
}

/// Which part of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'l> {
    All,
    Endpoint(&'l str),
    Port { name: &'l str, protocol: &'l str },
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// It isn't known yet.
    Unknown,
    /// There is no such name.
    Nothing,
    /// There is, but it stands for nothing itself.
    Empty,
    Version,
    NameServer,
    Alias(String),
    Hosts(Vec<Host>),
}

/// A host, and what of it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its name's labels below the domain.
    pub name: String,
    pub addr: IpAddr,
    /// Those that have a name.
    pub ports: Vec<u16>,
}

fn asked(labels: &[String]) -> Asked<'_> {
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    fn bare(label: &str) -> &str {
        label.strip_prefix('_').unwrap_or(label)
    }
    match labels[..] {
        [] | ["svc" | "pod" | "dns"] => Asked::Above,
        ["dns-version"] => Asked::Version,
        ["ns", "dns"] => Asked::NameServer,
        [namespace, "svc" | "pod"] => Asked::Namespace(namespace),
        [name, namespace, "pod"] => Asked::Pod { namespace, name },
        [name, namespace, "svc"] => Asked::Service { namespace, name, part: Part::All },
        [host, name, namespace, "svc"] => Asked::Service { namespace, name, part: Part::Endpoint(host) },
        [port, protocol, name, namespace, "svc"] => {
            let part = Part::Port { name: bare(port), protocol: bare(protocol) };
            Asked::Service { namespace, name, part }
        }
        _ => Asked::Nothing,
    }
}

impl Part<'_> {
    /// Ports that have a name and are meant.
    fn ports(&self, ports: &[crate::source::manifests::names::Port]) -> Vec<u16> {
        let meant = |p: &&crate::source::manifests::names::Port| match self {
            Part::Port { name, protocol } => {
                p.name.eq_ignore_ascii_case(name) && protocol_name(p.protocol).eq_ignore_ascii_case(protocol)
            }
            Part::All | Part::Endpoint(_) => true,
        };
        ports.iter().filter(|p| !p.name.is_empty()).filter(meant).map(|p| p.port).collect()
    }
}

pub(super) fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

/// An endpoint's name below its service's.
pub(super) fn hostname(endpoint: &Endpoint) -> String {
    endpoint.hostname.as_ref().map_or_else(|| name::dashed(endpoint.addr), |name| name.to_ascii_lowercase())
}

impl Zone {
    /// Of names at once.
    pub fn new(names: &Names) -> Self {
        let mut zone = Zone::default();
        zone.follow(names);
        zone
    }

    /// Those of an agent before, as far as what it left serves them: others are held back.
    pub fn resumed(names: &Names, held: BTreeSet<ServiceName>) -> Self {
        let mut served = names.clone();
        held.iter().for_each(|name| served.replace(name, None));
        Zone { held: Arc::new(held), ..Zone::new(&served) }
    }

    /// Nothing is held back.
    pub fn is_whole(&self) -> bool {
        self.held.is_empty()
    }

    /// Takes other names in place of these; all are served.
    pub fn follow(&mut self, names: &Names) {
        self.held = Arc::default();
        let before = std::mem::replace(&mut self.names, names.clone());
        for change in before.services.diff(&names.services) {
            match change {
                DiffItem::Add(name, now) => self.own(name, None, Some(now)),
                DiffItem::Update { old, new } => self.own(new.0, Some(old.1), Some(new.1)),
                DiffItem::Remove(name, was) => self.own(name, Some(was), None),
            }
        }
    }

    fn own(&mut self, name: &ServiceName, was: Option<&Arc<Named>>, now: Option<&Arc<Named>>) {
        let addresses = |named: Option<&Arc<Named>>| -> BTreeSet<IpAddr> {
            let own = named.and_then(|named| match &named.target {
                Target::Addresses(all) => Some(all),
                Target::Endpoints | Target::Name(_) => None,
            });
            let endpoints = named.into_iter().flat_map(|named| &named.endpoints).map(|e| e.addr);
            own.into_iter().flatten().copied().chain(endpoints).collect()
        };
        let (was, now) = (addresses(was), addresses(now));
        for addr in was.symmetric_difference(&now) {
            let mut owners: Vec<ServiceName> = self.owners.get(addr).map_or(Vec::new(), |all| all.to_vec());
            owners.retain(|other| other != name);
            if now.contains(addr) {
                owners.push(name.clone());
                owners.sort();
            }
            match owners.is_empty() {
                true => _ = self.owners.remove(addr),
                false => _ = self.owners.insert(*addr, owners.into()),
            }
        }
    }

    pub fn names(&self) -> &Names {
        &self.names
    }

    /// A service, or what its absence means.
    fn service(&self, namespace: &str, name: &str) -> Result<&Arc<Named>, Meaning> {
        let name = ServiceName { namespace: namespace.into(), name: name.into() };
        let absent = || if self.held.contains(&name) { Meaning::Unknown } else { Meaning::Nothing };
        self.names.services.get(&name).ok_or_else(absent)
    }

    /// What a name's labels below the domain, in lower case, stand for.
    pub fn find(&self, labels: &[String], pods: Pods) -> Meaning {
        let there = |namespace: &str| self.names.namespaces.contains_key(namespace);
        match asked(labels) {
            Asked::Above => Meaning::Empty,
            Asked::Version => Meaning::Version,
            Asked::NameServer => Meaning::NameServer,
            Asked::Namespace(namespace) if there(namespace) => Meaning::Empty,
            Asked::Namespace(_) | Asked::Nothing => Meaning::Nothing,
            Asked::Pod { namespace, name } => {
                let addr = name::undashed(name).filter(|addr| match pods {
                    Pods::Disabled => false,
                    Pods::Insecure => there(namespace),
                    Pods::Verified => self.names.pods.contains_key(&(namespace.to_owned(), *addr)),
                });
                let host = |addr| Host { name: labels.join("."), addr, ports: Vec::new() };
                addr.map_or(Meaning::Nothing, |addr| Meaning::Hosts(vec![host(addr)]))
            }
            Asked::Service { namespace, name, part } => match self.service(namespace, name) {
                Ok(named) => meaning(named, &format!("{name}.{namespace}.svc"), part),
                Err(absent) => absent,
            },
        }
    }

    /// Addresses outside of a load balancer, by its labels below the external zone.
    pub fn find_external(&self, labels: &[String]) -> Meaning {
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let (name, namespace, part) = match labels[..] {
            [] | ["dns"] => return Meaning::Empty,
            ["ns", "dns"] => return Meaning::NameServer,
            [namespace] if self.names.namespaces.contains_key(namespace) => return Meaning::Empty,
            [name, namespace] => (name, namespace, Part::All),
            [port, protocol, name, namespace] => {
                let (Some(port), Some(protocol)) = (port.strip_prefix('_'), protocol.strip_prefix('_')) else {
                    return Meaning::Nothing;
                };
                (name, namespace, Part::Port { name: port, protocol })
            }
            _ => return Meaning::Nothing,
        };
        let named = match self.service(namespace, name) {
            Ok(named) if named.external.is_empty() => return Meaning::Nothing,
            Ok(named) => named,
            Err(absent) => return absent,
        };
        own_addresses(&named.external, named, &format!("{name}.{namespace}"), part)
    }

    /// The names of an address: its service's, else its endpoints'.
    pub fn find_address(&self, addr: IpAddr) -> Vec<String> {
        let owners = self.owners.get(&addr).map_or(&[][..], |owners| owners);
        let named = || owners.iter().filter_map(|name| Some((name, self.names.services.get(name)?)));
        for (name, named) in named() {
            if matches!(&named.target, Target::Addresses(all) if all.contains(&addr)) {
                return vec![format!("{}.{}.svc", name.name, name.namespace)];
            }
        }
        let mut all: Vec<String> = Vec::new();
        for (name, named) in named() {
            for endpoint in named.endpoints.iter().filter(|e| e.addr == addr) {
                all.push(format!("{}.{}.{}.svc", hostname(endpoint), name.name, name.namespace));
            }
        }
        all.dedup();
        all
    }
}

fn meaning(named: &Named, base: &str, part: Part<'_>) -> Meaning {
    match (&named.target, part) {
        (Target::Name(name), Part::All) => match name.parse::<IpAddr>() {
            Ok(_) => Meaning::Nothing,
            Err(_) => Meaning::Alias(name.clone()),
        },
        (Target::Name(_), _) => Meaning::Nothing,
        (Target::Addresses(all), Part::All | Part::Port { .. }) => own_addresses(all, named, base, part),
        (Target::Addresses(_), Part::Endpoint(_)) | (Target::Endpoints, _) => {
            let mut hosts: Vec<Host> = Vec::new();
            for endpoint in &named.endpoints {
                let (hostname, ports) = (hostname(endpoint), part.ports(&endpoint.ports));
                let meant = match part {
                    Part::All => true,
                    Part::Endpoint(host) => hostname == host,
                    Part::Port { .. } => !ports.is_empty(),
                };
                let name = format!("{hostname}.{base}");
                match hosts.iter_mut().rev().find(|h| h.addr == endpoint.addr && h.name == name) {
                    Some(host) => host.ports.extend(ports),
                    None if meant => hosts.push(Host { name, addr: endpoint.addr, ports }),
                    None => {}
                }
            }
            if hosts.is_empty() { Meaning::Nothing } else { Meaning::Hosts(hosts) }
        }
    }
}

fn own_addresses(all: &[IpAddr], named: &Named, base: &str, part: Part<'_>) -> Meaning {
    let ports = part.ports(&named.ports);
    if matches!(part, Part::Port { .. }) && ports.is_empty() {
        return Meaning::Nothing;
    }
    let host = |addr: &IpAddr| Host { name: base.to_owned(), addr: *addr, ports: ports.clone() };
    if all.is_empty() { Meaning::Empty } else { Meaning::Hosts(all.iter().map(host).collect()) }
}
