//! Brings operators' routes into the kernel, and keeps them there.
//!
//! Invariant: what is decided ([`crate::route`]) is compared with what the kernel has of ours at that
//! moment, and only the difference is done. A store that can't be read leaves everything as it is.
//! A change that nothing of ours explains was another's: it is set right, told and counted.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use ipnet::IpNet;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::Agent;
use crate::apply::{Paths, State, sysctl};
use crate::intent::{Intent, Network};
use crate::nodes;
use crate::route::decide::{Decision, decide};
use crate::route::reply::reply;
use crate::route::store::{self, Stored};
use crate::route::{Own, StaticRoute, wish};
use crate::source::netlink::message::Connection;
use crate::source::netlink::{Wanted, own, write};
use crate::source::watch::Watch;

/// The loopback interface.
const LOOPBACK: (&str, u32) = ("lo", 1);
const RETRY: Duration = Duration::from_secs(1);

pub struct Routes {
    path: PathBuf,
    connection: Connection,
    /// None: it can't be read.
    stored: Option<Stored>,
    /// Next hops that the kernel is to ask whether they are there.
    probed: watch::Sender<Wanted>,
    /// What the kernel was brought to.
    last: Option<Own>,
    /// What it refused, and why: told once.
    refused: BTreeMap<String, String>,
    /// When to try again what it refused.
    pub retry: Option<Instant>,
}

/// Watches the store; its folder is made, since there is nothing else to watch.
pub fn watch(path: &Path) -> Option<Watch> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let watch = std::fs::create_dir_all(folder).map_err(anyhow::Error::from).and_then(|()| Ok(Watch::new(path, None)?));
    watch
        .inspect_err(|error| {
            warn!("routes added by command are read at the start alone: {}: {error:#}", path.display())
        })
        .ok()
}

pub async fn changed(watch: &mut Option<Watch>) {
    match watch {
        Some(watch) => _ = watch.changed().await,
        None => std::future::pending().await,
    }
}

impl Agent {
    pub(super) fn stored_routes_changed(&mut self) {
        self.routes.read();
        self.settle_routes();
    }

    pub(super) fn settle_routes(&mut self) {
        let (paths, state) = (&self.options.paths, &mut self.kernel.state);
        let repaired = self.routes.settle(self.wish.routes(), &self.wish.intent, &self.network, paths, state);
        self.lock.note_routes(self.routes.generation(), repaired);
    }
}

impl Routes {
    pub fn new(path: PathBuf, probed: watch::Sender<Wanted>) -> Result<Self> {
        let connection = own::open()?;
        let mut routes =
            Routes { path, connection, stored: None, probed, last: None, refused: BTreeMap::new(), retry: None };
        routes.read();
        Ok(routes)
    }

    /// Reads the store; one that can't be read changes nothing.
    pub fn read(&mut self) {
        match store::read(&self.path) {
            Ok(stored) => self.stored = Some(stored),
            Err(error) => error!("the routes in force stay: {error:#}"),
        }
    }

    /// Of the store in force.
    pub fn generation(&self) -> u64 {
        self.stored.as_ref().map_or(0, |stored| stored.generation)
    }

    /// Has the kernel's routes as they shall be; how many others had changed.
    pub fn settle(
        &mut self,
        file: &[StaticRoute],
        intent: &Intent,
        network: &Network,
        paths: &Paths,
        state: &mut State,
    ) -> u64 {
        self.retry = None;
        let Some(stored) = &self.stored else { return 0 };
        let Decision { routes, probed, .. } = decide(&wish(file, &stored.routes), &intent.ports, network);
        let mut desired = Own { routes, ..Own::default() };
        reply(&intent.ports, network, &mut desired);
        nodes::routes(intent, network, &mut desired);
        if let Err(error) = self.own_addresses(&nodes::own_addresses(&desired), network, paths, state) {
            error!("this node's addresses among pods: {error:#}");
            self.retry = Some(Instant::now() + RETRY);
        }
        self.probe(probed, network, paths, state);
        let result = self.bring(desired, paths, state);
        result.unwrap_or_else(|error| {
            error!("the kernel's routes: {error:#}");
            self.retry = Some(Instant::now() + RETRY);
            0
        })
    }

