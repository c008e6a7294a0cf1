//! The overlay between nodes: packets to another node's pods inside of VXLAN (RFC 7348), and out of it again.
//!
//! Invariant: what is in the overlay is taken for what it holds only when a node of ours sent it, to an address of
//! this node's; the path then sees it as if it had come without. Outer headers have the inner packet's traffic class and
//! ECN (RFC 6040 §4.1), no UDP checksum (RFC 7348 §5, RFC 6935 §5), and a source port that keeps a flow on one way
//! through the network. Not here: which nodes there are, and which way leads into the overlay (the plan's).

use super::parse::Ip;
use super::too_large;
use crate::apply::{Diff, Packet, link};
use crate::drop::Drop;
use crate::hash;
use crate::table::{NextHop, Tunnel};
use crate::tables::{Common, Tables};
use crate::verdict::{Action, Hook, Outcome, Verdict};
use crate::wire::header::{ETH_LEN, ETH_P_IP, ETH_P_IPV6, IP4_LEN, IP6_LEN, TCP, UDP};
use crate::wire::{Be16, Ip4, Ip6, Mac};

const UDP_LEN: u32 = 8;
const VXLAN_LEN: u32 = 8;
/// VXLAN's flag for a network identifier that is there.
const HAS_VNI: u8 = 0x08;
/// The inner frame's addresses, both: no host has it, and nobody looks at it.
const INNER: Mac = Mac([0x0a, 0, 0, 0x53, 0x57, 0x02]);
const DONT_FRAGMENT: Be16 = Be16::new(0x4000);
/// Where a fragment lies, and whether more follow.
const FRAGMENT: u16 = 0x3fff;
/// Both bits of ECN: congestion experienced (RFC 3168 §5).
const CONGESTION: u8 = 3;

/// In place of a next hop: it is the packet's, by its destination.
pub const LOOK: u32 = u32::MAX;

/// Takes the outer headers off a packet that came in the overlay, and says 1 ([`crate::verdict::Arrival::tunneled`]). What
/// didn't stays as it is, and is 0.
#[inline(always)]
pub fn enter<P: Packet, T: Tables<Ip4> + Tables<Ip6>>(packet: &mut P, ifindex: u32, tables: &T) -> Result<u32, Drop> {
    match packet.frame().read::<Be16>(12).unwrap_or_default().get() {
        ETH_P_IP => open::<Ip4, P, T>(packet, ifindex, tables),
        ETH_P_IPV6 => open::<Ip6, P, T>(packet, ifindex, tables),
        _ => Ok(0),
    }
}

/// Protocol and traffic class of an IP header without options that is a whole packet's; other protocols: 0.
#[inline(always)]
pub(super) fn plain<A: Ip, P: Packet>(packet: &P) -> (u8, u8) {
    let frame = packet.frame();
    let word = frame.read::<Be16>(ETH_LEN).unwrap_or_default().get();
    if A::IS_V6 {
        return (frame.read::<u8>(ETH_LEN + 6).unwrap_or_default(), (word >> 4) as u8);
    }
    let whole = frame.read::<Be16>(ETH_LEN + 6).unwrap_or_default().get() & FRAGMENT == 0;
    let proto = frame.read::<u8>(ETH_LEN + 9).unwrap_or_default();
    if word >> 8 == 0x45 && whole { (proto, word as u8) } else { (0, word as u8) }
}

