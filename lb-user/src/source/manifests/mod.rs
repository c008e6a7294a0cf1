//! A folder (or one file) of Kubernetes YAML, or a live cluster's objects, as the source of services.
//!
//! Invariant: each file is taken whole or refused whole, and no file's fault keeps another from being
//! taken. What a refused file said before stays in force, and it is read again with the next load. A
//! load costs what changed, not what is there: files that stayed are not read, services that stayed are
//! not joined. An object of a live cluster is a file in all this, so that the same objects give the same
//! services. Not here: watching ([`super::watch`]), and talking to a cluster ([`super::live`]).

mod allocate;
mod ask;
mod cluster;
mod document;
mod files;
mod index;
mod join;
pub mod names;
mod network_policy;
mod pod;
mod select;
mod service;
mod slice;
mod traffic;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use document::ServiceName;
use document::{Balancer, Documents};
pub(crate) use files::is_manifest;
use files::{Files, Fresh};
use index::{Index, Taken, Wrong};
use join::{Joined, Occasion};
use names::Names;

use crate::address::{Leases, Outcome, Pool, Waiting};
use crate::config::{self, Error, Errors};
use crate::health::Check;
use crate::intent::{Protocol, ServicePort, ServiceRange};
use crate::moment::Moment;
use crate::policy::Cluster;
use crate::source::endpoints::{Labels, Node, Nodes};

/// What the configuration says of services.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    /// This node's name.
    pub node: String,
    /// The nodes' addresses.
    pub node_ranges: Vec<ServiceRange>,
    /// Addresses that load balancers without one get,
    pub service_ranges: Vec<ServiceRange>,
    /// and further ones.
    pub pools: Vec<Pool>,
    /// Where the configuration forwards ports, and the place that says so: these addresses are given to no
    /// load balancer.
    pub published: BTreeMap<(IpAddr, u16, Protocol), String>,
    /// How long a terminating endpoint keeps its connections.
    pub draining: Duration,
    /// Load balancers without a class are ours, too.
    pub classless: bool,
}

/// What to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The whole folder; files whose stamp did not change are not read.
    All,
    /// These files, whatever their stamps.
    Files(BTreeSet<PathBuf>),
    /// What a live cluster tells.
    Objects(Objects),
}

/// Objects by a name for people, such as `api services/default/web`; None: it is gone.
pub type Objects = BTreeMap<PathBuf, Option<Arc<serde_json::Value>>>;

/// What a load changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Update {
    /// Services whose ports differ from before, by name; no ports: it is gone.
    pub changed: BTreeMap<ServiceName, Vec<ServicePort>>,
    /// Understood, but not as written; of what was read or joined this time.
    pub notices: Vec<Error>,
}

impl Update {
    /// Brings a list, ordered as [`Manifests::services`], up to date.
    pub fn apply_to(self, services: &mut Vec<ServicePort>) {
        fn name(s: &ServicePort) -> (&str, &str) {
            (&s.namespace, &s.name)
        }
        if self.changed.len() > 16 {
            let changed: std::collections::HashSet<(&str, &str)> =
                self.changed.keys().map(|n| (n.namespace.as_str(), n.name.as_str())).collect();
            services.retain(|s| !changed.contains(&name(s)));
            drop(changed);
            services.extend(self.changed.into_values().flatten());
            services.sort_by(|a, b| name(a).cmp(&name(b)));
            return;
        }
        for (key, ports) in self.changed {
            let key = (key.namespace.as_str(), key.name.as_str());
            let first = services.partition_point(|s| name(s) < key);
            let last = services.partition_point(|s| name(s) <= key);
            services.splice(first..last, ports);
        }
    }
}

/// The source and what it knows. A clone is a cheap way to try a load and keep the original.
#[derive(Clone, Debug)]
pub struct Manifests {
    rules: Rules,
    files: Files,
    index: Index,
    leases: Leases,
    /// Load balancers that go without, and why.
    waiting: Waiting,
    /// Why nothing is given to who names none.
    frozen: Option<String>,
    joined: BTreeMap<ServiceName, Arc<Joined>>,
    /// How endpoints are probed, of services that say so; None: not at all.
    checks: BTreeMap<ServiceName, Option<Arc<Check>>>,
    names: Names,
    /// As policies see it.
    cluster: Arc<Cluster>,
    taken: Taken,
    /// What is wrong with the files that the last load refused.
    refused: Vec<Error>,
    /// All services are to be joined again, since the rules changed.
    all: bool,
}

impl Manifests {
    pub fn new(path: PathBuf, rules: Rules) -> Self {
        Manifests::of(Files::new(path), rules)
    }

