//! The wrapper, the floor and the limit at TC: the same work as at XDP, on a packet of that hook.

use aya_ebpf::bindings::{BPF_F_PSEUDO_HDR, TC_ACT_OK, TC_ACT_SHOT};
use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::helpers::generated::bpf_l4_csum_replace;
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::ProgramArray;
use aya_ebpf::programs::TcContext;
use lb_common::apply::Diff;
use lb_common::frame::Frame;

use crate::flow;

/// The program under test.
#[map]
static TARGET_TC: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// No program of any hook returns that.
const ABORTED: i32 = -2;

#[inline(always)]
pub fn frame(context: &TcContext) -> Frame<'_> {
    let skb = context.skb.skb;
    // SAFETY: fields of the program's own context; data..data_end is the packet's linear part, and what
    // moves it comes behind the frame's last use.
    unsafe { Frame::from_range((*skb).data as usize as *mut u8, (*skb).data_end as usize as *mut u8) }
}

/// Calls the program under test.
#[inline(always)]
fn call(context: &TcContext, written: Option<()>) -> i32 {
    if written.is_some() {
        // SAFETY: the program's own context; only a missing target comes back.
        let _ = unsafe { TARGET_TC.tail_call(context, 0) };
    }
    ABORTED
}

#[classifier]
pub fn wrap4_tc(context: TcContext) -> i32 {
    call(&context, crate::write4(frame(&context)))
}

#[classifier]
pub fn wrap6_tc(context: TcContext) -> i32 {
    call(&context, crate::write6(frame(&context)))
}

#[classifier]
pub fn stub_tc(_: TcContext) -> i32 {
    TC_ACT_OK
}

#[classifier]
pub fn parse_tc(context: TcContext) -> i32 {
    match flow::parse(&frame(&context)) {
        Some(()) => TC_ACT_OK,
        None => TC_ACT_SHOT,
    }
}

/// What sends a packet on here, where nothing is like XDP's transmission.
#[inline(always)]
fn away() -> i32 {
    // SAFETY: the helper only notes the index for the kernel.
    unsafe { bpf_redirect(1, 0) as i32 }
}

/// The limit of an established connection: all is written straight into the packet.
#[classifier]
pub fn limit_tc(context: TcContext) -> i32 {
    match flow::translate(&mut frame(&context)) {
        Some(true) => away(),
        Some(false) => TC_ACT_SHOT,
        None => ABORTED,
    }
}

/// The same with the TCP checksum by the kernel's helper, which alone knows whether there is one yet.
#[classifier]
pub fn limit_helper_tc(context: TcContext) -> i32 {
    match flow::translate_but_checksum(&mut frame(&context)) {
        Some(Some(change)) if correct(&context, &change) => away(),
        Some(None) => TC_ACT_SHOT,
        _ => ABORTED,
    }
}

#[inline(always)]
fn correct(context: &TcContext, change: &flow::Change) -> bool {
    let by = |diff: Diff, flags: u32| {
        // SAFETY: the program's own context.
        let done =
            || unsafe { bpf_l4_csum_replace(context.skb.skb, change.check, 0, diff.fold32() as u64, flags as u64) };
        diff == Diff::default() || done() == 0
    };
    by(change.addrs, BPF_F_PSEUDO_HDR) && by(change.ports, 0)
}

/// The limit of a new connection.
#[classifier]
pub fn fresh_tc(context: TcContext) -> i32 {
    flow::insert(&frame(&context)).map_or(ABORTED, |()| away())
}
