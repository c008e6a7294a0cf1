//! The table of connections: one cache line an IPv4 entry, two an IPv6 entry, in a plain array.
//!
//! Every key has a bucket of 31 slots, beside which lies a cache line of hints about them, and a home
//! among them, where it mostly is. A second bucket serves when the first is full of answered
//! connections. All of the table's operations are here, over one accessor ([`FlowTable::entry`]): the
//! very same code runs in the kernel over a mapped array, in the agent over the same memory, and in
//! tests. Promises:
//!
//! 1. A lookup returns a whole value of its own key, or nothing: an entry is read under its [`Meta`],
//!    which changes before anything else of it does.
//! 2. A key is in the table once: a new entry becomes visible only after its buckets were searched
//!    for another of the same key, of two at once the one in the lower slot.
//! 3. An answered connection inside its timeout is never pushed out ([`tcp::protected`]): an entry is
//!    taken over by one compare-and-exchange on the very word that holds its state.
//! 4. Nothing waits, nothing locks: every loop has a constant bound. Who dies in the midst of a change
//!    (user space can) costs one slot until the next agent starts ([`recover`]).
//! 5. Without room, an insertion is refused ([`PutError::Full`]), and past timeouts are room.
//!
//! What is not here: what a connection means, when one ends ([`crate::path`]), the walk of the
//! sweeper (`lb-user/src/apply/sweep.rs`).

pub mod cell;
mod entry;
pub mod insert;
mod place;

use core::ops::Range;

use zerocopy::FromZeros;

pub use self::insert::insert;
use entry::{Bucket, lanes};
pub use entry::{Entry, Meta};
pub use place::{MULTIPLIERS, Place, Words};

use crate::table::{Flow, FlowKey};
use crate::tables::Configured;
use crate::tcp;
use crate::wire::Addr;

/// Entries that belong to a bucket in the array: its slots and, in the last, its hints.
pub const WAYS: u32 = 32;
/// Slots in a bucket.
const SLOTS: u32 = WAYS - 1;
/// No slot.
pub const NONE: u32 = u32::MAX;
/// How often a change is tried that another CPU's change of the same entry undid.
const TRIES: u32 = 4;

/// Where in the array a slot lies: in its bucket, but each bucket's slots in another order. Were the hints of all
/// buckets as far from each other as buckets are, they would share a few of the cache's sets.
#[inline(always)]
pub const fn place_of(slot: u32) -> u32 {
    slot ^ (slot / WAYS % WAYS)
}

/// Where the array is.
pub trait FlowTable<A: Addr> {
    /// What lies in a place of the array.
    fn line(&self, place: u32) -> Option<&Entry<A>>;
    /// A bucket's slots are `index * WAYS` and the following; the last one is its hints.
    #[inline(always)]
    fn entry(&self, slot: u32) -> Option<&Entry<A>> {
        self.line(place_of(slot))
    }
    /// Buckets less one; they are a power of two.
    fn mask(&self) -> u32;
    /// One of the [`MULTIPLIERS`] random numbers of this table.
    fn multiplier(&self, index: usize) -> u64;

    // The steps below are functions of their own in the kernel: the verifier walks each once.

    /// [`seek`].
    fn slot_of(&self, key: &FlowKey<A>) -> u32
    where
        Self: Sized,
    {
        seek(self, key)
    }

    /// [`find_into`].
    fn look_up(&self, key: &FlowKey<A>, hit: &mut Hit<A>) -> bool
    where
        Self: Sized,
    {
        find_into(self, key, hit)
    }

    /// [`insert::take`].
    fn take(&self, hit: &mut Hit<A>, keep: u32) -> bool
    where
        Self: Sized + Configured,
    {
        insert::take(self, hit, keep)
    }

    /// [`insert::choose`].
    fn choose(&self, bucket: u32, hints: u32, now: u32, barred: u64) -> u32
    where
        Self: Sized + Configured,
    {
        insert::choose(self, bucket, hints, now, barred)
    }

    /// [`insert::settle`].
    fn settle(&self, key: &FlowKey<A>, hit: &mut Hit<A>) -> bool
    where
        Self: Sized,
    {
        insert::settle(self, key, hit)
    }
}

/// Why an entry was not inserted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PutError {
    /// The key is there.
    Exists,
    /// No room: both buckets are full of answered connections.
    Full,
}

/// An entry as it was found.
#[derive(Clone, Copy, Debug, FromZeros)]
#[repr(C)]
pub struct Hit<A: Addr> {
    pub slot: u32,
    pub meta: Meta,
    pub flow: Flow<A>,
    /// Where it may be put: from [`insert::aim`] to [`insert::settle`].
    place: Place,
}

/// A bucket's hints.
#[inline(always)]
fn bucket<A: Addr, T: FlowTable<A>>(table: &T, index: u32) -> Option<&Bucket> {
    table.entry(index.wrapping_mul(WAYS).wrapping_add(SLOTS)).map(Entry::hints)
}

/// Finds a key's entry: mostly in its home slot, by one look, if it is `likely` there. For the path of every packet.
#[inline(always)]
pub fn find<A: Addr, T: FlowTable<A>>(table: &T, key: &FlowKey<A>, likely: bool) -> Option<Hit<A>> {
    let words = Words::of(key);
    if likely && let Some(hit) = probe(table, Place::of(table, &words).home(), &words) {
        return Some(hit);
    }
    // A copy: what a function takes by reference lies in memory, also where it isn't called.
    let key = *key;
    probe(table, table.slot_of(&key), &words)
}

