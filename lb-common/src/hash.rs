//! The hash that chooses a backend.
//!
//! Invariant: it depends on the tuple alone, so that every node with the same tables makes the same
//! choice: a flow that moves to another node keeps its backend.

use crate::table::FlowKey;
use crate::wire::{Addr, Be16};

/// MurmurHash3's 64-bit finalizer.
#[inline(always)]
const fn mix(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ x >> 33
}

/// The hash of a connection.
#[inline(always)]
pub fn tuple<A: Addr>(key: &FlowKey<A>) -> u32 {
    let ports = (key.sport.get() as u64) << 32 | (key.dport.get() as u64) << 16 | key.proto as u64;
    mix(mix(key.src.fold() ^ ports << 8) ^ key.dst.fold().rotate_left(17)) as u32
}

/// The hash of a packet's way between two hosts.
#[inline(always)]
pub fn pair<A: Addr>(src: A, dst: A, ports: u32) -> u32 {
    mix(mix(src.fold() ^ ports as u64) ^ dst.fold().rotate_left(17)) as u32
}

/// The hash of a client, for a service with ClientIP affinity: all its connections go to one backend.
#[inline(always)]
pub fn client<A: Addr>(src: A, service: u32) -> u32 {
    mix(mix(src.fold()) ^ service as u64) as u32
}

/// The hash of bytes, the same in every version: FNV-1a, mixed.
pub fn bytes(all: impl IntoIterator<Item = u8>) -> u64 {
    let step = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    mix(all.into_iter().fold(0xcbf2_9ce4_8422_2325, step))
}

/// The hash of what a socket of this node, by its number, asks a service: which source port it will have is not
/// known yet.
#[inline(always)]
pub fn socket<A: Addr>(cookie: u64, dst: A, dport: Be16) -> u32 {
    mix(mix(cookie ^ (dport.get() as u64) << 48) ^ dst.fold().rotate_left(17)) as u32
}

/// The slot of a row of `count` slots that a hash falls on.
#[inline(always)]
pub const fn slot(hash: u32, count: u32) -> u32 {
    ((hash as u64 * count as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Ip4;

    #[test]
    fn connections_of_one_client_spread_evenly_over_slots() {
        let mut slots = [0u32; 97];
        for sport in 0..=u16::MAX {
            let key = FlowKey {
                src: Ip4::from_raw(0x0100_a8c0),
                dst: Ip4::from_raw(0x6414_a8c0),
                sport: Be16::new(sport),
                dport: Be16::new(80),
                proto: 6,
            };
            slots[slot(tuple(&key), 97) as usize] += 1;
        }
        // 676 each; five standard deviations are 129.
        assert!(slots.iter().all(|&n| (547..=805).contains(&n)), "{slots:?}");
    }

    #[test]
    fn sockets_of_this_node_spread_evenly_over_slots() {
        let mut slots = [0u32; 97];
        for cookie in 4_096..4_096 + 65_536 {
            slots[slot(socket(cookie, Ip4::from_raw(0x6414_a8c0), Be16::new(80)), 97) as usize] += 1;
        }
        // As above.
        assert!(slots.iter().all(|&n| (547..=805).contains(&n)), "{slots:?}");
    }

    #[test]
    fn a_slot_is_below_the_count() {
        for count in [1, 2, 97, 65_537, u32::MAX] {
            assert_eq!(slot(0, count), 0);
            assert!(slot(u32::MAX, count) < count);
        }
    }
}
