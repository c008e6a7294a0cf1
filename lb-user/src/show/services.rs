//! Services and their backends.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use anyhow::Result;
use lb_common::table::{Backend, Counters, NextHop, Service};
use lb_common::wire::Addr;

use super::addresses::waiting;
use super::{Cell, Table, interfaces, mirror, names, next_hop, open, protocol};
use crate::apply::clock;
use crate::apply::maps::FamilyMaps;
use crate::apply::table::add;
use crate::apply::{Maps, Paths, State};
use crate::health::report::Report;

/// A backend of either family.
struct Entry {
    id: u32,
    service: u32,
    address: std::net::IpAddr,
    port: u16,
    state: u8,
    weight: u32,
    remote: bool,
    next_hop: u32,
    deadline: u32,
    counters: Counters,
}

fn entries<A: Addr>(maps: &Maps, tables: &FamilyMaps<A>) -> Result<Vec<Entry>> {
    let there = tables.backends.entries()?.into_iter().filter(|(_, b)| b.state != 0);
    there
        .map(|(id, b)| {
            Ok(Entry {
                id,
                service: b.service,
                address: b.addr.to_ip(),
                port: b.port.get(),
                state: b.state,
                weight: b.weight,
                remote: b.flags & Backend::<A>::REMOTE != 0,
                next_hop: b.next_hop,
                deadline: b.deadline,
                counters: maps.counters.sum(id)?,
            })
        })
        .collect()
}

fn all_backends(maps: &Maps) -> Result<Vec<Entry>> {
    let mut all = entries(maps, &maps.v4)?;
    all.extend(entries(maps, &maps.v6)?);
    all.sort_by_key(|b| (b.service, b.id));
    Ok(all)
}

/// Where a service is reached: protocol and (port, address).
#[derive(Default)]
struct Reached {
    protocol: u8,
    at: Vec<(u16, std::net::IpAddr)>,
    affinity: u32,
    /// The [`Service::flags`] of all its addresses.
    flags: Vec<u32>,
    /// Its source ranges.
    sources: Vec<String>,
}

impl Reached {
    /// Where its traffic policy is Local.
    fn local(&self) -> Option<&'static str> {
        let local = |everybody| {
            let of = |flags: &u32| (flags & Service::EVERYBODY != 0) == everybody;
            self.flags.iter().filter(|&flags| flags & Service::LOCAL != 0).any(of)
        };
        match (local(false), local(true)) {
            (true, true) => Some("both"),
            (true, false) => Some("external"),
            (false, true) => Some("internal"),
            (false, false) => None,
        }
    }
}

fn reached<A: Addr>(tables: &FamilyMaps<A>, all: &mut BTreeMap<u32, Reached>) -> Result<()> {
    for (key, service) in tables.services.entries()? {
        let entry = all.entry(service.id).or_default();
        entry.protocol = key.proto;
        entry.at.push((key.port.get(), key.addr.to_ip()));
        entry.affinity = entry.affinity.max(service.affinity);
        entry.flags.push(service.flags);
    }
    for (source, _) in tables.sources.entries()? {
        let net = format!("{}/{}", source.addr.to_ip(), source.len.saturating_sub(u32::BITS));
        all.entry(source.service).or_default().sources.push(net);
    }
    Ok(())
}

