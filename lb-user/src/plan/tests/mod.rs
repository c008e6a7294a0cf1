//! Plan and diff, tested together: worlds to plan for, and a model of the kernel's tables.

mod churn;
mod nat;
mod plan;
mod policies;
mod routes;
mod update;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use lb_common::table::filter::{BITS, addr_bit, inside_bit, outside_bit, tuple_bit};
use lb_common::table::{Backend, NextHop, Owned, Prefix, Service, Settings};
use lb_common::wire::Addr;

use super::contents::{Change, Contents, Family, FamilyOp, Hooks, Op};
use super::ids::outside;
use super::plan::Clock;
use crate::moment::Moment;

fn clock(seconds: u32) -> Clock {
    let now = Moment::START + Duration::from_secs(1_000_000 + u64::from(seconds));
    Clock { now, tick: 100 * seconds + 7, ticks_per_second: 100 }
}

/// Tables with nothing in them.
fn nothing() -> Contents {
    Contents::empty(Settings::default())
}

/// The kernel's tables: the slot array is flat, and rows are what services say.
#[derive(Clone)]
struct Model {
    contents: Contents,
    slots: Vec<u32>,
    /// Backends whose connections were ended and that haven't been set since.
    ended: BTreeSet<u32>,
    /// Who has connections in each plane, by family; None: not looked at.
    planes: Option<BTreeMap<(bool, u32), IpAddr>>,
}

impl Model {
    fn new(contents: &Contents) -> Self {
        let planes = outside(&contents.v4).map(|(addr, plane)| ((false, plane), addr.to_ip()));
        let planes = planes.chain(outside(&contents.v6).map(|(addr, plane)| ((true, plane), addr.to_ip()))).collect();
        let mut model =
            Model { contents: contents.clone(), slots: Vec::new(), ended: BTreeSet::new(), planes: Some(planes) };
        contents.rows.iter().for_each(|(&first, row)| model.write(first, row));
        model
    }

    fn write(&mut self, first: u32, row: &[u32]) {
        let (first, end) = (first as usize, first as usize + row.len());
        self.slots.resize(self.slots.len().max(end), 0);
        self.slots[first..end].copy_from_slice(row);
    }

    fn apply(&mut self, op: &Op) {
        let c = &mut self.contents;
        match op {
            Op::Settings(settings) => c.settings = *settings,
            Op::FilterWord { index, value: 0 } => drop(c.filter.remove(index)),
            Op::FilterWord { index, value } => drop(c.filter.insert(*index, *value)),
            Op::Row { first, backends } => self.write(*first, backends),
            Op::NextHop(change) => apply(&mut c.next_hops, change),
            Op::Group(change) => apply(&mut c.groups, &change.unboxed()),
            Op::Tunnel(change) => apply(&mut c.tunnels, change),
            Op::Peer(change) => apply(&mut c.peers, change),
            Op::Link(change) => apply(&mut c.links, change),
            Op::Name(change) => apply(&mut c.names, change),
            Op::Prefix(change) => apply(&mut c.prefixes, change),
            Op::Pod(change) => apply(&mut c.pods, change),
            Op::PeerPort(change) => apply(&mut c.peer_ports, change),
            Op::V4(op) => family(&mut c.v4, op, &mut self.ended, &mut self.planes),
            Op::V6(op) => family(&mut c.v6, op, &mut self.ended, &mut self.planes),
            Op::Hooks(change) => apply(&mut c.hooks, change),
            Op::EndFlows { backends } => self.ended.extend(backends),
        }
    }

    fn read(&self) -> Contents {
        let mut read = Contents { rows: BTreeMap::new(), ..self.contents.clone() };
        let services = read.v4.services.values().chain(read.v6.services.values());
        for (first, count) in services.flat_map(Service::rows) {
            read.rows.insert(first, self.slots[first as usize..(first + count) as usize].to_vec());
        }
        read
    }

