//! The steps of the path that use the flow table, as global functions like the table's own ([`crate::steps`]).

use lb_common::fib;
use lb_common::path::parse::Ip;
use lb_common::path::{Context, Work, deliver, nat, service};
use lb_common::verdict::{Arrival, Outcome};
use lb_common::wire::{Ip4, Ip6};

use crate::maps;
use crate::maps::fib::Fib;
use crate::steps::{InArray, flow_steps, flow_table};
use crate::tables::Kernel;

/// The path's functions over a family's arrays.
pub trait InArrays: Ip + InArray {
    fn way_to(dst: &Self) -> u32;
    fn open(work: &mut Work<Self>, at: &Arrival, outcome: &mut Outcome) -> u32;
    fn resolve(work: &mut Work<Self>, at: &Arrival) -> u32;
    fn way(work: &mut Work<Self>, at: &Arrival, outcome: &mut Outcome) -> u32;
    fn known(work: &mut Work<Self>, at: &Arrival) -> u32;
    fn take_port(work: &mut Work<Self>, at: &Arrival) -> u32;
    fn cede(work: &mut Work<Self>, at: &Arrival) -> u32;
    fn map(work: &mut Work<Self>, at: &Arrival) -> u32;
    fn remember(work: &mut Work<Self>) -> u32;
    fn put(work: &mut Work<Self>, at: &Arrival, outcome: &mut Outcome) -> u32;
    fn follow(work: &mut Work<Self>, at: &Arrival) -> u32;
}

flow_table!(Kernel);

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
        $addr:ty, [$($flows:path),+], $way_to:ident, $slot:ident, $elder_slot:ident, $find:ident, $find_elder:ident, $touch:ident, $set_state:ident, $set_next_hop:ident, $flow_remove:ident, $take:ident, $choose:ident, $rival:ident, $elder_rival:ident, $wins:ident, $write:ident, $publish:ident,
        $open:ident, $resolve:ident, $way:ident, $known:ident, $take_port:ident, $cede:ident, $map:ident, $remember:ident, $put:ident, $follow:ident
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

        flow_steps!(Kernel, $addr, [$($flows),+], $slot, $elder_slot, $find, $find_elder, $touch, $set_state, $set_next_hop, $flow_remove, $take, $choose, $rival, $elder_rival, $wins, $write, $publish);

        step!($open, $addr, service::open);
        step!($resolve, $addr, deliver::resolve,);
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
            #[inline(always)]
            fn way_to(dst: &Self) -> u32 {
                $way_to(dst)
            }

            #[inline(always)]
            fn open(work: &mut Work<Self>, at: &Arrival, outcome: &mut Outcome) -> u32 {
                $open(work, at, outcome)
            }

            #[inline(always)]
            fn resolve(work: &mut Work<Self>, at: &Arrival) -> u32 {
                $resolve(work, at)
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
    [maps::FLOWS4, maps::FLOW_ELDER4, maps::FLOW_MOVED_IN],
    route_find4,
    flow_slot4,
    flow_elder_slot4,
    flow_find4,
    flow_find_elder4,
    flow_touch4,
    flow_set_state4,
    flow_set_next_hop4,
    flow_remove4,
    flow_take4,
    flow_choose4,
    flow_rival4,
    flow_elder_rival4,
    flow_wins4,
    flow_write4,
    flow_publish4,
    flow_open4,
    flow_resolve4,
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
    [maps::FLOWS6, maps::FLOW_ELDER6, maps::FLOW_MOVED_IN],
    route_find6,
    flow_slot6,
    flow_elder_slot6,
    flow_find6,
    flow_find_elder6,
    flow_touch6,
    flow_set_state6,
    flow_set_next_hop6,
    flow_remove6,
    flow_take6,
    flow_choose6,
    flow_rival6,
    flow_elder_rival6,
    flow_wins6,
    flow_write6,
    flow_publish6,
    flow_open6,
    flow_resolve6,
    nat_way6,
    nat_known6,
    nat_take6,
    nat_cede6,
    nat_map6,
    nat_remember6,
    nat_put6,
    nat_follow6
);
