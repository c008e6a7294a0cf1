//! Numbers that stay: ids of services and backends, indexes of next hops and of exchanged prefixes,
//! places of rows, planes of addresses outside.
//!
//! Invariant: the same thing keeps its number as long as it is wished for, also over a restart of
//! the agent ([`Ids::recover`]). The lowest free number is given out, and a number is free only
//! when the kernel has forgotten its last owner, its connections included: after [`Ids::applied`]
//! or, where a list of operations stopped half way, [`Ids::settle`].
//! Not here: which things there are ([`super::plan`]).

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::net::IpAddr;

use imbl::OrdMap;
use lb_common::table::{Group, Name, NextHop, Owned, Prefix, Service, ServiceKey};
use lb_common::wire::{Addr, Ip4, Ip6, Mac};

use super::contents::{Contents, Family};
use super::slots::Rows;

/// Numbers of one kind of thing.
#[derive(Clone, Debug)]
pub(super) struct Numbers<K> {
    by_key: HashMap<K, u32>,
    /// Whose each number is. None: free (or, below the first, nobody's).
    owners: Vec<Option<K>>,
    /// Wished for by the last plan.
    live: Vec<bool>,
    /// Wished for by the plan that is being drafted.
    draft: Vec<bool>,
    fresh: Vec<K>,
    /// Numbers that may have been given up since the last release.
    idle: Vec<u32>,
    /// No number below is free.
    lowest: usize,
    first: usize,
}

impl<K: Hash + Eq + Clone> Numbers<K> {
    /// Numbers from `first`.
    fn new(first: usize) -> Self {
        Numbers {
            by_key: HashMap::new(),
            owners: vec![None; first],
            live: Vec::new(),
            draft: Vec::new(),
            fresh: Vec::new(),
            idle: Vec::new(),
            lowest: first,
            first,
        }
    }

    pub fn find(&self, key: &K) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    /// The number of `key`, and whether this plan asks for it for the first time.
    pub fn number(&mut self, key: K) -> (u32, bool) {
        let number = match self.by_key.get(&key) {
            Some(&number) => number,
            None => {
                let number = self.lowest_free();
                self.owners[number as usize] = Some(key.clone());
                self.by_key.insert(key.clone(), number);
                self.fresh.push(key);
                number
            }
        };
        self.draft.resize(self.draft.len().max(number as usize + 1), false);
        let first_time = !std::mem::replace(&mut self.draft[number as usize], true);
        (number, first_time)
    }

    /// The same, if that number is below `limit`.
    pub fn number_below(&mut self, key: K, limit: u32) -> Option<u32> {
        let number = self.find(&key).unwrap_or_else(|| self.lowest_free());
        (number < limit).then(|| self.number(key).0)
    }

    fn lowest_free(&mut self) -> u32 {
        while self.owners.get(self.lowest).is_some_and(Option::is_some) {
            self.lowest += 1;
        }
        self.owners.resize(self.owners.len().max(self.lowest + 1), None);
        self.lowest as u32
    }

    fn recover(&mut self, key: K, number: u32) {
        let at = number as usize;
        self.owners.resize(self.owners.len().max(at + 1), None);
        if at >= self.first {
            self.owners[at] = Some(key.clone());
            self.idle.push(number);
        }
        self.by_key.insert(key, number);
    }

    fn begin(&mut self) {
        self.draft.clear();
        self.fresh.clear();
    }

    /// Begins a draft in which all is wished for as before, but for these.
    fn begin_without(&mut self, numbers: impl Iterator<Item = u32>) {
        self.draft.clone_from(&self.live);
        self.fresh.clear();
        for number in numbers {
            if let Some(wished) = self.draft.get_mut(number as usize) {
                *wished = false;
            }
            self.idle.push(number);
        }
    }