#[inline(always)]
fn open<A: Ip, P: Packet, T: Tables<A>>(packet: &mut P, ifindex: u32, tables: &T) -> Result<u32, Drop> {
    let settings = tables.settings();
    let (l4, (proto, class)) = (ETH_LEN + A::LEN, plain::<A, P>(packet));
    let frame = packet.frame();
    if proto != UDP || frame.read::<Be16>(l4 + 2) != Some(settings.vxlan_port) {
        return Ok(0);
    }
    let src = frame.read::<A>(ETH_LEN + A::SRC).unwrap_or_default();
    let dst = frame.read::<A>(ETH_LEN + A::DST).unwrap_or_default();
    if tables.route(dst) != Some(NextHop::HOST) {
        return Ok(0);
    }
    if !tables.is_peer(&src.mapped()) {
        return Err(Drop::OverlayStranger);
    }
    let flags = frame.read::<u8>(l4 + UDP_LEN).unwrap_or_default();
    let vni = u32::from_be(frame.read::<u32>(l4 + UDP_LEN + 4).unwrap_or_default()) >> 8;
    let by = A::LEN + UDP_LEN + VXLAN_LEN + ETH_LEN;
    let ethertype = frame.read::<Be16>(by + 12).unwrap_or_default();
    let v4 = ethertype.get() == ETH_P_IP;
    if flags & HAS_VNI == 0 || vni != settings.vni || !(v4 || ethertype.get() == ETH_P_IPV6) {
        return Err(Drop::OverlayMalformed);
    }
    // The kernel takes headers off nothing less than a whole IP header (`bpf_skb_adjust_room`).
    let inner_len = if v4 { Ip4::LEN } else { Ip6::LEN };
    if frame.read::<u8>(by + ETH_LEN + inner_len - 1).is_none() {
        return Err(Drop::OverlayMalformed);
    }
    let own = tables.link(ifindex).unwrap_or_default().mac;
    packet.shrink_front(by, !A::IS_V6, v4)?;
    packet.store(0, link(own, INNER))?;
    packet.store(12, ethertype)?;
    if class & CONGESTION == CONGESTION {
        congested(packet, v4)?;
    }
    Ok(1)
}

/// Hands on that there was congestion (RFC 6040 §4.2).
#[inline(always)]
fn congested<P: Packet>(packet: &mut P, v4: bool) -> Result<(), Drop> {
    let word = packet.frame().read::<Be16>(ETH_LEN).unwrap_or_default().get();
    let shift = if v4 { 0 } else { 4 };
    let bits = (CONGESTION as u16) << shift;
    if word & bits == 0 {
        return Err(Drop::OverlayMalformed);
    }
    let (old, new) = (Be16::new(word), Be16::new(word | bits));
    packet.store(ETH_LEN, new)?;
    if v4 {
        let diff = Diff::of16(old.raw(), new.raw());
        packet.update(ETH_LEN + 10, |check: &mut u16| *check = diff.applied(*check))?;
    }
    Ok(())
}

/// Whether a packet that the path is done with is, or may be, for the overlay: its next hop's index, [`LOOK`], or 0. Where
/// packets leave, all that the kernel sends; elsewhere what answers one that came in the overlay, too.
#[inline(always)]
pub fn asks(outcome: Outcome, hook: Hook) -> u32 {
    match (outcome.action, hook) {
        (Action::Encapsulate, _) => outcome.value,
        (Action::Pass | Action::Continue, Hook::Egress) => LOOK,
        (Action::Reply | Action::Refuse, Hook::Ingress | Hook::Xdp) => LOOK,
        _ => 0,
    }
}

/// Puts the outer headers around a packet, or tells its sender that it is too large. None: its way doesn't lead into the
/// overlay.
#[inline(always)]
pub fn leave<P: Packet, T: Tables<Ip4> + Tables<Ip6>>(
    packet: &mut P,
    next_hop: u32,
    hook: Hook,
    now: u32,
    tables: &T,
) -> Outcome {
    if next_hop != LOOK && next_hop & NextHop::TOO_LARGE != 0 {
        let hop = tables.next_hop(next_hop & !NextHop::TOO_LARGE).unwrap_or_default();
        return too_large::tell(packet, hop.mtu, hook, now, tables);
    }
    let next_hop = if next_hop == LOOK { towards(packet, tables) } else { next_hop };
    if next_hop == NextHop::UNRESOLVED {
        return Outcome::PASS;
    }
    let tunnel = tables.tunnel(next_hop).unwrap_or_default();
    if tunnel.ifindex == 0 || tunnel.dst == Mac::default() {
        return Outcome::drop(Drop::OverlayUnresolved);
    }
    let inner = inner(packet);
    let closed = if tunnel.remote.is_mapped() {
        close::<Ip4, P, T>(packet, &tunnel, &inner, tables)
    } else {
        close::<Ip6, P, T>(packet, &tunnel, &inner, tables)
    };
    closed.map(|()| Verdict::Transmit { ifindex: tunnel.ifindex }).into()
}

/// The next hop of a packet, if it is in the overlay.
#[inline(always)]
fn towards<P: Packet, T: Tables<Ip4> + Tables<Ip6>>(packet: &P, tables: &T) -> u32 {
    let frame = packet.frame();
    let route = match frame.read::<Be16>(12).unwrap_or_default().get() {
        ETH_P_IP => Tables::<Ip4>::route(tables, frame.read(ETH_LEN + Ip4::DST).unwrap_or_default()),
        ETH_P_IPV6 => Tables::<Ip6>::route(tables, frame.read(ETH_LEN + Ip6::DST).unwrap_or_default()),
        _ => None,
    };
    let next_hop = route.unwrap_or(NextHop::UNRESOLVED) & !NextHop::DIRECT;
    let hop = tables.next_hop(next_hop).unwrap_or_default();
    if hop.flags & NextHop::TUNNEL != 0 { next_hop } else { NextHop::UNRESOLVED }
}

