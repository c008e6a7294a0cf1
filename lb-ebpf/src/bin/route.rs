//! Longest prefix match by itself: the product's table, a kernel trie, the kernel's own routes, and the floor.
//!
//! Invariant: every program takes the next destination in the very same way, so that differences between
//! figures are differences between lookups. Nothing here is part of the product.
#![no_std]
#![no_main]

#[path = "../maps/fib.rs"]
mod maps;

use core::mem::size_of;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_PASS};
use aya_ebpf::helpers::generated::bpf_fib_lookup;
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::Array;
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::programs::XdpContext;
use lb_common::fib::find;
use lb_common::wire::{Addr, Ip4, Ip6};
use maps::{Fib, Routed};

const DESTINATIONS: u32 = 1 << 16;
const BPF_F_NO_PREALLOC: u32 = 1;
/// Without a neighbour's address: a route alone is asked for (kernel 6.3).
const SKIP_NEIGH: u32 = 1 << 2;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// What user space sets: 0 or 1 for destinations in their order or in a random one, the link that packets come from.
#[map]
static SETUP: Array<[u32; 2]> = Array::with_max_entries(1, 0);
/// Lookups so far.
#[map]
static TURN: Array<u64> = Array::with_max_entries(1, 0);
/// The sum of what was found, so that no lookup is left out.
#[map]
static SUM: Array<u64> = Array::with_max_entries(1, 0);
/// What was found, by destination, where that is asked for.
#[map]
static FOUND: Array<u32> = Array::with_max_entries(DESTINATIONS, 0);
#[map]
static TO4: Array<Ip4> = Array::with_max_entries(DESTINATIONS, 0);
#[map]
static TO6: Array<Ip6> = Array::with_max_entries(DESTINATIONS, 0);
#[map]
static TRIE4: LpmTrie<Ip4, u32> = LpmTrie::with_max_entries(1 << 20, BPF_F_NO_PREALLOC);
#[map]
static TRIE6: LpmTrie<Ip6, u32> = LpmTrie::with_max_entries(1 << 20, BPF_F_NO_PREALLOC);

trait Family: Routed {
    const TO: &'static Array<Self>;
    const TRIE: &'static LpmTrie<Self, u32>;

    fn ask(&self, question: &mut Question);
}

impl Family for Ip4 {
    const TO: &'static Array<Self> = &TO4;
    const TRIE: &'static LpmTrie<Self, u32> = &TRIE4;

    #[inline(always)]
    fn ask(&self, question: &mut Question) {
        question.family = AF_INET;
        question.dst[0] = self.raw();
    }
}

impl Family for Ip6 {
    const TO: &'static Array<Self> = &TO6;
    const TRIE: &'static LpmTrie<Self, u32> = &TRIE6;

    #[inline(always)]
    fn ask(&self, question: &mut Question) {
        question.family = AF_INET6;
        question.dst = self.raw();
    }
}

/// The kernel's `struct bpf_fib_lookup`; family and protocol are bytes, the ports and the length behind them zero.
#[repr(C)]
struct Question {
    family: u32,
    length: u32,
    ifindex: u32,
    class: u32,
    src: [u32; 4],
    dst: [u32; 4],
    link: [u32; 4],
}

/// Looks the next destination up; where asked for, what was found is kept.
#[inline(always)]
fn next<A: Family>(keep: bool, look: impl Fn(A, u32) -> u32) -> Option<()> {
    let [shuffle, link] = *SETUP.get(0)?;
    let turn = TURN.get_ptr_mut(0)?;
    // SAFETY: the map's value; one measurement runs at a time.
    let turn = unsafe {
        *turn += 1;
        *turn
    };
    let index =
        if shuffle == 0 { turn as u32 } else { ((turn ^ turn >> 17).wrapping_mul(0xff51_afd7_ed55_8ccd) >> 32) as u32 };
    let index = index % DESTINATIONS;
    let value = look(*A::TO.get(index)?, link);
    if keep {
        return FOUND.set(index, value, 0).ok();
    }
    // SAFETY: as above.
    unsafe { *SUM.get_ptr_mut(0)? += value as u64 }
    Some(())
}

/// A gateway's last 16 bits, which say the route's value.
#[inline(always)]
fn kernel<A: Family>(context: &XdpContext, dst: A, link: u32, flags: u32) -> u32 {
    let mut question =
        Question { family: 0, length: 0, ifindex: link, class: 0, src: [0; 4], dst: [0; 4], link: [0; 4] };
    dst.ask(&mut question);
    let (size, last) = (size_of::<Question>() as i32, if A::IS_V6 { 3 } else { 0 });
    // SAFETY: the question is of the helper's layout and size, and lives across the call.
    let result = unsafe { bpf_fib_lookup(context.as_ptr(), (&raw mut question).cast(), size, flags) };
    // Forwarded, whether its neighbour is known or not.
    if result == 0 || result == 7 { u32::from_be(question.dst[last]) & 0xffff } else { 0 }
}

fn verdict(done: Option<()>) -> u32 {
    if done.is_some() { XDP_PASS } else { XDP_ABORTED }
}

macro_rules! programs {
    ($addr:ty, $floor:ident, $ours:ident, $trie:ident, $kernel:ident, $keep_ours:ident, $keep_trie:ident, $keep_kernel:ident) => {
        #[xdp]
        pub fn $floor(_: XdpContext) -> u32 {
            verdict(next::<$addr>(false, |dst, _| dst.fold() as u32))
        }
        #[xdp]
        pub fn $ours(_: XdpContext) -> u32 {
            verdict(next::<$addr>(false, |dst, _| find(&Fib, dst)))
        }
        #[xdp]
        pub fn $trie(_: XdpContext) -> u32 {
            verdict(next::<$addr>(false, trie))
        }
        #[xdp]
        pub fn $kernel(context: XdpContext) -> u32 {
            verdict(next::<$addr>(false, |dst, link| kernel(&context, dst, link, SKIP_NEIGH)))
        }
        #[xdp]
        pub fn $keep_ours(_: XdpContext) -> u32 {
            verdict(next::<$addr>(true, |dst, _| find(&Fib, dst)))
        }
        #[xdp]
        pub fn $keep_trie(_: XdpContext) -> u32 {
            verdict(next::<$addr>(true, trie))
        }
        #[xdp]
        pub fn $keep_kernel(context: XdpContext) -> u32 {
            verdict(next::<$addr>(true, |dst, link| kernel(&context, dst, link, 0)))
        }
    };
}

#[inline(always)]
fn trie<A: Family>(dst: A, _: u32) -> u32 {
    A::TRIE.get(Key::new(A::BITS, dst)).copied().unwrap_or(0)
}

programs!(Ip4, floor4, ours4, trie4, kernel4, keep_ours4, keep_trie4, keep_kernel4);
programs!(Ip6, floor6, ours6, trie6, kernel6, keep_ours6, keep_trie6, keep_kernel6);

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
