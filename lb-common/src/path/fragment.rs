//! Fragments: the first one carries the ports, the later ones follow it.
//!
//! Invariant: a later fragment has no transport header, so only its addresses change; the first
//! fragment's checksum accounts for all of them.

use super::parse::{Ip, Parsed, Part};
use super::{Context, Work, addressed, deliver, flow};
use crate::apply::Packet;
use crate::drop::{Drop, Note};
use crate::table::{FragmentKey, FragmentPorts, Owned, age};
use crate::tables::Tables;
use crate::verdict::Outcome;

#[inline(always)]
fn key<A: Ip>(parsed: &Parsed<A>) -> FragmentKey<A> {
    FragmentKey { src: parsed.key.src, dst: parsed.key.dst, id: parsed.id, proto: parsed.proto as u32 }
}

/// Remembers a first fragment's ports.
#[inline(never)]
pub fn remember<A: Ip, T: Tables<A>>(work: &Work<A>, context: &Context<T>) {
    let tuple = &work.parsed.key;
    let ports = FragmentPorts { sport: tuple.sport, dport: tuple.dport, last: context.at.now };
    context.tables.fragment_put(&key(&work.parsed), &ports);
}

/// A fragment behind the first, or a packet that ends before its transport header does.
#[inline(never)]
pub fn portless<A: Ip, P: Packet, T: Tables<A>>(
    packet: &mut P,
    work: &mut Work<A>,
    context: &Context<T>,
    outcome: &mut Outcome,
) {
    let tables = context.tables;
    let cut = work.parsed.part == Part::Cut;
    let first = if cut { None } else { tables.fragment(&key(&work.parsed)) };
    let first = first.filter(|first| age(context.at.now, first.last) <= tables.settings().fragment);
    if let Some(first) = first {
        work.parsed.key.sport = first.sport;
        work.parsed.key.dport = first.dport;
        if flow::find(work, context) {
            tables.note(Note::FragmentFollowed);
            deliver::outlined(packet, work, context, outcome);
            return;
        }
    }
    // Without its first fragment nobody knows where it belongs.
    match addressed(work, context) {
        Owned::VIP => *outcome = Outcome::drop(if cut { Drop::Truncated } else { Drop::FragmentOutOfOrder }),
        Owned::UNUSED => *outcome = Outcome::drop(Drop::UnusedServiceAddress),
        _ => {}
    }
}
