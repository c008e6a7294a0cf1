//! Translation between inside and outside: mappings, and the connections that use them.
//!
//! A host on the inside gets, for each of its ports, one port of an uplink's address
//! ([`crate::port_table`]); what becomes of packets then stands in the flow table like any other
//! connection's, so that an established packet costs one lookup.
//! Invariant: what is to be translated never leaves as it came: where the kernel forwards it, the
//! uplink's egress hook translates it, or drops it ([`guard`]). Not here: when the kernel forwards
//! ([`super::deliver`]), port forwards (services), ICMP errors ([`super::icmp`]).

mod mapping;

use mapping::{FAILED, REMEMBER, UNMAPPED, sent_key};
pub use mapping::{cede, follow, known, map, remember, short, take};

use super::flow::{claim, complete};
use super::parse::{Ip, Parsed, Query};
use super::{Context, Work, crosses, deliver, forward};
use crate::apply::Packet;
use crate::drop::Drop;
use crate::flow_table::find_into;
use crate::hash;
use crate::port_table::{base, class};
use crate::table::{Flow, FlowKey, NextHop, Owned, Settings, Uplink};
use crate::tables::Tables;
use crate::tcp;
use crate::verdict::{Action, Hook, Outcome};
use crate::wire::Be16;
use crate::wire::header::{TCP, TCP_ACK, TCP_RST, TCP_SYN, UDP};

/// A query is one packet, and its answer the end: such a mapping is short (RFC 4787 REQ-5a).
const DNS: Be16 = Be16::new(53);
/// Ports that are taken one after the other where sockets wait at them.
const SOCKETS: u32 = 3;

/// Says of a packet that belongs to no connection and no service what becomes of it, if it is to be
/// translated.
#[inline(never)]
pub fn cross<A: Ip, P: Packet, T: Tables<A>>(
    packet: &mut P,
    work: &mut Work<A>,
    context: &Context<T>,
    outcome: &mut Outcome,
) {
    let (tables, at) = (context.tables, context.at);
    let way = tables.nat_way(work, at, outcome);
    if way == NO_WAY {
        return;
    }
    let unasked = way & ASK != 0 && !find_into(tables, &work.other_key, &mut work.other);
    let filtered = unasked || way & FILTERED != 0;
    if way & SHARE != 0
        && !filtered
        && let Some(owner) = tables.owner(work.entries.wrapping_add(work.parsed.key.dport.get() as u32))
    {
        owner.share(owner.meta());
        let meta = owner.meta();
        owner.keep(meta, meta.state(), at.now);
    }
    // Also a packet that is filtered gives its sender a port, and lets in who it was for: that is how two
    // hosts inside meet.
    if way & MAP != 0 {
        let mut mapped = tables.nat_known(work, at);
        if mapped == UNMAPPED {
            free_port(packet, work, context);
            if work.entry & FAILED != 0 {
                *outcome = Outcome { action: Action::Drop, value: work.entry & !FAILED };
                return;
            }
            mapped = tables.nat_map(work, at);
        }
        if mapped == REMEMBER {
            tables.nat_remember(work);
        }
    }
    if filtered {
        *outcome = Outcome::drop(Drop::NatFiltered);
    } else if tables.nat_put(work, at, outcome) {
        deliver::outlined(packet, work, context, outcome);
    }
}

/// Takes a port for the packet's source, into [`Work::entry`]. One that a socket of this node waits at becomes
/// the node's own, as if it had sent from there.
#[inline(never)]
fn free_port<A: Ip, P: Packet, T: Tables<A>>(packet: &P, work: &mut Work<A>, context: &Context<T>) {
    for _ in 0..SOCKETS {
        work.entry = context.tables.nat_take(work, context.at);
        if work.entry & FAILED != 0 || context.at.own != 0 || !waits(packet, work) {
            return;
        }
        context.tables.nat_cede(work, context.at);
    }
    work.entry = FAILED | Drop::NatPortsExhausted as u32;
}

