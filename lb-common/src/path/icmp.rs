//! ICMP and ICMPv6: errors about connections of ours, echo to service addresses, and our own refusals.
//!
//! Invariant: an error about a translated packet is translated in both layers, as if there were no
//! translation between its sender and its receiver (RFC 5508 §4). Answers of ours are rate-limited
//! and never larger than they must be.

use zerocopy::FromBytes;

use super::parse::{Header, Ip, Parsed, Part, Query};
use super::{Context, Work, addressed, crosses, deliver, flow, nat};
use crate::apply::{Diff, Packet, Rewrite, fold, link, rewrite};
use crate::drop::{Drop, Note};
use crate::flow_table::find_into;
use crate::table::{Flow, FlowKey, Owned};
use crate::tables::Tables;
use crate::verdict::{Hook, Outcome, Verdict};
use crate::wire::header::{SCTP, TCP, UDP};
use crate::wire::{Be16, Mac};

/// Bytes of an ICMP header.
const ICMP_LEN: u32 = 8;
/// Words of the refused packet that are quoted at the most: IPv6 with extension headers and TCP.
const QUOTE_WORDS: u32 = 32;
/// Where names are asked for.
const NAMES: u16 = 53;
/// TTL of packets that we make ourselves.
const OWN_TTL: u8 = 64;

/// Any ICMP message.
#[inline(never)]
pub fn message<A: Ip, P: Packet, T: Tables<A>>(
    packet: &mut P,
    work: &mut Work<A>,
    context: &Context<T>,
    outcome: &mut Outcome,
) {
    if A::is_error(work.parsed.icmp_type) {
        if error(packet, work, context, outcome) {
            deliver::outlined(packet, work, context, outcome);
        }
        return;
    }
    let parsed = &work.parsed;
    let whole_request = parsed.icmp_type == A::ECHO_REQUEST && parsed.part == Part::Whole;
    match addressed(work, context) {
        Owned::UNUSED => *outcome = Outcome::drop(Drop::UnusedServiceAddress),
        Owned::VIP if whole_request => echo(packet, parsed, context, outcome),
        Owned::VIP => {}
        _ if !crosses(context.tables, parsed, context.at) => {}
        _ if flow::find(work, context) => deliver::outlined(packet, work, context, outcome),
        _ => nat::cross(packet, work, context, outcome),
    }
}

/// Answers an echo request in place (RFC 792, RFC 4443 §4.2).
#[inline(never)]
fn echo<A: Ip, P: Packet, T: Tables<A>>(
    packet: &mut P,
    parsed: &Parsed<A>,
    context: &Context<T>,
    outcome: &mut Outcome,
) {
    match answer(packet, parsed) {
        Ok(()) => {
            context.tables.note(Note::EchoAnswered);
            *outcome = Ok(Verdict::Reply).into();
        }
        Err(reason) => *outcome = Outcome::drop(reason),
    }
}

#[inline(always)]
fn answer<A: Ip, P: Packet>(packet: &mut P, parsed: &Parsed<A>) -> Result<(), Drop> {
    let old = u16::from_ne_bytes([A::ECHO_REQUEST, 0]);
    let new = u16::from_ne_bytes([A::ECHO_REPLY, 0]);
    packet.checksum4(parsed.l4 + 2, Diff::default(), Diff::of16(old, new), false)?;
    packet.store(parsed.l4, A::ECHO_REPLY)?;
    let key = &parsed.key;
    let [to, from] = turned(packet)?;
    let back = Rewrite {
        src: key.dst,
        dst: key.src,
        sport: key.sport,
        dport: key.dport,
        ttl: OWN_TTL,
        transmits: true,
        link: link(to, from),
    };
    rewrite(packet, parsed, &back)
}

/// The link-layer addresses of an answer: destination, source.
#[inline(always)]
fn turned<P: Packet>(packet: &P) -> Result<[Mac; 2], Drop> {
    let [dst, src] = packet.frame().read::<[Mac; 2]>(0).ok_or(Drop::RewriteFailed)?;
    Ok([src, dst])
}