    /// What must hold behind every single operation.
    fn check(&self) {
        self.check_family(&self.contents.v4);
        self.check_family(&self.contents.v6);
        let hooked =
            !self.contents.hooks.values().all(|h| *h == Hooks { interface: h.interface.clone(), ..Hooks::default() });
        assert!(!hooked || self.contents.settings.ticks_per_second > 0, "hooks before settings");
        let c = &self.contents;
        let crosses = !c.v4.uplinks.is_empty() || !c.v6.uplinks.is_empty() || !c.prefixes.is_empty();
        assert!(crosses || !c.settings.nat(Settings::NAT), "translated, but to nothing");
    }

    fn check_family<A: Addr>(&self, family: &Family<A>) {
        let filter = |bit: u32| self.contents.filter.get(&(bit / 64)).is_some_and(|w| w >> (bit % 64) & 1 == 1);
        for (key, service) in &family.services {
            assert!(filter(tuple_bit(key.addr, key.port, key.proto)), "filter lacks service {key:?}");
            if service.flags & Service::RANGES != 0 {
                let named = family.sources.keys().any(|source| source.service == service.id);
                assert!(named, "{key:?} asks for its sources, and none are there");
            }
            for slot in service.rows().flat_map(|(first, count)| first..first + count) {
                let id = self.slots[slot as usize];
                let backend =
                    family.backends.get(&id).unwrap_or_else(|| panic!("slot {slot} of {key:?}: no backend {id}"));
                assert_eq!(backend.state, Backend::<A>::ACTIVE, "slot {slot} of {key:?}: backend {id} leaves");
                assert_eq!(backend.service, service.id, "slot {slot} of {key:?}: backend {id} is another service's");
                assert!(filter(tuple_bit(backend.addr, backend.port, key.proto)), "filter lacks backend {backend:?}");
                assert!(!self.ended.contains(&id), "connections of {id} are ended, but it gets new ones");
            }
        }
        for (prefix, _) in family.owned.iter().filter(|(_, o)| o.kind == Owned::VIP) {
            assert!(filter(addr_bit(prefix.addr)), "filter lacks {prefix:?}");
        }
        self.check_sides(family);
        let led_to = family.routes.values().chain(family.backends.values().map(|b| &b.next_hop));
        for index in led_to.map(|index| index & !NextHop::DIRECT) {
            let members = match index & NextHop::GROUP {
                0 => &[index][..],
                _ => self.contents.groups.get(&(index & !NextHop::GROUP)).expect("a group").as_slice(),
            };
            let known = |index| self.contents.next_hops.contains_key(index);
            assert!(members.iter().all(known), "no next hop {members:?}");
        }
        assert!(self.contents.filter.keys().all(|&index| index < BITS / 64));
    }

    /// Translated packets get what is known to be outside, and the filter lets both sides' through.
    fn check_sides<A: Addr>(&self, family: &Family<A>) {
        let filter = |bit: u32| self.contents.filter.get(&(bit / 64)).is_some_and(|w| w >> (bit % 64) & 1 == 1);
        for (link, uplink) in &family.uplinks {
            for (&addr, &plane) in uplink.addrs.iter().zip(&uplink.planes).take(uplink.count as usize) {
                let owned = family.owned.get(&Prefix { len: A::BITS, addr }).copied();
                let outside = Owned { kind: Owned::OUTSIDE, index: plane as u16 };
                assert_eq!(owned, Some(outside), "{addr:?} of uplink {link}");
                assert!(filter(outside_bit(addr)), "filter lacks {addr:?} of uplink {link}");
            }
        }
        for (prefix, owned) in &family.owned {
            if owned.is(Owned::PREFIX_INSIDE | Owned::PREFIX_OUTSIDE) {
                assert!(self.contents.prefixes.contains_key(&owned.index.into()), "no pair of {prefix:?}");
            }
            let inside = owned.is(Owned::INSIDE | Owned::PREFIX_INSIDE);
            assert!(!inside || filter(inside_bit(prefix.addr)), "filter lacks the inside {prefix:?}");
            let outside = owned.is(Owned::OUTSIDE | Owned::PREFIX_OUTSIDE);
            assert!(!outside || filter(outside_bit(prefix.addr)), "filter lacks the outside {prefix:?}");
            let alone = owned.is(Owned::VIP | Owned::UNUSED);
            assert!(!alone || owned.kind.is_power_of_two(), "{prefix:?} is a service's and more");
        }
    }
}