/// Whether a socket of this node waits at the port that was taken.
#[inline(always)]
fn waits<A: Ip, P: Packet>(packet: &P, work: &mut Work<A>) -> bool {
    let Parsed { key, proto, .. } = work.parsed;
    let port = Be16::new(work.entry as u16);
    work.other_key = FlowKey { src: key.dst, dst: work.hit.flow.src, sport: key.dport, dport: port, proto: key.proto };
    matches!(proto, TCP | UDP) && packet.has_socket(&work.other_key)
}

/// What [`way`] answers: the outcome says it all, or of these bits
pub const NO_WAY: u32 = 0;
/// the connection can be put into the table,
pub const PUT: u32 = 1;
/// once its source has a port,
pub const MAP: u32 = 2;
/// if the other side is known to have sent to it ([`sent_key`] in `other_key`),
pub const ASK: u32 = 4;
/// but for that nobody may, who has no connection.
pub const FILTERED: u32 = 8;
/// It uses the mapping of its destination.
pub const SHARE: u32 = 16;

/// Finds out which way a packet goes, and what it becomes.
#[inline(always)]
pub fn way<A: Ip, T: Tables<A>>(work: &mut Work<A>, context: &Context<T>, outcome: &mut Outcome) -> u32 {
    match try_way(work, context) {
        Ok(way) => way,
        Err(reason) => {
            *outcome = Outcome::drop(reason);
            NO_WAY
        }
    }
}

#[inline(always)]
fn try_way<A: Ip, T: Tables<A>>(work: &mut Work<A>, context: &Context<T>) -> Result<u32, Drop> {
    let tables = context.tables;
    let key = &work.parsed.key;
    if key.dst.stays() || key.src.stays() {
        return Ok(NO_WAY);
    }
    let from = tables.owned(key.src).unwrap_or_default();
    let to = tables.owned(key.dst).unwrap_or_default();
    // Of this node's own ports those that nobody inside can have stay.
    let ours = class(key.proto).is_none() || tables.settings().translates_to(key.sport);
    let own = context.at.own != 0 && from.is(Owned::OUTSIDE) && ours;
    // What leaves, and is from elsewhere, is nobody's here: the filter says so of most, by chance not of all.
    if context.at.hook == Hook::Egress && !own && !from.is(INSIDE) {
        return Ok(NO_WAY);
    }
    if to.is(Owned::OUTSIDE) {
        return inward(work, context, from, to);
    }
    if to.is(Owned::PREFIX_OUTSIDE) {
        return to_prefix(work, context, from, to);
    }
    if leaves(from, to) || own { outward(work, context, from) } else { Ok(NO_WAY) }
}

/// Either way of being inside.
const INSIDE: u16 = Owned::INSIDE | Owned::PREFIX_INSIDE;

#[inline(always)]
fn leaves(from: Owned, to: Owned) -> bool {
    from.is(INSIDE) && !to.is(INSIDE | Owned::DIRECT)
}

/// From the inside, or this node itself, to the outside.
#[inline(always)]
fn outward<A: Ip, T: Tables<A>>(work: &mut Work<A>, context: &Context<T>, from: Owned) -> Result<u32, Drop> {
    let tables = context.tables;
    let Work { parsed, hit, entries, .. } = work;
    let key = &parsed.key;
    let mut next_hop = NextHop::UNRESOLVED;
    let mut link = context.at.ifindex;
    if context.at.hook != Hook::Egress {
        next_hop = forward::next_hop(tables, key.dst, key);
        let hop = tables.next_hop(next_hop).unwrap_or_default();
        // What the kernel forwards, or answers, is translated at its egress.
        if hop.kind != NextHop::LINK || parsed.ttl <= 1 {
            return Ok(NO_WAY);
        }
        link = hop.ifindex;
    }
    let Some(uplink) = tables.uplink(link) else {
        return Ok(NO_WAY);
    };
    if !begins(parsed, from) {
        // This node's own stack may say what it likes.
        let reason = if parsed.proto == TCP { Drop::StrayReset } else { Drop::NatUntranslatable };
        return if from.is(Owned::OUTSIDE) { Ok(NO_WAY) } else { Err(reason) };
    }
    hit.flow = unchanged(parsed, context);
    hit.flow.service = link;
    hit.flow.next_hop = next_hop;
    hit.flow.flags |= Flow::<A>::OUT;
    if from.is(Owned::PREFIX_INSIDE) {
        hit.flow.src = outside_of(key.src, tables, from)?;
        return Ok(PUT);
    }
    if uplink.count == 0 {
        return Err(Drop::NatPortsExhausted);
    }
    // This node's own address stays.
    let (addr, plane) = if from.is(Owned::OUTSIDE) { (key.src, from.index as u32) } else { pooled(uplink, key.src) };
    hit.flow.src = addr;
    Ok(match class(key.proto) {
        Some(class) => {
            *entries = base(plane, class);
            PUT | MAP
        }
        None => PUT,
    })
}

