//! Which endpoints fail their probes, and what is planned because of that.
//!
//! Invariant: the wish stays what sources say; what is planned of a service is its wish, or what is `shown` here in its
//! place. Not here: probing, and what follows from a failure ([`crate::health`]).

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::Agent;
use super::wish::Wish;
use crate::apply::Paths;
use crate::health::overlay::overlay;
use crate::health::report::{Failing, Report};
use crate::health::run::{self, Told};
use crate::health::{Check, Target, Targets};
use crate::intent::{Intent, ServicePort};
use crate::moment::Moment;
use crate::source::manifests::{ServiceName, Update};

pub(super) type Reports = mpsc::UnboundedReceiver<Told>;

pub(super) struct Health {
    path: PathBuf,
    targets: watch::Sender<Targets>,
    failing: BTreeMap<Target, (Moment, String)>,
    /// Services that are planned otherwise than they are wished.
    shown: BTreeMap<ServiceName, Vec<ServicePort>>,
    /// Services of which something changed since they were planned.
    touched: BTreeSet<ServiceName>,
    written: Report,
}

impl Health {
    /// What was failing at an agent before is, until a probe says otherwise.
    pub fn start(paths: &Paths) -> Result<(Self, Reports)> {
        let path = paths.health();
        let before = Report::read(&path).failing;
        let failing = before.into_iter().map(|f| (f.target(), (f.since, f.why))).collect();
        let (targets, asked) = watch::channel(Targets::new());
        let reports = run::spawn(asked)?;
        let (shown, touched, written) = (BTreeMap::new(), BTreeSet::new(), Report::default());
        Ok((Health { path, targets, failing, shown, touched, written }, reports))
    }

    /// The services that are to be planned again.
    pub fn touched(&self) -> impl Iterator<Item = &ServiceName> {
        self.touched.iter()
    }

    /// What is planned of a service in place of its wish.
    pub fn shown(&self, name: &ServiceName) -> Option<&[ServicePort]> {
        self.shown.get(name).map(Vec::as_slice)
    }

    /// Works out anew what is planned of these services; what was in place of their wish before.
    pub fn show(&mut self, names: &BTreeSet<ServiceName>, wish: &Wish) -> BTreeMap<ServiceName, Vec<ServicePort>> {
        let mut before = BTreeMap::new();
        for name in names {
            self.touched.remove(name);
            before.extend(self.shown.remove_entry(name));
            if let Some(ports) = wish.check(name).and_then(|check| self.altered(name, wish, &check)) {
                self.shown.insert(name.clone(), ports);
            }
        }
        before
    }

    fn altered(&self, name: &ServiceName, wish: &Wish, check: &Check) -> Option<Vec<ServicePort>> {
        if self.failing.is_empty() {
            return None;
        }
        let since =
            |addr, port| self.failing.get(&Target { service: name.clone(), addr, port }).map(|(since, _)| *since);
        overlay(wish.ports(name), check, since, wish.draining())
    }

    /// The whole wish as it is planned.
    pub fn intent<'w>(&mut self, wish: &'w Wish) -> Cow<'w, Intent> {
        let names: BTreeSet<ServiceName> = self.failing.keys().map(|target| target.service.clone()).collect();
        self.shown.clear();
        self.touched.clear();
        self.show(&names, wish);
        if self.shown.is_empty() {
            return Cow::Borrowed(&wish.intent);
        }
        let mut intent = wish.intent.clone();
        Update { changed: self.shown.clone(), notices: Vec::new() }.apply_to(&mut intent.services);
        Cow::Owned(intent)
    }

    /// Probes what is wished now, and forgets what isn't any more.
    fn follow(&mut self, wish: &Wish) {
        let mut targets = Targets::new();
        for (name, check) in wish.checks() {
            for port in wish.ports(&name) {
                let places = port.endpoints.iter().filter_map(|e| Some((e.addr, check.port(port.protocol, e.port)?)));
                for (addr, port) in places {
                    let target = Target { service: name.clone(), addr, port };
                    let failing = self.failing.contains_key(&target);
                    targets.insert(target, (check.clone(), failing));
                }
            }
        }
        let gone = self.failing.keys().filter(|target| !targets.contains_key(target));
        self.touched.extend(gone.map(|target| target.service.clone()));
        self.failing.retain(|target, _| targets.contains_key(target));
        let checks = |all: &Targets| -> Vec<(Target, Arc<Check>)> {
            all.iter().map(|(target, (check, _))| (target.clone(), check.clone())).collect()
        };
        let (old, new) = (checks(&self.targets.borrow()), checks(&targets));
        if old != new {
            let was: BTreeMap<_, _> = old.into_iter().collect();
            // How a failure counts may have changed.
            let other = new.iter().filter(|(target, check)| was.get(target).is_some_and(|was| was != check));
            let other = other.filter(|(target, _)| self.failing.contains_key(target));
            self.touched.extend(other.map(|(target, _)| target.service.clone()));
            self.targets.send_replace(targets);
        }
        self.write();
    }

    /// Takes what probes found.
    fn take(&mut self, told: Vec<Told>) {
        for Told { target, failing } in told {
            if !self.targets.borrow().contains_key(&target) {
                continue;
            }
            let at = std::net::SocketAddr::new(target.addr, target.port);
            match failing {
                Some(why) => match self.failing.get_mut(&target) {
                    Some((_, before)) => *before = why,
                    None => {
                        warn!("{} of {} fails its probes: {why}", at, target.service);
                        self.touched.insert(target.service.clone());
                        self.failing.insert(target, (Moment::now(), why));
                    }
                },
                None => {
                    if self.failing.remove(&target).is_some() {
                        info!("{} of {} is well again", at, target.service);
                        self.touched.insert(target.service);
                    }
                }
            }
        }
    }

    fn write(&mut self) {
        let failing = |(target, (since, why)): (&Target, &(Moment, String))| Failing {
            namespace: target.service.namespace.clone(),
            service: target.service.name.clone(),
            address: target.addr,
            port: target.port,
            since: *since,
            why: why.clone(),
        };
        let report =
            Report { probed: self.targets.borrow().len(), failing: self.failing.iter().map(failing).collect() };
        if report == self.written {
            return;
        }
        match report.write(&self.path) {
            Ok(()) => self.written = report,
            // Told to people only: the plan goes by what is in here.
            Err(error) => warn!("writing {}: {error}", self.path.display()),
        }
    }
}

impl Agent {
    /// Probes found something.
    pub(super) fn probed(&mut self, told: Vec<Told>) {
        self.health.take(told);
        self.settle_health();
    }

    /// Brings probes to what is wished, and the plan to what they found.
    pub(super) fn settle_health(&mut self) {
        self.health.follow(&self.wish);
        if self.health.touched().next().is_some() {
            self.replan_or_retry(None);
        }
    }
}
