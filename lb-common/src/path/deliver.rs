//! From a connection's entry to the wire: the next hop, the rewrite, the verdict.
//!
//! Invariant: what we can't do ourselves the kernel does with the packet as it shall be; a packet
//! whose TTL ends here goes to the kernel as it came, so that the sender's own packet is quoted.

use super::flow::{self, is_reply};
use super::parse::{Ip, Parsed};
use super::{Context, Work, forward};
use crate::apply::{self, Packet, Rewrite};
use crate::drop::{Drop, Note};
use crate::flow_table::{Hit, set_next_hop};
use crate::table::{Flow, NextHop};
use crate::tables::Tables;
use crate::tcp;
use crate::verdict::{Action, Hook, Outcome};
use crate::wire::header::TCP;
use crate::wire::{Be16, Mac};

/// What a packet becomes, and where it goes.
struct Way<A> {
    src: A,
    dst: A,
    sport: Be16,
    dport: Be16,
    /// Index of the next hop.
    next_hop: u32,
    /// From a backend to a client.
    reply: bool,
    /// Only its source is translated, as where it leaves: the kernel takes it as it came.
    out: bool,
    /// Translated between inside and outside.
    nat: bool,
}

/// Sends a packet the way its entry says.
#[inline(always)]
pub fn along<A: Ip, P: Packet, T: Tables<A>>(
    packet: &mut P,
    parsed: &Parsed<A>,
    context: &Context<T>,
    flow: &Flow<A>,
    outcome: &mut Outcome,
) {
    let Flow { src, dst, sport, dport, next_hop, .. } = *flow;
    let (nat, out) = (flow.is(Flow::<A>::NAT), flow.is(Flow::<A>::OUT) && dst == parsed.key.dst);
    let way = Way { src, dst, sport, dport, next_hop, reply: is_reply(flow), out, nat };
    send(packet, parsed, context, &way, outcome);
    // What the kernel forwards it counts itself.
    if flow.backend != Flow::<A>::FORWARDED || outcome.action != Action::Pass {
        context.tables.count(flow.backend, way.reply, parsed.len);
    }
}

/// The same for an entry whose next hop may not be known. It and its two halves are functions of their own,
/// each with its part of the stack.
#[inline(never)]
pub fn outlined<A: Ip, P: Packet, T: Tables<A>>(
    packet: &mut P,
    work: &mut Work<A>,
    context: &Context<T>,
    outcome: &mut Outcome,
) {
    match context.tables.resolve(work, context.at) {
        GO => go(packet, work, context, outcome),
        ON_ITS_WAY => {}
        UNSENT => *outcome = Outcome::drop(Drop::DirectUnsent),
        ELSEWHERE => *outcome = Outcome::drop(Drop::DirectElsewhere),
        TOO_LARGE => {
            *outcome = Outcome { action: Action::Encapsulate, value: work.hit.flow.next_hop | NextHop::TOO_LARGE };
        }
        _ => {
            work.follow = tcp::RESET as u32;
            context.tables.nat_follow(work, context.at);
            flow::remove(work, context);
            *outcome = Outcome::drop(Drop::NatMoved);
        }
    }
}

// What [`resolve`] found: numbers, since a function of its own has one register to answer by.
const GO: u32 = 0;
/// It goes as it came, and TC that has sent it meets it again where it leaves.
const ON_ITS_WAY: u32 = 1;
/// It goes as it came, but can't: the kernel knows no way to the node for what goes to a service.
const UNSENT: u32 = 2;
/// A translated connection that can't live on the way there is by now.
const MOVED: u32 = 3;
/// It would go on as it came, but a node has sent it here as the endpoint's: it would be sent around.
const ELSEWHERE: u32 = 4;
/// It goes as it came, and is too large for the way there.
const TOO_LARGE: u32 = 5;

#[inline(never)]
pub fn go<A: Ip, P: Packet, T: Tables<A>>(
    packet: &mut P,
    work: &mut Work<A>,
    context: &Context<T>,
    outcome: &mut Outcome,
) {
    along(packet, &work.parsed, context, &work.hit.flow, outcome);
}

