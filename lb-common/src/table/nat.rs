//! Translation of addresses: the links that lead out, prefixes that are exchanged for others,
//! and what happened to a mapping. Who has which port stands in [`crate::port_table`].

use crate::apply::fold;
use crate::wire::{Addr, Be16, Ip6};

/// Addresses of one uplink at the most.
pub const POOL: usize = 4;

plain! {
    /// A link that leads out, and the addresses that what leaves by it gets.
    pub struct Uplink<A> {
        /// Addresses in the pool: the first of the following. 0 = nothing leaves by it.
        pub count: u32,
        pub pad: u32,
        pub addrs: [A; POOL],
        /// The plane of the port table that each address has ([`crate::port_table`]).
        pub planes: [u32; POOL],
    } v4 = 40, v6 = 88
}

plain! {
    /// A prefix inside and the one that it has outside, of one length (RFC 6296).
    pub struct PrefixPair<A> {
        pub inside: A,
        pub outside: A,
        pub len: u32,
        /// What outgoing packets' addresses get added so that checksums stay (RFC 6296 §3.1).
        pub adjust: u16,
        pub pad: u16,
    } v4 = 16, v6 = 40
}

impl PrefixPair<Ip6> {
    /// Both of `len` bits at the most 64; bits behind are zero.
    pub fn new(inside: Ip6, outside: Ip6, len: u32) -> Self {
        // What the outer prefix adds to a sum is taken away from the address.
        let adjust = fold(inside.sum() + (4 * 0xffff_ffff - outside.sum()));
        PrefixPair { inside, outside, len, adjust, pad: 0 }
    }
}

plain! {
    /// A mapping begins or ends: what the log is made of (RFC 6888 REQ-12).
    pub struct MappingEvent<A> {
        pub inside: A,
        pub outside: A,
        pub inside_port: Be16,
        pub outside_port: Be16,
        /// [`MappingEvent::BEGINS`] or [`MappingEvent::ENDS`].
        pub what: u16,
        pub proto: u16,
    } v4 = 16, v6 = 40
}

impl<A: Addr> MappingEvent<A> {
    pub const BEGINS: u16 = 1;
    pub const ENDS: u16 = 2;
}
