//! A service's new connection: its backend, and its two entries.
//!
//! Invariant: a backend that leaves gets no new connection. A connection's reply tuple is unique:
//! where another connection has it, the source is translated to a free port.

use super::flow::{alone, claim, complete};
use super::parse::Ip;
use super::{Context, Work};
use crate::drop::{Drop, Note};
use crate::flow_table::{NONE, slot};
use crate::hash;
use crate::table::{Affinity, AffinityKey, Backend, Flow, NextHop, Service, age};
use crate::tables::Tables;
use crate::tcp;
use crate::verdict::{Hook, Outcome};
use crate::wire::Be16;
use crate::wire::header::{SCTP, TCP, TCP_RST, TCP_SYN};

/// Source ports tried for a translated connection.
const SNAT_TRIES: u32 = 16;

/// Opens a connection; false when the outcome says what becomes of the packet instead.
#[inline(always)]
pub fn open<A: Ip, T: Tables<A>>(work: &mut Work<A>, context: &Context<T>, outcome: &mut Outcome) -> bool {
    let opened = try_open(work, context);
    if let Err(reason) = opened {
        *outcome = Outcome::drop(reason);
    }
    opened == Ok(true)
}

/// False: its TTL ends here, so that the kernel shall answer.
#[inline(always)]
fn try_open<A: Ip, T: Tables<A>>(work: &mut Work<A>, context: &Context<T>) -> Result<bool, Drop> {
    let Work { parsed, hit, service, backend, .. } = work;
    let at = Chooser { client: parsed.key.src, now: context.at.now };
    let id = choose(context.tables, service, &at, || hash::tuple(&parsed.key), backend)?;
    let hop = context.tables.next_hop(backend.next_hop).unwrap_or_default();
    let own = context.at.hook == Hook::Egress;
    if parsed.ttl <= 1 && hop.kind != NextHop::LOCAL && !own {
        return Ok(false);
    }
    let mid_stream = parsed.proto == TCP && parsed.flags & TCP_SYN == 0;
    let direct = service.flags & Service::DIRECT != 0
        && backend.flags & Backend::<A>::DIRECT != 0
        && !own
        && hop.kind == NextHop::LINK
        && (context.at.hook != Hook::Xdp || hop.flags & NextHop::XDP != 0);
    hit.flow = Flow {
        src: parsed.key.src,
        dst: backend.addr,
        sport: parsed.key.sport,
        // SCTP's checksum covers its ports: they stay (the configuration refuses others).
        dport: if parsed.proto == SCTP { parsed.key.dport } else { backend.port },
        service: service.id,
        backend: id,
        next_hop: backend.next_hop,
        last: context.at.now,
        state: if mid_stream { tcp::MID_STREAM } else { tcp::NEW },
        flags: 0,
        epoch: context.tables.settings().epoch,
    };
    if direct && context.at.tunneled != 0 {
        return Err(Drop::DirectElsewhere);
    }
    if direct {
        hit.flow = Flow { dst: parsed.key.dst, dport: parsed.key.dport, flags: Flow::<A>::DIRECT, ..hit.flow };
        if parsed.proto != TCP || parsed.flags & TCP_RST == 0 {
            alone(work, context)?;
            context.tables.count_connection(id);
        }
        return Ok(true);
    }
    // The answer comes back through this node only if it must: from elsewhere, or to the very link
    // that the backend is on (there the two would talk directly), or the client is the backend. What
    // this node sends itself has an address of ours already, but of the way to the service, which
    // may not be the one that the backend answers on.
    let remote = backend.flags & Backend::<A>::REMOTE != 0;
    let same_link = backend.link == context.at.ifindex;
    let itself = parsed.key.src == backend.addr;
    let back = if own { remote && parsed.key.src != backend.snat } else { remote || same_link || itself };
    let snat = back || service.flags & Service::MASQUERADE != 0;
    if parsed.proto == TCP && parsed.flags & TCP_RST != 0 {
        // It ends what we don't know: it needs no entry to reach the backend.
        return if snat { Err(Drop::StrayReset) } else { Ok(true) };
    }
    insert(work, context, snat)?;
    context.tables.count_connection(id);
    if mid_stream {
        context.tables.note(Note::MidStream);
    }
    Ok(true)
}