/// Finds the connection's next hop where it isn't known, or others may be better by now. A function of its own in the
/// kernel.
#[inline(always)]
pub fn resolve<A: Ip, T: Tables<A>>(work: &mut Work<A>, context: &Context<T>) -> u32 {
    let tables = context.tables;
    let epoch = tables.settings().epoch;
    let Work { parsed, hit, .. } = work;
    let direct = hit.flow.is(Flow::<A>::DIRECT);
    if direct && context.at.hook == Hook::Egress {
        return ON_ITS_WAY;
    }
    if direct && context.at.tunneled != 0 {
        return ELSEWHERE;
    }
    if hit.flow.next_hop == NextHop::UNRESOLVED || hit.flow.epoch != epoch {
        let next_hop = if direct {
            tables.backend(hit.flow.backend).unwrap_or_default().next_hop
        } else {
            forward::next_hop(tables, hit.flow.dst, &parsed.key)
        };
        match next_hop {
            NextHop::UNRESOLVED => hit.flow.next_hop = NextHop::UNRESOLVED,
            next_hop => set_next_hop(tables, hit, next_hop, epoch),
        }
        if moved(hit, context) {
            return MOVED;
        }
    }
    if direct && parsed.ttl > 1 {
        let hop = tables.next_hop(hit.flow.next_hop).unwrap_or_default();
        return match sends(parsed, context, &hop) {
            SENDS => GO,
            LARGER => TOO_LARGE,
            _ => UNSENT,
        };
    }
    GO
}

/// Whether a connection to the outside has another way out by now than the one that it has its address of.
#[inline(always)]
fn moved<A: Ip, T: Tables<A>>(hit: &Hit<A>, context: &Context<T>) -> bool {
    if !hit.flow.is(Flow::<A>::OUT) || hit.flow.is(Flow::<A>::REPLY) {
        return false;
    }
    let link = if context.at.hook == Hook::Egress {
        context.at.ifindex
    } else {
        let hop = context.tables.next_hop(hit.flow.next_hop).unwrap_or_default();
        if hop.kind != NextHop::LINK {
            return false;
        }
        hop.ifindex
    };
    link != hit.flow.service && context.tables.uplink(link).is_some()
}

/// Rewrites a packet and sends it. What becomes of it stands in the outcome before the packet is changed: less to keep
/// meanwhile on the stack.
#[inline(always)]
fn send<A: Ip, P: Packet, T: Tables<A>>(
    packet: &mut P,
    parsed: &Parsed<A>,
    context: &Context<T>,
    way: &Way<A>,
    outcome: &mut Outcome,
) {
    let Way { src, dst, sport, dport, next_hop, reply, out, nat } = *way;
    let hop = context.tables.next_hop(next_hop).unwrap_or_default();
    let mut new = Rewrite { src, dst, sport, dport, ttl: parsed.ttl, transmits: false, link: hop.link() };
    let own = context.at.hook == Hook::Egress;
    *outcome = Outcome::PASS;
    // The kernel has routed it already.
    let routed = own && (reply || out);
    let mut transmits = false;
    if !routed {
        if hop.kind == NextHop::DROP {
            *outcome = Outcome::drop(Drop::Blackhole);
            return;
        }
        let expires = expires(parsed, context, &hop);
        if expires && !nat {
            return;
        }
        let sends = if expires { LEAVES } else { sends(parsed, context, &hop) };
        transmits = sends == SENDS;
        if !transmits && out {
            // To be translated where it leaves: so the kernel's own answers quote what the sender sent.
            return;
        }
        let overlay = hop.flags & NextHop::TUNNEL != 0;
        if sends == LARGER && overlay && is_whole_for_good(packet, parsed) {
            // The kernel would tell it to an address of its own. As it came: that is what its sender knows.
            *outcome = Outcome { action: Action::Encapsulate, value: next_hop | NextHop::TOO_LARGE };
            return;
        }
        if transmits {
            new.transmits = true;
            new.ttl = if own { parsed.ttl } else { parsed.ttl.wrapping_sub(1) };
            let peer = hop.flags & NextHop::PEER != 0 && context.at.hook == Hook::Ingress;
            *outcome = match (overlay, peer) {
                (true, _) => Outcome { action: Action::Encapsulate, value: next_hop },
                (_, true) => Outcome { action: Action::TransmitPeer, value: hop.ifindex },
                _ => Outcome { action: Action::Transmit, value: hop.ifindex },
            };
        }
    }
    let reinjects = own && !routed && !transmits;
    if !transmits {
        outcome.action = if reinjects { Action::Reinject } else { Action::Continue };
    }
    let mut done = apply::rewrite(packet, parsed, &new);
    if reinjects && done.is_ok() {
        // Received again, it must be addressed to the link it left by.
        let from = packet.frame().read::<Mac>(6);
        done = from.ok_or(Drop::RewriteFailed).and_then(|from| packet.store(0, from));
    }
    if let Err(reason) = done {
        *outcome = Outcome::drop(reason);
    }
}

