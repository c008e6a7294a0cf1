//! Where addresses are: routes, next hops, and this node's own addresses.
//!
//! A mirror of the kernel's routing: unicast routes, connected prefixes, own addresses, and a host
//! route to each resolved neighbour that its link's prefix makes reachable. The lowest metric wins
//! among equal prefixes; links that are down don't count. Of several next hops those that are resolved share
//! the flows by weight.
//! Where paths lead is worked out once for all prefixes that have them, and the tables are made out of those of
//! the plan before: what a change costs is what changed, however many routes there are.
//! Invariant: what the kernel would do otherwise or hasn't resolved leads to
//! [`NextHop::UNRESOLVED`], that is, to the kernel. Not here: which links forward ([`super::hooks`]).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use ipnet::IpNet;
use lb_common::table::route::PLACES;
use lb_common::table::{Group, NextHop, Prefix, Tunnel};
use lb_common::wire::{Addr, Ip4, Ip6, Mac};

use super::hooks::is_judged;
use super::ids::Ids;
use super::maglev::{self, Member, identity};
use super::nat;
use crate::intent::{Address, Intent, Link, Network, Path, Paths, RouteKind, RouteTable};
use crate::nodes;
use crate::pods::wire::PREFIX;

/// Groups of next hops that there is room for.
const GROUPS: u32 = 64;

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Way {
    pub next_hop: u32,
    pub link: u32,
    pub gateway: Option<IpAddr>,
    pub source: Option<IpAddr>,
}

impl Way {
    /// The next hop, where it is one: of several each flow has its own, by the route.
    pub fn one(&self) -> u32 {
        if self.next_hop & NextHop::GROUP == 0 { self.next_hop } else { NextHop::UNRESOLVED }
    }
}

/// Link-local and multicast: their links are not a matter of routing.
fn is_routed(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(a) => !a.is_multicast() && !a.is_broadcast(),
        IpAddr::V6(a) => !a.is_multicast() && !a.is_unicast_link_local(),
    }
}

/// The whole of it. It owns its facts: single services and routes are planned with it later.
#[derive(Clone, Debug, Default)]
pub(super) struct Routing {
    addresses: Vec<Address>,
    /// Those that are up.
    links: HashMap<u32, Link>,
    /// Those that are resolved.
    neighbours: BTreeMap<(u32, IpAddr), Mac>,
    pub local: BTreeSet<IpAddr>,
    pub next_hops: BTreeMap<u32, NextHop>,
    pub groups: BTreeMap<u32, Group>,
    routes: RouteTable,
    /// Where paths lead; None: nowhere that counts.
    ways: HashMap<Paths, Option<Way>>,
    /// There was no room for a group: one of its next hops serves alone.
    pub cramped: bool,
    /// Networks of own addresses, where the kernel has no route to them.
    connected: BTreeMap<IpNet, Way>,
    /// Single addresses, before any route: own ones and neighbours.
    hosts: BTreeMap<IpNet, Way>,
    /// Blocks of other nodes' pods that are reached in the overlay, once the kernel has the routes into it.
    blocks: BTreeMap<IpNet, Way>,
    pub tunnels: BTreeMap<u32, Tunnel>,
    /// Networks that are reached untranslated.
    direct: Vec<IpNet>,
    /// Next hops' indexes by prefix.
    v4: OrdMap<Prefix<Ip4>, u32>,
    v6: OrdMap<Prefix<Ip6>, u32>,
}

impl Routing {
    /// `before`: that of another plan, whose tables these are made out of.
    pub fn new(intent: &Intent, network: &Network, ids: &mut Ids, before: Option<&Routing>) -> Self {
        let resolved = |n: &crate::intent::Neighbour| Some(((n.link, n.addr), Mac(n.mac?)));
        let mut routing = Routing {
            addresses: network.addresses.clone(),
            links: network.links.iter().filter(|l| l.up).map(|l| (l.index, usable(intent, l))).collect(),
            neighbours: network.neighbours.iter().filter_map(resolved).collect(),
            local: network.addresses.iter().map(|a| a.net.addr()).collect(),
            next_hops: BTreeMap::from([
                (NextHop::UNRESOLVED, NextHop { kind: NextHop::KERNEL, ..NextHop::default() }),
                (NextHop::HOST, NextHop { kind: NextHop::LOCAL, ..NextHop::default() }),
                (NextHop::BLACKHOLE, NextHop { kind: NextHop::DROP, ..NextHop::default() }),
            ]),
            groups: BTreeMap::new(),
            routes: network.routes.clone(),
            ways: HashMap::new(),
            cramped: false,
            connected: BTreeMap::new(),
            hosts: BTreeMap::new(),
            blocks: BTreeMap::new(),
            tunnels: BTreeMap::new(),
            direct: nat::direct(intent),
            v4: OrdMap::new(),
            v6: OrdMap::new(),
        };
        routing.add_blocks(intent, network, ids);
        routing.find_ways(ids);
        routing.add_connected();
        routing.add_neighbours(ids);
        routing.add_local();
        routing.fill(before);
        routing
    }

