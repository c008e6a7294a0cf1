//! Services, their backends and their rows.
//!
//! Invariants: a row holds active backends of its own family alone; all addresses of a service
//! port share its id and, per family, its rows: of all endpoints, and of this node's where a traffic policy is
//! Local; a leaving backend is in no row, unless nobody who may be is ready and it still serves (KEP-1669:
//! better an endpoint that is about to go than none).
//! Not here: which endpoints are healthy; the sources say so.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::table::{Backend, Name, NextHop, Owned, Prefix, Service, ServiceKey, SourcePrefix};
use lb_common::wire::{Addr, Be16};

use super::Clock;
use super::contents::{Contents, Family};
use super::error::PlanError;
use super::hooks::{Role, role};
use super::ids::Ids;
use super::maglev::{self, Member};
use super::nat::Sides;
use super::policies;
use super::routing::Routing;
use super::slots::RowKey;
use crate::intent::{Endpoint, EndpointState, Intent, Network, Protocol, ServicePort};
use crate::moment::Moment;
use crate::nodes;

/// What all services are planned with.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub routing: Routing,
    pub sides: Sides,
    pub clock: Clock,
    /// This node's name.
    node: String,
    /// Addresses of the other nodes that make their pods' interfaces.
    nodes: BTreeSet<IpAddr>,
    /// Addresses at which node ports are reached.
    pub node_addresses: Vec<IpAddr>,
    /// Links that lead to other hosts.
    pub port_links: Vec<u32>,
    /// Links of inside interfaces.
    pub inside_links: Vec<u32>,
    pub policies: policies::Planned,
}

impl World {
    pub fn new(intent: &Intent, network: &Network, routing: Routing, sides: Sides, clock: Clock) -> Self {
        let links = |wanted: fn(Role<'_>) -> bool| -> Vec<u32> {
            network.links.iter().filter(|l| wanted(role(intent, l))).map(|l| l.index).collect()
        };
        let port_links = links(|r| matches!(r, Role::Port(_)));
        let inside_links = links(|r| r == Role::Inside);
        let switch = intent.internal_switch.as_ref().map(|s| s.interface.as_str());
        let switch = network.links.iter().find(|l| Some(l.name.as_str()) == switch).map(|l| l.index);
        let of_node = |a: &&crate::intent::Address| {
            (port_links.contains(&a.link) || switch == Some(a.link)) && !is_link_local(a.net.addr())
        };
        let wished = |addr: &IpAddr| {
            let nets = &intent.node_port_addresses;
            nets.is_empty() || nets.iter().any(|net| net.contains(addr))
        };
        let node_addresses = network.addresses.iter().filter(of_node).map(|a| a.net.addr()).filter(wished).collect();
        let node = intent.node.clone();
        let nodes = intent.other_nodes().flat_map(|other| &other.addresses).copied().collect();
        let policies = policies::Planned::default();
        World { node, nodes, routing, sides, clock, node_addresses, port_links, inside_links, policies }
    }
}

fn is_link_local(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(a) if a.is_unicast_link_local())
}

/// Adds services to the contents.
pub(super) fn services<'a>(
    ports: impl IntoIterator<Item = &'a ServicePort>,
    world: &World,
    ids: &mut Ids,
    to: &mut Contents,
) -> Result<(), PlanError> {
    for port in ports {
        check(port)?;
        let (v4, v6) = (keys(port, world), keys(port, world));
        if v4.is_empty() && v6.is_empty() {
            continue;
        }
        let full_name = port.full_name();
        let (id, first_time) = ids.services.number(number_key(port));
        if !first_time {
            return Err(PlanError::Duplicate { service: full_name });
        }
        to.names.insert(id, Name::new(&full_name));
        let Contents { v4: family4, v6: family6, rows, names, .. } = to;
        family(port, id, v4, world, ids, family4, rows, names)?;
        family(port, id, v6, world, ids, family6, rows, names)?;
    }
    Ok(())
}

/// What a service port has its number by.
pub(super) fn number_key(port: &ServicePort) -> (Name, u8) {
    (Name::new(&port.full_name()), port.protocol.number())
}

