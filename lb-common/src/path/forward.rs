//! Where a packet goes next, and the forwarding of what belongs to no connection of ours.
//!
//! Invariant: what the kernel would do otherwise than hand the packet on, it does itself: packets for this
//! node, packets that end here or are too large, what it would refuse, whose next hop nobody knows yet, or who
//! may want to hear of a better way. Not here: the rewrite ([`super::deliver`]).

use super::parse::{self, Ip, Parsed};
use super::{Context, Work, crosses, deliver, nat, owned, served};
use crate::apply::Packet;
use crate::hash;
use crate::table::route::PLACES;
use crate::table::{Flow, FlowKey, Link, NextHop};
use crate::tables::Tables;
use crate::verdict::{Hook, Outcome};
use crate::wire::{Addr, Mac};

/// The index of the next hop towards an address, for a flow of this key: of several that are as good, one
/// that its packets keep.
#[inline(always)]
pub fn next_hop<A: Addr, T: Tables<A>>(tables: &T, dst: A, key: &FlowKey<A>) -> u32 {
    by(tables, tables.route(dst), key)
}

/// The same of a route.
#[inline(always)]
fn by<A: Addr, T: Tables<A>>(tables: &T, route: Option<u32>, key: &FlowKey<A>) -> u32 {
    let index = route.unwrap_or(NextHop::UNRESOLVED) & !NextHop::DIRECT;
    if index & NextHop::GROUP == 0 {
        return index;
    }
    let place = hash::tuple(key) % PLACES as u32;
    tables.member(index & !NextHop::GROUP, place).unwrap_or(NextHop::UNRESOLVED)
}

/// What becomes of a packet that is forwarded: nothing, but for its way.
#[inline(always)]
pub fn flow<A: Ip, P: Packet, T: Tables<A>>(packet: &P, parsed: &Parsed<A>, context: &Context<T>) -> Option<Flow<A>> {
    if context.at.hook == Hook::Egress {
        return None;
    }
    flow_by(packet, parsed, context, context.tables.route(parsed.key.dst))
}

/// The same of a packet that comes in, by the route to its destination.
#[inline(always)]
fn flow_by<A: Ip, P: Packet, T: Tables<A>>(
    packet: &P,
    parsed: &Parsed<A>,
    context: &Context<T>,
    route: Option<u32>,
) -> Option<Flow<A>> {
    let (tables, key) = (context.tables, &parsed.key);
    let next_hop = by(tables, route, key);
    if next_hop == NextHop::UNRESOLVED || next_hop == NextHop::HOST {
        return None;
    }
    let link = tables.link(context.at.ifindex)?;
    let hop = tables.next_hop(next_hop)?;
    let back = hop.kind == NextHop::LINK && hop.ifindex == context.at.ifindex;
    if back || !allowed(packet, parsed, &link) || !expected(parsed, context, &link) {
        return None;
    }
    Some(Flow {
        src: key.src,
        dst: key.dst,
        sport: key.sport,
        dport: key.dport,
        service: 0,
        backend: Flow::<A>::FORWARDED,
        next_hop,
        last: 0,
        state: 0,
        flags: Flow::<A>::OUT,
        epoch: 0,
    })
}

/// Whether a packet is one that a router forwards without a further look.
#[inline(always)]
fn allowed<A: Ip, P: Packet>(packet: &P, parsed: &Parsed<A>, link: &Link) -> bool {
    let key = &parsed.key;
    let forwards = if A::IS_V6 { Link::FORWARDS6 } else { Link::FORWARDS4 };
    link.flags & forwards != 0
        && packet.frame().read::<Mac>(0) == Some(link.mac)
        && parsed.l4 == parsed.l3 + A::LEN
        && key.dst.is_routed()
        && key.src.is_routed()
}

/// Whether the packet came in where its sender is.
#[inline(always)]
fn expected<A: Ip, T: Tables<A>>(parsed: &Parsed<A>, context: &Context<T>, link: &Link) -> bool {
    if A::IS_V6 || link.flags & (Link::STRICT4 | Link::LOOSE4) == 0 {
        return true;
    }
    let tables = context.tables;
    let back = next_hop(tables, parsed.key.src, &parsed.key);
    let back = tables.next_hop(back).unwrap_or_default();
    back.kind == NextHop::LINK && (link.flags & Link::STRICT4 == 0 || back.ifindex == context.at.ifindex)
}

/// Forwards what belongs to no connection, and goes from the inside to where it certainly goes as it is. A function of its
/// own, with its part of the stack; what the fast path has found is found again.
#[inline(never)]
pub fn direct<A: Ip, P: Packet, T: Tables<A>>(
    packet: &mut P,
    l3: u32,
    context: &Context<T>,
    outcome: &mut Outcome,
) -> bool {
    // As in `parse_into`.
    let packet = core::hint::black_box(packet);
    let tables = context.tables;
    let route = packet.frame().read::<A>(l3 + A::DST).and_then(|dst| tables.route(dst));
    if route.unwrap_or(NextHop::UNRESOLVED) & NextHop::DIRECT == 0 {
        return false;
    }
    let parsed = parse::packet::<A>(&packet.frame(), l3, context.at.tagged as u32);
    let Some(mut parsed) = parsed.filter(|parsed| !served(tables, parsed) && !owned(tables, parsed.key.dst)) else {
        return false;
    };
    let Some(flow) = flow_by(packet, &parsed, context, route) else {
        return false;
    };
    parsed.has_l4 = false;
    deliver::along(packet, &parsed, context, &flow, outcome);
    true
}

/// Forwards what the slow stages had nothing to do with.
#[inline(never)]
pub fn rest<A: Ip, P: Packet, T: Tables<A>>(
    packet: &mut P,
    work: &mut Work<A>,
    context: &Context<T>,
    outcome: &mut Outcome,
) {
    let Some(flow) = flow(packet, &work.parsed, context) else {
        return;
    };
    work.hit.flow = flow;
    if !is_translated(work, context) {
        work.parsed.has_l4 = false;
        deliver::go(packet, work, context, outcome);
    }
}

/// Whether the packet is to be translated where it leaves, or is for an address of ours.
#[inline(never)]
fn is_translated<A: Ip, T: Tables<A>>(work: &Work<A>, context: &Context<T>) -> bool {
    let (tables, key) = (context.tables, &work.parsed.key);
    if owned(tables, key.dst) {
        return true;
    }
    let hop = tables.next_hop(work.hit.flow.next_hop).unwrap_or_default();
    crosses(tables, &work.parsed, context.at)
        && tables.uplink(hop.ifindex).is_some()
        && nat::goes_out(tables, key.src, key.dst)
}
