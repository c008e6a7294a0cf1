//! The flow tables in this process: the kernel's own arrays, mapped, under the engine's own operations.
//!
//! Invariant: no system call an entry. What is changed here is changed by the rules that packets keep
//! to; a killed agent leaves at the most one slot owned, which [`recover`] finds.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lb_common::flow_table::{self, Entry, FlowTable, Hit, MULTIPLIERS, Meta, WAYS};
use lb_common::table::{Flow, FlowKey};
use lb_common::wire::Addr;

use super::sys::{Mapping, RawMap};
use crate::intent::Capacity;

/// Slots of a family's table: two for a connection, of which three in five are taken at the most
/// when the promised number is there.
pub fn slots(capacity: &Capacity) -> u32 {
    let wanted = u64::from(capacity.connections) * 2 * 5 / 3;
    wanted.next_power_of_two().clamp(WAYS.into(), 1 << 29) as u32
}

/// The connections that a table of so many slots is for.
pub fn connections(slots: u32) -> u32 {
    (u64::from(slots) * 3 / 10) as u32
}

/// A family's table.
#[derive(Debug)]
pub struct Flows<A: Addr> {
    entries: Mapping<Entry<A>>,
    multipliers: [u64; MULTIPLIERS],
}

impl<A: Addr> FlowTable<A> for Flows<A> {
    fn line(&self, place: u32) -> Option<&Entry<A>> {
        self.entries.get().get(place as usize)
    }

    fn mask(&self) -> u32 {
        self.buckets() - 1
    }

    fn multiplier(&self, index: usize) -> u64 {
        self.multipliers[index]
    }
}

impl<A: Addr> Flows<A> {
    pub fn open(dir: &Path, multipliers: [u64; MULTIPLIERS]) -> Result<Self> {
        Self::of_pin(&dir.join(if A::IS_V6 { "FLOWS6" } else { "FLOWS4" }), multipliers)
    }

    pub fn of_pin(pin: &Path, multipliers: [u64; MULTIPLIERS]) -> Result<Self> {
        let name = pin.display();
        let map = RawMap::from_pin(pin)?;
        let entries = map.mapping()?.with_context(|| format!("the map {name} can't be mapped"))?;
        let flows = Flows { entries, multipliers };
        let slots = flows.slots();
        ensure!(slots.is_power_of_two() && slots >= WAYS, "{name} has {slots} places, which is no power of two");
        Ok(flows)
    }

    pub fn multipliers(&self) -> [u64; MULTIPLIERS] {
        self.multipliers
    }

    pub fn buckets(&self) -> u32 {
        self.slots() / WAYS
    }

    /// Places in the array, those of the hints among them.
    pub fn slots(&self) -> u32 {
        self.entries.get().len() as u32
    }

    /// All entries.
    pub fn entries(&self) -> Vec<(FlowKey<A>, Hit<A>)> {
        let mut all = Vec::new();
        flow_table::walk(self, 0..self.buckets(), |key, hit| all.push((key, hit)));
        all
    }

    /// Removes the entries that `gone` names; how many.
    pub fn remove_entries(&self, gone: impl Fn(&FlowKey<A>, &Flow<A>) -> bool) -> usize {
        let mut removed = 0;
        flow_table::walk(self, 0..self.buckets(), |key, hit| {
            removed += usize::from(gone(&key, &hit.flow) && flow_table::remove(self, &hit));
        });
        removed
    }

    fn owned(&self) -> Vec<(u32, Meta)> {
        let slots = (0..self.slots()).filter(|slot| slot % WAYS != WAYS - 1);
        let all = slots.filter_map(|slot| Some((slot, self.entry(slot)?.meta())));
        all.filter(|(_, meta)| meta.phase() == Meta::OWNED).collect()
    }

    /// Frees slots that an agent owned when it was killed; how many. There is one agent at a time.
    pub fn recover(&self) -> usize {
        let owned = self.owned();
        if owned.is_empty() {
            return 0;
        }
        // Packets own a slot for less than a microsecond.
        sleep(Duration::from_millis(100));
        owned.into_iter().filter(|&(slot, meta)| flow_table::recover(self, slot, meta)).count()
    }
}
