//! The filter: one bit array that says "certainly not ours" before any table is asked.
//!
//! A Bloom filter with one hash. A packet can concern us only if its destination tuple is a
//! service's, its source tuple is a backend's, its destination address is one we answer for, or
//! one of its addresses is translated between inside and outside.
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

/// The bit of an address that we answer for: in its /24's or /112's word, so that one read tells of both.
#[inline(always)]
pub fn addr_bit<A: Addr>(addr: A) -> u32 {
    grain_bit(addr) / 64 * 64 + addr.low() % ADDRS
}

/// The bit of a whole /24 (IPv4) or /112 (IPv6), for prefixes too long to list by address: one of its
/// word's last.
#[inline(always)]
pub fn grain_bit<A: Addr>(addr: A) -> u32 {
    let bit = mix(addr.grain().fold() ^ 0x5a << 56);
    bit / 64 * 64 + ADDRS + bit % (64 - ADDRS)
}

/// The bit of a /24 (IPv4) or /64 (IPv6) that holds addresses of the inside, for packets from there.
#[inline(always)]
pub fn inside_bit<A: Addr>(addr: A) -> u32 {
    mix(addr.subnet().fold() ^ 0xa5 << 56)
}

/// The bit of a /24 or /64 that holds addresses which packets of the inside get outside, for packets to there.
#[inline(always)]
pub fn outside_bit<A: Addr>(addr: A) -> u32 {
    mix(addr.subnet().fold() ^ 0xc3 << 56)
}

/// Whether the word of an address says that it is ours.
#[inline(always)]
pub fn owns<A: Addr>(word: u64, addr: A) -> bool {
    (word >> (addr_bit(addr) % 64) | word >> (grain_bit(addr) % 64)) & 1 != 0
}

/// Bits of a word that stand for its grain's addresses; the others stand for grains.
const ADDRS: u32 = 48;

#[inline(always)]
fn mix(x: u64) -> u32 {
    (x ^ x >> 29).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_shr(64 - BITS.trailing_zeros()) as u32
}
