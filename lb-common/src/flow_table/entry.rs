//! What lies in the table's array: entries and, in every 32nd place, the hints of a bucket.
//!
//! Invariant: an entry's [`Meta`] is the truth of it: whether it is there, its state, and which
//! generation of the slot it is. Who has moved a slot to [`Meta::OWNED`] is the only one to write its
//! key, its value and its lanes, until it gives the slot away again. Lanes are hints.

use super::SLOTS;
use super::cell::{Cell32, Cell64, Cells, Lanes, acquire, pick};
use super::change::{COARSE, coarse};
use super::place::Words;
use crate::table::{Flow, FlowKey, NextHop};
use crate::wire::{Addr, Be16};

/// Hints about a bucket's slots: a byte each, in one cache line.
#[repr(C, align(64))]
#[derive(Default)]
pub struct Bucket {
    /// A part of the hash; 0 = free. Of the last lane, which has no slot: not 0 = entries of this
    /// bucket lie in their second one.
    tags: [Lanes; 4],
    /// When a slot was used, by a coarse clock that wraps; 0 = it may not be pushed out.
    ages: [Lanes; 4],
}

/// The last lane.
const MARK: u32 = SLOTS;

impl Bucket {
    /// The lanes, as [`lanes::bit`] says, that hold `tag`. Above one that does another may be named that
    /// doesn't (but with 0).
    #[inline(always)]
    pub(super) fn tagged(&self, tag: u8) -> u64 {
        lanes::find(&self.tags, tag)
    }

    /// The lanes whose connections may be pushed out.
    #[inline(always)]
    pub(super) fn open(&self) -> u64 {
        !lanes::find(&self.ages, 0) & lanes::ALL
    }

    /// Of these those that were used now or just before.
    #[inline(always)]
    pub(super) fn young(&self, now: u32) -> u64 {
        lanes::find(&self.ages, coarse(now)) | lanes::find(&self.ages, coarse(now.wrapping_sub(COARSE)))
    }

    /// The lanes whose slots are taken.
    pub(super) fn taken(&self) -> u64 {
        !self.tagged(0) & lanes::ALL
    }

    #[inline(always)]
    pub(super) fn overflows(&self) -> bool {
        self.tags[3].load() >> 56 != 0
    }

    /// Says that an entry lies in its second bucket.
    #[inline(always)]
    pub(super) fn overflow(&self) {
        self.tags[3].mark(MARK % 8);
    }

    #[inline(always)]
    pub(super) fn set_tag(&self, lane: u32, tag: u8) {
        pick(&self.tags, lane / 8).set(lane % 8, tag);
    }

    #[inline(always)]
    pub(super) fn set_age(&self, lane: u32, age: u8) {
        pick(&self.ages, lane / 8).set(lane % 8, age);
    }
}

/// Sets of a bucket's lanes, as bits of a word.
pub(super) mod lanes {
    const ONES: u64 = 0x0101_0101_0101_0101;
    /// All that have a slot.
    pub const ALL: u64 = 0x0f0f_0f0f_0f0f_0f0f & !bit(super::MARK);

    /// The upper bit of every byte of a word that is `tag`.
    #[inline(always)]
    fn holding(word: u64, tag: u8) -> u64 {
        let differences = word ^ ONES.wrapping_mul(tag as u64);
        differences.wrapping_sub(ONES) & !differences & (ONES << 7)
    }

    /// The lanes that hold a value.
    #[inline(always)]
    pub fn find([a, b, c, d]: &[super::Lanes; 4], value: u8) -> u64 {
        let found = |word: &super::Lanes| holding(word.load(), value) >> 7;
        (found(a) | found(b) << 1 | found(c) << 2 | found(d) << 3) & ALL
    }

    /// A lane's bit: by its byte in its word, then by the word.
    #[inline(always)]
    pub const fn bit(lane: u32) -> u64 {
        1 << (lane % 8 * 8 + lane / 8)
    }

    /// A set's first lane.
    #[inline(always)]
    pub fn first(set: u64) -> u32 {
        let at = set.trailing_zeros();
        (at & 3) * 8 + (at >> 3 & 7)
    }
}