/// Whether an error about a connection is the kernel's to deal with: its own TTL ends here, or it is
/// translated where it leaves.
#[inline(never)]
pub fn is_kernels<A: Ip, T: Tables<A>>(work: &Work<A>, context: &Context<T>) -> bool {
    let Work { parsed, hit, .. } = work;
    let out = hit.flow.is(Flow::<A>::OUT) && context.at.hook != Hook::Egress;
    if parsed.ttl > 1 && !out {
        return false;
    }
    let index = forward::next_hop(context.tables, hit.flow.dst, &parsed.key);
    let hop = context.tables.next_hop(index).unwrap_or_default();
    expires(parsed, context, &hop) || (out && sends(parsed, context, &hop) != SENDS)
}

/// Whether the packet's TTL ends at this node.
#[inline(always)]
fn expires<A: Ip, T: Tables<A>>(parsed: &Parsed<A>, context: &Context<T>, hop: &NextHop) -> bool {
    parsed.ttl <= 1 && hop.kind == NextHop::LINK && context.at.hook != Hook::Egress
}

// Whether we transmit it ourselves: numbers, since an enum's comparisons are branches.
/// It is left to the kernel,
const LEAVES: u32 = 0;
const SENDS: u32 = 1;
/// as well, since it is larger than its next hop takes.
const LARGER: u32 = 2;

#[inline(always)]
fn sends<A: Ip, T: Tables<A>>(parsed: &Parsed<A>, context: &Context<T>, hop: &NextHop) -> u32 {
    if hop.kind != NextHop::LINK {
        if hop.kind == NextHop::KERNEL {
            context.tables.note(Note::NextHopUnresolved);
        }
        return LEAVES;
    }
    if parsed.tagged != 0 || (context.at.hook == Hook::Xdp && hop.flags & NextHop::XDP == 0) {
        return LEAVES;
    }
    if size(parsed, context.at.gso_size) > hop.mtu {
        context.tables.note(Note::TooBig);
        return LARGER;
    }
    SENDS
}

/// Whether routers may not cut a packet into fragments.
#[inline(always)]
fn is_whole_for_good<A: Ip, P: Packet>(packet: &P, parsed: &Parsed<A>) -> bool {
    const DONT_FRAGMENT: u8 = 0x40;
    A::IS_V6 || packet.frame().read::<u8>(parsed.l3 + 6).unwrap_or_default() & DONT_FRAGMENT != 0
}

/// The network-layer length, of a segmentation-offloaded packet that of one segment.
#[inline(always)]
fn size<A: Ip>(parsed: &Parsed<A>, gso_size: u32) -> u32 {
    if gso_size == 0 {
        return parsed.len;
    }
    let headers = (parsed.l4 - parsed.l3) + if parsed.proto == TCP { parsed.l4_len } else { 8 };
    headers + gso_size
}
