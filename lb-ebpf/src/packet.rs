//! A kernel context as a [`Packet`]: XDP's by the frame itself, TC's by the kernel's helpers.
//!
//! TC sees transport checksums that aren't there yet (CHECKSUM_PARTIAL) or are kept beside the packet
//! (CHECKSUM_COMPLETE), and only the helpers know: a transport checksum is changed by them alone. All else is
//! written directly: an IP header with its checksum, and ports with theirs, leave a sum over the packet as it
//! was.

use core::ffi::c_void;
use core::mem::size_of;
use core::ptr::from_ref;

use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::bindings::{
    __sk_buff, BPF_ADJ_ROOM_ENCAP_L2_SHIFT, BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6,
    BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
    BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_CURRENT_NETNS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR,
    bpf_sock_tuple, xdp_md,
};
use aya_ebpf::helpers::generated::{
    bpf_l4_csum_replace, bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release, bpf_skb_adjust_room,
    bpf_skb_change_tail, bpf_skb_pull_data, bpf_xdp_adjust_head, bpf_xdp_adjust_tail,
};
use lb_common::apply::{Diff, Packet};
use lb_common::drop::Drop;
use lb_common::frame::Frame;
use lb_common::table::FlowKey;
use lb_common::wire::header::{ETH_LEN, ETH_P_IP, ETH_P_IPV6, IP4_LEN, IP6_LEN, TCP};
use lb_common::wire::{Addr, Be16};

/// A packet at XDP.
pub struct Xdp(pub *mut xdp_md);

impl Packet for Xdp {
    #[inline(always)]
    fn frame(&self) -> Frame<'_> {
        // SAFETY: the kernel's context: data..data_end is the packet, until it is resized, and
        // `resize` takes the context by `&mut`.
        unsafe { Frame::from_range((*self.0).data as usize as *mut u8, (*self.0).data_end as usize as *mut u8) }
    }

    #[inline(always)]
    fn transport(&mut self, offset: u32, ports: [Be16; 2], pseudo: Diff, plain: Diff, udp: bool) -> Result<(), Drop> {
        self.frame().transport(offset, ports, pseudo, plain, udp)
    }

    #[inline(always)]
    fn checksum4(&mut self, offset: u32, pseudo: Diff, plain: Diff, udp: bool) -> Result<(), Drop> {
        self.frame().checksum4(offset, pseudo, plain, udp)
    }

    #[inline(always)]
    fn has_socket<A: Addr>(&self, key: &FlowKey<A>) -> bool {
        has_socket(self.0.cast(), key)
    }

    #[inline(always)]
    fn grow_front(&mut self, by: u32, _: bool) -> Result<(), Drop> {
        // SAFETY: the program's own context.
        granted(unsafe { bpf_xdp_adjust_head(self.0, -(by as i32)) })
    }

    #[inline(always)]
    fn shrink_front(&mut self, by: u32, _: bool, _: bool) -> Result<(), Drop> {
        // SAFETY: the program's own context.
        granted(unsafe { bpf_xdp_adjust_head(self.0, by as i32) })
    }

    #[inline(always)]
    fn resize(&mut self, len: u32) -> Result<(), Drop> {
        let delta = len as i32 - self.frame().len() as i32;
        // SAFETY: the program's own context.
        match unsafe { bpf_xdp_adjust_tail(self.0, delta) } {
            0 => Ok(()),
            _ if delta > 0 => self.grow_ahead(len, delta as u32),
            _ => Err(Drop::ResizeFailed),
        }
    }
}

