//! The plainest packets: Ethernet, an IP header without options, a TCP or UDP header. Checksums are
//! left to the packet cases; the engine changes them by differences.

use std::net::IpAddr;

use lb_common::wire::header::{ETH_P_IP, ETH_P_IPV6, TCP};

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    pub proto: u8,
    pub src: IpAddr,
    pub sport: u16,
    pub dst: IpAddr,
    pub dport: u16,
}

impl Tuple {
    pub fn reversed(self) -> Self {
        let Tuple { proto, src, sport, dst, dport } = self;
        Tuple { proto, src: dst, sport: dport, dst: src, dport: sport }
    }
}

/// A packet of the tuple; `flags` are TCP's.
pub fn build(tuple: &Tuple, flags: u8) -> Vec<u8> {
    let l4_len: u16 = if tuple.proto == TCP { 20 } else { 8 };
    // To the port of the simulated world.
    let mut bytes = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 9];
    match (tuple.src, tuple.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            bytes.extend(ETH_P_IP.to_be_bytes());
            bytes.extend([0x45, 0]);
            bytes.extend((20 + l4_len).to_be_bytes());
            bytes.extend([0, 0, 0x40, 0, 64, tuple.proto, 0, 0]);
            bytes.extend(src.octets());
            bytes.extend(dst.octets());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            bytes.extend(ETH_P_IPV6.to_be_bytes());
            bytes.extend([0x60, 0, 0, 0]);
            bytes.extend(l4_len.to_be_bytes());
            bytes.extend([tuple.proto, 64]);
            bytes.extend(src.octets());
            bytes.extend(dst.octets());
        }
        _ => panic!("{tuple:?} mixes families"),
    }
    bytes.extend(tuple.sport.to_be_bytes());
    bytes.extend(tuple.dport.to_be_bytes());
    if tuple.proto == TCP {
        bytes.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0x12, 0x34, 0, 0]);
    } else {
        bytes.extend([0, 8, 0x12, 0x34]);
    }
    bytes
}

/// The tuple of such a packet.
pub fn tuple(bytes: &[u8]) -> Tuple {
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let v4 = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&bytes[at..at + 4]).expect("four bytes"));
    let v6 = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&bytes[at..at + 16]).expect("sixteen bytes"));
    if bytes[12..14] == ETH_P_IP.to_be_bytes() {
        Tuple { proto: bytes[23], src: v4(26), dst: v4(30), sport: port(34), dport: port(36) }
    } else {
        Tuple { proto: bytes[20], src: v6(22), dst: v6(38), sport: port(54), dport: port(56) }
    }
}
