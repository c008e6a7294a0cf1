//! What sockets of this node remember of services whose backends they talk to directly.

use crate::wire::{Addr, Be16};

plain! {
    /// A socket, and whom it talks to.
    pub struct SocketKey<A> {
        /// The kernel's number of the socket, which no other ever has.
        pub cookie: [u32; 2],
        pub addr: A,
        pub port: Be16,
        /// What the address is: [`SocketKey::SERVICE`] or [`SocketKey::BACKEND`].
        pub kind: u16,
    } v4 = 16, v6 = 28
}

impl<A: Addr> SocketKey<A> {
    /// A service's; what is remembered is the backend that the socket sends to in its place.
    pub const SERVICE: u16 = 1;
    /// A backend's; what is remembered is the service that the socket takes it for.
    pub const BACKEND: u16 = 2;
}

plain! {
    /// The other address.
    pub struct SocketPeer<A> {
        pub addr: A,
        pub port: Be16,
        pub pad: u16,
        /// The backend's number.
        pub backend: u32,
    } v4 = 12, v6 = 24
}
