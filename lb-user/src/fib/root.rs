//! The root as its writer knows it: prefixes of up to 16 bits, and the nodes right below.

use std::collections::BTreeMap;

use lb_common::fib::{KERNEL, NODE, NONE, ROOT_BITS};
use lb_common::wire::Addr;

use super::node::{Node, Rest, Step};
use super::pool::{Pool, Store};

pub const SLOTS: usize = 1 << ROOT_BITS;

pub struct Root {
    /// By length, then first slot.
    own: BTreeMap<(u32, usize), u32>,
    below: Vec<Option<Box<Node>>>,
}

fn slot(rest: Rest) -> usize {
    (rest.bits >> (128 - ROOT_BITS)) as usize
}

fn below(rest: Rest) -> Rest {
    Rest { bits: rest.bits << ROOT_BITS, len: rest.len - ROOT_BITS }
}

/// How many slots a prefix has.
fn count(len: u32) -> usize {
    SLOTS >> len
}

impl Root {
    pub fn new() -> Self {
        Root { own: BTreeMap::new(), below: (0..SLOTS).map(|_| None).collect() }
    }

    /// The values of a prefix's slots by the prefixes that end in the root.
    fn values(&self, first: usize, len: u32) -> Vec<u32> {
        let around = |l| self.own.get(&(l, first & !(count(l) - 1)));
        let outer = (0..=len).rev().find_map(around);
        let mut values = vec![outer.copied().unwrap_or(NONE); count(len)];
        for l in len + 1..=ROOT_BITS {
            for (&(_, at), &value) in self.own.range((l, first)..(l, first + count(len))) {
                values[at - first..][..count(l)].fill(value);
            }
        }
        values
    }

    pub fn get(&self, rest: Rest) -> Option<u32> {
        if rest.len <= ROOT_BITS {
            return self.own.get(&(rest.len, slot(rest))).copied();
        }
        self.below[slot(rest)].as_ref()?.get(below(rest))
    }

    /// Adds a prefix to a root that isn't written yet.
    pub fn add(&mut self, rest: Rest, value: u32) {
        if rest.len <= ROOT_BITS {
            self.own.insert((rest.len, slot(rest)), value);
            return;
        }
        let node = self.below[slot(rest)].get_or_insert_with(|| Box::new(Node::new(NONE)));
        node.note(below(rest), Some(value));
    }

    /// Sets, or removes, a prefix that is there.
    pub fn change<A: Addr, S: Store<A>>(&mut self, pool: &mut Pool<A, S>, rest: Rest, value: Option<u32>) {
        if rest.len <= ROOT_BITS {
            return self.change_own(pool, rest, value);
        }
        let at = slot(rest);
        // Where there is no node, the root has the slot's value.
        let node = self.below[at].get_or_insert_with(|| Box::new(Node::new(pool.root(at))));
        match node.change(pool, below(rest), value) {
            Step::Nothing => {}
            Step::Entry(entry) => pool.set_root(at, entry),
            Step::Gone => {
                let default = node.default();
                self.below[at] = None;
                pool.set_root(at, default);
            }
        }
    }

    fn change_own<A: Addr, S: Store<A>>(&mut self, pool: &mut Pool<A, S>, rest: Rest, value: Option<u32>) {
        let (first, len) = (slot(rest), rest.len);
        match value {
            Some(value) => self.own.insert((len, first), value),
            None => self.own.remove(&(len, first)),
        };
        for (at, value) in (first..).zip(self.values(first, len)) {
            match &mut self.below[at] {
                Some(node) => node.set_default(pool, value),
                None => pool.set_root(at, value),
            }
        }
    }

    /// Writes all nodes, and then names them: until here lookups find what the root held before.
    pub fn write<A: Addr, S: Store<A>>(&mut self, pool: &mut Pool<A, S>) {
        let mut entries = self.values(0, 0);
        for (entry, node) in entries.iter_mut().zip(&mut self.below) {
            if let Some(node) = node {
                node.set_default(pool, *entry);
                *entry = node.write(pool);
            }
        }
        entries.iter().enumerate().for_each(|(at, &entry)| pool.set_root(at, entry));
    }

    pub fn take_back<A: Addr, S: Store<A>>(&mut self, pool: &mut Pool<A, S>) {
        self.below.iter_mut().flatten().for_each(|node| node.take_back(pool));
    }

    /// Writes what had no room, as far as there is room now.
    pub fn retry<A: Addr, S: Store<A>>(&mut self, pool: &mut Pool<A, S>) {
        for at in 0..SLOTS {
            let Some(node) = &mut self.below[at] else { continue };
            if let Step::Entry(entry) = node.retry(pool) {
                pool.set_root(at, entry);
            }
            debug_assert!(pool.root(at) == KERNEL || pool.root(at) & NODE != 0);
        }
    }

    pub fn nodes(&self) -> usize {
        self.below.iter().flatten().map(|node| node.count()).sum()
    }
}
