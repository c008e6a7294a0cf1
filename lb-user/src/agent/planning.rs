//! From a change of the wish or the network to the kernel: the plan of what changed alone, where that is enough, or of
//! everything; operations, and what to do when one fails.
//!
//! Invariant: what is planned is what the tables hold, or [`Held`] says what else they do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::wanted::Neighbours;
use super::wish::Undo;
use super::{ASK_LATER, Agent, RETRY};
use crate::intent::{Network, ReplyVia, ServicePort};
use crate::moment::Moment;
use crate::plan::{Apply, Clock, Contents, Op, Planned, diff};
use crate::source::manifests::ServiceName;

/// What the tables hold, as far as we know.
pub(super) enum Held {
    /// What is planned.
    Plan,
    /// What was read: that of an agent before, or what a failure left.
    Other(Box<Contents>),
    /// They couldn't be read after a failure.
    Unknown,
}

impl Agent {
    pub(super) fn network_changed(&mut self, network: Network) {
        let network = self.overlay_errors.add_to(network);
        let before = std::mem::replace(&mut self.network, network);
        self.settle_pods();
        let others_routes = before.differs_in_routes_alone(&self.network);
        // First of all: the kernel goes by them, however long a plan takes.
        if !others_routes || self.wish.intent.ports.iter().any(|port| port.reply_via == ReplyVia::Port) {
            self.settle_routes();
        }
        self.behind |= !others_routes || !self.routes_changed();
        if self.behind {
            self.replan_or_retry(None);
        }
    }

    /// Brings the kernel to the network's routes, where these alone changed. False: everything is to be planned.
    fn routes_changed(&mut self) -> bool {
        let started = std::time::Instant::now();
        let Some(planned) = self.planned.as_mut().filter(|_| !self.behind && matches!(self.held, Held::Plan)) else {
            return false;
        };
        let Some(ops) = planned.routes(&self.network.routes, &mut self.ids) else { return false };
        if !self.neighbours.follow(&self.network.routes) {
            self.neighbours = Neighbours::new(&self.wish.intent, &self.network);
            self.ask.get_or_insert(Instant::now() + ASK_LATER);
        }
        match self.carry_out(&ops) {
            Ok(()) => self.vitals.apply(started.elapsed(), ops.len()),
            Err(error) => {
                self.vitals.failed.fetch_add(1, Ordering::Relaxed);
                error!("{error:#}");
            }
        }
        debug!(applied = ?started.elapsed(), operations = ops.len(), "routes followed");
        true
    }

    pub(super) fn replan_or_retry(&mut self, undo: Option<Undo>) {
        self.tell_vitals();
        if let Err(error) = self.replan(undo) {
            self.vitals.failed.fetch_add(1, Ordering::Relaxed);
            error!("{error:#}");
        }
        self.tell_vitals();
    }

    /// Plans, and brings the kernel there. A wish that can't be planned is taken back by `undo`.
    pub(super) fn replan(&mut self, undo: Option<Undo>) -> Result<()> {
        if self.waits() {
            self.retry = None;
            debug!("not planned: nothing is known of the cluster");
            return Ok(());
        }
        let undo = Undo::both(self.unjudged.take(), undo);
        let deadline = (self.retry.take(), self.deadline.take()).1;
        let tick = match self.ask_kernel() {
            Ok(tick) => tick,
            Err(error) => {
                // No fault of the wish's.
                (self.unjudged, self.deadline, self.behind) = (undo, deadline, true);
                self.retry = Some(Instant::now() + RETRY);
                return Err(error);
            }
        };
        let clock = Clock { now: Moment::now(), tick, ticks_per_second: self.kernel.ticks_per_second };
        let started = std::time::Instant::now();
        let ops = match self.plan_part(undo.as_ref(), clock) {
            Some(ops) => ops,
            None => match self.plan_whole(clock) {
                Ok(ops) => ops,
                Err(error) => {
                    if self.yield_host_port(&error) {
                        return self.replan(undo);
                    }
                    if let Some(undo) = undo {
                        self.wish.take_back(undo);
                        // Of the wish that stays.
                        self.deadline = deadline;
                    }
                    return Err(error);
                }
            },
        };
        if undo.is_some() {
            self.wish.keep();
        }
        let planned = started.elapsed();
        self.carry_out(&ops)?;
        // First of all: runtimes wait for it.
        self.tell_pods();
        self.note_announced();
        self.publish_names();
        self.note_policies();
        self.vitals.apply(started.elapsed(), ops.len());
        debug!(?planned, applied = ?started.elapsed(), operations = ops.len(), "replanned");
        if undo.is_some() {
            info!("revision {} is in force: {} operations", self.wish.intent.revision, ops.len());
        }
        self.lock.note(self.wish.intent.revision);
        self.lock.note_device(&self.wish.intent);
        self.nat_log.set_path(self.wish.intent.nat.log.clone());
        self.deadline = self.next_deadline();
        self.answer_health_checks();
        if self.ids.waits() {
            // What it waits for has just gone.
            self.behind = true;
            self.retry = Some(Instant::now() + if ops.is_empty() { RETRY } else { Duration::ZERO });
        }
        if self.neighbours.changed() {
            self.ask.get_or_insert(Instant::now() + ASK_LATER);
        }
        Ok(())
    }

