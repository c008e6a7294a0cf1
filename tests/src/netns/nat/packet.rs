//! A captured packet as two routers' packets can be compared: without ports, ids and sequence
//! numbers, which every router chooses for itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What is compared of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub from: IpAddr,
    pub to: IpAddr,
    pub protocol: u8,
    pub ttl: u8,
    pub tos: u8,
    /// Don't fragment.
    pub whole: bool,
    /// Offset in bytes, and whether more follow.
    pub fragment: Option<(u16, bool)>,
    pub length: usize,
    pub flags: u8,
    /// Type and code.
    pub icmp: Option<(u8, u8)>,
    /// All checksums are right, as far as the packet holds what they are over.
    pub sums: bool,
    /// What an error is about. Its checksums and TTL aren't compared.
    pub quote: Option<Box<Seen>>,
    /// Not compared between routers: source and destination port, or the query's id twice.
    pub ports: (u16, u16),
    /// Not compared either: TCP's sequence number.
    pub sequence: u32,
}

/// What one side of a connection sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    pub out: Vec<Seen>,
    pub back: Vec<Seen>,
}

/// The connections of `near` in the order of their beginnings, each direction on its own, as two
/// routers' can be compared: left out are what timing decides, acknowledgements without data and
/// repetitions; data is merged, since where a stream is cut depends on timing, too.
pub fn connections(packets: &[Seen], near: &[IpAddr]) -> Vec<Connection> {
    let mut all: Vec<((u8, bool, u16), Connection)> = Vec::new();
    let mut before: Vec<&Seen> = Vec::new();
    for seen in packets.iter().filter(|seen| near.contains(&seen.from) || near.contains(&seen.to)) {
        let acknowledges = seen.protocol == TCP && seen.flags & (SYN | FIN | RST) == 0 && seen.length == 0;
        let out = near.contains(&seen.from);
        if acknowledges || seen.protocol == TCP && before.contains(&seen) {
            continue;
        }
        if seen.protocol == TCP {
            before.push(seen);
        }
        let protocol = seen.quote.as_ref().map_or(seen.protocol, |quote| quote.protocol);
        let key = (protocol, seen.from.is_ipv4(), if out { seen.ports.0 } else { seen.ports.1 });
        let index = all.iter().position(|(known, _)| *known == key).unwrap_or_else(|| {
            all.push((key, Connection::default()));
            all.len() - 1
        });
        let side = if out { &mut all[index].1.out } else { &mut all[index].1.back };
        let mut seen = Seen { ports: (0, 0), sequence: 0, ..seen.clone() };
        if let Some(quote) = &mut seen.quote {
            (quote.ports, quote.sequence) = ((0, 0), 0);
        }
        if seen.protocol == TCP {
            seen.flags &= !PUSH;
            let more = seen.flags & (SYN | FIN | RST) == 0;
            if let Some(last) = side.last_mut().filter(|last| more && last.flags & (SYN | FIN | RST) == 0) {
                last.length += seen.length;
                last.sums &= seen.sums;
                continue;
            }
        }
        side.push(seen);
    }
    all.into_iter().map(|(_, connection)| connection).collect()
}

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const PUSH: u8 = 8;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMP6: u8 = 58;

/// A frame's packet; None: something else, such as ARP or neighbour discovery.
pub fn frame(bytes: &[u8]) -> Option<Seen> {
    let seen = match bytes.get(12..14)? {
        [0x08, 0x00] | [0x86, 0xdd] => packet(&bytes[14..], true)?,
        _ => return None,
    };
    let neighbours = seen.protocol == ICMP6 && seen.icmp.is_some_and(|(kind, _)| (130..=143).contains(&kind));
    let many = match seen.to {
        IpAddr::V4(ip) => ip.is_multicast(),
        IpAddr::V6(ip) => ip.is_multicast(),
    };
    (!neighbours && !many).then_some(seen)
}

fn packet(bytes: &[u8], complete: bool) -> Option<Seen> {
    let mut seen = match bytes.first()? >> 4 {
        4 => ipv4(bytes, complete)?,
        6 => ipv6(bytes)?,
        _ => return None,
    };
    let (header, total) = seen.1;
    let end = total.min(bytes.len());
    let payload = bytes.get(header..end)?;
    seen.0.length = total.saturating_sub(header);
    transport(&mut seen.0, payload, complete && total <= bytes.len());
    Some(seen.0)
}

