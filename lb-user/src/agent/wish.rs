//! The wish as the files say it, and how it changes: whole, or not at all.
//!
//! Invariant: [`Wish::intent`] is always what some moment's files said and what a plan accepted. A
//! change is tried and either kept or taken back. Not here: when files are read.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow};
use ipnet::IpNet;
use tracing::warn;

use crate::apply::Paths;
use crate::config::{Config, Dns, Error, Errors, Web, verify};
use crate::health::Check;
use crate::intent::{Intent, Network, PodNode, ServicePort, SocketBalancing};
use crate::moment::Moment;
use crate::nodes;
use crate::pods::{self, Settings};
use crate::route::StaticRoute;
use crate::source::live::{Access, Statuses};
use crate::source::manifests::names::Names;
use crate::source::manifests::{Manifests, Objects, Scope, ServiceName, Update};
use crate::source::netlink::Mirror;

use super::addresses::Addresses;
use super::host_ports::HostPorts;
use super::switch;

mod policies;

pub struct Wish {
    pub intent: Intent,
    /// Those of what a plan accepted last.
    pub names: Names,
    pub host_ports: HostPorts,
    config: Config,
    manifests: Option<Manifests>,
    /// The manifests know services that a plan has refused: the next change takes all of them.
    refused: bool,
    /// The API hasn't told of its objects yet: the services are others', and the first news takes their place.
    waits: bool,
    addresses: Addresses,
}

/// How to take a change back.
pub enum Undo {
    Services(Update),
    All(Box<(Intent, Config, Option<Manifests>, bool)>),
}

impl Undo {
    /// Takes back a change, and one that came before it.
    pub fn both(older: Option<Undo>, newer: Option<Undo>) -> Option<Undo> {
        match (older, newer) {
            (Some(Undo::Services(older)), Some(Undo::Services(mut newer))) => {
                newer.changed.extend(older.changed);
                Some(Undo::Services(newer))
            }
            (Some(Undo::Services(older)), Some(Undo::All(mut all))) => {
                older.apply_to(&mut all.0.services);
                Some(Undo::All(all))
            }
            (older @ Some(_), _) => older,
            (None, newer) => newer,
        }
    }
}

fn notices(all: &[Error]) {
    for notice in all {
        warn!("{notice}");
    }
}

/// What of this node stands against a configuration, beside the node's facts as they will be once it is in force.
pub fn wrong(config: &Config) -> Result<(Network, Vec<Error>)> {
    let mut network = Mirror::open()?.network().clone();
    if let Some(switch) = &config.internal_switch {
        switch::pretend(switch, &mut network);
    }
    let mut errors = verify(config, &network);
    errors.extend(config.wrong_group()?);
    errors.extend(config.wrong_readers());
    Ok((network, errors))
}

/// Refuses what the kernel's facts speak against, and only then makes what the configuration needs. Gives the facts,
/// as they are then.
pub fn check(config: &Config, paths: &Paths) -> Result<Network> {
    let (network, errors) = wrong(config)?;
    if !errors.is_empty() {
        return Err(anyhow!(Errors(errors)));
    }
    if let Some(access) = &config.api {
        access.server().map_err(|error| anyhow!("{}: cluster.kubeconfig: {access}: {error}", config.file))?;
    }
    config.internal_switch.as_ref().map_or(Ok(()), |switch| switch::ensure(paths, switch))?;
    Ok(network)
}

/// What a configuration names as the source of services, of which nothing is read yet.
fn source(config: &Config) -> Option<Manifests> {
    match (&config.manifests, &config.api) {
        (Some(path), _) => Some(Manifests::new(path.clone(), config.rules())),
        (None, Some(access)) => Some(Manifests::told_by(&access.to_string(), config.rules())),
        (None, None) => None,
    }
}

/// Whose pods have which addresses, where they are ours.
#[derive(PartialEq)]
struct PodNetwork {
    /// This node's.
    blocks: Vec<IpNet>,
    nodes: Vec<PodNode>,
}

impl PodNetwork {
    /// What the configuration says of a node goes before what its Node does.
    fn of(config: &Config, manifests: Option<&Manifests>) -> PodNetwork {
        if config.pod_network.is_none() {
            return PodNetwork { blocks: Vec::new(), nodes: Vec::new() };
        }
        let mut nodes: BTreeMap<String, PodNode> = BTreeMap::new();
        for (name, node) in manifests.into_iter().flat_map(Manifests::nodes) {
            let (addresses, blocks) = (node.addresses.clone(), node.pod_blocks.clone());
            nodes.insert(name.clone(), PodNode { name: name.clone(), addresses, blocks });
        }
        nodes.extend(config.nodes.iter().map(|node| (node.name.clone(), node.clone())));
        let blocks = match (config.pod_blocks(), nodes.get(&config.node)) {
            ([], Some(node)) => node.blocks.clone(),
            (blocks, _) => blocks.to_vec(),
        };
        PodNetwork { blocks, nodes: nodes.into_values().collect() }
    }

