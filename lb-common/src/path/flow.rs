//! Connections that exist: found, kept alive, moved through their states, ended.
//!
//! Invariant: a connection moves from the half-open to the established table when both sides have
//! proven that they are there, and never back. Both its entries carry the same state; each keeps the
//! time of its own direction. Two CPUs may step the same connection at once: every write sets one
//! field to a value that both would agree on, and the later packet's step repairs a lost one.

use super::Context;
use super::parse::{Ip, Parsed};
use crate::drop::Note;
use crate::table::{Flow, FlowKey, FlowSet, Put, Settings};
use crate::tables::Tables;
use crate::tcp;
use crate::wire::Addr;
use crate::wire::header::{SCTP, TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};

/// An entry, and where it was found.
pub struct Hit<A: Addr> {
    pub key: FlowKey<A>,
    pub flow: Flow<A>,
    pub set: FlowSet,
}

/// The packet's connection, stepped by the packet; None when there is none (any more).
#[inline(always)]
pub fn find<A: Ip, T: Tables<A>>(parsed: &Parsed<A>, context: &Context<T>) -> Option<Hit<A>> {
    let tables = context.tables;
    let key = parsed.key;
    if let Some(flow) = tables.flow(FlowSet::Established, &key) {
        let hit = Hit { key, flow, set: FlowSet::Established };
        refresh(&hit, context)?;
        if parsed.proto == TCP && parsed.flags & (TCP_SYN | TCP_FIN | TCP_RST) != 0 {
            return established(hit, parsed, context);
        }
        return Some(hit);
    }
    let flow = tables.flow(FlowSet::HalfOpen, &key)?;
    let hit = Hit { key, flow, set: FlowSet::HalfOpen };
    let refreshed = refresh(&hit, context)?;
    half_open(hit, parsed, context, refreshed)
}

/// Keeps an entry alive, about once a second; None when it is past its time, and gone now.
#[inline(always)]
fn refresh<A: Ip, T: Tables<A>>(hit: &Hit<A>, context: &Context<T>) -> Option<bool> {
    let age = age(context.at.now, hit.flow.last);
    if age < context.settings.ticks_per_second {
        return Some(false);
    }
    let limit = idle_limit(&context.settings, hit.key.proto as u8, hit.flow.state);
    if age > limit && !other_alive(hit, context, limit) {
        remove(hit, context);
        return None;
    }
    context.tables.flow_touch(hit.set, &hit.key, context.at.now);
    Some(true)
}

/// Ticks since `last`. Another CPU may have written a later one: that is now.
#[inline(always)]
pub fn age(now: u32, last: u32) -> u32 {
    let age = now.wrapping_sub(last);
    if age > i32::MAX as u32 { 0 } else { age }
}

/// A connection may speak in one direction only.
#[inline(always)]
fn other_alive<A: Ip, T: Tables<A>>(hit: &Hit<A>, context: &Context<T>, limit: u32) -> bool {
    let other = context.tables.flow(hit.set, &hit.flow.reverse_key(hit.key.proto));
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

/// SYN, FIN or RST on an answered TCP connection.
#[inline(always)]
fn established<A: Ip, T: Tables<A>>(hit: Hit<A>, parsed: &Parsed<A>, context: &Context<T>) -> Option<Hit<A>> {
    if reopens(&hit, parsed) {
        remove(&hit, context);
        return None;
    }
    let state = tcp::step(hit.flow.state, is_reply(&hit.flow), parsed.flags);
    set_state(&hit, state, context);
    Some(hit)
}

/// Any packet of a connection that is not in the established table.
#[inline(always)]
fn half_open<A: Ip, T: Tables<A>>(
    mut hit: Hit<A>,
    parsed: &Parsed<A>,
    context: &Context<T>,
    refreshed: bool,
) -> Option<Hit<A>> {
    let reply = is_reply(&hit.flow);
    let state = if parsed.proto == TCP {
        if reopens(&hit, parsed) {
            remove(&hit, context);
            return None;
        }
        tcp::step(hit.flow.state, reply, parsed.flags)
    } else if reply {
        tcp::ESTABLISHED
    } else {
        hit.flow.state
    };
    let changed = state != hit.flow.state;
    let confirmed = matches!(state, tcp::ESTABLISHED | tcp::FIN_CLIENT | tcp::FIN_BACKEND);
    // A guest that found the established table full tries again about once a second.
    if confirmed && (changed || refreshed) {
        promote(&mut hit, state, context);
    } else if changed {
        set_state(&hit, state, context);
    }
    Some(hit)
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
fn set_state<A: Ip, T: Tables<A>>(hit: &Hit<A>, state: u8, context: &Context<T>) {
    if state == hit.flow.state {
        return;
    }
    if state == tcp::RESET {
        context.tables.note(Note::Reset);
        remove(hit, context);
        return;
    }
    context.tables.flow_state(hit.set, &hit.key, state);
    context.tables.flow_state(hit.set, &hit.flow.reverse_key(hit.key.proto), state);
}

#[inline(always)]
fn remove<A: Ip, T: Tables<A>>(hit: &Hit<A>, context: &Context<T>) {
    context.tables.flow_delete(hit.set, &hit.key);
    context.tables.flow_delete(hit.set, &hit.flow.reverse_key(hit.key.proto));
}

/// Moves both entries to the established table; where that is full, they stay.
#[inline(always)]
fn promote<A: Ip, T: Tables<A>>(hit: &mut Hit<A>, state: u8, context: &Context<T>) {
    let tables = context.tables;
    let other_key = hit.flow.reverse_key(hit.key.proto);
    let mut other = tables.flow(FlowSet::HalfOpen, &other_key).unwrap_or_else(|| reverse(hit));
    hit.flow.state = state;
    hit.flow.last = context.at.now;
    other.state = state;
    other.last = context.at.now;
    let first = tables.flow_put(FlowSet::Established, &hit.key, &hit.flow, Put::Any);
    if first.is_err() || tables.flow_put(FlowSet::Established, &other_key, &other, Put::Any).is_err() {
        tables.flow_delete(FlowSet::Established, &hit.key);
        tables.note(Note::FlowTableFull);
        tables.flow_state(FlowSet::HalfOpen, &hit.key, state);
        tables.flow_state(FlowSet::HalfOpen, &other_key, state);
        return;
    }
    tables.flow_delete(FlowSet::HalfOpen, &hit.key);
    tables.flow_delete(FlowSet::HalfOpen, &other_key);
    hit.set = FlowSet::Established;
}

/// The other direction's entry, made anew from this one's.
#[inline(always)]
pub fn reverse<A: Addr>(hit: &Hit<A>) -> Flow<A> {
    Flow {
        src: hit.key.dst,
        dst: hit.key.src,
        sport: hit.key.dport,
        dport: hit.key.sport,
        flags: hit.flow.flags ^ Flow::<A>::REPLY,
        next_hop: 0,
        ..hit.flow
    }
}
