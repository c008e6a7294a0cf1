//! [`Apply`] on [`Fake`]: the agent's operations, refused where a table has no room, as the
//! kernel refuses them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use lb_common::port_table::class;
use lb_common::table::{Service, Settings};
use lb_common::wire::Addr;
use lb_user::apply::ends::{contains, is_not_of, is_outside, outside};
use lb_user::intent::Capacity;
use lb_user::plan::{Apply, Change, Contents, Family, FamilyOp, Op};

use super::{Fake, InFake, SMALL};

/// A table that has no room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub table: &'static str,
    pub capacity: u32,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the table {} is full ({} entries)", self.table, self.capacity)
    }
}

impl std::error::Error for Refused {}

fn change<K: Ord + Clone, V: Clone>(
    table: &mut BTreeMap<K, V>,
    change: &Change<K, V>,
    (name, capacity): (&'static str, u32),
) -> Result<(), Refused> {
    match change {
        Change::Set(key, _) if !table.contains_key(key) && table.len() >= capacity as usize => {
            return Err(Refused { table: name, capacity });
        }
        Change::Set(key, value) => table.insert(key.clone(), value.clone()),
        Change::Remove(key) => table.remove(key),
    };
    Ok(())
}

/// An array's entry: refused where the index is behind its end.
fn element<V: Clone>(
    table: &mut BTreeMap<u32, V>,
    op: &Change<u32, V>,
    (name, capacity): (&'static str, u32),
) -> Result<(), Refused> {
    match op {
        Change::Set(index, _) if *index >= capacity => Err(Refused { table: name, capacity }),
        _ => change(table, op, (name, capacity)),
    }
}

impl Apply for Fake {
    type Error = Refused;

    fn apply(&mut self, op: &Op) -> Result<(), Refused> {
        let capacity = self.capacity;
        match op {
            Op::Settings(settings) => self.settings = *settings,
            Op::FilterWord { index, value: 0 } => drop(self.filter.remove(index)),
            Op::FilterWord { index, value } => drop(self.filter.insert(*index, *value)),
            Op::Row { first, backends } => return self.write_row(*first, backends),
            Op::NextHop(op) => {
                return element(&mut self.next_hops, op, ("next_hops", capacity.next_hops));
            }
            Op::Group(op) => return change(&mut self.groups, &op.unboxed(), ("groups", 64)),
            Op::Tunnel(op) => return change(&mut self.tunnels, op, ("tunnels", 4_096)),
            Op::Peer(op) => return change(&mut self.peers, op, ("peers", 4_096)),
            Op::Link(op) => return change(&mut self.links, op, ("links", 4_096)),
            Op::Name(op) => return change(&mut self.names, op, ("names", capacity.services)),
            Op::Prefix(op) => return element(&mut self.prefixes, op, ("prefixes", 16)),
            Op::Pod(op) => return change(&mut self.pods, op, ("pods", 4_096)),
            Op::PeerPort(op) => return change(&mut self.peer_ports, op, ("peer_ports", 1 << 16)),
            Op::V4(op) => return self.apply_family(op),
            Op::V6(op) => return self.apply_family(op),
            Op::Hooks(op) => return change(&mut self.hooks, op, ("hooks", u32::MAX)),
            Op::EndFlows { backends } => self.end_flows(backends),
        }
        Ok(())
    }

    fn read(&self) -> Result<Contents, Refused> {
        let mut rows = BTreeMap::new();
        let v4 = self.v4.services.values();
        for (first, count) in v4.chain(self.v6.services.values()).flat_map(Service::rows) {
            let row = (first..first + count).map(|slot| self.slots.get(slot as usize).copied().unwrap_or(0));
            rows.insert(first, row.collect());
        }
        Ok(Contents {
            settings: self.settings,
            filter: self.filter.clone(),
            rows,
            next_hops: self.next_hops.clone(),
            groups: self.groups.clone(),
            links: self.links.clone(),
            names: self.names.clone(),
            prefixes: self.prefixes.clone(),
            tunnels: self.tunnels.clone(),
            peers: self.peers.clone(),
            pods: self.pods.clone(),
            peer_ports: self.peer_ports.clone(),
            v4: self.v4.clone(),
            v6: self.v6.clone(),
            hooks: self.hooks.clone(),
        })
    }
}

impl Fake {
    /// Tables that hold `contents` at once, for tests that are not about the way there.
    pub fn holding(contents: &Contents) -> Self {
        let pools = contents.v4.uplinks.values().map(|uplink| uplink.count).sum::<u32>();
        let nat_addresses = pools.max(contents.v6.uplinks.values().map(|uplink| uplink.count).sum());
        let capacity = Capacity { nat_addresses, ..SMALL };
        let mut fake = Fake { settings: contents.settings, ..Fake::new(capacity, contents.settings.ticks_per_second) };
        fake.filter = contents.filter.clone();
        fake.next_hops = contents.next_hops.clone();
        fake.groups = contents.groups.clone();
        fake.links = contents.links.clone();
        fake.names = contents.names.clone();
        fake.prefixes = contents.prefixes.clone();
        fake.tunnels = contents.tunnels.clone();
        fake.peers = contents.peers.clone();
        fake.pods = contents.pods.clone();
        fake.peer_ports = contents.peer_ports.clone();
        fake.v4 = contents.v4.clone();
        fake.v6 = contents.v6.clone();
        fake.hooks = contents.hooks.clone();
        for (first, row) in &contents.rows {
            fake.write_row(*first, row).expect("the rows of a plan fit the slot array");
        }
        fake
    }

    fn write_row(&mut self, first: u32, backends: &[u32]) -> Result<(), Refused> {
        let end = first as usize + backends.len();
        if end > self.capacity.slots as usize {
            return Err(Refused { table: "slots", capacity: self.capacity.slots });
        }
        if self.slots.len() < end {
            self.slots.resize(end, 0);
        }
        self.slots[first as usize..end].copy_from_slice(backends);
        Ok(())
    }

    fn apply_family<A: InFake>(&mut self, op: &FamilyOp<A>) -> Result<(), Refused> {
        let capacity = self.capacity;
        if let FamilyOp::Backend(Change::Remove(id)) = op {
            // What it has counted goes to its service's past.
            self.tally.borrow_mut().backends.remove(id);
        }
        match op {
            FamilyOp::EndOutside { addr, plane } => {
                A::flows(self).remove_where(|key, flow| is_outside(key, flow, *addr));
                A::ports(self).empty(*plane);
                return Ok(());
            }
            FamilyOp::EndPrefix(prefix) => {
                let gone = |addr| contains(prefix, addr);
                A::flows(self).remove_where(|key, flow| outside(key, flow).is_some_and(|(addr, _)| gone(addr)));
                return Ok(());
            }
            FamilyOp::EndPorts { planes, first, last } => {
                let settings = Settings { snat_first: *first, snat_last: *last, ..Settings::default() };
                A::flows(self).remove_where(|key, flow| {
                    let gone = |addr, port| planes.contains_key(&addr) && is_not_of(&settings, port);
                    class(key.proto).is_some() && outside(key, flow).is_some_and(|(addr, port)| gone(addr, port))
                });
                let ports = A::ports(self);
                planes.values().for_each(|&plane| ports.empty_where(plane, |port| is_not_of(&settings, port)));
                return Ok(());
            }
            _ => {}
        }
        let family: &mut Family<A> = A::family_mut(self);
        match op {
            FamilyOp::Service(op) => change(&mut family.services, op, ("services", capacity.services)),
            FamilyOp::Source(op) => change(&mut family.sources, op, ("source_ranges", capacity.services)),
            FamilyOp::Backend(op) => element(&mut family.backends, op, ("backends", capacity.backends)),
            FamilyOp::Owned(op) => change(&mut family.owned, op, ("owned", capacity.services)),
            FamilyOp::Route(Change::Set(prefix, index)) => {
                family.routes.insert(*prefix, *index);
                Ok(())
            }
            FamilyOp::Route(Change::Remove(prefix)) => {
                family.routes.remove(prefix);
                Ok(())
            }
            FamilyOp::Routes(all) => {
                family.routes = all.clone();
                Ok(())
            }
            FamilyOp::Announced(op) => change(&mut family.announced, op, ("announced", capacity.services)),
            FamilyOp::Uplink(op) => change(&mut family.uplinks, op, ("uplinks", 64)),
            FamilyOp::Allowed(op) => change(&mut family.allowed, op, ("peers", 1 << 18)),
            FamilyOp::EndOutside { .. } | FamilyOp::EndPrefix(_) | FamilyOp::EndPorts { .. } => Ok(()),
        }
    }

    fn end_flows(&mut self, backends: &BTreeSet<u32>) {
        fn end<A: Addr>(state: &mut super::State<A>, backends: &BTreeSet<u32>) {
            state.affinity.retain(|_, affinity| !backends.contains(&affinity.backend));
        }
        self.flows4.remove_where(|_, flow| backends.contains(&flow.backend));
        self.flows6.remove_where(|_, flow| backends.contains(&flow.backend));
        end(&mut self.state4.borrow_mut(), backends);
        end(&mut self.state6.borrow_mut(), backends);
        self.tally.borrow_mut().backends.retain(|id, _| !backends.contains(id));
    }
}