    /// Next hops' indexes by prefix.
    pub fn v4(&self) -> &OrdMap<Prefix<Ip4>, u32> {
        &self.v4
    }

    pub fn v6(&self) -> &OrdMap<Prefix<Ip6>, u32> {
        &self.v6
    }

    /// Puts other routes in place of these. False: it bears on more than routes, on one of `reached` or on what a
    /// neighbour is; then this is only good for being [`Self::new`]'s `before`.
    pub fn replace(&mut self, routes: &RouteTable, reached: &BTreeSet<IpAddr>, ids: &mut Ids) -> bool {
        let touched = self.routes.changed(routes);
        let neighbours: BTreeSet<IpAddr> = self.neighbours.keys().map(|(_, addr)| *addr).collect();
        let within = |all: &BTreeSet<IpAddr>, net: &IpNet| -> Vec<IpAddr> {
            all.range(net.network()..=net.broadcast()).copied().collect()
        };
        let concerned: BTreeSet<IpAddr> =
            touched.iter().flat_map(|net| [within(reached, net), within(&neighbours, net)]).flatten().collect();
        let ways = |routing: &Routing| -> Vec<Option<Way>> {
            concerned.iter().map(|addr| routing.route_to(*addr).map(|(_, way)| way)).collect()
        };
        let before = ways(self);
        self.routes = routes.clone();
        self.find_ways(ids);
        touched.into_iter().for_each(|net| self.place(net, routes.get(&net)));
        before == ways(self) && !self.cramped
    }

    /// Works out where paths lead that aren't known yet.
    fn find_ways(&mut self, ids: &mut Ids) {
        let new: Vec<Paths> = self.routes.paths().filter(|paths| !self.ways.contains_key(*paths)).cloned().collect();
        for paths in new {
            let way = self.way(&paths, ids);
            self.ways.insert(paths, way);
        }
    }

    /// Where paths lead: those of the lowest metric whose links are up. Of two routes of one metric the kernel takes
    /// the first; next hops of one belong together.
    fn way(&mut self, paths: &[Path], ids: &mut Ids) -> Option<Way> {
        let usable = |path: &&Path| path.kind != RouteKind::Unicast || self.links.contains_key(&path.link);
        let first = paths.iter().find(usable)?;
        let together = |path: &&Path| path.metric == first.metric && path.weight > 0;
        let best: Vec<Path> = match first.weight {
            0 => vec![*first],
            _ => paths.iter().filter(usable).filter(together).copied().collect(),
        };
        let next_hop = match first.kind {
            RouteKind::Blackhole => NextHop::BLACKHOLE,
            RouteKind::Refusing | RouteKind::Narrow => NextHop::UNRESOLVED,
            RouteKind::Unicast => self.shared(&best, ids),
        };
        Some(Way { next_hop, link: first.link, gateway: first.gateway, source: first.source })
    }

    /// The next hop of a path, or the group of several.
    fn shared(&mut self, paths: &[Path], ids: &mut Ids) -> u32 {
        let mut members = Vec::new();
        for path in paths {
            let gateway =
                path.gateway.and_then(|gateway| Some((gateway, *self.neighbours.get(&(path.link, gateway))?)));
            let Some((gateway, mac)) = gateway else { continue };
            let key = identity(gateway, path.link as u16);
            members.push((self.next_hop(path.link, mac, ids), Member { key, weight: path.weight }));
        }
        let [(first, _), ..] = members[..] else { return NextHop::UNRESOLVED };
        if members.len() == 1 {
            return first;
        }
        let of: Vec<Member> = members.iter().map(|(_, member)| *member).collect();
        let places = maglev::places(&of, PLACES as u32);
        let group: Group = std::array::from_fn(|place| members[places[place] as usize].0);
        let Some(number) = ids.groups.number_below(group, GROUPS) else {
            self.cramped = true;
            return first;
        };
        self.groups.insert(number, group);
        NextHop::GROUP | number
    }