/// A translated connection's entry, before anything of it is.
#[inline(always)]
fn unchanged<A: Ip, T: Tables<A>>(parsed: &Parsed<A>, context: &Context<T>) -> Flow<A> {
    let key = &parsed.key;
    Flow {
        src: key.src,
        dst: key.dst,
        sport: key.sport,
        dport: key.dport,
        service: context.at.ifindex,
        backend: Flow::<A>::NO_BACKEND,
        next_hop: NextHop::UNRESOLVED,
        last: context.at.now,
        state: first_state(parsed),
        flags: Flow::<A>::NAT,
        epoch: context.tables.settings().epoch,
    }
}

/// The address outside of one in an exchanged prefix.
#[inline(always)]
fn outside_of<A: Ip, T: Tables<A>>(inside: A, tables: &T, of: Owned) -> Result<A, Drop> {
    let pair = tables.prefix_pair(of.index as u32);
    pair.and_then(|pair| inside.exchange(pair, false)).ok_or(Drop::NatUntranslatable)
}

/// Whether a packet may begin a connection outward.
#[inline(always)]
fn begins<A: Ip>(parsed: &Parsed<A>, from: Owned) -> bool {
    if parsed.proto == TCP {
        let syn = parsed.flags & (TCP_SYN | TCP_ACK) == TCP_SYN;
        return syn || (!from.is(Owned::OUTSIDE) && parsed.flags & TCP_RST == 0);
    }
    // An answer to what nobody has asked, or an error that is about no connection, does not.
    parsed.proto != A::ICMP || A::query(parsed.icmp_type) == Query::Request
}

#[inline(always)]
fn first_state<A: Ip>(parsed: &Parsed<A>) -> u8 {
    match parsed.proto {
        TCP if parsed.flags & TCP_SYN == 0 => tcp::MID_STREAM,
        TCP => tcp::NEW,
        UDP if parsed.key.dport == DNS => tcp::NEW,
        _ => tcp::WAITING,
    }
}

/// The address of the pool that a host has, always the same one (RFC 4787 REQ-2), and its plane.
#[inline(always)]
fn pooled<A: Ip>(uplink: &Uplink<A>, inside: A) -> (A, u32) {
    let ([a, b, c, d], [p, q, r, s]) = (uplink.addrs, uplink.planes);
    match hash::slot(hash::client(inside, 1), uplink.count) {
        0 => (a, p),
        1 => (b, q),
        2 => (c, r),
        _ => (d, s),
    }
}

