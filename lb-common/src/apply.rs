//! Carrying out a rewrite: the one place that knows which bytes and checksums a translation changes.
//!
//! Written once over [`Packet`], which has two ways to touch a packet: the frame itself (XDP, the
//! host) and the kernel's helpers (TC, where a checksum may be unfinished or kept beside the packet).
//! Invariant: checksums are changed by differences (RFC 1624), never computed anew, so that a wrong
//! one stays wrong.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::drop::Drop;
use crate::frame::Frame;
use crate::path::parse::{Ip, Parsed, Query};
use crate::table::FlowKey;
use crate::wire::header::{DCCP, SCTP, TCP, UDP, UDP_LITE};
use crate::wire::{Addr, Be16, Mac};

/// A packet that can be read and changed.
pub trait Packet {
    fn frame(&self) -> Frame<'_>;

    /// Writes the value at `offset`.
    #[inline(always)]
    fn store<T: FromBytes + IntoBytes + Immutable + Copy>(&mut self, offset: u32, value: T) -> Result<(), Drop> {
        self.frame().write(offset, value).ok_or(Drop::RewriteFailed)
    }

    /// Changes the value at `offset` in place.
    #[inline(always)]
    fn update<T: FromBytes + IntoBytes + Immutable + Copy>(
        &mut self,
        offset: u32,
        change: impl FnOnce(&mut T),
    ) -> Result<(), Drop> {
        self.frame().change(offset, change).ok_or(Drop::RewriteFailed)
    }

    /// Changes the ports and the checksum of the TCP or UDP header at `offset`.
    fn transport(&mut self, offset: u32, ports: [Be16; 2], pseudo: Diff, plain: Diff, udp: bool) -> Result<(), Drop>;
    /// Changes the transport checksum at `offset`: `pseudo` by the addresses, `plain` by the rest.
    fn checksum4(&mut self, offset: u32, pseudo: Diff, plain: Diff, udp: bool) -> Result<(), Drop>;
    /// Cuts or extends the packet at its end.
    fn resize(&mut self, len: u32) -> Result<(), Drop>;
    /// Makes room for `by` bytes of headers between the link-layer header and the rest, or before both: the link-layer
    /// header is to be written anew. They are those of UDP over IPv4 or IPv6, and hold an Ethernet frame, or of an ICMP answer.
    fn grow_front(&mut self, by: u32, v4: bool) -> Result<(), Drop>;
    /// Takes as much away again, of one IP version, around a packet of `inner_v4` or the other one.
    fn shrink_front(&mut self, by: u32, v4: bool, inner_v4: bool) -> Result<(), Drop>;
    /// Whether a socket of this node would take what comes by a tuple of TCP or UDP.
    fn has_socket<A: Addr>(&self, key: &FlowKey<A>) -> bool;
}

/// A difference of one's complement sums, in memory order.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Diff(pub u64);

impl Diff {
    #[inline(always)]
    pub fn of16(old: u16, new: u16) -> Self {
        Diff(!old as u64 + new as u64)
    }

    /// Of two addresses each.
    #[inline(always)]
    pub fn of_addrs<A: Ip>(old: (A, A), new: (A, A)) -> Self {
        let words = if A::IS_V6 { 8 } else { 2 };
        Diff(words * 0xffff_ffff - old.0.sum() - old.1.sum() + new.0.sum() + new.1.sum())
    }

    #[inline(always)]
    pub fn and(self, other: Diff) -> Self {
        Diff(self.0 + other.0)
    }

    /// Whether it changes no checksum.
    #[inline(always)]
    pub fn is_zero(self) -> bool {
        matches!(fold(self.0), 0 | 0xffff)
    }

    /// Folded to 32 bits, as the kernel's helpers take it.
    #[inline(always)]
    pub fn fold32(self) -> u32 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        ((sum & 0xffff_ffff) + (sum >> 32)) as u32
    }

    /// The checksum that `check` becomes (RFC 1624, equation 3).
    #[inline(always)]
    pub fn applied(self, check: u16) -> u16 {
        !fold(self.0 + !check as u64)
    }
}

/// A one's complement sum folded to 16 bits.
#[inline(always)]
pub fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// What a packet's tuple becomes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rewrite<A> {
    pub src: A,
    pub dst: A,
    pub sport: Be16,
    pub dport: Be16,
    pub ttl: u8,
    /// We transmit it ourselves, with these link-layer addresses ([`link`]). Not an `Option`, whose payload
    /// is undefined where there is none: the compiler may spill it all the same, and the verifier refuses that.
    pub transmits: bool,
    pub link: [u32; 3],
}

/// Link-layer addresses, destination first, as they stand in a packet.
#[inline(always)]
pub const fn link(dst: Mac, src: Mac) -> [u32; 3] {
    zerocopy::transmute!([dst, src])
}

/// Rewrites addresses, ports, TTL and link-layer addresses of a packet.
#[inline(always)]
pub fn rewrite<A: Ip, P: Packet>(packet: &mut P, parsed: &Parsed<A>, new: &Rewrite<A>) -> Result<(), Drop> {
    let key = &parsed.key;
    let addrs = Diff::of_addrs((key.src, key.dst), (new.src, new.dst));
    if parsed.has_l4 {
        transport(packet, parsed, new, addrs)?;
    }
    A::rewrite_header(packet, parsed.l3, new, addrs)?;
    if new.transmits { packet.store(0, new.link) } else { Ok(()) }
}

