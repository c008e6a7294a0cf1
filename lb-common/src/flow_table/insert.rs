//! Insertion: a slot is chosen, taken, written, and made visible once it is the only one of its key.

use super::cell::acquire;
use super::{
    ELDER, Entry, FlowTable, Hit, Meta, NONE, Place, PutError, SLOTS, TRIES, WAYS, Words, age_lane, bucket, free,
    known, lanes,
};
use crate::table::FlowKey;
use crate::tables::Configured;
use crate::tcp;
use crate::wire::Addr;

/// Puts `hit.flow` into the table for `key`, `hit.flow.last` being now, and says where it is. The
/// slot `keep`, of the same connection, is not pushed out for it.
///
/// Where [`PutError::Exists`] is likely, look first: the search here comes after a slot was taken.
#[inline(always)]
pub fn insert<A: Addr, T: FlowTable<A> + Configured>(
    table: &T,
    key: &FlowKey<A>,
    hit: &mut Hit<A>,
    keep: u32,
) -> Result<(), PutError> {
    aim(table, key, hit);
    put(table, key, hit, keep)
}

/// Finds out where a key may lie, for [`put`], and reads the memory that is mostly written then. What several keys
/// need is so fetched at once; without it each insertion waits, at its first compare-and-exchange, for its own.
#[inline(never)]
pub fn aim<A: Addr, T: FlowTable<A>>(table: &T, key: &FlowKey<A>, hit: &mut Hit<A>) {
    let elder = table.elder() != NONE && table.fills_elder();
    hit.place = Place::in_either(table, &Words::of(key), elder);
    if let Some(entry) = table.entry(hit.place.home()) {
        entry.fetch();
    }
}

/// [`insert`] of what was [`aim`]ed.
#[inline(always)]
pub fn put<A: Addr, T: FlowTable<A> + Configured>(
    table: &T,
    key: &FlowKey<A>,
    hit: &mut Hit<A>,
    keep: u32,
) -> Result<(), PutError> {
    if !table.take(hit, keep) {
        return Err(PutError::Full);
    }
    if table.write(key, hit) && table.publish(key, hit) { Ok(()) } else { Err(PutError::Exists) }
}

/// Takes a slot for a key that was [`aim`]ed; `hit` then says which, and as what it is owned. False: there is none.
#[inline(always)]
pub fn take<A: Addr, T: FlowTable<A> + Configured>(table: &T, hit: &mut Hit<A>, keep: u32) -> bool {
    let elder = table.elder() != NONE && hit.place.first & (ELDER / WAYS) != 0;
    if elder { take_in(table, hit, keep, ELDER) } else { take_in(table, hit, keep, 0) }
}

#[inline(always)]
fn take_in<A: Addr, T: FlowTable<A> + Configured>(table: &T, hit: &mut Hit<A>, keep: u32, elder: u32) -> bool {
    let (place, now) = (&hit.place, hit.flow.last);
    if table.settings().held(now) {
        return false;
    }
    // The first bucket if that costs nobody much, the second, the first whatever it costs.
    let (mut stage, mut index) = (0, place.first);
    let mut barred = bar(index, keep);
    for _ in 0..3 + TRIES {
        let hints = place.hints() | if stage == 0 { PICKY } else { 0 };
        let choice = table.choose(index, hints, now, barred);
        let (slot, occupied) = (choice & !OCCUPIED, choice & OCCUPIED != 0);
        let Some(entry) = table.entry(known(slot, elder)) else {
            if stage == 2 {
                return false;
            }
            stage += 1;
            index = if stage == 1 { place.second } else { place.first };
            barred = bar(index, keep);
            continue;
        };
        let meta = entry.meta();
        let fits = match meta.phase() {
            Meta::FREE => true,
            Meta::LIVE => occupied && (!tcp::protected(meta.state()) || is_over(table, entry, meta, now)),
            _ => false,
        };
        let owned = meta.taken().with_state(hit.flow.state);
        if fits && entry.become_if(meta, owned) {
            hit.slot = known(slot, elder);
            hit.meta = owned;
            return true;
        }
        // It was not what its hints said.
        barred |= lanes::bit(slot % WAYS);
    }
    false
}

