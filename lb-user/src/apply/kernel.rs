//! [`Apply`] on the real thing: operations into maps and onto links, and what is there read back.
//!
//! Invariant: operations take effect in their order. Neighbouring ones of one kind and table go to
//! the kernel in one batched call; anything else flushes the batch first, so that no prefix of the
//! list is ever in force in another order.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::slice;

use anyhow::{Context, Error, Result, bail};
use aya::Ebpf;
use aya::programs::SchedClassifier;
use imbl::OrdMap;
use lb_common::table::route::PLACES;
use lb_common::table::{Backend, Counters, Group, NextHop, Plain, Service, Settings};
use lb_common::wire::{Addr, Ip4, Ip6};

use super::clock;
use super::ends::Ends;
use super::hooks::{self, Attacher};
use super::load::{self, Loaded};
use super::maps::{FamilyMaps, Maps, Paths};
use super::routes::Routes;
use super::state::State;
use super::sys::{Cursor, RawMap, bytes};
use super::sysctl;
use super::table::{Table, add, remove_many, set_many};
use crate::intent::Capacity;
use crate::plan::{Apply, Change, Contents, Family, FamilyOp, Hooks, Op};
use crate::pods::wire::PREFIX;

/// What a group holds that nobody has.
const NO_GROUP: Group = [NextHop::UNRESOLVED; PLACES];

/// The loaded programs with their maps and links.
pub struct Kernel {
    pub maps: Maps,
    pub paths: Paths,
    pub state: State,
    pub capacity: Capacity,
    pub ticks_per_second: u32,
    pub ebpf: Ebpf,
    pub ends: Ends,
    attacher: Attacher,
    /// All links had their programs once.
    served: bool,
    routes4: Routes<Ip4>,
    routes6: Routes<Ip6>,
}

/// Neighbouring operations on one table.
struct Run<'a> {
    name: &'static str,
    raw: &'a RawMap,
    remove: bool,
    keys: Vec<u8>,
    values: Vec<u8>,
}

#[derive(Default)]
struct Pending<'a>(Option<Run<'a>>);

impl<'a> Pending<'a> {
    fn push<K: Plain, V: Plain>(&mut self, table: &'a Table<K, V>, key: &K, value: Option<&V>) -> Result<()> {
        let same = |run: &Run| run.name == table.name && run.remove == value.is_none();
        if !self.0.as_ref().is_some_and(same) {
            self.flush()?;
        }
        let run = self.0.get_or_insert_with(|| Run {
            name: table.name,
            raw: table.raw(),
            remove: value.is_none(),
            keys: Vec::new(),
            values: Vec::new(),
        });
        run.keys.extend_from_slice(bytes(slice::from_ref(key)));
        if let Some(value) = value {
            run.values.extend_from_slice(bytes(slice::from_ref(value)));
        }
        Ok(())
    }

    fn change<K: Plain, V: Plain>(&mut self, table: &'a Table<K, V>, change: &Change<K, V>) -> Result<()> {
        match change {
            Change::Set(key, value) => self.push(table, key, Some(value)),
            Change::Remove(key) => self.push(table, key, None),
        }
    }

    /// An array's entry is gone when it is zero.
    fn change_array<V: Plain + Default>(&mut self, table: &'a Table<u32, V>, change: &Change<u32, V>) -> Result<()> {
        match change {
            Change::Set(index, value) => self.push(table, index, Some(value)),
            Change::Remove(index) => self.push(table, index, Some(&V::default())),
        }
    }

    fn flush(&mut self) -> Result<()> {
        match self.0.take() {
            None => Ok(()),
            Some(run) if run.remove => remove_many(run.name, run.raw, &run.keys).map(drop),
            Some(run) => set_many(run.name, run.raw, &run.keys, &run.values),
        }
    }
}

impl Kernel {
    /// See [`load::load`].
    pub fn load(paths: &Paths, wanted: &Capacity, traced: bool) -> Result<Self> {
        Kernel::new(paths, load::load(paths, wanted, traced, false)?)
    }