    /// All is known of the draft: it was of everything.
    fn commit(&mut self) {
        self.commit_part();
        let live = |at: usize| self.live.get(at).copied().unwrap_or(false);
        let taken = self.owners.iter().enumerate().filter(|(_, owner)| owner.is_some());
        self.idle = taken.filter(|&(at, _)| !live(at)).map(|(at, _)| at as u32).collect();
    }

    fn commit_part(&mut self) {
        std::mem::swap(&mut self.live, &mut self.draft);
        self.fresh.clear();
    }

    fn rollback(&mut self) {
        for key in std::mem::take(&mut self.fresh) {
            if let Some(number) = self.by_key.remove(&key) {
                self.owners[number as usize] = None;
                self.lowest = self.lowest.min(number as usize);
            }
        }
    }

    /// Frees the numbers that the last plan doesn't want and that are not `in_use`.
    fn release(&mut self, in_use: impl Fn(u32) -> bool) {
        let mut idle = std::mem::take(&mut self.idle);
        idle.sort_unstable();
        idle.dedup();
        idle.retain(|&number| {
            let at = number as usize;
            if self.live.get(at).copied().unwrap_or(false) {
                return false;
            }
            if in_use(number) {
                return true;
            }
            if let Some(key) = self.owners.get_mut(at).and_then(Option::take) {
                if self.by_key.get(&key) == Some(&number) {
                    self.by_key.remove(&key);
                }
                self.lowest = self.lowest.min(at);
            }
            false
        });
        self.idle = idle;
    }

    /// Entries that a table indexed by these numbers must have.
    pub fn need(&self) -> u64 {
        self.draft.iter().rposition(|&wished| wished).map_or(0, |at| at as u64 + 1)
    }
}

/// What a route leads to, to see whether it changed.
#[derive(Clone, Debug, Default)]
struct Routing {
    next_hops: BTreeMap<u32, NextHop>,
    groups: BTreeMap<u32, Group>,
    v4: OrdMap<Prefix<Ip4>, u32>,
    v6: OrdMap<Prefix<Ip6>, u32>,
}

impl Routing {
    fn of(contents: &Contents) -> Self {
        Routing {
            next_hops: contents.next_hops.clone(),
            groups: contents.groups.clone(),
            v4: contents.v4.routes.clone(),
            v6: contents.v6.routes.clone(),
        }
    }

    fn is_of(&self, contents: &Contents) -> bool {
        self.next_hops == contents.next_hops
            && self.groups == contents.groups
            && same(&self.v4, &contents.v4.routes)
            && same(&self.v6, &contents.v6.routes)
    }
}

/// Whether two tables are one. Costs what differs, where one was copied from the other.
pub(super) fn same<A: Addr>(one: &OrdMap<Prefix<A>, u32>, other: &OrdMap<Prefix<A>, u32>) -> bool {
    one.diff(other).next().is_none()
}

/// The memory between two plans.
#[derive(Clone, Debug)]
pub struct Ids {
    /// By name and protocol.
    pub(super) services: Numbers<(Name, u8)>,
    /// By service id, address and port; one space over both families, since counters are indexed by it.
    pub(super) backends: Numbers<(u32, IpAddr, u16)>,
    /// By link and the neighbour's link-layer address.
    pub(super) next_hops: Numbers<(u32, Mac)>,
    /// By what they hold.
    pub(super) groups: Numbers<Group>,
    /// By address outside, a space each for IPv4 and IPv6.
    planes4: Numbers<IpAddr>,
    planes6: Numbers<IpAddr>,
    /// By prefix inside, prefix outside, and their length.
    pub(super) prefixes: Numbers<(Ip6, Ip6, u32)>,
    /// Something wished for waits for a number that is still another's.
    pub(super) waits: bool,
    pub(super) rows: Rows,
    /// Deadlines of draining backends, in ticks.
    pub(super) deadlines: HashMap<u32, u32>,
    routing: Routing,
    pub(super) epoch: u16,
}

