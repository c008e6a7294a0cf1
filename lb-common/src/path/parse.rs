//! From bytes to a tuple: link layer, IPv4 or IPv6, transport.
//!
//! Invariant: None means "not for us to judge": such a packet goes to the kernel untouched.
//! Values only; nothing here changes a packet or asks a table.

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::prefix;
use crate::apply::{Diff, Packet, Rewrite, fold};
use crate::drop::Drop;
use crate::frame::Frame;
use crate::table::{FlowKey, PrefixPair};
use crate::wire::header::*;
use crate::wire::{Addr, Be16, Ip4, Ip6};

/// Where a packet's network header is.
#[derive(Clone, Copy)]
pub struct Link {
    pub ethertype: u16,
    pub l3: u32,
}

/// How much of a datagram this is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromZeros)]
#[repr(u8)]
pub enum Part {
    Whole,
    First,
    Later,
    /// The packet ends before its transport header does.
    Cut,
}

/// A packet's network header.
#[derive(Clone, Copy)]
pub struct Header<A> {
    pub src: A,
    pub dst: A,
    pub proto: u8,
    pub ttl: u8,
    /// Bytes from the network header's start to the packet's end, by the header.
    pub len: u32,
    /// Offset of the transport header.
    pub l4: u32,
    pub part: Part,
    /// The datagram's identification, of fragments.
    pub id: u32,
}

/// Everything that the path needs to know of a packet's bytes.
#[derive(Clone, Copy, FromZeros)]
#[repr(C)]
pub struct Parsed<A: Addr> {
    pub l3: u32,
    pub l4: u32,
    pub proto: u8,
    pub ttl: u8,
    pub len: u32,
    pub part: Part,
    pub id: u32,
    pub key: FlowKey<A>,
    /// The transport header is in this packet.
    pub has_l4: bool,
    /// Bytes of the transport header.
    pub l4_len: u32,
    /// TCP's flags.
    pub flags: u8,
    /// ICMP's type.
    pub icmp_type: u8,
    /// Not zero: of a protocol without ports that we know of.
    pub portless: u32,
    /// Not zero: it has a VLAN tag, so the kernel does what concerns links.
    pub tagged: u32,
}

/// The link-layer header, and one VLAN tag.
#[inline(always)]
pub fn link(frame: &Frame) -> Option<Link> {
    let ethertype = frame.read::<Be16>(12)?.get();
    if ethertype != ETH_P_8021Q && ethertype != ETH_P_8021AD {
        return Some(Link { ethertype, l3: ETH_LEN });
    }
    let ethertype = frame.read::<Be16>(ETH_LEN + 2)?.get();
    Some(Link { ethertype, l3: ETH_LEN + VLAN_LEN })
}

/// Which part of a query an ICMP message is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Query {
    None,
    Request,
    Reply,
}

/// What parsing and rewriting must know of an IP version.
pub trait Ip: Addr {
    /// Offset of the source address in the header.
    const SRC: u32;
    /// Offset of the destination address.
    const DST: u32;
    /// Offset of the TTL, or hop limit.
    const HOP_LIMIT: u32;
    /// All hosts on a link (RFC 1112 §4; RFC 4291 §2.7.1).
    const ALL_NODES: Self;
    /// The protocol number of its ICMP.
    const ICMP: u8;
    /// Length of the header without options.
    const LEN: u32;
    /// ICMP type and code of "port unreachable".
    const PORT_UNREACHABLE: [u8; 2];
    /// ICMP type of an echo request.
    const ECHO_REQUEST: u8;
    /// ICMP type of an echo reply.
    const ECHO_REPLY: u8;