/// Who opens a connection, and when.
pub(super) struct Chooser<A> {
    pub client: A,
    pub now: u32,
}

/// The backend that the client is bound to, or the one on the connection's slot: its id, and itself.
#[inline(always)]
pub(super) fn choose<A: Ip, T: Tables<A>>(
    tables: &T,
    service: &Service,
    &Chooser { client, now }: &Chooser<A>,
    connection: impl FnOnce() -> u32,
    backend: &mut Backend<A>,
) -> Result<u32, Drop> {
    if service.affinity == 0 {
        return on_slot(tables, service, connection(), backend);
    }
    let key = AffinityKey { client, service: service.id };
    let chosen = match bound(tables, &key, service, now, backend) {
        Some(bound) => bound,
        None => on_slot(tables, service, hash::client(client, service.id), backend)?,
    };
    tables.affinity_put(&key, &Affinity { backend: chosen, last: now });
    Ok(chosen)
}

#[inline(always)]
fn bound<A: Ip, T: Tables<A>>(
    tables: &T,
    key: &AffinityKey<A>,
    service: &Service,
    now: u32,
    backend: &mut Backend<A>,
) -> Option<u32> {
    let affinity = tables.affinity(key)?;
    if age(now, affinity.last) > service.affinity {
        return None;
    }
    *backend = tables.backend(affinity.backend)?;
    let of_row = if service.flags & Service::LOCAL != 0 {
        backend.flags & Backend::<A>::HERE != 0
    } else {
        backend.flags & Backend::<A>::LAST == 0
    };
    let takes = backend.state == Backend::<A>::ACTIVE && backend.service == service.id && of_row;
    takes.then_some(affinity.backend)
}

#[inline(always)]
fn on_slot<A: Ip, T: Tables<A>>(
    tables: &T,
    service: &Service,
    hash: u32,
    backend: &mut Backend<A>,
) -> Result<u32, Drop> {
    let slot = service.first.wrapping_add(hash::slot(hash, service.count));
    let id = tables.slot(slot).ok_or(Drop::StaleSlot)?;
    *backend = tables.backend(id).ok_or(Drop::StaleSlot)?;
    if backend.state == 0 { Err(Drop::StaleSlot) } else { Ok(id) }
}

/// Puts both directions' entries into the table: the reply's first, since its key must be unique.
#[inline(always)]
fn insert<A: Ip, T: Tables<A>>(work: &mut Work<A>, context: &Context<T>, snat: bool) -> Result<(), Drop> {
    if snat || !claim(work, context)? {
        translate_source(work, context)?;
        if !claim(work, context)? {
            return Err(Drop::SnatPortsExhausted);
        }
    }
    complete(work, context)
}

/// Gives the connection this node's address and a source port that is free at the moment: its own if
/// that is, else one of a few others from the range, which the node's own stack does not use.
#[inline(always)]
fn translate_source<A: Ip, T: Tables<A>>(work: &mut Work<A>, context: &Context<T>) -> Result<(), Drop> {
    let Work { parsed, hit, other_key, backend, .. } = work;
    hit.flow.src = backend.snat;
    hit.flow.flags = Flow::<A>::SNAT;
    let key = &parsed.key;
    if key.proto == SCTP as u32 {
        return Ok(());
    }
    let settings = context.tables.settings();
    let first = settings.snat_first as u32;
    let count = (settings.snat_last as u32).wrapping_sub(first).wrapping_add(1).max(1);
    let own = (key.sport.get() as u32).wrapping_sub(first);
    let start = hash::slot(hash::tuple(key), count);
    for attempt in 0..SNAT_TRIES {
        // A prime stride spreads the tries, so that a block of taken ports is left at once.
        let offset = if attempt == 0 && own < count { own } else { (start + attempt * 4_099) % count };
        hit.flow.sport = Be16::new((first + offset) as u16);
        *other_key = hit.flow.reverse_key(key.proto);
        if slot(context.tables, other_key) == NONE {
            return Ok(());
        }
    }
    Err(Drop::SnatPortsExhausted)
}
