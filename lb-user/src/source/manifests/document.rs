//! One file of Kubernetes YAML: the fields that balancing needs of each kind ([`super::service`],
//! [`super::slice`], [`super::pod`]).
//!
//! Invariant: a file is read whole or refused; what is not understood but harmless is a notice.
//! Other fields are left alone, as the cluster's API may add any. Not here: how objects go together
//! ([`super::join`], [`crate::source::endpoints`]).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::{network_policy, pod, service, slice};
use crate::address::Terms;
use crate::config::{self, At, Error, Errors, Log, Place};
use crate::health::Check;
use crate::intent::{Protocol, Traffic};
use crate::policy::Policy;
use crate::source::endpoints::{Endpoint, Labels, Node, Pod, Selection};

/// `namespace/name` of a service, or of a pod.
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
    pub fn new(log: &Log, at: &At<'_>) -> Self {
        Said { file: log.file.clone(), place: at.place(), path: at.to_string() }
    }

    pub fn message(&self, message: impl Into<String>) -> Error {
        Error { file: self.file.clone(), place: Some(self.place), path: self.path.clone(), message: message.into() }
    }

    /// `file:line`, or the file where there are no lines.
    pub fn line(&self) -> String {
        match self.place {
            Place::NOWHERE => self.file.to_string(),
            place => format!("{}:{}", self.file, place.line),
        }
    }
}

/// What a file says.
#[derive(Clone, Debug, Default)]
pub(super) struct Documents {
    pub services: Vec<Arc<Service>>,
    pub slices: Vec<Arc<Slice>>,
    pub endpoints: Vec<Arc<Endpoints>>,
    pub pods: Vec<Arc<Placed<ServiceName, Pod>>>,
    pub nodes: Vec<Arc<Placed<String, Node>>>,
    /// Their labels.
    pub namespaces: Vec<Arc<Placed<String, Labels>>>,
    pub policies: Vec<Arc<Placed<ServiceName, Policy>>>,
    pub notices: Vec<Error>,
}

/// An object, its name and its place.
#[derive(Clone, Debug)]
pub(super) struct Placed<N, T> {
    pub name: N,
    pub object: T,
    pub said: Said,
}

#[derive(Clone, Debug)]
pub(super) struct Service {
    pub name: ServiceName,
    pub said: Said,
    pub naming: Naming,
    /// Without it it has names, but no table: it is headless, an ExternalName or another proxy's.
    pub balanced: bool,
    pub addresses: Vec<IpAddr>,
    pub balancer: Option<Balancer>,
    pub affinity: Option<u32>,
    /// Of the addresses that it names.
    pub traffic: Traffic,
    pub weights: BTreeMap<IpAddr, u32>,
    /// How endpoints are probed, where it says so.
    pub health: Option<Option<Arc<Check>>>,
    pub selection: Selection,
    pub ports: Vec<ServicePort>,
}

/// What its name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Naming {
    /// Cluster IPs.
    Cluster(Vec<IpAddr>),
    /// Endpoints.
    Headless,
    /// ExternalName
    External(String),
}

/// What a load balancer of our class, or of none, asks of us.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Balancer {
    pub classless: bool,
    pub wish: Wish,
    /// Its status' addresses,
    pub status: Vec<IpAddr>,
    /// and whether it has others that somebody in front of us answers for (ipMode Proxy).
    pub proxied: bool,
    pub pool: Option<String>,
    pub terms: Terms,
    /// The service's.
    pub labels: Labels,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wish {
    /// Those that it names.
    These(Vec<IpAddr>),
    /// Any of each family here (true = IPv4), or of the first pool's first family where the list is empty.
    Any(Vec<bool>),
}

impl Balancer {
    /// Somebody has given it addresses.
    pub fn is_settled(&self) -> bool {
        self.proxied || !self.status.is_empty()
    }
}

impl Service {
    /// What is asked of us where load balancers without a class are ours or not.
    pub fn balancer(&self, classless: bool) -> Option<&Balancer> {
        self.balancer.as_ref().filter(|balancer| classless || !balancer.classless)
    }
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
    /// By its labels it is no business of this proxy; names are made of it all the same.
    pub for_others: bool,
    pub said: Said,
    pub ports: Vec<SlicePort>,
    pub endpoints: Vec<Endpoint>,
}

/// Endpoints (v1): its service's name, and its subsets as slices.
pub(super) type Endpoints = Placed<ServiceName, Vec<Arc<Slice>>>;

#[derive(Clone, Debug)]
pub(super) struct SlicePort {
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
    pub said: Said,
}

const PROTOCOL: &str = "TCP, UDP or SCTP";
const BOOL: &str = "true or false";

/// Reads a file's text.
pub(super) fn parse(file: &Arc<str>, text: &str) -> Result<Documents, Errors> {
    read(file, &config::parse_yaml(file, text).map_err(|e| Errors(vec![e]))?)
}

