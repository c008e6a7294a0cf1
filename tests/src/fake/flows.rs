//! The flow table in this process's memory: the engine's own, over vectors.

use lb_common::flow_table::{self, Entry, FlowTable, Hit, MULTIPLIERS, WAYS, find_into, place_of};
use lb_common::table::{Flow, FlowKey};
use lb_common::wire::Addr;
use zerocopy::FromZeros;

/// Any odd numbers: what is tested here is not the hash, unless a test brings its own.
pub const FIXED: [u64; MULTIPLIERS] = {
    let mut numbers = [0; MULTIPLIERS];
    let mut i = 0;
    while i < MULTIPLIERS {
        numbers[i] = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(2 * i as u64 + 3) ^ 0x2545_f491_4f6c_dd1e;
        i += 1;
    }
    numbers
};

pub struct Memory<A: Addr> {
    entries: Vec<Entry<A>>,
    pub multipliers: [u64; MULTIPLIERS],
}

impl<A: Addr> FlowTable<A> for Memory<A> {
    fn line(&self, place: u32) -> Option<&Entry<A>> {
        self.entries.get(place as usize)
    }

    fn mask(&self) -> u32 {
        self.slots() / WAYS - 1
    }

    fn multiplier(&self, index: usize) -> u64 {
        self.multipliers[index]
    }
}

impl<A: Addr> Memory<A> {
    /// Of so many slots, a power of two from [`WAYS`] on.
    pub fn new(slots: u32) -> Self {
        assert!(slots.is_power_of_two() && slots >= WAYS);
        Memory { entries: (0..slots).map(|_| Entry::default()).collect(), multipliers: FIXED }
    }

    pub fn slots(&self) -> u32 {
        self.entries.len() as u32
    }

    /// All entries, in the order of their keys.
    pub fn all(&self) -> Vec<(FlowKey<A>, Flow<A>)> {
        let mut all: Vec<_> = self.hits().into_iter().map(|(key, hit)| (key, hit.flow)).collect();
        all.sort();
        all
    }

    pub fn hits(&self) -> Vec<(FlowKey<A>, Hit<A>)> {
        let mut all = Vec::new();
        flow_table::walk(self, 0..self.slots() / WAYS, |key, hit| all.push((key, hit)));
        all
    }

    pub fn get(&self, key: &FlowKey<A>) -> Option<Flow<A>> {
        let mut hit = Hit::new_zeroed();
        find_into(self, key, &mut hit).then_some(hit.flow)
    }

    /// Makes everything older by `ticks`.
    pub fn age(&self, ticks: u32) {
        for (_, hit) in self.hits() {
            flow_table::touch(self, &hit, hit.flow.last.wrapping_sub(ticks));
        }
    }

    pub fn remove_where(&self, gone: impl Fn(&FlowKey<A>, &Flow<A>) -> bool) {
        for (key, hit) in self.hits() {
            if gone(&key, &hit.flow) {
                flow_table::remove(self, &hit);
            }
        }
    }
}

impl<A: Addr> Clone for Memory<A> {
    /// The same entries in the same slots.
    fn clone(&self) -> Self {
        let copy = Memory { multipliers: self.multipliers, ..Memory::new(self.slots()) };
        for ((to, from), place) in copy.entries.iter().zip(&self.entries).zip(0..) {
            to.copy(from, place_of(place) % WAYS == WAYS - 1);
        }
        copy
    }
}

impl<A: Addr> PartialEq for Memory<A> {
    fn eq(&self, other: &Self) -> bool {
        self.all() == other.all()
    }
}