impl Default for Ids {
    fn default() -> Self {
        Ids {
            services: Numbers::new(1),
            backends: Numbers::new(1),
            next_hops: Numbers::new(NextHop::FIRST as usize),
            groups: Numbers::new(0),
            planes4: Numbers::new(0),
            planes6: Numbers::new(0),
            prefixes: Numbers::new(0),
            waits: false,
            rows: Rows::default(),
            deadlines: HashMap::new(),
            routing: Default::default(),
            epoch: 0,
        }
    }
}

impl Ids {
    /// The memory of an agent that went, rebuilt from what it left in the kernel. A plan of the
    /// same wish then gives the same contents.
    pub fn recover(contents: &Contents) -> Self {
        let mut ids = Ids::default();
        ids.recover_family(contents, &contents.v4);
        ids.recover_family(contents, &contents.v6);
        for (&index, hop) in contents.next_hops.range(NextHop::FIRST..) {
            ids.next_hops.recover((hop.ifindex, hop.dst), index);
        }
        for (&index, &group) in &contents.groups {
            ids.groups.recover(group, index);
        }
        for (&index, pair) in &contents.prefixes {
            ids.prefixes.recover((pair.inside, pair.outside, pair.len), index);
        }
        ids.routing = Routing::of(contents);
        ids.epoch = contents.settings.epoch;
        ids
    }

    fn recover_family<A: Addr>(&mut self, contents: &Contents, family: &Family<A>) {
        let planes = self.planes(A::IS_V6);
        outside(family).for_each(|(addr, plane)| planes.recover(addr.to_ip(), plane));
        for (&ServiceKey { proto, .. }, service) in &family.services {
            if let Some(&name) = contents.names.get(&service.id) {
                self.services.recover((name, proto), service.id);
            }
            for (first, _) in service.rows() {
                if let Some(row) = contents.rows.get(&first) {
                    self.rows.recover((service.id, A::IS_V6, first != service.first), first, row.clone());
                }
            }
        }
        for (&id, b) in &family.backends {
            self.backends.recover((b.service, b.addr.to_ip(), b.port.get()), id);
            if b.deadline != 0 {
                self.deadlines.insert(id, b.deadline);
            }
        }
    }

    pub(super) fn planes(&mut self, v6: bool) -> &mut Numbers<IpAddr> {
        if v6 { &mut self.planes6 } else { &mut self.planes4 }
    }

    /// Whether the last plan left something out whose number is free once its operations are applied.
    pub fn waits(&self) -> bool {
        self.waits
    }

    /// The operations that lead to the last plan have all been applied: what it gave up is free.
    pub fn applied(&mut self) {
        self.services.release(|_| false);
        self.backends.release(|_| false);
        self.next_hops.release(|_| false);
        self.groups.release(|_| false);
        self.planes4.release(|_| false);
        self.planes6.release(|_| false);
        self.prefixes.release(|_| false);
        self.rows.release(|_, _| false);
    }

    /// The operations stopped half way, and `real` is what the kernel holds now: what the last
    /// plan gave up is free where it isn't in there.
    pub fn settle(&mut self, real: &Contents) {
        let rows: BTreeMap<u32, u32> = real
            .v4
            .services
            .values()
            .chain(real.v6.services.values())
            .flat_map(Service::rows)
            .map(|(first, count)| (first, first.saturating_add(count)))
            .collect();
        self.services.release(|id| {
            real.names.contains_key(&id)
                || real.v4.services.values().any(|s| s.id == id)
                || real.v6.services.values().any(|s| s.id == id)
        });
        self.backends.release(|id| real.v4.backends.contains_key(&id) || real.v6.backends.contains_key(&id));
        self.next_hops.release(|index| real.next_hops.contains_key(&index));
        self.groups.release(|index| real.groups.contains_key(&index));
        self.planes4.release(|plane| outside(&real.v4).any(|(_, taken)| taken == plane));
        self.planes6.release(|plane| outside(&real.v6).any(|(_, taken)| taken == plane));
        self.prefixes.release(|index| real.prefixes.contains_key(&index));
        self.rows.release(|first, len| rows.range(..first + len).next_back().is_some_and(|(_, &end)| end > first));
    }