    /// Takes over what was loaded. Nothing is attached yet.
    pub fn new(paths: &Paths, loaded: Loaded) -> Result<Self> {
        let Loaded { ebpf, maps, capacity, mut state, .. } = loaded;
        sysctl::forwarding(paths, &mut state)?;
        hooks::prune(paths)?;
        let attacher = Attacher::new(&ebpf)?;
        let ticks_per_second = clock::rate()?;
        Ok(Kernel {
            maps,
            paths: paths.clone(),
            state,
            capacity,
            ticks_per_second,
            ebpf,
            ends: Ends::default(),
            attacher,
            served: false,
            routes4: Routes::open(&paths.maps(), capacity.routes)?,
            routes6: Routes::open(&paths.maps(), capacity.routes)?,
        })
    }

    fn clock(&self) -> Result<&SchedClassifier> {
        Ok(self.ebpf.program(clock::PROGRAM).context("the clock is loaded")?.try_into()?)
    }

    /// The current tick.
    pub fn now(&self) -> Result<u32> {
        Ok(clock::read(self.clock()?, &self.maps)?.tick())
    }

    /// Applies operations in their order, and stops at the first that fails; but that a link which can't have its
    /// programs is no reason to serve the others by old tables, once all have been served.
    pub fn apply_all(&mut self, ops: &[Op]) -> Result<()> {
        let result = self.apply_each(ops);
        self.ends.note(&self.paths, &mut self.state);
        self.served |= result.is_ok();
        result
    }

    fn apply_each(&mut self, ops: &[Op]) -> Result<()> {
        let served = self.served;
        let Kernel { maps, paths, state, ebpf, attacher, ends, routes4, routes6, capacity, .. } = self;
        let (mut pending, mut unhooked) = (Pending::default(), None);
        // Where that fails, each link is for itself.
        let together = prepare(attacher, paths, state, ops).is_ok();
        for op in ops {
            match op {
                Op::Settings(settings) => pending.push(&maps.settings, &0, Some(settings))?,
                Op::FilterWord { index, value } => pending.push(&maps.filter, index, Some(value))?,
                Op::NextHop(change) => pending.change_array(&maps.next_hops, change)?,
                Op::Group(Change::Set(index, group)) => pending.push(&maps.groups, index, Some(&**group))?,
                Op::Group(Change::Remove(index)) => pending.push(&maps.groups, index, Some(&NO_GROUP))?,
                Op::Tunnel(change) => pending.change(&maps.tunnels, change)?,
                Op::Peer(change) => pending.change(&maps.peers, change)?,
                Op::Link(change) => pending.change(&maps.links, change)?,
                Op::Name(change) => {
                    // A service's past goes with its name.
                    if let Change::Remove(id) = change {
                        maps.retired.set(id, &Counters::default())?;
                    }
                    pending.change_array(&maps.names, change)?;
                }
                Op::Prefix(change) => pending.change_array(&maps.prefixes, change)?,
                Op::Pod(change) => pending.change(&maps.pods, change)?,
                Op::PeerPort(change) => pending.change(&maps.peer_ports, change)?,
                Op::V4(FamilyOp::Route(change)) => {
                    pending.flush()?;
                    routes4.change(change)?;
                }
                Op::V6(FamilyOp::Route(change)) => {
                    pending.flush()?;
                    routes6.change(change)?;
                }
                Op::V4(FamilyOp::Routes(all)) => {
                    pending.flush()?;
                    routes4.replace(all)?;
                }
                Op::V6(FamilyOp::Routes(all)) => {
                    pending.flush()?;
                    routes6.replace(all)?;
                }
                Op::V4(op) => family(maps, &maps.v4, op, &mut pending, ends)?,
                Op::V6(op) => family(maps, &maps.v6, op, &mut pending, ends)?,
                Op::Row { first, backends } => {
                    pending.flush()?;
                    maps.slots.write(*first, backends)?;
                }
                Op::Hooks(change) => {
                    pending.flush()?;
                    let (link, hooks) = match change {
                        Change::Set(link, hooks) => (*link, Some(hooks)),
                        Change::Remove(link) => (*link, None),
                    };
                    let alone = if together { Ok(()) } else { prepare(attacher, paths, state, slice::from_ref(op)) };
                    match alone.and_then(|()| attacher.set(ebpf, paths, state, link, hooks)) {
                        Err(error) if served => unhooked = unhooked.or(Some(error)),
                        result => result?,
                    }
                }
                Op::EndFlows { backends } => {
                    pending.flush()?;
                    end_flows(maps, backends)?;
                }
            }
        }
        // There may be none at all.
        routes4.settle()?;
        routes6.settle()?;
        routes4.count(&maps.route_counts, capacity.routes)?;
        routes6.count(&maps.route_counts, capacity.routes)?;
        pending.flush()?;
        unhooked.map_or(Ok(()), Err)
    }

