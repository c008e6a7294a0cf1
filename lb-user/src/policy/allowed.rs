//! What is allowed in one direction, as the two tries that packets are judged by: a bit stands for a set of ports.
//!
//! Invariant: equal rules give equal tries, whatever they are called and in whichever order they stand, and so the same
//! number. The longest prefix says everything: it has the bits of all that are shorter.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ipnet::IpNet;
use lb_common::hash;

use crate::source::netlink::write::octets;

/// Sets of ports in one direction of a pod: a bit each.
pub const SETS: usize = 64;

/// Some ports of a protocol; all are all protocols.
pub type Ports = BTreeSet<Range>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Range {
    /// None: any.
    pub proto: Option<u8>,
    pub first: u16,
    pub last: u16,
}

impl Range {
    pub const ALL: Range = Range { proto: None, first: 0, last: u16::MAX };
}

/// Addresses that are allowed some ports, but for some of these addresses.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    pub net: IpNet,
    pub except: &'a [IpNet],
    pub ports: Ports,
}

/// The first bits of protocol and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortPrefix {
    /// None: any protocol, and any port.
    pub proto: Option<u8>,
    /// Bits of the port.
    pub len: u8,
    pub port: u16,
}

impl PortPrefix {
    fn contains(&self, other: &PortPrefix) -> bool {
        let bits = u32::from(self.port ^ other.port) >> (16 - u32::from(self.len));
        self.proto.is_none() || (self.proto == other.proto && self.len <= other.len && bits == 0)
    }
}

/// The tries.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Allowed {
    pub peers: BTreeMap<IpNet, u64>,
    pub ports: BTreeMap<PortPrefix, u64>,
}

impl Allowed {
    /// None: there are more sets of ports than bits.
    pub fn new(entries: &[Entry<'_>]) -> Option<Allowed> {
        let sets: BTreeSet<&Ports> =
            entries.iter().map(|entry| &entry.ports).filter(|ports| !ports.is_empty()).collect();
        if sets.len() > SETS {
            return None;
        }
        let bits: BTreeMap<&Ports, u64> = sets.into_iter().enumerate().map(|(i, set)| (set, 1 << i)).collect();
        Some(Allowed { peers: peers(entries, &bits), ports: ports(&bits) })
    }

    /// A number that another one hardly has: who is allowed the same has the same, also after a restart.
    pub fn number(&self) -> u32 {
        let mut all = Vec::new();
        for (net, bits) in &self.peers {
            all.extend(octets(net.addr()));
            all.push(net.prefix_len());
            all.extend(bits.to_le_bytes());
        }
        for (prefix, bits) in &self.ports {
            all.extend([prefix.proto.map_or(0, |proto| proto.max(1)), prefix.len]);
            all.extend(prefix.port.to_le_bytes());
            all.extend(bits.to_le_bytes());
        }
        hash::bytes(all) as u32
    }
}

fn peers(entries: &[Entry<'_>], bits: &BTreeMap<&Ports, u64>) -> BTreeMap<IpNet, u64> {
    let of = |entry: &Entry<'_>| bits.get(&entry.ports).copied().unwrap_or_default();
    let mut plain: HashMap<IpNet, u64> = HashMap::new();
    let mut nets = BTreeSet::new();
    for entry in entries.iter().filter(|entry| of(entry) != 0) {
        nets.insert(entry.net.trunc());
        nets.extend(entry.except.iter().map(IpNet::trunc));
        if entry.except.is_empty() {
            *plain.entry(entry.net.trunc()).or_default() |= of(entry);
        }
    }
    let lengths: BTreeSet<u8> = plain.keys().map(IpNet::prefix_len).collect();
    let broken: Vec<&Entry<'_>> = entries.iter().filter(|entry| !entry.except.is_empty()).collect();
    let all = |net: &IpNet| {
        let wider = lengths.iter().take_while(|len| **len <= net.prefix_len());
        let wider = wider.filter_map(|len| Some(IpNet::new(net.addr(), *len).ok()?.trunc()));
        let plain = wider.filter_map(|wider| plain.get(&wider)).fold(0, |all, bits| all | bits);
        let holds = |entry: &&&Entry<'_>| entry.net.contains(net) && !entry.except.iter().any(|e| e.contains(net));
        plain | broken.iter().filter(holds).fold(0, |all, entry| all | of(entry))
    };
    nets.into_iter().map(|net| (net, all(&net))).collect()
}

fn ports(bits: &BTreeMap<&Ports, u64>) -> BTreeMap<PortPrefix, u64> {
    let mut all: BTreeMap<PortPrefix, u64> = BTreeMap::new();
    for (set, bit) in bits {
        for prefix in set.iter().flat_map(prefixes) {
            *all.entry(prefix).or_default() |= bit;
        }
    }
    let under =
        |prefix: &PortPrefix| all.iter().filter(|(other, _)| other.contains(prefix)).fold(0, |sum, (_, b)| sum | b);
    all.keys().map(|prefix| (*prefix, under(prefix))).collect()
}

/// The fewest prefixes that make up a range.
fn prefixes(range: &Range) -> Vec<PortPrefix> {
    if range.proto.is_none() {
        return vec![PortPrefix { proto: None, len: 0, port: 0 }];
    }
    let (mut from, end) = (u32::from(range.first), u32::from(range.last) + 1);
    let mut all = Vec::new();
    while from < end {
        let aligned = if from == 0 { 16 } else { from.trailing_zeros().min(16) };
        let zeros = aligned.min((end - from).ilog2());
        all.push(PortPrefix { proto: range.proto, len: 16 - zeros as u8, port: from as u16 });
        from += 1 << zeros;
    }
    all
}
