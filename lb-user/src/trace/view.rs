//! The live maps as the engine asks for them, without a trace: what it would write goes into copies.
//!
//! Invariant: no map is written. An entry of a table that packets write themselves (connections, ports) is copied when
//! it is first looked at, and the copy stays for as long as the view: several packets of a trace see what those before
//! them would have left. Each question and its answer is noted for whoever asked for the trace.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use anyhow::Result;
use elsa::FrozenMap;
use lb_common::drop::Note;
use lb_common::fib;
use lb_common::flow_table::cell::Cell64;
use lb_common::flow_table::{Entry, FlowTable, WAYS, place_of};
use lb_common::path::network_policy::{Pods, PolicyTables};
use lb_common::path::parse::Ip;
use lb_common::port_table::{Holder, Owner, PortTable};
use lb_common::table::route::PLACES;
use lb_common::table::{
    Admitted, Affinity, AffinityKey, Announced, Backend, FlowKey, FragmentKey, FragmentPorts, Link, MappingEvent,
    NextHop, Owned, Peer, PeerPort, PeerPortPrefix, PeerPrefix, Plain, Pod, Prefix, PrefixPair, Service, ServiceKey,
    Settings, Source, SourcePrefix, Tunnel, Uplink,
};
use lb_common::tables::{Common, Configured, Tables};
use lb_common::wire::{Addr, Ip4, Ip6};

use super::routes::Routes;
use super::told::{self, Names, Step};
use crate::apply::Maps;
use crate::apply::maps::FamilyMaps;
use crate::apply::table::Table;
use crate::show;

/// What packets of one family would have written.
struct Copies<A: Addr> {
    entries: FrozenMap<u32, Box<Entry<A>>>,
    ports: FrozenMap<u32, Box<Cell64>>,
    owners: FrozenMap<u32, Box<Owner<A>>>,
    holders: FrozenMap<u32, Box<Holder<A>>>,
    uplinks: FrozenMap<u32, Box<Uplink<A>>>,
    pairs: FrozenMap<u32, Box<PrefixPair<A>>>,
    affinity: RefCell<HashMap<AffinityKey<A>, Affinity>>,
    admitted: RefCell<HashMap<FlowKey<A>, Admitted<A>>>,
    allowed_fragments: RefCell<HashMap<FragmentKey<A>, u32>>,
    fragments: RefCell<HashMap<FragmentKey<A>, FragmentPorts>>,
}

impl<A: Addr> Default for Copies<A> {
    fn default() -> Self {
        Copies {
            entries: FrozenMap::new(),
            ports: FrozenMap::new(),
            owners: FrozenMap::new(),
            holders: FrozenMap::new(),
            uplinks: FrozenMap::new(),
            pairs: FrozenMap::new(),
            affinity: RefCell::default(),
            admitted: RefCell::default(),
            allowed_fragments: RefCell::default(),
            fragments: RefCell::default(),
        }
    }
}

/// The copy of what lies at an index, made if it is the first time.
fn copied<T: ?Sized>(copies: &FrozenMap<u32, Box<T>>, index: u32, make: impl FnOnce() -> Option<Box<T>>) -> Option<&T> {
    if let Some(copy) = copies.get(&index) {
        return Some(copy);
    }
    Some(copies.insert(index, make()?))
}

/// An address family's part of a view.
pub trait Family: Ip {
    fn maps(maps: &Maps) -> &FamilyMaps<Self>;
    fn side<'v>(view: &'v View<'_>) -> &'v Side<Self>;
    fn prefix_pair(maps: &Maps, index: u32) -> Result<Option<PrefixPair<Self>>>;
}

pub struct Side<A: Addr> {
    copies: Copies<A>,
    routes: Routes,
}

impl Family for Ip4 {
    fn maps(maps: &Maps) -> &FamilyMaps<Self> {
        &maps.v4
    }
    fn side<'v>(view: &'v View<'_>) -> &'v Side<Self> {
        &view.v4
    }
    fn prefix_pair(_: &Maps, _: u32) -> Result<Option<PrefixPair<Self>>> {
        Ok(None)
    }
}

impl Family for Ip6 {
    fn maps(maps: &Maps) -> &FamilyMaps<Self> {
        &maps.v6
    }
    fn side<'v>(view: &'v View<'_>) -> &'v Side<Self> {
        &view.v6
    }
    fn prefix_pair(maps: &Maps, index: u32) -> Result<Option<PrefixPair<Self>>> {
        maps.prefixes.get(&index)
    }
}

