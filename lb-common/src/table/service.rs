//! Services, their backends, and who is bound to which.

use crate::wire::{Addr, Be16};

plain! {
    /// Where a service is reached: an address, a port and a protocol.
    pub struct ServiceKey<A> {
        pub addr: A,
        pub port: Be16,
        pub proto: u8,
        pub pad: u8,
    } v4 = 8, v6 = 20
}

plain! {
    /// A service: its row of slots, and how it chooses.
    pub struct Service {
        /// The service port's number; all its addresses share it.
        pub id: u32,
        /// First slot of its row: of all endpoints.
        pub first: u32,
        /// Slots in its row; 0 = no backend: refused with ICMP port unreachable.
        pub count: u32,
        /// ClientIP affinity: ticks since the client's last new connection until it is forgotten; 0 = none.
        pub affinity: u32,
        /// The same of the row of endpoints on this node, where a traffic policy is Local; none while
        /// there are others = dropped.
        pub local_first: u32,
        pub local_count: u32,
        /// Of the bits below.
        pub flags: u32,
        pub pad: u32,
    } size = 32
}

impl Service {
    /// Flag: whoever isn't of this node (no pod of it, nor itself) gets endpoints of this node alone.
    pub const LOCAL: u32 = 1;
    /// Flag, with [`Service::LOCAL`]: so does everybody.
    pub const EVERYBODY: u32 = 2;
    /// Flag: whoever isn't of this node gets this node's address.
    pub const MASQUERADE: u32 = 4;
    /// Flag: only sources that are named for it ([`SourcePrefix`]).
    pub const RANGES: u32 = 8;
    /// Flag: what goes to a [`Backend::DIRECT`] goes there as it came.
    pub const DIRECT: u32 = 16;

    /// First slots and lengths of its rows.
    pub fn rows(&self) -> impl Iterator<Item = (u32, u32)> + use<> {
        let rows = [(self.first, self.count), (self.local_first, self.local_count)];
        rows.into_iter().filter(|(_, count)| *count > 0)
    }
}

plain! {
    /// Who asks for a service whose sources are named.
    pub struct Source<A> {
        pub service: u32,
        pub addr: A,
    } v4 = 8, v6 = 20
}

plain! {
    /// Sources that may ask for a service, as the kernel's tries take them.
    pub struct SourcePrefix<A> {
        /// In bits, those of the service's number among them.
        pub len: u32,
        pub service: u32,
        pub addr: A,
    } v4 = 12, v6 = 24
}

/// Two slots, one word: an array's elements are rounded up to 8 bytes.
pub type SlotPair = [u32; 2];

plain! {
    /// One endpoint of one service port: where its connections go.
    pub struct Backend<A> {
        pub addr: A,
        /// This node's address towards the backend: the source of connections that must come back
        /// through this node.
        pub snat: A,
        pub port: Be16,
        /// [`Backend::ACTIVE`] or [`Backend::DRAINING`]; 0 = no such backend.
        pub state: u8,
        /// [`Backend::REMOTE`], [`Backend::HERE`], [`Backend::LAST`].
        pub flags: u8,
        /// The [`Service::id`] it belongs to.
        pub service: u32,
        /// Index of its next hop.
        pub next_hop: u32,
        /// Relative share of new connections.
        pub weight: u32,
        /// Draining: the tick at which its remaining connections are ended; 0 = none.
        pub deadline: u32,
        /// The link that it is on, also while its neighbour isn't resolved; 0 = this node, or no route.
        pub link: u32,
    } v4 = 32, v6 = 56
}

impl<A: Addr> Backend<A> {
    /// Takes new connections.
    pub const ACTIVE: u8 = 1;
    /// Keeps the connections it has, gets no new one.
    pub const DRAINING: u8 = 2;
    /// Flag: not on this node, so its answers come back only if the source is this node.
    pub const REMOTE: u8 = 1;
    /// Flag: in the row of endpoints on this node.
    pub const HERE: u8 = 2;
    /// Flag: in no other row, since it leaves and others elsewhere are ready.
    pub const LAST: u8 = 4;
    /// Flag: on another node, by its link-layer address or in the overlay, which has the same services and answers clients itself.
    pub const DIRECT: u8 = 8;
}

plain! {
    /// A client of a service with ClientIP affinity.
    pub struct AffinityKey<A> {
        pub client: A,
        pub service: u32,
    } v4 = 8, v6 = 20
}

plain! {
    /// The backend that a client is bound to.
    pub struct Affinity {
        pub backend: u32,
        /// Tick of the client's last new connection.
        pub last: u32,
    } size = 8
}

plain! {
    /// What went to and came from one backend; kept per CPU, summed by the reader.
    pub struct Counters {
        pub connections: u64,
        pub packets: u64,
        pub bytes: u64,
        pub reply_packets: u64,
        pub reply_bytes: u64,
    } size = 40
}

plain! {
    /// A service port's name for people, `namespace/name:port`, filled up with zeros. Written and
    /// read by user space alone.
    pub struct Name {
        blocks: [[u8; 32]; 5],
    } size = 160
}

impl Name {
    /// The name, cut where it is too long.
    pub fn new(name: &str) -> Self {
        let mut new = Name::default();
        let end = name.floor_char_boundary(new.blocks.as_flattened().len());
        new.blocks.as_flattened_mut()[..end].copy_from_slice(&name.as_bytes()[..end]);
        new
    }

    pub fn as_str(&self) -> &str {
        let bytes = self.blocks.as_flattened();
        let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
        core::str::from_utf8(&bytes[..end]).unwrap_or("?")
    }
}
