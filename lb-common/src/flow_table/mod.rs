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
//! 6. All of this holds also while a larger table takes a smaller one's place ([`grow`]).
//!
//! What is not here: what a connection means, when one ends ([`crate::path`]), the walk of the
//! sweeper (`lb-user/src/apply/sweep.rs`).

pub mod cell;
pub mod change;
mod entry;
pub mod grow;
pub mod insert;
mod place;

use core::ops::Range;

use zerocopy::FromZeros;

pub use self::insert::insert;
use cell::acquire;
use change::age_lane;
use entry::{Bucket, lanes};
pub use entry::{Entry, Meta};
pub use place::{MULTIPLIERS, Place, Words};

use crate::table::{Flow, FlowKey};
use crate::tables::Configured;
use crate::wire::Addr;

/// Entries that belong to a bucket in the array: its slots and, in the last, its hints.
pub const WAYS: u32 = 32;
/// Slots in a bucket.
const SLOTS: u32 = WAYS - 1;
/// No slot.
pub const NONE: u32 = u32::MAX;
/// Marks the slots of the table that this one grows from.
pub const ELDER: u32 = 1 << 30;
/// How often a change is tried that another CPU's change of the same entry undid.
const TRIES: u32 = 4;

/// Where in the array a slot lies: in its bucket, but each bucket's slots in another order. Were the hints of all
/// buckets as far from each other as buckets are, they would share a few of the cache's sets.
#[inline(always)]
pub const fn place_of(slot: u32) -> u32 {
    slot ^ (slot / WAYS % WAYS)
}

/// Whether in this place of the array lie a bucket's hints. They are the same in every version: its first 64 bytes.
pub const fn is_hints(place: u32) -> bool {
    // Slots and places change into each other by the same rule.
    place_of(place) % WAYS == SLOTS
}

/// Bytes of a bucket's hints.
pub const HINTS: usize = size_of::<Bucket>();

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
    /// The same of the elder, a table whose entries move into this one ([`grow`]); [`NONE`]: there is none.
    #[inline(always)]
    fn elder(&self) -> u32 {
        NONE
    }
    /// Whether new entries still go into the elder: not all programs that look them up know this table yet.
    #[inline(always)]
    fn fills_elder(&self) -> bool {
        false
    }
    /// One of the [`MULTIPLIERS`] random numbers of this table.
    fn multiplier(&self, index: usize) -> u64;

    // The steps below are functions of their own in the kernel: the verifier walks each once.

    /// [`seek`] here.
    fn slot_of(&self, key: &FlowKey<A>) -> u32
    where
        Self: Sized,
    {
        seek(self, key, false)
    }

    /// [`seek`] in the elder.
    fn slot_in_elder(&self, key: &FlowKey<A>) -> u32
    where
        Self: Sized,
    {
        seek(self, key, true)
    }

    /// [`find_in`] this table.
    fn look_up(&self, key: &FlowKey<A>, hit: &mut Hit<A>) -> bool
    where
        Self: Sized,
    {
        find_in(self, key, hit, false)
    }

    /// [`find_in`] the elder.
    fn look_up_elder(&self, key: &FlowKey<A>, hit: &mut Hit<A>) -> bool
    where
        Self: Sized,
    {
        find_in(self, key, hit, true)
    }

    /// [`change::touch`].
    fn touch(&self, hit: &Hit<A>, now: u32)
    where
        Self: Sized,
    {
        change::touch(self, hit, now);
    }

    /// [`change::set_state`].
    fn set_state(&self, hit: &mut Hit<A>, state: u8, now: u32) -> bool
    where
        Self: Sized,
    {
        change::set_state(self, hit, state, now)
    }

    /// [`change::set_next_hop`].
    fn set_next_hop(&self, hit: &mut Hit<A>, next_hop: u32, epoch: u16)
    where
        Self: Sized,
    {
        change::set_next_hop(self, hit, next_hop, epoch);
    }

    /// [`change::remove`].
    fn remove(&self, hit: &Hit<A>) -> bool
    where
        Self: Sized,
    {
        change::remove(self, hit)
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

    /// [`seek_rival`] here.
    fn rival(&self, key: &FlowKey<A>, own: u32) -> u32
    where
        Self: Sized,
    {
        seek_rival(self, key, false, own)
    }

    /// [`seek_rival`] in the elder.
    fn rival_in_elder(&self, key: &FlowKey<A>, own: u32) -> u32
    where
        Self: Sized,
    {
        seek_rival(self, key, true, own)
    }

    /// [`insert::write`].
    fn write(&self, key: &FlowKey<A>, hit: &mut Hit<A>) -> bool
    where
        Self: Sized,
    {
        insert::write(self, key, hit)
    }

    /// [`insert::wins`].
    fn wins(&self, key: &FlowKey<A>, other: u32, slot: u32) -> bool
    where
        Self: Sized,
    {
        insert::wins(self, key, other, slot)
    }

    /// [`insert::publish`].
    fn publish(&self, key: &FlowKey<A>, hit: &mut Hit<A>) -> bool
    where
        Self: Sized,
    {
        insert::publish(self, key, hit)
    }
}

/// Why an entry was not inserted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PutError {
    /// The key is there.
    Exists,
    /// No room: both buckets are full of answered connections, or the table is held ([`crate::table::Settings::held`]).
    Full,
}

