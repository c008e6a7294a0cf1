//! What the wrapper writes: packets of numbered connections, in both versions and directions.
//!
//! A number's lower 14 bits go into the client's port, the others into its address, so that any
//! number of connections is told by two words.

use std::net::{Ipv4Addr, Ipv6Addr};

pub const SYN: u8 = 2;
pub const SYN_ACK: u8 = 0x12;
pub const ACK: u8 = 0x10;

/// The numbered side: the address of number 0 in each version.
#[derive(Clone, Copy, Debug)]
pub struct Clients {
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

/// Clients of services.
pub const CLIENTS: Clients =
    Clients { v4: Ipv4Addr::new(10, 128, 0, 0), v6: Ipv6Addr::new(0xfd10, 0x128, 0, 0, 0, 0, 0x0a80, 0) };

/// As the program `bench.rs` of lb-ebpf has it.
#[repr(C)]
#[derive(Clone, Copy, Debug, zerocopy::IntoBytes, zerocopy::Immutable)]
pub struct Script {
    link: [u16; 8],
    words: [u32; 16],
    mask: u32,
    shuffle: u32,
    base: u32,
    reply: u32,
}

/// One side of a connection that is not the numbered client.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    pub port: u16,
}

/// Which connections, in which order.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// A power of two.
    pub count: u32,
    pub first: u32,
    pub shuffled: bool,
}

impl Order {
    pub fn random(count: u32) -> Order {
        Order { count, first: 0, shuffled: true }
    }

    pub fn chunk(first: u32, count: u32) -> Order {
        Order { count, first, shuffled: false }
    }

    /// Numbers that never come again.
    pub fn endless() -> Order {
        Order { count: 0, first: 0, shuffled: false }
    }
}

impl Script {
    /// Packets of clients to a peer, or of the peer to clients.
    pub fn tcp(v6: bool, peer: Peer, flags: u8, reply: bool, order: Order) -> Script {
        Script::tcp_of(CLIENTS, v6, peer, flags, reply, order)
    }

    pub fn tcp_of(clients: Clients, v6: bool, peer: Peer, flags: u8, reply: bool, order: Order) -> Script {
        let header = [0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0xff, 0xff, 0x12, 0x34, 0, 0];
        Script::of(clients, v6, peer, (6, &header), reply, order)
    }

    pub fn udp_of(clients: Clients, v6: bool, peer: Peer, order: Order) -> Script {
        Script::of(clients, v6, peer, (17, &[0, 20, 0x12, 0x34, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), false, order)
    }

    /// UDP packets without checksum, of clients to a peer or, to those named, of the peer.
    pub fn udp4(peer: Peer, answered: Option<Clients>, order: Order) -> Script {
        let l4 = (17, &[0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        Script::of(answered.unwrap_or(CLIENTS), false, peer, l4, answered.is_some(), order)
    }

    /// `l4`: the protocol, and what comes behind its ports.
    fn of(clients: Clients, v6: bool, peer: Peer, l4: (u8, &[u8; 16]), reply: bool, order: Order) -> Script {
        let ports = if reply { [peer.port, 0] } else { [0, peer.port] };
        let mut packet =
            if v6 { header6(clients.v6, peer.v6, l4.0, reply) } else { header4(clients.v4, peer.v4, l4.0, reply) };
        packet.extend(ports.iter().flat_map(|p| p.to_be_bytes()));
        packet.extend(l4.1);
        Script::new(if v6 { 0x86dd } else { 0x0800 }, &packet, reply, order)
    }

    fn new(ethertype: u16, packet: &[u8], reply: bool, order: Order) -> Script {
        let mut words = [0; 16];
        for (word, bytes) in words.iter_mut().zip(packet.chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        let mut link = [0x0202u16; 8];
        link[6] = ethertype.to_be();
        Script {
            link,
            words,
            mask: order.count.wrapping_sub(1),
            shuffle: order.shuffled.into(),
            base: order.first,
            reply: reply.into(),
        }
    }

    /// Sets the link-layer addresses.
    pub fn link(mut self, dst: [u8; 6], src: [u8; 6]) -> Script {
        let addrs = [dst, src].concat();
        for (word, bytes) in self.link.iter_mut().zip(addrs.chunks_exact(2)) {
            *word = u16::from_ne_bytes([bytes[0], bytes[1]]);
        }
        self
    }
}

fn header4(client: Ipv4Addr, peer: Ipv4Addr, proto: u8, reply: bool) -> Vec<u8> {
    let (src, dst) = if reply { (peer, client) } else { (client, peer) };
    let mut header = vec![0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, proto, 0, 0];
    header.extend(src.octets().into_iter().chain(dst.octets()));
    checksum(&mut header, reply);
    header
}

/// Of a client's address of zeros, which the program adds.
fn checksum(header: &mut [u8], reply: bool) {
    let client = if reply { 16..20 } else { 12..16 };
    header[10..12].fill(0);
    let mut sum = 0;
    for (i, pair) in header[..20].chunks_exact(2).enumerate() {
        if !client.contains(&(i * 2)) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
        }
    }
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    header[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

fn header6(client: Ipv6Addr, peer: Ipv6Addr, proto: u8, reply: bool) -> Vec<u8> {
    let (src, dst) = if reply { (peer, client) } else { (client, peer) };
    let mut header = vec![0x60, 0, 0, 0, 0, 20, proto, 64];
    header.extend(src.octets().into_iter().chain(dst.octets()));
    header
}
