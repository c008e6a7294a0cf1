//! Which lines are free.
//!
//! Invariant: free neighbours are one piece, but never across the border of two parts. What lookups may
//! still read is neither free nor given out: it is `retired` until the store has waited for them.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::fib::PART;

/// Lines in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub first: u32,
    pub lines: u32,
}

#[derive(Debug, Default)]
pub struct Room {
    free: BTreeMap<u32, u32>,
    /// The same by size: (lines, first).
    sizes: BTreeSet<(u32, u32)>,
    retired: Vec<Piece>,
    retired_lines: u32,
    parts: u32,
}

impl Room {
    /// Lines of all parts.
    pub fn lines(&self) -> u32 {
        self.parts * PART
    }

    pub fn retired(&self) -> u32 {
        self.retired_lines
    }

    /// Lines that hold nodes.
    pub fn used(&self) -> u32 {
        self.lines() - self.retired_lines - self.free.values().sum::<u32>()
    }

    pub fn add_part(&mut self, first: u32) {
        self.parts += 1;
        self.put(Piece { first, lines: PART });
    }

    /// Takes the smallest piece that is large enough.
    pub fn take(&mut self, lines: u32) -> Option<u32> {
        let &(size, first) = self.sizes.range((lines, 0)..).next()?;
        self.remove(size, first);
        if size > lines {
            self.put(Piece { first: first + lines, lines: size - lines });
        }
        Some(first)
    }

    pub fn retire(&mut self, pieces: impl IntoIterator<Item = Piece>) {
        for piece in pieces {
            self.retired_lines += piece.lines;
            self.retired.push(piece);
        }
    }

    /// No lookup reads what is retired: it is free.
    pub fn reclaim(&mut self) {
        self.retired_lines = 0;
        for piece in std::mem::take(&mut self.retired) {
            self.put(piece);
        }
    }

    /// Takes a part out that is free as a whole, as long as there are two.
    pub fn take_spare_part(&mut self) -> Option<u32> {
        let mut whole = self.sizes.range((PART, 0)..);
        let (_, spare) = (whole.next()?, whole.next()?);
        let (size, first) = *spare;
        self.remove(size, first);
        self.parts -= 1;
        Some(first)
    }

    fn remove(&mut self, lines: u32, first: u32) {
        self.sizes.remove(&(lines, first));
        self.free.remove(&first);
    }

    fn put(&mut self, piece: Piece) {
        let Piece { mut first, mut lines } = piece;
        if !(first + lines).is_multiple_of(PART)
            && let Some(&behind) = self.free.get(&(first + lines))
        {
            self.remove(behind, first + lines);
            lines += behind;
        }
        if !first.is_multiple_of(PART)
            && let Some((&before, &size)) = self.free.range(..first).next_back()
            && before + size == first
        {
            self.remove(size, before);
            (first, lines) = (before, size + lines);
        }
        self.free.insert(first, lines);
        self.sizes.insert((lines, first));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_grow_together_but_not_across_parts() {
        let mut room = Room::default();
        room.add_part(0);
        room.add_part(PART);
        let pieces: Vec<Piece> =
            (1..=17).map(|lines| Piece { first: room.take(lines).expect("there is room"), lines }).collect();
        assert_eq!(room.used(), (1..=17).sum::<u32>());
        assert_eq!(room.take(PART + 1), None);
        room.retire(pieces.into_iter().rev());
        assert_eq!((room.used(), room.retired()), (0, 153));
        room.reclaim();
        assert_eq!((room.used(), room.retired()), (0, 0));
        assert_eq!(room.free, BTreeMap::from([(0, PART), (PART, PART)]));
        assert!(room.take_spare_part().is_some());
        assert_eq!((room.take_spare_part(), room.lines()), (None, PART));
    }
}
