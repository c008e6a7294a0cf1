//! Mappings: which port outside an endpoint inside has, and what is remembered of it.
//!
//! The port itself is one of [`crate::port_table`]. Two kinds of [`Flow::MEMORY`] stand in the flow table
//! beside it: the port of an endpoint that could not have its home ([`away_key`]), and that an endpoint has
//! sent to a further address ([`sent_key`]). Invariant: a mapping lives as long as what uses it, by time, or
//! ends with the only connection that did. Not here: which packets get one ([`super::way`]).

use crate::drop::{Drop, Note};
use crate::flow_table::{self, MULTIPLIERS, NONE, find_into, touch};
use crate::hash;
use crate::path::parse::{Ip, Parsed};
use crate::path::{Context, Work, claimed};
use crate::port_table::{self, HOSTS_FULL, Mapping, Meta, OVER_QUOTA, base, class, home};
use crate::table::{Flow, FlowKey, MappingEvent, NextHop, Owned, ServiceKey, Settings};
use crate::tables::Tables;
use crate::tcp;
use crate::wire::header::UDP;
use crate::wire::{Addr, Be16};

use super::DNS;

/// Free ports that are looked at for one that no service has.
const SEARCHES: u32 = 2;
/// Beside a [`Flow::MEMORY`]'s protocol: no packet's key is like that.
const MEMORY: u32 = 1 << 8;

/// The state of a mapping: of what isn't TCP, it lasts as long as if it were answered (RFC 4787 REQ-5, RFC
/// 5508 REQ-2).
#[inline(always)]
fn mapping_state(state: u8) -> u8 {
    if state == tcp::WAITING { tcp::ESTABLISHED } else { state }
}

/// What [`known`] answers, and [`map`] but for the first: there is no port,
pub const UNMAPPED: u32 = 0;
/// the source has one,
pub const MAPPED: u32 = 1;
/// and [`remember`] is to be called for it.
pub const REMEMBER: u32 = 2;

/// Gives the packet's source the port outside that it has already.
#[inline(always)]
pub fn known<A: Ip, T: Tables<A>>(work: &mut Work<A>, context: &Context<T>) -> u32 {
    let (tables, now) = (context.tables, context.at.now);
    let Work { parsed, hit, other, other_key, entries, .. } = work;
    let key = &parsed.key;
    let mut port = home(&tables.settings(), key.sport);
    let Some(at_home) = tables.owner(entries.wrapping_add(port)) else {
        return UNMAPPED;
    };
    let mut owner = at_home;
    let mut found = owner.of(key.src, key.sport);
    if found.is_none() && owner.meta().marked() {
        *other_key = away_key(key.src, key.sport, key.proto);
        if !find_into(tables, other_key, other) {
            return UNMAPPED;
        }
        touch(tables, other, now);
        port = other.flow.sport.get() as u32;
        match tables.owner(entries.wrapping_add(port)) {
            Some(there) => owner = there,
            None => return UNMAPPED,
        }
        found = owner.of(key.src, key.sport);
        if found.is_none() {
            // Of a port that it has no more.
            flow_table::remove(tables, other);
        }
    }
    let Some(meta) = found else {
        return UNMAPPED;
    };
    owner.share(meta);
    owner.keep(owner.meta(), mapping_state(hit.flow.state), now);
    hit.flow.sport = Be16::new(port as u16);
    // A further address that it sends to is remembered for whoever filters by address.
    let remote = owner.whose().map_or(key.dst, |(_, _, remote)| remote);
    if remote == key.dst || tables.settings().nat(Settings::FILTER_NONE | Settings::FILTER_PORT) {
        return MAPPED;
    }
    *other_key = sent_key(key.dst, key.src, key.sport, key.proto);
    if find_into(tables, other_key, other) {
        touch(tables, other, now);
        return MAPPED;
    }
    other.flow = memory(&hit.flow, tcp::WAITING);
    REMEMBER
}

/// Gives the packet's source the port that was taken for it.
#[inline(always)]
pub fn map<A: Ip, T: Tables<A>>(work: &mut Work<A>, context: &Context<T>) -> u32 {
    let (tables, now) = (context.tables, context.at.now);
    let Work { parsed, hit, other, other_key, entries, entry, .. } = work;
    let (key, index) = (&parsed.key, *entry);
    let home = home(&tables.settings(), key.sport);
    let port = Be16::new(index as u16);
    let away = port.get() as u32 != home;
    let state = mapping_state(hit.flow.state);
    port_table::own(tables, index, &Mapping { inside: key.src, remote: key.dst, port: key.sport, state, away, now });
    tables.note(Note::NatMapped);
    if tables.settings().nat(Settings::NAT_LOG) {
        tables.nat_event(&event(key.src, key.sport, hit.flow.src, port, key.proto, MappingEvent::<A>::BEGINS));
    }
    hit.flow.sport = port;
    if !away {
        return MAPPED;
    }
    if let Some(owner) = tables.owner(entries.wrapping_add(home)) {
        owner.mark();
    }
    *other_key = away_key(key.src, key.sport, key.proto);
    other.flow = memory(&hit.flow, tcp::ESTABLISHED);
    REMEMBER
}

