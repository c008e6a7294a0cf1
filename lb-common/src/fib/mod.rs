//! The forwarding information base: the longest prefix that an address is in, by one function for both
//! address families, the kernel and the host.
//!
//! The first 16 bits index the root; every further 8 bits a node, down to where prefixes end. A node has
//! 256 slots of which neighbours are mostly alike: it keeps a bit for each slot that begins a run, and one
//! entry a run, so that most nodes are one cache line. An entry is a value, nothing, or another node; a
//! node also keeps the value of the longest prefix above it that ends within its parent, so that a
//! prefix touches the one node that it ends in, and those right below. IPv6's second 16 bits may be flat, too,
//! where a registry's block holds many prefixes. Promises:
//!
//! 1. A lookup made while a prefix comes, goes or changes gives the answer of before or of after, or
//!    [`KERNEL`]; never a third one. For every address one aligned store switches the one to the other.
//! 2. A lookup reads the root and two lines for each 8 bits behind the first 16: never more, whatever
//!    stands in memory.
//! 3. What isn't here for want of room, or can't be read, is answered by [`KERNEL`], never by a shorter
//!    prefix.
//!
//! What is not here: the prefixes themselves and who changes the memory (`lb-user/src/fib`), which needs
//! allocation; what a value means.

#[cfg(test)]
mod tests;

use crate::flow_table::cell::{Cell64, acquire, word};
use crate::wire::Addr;

/// No prefix of the table has the address.
pub const NONE: u32 = 0;
/// The table can't say: the kernel's own routes are to be asked.
pub const KERNEL: u32 = 1;
/// The largest value of a prefix.
pub const MAX_VALUE: u32 = (1 << 28) - 1;

/// Bits that index the root, and that index a node.
pub const ROOT_BITS: u32 = 16;
pub const STRIDE: u32 = 8;
/// Words of the root, each of two entries.
pub const ROOT_WORDS: u32 = 1 << (ROOT_BITS - 1);
/// Lines that memory grows by. A node never lies across the border of two parts.
pub const PART: u32 = 1 << 13;

/// Memory as it is read: a cache line.
pub type Line = [Cell64; 8];

/// An entry that names a node: the rest is the node's first line.
pub const NODE: u32 = 1 << 31;
/// An entry that names a flat table of IPv6's second 16 bits: the rest is its first line.
pub const FLAT: u32 = 3 << 30;
/// A node's fifth word: its default (upper half), and how many runs begin before each fourth of its slots.
/// Before it are the bits of slots that begin a run; behind it are the entries, two a word.
pub const HEAD: u32 = 4;
/// Where a node's entries begin, in halves of words.
pub const ENTRIES: u32 = 10;
/// Entries that a line has.
pub const LINE_ENTRIES: u32 = 16;

/// Where the table is.
pub trait Memory<A: Addr> {
    /// One of the [`ROOT_WORDS`].
    fn root(&self, index: u32) -> Option<&Cell64>;
    fn line(&self, index: u32) -> Option<&Line>;
}

/// The value of the longest prefix that an address is in; [`NONE`]: of no prefix.
#[inline(always)]
pub fn find<A: Addr, M: Memory<A>>(memory: &M, dst: A) -> u32 {
    let (mut high, mut low) = dst.halves();
    let slot = (high >> (64 - ROOT_BITS)) as u32;
    let Some(root) = memory.root(slot / 2) else {
        return KERNEL;
    };
    let mut entry = half(root.load(), slot);
    let mut best = NONE;
    (high, low) = (high << ROOT_BITS | low >> (64 - ROOT_BITS), low << ROOT_BITS);
    if A::IS_V6 && entry & FLAT == FLAT {
        acquire();
        let slot = (high >> (64 - ROOT_BITS)) as u32;
        let Some(line) = memory.line((entry & !FLAT) + slot / LINE_ENTRIES) else {
            return KERNEL;
        };
        entry = half(word(line, slot / 2).load(), slot);
        (high, low) = (high << ROOT_BITS | low >> (64 - ROOT_BITS), low << ROOT_BITS);
    }
    for _ in 0..(A::BITS - ROOT_BITS) / STRIDE {
        if entry & NODE == 0 {
            break;
        }
        // What the node holds was written before what names it.
        acquire();
        let first = entry & !NODE;
        let Some(line) = memory.line(first) else {
            return KERNEL;
        };
        let head = line[HEAD as usize].load();
        best = longer((head >> 32) as u32, best);
        let place = place(line, head, (high >> (64 - STRIDE)) as u32);
        // Of most nodes all is in one line.
        let line = if place < LINE_ENTRIES { Some(line) } else { memory.line(first + place / LINE_ENTRIES) };
        let Some(line) = line else {
            return KERNEL;
        };
        entry = half(word(line, place / 2).load(), place);
        (high, low) = (high << STRIDE | low >> (64 - STRIDE), low << STRIDE);
    }
    if entry & NODE != 0 { KERNEL } else { longer(entry, best) }
}

#[inline(always)]
fn longer(value: u32, shorter: u32) -> u32 {
    if value == NONE { shorter } else { value }
}

/// One of a word's two entries: `index`'s lowest bit says which.
#[inline(always)]
pub fn half(word: u64, index: u32) -> u32 {
    (word >> ((index & 1) * 32)) as u32
}

/// Where a slot's entry is, in halves of words from a node's first line on.
#[inline(always)]
pub fn place(line: &Line, head: u64, slot: u32) -> u32 {
    let fourth = slot / 64;
    let before = (head >> (fourth * 8)) as u32 & 0xff;
    // The runs that begin up to the slot. The very first slot begins one, so that there is one at the least.
    let begun = (word(line, fourth).load() << (63 - slot % 64)).count_ones();
    ENTRIES + (before + begun).wrapping_sub(1) % 256
}