/// SCTP ports stay as they are: their checksum covers them.
fn check(port: &ServicePort) -> Result<(), PlanError> {
    if port.protocol != Protocol::Sctp {
        return Ok(());
    }
    let reached = [Some(port.port).filter(|_| !port.addresses.is_empty()), port.node_port];
    for reached in reached.into_iter().flatten() {
        if let Some(e) = port.endpoints.iter().find(|e| e.port != reached) {
            return Err(PlanError::SctpPort { service: port.full_name(), port: reached, target: e.port });
        }
    }
    Ok(())
}

/// Where a service is reached.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// The address is a node's.
    of_node: bool,
    /// [`Service::flags`].
    flags: u32,
}

fn keys<A: Addr>(port: &ServicePort, world: &World) -> BTreeMap<ServiceKey<A>, Place> {
    let key = |addr: &IpAddr, at: u16, place: Place| {
        let proto = port.protocol.number();
        A::from_ip(*addr).map(|addr| (ServiceKey { addr, port: Be16::new(at), proto, pad: 0 }, place))
    };
    let traffic = &port.traffic;
    let node_port = if traffic.external_local { Service::LOCAL } else { 0 };
    let external = node_port | if traffic.direct { Service::DIRECT } else { 0 };
    let named = traffic.sources.iter().any(|net| net.addr().is_ipv4() != A::IS_V6);
    let flags = |addr: &IpAddr| {
        if traffic.cluster_ips.contains(addr) {
            let internal = if traffic.internal_local { Service::LOCAL | Service::EVERYBODY } else { 0 };
            Service::MASQUERADE | internal
        } else if named && traffic.balancer_ips.contains(addr) {
            external | Service::RANGES
        } else {
            external
        }
    };
    let by_node = port.node_port.iter().flat_map(|&at| world.node_addresses.iter().map(move |a| (a, at)));
    // What is forwarded to a host of one family leaves the node's own ports of the other alone.
    let met = !port.is_published() || port.endpoints.iter().any(|e| A::from_ip(e.addr).is_some());
    let by_node = by_node.filter(|_| met).filter_map(|(a, at)| key(a, at, Place { of_node: true, flags: node_port }));
    let place = |a: &IpAddr| {
        let of_node = world.routing.local.contains(a);
        // Another node doesn't answer for this one's addresses.
        Place { of_node, flags: flags(a) & if of_node { !Service::DIRECT } else { !0 } }
    };
    let own = port.addresses.iter().filter_map(|a| key(a, port.port, place(a)));
    by_node.chain(own).collect()
}

#[expect(clippy::too_many_arguments, reason = "the parts of the contents are borrowed one by one")]
fn family<A: Addr>(
    port: &ServicePort,
    id: u32,
    keys: BTreeMap<ServiceKey<A>, Place>,
    world: &World,
    ids: &mut Ids,
    to: &mut Family<A>,
    rows: &mut BTreeMap<u32, Vec<u32>>,
    names: &BTreeMap<u32, Name>,
) -> Result<(), PlanError> {
    if keys.is_empty() {
        return Ok(());
    }
    let mut all = Row::default();
    let mut local = Row::default();
    let by_node = keys.values().any(|place| place.flags & Service::LOCAL != 0);
    let here = |e: &Endpoint| by_node && is_here(e, world);
    for ((addr, target), Living { endpoint, part, here }) in living::<A>(&port.endpoints, world.clock.now, here) {
        let (backend_id, _) = ids.backends.number((id, addr, target));
        let member = (Member { key: maglev::identity(addr, target), weight: endpoint.weight.max(1) }, backend_id);
        if part == Part::Chosen {
            all.add(member);
        }
        if here {
            local.add(member);
        }
        let known = ids.deadlines.get(&backend_id).copied();
        let deadline = part.deadline().map(|until| world.clock.deadline(until, known));
        if let Some(mut backend) = backend(endpoint, id, deadline, port.is_published(), world) {
            let last = here && part != Part::Chosen && endpoint.state.until().is_some();
            backend.flags |= if here { Backend::<A>::HERE } else { 0 };
            backend.flags |= if last { Backend::<A>::LAST } else { 0 };
            to.backends.insert(backend_id, backend);
        }
    }
    // One row serves both where they are the same.
    let same = local.made_of == all.made_of;
    let (first, count) = all.place((id, A::IS_V6, false), ids, rows);
    let local = if same { (first, count) } else { local.place((id, A::IS_V6, true), ids, rows) };
    let affinity = port.affinity.map_or(0, |seconds| world.clock.ticks(seconds).max(1));
    for (key, Place { of_node, flags }) in keys {
        let (local_first, local_count) = if flags & Service::LOCAL != 0 { local } else { (0, 0) };
        let service = Service { id, first, count, affinity, local_first, local_count, flags, pad: 0 };
        if let Some(other) = to.services.insert(key, service) {
            let first = names.get(&other.id).map_or(String::new(), |n| n.as_str().to_owned());
            let (addr, at) = (key.addr.to_ip(), key.port.get());
            return Err(PlanError::Conflict { addr, port: at, proto: key.proto, first, second: port.full_name() });
        }
        if flags & Service::RANGES != 0 {
            to.sources.extend(sources(port, id).map(|source| (source, 1)));
        }
        if !of_node {
            to.owned.insert(Prefix { len: A::BITS, addr: key.addr }, Owned::of(Owned::VIP));
        }
    }
    Ok(())
}