    /// Of objects that are told ([`Scope::Objects`]), by the name of who tells them.
    pub fn told_by(name: &str, rules: Rules) -> Self {
        Manifests::of(Files::told(name.into()), rules)
    }

    fn of(files: Files, rules: Rules) -> Self {
        Manifests {
            rules,
            files,
            index: Index::default(),
            leases: Leases::new(),
            waiting: Waiting::new(),
            frozen: None,
            joined: BTreeMap::new(),
            checks: BTreeMap::new(),
            names: Names::default(),
            cluster: Arc::default(),
            taken: Taken::default(),
            refused: Vec::new(),
            all: false,
        }
    }

    /// The folder or file, or the name of who tells objects.
    pub fn path(&self) -> &Path {
        self.files.path()
    }

    pub fn are_told(&self) -> bool {
        self.files.are_told()
    }

    /// Other rules, in force with the next load.
    pub fn set_rules(&mut self, rules: Rules) {
        self.all |= self.rules != rules;
        self.rules = rules;
    }

    /// Before the first load: what services were given in a former life.
    pub fn remember(&mut self, leases: Leases) {
        self.leases = leases;
    }

    /// Why nobody who names no address gets another one than he had, from the next load on; None: one does. Whether
    /// that is new.
    pub fn freeze(&mut self, why: Option<String>) -> bool {
        let other = self.frozen != why;
        self.all |= other;
        self.frozen = why;
        other
    }

    /// Services of a live cluster whose status doesn't say the addresses that they have, and these.
    pub fn unsaid(&self) -> BTreeMap<ServiceName, Vec<IpAddr>> {
        let mut unsaid = BTreeMap::new();
        for (name, lease) in &self.leases {
            let service = self.index.services.get(name).and_then(|list| list.first());
            let Some(balancer) = service.and_then(|s| s.balancer(self.rules.classless)) else { continue };
            if BTreeSet::from_iter(&balancer.status) != BTreeSet::from_iter(&lease.addresses) {
                unsaid.insert(name.clone(), lease.addresses.clone());
            }
        }
        unsaid
    }

    /// Which load balancer has what,
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    /// and which go without.
    pub fn waiting(&self) -> &Waiting {
        &self.waiting
    }

    /// All services, ordered by namespace and name.
    pub fn services(&self) -> Vec<ServicePort> {
        self.joined.values().flat_map(|joined| joined.ports.iter().cloned()).collect()
    }

    /// How services say that their endpoints are probed; None: not at all.
    pub fn checks(&self) -> &BTreeMap<ServiceName, Option<Arc<Check>>> {
        &self.checks
    }

    /// All nodes.
    pub fn nodes(&self) -> &Nodes {
        &self.index.nodes
    }

    /// Pods that ask for certain addresses, as `namespace/name`.
    pub fn fixed_addresses(&self) -> BTreeMap<String, Vec<IpAddr>> {
        let asking = self.index.pods().filter(|(_, pod)| !pod.fixed.is_empty());
        asking.map(|(name, pod)| (format!("{}/{}", name.namespace, name.name), pod.fixed.clone())).collect()
    }

    /// The cluster as policies see it; another one with each change that bears on them.
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// What names stand for.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// What is wrong with files that are not in force as they are now, ordered by file and place.
    pub fn refused(&self) -> &[Error] {
        &self.refused
    }

    /// Reads what `scope` says and changed. Files that are wrong stay as they were, and are told among the notices
    /// and by [`Manifests::refused`]. On an error, which no file alone is to blame for, nothing changes.
    pub fn load(&mut self, scope: &Scope, now: Moment) -> Result<Update, Errors> {
        let (mut fresh, mut refused) = self.files.read(scope)?;
        loop {
            let new: Vec<Arc<Documents>> = fresh.iter().filter_map(|f| f.documents.clone()).collect();
            let old: Vec<Arc<Documents>> = fresh.iter().filter_map(|f| self.files.documents(&f.path)).collect();
            self.index.swap(&old, &new);
            let wrong = match self.take(&old, &new, now) {
                Ok(mut update) => {
                    self.files.commit(fresh);
                    self.all = false;
                    self.refused = Errors(refused).sorted().0;
                    update.notices.extend(self.told());
                    return Ok(update);
                }
                Err(wrong) => wrong,
            };
            let blamed: BTreeSet<PathBuf> = wrong.iter().flat_map(|wrong| self.blame(&fresh, wrong)).collect();
            self.index.swap(&new, &old);
            let errors = wrong.into_iter().map(|wrong| wrong.error);
            if blamed.is_empty() {
                self.files.refuse(fresh.into_iter().map(|f| f.path));
                return Err(Errors(refused.into_iter().chain(errors).collect()).sorted());
            }
            refused.extend(errors);
            fresh.retain(|file| !blamed.contains(&file.path));
            self.files.refuse(blamed);
        }
    }