/// What the engine asked on its way, by which one can say why.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    pub service: Option<Service>,
    /// The slot that the connection's hash led to.
    pub slot: Option<u32>,
    pub bound: Option<u32>,
    pub backend: Option<u32>,
}

pub struct View<'a> {
    maps: &'a Maps,
    settings: Settings,
    pub names: &'a Names,
    v4: Side<Ip4>,
    v6: Side<Ip6>,
    steps: RefCell<Vec<Step>>,
    asked: Cell<Asked>,
    /// The first map that couldn't be read.
    trouble: RefCell<Option<anyhow::Error>>,
}

impl<'a> View<'a> {
    pub fn new(maps: &'a Maps, dir: &std::path::Path, names: &'a Names) -> Result<Self> {
        Ok(View {
            maps,
            settings: maps.settings.get(&0)?.unwrap_or_default(),
            names,
            v4: Side { copies: Copies::default(), routes: Routes::open::<Ip4>(dir)? },
            v6: Side { copies: Copies::default(), routes: Routes::open::<Ip6>(dir)? },
            steps: RefCell::default(),
            asked: Cell::default(),
            trouble: RefCell::default(),
        })
    }

    /// What was asked since the last time, or why it can't be known.
    pub fn take(&self) -> Result<(Vec<Step>, Asked)> {
        let (steps, asked) = (self.steps.take(), self.asked.take());
        self.trouble.take().map_or(Ok((steps, asked)), Err)
    }

    pub(super) fn tell(&self, stage: &'static str, text: String) {
        let step = Step { stage, text };
        let mut steps = self.steps.borrow_mut();
        // Some is asked for twice.
        if !steps.contains(&step) {
            steps.push(step);
        }
    }

    fn ask(&self, change: impl FnOnce(&mut Asked)) {
        let mut asked = self.asked.get();
        change(&mut asked);
        self.asked.set(asked);
    }

    fn sure<T>(&self, result: Result<Option<T>>) -> Option<T> {
        result.unwrap_or_else(|error| {
            self.trouble.borrow_mut().get_or_insert(error);
            None
        })
    }

    fn get<K: Plain, V: Plain>(&self, table: &Table<K, V>, key: &K) -> Option<V> {
        self.sure(table.get(key))
    }
}

impl Configured for View<'_> {
    fn settings(&self) -> Settings {
        self.settings
    }
}

impl Common for View<'_> {
    fn filter(&self, bit: u32) -> u64 {
        self.get(&self.maps.filter, &(bit / 64)).unwrap_or_default()
    }

    fn slot(&self, index: u32) -> Option<u32> {
        if index >= self.maps.slots.capacity() {
            return None;
        }
        let backend = self.sure(self.maps.slots.read(index, 1).map(|slots| slots.first().copied()))?;
        self.ask(|asked| asked.slot = Some(index));
        Some(backend)
    }

    fn next_hop(&self, index: u32) -> Option<NextHop> {
        let hop = (index < self.maps.next_hops.capacity()).then(|| self.get(&self.maps.next_hops, &index))??;
        if index != NextHop::UNRESOLVED {
            self.tell("next hop", self.names.next_hop(&hop));
        }
        Some(hop)
    }

    fn member(&self, group: u32, place: u32) -> Option<u32> {
        let group = self.get(&self.maps.groups, &group)?;
        let hop = group.get(place as usize % PLACES).copied();
        self.tell("route", format!("one of several next hops, by the hash of the flow (place {place} of {PLACES})"));
        hop
    }

    fn tunnel(&self, next_hop: u32) -> Option<Tunnel> {
        let tunnel = self.get(&self.maps.tunnels, &next_hop)?;
        let [local, remote] = [tunnel.local, tunnel.remote].map(told::plain);
        let by = self.names.interface(tunnel.ifindex);
        self.tell("overlay", format!("in VXLAN from {local} to {remote} by {by}"));
        Some(tunnel)
    }

    fn is_peer(&self, addr: &Ip6) -> bool {
        let there = self.get(&self.maps.peers, addr).is_some();
        let is = if there { "a node's" } else { "no node's" };
        self.tell("overlay", format!("from {}, {is} address", told::plain(*addr)));
        there
    }

    fn link(&self, ifindex: u32) -> Option<Link> {
        let link = self.get(&self.maps.links, &ifindex);
        let role = link.map_or_else(|| "is neither a port nor inside".to_owned(), |link| told::role(&link));
        self.tell("link", format!("{} {role}", self.names.interface(ifindex)));
        link
    }

    fn icmp_permit(&self, _: u32) -> bool {
        self.tell("icmp", "an ICMP error of ours, if their rate allows for one more".into());
        true
    }

    fn count(&self, _: u32, _: bool, _: u32) {}

    fn count_connection(&self, _: u32) {
        self.tell("connection", "a new one of this backend".into());
    }

    fn note(&self, note: Note) {
        self.tell("noted", format!("{}: {}", note.label(), note.text().trim_start()));
    }
}