/// The same of a refusal, where its sender may be told.
#[inline(always)]
pub(super) fn told<A: Ip, P: Packet, T: Tables<A>>(
    packet: &P,
    parsed: &Parsed<A>,
    context: &Context<T>,
    reason: Drop,
) -> Result<[Mac; 2], Drop> {
    let [to, from] = turned(packet)?;
    // No error about what was sent to many (RFC 1122 §3.2.2, RFC 4443 §2.4 (e)).
    if from.0[0] & 1 != 0 || !parsed.has_l4 {
        return Err(reason);
    }
    if context.tables.icmp_permit(context.at.now) { Ok([to, from]) } else { Err(Drop::IcmpRateLimited) }
}

/// The packet that an ICMP error quotes.
pub(super) struct Quoted<A: Ip> {
    l3: u32,
    pub header: Header<A>,
    pub sport: Be16,
    pub dport: Be16,
    /// Of an ICMP query.
    query: Query,
}

/// Translates what an error quotes, if we have translated that packet, and says how to go on with
/// the error itself; false when the outcome, or nothing, is said instead.
#[inline(never)]
fn error<A: Ip, P: Packet, T: Tables<A>>(
    packet: &mut P,
    work: &mut Work<A>,
    context: &Context<T>,
    outcome: &mut Outcome,
) -> bool {
    let tables = context.tables;
    let Some(quoted) = quoted::<A, P>(packet, &work.parsed) else {
        if addressed(work, context) == Owned::VIP {
            *outcome = Outcome::drop(Drop::IcmpQuoteTooShort);
        }
        return false;
    };
    if !about(&quoted, tables, work) {
        return false;
    }
    // Before the quote changes: what the kernel gets, it gets as it came.
    if deliver::is_kernels(work, context) {
        return false;
    }
    if is_for_next_agent(work, context) {
        *outcome = Outcome::drop(Drop::NoAgentForNames);
        return false;
    }
    let Work { parsed, hit, .. } = work;
    if let Err(reason) = translate(packet, parsed, &quoted, &hit.flow) {
        *outcome = Outcome::drop(reason);
        return false;
    }
    tables.note(Note::IcmpTranslated);
    // A router on the way keeps its address, but not one inside whose error goes out (RFC 5508 REQ-5); the
    // backend itself is known by its service's.
    let router = parsed.key.src != quoted.header.dst && !hit.flow.is(Flow::<A>::OUT);
    if router && !nat::goes_out(tables, parsed.key.src, hit.flow.dst) {
        hit.flow.src = parsed.key.src;
    }
    true
}

/// This node's own refusal of a query for names: its agent is away for a moment. A resolver takes a refusal for an
/// answer and gives up; one that hears nothing asks again, and then somebody is there.
#[inline(never)]
fn is_for_next_agent<A: Ip, T: Tables<A>>(work: &Work<A>, context: &Context<T>) -> bool {
    let Work { parsed, other_key, hit, .. } = work;
    let (src, other) = (parsed.key.src.halves(), other_key.src.halves());
    // In one: the verifier walks all that follows once for each comparison.
    let differs = (src.0 ^ other.0)
        | (src.1 ^ other.1)
        | (other_key.proto ^ UDP as u32) as u64
        | (hit.flow.sport.raw() ^ Be16::new(NAMES).raw()) as u64;
    differs == 0 && context.at.own != 0
}

/// Translates the quoted packet, and the checksum over it.
#[inline(always)]
fn translate<A: Ip, P: Packet>(
    packet: &mut P,
    parsed: &Parsed<A>,
    quoted: &Quoted<A>,
    flow: &Flow<A>,
) -> Result<(), Drop> {
    let plain = rewrite_quoted(packet, parsed.l3 + parsed.len, quoted, flow)?;
    packet.checksum4(parsed.l4 + 2, Diff::default(), plain, false)
}