fn apply<K: Ord + Clone, V: Clone>(table: &mut BTreeMap<K, V>, change: &Change<K, V>) {
    match change {
        Change::Set(key, value) => drop(table.insert(key.clone(), value.clone())),
        Change::Remove(key) => drop(table.remove(key)),
    }
}

/// Connections of a plane are those of one address, until they are ended.
fn note_planes<A: Addr>(family: &Family<A>, op: &FamilyOp<A>, planes: &mut BTreeMap<(bool, u32), IpAddr>) {
    let has = |addr: A| family.uplinks.values().any(|u| u.addrs[..u.count as usize].contains(&addr));
    match op {
        FamilyOp::Owned(Change::Set(prefix, owned)) if owned.is(Owned::OUTSIDE) => {
            let old = planes.insert((A::IS_V6, owned.index.into()), prefix.addr.to_ip());
            assert!(old.is_none_or(|old| old == prefix.addr.to_ip()), "{prefix:?} gets a plane of {old:?}");
        }
        FamilyOp::Owned(Change::Set(prefix, _) | Change::Remove(prefix)) => {
            let addr = prefix.addr.to_ip();
            let left = prefix.len == A::BITS && planes.iter().any(|(&(v6, _), a)| v6 == A::IS_V6 && *a == addr);
            assert!(!left, "{prefix:?} has connections that nothing tells of");
        }
        FamilyOp::EndOutside { addr, plane } => {
            assert!(!has(*addr), "{addr:?} gets new connections");
            planes.remove(&(A::IS_V6, *plane));
        }
        FamilyOp::EndPrefix(prefix) => assert!(family.owned.contains_key(prefix), "{prefix:?} is not there"),
        _ => {}
    }
}

fn family<A: Addr>(
    family: &mut Family<A>,
    op: &FamilyOp<A>,
    ended: &mut BTreeSet<u32>,
    planes: &mut Option<BTreeMap<(bool, u32), IpAddr>>,
) {
    if let Some(planes) = planes {
        note_planes(family, op, planes);
    }
    match op {
        FamilyOp::Service(change) => apply(&mut family.services, change),
        FamilyOp::Source(change) => apply(&mut family.sources, change),
        FamilyOp::Backend(change) => {
            match change {
                Change::Set(id, backend) if backend.state == Backend::<A>::ACTIVE => drop(ended.remove(id)),
                Change::Set(..) => {}
                Change::Remove(id) => assert!(ended.contains(id), "{id} is removed with its connections"),
            }
            apply(&mut family.backends, change);
        }
        FamilyOp::Owned(change) => apply(&mut family.owned, change),
        FamilyOp::Route(Change::Set(prefix, index)) => drop(family.routes.insert(*prefix, *index)),
        FamilyOp::Route(Change::Remove(prefix)) => drop(family.routes.remove(prefix)),
        FamilyOp::Routes(all) => family.routes = all.clone(),
        FamilyOp::Announced(change) => apply(&mut family.announced, change),
        FamilyOp::Uplink(change) => apply(&mut family.uplinks, change),
        FamilyOp::Allowed(change) => apply(&mut family.allowed, change),
        FamilyOp::EndOutside { .. } | FamilyOp::EndPrefix(_) | FamilyOp::EndPorts { .. } => {}
    }
}
