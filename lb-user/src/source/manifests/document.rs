//! One file of Kubernetes YAML: the fields of Service (v1) and EndpointSlice
//! (discovery.k8s.io/v1) that balancing needs.
//!
//! Invariant: a file is read whole or refused; what is not understood but harmless is a notice.
//! Other fields are left alone, as the cluster's API may add any. Not here: how services and slices
//! go together ([`super::join`]).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::config::{self, At, Error, Errors, Log, Place};
use crate::intent::Protocol;

/// `namespace/name` of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName {
    pub namespace: String,
    pub name: String,
}

impl std::fmt::Display for ServiceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A place in a file and its key path.
#[derive(Clone, Debug)]
pub(super) struct Said {
    pub file: Arc<str>,
    pub place: Place,
    pub path: String,
}

impl Said {
    fn new(log: &Log, at: &At<'_>) -> Self {
        Said { file: log.file.clone(), place: at.place(), path: at.to_string() }
    }

    pub fn message(&self, message: impl Into<String>) -> Error {
        Error { file: self.file.clone(), place: Some(self.place), path: self.path.clone(), message: message.into() }
    }

    /// `file:line`
    pub fn line(&self) -> String {
        format!("{}:{}", self.file, self.place.line)
    }
}

/// What a file says.
#[derive(Clone, Debug, Default)]
pub(super) struct Documents {
    pub services: Vec<Arc<Service>>,
    pub slices: Vec<Arc<Slice>>,
    pub notices: Vec<Error>,
}

#[derive(Clone, Debug)]
pub(super) struct Service {
    pub name: ServiceName,
    pub said: Said,
    pub addresses: Vec<IpAddr>,
    /// A load balancer without an address: it gets one of each family here (true = IPv4), or one
    /// of the range's first family where the list is empty.
    pub wants: Option<Vec<bool>>,
    pub affinity: Option<u32>,
    pub weights: BTreeMap<IpAddr, u32>,
    /// publishNotReadyAddresses
    pub not_ready_too: bool,
    pub ports: Vec<ServicePort>,
}

#[derive(Clone, Debug)]
pub(super) struct ServicePort {
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
    pub node_port: Option<u16>,
    pub said: Said,
}

#[derive(Clone, Debug)]
pub(super) struct Slice {
    pub name: String,
    pub service: ServiceName,
    pub said: Said,
    pub ports: Vec<SlicePort>,
    pub endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug)]
pub(super) struct SlicePort {
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
    pub said: Said,
}

#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    pub addr: IpAddr,
    pub node: Option<String>,
    pub ready: Option<bool>,
    pub terminating: bool,
}

const PORT: &str = "a port number from 1 to 65535";
const PROTOCOL: &str = "TCP, UDP or SCTP";
const BOOL: &str = "true or false";
const ADDRESS: &str = "an address such as 192.168.1.1 or fd00::1";

/// Reads a file's text.
pub(super) fn parse(file: &Arc<str>, text: &str) -> Result<Documents, Errors> {
    let trees = config::parse_yaml(file, text).map_err(|e| Errors(vec![e]))?;
    let mut log = Log::new(file.clone());
    let mut documents = Documents::default();
    for tree in &trees {
        object(&At::root(tree), &mut log, &mut documents);
    }
    let (mut documents, notices) = log.finish(documents)?;
    documents.notices = notices;
    Ok(documents)
}

fn object(at: &At<'_>, log: &mut Log, into: &mut Documents) {
    let kind = at.require(log, "kind", "a Kubernetes object, such as a Service").and_then(|at| at.string(log, "an object's kind"));
    let version = at.require(log, "apiVersion", "a Kubernetes API version, such as v1").and_then(|at| at.string(log, "an API version"));
    let (Some(kind), Some(version)) = (kind, version) else { return };
    match (version.as_str(), kind.as_str()) {
        ("v1", "Service") => into.services.extend(service(at, log).map(Arc::new)),
        ("discovery.k8s.io/v1", "EndpointSlice") => into.slices.extend(slice(at, log).map(Arc::new)),
        ("v1", "List" | "ServiceList") | ("discovery.k8s.io/v1", "EndpointSliceList") => {
            if let Some(items) = at.get("items") {
                for item in items.list(log, "a list of objects") {
                    object(&item, log, into);
                }
            }
        }
        _ => log.notice(at, format!("{kind} ({version}) is left alone; Service (v1) and EndpointSlice (discovery.k8s.io/v1) are read")),
    }
}