crate::table::cells! {
    /// One direction of a connection.
    #[repr(C, align(64))]
    pub struct Entry<A> {
        pub(super) meta: Cell32,
        pub(super) last: Cell32,
        addrs: A::Pair,
        /// Ports and protocol.
        rest: Cell64,
        to_addrs: A::Pair,
        /// New ports, flags.
        to_rest: Cell64,
        /// Service and backend.
        owner: Cell64,
        route: Cell64,
    }
}

/// For tests that try one thing twice.
#[cfg(not(target_arch = "bpf"))]
impl<A: Addr> Entry<A> {
    /// Makes this a copy of another entry, or of the hints that lie there. Nobody else may write meanwhile.
    pub fn copy(&self, other: &Entry<A>, hints: bool) {
        if hints {
            let (to, from) = (self.hints(), other.hints());
            for lane in 0..=MARK {
                let word = lane as usize / 8;
                to.tags[word].set(lane % 8, (from.tags[word].load() >> (lane % 8 * 8)) as u8);
                to.ages[word].set(lane % 8, (from.ages[word].load() >> (lane % 8 * 8)) as u8);
            }
            return;
        }
        self.meta.store(other.meta.load());
        self.last.store(other.last.load());
        self.addrs.store(other.addrs.load());
        self.rest.store(other.rest.load());
        self.to_addrs.store(other.to_addrs.load());
        self.to_rest.store(other.to_rest.load());
        self.owner.store(other.owner.load());
        self.route.store(other.route.load());
    }
}

impl<A: Addr> Entry<A> {
    /// A bucket's hints, which lie where its last entry would.
    #[expect(unsafe_code, reason = "one place in the array is of another type")]
    #[inline(always)]
    pub(super) fn hints(&self) -> &Bucket {
        // SAFETY: both are cells alone, which any bits fill; the bucket is not larger and not aligned
        // stricter (asserted below); and nobody takes this place for an entry.
        unsafe { &*core::ptr::from_ref(self).cast::<Bucket>() }
    }
}

const _: () = {
    use crate::wire::{Ip4, Ip6};
    assert!(size_of::<Bucket>() == 64);
    assert!(size_of::<Entry<Ip4>>() == 64);
    assert!(size_of::<Entry<Ip6>>() == 128);
    assert!(align_of::<Bucket>() <= align_of::<Entry<Ip4>>() && align_of::<Bucket>() <= align_of::<Entry<Ip6>>());
};

/// A slot's phase (2 bits), its connection's state (8 bits) and its generation (22 bits).
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, zerocopy::FromZeros)]
pub struct Meta(pub(super) u32);

impl Meta {
    /// Nothing is here.
    pub const FREE: u32 = 0;
    /// Somebody writes here.
    pub const OWNED: u32 = 1;
    /// Written, and not yet known to be the only one of its key.
    pub const PENDING: u32 = 2;
    /// A connection's.
    pub const LIVE: u32 = 3;

    const STATE: u32 = 2;
    const GENERATION: u32 = 10;

    #[inline(always)]
    pub fn phase(self) -> u32 {
        self.0 & 3
    }

    #[inline(always)]
    pub fn state(self) -> u8 {
        (self.0 >> Self::STATE) as u8
    }

    /// The same slot and generation in another phase.
    #[inline(always)]
    pub fn with_phase(self, phase: u32) -> Self {
        Meta(self.0 & !3 | phase)
    }

    #[inline(always)]
    pub fn with_state(self, state: u8) -> Self {
        Meta(self.0 & !(0xff << Self::STATE) | (state as u32) << Self::STATE)
    }

    /// Owned by the caller, as the next generation.
    #[inline(always)]
    pub fn taken(self) -> Self {
        Meta((self.0 >> Self::GENERATION).wrapping_add(1) << Self::GENERATION | Self::OWNED)
    }

    /// Whether both are of one entry, in whatever state.
    #[inline(always)]
    pub fn same(self, other: Meta) -> bool {
        (self.0 ^ other.0) & !(0xff << Self::STATE) == 0
    }

    /// Whether both are of one generation of the slot, in whatever phase and state.
    #[inline(always)]
    pub(super) fn of_generation(self, other: Meta) -> bool {
        self.0 >> Self::GENERATION == other.0 >> Self::GENERATION
    }

    /// What marks a word as this generation's.
    #[inline(always)]
    fn mark(self) -> u64 {
        ((self.0 >> Self::GENERATION) as u64) << 48
    }
}

