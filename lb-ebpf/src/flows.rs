//! The flow table over the kernel's arrays, and the steps that use it.
//!
//! Finding and inserting are global functions (1: done): the verifier walks each once, by itself,
//! instead of once for every way that leads there (docs/decisions/0005-flow-table.md).

use core::ptr::read_volatile;

use aya_ebpf::maps::Array;
use lb_common::fib;
use lb_common::flow_table::{self, Entry, FlowTable, Hit, MULTIPLIERS};
use lb_common::path::parse::Ip;
use lb_common::path::{Context, Work, nat, service};
use lb_common::table::FlowKey;
use lb_common::verdict::{Arrival, Outcome};
use lb_common::wire::{Ip4, Ip6};

use crate::maps;
use crate::maps::fib::Fib;
use crate::tables::Kernel;

/// Buckets less one. Like the multipliers a constant once the program is loaded; the agent gives both
/// their values.
#[unsafe(no_mangle)]
static FLOW_MASK: u32 = 0;
#[unsafe(no_mangle)]
static FLOW_MULTIPLIERS: [u64; MULTIPLIERS] = [0; MULTIPLIERS];

/// A family's arrays, and the functions over them.
pub trait InArrays: Ip {
    const FLOWS: &'static Array<Entry<Self>>;

    fn way_to(dst: &Self) -> u32;
    fn slot(key: &FlowKey<Self>) -> u32;
    fn find(key: &FlowKey<Self>, hit: &mut Hit<Self>) -> u32;
    fn take(hit: &mut Hit<Self>, keep: u32) -> u32;
    fn choose(bucket: u32, hints: u32, now: u32, barred: u64) -> u32;
    fn settle(key: &FlowKey<Self>, hit: &mut Hit<Self>) -> u32;
    fn open(work: &mut Work<Self>, at: &Arrival, outcome: &mut Outcome) -> u32;
    fn way(work: &mut Work<Self>, at: &Arrival, outcome: &mut Outcome) -> u32;
    fn known(work: &mut Work<Self>, at: &Arrival) -> u32;
    fn take_port(work: &mut Work<Self>, at: &Arrival) -> u32;
    fn cede(work: &mut Work<Self>, at: &Arrival) -> u32;
    fn map(work: &mut Work<Self>, at: &Arrival) -> u32;
    fn remember(work: &mut Work<Self>) -> u32;
    fn put(work: &mut Work<Self>, at: &Arrival, outcome: &mut Outcome) -> u32;
    fn follow(work: &mut Work<Self>, at: &Arrival) -> u32;
}

impl<A: InArrays> FlowTable<A> for Kernel {
    #[inline(always)]
    fn line(&self, place: u32) -> Option<&Entry<A>> {
        A::FLOWS.get(place)
    }

    #[inline(always)]
    fn mask(&self) -> u32 {
        // SAFETY: a static of our own; the agent, not this program, gives it its value.
        unsafe { read_volatile(&raw const FLOW_MASK) }
    }

    #[inline(always)]
    fn multiplier(&self, index: usize) -> u64 {
        // SAFETY: as in `mask`; the index is one of the array's, by the caller's constants.
        unsafe { read_volatile((&raw const FLOW_MULTIPLIERS).cast::<u64>().add(index)) }
    }

    #[inline(always)]
    fn slot_of(&self, key: &FlowKey<A>) -> u32 {
        A::slot(key)
    }

    #[inline(always)]
    fn look_up(&self, key: &FlowKey<A>, hit: &mut Hit<A>) -> bool {
        A::find(key, hit) != 0
    }

    #[inline(always)]
    fn take(&self, hit: &mut Hit<A>, keep: u32) -> bool {
        A::take(hit, keep) != 0
    }

    #[inline(always)]
    fn choose(&self, bucket: u32, hints: u32, now: u32, barred: u64) -> u32 {
        A::choose(bucket, hints, now, barred)
    }

    #[inline(always)]
    fn settle(&self, key: &FlowKey<A>, hit: &mut Hit<A>) -> bool {
        A::settle(key, hit) != 0
    }
}

/// A step of the path as a function of its own: it changes a packet's work, and may say the outcome.
macro_rules! step {
    ($name:ident, $addr:ty, $step:path) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $name(work: *mut Work<$addr>, at: *const Arrival, outcome: *mut Outcome) -> u32 {
            // SAFETY: they come from references (below), or are null to the verifier alone.
            let (work, at, outcome) = unsafe { (work.as_mut(), at.as_ref(), outcome.as_mut()) };
            let (Some(work), Some(at), Some(outcome)) = (work, at, outcome) else {
                return 0;
            };
            $step(work, &Context { tables: &Kernel, at }, outcome) as u32
        }
    };
    // Without an outcome.
    ($name:ident, $addr:ty, $step:path,) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $name(work: *mut Work<$addr>, at: *const Arrival) -> u32 {
            // SAFETY: as above.
            let (Some(work), Some(at)) = (unsafe { work.as_mut() }, unsafe { at.as_ref() }) else {
                return 0;
            };
            $step(work, &Context { tables: &Kernel, at })
        }
    };
}

