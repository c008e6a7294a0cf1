//! The configuration file: what the operator wants of this node.
//!
//! Invariant: a [`Config`] is whole and consistent, or it isn't made; all errors of a file are told
//! together, each with line, column, key path, value and what would be right.
//! Not here: what only the kernel knows ([`verify`]) and what the cluster wants
//! ([`crate::source::manifests`]).

mod announce;
mod api;
mod at;
mod check;
mod control;
mod dns;
mod error;
mod nat;
mod pods;
mod pools;
mod publish;
mod read;
mod routes;
mod value;
mod verify;
mod web;
mod yaml;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::address::Pool;
use crate::announce::Settings as Announcements;
use crate::apply::wrong_group;
use crate::health::Check;
use crate::intent::{Intent, InternalSwitch, Nat, PodNode, Port, ServicePort, ServiceRange, SocketBalancing, Tuning};

use crate::pods::wire::PATTERN;
use crate::route::StaticRoute;
use crate::source::live::Access;
use crate::source::manifests::{Rules, ServiceName};
use crate::web::Secrets;

pub use dns::{Dns, Pods};
pub use error::{Error, Errors, Place};
pub use pods::PodNetwork;
pub use verify::verify;
pub use web::{Tls, Web};

pub(crate) use at::{At, Log};
pub(crate) use value::{ADDRESS, PORT, address, boolean, contains, integer, number, prefix, seconds, show, size};
pub(crate) use yaml::{Node, of_json, parse as parse_yaml};

/// A configuration that makes sense by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub file: Arc<str>,
    pub node: String,
    pub ports: Vec<Port>,
    pub internal_switch: Option<InternalSwitch>,
    pub inside: Vec<String>,
    pub nat: Nat,
    /// Operators' routes.
    pub routes: Vec<StaticRoute>,
    /// Ports that are forwarded to hosts inside.
    pub published: Vec<ServicePort>,
    pub node_ranges: Vec<ServiceRange>,
    /// Addresses that load-balancer services get.
    pub service_ranges: Vec<ServiceRange>,
    /// Further ones.
    pub pools: Vec<Pool>,
    pub pod_subnets: Vec<IpNet>,
    /// Cluster IPs.
    pub service_subnets: Vec<IpNet>,
    /// Where node ports are reached; none: at all addresses of the node.
    pub node_port_addresses: Vec<IpNet>,
    /// A folder or file of Kubernetes YAML, relative to the configuration's folder.
    pub manifests: Option<PathBuf>,
    /// A live Kubernetes API in their place.
    pub api: Option<Access>,
    /// How endpoints are probed, of services that don't say so; None: not at all.
    pub checks: BTreeMap<ServiceName, Option<Arc<Check>>>,
    /// How long a terminating endpoint keeps its connections where nothing says it better.
    pub draining: Duration,
    /// Load balancers without a class are ours, too.
    pub classless: bool,
    /// How load balancers' addresses are announced.
    pub announce: Announcements,
    pub sockets: SocketBalancing,
    /// The cluster's names, where they are answered here.
    pub dns: Option<Dns>,
    /// Nodes of the cluster that the file says, this one or others.
    pub nodes: Vec<PodNode>,
    /// Pods' interfaces, where they are made here.
    pub pod_network: Option<PodNetwork>,
    /// Where the agent can be watched.
    pub web: Option<Web>,
    pub tuning: Tuning,
    /// The group that may ask at the agent's sockets, by its name or number.
    pub readers: Option<String>,
    /// Understood, but not as written.
    pub notices: Vec<Error>,
    places: Places,
}

/// Where things were said, for messages about them later.
#[derive(Clone, Debug, Default, PartialEq)]
struct Places {
    /// By key path.
    by_path: BTreeMap<String, Place>,
    /// The key paths of a list's members, by the list's.
    members: BTreeMap<String, Vec<String>>,
    /// Every range and subnet.
    extents: Vec<check::Extent>,
}

impl Places {
    fn note(&mut self, at: &At<'_>) {
        self.by_path.insert(at.to_string(), at.place());
    }

    /// Notes a member of a list, which may stand there without a list, once it is taken.
    fn note_member(&mut self, list: &At<'_>, at: &At<'_>) {
        self.note(at);
        self.members.entry(list.to_string()).or_default().push(at.to_string());
    }
}

impl Config {
    /// Reads a file.
    pub fn load(path: &Path) -> Result<Config, Errors> {
        let file: Arc<str> = path.display().to_string().into();
        let text = std::fs::read_to_string(path).map_err(|e| Errors::of_file(&file, cannot_read(&e)))?;
        let mut config = Config::parse(&file, &text)?;
        let beside = |named: &Option<PathBuf>| {
            let named = named.as_deref()?;
            Some(path.parent()?.join(named.strip_prefix(".").unwrap_or(named)))
        };
        config.manifests = beside(&config.manifests);
        config.nat.log = beside(&config.nat.log);
        if let Some(web) = &mut config.web {
            web.beside(beside);
        }
        if let Some(log) = config.nat.log.as_ref().filter(|log| log.is_dir()) {
            let message = format!("`{}` is a folder; expected a file to write to", log.display());
            return Err(Errors(vec![config.error_at("internalSwitch.log", message)]));
        }
        if let Some(api) = config.api.take() {
            let policies = config.judges_pods();
            let api = Access { kubeconfig: beside(&api.kubeconfig), policies, ..api };
            if let Some(wrong) = api::wrong(&api) {
                return Err(Errors(vec![config.error_at("cluster.kubeconfig", wrong)]));
            }
            config.api = Some(api);
        }
        if let Some(Err(wrong)) = config.web.as_ref().map(Secrets::read) {
            return Err(Errors(vec![config.error_at(wrong.key, wrong.message)]));
        }
        Ok(config)
    }

