//! Removes what has expired: connections, affinities, fragments.
//!
//! Invariant: a connection goes only when it has been silent for longer than its state allows, judged
//! by the engine's own rule. The data plane never uses an expired entry, so
//! that a stopped agent costs room, never correctness. A step looks at a part of the tables; the
//! whole takes some seconds.

use std::cell::OnceCell;
use std::collections::HashMap;

use anyhow::Result;
use lb_common::flow_table::{self, WAYS};
use lb_common::table::{FlowKey, Plain, Settings, age};
use lb_common::wire::Addr;

use super::flows::Flows;
use super::maps::{FamilyMaps, Maps};
use super::sys::{Cursor, bytes};
use super::table::{Table, remove_many};

/// A table is walked through in about this many steps, of at least [`STEP`] entries.
const STEPS: usize = 8;
const STEP: usize = 8192;

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    pub connections: usize,
    pub affinities: usize,
    pub fragments: usize,
}

impl Swept {
    fn add(&mut self, other: Swept) {
        self.connections += other.connections;
        self.affinities += other.affinities;
        self.fragments += other.fragments;
    }
}

#[derive(Default)]
struct Cursors {
    /// The flow table's next bucket.
    flows: u32,
    affinity: Cursor,
    fragments: Cursor,
}

/// Where the walks stand.
#[derive(Default)]
pub struct Sweeper {
    v4: Cursors,
    v6: Cursors,
    pub total: Swept,
}

impl Sweeper {
    /// Sweeps a part of all tables.
    pub fn step(&mut self, maps: &Maps, now: u32) -> Result<Swept> {
        let settings = maps.settings.get(&0)?.unwrap_or_default();
        // Without a filled table of settings every limit is zero.
        if settings.ticks_per_second == 0 {
            return Ok(Swept::default());
        }
        let limits = Limits { maps, by_service: OnceCell::new() };
        let mut swept = family(&maps.v4, &mut self.v4, &settings, now, &limits)?;
        swept.add(family(&maps.v6, &mut self.v6, &settings, now, &limits)?);
        self.total.add(swept);
        Ok(swept)
    }
}

/// Affinity timeouts by service, read when the first affinity is met.
struct Limits<'a> {
    maps: &'a Maps,
    by_service: OnceCell<HashMap<u32, u32>>,
}

impl Limits<'_> {
    /// Zero where the service has none, or is gone.
    fn of(&self, service: u32) -> u32 {
        let all = self.by_service.get_or_init(|| {
            let v4 = self.maps.v4.services.entries().unwrap_or_default().into_iter().map(|(_, s)| s);
            let v6 = self.maps.v6.services.entries().unwrap_or_default().into_iter().map(|(_, s)| s);
            v4.chain(v6).map(|s| (s.id, s.affinity)).collect()
        });
        all.get(&service).copied().unwrap_or(0)
    }
}

fn family<A: Addr>(
    tables: &FamilyMaps<A>,
    cursors: &mut Cursors,
    settings: &Settings,
    now: u32,
    limits: &Limits,
) -> Result<Swept> {
    let stale = |service: u32, last: u32| age(now, last) > limits.of(service);
    Ok(Swept {
        connections: connections(&tables.flows, &mut cursors.flows, settings, now),
        affinities: part(&tables.affinity, &mut cursors.affinity, |key, bound| stale(key.service, bound.last))?,
        fragments: part(&tables.fragments, &mut cursors.fragments, |_, f| age(now, f.last) > settings.fragment)?,
    })
}

/// Removes what is `over` in the next part of a table.
fn part<K: Plain, V: Plain>(
    table: &Table<K, V>,
    cursor: &mut Cursor,
    mut over: impl FnMut(&K, &V) -> bool,
) -> Result<usize> {
    let mut seen = 0;
    let mut gone = Vec::new();
    let enough = (table.capacity() as usize / STEPS).max(STEP);
    while seen < enough {
        let end = table.walk(cursor, |key, value| {
            seen += 1;
            if over(&key, &value) {
                gone.push(key);
            }
        })?;
        if end {
            *cursor = Cursor::default();
            break;
        }
    }
    remove_many(table.name, table.raw(), bytes(&gone))
}

/// Removes the entries of ended connections from the next part of a flow table.
fn connections<A: Addr>(table: &Flows<A>, next: &mut u32, settings: &Settings, now: u32) -> usize {
    let end = (*next + table.buckets().div_ceil(STEPS as u32).max(STEP as u32 / WAYS)).min(table.buckets());
    let mut removed = 0;
    flow_table::walk(table, *next..end, |key: FlowKey<A>, hit| {
        let over = settings.is_long_over(key.proto as u8, hit.flow.state, hit.flow.last, now);
        removed += usize::from(over && flow_table::remove(table, &hit));
    });
    *next = if end == table.buckets() { 0 } else { end };
    removed
}
