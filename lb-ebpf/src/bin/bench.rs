//! What `bench` measures the product beside: a wrapper that restores the packet and calls any program,
//! the floor (return, parse), and the limit (the least that a stateful balancer could do).
//!
//! Invariant: every measured program, the product's too, runs behind the very same wrapper, so that
//! differences between figures are differences between programs. Nothing here is part of the product.
#![no_std]
#![no_main]

#[path = "bench/flow.rs"]
mod flow;
#[path = "bench/tc.rs"]
mod tc;
#[path = "bench/wire.rs"]
mod wire;

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, LruHashMap, ProgramArray};
use aya_ebpf::programs::XdpContext;
use lb_common::frame::Frame;
use lb_common::table::{Flow, FlowKey};
use lb_common::wire::{Ip4, Ip6};

/// The Ethernet header as 16-bit words, then the packet as 32-bit words: stores as wide as the loads
/// that will follow, or the processor would have to wait for them.
const LINK: usize = 7;
const WORDS4: usize = 10;
const WORDS6: usize = 15;

/// What the wrapper writes before it calls.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Script {
    pub link: [u16; 8],
    pub words: [u32; 16],
    /// The connection's number is cut to these bits.
    pub mask: u32,
    /// 0: numbers in their order; else in a random one.
    pub shuffle: u32,
    /// Added to the number.
    pub base: u32,
    /// 0: the number goes into the source; else into the destination (a reply).
    pub reply: u32,
}

/// User space writes, the wrapper reads.
#[map]
static SCRIPT: Array<Script> = Array::with_max_entries(1, 0);
/// Packets so far: the wrapper writes.
#[map]
static TURN: Array<u64> = Array::with_max_entries(1, 0);
/// The program under test.
#[map]
static TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);
/// The limit's connections, filled by user space like the product's.
#[map]
static LIMIT4: LruHashMap<FlowKey<Ip4>, Flow<Ip4>> = LruHashMap::with_max_entries(1024, 0);
#[map]
static LIMIT6: LruHashMap<FlowKey<Ip6>, Flow<Ip6>> = LruHashMap::with_max_entries(1024, 0);
/// The limit's new connections.
#[map]
static FRESH4: LruHashMap<FlowKey<Ip4>, Flow<Ip4>> = LruHashMap::with_max_entries(1024, 0);
#[map]
static FRESH6: LruHashMap<FlowKey<Ip6>, Flow<Ip6>> = LruHashMap::with_max_entries(1024, 0);

#[inline(always)]
fn frame(context: &XdpContext) -> Frame<'_> {
    // SAFETY: the kernel's context: data..data_end is the packet, and nothing here resizes it.
    unsafe { Frame::from_range(context.data() as *mut u8, context.data_end() as *mut u8) }
}

/// The number of the next packet's connection.
#[inline(always)]
fn next(script: &Script) -> Option<u32> {
    let turn = TURN.get_ptr_mut(0)?;
    // SAFETY: the map's value; one measurement runs at a time.
    let turn = unsafe {
        *turn += 1;
        *turn
    };
    let mixed = if script.shuffle == 0 {
        turn as u32
    } else {
        let mixed = (turn ^ turn >> 17).wrapping_mul(0xff51_afd7_ed55_8ccd);
        (mixed >> 32) as u32
    };
    Some((mixed & script.mask).wrapping_add(script.base))
}

/// Writes the script's packet with the next connection's address and port.
#[inline(always)]
fn write<const WORDS: usize>(mut frame: Frame, src: u32, dst: u32, check: Option<u32>) -> Option<()> {
    let script = SCRIPT.get(0)?;
    let number = next(script)?;
    for i in 0..LINK {
        frame.write(i as u32 * 2, script.link[i])?;
    }
    for i in 0..WORDS {
        frame.write(14 + i as u32 * 4, script.words[i])?;
    }
    let (at, port_at) = if script.reply == 0 { (src, 0) } else { (dst, 2) };
    // 14 bits go into the port, the others into the address.
    let addr = u32::from_be(frame.read::<u32>(at)?).wrapping_add(number >> 14).to_be();
    frame.write(at, addr)?;
    if let Some(check) = check {
        // The script's checksum is of an address of zeros in that place.
        let old = frame.read::<u16>(check)?;
        let sum = lb_common::apply::fold(!old as u64 + addr as u64);
        frame.write(check, !sum)?;
    }
    let port = (1024 + (number & 0x3fff)) as u16;
    frame.write(14 + (WORDS as u32 - 5) * 4 + port_at, port.to_be())
}

/// Calls the program under test.
#[inline(always)]
fn call(context: &XdpContext, written: Option<()>) -> u32 {
    if written.is_some() {
        // SAFETY: the program's own context; only a missing target comes back.
        let _ = unsafe { TARGET.tail_call(context, 0) };
    }
    XDP_ABORTED
}

/// An IPv4 packet.
#[inline(always)]
fn write4(frame: Frame) -> Option<()> {
    write::<WORDS4>(frame, 26, 30, Some(24))
}

#[inline(always)]
fn write6(frame: Frame) -> Option<()> {
    write::<WORDS6>(frame, 14 + 20, 14 + 36, None)
}

#[xdp]
pub fn wrap4(context: XdpContext) -> u32 {
    call(&context, write4(frame(&context)))
}

#[xdp]
pub fn wrap6(context: XdpContext) -> u32 {
    call(&context, write6(frame(&context)))
}

/// The floor: nothing.
#[xdp]
pub fn stub(_: XdpContext) -> u32 {
    XDP_PASS
}

/// The floor: a packet's tuple and nothing else.
#[xdp]
pub fn parse(context: XdpContext) -> u32 {
    match flow::parse(&frame(&context)) {
        Some(()) => XDP_PASS,
        None => XDP_DROP,
    }
}

/// The limit of an established connection.
#[xdp]
pub fn limit(context: XdpContext) -> u32 {
    match flow::translate(&mut frame(&context)) {
        Some(true) => XDP_TX,
        Some(false) => XDP_DROP,
        None => XDP_ABORTED,
    }
}

/// The limit of a new connection.
#[xdp]
pub fn fresh(context: XdpContext) -> u32 {
    flow::insert(&frame(&context)).map_or(XDP_ABORTED, |()| XDP_TX)
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// The kernel's helpers are GPL-only in part.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
