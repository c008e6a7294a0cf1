//! Where addresses are: routes, next hops, and this node's own addresses.
//!
//! A mirror of the kernel's routing: unicast routes, connected prefixes, own addresses, and a host
//! route to each resolved neighbour that its link's prefix makes reachable. The lowest metric wins
//! among equal prefixes; links that are down don't count. Of several next hops those that are resolved share
//! the flows by weight.
//! Invariant: what the kernel would do otherwise or hasn't resolved leads to
//! [`NextHop::UNRESOLVED`], that is, to the kernel. Not here: which links forward ([`super::hooks`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use lb_common::table::route::PLACES;
use lb_common::table::{Group, NextHop, Prefix};
use lb_common::wire::{Addr, Mac};

use super::ids::Ids;
use super::maglev::{self, Member, identity};
use crate::intent::{Address, Link, Network, Route, RouteKind};

/// Groups of next hops that there is room for.
const GROUPS: u32 = 64;

/// Where a route leads.
#[derive(Clone, Copy, Debug)]
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

/// Routes of one family: by prefix length, then by the prefix's bits.
#[derive(Clone, Debug, Default)]
struct Trie(BTreeMap<u32, HashMap<u128, Way>>);

impl Trie {
    fn insert(&mut self, len: u32, addr: IpAddr, way: Way) {
        self.0.entry(len).or_default().insert(bits(addr) & mask(len), way);
    }

    fn find(&self, addr: IpAddr) -> Option<(u32, &Way)> {
        self.0.iter().rev().find_map(|(&len, ways)| ways.get(&(bits(addr) & mask(len))).map(|way| (len, way)))
    }
}

/// An address's bits from the top, so that both families' prefixes mean the same.
fn bits(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(a) => u128::from(a.to_bits()) << 96,
        IpAddr::V6(a) => a.to_bits(),
    }
}

fn mask(len: u32) -> u128 {
    u128::MAX.checked_shl(128 - len).unwrap_or(0)
}

fn full_length(addr: IpAddr) -> u32 {
    if addr.is_ipv4() { 32 } else { 128 }
}

/// An address's network as a route, if none of the kernel's says better.
fn connected(a: &Address) -> Route {
    let (prefix, link, source) = (a.net.trunc(), a.link, Some(a.net.addr()));
    Route { prefix, link, metric: u32::MAX, source, ..Route::default() }
}

/// Link-local and multicast: their links are not a matter of routing.
fn is_routed(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(a) => !a.is_multicast() && !a.is_broadcast(),
        IpAddr::V6(a) => !a.is_multicast() && !a.is_unicast_link_local(),
    }
}

/// The whole of it. It owns its facts: single services are planned with it later.
#[derive(Clone, Debug)]
pub(super) struct Routing {
    addresses: Vec<Address>,
    /// Those that are up.
    links: HashMap<u32, Link>,
    pub local: BTreeSet<IpAddr>,
    pub next_hops: BTreeMap<u32, NextHop>,
    pub groups: BTreeMap<u32, Group>,
    v4: Trie,
    v6: Trie,
}

impl Routing {
    pub fn new(network: &Network, ids: &mut Ids) -> Self {
        let mut routing = Routing {
            addresses: network.addresses.clone(),
            links: network.links.iter().filter(|l| l.up).map(|l| (l.index, l.clone())).collect(),
            local: network.addresses.iter().map(|a| a.net.addr()).collect(),
            next_hops: BTreeMap::from([
                (NextHop::UNRESOLVED, NextHop { kind: NextHop::KERNEL, ..NextHop::default() }),
                (NextHop::HOST, NextHop { kind: NextHop::LOCAL, ..NextHop::default() }),
                (NextHop::BLACKHOLE, NextHop { kind: NextHop::DROP, ..NextHop::default() }),
            ]),
            groups: BTreeMap::new(),
            v4: Trie::default(),
            v6: Trie::default(),
        };
        let neighbours: HashMap<(u32, IpAddr), Mac> =
            network.neighbours.iter().filter_map(|n| Some(((n.link, n.addr), Mac(n.mac?)))).collect();
        routing.add_routes(network, &neighbours, ids);
        routing.add_neighbours(network, ids);
        routing.add_local();
        routing
    }

    fn trie(&mut self, addr: IpAddr) -> &mut Trie {
        if addr.is_ipv4() { &mut self.v4 } else { &mut self.v6 }
    }

    /// The route to an address.
    pub fn find(&self, addr: IpAddr) -> Option<&Way> {
        let trie = if addr.is_ipv4() { &self.v4 } else { &self.v6 };
        trie.find(addr).map(|(_, way)| way)
    }

