//! The table of routes, read from the kernel's maps line by line.

use std::path::Path;

use anyhow::{Context, Result};
use aya::maps::MapData;
use elsa::FrozenMap;
use lb_common::fib::{self, Line, Memory, PART};
use lb_common::flow_table::cell::Cell64;
use lb_common::wire::Addr;

use crate::apply::sys::RawMap;

pub struct Routes {
    root: RawMap,
    outer: RawMap,
    parts: FrozenMap<u32, Box<RawMap>>,
}

impl Routes {
    pub fn open<A: Addr>(dir: &Path) -> Result<Self> {
        let [root, outer] = if A::IS_V6 { ["FIB_ROOT6", "FIB6"] } else { ["FIB_ROOT4", "FIB4"] };
        Ok(Routes {
            root: RawMap::from_pin(&dir.join(root))?,
            outer: RawMap::from_pin(&dir.join(outer))?,
            parts: FrozenMap::new(),
        })
    }

    /// As the programs find it.
    pub fn find<A: Addr>(&self, dst: A) -> Result<u32> {
        let reading = Reading { routes: self, words: FrozenMap::new(), lines: FrozenMap::new() };
        Ok(fib::find(&reading, dst))
    }

    /// A part of it; None: there is none.
    fn part(&self, index: u32) -> Option<&RawMap> {
        if let Some(part) = self.parts.get(&index) {
            return Some(part);
        }
        let open = || -> Result<Option<RawMap>> {
            let mut number = [0; 4];
            if !self.outer.lookup(&index.to_ne_bytes(), &mut number).context("the table of routes")? {
                return Ok(None);
            }
            Ok(Some(RawMap::new(&MapData::from_id(u32::from_ne_bytes(number))?)?))
        };
        // A part that has just gone is as one that isn't there: the kernel is asked.
        Some(self.parts.insert(index, Box::new(open().ok()??)))
    }
}

/// One lookup.
struct Reading<'a> {
    routes: &'a Routes,
    words: FrozenMap<u32, Box<Cell64>>,
    lines: FrozenMap<u32, Box<Line>>,
}

fn cell(bytes: &[u8]) -> Option<Cell64> {
    let cell = Cell64::default();
    cell.store(u64::from_ne_bytes(bytes.try_into().ok()?));
    Some(cell)
}

impl<A: Addr> Memory<A> for Reading<'_> {
    fn root(&self, index: u32) -> Option<&Cell64> {
        let mut word = [0; 8];
        self.routes.root.lookup(&index.to_ne_bytes(), &mut word).ok().filter(|found| *found)?;
        Some(self.words.insert(index, Box::new(cell(&word)?)))
    }

    fn line(&self, index: u32) -> Option<&Line> {
        let mut bytes = [0; size_of::<Line>()];
        let part = self.routes.part(index / PART)?;
        part.lookup(&(index % PART).to_ne_bytes(), &mut bytes).ok().filter(|found| *found)?;
        let line = Line::default();
        for (to, from) in line.iter().zip(bytes.chunks_exact(8)) {
            to.store(cell(from)?.load());
        }
        Some(self.lines.insert(index, Box::new(line)))
    }
}