/// The lanes of a bucket that may not be taken, whatever their hints say.
#[inline(always)]
fn bar(index: u32, keep: u32) -> u64 {
    if keep / WAYS == index { lanes::bit(keep % WAYS) } else { 0 }
}

/// Said beside the hints: push nobody out of a bucket but where many may be, as in a flood.
const PICKY: u32 = 1 << 16;
const MANY: u32 = 8;
/// Said beside a slot: it is of a connection that may be pushed out, or is past its timeout.
const OCCUPIED: u32 = 1 << 31;

/// A bucket's home slot if it is free, another free one, one past its timeout, or that of an old
/// unanswered connection, the latter two with [`OCCUPIED`]; [`NONE`] where all are of answered ones.
/// `hints` are [`Place::hints`], with or without [`PICKY`].
#[inline(always)]
pub fn choose<A: Addr, T: FlowTable<A> + Configured>(table: &T, index: u32, hints: u32, now: u32, barred: u64) -> u32 {
    if table.elder() != NONE && index & (ELDER / WAYS) != 0 {
        return choose_in(table, known(index * WAYS, ELDER) / WAYS, hints, now, barred);
    }
    choose_in(table, known(index * WAYS, 0) / WAYS, hints, now, barred)
}

#[inline(always)]
fn choose_in<A: Addr, T: FlowTable<A> + Configured>(table: &T, index: u32, hints: u32, now: u32, barred: u64) -> u32 {
    let Some(hints_of) = bucket(table, index) else {
        return NONE;
    };
    let (home, tag) = (hints >> 8 & 0xff, hints & 0xff);
    let free = hints_of.tagged(0) & !barred;
    if free != 0 {
        let lane = if free & lanes::bit(home) != 0 { home } else { lanes::first(free) };
        return index * WAYS + lane;
    }
    let open = hints_of.open() & !barred;
    if hints & PICKY != 0 && open.count_ones() < MANY {
        return NONE;
    }
    // What is past its timeout goes before what is young, but to look for it takes a cache line a
    // slot: all when there is no other choice, else one for every eighth key.
    let looks = if open == 0 { SLOTS } else { (tag & 7 == 0) as u32 };
    let over = expired(table, index, tag, now, looks);
    if over != NONE || open == 0 {
        return over | OCCUPIED;
    }
    let old = open & !hints_of.young(now);
    let set = if old == 0 { open } else { old };
    // From a lane on that changes with the time.
    let rest = set & u64::MAX << (now.wrapping_add(tag) & 63);
    (index * WAYS + lanes::first(if rest == 0 { set } else { rest })) | OCCUPIED
}

/// A slot of an entry that is past its timeout, of so many looked at, from one on that changes with
/// the time; else [`NONE`].
#[inline(always)]
fn expired<A: Addr, T: FlowTable<A> + Configured>(table: &T, index: u32, tag: u32, now: u32, looks: u32) -> u32 {
    for i in 0..SLOTS {
        if i >= looks {
            break;
        }
        let lane = (now.wrapping_add(tag).wrapping_add(i) & 0xff) % SLOTS;
        let Some(entry) = table.entry(index * WAYS + lane) else {
            break;
        };
        let meta = entry.meta();
        if meta.phase() == Meta::LIVE && is_over(table, entry, meta, now) {
            return index * WAYS + lane;
        }
    }
    NONE
}

/// Whether an entry is so long past its timeout that no packet can have kept its connection alive.
#[inline(always)]
fn is_over<A: Addr, T: Configured>(table: &T, entry: &Entry<A>, meta: Meta, now: u32) -> bool {
    table.settings().is_long_over(entry.proto(), meta.state(), entry.last.load(), now)
}