    /// Next hop indexes by prefix.
    pub fn table<A: Addr>(&self) -> BTreeMap<Prefix<A>, u32> {
        let trie = if A::IS_V6 { &self.v6 } else { &self.v4 };
        let prefix = |len, bits: u128| {
            let addr: IpAddr =
                if A::IS_V6 { IpAddr::V6(bits.into()) } else { IpAddr::V4(((bits >> 96) as u32).into()) };
            A::from_ip(addr).map(|addr| Prefix { len, addr })
        };
        let all = trie.0.iter().flat_map(|(&len, ways)| ways.iter().map(move |(&bits, way)| (len, bits, way.next_hop)));
        all.filter_map(|(len, bits, next_hop)| Some((prefix(len, bits)?, next_hop))).collect()
    }

    fn add_routes(&mut self, network: &Network, neighbours: &HashMap<(u32, IpAddr), Mac>, ids: &mut Ids) {
        let mut best: BTreeMap<IpNet, Vec<Route>> = BTreeMap::new();
        // The kernel lists connected prefixes as routes, too, with their true metric: that counts.
        let connected = network.addresses.iter().map(connected);
        for new in network.routes.iter().cloned().chain(connected) {
            let usable = new.kind != RouteKind::Unicast || self.links.contains_key(&new.link);
            if !usable || !is_routed(new.prefix.addr()) {
                continue;
            }
            let old = best.entry(new.prefix.trunc()).or_default();
            match old.first() {
                Some(first) if first.metric < new.metric => {}
                // Of two routes of one metric the kernel takes the first; next hops of one belong together.
                Some(first) if first.metric == new.metric => {
                    old.extend((first.weight > 0 && new.weight > 0).then_some(new))
                }
                _ => *old = vec![new],
            }
        }
        for (prefix, routes) in best {
            let Some(Route { link, gateway, source, kind, .. }) = routes.first().cloned() else { continue };
            let next_hop = match kind {
                RouteKind::Blackhole => NextHop::BLACKHOLE,
                RouteKind::Refusing => NextHop::UNRESOLVED,
                RouteKind::Unicast => self.shared(&routes, neighbours, ids),
            };
            let way = Way { next_hop, link, gateway, source };
            self.trie(prefix.addr()).insert(u32::from(prefix.prefix_len()), prefix.addr(), way);
        }
    }

    /// The next hop of a route, or the group of its next hops.
    fn shared(&mut self, routes: &[Route], neighbours: &HashMap<(u32, IpAddr), Mac>, ids: &mut Ids) -> u32 {
        let mut members = Vec::new();
        for route in routes {
            let gateway = route.gateway.and_then(|gateway| Some((gateway, *neighbours.get(&(route.link, gateway))?)));
            let Some((gateway, mac)) = gateway else { continue };
            let key = identity(gateway, route.link as u16);
            members.push((self.next_hop(route.link, mac, ids), Member { key, weight: route.weight }));
        }
        let [(first, _), ..] = members[..] else { return NextHop::UNRESOLVED };
        if members.len() == 1 {
            return first;
        }
        let of: Vec<Member> = members.iter().map(|(_, member)| *member).collect();
        let places = maglev::places(&of, PLACES as u32);
        let group: Group = std::array::from_fn(|place| members[places[place] as usize].0);
        let Some(number) = ids.groups.number_below(group, GROUPS) else {
            // No room: one of them serves.
            return first;
        };
        self.groups.insert(number, group);
        NextHop::GROUP | number
    }

    fn add_neighbours(&mut self, network: &Network, ids: &mut Ids) {
        let mut found = Vec::new();
        for n in &network.neighbours {
            let (Some(mac), true) = (n.mac, is_routed(n.addr)) else { continue };
            let trie = if n.addr.is_ipv4() { &self.v4 } else { &self.v6 };
            if let Some((_, way)) = trie.find(n.addr)
                && way.link == n.link
                && way.gateway.is_none()
            {
                found.push((n.addr, Mac(mac), *way));
            }
        }
        for (addr, mac, way) in found {
            let next_hop = self.next_hop(way.link, mac, ids);
            self.trie(addr).insert(full_length(addr), addr, Way { next_hop, ..way });
        }
    }

    fn add_local(&mut self) {
        for i in 0..self.addresses.len() {
            let a = &self.addresses[i];
            let addr = a.net.addr();
            if self.links.contains_key(&a.link) && is_routed(addr) {
                let way = Way { next_hop: NextHop::HOST, link: a.link, gateway: None, source: Some(addr) };
                self.trie(addr).insert(full_length(addr), addr, way);
            }
        }
    }

    fn next_hop(&mut self, link: u32, dst: Mac, ids: &mut Ids) -> u32 {
        let Some(link) = self.links.get(&link) else { return NextHop::UNRESOLVED };
        let Some(src) = link.mac else { return NextHop::UNRESOLVED };
        let (index, _) = ids.next_hops.number((link.index, dst));
        let flags = if link.xdp_transmit { NextHop::XDP } else { 0 };
        let (ifindex, mtu, src, kind) = (link.index, link.mtu, Mac(src), NextHop::LINK);
        self.next_hops.insert(index, NextHop { ifindex, mtu, dst, src, kind, flags, pad: 0 });
        index
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