#[inline(always)]
pub(super) fn quoted<A: Ip, P: Packet>(packet: &P, parsed: &Parsed<A>) -> Option<Quoted<A>> {
    let frame = packet.frame();
    let l3 = parsed.l4 + ICMP_LEN;
    let header = A::header(&frame, l3)?;
    let end = parsed.l3 + parsed.len;
    let mut quoted = Quoted { l3, header, sport: Be16::default(), dport: Be16::default(), query: Query::None };
    if quoted.header.part == Part::Later || quoted.header.l4 > end {
        return None;
    }
    if matches!(quoted.header.proto, TCP | UDP | SCTP) {
        [quoted.sport, quoted.dport] = frame.read::<[Be16; 2]>(quoted.header.l4)?;
        return (quoted.header.l4 + 4 <= end).then_some(quoted);
    }
    if quoted.header.proto == A::ICMP {
        let [head, _, id, _] = frame.read::<[Be16; 4]>(quoted.header.l4)?;
        let [kind, _] = head.raw().to_ne_bytes();
        quoted.query = A::query(kind);
        match quoted.query {
            Query::Request => quoted.sport = id,
            Query::Reply => quoted.dport = id,
            // Errors about errors there are none (RFC 1122 §3.2.2).
            Query::None => return None,
        }
        return (quoted.header.l4 + 8 <= end).then_some(quoted);
    }
    Some(quoted)
}

/// Finds the entry of the direction in which the error travels: that of an answer to the quoted packet.
#[inline(always)]
fn about<A: Ip, T: Tables<A>>(quoted: &Quoted<A>, tables: &T, work: &mut Work<A>) -> bool {
    let header = &quoted.header;
    work.other_key = FlowKey {
        src: header.dst,
        dst: header.src,
        sport: quoted.dport,
        dport: quoted.sport,
        proto: header.proto as u32,
    };
    find_into(tables, &work.other_key, &mut work.hit)
}

/// Rewrites the quoted packet to what its sender sent; returns what that does to the ICMP checksum.
/// Behind `end`, where the error's own length ends, is padding that no checksum covers.
#[inline(always)]
fn rewrite_quoted<A: Ip, P: Packet>(
    packet: &mut P,
    end: u32,
    quoted: &Quoted<A>,
    flow: &Flow<A>,
) -> Result<Diff, Drop> {
    let header = &quoted.header;
    let addrs = Diff::of_addrs((header.src, header.dst), (flow.dst, flow.src));
    let ports = Diff::of16(quoted.sport.raw(), flow.dport.raw()).and(Diff::of16(quoted.dport.raw(), flow.sport.raw()));
    packet.store(quoted.l3 + A::SRC, flow.dst)?;
    packet.store(quoted.l3 + A::DST, flow.src)?;
    let mut total = addrs;
    if !A::IS_V6 {
        total = total.and(patch_checksum(packet, quoted.l3 + 10, addrs)?);
    }
    if header.proto == A::ICMP {
        let id = if quoted.query == Query::Request { flow.dport } else { flow.sport };
        packet.store(header.l4 + 4, id)?;
        let pseudo = if A::IS_V6 { addrs } else { Diff::default() };
        // Of the two ports one is none, before and behind.
        return Ok(total.and(ports).and(patch_checksum(packet, header.l4 + 2, pseudo.and(ports))?));
    }
    if !matches!(header.proto, TCP | UDP) {
        return Ok(total);
    }
    packet.store(header.l4, [flow.dport, flow.sport])?;
    total = total.and(ports);
    // The quote may end before TCP's checksum, and a UDP checksum of zero is none.
    let check = header.l4 + if header.proto == TCP { 16 } else { 6 };
    match packet.frame().read::<u16>(check) {
        Some(old) if check + 2 <= end && (header.proto == TCP || old != 0) => {
            Ok(total.and(patch_checksum(packet, check, addrs.and(ports))?))
        }
        _ => Ok(total),
    }
}

/// Changes a checksum inside the quote; returns its own change.
#[inline(always)]
fn patch_checksum<P: Packet>(packet: &mut P, offset: u32, diff: Diff) -> Result<Diff, Drop> {
    let old = packet.frame().read::<u16>(offset).ok_or(Drop::RewriteFailed)?;
    let new = diff.applied(old);
    packet.store(offset, new)?;
    Ok(Diff::of16(old, new))
}

/// An ICMP header of ours.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
struct IcmpHeader {
    kind: [u8; 2],
    check: u16,
    rest: u32,
}

/// Turns a packet into "port unreachable", as kube-proxy refuses, also for TCP.
#[inline(never)]
pub fn refuse<A: Ip, P: Packet, T: Tables<A>>(
    packet: &mut P,
    work: &mut Work<A>,
    context: &Context<T>,
    reason: Drop,
    outcome: &mut Outcome,
) {
    *outcome = try_refuse(packet, &work.parsed, context, reason).into();
}