impl<A: Family> FlowTable<A> for View<'_> {
    fn line(&self, place: u32) -> Option<&Entry<A>> {
        copied(&A::side(self).copies.entries, place, || {
            let copy = Box::<Entry<A>>::default();
            copy.copy(A::maps(self.maps).flows.line(place)?, place_of(place) % WAYS == WAYS - 1);
            Some(copy)
        })
    }

    fn mask(&self) -> u32 {
        A::maps(self.maps).flows.mask()
    }

    fn multiplier(&self, index: usize) -> u64 {
        A::maps(self.maps).flows.multiplier(index)
    }
}

impl<A: Family> PortTable<A> for View<'_> {
    fn ports(&self, index: u32) -> Option<&Cell64> {
        copied(&A::side(self).copies.ports, index, || {
            let copy = Box::<Cell64>::default();
            copy.store(A::maps(self.maps).ports.ports(index)?.load());
            Some(copy)
        })
    }

    fn owner(&self, index: u32) -> Option<&Owner<A>> {
        copied(&A::side(self).copies.owners, index, || {
            let copy = Box::<Owner<A>>::default();
            copy.copy(A::maps(self.maps).ports.owner(index)?);
            Some(copy)
        })
    }

    fn holder(&self, index: u32) -> Option<&Holder<A>> {
        copied(&A::side(self).copies.holders, index, || {
            let copy = Box::<Holder<A>>::default();
            copy.copy(A::maps(self.maps).ports.holder(index)?);
            Some(copy)
        })
    }
}