/// Services.
pub fn services(paths: &Paths) -> Result<Table> {
    let maps = open(paths)?;
    let names = names(&maps)?;
    let backends = all_backends(&maps)?;
    let ticks = maps.settings.get(&0)?.unwrap_or_default().ticks_per_second.max(1);
    let mut all = BTreeMap::new();
    reached(&maps.v4, &mut all)?;
    reached(&maps.v6, &mut all)?;
    let mut table = Table::new(&[
        "name",
        "id",
        "addresses",
        "protocol",
        "port",
        "backends",
        "affinity_s",
        "local",
        "sources",
        "connections",
        "packets",
        "bytes",
        "reply_packets",
        "reply_bytes",
        "waiting",
        "failing",
    ]);
    let mut waiting = waiting(paths);
    let mut told = BTreeSet::new();
    let report = Report::read(&paths.health());
    let mut rows: Vec<_> = all.into_iter().map(|(id, at)| (names.get(&id).cloned(), id, at)).collect();
    rows.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    for (name, id, mut reached) in rows {
        // Node ports lie above the service's own port, which all other addresses share.
        reached.at.sort_unstable();
        reached.sources.sort_unstable();
        let port = reached.at.first().map(|(port, _)| *port);
        let address = |&(p, addr): &(u16, std::net::IpAddr)| match Some(p) == port {
            true => addr.to_string(),
            false => SocketAddr::new(addr, p).to_string(),
        };
        let mine = || backends.iter().filter(|b| b.service == id);
        let past = maps.retired.get(&id)?.unwrap_or_default();
        let sum = mine().fold(past, |sum, b| add(sum, b.counters));
        let service = name.as_ref().and_then(|name| name.rsplit_once(':')).map(|(service, _)| service);
        let why = service.and_then(|service| waiting.get(service)).cloned();
        told.extend(service.filter(|_| why.is_some()).map(str::to_owned));
        table.push([
            name.clone().into(),
            id.into(),
            Cell::List(reached.at.iter().map(address).collect()),
            protocol(reached.protocol).into(),
            port.into(),
            mine().filter(|b| b.state == Backend::<lb_common::wire::Ip4>::ACTIVE).count().into(),
            (reached.affinity != 0).then(|| reached.affinity / ticks).into(),
            reached.local().map(str::to_owned).into(),
            Cell::List(reached.sources),
            sum.connections.into(),
            sum.packets.into(),
            sum.bytes.into(),
            sum.reply_packets.into(),
            sum.reply_bytes.into(),
            why.into(),
            failing_of(name.as_deref(), &report).into(),
        ]);
    }
    waiting.retain(|name, _| !told.contains(name));
    for (name, why) in waiting {
        // In no table, since it has no address at all.
        let mut row = [const { Cell::None }; 16];
        (row[0], row[5], row[14]) = (name.into(), 0u32.into(), why.into());
        [row[2], row[8]] = [const { Cell::List(Vec::new()) }; 2];
        table.push(row);
    }
    Ok(table)
}

/// The endpoints of a service that fail their probes, and why.
fn failing_of(name: Option<&str>, report: &Report) -> Option<Cell<'static>> {
    let (service, _) = name?.rsplit_once(':')?;
    let mine = report.failing.iter().filter(|f| format!("{}/{}", f.namespace, f.service) == service);
    let all: Vec<String> = mine.map(|f| format!("{}: {}", SocketAddr::new(f.address, f.port), f.why)).collect();
    (!all.is_empty()).then_some(Cell::List(all))
}

/// Shares of the rows by backend, in percent.
fn shares<A: Addr>(maps: &Maps, tables: &FamilyMaps<A>, all: &mut BTreeMap<u32, f64>) -> Result<()> {
    let rows: BTreeMap<u32, u32> =
        tables.services.entries()?.iter().filter(|(_, s)| s.count > 0).map(|(_, s)| (s.first, s.count)).collect();
    for (&first, &count) in &rows {
        for backend in maps.slots.read(first, count)? {
            *all.entry(backend).or_default() += 100.0 / f64::from(count);
        }
    }
    Ok(())
}

/// Backends.
pub fn backends(paths: &Paths) -> Result<Table> {
    let maps = open(paths)?;
    let names = names(&maps)?;
    let mut share = BTreeMap::new();
    shares(&maps, &maps.v4, &mut share)?;
    shares(&maps, &maps.v6, &mut share)?;
    let now = clock::read_pinned(paths, &maps).map(|reading| reading.tick());
    let ticks = maps.settings.get(&0)?.unwrap_or_default().ticks_per_second.max(1);
    let interfaces = interfaces(mirror(&State::read(paths)?)?.as_ref());
    let mut table = Table::new(&[
        "service",
        "id",
        "address",
        "port",
        "state",
        "weight",
        "share",
        "remote",
        "next_hop",
        "left_s",
        "connections",
        "packets",
        "bytes",
        "reply_packets",
        "reply_bytes",
    ]);
    for b in all_backends(&maps)? {
        let active = b.state == Backend::<lb_common::wire::Ip4>::ACTIVE;
        let hop = maps.next_hops.get(&b.next_hop)?.unwrap_or(NextHop::default());
        let left = now.as_ref().ok().filter(|_| b.deadline != 0);
        let left = left.map(|now| Cell::Seconds(f64::from(b.deadline.wrapping_sub(*now) as i32) / f64::from(ticks)));
        table.push([
            names.get(&b.service).cloned().into(),
            b.id.into(),
            b.address.to_string().into(),
            b.port.into(),
            if active { "active" } else { "draining" }.into(),
            b.weight.into(),
            Cell::Percent(share.get(&b.id).copied().unwrap_or(0.0)),
            Cell::Flag(b.remote),
            next_hop(&hop, &interfaces).into(),
            left.unwrap_or(Cell::None),
            b.counters.connections.into(),
            b.counters.packets.into(),
            b.counters.bytes.into(),
            b.counters.reply_packets.into(),
            b.counters.reply_bytes.into(),
        ]);
    }
    Ok(table)
}