    /// Whether links carry what they shall, as far as they are there.
    pub fn hangs(&self, wanted: &BTreeMap<u32, Hooks>) -> Result<bool> {
        let there = self.attacher.read(&self.paths, &self.state)?;
        Ok(wanted.iter().all(|(link, hooks)| there.get(link) == Some(hooks) || hooks::is_gone(*link, hooks)))
    }

    /// Removes pins of links that are gone.
    pub fn forget_gone(&self) -> Result<()> {
        hooks::prune(&self.paths)
    }

    /// Once the new programs serve on filled tables, what older ones left can go.
    pub fn forget_other_layouts(&self) -> Result<()> {
        load::remove_other_layouts(&self.paths)
    }
}

/// The settings that links with programs need, and a note of what they get, at once for all of them: a node that
/// starts has many, and writing a note takes longer than attaching a program.
fn prepare(attacher: &Attacher, paths: &Paths, state: &mut State, ops: &[Op]) -> Result<()> {
    let hooked = ops.iter().filter_map(|op| match op {
        Op::Hooks(Change::Set(link, hooks)) if !hooks::is_gone(*link, hooks) => Some((*link, hooks)),
        _ => None,
    });
    let hooked: Vec<(u32, &Hooks)> = hooked.collect();
    if hooked.is_empty() {
        return Ok(());
    }
    let names = hooked.iter().map(|(_, hooks)| hooks.interface.as_str());
    // A pod's was made with its settings.
    sysctl::interfaces(paths, state, names.filter(|name| !name.starts_with(PREFIX)))?;
    attacher.note(paths, state, &hooked)
}

fn family<'a, A: Addr>(
    maps: &Maps,
    tables: &'a FamilyMaps<A>,
    op: &FamilyOp<A>,
    pending: &mut Pending<'a>,
    ends: &mut Ends,
) -> Result<()> {
    match op {
        FamilyOp::Service(change) => pending.change(&tables.services, change),
        FamilyOp::Source(change) => pending.change(&tables.sources, change),
        FamilyOp::Owned(change) => pending.change(&tables.owned, change),
        FamilyOp::Route(_) | FamilyOp::Routes(_) => bail!("routes have a table of their own"),
        FamilyOp::Announced(change) => pending.change(&tables.announced, change),
        FamilyOp::Uplink(change) => pending.change(&tables.uplinks, change),
        FamilyOp::Allowed(change) => pending.change(&tables.allowed, change),
        FamilyOp::EndOutside { addr, plane } => {
            pending.flush()?;
            ends.outside(tables, *addr, *plane);
            Ok(())
        }
        FamilyOp::EndPrefix(prefix) => {
            pending.flush()?;
            ends.prefix(tables, prefix);
            Ok(())
        }
        FamilyOp::EndPorts { planes, first, last } => {
            pending.flush()?;
            ends.ports(tables, planes, *first, *last);
            Ok(())
        }
        FamilyOp::Backend(change) => {
            if let Change::Remove(id) = change {
                retire(maps, &tables.backends, *id)?;
            }
            pending.change_array(&tables.backends, change)
        }
    }
}

/// Adds what a backend has counted to its service's past, so that the service's totals never go
/// back, and zeroes it. What is counted between the two is lost: a packet or two of a backend that
/// has ended.
fn retire<A: Addr>(maps: &Maps, backends: &Table<u32, Backend<A>>, id: u32) -> Result<()> {
    let counted = maps.counters.sum(id)?;
    if counted == Counters::default() {
        return Ok(());
    }
    let service = backends.get(&id)?.unwrap_or_default();
    if service.state != 0 && service.service < maps.retired.capacity() {
        let past = maps.retired.get(&service.service)?.unwrap_or_default();
        maps.retired.set(&service.service, &add(past, counted))?;
        maps.counters.zero(id)?;
    }
    Ok(())
}