    fn add_blocks(&mut self, intent: &Intent, network: &Network, ids: &mut Ids) {
        for way in nodes::ways(intent, network) {
            let Some((local, remote)) = way.overlay else { continue };
            let Some(link) = self.links.get(&way.link) else { continue };
            let Some(src) = link.mac.map(Mac) else { continue };
            let dst = self.neighbours.get(&(way.link, way.neighbour)).copied();
            // Nobody has this address: it tells this next hop from others.
            let inner = nodes::inner_mac(remote);
            let (index, _) = ids.next_hops.number((link.index, inner));
            let flags = NextHop::TUNNEL | if link.xdp_transmit { NextHop::XDP } else { 0 };
            let kind = if dst.is_some() { NextHop::LINK } else { NextHop::KERNEL };
            let (ifindex, mtu) = (link.index, nodes::mtu(network, link.mtu, remote));
            self.next_hops.insert(index, NextHop { ifindex, mtu, dst: inner, src, kind, flags, pad: 0 });
            let tunnel =
                Tunnel { local: mapped(local), remote: mapped(remote), dst: dst.unwrap_or_default(), src, ifindex };
            self.tunnels.insert(index, tunnel);
            let (link, gateway) = (way.link, Some(nodes::gateway(way.block.addr().is_ipv4())));
            let source = nodes::own_address(intent, way.block.addr().is_ipv4());
            self.blocks.insert(way.block.trunc(), Way { next_hop: index, link, gateway, source });
        }
    }

    fn add_connected(&mut self) {
        for a in &self.addresses {
            if self.links.contains_key(&a.link) && is_routed(a.net.addr()) {
                let (source, next_hop) = (Some(a.net.addr()), NextHop::UNRESOLVED);
                let way = Way { next_hop, link: a.link, gateway: None, source };
                self.connected.entry(a.net.trunc()).or_insert(way);
            }
        }
    }

    fn add_neighbours(&mut self, ids: &mut Ids) {
        let of = |(&(link, addr), &mac): (&(u32, IpAddr), &Mac)| {
            let (_, way) = self.route_to(addr).filter(|_| is_routed(addr))?;
            (way.link == link && way.gateway.is_none()).then_some((addr, mac, way))
        };
        let found: Vec<_> = self.neighbours.iter().filter_map(of).collect();
        for (addr, mac, way) in found {
            let next_hop = self.next_hop(way.link, mac, ids);
            self.hosts.insert(addr.into(), Way { next_hop, ..way });
        }
    }

    fn add_local(&mut self) {
        for a in &self.addresses {
            let addr = a.net.addr();
            if self.links.contains_key(&a.link) && is_routed(addr) {
                let way = Way { next_hop: NextHop::HOST, link: a.link, gateway: None, source: Some(addr) };
                self.hosts.insert(addr.into(), way);
            }
        }
    }

    fn next_hop(&mut self, link: u32, dst: Mac, ids: &mut Ids) -> u32 {
        let Some(link) = self.links.get(&link) else { return NextHop::UNRESOLVED };
        let Some(src) = link.mac else { return NextHop::UNRESOLVED };
        let (index, _) = ids.next_hops.number((link.index, dst));
        let flags = if link.xdp_transmit { NextHop::XDP } else { 0 } | if is_handed(link) { NextHop::PEER } else { 0 };
        let (ifindex, mtu, src, kind) = (link.index, link.mtu, Mac(src), NextHop::LINK);
        self.next_hops.insert(index, NextHop { ifindex, mtu, dst, src, kind, flags, pad: 0 });
        index
    }

    /// Makes the tables out of those before. Where paths lead elsewhere than before, or are new, all prefixes are
    /// gone through, else those alone that have others.
    fn fill(&mut self, before: Option<&Routing>) {
        let nothing = Routing::default();
        let before = before.unwrap_or(&nothing);
        (self.v4, self.v6) = (before.v4.clone(), before.v6.clone());
        let routes = self.routes.clone();
        let same = before.direct == self.direct;
        let as_before = |paths: &&Paths| same && before.ways.get(*paths) == self.ways.get(*paths);
        // Paths that are equal are one.
        let moved: HashSet<_> = routes.paths().filter(|paths| !as_before(paths)).map(Arc::as_ptr).collect();
        let mut touched = differing(&before.connected, &self.connected);
        touched.extend(differing(&before.blocks, &self.blocks));
        touched.extend(differing(&before.hosts, &self.hosts));
        if !same {
            touched.extend(self.connected.keys().chain(self.hosts.keys()));
        }
        if !before.ways.is_empty() {
            touched.extend(before.routes.changed(&routes));
        }
        if !moved.is_empty() {
            for (net, paths) in routes.prefixes().filter(|(_, paths)| moved.contains(&Arc::as_ptr(paths))) {
                self.place(*net, Some(paths));
            }
        }
        touched.into_iter().for_each(|net| self.place(net, routes.get(&net)));
    }