fn metadata(at: &At<'_>, log: &mut Log) -> Option<ServiceName> {
    let metadata = at.require(log, "metadata", "a map with the object's name")?;
    let name = metadata.require(log, "name", "the object's name")?.string(log, "a name")?;
    let namespace = match metadata.get("namespace") {
        Some(at) => at.string(log, "a namespace")?,
        None => "default".to_owned(),
    };
    Some(ServiceName { namespace, name })
}

/// None for services that are not balanced, and for wrong ones.
fn service(at: &At<'_>, log: &mut Log) -> Option<Service> {
    let name = metadata(at, log)?;
    let said = Said::new(log, at);
    let spec = at.require(log, "spec", "a map with the service's ports")?;
    let kind = spec.get("type").map(|at| {
        at.value(log, "ClusterIP, NodePort, LoadBalancer or ExternalName", |s| match s {
            "ClusterIP" | "NodePort" | "LoadBalancer" | "ExternalName" => Ok(s.to_owned()),
            _ => Err(String::new()),
        })
    });
    let kind = kind.map_or(Some("ClusterIP".to_owned()), |kind| kind)?;
    let headless = spec.get("clusterIP").is_some_and(|at| at.node.text() == Some("None"));
    if headless || kind == "ExternalName" {
        return None;
    }
    let balancer = kind == "LoadBalancer";
    let mut addresses = cluster_ips(&spec, log);
    let families: Vec<bool> = families(&spec, &addresses, log);
    let external = load_balancer_ips(at, &spec, balancer, log);
    let wants = (balancer && external.is_empty()).then_some(families);
    addresses.extend(external);
    addresses.extend(list_of_addresses(&spec, "externalIPs", log));
    let mut seen = std::collections::HashSet::new();
    addresses.retain(|addr| seen.insert(*addr));
    policies(&spec, log);
    Some(Service {
        name,
        said,
        addresses,
        wants,
        affinity: affinity(&spec, log),
        weights: weights(at, log),
        not_ready_too: flag(&spec, "publishNotReadyAddresses", log).unwrap_or(false),
        ports: service_ports(&spec, log),
    })
}

fn addr(at: &At<'_>, log: &mut Log) -> Option<IpAddr> {
    at.value(log, ADDRESS, config::address)
}

fn flag(at: &At<'_>, key: &str, log: &mut Log) -> Option<bool> {
    at.get(key)?.value(log, BOOL, config::boolean)
}

fn list_of_addresses(at: &At<'_>, key: &str, log: &mut Log) -> Vec<IpAddr> {
    let Some(list) = at.get(key) else { return Vec::new() };
    list.list(log, "a list of addresses").iter().filter_map(|at| addr(at, log)).collect()
}

fn cluster_ips(spec: &At<'_>, log: &mut Log) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> =
        spec.get("clusterIP").filter(|at| at.node.text() != Some("")).and_then(|at| addr(&at, log)).into_iter().collect();
    for extra in list_of_addresses(spec, "clusterIPs", log) {
        if !all.contains(&extra) {
            all.push(extra);
        }
    }
    all
}

fn families(spec: &At<'_>, cluster: &[IpAddr], log: &mut Log) -> Vec<bool> {
    let mut all: Vec<bool> = match spec.get("ipFamilies") {
        Some(list) => list
            .list(log, "a list of IPv4 and IPv6")
            .iter()
            .filter_map(|at| {
                at.value(log, "IPv4 or IPv6", |s| match s {
                    "IPv4" => Ok(true),
                    "IPv6" => Ok(false),
                    _ => Err(String::new()),
                })
            })
            .collect(),
        None => cluster.iter().map(IpAddr::is_ipv4).collect(),
    };
    all.dedup();
    all
}