#[inline(always)]
fn transport<A: Ip, P: Packet>(packet: &mut P, parsed: &Parsed<A>, new: &Rewrite<A>, addrs: Diff) -> Result<(), Drop> {
    let key = &parsed.key;
    match parsed.proto {
        TCP | UDP => {
            let ports = Diff::of16(key.sport.raw(), new.sport.raw()).and(Diff::of16(key.dport.raw(), new.dport.raw()));
            packet.transport(parsed.l4, [new.sport, new.dport], addrs, ports, parsed.proto == UDP)
        }
        // SCTP's checksum covers its ports but no addresses (RFC 9260 §6.8): its ports stay.
        SCTP => Ok(()),
        // An ICMPv6 checksum covers the addresses, an ICMP checksum doesn't.
        proto if proto == A::ICMP => {
            let (old, id) = match A::query(parsed.icmp_type) {
                Query::Request => (key.sport, new.sport),
                Query::Reply => (key.dport, new.dport),
                Query::None => Default::default(),
            };
            let pseudo = if A::IS_V6 { addrs } else { Diff::default() };
            if id == old {
                return packet.checksum4(parsed.l4 + 2, pseudo, Diff::default(), false);
            }
            packet.checksum4(parsed.l4 + 2, pseudo, Diff::of16(old.raw(), id.raw()), false)?;
            packet.store(parsed.l4 + 4, id)
        }
        // RFC 3828, RFC 4340: both have their checksum where UDP has it.
        UDP_LITE | DCCP => packet.checksum4(parsed.l4 + 6, addrs, Diff::default(), false),
        _ => Ok(()),
    }
}

/// RFC 9293 §3.1.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
pub struct TcpHeader {
    pub ports: [Be16; 2],
    middle: [u32; 3],
    pub check: u16,
    urgent: u16,
}

/// RFC 768.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
pub struct UdpHeader {
    pub ports: [Be16; 2],
    len: u16,
    pub check: u16,
}

/// The UDP checksum after a change (RFC 768: zero is none, and is never made).
#[inline(always)]
fn udp_checksum(check: u16, diff: Diff) -> u16 {
    if check == 0 {
        return 0;
    }
    match diff.applied(check) {
        0 => 0xffff,
        check => check,
    }
}

/// The host's and XDP's way: the frame itself, checksums whole.
impl Packet for Frame<'_> {
    #[inline(always)]
    fn frame(&self) -> Frame<'_> {
        *self
    }

    #[inline(always)]
    fn transport(&mut self, offset: u32, ports: [Be16; 2], pseudo: Diff, plain: Diff, udp: bool) -> Result<(), Drop> {
        let diff = pseudo.and(plain);
        if udp {
            return self.update(offset, |header: &mut UdpHeader| {
                header.ports = ports;
                header.check = udp_checksum(header.check, diff);
            });
        }
        self.update(offset, |header: &mut TcpHeader| {
            header.ports = ports;
            header.check = diff.applied(header.check);
        })
    }

    #[inline(always)]
    fn checksum4(&mut self, offset: u32, pseudo: Diff, plain: Diff, udp: bool) -> Result<(), Drop> {
        let diff = pseudo.and(plain);
        self.update(offset, |check: &mut u16| {
            *check = if udp { udp_checksum(*check, diff) } else { diff.applied(*check) };
        })
    }

    fn grow_front(&mut self, _: u32, _: bool) -> Result<(), Drop> {
        Err(Drop::OverlayRefused)
    }

    fn shrink_front(&mut self, _: u32, _: bool, _: bool) -> Result<(), Drop> {
        Err(Drop::OverlayRefused)
    }

    fn resize(&mut self, _: u32) -> Result<(), Drop> {
        Err(Drop::ResizeFailed)
    }

    fn has_socket<A: Addr>(&self, _: &FlowKey<A>) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 1071's sum, the plain way.
    fn checksum(words: &[u16]) -> u16 {
        let mut sum: u32 = words.iter().map(|&w| w as u32).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn a_difference_gives_what_a_new_sum_would() {
        // RFC 1624 §4's own example is the first.
        let samples: [[u16; 3]; 4] =
            [[0x5555, 0x3285, 0xcd7a], [0, 0, 0xffff], [0xffff, 0xffff, 0], [0x1234, 0xfedc, 0x8000]];
        for [old, new, rest] in samples {
            for extra in [0u16, 1, 0x7fff, 0xfffe, 0xffff] {
                let changed = Diff::of16(old, new).applied(checksum(&[old, rest, extra]));
                let anew = checksum(&[new, rest, extra]);
                let same = changed == anew || (changed == 0 && anew == 0xffff) || (changed == 0xffff && anew == 0);
                assert!(same, "{old:x} -> {new:x}, {rest:x}, {extra:x}: {changed:x}, not {anew:x}");
            }
        }
    }

    #[test]
    fn a_difference_fits_the_kernels_32_bits() {
        let diff = Diff(7 * 0xffff_ffff + 0x1234_5678);
        let folded = Diff(diff.fold32() as u64);
        for check in [0, 1, 0x8000, 0xffff] {
            assert_eq!(diff.applied(check), folded.applied(check));
        }
    }

    #[test]
    fn a_udp_checksum_of_zero_is_none_and_never_made() {
        let mut bytes = [0u8; 8];
        let mut frame = Frame::new(&mut bytes);
        frame.checksum4(6, Diff(0), Diff::of16(1, 2), true).unwrap();
        assert_eq!(frame.read::<u16>(6), Some(0));
        // 0x0001 stands for a sum of 0xfffe; one more makes 0xffff, whose complement is zero.
        frame.store(6, 1u16).unwrap();
        frame.checksum4(6, Diff(0), Diff(1), true).unwrap();
        assert_eq!(frame.read::<u16>(6), Some(0xffff));
    }
}