fn ipv4(bytes: &[u8], complete: bool) -> Option<(Seen, (usize, usize))> {
    let header = bytes.get(..usize::from(bytes[0] & 15) * 4)?;
    let short = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let addr = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&bytes[at..at + 4]).unwrap_or_default()).into();
    let fragment = ((short(6) & 0x1fff) * 8, short(6) & 0x2000 != 0);
    let seen = Seen {
        from: addr(12),
        to: addr(16),
        protocol: bytes[9],
        ttl: if complete { bytes[8] } else { 0 },
        tos: bytes[1],
        whole: short(6) & 0x4000 != 0,
        fragment: (fragment != (0, false)).then_some(fragment),
        length: 0,
        flags: 0,
        icmp: None,
        sums: sum(0, header) == 0xffff,
        quote: None,
        ports: (0, 0),
        sequence: 0,
    };
    Some((seen, (header.len(), short(2).into())))
}

fn ipv6(bytes: &[u8]) -> Option<(Seen, (usize, usize))> {
    bytes.get(..40)?;
    let addr = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[at..at + 16]).unwrap_or_default()).into();
    let total = 40 + usize::from(u16::from_be_bytes([bytes[4], bytes[5]]));
    let (mut protocol, mut header, mut fragment) = (bytes[6], 40, None);
    if protocol == 44 {
        let word = u16::from_be_bytes([*bytes.get(42)?, *bytes.get(43)?]);
        (protocol, header, fragment) = (bytes[40], 48, Some((word & !7, word & 1 != 0)));
    }
    let seen = Seen {
        from: addr(8),
        to: addr(24),
        protocol,
        ttl: bytes[7],
        tos: (bytes[0] << 4) | (bytes[1] >> 4),
        whole: true,
        fragment,
        length: 0,
        flags: 0,
        icmp: None,
        sums: true,
        quote: None,
        ports: (0, 0),
        sequence: 0,
    };
    Some((seen, (header, total)))
}

fn transport(seen: &mut Seen, bytes: &[u8], complete: bool) {
    if seen.fragment.is_some_and(|(offset, _)| offset != 0) {
        return;
    }
    let short = |at: usize| bytes.get(at..at + 2).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]));
    let whole = complete && seen.fragment.is_none();
    match seen.protocol {
        TCP | UDP => {
            seen.ports = (short(0), short(2));
            if seen.protocol == TCP && bytes.len() >= 20 {
                seen.flags = bytes[13];
                seen.sequence = u32::from(short(4)) << 16 | u32::from(short(6));
                seen.length -= usize::from(bytes[12] >> 4) * 4;
            }
            let unsummed = seen.protocol == UDP && short(6) == 0 && seen.from.is_ipv4();
            seen.sums &= !whole || unsummed || sum(pseudo(seen, bytes.len()), bytes) == 0xffff;
        }
        ICMP | ICMP6 if bytes.len() >= 8 => {
            seen.icmp = Some((bytes[0], bytes[1]));
            let start = if seen.protocol == ICMP6 { pseudo(seen, bytes.len()) } else { 0 };
            seen.sums &= !whole || sum(start, bytes) == 0xffff;
            let error = if seen.protocol == ICMP { matches!(bytes[0], 3 | 4 | 5 | 11 | 12) } else { bytes[0] < 128 };
            if error {
                // A quote's checksum of IPv4 is compared, that of its transport can't be.
                seen.quote = packet(&bytes[8..], false).map(|mut quote| {
                    quote.ttl = 0;
                    quote.into()
                });
                seen.ports = seen.quote.as_ref().map_or((0, 0), |quote| (quote.ports.1, quote.ports.0));
            } else {
                seen.ports = (short(4), short(4));
            }
        }
        _ => {}
    }
}

fn pseudo(seen: &Seen, length: usize) -> u32 {
    let mut bytes = Vec::new();
    for ip in [seen.from, seen.to] {
        match ip {
            IpAddr::V4(ip) => bytes.extend(ip.octets()),
            IpAddr::V6(ip) => bytes.extend(ip.octets()),
        }
    }
    sum(0, &bytes) + u32::from(seen.protocol) + length as u32
}

fn sum(start: u32, bytes: &[u8]) -> u32 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}
