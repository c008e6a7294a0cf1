//! "Fragmentation needed" and "packet too big" (RFC 1191, RFC 8201): what a sender is told whose packet is larger than the
//! way to the node of a service's endpoint takes.
//!
//! Invariant: the quote has a fixed length, so that the verifier has no loop to walk twice; who can't be told is dropped.
//! The service itself tells: it is whom the sender knows. The kernel can't: it has no way for what goes as it came, and takes
//! translated packets for its own. Not here: what the kernel forwards, and tells about itself.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::icmp;
use super::overlay::plain;
use super::parse::Ip;
use crate::apply::{Packet, fold, link};
use crate::drop::Drop;
use crate::tables::Common;
use crate::verdict::{Hook, Outcome, Verdict};
use crate::wire::header::{ETH_LEN, ETH_P_IP, ETH_P_IPV6, TCP, UDP};
use crate::wire::{Be16, Ip4, Ip6, Mac};

const ICMP_LEN: u32 = 8;
/// Quoted behind an IPv4 header: all of a TCP header without options. Behind an IPv6 header there may be others.
const QUOTED4: u32 = 20;
const QUOTED6: u32 = 40;

/// RFC 792, RFC 4443 §3.2.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct Header {
    kind: [u8; 2],
    check: u16,
    /// IPv4 leaves the first of them unused.
    mtu: [Be16; 2],
}

/// Turns a packet into what its sender is told, and is counted as dropped.
#[inline(always)]
pub fn tell<P: Packet, T: Common>(packet: &mut P, mtu: u32, hook: Hook, now: u32, tables: &T) -> Outcome {
    let ethertype = packet.frame().read::<Be16>(12).unwrap_or_default().get();
    if !tables.icmp_permit(now) {
        return Outcome::drop(Drop::IcmpRateLimited);
    }
    let told = match ethertype {
        ETH_P_IP => answer::<Ip4, P>(packet, mtu, hook),
        ETH_P_IPV6 => answer::<Ip6, P>(packet, mtu, hook),
        _ => Err(Drop::TooLarge),
    };
    told.map(|()| Verdict::Refuse(Drop::TooLarge)).into()
}

#[inline(always)]
fn answer<A: Ip, P: Packet>(packet: &mut P, mtu: u32, hook: Hook) -> Result<(), Drop> {
    let (proto, _) = plain::<A, P>(packet);
    let frame = packet.frame();
    let [to, from] = frame.read::<[Mac; 2]>(0).ok_or(Drop::RewriteFailed)?;
    let src = frame.read::<A>(ETH_LEN + A::SRC).ok_or(Drop::RewriteFailed)?;
    let dst = frame.read::<A>(ETH_LEN + A::DST).ok_or(Drop::RewriteFailed)?;
    // No error about an error, nor about what was sent to many (RFC 1122 §3.2.2, RFC 4443 §2.4 (e)); of IPv4 only about
    // whole packets: fragments may be fragmented, though not by us.
    if proto == A::ICMP || (!A::IS_V6 && proto == 0) || to.0[0] & 1 != 0 {
        return Err(Drop::TooLarge);
    }
    let quote = A::LEN + if A::IS_V6 { QUOTED6 } else { QUOTED4 };
    packet.resize(ETH_LEN + quote)?;
    packet.grow_front(A::LEN + ICMP_LEN, !A::IS_V6).map_err(|_| Drop::ResizeFailed)?;
    let at = ETH_LEN + A::LEN + ICMP_LEN;
    let mut sum = sum(packet, at, quote)?;
    if hook != Hook::Xdp && (proto == TCP || proto == UDP) {
        let transport = self::sum(packet, at + A::LEN, quote - A::LEN)?;
        sum += icmp::neutralized(packet, at + A::LEN + if proto == TCP { 16 } else { 6 }, transport)?;
    }
    let kind = if A::IS_V6 { [2, 0] } else { [3, 4] };
    let high = if A::IS_V6 { (mtu >> 16) as u16 } else { 0 };
    let mut header = Header { kind, check: 0, mtu: [Be16::new(high), Be16::new(mtu as u16)] };
    let payload = ICMP_LEN + quote;
    sum += u16::from_ne_bytes(kind) as u64 + header.mtu[0].raw() as u64 + header.mtu[1].raw() as u64;
    if A::IS_V6 {
        let [length, next] = [payload as u16, A::ICMP as u16].map(|n| Be16::new(n).raw() as u64);
        sum += src.sum() + dst.sum() + length + next;
    }
    header.check = !fold(sum);
    packet.store(0, link(from, to))?;
    packet.store(12, Be16::new(if A::IS_V6 { ETH_P_IPV6 } else { ETH_P_IP }))?;
    A::write_header(packet, ETH_LEN, dst, src, A::ICMP, payload)?;
    packet.store(ETH_LEN + A::LEN, header)
}

/// Of so many bytes, in words.
#[inline(always)]
fn sum<P: Packet>(packet: &P, at: u32, len: u32) -> Result<u64, Drop> {
    let frame = packet.frame();
    let mut sum = 0;
    for word in 0..len / 4 {
        sum += frame.read::<u32>(at + word * 4).ok_or(Drop::RewriteFailed)? as u64;
    }
    Ok(sum)
}
