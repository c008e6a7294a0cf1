//! Removes what has expired: connections, affinities, fragments.
//!
//! Invariant: a connection goes only when both its directions have been silent for longer than its
//! state allows, judged by the engine's own rule. The data plane never uses an expired entry, so
//! that a stopped agent costs room, never correctness. A step looks at a part of the tables; the
//! whole takes some seconds.

use std::cell::OnceCell;
use std::collections::HashMap;

use anyhow::Result;
use lb_common::path::flow::{age, idle_limit};
use lb_common::table::{Flow, FlowKey, Plain, Settings};
use lb_common::wire::Addr;

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
    flows: Cursor,
    half: Cursor,
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
        connections: connections(&tables.flows, &mut cursors.flows, settings, now)?
            + connections(&tables.half, &mut cursors.half, settings, now)?,
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
    let keys = next_part(table, cursor, |key, value| over(key, value))?;
    let keys: Vec<K> = keys.into_iter().map(|(key, _)| key).collect();
    remove_many(table.name, table.raw(), bytes(&keys))
}

fn next_part<K: Plain, V: Plain>(
    table: &Table<K, V>,
    cursor: &mut Cursor,
    mut over: impl FnMut(&K, &V) -> bool,
) -> Result<Vec<(K, V)>> {
    let mut seen = 0;
    let mut found = Vec::new();
    let enough = (table.capacity() as usize / STEPS).max(STEP);
    while seen < enough {
        let end = table.walk(cursor, |key, value| {
            seen += 1;
            if over(&key, &value) {
                found.push((key, value));
            }
        })?;
        if end {
            *cursor = Cursor::default();
            break;
        }
    }
    Ok(found)
}

fn connections<A: Addr>(
    table: &Table<FlowKey<A>, Flow<A>>,
    cursor: &mut Cursor,
    settings: &Settings,
    now: u32,
) -> Result<usize> {
    let over =
        |key: &FlowKey<A>, flow: &Flow<A>| age(now, flow.last) > idle_limit(settings, key.proto as u8, flow.state);
    let mut gone = Vec::new();
    for (key, flow) in next_part(table, cursor, over)? {
        // Read again: a packet may have come since.
        if !table.get(&key)?.is_some_and(|flow| over(&key, &flow)) {
            continue;
        }
        let reverse = flow.reverse_key(key.proto);
        match table.get(&reverse)? {
            Some(other) if !over(&reverse, &other) => {}
            Some(_) => gone.extend([key, reverse]),
            None => gone.push(key),
        }
    }
    // Both directions may have been met: each once.
    gone.sort_unstable();
    gone.dedup();
    remove_many(table.name, table.raw(), bytes(&gone))
}