    pub(super) fn begin(&mut self) {
        self.waits = false;
        self.services.begin();
        self.backends.begin();
        self.next_hops.begin();
        self.groups.begin();
        self.planes4.begin();
        self.planes6.begin();
        self.prefixes.begin();
        self.rows.begin();
    }

    pub(super) fn commit(&mut self, contents: &Contents) {
        self.services.commit();
        self.backends.commit();
        self.next_hops.commit();
        self.groups.commit();
        self.planes4.commit();
        self.planes6.commit();
        self.prefixes.commit();
        self.rows.commit();
        self.deadlines = deadlines(&contents.v4).chain(deadlines(&contents.v6)).collect();
        self.note_routes(contents);
    }

    /// Begins a draft of some services, which have `before` now.
    pub(super) fn begin_part(&mut self, before: &Contents) {
        self.services.begin_without(before.names.keys().copied());
        self.backends.begin_without(before.v4.backends.keys().chain(before.v6.backends.keys()).copied());
        self.next_hops.begin_without(std::iter::empty());
        self.groups.begin_without(std::iter::empty());
        self.planes4.begin_without(std::iter::empty());
        self.planes6.begin_without(std::iter::empty());
        self.prefixes.begin_without(std::iter::empty());
        self.rows.begin();
    }

    pub(super) fn commit_part(&mut self, before: &Contents, after: &Contents) {
        self.services.commit_part();
        self.backends.commit_part();
        self.next_hops.commit_part();
        self.groups.commit_part();
        self.planes4.commit_part();
        self.planes6.commit_part();
        self.prefixes.commit_part();
        self.rows.commit_part(before.names.keys().copied());
        for (id, _) in deadlines(&before.v4).chain(deadlines(&before.v6)) {
            self.deadlines.remove(&id);
        }
        self.deadlines.extend(deadlines(&after.v4).chain(deadlines(&after.v6)));
    }

    /// The epoch that the drafted contents need: another one if anything about routes changed, or
    /// was being changed when the agent before went (then it is odd).
    pub(super) fn epoch_of(&self, to: &Contents) -> u16 {
        if self.routing.is_of(to) && self.epoch.is_multiple_of(2) { self.epoch } else { self.next_epoch() }
    }

    fn next_epoch(&self) -> u16 {
        (self.epoch | 1).wrapping_add(1)
    }

    /// Ends the draft of a part of which routes alone are, which may lead elsewhere than before.
    pub(super) fn commit_routes(&mut self, contents: &mut Contents) {
        let nothing = Contents::empty(contents.settings);
        self.commit_part(&nothing, &nothing);
        contents.settings.epoch = self.epoch_of(contents);
        self.note_routes(contents);
    }

    fn note_routes(&mut self, contents: &Contents) {
        if self.epoch != contents.settings.epoch {
            self.routing = Routing::of(contents);
            self.epoch = contents.settings.epoch;
        }
    }

    pub(super) fn rollback(&mut self) {
        self.services.rollback();
        self.backends.rollback();
        self.next_hops.rollback();
        self.groups.rollback();
        self.planes4.rollback();
        self.planes6.rollback();
        self.prefixes.rollback();
        self.rows.rollback();
    }
}

/// The addresses outside, and their planes.
pub(super) fn outside<A: Addr>(family: &Family<A>) -> impl Iterator<Item = (A, u32)> {
    let whole = family.owned.iter().filter(|(prefix, owned)| prefix.len == A::BITS && owned.is(Owned::OUTSIDE));
    whole.map(|(prefix, owned)| (prefix.addr, owned.index.into()))
}

fn deadlines<A: Addr>(family: &Family<A>) -> impl Iterator<Item = (u32, u32)> {
    family.backends.iter().filter(|(_, b)| b.deadline != 0).map(|(&id, b)| (id, b.deadline))
}
