//! What a TCP client is told whose connection's endpoint is gone, where nobody else can tell it.
//!
//! Invariant: a reset is what Linux answers to a segment of no connection (RFC 9293 §3.10.7.1), at the same rate
//! as ICMP errors of ours. Not here: what opens a connection, which is refused ([`super::icmp`]), and where
//! there are other endpoints, one of which then resets.

use zerocopy::FromBytes;

use super::Context;
use super::icmp::told;
use super::parse::{Ip, Parsed, Part};
use crate::apply::{Packet, fold, link};
use crate::drop::Drop;
use crate::tables::Tables;
use crate::verdict::{Hook, Outcome, Verdict};
use crate::wire::Be16;
use crate::wire::header::{TCP, TCP_ACK, TCP_RST, TCP_SYN};

/// Bytes of a TCP header without options.
const TCP_LEN: u32 = 20;

/// RFC 9293 §3.1.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
struct Segment {
    sport: Be16,
    dport: Be16,
    seq: u32,
    ack: u32,
    offset: u8,
    flags: u8,
    window: u16,
    check: u16,
    urgent: u16,
}

/// Whether a packet is of a connection that somebody had opened, and its headers are plain enough.
#[inline(always)]
pub fn may_answer<A: Ip>(parsed: &Parsed<A>) -> bool {
    parsed.proto == TCP
        && parsed.flags & (TCP_ACK | TCP_SYN | TCP_RST) == TCP_ACK
        && parsed.part == Part::Whole
        && parsed.l4 == parsed.l3 + A::LEN
}

/// Turns such a packet into a reset, counted by `reason`.
#[inline(never)]
pub fn answer<A: Ip, P: Packet, T: Tables<A>>(
    packet: &mut P,
    parsed: &Parsed<A>,
    context: &Context<T>,
    reason: Drop,
    outcome: &mut Outcome,
) {
    *outcome = try_answer(packet, parsed, context, reason).into();
}

#[inline(always)]
fn try_answer<A: Ip, P: Packet, T: Tables<A>>(
    packet: &mut P,
    parsed: &Parsed<A>,
    context: &Context<T>,
    reason: Drop,
) -> Result<Verdict, Drop> {
    let [to, from] = told(packet, parsed, context, reason)?;
    let acknowledged = packet.frame().read::<u32>(parsed.l4 + 8).ok_or(Drop::RewriteFailed)?;
    packet.resize(parsed.l4 + TCP_LEN)?;
    let key = &parsed.key;
    let mut segment = Segment {
        sport: key.dport,
        dport: key.sport,
        seq: acknowledged,
        ack: 0,
        offset: (TCP_LEN as u8 / 4) << 4,
        flags: TCP_RST,
        window: 0,
        check: 0,
        urgent: 0,
    };
    let pseudo = key.src.sum()
        + key.dst.sum()
        + [TCP as u16, TCP_LEN as u16].map(|n| Be16::new(n).raw() as u64).iter().sum::<u64>();
    let words: [u32; 5] = zerocopy::transmute!(segment);
    let own: u64 = words.iter().map(|&word| word as u64).sum();
    if context.at.hook == Hook::Xdp {
        segment.check = !fold(pseudo + own);
    } else {
        // Right whether or not the kernel fills the checksum in, which no program can see (as in `icmp`): it
        // puts the complement of the header's own sum in place of the pseudo header's, and these are the
        // same once the urgent pointer, which means nothing here, makes up for the difference.
        segment.check = fold(pseudo);
        segment.urgent = !fold(own + pseudo + pseudo);
    }
    packet.store(parsed.l4, segment)?;
    A::write_header(packet, parsed.l3, key.dst, key.src, TCP, TCP_LEN)?;
    packet.store(0, link(to, from))?;
    Ok(Verdict::Refuse(reason))
}