/// Reads an object that no file says; `file` is its name in messages.
pub(super) fn of_object(file: &Arc<str>, value: &serde_json::Value) -> Result<Documents, Errors> {
    read(file, &[config::of_json(value)])
}

fn read(file: &Arc<str>, trees: &[config::Node<'_>]) -> Result<Documents, Errors> {
    let mut log = Log::new(file.clone());
    let mut documents = Documents::default();
    for tree in trees {
        object(&At::root(tree), &mut log, &mut documents);
    }
    let (mut documents, notices) = log.finish(documents)?;
    documents.notices = notices;
    Ok(documents)
}

fn object(at: &At<'_>, log: &mut Log, into: &mut Documents) {
    let kind = at
        .require(log, "kind", "a Kubernetes object, such as a Service")
        .and_then(|at| at.string(log, "an object's kind"));
    let version = at
        .require(log, "apiVersion", "a Kubernetes API version, such as v1")
        .and_then(|at| at.string(log, "an API version"));
    let (Some(kind), Some(version)) = (kind, version) else {
        return;
    };
    match (version.as_str(), kind.as_str()) {
        ("v1", "Service") => into.services.extend(service::read(at, log).map(Arc::new)),
        ("discovery.k8s.io/v1", "EndpointSlice") => into.slices.extend(slice::read(at, log).map(Arc::new)),
        ("v1", "Endpoints") => into.endpoints.extend(slice::read_endpoints(at, log).map(Arc::new)),
        ("v1", "Pod") => into.pods.extend(pod::read(at, log).map(Arc::new)),
        ("v1", "Node") => into.nodes.extend(pod::read_node(at, log).map(Arc::new)),
        ("v1", "Namespace") => into.namespaces.extend(pod::read_namespace(at, log).map(Arc::new)),
        ("networking.k8s.io/v1", "NetworkPolicy") => {
            into.policies.extend(network_policy::read(at, log).map(Arc::new));
        }
        ("v1", "List" | "ServiceList" | "EndpointsList" | "PodList" | "NodeList" | "NamespaceList")
        | ("discovery.k8s.io/v1", "EndpointSliceList")
        | ("networking.k8s.io/v1", "NetworkPolicyList") => {
            if let Some(items) = at.get("items") {
                for item in items.list(log, "a list of objects") {
                    object(&item, log, into);
                }
            }
        }
        _ => log.notice(
            at,
            format!(
                "{kind} ({version}) is left alone; Service, Endpoints, Pod, Node, Namespace (v1), EndpointSlice \
                 (discovery.k8s.io/v1) and NetworkPolicy (networking.k8s.io/v1) are read"
            ),
        ),
    }
}

pub(super) fn metadata(at: &At<'_>, log: &mut Log) -> Option<ServiceName> {
    let metadata = at.require(log, "metadata", "a map with the object's name")?;
    let name = metadata.require(log, "name", "the object's name")?.string(log, "a name")?;
    let namespace = match metadata.get("namespace") {
        Some(at) => at.string(log, "a namespace")?,
        None => "default".to_owned(),
    };
    Some(ServiceName { namespace, name })
}

/// metadata.labels
pub(super) fn labels(at: &At<'_>, log: &mut Log) -> Labels {
    match at.get("metadata").as_ref().and_then(|metadata| metadata.get("labels")) {
        Some(labels) => strings(&labels, log),
        None => Labels::new(),
    }
}

pub(super) fn has_annotation(at: &At<'_>, key: &str) -> bool {
    let metadata = at.get("metadata");
    let annotations = metadata.as_ref().and_then(|at| at.get("annotations"));
    annotations.is_some_and(|at| at.get(key).is_some())
}

/// A map of texts; one without a value is an empty one.
pub(super) fn strings(at: &At<'_>, log: &mut Log) -> Labels {
    let mut all = Labels::new();
    for (key, value) in at.entries(log, "a map of texts") {
        let text =
            if value.node.is_null() { Some(String::new()) } else { value.value(log, "a text", |s| Ok(s.to_owned())) };
        all.extend(key.text().map(str::to_owned).zip(text));
    }
    all
}

pub(super) fn flag(at: &At<'_>, key: &str, log: &mut Log) -> Option<bool> {
    at.get(key)?.value(log, BOOL, config::boolean)
}

pub(super) fn port_number(at: &At<'_>, log: &mut Log) -> Option<u16> {
    at.value(log, config::PORT, |s| config::integer(s, 1, 65_535)).map(|n| n as u16)
}

pub(super) fn protocol(at: &At<'_>, log: &mut Log) -> Option<Protocol> {
    let Some(at) = at.get("protocol") else {
        return Some(Protocol::Tcp);
    };
    at.value(log, PROTOCOL, |s| match s {
        "TCP" => Ok(Protocol::Tcp),
        "UDP" => Ok(Protocol::Udp),
        "SCTP" => Ok(Protocol::Sctp),
        _ => Err(String::new()),
    })
}

pub(super) fn port_name(at: &At<'_>) -> String {
    at.get("name").and_then(|at| at.node.text().map(str::to_owned)).unwrap_or_default()
}
