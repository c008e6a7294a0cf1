//! What stands in packets: addresses, ports and header layouts, in network byte order.
//!
//! Invariant: a value in network order has a type of its own and no arithmetic; `get` at the edge.
//! The types are aligned like the integers they hold (`docs/decisions/0001-aligned-wire-types.md`).

pub mod addr;
pub mod header;

pub use addr::{Addr, Be16, Ip4, Ip6, Mac};