    fn header(frame: &Frame, l3: u32) -> Option<Header<Self>>;
    /// Whether an ICMP type is an error message.
    fn is_error(icmp_type: u8) -> bool;
    /// What an ICMP type is among those that carry an id.
    fn query(icmp_type: u8) -> Query;
    /// New addresses and TTL, and the header's own checksum; `addrs` is what the addresses change.
    fn rewrite_header<P: Packet>(packet: &mut P, l3: u32, new: &Rewrite<Self>, addrs: Diff) -> Result<(), Drop>;
    /// Writes the header of a packet of ours: `payload` bytes of a protocol, from `src` to `dst`.
    fn write_header<P: Packet>(
        packet: &mut P,
        l3: u32,
        src: Self,
        dst: Self,
        proto: u8,
        payload: u32,
    ) -> Result<(), Drop>;
    /// The address in the outer prefix of a pair that stands for one in the inner prefix, or the other way
    /// round with `back` (RFC 6296). None where the IP version has no such thing.
    fn exchange(self, pair: &PrefixPair<Self>, back: bool) -> Option<Self>;
    /// Whether it is a multicast or link-local address, which is never translated.
    fn stays(self) -> bool;
    /// Whether a router may forward what goes there, or comes from there (RFC 1812 §5.3.7, RFC 4291 §2.5).
    fn is_routed(self) -> bool;
}

/// RFC 791 §3.1.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct Header4 {
    version_ihl: u8,
    tos: u8,
    len: Be16,
    id: Be16,
    fragment: Be16,
    ttl: u8,
    proto: u8,
    check: u16,
    src: Ip4,
    dst: Ip4,
}

/// RFC 8200 §3.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct Header6 {
    version: u8,
    class: [u8; 3],
    len: Be16,
    next: u8,
    hop_limit: u8,
    src: Ip6,
    dst: Ip6,
}

impl Ip for Ip4 {
    const SRC: u32 = 12;
    const DST: u32 = 16;
    const HOP_LIMIT: u32 = 8;
    const ALL_NODES: Self = Ip4::from_raw(u32::from_ne_bytes([224, 0, 0, 1]));
    const ICMP: u8 = ICMP;
    const LEN: u32 = IP4_LEN;
    const PORT_UNREACHABLE: [u8; 2] = [3, 3];
    const ECHO_REQUEST: u8 = 8;
    const ECHO_REPLY: u8 = 0;

    #[inline(always)]
    fn header(frame: &Frame, l3: u32) -> Option<Header<Self>> {
        let header = frame.read::<Header4>(l3)?;
        let header_len = (header.version_ihl & 0xf) as u32 * 4;
        if header.version_ihl >> 4 != 4 || header_len < IP4_LEN {
            return None;
        }
        let fragment = header.fragment.get();
        let part = match (fragment & 0x1fff, fragment & 0x2000) {
            (0, 0) => Part::Whole,
            (0, _) => Part::First,
            _ => Part::Later,
        };
        Some(Header {
            src: header.src,
            dst: header.dst,
            proto: header.proto,
            ttl: header.ttl,
            len: header.len.get() as u32,
            l4: l3 + header_len,
            part,
            id: header.id.get() as u32,
        })
    }

    /// RFC 792: destination unreachable, redirect, time exceeded, parameter problem; source quench is of the
    /// past (RFC 6633).
    #[inline(always)]
    fn is_error(icmp_type: u8) -> bool {
        matches!(icmp_type, 3 | 5 | 11 | 12)
    }

    /// Echo, timestamp and address mask (RFC 792, RFC 950); information is of the past (RFC 5508 REQ-10c).
    #[inline(always)]
    fn query(icmp_type: u8) -> Query {
        match icmp_type {
            8 | 13 | 17 => Query::Request,
            0 | 14 | 18 => Query::Reply,
            _ => Query::None,
        }
    }

    #[inline(always)]
    fn rewrite_header<P: Packet>(packet: &mut P, l3: u32, new: &Rewrite<Self>, addrs: Diff) -> Result<(), Drop> {
        packet.update(l3, |header: &mut Header4| {
            let old = u16::from_ne_bytes([header.ttl, header.proto]);
            let ttl = Diff::of16(old, u16::from_ne_bytes([new.ttl, header.proto]));
            header.ttl = new.ttl;
            header.check = addrs.and(ttl).applied(header.check);
            header.src = new.src;
            header.dst = new.dst;
        })
    }