fn load_balancer_ips(at: &At<'_>, spec: &At<'_>, balancer: bool, log: &mut Log) -> Vec<IpAddr> {
    let mut all = Vec::new();
    if let Some(at) = spec.get("loadBalancerIP").filter(|at| balancer && at.node.text() != Some("")) {
        all.extend(addr(&at, log));
    }
    let Some(status) = at.get("status") else { return all };
    let Some(balancer) = status.get("loadBalancer") else { return all };
    let Some(ingress) = balancer.get("ingress") else { return all };
    for entry in ingress.list(log, "a list of addresses") {
        if let Some(at) = entry.get("ip") {
            all.extend(addr(&at, log));
        }
    }
    all
}

fn affinity(spec: &At<'_>, log: &mut Log) -> Option<u32> {
    let by_client = spec.get("sessionAffinity")?.value(log, "None or ClientIP", |s| match s {
        "ClientIP" => Ok(true),
        "None" => Ok(false),
        _ => Err(String::new()),
    })?;
    if !by_client {
        return None;
    }
    const DEFAULT: u32 = 10_800;
    let Some(config) = spec.get("sessionAffinityConfig") else { return Some(DEFAULT) };
    let Some(client) = config.get("clientIP") else { return Some(DEFAULT) };
    let Some(timeout) = client.get("timeoutSeconds") else { return Some(DEFAULT) };
    timeout.value(log, "a number of seconds from 1 to 86400", |s| config::integer(s, 1, 86_400))
}

/// Our own annotation: `10.20.0.7=3,10.20.0.8=1`.
fn weights(at: &At<'_>, log: &mut Log) -> BTreeMap<IpAddr, u32> {
    let mut all = BTreeMap::new();
    let Some(metadata) = at.get("metadata") else { return all };
    let Some(annotations) = metadata.get("annotations") else { return all };
    let Some(at) = annotations.get("stellwerk.io/weights") else { return all };
    let right = "weights from 1 to 1000 by address, such as 10.20.0.7=3,10.20.0.8=1";
    at.value(log, right, |text| {
        for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let (addr, weight) = part.split_once('=').ok_or_else(String::new)?;
            let addr = addr.trim().parse::<IpAddr>().map_err(|_| format!("names `{addr}`, which is no address"))?;
            let weight = config::integer(weight.trim(), 1, 1_000).map_err(|_| format!("gives {addr} the weight `{weight}`"))?;
            if all.insert(addr, weight).is_some() {
                return Err(format!("names {addr} twice"));
            }
        }
        Ok(())
    });
    all
}

fn policies(spec: &At<'_>, log: &mut Log) {
    for key in ["externalTrafficPolicy", "internalTrafficPolicy"] {
        if let Some(at) = spec.get(key).filter(|at| at.node.text() == Some("Local")) {
            log.notice(&at, "`Local` is not known here: all endpoints are used, as with Cluster");
        }
    }
}

fn port_number(at: &At<'_>, log: &mut Log) -> Option<u16> {
    at.value(log, PORT, |s| config::integer(s, 1, 65_535)).map(|n| n as u16)
}

fn protocol(at: &At<'_>, log: &mut Log) -> Option<Protocol> {
    let Some(at) = at.get("protocol") else { return Some(Protocol::Tcp) };
    at.value(log, PROTOCOL, |s| match s {
        "TCP" => Ok(Protocol::Tcp),
        "UDP" => Ok(Protocol::Udp),
        "SCTP" => Ok(Protocol::Sctp),
        _ => Err(String::new()),
    })
}

fn port_name(at: &At<'_>) -> String {
    at.get("name").and_then(|at| at.node.text().map(str::to_owned)).unwrap_or_default()
}

