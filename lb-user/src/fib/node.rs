//! A node as its writer knows it: the prefixes that end in it, the nodes below it, where it is.
//!
//! Invariant: what a lookup can reach is whole. A node whose runs change is written anew and then named in
//! its old one's place; a node below that has no room is answered by [`KERNEL`] in its slot, as a run of
//! its own, so that it can be put back by one store.

use lb_common::fib::{KERNEL, NODE, NONE, STRIDE};
use lb_common::wire::Addr;

use super::pool::{NoRoom, Pool, SLOTS, Store, name};
use super::room::Piece;

/// A prefix that ends in a node: the slot that it begins with, and its bits of the node's eight.
#[derive(Clone, Copy, Debug)]
struct Own {
    len: u8,
    slot: u8,
    value: u32,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    /// Not written yet.
    New,
    At(Piece),
    /// There was no room: none of what is below is written.
    Spilled,
}

#[derive(Debug)]
pub struct Node {
    /// By length, then slot.
    own: Vec<Own>,
    /// By slot.
    below: Vec<(u8, Node)>,
    /// The longest prefix that ends in the node above and holds all of this one.
    default: u32,
    place: Place,
}

/// What a change in a node means for the one above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Nothing,
    /// Its entry is another one now.
    Entry(u32),
    /// It is empty.
    Gone,
}

/// The rest of a prefix behind the bits that led to a node; the first bit is the highest.
#[derive(Clone, Copy, Debug)]
pub struct Rest {
    pub bits: u128,
    pub len: u32,
}

impl Rest {
    fn slot(self) -> u8 {
        (self.bits >> (128 - STRIDE)) as u8
    }

    fn below(self) -> Self {
        Rest { bits: self.bits << STRIDE, len: self.len - STRIDE }
    }
}

impl Node {
    pub fn new(default: u32) -> Self {
        Node { own: Vec::new(), below: Vec::new(), default, place: Place::New }
    }

    pub fn is_empty(&self) -> bool {
        self.own.is_empty() && self.below.is_empty()
    }

    /// Sets, or removes, a prefix that ends here.
    fn set_own(&mut self, rest: Rest, value: Option<u32>) {
        let (len, slot) = (rest.len as u8, rest.slot());
        match (self.own.binary_search_by_key(&(len, slot), |own| (own.len, own.slot)), value) {
            (Ok(at), Some(value)) => self.own[at].value = value,
            (Err(at), Some(value)) => self.own.insert(at, Own { len, slot, value }),
            (Ok(at), None) => {
                self.own.remove(at);
            }
            (Err(_), None) => {}
        }
    }

    /// Every slot's value by the prefixes that end here.
    fn values(&self) -> [u32; SLOTS] {
        let mut values = [NONE; SLOTS];
        for own in &self.own {
            values[own.slot.into()..][..SLOTS >> own.len].fill(own.value);
        }
        values
    }

    fn value_at(&self, slot: u8) -> u32 {
        let holds = |own: &&Own| (u32::from(own.slot ^ slot) << own.len) < SLOTS as u32;
        self.own.iter().rev().find(holds).map_or(NONE, |own| own.value)
    }

    /// The node below at a slot, made where it isn't.
    fn at_slot(&mut self, slot: u8) -> usize {
        match self.below.binary_search_by_key(&slot, |(slot, _)| *slot) {
            Ok(at) => at,
            Err(at) => {
                let default = self.value_at(slot);
                self.below.insert(at, (slot, Node::new(default)));
                at
            }
        }
    }

    /// Sets, or removes, a prefix that is there, and writes nothing.
    pub fn note(&mut self, rest: Rest, value: Option<u32>) {
        if rest.len <= STRIDE {
            return self.set_own(rest, value);
        }
        let at = self.at_slot(rest.slot());
        self.below[at].1.note(rest.below(), value);
        if self.below[at].1.is_empty() {
            self.below.remove(at);
        }
    }

