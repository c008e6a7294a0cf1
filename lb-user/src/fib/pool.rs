//! The memory of a table, as its nodes write it.
//!
//! Invariant: a node is written where no lookup comes, and stays as it is once it is named, but for single
//! words: an entry's, and its default's.

use std::marker::PhantomData;
use std::sync::atomic::{Ordering, fence};

use lb_common::fib::{ENTRIES, HEAD, LINE_ENTRIES, Memory, NODE, PART, ROOT_BITS, half, place};
use lb_common::flow_table::cell::{Cell64, word};
use lb_common::wire::Addr;

use super::room::{Piece, Room};

/// Slots of a node.
pub const SLOTS: usize = 256;
/// Halves of words of the largest node, and its words.
const HALVES: usize = ENTRIES as usize + SLOTS;
const WORDS: usize = HALVES.div_ceil(16) * 8;
/// Of a table of [`super::flat`].
pub const FLAT_LINES: u32 = (1 << ROOT_BITS) / LINE_ENTRIES;
/// So many retired lines are worth a wait.
pub const WORTH: u32 = PART / 4;

/// Where a table is written to.
pub trait Store<A: Addr>: Memory<A> {
    /// Makes a part's worth of lines; the first one's index. None: no more can be had.
    fn grow(&mut self) -> Option<u32>;
    /// Lets lookups see all parts that were made.
    fn attach(&mut self) {}
    /// Parts that [`Self::grow`] made, named by their first lines, and that no lookup reads aren't needed.
    fn shrink(&mut self, firsts: &[u32]);
    /// Returns when every lookup that has begun before has ended.
    fn wait(&self);
    /// Nothing names what was in this memory before the table's first load.
    fn settled(&mut self) {}
}

/// There is no room.
#[derive(Debug)]
pub struct NoRoom;

pub struct Pool<A, S> {
    pub store: S,
    pub room: Room,
    /// Nodes that nothing names once the change at hand is done.
    unnamed: Vec<Piece>,
    /// Nodes whose addresses ask the kernel for want of room.
    pub spilled: usize,
    /// The change at hand met one.
    pub met_spilled: bool,
    /// Nothing that is written is named before [`Self::attach`].
    pub whole: bool,
    family: PhantomData<A>,
}

impl<A: Addr, S: Store<A>> Pool<A, S> {
    pub fn new(store: S) -> Self {
        Pool {
            store,
            room: Room::default(),
            unnamed: Vec::new(),
            spilled: 0,
            met_spilled: false,
            whole: false,
            family: PhantomData,
        }
    }

    pub fn take(&mut self, lines: u32) -> Result<u32, NoRoom> {
        loop {
            if let Some(first) = self.room.take(lines) {
                return Ok(first);
            }
            if self.room.retired() >= WORTH {
                self.reclaim();
            } else if let Some(first) = self.store.grow() {
                self.room.add_part(first);
                if !self.whole {
                    self.store.attach();
                }
            } else if self.room.retired() > 0 {
                self.reclaim();
            } else {
                return Err(NoRoom);
            }
        }
    }

    /// Something had no room.
    pub fn spill(&mut self) {
        self.spilled += 1;
        self.met_spilled = true;
    }

    /// Whatever is written may be named from now on.
    pub fn attach(&mut self) {
        self.whole = false;
        self.store.attach();
    }

    /// Waits, and frees what was retired before.
    pub fn reclaim(&mut self) {
        self.store.wait();
        self.room.reclaim();
        let spare: Vec<u32> = std::iter::from_fn(|| self.room.take_spare_part()).collect();
        if !spare.is_empty() {
            self.store.shrink(&spare);
        }
    }

    /// Nothing will name this node when the change at hand is done.
    pub fn unname(&mut self, piece: Piece) {
        self.unnamed.push(piece);
    }

    /// The change at hand is done.
    pub fn done(&mut self) {
        self.room.retire(self.unnamed.drain(..));
    }