#[inline(always)]
fn try_refuse<A: Ip, P: Packet, T: Tables<A>>(
    packet: &mut P,
    parsed: &Parsed<A>,
    context: &Context<T>,
    reason: Drop,
) -> Result<Verdict, Drop> {
    let [to, from] = told(packet, parsed, context, reason)?;
    let quoted_l4 = match parsed.proto {
        TCP => 20,
        UDP => 8,
        // A local stack may leave SCTP's CRC to be filled in later, in the midst of our answer.
        _ if context.at.hook != Hook::Xdp => return Err(reason),
        _ => 12,
    };
    let words = ((parsed.l4 - parsed.l3 + quoted_l4) / 4).min(QUOTE_WORDS);
    let moved = A::LEN + ICMP_LEN;
    packet.resize(parsed.l3 + moved + words * 4)?;
    let mut sum = move_quote(packet, parsed, moved, words)?;
    if context.at.hook != Hook::Xdp {
        sum.total += neutralize(packet, parsed, moved, sum.transport)?;
    }
    let key = &parsed.key;
    let payload = ICMP_LEN + words * 4;
    let mut total = sum.total;
    if A::IS_V6 {
        total += key.src.sum() + key.dst.sum() + Be16::new(payload as u16).raw() as u64;
        total += Be16::new(A::ICMP as u16).raw() as u64;
    }
    let kind = A::PORT_UNREACHABLE;
    let check = !fold(total + u16::from_ne_bytes(kind) as u64);
    packet.store(parsed.l3 + A::LEN, IcmpHeader { kind, check, rest: 0 })?;
    A::write_header(packet, parsed.l3, key.dst, key.src, A::ICMP, payload)?;
    packet.store(0, link(to, from))?;
    Ok(Verdict::Refuse(reason))
}

/// One's complement sums of a quote.
struct QuoteSum {
    total: u64,
    /// Of the transport header alone.
    transport: u64,
}

/// Moves the packet's first words behind the new headers, the last one first.
#[inline(always)]
fn move_quote<A: Ip, P: Packet>(packet: &mut P, parsed: &Parsed<A>, by: u32, words: u32) -> Result<QuoteSum, Drop> {
    let mut sum = QuoteSum { total: 0, transport: 0 };
    for done in 0..QUOTE_WORDS {
        if done >= words {
            break;
        }
        let from = parsed.l3 + (words - 1 - done) * 4;
        let word = packet.frame().read::<u32>(from).ok_or(Drop::RewriteFailed)?;
        sum.total += word as u64;
        if from >= parsed.l4 {
            sum.transport += word as u64;
        }
        packet.store(from + by, word)?;
    }
    Ok(sum)
}

/// Makes the ICMP checksum right whether or not the kernel still fills in the quoted one.
///
/// A packet of a local stack carries its transport checksum unfinished (CHECKSUM_PARTIAL); when the
/// answer made of it is sent, the kernel finishes the checksum inside the quote, and no program can
/// see whether it will. So the quoted field gets the value `f` for which both ways give the quoted
/// header the same sum: with `s` the sum of the rest, s + f (left alone) = !f (finished), hence
/// 2 f = !s in one's complement. Returns what that adds to the quote's sum.
#[inline(always)]
fn neutralize<A: Ip, P: Packet>(packet: &mut P, parsed: &Parsed<A>, moved: u32, transport: u64) -> Result<u64, Drop> {
    neutralized(packet, parsed.l4 + moved + if parsed.proto == TCP { 16 } else { 6 }, transport)
}

/// The same of the checksum at `at`.
#[inline(always)]
pub(super) fn neutralized<P: Packet>(packet: &mut P, at: u32, transport: u64) -> Result<u64, Drop> {
    let old = packet.frame().read::<u16>(at).ok_or(Drop::RewriteFailed)?;
    let twice = !fold(transport + !old as u64) as u32;
    let half = ((twice + (twice & 1) * 0xffff) / 2) as u16;
    packet.store(at, half)?;
    Ok(Diff::of16(old, half).0)
}