/// To a port of ours that somebody inside has.
#[inline(always)]
fn inward<A: Ip, T: Tables<A>>(work: &mut Work<A>, context: &Context<T>, from: Owned, to: Owned) -> Result<u32, Drop> {
    let tables = context.tables;
    let Work { parsed, hit, other_key, entries, .. } = work;
    let key = &parsed.key;
    // Ports that don't change have no owner, and what nobody has is this node's own.
    let Some(class) = class(key.proto) else {
        return Ok(NO_WAY);
    };
    let plane = base(to.index as u32, class);
    let settings = tables.settings();
    let Some(owner) = tables.owner(plane.wrapping_add(key.dport.get() as u32)) else {
        return Ok(NO_WAY);
    };
    let Some((inside, port, remote)) = owner.whose() else {
        return Ok(NO_WAY);
    };
    if inside == key.dst || owner.is_over(&settings, parsed.proto, context.at.now) {
        return Ok(NO_WAY);
    }
    if parsed.proto == TCP && parsed.flags & (TCP_SYN | TCP_ACK | TCP_RST) != TCP_SYN {
        return Err(Drop::NatFiltered);
    }
    let hairpin = from.is(Owned::INSIDE);
    // A host inside is known to others inside by the address that it has outside (RFC 4787 REQ-9).
    let sender = if hairpin { key.dst } else { key.src };
    *other_key = sent_key(sender, inside, port, key.proto);
    let filter = if settings.nat(Settings::FILTER_PORT) {
        FILTERED
    } else if settings.nat(Settings::FILTER_NONE) || remote == sender {
        0
    } else {
        ASK
    };
    hit.flow = unchanged(parsed, context);
    (hit.flow.dst, hit.flow.dport) = (inside, port);
    hit.flow.next_hop = forward::next_hop(tables, inside, key);
    *entries = plane;
    if !hairpin {
        return Ok(PUT | SHARE | filter);
    }
    hit.flow.src = sender;
    hit.flow.flags |= Flow::<A>::OUT;
    Ok(PUT | SHARE | filter | MAP)
}

/// To a prefix that one of the inside has outside: anybody may (RFC 6296 §3).
#[inline(always)]
fn to_prefix<A: Ip, T: Tables<A>>(
    work: &mut Work<A>,
    context: &Context<T>,
    from: Owned,
    to: Owned,
) -> Result<u32, Drop> {
    let tables = context.tables;
    let Work { parsed, hit, .. } = work;
    let key = &parsed.key;
    let pair = tables.prefix_pair(to.index as u32).ok_or(Drop::NatUntranslatable)?;
    let inside = key.dst.exchange(pair, true).ok_or(Drop::NatUntranslatable)?;
    hit.flow = unchanged(parsed, context);
    hit.flow.dst = inside;
    hit.flow.next_hop = forward::next_hop(tables, inside, key);
    if from.is(Owned::PREFIX_INSIDE) {
        // Both sides inside: each knows the other by its address outside (RFC 6296 §5.3).
        hit.flow.src = outside_of(key.src, tables, from)?;
        hit.flow.flags |= Flow::<A>::OUT;
    }
    Ok(PUT)
}

/// Puts a connection's two entries into the table; false: the outcome says why not.
#[inline(always)]
pub fn put<A: Ip, T: Tables<A>>(work: &mut Work<A>, context: &Context<T>, outcome: &mut Outcome) -> bool {
    let put = try_put(work, context);
    if let Err(reason) = put {
        *outcome = Outcome::drop(reason);
    }
    put.is_ok()
}

#[inline(always)]
fn try_put<A: Ip, T: Tables<A>>(work: &mut Work<A>, context: &Context<T>) -> Result<(), Drop> {
    if !claim(work, context)? {
        let changes = class(work.parsed.key.proto).is_some();
        return Err(if changes { Drop::NatPortsExhausted } else { Drop::NatTupleTaken });
    }
    complete(work, context)
}

/// Drops what would leave this node as it came though it is to be translated.
#[inline(never)]
pub fn guard<A: Ip, T: Tables<A>>(work: &Work<A>, context: &Context<T>, outcome: &mut Outcome) {
    let tables = context.tables;
    if !crosses(tables, &work.parsed, context.at) {
        return;
    }
    let key = &work.parsed.key;
    if key.dst.stays() || key.src.stays() || tables.uplink(context.at.ifindex).is_none() {
        return;
    }
    if goes_out(tables, key.src, key.dst) {
        *outcome = Outcome::drop(Drop::NatUntranslatable);
    }
}

/// Whether what an address sends to another goes from the inside to the outside, and is translated there.
#[inline(never)]
pub fn goes_out<A: Ip, T: Tables<A>>(tables: &T, src: A, dst: A) -> bool {
    leaves(tables.owned(src).unwrap_or_default(), tables.owned(dst).unwrap_or_default())
}