    #[inline(always)]
    fn write_header<P: Packet>(
        packet: &mut P,
        l3: u32,
        src: Self,
        dst: Self,
        proto: u8,
        payload: u32,
    ) -> Result<(), Drop> {
        let len = Be16::new((IP4_LEN + payload) as u16);
        // Precedence "internetwork control", as RFC 1812 §4.3.2.5 asks of errors; TTL 64.
        let tos = if proto == ICMP { 0xc0 } else { 0 };
        let words = [u16::from_ne_bytes([0x45, tos]), len.raw(), 0, 0, u16::from_ne_bytes([64, proto])];
        let mut sum = src.sum() + dst.sum();
        for word in words {
            sum += word as u64;
        }
        packet.store(l3, words)?;
        packet.store(l3 + 10, !fold(sum))?;
        packet.store(l3 + Self::SRC, [src, dst])
    }

    #[inline(always)]
    fn exchange(self, _: &PrefixPair<Self>, _: bool) -> Option<Self> {
        None
    }

    /// 224.0.0.0 and above; 169.254.0.0/16.
    #[inline(always)]
    fn stays(self) -> bool {
        let [a, b, ..] = self.raw().to_ne_bytes();
        a >= 224 || (a == 169 && b == 254)
    }

    /// Neither 0.0.0.0/8 nor 127.0.0.0/8, beside those that stay.
    #[inline(always)]
    fn is_routed(self) -> bool {
        let [a, ..] = self.raw().to_ne_bytes();
        a != 0 && a != 127 && !self.stays()
    }
}

impl Ip for Ip6 {
    const SRC: u32 = 8;
    const DST: u32 = 24;
    const HOP_LIMIT: u32 = 7;
    const ALL_NODES: Self = Ip6::from_raw([0xff02_0000_u32.to_be(), 0, 0, 1_u32.to_be()]);
    const ICMP: u8 = ICMP6;
    const LEN: u32 = IP6_LEN;
    const PORT_UNREACHABLE: [u8; 2] = [1, 4];
    const ECHO_REQUEST: u8 = 128;
    const ECHO_REPLY: u8 = 129;

    #[inline(always)]
    fn header(frame: &Frame, l3: u32) -> Option<Header<Self>> {
        let header = frame.read::<Header6>(l3)?;
        if header.version >> 4 != 6 {
            return None;
        }
        let mut found = Header {
            src: header.src,
            dst: header.dst,
            proto: header.next,
            ttl: header.hop_limit,
            len: header.len.get() as u32 + IP6_LEN,
            l4: l3 + IP6_LEN,
            part: Part::Whole,
            id: 0,
        };
        // The common case leaves at the first test; RFC 8200 §4.1 names four headers before the
        // transport's, one of them twice at the most.
        for _ in 0..5 {
            match found.proto {
                HOP_BY_HOP | ROUTING | DEST_OPTIONS => {
                    let [next, len] = frame.read::<[u8; 2]>(found.l4)?;
                    found.proto = next;
                    found.l4 += len as u32 * 8 + 8;
                }
                FRAGMENT => {
                    let [first, id] = frame.read::<[u32; 2]>(found.l4)?;
                    let first = u32::from_be(first);
                    found.proto = (first >> 24) as u8;
                    found.l4 += 8;
                    found.id = u32::from_be(id);
                    found.part = match (first & 0xfff8, first & 1) {
                        (0, 0) => Part::Whole,
                        (0, _) => Part::First,
                        _ => Part::Later,
                    };
                    if found.part == Part::Later {
                        return Some(found);
                    }
                }
                _ => return Some(found),
            }
        }
        None
    }

    /// RFC 4443 §2.1: error messages have types 0 to 127.
    #[inline(always)]
    fn is_error(icmp_type: u8) -> bool {
        icmp_type < 128
    }

    /// Echo (RFC 4443 §4).
    #[inline(always)]
    fn query(icmp_type: u8) -> Query {
        match icmp_type {
            Self::ECHO_REQUEST => Query::Request,
            Self::ECHO_REPLY => Query::Reply,
            _ => Query::None,
        }
    }

    #[inline(always)]
    fn rewrite_header<P: Packet>(packet: &mut P, l3: u32, new: &Rewrite<Self>, _: Diff) -> Result<(), Drop> {
        packet.update(l3, |header: &mut Header6| {
            header.hop_limit = new.ttl;
            header.src = new.src;
            header.dst = new.dst;
        })
    }