/// An entry as it was found.
#[derive(Clone, Copy, Debug, FromZeros)]
#[repr(C)]
pub struct Hit<A: Addr> {
    pub slot: u32,
    pub meta: Meta,
    pub flow: Flow<A>,
    /// Where it may be put: from [`insert::aim`] to [`insert::write`].
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
    let hit = probe(table, known(table.slot_of(&key), 0), &words);
    if hit.is_some() || table.elder() == NONE {
        return hit;
    }
    let hit = probe(table, known(table.slot_in_elder(&key), ELDER), &words);
    if hit.is_some() { hit } else { probe(table, known(again(table, &key), 0), &words) }
}

/// A slot's number, of which the compiler knows by a constant in which table it is: less to keep on the stack, and
/// less to verify. [`NONE`] stays one that isn't there.
#[inline(always)]
const fn known(slot: u32, elder: u32) -> u32 {
    slot & (ELDER - 1) | elder
}

/// Looks once more here for what was not in the elder, since it may have left it between the two looks.
#[inline(always)]
fn again<A: Addr, T: FlowTable<A>>(table: &T, key: &FlowKey<A>) -> u32 {
    // What has left the elder is seen here.
    acquire();
    table.slot_of(key)
}

/// The slot of a key's entry, by the buckets' tags; [`NONE`] without one.
#[inline(always)]
pub fn slot<A: Addr, T: FlowTable<A>>(table: &T, key: &FlowKey<A>) -> u32 {
    let slot = table.slot_of(key);
    if slot != NONE || table.elder() == NONE {
        return slot;
    }
    let slot = table.slot_in_elder(key);
    if slot != NONE { slot } else { again(table, key) }
}

/// The slot of a key's entry in this table, or in its elder.
#[inline(always)]
pub fn seek<A: Addr, T: FlowTable<A>>(table: &T, key: &FlowKey<A>, elder: bool) -> u32 {
    seek_but(table, key, elder, NONE, Meta::LIVE)
}

/// The slot of an entry of a key that is live or, of another than `own`, is going to be.
#[inline(always)]
pub fn seek_rival<A: Addr, T: FlowTable<A>>(table: &T, key: &FlowKey<A>, elder: bool, own: u32) -> u32 {
    seek_but(table, key, elder, own, Meta::PENDING)
}

#[inline(always)]
fn seek_but<A: Addr, T: FlowTable<A>>(table: &T, key: &FlowKey<A>, elder: bool, own: u32, least: u32) -> u32 {
    let place = Place::in_either(table, &Words::of(key), elder);
    let Some(first) = bucket(table, place.first) else {
        return NONE;
    };
    let slot = search(table, first, place.first, place.tag, key, own, least);
    if slot != NONE || !first.overflows() {
        return slot;
    }
    match bucket(table, place.second) {
        Some(second) => search(table, second, place.second, place.tag, key, own, least),
        None => NONE,
    }
}

/// As [`find`], where that isn't done for every packet, and often finds nothing: what the tags say then is all.
#[inline(always)]
pub fn find_into<A: Addr, T: FlowTable<A>>(table: &T, key: &FlowKey<A>, hit: &mut Hit<A>) -> bool {
    if table.look_up(key, hit) {
        return true;
    }
    if table.elder() == NONE {
        return false;
    }
    if table.look_up_elder(key, hit) {
        return true;
    }
    acquire();
    table.look_up(key, hit)
}

/// The same here alone, or in the elder alone.
#[inline(always)]
pub fn find_in<A: Addr, T: FlowTable<A>>(table: &T, key: &FlowKey<A>, hit: &mut Hit<A>, elder: bool) -> bool {
    let slot = seek(table, key, elder);
    hit.slot = if elder { known(slot, ELDER) } else { known(slot, 0) };
    if slot == NONE {
        return false;
    }
    let Some(entry) = table.entry(hit.slot) else {
        return false;
    };
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

/// Looks for a key in the slots of a bucket that have its tag, but in `own`, and in entries of this phase at `least`.
#[inline(always)]
fn search<A: Addr, T: FlowTable<A>>(
    table: &T,
    hints: &Bucket,
    index: u32,
    tag: u8,
    key: &FlowKey<A>,
    own: u32,
    least: u32,
) -> u32 {
    let mut found = hints.tagged(tag);
    for _ in 0..SLOTS {
        if found == 0 {
            break;
        }
        let slot = index * WAYS + lanes::first(found);
        let there = |entry: &Entry<A>| entry.meta().phase() >= least && entry.holds(&Words::of(key));
        if slot != own && table.entry(slot).is_some_and(there) {
            return slot;
        }
        found &= found - 1;
    }
    NONE
}

/// [`change::touch`].
#[inline(always)]
pub fn touch<A: Addr, T: FlowTable<A>>(table: &T, hit: &Hit<A>, now: u32) {
    table.touch(hit, now);
}

/// [`change::set_state`].
#[inline(always)]
pub fn set_state<A: Addr, T: FlowTable<A>>(table: &T, hit: &mut Hit<A>, state: u8, now: u32) -> bool {
    table.set_state(hit, state, now)
}

/// [`change::set_next_hop`].
#[inline(always)]
pub fn set_next_hop<A: Addr, T: FlowTable<A>>(table: &T, hit: &mut Hit<A>, next_hop: u32, epoch: u16) {
    table.set_next_hop(hit, next_hop, epoch);
}

/// [`change::remove`].
#[inline(always)]
pub fn remove<A: Addr, T: FlowTable<A>>(table: &T, hit: &Hit<A>) -> bool {
    table.remove(hit)
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
