//! Where addresses are: next hops, the links that packets are forwarded from, and the addresses that are
//! ours to answer for.

use crate::wire::{Ip6, Mac};

plain! {
    /// A prefix as the kernel's longest-prefix tries take it: length first, then the address.
    pub struct Prefix<A> {
        pub len: u32,
        pub addr: A,
    } v4 = 8, v6 = 20
}

plain! {
    /// The next hop on the way to an address: a link and the link-layer addresses to write.
    pub struct NextHop {
        pub ifindex: u32,
        /// The link's MTU.
        pub mtu: u32,
        /// The neighbour's link-layer address.
        pub dst: Mac,
        /// The link's own.
        pub src: Mac,
        /// [`NextHop::KERNEL`], [`NextHop::LOCAL`], [`NextHop::LINK`] or [`NextHop::DROP`].
        pub kind: u8,
        /// Of the flags below.
        pub flags: u8,
        pub pad: u16,
    } size = 24
}

impl NextHop {
    /// Index 0: not known; the kernel forwards and resolves.
    pub const UNRESOLVED: u32 = 0;
    /// Index 1: this node itself.
    pub const HOST: u32 = 1;
    /// Index 2: nobody; what goes there is dropped (a blackhole route).
    pub const BLACKHOLE: u32 = 2;
    /// First index that stands for a neighbour.
    pub const FIRST: u32 = 3;
    /// In a route, beside the number of a group: one of its [`PLACES`] next hops, by the flow's hash.
    pub const GROUP: u32 = 1 << 27;
    /// In a route, beside an index or a group: what goes there from the inside goes untranslated, and nobody has that
    /// address outside.
    pub const DIRECT: u32 = 1 << 26;
    /// Beside an index, of a packet that is not to be sent: it is too large for this next hop, and its sender is told.
    pub const TOO_LARGE: u32 = 1 << 28;

    /// Kind: the kernel forwards (no neighbour yet, or a link without link-layer addresses).
    pub const KERNEL: u8 = 0;
    /// Kind: delivered on this node.
    pub const LOCAL: u8 = 1;
    /// Kind: a resolved neighbour on a link.
    pub const LINK: u8 = 2;
    /// Kind: dropped.
    pub const DROP: u8 = 3;

    /// Flag: XDP can transmit on the link.
    pub const XDP: u8 = 1;
    /// Flag: in the overlay, by the [`Tunnel`] of this index.
    pub const TUNNEL: u8 = 2;
    /// Flag: TC's ingress may hand packets to the other end of the link, in another network namespace; nothing there
    /// is to see them on their way.
    pub const PEER: u8 = 4;

    /// The link-layer addresses as they stand in a packet, by whole words.
    #[inline(always)]
    pub const fn link(self) -> [u32; 3] {
        let [_, _, a, b, c, _]: [u32; 6] = zerocopy::transmute!(self);
        [a, b, c]
    }
}

plain! {
    /// What holds a packet on its way to another node's pods: VXLAN, the headers around it.
    pub struct Tunnel {
        /// The nodes' addresses; IPv4 ones as IPv6 has them ([`Ip6::mapped`]).
        pub local: Ip6,
        pub remote: Ip6,
        /// The neighbour's link-layer address; zeros: it isn't known.
        pub dst: Mac,
        /// The link's own.
        pub src: Mac,
        pub ifindex: u32,
    } size = 48
}

/// Places of a group of next hops, each of which holds a next hop's index; a heavier one has more of them.
pub const PLACES: usize = 256;
/// The places of one group.
pub type Group = [u32; PLACES];

plain! {
    /// A link that leads to other hosts or to the inside.
    pub struct Link {
        /// Its own address: what is addressed to another is not ours to forward.
        pub mac: Mac,
        /// Of the bits below.
        pub flags: u16,
    } size = 8
}

impl Link {
    /// IPv4 is forwarded.
    pub const FORWARDS4: u16 = 1;
    /// IPv6 is forwarded.
    pub const FORWARDS6: u16 = 2;
    /// IPv4 only from sources that the way back leads to by this link (RFC 3704 §2.2; `rp_filter` 1).
    pub const STRICT4: u16 = 4;
    /// IPv4 only from sources that there is a way back to (RFC 3704 §2.4; `rp_filter` 2).
    pub const LOOSE4: u16 = 8;
    /// It leads to the inside: who sends from there is a pod of this node, or the like.
    pub const INSIDE: u16 = 16;
    /// It leads to other hosts: what opens a connection is for us if it is addressed to this link.
    pub const PORT: u16 = 32;
}

plain! {
    /// What an address is to us.
    pub struct Owned {
        /// Of the bits below.
        pub kind: u16,
        /// Of [`Owned::OUTSIDE`]: its plane of the port table. Of prefixes that are exchanged: the index
        /// of their [`crate::table::PrefixPair`].
        pub index: u16,
    } size = 4
}

plain! {
    /// By what an address that this node announces is reached.
    pub struct Announced {
        /// The link that it is announced on,
        pub link: u32,
        /// whose address this is.
        pub mac: Mac,
        pub pad: u16,
    } size = 12
}

impl Owned {
    /// A service's address: echo is answered, other ports are refused.
    pub const VIP: u16 = 1;
    /// An address of the service range that no service has: dropped.
    pub const UNUSED: u16 = 2;
    /// On the inside: what it sends out is translated.
    pub const INSIDE: u16 = 4;
    /// What goes there goes untranslated.
    pub const DIRECT: u16 = 8;
    /// An uplink's address, which translated packets have.
    pub const OUTSIDE: u16 = 16;
    /// In a prefix that has another one outside.
    pub const PREFIX_INSIDE: u16 = 32;
    /// In the prefix that one of the inside has outside.
    pub const PREFIX_OUTSIDE: u16 = 64;
    /// Pods', of any node. Only clients of services are looked up for it, so that the filter has no bit of it.
    pub const PODS: u16 = 128;

    pub const fn of(kind: u16) -> Self {
        Owned { kind, index: 0 }
    }

    #[inline(always)]
    pub const fn is(self, kinds: u16) -> bool {
        self.kind & kinds != 0
    }
}