/// What the outer headers take from the inner ones.
struct Inner {
    ethertype: Be16,
    class: u8,
    /// Of the IP packet.
    len: u32,
    sport: Be16,
}

#[inline(always)]
fn inner<P: Packet>(packet: &P) -> Inner {
    let frame = packet.frame();
    let ethertype = frame.read::<Be16>(12).unwrap_or_default();
    if ethertype.get() == ETH_P_IPV6 {
        let (proto, class) = plain::<Ip6, P>(packet);
        let len = IP6_LEN + frame.read::<Be16>(ETH_LEN + 4).unwrap_or_default().get() as u32;
        return Inner { ethertype, class, len, sport: source_port::<Ip6, P>(packet, proto) };
    }
    let (proto, class) = plain::<Ip4, P>(packet);
    let len = frame.read::<Be16>(ETH_LEN + 2).unwrap_or_default().get() as u32;
    Inner { ethertype, class, len, sport: source_port::<Ip4, P>(packet, proto) }
}

/// One of the ports that RFC 7348 §5 recommends, the same for all packets of a flow; fragments go by their addresses.
#[inline(always)]
fn source_port<A: Ip, P: Packet>(packet: &P, proto: u8) -> Be16 {
    let frame = packet.frame();
    let src = frame.read::<A>(ETH_LEN + A::SRC).unwrap_or_default();
    let dst = frame.read::<A>(ETH_LEN + A::DST).unwrap_or_default();
    let ports = if matches!(proto, TCP | UDP) { frame.read::<u32>(ETH_LEN + A::LEN).unwrap_or_default() } else { 0 };
    Be16::new(0xc000 | hash::pair(src, dst, ports) as u16 & 0x3fff)
}

#[inline(always)]
fn close<A: Ip, P: Packet, T: Common>(packet: &mut P, tunnel: &Tunnel, inner: &Inner, tables: &T) -> Result<(), Drop> {
    let settings = tables.settings();
    let &Inner { ethertype, class, len, sport } = inner;
    let l4 = ETH_LEN + A::LEN;
    packet.grow_front(A::LEN + UDP_LEN + VXLAN_LEN + ETH_LEN, !A::IS_V6)?;
    // Of what is cut into segments later these are lengths of none.
    let len = (UDP_LEN + VXLAN_LEN + ETH_LEN + len).min(0xffff - IP4_LEN);
    packet.store(0, link(tunnel.dst, tunnel.src))?;
    packet.store(12, Be16::new(if A::IS_V6 { ETH_P_IPV6 } else { ETH_P_IP }))?;
    A::write_header(packet, ETH_LEN, A::unmapped(tunnel.local), A::unmapped(tunnel.remote), UDP, len)?;
    classify::<A, P>(packet, class)?;
    packet.store(l4, [sport, settings.vxlan_port, Be16::new(len as u16), Be16::new(0)])?;
    packet.store(l4 + UDP_LEN, [u32::from_ne_bytes([HAS_VNI, 0, 0, 0]), (settings.vni << 8).to_be()])?;
    packet.store(l4 + UDP_LEN + VXLAN_LEN, link(INNER, INNER))?;
    packet.store(l4 + UDP_LEN + VXLAN_LEN + 12, ethertype)
}

/// Gives an outer header its traffic class; an IPv4 one is not to be fragmented.
#[inline(always)]
fn classify<A: Ip, P: Packet>(packet: &mut P, class: u8) -> Result<(), Drop> {
    if A::IS_V6 {
        return packet.store(ETH_LEN, Be16::new(0x6000 | (class as u16) << 4));
    }
    let (old, new) = (Be16::new(0x4500), Be16::new(0x4500 | class as u16));
    let diff = Diff::of16(old.raw(), new.raw()).and(Diff::of16(0, DONT_FRAGMENT.raw()));
    packet.store(ETH_LEN, new)?;
    packet.store(ETH_LEN + 6, DONT_FRAGMENT)?;
    packet.update(ETH_LEN + 10, |check: &mut u16| *check = diff.applied(*check))
}
