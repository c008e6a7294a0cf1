//! 65,536 slots in a row as their writer knows them: the root, and IPv6's second 16 bits where a registry's
//! block holds many prefixes.
//!
//! Invariant: every slot is an entry of its own, changed in place; values of prefixes that end above are in
//! the slots themselves. Whether a block is flat is decided when a whole table is loaded.

use std::collections::BTreeMap;

use lb_common::fib::{FLAT, KERNEL, NONE, ROOT_BITS};
use lb_common::wire::Addr;

use super::node::{Node, Rest, Step};
use super::pool::{FLAT_LINES, Pool, Store};
use super::room::Piece;

pub const SLOTS: usize = 1 << ROOT_BITS;
/// So many prefixes in a block are worth 256 KB: two steps less for each lookup.
const WORTH: u32 = 1024;

#[derive(Clone, Copy, Debug)]
enum Place {
    Root,
    /// Not written yet.
    New,
    At(Piece),
    /// There was no room: none of what is below is written.
    Spilled,
}

enum Below {
    Node(Node),
    Flat(Flat),
}

pub struct Flat {
    /// By length, then first slot.
    own: BTreeMap<(u32, usize), u32>,
    below: Vec<Option<Box<Below>>>,
    /// The longest prefix that ends above and holds all of this.
    default: u32,
    place: Place,
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

impl Flat {
    fn new(place: Place) -> Self {
        Flat { own: BTreeMap::new(), below: (0..SLOTS).map(|_| None).collect(), default: NONE, place }
    }

    /// A root for these prefixes, without any of them. IPv6 blocks of many are flat.
    pub fn root<A: Addr>(prefixes: impl Iterator<Item = Rest>) -> Self {
        let mut root = Flat::new(Place::Root);
        if A::IS_V6 {
            let mut counts = vec![0; SLOTS];
            prefixes.filter(|rest| rest.len > ROOT_BITS).for_each(|rest| counts[slot(rest)] += 1);
            for (below, _) in root.below.iter_mut().zip(counts).filter(|(_, count)| *count >= WORTH) {
                *below = Some(Box::new(Below::Flat(Flat::new(Place::New))));
            }
        }
        root
    }

    /// The value of the longest prefix of at most so many bits that ends here and has the slot.
    fn value_at(&self, slot: usize, len: u32) -> u32 {
        let around = |l| self.own.get(&(l, slot & !(count(l) - 1)));
        (0..=len).rev().find_map(around).copied().unwrap_or(self.default)
    }

    /// The values of a prefix's slots.
    fn values(&self, first: usize, len: u32) -> Vec<u32> {
        let mut values = vec![self.value_at(first, len); count(len)];
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
        match self.below[slot(rest)].as_deref()? {
            Below::Node(node) => node.get(below(rest)),
            Below::Flat(flat) => flat.get(below(rest)),
        }
    }

    fn set_own(&mut self, rest: Rest, value: Option<u32>) {
        match value {
            Some(value) => self.own.insert((rest.len, slot(rest)), value),
            None => self.own.remove(&(rest.len, slot(rest))),
        };
    }

    /// Sets, or removes, a prefix that is there, and writes nothing.
    pub fn note(&mut self, rest: Rest, value: Option<u32>) {
        if rest.len <= ROOT_BITS {
            return self.set_own(rest, value);
        }
        // What a node begins with is said when it is written.
        match &mut **self.below[slot(rest)].get_or_insert_with(|| Box::new(Below::Node(Node::new(NONE)))) {
            Below::Flat(flat) => flat.note(below(rest), value),
            Below::Node(node) => {
                node.note(below(rest), value);
                if node.is_empty() {
                    self.below[slot(rest)] = None;
                }
            }
        }
    }

    /// The same where lookups come.
    pub fn change<A: Addr, S: Store<A>>(&mut self, pool: &mut Pool<A, S>, rest: Rest, value: Option<u32>) {
        if let Place::Spilled = self.place {
            pool.met_spilled = true;
            return self.note(rest, value);
        }
        let at = slot(rest);
        if rest.len <= ROOT_BITS {
            self.set_own(rest, value);
            return self.write_values(pool, at, rest.len);
        }
        if self.below[at].is_none() {
            self.below[at] = Some(Box::new(Below::Node(Node::new(self.value_at(at, ROOT_BITS)))));
        }
        let Some(inner) = self.below[at].as_deref_mut() else { return };
        let step = match inner {
            Below::Flat(flat) => return flat.change(pool, below(rest), value),
            Below::Node(node) => node.change(pool, below(rest), value),
        };
        match step {
            Step::Nothing => {}
            Step::Entry(entry) => self.set(pool, at, entry),
            Step::Gone => {
                self.below[at] = None;
                self.set(pool, at, self.value_at(at, ROOT_BITS));
            }
        }
    }

