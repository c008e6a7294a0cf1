//! The way of a packet through the engine: parse → flow → service → nat → next hop → rewrite.
//!
//! This file is the table of contents: the branching is here, the stages are leaves. One path
//! serves both IP versions and all hooks. Invariant: a packet that no table of ours claims leaves as
//! it came.

mod announce;
pub mod deliver;
pub mod flow;
mod forward;
pub mod fragment;
pub mod icmp;
pub mod nat;
pub mod network_policy;
pub mod overlay;
pub mod parse;
mod policy;
mod prefix;
mod reset;
pub mod service;
pub mod socket;
mod too_large;

use zerocopy::FromZeros;

use crate::apply::Packet;
use crate::drop::Drop;
use crate::flow_table::{self, Hit};
use crate::table::{Backend, FlowKey, Link, Owned, Service, Settings, filter};
use crate::tables::{Common, Tables};
use crate::verdict::{Action, Arrival, Hook, Outcome};
use crate::wire::header::{ETH_LEN, ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, TCP, TCP_ACK, TCP_SYN, UDP};
use crate::wire::{Addr, Be16, Ip4, Ip6, Mac};
use parse::{Ip, Parsed, Part};
use policy::Admission;

/// What every stage is handed: the tables, and the packet's circumstances.
pub struct Context<'a, T> {
    pub tables: &'a T,
    pub at: &'a Arrival,
}

/// What the stages hand on to each other about one packet.
///
/// It lies outside the stack, which in the kernel has 512 bytes for all stages together. What the
/// last packet left in it doesn't matter; zeros are as good (`FromZeros`).
#[derive(FromZeros)]
#[repr(C)]
pub struct Work<A: Addr> {
    pub parsed: Parsed<A>,
    /// The packet's entry in the flow table, and room for that of its other direction, and its key.
    pub hit: Hit<A>,
    pub other: Hit<A>,
    pub other_key: FlowKey<A>,
    /// Of a connection that is being opened.
    pub service: Service,
    pub backend: Backend<A>,
    /// Of a translated one: the first entry of its address and protocol in the port table.
    pub entries: u32,
    /// The one that was taken for its source.
    pub entry: u32,
    /// The state that its mapping follows it to.
    pub follow: u32,
    /// A [`Next`].
    pub next: u32,
}

/// Room for a packet's [`Work`].
#[derive(FromZeros)]
#[repr(C)]
pub struct Scratch {
    v4: Work<Ip4>,
    v6: Work<Ip6>,
}

impl Default for Scratch {
    fn default() -> Self {
        Scratch::new_zeroed()
    }
}

/// Decides what becomes of a packet, and makes it so. `room` is asked for only where it is needed.
#[inline(always)]
pub fn run<'s, P, T>(
    packet: &mut P,
    at: &Arrival,
    tables: &T,
    room: impl FnOnce() -> Option<&'s mut Scratch>,
) -> Outcome
where
    P: Packet,
    T: Tables<Ip4> + Tables<Ip6>,
{
    let Some(link) = parse::link(&packet.frame()) else {
        return Outcome::PASS;
    };
    let context = Context { tables, at };
    match link.ethertype {
        ETH_P_IP => family(packet, link.l3, &context, || room().map(|scratch| &mut scratch.v4)),
        ETH_P_IPV6 => family(packet, link.l3, &context, || room().map(|scratch| &mut scratch.v6)),
        ETH_P_ARP if link.l3 == ETH_LEN && at.hook != Hook::Egress => {
            let mut outcome = Outcome::PASS;
            announce::arp(packet, &context, &mut outcome);
            outcome
        }
        _ => Outcome::PASS,
    }
}

#[inline(always)]
fn family<'s, A: Ip, P: Packet, T: Tables<A>>(
    packet: &mut P,
    l3: u32,
    context: &Context<T>,
    room: impl FnOnce() -> Option<&'s mut Work<A>>,
) -> Outcome {
    let mut outcome = Outcome::PASS;
    let next = fast(packet, l3, context, &mut outcome);
    if matches!(next, Next::Done) {
        return outcome;
    }
    // Where packets leave, the program is not to know of what is about those that come in.
    if context.at.hook != Hook::Egress {
        // From pod to pod there is no connection of ours in most cases. What comes by XDP comes from outside.
        if context.at.hook == Hook::Ingress
            && matches!(next, Next::Unknown)
            && forward::direct(packet, l3, context, &mut outcome)
        {
            return outcome;
        }
        let asks = A::IS_V6 && l3 == ETH_LEN && matches!(next, Next::Special);
        if asks && announce::solicitation::<A, P, T>(packet, context, &mut outcome) {
            return outcome;
        }
        if is_for_another(packet, context) {
            return outcome;
        }
    }
    let Some(work) = room() else {
        return outcome;
    };
    // Not on the stack: kernels before 6.4 lose sight of a constant that a caller keeps over a call
    // (fixed by c1ee85a9806a), take its other values for impossible and cut their branches out.
    work.next = next as u32;
    if !parse_into(packet, l3, context, work) {
        return outcome;
    }
    if work.next == Next::Special as u32 {
        special(packet, work, context, &mut outcome);
    } else {
        connection(packet, work, context, &mut outcome);
    }
    if outcome.action == Action::Pass {
        if context.at.hook == Hook::Egress {
            nat::guard(work, context, &mut outcome);
        } else {
            forward::rest(packet, work, context, &mut outcome);
        }
    }
    outcome
}

