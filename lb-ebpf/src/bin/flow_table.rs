//! The flow table by itself, beside the kernel's hash and LRU maps: for `bench flow-table` and tests.
//!
//! Invariant: every program takes the next connection's number and makes its key in the very same way, so that
//! differences between figures are differences between tables. Nothing here is part of the product.
#![no_std]
#![no_main]

#[path = "../steps.rs"]
mod steps;
#[path = "flow_table/torture.rs"]
mod torture;

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_PASS};
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, HashMap, LruHashMap};
use aya_ebpf::programs::XdpContext;
use lb_common::flow_table::insert::{aim, put};
use lb_common::flow_table::{Entry, NONE, find, remove};
use lb_common::table::{Flow, FlowKey, NextHop, Settings};
use lb_common::tables::Configured;
use lb_common::wire::{Be16, Ip4, Ip6};
use steps::{InArray, flow_steps, flow_table};
use zerocopy::FromZeros;

const BPF_F_MMAPABLE: u32 = 1 << 10;
/// Numbers in the order that lookups keep to.
const ORDER_LEN: usize = 1 << 20;

/// What user space sets.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Setup {
    /// Added to every number.
    base: u32,
    /// The state of what is inserted.
    state: u32,
    /// When it is inserted.
    now: u32,
    /// Torture: so many connections.
    keys: u32,
}

#[map]
static SETUP: Array<Setup> = Array::with_max_entries(1, 0);
#[map]
static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);
/// Which connections lookups ask for.
#[map]
static ORDER: Array<[u32; ORDER_LEN]> = Array::with_max_entries(1, 0);
/// Steps so far.
#[map]
static TURN: Array<u64> = Array::with_max_entries(1, 0);
/// How many entries were found, inserted or removed.
#[map]
static DONE: Array<u64> = Array::with_max_entries(1, 0);
#[map]
static FLOWS4: Array<Entry<Ip4>> = Array::with_max_entries(32, BPF_F_MMAPABLE);
#[map]
static FLOWS6: Array<Entry<Ip6>> = Array::with_max_entries(32, BPF_F_MMAPABLE);
/// The kernel's torture doesn't grow.
#[map]
static ELDER4: Array<Entry<Ip4>> = Array::with_max_entries(32, BPF_F_MMAPABLE);
#[map]
static ELDER6: Array<Entry<Ip6>> = Array::with_max_entries(32, BPF_F_MMAPABLE);
#[map]
static MOVED_IN: Array<u32> = Array::with_max_entries(1, 0);
#[map]
static LRU4: LruHashMap<FlowKey<Ip4>, Flow<Ip4>> = LruHashMap::with_max_entries(1, 0);
#[map]
static LRU6: LruHashMap<FlowKey<Ip6>, Flow<Ip6>> = LruHashMap::with_max_entries(1, 0);
#[map]
static HASH4: HashMap<FlowKey<Ip4>, Flow<Ip4>> = HashMap::with_max_entries(1, 0);
#[map]
static HASH6: HashMap<FlowKey<Ip6>, Flow<Ip6>> = HashMap::with_max_entries(1, 0);

/// The table over the arrays.
struct Ours;

flow_table!(Ours);
flow_steps!(
    Ours,
    Ip4,
    [FLOWS4, ELDER4, MOVED_IN],
    slot4,
    elder_slot4,
    find4,
    find_elder4,
    touch4,
    set_state4,
    set_next_hop4,
    flow_remove4,
    take4,
    choose4,
    rival4,
    elder_rival4,
    wins4,
    write4,
    publish4
);
flow_steps!(
    Ours,
    Ip6,
    [FLOWS6, ELDER6, MOVED_IN],
    slot6,
    elder_slot6,
    find6,
    find_elder6,
    touch6,
    set_state6,
    set_next_hop6,
    flow_remove6,
    take6,
    choose6,
    rival6,
    elder_rival6,
    wins6,
    write6,
    publish6
);

impl Configured for Ours {
    #[inline(always)]
    fn settings(&self) -> Settings {
        SETTINGS.get(0).copied().unwrap_or_default()
    }
}

