//! The flow table over the kernel's arrays, its steps as global functions (1: done): the verifier walks each
//! once, by itself, instead of once for every way that leads there (docs/decisions/0005-flow-table.md).
//!
//! Not here: what a step of the path does with an entry ([`crate::flows`]).

use aya_ebpf::maps::Array;
use lb_common::flow_table::{Entry, Hit, MULTIPLIERS, NONE};
use lb_common::table::FlowKey;
use lb_common::wire::Addr;

/// Buckets less one. Like the multipliers a constant once the program is loaded; who loads it gives both
/// their values.
#[unsafe(no_mangle)]
pub static FLOW_MASK: u32 = 0;
#[unsafe(no_mangle)]
pub static FLOW_MULTIPLIERS: [u64; MULTIPLIERS] = [0; MULTIPLIERS];

/// The same of the tables that these grow from, by family; [`NONE`]: there is none, which costs no packet anything.
#[unsafe(no_mangle)]
pub static FLOW_ELDERS: [u32; 2] = [NONE; 2];

/// A family's arrays, and the functions over them.
pub trait InArray: Addr {
    const FLOWS: &'static Array<Entry<Self>>;
    const ELDER: &'static Array<Entry<Self>>;
    /// Not 0: new entries go into the new table.
    const MOVED_IN: &'static Array<u32>;

    fn slot(key: &FlowKey<Self>) -> u32;
    fn elder_slot(key: &FlowKey<Self>) -> u32;
    fn find(key: &FlowKey<Self>, hit: &mut Hit<Self>) -> u32;
    fn find_elder(key: &FlowKey<Self>, hit: &mut Hit<Self>) -> u32;
    fn touch(hit: &Hit<Self>, now: u32) -> u32;
    fn set_state(hit: &mut Hit<Self>, state: u32, now: u32) -> u32;
    fn set_next_hop(hit: &mut Hit<Self>, next_hop: u32, epoch: u32) -> u32;
    fn remove(hit: &Hit<Self>) -> u32;
    fn take(hit: &mut Hit<Self>, keep: u32) -> u32;
    fn choose(bucket: u32, hints: u32, now: u32, barred: u64) -> u32;
    fn rival(key: &FlowKey<Self>, own: u32) -> u32;
    fn elder_rival(key: &FlowKey<Self>, own: u32) -> u32;
    fn wins(key: &FlowKey<Self>, other: u32, slot: u32) -> u32;
    fn write(key: &FlowKey<Self>, hit: &mut Hit<Self>) -> u32;
    fn publish(key: &FlowKey<Self>, hit: &mut Hit<Self>) -> u32;
}