    /// Writes a node. `alone`: a bit for every slot whose entry is a run of its own.
    pub fn write(&mut self, slots: &[u32; SLOTS], alone: &[u64; 4], default: u32) -> Result<Piece, NoRoom> {
        let bits = runs(slots, alone);
        let mut words = [0u64; WORDS];
        let (mut runs, mut before) = (0, [0u8; 4]);
        for (fourth, &bits) in bits.iter().enumerate() {
            before[fourth] = runs as u8;
            let mut rest = bits;
            while rest != 0 {
                let entry = slots[fourth * 64 + rest.trailing_zeros() as usize];
                let at = ENTRIES as usize + runs;
                words[at / 2] |= u64::from(entry) << (at % 2 * 32);
                runs += 1;
                rest &= rest - 1;
            }
        }
        words[..4].copy_from_slice(&bits);
        words[HEAD as usize] = u64::from(default) << 32 | u64::from(u32::from_le_bytes(before));
        let lines = (ENTRIES + runs as u32).div_ceil(LINE_ENTRIES);
        let first = self.take(lines)?;
        for (index, values) in (first..first + lines).zip(words.chunks(8)) {
            let line = self.line(index);
            line.iter().zip(values).for_each(|(word, &value)| word.store(value));
        }
        Ok(Piece { first, lines })
    }

    /// What was written before is seen before what is named from now on.
    pub fn publish(&self) {
        fence(Ordering::Release);
    }

    fn line(&self, index: u32) -> &[Cell64; 8] {
        self.store.line(index).expect("a line of the store's own")
    }

    /// Changes an entry of a node in place: one that is a run of its own.
    pub fn set_entry(&self, node: Piece, slot: u8, entry: u32) {
        let line = self.line(node.first);
        let place = place(line, line[HEAD as usize].load(), slot.into());
        let cell = word(self.line(node.first + place / LINE_ENTRIES), place / 2);
        self.set_half(cell, place, entry);
    }

    pub fn set_default(&self, node: Piece, value: u32) {
        self.set_half(&self.line(node.first)[HEAD as usize], 1, value);
    }

    /// Changes a slot of a flat table in place.
    pub fn set_flat(&self, flat: Piece, slot: usize, entry: u32) {
        let slot = slot as u32;
        let cell = word(self.line(flat.first + slot / LINE_ENTRIES), slot / 2);
        self.set_half(cell, slot, entry);
    }

    /// Writes a flat table where no lookup comes.
    pub fn write_flat(&self, flat: Piece, entries: &[u32]) {
        for (index, entries) in (flat.first..).zip(entries.chunks(LINE_ENTRIES as usize)) {
            for (cell, entries) in self.line(index).iter().zip(entries.chunks(2)) {
                cell.store(u64::from(entries[0]) | u64::from(entries[1]) << 32);
            }
        }
    }

    pub fn set_root(&self, slot: usize, entry: u32) {
        let word = self.root_word(slot);
        if half(word.load(), slot as u32) != entry {
            self.set_half(word, slot as u32, entry);
        }
    }

    fn root_word(&self, slot: usize) -> &Cell64 {
        self.store.root(slot as u32 / 2).expect("a word of the store's own")
    }

    /// The other half stays: nobody else writes here.
    fn set_half(&self, word: &Cell64, index: u32, entry: u32) {
        self.publish();
        let other = u64::from(half(word.load(), !index)) << (!index % 2 * 32);
        word.store(other | u64::from(entry) << (index % 2 * 32));
    }
}

/// A bit for every slot that begins a run.
fn runs(slots: &[u32; SLOTS], alone: &[u64; 4]) -> [u64; 4] {
    // A byte each first, which the compiler makes many of at once.
    let mut begins = [1u8; SLOTS];
    for at in 1..SLOTS {
        begins[at] = u8::from(slots[at] != slots[at - 1]);
    }
    let (mut bits, mut was_alone) = ([0; 4], 0);
    for (fourth, bits) in bits.iter_mut().enumerate() {
        for eighth in 0..8 {
            let bytes = begins[fourth * 64 + eighth * 8..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
            // Brings the lowest bit of each byte into the highest byte.
            *bits |= (bytes.wrapping_mul(0x0102_0408_1020_4080) >> 56) << (eighth * 8);
        }
        *bits |= alone[fourth] | alone[fourth] << 1 | was_alone;
        was_alone = alone[fourth] >> 63;
    }
    bits
}

/// The entry that names a node.
pub fn name(node: Piece) -> u32 {
    NODE | node.first
}
