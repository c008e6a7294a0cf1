//! Where a key may lie: its bucket, a home slot in it, the tag that marks it there, and a second bucket.
//!
//! The hash is pair-multiply-shift (Thorup, "High Speed Hashing for Integers and Strings", §3.5):
//! strongly universal over 32 bits, as long as nobody knows the multipliers. They are random, from
//! the kernel's generator, and live as long as the table: who knows this code still can't choose keys
//! that fall into one bucket.

use super::{ELDER, FlowTable, SLOTS, WAYS};
use crate::table::FlowKey;
use crate::wire::Addr;

/// Random numbers that a hash needs: two for each 64 bits of the longest key, and one more.
pub const MULTIPLIERS: usize = 11;

/// A key as whole words.
#[derive(Clone, Copy)]
pub struct Words<A: Addr> {
    pub addrs: A::PairWords,
    /// Ports, and the protocol.
    pub rest: u64,
}

impl<A: Addr> Words<A> {
    #[inline(always)]
    pub fn of(key: &FlowKey<A>) -> Self {
        let ports = key.sport.raw() as u64 | (key.dport.raw() as u64) << 16;
        Words { addrs: A::pair(key.src, key.dst), rest: ports | (key.proto as u64) << 32 }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, zerocopy::FromZeros)]
#[repr(C)]
pub struct Place {
    pub first: u32,
    pub second: u32,
    /// The lane of the first bucket that is tried before any other.
    pub lane: u32,
    /// Never 0, which marks a free lane, nor 1, which would seem free above a free lane.
    pub tag: u8,
    pad: [u8; 3],
}

/// A key's random number in this table, and in one that it grows from.
#[inline(always)]
fn hash<A: Addr, T: FlowTable<A>>(table: &T, words: &Words<A>) -> u64 {
    let mut sum = 0u64;
    for (i, &word) in words.addrs.as_ref().iter().enumerate() {
        sum = sum.wrapping_add(product(table, i * 2, word));
    }
    sum = sum.wrapping_add(product(table, A::PAIR * 2, words.rest));
    // The sum is linear in each word, and so keys that count up may fall in heaps: mixed by a
    // bijection (a shift, an odd factor, a shift), they fall like any others.
    let mixed = (sum ^ sum >> 32).wrapping_mul(table.multiplier(MULTIPLIERS - 1));
    mixed ^ mixed >> 32
}

impl Place {
    /// Where a key is looked for first.
    #[inline(always)]
    pub fn of<A: Addr, T: FlowTable<A>>(table: &T, words: &Words<A>) -> Self {
        Self::in_either(table, words, false)
    }

    /// Where it is in this table, or in the elder.
    #[inline(always)]
    pub(super) fn in_either<A: Addr, T: FlowTable<A>>(table: &T, words: &Words<A>, elder: bool) -> Self {
        let hash = hash(table, words);
        if elder { Self::at(hash, table.elder(), ELDER / WAYS) } else { Self::at(hash, table.mask(), 0) }
    }

    /// By the hash, in a table of so many buckets (and one), the first of which has this number.
    #[inline(always)]
    fn at(hash: u64, mask: u32, base: u32) -> Self {
        // No more than there can be: the compiler then knows which table it is.
        let mask = mask & (ELDER / WAYS - 1);
        Place {
            first: hash as u32 & mask | base,
            second: (hash >> 32) as u32 & mask | base,
            // Five bits, spread over the slots.
            lane: ((hash >> 59) as u32 * SLOTS) >> 5,
            tag: ((hash >> 51) as u8).max(2),
            pad: [0; 3],
        }
    }

    /// Home lane and tag in one number.
    #[inline(always)]
    pub(super) fn hints(&self) -> u32 {
        self.lane << 8 | self.tag as u32
    }

    /// The slot that is tried before any other.
    #[inline(always)]
    pub fn home(&self) -> u32 {
        self.first * WAYS + self.lane
    }
}

/// One pair's part of the sum.
#[inline(always)]
fn product<A: Addr, T: FlowTable<A>>(table: &T, at: usize, word: u64) -> u64 {
    let low = (word & 0xffff_ffff).wrapping_add(table.multiplier(at));
    let high = (word >> 32).wrapping_add(table.multiplier(at + 1));
    low.wrapping_mul(high)
}
