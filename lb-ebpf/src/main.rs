//! The hooks: kernel context → packet → the engine's path → the kernel's action.
//!
//! Invariant: nothing is decided here. What becomes of a packet is `lb_common::path`'s.
#![no_std]
#![no_main]

mod flows;
mod maps;
mod monitor;
mod overlay;
mod packet;
mod policy;
mod sockets;
mod steps;
mod tables;
mod trace;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    BPF_F_INGRESS, TC_ACT_OK, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action::XDP_ABORTED, xdp_action::XDP_DROP,
    xdp_action::XDP_PASS, xdp_action::XDP_TX,
};
use aya_ebpf::helpers::{bpf_jiffies64, bpf_redirect, bpf_redirect_peer};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use lb_common::apply::Packet;
use lb_common::path;
use lb_common::path::overlay::{LOOK, asks};
use lb_common::tables::Configured;
use lb_common::verdict::{Action, Arrival, Hook, Outcome};
use overlay::Overlay;
use tables::{Kernel, count, now};

/// In the `tc_index` of what ingress redirects: where it leaves, all is done. The kernel clears it behind any program
/// that lets a packet pass (`tcx_run` and `tc_run`), and nothing else sets it but the disciplines dsmark and GRED.
const SENT: u32 = 0x5357;

/// What becomes of a packet, also in the overlay. `judge` has the last word on where it goes.
#[inline(always)]
fn run<C: EbpfContext, P: Packet + Overlay>(
    context: &C,
    packet: &mut P,
    at: &mut Arrival,
    judge: impl FnOnce(&mut P, Outcome) -> Outcome,
) -> Outcome {
    if at.hook != Hook::Egress && at.tagged == 0 && Kernel.settings().overlay() {
        let entered = packet.enter(at.ifindex);
        if entered.action == Action::Drop {
            count(&maps::DROPS, entered.value);
            return entered;
        }
        at.tunneled = entered.value as u8;
    }
    let outcome = path(context, packet, at);
    let outcome = judge(packet, outcome);
    let next_hop = asks(outcome, at.hook);
    // Asked again: cheaper than to keep it over all that was before.
    if next_hop == 0 || (next_hop == LOOK && !Kernel.settings().overlay()) {
        return outcome;
    }
    let left = packet.leave(next_hop);
    if matches!(left.action, Action::Drop | Action::Refuse) {
        count(&maps::DROPS, left.value);
    }
    if left.action == Action::Pass { outcome } else { left }
}

/// The engine's verdict, counted and, where asked for, logged.
#[inline(always)]
fn path<C: EbpfContext, P: Packet>(context: &C, packet: &mut P, at: &Arrival) -> Outcome {
    trace::arrival(context, packet, at);
    // SAFETY: the map's value, of this CPU and this packet alone: zeros, which are a `Scratch`, and
    // then what packets before left there.
    let outcome = path::run(packet, at, &Kernel, || maps::SCRATCH.get_ptr_mut(0).map(|s| unsafe { &mut *s }));
    if trace::traced() {
        trace::verdict(context, outcome.action as u32, outcome.value);
    }
    if matches!(outcome.action, Action::Drop | Action::Refuse) {
        count(&maps::DROPS, outcome.value);
        trace::unexpected(context, outcome.value);
    }
    outcome
}

/// Physical ports.
#[xdp]
pub fn stellwerk_xdp(context: XdpContext) -> u32 {
    let ifindex = context.ingress_ifindex() as u32;
    let mut at = Arrival { hook: Hook::Xdp, ifindex, now: now(), gso_size: 0, tagged: 0, own: 0, tunneled: 0 };
    let mut packet = packet::Xdp(context.ctx);
    let outcome = run(&context, &mut packet, &mut at, |_, outcome| outcome);
    monitor::see(&packet, &at, outcome);
    match outcome.action {
        Action::Pass | Action::Continue => XDP_PASS,
        Action::Transmit if outcome.value == ifindex => XDP_TX,
        // SAFETY: the helper only notes the index for the driver.
        Action::Transmit => unsafe { bpf_redirect(outcome.value, 0) as u32 },
        Action::Reply | Action::Refuse => XDP_TX,
        Action::Drop => XDP_DROP,
        // Only egress reinjects and only ingress hands on, and what is in the overlay is on its way by now.
        Action::Reinject | Action::TransmitPeer | Action::Encapsulate => XDP_ABORTED,
    }
}