fn service_ports(spec: &At<'_>, log: &mut Log) -> Vec<ServicePort> {
    let Some(list) = spec.require(log, "ports", "a list of ports") else { return Vec::new() };
    let mut all: Vec<ServicePort> = Vec::new();
    for at in list.list(log, "a list of ports") {
        let said = Said::new(log, &at);
        let port = at.require(log, "port", PORT).and_then(|at| port_number(&at, log));
        let protocol = protocol(&at, log);
        let node_port = at.get("nodePort").filter(|at| at.node.text() != Some("0")).and_then(|at| port_number(&at, log));
        let (Some(port), Some(protocol)) = (port, protocol) else { continue };
        let name = port_name(&at);
        if let Some(first) = all.iter().find(|p| p.name == name) {
            let message = match name.as_str() {
                "" => "has no name; several ports of a service each need one of their own".to_owned(),
                _ => format!("the name `{name}` is given twice, first at line {}", first.said.place.line),
            };
            log.error(&at, message);
        }
        all.push(ServicePort { name, protocol, port, node_port, said });
    }
    all
}

/// None for slices of no service, and for wrong ones.
fn slice(at: &At<'_>, log: &mut Log) -> Option<Slice> {
    let ServiceName { namespace, name } = metadata(at, log)?;
    let said = Said::new(log, at);
    let service = {
        let metadata = at.get("metadata")?;
        let labels = metadata.get("labels");
        labels.as_ref().and_then(|l| l.get("kubernetes.io/service-name")).and_then(|at| at.node.text().map(str::to_owned))
    };
    let Some(service) = service else {
        log.notice(at, format!("EndpointSlice {namespace}/{name} belongs to no service: it has no label kubernetes.io/service-name"));
        return None;
    };
    let types = "IPv4, IPv6 or FQDN";
    let v4 = at.require(log, "addressType", types)?.value(log, types, |s| match s {
        "IPv4" => Ok(Some(true)),
        "IPv6" => Ok(Some(false)),
        "FQDN" => Ok(None),
        _ => Err(String::new()),
    })?;
    let Some(v4) = v4 else {
        log.notice(at, format!("EndpointSlice {namespace}/{name} holds names (FQDN), which are left alone"));
        return None;
    };
    let ports = at.get("ports").map_or(Vec::new(), |at| slice_ports(&at, log));
    let endpoints = at.get("endpoints").map_or(Vec::new(), |at| endpoints(&at, v4, log));
    Some(Slice { name, service: ServiceName { namespace, name: service }, said, ports, endpoints })
}

fn slice_ports(at: &At<'_>, log: &mut Log) -> Vec<SlicePort> {
    let mut all = Vec::new();
    for at in at.list(log, "a list of ports") {
        let Some(number) = at.get("port") else {
            log.notice(&at, "a port without number is left alone");
            continue;
        };
        let said = Said::new(log, &at);
        if let (Some(port), Some(protocol)) = (port_number(&number, log), protocol(&at, log)) {
            all.push(SlicePort { name: port_name(&at), protocol, port, said });
        }
    }
    all
}

fn endpoints(at: &At<'_>, v4: bool, log: &mut Log) -> Vec<Endpoint> {
    let mut all = Vec::new();
    let right = if v4 { "an IPv4 address, as addressType says" } else { "an IPv6 address, as addressType says" };
    for at in at.list(log, "a list of endpoints") {
        let Some(addresses) = at.require(log, "addresses", "a list of one address") else { continue };
        let list = addresses.list(log, "a list of one address");
        if list.len() > 1 {
            log.notice(&addresses, "only the first address of an endpoint is used, as by kube-proxy");
        }
        let Some(first) = list.first() else { continue };
        let addr = first.value(log, right, |s| config::address(s).and_then(|a| if a.is_ipv4() == v4 { Ok(a) } else { Err(String::new()) }));
        let node = at.get("nodeName").and_then(|at| at.string(log, "a node's name"));
        let (ready, terminating) = match at.get("conditions") {
            Some(at) => (flag(&at, "ready", log), flag(&at, "terminating", log).unwrap_or(false)),
            None => (None, false),
        };
        if let Some(addr) = addr {
            all.push(Endpoint { addr, node, ready, terminating });
        }
    }
    all
}
