//! The memory of a table, as its nodes write it.
//!
//! Invariant: a node is written where no lookup comes, and stays as it is once it is named, but for single
//! words: an entry's, and its default's.

use std::marker::PhantomData;
use std::sync::atomic::{Ordering, fence};

use lb_common::fib::{ENTRIES, HEAD, LINE_ENTRIES, Memory, NODE, PART, half, place};
use lb_common::flow_table::cell::{Cell64, word};
use lb_common::wire::Addr;

use super::room::{Piece, Room};

/// Slots of a node.
pub const SLOTS: usize = 256;
/// Halves of words of the largest node, and its words.
const HALVES: usize = ENTRIES as usize + SLOTS;
const WORDS: usize = HALVES.div_ceil(16) * 8;
/// So many retired lines are worth a wait.
const WORTH: u32 = PART / 4;

/// Where a table is written to.
pub trait Store<A: Addr>: Memory<A> {
    /// Makes a part's worth of lines; the first one's index. None: no more can be had.
    fn grow(&mut self) -> Option<u32>;
    /// A part that [`Self::grow`] made, and that no lookup reads, isn't needed.
    fn shrink(&mut self, first: u32);
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
    family: PhantomData<A>,
}

impl<A: Addr, S: Store<A>> Pool<A, S> {
    pub fn new(store: S) -> Self {
        let (room, unnamed) = (Room::default(), Vec::new());
        Pool { store, room, unnamed, spilled: 0, met_spilled: false, family: PhantomData }
    }

    fn take(&mut self, lines: u32) -> Result<u32, NoRoom> {
        loop {
            if let Some(first) = self.room.take(lines) {
                return Ok(first);
            }
            if self.room.retired() >= WORTH {
                self.reclaim();
            } else if let Some(first) = self.store.grow() {
                self.room.add_part(first);
            } else if self.room.retired() > 0 {
                self.reclaim();
            } else {
                return Err(NoRoom);
            }
        }
    }

    /// Waits, and frees what was retired before.
    pub fn reclaim(&mut self) {
        self.store.wait();
        self.room.reclaim();
        while let Some(first) = self.room.take_spare_part() {
            self.store.shrink(first);
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

    /// Writes a node. `alone`: a slot whose entry is a run of its own.
    pub fn write(
        &mut self,
        slots: &[u32; SLOTS],
        alone: impl Fn(usize) -> bool,
        default: u32,
    ) -> Result<Piece, NoRoom> {
        let mut words = [0u64; WORDS];
        let mut set = |at: usize, value: u32| words[at / 2] |= u64::from(value) << (at % 2 * 32);
        let (mut runs, mut bits, mut before) = (0, [0u64; 4], [0u8; 4]);
        let mut was_alone = true;
        for (slot, &entry) in slots.iter().enumerate() {
            let is_alone = alone(slot);
            if slot % 64 == 0 {
                before[slot / 64] = runs as u8;
            }
            if slot == 0 || is_alone || was_alone || entry != slots[slot - 1] {
                bits[slot / 64] |= 1 << (slot % 64);
                set(ENTRIES as usize + runs, entry);
                runs += 1;
            }
            was_alone = is_alone;
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

    pub fn root(&self, slot: usize) -> u32 {
        half(self.root_word(slot).load(), slot as u32)
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

/// The entry that names a node.
pub fn name(node: Piece) -> u32 {
    NODE | node.first
}
