//! The flow table over the kernel's arrays, its steps as global functions (1: done): the verifier walks each
//! once, by itself, instead of once for every way that leads there (docs/decisions/0005-flow-table.md).
//!
//! Not here: what a step of the path does with an entry ([`crate::flows`]).

use aya_ebpf::maps::Array;
use lb_common::flow_table::{Entry, Hit, MULTIPLIERS};
use lb_common::table::FlowKey;
use lb_common::wire::Addr;

/// Buckets less one. Like the multipliers a constant once the program is loaded; who loads it gives both
/// their values.
#[unsafe(no_mangle)]
pub static FLOW_MASK: u32 = 0;
#[unsafe(no_mangle)]
pub static FLOW_MULTIPLIERS: [u64; MULTIPLIERS] = [0; MULTIPLIERS];

/// A family's array, and the functions over it.
pub trait InArray: Addr {
    const FLOWS: &'static Array<Entry<Self>>;

    fn slot(key: &FlowKey<Self>) -> u32;
    fn find(key: &FlowKey<Self>, hit: &mut Hit<Self>) -> u32;
    fn take(hit: &mut Hit<Self>, keep: u32) -> u32;
    fn choose(bucket: u32, hints: u32, now: u32, barred: u64) -> u32;
    fn settle(key: &FlowKey<Self>, hit: &mut Hit<Self>) -> u32;
}

/// Makes a type the table over the arrays of all families.
macro_rules! flow_table {
    ($table:ident) => {
        impl<A: $crate::steps::InArray> lb_common::flow_table::FlowTable<A> for $table {
            #[inline(always)]
            fn line(&self, place: u32) -> Option<&lb_common::flow_table::Entry<A>> {
                A::FLOWS.get(place)
            }

            #[inline(always)]
            fn mask(&self) -> u32 {
                // SAFETY: a static of our own; the agent, not this program, gives it its value.
                unsafe { core::ptr::read_volatile(&raw const $crate::steps::FLOW_MASK) }
            }

            #[inline(always)]
            fn multiplier(&self, index: usize) -> u64 {
                let all = (&raw const $crate::steps::FLOW_MULTIPLIERS).cast::<u64>();
                // SAFETY: as in `mask`; the index is one of the array's, by the caller's constants.
                unsafe { core::ptr::read_volatile(all.add(index)) }
            }

            #[inline(always)]
            fn slot_of(&self, key: &lb_common::table::FlowKey<A>) -> u32 {
                A::slot(key)
            }

            #[inline(always)]
            fn look_up(&self, key: &lb_common::table::FlowKey<A>, hit: &mut lb_common::flow_table::Hit<A>) -> bool {
                A::find(key, hit) != 0
            }

            #[inline(always)]
            fn take(&self, hit: &mut lb_common::flow_table::Hit<A>, keep: u32) -> bool {
                A::take(hit, keep) != 0
            }

            #[inline(always)]
            fn choose(&self, bucket: u32, hints: u32, now: u32, barred: u64) -> u32 {
                A::choose(bucket, hints, now, barred)
            }

            #[inline(always)]
            fn settle(&self, key: &lb_common::table::FlowKey<A>, hit: &mut lb_common::flow_table::Hit<A>) -> bool {
                A::settle(key, hit) != 0
            }
        }
    };
}
pub(crate) use flow_table;

/// The functions of one family over its array.
macro_rules! flow_steps {
    (
        $table:ident, $addr:ty, $flows:path, $slot:ident, $find:ident, $take:ident, $choose:ident, $settle:ident
    ) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $slot(key: *const lb_common::table::FlowKey<$addr>) -> u32 {
            // SAFETY: it comes from a reference (below), or is null to the verifier alone.
            match unsafe { key.as_ref() } {
                Some(key) => lb_common::flow_table::seek(&$table, key),
                None => lb_common::flow_table::NONE,
            }
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $find(
            key: *const lb_common::table::FlowKey<$addr>,
            hit: *mut lb_common::flow_table::Hit<$addr>,
        ) -> u32 {
            // SAFETY: as above.
            let (Some(key), Some(hit)) = (unsafe { key.as_ref() }, unsafe { hit.as_mut() }) else {
                return 0;
            };
            lb_common::flow_table::find_into(&$table, key, hit) as u32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $take(hit: *mut lb_common::flow_table::Hit<$addr>, keep: u32) -> u32 {
            // SAFETY: as above.
            match unsafe { hit.as_mut() } {
                Some(hit) => lb_common::flow_table::insert::take(&$table, hit, keep) as u32,
                None => 0,
            }
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $choose(bucket: u32, hints: u32, now: u32, barred: u64) -> u32 {
            lb_common::flow_table::insert::choose::<$addr, $table>(&$table, bucket, hints, now, barred)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $settle(
            key: *const lb_common::table::FlowKey<$addr>,
            hit: *mut lb_common::flow_table::Hit<$addr>,
        ) -> u32 {
            // SAFETY: as above.
            let (Some(key), Some(hit)) = (unsafe { key.as_ref() }, unsafe { hit.as_mut() }) else {
                return 0;
            };
            lb_common::flow_table::insert::settle(&$table, key, hit) as u32
        }

        impl $crate::steps::InArray for $addr {
            const FLOWS: &'static aya_ebpf::maps::Array<lb_common::flow_table::Entry<Self>> = &$flows;

            #[inline(always)]
            fn slot(key: &lb_common::table::FlowKey<Self>) -> u32 {
                $slot(key)
            }

            #[inline(always)]
            fn find(key: &lb_common::table::FlowKey<Self>, hit: &mut lb_common::flow_table::Hit<Self>) -> u32 {
                $find(key, hit)
            }

            #[inline(always)]
            fn take(hit: &mut lb_common::flow_table::Hit<Self>, keep: u32) -> u32 {
                $take(hit, keep)
            }

            #[inline(always)]
            fn choose(bucket: u32, hints: u32, now: u32, barred: u64) -> u32 {
                $choose(bucket, hints, now, barred)
            }

            #[inline(always)]
            fn settle(key: &lb_common::table::FlowKey<Self>, hit: &mut lb_common::flow_table::Hit<Self>) -> u32 {
                $settle(key, hit)
            }
        }
    };
}
pub(crate) use flow_steps;
