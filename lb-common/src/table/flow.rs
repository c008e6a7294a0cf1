//! Connections: two entries each, one a direction, whose key is the packet's tuple as it arrives
//! and whose value says what the tuple becomes.

use crate::wire::{Addr, Be16};

plain! {
    /// A packet's tuple as it arrives.
    pub struct FlowKey<A> {
        pub src: A,
        pub dst: A,
        pub sport: Be16,
        pub dport: Be16,
        /// The protocol number; the upper bytes are zero.
        pub proto: u32,
    } v4 = 16, v6 = 40
}

impl<A: Addr> FlowKey<A> {
    /// The tuple of a packet that goes the other way.
    #[inline(always)]
    pub fn reversed(&self) -> Self {
        FlowKey { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport, proto: self.proto }
    }
}

plain! {
    /// What a packet of one direction becomes.
    pub struct Flow<A> {
        pub src: A,
        pub dst: A,
        pub sport: Be16,
        pub dport: Be16,
        pub service: u32,
        pub backend: u32,
        /// Index of the next hop; [`crate::table::NextHop::UNRESOLVED`] = look the route up.
        pub next_hop: u32,
        /// Tick of the last packet, refreshed about once a second.
        pub last: u32,
        /// A state of [`crate::tcp`].
        pub state: u8,
        /// [`Flow::REPLY`].
        pub flags: u8,
        /// [`crate::table::Settings::epoch`] when `next_hop` was found.
        pub epoch: u16,
    } v4 = 32, v6 = 56
}

impl<A: Addr> Flow<A> {
    /// Flag: the direction from the backend to the client.
    pub const REPLY: u8 = 1;
    /// Flag: the source is translated, too, so that answers come back through this node.
    pub const SNAT: u8 = 2;
    /// Flag: translated between inside and outside; `service` is then the uplink's index, and there is no backend.
    pub const NAT: u8 = 4;
    /// Flag, with [`Flow::NAT`]: this direction's source is translated, the other one's destination.
    pub const OUT: u8 = 8;
    /// Flag, with [`Flow::NAT`]: no packets', but what is remembered about a mapping
    /// ([`crate::path::nat`]).
    pub const MEMORY: u8 = 16;

    /// Flag: goes to the node of its backend as it came; that node answers by itself, and there is no other entry.
    pub const DIRECT: u8 = 32;

    /// [`Flow::backend`] of what has none.
    pub const NO_BACKEND: u32 = u32::MAX;
    /// [`Flow::backend`] of what is only forwarded: no backend's id, where it is counted.
    pub const FORWARDED: u32 = 0;

    #[inline(always)]
    pub fn is(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The key of the other direction's entry.
    #[inline(always)]
    pub fn reverse_key(&self, proto: u32) -> FlowKey<A> {
        FlowKey { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport, proto }
    }
}

plain! {
    /// Which datagram a fragment belongs to (RFC 791 §3.2, RFC 8200 §4.5).
    pub struct FragmentKey<A> {
        pub src: A,
        pub dst: A,
        pub id: u32,
        /// The protocol number; the upper bytes are zero.
        pub proto: u32,
    } v4 = 16, v6 = 40
}

plain! {
    /// The ports that only a datagram's first fragment carries.
    pub struct FragmentPorts {
        pub sport: Be16,
        pub dport: Be16,
        /// Tick of the first fragment.
        pub last: u32,
    } size = 8
}