trait Family: InArray {
    const LRU: &'static LruHashMap<FlowKey<Self>, Flow<Self>>;
    const HASH: &'static HashMap<FlowKey<Self>, Flow<Self>>;

    fn numbered(number: u32) -> Self;
}

impl Family for Ip4 {
    const LRU: &'static LruHashMap<FlowKey<Self>, Flow<Self>> = &LRU4;
    const HASH: &'static HashMap<FlowKey<Self>, Flow<Self>> = &HASH4;

    #[inline(always)]
    fn numbered(number: u32) -> Self {
        Ip4::from_raw(0x0a00_0000u32.wrapping_add(number).to_be())
    }
}

impl Family for Ip6 {
    const LRU: &'static LruHashMap<FlowKey<Self>, Flow<Self>> = &LRU6;
    const HASH: &'static HashMap<FlowKey<Self>, Flow<Self>> = &HASH6;

    #[inline(always)]
    fn numbered(number: u32) -> Self {
        Ip6::from_raw([0xfd00_0000u32.to_be(), 0, 0, number.to_be()])
    }
}

/// A connection's key: 14 bits of its number in the port, as a client's connections count up.
#[inline(always)]
fn key<A: Family>(number: u32) -> FlowKey<A> {
    FlowKey {
        src: A::numbered(number >> 14),
        dst: A::numbered(1 << 20),
        sport: Be16::new(1024 + (number & 0x3fff) as u16),
        dport: Be16::new(80),
        proto: 6,
    }
}

/// A connection's value, every word of which tells its number.
#[inline(always)]
fn flow<A: Family>(number: u32, setup: &Setup) -> Flow<A> {
    Flow {
        src: A::numbered(number),
        dst: A::numbered(!number),
        sport: Be16::new(number as u16),
        dport: Be16::new(!number as u16),
        service: number,
        backend: !number,
        next_hop: NextHop::UNRESOLVED,
        last: setup.now,
        state: setup.state as u8,
        flags: 0,
        epoch: 0,
    }
}

/// Whether a value is whole, and of a number.
#[inline(always)]
fn tells<A: Family>(flow: &Flow<A>, number: u32) -> bool {
    let addrs = flow.src == A::numbered(number) && flow.dst == A::numbered(!number);
    let ports = flow.sport.get() == number as u16 && flow.dport.get() == !number as u16;
    addrs && ports && flow.service == number && flow.backend == !number
}

#[inline(always)]
fn turn() -> Option<u64> {
    let turn = TURN.get_ptr_mut(0)?;
    // SAFETY: the map's value; one measurement runs at a time.
    unsafe {
        *turn += 1;
        Some(*turn - 1)
    }
}

#[inline(always)]
fn add(done: u32) -> Option<()> {
    // SAFETY: as above.
    unsafe { *DONE.get_ptr_mut(0)? += done as u64 }
    Some(())
}

/// Looks the next connection up.
#[inline(always)]
fn look<A: Family>(found: impl Fn(&FlowKey<A>, u32) -> bool) -> Option<()> {
    let order = ORDER.get(0)?;
    let number = order[turn()? as usize % ORDER_LEN].wrapping_add(SETUP.get(0)?.base);
    add(found(&key(number), number) as u32)
}

/// Changes the next two connections.
#[inline(always)]
fn change<A: Family>(done: impl Fn([&FlowKey<A>; 2], [u32; 2], &Setup) -> u32) -> Option<()> {
    let setup = SETUP.get(0)?;
    let number = (turn()? as u32).wrapping_mul(2).wrapping_add(setup.base);
    let numbers = [number, number + 1];
    add(done([&key(numbers[0]), &key(numbers[1])], numbers, setup))
}

#[inline(always)]
fn floor<A: Family>(key: &FlowKey<A>) -> u32 {
    (key.src.sum() + key.dst.sum() + key.sport.raw() as u64 + key.dport.raw() as u64 != 0) as u32
}

#[inline(always)]
fn find_ours<A: Family>(key: &FlowKey<A>, number: u32, likely: bool) -> bool {
    find(&Ours, key, likely).is_some_and(|hit| tells(&hit.flow, number))
}