fn end_flows(maps: &Maps, backends: &BTreeSet<u32>) -> Result<()> {
    end_family(&maps.v4, backends)?;
    end_family(&maps.v6, backends)?;
    for &id in backends {
        retire(maps, &maps.v4.backends, id)?;
        retire(maps, &maps.v6.backends, id)?;
        // Of a backend that nothing is known of any more.
        maps.counters.zero(id)?;
    }
    Ok(())
}

fn end_family<A: Addr>(tables: &FamilyMaps<A>, backends: &BTreeSet<u32>) -> Result<()> {
    tables.flows.remove_entries(|_, flow| backends.contains(&flow.backend));
    remove_where(&tables.affinity, |_, affinity| backends.contains(&affinity.backend))?;
    Ok(())
}

/// Removes the entries that `gone` names.
fn remove_where<K: Plain, V: Plain>(table: &Table<K, V>, mut gone: impl FnMut(&K, &V) -> bool) -> Result<usize> {
    let mut keys = Vec::new();
    let mut cursor = Cursor::default();
    let mut end = false;
    while !end {
        end = table.walk(&mut cursor, |key, value| {
            if gone(&key, &value) {
                keys.push(key);
            }
        })?;
    }
    remove_many(table.name, table.raw(), bytes(&keys))
}

fn present<V: PartialEq + Default>(entries: Vec<(u32, V)>) -> BTreeMap<u32, V> {
    entries.into_iter().filter(|(_, value)| *value != V::default()).collect()
}

fn read_family<A: Addr>(tables: &FamilyMaps<A>) -> Result<Family<A>> {
    Ok(Family {
        services: tables.services.entries()?.into_iter().collect(),
        sources: tables.sources.entries()?.into_iter().collect(),
        backends: present(tables.backends.entries()?),
        owned: tables.owned.entries()?.into_iter().collect(),
        announced: tables.announced.entries()?.into_iter().collect(),
        routes: OrdMap::new(),
        uplinks: tables.uplinks.entries()?.into_iter().collect(),
        allowed: tables.allowed.entries()?.into_iter().collect(),
    })
}

/// What the maps hold; `hooks` is what hangs on links.
pub fn read_maps(maps: &Maps, hooks: BTreeMap<u32, Hooks>) -> Result<Contents> {
    let (v4, v6) = (read_family(&maps.v4)?, read_family(&maps.v6)?);
    let mut rows = BTreeMap::new();
    for (first, count) in v4.services.values().chain(v6.services.values()).flat_map(Service::rows) {
        if let Entry::Vacant(row) = rows.entry(first) {
            row.insert(maps.slots.read(first, count)?);
        }
    }
    // Zero is what index 0 means, not that it is missing.
    let mut next_hops = present(maps.next_hops.entries()?);
    next_hops.entry(NextHop::UNRESOLVED).or_default();
    Ok(Contents {
        settings: maps.settings.get(&0)?.unwrap_or(Settings::default()),
        filter: present(maps.filter.entries()?),
        rows,
        next_hops,
        groups: maps.groups.entries()?.into_iter().filter(|(_, group)| *group != NO_GROUP).collect(),
        tunnels: maps.tunnels.entries()?.into_iter().collect(),
        peers: maps.peers.entries()?.into_iter().collect(),
        links: maps.links.entries()?.into_iter().collect(),
        names: present(maps.names.entries()?),
        prefixes: present(maps.prefixes.entries()?),
        pods: maps.pods.entries()?.into_iter().collect(),
        peer_ports: maps.peer_ports.entries()?.into_iter().collect(),
        v4,
        v6,
        hooks,
    })
}

impl Apply for Kernel {
    type Error = Error;

    fn apply(&mut self, op: &Op) -> Result<()> {
        self.apply_all(slice::from_ref(op))
    }

    fn read(&self) -> Result<Contents> {
        let mut contents = read_maps(&self.maps, self.attacher.read(&self.paths, &self.state)?)?;
        contents.v4.routes = self.routes4.held().clone();
        contents.v6.routes = self.routes6.held().clone();
        Ok(contents)
    }
}