impl<A: Family> Tables<A> for View<'_> {
    fn service(&self, key: &ServiceKey<A>) -> Option<Service> {
        let service = self.get(&A::maps(self.maps).services, key)?;
        self.ask(|asked| asked.service = Some(service));
        self.tell("service", self.names.service(key, &service));
        Some(service)
    }

    fn allows(&self, source: &Source<A>) -> bool {
        let key = SourcePrefix { len: u32::BITS + A::BITS, service: source.service, addr: source.addr };
        let allowed = self.get(&A::maps(self.maps).sources, &key).is_some();
        let is = if allowed { "is" } else { "is not" };
        self.tell("service", format!("{} {is} in its source ranges", source.addr.to_ip()));
        allowed
    }

    fn backend(&self, id: u32) -> Option<Backend<A>> {
        let table = &A::maps(self.maps).backends;
        let backend = (id < table.capacity()).then(|| self.get(table, &id))??;
        self.ask(|asked| asked.backend = Some(id));
        self.tell("backend", told::backend(id, &backend));
        Some(backend)
    }

    fn route(&self, dst: A) -> Option<u32> {
        let way = self.sure(A::side(self).routes.find(dst).map(Some))?;
        let text = match way {
            fib::NONE => "none".to_owned(),
            fib::KERNEL => "the kernel is asked".to_owned(),
            _ => format!("to {} there is one", dst.to_ip()),
        };
        self.tell("route", text);
        way.checked_sub(1)
    }

    fn owned(&self, addr: A) -> Option<Owned> {
        let owned = self.get(&A::maps(self.maps).owned, &Prefix { len: A::BITS, addr });
        if let Some(owned) = owned {
            self.tell("address", format!("{} {}", addr.to_ip(), told::owned(&owned)));
        }
        owned
    }

    fn announced(&self, addr: A) -> Option<Announced> {
        let announced = self.get(&A::maps(self.maps).announced, &addr)?;
        let by = self.names.interface(announced.link);
        self.tell("address", format!("{} is announced on {by}", addr.to_ip()));
        Some(announced)
    }

    fn uplink(&self, ifindex: u32) -> Option<&Uplink<A>> {
        let table = &A::maps(self.maps).uplinks;
        let uplink = copied(&A::side(self).copies.uplinks, ifindex, || self.get(table, &ifindex).map(Box::new))?;
        self.tell("translation", format!("{} leads out", self.names.interface(ifindex)));
        Some(uplink)
    }

    fn prefix_pair(&self, index: u32) -> Option<&PrefixPair<A>> {
        let pair = || self.sure(A::prefix_pair(self.maps, index)).map(Box::new);
        copied(&A::side(self).copies.pairs, index, pair)
    }

    fn nat_event(&self, event: &MappingEvent<A>) {
        let what = if event.what == MappingEvent::<A>::BEGINS { "begins" } else { "ends" };
        let (inside, outside) =
            (show::endpoint(event.inside, event.inside_port), show::endpoint(event.outside, event.outside_port));
        self.tell("translation", format!("a mapping {what}: {inside} has {outside}"));
    }

    fn affinity(&self, key: &AffinityKey<A>) -> Option<Affinity> {
        let new = A::side(self).copies.affinity.borrow().get(key).copied();
        let bound = new.or_else(|| self.get(&A::maps(self.maps).affinity, key))?;
        self.ask(|asked| asked.bound = Some(bound.backend));
        self.tell("affinity", format!("{} was at backend {} last", key.client.to_ip(), bound.backend));
        Some(bound)
    }

    fn affinity_put(&self, key: &AffinityKey<A>, affinity: &Affinity) {
        A::side(self).copies.affinity.borrow_mut().insert(*key, *affinity);
    }

    fn fragment(&self, key: &FragmentKey<A>) -> Option<FragmentPorts> {
        let new = A::side(self).copies.fragments.borrow().get(key).copied();
        new.or_else(|| self.get(&A::maps(self.maps).fragments, key))
    }

    fn fragment_put(&self, key: &FragmentKey<A>, ports: &FragmentPorts) {
        A::side(self).copies.fragments.borrow_mut().insert(*key, *ports);
    }
}

impl Pods for View<'_> {
    fn pod(&self, link: u32) -> Option<Pod> {
        self.get(&self.maps.pods, &link)
    }

    fn ports(&self, port: &PeerPort) -> u64 {
        let PeerPort { policy, proto, port } = *port;
        let bits = self.get(&self.maps.peer_ports, &PeerPortPrefix { len: u64::BITS, policy, proto, port });
        let (number, name) = (port.get(), show::protocol(proto.get() as u8));
        let allowed = bits.map_or("by no rule", |_| "by a rule");
        self.tell("policy", format!("port {number}/{name} is named {allowed}"));
        bits.unwrap_or_default()
    }
}

impl<A: Family> PolicyTables<A> for View<'_> {
    fn peers(&self, peer: &Peer<A>) -> u64 {
        let key = PeerPrefix { len: u32::BITS + A::BITS, policy: peer.policy, addr: peer.addr };
        let bits = self.get(&A::maps(self.maps).allowed, &key);
        if peer.policy != Peer::<A>::NODE {
            let named = bits.map_or("by no rule", |_| "by a rule");
            self.tell("policy", format!("{} is named {named}", peer.addr.to_ip()));
        }
        bits.unwrap_or_default()
    }

    fn admitted(&self, key: &FlowKey<A>) -> Option<Admitted<A>> {
        let new = A::side(self).copies.admitted.borrow().get(key).copied();
        let admitted = new.or_else(|| self.get(&A::maps(self.maps).admitted, key))?;
        self.tell("policy", "the connection was allowed before".into());
        Some(admitted)
    }

    fn admit(&self, key: &FlowKey<A>, admitted: &Admitted<A>) {
        A::side(self).copies.admitted.borrow_mut().insert(*key, *admitted);
        self.tell("policy", "allowed".into());
    }

    fn allowed_fragment(&self, key: &FragmentKey<A>) -> Option<u32> {
        let new = A::side(self).copies.allowed_fragments.borrow().get(key).copied();
        new.or_else(|| self.get(&A::maps(self.maps).allowed_fragments, key))
    }

    fn allow_fragment(&self, key: &FragmentKey<A>, now: u32) {
        A::side(self).copies.allowed_fragments.borrow_mut().insert(*key, now);
    }
}
