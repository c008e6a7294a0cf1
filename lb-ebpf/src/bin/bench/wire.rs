//! Programs for frames on links: a generator, a bare redirect at XDP and TC, a counting end.

use aya_ebpf::bindings::TC_ACT_OK;
use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS};
use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::macros::{classifier, map, xdp};
use aya_ebpf::maps::{Array, PerCpuArray};
use aya_ebpf::programs::{TcContext, XdpContext};
use lb_common::wire::Be16;

/// Out by which link, with which link-layer addresses; by the link a packet came in on.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Way {
    pub ifindex: u32,
    /// Destination and source address.
    pub link: [u32; 3],
}

/// User space writes.
#[map]
static WAYS: Array<Way> = Array::with_max_entries(256, 0);
/// Frames that arrived at the end.
#[map]
static ARRIVED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Writes the script's frame with the next connection's address and port, and sends it by way 0.
/// Frames are recycled as the path under test left them, so that all of it is written.
#[xdp]
pub fn generate(context: XdpContext) -> u32 {
    if crate::write4(crate::frame(&context)).is_none() {
        return XDP_ABORTED;
    }
    let Some(way) = WAYS.get(0) else {
        return XDP_ABORTED;
    };
    // SAFETY: the helper only notes the index for the driver.
    unsafe { bpf_redirect(way.ifindex, 0) as u32 }
}

/// The least that a forwarder at XDP could do.
#[xdp]
pub fn redirect_xdp(context: XdpContext) -> u32 {
    let ifindex = context.ingress_ifindex() as u32;
    let (Some(way), mut frame) = (WAYS.get(ifindex), crate::frame(&context)) else {
        return XDP_PASS;
    };
    if way.ifindex == 0 || frame.read::<u16>(12) != Some(0x0800u16.to_be()) || frame.write(0, way.link).is_none() {
        return XDP_PASS;
    }
    // SAFETY: as above.
    unsafe { bpf_redirect(way.ifindex, 0) as u32 }
}

/// The least that a forwarder at TC could do.
#[classifier]
pub fn redirect_tc(context: TcContext) -> i32 {
    // SAFETY: a field of the program's own context.
    let (ifindex, mut frame) = (unsafe { (*context.skb.skb).ifindex }, crate::tc::frame(&context));
    let Some(way) = WAYS.get(ifindex) else {
        return TC_ACT_OK;
    };
    if way.ifindex == 0 || frame.read::<u16>(12) != Some(0x0800u16.to_be()) || frame.write(0, way.link).is_none() {
        return TC_ACT_OK;
    }
    // SAFETY: as above.
    unsafe { bpf_redirect(way.ifindex, 0) as i32 }
}

/// The end of the way: counts and drops what is UDP, so that the links' own talk goes on.
#[xdp]
pub fn count(context: XdpContext) -> u32 {
    let frame = crate::frame(&context);
    if frame.read::<Be16>(12).map(Be16::get) != Some(0x0800) || frame.read::<u8>(23) != Some(17) {
        return XDP_PASS;
    }
    if let Some(arrived) = ARRIVED.get_ptr_mut(0) {
        // SAFETY: the map's value, of this CPU alone.
        unsafe { *arrived += 1 }
    }
    XDP_DROP
}

/// Lets everything through: what a veth needs at the far end of an XDP transmission.
#[xdp]
pub fn pass(_: XdpContext) -> u32 {
    XDP_PASS
}