/// The next hop, the epoch it was found in, and the generation of the slot that both are of: a write
/// by somebody who still holds an earlier one is never read as this one's.
#[inline(always)]
pub(super) fn route(meta: Meta, next_hop: u32, epoch: u16) -> u64 {
    next_hop as u64 | (epoch as u64) << 32 | meta.mark()
}

impl<A: Addr> Entry<A> {
    #[inline(always)]
    pub fn meta(&self) -> Meta {
        Meta(self.meta.load())
    }

    /// Moves the entry from `old` to `new`; false where it isn't `old` any more. A full barrier.
    #[inline(always)]
    pub(super) fn become_if(&self, old: Meta, new: Meta) -> bool {
        self.meta.swap_if(old.0, new.0)
    }

    /// Reads of each of its lines.
    #[inline(always)]
    pub(super) fn fetch(&self) {
        let _ = (self.meta.load(), self.route.load());
    }

    #[inline(always)]
    pub(super) fn holds(&self, words: &Words<A>) -> bool {
        self.rest.load() == words.rest && self.addrs.holds(&words.addrs)
    }

    /// The value, if the entry is still of that generation when it has been read.
    #[inline(always)]
    pub(super) fn read(&self, meta: Meta) -> Option<Flow<A>> {
        let flow = self.value(meta);
        acquire();
        self.meta().same(meta).then_some(flow)
    }

    /// The same where the value lies in memory anyway. Where it says false, what was written means nothing.
    #[inline(always)]
    pub(super) fn read_into(&self, meta: Meta, flow: &mut Flow<A>) -> bool {
        *flow = self.value(meta);
        acquire();
        self.meta().same(meta)
    }

    /// What of it is read before the generation is looked at again.
    #[inline(always)]
    fn value(&self, meta: Meta) -> Flow<A> {
        let (src, dst) = A::unpair(self.to_addrs.load());
        let (to, owner, route) = (self.to_rest.load(), self.owner.load(), self.route.load());
        let last = self.last.load();
        let current = route >> 48 == meta.mark() >> 48;
        Flow {
            src,
            dst,
            sport: Be16::from_raw(to as u16),
            dport: Be16::from_raw((to >> 16) as u16),
            service: owner as u32,
            backend: (owner >> 32) as u32,
            next_hop: if current { route as u32 } else { NextHop::UNRESOLVED },
            last,
            state: meta.state(),
            flags: (to >> 32) as u8,
            epoch: (route >> 32) as u16,
        }
    }

    /// The key, if the entry is still of that generation when it has been read.
    #[inline(always)]
    pub(super) fn key(&self, meta: Meta) -> Option<FlowKey<A>> {
        let (src, dst) = A::unpair(self.addrs.load());
        let rest = self.rest.load();
        acquire();
        let ports = [Be16::from_raw(rest as u16), Be16::from_raw((rest >> 16) as u16)];
        let key = FlowKey { src, dst, sport: ports[0], dport: ports[1], proto: (rest >> 32) as u32 };
        self.meta().same(meta).then_some(key)
    }

    /// The protocol, whoever's.
    #[inline(always)]
    pub(super) fn proto(&self) -> u8 {
        (self.rest.load() >> 32) as u8
    }

    /// Writes key and value. The caller owns the slot as `meta`.
    #[inline(always)]
    pub(super) fn write(&self, meta: Meta, words: &Words<A>, flow: &Flow<A>) {
        self.addrs.store(words.addrs);
        self.rest.store(words.rest);
        self.to_addrs.store(A::pair(flow.src, flow.dst));
        let ports = flow.sport.raw() as u64 | (flow.dport.raw() as u64) << 16;
        self.to_rest.store(ports | (flow.flags as u64) << 32);
        self.owner.store(flow.service as u64 | (flow.backend as u64) << 32);
        self.route.store(route(meta, flow.next_hop, flow.epoch));
        self.last.store(flow.last);
    }

    /// Changes the next hop from what `flow` says to another.
    #[inline(always)]
    pub(super) fn reroute(&self, meta: Meta, flow: &Flow<A>, next_hop: u32, epoch: u16) {
        // Where it fails another CPU has found one, too.
        let _ = self.route.swap_if(route(meta, flow.next_hop, flow.epoch), route(meta, next_hop, epoch));
    }
}