/// Beside a [`Drop`], in place of an entry.
pub(super) const FAILED: u32 = 1 << 31;

/// Takes a free port for a host that may have one more.
#[inline(always)]
pub fn take<A: Ip, T: Tables<A>>(work: &Work<A>, context: &Context<T>) -> u32 {
    let (tables, inside) = (context.tables, work.parsed.key.src);
    // This node's own connections are not counted.
    let quota = if context.at.own != 0 { u32::MAX } else { tables.settings().nat_quota };
    let place = port_table::admit(tables, inside, quota);
    if place == OVER_QUOTA {
        return FAILED | Drop::NatQuota as u32;
    }
    if place == HOSTS_FULL {
        return FAILED | Drop::NatHostsFull as u32;
    }
    let index = free(work, context);
    if index == port_table::NONE {
        return FAILED | Drop::NatPortsExhausted as u32;
    }
    port_table::charge(tables, place);
    index
}

/// Takes the source's home, another free port, or one past its time; [`port_table::NONE`] without one.
#[inline(always)]
fn free<A: Ip, T: Tables<A>>(work: &Work<A>, context: &Context<T>) -> u32 {
    let (tables, now) = (context.tables, context.at.now);
    let Work { parsed, hit, entries, .. } = work;
    let home = home(&tables.settings(), parsed.key.sport);
    let (proto, base) = (parsed.proto, *entries);
    // A service's port, or a published one, is nobody's.
    let served = |index: u32| {
        let key = ServiceKey { addr: hit.flow.src, port: Be16::new(index as u16), proto, pad: 0 };
        claimed(tables, key.addr, key.port, proto) && tables.service(&key).is_some()
    };
    let index = base.wrapping_add(home);
    if !served(index) && port_table::take(tables, index) {
        return index;
    }
    // Nobody can tell which port comes next (RFC 7857 §9).
    let secret = tables.multiplier(MULTIPLIERS - 1);
    let mut hash = ((hash::tuple(&parsed.key) as u64).wrapping_mul(secret) >> 32) as u32;
    for _ in 0..SEARCHES {
        let index = port_table::search(tables, base, home, hash);
        if index == port_table::NONE {
            break;
        }
        if !served(index) {
            return index;
        }
        port_table::clear(tables, index);
        hash = hash.wrapping_mul(0x9e37_79b9);
    }
    let index = port_table::stale(tables, base, hash, secret as u32, proto, now);
    if let Some(owner) = tables.owner(index)
        && end_mapping(context, index, owner.meta(), hit.flow.src, parsed.key.proto)
    {
        tables.note(Note::NatReclaimed);
        if port_table::take(tables, index) {
            return index;
        }
    }
    port_table::NONE
}

/// Gives the port that was taken for the packet's source to this node itself.
#[inline(always)]
pub fn cede<A: Ip, T: Tables<A>>(work: &Work<A>, context: &Context<T>) -> u32 {
    let (tables, now) = (context.tables, context.at.now);
    let Work { parsed, hit, entry, .. } = work;
    let (outside, port) = (hit.flow.src, Be16::new(*entry as u16));
    let mapping = Mapping { inside: outside, remote: parsed.key.dst, port, state: tcp::ESTABLISHED, away: false, now };
    port_table::own(tables, *entry, &mapping);
    port_table::refund(tables, parsed.key.src);
    port_table::charge(tables, port_table::admit(tables, outside, u32::MAX));
    tables.note(Note::NatLeftToSocket);
    // As `follow`.
    0
}

/// Ends a mapping to a port of `outside`; false where another CPU has.
#[inline(always)]
fn end_mapping<A: Ip, T: Tables<A>>(context: &Context<T>, index: u32, meta: Meta, outside: A, proto: u32) -> bool {
    let tables = context.tables;
    let Some((inside, _)) = tables.owner(index).and_then(|owner| owner.addrs(meta)) else {
        return false;
    };
    if !port_table::release(tables, index, meta) {
        return false;
    }
    port_table::refund(tables, inside);
    tables.note(Note::NatUnmapped);
    if tables.settings().nat(Settings::NAT_LOG) {
        let port = Be16::new(index as u16);
        tables.nat_event(&event(inside, meta.port(), outside, port, proto, MappingEvent::<A>::ENDS));
    }
    true
}

