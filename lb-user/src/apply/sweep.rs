//! Removes what has expired: connections, affinities, fragments, ports outside.
//!
//! Invariant: a connection goes only when it has been silent for longer than its state allows, judged
//! by the engine's own rule. The data plane never uses an expired entry, so
//! that a stopped agent costs room, never correctness. A step looks at a part of the tables; the
//! whole takes some seconds.

mod places;
pub mod ports;

use std::cell::OnceCell;
use std::collections::HashMap;
use std::time::SystemTime;

use anyhow::Result;
use lb_common::flow_table::{self, FlowTable, WAYS};
use lb_common::table::nat::POOL;
use lb_common::table::{FlowKey, Plain, Settings, age};
use lb_common::wire::{Addr, Ip4, Ip6};

use super::maps::{FamilyMaps, Maps};
use super::ports::{Ended, Taken};
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
    /// Ports outside whose mappings had ended,
    pub ports: usize,
    /// and those that were taken, but that nobody had.
    pub leaked: usize,
    /// Hosts inside without a port, whose counts' places are free again,
    pub hosts: usize,
    /// hosts whose count of ports was wrong,
    pub counts: usize,
    /// and places of counts that an agent had left half free.
    pub places: usize,
}

impl Swept {
    fn add(&mut self, other: Swept) {
        self.connections += other.connections;
        self.affinities += other.affinities;
        self.fragments += other.fragments;
        self.ports += other.ports;
        self.leaked += other.leaked;
        self.hosts += other.hosts;
        self.counts += other.counts;
        self.places += other.places;
    }
}

struct Cursors<A> {
    /// The flow table's next bucket.
    flows: u32,
    affinity: Cursor,
    fragments: Cursor,
    ports: ports::Pass<A>,
}

impl<A> Default for Cursors<A> {
    fn default() -> Self {
        Cursors { flows: 0, affinity: Cursor::default(), fragments: Cursor::default(), ports: ports::Pass::default() }
    }
}

/// Where the walks stand.
#[derive(Default)]
pub struct Sweeper {
    v4: Cursors<Ip4>,
    v6: Cursors<Ip6>,
    pub total: Swept,
}

impl Sweeper {
    /// Sweeps a part of all tables; where mappings are logged, `ended` is told of those that it ends.
    pub fn step(&mut self, maps: &Maps, now: u32, mut ended: impl FnMut(Ended)) -> Result<Swept> {
        let settings = maps.settings.get(&0)?.unwrap_or_default();
        // Without a filled table of settings every limit is zero.
        if settings.ticks_per_second == 0 {
            return Ok(Swept::default());
        }
        let limits = Limits { maps, by_service: OnceCell::new() };
        let when = (&settings, now);
        let mut swept = family(&maps.v4, &mut self.v4, when, &limits, &mut ended)?;
        swept.add(family(&maps.v6, &mut self.v6, when, &limits, &mut ended)?);
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
    cursors: &mut Cursors<A>,
    (settings, now): (&Settings, u32),
    limits: &Limits,
    ended: &mut impl FnMut(Ended),
) -> Result<Swept> {
    let stale = |service: u32, last: u32| age(now, last) > limits.of(service);
    let outside = OnceCell::new();
    let tell = |taken: &Taken<A>| {
        if settings.nat(Settings::NAT_LOG) {
            let outside = outside.get_or_init(|| planes(tables)).get(&taken.plane);
            ended(taken.ended(outside.copied().unwrap_or_default(), Some(SystemTime::now())));
        }
    };
    let planes = tables.ports.planes();
    Ok(Swept {
        connections: connections(&tables.flows, &mut cursors.flows, settings, now),
        affinities: part(&tables.affinity, &mut cursors.affinity, |key, bound| stale(key.service, bound.last))?,
        fragments: part(&tables.fragments, &mut cursors.fragments, |_, f| age(now, f.last) > settings.fragment)?,
        ..ports::step(&tables.ports, planes, &mut cursors.ports, (settings, now), tell)
    })
}

/// Addresses outside by their planes.
pub fn planes<A: Addr>(tables: &FamilyMaps<A>) -> HashMap<u32, A> {
    let uplinks = tables.uplinks.entries().unwrap_or_default();
    let pools = uplinks
        .into_iter()
        .flat_map(|(_, uplink)| uplink.planes.into_iter().zip(uplink.addrs).take((uplink.count as usize).min(POOL)));
    pools.collect()
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

/// Removes the entries of ended connections, and what is remembered of ended mappings, from the next part
/// of a flow table.
pub fn connections<A: Addr, T: FlowTable<A>>(table: &T, next: &mut u32, settings: &Settings, now: u32) -> usize {
    let buckets = table.mask() + 1;
    let end = (*next + buckets.div_ceil(STEPS as u32).max(STEP as u32 / WAYS)).min(buckets);
    let mut removed = 0;
    flow_table::walk(table, *next..end, |key: FlowKey<A>, hit| {
        // The protocol is the low byte, in what is remembered, too.
        let over = settings.is_long_over(key.proto as u8, hit.flow.state, hit.flow.last, now);
        removed += usize::from(over && flow_table::remove(table, &hit));
    });
    *next = if end == buckets { 0 } else { end };
    removed
}
