//! What becomes of an entry that was found: it is kept alive, moved to a state, given a next hop, removed.
//!
//! Invariant: who changes an entry says as what it was found ([`Hit`]), and an entry that isn't that any more stays
//! as it is. In the kernel these are functions of their own: a slot of either table ([`super::grow`]) doubles what the
//! verifier has to walk.

use super::{FlowTable, Hit, TRIES, WAYS, bucket, free};
use crate::tcp;
use crate::wire::Addr;

/// What a slot's age lane says: never 0 for what may be pushed out.
#[inline(always)]
pub(super) fn age_lane(state: u8, now: u32) -> u8 {
    if tcp::protected(state) { 0 } else { coarse(now) }
}

/// Ticks of the coarse clock's step: what was used in this or the last one is young.
pub(super) const COARSE: u32 = 64;

/// A clock of seven bits; the eighth is set, so that it is neither 0 nor 1 ([`super::entry::Bucket`]'s lanes).
#[inline(always)]
pub(super) fn coarse(now: u32) -> u8 {
    (now / COARSE) as u8 | 0x80
}

#[inline(always)]
fn set_age<A: Addr, T: FlowTable<A>>(table: &T, slot: u32, lane: u8) {
    if let Some(bucket) = bucket(table, slot / WAYS) {
        bucket.set_age(slot % WAYS, lane);
    }
}

/// Keeps an entry alive.
#[inline(always)]
pub fn touch<A: Addr, T: FlowTable<A>>(table: &T, hit: &Hit<A>, now: u32) {
    if let Some(entry) = table.entry(hit.slot)
        && entry.meta().same(hit.meta)
    {
        // A slot that went to another key just now looks younger than it is, by no more than a look.
        entry.last.store(now);
        if !tcp::protected(hit.flow.state) {
            set_age(table, hit.slot, coarse(now));
        }
    }
}

/// Moves an entry to a state. False: it is gone, or another CPU has moved it.
#[inline(always)]
pub fn set_state<A: Addr, T: FlowTable<A>>(table: &T, hit: &mut Hit<A>, state: u8, now: u32) -> bool {
    let Some(entry) = table.entry(hit.slot) else {
        return false;
    };
    let new = hit.meta.with_state(state);
    if !entry.become_if(hit.meta, new) {
        return false;
    }
    hit.meta = new;
    hit.flow.state = state;
    set_age(table, hit.slot, age_lane(state, now));
    true
}

/// Gives an entry another next hop.
#[inline(always)]
pub fn set_next_hop<A: Addr, T: FlowTable<A>>(table: &T, hit: &mut Hit<A>, next_hop: u32, epoch: u16) {
    if let Some(entry) = table.entry(hit.slot) {
        entry.reroute(hit.meta, &hit.flow, next_hop, epoch);
    }
    hit.flow.next_hop = next_hop;
    hit.flow.epoch = epoch;
}

/// Removes an entry. False: it was gone.
#[inline(always)]
pub fn remove<A: Addr, T: FlowTable<A>>(table: &T, hit: &Hit<A>) -> bool {
    let Some(entry) = table.entry(hit.slot) else {
        return false;
    };
    for _ in 0..TRIES {
        let meta = entry.meta();
        if !meta.same(hit.meta) {
            return false;
        }
        let taken = meta.taken();
        if entry.become_if(meta, taken) {
            free(table, hit.slot, entry, taken);
            return true;
        }
    }
    false
}
