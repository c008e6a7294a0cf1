//! Who may talk to this node's pods, and whom they may talk to.
//!
//! What a policy allows is two tries: of peers and of ports, each with a set of bits. A bit stands for a set of ports;
//! what has a bit in both is allowed.

use crate::wire::{Addr, Be16, Ip6};

plain! {
    /// A pod of this node, by the node's end of its link.
    pub struct Pod {
        /// What is allowed to it and from it: a number of [`Peer::policy`]; 0: everything.
        pub ingress: u32,
        pub egress: u32,
        /// Its own, IPv4 as IPv6 has it ([`Ip6::mapped`]), then IPv6; zeros: it has none.
        pub addrs: [Ip6; 2],
    } size = 40
}

impl Pod {
    /// Its address of a family; zeros: it has none.
    #[inline(always)]
    pub fn addr<A: Addr>(&self) -> A {
        let [v4, v6] = self.addrs;
        A::unmapped(if A::IS_V6 { v6 } else { v4 })
    }

    /// What is allowed in a direction.
    #[inline(always)]
    pub fn policy(&self, direction: u16) -> u32 {
        if direction == Admitted::<Ip6>::INGRESS { self.ingress } else { self.egress }
    }
}

plain! {
    /// A peer that is asked for.
    pub struct Peer<A> {
        /// What is allowed in a direction of pods; [`Peer::NODE`]: addresses of this node itself.
        pub policy: u32,
        pub addr: A,
    } v4 = 8, v6 = 20
}

impl<A: Addr> Peer<A> {
    pub const NODE: u32 = 0;
}

plain! {
    /// Peers, as the kernel's longest-prefix tries take them: length first, that of the number included.
    pub struct PeerPrefix<A> {
        pub len: u32,
        pub policy: u32,
        pub addr: A,
    } v4 = 12, v6 = 24
}

plain! {
    /// A port that is asked for; of protocols without ports it is 0.
    pub struct PeerPort {
        pub policy: u32,
        pub proto: Be16,
        pub port: Be16,
    } size = 8
}

plain! {
    /// Ports, as above: the number alone are all ports of all protocols.
    pub struct PeerPortPrefix {
        pub len: u32,
        pub policy: u32,
        pub proto: Be16,
        pub port: Be16,
    } size = 12
}

plain! {
    /// A connection that was admitted, by its tuple as packets from the pod have it.
    pub struct Admitted<A> {
        /// What allowed it: a number as [`Pod`] has it, or [`Admitted::OWN`].
        pub policy: u32,
        /// The pod's.
        pub link: u32,
        /// Tick of the last packet, refreshed about once a second.
        pub last: u32,
        /// Who was judged: behind a service its endpoint.
        pub remote: A,
        pub port: Be16,
        /// [`Admitted::INGRESS`] or [`Admitted::EGRESS`]: who opened it.
        pub direction: u16,
    } v4 = 20, v6 = 32
}

impl<A: Addr> Admitted<A> {
    /// This node itself opened it.
    pub const OWN: u32 = u32::MAX;
    /// To the pod.
    pub const INGRESS: u16 = 0;
    /// From the pod.
    pub const EGRESS: u16 = 1;
}