    /// Reads a text; `file` is its name in messages.
    pub fn parse(file: &Arc<str>, text: &str) -> Result<Config, Errors> {
        let documents = yaml::parse(file, text).map_err(|e| Errors(vec![e]))?;
        match &documents[..] {
            [] => Err(Errors::of_file(file, "is empty; expected a map with the keys node, ports, …")),
            [document] => read::config(file, document),
            [_, second, ..] => {
                let message = "a second document starts here; a configuration is one".into();
                Err(Errors(vec![Error { file: file.clone(), place: Some(second.place), path: String::new(), message }]))
            }
        }
    }

    /// The whole wish, with the services that the cluster wants.
    pub fn intent(&self, revision: u64, services: Vec<ServicePort>) -> Intent {
        let cluster = self.service_subnets.iter().map(|net| value::of_net(*net));
        let pools = self.pools.iter().flat_map(|pool| &pool.ranges);
        Intent {
            revision,
            node: self.node.clone(),
            ports: self.ports.clone(),
            internal_switch: self.internal_switch.clone(),
            inside: self.inside(),
            nat: self.nat.clone(),
            pod_subnets: self.pod_subnets.clone(),
            pod_blocks: Vec::new(),
            pod_nodes: Vec::new(),
            policies: None,
            overlay: self.pod_network.as_ref().map(|pods| pods.overlay).unwrap_or_default(),
            node_port_addresses: self.node_port_addresses.clone(),
            service_ranges: self.service_ranges.iter().chain(pools).copied().chain(cluster).collect(),
            services: self.with_published(services),
            tuning: self.tuning.clone(),
        }
    }

    /// Whether what pods may do is as policies say.
    pub fn judges_pods(&self) -> bool {
        self.pod_network.as_ref().is_some_and(|pods| pods.policy)
    }

    /// Blocks of this node's pods, by `pods.blocks`, else by `nodes`; none where a Node says them.
    pub fn pod_blocks(&self) -> &[IpNet] {
        let said = self.pod_network.as_ref().map(|pods| &pods.blocks).filter(|blocks| !blocks.is_empty());
        let named = || self.nodes.iter().find(|node| node.name == self.node).map(|node| &node.blocks);
        said.or_else(named).map_or(&[], Vec::as_slice)
    }

    /// Interfaces inside by their patterns, pods' own among them.
    fn inside(&self) -> Vec<String> {
        let pods = self.pod_network.iter().map(|_| PATTERN.to_owned());
        self.inside.iter().cloned().chain(pods).collect()
    }

    /// The cluster's services, those that the configuration publishes itself and the cluster's DNS, ordered by namespace and name.
    pub fn with_published(&self, mut services: Vec<ServicePort>) -> Vec<ServicePort> {
        services.extend(self.published.iter().cloned());
        services.extend(self.dns_services(&services));
        services.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        services
    }

    /// What the manifests' source needs of it.
    pub fn rules(&self) -> Rules {
        let said = |i: usize| {
            let path = self.member("publish", i);
            let line = self.places.by_path.get(&path).map_or(String::new(), |place| format!(":{}", place.line));
            format!("{path} ({}{line})", self.file)
        };
        let at = |service: &ServicePort, addr: &IpAddr| (*addr, service.port, service.protocol);
        let published = self.published.iter().enumerate();
        let published =
            published.flat_map(|(i, s)| s.addresses.iter().map(move |addr| (at(s, addr), said(i)))).collect();
        Rules {
            node: self.node.clone(),
            node_ranges: self.node_ranges.clone(),
            service_ranges: self.service_ranges.clone(),
            pools: self.pools.clone(),
            published,
            draining: self.draining,
            classless: self.classless,
        }
    }

    /// The key path of a list's member.
    fn member(&self, list: &str, index: usize) -> String {
        let path = self.places.members.get(list).and_then(|members| members.get(index));
        path.cloned().unwrap_or_else(|| list.to_owned())
    }

    /// What this node says against its control group.
    pub fn wrong_group(&self) -> anyhow::Result<Option<Error>> {
        let SocketBalancing::At(group) = &self.sockets else { return Ok(None) };
        let wrong = wrong_group(group)?;
        let message = |wrong| format!("`{}` {wrong}; expected {}", group.display(), read::SOCKETS);
        Ok(wrong.map(|wrong| self.error_at("cluster.socketBalancing", message(wrong))))
    }

    /// An error about the value at a key path.
    fn error_at(&self, path: &str, message: impl Into<String>) -> Error {
        let place = self.places.by_path.get(path).copied();
        Error { file: self.file.clone(), place, path: path.to_owned(), message: message.into() }
    }
}

/// Why a file can't be read, for people.
pub(crate) fn cannot_read(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".into(),
        std::io::ErrorKind::PermissionDenied => "cannot be read: permission denied".into(),
        std::io::ErrorKind::IsADirectory => "is a folder; expected a file".into(),
        std::io::ErrorKind::InvalidData => "is not text in UTF-8".into(),
        _ => format!("cannot be read: {error}"),
    }
}

#[cfg(test)]
mod tests;
