//! ICMP and ICMPv6: errors about connections of ours, echo to service addresses, and our own refusals.
//!
//! Invariant: an error about a translated packet is translated in both layers, as if there were no
//! translation between its sender and its receiver (RFC 5508 §4). Answers of ours are rate-limited
//! and never larger than they must be.

use zerocopy::FromBytes;

use super::flow::Hit;
use super::parse::{Header, Ip, Parsed, Part};
use super::{Context, claimed, deliver, owned};
use crate::apply::{Diff, Link, Packet, Rewrite, fold, rewrite};
use crate::drop::{Drop, Note};
use crate::table::{FlowKey, FlowSet, Owned};
use crate::tables::Tables;
use crate::verdict::{Arrival, Verdict};
use crate::wire::header::{SCTP, TCP, UDP};
use crate::wire::{Be16, Mac};

/// Bytes of an ICMP header.
const ICMP_LEN: u32 = 8;
/// Words of the refused packet that are quoted at the most: IPv6 with extension headers and 8 bytes more.
const QUOTE_WORDS: u32 = 32;
/// TTL of packets that we make ourselves.
const OWN_TTL: u8 = 64;

/// Any ICMP message.
#[inline(always)]
pub fn message<A: Ip, P: Packet, T: Tables<A>>(
    packet: &mut P,
    parsed: &Parsed<A>,
    context: &Context<T>,
) -> Result<Verdict, Drop> {
    if A::is_error(parsed.icmp_type) {
        return error(packet, parsed, context);
    }
    match owned(context.tables, parsed.key.dst) {
        Some(Owned::UNUSED) => Err(Drop::UnusedServiceAddress),
        Some(Owned::VIP) if parsed.icmp_type == A::ECHO_REQUEST && parsed.part == Part::Whole => {
            echo(packet, parsed, context)
        }
        _ => Ok(Verdict::Pass),
    }
}

/// Answers an echo request in place (RFC 792, RFC 4443 §4.2).
#[inline(always)]
fn echo<A: Ip, P: Packet, T: Tables<A>>(
    packet: &mut P,
    parsed: &Parsed<A>,
    context: &Context<T>,
) -> Result<Verdict, Drop> {
    let old = u16::from_ne_bytes([A::ECHO_REQUEST, 0]);
    let new = u16::from_ne_bytes([A::ECHO_REPLY, 0]);
    packet.checksum4(parsed.l4 + 2, Diff::default(), Diff::of16(old, new), false)?;
    packet.store(parsed.l4, A::ECHO_REPLY)?;
    let key = &parsed.key;
    let back = Rewrite {
        src: key.dst,
        dst: key.src,
        sport: key.dport,
        dport: key.sport,
        ttl: OWN_TTL,
        link: Some(turned(packet)?),
    };
    rewrite(packet, parsed, &back)?;
    context.tables.note(Note::EchoAnswered);
    Ok(Verdict::Reply)
}

/// The link-layer addresses of an answer.
#[inline(always)]
fn turned<P: Packet>(packet: &P) -> Result<Link, Drop> {
    let [dst, src] = packet.frame().read::<[Mac; 2]>(0).ok_or(Drop::RewriteFailed)?;
    Ok(Link { dst: src, src: dst })
}

/// The packet that an ICMP error quotes.
struct Quoted<A: Ip> {
    l3: u32,
    header: Header<A>,
    sport: Be16,
    dport: Be16,
}

/// Translates an error about a packet that we have translated.
#[inline(always)]
fn error<A: Ip, P: Packet, T: Tables<A>>(
    packet: &mut P,
    parsed: &Parsed<A>,
    context: &Context<T>,
) -> Result<Verdict, Drop> {
    let tables = context.tables;
    let Some(quoted) = quoted::<A, P>(packet, parsed) else {
        return match owned(tables, parsed.key.dst) {
            Some(Owned::VIP) => Err(Drop::IcmpQuoteTooShort),
            _ => Ok(Verdict::Pass),
        };
    };
    let Some(hit) = about(&quoted, tables) else {
        return Ok(Verdict::Pass);
    };
    let flow = &hit.flow;
    let key = &parsed.key;
    let plain = rewrite_quoted(packet, &quoted, &hit)?;
    packet.checksum4(parsed.l4 + 2, Diff::default(), plain, false)?;
    // A router on the way keeps its address; the backend itself is known by its service's.
    let src = if key.src == quoted.header.dst { flow.src } else { key.src };
    let new =
        Rewrite { src, dst: flow.dst, sport: key.sport, dport: key.dport, ttl: parsed.ttl, link: None };
    tables.note(Note::IcmpTranslated);
    deliver::rewritten(packet, parsed, context, &hit, new)
}