    /// The same where lookups come.
    pub fn change<A: Addr, S: Store<A>>(&mut self, pool: &mut Pool<A, S>, rest: Rest, value: Option<u32>) -> Step {
        if rest.len <= STRIDE || matches!(self.place, Place::Spilled) {
            self.note(rest, value);
            return self.rewrite(pool);
        }
        let (at, slot) = (self.at_slot(rest.slot()), rest.slot());
        let named = !matches!(self.below[at].1.place, Place::New);
        match self.below[at].1.change(pool, rest.below(), value) {
            Step::Nothing => Step::Nothing,
            Step::Entry(entry) if named => self.name_below(pool, slot, entry),
            Step::Entry(_) => self.rewrite(pool),
            Step::Gone => {
                self.below.remove(at);
                self.rewrite(pool)
            }
        }
    }

    fn name_below<A: Addr, S: Store<A>>(&self, pool: &Pool<A, S>, slot: u8, entry: u32) -> Step {
        if let Place::At(piece) = self.place {
            pool.set_entry(piece, slot, entry);
        }
        Step::Nothing
    }

    /// Writes the node as it is now.
    fn rewrite<A: Addr, S: Store<A>>(&mut self, pool: &mut Pool<A, S>) -> Step {
        let old = self.place;
        if self.is_empty() {
            self.take_back(pool);
            return Step::Gone;
        }
        if matches!(old, Place::Spilled) {
            pool.met_spilled = true;
            return Step::Nothing;
        }
        let entry = self.write(pool);
        if let (Place::At(piece), true) = (old, entry & NODE != 0) {
            pool.unname(piece);
        }
        Step::Entry(entry)
    }

    /// Writes the node, and those below that aren't yet; its entry.
    pub fn write<A: Addr, S: Store<A>>(&mut self, pool: &mut Pool<A, S>) -> u32 {
        let mut slots = self.values();
        let mut alone = [0u64; SLOTS / 64];
        for (slot, node) in &mut self.below {
            let slot = usize::from(*slot);
            node.set_default(pool, slots[slot]);
            slots[slot] = match node.place {
                Place::New => node.write(pool),
                Place::At(piece) => name(piece),
                Place::Spilled => KERNEL,
            };
            alone[slot / 64] |= 1 << (slot % 64);
        }
        match pool.write(&slots, &alone, self.default) {
            Ok(piece) => {
                self.place = Place::At(piece);
                name(piece)
            }
            Err(NoRoom) => {
                self.take_back(pool);
                self.place = Place::Spilled;
                pool.spill();
                KERNEL
            }
        }
    }

    /// The node and all below as if they had never been written.
    pub fn take_back<A: Addr, S: Store<A>>(&mut self, pool: &mut Pool<A, S>) {
        match std::mem::replace(&mut self.place, Place::New) {
            Place::New => {}
            Place::At(piece) => pool.unname(piece),
            Place::Spilled => pool.spilled -= 1,
        }
        self.below.iter_mut().for_each(|(_, node)| node.take_back(pool));
    }

    pub fn set_default<A: Addr, S: Store<A>>(&mut self, pool: &Pool<A, S>, value: u32) {
        if self.default != value {
            self.default = value;
            if let Place::At(piece) = self.place {
                pool.set_default(piece, value);
            }
        }
    }

    /// Writes what had no room, as far as there is room now.
    pub fn retry<A: Addr, S: Store<A>>(&mut self, pool: &mut Pool<A, S>) -> Step {
        if let Place::Spilled = self.place {
            self.take_back(pool);
            return Step::Entry(self.write(pool));
        }
        for at in 0..self.below.len() {
            let (slot, node) = &mut self.below[at];
            if let (slot, Step::Entry(entry)) = (*slot, node.retry(pool)) {
                self.name_below(pool, slot, entry);
            }
        }
        Step::Nothing
    }

    /// Nodes, this one and those below, and prefixes that end in them.
    pub fn count(&self) -> (usize, usize) {
        let below = self.below.iter().map(|(_, node)| node.count());
        below.fold((1, self.own.len()), |sum, below| (sum.0 + below.0, sum.1 + below.1))
    }

    pub fn get(&self, rest: Rest) -> Option<u32> {
        let slot = rest.slot();
        if rest.len <= STRIDE {
            let at = self.own.binary_search_by_key(&(rest.len as u8, slot), |own| (own.len, own.slot)).ok()?;
            return Some(self.own[at].value);
        }
        let at = self.below.binary_search_by_key(&slot, |(slot, _)| *slot).ok()?;
        self.below[at].1.get(rest.below())
    }
}
