//! Who has this address? ARP (RFC 826) and neighbour solicitations (RFC 4861) that ask for an address that this node
//! announces are answered, in place, with the address of the link that they came by.
//!
//! Invariant: an address is answered for on the one link that it is announced on, and only while the agent's table
//! says so. Everything else goes on to the kernel. Not here: which node announces what, and what is said unasked (the
//! agent).

use core::hint::black_box;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::Context;
use super::parse::{Ip, Part};
use crate::apply::{Packet, fold, link};
use crate::drop::{Drop, Note};
use crate::table::Announced;
use crate::tables::Tables;
use crate::verdict::{Outcome, Verdict};
use crate::wire::header::{ETH_LEN, ETH_P_IP, ICMP6};
use crate::wire::{Addr, Be16, Ip4, Mac};

/// RFC 826, for Ethernet and IPv4.
#[repr(C, packed)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct Arp {
    hardware: Be16,
    protocol: Be16,
    hardware_len: u8,
    protocol_len: u8,
    operation: Be16,
    sender_mac: Mac,
    sender: Ip4,
    target_mac: Mac,
    target: Ip4,
}

const ETHERNET: Be16 = Be16::new(1);
const IPV4: Be16 = Be16::new(ETH_P_IP);
const REQUEST: Be16 = Be16::new(1);
const REPLY: Be16 = Be16::new(2);

/// Answers an ARP request.
#[inline(never)]
pub fn arp<P: Packet, T: Tables<Ip4>>(packet: &mut P, context: &Context<T>, outcome: &mut Outcome) {
    // As in `parse_into`.
    let packet = black_box(packet);
    let Some(arp) = packet.frame().read::<Arp>(ETH_LEN) else { return };
    let Arp { hardware, protocol, operation, sender_mac, sender, target, .. } = arp;
    // Who asks for his own address tells of it, and is asked back by nobody (RFC 5227 §3).
    if hardware != ETHERNET || protocol != IPV4 || operation != REQUEST || sender == target {
        return;
    }
    let Some(announced) = announced(target, context) else { return };
    let reply = Arp {
        operation: REPLY,
        sender_mac: announced.mac,
        sender: target,
        target_mac: sender_mac,
        target: sender,
        ..arp
    };
    let done = packet.store(ETH_LEN, reply).and_then(|()| packet.store(0, link(sender_mac, announced.mac)));
    *outcome = answered(done, context);
}

/// ICMPv6 types (RFC 4861 §4.3, §4.4).
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// "Solicited" and "override" among an advertisement's flags.
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
/// "Target link-layer address", of one unit of 8 bytes (RFC 4861 §4.6.1).
const TARGET_MAC: [u8; 2] = [2, 1];
/// Bytes of a solicitation without options, and of an advertisement with the option above.
const BARE: u32 = 24;
const ADVERTISEMENT_LEN: u32 = 32;
/// No router has forwarded what has this (RFC 4861 §7.1.1).
const ON_LINK: u8 = 255;
/// Words of the longest solicitation that is looked at: one with four options.
const WORDS: u32 = 16;

/// Answers a neighbour solicitation; false if it is none for us.
#[inline(never)]
pub fn solicitation<A: Ip, P: Packet, T: Tables<A>>(
    packet: &mut P,
    context: &Context<T>,
    outcome: &mut Outcome,
) -> bool {
    // As in `parse_into`.
    let packet = black_box(packet);
    match solicited::<A, P, T>(packet, context) {
        Some(asked) => {
            let done = advertise(packet, &asked);
            *outcome = answered(done, context);
            true
        }
        None => false,
    }
}

/// What a solicitation asks, and who.
struct Asked<A> {
    target: A,
    mac: Mac,
    asker: A,
    asker_mac: Mac,
}

/// Valid by RFC 4861 §7.1.1, and for an address that is announced here.
#[inline(always)]
fn solicited<A: Ip, P: Packet, T: Tables<A>>(packet: &P, context: &Context<T>) -> Option<Asked<A>> {
    let frame = packet.frame();
    let (l3, l4) = (ETH_LEN, ETH_LEN + A::LEN);
    let [icmp_type, code] = frame.read::<[u8; 2]>(l4)?;
    if icmp_type != SOLICITATION || code != 0 {
        return None;
    }
    let target = frame.read::<A>(l4 + 8)?;
    let mac = announced(target, context)?.mac;
    let header = A::header(&frame, l3)?;
    let len = header.len - A::LEN;
    if header.ttl != ON_LINK || header.l4 != l4 || header.part != Part::Whole || !(BARE..=WORDS * 4).contains(&len) {
        return None;
    }
    let mut sum = header.src.sum() + header.dst.sum() + pseudo(len);
    for i in 0..WORDS {
        if i * 4 >= len {
            break;
        }
        sum += frame.read::<u32>(l4 + i * 4)? as u64;
    }
    let [_, asker_mac] = frame.read::<[Mac; 2]>(0)?;
    (fold(sum) == 0xffff).then_some(Asked { target, mac, asker: header.src, asker_mac })
}

/// The rest of the pseudo header (RFC 8200 §8.1).
#[inline(always)]
fn pseudo(len: u32) -> u64 {
    Be16::new(len as u16).raw() as u64 + Be16::new(ICMP6 as u16).raw() as u64
}

/// Turns the solicitation into its answer (RFC 4861 §7.2.4); one that has no address yet is answered to all.
#[inline(always)]
fn advertise<A: Ip, P: Packet>(packet: &mut P, asked: &Asked<A>) -> Result<(), Drop> {
    let (l3, l4) = (ETH_LEN, ETH_LEN + A::LEN);
    let &Asked { target, mac, asker, asker_mac } = asked;
    let (to, to_mac, flags) = if asker == A::default() {
        (A::ALL_NODES, Mac([0x33, 0x33, 0, 0, 0, 1]), OVERRIDE)
    } else {
        (asker, asker_mac, OVERRIDE | SOLICITED)
    };
    packet.resize(l4 + ADVERTISEMENT_LEN)?;
    let [a, b, c, d, e, f] = mac.0;
    let option: [u32; 2] = zerocopy::transmute!([TARGET_MAC[0], TARGET_MAC[1], a, b, c, d, e, f]);
    let head = u32::from_ne_bytes([ADVERTISEMENT, 0, 0, 0]);
    let flags = u32::from_ne_bytes([flags, 0, 0, 0]);
    let own = head as u64 + flags as u64 + target.sum() + option[0] as u64 + option[1] as u64;
    let check = !fold(own + target.sum() + to.sum() + pseudo(ADVERTISEMENT_LEN));
    packet.store(l4, [head, flags])?;
    packet.store(l4 + 2, check)?;
    packet.store(l4 + 8, target)?;
    packet.store(l4 + 24, option)?;
    A::write_header(packet, l3, target, to, ICMP6, ADVERTISEMENT_LEN)?;
    packet.store(l3 + A::HOP_LIMIT, ON_LINK)?;
    packet.store(0, link(to_mac, mac))
}

/// What an address is announced by, if it is on the link that the packet came by.
#[inline(always)]
fn announced<A: Addr, T: Tables<A>>(addr: A, context: &Context<T>) -> Option<Announced> {
    let announced = context.tables.announced(addr)?;
    (announced.link == context.at.ifindex && context.at.tagged == 0).then_some(announced)
}

#[inline(always)]
fn answered<A: Addr, T: Tables<A>>(done: Result<(), Drop>, context: &Context<T>) -> Outcome {
    if done.is_ok() {
        context.tables.note(Note::AddressAnnounced);
    }
    done.map(|()| Verdict::Reply).into()
}
