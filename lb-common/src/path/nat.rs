//! Translation between inside and outside: mappings, and the connections that use them.
//!
//! A host on the inside gets, for each of its ports, one port of an uplink's address
//! ([`crate::port_table`]); what becomes of packets then stands in the flow table like any other
//! connection's, so that an established packet costs one lookup. Two kinds of [`Flow::MEMORY`] stand
//! there, too: the port of an endpoint that could not have its home ([`away_key`]), and that an endpoint
//! has sent to a further address ([`sent_key`]).
//! Invariant: what is to be translated never leaves as it came: where the kernel forwards it, the
//! uplink's egress hook translates it, or drops it ([`guard`]). Not here: when the kernel forwards
//! ([`super::deliver`]), port forwards (services), ICMP errors ([`super::icmp`]).

use super::flow::claim;
use super::parse::{Ip, Parsed, Query};
use super::{Context, Work, claimed, crosses, deliver};
use crate::apply::Packet;
use crate::drop::{Drop, Note};
use crate::flow_table::{self, MULTIPLIERS, NONE, PutError, touch};
use crate::hash;
use crate::port_table::{self, CHARGED, Mapping, Meta, OVER_QUOTA, base, class, home};
use crate::table::{Flow, FlowKey, MappingEvent, NextHop, Owned, ServiceKey, Settings, Uplink};
use crate::tables::Tables;
use crate::tcp;
use crate::verdict::{Action, Hook, Outcome};
use crate::wire::header::{TCP, TCP_ACK, TCP_RST, TCP_SYN, UDP};
use crate::wire::{Addr, Be16};

/// A query is one packet, and its answer the end: such a mapping is short (RFC 4787 REQ-5a).
const DNS: Be16 = Be16::new(53);
/// Free ports that are looked at for one that no service has.
const SEARCHES: u32 = 2;
/// Beside a [`Flow::MEMORY`]'s protocol: no packet's key is like that.
const MEMORY: u32 = 1 << 8;

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
    let unasked = way & ASK != 0 && !tables.look_up(&work.other_key, &mut work.other);
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
            work.entry = tables.nat_take(work, at);
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
    if to.is(Owned::OUTSIDE) {
        return inward(work, context, from, to);
    }
    if to.is(Owned::PREFIX_OUTSIDE) {
        return to_prefix(work, context, from, to);
    }
    let own = context.at.own != 0 && from.is(Owned::OUTSIDE);
    if leaves(from, to) || own { outward(work, context, from) } else { Ok(NO_WAY) }
}

