//! A table of routes in the kernel's memory: its root, and the parts that it grows by.
//!
//! Invariant: programs read a part as long as one of them can still know a node in it; an agent that
//! takes over leaves the last one's parts until its own table is in force.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lb_common::fib::{Line, Memory, PART, ROOT_WORDS};
use lb_common::flow_table::cell::Cell64;
use lb_common::wire::Addr;

use super::sys::{Mapping, RawMap, bytes};
use super::table::{remove_many, set_many};
use crate::fib::Store;

/// A part: what keeps it, and its memory.
#[derive(Debug)]
struct Part {
    map: RawMap,
    lines: Mapping<Line>,
}

/// A family's memory.
#[derive(Debug)]
pub struct Parts {
    root: Mapping<Cell64>,
    outer: RawMap,
    parts: Vec<Option<Part>>,
    /// Parts that programs don't see yet.
    new: Vec<u32>,
    /// Parts of the agent before.
    old: Vec<u32>,
    /// How many there may be.
    limit: usize,
}

impl Parts {
    /// Opens what is pinned; `limit`: bytes that the table may take beside its root.
    pub fn open<A: Addr>(dir: &Path, limit: u64) -> Result<Self> {
        let name = |v4, v6| if A::IS_V6 { v6 } else { v4 };
        let root_name = name("FIB_ROOT4", "FIB_ROOT6");
        let root = RawMap::from_pin(&dir.join(root_name))?;
        let root = root.mapping()?.with_context(|| format!("the map {root_name} can't be mapped"))?;
        let outer = RawMap::from_pin(&dir.join(name("FIB4", "FIB6")))?;
        ensure!(root.get().len() == ROOT_WORDS as usize && outer.key_size() == 4, "{root_name} has another layout");
        let mut old = Vec::new();
        for index in 0..outer.max_entries() {
            if outer.lookup(&index.to_ne_bytes(), &mut [0; 4]).context("the table of routes")? {
                old.push(index);
            }
        }
        let part = PART as usize * size_of::<Line>();
        let limit = (limit / part as u64).clamp(1, u64::from(outer.max_entries())) as usize;
        let parts = (0..outer.max_entries()).map(|_| None).collect();
        Ok(Parts { root, outer, parts, new: Vec::new(), old, limit })
    }

    fn make() -> Result<Part> {
        let map = RawMap::new_array(size_of::<Line>(), PART)?;
        let lines = map.mapping()?.context("a part can't be mapped")?;
        Ok(Part { map, lines })
    }

    /// Programs don't see these parts any longer: by one call, since the kernel waits at each.
    fn detach(&self, parts: &[u32]) {
        if let Err(error) = remove_many("table of routes", &self.outer, bytes(parts)) {
            tracing::warn!("parts of the table of routes stay in the kernel: {error:#}");
        }
    }

    /// Bytes in parts, and in the root.
    pub fn bytes(&self) -> usize {
        let parts = self.parts.iter().flatten().count();
        parts * PART as usize * size_of::<Line>() + size_of_val(self.root.get())
    }
}

impl<A: Addr> Memory<A> for Parts {
    fn root(&self, index: u32) -> Option<&Cell64> {
        self.root.get().get(index as usize)
    }

    fn line(&self, index: u32) -> Option<&Line> {
        self.parts.get((index / PART) as usize)?.as_ref()?.lines.get().get((index % PART) as usize)
    }
}

impl<A: Addr> Store<A> for Parts {
    fn grow(&mut self) -> Option<u32> {
        if self.parts.iter().flatten().count() >= self.limit {
            return None;
        }
        let free = |index: &u32| self.parts[*index as usize].is_none() && !self.old.contains(index);
        let index = (0..self.parts.len() as u32).find(free)?;
        match Self::make() {
            Ok(part) => {
                self.parts[index as usize] = Some(part);
                self.new.push(index);
                Some(index * PART)
            }
            Err(error) => {
                tracing::warn!("the table of routes can't grow: {error:#}");
                None
            }
        }
    }

    /// By one call, since the kernel waits at each. Where it fails, what is in these parts asks the kernel.
    fn attach(&mut self) {
        let new = std::mem::take(&mut self.new);
        if new.is_empty() {
            return;
        }
        let maps: Vec<u32> =
            new.iter().filter_map(|&index| Some(self.parts[index as usize].as_ref()?.map.number())).collect();
        if let Err(error) = set_many("table of routes", &self.outer, bytes(&new), bytes(&maps)) {
            tracing::warn!("parts of the table of routes can't be seen: {error:#}");
        }
    }

    fn shrink(&mut self, firsts: &[u32]) {
        let indexes: Vec<u32> = firsts.iter().map(|first| first / PART).collect();
        self.detach(&indexes);
        self.new.retain(|index| !indexes.contains(index));
        indexes.iter().for_each(|&index| self.parts[index as usize] = None);
    }

    /// Puts a part in its own place: who changes an array of maps comes back when every program that ran before
    /// has ended (`maybe_wait_bpf_programs`, kernel 5.0).
    fn wait(&self) {
        let Some((index, part)) = (0u32..).zip(&self.parts).find_map(|(index, part)| Some((index, part.as_ref()?)))
        else {
            return;
        };
        if let Err(error) = self.outer.update(&index.to_ne_bytes(), &part.map.number().to_ne_bytes()) {
            tracing::warn!("the kernel can't be waited for: {error}");
            // No program runs as long.
            sleep(Duration::from_secs(1));
        }
    }

    fn settled(&mut self) {
        let old = std::mem::take(&mut self.old);
        if !old.is_empty() {
            Store::<A>::wait(self);
            self.detach(&old);
        }
    }
}
