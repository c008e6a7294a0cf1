//! The filter: one bit array that says "certainly not ours" before any table is asked.
//!
//! A Bloom filter with one hash. A packet can concern us only if its destination tuple is a
//! service's, its source tuple is a backend's, or its destination address is one we answer for.
//! Invariant: whatever stands in the service, backend or owned tables has its bits set; the agent
//! sets them before it adds and clears them after it removed. A bit set without need costs time,
//! never correctness.

use crate::wire::{Addr, Be16};

/// Bits in the filter.
pub const BITS: u32 = 1 << 20;
/// 64-bit words that hold them.
pub const WORDS: u32 = BITS / 64;

/// The bit of a service's or backend's (address, port, protocol).
#[inline(always)]
pub fn tuple_bit<A: Addr>(addr: A, port: Be16, proto: u8) -> u32 {
    mix(addr.fold() ^ ((port.raw() as u64) << 40 | (proto as u64) << 56))
}

/// The bit of an address that we answer for.
#[inline(always)]
pub fn addr_bit<A: Addr>(addr: A) -> u32 {
    mix(addr.fold() ^ 0xa5 << 56)
}

/// The bit of a whole /24 (IPv4) or /112 (IPv6), for prefixes too long to list by address.
#[inline(always)]
pub fn grain_bit<A: Addr>(addr: A) -> u32 {
    mix(addr.grain().fold() ^ 0x5a << 56)
}

#[inline(always)]
fn mix(x: u64) -> u32 {
    (x ^ x >> 29).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_shr(64 - BITS.trailing_zeros()) as u32
}
