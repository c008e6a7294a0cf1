//! The data plane's own messages: everything about one port's packets, when the operator asks for it,
//! and rare events that somebody should read. Never on the hot path: without `log.tracePort` a packet
//! costs nothing here.

use aya_ebpf::EbpfContext;
use aya_log_ebpf::{debug, warn};
use lb_common::apply::Packet;
use lb_common::drop::Drop;
use lb_common::path::parse::{self, Ip};
use lb_common::tables::Configured;
use lb_common::verdict::Arrival;
use lb_common::wire::header::{ETH_P_IP, ETH_P_IPV6};
use lb_common::wire::{Ip4, Ip6};

use crate::maps;
use crate::tables::Kernel;

/// Not zero: the agent was started with a port to trace. Constant once the program is loaded, so that
/// otherwise the kernel leaves out all of this.
#[unsafe(no_mangle)]
static TRACING: u32 = 0;

#[inline(always)]
fn tracing() -> bool {
    // SAFETY: a static of our own; the agent, not this program, gives it its value.
    unsafe { core::ptr::read_volatile(&raw const TRACING) != 0 }
}

/// Logs an arriving packet, if its port is traced, and notes that it is.
#[inline(always)]
pub fn arrival<C: EbpfContext, P: Packet>(context: &C, packet: &P, at: &Arrival) {
    if tracing() {
        note(context, packet, at, Kernel.settings().trace_port);
    }
}

/// Whether the packet is traced. It is asked of the map's memory, which the verifier knows nothing
/// of: a variable would make it follow the whole path once for each answer.
#[inline(always)]
pub fn traced() -> bool {
    tracing() && maps::TRACED.get(0).is_some_and(|traced| *traced != 0)
}

#[inline(never)]
fn note<C: EbpfContext, P: Packet>(context: &C, packet: &P, at: &Arrival, port: u32) {
    // Handed over by reference for certain: a pointer into the packet that the compiler hands to a
    // function by value loses its upper half.
    let packet = core::hint::black_box(packet);
    let traced = match parse::link(&packet.frame()) {
        Some(link) if link.ethertype == ETH_P_IP => tuple::<Ip4, C, P>(context, packet, link.l3, at, port),
        Some(link) if link.ethertype == ETH_P_IPV6 => tuple::<Ip6, C, P>(context, packet, link.l3, at, port),
        _ => false,
    };
    if let Some(note) = maps::TRACED.get_ptr_mut(0) {
        // SAFETY: the map's value, of this CPU and this packet alone.
        unsafe { *note = traced as u32 }
    }
}

#[inline(always)]
fn tuple<A: Ip, C: EbpfContext, P: Packet>(context: &C, packet: &P, l3: u32, at: &Arrival, port: u32) -> bool {
    let Some(header) = A::header(&packet.frame(), l3) else {
        return false;
    };
    let Some(ports) = packet.frame().read::<[u16; 2]>(header.l4) else {
        return false;
    };
    let [sport, dport] = ports.map(u16::from_be);
    if sport as u32 != port && dport as u32 != port {
        return false;
    }
    log(context, &Line { hook: at.hook as u32, link: at.ifindex, proto: header.proto as u32, sport, dport });
    true
}

/// What a line says of a packet.
struct Line {
    hook: u32,
    link: u32,
    proto: u32,
    sport: u16,
    dport: u16,
}

#[inline(never)]
fn log<C: EbpfContext>(context: &C, line: &Line) {
    let Line { hook, link, proto, sport, dport } = *line;
    debug!(context, "hook {} link {} proto {}: port {} to {}", hook, link, proto, sport, dport);
}

/// Logs what becomes of a traced packet: a verdict's parts.
#[inline(never)]
pub fn verdict<C: EbpfContext>(context: &C, kind: u32, value: u32) {
    match kind {
        0 => debug!(context, "  passed untouched"),
        1 => debug!(context, "  translated, to the kernel"),
        2 => debug!(context, "  translated, out by link {}", value),
        3 => debug!(context, "  answered"),
        4 => debug!(context, "  refused, reason {}", value),
        5 => debug!(context, "  translated, received again"),
        _ => debug!(context, "  dropped, reason {}", value),
    }
}

/// Logs the drops that no traffic should cause.
#[inline(always)]
pub fn unexpected<C: EbpfContext>(context: &C, reason: u32) {
    const FAULTS: [u32; 3] = [Drop::StaleSlot as u32, Drop::RewriteFailed as u32, Drop::ResizeFailed as u32];
    if FAULTS[0] == reason || FAULTS[1] == reason || FAULTS[2] == reason {
        fault(context, reason);
    }
}

#[inline(never)]
fn fault<C: EbpfContext>(context: &C, reason: u32) {
    warn!(context, "a packet was dropped for a reason that should not be: {}", reason);
}
