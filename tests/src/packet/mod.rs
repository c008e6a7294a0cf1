//! Packets as text: a line that a human writes, the bytes it means, and the way back.
//!
//! `tcp client:40000 > vip:80 SYN ttl=63 len=20` is a [`Spec`]; [`build`] makes the bytes with all
//! lengths and checksums computed in full, and [`show`] writes the line for bytes. Nothing here
//! uses the engine's packet code: it is the engine's judge. The grammar stands in `cases/README.md`.

pub mod build;
pub mod checksum;
pub mod parse;
pub mod show;

use std::collections::BTreeMap;
use std::net::IpAddr;

pub use build::build;
pub use show::show;

/// A packet in words. What is not said has the default that `build` gives it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spec {
    /// `tcp`, `udp`, `sctp`, `icmp`, `proto-47`, `arp`, `ether-0x88cc`, `raw`.
    pub kind: String,
    pub src: Option<End>,
    pub dst: Option<End>,
    /// `ttl=63` and the like; flags have an empty value.
    pub attrs: BTreeMap<String, String>,
    /// The packet that an ICMP error quotes.
    pub inner: Option<Box<Spec>>,
}

/// A host, by name or address, and maybe a port.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    pub host: String,
    pub port: Option<u16>,
}

pub type Mac = [u8; 6];

/// Names for addresses, and the link-layer addresses that go without saying.
#[derive(Clone, Debug, Default)]
pub struct Names {
    pub v6: bool,
    pub hosts: BTreeMap<String, IpAddr>,
    /// Source and destination of the link layer where the line doesn't say them.
    pub macs: (Mac, Mac),
}

impl Names {
    pub fn resolve(&self, host: &str) -> Result<IpAddr, String> {
        if let Some(addr) = self.hosts.get(host) {
            return Ok(*addr);
        }
        host.parse().map_err(|_| format!("{host}: neither a known host nor an address"))
    }

    pub fn name(&self, addr: IpAddr) -> String {
        let known = self.hosts.iter().find(|(_, a)| **a == addr);
        known.map_or_else(|| addr.to_string(), |(name, _)| name.clone())
    }

    pub fn with_macs(&self, src: Mac, dst: Mac) -> Names {
        Names { macs: (src, dst), ..self.clone() }
    }
}

/// ICMP messages by name: the type and code in IPv4 and in IPv6.
pub const ICMP_NAMES: &[(&str, [u8; 2], [u8; 2])] = &[
    ("echo", [8, 0], [128, 0]),
    ("echo-reply", [0, 0], [129, 0]),
    ("port-unreachable", [3, 3], [1, 4]),
    ("host-unreachable", [3, 1], [1, 3]),
    ("net-unreachable", [3, 0], [1, 0]),
    ("prohibited", [3, 13], [1, 1]),
    ("too-big", [3, 4], [2, 0]),
    ("time-exceeded", [11, 0], [3, 0]),
    ("reassembly-timeout", [11, 1], [3, 1]),
    ("parameter-problem", [12, 0], [4, 0]),
    ("neighbour-solicitation", [200, 0], [135, 0]),
];

/// TCP's flags by name.
pub const TCP_FLAGS: [(&str, u8); 8] =
    [("FIN", 1), ("SYN", 2), ("RST", 4), ("PSH", 8), ("ACK", 16), ("URG", 32), ("ECE", 64), ("CWR", 128)];

/// What the defaults are, for the builder and the way back.
pub mod default {
    pub const TTL: u8 = 64;
    pub const ID: u16 = 0x1234;
    pub const SEQ: u32 = 1000;
    pub const ACK: u32 = 2000;
    pub const WINDOW: u16 = 0xfaf0;
    pub const ECHO: (u16, u16) = (7, 1);
}

/// The payload that `len=` means: bytes that differ from their neighbours.
pub fn pattern(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(|i| (i as u8).wrapping_mul(7).wrapping_add(1)).collect()
}

/// `0a1b` as bytes.
pub fn unhex(text: &str) -> Result<Vec<u8>, String> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return Err(format!("{text}: not hexadecimal bytes"));
    }
    let byte = |i| u8::from_str_radix(&text[i..i + 2], 16).map_err(|e| format!("{text}: {e}"));
    (0..text.len()).step_by(2).map(byte).collect()
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