    fn set<A: Addr, S: Store<A>>(&self, pool: &Pool<A, S>, at: usize, entry: u32) {
        match self.place {
            Place::Root => pool.set_root(at, entry),
            Place::At(piece) => pool.set_flat(piece, at, entry),
            Place::New | Place::Spilled => {}
        }
    }

    /// Brings a prefix's slots to their values.
    fn write_values<A: Addr, S: Store<A>>(&mut self, pool: &Pool<A, S>, first: usize, len: u32) {
        for (at, value) in (first..).zip(self.values(first, len)) {
            match self.below[at].as_deref_mut() {
                Some(Below::Node(node)) => node.set_default(pool, value),
                Some(Below::Flat(flat)) => flat.set_default(pool, value),
                None => self.set(pool, at, value),
            }
        }
    }

    fn set_default<A: Addr, S: Store<A>>(&mut self, pool: &Pool<A, S>, value: u32) {
        if self.default != value {
            self.default = value;
            self.write_values(pool, 0, 0);
        }
    }

    /// Writes all that is below and then this; its entry. For the root, this is what makes a table the one
    /// in force.
    pub fn write<A: Addr, S: Store<A>>(&mut self, pool: &mut Pool<A, S>) -> u32 {
        let mut entries = self.values(0, 0);
        for (entry, below) in entries.iter_mut().zip(&mut self.below) {
            match below.as_deref_mut() {
                None => {}
                Some(Below::Node(node)) => {
                    node.set_default(pool, *entry);
                    *entry = node.write(pool);
                }
                Some(Below::Flat(flat)) => {
                    flat.default = *entry;
                    *entry = flat.write(pool);
                }
            }
        }
        if let Place::Root = self.place {
            pool.attach();
            entries.iter().enumerate().for_each(|(at, &entry)| pool.set_root(at, entry));
            return NONE;
        }
        let Ok(first) = pool.take(FLAT_LINES) else {
            self.take_back(pool);
            self.place = Place::Spilled;
            pool.spill();
            return KERNEL;
        };
        let piece = Piece { first, lines: FLAT_LINES };
        pool.write_flat(piece, &entries);
        self.place = Place::At(piece);
        FLAT | first
    }

    /// This and all below as if they had never been written.
    pub fn take_back<A: Addr, S: Store<A>>(&mut self, pool: &mut Pool<A, S>) {
        match self.place {
            Place::Root | Place::New => {}
            Place::At(piece) => pool.unname(piece),
            Place::Spilled => pool.spilled -= 1,
        }
        if !matches!(self.place, Place::Root) {
            self.place = Place::New;
        }
        for below in self.below.iter_mut().flatten() {
            match &mut **below {
                Below::Node(node) => node.take_back(pool),
                Below::Flat(flat) => flat.take_back(pool),
            }
        }
    }

    /// Writes what had no room, as far as there is room now; its entry, if that is another one.
    pub fn retry<A: Addr, S: Store<A>>(&mut self, pool: &mut Pool<A, S>) -> Option<u32> {
        if let Place::Spilled = self.place {
            self.take_back(pool);
            return Some(self.write(pool));
        }
        for at in 0..SLOTS {
            let entry = match self.below[at].as_deref_mut() {
                None => None,
                Some(Below::Flat(flat)) => flat.retry(pool),
                Some(Below::Node(node)) => match node.retry(pool) {
                    Step::Entry(entry) => Some(entry),
                    _ => None,
                },
            };
            if let Some(entry) = entry {
                self.set(pool, at, entry);
            }
        }
        None
    }

    /// Nodes, and prefixes.
    pub fn count(&self) -> (usize, usize) {
        let below = self.below.iter().flatten().map(|below| match &**below {
            Below::Node(node) => node.count(),
            Below::Flat(flat) => flat.count(),
        });
        below.fold((0, self.own.len()), |sum, below| (sum.0 + below.0, sum.1 + below.1))
    }
}