    fn is_of(&self, intent: &Intent) -> bool {
        self.blocks == intent.pod_blocks && self.nodes == intent.pod_nodes
    }

    fn put(self, intent: &mut Intent) {
        (intent.pod_blocks, intent.pod_nodes) = (self.blocks, self.nodes);
    }
}

impl Wish {
    /// The group whose members may ask at the agent's sockets.
    pub fn readers(&self) -> Result<Option<u32>> {
        self.config.readers()
    }

    /// Reads what a configuration names, for a start; `objects` are those of the API that it may name, if any are known.
    pub fn read(config: Config, paths: &Paths, objects: Option<Objects>) -> Result<Self> {
        notices(&config.notices);
        let mut manifests = source(&config);
        let waits = config.api.is_some() && objects.is_none();
        let mut services = Vec::new();
        let mut addresses = Addresses::read(paths);
        if let Some(manifests) = &mut manifests {
            addresses.recall(manifests, &config, paths);
            // Until all services are known nobody's address is another's.
            if !waits {
                let scope = objects.map_or(Scope::All, Scope::Objects);
                notices(&manifests.load(&scope, Moment::now())?.notices);
                addresses.keep(Some(manifests));
                services = manifests.services();
            }
        }
        notices(&config.dns_notices(&services));
        let host_ports = HostPorts::new(pods::ports::HostPorts::read(paths));
        services.extend(host_ports.wished_by(&config).cloned());
        let mut intent = config.intent(1, services);
        PodNetwork::of(&config, manifests.as_ref()).put(&mut intent);
        intent.policies = policies::of(&config, manifests.as_ref(), waits, &host_ports);
        let names = Names::default();
        let mut wish = Wish { intent, names, host_ports, config, manifests, refused: false, waits, addresses };
        wish.keep();
        Ok(wish)
    }

    /// Operators' routes of the configuration.
    pub fn routes(&self) -> &[StaticRoute] {
        &self.config.routes
    }

    /// Whether services are balanced at sockets.
    pub fn sockets(&self) -> &SocketBalancing {
        &self.config.sockets
    }

    /// What the configuration says of names.
    pub fn dns(&self) -> Option<&Dns> {
        self.config.dns.as_ref()
    }

    /// Where the agent can be watched.
    pub fn web(&self) -> Option<&Web> {
        self.config.web.as_ref()
    }

    /// What pods get, or why nothing; None: they aren't ours.
    pub fn pods(&self, network: &Network) -> Option<Result<Settings, String>> {
        let pods = self.config.pod_network.as_ref()?;
        let (blocks, node) = (&self.intent.pod_blocks, &self.config.node);
        if blocks.is_empty() {
            return Some(Err(format!(
                "neither pods.blocks nor `nodes` nor podCIDRs of the Node {node} say which addresses pods have"
            )));
        }
        let ours = |block: &&IpNet| self.config.pod_subnets.iter().any(|net| net.contains(*block));
        if let Some(block) = blocks.iter().find(|block| !ours(block)) {
            return Some(Err(format!("{block}, a podCIDR of the Node {node}, is in no cluster.podSubnet")));
        }
        let port = |name: &String| self.config.ports.iter().any(|port| port.interface == *name);
        let mtus = network.links.iter().filter(|link| port(&link.name)).map(|link| link.mtu);
        Some(Ok(Settings {
            blocks: blocks.clone(),
            avoid: network.addresses.iter().map(|address| address.net.addr()).collect(),
            cooldown: pods.cooldown.as_secs(),
            fixed: self.manifests.as_ref().map(Manifests::fixed_addresses).unwrap_or_default(),
            mtu: pods.mtu.unwrap_or_else(|| nodes::pod_mtu(&self.intent, mtus.min().unwrap_or(1_500))),
            nameservers: self.config.dns.iter().flat_map(|dns| &dns.addresses).copied().collect(),
        }))
    }

    /// Why this node gives no addresses to services, if another one does; whether that is new.
    pub fn leave_giving(&mut self, elsewhere: Option<String>) -> bool {
        let Some(manifests) = &mut self.manifests else { return false };
        self.addresses.freeze(manifests, elsewhere)
    }