macro_rules! family {
    (
        $addr:ty, $flows:path, $way_to:ident, $slot:ident, $find:ident, $take:ident, $choose:ident, $settle:ident,
        $open:ident, $way:ident, $known:ident, $take_port:ident, $cede:ident, $map:ident, $remember:ident, $put:ident, $follow:ident
    ) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $way_to(dst: *const $addr) -> u32 {
            // SAFETY: it comes from a reference (below), or is null to the verifier alone.
            match unsafe { dst.as_ref() } {
                Some(dst) => fib::find(&Fib, *dst),
                None => fib::KERNEL,
            }
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $slot(key: *const FlowKey<$addr>) -> u32 {
            // SAFETY: it comes from a reference (below), or is null to the verifier alone.
            match unsafe { key.as_ref() } {
                Some(key) => flow_table::seek(&Kernel, key),
                None => flow_table::NONE,
            }
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $find(key: *const FlowKey<$addr>, hit: *mut Hit<$addr>) -> u32 {
            // SAFETY: as above.
            let (Some(key), Some(hit)) = (unsafe { key.as_ref() }, unsafe { hit.as_mut() }) else {
                return 0;
            };
            flow_table::find_into(&Kernel, key, hit) as u32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $take(hit: *mut Hit<$addr>, keep: u32) -> u32 {
            // SAFETY: as above.
            match unsafe { hit.as_mut() } {
                Some(hit) => flow_table::insert::take(&Kernel, hit, keep) as u32,
                None => 0,
            }
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $choose(bucket: u32, hints: u32, now: u32, barred: u64) -> u32 {
            flow_table::insert::choose::<$addr, Kernel>(&Kernel, bucket, hints, now, barred)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $settle(key: *const FlowKey<$addr>, hit: *mut Hit<$addr>) -> u32 {
            // SAFETY: as above.
            let (Some(key), Some(hit)) = (unsafe { key.as_ref() }, unsafe { hit.as_mut() }) else {
                return 0;
            };
            flow_table::insert::settle(&Kernel, key, hit) as u32
        }

        step!($open, $addr, service::open);
        step!($way, $addr, nat::way);
        step!($take_port, $addr, nat::take,);
        step!($cede, $addr, nat::cede,);
        step!($map, $addr, nat::map,);
        step!($put, $addr, nat::put);

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $remember(work: *mut Work<$addr>) -> u32 {
            // SAFETY: as above.
            if let Some(work) = unsafe { work.as_mut() } {
                nat::remember(work, &Kernel);
            }
            0
        }

        step!($known, $addr, nat::known,);
        step!($follow, $addr, nat::follow,);

        impl InArrays for $addr {
            const FLOWS: &'static Array<Entry<Self>> = &$flows;

            #[inline(always)]
            fn way_to(dst: &Self) -> u32 {
                $way_to(dst)
            }

            #[inline(always)]
            fn slot(key: &FlowKey<Self>) -> u32 {
                $slot(key)
            }

            #[inline(always)]
            fn find(key: &FlowKey<Self>, hit: &mut Hit<Self>) -> u32 {
                $find(key, hit)
            }

            #[inline(always)]
            fn take(hit: &mut Hit<Self>, keep: u32) -> u32 {
                $take(hit, keep)
            }

            #[inline(always)]
            fn choose(bucket: u32, hints: u32, now: u32, barred: u64) -> u32 {
                $choose(bucket, hints, now, barred)
            }

            #[inline(always)]
            fn settle(key: &FlowKey<Self>, hit: &mut Hit<Self>) -> u32 {
                $settle(key, hit)
            }

            #[inline(always)]
            fn open(work: &mut Work<Self>, at: &Arrival, outcome: &mut Outcome) -> u32 {
                $open(work, at, outcome)
            }

            #[inline(always)]
            fn way(work: &mut Work<Self>, at: &Arrival, outcome: &mut Outcome) -> u32 {
                $way(work, at, outcome)
            }

            #[inline(always)]
            fn known(work: &mut Work<Self>, at: &Arrival) -> u32 {
                $known(work, at)
            }

            #[inline(always)]
            fn take_port(work: &mut Work<Self>, at: &Arrival) -> u32 {
                $take_port(work, at)
            }

            #[inline(always)]
            fn cede(work: &mut Work<Self>, at: &Arrival) -> u32 {
                $cede(work, at)
            }

            #[inline(always)]
            fn map(work: &mut Work<Self>, at: &Arrival) -> u32 {
                $map(work, at)
            }

            #[inline(always)]
            fn remember(work: &mut Work<Self>) -> u32 {
                $remember(work)
            }

            #[inline(always)]
            fn put(work: &mut Work<Self>, at: &Arrival, outcome: &mut Outcome) -> u32 {
                $put(work, at, outcome)
            }

            #[inline(always)]
            fn follow(work: &mut Work<Self>, at: &Arrival) -> u32 {
                $follow(work, at)
            }
        }
    };
}

family!(
    Ip4,
    maps::FLOWS4,
    route_find4,
    flow_slot4,
    flow_find4,
    flow_take4,
    flow_choose4,
    flow_settle4,
    flow_open4,
    nat_way4,
    nat_known4,
    nat_take4,
    nat_cede4,
    nat_map4,
    nat_remember4,
    nat_put4,
    nat_follow4
);
family!(
    Ip6,
    maps::FLOWS6,
    route_find6,
    flow_slot6,
    flow_find6,
    flow_take6,
    flow_choose6,
    flow_settle6,
    flow_open6,
    nat_way6,
    nat_known6,
    nat_take6,
    nat_cede6,
    nat_map6,
    nat_remember6,
    nat_put6,
    nat_follow6
);
