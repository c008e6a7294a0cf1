//! Places of rows in the flat slot array.
//!
//! Invariant: a place is never given out while anything in the kernel may still point to it: a
//! changed row gets a new place, and the old one is free only when the change has been applied.
//! Places begin at even slots and take an even number of them, since the kernel's array has two
//! slots an element: writing a row never touches a neighbour's.
//! Not here: what stands in a row ([`super::maglev`]).

use std::collections::{BTreeMap, HashMap, HashSet};

/// A row of one service and family: service id, whether it is IPv6, and whether it is that of this node's
/// endpoints where it differs from that of all.
pub(super) type RowKey = (u32, bool, bool);

#[derive(Clone, Debug)]
struct Placed {
    first: u32,
    row: Vec<u32>,
    /// Backend ids and weights that the row was made of; empty = not known.
    made_of: Vec<(u32, u32)>,
}

/// All rows, those of the last plan and those that are being drafted.
#[derive(Clone, Debug, Default)]
pub(super) struct Rows {
    current: HashMap<RowKey, Placed>,
    places: Places,
    /// Places that the last plans gave up and the kernel may still use.
    retired: Vec<(u32, u32)>,
    seen: HashSet<RowKey>,
    fresh: Vec<(RowKey, Placed)>,
}

impl Rows {
    /// A row that is in the kernel already.
    pub fn recover(&mut self, key: RowKey, first: u32, row: Vec<u32>) {
        self.places.take(first, row.len() as u32);
        self.current.insert(key, Placed { first, row, made_of: Vec::new() });
    }

    pub fn begin(&mut self) {
        self.seen.clear();
        self.fresh.clear();
    }

    /// The place and the slots of a row; `make` is asked only if it is made of something else now.
    pub fn place(&mut self, key: RowKey, made_of: Vec<(u32, u32)>, make: impl FnOnce() -> Vec<u32>) -> (u32, Vec<u32>) {
        let row = match self.current.get_mut(&key) {
            Some(old) if old.made_of == made_of => old.row.clone(),
            _ => make(),
        };
        if let Some(old) = self.current.get_mut(&key)
            && old.row == row
        {
            old.made_of = made_of;
            self.seen.insert(key);
            return (old.first, row);
        }
        let first = self.places.give(row.len() as u32);
        self.fresh.push((key, Placed { first, row: row.clone(), made_of }));
        (first, row)
    }

    /// The draft was of these services alone, before and after.
    pub fn commit_part(&mut self, services: impl Iterator<Item = u32>) {
        let keys = |id| [(id, false, false), (id, false, true), (id, true, false), (id, true, true)];
        for key in services.flat_map(keys) {
            if !self.seen.contains(&key)
                && let Some(placed) = self.current.remove(&key)
            {
                self.retired.push((placed.first, placed.row.len() as u32));
            }
        }
        self.current.extend(self.fresh.drain(..));
    }

    pub fn commit(&mut self) {
        let (seen, retired) = (&self.seen, &mut self.retired);
        self.current.retain(|key, placed| {
            let keep = seen.contains(key);
            if !keep {
                retired.push((placed.first, placed.row.len() as u32));
            }
            keep
        });
        self.current.extend(self.fresh.drain(..));
    }

    pub fn rollback(&mut self) {
        for (_, placed) in self.fresh.drain(..) {
            self.places.free(placed.first, placed.row.len() as u32);
        }
    }

    /// Frees the places that were given up and are not `in_use`.
    pub fn release(&mut self, in_use: impl Fn(u32, u32) -> bool) {
        let places = &mut self.places;
        self.retired.retain(|&(first, len)| {
            let keep = in_use(first, len);
            if !keep {
                places.free(first, len);
            }
            keep
        });
    }

    /// Slots that the array must have.
    pub fn need(&self) -> u32 {
        self.places.end
    }
}

/// Free and taken stretches of the array.
#[derive(Clone, Debug, Default)]
struct Places {
    /// Free stretches below `end`, by first slot.
    free: BTreeMap<u32, u32>,
    end: u32,
}

impl Places {
    /// The lowest place with room for `len` slots.
    fn give(&mut self, len: u32) -> u32 {
        let len = len.next_multiple_of(2);
        let hole = self.free.iter().find(|&(_, &room)| room >= len).map(|(&first, &room)| (first, room));
        let Some((first, room)) = hole else {
            let first = self.end;
            self.end = first.saturating_add(len);
            return first;
        };
        self.free.remove(&first);
        if room > len {
            self.free.insert(first + len, room - len);
        }
        first
    }

    /// Takes a stretch that is in use already.
    fn take(&mut self, first: u32, len: u32) {
        let (start, end) = (first & !1, first.saturating_add(len).next_multiple_of(2));
        if end > self.end {
            self.free(self.end, end - self.end);
            self.end = end;
        }
        let inside: Vec<_> = self.free.range(..end).filter(|&(&f, &l)| f + l > start).map(|(&f, &l)| (f, l)).collect();
        for (f, l) in inside {
            self.free.remove(&f);
            if f < start {
                self.free.insert(f, start - f);
            }
            if f + l > end {
                self.free.insert(end, f + l - end);
            }
        }
    }

    fn free(&mut self, first: u32, len: u32) {
        let mut start = first & !1;
        let mut end = first.saturating_add(len).next_multiple_of(2);
        if let Some((&f, &l)) = self.free.range(..start).next_back()
            && f + l == start
        {
            self.free.remove(&f);
            start = f;
        }
        if let Some(l) = self.free.remove(&end) {
            end += l;
        }
        if end == self.end {
            self.end = start;
        } else {
            self.free.insert(start, end - start);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_reused_lowest_first_and_merge() {
        let mut p = Places::default();
        assert_eq!((p.give(3), p.give(5), p.give(1)), (0, 4, 10));
        p.free(4, 5);
        assert_eq!(p.give(2), 4);
        p.free(0, 3);
        p.free(4, 2);
        assert_eq!(p.give(10), 0);
        p.free(0, 10);
        p.free(10, 1);
        assert_eq!(p.end, 0);
        assert!(p.free.is_empty());
    }

    #[test]
    fn taken_places_are_not_given() {
        let mut p = Places::default();
        p.take(4, 3);
        p.take(10, 2);
        assert_eq!((p.give(4), p.give(2), p.give(2)), (0, 8, 12));
    }

    #[test]
    fn a_changed_row_moves_and_its_old_place_waits() {
        let mut rows = Rows::default();
        let plan = |rows: &mut Rows, row: &[u32]| {
            rows.begin();
            let (first, _) = rows.place((1, false, false), row.iter().map(|&b| (b, 1)).collect(), || row.to_vec());
            rows.commit();
            first
        };
        assert_eq!(plan(&mut rows, &[1, 2]), 0);
        assert_eq!(plan(&mut rows, &[1, 2]), 0);
        assert_eq!(plan(&mut rows, &[1, 3]), 2);
        assert_eq!(plan(&mut rows, &[1, 4]), 4);
        rows.release(|first, _| first == 0);
        assert_eq!(plan(&mut rows, &[1, 5]), 2);
        rows.release(|_, _| false);
        assert_eq!(plan(&mut rows, &[1, 6]), 0);
    }
}
