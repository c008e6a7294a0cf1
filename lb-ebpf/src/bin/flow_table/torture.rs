//! One random operation on a random connection: for tests that run it on all CPUs at once, beside user space.
//!
//! Invariant: whatever is found must be whole and of its key; what isn't is counted as wrong. Every value is of
//! one of many versions of its connection, so that a mixture of two shows.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::PerCpuArray;
use aya_ebpf::programs::XdpContext;
use lb_common::flow_table::{Hit, NONE, find, insert, remove, set_next_hop, set_state, touch};
use lb_common::tcp;
use lb_common::wire::{Ip4, Ip6};
use zerocopy::FromZeros;

use crate::{Family, Ours, SETUP, flow, key, tells, verdict};

/// Lookups that found something, insertions, removals, and wrong values.
#[map]
static COUNTS: PerCpuArray<[u64; 4]> = PerCpuArray::with_max_entries(1, 0);

#[inline(always)]
fn step<A: Family>() -> Option<()> {
    let setup = SETUP.get(0)?;
    let keys = setup.keys.max(1);
    // SAFETY: the helper takes nothing and changes nothing.
    let (random, more) = unsafe { (bpf_get_prandom_u32(), bpf_get_prandom_u32()) };
    let number = random % keys;
    let key = key::<A>(number);
    let counts = COUNTS.get_ptr_mut(0)?;
    // SAFETY: the map's value, of this CPU alone.
    let [found, inserted, removed, wrong] = unsafe { &mut *counts };
    match find(&Ours, &key, more & 1 == 0) {
        Some(mut hit) => {
            *found += 1;
            // A version is a multiple of the number of keys above the number.
            let whole = tells(&hit.flow, hit.flow.service) && hit.flow.service % keys == number;
            *wrong += !whole as u64;
            match more >> 1 & 7 {
                0 => *removed += remove(&Ours, &hit) as u64,
                1 => {
                    let state = if more & 0x100 == 0 { tcp::ESTABLISHED } else { tcp::NEW };
                    let _ = set_state(&Ours, &mut hit, state, setup.now);
                }
                2 => set_next_hop(&Ours, &mut hit, number, 1),
                3 => touch(&Ours, &hit, setup.now),
                _ => {}
            }
        }
        None if more & 0x200 == 0 => {
            let mut hit = Hit::new_zeroed();
            hit.flow = flow((more >> 10) * keys + number, setup);
            *inserted += insert(&Ours, &key, &mut hit, NONE).is_ok() as u64;
        }
        None => {}
    }
    Some(())
}

#[xdp]
pub fn torture4(_: XdpContext) -> u32 {
    verdict(step::<Ip4>())
}

#[xdp]
pub fn torture6(_: XdpContext) -> u32 {
    verdict(step::<Ip6>())
}