/// What the fast path has found, found again for the slow stages: cheaper than to keep it for them.
#[inline(never)]
fn parse_into<A: Ip, P: Packet, T: Tables<A>>(
    packet: &mut P,
    l3: u32,
    context: &Context<T>,
    work: &mut Work<A>,
) -> bool {
    // Handed over by reference for certain: pointers into a packet that the compiler hands to a function
    // by value lose their upper halves.
    let packet = core::hint::black_box(packet);
    match parse::packet(&packet.frame(), l3, context.at.tagged as u32) {
        Some(parsed) => {
            work.parsed = parsed;
            true
        }
        None => false,
    }
}

/// Whether another host is meant: a switch that doesn't know where that is sends its packets to all.
#[inline(never)]
fn is_for_another<P: Packet, T: Common>(packet: &mut P, context: &Context<T>) -> bool {
    // As in `parse_into`.
    let packet = core::hint::black_box(packet);
    let Some(link) = context.tables.link(context.at.ifindex).filter(|link| link.flags & Link::PORT != 0) else {
        return false;
    };
    let to = packet.frame().read::<Mac>(0).unwrap_or_default();
    to != link.mac && to.0[0] & 1 == 0
}

/// Where a packet goes behind the fast path.
#[repr(u32)]
pub enum Next {
    Done,
    /// Fragments, ICMP, and what is cut short.
    Special,
    /// Of a connection.
    Known,
    /// Not of a connection.
    Unknown,
}

/// Deals with an established connection's ordinary packet, in one flow lookup, and with what is only
/// forwarded or not ours. It and the slow stages are functions of their own in the kernel, each with its own part of
/// the stack (`docs/decisions/0003-outlined-stages.md`).
#[inline(never)]
fn fast<A: Ip, P: Packet, T: Tables<A>>(packet: &mut P, l3: u32, context: &Context<T>, outcome: &mut Outcome) -> Next {
    let tables = context.tables;
    let Some(mut parsed) = parse::packet::<A>(&packet.frame(), l3, context.at.tagged as u32) else {
        return Next::Done;
    };
    if parsed.part != Part::Whole || parsed.proto == A::ICMP || !parsed.has_l4 {
        return Next::Special;
    }
    // A copy: what is handed to a map lies in memory, and would take the rest of `parsed` with it.
    let key = parsed.key;
    let ported = parsed.portless == 0;
    let flow = if crosses(tables, &parsed, context.at) || (ported && served(tables, &parsed)) {
        if !ported {
            return Next::Known;
        }
        let opens = parsed.flags & (TCP_SYN | TCP_ACK) == TCP_SYN;
        let Some(hit) = flow_table::find(tables, &key, !opens) else {
            return Next::Unknown;
        };
        if !flow::passes(&hit, &parsed, context) {
            return Next::Known;
        }
        hit.flow
    } else {
        if owned(tables, key.dst) {
            return if ported { Next::Unknown } else { Next::Done };
        }
        let Some(flow) = forward::flow(packet, &parsed, context) else {
            return Next::Done;
        };
        parsed.has_l4 = false;
        flow
    };
    deliver::along(packet, &parsed, context, &flow, outcome);
    Next::Done
}

/// Fragments, ICMP, and what is cut short.
#[inline(always)]
fn special<A: Ip, P: Packet, T: Tables<A>>(
    packet: &mut P,
    work: &mut Work<A>,
    context: &Context<T>,
    outcome: &mut Outcome,
) {
    if !work.parsed.has_l4 {
        fragment::portless(packet, work, context, outcome);
        return;
    }
    if work.parsed.proto == A::ICMP {
        icmp::message(packet, work, context, outcome);
    } else {
        connection(packet, work, context, outcome);
    }
    if work.parsed.part == Part::First && !matches!(outcome.action, Action::Pass | Action::Drop) {
        fragment::remember(work, context);
    }
}

