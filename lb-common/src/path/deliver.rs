//! From a connection's entry to the wire: the next hop, the rewrite, the verdict.
//!
//! Invariant: what we can't do ourselves the kernel does with the packet as it shall be; a packet
//! whose TTL ends here goes to the kernel as it came, so that the sender's own packet is quoted.

use super::Context;
use super::flow::{Hit, is_reply};
use super::parse::{Ip, Parsed};
use crate::apply::{self, Link, Packet, Rewrite};
use crate::drop::{Drop, Note};
use crate::table::NextHop;
use crate::tables::Tables;
use crate::verdict::{Hook, Verdict};
use crate::wire::Mac;
use crate::wire::header::TCP;

/// Sends a packet the way its entry says.
#[inline(always)]
pub fn along<A: Ip, P: Packet, T: Tables<A>>(
    packet: &mut P,
    parsed: &Parsed<A>,
    context: &Context<T>,
    hit: &Hit<A>,
) -> Result<Verdict, Drop> {
    let flow = &hit.flow;
    context.tables.count(flow.backend, is_reply(flow), parsed.len);
    let new = Rewrite {
        src: flow.src,
        dst: flow.dst,
        sport: flow.sport,
        dport: flow.dport,
        ttl: parsed.ttl,
        link: None,
    };
    rewritten(packet, parsed, context, hit, new)
}

/// Sends a packet by the next hop of an entry, rewritten to `new`.
#[inline(always)]
pub fn rewritten<A: Ip, P: Packet, T: Tables<A>>(
    packet: &mut P,
    parsed: &Parsed<A>,
    context: &Context<T>,
    hit: &Hit<A>,
    mut new: Rewrite<A>,
) -> Result<Verdict, Drop> {
    let own = context.at.hook == Hook::Egress;
    if own && is_reply(&hit.flow) {
        // The kernel has routed it to the client already.
        apply::rewrite(packet, parsed, &new)?;
        return Ok(Verdict::Continue);
    }
    let hop = next_hop(context, hit);
    if hop.kind == NextHop::LINK && !own && parsed.ttl <= 1 {
        return Ok(Verdict::Pass);
    }
    if transmits(parsed, context, &hop) {
        new.link = Some(Link { dst: hop.dst, src: hop.src });
        new.ttl = if own { parsed.ttl } else { parsed.ttl.wrapping_sub(1) };
        apply::rewrite(packet, parsed, &new)?;
        return Ok(Verdict::Transmit { ifindex: hop.ifindex });
    }
    apply::rewrite(packet, parsed, &new)?;
    if own {
        // Received again, it must be addressed to the link it left by.
        let from = packet.frame().read::<Mac>(6).ok_or(Drop::RewriteFailed)?;
        packet.store(0, from)?;
        return Ok(Verdict::Reinject);
    }
    Ok(Verdict::Continue)
}

/// The next hop that the entry remembers, or the route's, when routes have changed since.
#[inline(always)]
fn next_hop<A: Ip, T: Tables<A>>(context: &Context<T>, hit: &Hit<A>) -> NextHop {
    let tables = context.tables;
    let epoch = context.settings.epoch;
    let mut index = hit.flow.next_hop;
    if index == NextHop::UNRESOLVED || hit.flow.epoch != epoch {
        index = tables.route(hit.flow.dst).unwrap_or(NextHop::UNRESOLVED);
        if index != NextHop::UNRESOLVED {
            tables.flow_next_hop(hit.set, &hit.key, index, epoch);
        }
    }
    tables.next_hop(index).unwrap_or_default()
}

/// Whether we transmit it ourselves.
#[inline(always)]
fn transmits<A: Ip, T: Tables<A>>(parsed: &Parsed<A>, context: &Context<T>, hop: &NextHop) -> bool {
    if hop.kind != NextHop::LINK {
        if hop.kind == NextHop::KERNEL {
            context.tables.note(Note::NextHopUnresolved);
        }
        return false;
    }
    if parsed.tagged || (context.at.hook == Hook::Xdp && hop.flags & NextHop::XDP == 0) {
        return false;
    }
    if size(parsed, context.at.gso_size) > hop.mtu {
        context.tables.note(Note::TooBig);
        return false;
    }
    true
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
