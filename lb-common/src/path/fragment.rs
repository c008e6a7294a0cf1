//! Fragments: the first one carries the ports, the later ones follow it.
//!
//! Invariant: a later fragment has no transport header, so only its addresses change; the first
//! fragment's checksum accounts for all of them.

use super::parse::{Ip, Parsed};
use super::{Context, deliver, flow, owned};
use crate::apply::Packet;
use crate::drop::{Drop, Note};
use crate::table::{FragmentKey, FragmentPorts, Owned};
use crate::tables::Tables;
use crate::verdict::Verdict;

#[inline(always)]
fn key<A: Ip>(parsed: &Parsed<A>) -> FragmentKey<A> {
    FragmentKey { src: parsed.key.src, dst: parsed.key.dst, id: parsed.id, proto: parsed.proto as u32 }
}

/// Remembers a first fragment's ports.
#[inline(always)]
pub fn remember<A: Ip, T: Tables<A>>(parsed: &Parsed<A>, context: &Context<T>) {
    let ports = FragmentPorts { sport: parsed.key.sport, dport: parsed.key.dport, last: context.at.now };
    context.tables.fragment_put(&key(parsed), &ports);
}

/// A fragment behind the first.
#[inline(always)]
pub fn later<A: Ip, P: Packet, T: Tables<A>>(
    packet: &mut P,
    mut parsed: Parsed<A>,
    context: &Context<T>,
) -> Result<Verdict, Drop> {
    let tables = context.tables;
    let first = tables.fragment(&key(&parsed));
    let first = first.filter(|first| flow::age(context.at.now, first.last) <= context.settings.fragment);
    if let Some(first) = first {
        parsed.key.sport = first.sport;
        parsed.key.dport = first.dport;
        if let Some(hit) = flow::find(&parsed, context) {
            tables.note(Note::FragmentFollowed);
            return deliver::along(packet, &parsed, context, &hit);
        }
    }
    // Without its first fragment nobody knows where it belongs.
    match owned(tables, parsed.key.dst) {
        Some(Owned::VIP) => Err(Drop::FragmentOutOfOrder),
        Some(Owned::UNUSED) => Err(Drop::UnusedServiceAddress),
        _ => Ok(Verdict::Pass),
    }
}