    /// What a plan needs to know of the kernel: the tick, and what the tables hold.
    fn ask_kernel(&mut self) -> Result<u32> {
        let tick = self.kernel.now().context("the kernel doesn't say what time it is; trying again")?;
        if matches!(self.held, Held::Unknown) {
            self.read_back()?;
        }
        Ok(tick)
    }

    /// Nothing is known of the cluster yet, but the tables hold services, as an agent before left them.
    pub(super) fn waits(&self) -> bool {
        if !self.wish.waits() || self.planned.is_some() {
            return false;
        }
        match &self.held {
            Held::Other(real) => !real.v4.services.is_empty() || !real.v6.services.is_empty(),
            Held::Plan | Held::Unknown => false,
        }
    }

    /// The operations for what changed alone, if only services did; those whose endpoints' time is
    /// up are among them. None: everything is to be planned, also to say what is wrong.
    fn plan_part(&mut self, undo: Option<&Undo>, clock: Clock) -> Option<Vec<Op>> {
        let planned = self.planned.as_mut().filter(|_| !self.behind && matches!(self.held, Held::Plan))?;
        let wish = &self.wish;
        let none = BTreeMap::new();
        let before = match undo {
            None => &none,
            Some(Undo::Services(update)) => &update.changed,
            Some(Undo::All(_)) => return None,
        };
        let due = planned.due(clock.now).into_iter().map(|(namespace, name)| ServiceName { namespace, name });
        let touched = self.health.touched().cloned();
        let names: BTreeSet<ServiceName> = before.keys().cloned().chain(due).chain(touched).collect();
        let shown = self.health.show(&names, wish);
        let was = |name| shown.get(name).or(before.get(name)).map_or_else(|| wish.ports(name), Vec::as_slice);
        let was: Vec<&ServicePort> = names.iter().flat_map(was).collect();
        let shown = |name| self.health.shown(name).unwrap_or_else(|| wish.ports(name));
        let now: Vec<&ServicePort> = names.iter().flat_map(shown).collect();
        let mut changes = planned.update(&was, &now, &mut self.ids, clock).ok()?;
        self.neighbours.replace(&was, &now);
        let services = names.iter().map(|name| (name, shown(name)));
        let (mut ops, announced) = self.announce.part(services, planned, wish, &self.network);
        ops.append(&mut changes);
        ops.extend(planned.policies(&wish.intent, &self.network));
        ops.extend(announced);
        Some(ops)
    }

    fn plan_whole(&mut self, clock: Clock) -> Result<Vec<Op>> {
        self.behind = true;
        let intent = self.health.intent(&self.wish);
        let mut planned = Planned::new(&intent, &self.network, &mut self.ids, clock, self.planned.as_ref())
            .context("refused, and what runs stays")?;
        self.announce.whole(&intent.services, &mut planned, &self.wish, &self.network);
        let ops = match (&self.held, &self.planned) {
            (Held::Other(real), _) => diff(real, planned.contents()),
            (_, Some(before)) => diff(before.contents(), planned.contents()),
            _ => Vec::new(),
        };
        if planned.is_cramped() && !self.planned.as_ref().is_some_and(Planned::is_cramped) {
            warn!(
                "there are more sets of next hops of equal metric than the table of groups has room for: of some routes one next hop serves alone"
            );
        }
        self.planned = Some(planned);
        self.behind = false;
        self.neighbours = Neighbours::new(&intent, &self.network);
        Ok(ops)
    }

    pub(super) fn carry_out(&mut self, ops: &[Op]) -> Result<()> {
        match self.kernel.apply_all(ops) {
            Ok(()) => {
                self.held = Held::Plan;
                self.ids.applied();
                Ok(())
            }
            Err(error) => {
                self.held = Held::Unknown;
                self.retry = Some(Instant::now() + RETRY);
                if let Err(why) = self.read_back() {
                    error!("{why:#}");
                }
                Err(error.context("the kernel took a part of the change; trying again"))
            }
        }
    }

    fn read_back(&mut self) -> Result<()> {
        let read = self.kernel.read().context("reading the tables back after a failure");
        let real = read.inspect_err(|_| self.retry = Some(Instant::now() + RETRY))?;
        self.ids.settle(&real);
        self.held = Held::Other(Box::new(real));
        Ok(())
    }

    /// The next moment at which a leaving endpoint's time is up, if any still leaves.
    fn next_deadline(&self) -> Option<Instant> {
        let until = self.planned.as_ref()?.next_deadline()?;
        let left = until.since(Moment::now());
        Some(Instant::now() + left + Duration::from_millis(5))
    }
}