    /// What a live cluster's services have, and their status doesn't say.
    pub fn unsaid(&self) -> Statuses {
        self.manifests.as_ref().map(Manifests::unsaid).unwrap_or_default()
    }

    /// What the configuration says of announcements.
    pub fn announce(&self) -> &crate::announce::Settings {
        &self.config.announce
    }

    /// Other nodes' addresses, and the nodes that don't announce any.
    pub fn nodes(&self) -> (BTreeMap<String, Vec<IpAddr>>, BTreeSet<String>) {
        let (mut peers, mut excluded) = (BTreeMap::new(), BTreeSet::new());
        for (name, node) in self.manifests.iter().flat_map(Manifests::nodes) {
            if !node.addresses.is_empty() {
                peers.insert(name.clone(), node.addresses.clone());
            }
            if node.excluded {
                excluded.insert(name.clone());
            }
        }
        peers.extend(self.config.announce.peers.clone());
        peers.remove(&self.intent.node);
        (peers, excluded)
    }

    pub fn manifests(&self) -> Option<&Path> {
        self.config.manifests.as_deref()
    }

    pub fn api(&self) -> Option<&Access> {
        self.config.api.as_ref()
    }

    /// The API hasn't told of its objects yet.
    pub fn waits(&self) -> bool {
        self.waits
    }

    /// The name of where services come from.
    pub fn source(&self) -> Option<String> {
        self.manifests.as_ref().map(|manifests| manifests.path().display().to_string())
    }

    /// What is wrong with what is not in force as it is now.
    pub fn refused(&self) -> &[Error] {
        self.manifests.as_ref().map_or(&[], Manifests::refused)
    }

    /// Takes changed manifests, or objects of the API. None: nothing that matters changed.
    pub fn manifests_changed(&mut self, scope: &Scope) -> Result<Option<Undo>> {
        let Some(manifests) = &mut self.manifests else { return Ok(None) };
        let update = manifests.load(scope, Moment::now())?;
        self.addresses.keep(Some(manifests));
        notices(&update.notices);
        let first = matches!(scope, Scope::Objects(_)) && std::mem::take(&mut self.waits);
        let renamed = !manifests.names().is_same(&self.names);
        let pods = PodNetwork::of(&self.config, self.manifests.as_ref());
        if self.refused || first || self.is_about_dns(&update) || !pods.is_of(&self.intent) {
            let undo = (self.intent.clone(), self.config.clone(), self.manifests.clone(), self.waits);
            let undo = Undo::All(Box::new(undo));
            let mut services = self.manifests.as_ref().map(Manifests::services).unwrap_or_default();
            notices(&self.config.dns_notices(&services));
            services.extend(self.host_ports.wished_by(&self.config).cloned());
            self.intent.services = self.config.with_published(services);
            pods.put(&mut self.intent);
            self.intent.policies = self.policies();
            self.intent.revision += 1;
            return Ok(Some(undo));
        }
        let policed = self.take_policies();
        if update.changed.is_empty() && !renamed && !policed {
            return Ok(None);
        }
        Ok(Some(self.replace(update)))
    }

    /// Some services are wished for otherwise. None: nothing changed.
    pub fn replace_services(&mut self, update: Update) -> Option<Undo> {
        (!update.changed.is_empty()).then(|| self.replace(update))
    }

    fn replace(&mut self, update: Update) -> Undo {
        let undo = Undo::Services(inverse(&update, &self.intent.services));
        update.apply_to(&mut self.intent.services);
        self.intent.revision += 1;
        undo
    }

    /// The host ports that are to be served.
    pub fn wished_host_ports(&self) -> impl Iterator<Item = &ServicePort> {
        self.host_ports.wished_by(&self.config)
    }

    /// Whether a service comes to the place of the cluster's DNS, or leaves it.
    fn is_about_dns(&self, update: &Update) -> bool {
        let Some(dns) = &self.config.dns else { return false };
        let there = |s: &ServicePort| s.addresses.iter().any(|addr| dns.addresses.contains(addr));
        update.changed.iter().any(|(name, now)| now.iter().chain(self.ports(name)).any(there))
    }