/// The slot of a key's entry, by the buckets' tags; [`NONE`] without one.
#[inline(always)]
pub fn seek<A: Addr, T: FlowTable<A>>(table: &T, key: &FlowKey<A>) -> u32 {
    let place = Place::of(table, &Words::of(key));
    let Some(first) = bucket(table, place.first) else {
        return NONE;
    };
    let slot = search(table, first, place.first, place.tag, key);
    if slot != NONE || !first.overflows() {
        return slot;
    }
    match bucket(table, place.second) {
        Some(second) => search(table, second, place.second, place.tag, key),
        None => NONE,
    }
}

/// The same, where that isn't done for every packet, and often finds nothing: what the tags say then is all.
#[inline(always)]
pub fn find_into<A: Addr, T: FlowTable<A>>(table: &T, key: &FlowKey<A>, hit: &mut Hit<A>) -> bool {
    let slot = table.slot_of(key);
    let Some(entry) = table.entry(slot) else {
        return false;
    };
    hit.slot = slot;
    hit.meta = entry.meta();
    hit.meta.phase() == Meta::LIVE && entry.holds(&Words::of(key)) && entry.read_into(hit.meta, &mut hit.flow)
}

/// The entry in a slot, if it is the key's.
#[inline(always)]
fn probe<A: Addr, T: FlowTable<A>>(table: &T, slot: u32, words: &Words<A>) -> Option<Hit<A>> {
    let entry = table.entry(slot)?;
    let meta = entry.meta();
    if meta.phase() != Meta::LIVE || !entry.holds(words) {
        return None;
    }
    let flow = entry.read(meta)?;
    Some(Hit { slot, meta, flow, place: Place::default() })
}

/// Looks for a key in the slots of a bucket that have its tag.
#[inline(always)]
fn search<A: Addr, T: FlowTable<A>>(table: &T, hints: &Bucket, index: u32, tag: u8, key: &FlowKey<A>) -> u32 {
    let mut found = hints.tagged(tag);
    for _ in 0..SLOTS {
        if found == 0 {
            break;
        }
        let slot = index * WAYS + lanes::first(found);
        let there = |entry: &Entry<A>| entry.meta().phase() == Meta::LIVE && entry.holds(&Words::of(key));
        if table.entry(slot).is_some_and(there) {
            return slot;
        }
        found &= found - 1;
    }
    NONE
}

/// What a slot's age lane says: never 0 for what may be pushed out.
#[inline(always)]
fn age_lane(state: u8, now: u32) -> u8 {
    if tcp::protected(state) { 0 } else { coarse(now) }
}

/// Ticks of the coarse clock's step: what was used in this or the last one is young.
const COARSE: u32 = 64;

/// A clock of seven bits; the eighth is set, so that it is neither 0 nor 1 ([`Bucket`]'s lanes).
#[inline(always)]
fn coarse(now: u32) -> u8 {
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

/// Gives away a slot that the caller owns.
#[inline(always)]
fn free<A: Addr, T: FlowTable<A>>(table: &T, slot: u32, entry: &Entry<A>, owned: Meta) {
    if let Some(bucket) = bucket(table, slot / WAYS) {
        bucket.set_tag(slot % WAYS, 0);
        bucket.set_age(slot % WAYS, 0);
    }
    // Nobody else changes what is owned.
    let _ = entry.become_if(owned, owned.with_phase(Meta::FREE));
}

/// What lies in a slot.
fn at<A: Addr, T: FlowTable<A>>(table: &T, slot: u32) -> Option<(FlowKey<A>, Hit<A>)> {
    let entry = table.entry(slot)?;
    let meta = entry.meta();
    if meta.phase() != Meta::LIVE {
        return None;
    }
    let key = entry.key(meta)?;
    let flow = entry.read(meta)?;
    Some((key, Hit { slot, meta, flow, place: Place::default() }))
}

/// Hands every entry of some buckets to `each`. Entries that come and go meanwhile may be met or not.
pub fn walk<A: Addr, T: FlowTable<A>>(table: &T, buckets: Range<u32>, mut each: impl FnMut(FlowKey<A>, Hit<A>)) {
    for index in buckets {
        let Some(bucket) = bucket(table, index) else {
            return;
        };
        let taken = bucket.taken();
        for lane in (0..SLOTS).filter(|&lane| taken & lanes::bit(lane) != 0) {
            if let Some((key, hit)) = at(table, index * WAYS + lane) {
                each(key, hit);
            }
        }
    }
}

/// Frees a slot that was owned when it was looked at before, `meta` being what was seen then: its
/// owner, an agent, has died. Packets own a slot for less than a microsecond.
pub fn recover<A: Addr, T: FlowTable<A>>(table: &T, slot: u32, meta: Meta) -> bool {
    let Some(entry) = table.entry(slot) else {
        return false;
    };
    let taken = meta.taken();
    if meta.phase() != Meta::OWNED || !entry.become_if(meta, taken) {
        return false;
    }
    free(table, slot, entry, taken);
    true
}

#[cfg(test)]
mod interleavings;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