/// As the product opens a connection: the memory of both is read before the first is written.
#[inline(always)]
fn put_ours<A: Family>(keys: [&FlowKey<A>; 2], numbers: [u32; 2], setup: &Setup) -> u32 {
    let (mut one, mut two) = (lb_common::flow_table::Hit::new_zeroed(), lb_common::flow_table::Hit::new_zeroed());
    aim(&Ours, keys[0], &mut one);
    aim(&Ours, keys[1], &mut two);
    (one.flow, two.flow) = (flow(numbers[0], setup), flow(numbers[1], setup));
    put(&Ours, keys[0], &mut one, NONE).is_ok() as u32 + put(&Ours, keys[1], &mut two, NONE).is_ok() as u32
}

#[inline(always)]
fn remove_ours<A: Family>(key: &FlowKey<A>) -> u32 {
    find(&Ours, key, true).is_some_and(|hit| remove(&Ours, &hit)) as u32
}

fn verdict(done: Option<()>) -> u32 {
    if done.is_some() { XDP_PASS } else { XDP_ABORTED }
}

/// The programs of one of the kernel's maps.
macro_rules! kernels {
    ($addr:ty, $map:ident, $find:ident, $put:ident, $remove:ident) => {
        #[xdp]
        pub fn $find(_: XdpContext) -> u32 {
            // SAFETY: the element stays readable until this program ends.
            let found = |key: &_, number| unsafe { <$addr>::$map.get(key) }.is_some_and(|flow| tells(flow, number));
            verdict(look::<$addr>(found))
        }
        #[xdp]
        pub fn $put(_: XdpContext) -> u32 {
            verdict(change::<$addr>(|keys, numbers, setup| {
                <$addr>::$map.insert(keys[0], &flow(numbers[0], setup), 0).is_ok() as u32
                    + <$addr>::$map.insert(keys[1], &flow(numbers[1], setup), 0).is_ok() as u32
            }))
        }
        #[xdp]
        pub fn $remove(_: XdpContext) -> u32 {
            verdict(change::<$addr>(|keys, _, _| {
                <$addr>::$map.remove(keys[0]).is_ok() as u32 + <$addr>::$map.remove(keys[1]).is_ok() as u32
            }))
        }
    };
}

macro_rules! programs {
    ($addr:ty, $floor:ident, $floor_two:ident, $hit:ident, $miss:ident, $put:ident, $remove:ident) => {
        #[xdp]
        pub fn $floor(_: XdpContext) -> u32 {
            verdict(look::<$addr>(|key, _| floor(key) != 0))
        }
        #[xdp]
        pub fn $floor_two(_: XdpContext) -> u32 {
            verdict(change::<$addr>(|keys, _, _| floor(keys[0]) + floor(keys[1])))
        }
        #[xdp]
        pub fn $hit(_: XdpContext) -> u32 {
            verdict(look::<$addr>(|key, number| find_ours(key, number, true)))
        }
        #[xdp]
        pub fn $miss(_: XdpContext) -> u32 {
            verdict(look::<$addr>(|key, number| find_ours(key, number, false)))
        }
        #[xdp]
        pub fn $put(_: XdpContext) -> u32 {
            verdict(change::<$addr>(put_ours))
        }
        #[xdp]
        pub fn $remove(_: XdpContext) -> u32 {
            verdict(change::<$addr>(|keys, _, _| remove_ours(keys[0]) + remove_ours(keys[1])))
        }
    };
}

programs!(Ip4, floor4, floor_two4, hit4, miss4, put4, remove4);
programs!(Ip6, floor6, floor_two6, hit6, miss6, put6, remove6);
kernels!(Ip4, LRU, lru_find4, lru_put4, lru_remove4);
kernels!(Ip6, LRU, lru_find6, lru_put6, lru_remove6);
kernels!(Ip4, HASH, hash_find4, hash_put4, hash_remove4);
kernels!(Ip6, HASH, hash_find6, hash_put6, hash_remove6);

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
