//! The maps of the table of routes, and how its one function reaches them.

use aya_ebpf::btf_maps;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::Array;
use lb_common::fib::{Line, Memory, PART, ROOT_WORDS};
use lb_common::flow_table::cell::Cell64;
use lb_common::wire::{Addr, Ip4, Ip6};

const BPF_F_MMAPABLE: usize = 1 << 10;
/// Parts that a table can have at the most: 512 MB. The agent's configuration says how many it may.
const PARTS: usize = 1024;

type Part = btf_maps::Array<Line, { PART as usize }, BPF_F_MMAPABLE>;
type Parts = btf_maps::ArrayOfMaps<Part, PARTS>;

/// The table of routes, its root: the agent writes, connections read once; never full.
#[map]
pub static FIB_ROOT4: Array<Cell64> = Array::with_max_entries(ROOT_WORDS, BPF_F_MMAPABLE as u32);
#[map]
pub static FIB_ROOT6: Array<Cell64> = Array::with_max_entries(ROOT_WORDS, BPF_F_MMAPABLE as u32);
/// Its nodes, in parts that the agent makes as it needs them; full: the addresses concerned ask the kernel.
#[btf_map]
pub static FIB4: Parts = Parts::new();
#[btf_map]
pub static FIB6: Parts = Parts::new();

/// The live table.
pub struct Fib;

/// The maps of one address family.
pub trait Routed: Addr {
    const ROOT: &'static Array<Cell64>;
    const PARTS: &'static Parts;
}

impl Routed for Ip4 {
    const ROOT: &'static Array<Cell64> = &FIB_ROOT4;
    const PARTS: &'static Parts = &FIB4;
}

impl Routed for Ip6 {
    const ROOT: &'static Array<Cell64> = &FIB_ROOT6;
    const PARTS: &'static Parts = &FIB6;
}

impl<A: Routed> Memory<A> for Fib {
    #[inline(always)]
    fn root(&self, index: u32) -> Option<&Cell64> {
        A::ROOT.get(index)
    }

    #[inline(always)]
    fn line(&self, index: u32) -> Option<&Line> {
        A::PARTS.get_value(index / PART, &(index % PART))
    }
}