/// Makes a type the table over the arrays of all families.
macro_rules! flow_table {
    ($table:ident) => {
        impl<A: $crate::steps::InArray> lb_common::flow_table::FlowTable<A> for $table {
            #[inline(always)]
            fn line(&self, place: u32) -> Option<&lb_common::flow_table::Entry<A>> {
                use lb_common::flow_table::{ELDER, NONE};
                let elder = place & ELDER != 0 && lb_common::flow_table::FlowTable::<A>::elder(self) != NONE;
                if elder { A::ELDER.get(place & !ELDER) } else { A::FLOWS.get(place) }
            }

            #[inline(always)]
            fn mask(&self) -> u32 {
                // SAFETY: a static of our own; the agent, not this program, gives it its value.
                unsafe { core::ptr::read_volatile(&raw const $crate::steps::FLOW_MASK) }
            }

            #[inline(always)]
            fn elder(&self) -> u32 {
                let both = (&raw const $crate::steps::FLOW_ELDERS).cast::<u32>();
                // SAFETY: as in `mask`; of two.
                unsafe { core::ptr::read_volatile(both.add(A::IS_V6 as usize)) }
            }

            #[inline(always)]
            fn fills_elder(&self) -> bool {
                A::MOVED_IN.get(0).is_some_and(|moved_in| *moved_in == 0)
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
            fn slot_in_elder(&self, key: &lb_common::table::FlowKey<A>) -> u32 {
                A::elder_slot(key)
            }

            #[inline(always)]
            fn look_up(&self, key: &lb_common::table::FlowKey<A>, hit: &mut lb_common::flow_table::Hit<A>) -> bool {
                A::find(key, hit) != 0
            }

            #[inline(always)]
            fn look_up_elder(
                &self,
                key: &lb_common::table::FlowKey<A>,
                hit: &mut lb_common::flow_table::Hit<A>,
            ) -> bool {
                A::find_elder(key, hit) != 0
            }

            #[inline(always)]
            fn touch(&self, hit: &lb_common::flow_table::Hit<A>, now: u32) {
                A::touch(hit, now);
            }

            #[inline(always)]
            fn set_state(&self, hit: &mut lb_common::flow_table::Hit<A>, state: u8, now: u32) -> bool {
                A::set_state(hit, state.into(), now) != 0
            }

            #[inline(always)]
            fn set_next_hop(&self, hit: &mut lb_common::flow_table::Hit<A>, next_hop: u32, epoch: u16) {
                A::set_next_hop(hit, next_hop, epoch.into());
            }

            #[inline(always)]
            fn remove(&self, hit: &lb_common::flow_table::Hit<A>) -> bool {
                A::remove(hit) != 0
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
            fn rival(&self, key: &lb_common::table::FlowKey<A>, own: u32) -> u32 {
                A::rival(key, own)
            }

            #[inline(always)]
            fn rival_in_elder(&self, key: &lb_common::table::FlowKey<A>, own: u32) -> u32 {
                A::elder_rival(key, own)
            }

            #[inline(always)]
            fn wins(&self, key: &lb_common::table::FlowKey<A>, other: u32, slot: u32) -> bool {
                A::wins(key, other, slot) != 0
            }

            #[inline(always)]
            fn write(&self, key: &lb_common::table::FlowKey<A>, hit: &mut lb_common::flow_table::Hit<A>) -> bool {
                A::write(key, hit) != 0
            }

            #[inline(always)]
            fn publish(&self, key: &lb_common::table::FlowKey<A>, hit: &mut lb_common::flow_table::Hit<A>) -> bool {
                A::publish(key, hit) != 0
            }
        }
    };
}
pub(crate) use flow_table;

/// A method, and the global function behind it. What the method takes by reference the function takes by pointer:
/// shared ones first, then exclusive ones, then numbers.
macro_rules! flow_step {
    (
        $method:ident, $name:ident, ($($shared:ident: $of:ty),*), ($($own:ident: $what:ty),*),
        ($($number:ident: $kind:ty),*), $none:expr, $step:expr
    ) => {
        #[inline(always)]
        fn $method($($shared: &$of,)* $($own: &mut $what,)* $($number: $kind),*) -> u32 {
            #[unsafe(no_mangle)]
            #[inline(never)]
            extern "C" fn $name($($shared: *const $of,)* $($own: *mut $what,)* $($number: $kind),*) -> u32 {
                // SAFETY: they come from references (below), or are null to the verifier alone.
                let references = unsafe { ($($shared.as_ref(),)* $($own.as_mut(),)*) };
                let ($(Some($shared),)* $(Some($own),)*) = references else {
                    return $none;
                };
                $step
            }
            $name($($shared,)* $($own,)* $($number),*)
        }
    };
}
pub(crate) use flow_step;

/// The functions of one family over its arrays.
macro_rules! flow_steps {
    (
        $table:ident, $addr:ty, [$flows:path, $elder:path, $moved_in:path], $slot:ident, $elder_slot:ident,
        $find:ident, $find_elder:ident, $touch:ident, $set_state:ident, $set_next_hop:ident, $remove:ident,
        $take:ident, $choose:ident, $rival:ident, $elder_rival:ident, $wins:ident, $write:ident, $publish:ident
    ) => {
        const _: () = {
            use aya_ebpf::maps::Array;
            use lb_common::flow_table::{Entry, Hit, NONE, change, find_in, insert, seek, seek_rival};
            use lb_common::table::FlowKey;
            use $crate::steps::flow_step;

            type Key = FlowKey<$addr>;
            type Found = Hit<$addr>;

            #[unsafe(no_mangle)]
            #[inline(never)]
            extern "C" fn $choose(bucket: u32, hints: u32, now: u32, barred: u64) -> u32 {
                insert::choose::<$addr, $table>(&$table, bucket, hints, now, barred)
            }

            impl $crate::steps::InArray for $addr {
                const FLOWS: &'static Array<Entry<Self>> = &$flows;
                const ELDER: &'static Array<Entry<Self>> = &$elder;
                const MOVED_IN: &'static Array<u32> = &$moved_in;

                flow_step!(slot, $slot, (key: Key), (), (), NONE, seek(&$table, key, false));
                flow_step!(elder_slot, $elder_slot, (key: Key), (), (), NONE, seek(&$table, key, true));
                flow_step!(find, $find, (key: Key), (hit: Found), (), 0, find_in(&$table, key, hit, false) as u32);
                flow_step!(find_elder, $find_elder, (key: Key), (hit: Found), (), 0, find_in(&$table, key, hit, true) as u32);
                flow_step!(touch, $touch, (hit: Found), (), (now: u32), 0, {
                    change::touch(&$table, hit, now);
                    0
                });
                flow_step!(set_state, $set_state, (), (hit: Found), (state: u32, now: u32), 0, {
                    change::set_state(&$table, hit, state as u8, now) as u32
                });
                flow_step!(set_next_hop, $set_next_hop, (), (hit: Found), (next_hop: u32, epoch: u32), 0, {
                    change::set_next_hop(&$table, hit, next_hop, epoch as u16);
                    0
                });
                flow_step!(remove, $remove, (hit: Found), (), (), 0, change::remove(&$table, hit) as u32);
                flow_step!(take, $take, (), (hit: Found), (keep: u32), 0, insert::take(&$table, hit, keep) as u32);
                flow_step!(rival, $rival, (key: Key), (), (own: u32), NONE, seek_rival(&$table, key, false, own));
                flow_step!(elder_rival, $elder_rival, (key: Key), (), (own: u32), NONE, {
                    seek_rival(&$table, key, true, own)
                });
                flow_step!(wins, $wins, (key: Key), (), (other: u32, slot: u32), 0, {
                    insert::wins(&$table, key, other, slot) as u32
                });
                flow_step!(write, $write, (key: Key), (hit: Found), (), 0, insert::write(&$table, key, hit) as u32);
                flow_step!(publish, $publish, (key: Key), (hit: Found), (), 0, insert::publish(&$table, key, hit) as u32);

                #[inline(always)]
                fn choose(bucket: u32, hints: u32, now: u32, barred: u64) -> u32 {
                    $choose(bucket, hints, now, barred)
                }
            }
        };
    };
}
pub(crate) use flow_steps;
