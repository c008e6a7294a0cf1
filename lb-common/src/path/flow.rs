//! Connections that exist: found, kept alive, moved through their states, ended.
//!
//! Invariant: a connection moves from the half-open to the established table when both sides have
//! proven that they are there, and never back. Both its entries carry the same state; each keeps the
//! time of its own direction. Two CPUs may step the same connection at once: every write sets one
//! field to a value that both would agree on, and the later packet's step repairs a lost one.

use zerocopy::FromZeros;

use super::parse::{Ip, Parsed};
use super::{Context, Next, Work};
use crate::drop::Note;
use crate::table::{Flow, FlowKey, FlowSet, NextHop, Put, Settings};
use crate::tables::Tables;
use crate::tcp;
use crate::wire::Addr;
use crate::wire::header::{SCTP, TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};

/// An entry, and where it was found.
#[derive(FromZeros)]
#[repr(C)]
pub struct Hit<A: Addr> {
    pub set: FlowSet,
    pub flow: Flow<A>,
}

/// Whether a packet changes nothing of its established connection, not even its time.
#[inline(always)]
pub fn is_quiet<A: Ip, T: Tables<A>>(flow: &Flow<A>, parsed: &Parsed<A>, context: &Context<T>) -> bool {
    let settings = context.tables.settings();
    let opens_or_ends = parsed.proto == TCP && parsed.flags & (TCP_SYN | TCP_FIN | TCP_RST) != 0;
    let routed = flow.epoch == settings.epoch && flow.next_hop != NextHop::UNRESOLVED;
    !opens_or_ends && routed && age(context.at.now, flow.last) < settings.ticks_per_second
}

/// Finds the packet's connection and steps it by the packet; false when there is none (any more).
#[inline(never)]
pub fn find<A: Ip, T: Tables<A>>(work: &mut Work<A>, context: &Context<T>) -> bool {
    let tables = context.tables;
    let Work { parsed, hit, .. } = work;
    // A connection on its way from one table to the other, on another CPU, was not yet in the first
    // when we looked and is no longer in the second: it is in the first now. A SYN is of none such.
    let opens = parsed.proto == TCP && parsed.flags & (TCP_SYN | TCP_ACK) == TCP_SYN;
    let established = || tables.flow(FlowSet::Established, &parsed.key);
    if work.next != Next::Unknown as u32
        && let Some(flow) = established()
    {
        *hit = Hit { set: FlowSet::Established, flow };
    } else if let Some(flow) = tables.flow(FlowSet::HalfOpen, &parsed.key) {
        *hit = Hit { set: FlowSet::HalfOpen, flow };
    } else if !opens && let Some(flow) = established() {
        *hit = Hit { set: FlowSet::Established, flow };
    } else {
        return false;
    }
    let age = refresh(hit, parsed, context);
    if age == Age::Over || reopens(hit, parsed) {
        remove(hit, parsed, context);
        return false;
    }
    step(hit, parsed, context, age == Age::Refreshed);
    true
}

#[derive(PartialEq, Eq)]
enum Age {
    Young,
    Refreshed,
    Over,
}

/// Keeps an entry alive, about once a second.
#[inline(always)]
fn refresh<A: Ip, T: Tables<A>>(hit: &Hit<A>, parsed: &Parsed<A>, context: &Context<T>) -> Age {
    let settings = context.tables.settings();
    let age = age(context.at.now, hit.flow.last);
    if age < settings.ticks_per_second {
        return Age::Young;
    }
    let limit = idle_limit(&settings, parsed.proto, hit.flow.state);
    if age > limit && !other_alive(hit, parsed, context, limit) {
        return Age::Over;
    }
    context.tables.flow_touch(hit.set, &parsed.key, context.at.now);
    Age::Refreshed
}

/// Ticks since `last`. Another CPU may have written a later one: that is now.
#[inline(always)]
pub fn age(now: u32, last: u32) -> u32 {
    let age = now.wrapping_sub(last);
    if age > i32::MAX as u32 { 0 } else { age }
}

/// A connection may speak in one direction only.
#[inline(always)]
fn other_alive<A: Ip, T: Tables<A>>(hit: &Hit<A>, parsed: &Parsed<A>, context: &Context<T>, limit: u32) -> bool {
    let other = context.tables.flow(hit.set, &hit.flow.reverse_key(parsed.key.proto));
    other.is_some_and(|other| age(context.at.now, other.last) <= limit)
}