    /// Has the loopback interface carry these, and no others that were added to it here.
    fn own_addresses(
        &mut self,
        wished: &BTreeSet<IpNet>,
        network: &Network,
        paths: &Paths,
        state: &mut State,
    ) -> Result<()> {
        let ours = |state: &State| -> BTreeSet<IpNet> {
            state.addresses.iter().filter(|(name, _)| name == LOOPBACK.0).map(|(_, net)| *net).collect()
        };
        for &net in ours(state).difference(wished) {
            _ = write::delete_address(&mut self.connection, LOOPBACK.1, net);
            state.change(paths, |state| _ = state.addresses.remove(&(LOOPBACK.0.to_owned(), net)))?;
        }
        let there = |net: &&IpNet| network.addresses.iter().any(|a| a.net == **net);
        for &net in wished.iter().filter(|net| !there(net)) {
            state.change(paths, |state| _ = state.addresses.insert((LOOPBACK.0.to_owned(), net)))?;
            write::add_address(&mut self.connection, LOOPBACK.1, net).with_context(|| format!("adding {net}"))?;
        }
        Ok(())
    }

    fn probe(&mut self, probed: Wanted, network: &Network, paths: &Paths, state: &mut State) {
        if *self.probed.borrow() == probed {
            return;
        }
        for (link, addr) in &probed {
            let Some(link) = network.links.iter().find(|l| l.index == *link) else { continue };
            if let Err(error) = sysctl::next_hops(paths, state, &link.name, addr.is_ipv4()) {
                warn!("the failure of a next hop on {} is noticed later: {error:#}", link.name);
            }
        }
        self.probed.send_replace(probed);
    }

    fn bring(&mut self, desired: Own, paths: &Paths, state: &mut State) -> Result<u64> {
        let real = own::read(&mut self.connection).context("reading them")?;
        if real == desired && self.refused.is_empty() {
            self.last = Some(desired);
            return Ok(0);
        }
        state.change(paths, |state| state.routes = true)?;
        let mut tally = Tally { last: self.last.take(), left: desired.clone(), repaired: 0, refused: BTreeMap::new() };
        for (key, target) in desired.routes.iter().filter(|(key, target)| real.routes.get(key) != Some(target)) {
            // Another's may stand in the place of ours since somebody replaced that.
            let was_ours = tally.last.as_ref().is_some_and(|last| last.routes.contains_key(key));
            let replace = was_ours || real.routes.contains_key(key);
            let expected = tally.last.as_ref().is_some_and(|last| last.routes.get(key) == Some(target));
            let result = own::set_route(&mut self.connection, key, target, replace);
            if !tally.note("set", &format!("the route {key}"), expected, result) {
                tally.left.routes.remove(key);
            }
        }
        for (link, v4) in nodes::entries(&desired) {
            let known = write::know(&mut self.connection, link, nodes::gateway(v4), nodes::GATEWAY_MAC);
            known.context("naming the gateway into the overlay")?;
        }
        for rule in desired.rules.difference(&real.rules) {
            let expected = tally.last.as_ref().is_some_and(|last| last.rules.contains(rule));
            let result = own::add_rule(&mut self.connection, rule);
            if !tally.note("set", &format!("the rule from {}", rule.from), expected, result) {
                tally.left.rules.remove(rule);
            }
        }
        for rule in real.rules.difference(&desired.rules) {
            let foreign = tally.last.as_ref().is_some_and(|last| !last.rules.contains(rule));
            let result = own::delete_rule(&mut self.connection, rule);
            tally.note("removed", &format!("the rule from {}", rule.from), foreign, result);
        }
        for (key, target) in real.routes.iter().filter(|(key, _)| !desired.routes.contains_key(key)) {
            let foreign = tally.last.as_ref().is_some_and(|last| !last.routes.contains_key(key));
            let result = own::delete_route(&mut self.connection, key, target);
            tally.note("removed", &format!("the route {key}"), foreign, result);
        }
        self.last = Some(tally.left);
        if !tally.refused.is_empty() {
            self.retry = Some(Instant::now() + RETRY);
        }
        for (what, why) in tally.refused.iter().filter(|(what, why)| self.refused.get(*what) != Some(why)) {
            error!("{what} is not in force: {why}");
        }
        self.refused = tally.refused;
        Ok(tally.repaired)
    }
}

/// What came of the changes.
struct Tally {
    /// What the kernel was brought to before.
    last: Option<Own>,
    /// And now, but for what it refused.
    left: Own,
    repaired: u64,
    refused: BTreeMap<String, String>,
}

impl Tally {
    /// False: the kernel refused it. `others`: what is changed here, others had changed before.
    fn note(&mut self, did: &str, what: &str, others: bool, result: io::Result<()>) -> bool {
        match result {
            Ok(()) if others => {
                self.repaired += 1;
                warn!("{did} {what}, which others had changed");
            }
            Ok(()) => info!("{did} {what}"),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                let why =
                    "the kernel has another of that prefix and metric, which is not ours; expected another metric";
                self.refused.insert(what.to_owned(), why.to_owned());
                return false;
            }
            Err(error) => {
                self.refused.insert(what.to_owned(), error.to_string());
                return false;
            }
        }
        true
    }
}