    /// Brings the tables to where a prefix leads.
    fn place(&mut self, net: IpNet, paths: Option<&Paths>) {
        let known = || self.known(&net, paths?);
        let way = self.hosts.get(&net).or_else(known).or_else(|| self.connected.get(&net));
        let now = way.map(|way| way.next_hop | self.mark(&net, way.next_hop));
        match net {
            IpNet::V4(_) => place(&mut self.v4, net, now),
            IpNet::V6(_) => place(&mut self.v6, net, now),
        }
    }

    /// [`NextHop::DIRECT`], where all of a prefix that leads to others is reached untranslated.
    fn mark(&self, net: &IpNet, next_hop: u32) -> u32 {
        let direct = next_hop >= NextHop::FIRST && self.direct.iter().any(|direct| direct.contains(net));
        if direct { NextHop::DIRECT } else { 0 }
    }

    fn known(&self, net: &IpNet, paths: &Paths) -> Option<&Way> {
        let way = self.ways.get(paths).filter(|_| is_routed(net.addr()))?.as_ref()?;
        let into_overlay = way.gateway == Some(nodes::gateway(net.addr().is_ipv4()));
        self.blocks.get(net).filter(|_| into_overlay).or(Some(way))
    }

    /// The route to an address, and its prefix; a neighbour's is that of its network.
    fn route_to(&self, addr: IpAddr) -> Option<(IpNet, Way)> {
        let of = |(net, paths): (IpNet, &Paths)| Some((net, *self.known(&net, paths)?));
        let route = self.routes.covering(addr).find_map(of);
        let connected =
            self.connected.iter().filter(|(net, _)| net.contains(&addr)).max_by_key(|(net, _)| net.prefix_len());
        match (route, connected) {
            (Some((net, _)), Some((wide, _))) if net.prefix_len() >= wide.prefix_len() => route,
            (_, Some((net, way))) => Some((*net, *way)),
            (route, None) => route,
        }
    }

    /// Where an address is.
    pub fn find(&self, addr: IpAddr) -> Option<Way> {
        self.hosts.get(&addr.into()).copied().or_else(|| self.route_to(addr).map(|(_, way)| way))
    }

    /// This node's address towards `to`, which `way` leads to.
    pub fn source(&self, to: IpAddr, way: Option<&Way>) -> Option<IpAddr> {
        let same_family = |a: &&Address| a.net.addr().is_ipv4() == to.is_ipv4() && is_routed(a.net.addr());
        if let Some(way) = way {
            if let Some(source) = way.source.filter(|s| s.is_ipv4() == to.is_ipv4()) {
                return Some(source);
            }
            let on_link = || self.addresses.iter().filter(|a| a.link == way.link).filter(same_family);
            let near =
                |a: &&Address| a.net.contains(&to) || way.gateway.is_some_and(|gateway| a.net.contains(&gateway));
            if let Some(a) = on_link().find(near).or_else(|| on_link().next()) {
                return Some(a.net.addr());
            }
        }
        let up = self.addresses.iter().filter(|a| self.links.contains_key(&a.link)).filter(same_family);
        up.map(|a| a.net.addr()).find(|a| !a.is_loopback())
    }
}

/// As tables have it that both families share.
pub(super) fn mapped(addr: IpAddr) -> Ip6 {
    match addr {
        IpAddr::V4(addr) => Ip6::mapped(addr.into()),
        IpAddr::V6(addr) => addr.into(),
    }
}

fn place<A: Addr>(table: &mut OrdMap<Prefix<A>, u32>, net: IpNet, now: Option<u32>) {
    let Some(addr) = A::from_ip(net.addr()) else { return };
    let prefix = Prefix { len: net.prefix_len().into(), addr };
    match now {
        // What stays is not written, so that copies stay one.
        Some(index) if table.get(&prefix) != Some(&index) => _ = table.insert(prefix, index),
        Some(_) => {}
        None => _ = table.remove(&prefix),
    }
}

/// Prefixes that lead elsewhere.
fn differing(one: &BTreeMap<IpNet, Way>, other: &BTreeMap<IpNet, Way>) -> Vec<IpNet> {
    let of = |net: &&IpNet| one.get(net) != other.get(net);
    one.keys().chain(other.keys().filter(|net| !one.contains_key(net))).filter(of).copied().collect()
}

/// A link as packets may be sent by it: nothing passes by where policies are judged.
fn usable(intent: &Intent, link: &Link) -> Link {
    let judged = is_judged(intent, link);
    Link { xdp_transmit: link.xdp_transmit && !judged, queued: link.queued || judged, ..link.clone() }
}

/// Whether packets may be handed to its other end: a pod's, which is in another network namespace.
fn is_handed(link: &Link) -> bool {
    link.name.starts_with(PREFIX) && !link.queued
}