impl Xdp {
    /// Grows by the room ahead of the packet, where there is none behind it: a veth's packet may end
    /// where its memory ends. The headers, which alone matter, move to the new beginning.
    #[inline(always)]
    fn grow_ahead(&mut self, len: u32, by: u32) -> Result<(), Drop> {
        /// Double words behind the first six bytes: an Ethernet header with a tag, and a quote of a
        /// TCP header behind all of IPv4's options, or behind IPv6's header alone.
        const MOVED: u32 = 12;
        /// Headers that an ICMP answer puts before its quote, at least.
        const BEFORE: u32 = 28;
        if len > BEFORE + 6 + MOVED * 8 {
            return Err(Drop::ResizeFailed);
        }
        // SAFETY: the program's own context.
        if unsafe { bpf_xdp_adjust_head(self.0, -(by as i32)) } != 0 {
            return Err(Drop::ResizeFailed);
        }
        let mut frame = self.frame();
        // A quote ends a multiple of four bytes behind the sixth.
        frame.store(0, frame.read::<u16>(by).ok_or(Drop::ResizeFailed)?)?;
        frame.store(2, frame.read::<u32>(2 + by).ok_or(Drop::ResizeFailed)?)?;
        for at in 0..MOVED {
            let at = 6 + at * 8;
            if let Some(double) = frame.read::<u64>(at + by) {
                frame.store(at, double)?;
                continue;
            }
            if let Some(word) = frame.read::<u32>(at + by) {
                frame.store(at, word)?;
            }
            break;
        }
        Ok(())
    }
}

/// Asks the context's own network namespace.
#[inline(always)]
fn has_socket<A: Addr>(context: *mut c_void, key: &FlowKey<A>) -> bool {
    // A key begins as the kernel's tuple does: addresses, then ports.
    let size = 2 * size_of::<A>() as u32 + 4;
    let tuple = from_ref(key).cast_mut().cast::<bpf_sock_tuple>();
    let netns = BPF_F_CURRENT_NETNS as u64;
    // SAFETY: the program's own context, `size` bytes of a key, and a socket that is given back.
    unsafe {
        let socket = if key.proto == TCP as u32 {
            bpf_sk_lookup_tcp(context, tuple, size, netns, 0)
        } else {
            bpf_sk_lookup_udp(context, tuple, size, netns, 0)
        };
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket.cast());
    }
    true
}

/// A packet at TC.
pub struct Skb(pub *mut __sk_buff);

impl Skb {
    /// Brings the headers into the linear part, where they aren't. A function of its own, so that the
    /// verifier walks the path behind it once.
    #[inline(never)]
    pub fn linearize(&mut self) {
        // Ethernet, IPv6 with some extension headers, TCP; ICMP errors quote as much.
        const HEADERS: u32 = 192;
        // The `gso_size` of SCTP's lists of packets (GSO_BY_FRAGS).
        const LIST: u32 = 0xffff;
        // SAFETY: the program's own context.
        unsafe {
            // Its headers are in the linear part. Pulling would tear the list, and the kernel panics when it
            // cuts the packet up (`BUG_ON` in `skb_segment`, 6.1).
            if (*self.0).gso_size == LIST {
                return;
            }
            let len = (*self.0).len;
            let wanted = if len < HEADERS { len } else { HEADERS };
            if self.frame().len() < wanted && !self.has_tcp_header() {
                // Where it fails, parsing finds the packet too short, and passes it on.
                bpf_skb_pull_data(self.0, wanted);
            }
        }
    }

    /// Whether a TCP packet's headers are all in the linear part, as a stack leaves them: more than these nobody reads, and
    /// to pull in the beginning of its payload would cost as much as all that is done with it.
    #[inline(always)]
    fn has_tcp_header(&self) -> bool {
        let frame = self.frame();
        let at = |offset| frame.read::<u8>(offset).unwrap_or_default();
        let (l4, proto) = match frame.read::<Be16>(12).unwrap_or_default().get() {
            ETH_P_IP if at(ETH_LEN) == 0x45 => (ETH_LEN + IP4_LEN, at(ETH_LEN + 9)),
            ETH_P_IPV6 => (ETH_LEN + IP6_LEN, at(ETH_LEN + 6)),
            _ => return false,
        };
        proto == TCP && frame.read::<u8>(l4 + 12).is_some_and(|words| frame.len() >= l4 + (words >> 4) as u32 * 4)
    }
}

