//! The way of a packet through the engine: parse → flow → service → next hop → rewrite.
//!
//! This file is the table of contents: the branching is here, the stages are leaves. One path
//! serves both IP versions and all hooks. Invariant: a packet that no table of ours claims leaves as
//! it came.

pub mod deliver;
pub mod flow;
pub mod fragment;
pub mod icmp;
pub mod parse;
pub mod service;

use crate::apply::Packet;
use crate::drop::Drop;
use crate::table::{Owned, ServiceKey, Settings, filter};
use crate::tables::Tables;
use crate::verdict::{Arrival, Verdict};
use crate::wire::header::{ETH_P_IP, ETH_P_IPV6};
use crate::wire::{Addr, Be16, Ip4, Ip6};
use parse::{Ip, Link, Parsed, Part};

/// What every stage is handed: the tables, the packet's circumstances, and the settings in force.
pub struct Context<'a, T> {
    pub tables: &'a T,
    pub at: &'a Arrival,
    pub settings: Settings,
}

/// Decides what becomes of a packet, and makes it so.
#[inline(always)]
pub fn run<P: Packet, T: Tables<Ip4> + Tables<Ip6>>(packet: &mut P, at: &Arrival, tables: &T) -> Verdict {
    let Some(link) = parse::link(&packet.frame()) else {
        return Verdict::Pass;
    };
    let walked = match link.ethertype {
        ETH_P_IP => family::<Ip4, P, T>(packet, &link, at, tables),
        ETH_P_IPV6 => family::<Ip6, P, T>(packet, &link, at, tables),
        _ => Ok(Verdict::Pass),
    };
    walked.unwrap_or_else(Verdict::Drop)
}

#[inline(always)]
fn family<A: Ip, P: Packet, T: Tables<A>>(
    packet: &mut P,
    link: &Link,
    at: &Arrival,
    tables: &T,
) -> Result<Verdict, Drop> {
    let Some(parsed) = parse::packet::<A>(&packet.frame(), link, at.tagged) else {
        return Ok(Verdict::Pass);
    };
    if parsed.part == Part::Later {
        return fragment::later(packet, parsed, &Context { tables, at, settings: tables.settings() });
    }
    if parsed.proto == A::ICMP {
        return icmp::message(packet, &parsed, &Context { tables, at, settings: tables.settings() });
    }
    let key = &parsed.key;
    if !claimed(tables, key.dst, key.dport, parsed.proto) && !claimed(tables, key.src, key.sport, parsed.proto) {
        return unclaimed(packet, &parsed, at, tables);
    }
    let context = Context { tables, at, settings: tables.settings() };
    let verdict = connection(packet, &parsed, &context)?;
    if parsed.part == Part::First && verdict != Verdict::Pass {
        fragment::remember(&parsed, &context);
    }
    Ok(verdict)
}

/// A packet that a flow or a service may claim.
#[inline(always)]
fn connection<A: Ip, P: Packet, T: Tables<A>>(
    packet: &mut P,
    parsed: &Parsed<A>,
    context: &Context<T>,
) -> Result<Verdict, Drop> {
    if let Some(hit) = flow::find(parsed, context) {
        return deliver::along(packet, parsed, context, &hit);
    }
    let key = ServiceKey { addr: parsed.key.dst, port: parsed.key.dport, proto: parsed.proto, pad: 0 };
    match context.tables.service(&key) {
        Some(service) if service.count == 0 => icmp::refuse(packet, parsed, context.at, context.tables, Drop::NoBackend),
        Some(service) => match service::open(parsed, context, &service)? {
            Some(hit) => deliver::along(packet, parsed, context, &hit),
            None => Ok(Verdict::Pass),
        },
        None => unclaimed(packet, parsed, context.at, context.tables),
    }
}

/// A packet of no connection and no service: ours only if its address is.
#[inline(always)]
fn unclaimed<A: Ip, P: Packet, T: Tables<A>>(
    packet: &mut P,
    parsed: &Parsed<A>,
    at: &Arrival,
    tables: &T,
) -> Result<Verdict, Drop> {
    match owned(tables, parsed.key.dst) {
        Some(Owned::VIP) => icmp::refuse(packet, parsed, at, tables, Drop::NoService),
        Some(Owned::UNUSED) => Err(Drop::UnusedServiceAddress),
        _ => Ok(Verdict::Pass),
    }
}

/// Whether the filter lets through that the tuple is a service's or a backend's.
#[inline(always)]
fn claimed<A: Addr, T: Tables<A>>(tables: &T, addr: A, port: Be16, proto: u8) -> bool {
    tables.filter(filter::tuple_bit(addr, port, proto))
}

/// What the address is, if it is ours.
#[inline(always)]
fn owned<A: Addr, T: Tables<A>>(tables: &T, addr: A) -> Option<u32> {
    if !tables.filter(filter::addr_bit(addr)) && !tables.filter(filter::grain_bit(addr)) {
        return None;
    }
    tables.owned(addr).map(|owned| owned.kind)
}