    /// Takes a changed configuration, with all manifests.
    pub fn config_changed(&mut self, file: &Path, paths: &Paths) -> Result<Option<Undo>> {
        let config = Config::load(file)?;
        _ = check(&config, paths)?;
        let same = (&config.manifests, &config.api) == (&self.config.manifests, &self.config.api);
        let mut manifests = if same { self.manifests.clone() } else { source(&config) };
        if !same && let Some(manifests) = &mut manifests {
            self.addresses.recall(manifests, &config, paths);
        }
        let waits = if same { self.waits } else { config.api.is_some() };
        let mut services = Vec::new();
        if let Some(manifests) = &mut manifests {
            manifests.set_rules(config.rules());
        }
        if waits {
            let own = self.config.with_published(Vec::new());
            services = self.intent.services.iter().filter(|s| !own.contains(s) && !s.is_host_port()).cloned().collect();
        } else if let Some(manifests) = &mut manifests {
            notices(&manifests.load(&Scope::All, Moment::now())?.notices);
            self.addresses.keep(Some(manifests));
            services = manifests.services();
        }
        let told = config.dns_notices(&services);
        services.extend(self.host_ports.wished_by(&config).cloned());
        let mut intent = config.intent(self.intent.revision, services);
        PodNetwork::of(&config, manifests.as_ref()).put(&mut intent);
        intent.policies = match waits {
            true => self.kept_policies().filter(|_| config.judges_pods()),
            false => policies::of(&config, manifests.as_ref(), waits, &self.host_ports),
        };
        if config.tuning.capacity != self.config.tuning.capacity {
            warn!(
                "capacity: tables that are there keep theirs; more connections have room once the agent is started again, all else in tables made after `stellwerk unload`"
            );
        }
        if self.config.tuning.trace_port == 0 && config.tuning.trace_port != 0 {
            warn!("log.tracePort: holds once the agent is started again");
        }
        // As the tables have it, not as the file asks for new ones.
        intent.tuning.capacity = self.intent.tuning.capacity;
        if intent == self.intent && !self.refused {
            (self.config, self.manifests, self.waits) = (config, manifests, waits);
            self.keep();
            return Ok(None);
        }
        notices(&config.notices);
        notices(&told);
        let new = Intent { revision: self.intent.revision + 1, ..intent };
        let old = (
            std::mem::replace(&mut self.intent, new),
            std::mem::replace(&mut self.config, config),
            std::mem::replace(&mut self.manifests, manifests),
            std::mem::replace(&mut self.waits, waits),
        );
        Ok(Some(Undo::All(Box::new(old))))
    }

    /// How services' endpoints are probed: as their manifests say, else as the configuration does.
    pub fn checks(&self) -> BTreeMap<ServiceName, Arc<Check>> {
        let said = self.manifests.iter().flat_map(Manifests::checks);
        let mut all: BTreeMap<ServiceName, Option<Arc<Check>>> = self.config.checks.clone();
        all.extend(said.map(|(name, check)| (name.clone(), check.clone())));
        all.into_iter().filter_map(|(name, check)| Some((name, check?))).collect()
    }

    /// How those of one are, if they are.
    pub fn check(&self, name: &ServiceName) -> Option<Arc<Check>> {
        let said = self.manifests.as_ref().and_then(|manifests| manifests.checks().get(name));
        said.or(self.config.checks.get(name)).cloned().flatten()
    }

    /// How long an endpoint that leaves keeps its connections.
    pub fn draining(&self) -> Duration {
        self.config.draining
    }

    /// The ports of a service, as they are wished for now.
    pub fn ports(&self, name: &ServiceName) -> &[ServicePort] {
        ports(&self.intent.services, name)
    }

    /// Writes who has which address, where that isn't done yet.
    pub fn keep_addresses(&mut self) {
        self.addresses.keep(self.manifests.as_ref());
    }

    /// A plan took the change.
    pub fn keep(&mut self) {
        self.refused = false;
        self.names = self.manifests.as_ref().map(|manifests| manifests.names().clone()).unwrap_or_default();
    }

    /// A plan refused the change.
    pub fn take_back(&mut self, undo: Undo) {
        match undo {
            Undo::Services(update) => update.apply_to(&mut self.intent.services),
            Undo::All(all) => (self.intent, self.config, self.manifests, self.waits) = *all,
        }
        self.keep_addresses();
        self.refused = true;
    }
}

/// The ports of a service; all are ordered by namespace and name.
fn ports<'a>(services: &'a [ServicePort], name: &ServiceName) -> &'a [ServicePort] {
    let key = |s: &ServicePort| (s.namespace.as_str(), s.name.as_str()).cmp(&(&name.namespace, &name.name));
    let first = services.partition_point(|s| key(s).is_lt());
    let count = services[first..].iter().take_while(|s| key(s).is_eq()).count();
    &services[first..first + count]
}

/// What brings the services back to what they are now.
fn inverse(update: &Update, services: &[ServicePort]) -> Update {
    let before = |name: &ServiceName| (name.clone(), ports(services, name).to_vec());
    Update { changed: update.changed.keys().map(before).collect(), notices: Vec::new() }
}
