//! Connections that exist: found, kept alive, moved through their states, ended.
//!
//! Invariant: both entries of a connection carry the same state; each keeps the time of its own
//! direction, and every [`BOTH`] ticks both have that of either. A connection is answered, and can't be
//! pushed out any more, when both sides have proven that they are there and both entries are. Two CPUs
//! may step the same connection at once: a change names the state it changes, and the later packet's
//! step repairs a lost one.

use super::nat;
use super::parse::{Ip, Parsed};
use super::{Context, Work};
use crate::drop::{Drop, Note};
use crate::flow_table::change;
use crate::flow_table::insert::{aim, put};
use crate::flow_table::{self, Hit, NONE, PutError, find_into, insert, set_state, touch};
use crate::port_table::class;
use crate::table::{BOTH, Flow, FlowKey, NextHop, age};
use crate::tables::Tables;
use crate::tcp;
use crate::wire::Addr;
use crate::wire::header::{TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};

/// Whether a packet changes nothing of its answered connection but its time, which is then brought up
/// to date, about once a second.
#[inline(always)]
pub fn passes<A: Ip, T: Tables<A>>(hit: &Hit<A>, parsed: &Parsed<A>, context: &Context<T>) -> bool {
    let (settings, now) = (context.tables.settings(), context.at.now);
    let Flow { state, last, next_hop, epoch, .. } = hit.flow;
    let opens_or_ends = parsed.proto == TCP && parsed.flags & (TCP_SYN | TCP_FIN | TCP_RST) != 0;
    let routed = epoch == settings.epoch && next_hop != NextHop::UNRESOLVED;
    if !tcp::answered(state) || opens_or_ends || !routed {
        return false;
    }
    let age = age(now, last);
    if age < settings.ticks_per_second {
        return true;
    }
    if !tcp::protected(state) || age >= settings.calm || (now ^ last) >= BOTH {
        return false;
    }
    // Not as a function of its own: for that the entry would have to lie in memory.
    change::touch(context.tables, hit, now);
    true
}

/// Finds the packet's connection and steps it by the packet; false when there is none (any more).
#[inline(always)]
pub fn find<A: Ip, T: Tables<A>>(work: &mut Work<A>, context: &Context<T>) -> bool {
    let found = stepped(work, context);
    if work.follow != STAYS {
        context.tables.nat_follow(work, context.at);
    }
    found
}

/// [`Work::follow`]: the connection's mapping has nothing to learn, or there is none.
const STAYS: u32 = u32::MAX;

#[inline(never)]
fn stepped<A: Ip, T: Tables<A>>(work: &mut Work<A>, context: &Context<T>) -> bool {
    work.follow = STAYS;
    if !find_into(context.tables, &work.parsed.key, &mut work.hit) {
        return false;
    }
    work.other_key = work.hit.flow.reverse_key(work.parsed.key.proto);
    if !refresh(work, context) || reopens(&work.hit, &work.parsed) {
        remove(work, context);
        return false;
    }
    step(work, context);
    true
}

/// Keeps a connection alive; false when it is past its timeout in both directions.
#[inline(always)]
fn refresh<A: Ip, T: Tables<A>>(work: &mut Work<A>, context: &Context<T>) -> bool {
    let (tables, now) = (context.tables, context.at.now);
    let settings = tables.settings();
    let Flow { state, last, .. } = work.hit.flow;
    if age(now, last) < settings.ticks_per_second {
        return true;
    }
    let both = find_into(tables, &work.other_key, &mut work.other);
    if both && !is_pair(work) {
        // Another connection has its tuple by now.
        return false;
    }
    let over = |last| settings.is_over(work.parsed.proto, state, last, now);
    if over(last) && (!both || over(work.other.flow.last)) {
        return false;
    }
    touch(tables, &work.hit, now);
    if both {
        touch(tables, &work.other, now);
    }
    follow(work, state);
    true
}

/// Lets the mapping of a translated connection follow it to a state.
#[inline(always)]
fn follow<A: Ip>(work: &mut Work<A>, state: u8) {
    if work.hit.flow.is(Flow::<A>::NAT) {
        work.follow = state as u32;
    }
}

/// Moves a connection to the state that the packet leads to.
#[inline(always)]
fn step<A: Ip, T: Tables<A>>(work: &mut Work<A>, context: &Context<T>) {
    let old = work.hit.flow.state;
    let state = match (work.parsed.proto, is_reply(&work.hit.flow)) {
        (TCP, reply) => tcp::step(old, reply, work.parsed.flags),
        (_, true) if nat::short(&work.parsed, &work.hit.flow) => old,
        (_, true) => tcp::ESTABLISHED,
        (_, false) => old,
    };
    if state == old {
        return;
    }
    if state == tcp::RESET {
        context.tables.note(Note::Reset);
        remove(work, context);
    } else {
        change(work, context, state);
    }
    follow(work, state);
}