/// How long a connection may be silent (RFC 5382 REQ-5 for TCP, RFC 4787 REQ-5 for UDP).
#[inline(always)]
pub fn idle_limit(settings: &Settings, proto: u8, state: u8) -> u32 {
    let answered = state == tcp::ESTABLISHED;
    match proto {
        TCP if state == tcp::CLOSED => settings.tcp_closed,
        TCP if answered => settings.tcp_established,
        TCP => settings.tcp_transitory,
        SCTP if answered => settings.sctp_established,
        SCTP => settings.sctp_transitory,
        _ if answered => settings.udp_answered,
        _ => settings.udp_unanswered,
    }
}

/// Moves a connection to its next state, and to the established table when both sides have shown themselves.
#[inline(always)]
fn step<A: Ip, T: Tables<A>>(hit: &mut Hit<A>, parsed: &Parsed<A>, context: &Context<T>, refreshed: bool) {
    let state = match (parsed.proto, is_reply(&hit.flow)) {
        (TCP, reply) => tcp::step(hit.flow.state, reply, parsed.flags),
        (_, true) => tcp::ESTABLISHED,
        (_, false) => hit.flow.state,
    };
    let confirmed = matches!(state, tcp::ESTABLISHED | tcp::FIN_CLIENT | tcp::FIN_BACKEND);
    // A guest that found the established table full tries again about once a second.
    let due = state != hit.flow.state || refreshed;
    if hit.set == FlowSet::HalfOpen && confirmed && due {
        promote(hit, parsed, state, context);
    } else {
        set_state(hit, parsed, state, context);
    }
}

/// A SYN on a connection that was closed starts a new one.
#[inline(always)]
fn reopens<A: Ip>(hit: &Hit<A>, parsed: &Parsed<A>) -> bool {
    parsed.flags & (TCP_SYN | TCP_ACK) == TCP_SYN && hit.flow.state == tcp::CLOSED && !is_reply(&hit.flow)
}

#[inline(always)]
pub fn is_reply<A: Addr>(flow: &Flow<A>) -> bool {
    flow.flags & Flow::<A>::REPLY != 0
}

#[inline(always)]
fn set_state<A: Ip, T: Tables<A>>(hit: &Hit<A>, parsed: &Parsed<A>, state: u8, context: &Context<T>) {
    if state == hit.flow.state {
        return;
    }
    if state == tcp::RESET {
        context.tables.note(Note::Reset);
        remove(hit, parsed, context);
        return;
    }
    context.tables.flow_state(hit.set, &parsed.key, state);
    context.tables.flow_state(hit.set, &hit.flow.reverse_key(parsed.key.proto), state);
}

#[inline(always)]
fn remove<A: Ip, T: Tables<A>>(hit: &Hit<A>, parsed: &Parsed<A>, context: &Context<T>) {
    context.tables.flow_delete(hit.set, &parsed.key);
    context.tables.flow_delete(hit.set, &hit.flow.reverse_key(parsed.key.proto));
}

/// Moves both entries to the established table; where that is full, they stay.
#[inline(always)]
fn promote<A: Ip, T: Tables<A>>(hit: &mut Hit<A>, parsed: &Parsed<A>, state: u8, context: &Context<T>) {
    let tables = context.tables;
    let key = &parsed.key;
    let other_key = hit.flow.reverse_key(key.proto);
    let found = tables.flow(FlowSet::HalfOpen, &other_key);
    let mut other = found.unwrap_or_else(|| reverse(key, &hit.flow));
    hit.flow.state = state;
    hit.flow.last = context.at.now;
    other.state = state;
    other.last = context.at.now;
    let first = tables.flow_put(FlowSet::Established, key, &hit.flow, Put::Any);
    if first.is_err() || tables.flow_put(FlowSet::Established, &other_key, &other, Put::Any).is_err() {
        tables.flow_delete(FlowSet::Established, key);
        tables.note(Note::FlowTableFull);
        tables.flow_state(FlowSet::HalfOpen, key, state);
        tables.flow_state(FlowSet::HalfOpen, &other_key, state);
        return;
    }
    tables.flow_delete(FlowSet::HalfOpen, key);
    tables.flow_delete(FlowSet::HalfOpen, &other_key);
    hit.set = FlowSet::Established;
}

/// The other direction's entry, made anew from this one's.
#[inline(always)]
pub fn reverse<A: Addr>(key: &FlowKey<A>, flow: &Flow<A>) -> Flow<A> {
    Flow {
        src: key.dst,
        dst: key.src,
        sport: key.dport,
        dport: key.sport,
        flags: flow.flags ^ Flow::<A>::REPLY,
        next_hop: 0,
        ..*flow
    }
}