#[inline(always)]
fn quoted<A: Ip, P: Packet>(packet: &P, parsed: &Parsed<A>) -> Option<Quoted<A>> {
    let frame = packet.frame();
    let l3 = parsed.l4 + ICMP_LEN;
    let header = A::header(&frame, l3)?;
    let [sport, dport] = frame.read::<[Be16; 2]>(header.l4)?;
    let balanced = matches!(header.proto, TCP | UDP | SCTP) && header.part != Part::Later;
    balanced.then_some(Quoted { l3, header, sport, dport })
}

/// The entry of the direction in which the error travels: that of an answer to the quoted packet.
#[inline(always)]
fn about<A: Ip, T: Tables<A>>(quoted: &Quoted<A>, tables: &T) -> Option<Hit<A>> {
    let header = &quoted.header;
    if !claimed(tables, header.dst, quoted.dport, header.proto)
        && !claimed(tables, header.src, quoted.sport, header.proto)
    {
        return None;
    }
    let key = FlowKey {
        src: header.dst,
        dst: header.src,
        sport: quoted.dport,
        dport: quoted.sport,
        proto: header.proto as u32,
    };
    if let Some(flow) = tables.flow(FlowSet::Established, &key) {
        return Some(Hit { key, flow, set: FlowSet::Established });
    }
    let flow = tables.flow(FlowSet::HalfOpen, &key)?;
    Some(Hit { key, flow, set: FlowSet::HalfOpen })
}

/// Rewrites the quoted packet to what its sender sent; returns what that does to the ICMP checksum.
#[inline(always)]
fn rewrite_quoted<A: Ip, P: Packet>(packet: &mut P, quoted: &Quoted<A>, hit: &Hit<A>) -> Result<Diff, Drop> {
    let flow = &hit.flow;
    let header = &quoted.header;
    let addrs = Diff::of_addrs((header.src, header.dst), (flow.dst, flow.src));
    let ports = Diff::of16(quoted.sport.raw(), flow.dport.raw())
        .and(Diff::of16(quoted.dport.raw(), flow.sport.raw()));
    packet.store(quoted.l3 + A::SRC, flow.dst)?;
    packet.store(quoted.l3 + A::DST, flow.src)?;
    let mut total = addrs;
    if !A::IS_V6 {
        total = total.and(patch_checksum(packet, quoted.l3 + 10, addrs)?);
    }
    if header.proto == SCTP {
        return Ok(total);
    }
    packet.store(header.l4, [flow.dport, flow.sport])?;
    total = total.and(ports);
    // The quote may end before TCP's checksum, and a UDP checksum of zero is none.
    let check = header.l4 + if header.proto == TCP { 16 } else { 6 };
    match packet.frame().read::<u16>(check) {
        Some(old) if header.proto == TCP || old != 0 => {
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
#[inline(always)]
pub fn refuse<A: Ip, P: Packet, T: Tables<A>>(
    packet: &mut P,
    parsed: &Parsed<A>,
    at: &Arrival,
    tables: &T,
    reason: Drop,
) -> Result<Verdict, Drop> {
    let link = turned(packet)?;
    // No error about what was sent to many (RFC 1122 §3.2.2, RFC 4443 §2.4 (e)).
    if link.src.0[0] & 1 != 0 || !parsed.has_l4 {
        return Err(reason);
    }
    if !tables.icmp_permit(at.now) {
        return Err(Drop::IcmpRateLimited);
    }
    let words = ((parsed.l4 + 8 - parsed.l3) / 4).min(QUOTE_WORDS);
    let moved = A::LEN + ICMP_LEN;
    packet.resize(parsed.l3 + moved + words * 4)?;
    let mut sum = move_quote(packet, parsed.l3, moved, words)?;
    let key = &parsed.key;
    let payload = ICMP_LEN + words * 4;
    if A::IS_V6 {
        sum += key.src.sum() + key.dst.sum() + Be16::new(payload as u16).raw() as u64;
        sum += Be16::new(A::ICMP as u16).raw() as u64;
    }
    let kind = A::PORT_UNREACHABLE;
    let check = !fold(sum + u16::from_ne_bytes(kind) as u64);
    packet.store(parsed.l3 + A::LEN, IcmpHeader { kind, check, rest: 0 })?;
    A::write_header(packet, parsed.l3, key.dst, key.src, payload)?;
    packet.store(0, [link.dst, link.src])?;
    Ok(Verdict::Refuse(reason))
}

/// Moves the packet's first words behind the new headers, the last one first; returns their sum.
#[inline(always)]
fn move_quote<P: Packet>(packet: &mut P, l3: u32, by: u32, words: u32) -> Result<u64, Drop> {
    let mut sum = 0;
    for done in 0..QUOTE_WORDS {
        if done >= words {
            break;
        }
        let from = l3 + (words - 1 - done) * 4;
        let word = packet.frame().read::<u32>(from).ok_or(Drop::RewriteFailed)?;
        sum += word as u64;
        packet.store(from + by, word)?;
    }
    Ok(sum)
}