/// Writes the entry into the slot taken for it. False: there is no such slot.
#[inline(always)]
pub fn write<A: Addr, T: FlowTable<A>>(table: &T, key: &FlowKey<A>, hit: &mut Hit<A>) -> bool {
    let elder = table.elder() != NONE && hit.slot & ELDER != 0;
    if elder { write_in(table, key, hit, ELDER) } else { write_in(table, key, hit, 0) }
}

#[inline(always)]
fn write_in<A: Addr, T: FlowTable<A>>(table: &T, key: &FlowKey<A>, hit: &mut Hit<A>, elder: u32) -> bool {
    let slot = known(hit.slot, elder);
    let Some(entry) = table.entry(slot) else {
        return false;
    };
    entry.write(hit.meta, &Words::of(key), &hit.flow);
    if let Some(bucket) = bucket(table, slot / WAYS) {
        bucket.set_tag(slot % WAYS, hit.place.tag);
        bucket.set_age(slot % WAYS, age_lane(hit.flow.state, hit.flow.last));
    }
    let Some(first) = bucket(table, known(hit.place.first * WAYS, elder) / WAYS) else {
        return false;
    };
    if slot / WAYS != hit.place.first {
        first.overflow();
    }
    true
}

/// Makes a written entry visible, if there is no other of its key. False: there is.
///
/// First it is pending, which those who insert the same key see and lookups don't. Of two that see
/// each other pending the one in the lower slot ends the other; who sees a live one gives up; and
/// one of two always sees the other, since a compare-and-exchange is a full barrier.
#[inline(always)]
pub fn publish<A: Addr, T: FlowTable<A>>(table: &T, key: &FlowKey<A>, hit: &mut Hit<A>) -> bool {
    let Some(entry) = table.entry(hit.slot) else {
        return false;
    };
    let pending = hit.meta.with_phase(Meta::PENDING);
    // Nobody else changes what is owned.
    let _ = entry.become_if(hit.meta, pending);
    hit.meta = pending;
    for _ in 0..TRIES {
        let rival = rival(table, hit.slot, key);
        if rival == NONE {
            hit.meta = pending.with_phase(Meta::LIVE);
            // Another may have ended it.
            return entry.become_if(pending, hit.meta);
        }
        if table.wins(key, rival, hit.slot) {
            break;
        }
    }
    table.remove(hit);
    false
}

/// The slot of another entry of this key, pending or live, in this table or in the elder.
#[inline(always)]
fn rival<A: Addr, T: FlowTable<A>>(table: &T, slot: u32, key: &FlowKey<A>) -> u32 {
    let rival = table.rival(key, slot);
    if rival != NONE || table.elder() == NONE {
        return rival;
    }
    let rival = table.rival_in_elder(key, slot);
    if rival != NONE {
        return rival;
    }
    // As in [`super::slot`].
    acquire();
    table.rival(key, slot)
}

/// Whether the entry in `other` stays, and `slot`'s must go, both being of one key.
#[inline(always)]
pub fn wins<A: Addr, T: FlowTable<A>>(table: &T, key: &FlowKey<A>, other: u32, slot: u32) -> bool {
    let Some(entry) = table.entry(other) else {
        return false;
    };
    let before = entry.meta();
    let holds = before.phase() >= Meta::PENDING && entry.holds(&Words::of(key));
    acquire();
    let meta = entry.meta();
    if !holds || !meta.of_generation(before) || meta.phase() < Meta::PENDING {
        return false;
    }
    if meta.phase() == Meta::LIVE || other < slot {
        return true;
    }
    let taken = meta.taken();
    if entry.become_if(meta, taken) {
        free(table, other, entry, taken);
        return false;
    }
    // It was pending: by now it is live, or has given up.
    let meta = entry.meta();
    meta.of_generation(before) && meta.phase() == Meta::LIVE
}