    /// What is refused, for people.
    fn told(&self) -> Vec<Error> {
        let files: BTreeSet<&str> = self.refused.iter().map(|error| &*error.file).collect();
        let what = if self.are_told() { "object" } else { "file" };
        let count = match files.len() {
            0 => return Vec::new(),
            1 => format!("1 {what} is refused, and what it said before stays"),
            n => format!("{n} {what}s are refused, and what they said before stays"),
        };
        let Errors(mut all) = Errors::of_file(&self.path().display().to_string().into(), count);
        all.extend(self.refused.iter().cloned());
        all
    }

    /// The changed files without which something would not be wrong: the one that it is said of; else those
    /// that say its services; else those that bear on them.
    fn blame(&self, fresh: &[Fresh], wrong: &Wrong) -> Vec<PathBuf> {
        let about = |names: &BTreeSet<ServiceName>| wrong.about.iter().any(|name| names.contains(name));
        let says = |file: &Fresh| {
            let documents = file.documents.as_ref();
            about(&documents.into_iter().flat_map(|d| d.services.iter().map(|s| s.name.clone())).collect())
        };
        let bears = |file: &Fresh| {
            let old = self.files.documents(&file.path);
            let both: Vec<Arc<Documents>> = file.documents.iter().cloned().chain(old).collect();
            about(&self.index.touched(&both)) || both.iter().any(|d| !d.nodes.is_empty())
        };
        let is = |file: &Fresh| *wrong.error.file == *file.path.display().to_string();
        let paths = |wanted: &dyn Fn(&Fresh) -> bool| -> Vec<PathBuf> {
            fresh.iter().filter(|f| wanted(f)).map(|f| f.path.clone()).collect()
        };
        [paths(&is), paths(&says), paths(&bears)].into_iter().find(|paths| !paths.is_empty()).unwrap_or_default()
    }

    /// Works out what the changed documents change; `self` changes at its end or not at all (but
    /// for the index, which the caller turns back).
    fn take(&mut self, old: &[Arc<Documents>], new: &[Arc<Documents>], now: Moment) -> Result<Update, Vec<Wrong>> {
        let mut affected = self.index.touched(old);
        affected.extend(self.index.touched(new));
        if self.all || nodes(old) != nodes(new) {
            affected.extend(self.index.services.keys().chain(self.joined.keys()).cloned());
        }
        self.index.unique(&affected, new)?;
        let mut update = Update::default();
        update.notices.extend(new.iter().flat_map(|d| d.notices.iter().cloned()));
        if self.all || nodes(old) != nodes(new) {
            update.notices.extend(self.few_node_addresses());
        }
        let outcome = self.allocate(old, new, &mut affected);
        update.notices.extend(outcome.iter().flat_map(|outcome| self.address_notices(outcome)));
        let leases = outcome.as_ref().map_or(&self.leases, |outcome| &outcome.leases);
        let joined = self.join(&affected, leases, now)?;
        self.taken.check(&affected, &joined, &self.index, &self.rules.published)?;
        for name in affected {
            self.checks.remove(&name);
            let said = self.index.services.get(&name).and_then(|list| list.first()?.health.clone());
            self.checks.extend(said.map(|check| (name.clone(), check)));
            let before = self.joined.remove(&name);
            let after = joined.get(&name).cloned();
            self.names.replace(&name, after.as_ref().map(|joined| &joined.named));
            self.taken.replace(&name, before.as_deref(), after.as_deref());
            let ports = |j: &Option<Arc<Joined>>| j.as_ref().map(|j| j.ports.clone()).unwrap_or_default();
            if ports(&before) != ports(&after) {
                update.changed.insert(name.clone(), ports(&after));
            }
            if let Some(after) = after {
                update.notices.extend(after.notices.iter().cloned());
                self.joined.insert(name, after);
            }
        }
        self.names.swap(old, new);
        cluster::follow(&mut self.cluster, &self.index, old, new);
        if let Some(outcome) = outcome {
            (self.leases, self.waiting) = (outcome.leases, outcome.waiting);
        }
        Ok(update)
    }