#[inline(always)]
fn granted(code: i64) -> Result<(), Drop> {
    if code == 0 { Ok(()) } else { Err(Drop::OverlayRefused) }
}

#[inline(always)]
fn rewritten(code: i64) -> Result<(), Drop> {
    if code == 0 { Ok(()) } else { Err(Drop::RewriteFailed) }
}

impl Packet for Skb {
    #[inline(always)]
    fn frame(&self) -> Frame<'_> {
        // SAFETY: the kernel's context: data..data_end is the packet's linear part; every helper
        // that moves it takes the context by `&mut`.
        unsafe { Frame::from_range((*self.0).data as usize as *mut u8, (*self.0).data_end as usize as *mut u8) }
    }

    #[inline(always)]
    fn transport(&mut self, offset: u32, ports: [Be16; 2], pseudo: Diff, plain: Diff, udp: bool) -> Result<(), Drop> {
        self.store(offset, ports)?;
        self.checksum4(offset + if udp { 6 } else { 16 }, pseudo, plain, udp)
    }

    #[inline(always)]
    fn checksum4(&mut self, offset: u32, pseudo: Diff, plain: Diff, udp: bool) -> Result<(), Drop> {
        let udp = if udp { BPF_F_MARK_MANGLED_0 as u64 } else { 0 };
        if !pseudo.is_zero() {
            let flags = BPF_F_PSEUDO_HDR as u64 | udp;
            // SAFETY: the program's own context.
            rewritten(unsafe { bpf_l4_csum_replace(self.0, offset, 0, pseudo.fold32() as u64, flags) })?;
        }
        if !plain.is_zero() {
            // SAFETY: as above.
            rewritten(unsafe { bpf_l4_csum_replace(self.0, offset, 0, plain.fold32() as u64, udp) })?;
        }
        Ok(())
    }

    #[inline(always)]
    fn has_socket<A: Addr>(&self, key: &FlowKey<A>) -> bool {
        has_socket(self.0.cast(), key)
    }

    /// A packet that is still to be cut into segments keeps their size: who made it left room for the headers.
    #[inline(always)]
    fn grow_front(&mut self, by: u32, v4: bool) -> Result<(), Drop> {
        let outer = if v4 { BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 } else { BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 };
        let inner = BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2_ETH;
        let link = (ETH_LEN as u64) << BPF_ADJ_ROOM_ENCAP_L2_SHIFT;
        let flags = (BPF_F_ADJ_ROOM_FIXED_GSO | outer | inner) as u64 | link;
        // SAFETY: the program's own context.
        granted(unsafe { bpf_skb_adjust_room(self.0, by as i32, BPF_ADJ_ROOM_MAC, flags) })
    }

    #[inline(always)]
    fn shrink_front(&mut self, by: u32, v4: bool, inner_v4: bool) -> Result<(), Drop> {
        // Where the IP version changes (since 6.4).
        let inner = match (v4, inner_v4) {
            (true, false) => BPF_F_ADJ_ROOM_DECAP_L3_IPV6,
            (false, true) => BPF_F_ADJ_ROOM_DECAP_L3_IPV4,
            _ => 0,
        };
        let flags = (BPF_F_ADJ_ROOM_FIXED_GSO | inner) as u64;
        // SAFETY: the program's own context.
        granted(unsafe { bpf_skb_adjust_room(self.0, -(by as i32), BPF_ADJ_ROOM_MAC, flags) })
    }

    #[inline(always)]
    fn resize(&mut self, len: u32) -> Result<(), Drop> {
        // SAFETY: the program's own context.
        match unsafe { bpf_skb_change_tail(self.0, len, 0) } {
            0 => Ok(()),
            _ => Err(Drop::ResizeFailed),
        }
    }
}