/// Inside interfaces, and ports that XDP can't serve.
#[classifier]
pub fn stellwerk_ingress(context: TcContext) -> i32 {
    traffic_control(&context, Hook::Ingress, |_, outcome| outcome)
}

/// The node's ends of pods' links, where policies are judged: the same in place of it.
#[classifier]
pub fn stellwerk_policy_out(context: TcContext) -> i32 {
    let skb = context.skb.skb;
    packet::Skb(skb).linearize();
    // SAFETY: a field of the program's own context.
    let link = unsafe { (*skb).ifindex };
    if !policy::outward(skb, link) {
        return TC_ACT_SHOT;
    }
    traffic_control(&context, Hook::Ingress, |packet, outcome| policy::translated(packet, outcome, link))
}

/// There, what goes to the pod: ahead of `stellwerk_egress`, which this leaves it to.
#[classifier]
pub fn stellwerk_policy_in(context: TcContext) -> i32 {
    let skb = context.skb.skb;
    packet::Skb(skb).linearize();
    // SAFETY: fields of the program's own context.
    let (link, from) = unsafe { ((*skb).ifindex, (*skb).ingress_ifindex) };
    if policy::inward(skb, link, from) { TC_ACT_UNSPEC } else { TC_ACT_SHOT }
}

/// Ports: what this node's own stack sends.
#[classifier]
pub fn stellwerk_egress(context: TcContext) -> i32 {
    // SAFETY: a field of the program's own context.
    if unsafe { (*context.skb.skb).tc_index } == SENT {
        return TC_ACT_OK;
    }
    traffic_control(&context, Hook::Egress, |_, outcome| outcome)
}

#[inline(always)]
fn traffic_control(context: &TcContext, hook: Hook, judge: impl FnOnce(&mut packet::Skb, Outcome) -> Outcome) -> i32 {
    let skb = context.skb.skb;
    // SAFETY: fields of the program's own context.
    let (ifindex, gso_size, tagged, from) =
        unsafe { ((*skb).ifindex, (*skb).gso_size, (*skb).vlan_present as u8, (*skb).ingress_ifindex) };
    let own = (hook == Hook::Egress && from == 0) as u8;
    if hook == Hook::Ingress {
        // Ahead of all, while nothing has to be kept for it on the stack.
        // SAFETY: as above.
        unsafe { (*skb).tc_index = SENT };
    }
    let mut at = Arrival { hook, ifindex, now: now(), gso_size, tagged, own, tunneled: 0 };
    let mut packet = packet::Skb(skb);
    packet.linearize();
    let back = if hook == Hook::Egress { BPF_F_INGRESS as u64 } else { 0 };
    let outcome = run(context, &mut packet, &mut at, judge);
    monitor::see(&packet, &at, outcome);
    match outcome.action {
        Action::Pass | Action::Continue => TC_ACT_OK,
        Action::Transmit => redirect(outcome.value, 0),
        // SAFETY: as of `bpf_redirect`.
        Action::TransmitPeer => unsafe { bpf_redirect_peer(outcome.value, 0) as i32 },
        Action::Reinject => redirect(ifindex, BPF_F_INGRESS as u64),
        Action::Reply | Action::Refuse => redirect(ifindex, back),
        Action::Drop | Action::Encapsulate => TC_ACT_SHOT,
    }
}

#[inline(always)]
fn redirect(ifindex: u32, flags: u64) -> i32 {
    // SAFETY: the helper only notes the index for the kernel.
    unsafe { bpf_redirect(ifindex, flags) as i32 }
}

/// Tells user space the tick, by BPF_PROG_TEST_RUN; attached nowhere.
#[classifier]
pub fn stellwerk_clock(_: TcContext) -> i32 {
    if let Some(clock) = maps::CLOCK.get_ptr_mut(0) {
        // SAFETY: the map's value, a whole word; of several users at once each reads a tick of now.
        unsafe { *clock = bpf_jiffies64() }
    }
    TC_ACT_OK
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// The kernel's helpers are GPL-only in part: the object is under the GPL-compatible side of our licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
