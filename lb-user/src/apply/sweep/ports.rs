//! The sweep of ports outside, and of what hosts inside are counted to have.
//!
//! Invariant: a mapping goes only when no connection can have kept it; a port that nobody has, and a
//! count that is wrong, are what an agent leaves that is killed in the middle, and are mended only after
//! they were found the same by two passes: what a packet is about to do is done long before.
//! Deliberately not here: what is remembered beside a mapping, which is the flow table's.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use lb_common::hash;
use lb_common::port_table::{self, HOLDERS, Holder, Meta, PLANE, PortTable, proto};
use lb_common::table::Settings;
use lb_common::wire::Addr;

use super::{STEP, STEPS, Swept};
use crate::apply::ports::{Taken, at, bits, give_back};

/// What was seen of a host's mappings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    mappings: u32,
    /// Which ones: other mappings have another sum.
    sum: u64,
}

/// A host's count, and what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Count<A> {
    host: A,
    ports: u32,
    seen: Seen,
}

/// Where the walk through a family's port table stands, and what this pass and the one before have seen.
#[derive(Debug)]
pub struct Pass<A> {
    next: u32,
    hosts: HashMap<A, Seen>,
    /// Ports that are taken, but that nobody has.
    bare: HashMap<u32, Meta>,
    bare_before: HashMap<u32, Meta>,
    /// By the count's place.
    counts_before: HashMap<u32, Count<A>>,
}

impl<A> Default for Pass<A> {
    fn default() -> Self {
        Pass {
            next: 0,
            hosts: HashMap::new(),
            bare: HashMap::new(),
            bare_before: HashMap::new(),
            counts_before: HashMap::new(),
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
                let seen = pass.hosts.entry(taken.inside).or_default();
                seen.mappings += 1;
                let which = u64::from(index) << 16 | u64::from(taken.inside_port);
                seen.sum = seen.sum.wrapping_add((which + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            }
        }
    }
    pass.next = to;
    if to == entries {
        end(table, pass, &mut swept);
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
fn end<A: Addr, T: PortTable<A>>(table: &T, pass: &mut Pass<A>, swept: &mut Swept) {
    let counts = counts(table, &pass.hosts);
    let mut kept = HashMap::with_capacity(counts.len());
    for (index, count) in counts {
        let Some(holder) = table.holder(index) else { continue };
        // The same ports and the same count in both passes: then none came or went unseen.
        if pass.counts_before.get(&index) != Some(&count) {
            kept.insert(index, count);
        } else if count.ports != count.seen.mappings {
            holder.correct(count.seen.mappings.wrapping_sub(count.ports));
            swept.counts += 1;
        } else if count.ports == 0 && holder.forget() {
            swept.hosts += 1;
        } else {
            kept.insert(index, count);
        }
    }
    *pass = Pass { counts_before: kept, bare_before: std::mem::take(&mut pass.bare), ..Pass::default() };
}

/// All counts, by their places.
fn counts<A: Addr, T: PortTable<A>>(table: &T, hosts: &HashMap<A, Seen>) -> HashMap<u32, Count<A>> {
    let mut counts = HashMap::new();
    let mut places: HashMap<A, u32> = HashMap::new();
    for index in 0..HOLDERS {
        let Some((host, ports, _)) = table.holder(index).and_then(Holder::read) else { continue };
        counts.insert(index, Count { host, ports, seen: Seen::default() });
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
