//! The floor and the limit: what any balancer must do to a packet, written with nothing else in it.
//!
//! No options, no extension headers, no fragments, no states, no counters: a product that does all
//! that is measured against this.

use aya_ebpf::maps::LruHashMap;
use lb_common::apply::Diff;
use lb_common::frame::Frame;
use lb_common::table::{Flow, FlowKey};
use lb_common::wire::header::{TCP, UDP};
use lb_common::wire::{Addr, Be16, Ip4, Ip6};

const L3: u32 = 14;
/// What a TTL less by one adds to a checksum, in memory order.
const LESS_TTL: Diff = Diff(0xffff - 1);

/// Where the fields of an IP version are.
trait Version: Addr {
    const ETHERTYPE: u16;
    const PROTO: u32;
    const TTL: u32;
    const SRC: u32;
    const L4: u32;
    const LIMIT: &'static LruHashMap<FlowKey<Self>, Flow<Self>>;
    const FRESH: &'static LruHashMap<FlowKey<Self>, Flow<Self>>;
}

impl Version for Ip4 {
    const ETHERTYPE: u16 = 0x0800;
    const PROTO: u32 = L3 + 9;
    const TTL: u32 = L3 + 8;
    const SRC: u32 = L3 + 12;
    const L4: u32 = L3 + 20;
    const LIMIT: &'static LruHashMap<FlowKey<Self>, Flow<Self>> = &crate::LIMIT4;
    const FRESH: &'static LruHashMap<FlowKey<Self>, Flow<Self>> = &crate::FRESH4;
}

impl Version for Ip6 {
    const ETHERTYPE: u16 = 0x86dd;
    const PROTO: u32 = L3 + 6;
    const TTL: u32 = L3 + 7;
    const SRC: u32 = L3 + 8;
    const L4: u32 = L3 + 40;
    const LIMIT: &'static LruHashMap<FlowKey<Self>, Flow<Self>> = &crate::LIMIT6;
    const FRESH: &'static LruHashMap<FlowKey<Self>, Flow<Self>> = &crate::FRESH6;
}

/// A packet's tuple, of TCP, or also of UDP.
#[inline(always)]
fn key<A: Version>(frame: &Frame, udp: bool) -> Option<FlowKey<A>> {
    if !A::IS_V6 && frame.read::<u8>(L3)? != 0x45 {
        return None;
    }
    let proto = frame.read::<u8>(A::PROTO)?;
    if proto != TCP && !(udp && proto == UDP) {
        return None;
    }
    let [ports, _, _, _, _] = frame.read::<[u32; 5]>(A::L4)?;
    Some(FlowKey {
        src: frame.read::<A>(A::SRC)?,
        dst: frame.read::<A>(A::SRC + A::BITS / 8)?,
        sport: Be16::from_raw(ports as u16),
        dport: Be16::from_raw((ports >> 16) as u16),
        proto: proto as u32,
    })
}

/// Runs the work of the packet's IP version.
macro_rules! by_version {
    ($frame:expr, $work:ident) => {
        match $frame.read::<Be16>(12)?.get() {
            Ip4::ETHERTYPE => $work::<Ip4>($frame),
            Ip6::ETHERTYPE => $work::<Ip6>($frame),
            _ => None,
        }
    };
}

#[inline(always)]
pub fn parse(frame: &Frame) -> Option<()> {
    by_version!(frame, parse_version)
}

#[inline(always)]
fn parse_version<A: Version>(frame: &Frame) -> Option<()> {
    let key = key::<A>(frame, false)?;
    // A use of every field, or the reads would be left out.
    let sum = key.src.sum() + key.dst.sum() + key.sport.raw() as u64 + key.dport.raw() as u64;
    if sum == 0 { None } else { Some(()) }
}

/// Finds a connection and rewrites its packet; false: there is none.
#[inline(always)]
pub fn translate(frame: &mut Frame) -> Option<bool> {
    by_version!(frame, translate_version)
}

#[inline(always)]
fn translate_version<A: Version>(frame: &mut Frame) -> Option<bool> {
    let Some((flow, addrs, ports)) = find::<A>(frame)? else {
        return Some(false);
    };
    let check = frame.read::<u16>(A::L4 + 16)?;
    frame.write(A::L4 + 16, addrs.and(ports).applied(check))?;
    rewrite(frame, flow, addrs)?;
    Some(true)
}

/// What checksums of packets change by.
pub struct Change {
    pub addrs: Diff,
    pub ports: Diff,
    /// Where the TCP checksum is.
    pub check: u32,
}

/// The same, but for the TCP checksum, which is left to the caller.
#[inline(always)]
pub fn translate_but_checksum(frame: &mut Frame) -> Option<Option<Change>> {
    by_version!(frame, translate_but_checksum_version)
}

#[inline(always)]
fn translate_but_checksum_version<A: Version>(frame: &mut Frame) -> Option<Option<Change>> {
    let Some((flow, addrs, ports)) = find::<A>(frame)? else {
        return Some(None);
    };
    rewrite(frame, flow, addrs)?;
    Some(Some(Change { addrs, ports, check: A::L4 + 16 }))
}

/// A packet's connection, and what checksums change by: for its addresses and its ports.
#[inline(always)]
fn find<A: Version>(frame: &Frame) -> Option<Option<(&'static Flow<A>, Diff, Diff)>> {
    let key = key::<A>(frame, true)?;
    let Some(flow) = A::LIMIT.get_ptr(&key) else {
        return Some(None);
    };
    // SAFETY: the element stays readable until this program ends.
    let flow = unsafe { &*flow };
    let addrs = Diff(flow.src.sum() + flow.dst.sum() + negative::<A>(key.src) + negative::<A>(key.dst));
    let ports = Diff::of16(key.sport.raw(), flow.sport.raw()).and(Diff::of16(key.dport.raw(), flow.dport.raw()));
    Some(Some((flow, addrs, ports)))
}

/// All but the TCP checksum.
#[inline(always)]
fn rewrite<A: Version>(frame: &mut Frame, flow: &Flow<A>, addrs: Diff) -> Option<()> {
    frame.write(A::L4, [flow.sport, flow.dport])?;
    frame.write(A::SRC, [flow.src, flow.dst])?;
    let ttl = frame.read::<u8>(A::TTL)?;
    frame.write(A::TTL, ttl.wrapping_sub(1))?;
    if !A::IS_V6 {
        let check = frame.read::<u16>(L3 + 10)?;
        frame.write(L3 + 10, addrs.and(LESS_TTL).applied(check))?;
    }
    frame.write(0, [0x0200_0000u32, 0x0002_0201, 0x0302_0000])
}

/// An address's negative in one's complement sums.
#[inline(always)]
fn negative<A: Addr>(addr: A) -> u64 {
    A::BITS as u64 / 32 * 0xffff_ffff - addr.sum()
}

#[inline(always)]
pub fn insert(frame: &Frame) -> Option<()> {
    by_version!(frame, insert_version)
}

#[inline(always)]
fn insert_version<A: Version>(frame: &Frame) -> Option<()> {
    let key = key::<A>(frame, true)?;
    let flow = Flow {
        src: key.src,
        dst: key.dst,
        sport: key.sport,
        dport: key.dport,
        service: 1,
        backend: 2,
        next_hop: 3,
        last: 4,
        state: 0,
        flags: 0,
        epoch: 0,
    };
    let other = key.reversed();
    A::FRESH.insert(&other, &flow, 0).ok()?;
    A::FRESH.insert(&key, &flow, 0).ok()
}