    #[inline(always)]
    fn write_header<P: Packet>(
        packet: &mut P,
        l3: u32,
        src: Self,
        dst: Self,
        proto: u8,
        payload: u32,
    ) -> Result<(), Drop> {
        let words =
            [u16::from_ne_bytes([0x60, 0]), 0, Be16::new(payload as u16).raw(), u16::from_ne_bytes([proto, 64])];
        packet.store(l3, words)?;
        packet.store(l3 + Self::SRC, src)?;
        packet.store(l3 + Self::DST, dst)
    }

    #[inline(always)]
    fn exchange(self, pair: &PrefixPair<Self>, back: bool) -> Option<Self> {
        prefix::exchange(self, pair, back)
    }

    /// ff00::/8; fe80::/10.
    #[inline(always)]
    fn stays(self) -> bool {
        let [a, b, ..] = self.raw()[0].to_ne_bytes();
        a == 0xff || (a == 0xfe && b & 0xc0 == 0x80)
    }

    /// Not in ::/32, which holds the unspecified and the loopback address, beside those that stay.
    #[inline(always)]
    fn is_routed(self) -> bool {
        self.raw()[0] != 0 && !self.stays()
    }
}

/// The network and transport headers; `tagged`: with a VLAN tag outside its bytes.
#[inline(always)]
pub fn packet<A: Ip>(frame: &Frame, l3: u32, tagged: u32) -> Option<Parsed<A>> {
    let header = A::header(frame, l3)?;
    let mut parsed = Parsed {
        l3,
        l4: header.l4,
        proto: header.proto,
        ttl: header.ttl,
        len: header.len,
        part: header.part,
        id: header.id,
        key: FlowKey {
            src: header.src,
            dst: header.dst,
            sport: Be16::default(),
            dport: Be16::default(),
            proto: header.proto as u32,
        },
        has_l4: false,
        l4_len: 0,
        flags: 0,
        icmp_type: 0,
        portless: 0,
        tagged: tagged | (l3 - ETH_LEN),
    };
    if header.part != Part::Later && transport(frame, &mut parsed).is_none() {
        parsed.part = Part::Cut;
    }
    Some(parsed)
}

/// The ports of the protocols that are balanced; an ICMP message's type, and a query's id as the port of
/// whoever asks.
#[inline(always)]
fn transport<A: Ip>(frame: &Frame, parsed: &mut Parsed<A>) -> Option<()> {
    match parsed.proto {
        TCP => {
            let [ports, _, _, flags, _] = frame.read::<[u32; 5]>(parsed.l4)?;
            let [offset, flags, _, _] = flags.to_ne_bytes();
            parsed.set_ports(ports);
            parsed.flags = flags;
            parsed.l4_len = (offset >> 4) as u32 * 4;
        }
        UDP => {
            let [ports, _] = frame.read::<[u32; 2]>(parsed.l4)?;
            parsed.set_ports(ports);
            parsed.l4_len = 8;
        }
        SCTP => {
            let [ports, _, _] = frame.read::<[u32; 3]>(parsed.l4)?;
            parsed.set_ports(ports);
            parsed.l4_len = 12;
        }
        proto if proto == A::ICMP => {
            let [head, rest] = frame.read::<[u32; 2]>(parsed.l4)?;
            let [icmp_type, ..] = head.to_ne_bytes();
            let [id, sequence, ..] = rest.to_ne_bytes();
            let id = Be16::from_raw(u16::from_ne_bytes([id, sequence]));
            parsed.icmp_type = icmp_type;
            parsed.l4_len = 8;
            match A::query(icmp_type) {
                Query::Request => parsed.key.sport = id,
                Query::Reply => parsed.key.dport = id,
                Query::None => {}
            }
        }
        _ => parsed.portless = 1,
    }
    parsed.has_l4 = true;
    Some(())
}

impl<A: Addr> Parsed<A> {
    /// From the first four bytes of TCP, UDP and SCTP.
    #[inline(always)]
    fn set_ports(&mut self, word: u32) {
        let [a, b, c, d] = word.to_ne_bytes();
        self.key.sport = Be16::from_raw(u16::from_ne_bytes([a, b]));
        self.key.dport = Be16::from_raw(u16::from_ne_bytes([c, d]));
    }
}