#[inline(always)]
fn leaves(from: Owned, to: Owned) -> bool {
    const INSIDE: u16 = Owned::INSIDE | Owned::PREFIX_INSIDE;
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
        next_hop = tables.route(key.dst).unwrap_or(NextHop::UNRESOLVED);
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
    hit.flow = Flow {
        src: key.src,
        dst: key.dst,
        sport: key.sport,
        dport: key.dport,
        service: link,
        backend: Flow::<A>::NO_BACKEND,
        next_hop,
        last: context.at.now,
        state: first_state(parsed),
        flags: Flow::<A>::NAT | Flow::<A>::OUT,
        epoch: tables.settings().epoch,
    };
    if from.is(Owned::PREFIX_INSIDE) {
        let pair = tables.prefix_pair(from.index as u32).ok_or(Drop::NatUntranslatable)?;
        hit.flow.src = key.src.exchange(pair, false).ok_or(Drop::NatUntranslatable)?;
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

/// The state of a mapping: of what isn't TCP, it lasts as long as if it were answered (RFC 4787 REQ-5, RFC
/// 5508 REQ-2).
#[inline(always)]
fn mapping_state(state: u8) -> u8 {
    if state == tcp::WAITING { tcp::ESTABLISHED } else { state }
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
    let back = if hairpin { Flow::<A>::OUT } else { 0 };
    hit.flow = Flow {
        src: sender,
        dst: inside,
        sport: key.sport,
        dport: port,
        service: context.at.ifindex,
        backend: Flow::<A>::NO_BACKEND,
        next_hop: tables.route(inside).unwrap_or(NextHop::UNRESOLVED),
        last: context.at.now,
        state: first_state(parsed),
        flags: Flow::<A>::NAT | back,
        epoch: settings.epoch,
    };
    *entries = plane;
    Ok(PUT | SHARE | filter | if hairpin { MAP } else { 0 })
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
    // Both sides inside: each knows the other by its address outside (RFC 6296 §5.3).
    let mut src = key.src;
    let mut back = 0;
    if from.is(Owned::PREFIX_INSIDE) {
        let pair = tables.prefix_pair(from.index as u32).ok_or(Drop::NatUntranslatable)?;
        src = key.src.exchange(pair, false).ok_or(Drop::NatUntranslatable)?;
        back = Flow::<A>::OUT;
    }
    hit.flow = Flow {
        src,
        dst: inside,
        sport: key.sport,
        dport: key.dport,
        service: context.at.ifindex,
        backend: Flow::<A>::NO_BACKEND,
        next_hop: tables.route(inside).unwrap_or(NextHop::UNRESOLVED),
        last: context.at.now,
        state: first_state(parsed),
        flags: Flow::<A>::NAT | back,
        epoch: tables.settings().epoch,
    };
    Ok(PUT)
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
        if !tables.look_up(other_key, other) {
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
    if tables.look_up(other_key, other) {
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
const FAILED: u32 = 1 << 31;

/// Takes a free port for a host that may have one more: its home, another, or one past its time.
#[inline(always)]
pub fn take<A: Ip, T: Tables<A>>(work: &Work<A>, context: &Context<T>) -> u32 {
    let (tables, now) = (context.tables, context.at.now);
    let Work { parsed, hit, entries, .. } = work;
    let home = home(&tables.settings(), parsed.key.sport);
    let (inside, proto, base) = (parsed.key.src, parsed.proto, *entries);
    // A service's port, or a published one, is nobody's.
    let served = |index: u32| {
        let key = ServiceKey { addr: hit.flow.src, port: Be16::new(index as u16), proto, pad: 0 };
        claimed(tables, key.addr, key.port, proto) && tables.service(&key).is_some()
    };
    // This node's own connections are not counted.
    let quota = if context.at.own != 0 { u32::MAX } else { tables.settings().nat_quota };
    match port_table::charge(tables, inside, quota) {
        CHARGED => {}
        OVER_QUOTA => return FAILED | Drop::NatQuota as u32,
        _ => return FAILED | Drop::NatHostsFull as u32,
    }
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
    let index = port_table::stale(tables, base, hash, proto, now);
    if let Some(owner) = tables.owner(index)
        && end_mapping(context, index, owner.meta(), hit.flow.src, parsed.key.proto)
    {
        tables.note(Note::NatReclaimed);
        if port_table::take(tables, index) {
            return index;
        }
    }
    port_table::refund(tables, inside);
    FAILED | Drop::NatPortsExhausted as u32
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
fn sent_key<A: Addr>(remote: A, inside: A, port: Be16, proto: u32) -> FlowKey<A> {
    FlowKey { src: remote, dst: inside, sport: Be16::default(), dport: port, proto: proto | MEMORY }
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
    let Work { parsed, hit, other, .. } = work;
    // Where it exists another CPU has just opened the same connection.
    if flow_table::insert(context.tables, &parsed.key, hit, other.slot) == Err(PutError::Full) {
        flow_table::remove(context.tables, other);
        return Err(Drop::FlowTableFull);
    }
    Ok(())
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
            if meta.away() && tables.look_up(other_key, other) {
                flow_table::remove(tables, other);
            }
        }
        return;
    }
    owner.keep(meta, mapping_state(state), now);
    *other_key = away_key(inside, port, key.proto);
    if meta.away() && tables.look_up(other_key, other) {
        touch(tables, other, now);
    }
    *other_key = sent_key(remote, inside, port, key.proto);
    if owner.whose().is_some_and(|(_, _, first)| first != remote) && tables.look_up(other_key, other) {
        touch(tables, other, now);
    }
}

/// Whether an answer ends what was asked, so that the connection stays a short one.
#[inline(always)]
pub fn short<A: Ip>(parsed: &Parsed<A>, flow: &Flow<A>) -> bool {
    flow.is(Flow::<A>::NAT) && parsed.proto == UDP && (parsed.key.sport == DNS || parsed.key.dport == DNS)
}

/// Drops what would leave this node as it came though it is to be translated.
#[inline(never)]
pub fn guard<A: Ip, T: Tables<A>>(work: &Work<A>, context: &Context<T>, outcome: &mut Outcome) {
    let tables = context.tables;
    if outcome.action != Action::Pass || context.at.hook != Hook::Egress || !crosses(tables, &work.parsed, context.at) {
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