/// Who gets new connections.
#[derive(Default)]
struct Row {
    members: Vec<Member>,
    /// Backend ids and weights.
    made_of: Vec<(u32, u32)>,
}

impl Row {
    fn add(&mut self, (member, id): (Member, u32)) {
        self.made_of.push((id, member.weight));
        self.members.push(member);
    }

    /// Its first slot, and how many it has.
    fn place(self, key: RowKey, ids: &mut Ids, rows: &mut BTreeMap<u32, Vec<u32>>) -> (u32, u32) {
        let Row { members, made_of } = self;
        if members.is_empty() {
            return (0, 0);
        }
        let numbers: Vec<u32> = made_of.iter().map(|(id, _)| *id).collect();
        let make = || maglev::row(&members).into_iter().map(|i| numbers[i as usize]).collect();
        let (first, row) = ids.rows.place(key, made_of, make);
        let count = row.len() as u32;
        rows.insert(first, row);
        (first, count)
    }
}

/// The source ranges of a family.
fn sources<A: Addr>(port: &ServicePort, service: u32) -> impl Iterator<Item = SourcePrefix<A>> {
    port.traffic.sources.iter().filter_map(move |net| {
        let addr = A::from_ip(net.network())?;
        Some(SourcePrefix { len: u32::BITS + u32::from(net.prefix_len()), service, addr })
    })
}

/// Whether an endpoint is on this node: by its node's name, or else by where its address is.
pub(super) fn is_here(endpoint: &Endpoint, world: &World) -> bool {
    match &endpoint.node {
        Some(node) => *node == world.node,
        None => {
            let way = world.routing.find(endpoint.addr);
            world.routing.local.contains(&endpoint.addr)
                || way.is_some_and(|way| way.gateway.is_none() && world.inside_links.contains(&way.link))
        }
    }
}

/// What an endpoint does for its service; the later, the more alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// Keeps its connections, until then.
    Leaving(Moment),
    /// Keeps its connections.
    Kept,
    /// Gets new ones.
    Chosen,
}

impl Part {
    fn deadline(self) -> Option<Moment> {
        match self {
            Part::Leaving(until) => Some(until),
            Part::Kept | Part::Chosen => None,
        }
    }
}

/// An endpoint that is still there.
struct Living<'e> {
    endpoint: &'e Endpoint,
    part: Part,
    /// Gets the new connections that stay on this node.
    here: bool,
}

