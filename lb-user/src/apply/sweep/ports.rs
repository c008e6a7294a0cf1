//! The sweep of ports outside, and of what hosts inside are counted to have.
//!
//! Invariant: a mapping goes only when no connection can have kept it; a port that nobody has, a count
//! that is wrong, and a place for one that is neither free nor anybody's ([`super::places`]), are what an agent leaves that is killed in the middle, and are mended only after
//! they were found the same by two passes: what a packet is about to do is done long before.
//! Deliberately not here: what is remembered beside a mapping, which is the flow table's.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use lb_common::hash;
use lb_common::port_table::{self, HOLDERS, Holder, Meta, PLANE, PortTable, proto};
use lb_common::table::Settings;
use lb_common::wire::Addr;

use super::{STEP, STEPS, Swept, places};
use crate::apply::ports::{Taken, at, bits, give_back};

/// A host's count, and the mappings of it that a pass has met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Count<A> {
    host: A,
    ports: u32,
    seen: u32,
}

/// Where the walk through a family's port table stands, and what this pass and the one before have seen.
#[derive(Debug)]
pub struct Pass<A> {
    next: u32,
    /// Mappings of each host.
    hosts: HashMap<A, u32>,
    /// Ports that are taken, but that nobody has.
    bare: HashMap<u32, Meta>,
    bare_before: HashMap<u32, Meta>,
    /// By the count's place.
    counts_before: HashMap<u32, Count<A>>,
    /// Places of counts that were neither free nor anybody's.
    half_before: HashSet<u32>,
}

impl<A> Default for Pass<A> {
    fn default() -> Self {
        Pass {
            next: 0,
            hosts: HashMap::new(),
            bare: HashMap::new(),
            bare_before: HashMap::new(),
            counts_before: HashMap::new(),
            half_before: HashSet::new(),
        }
    }
}

/// Sweeps the next part of a port table of so many planes; `ended` is told what was given back.
pub fn step<A: Addr, T: PortTable<A>>(
    table: &T,
    planes: u32,
    pass: &mut Pass<A>,
    (settings, now): (&Settings, u32),
    mut ended: impl FnMut(&Taken<A>),
) -> Swept {
    let entries = planes * PLANE;
    let from = pass.next;
    let to = (from + entries.div_ceil(STEPS as u32).max(STEP as u32).next_multiple_of(64)).min(entries);
    let mut swept = Swept::default();
    for index in bits(table, from, to) {
        let Some(owner) = table.owner(index) else { continue };
        let meta = owner.meta();
        if !meta.held() {
            swept.leaked += usize::from(leaked(table, pass, index, meta));
        } else if let Some(taken) = at(table, index) {
            if owner.is_over(settings, proto::<A>(taken.class), now) && give_back(table, &taken) {
                swept.ports += 1;
                ended(&taken);
            } else {
                *pass.hosts.entry(taken.inside).or_default() += 1;
            }
        }
    }
    pass.next = to;
    if to == entries {
        end(table, entries, pass, &mut swept);
    }
    swept
}

/// Frees a port without an owner, if it was the same in the pass before.
fn leaked<A: Addr, T: PortTable<A>>(table: &T, pass: &mut Pass<A>, index: u32, meta: Meta) -> bool {
    if pass.bare_before.get(&index) == Some(&meta) && port_table::release_leaked(table, index, meta) {
        return true;
    }
    pass.bare.insert(index, meta);
    false
}

/// At the end of a pass: sets counts right, and forgets hosts without a port.
fn end<A: Addr, T: PortTable<A>>(table: &T, entries: u32, pass: &mut Pass<A>, swept: &mut Swept) {
    let mut counts = counts(table, &pass.hosts);
    let same = |(index, count): &(&u32, &Count<A>)| pass.counts_before.get(*index) == Some(*count);
    let stay: Vec<u32> = counts.iter().filter(same).map(|(index, _)| *index).collect();
    let wrong: Vec<u32> = stay.iter().copied().filter(|index| counts[index].ports != counts[index].seen).collect();
    for index in stay {
        let free = counts[&index].ports == 0 && counts[&index].seen == 0;
        if free && table.holder(index).is_some_and(Holder::forget) {
            counts.remove(&index);
            swept.hosts += 1;
        }
    }
    // A pass takes long, and meets what comes and goes meanwhile or not: now all at once.
    if !wrong.is_empty() {
        let now = self::counts(table, &mappings(table, entries));
        for index in wrong {
            let (Some(count), Some(holder)) = (counts.remove(&index), table.holder(index)) else { continue };
            if now.get(&index) == Some(&count) {
                holder.correct(count.seen.wrapping_sub(count.ports));
                swept.counts += 1;
            }
        }
    }
    let (freed, half_before) = places::free(table, &pass.half_before);
    swept.places += freed;
    let bare_before = std::mem::take(&mut pass.bare);
    *pass = Pass { counts_before: counts, bare_before, half_before, ..Pass::default() };
}

/// How many mappings each host has.
fn mappings<A: Addr, T: PortTable<A>>(table: &T, entries: u32) -> HashMap<A, u32> {
    let mut hosts = HashMap::new();
    for taken in bits(table, 0, entries).filter_map(|index| at(table, index)) {
        *hosts.entry(taken.inside).or_default() += 1;
    }
    hosts
}

/// All counts, by their places.
fn counts<A: Addr, T: PortTable<A>>(table: &T, hosts: &HashMap<A, u32>) -> HashMap<u32, Count<A>> {
    let mut counts = HashMap::new();
    let mut places: HashMap<A, u32> = HashMap::new();
    for index in 0..HOLDERS {
        let Some((host, ports, _)) = table.holder(index).and_then(Holder::read) else { continue };
        counts.insert(index, Count { host, ports, seen: 0 });
        // Of two places that a host has, packets count at the first from where they begin to look.
        let far = |index: u32| index.wrapping_sub(hash::client(host, 0)) % HOLDERS;
        match places.entry(host) {
            Entry::Vacant(place) => _ = place.insert(index),
            Entry::Occupied(mut place) if far(index) < far(*place.get()) => _ = place.insert(index),
            Entry::Occupied(_) => {}
        }
    }
    for (host, index) in places {
        if let Some(count) = counts.get_mut(&index) {
            count.seen = hosts.get(&host).copied().unwrap_or_default();
        }
    }
    counts
}