/// Gives both entries another state.
#[inline(always)]
fn change<A: Ip, T: Tables<A>>(work: &mut Work<A>, context: &Context<T>, state: u8) {
    let Work { parsed, hit, other, other_key, .. } = work;
    let (tables, now) = (context.tables, context.at.now);
    if !tcp::protected(hit.flow.state) {
        touch(tables, hit, now);
    }
    if find_into(tables, other_key, other) {
        if pairs(&parsed.key, other) {
            set_state(tables, other, state, now);
        }
    } else if tcp::protected(state) {
        // It was pushed out while nothing protected it.
        other.flow = reverse(&parsed.key, &hit.flow);
        other.flow.state = state;
        other.flow.last = now;
        if insert(tables, other_key, other, hit.slot) == Err(PutError::Full) {
            tables.note(Note::Unprotected);
            return;
        }
    }
    set_state(tables, hit, state, now);
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
pub fn remove<A: Ip, T: Tables<A>>(work: &mut Work<A>, context: &Context<T>) {
    flow_table::remove(context.tables, &work.hit);
    if find_into(context.tables, &work.other_key, &mut work.other) && is_pair(work) {
        flow_table::remove(context.tables, &work.other);
    }
}

/// Whether the entry that was found for the other direction is of the same connection.
#[inline(always)]
fn is_pair<A: Ip>(work: &Work<A>) -> bool {
    pairs(&work.parsed.key, &work.other)
}

/// Whether an entry leads back to where a packet of this key comes from.
#[inline(always)]
fn pairs<A: Addr>(key: &FlowKey<A>, other: &Hit<A>) -> bool {
    let Flow { src, dst, sport, dport, .. } = other.flow;
    src == key.dst && dst == key.src && sport == key.dport && dport == key.sport
}

/// The other direction's entry, made anew from this one's.
#[inline(always)]
pub fn reverse<A: Addr>(key: &FlowKey<A>, flow: &Flow<A>) -> Flow<A> {
    let turned = if flow.is(Flow::<A>::NAT) { Flow::<A>::REPLY | Flow::<A>::OUT } else { Flow::<A>::REPLY };
    Flow {
        src: key.dst,
        dst: key.src,
        sport: key.dport,
        dport: key.sport,
        flags: flow.flags ^ turned,
        next_hop: NextHop::UNRESOLVED,
        ..*flow
    }
}

/// Takes the reply tuple of a connection; false when another has it.
#[inline(always)]
pub fn claim<A: Ip, T: Tables<A>>(work: &mut Work<A>, context: &Context<T>) -> Result<bool, Drop> {
    match holder(work, context) {
        NOBODY => match put(context.tables, &work.other_key, &mut work.other, NONE) {
            Ok(()) => Ok(true),
            Err(PutError::Exists) => Ok(false),
            Err(PutError::Full) => Err(Drop::FlowTableFull),
        },
        held => Ok(held == OURSELVES),
    }
}

/// Puts a connection's own entry into the table, once its reply tuple is [`claim`]ed.
#[inline(always)]
pub fn complete<A: Ip, T: Tables<A>>(work: &mut Work<A>, context: &Context<T>) -> Result<(), Drop> {
    let Work { parsed, hit, other, .. } = work;
    // Where it exists another CPU has just opened the same connection.
    if put(context.tables, &parsed.key, hit, other.slot) == Err(PutError::Full) {
        flow_table::remove(context.tables, other);
        return Err(Drop::FlowTableFull);
    }
    Ok(())
}

/// Puts a connection's own entry into the table, where no answer comes by.
#[inline(always)]
pub fn alone<A: Ip, T: Tables<A>>(work: &mut Work<A>, context: &Context<T>) -> Result<(), Drop> {
    aim_both(work, context);
    let Work { parsed, hit, .. } = work;
    match put(context.tables, &parsed.key, hit, NONE) {
        Err(PutError::Full) => Err(Drop::FlowTableFull),
        _ => Ok(()),
    }
}

/// Who has a reply tuple: a number, since a function of its own has one register to answer by.
const NOBODY: u32 = 0;
const OURSELVES: u32 = 1;
const ANOTHER: u32 = 2;

/// Looks for the entry of a connection's reply tuple, and makes one ready where there is none.
#[inline(never)]
fn holder<A: Ip, T: Tables<A>>(work: &mut Work<A>, context: &Context<T>) -> u32 {
    aim_both(work, context);
    let Work { parsed, hit, other, other_key, .. } = work;
    if find_into(context.tables, other_key, other) {
        if readopted(&parsed.key, hit, other, context) {
            return OURSELVES;
        }
        if !left_over(parsed, hit, other) {
            return ANOTHER;
        }
        flow_table::remove(context.tables, other);
    }
    other.flow = reverse(&parsed.key, &hit.flow);
    NOBODY
}

/// Reads where both tuples' entries would lie. With a part of the stack of its own.
#[inline(never)]
fn aim_both<A: Ip, T: Tables<A>>(work: &mut Work<A>, context: &Context<T>) {
    let Work { parsed, hit, other, other_key, .. } = work;
    *other_key = hit.flow.reverse_key(parsed.key.proto);
    aim(context.tables, other_key, other);
    aim(context.tables, &parsed.key, hit);
}

/// Whether an entry was left by an earlier attempt at this very connection, whose own entry was pushed
/// out; it then serves again.
#[inline(always)]
fn readopted<A: Ip, T: Tables<A>>(key: &FlowKey<A>, hit: &Hit<A>, other: &mut Hit<A>, context: &Context<T>) -> bool {
    let Flow { flags, state, .. } = other.flow;
    if !pairs(key, other) || flags != reverse(key, &hit.flow).flags || tcp::protected(state) {
        return false;
    }
    touch(context.tables, other, context.at.now);
    state == hit.flow.state || set_state(context.tables, other, hit.flow.state, context.at.now)
}

/// Whether another connection's entry is of one that has ended: closed, or of somebody inside whose port
/// has another owner by now.
#[inline(always)]
fn left_over<A: Ip>(parsed: &Parsed<A>, hit: &Hit<A>, other: &Hit<A>) -> bool {
    let both = hit.flow.flags & other.flow.flags & Flow::<A>::NAT != 0;
    other.flow.state == tcp::CLOSED || (both && class(parsed.key.proto).is_some())
}