/// The endpoints of a family that are still there, and their parts. Those `here` are chosen among themselves,
/// too, wherever others are nearer.
fn living<A: Addr>(
    endpoints: &[Endpoint],
    now: Moment,
    here: impl Fn(&Endpoint) -> bool,
) -> BTreeMap<(IpAddr, u16), Living<'_>> {
    let family = || endpoints.iter().filter(|e| A::from_ip(e.addr).is_some());
    let is_ready = |e: &&Endpoint| e.state.until().is_none();
    let any_ready = family().any(|e| is_ready(&e));
    let any_here = family().filter(is_ready).any(&here);
    let mut living: BTreeMap<_, Living<'_>> = BTreeMap::new();
    for e in family() {
        let leaves = matches!(e.state, EndpointState::Draining { .. });
        let chosen_here = here(e) && (is_ready(&e) || (leaves && !any_here));
        let part = match e.state {
            EndpointState::Ready => Part::Chosen,
            EndpointState::Spare => Part::Kept,
            // However long it has been leaving: who sees it go takes it away (KEP-1669).
            EndpointState::Draining { .. } if !any_ready => Part::Chosen,
            EndpointState::Draining { .. } if chosen_here => Part::Kept,
            EndpointState::Draining { until } | EndpointState::Ending { until } if until > now => Part::Leaving(until),
            EndpointState::Draining { .. } | EndpointState::Ending { .. } => continue,
        };
        // Listed twice, it is as alive as it is anywhere.
        let new = Living { endpoint: e, part, here: chosen_here };
        match living.entry((e.addr, e.port)) {
            Entry::Occupied(mut old) if (part, chosen_here) > (old.get().part, old.get().here) => _ = old.insert(new),
            Entry::Occupied(_) => {}
            Entry::Vacant(place) => _ = place.insert(new),
        }
    }
    living
}

fn backend<A: Addr>(
    endpoint: &Endpoint,
    service: u32,
    deadline: Option<u32>,
    published: bool,
    world: &World,
) -> Option<Backend<A>> {
    let to = endpoint.addr;
    let addr = A::from_ip(to)?;
    let way = world.routing.find(to);
    let local = world.routing.local.contains(&to);
    // Whoever is translated on its way out has this node for its gateway: its answers come here anyway.
    let behind = published && world.sides.is_inside(to);
    let remote = !local
        && !behind
        && way.is_none_or(|way| {
            let inside = world.inside_links.contains(&way.link);
            world.port_links.contains(&way.link) || (way.gateway.is_some() && !inside)
        });
    // By its own node, which has the same services: one on this network, or in the overlay.
    let by_node = |gateway: IpAddr| world.nodes.contains(&gateway) || gateway == nodes::gateway(gateway.is_ipv4());
    let direct = remote && way.and_then(|way| way.gateway).is_some_and(by_node);
    Some(Backend {
        addr,
        snat: world.routing.source(to, way.as_ref()).and_then(A::from_ip).unwrap_or_default(),
        port: Be16::new(endpoint.port),
        state: if deadline.is_some() { Backend::<A>::DRAINING } else { Backend::<A>::ACTIVE },
        flags: if remote { Backend::<A>::REMOTE } else { 0 } | if direct { Backend::<A>::DIRECT } else { 0 },
        service,
        next_hop: if local { NextHop::HOST } else { way.map_or(NextHop::UNRESOLVED, |way| way.one()) },
        weight: endpoint.weight.max(1),
        deadline: deadline.unwrap_or(0),
        link: if local { 0 } else { way.map_or(0, |way| way.link) },
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lb_common::wire::Ip4;

    use super::*;

    /// Each endpoint: `r`eady, `s`pare, `d`raining or `e`nding, the latter two with what is left in seconds. What becomes
    /// of it: `new` connections, `old` ones alone, nothing.
    #[test]
    fn terminating_endpoints_serve_only_where_none_is_ready() {
        let now = Moment::START + Duration::from_secs(1_000);
        for (states, want) in [
            ("r d9 d0 e9 e0", "new old - old -"),
            ("d9 d0 e9 e0", "new new old -"),
            ("e9 e0", "old -"),
            ("r s d9", "new old old"),
            ("r r", "new new"),
        ] {
            let endpoint = |(i, state): (usize, &str)| {
                let until = || now + Duration::from_secs(state[1..].parse().unwrap_or(0));
                let state = match &state[..1] {
                    "r" => EndpointState::Ready,
                    "s" => EndpointState::Spare,
                    "d" => EndpointState::Draining { until: until() },
                    _ => EndpointState::Ending { until: until() },
                };
                Endpoint { addr: [10, 0, 0, i as u8].into(), port: 80, weight: 1, node: None, state }
            };
            let endpoints: Vec<Endpoint> = states.split(' ').enumerate().map(endpoint).collect();
            let living = living::<Ip4>(&endpoints, now, |_| false);
            let said = endpoints.iter().map(|e| match living.get(&(e.addr, e.port)) {
                Some(Living { part: Part::Chosen, .. }) => "new",
                Some(_) => "old",
                None => "-",
            });
            assert_eq!(said.collect::<Vec<_>>().join(" "), want, "{states}");
        }
    }
}