    /// Who gets which address, if anything that bears on it changed; whose changed are affected.
    fn allocate(
        &self,
        old: &[Arc<Documents>],
        new: &[Arc<Documents>],
        affected: &mut BTreeSet<ServiceName>,
    ) -> Option<Outcome> {
        if !self.all && asks(old) == asks(new) && namespaces(old) == namespaces(new) {
            return None;
        }
        let order = allocate::Order {
            had: &self.leases,
            incomplete: self.files.any_refused(),
            frozen: self.frozen.as_deref(),
            live: self.are_told(),
        };
        let outcome = allocate::allocate(&self.index, &self.rules, &order);
        let given = |leases: &Leases, name: &ServiceName| leases.get(name).map(|lease| lease.addresses.clone());
        let both = outcome.leases.keys().chain(self.leases.keys());
        affected.extend(both.filter(|name| given(&outcome.leases, name) != given(&self.leases, name)).cloned());
        Some(outcome)
    }

    /// Nodes are replaced one by one, the new one beside the old: that needs an address more than there are nodes.
    fn few_node_addresses(&self) -> Vec<Error> {
        let nodes = self.index.nodes.len() as u128;
        let few = |v4: bool| {
            let mine = self.rules.node_ranges.iter().filter(|r| r.first.is_ipv4() == v4);
            let count = mine.map(config::size).sum::<u128>();
            let family = if v4 { "IPv4" } else { "IPv6" };
            let text = format!(
                "there are {nodes} Nodes, and cluster.nodeIPs has {count} {family} addresses; expected {} at least",
                nodes + 1
            );
            (count > 0 && count <= nodes).then_some(text)
        };
        let file = self.path().display().to_string().into();
        [true, false].into_iter().filter_map(few).flat_map(|text| Errors::of_file(&file, text).0).collect()
    }

    /// What load balancers lose, and what they newly go without.
    fn address_notices(&self, outcome: &Outcome) -> Vec<Error> {
        let news = |(name, why): &(&ServiceName, &String)| {
            self.all || !self.waiting.get(*name).is_some_and(|before| before.contains(why))
        };
        let waiting = outcome.waiting.iter().flat_map(|(name, all)| all.iter().map(move |why| (name, why)));
        let all = outcome.lost.iter().map(|(name, why)| (name, why)).chain(waiting.filter(news));
        let said = |name: &ServiceName| self.index.services.get(name).and_then(|list| list.first());
        all.filter_map(|(name, why)| Some(said(name)?.said.message(format!("LoadBalancer {name} {why}")))).collect()
    }

    fn join(
        &self,
        affected: &BTreeSet<ServiceName>,
        leases: &Leases,
        now: Moment,
    ) -> Result<BTreeMap<ServiceName, Arc<Joined>>, Vec<Wrong>> {
        let mut all = BTreeMap::new();
        let mut wrong = Vec::new();
        let zone = self.index.nodes.get(&self.rules.node).and_then(|node| node.zone.as_deref());
        let moment = Occasion { now, rules: &self.rules, zone };
        for name in affected {
            let Some(service) = self.index.services.get(name).and_then(|s| s.first()) else {
                continue;
            };
            let given = leases.get(name).map_or(&[][..], |lease| &lease.addresses);
            let before = self.joined.get(name).map(|j| &**j);
            match join::join(service, given, &self.index.slices(service), before, &moment) {
                Ok(joined) => _ = all.insert(name.clone(), Arc::new(joined)),
                Err(error) => wrong.push(Wrong { error, about: vec![name.clone()] }),
            }
        }
        if wrong.is_empty() { Ok(all) } else { Err(wrong) }
    }
}

/// All that endpoints depend on of nodes.
fn nodes(documents: &[Arc<Documents>]) -> BTreeMap<&str, &Node> {
    documents.iter().flat_map(|d| d.nodes.iter().map(|node| (node.name.as_str(), &node.object))).collect()
}

/// All that pools depend on of namespaces.
fn namespaces(documents: &[Arc<Documents>]) -> BTreeMap<&str, &Labels> {
    documents.iter().flat_map(|d| d.namespaces.iter().map(|n| (n.name.as_str(), &n.object))).collect()
}

/// A service, the addresses it names and what it asks for.
type Ask<'d> = (&'d ServiceName, &'d [IpAddr], Option<&'d Balancer>);

/// All that bears on which addresses are given to whom.
fn asks(documents: &[Arc<Documents>]) -> BTreeSet<Ask<'_>> {
    let services = documents.iter().flat_map(|d| &d.services);
    services.map(|s| (&s.name, s.addresses.as_slice(), s.balancer.as_ref())).collect()
}

#[cfg(test)]
pub(crate) mod tests;
