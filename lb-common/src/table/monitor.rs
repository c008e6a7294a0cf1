//! What `stellwerk monitor` asks the programs for, and what they tell it.

plain! {
    /// Which packets are told of.
    pub struct Watch {
        /// The tick until which somebody watches; 0: nobody does.
        pub until: u32,
        /// Beside those that are dropped or refused, one in so many of each CPU's; 0: none.
        pub every: u32,
    } size = 8
}

/// Two bytes each: as much of a packet as is told.
pub const SEEN: usize = 64;
/// Arrays of more have no default.
const ROW: usize = 32;

plain! {
    /// A packet, and what became of it.
    pub struct Sighting {
        /// Bytes of the whole packet.
        pub len: u32,
        /// Of the following those that are the packet's.
        pub kept: u32,
        /// The link that it came in by or, at egress, leaves by.
        pub link: u32,
        /// The value of its [`crate::verdict::Outcome`].
        pub value: u32,
        /// A number of [`crate::verdict::Action`].
        pub action: u16,
        /// Of [`crate::verdict::Hook`]: 0 XDP, 1 ingress, 2 egress.
        pub hook: u16,
        pub pad: u32,
        pub bytes: [[u16; ROW]; SEEN / ROW],
    } size = 152
}