/// A packet that changes a connection, begins one, or has none.
#[inline(never)]
fn connection<A: Ip, P: Packet, T: Tables<A>>(
    packet: &mut P,
    work: &mut Work<A>,
    context: &Context<T>,
    outcome: &mut Outcome,
) {
    if work.next != Next::Unknown as u32 && flow::find(work, context) {
        deliver::outlined(packet, work, context, outcome);
        return;
    }
    if work.parsed.portless != 0 {
        nat::cross(packet, work, context, outcome);
        return;
    }
    match policy::admit(work, context) {
        Admission::Yes => {
            if context.tables.open(work, context.at, outcome) {
                deliver::outlined(packet, work, context, outcome);
            }
        }
        Admission::Empty => refuse(packet, work, context, Drop::NoBackend, outcome),
        Admission::Elsewhere if reset::may_answer(&work.parsed) => {
            reset::answer(packet, &work.parsed, context, Drop::NoLocalBackend, outcome);
        }
        Admission::Elsewhere => *outcome = Outcome::drop(Drop::NoLocalBackend),
        Admission::Barred => *outcome = Outcome::drop(Drop::SourceNotAllowed),
        Admission::NoService => match addressed(work, context) {
            Owned::VIP => refuse(packet, work, context, Drop::NoService, outcome),
            Owned::UNUSED => *outcome = Outcome::drop(Drop::UnusedServiceAddress),
            _ if crosses(context.tables, &work.parsed, context.at) => nat::cross(packet, work, context, outcome),
            _ => {}
        },
    }
}

/// Tells whoever sent a packet that nobody is there for it.
#[inline(always)]
fn refuse<A: Ip, P: Packet, T: Tables<A>>(
    packet: &mut P,
    work: &mut Work<A>,
    context: &Context<T>,
    reason: Drop,
    outcome: &mut Outcome,
) {
    if reset::may_answer(&work.parsed) {
        reset::answer(packet, &work.parsed, context, reason, outcome);
    } else {
        icmp::refuse(packet, work, context, reason, outcome);
    }
}

/// What a packet's destination is, if it is ours: a kind of [`Owned`], else 0.
#[inline(never)]
fn addressed<A: Ip, T: Tables<A>>(work: &Work<A>, context: &Context<T>) -> u16 {
    let (tables, addr) = (context.tables, work.parsed.key.dst);
    if !owned(tables, addr) {
        return 0;
    }
    tables.owned(addr).unwrap_or_default().kind
}

/// Whether the filter lets through that the packet is a service's.
#[inline(always)]
fn served<A: Addr, T: Tables<A>>(tables: &T, parsed: &Parsed<A>) -> bool {
    let key = &parsed.key;
    claimed(tables, key.dst, key.dport, parsed.proto) || claimed(tables, key.src, key.sport, parsed.proto)
}

/// Whether the filter lets through that the tuple is a service's or a backend's.
#[inline(always)]
fn claimed<A: Addr, T: Tables<A>>(tables: &T, addr: A, port: Be16, proto: u8) -> bool {
    let bit = filter::tuple_bit(addr, port, proto);
    tables.filter(bit) >> (bit % 64) & 1 != 0
}

/// Whether the filter lets through that the packet is translated between inside and outside: it comes from
/// the inside, or goes to, or comes from this node with, a port that translated packets may have.
#[inline(always)]
fn crosses<A: Ip, T: Tables<A>>(tables: &T, parsed: &Parsed<A>, at: &Arrival) -> bool {
    let settings = tables.settings();
    if !settings.nat(Settings::NAT) {
        return false;
    }
    let set = |bit: u32| tables.filter(bit) >> (bit % 64) & 1 != 0;
    let key = &parsed.key;
    let ported = matches!(parsed.proto, TCP | UDP) || parsed.proto == A::ICMP;
    let used = |port: Be16| !ported || settings.translates_to(port);
    // Exchanged prefixes leave ports as they are.
    set(filter::inside_bit(key.src))
        || (at.hook != Hook::Egress && (A::IS_V6 || used(key.dport)) && set(filter::outside_bit(key.dst)))
        || (at.own != 0 && used(key.sport) && set(filter::outside_bit(key.src)))
}

/// Whether the filter lets through that the address is ours.
#[inline(always)]
fn owned<A: Addr, T: Tables<A>>(tables: &T, addr: A) -> bool {
    filter::owns(tables.filter(filter::addr_bit(addr)), addr)
}