#[inline(always)]
fn event<A: Addr>(
    inside: A,
    inside_port: Be16,
    outside: A,
    outside_port: Be16,
    proto: u32,
    what: u16,
) -> MappingEvent<A> {
    MappingEvent { inside, outside, inside_port, outside_port, what, proto: proto as u16 }
}

/// What is remembered of a mapping, as that of a connection's entry says it.
#[inline(always)]
fn memory<A: Addr>(flow: &Flow<A>, state: u8) -> Flow<A> {
    Flow {
        dst: A::default(),
        dport: Be16::default(),
        state,
        flags: Flow::<A>::NAT | Flow::<A>::MEMORY,
        next_hop: NextHop::UNRESOLVED,
        ..*flow
    }
}

/// Puts a [`Flow::MEMORY`] into the flow table. Without room it is forgotten: then an endpoint may get a
/// second port, or hear less from outside.
#[inline(always)]
pub fn remember<A: Ip, T: Tables<A>>(work: &mut Work<A>, tables: &T) {
    let _ = flow_table::insert(tables, &work.other_key, &mut work.other, NONE);
}

/// Of an endpoint inside whose port outside is not its home.
#[inline(always)]
fn away_key<A: Addr>(inside: A, port: Be16, proto: u32) -> FlowKey<A> {
    FlowKey { src: inside, dst: A::default(), sport: port, dport: Be16::default(), proto: proto | MEMORY }
}

/// Of an endpoint inside, and an address that it has sent to.
#[inline(always)]
pub(super) fn sent_key<A: Addr>(remote: A, inside: A, port: Be16, proto: u32) -> FlowKey<A> {
    FlowKey { src: remote, dst: inside, sport: Be16::default(), dport: port, proto: proto | MEMORY }
}

/// The mapping of a connection goes with it to the state [`Work::follow`]: it is kept, or ended.
#[inline(always)]
pub fn follow<A: Ip, T: Tables<A>>(work: &mut Work<A>, context: &Context<T>) -> u32 {
    try_follow(work, context);
    // A function of its own in the kernel answers something.
    0
}

#[inline(always)]
fn try_follow<A: Ip, T: Tables<A>>(work: &mut Work<A>, context: &Context<T>) {
    let (tables, now) = (context.tables, context.at.now);
    let Work { parsed, hit, other, other_key, follow, .. } = work;
    let state = *follow as u8;
    let (key, flow) = (&parsed.key, &hit.flow);
    // The inside's end, the outside's, and whom it talks to.
    let (inside, port, outside, outside_port, remote) = if flow.is(Flow::<A>::OUT) {
        (key.src, key.sport, flow.src, flow.sport, key.dst)
    } else {
        (flow.dst, flow.dport, key.dst, key.dport, key.src)
    };
    let owned = tables.owned(outside).unwrap_or_default();
    let Some(class) = class(key.proto).filter(|_| owned.is(Owned::OUTSIDE)) else {
        return;
    };
    let index = base(owned.index as u32, class).wrapping_add(outside_port.get() as u32);
    let Some(owner) = tables.owner(index) else {
        return;
    };
    let Some(meta) = owner.of(inside, port) else {
        return;
    };
    if matches!(state, tcp::CLOSED | tcp::RESET) {
        if !meta.shared() && end_mapping(context, index, meta, outside, key.proto) {
            *other_key = away_key(inside, port, key.proto);
            if meta.away() && find_into(tables, other_key, other) {
                flow_table::remove(tables, other);
            }
        }
        return;
    }
    owner.keep(meta, mapping_state(state), now);
    *other_key = away_key(inside, port, key.proto);
    if meta.away() && find_into(tables, other_key, other) {
        touch(tables, other, now);
    }
    *other_key = sent_key(remote, inside, port, key.proto);
    if owner.whose().is_some_and(|(_, _, first)| first != remote) && find_into(tables, other_key, other) {
        touch(tables, other, now);
    }
}

/// Whether an answer ends what was asked, so that the connection stays a short one.
#[inline(always)]
pub fn short<A: Ip>(parsed: &Parsed<A>, flow: &Flow<A>) -> bool {
    flow.is(Flow::<A>::NAT) && parsed.proto == UDP && (parsed.key.sport == DNS || parsed.key.dport == DNS)
}
