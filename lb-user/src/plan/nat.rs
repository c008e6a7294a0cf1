//! Translation between inside and outside: which addresses are on which side, the links that lead out,
//! and the addresses that translated packets get there.
//!
//! Invariants: a longest-prefix lookup gives one entry, so each says all that holds for its whole prefix;
//! an address outside keeps its plane of the port table as long as it is wished for, and a plane has
//! another address only once the last one's connections were ended ([`super::Ids::applied`]). Where no
//! plane is free before that, the new address waits ([`super::Ids::waits`]). A link that is down keeps
//! its addresses outside, and connections survive until it is up again. Not here: who has which port.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use lb_common::table::filter::{inside_bit, outside_bit};
use lb_common::table::nat::POOL;
use lb_common::table::{Owned, Prefix, PrefixPair, Settings, Uplink};
use lb_common::wire::{Addr, Ip4, Ip6};

use super::contents::{Contents, Family};
use super::error::PlanError;
use super::ids::Ids;
use super::owned::{address, number};
use crate::intent::{Filtering, Intent, Link, Nat, Network, Port, Translation};

/// Links that lead out at the most, and prefixes that are exchanged.
const UPLINKS: u64 = 64;
const PREFIXES: u32 = 16;

/// What addresses are, apart from services.
#[derive(Clone, Debug, Default)]
pub(super) struct Sides {
    pub v4: BTreeMap<Prefix<Ip4>, Owned>,
    pub v6: BTreeMap<Prefix<Ip6>, Owned>,
    /// Networks whose hosts are translated.
    inside: Vec<IpNet>,
}

impl Sides {
    /// Whether what an address sends out is translated.
    pub fn is_inside(&self, addr: IpAddr) -> bool {
        self.inside.iter().any(|net| net.contains(&addr))
    }

    /// The filter's bits.
    pub fn bits(&self) -> Vec<u32> {
        let mut bits = Vec::new();
        side_bits(&self.v4, 24, &mut bits);
        side_bits(&self.v6, 64, &mut bits);
        bits
    }
}

/// Adds what a side says, where no service and no range does.
pub(super) fn own<A: Addr>(side: &BTreeMap<Prefix<A>, Owned>, family: &mut Family<A>) {
    for (&prefix, &owned) in side {
        family.owned.entry(prefix).or_insert(owned);
    }
}

fn side_bits<A: Addr>(side: &BTreeMap<Prefix<A>, Owned>, grain: u32, bits: &mut Vec<u32>) {
    let subnets = |prefix: &Prefix<A>| {
        let base = prefix.addr.to_ip();
        let all = 0..1u128 << grain.saturating_sub(prefix.len);
        all.filter_map(move |i| A::from_ip(address(number(base) + (i << (A::BITS - grain)), base)))
    };
    for (prefix, owned) in side {
        if owned.is(Owned::INSIDE | Owned::PREFIX_INSIDE) {
            bits.extend(subnets(prefix).map(inside_bit));
        }
        if owned.is(Owned::OUTSIDE | Owned::PREFIX_OUTSIDE) {
            bits.extend(subnets(prefix).map(outside_bit));
        }
    }
}

/// Adds uplinks and exchanged prefixes to the contents, and says what is on which side.
pub(super) fn translate(
    intent: &Intent,
    network: &Network,
    ids: &mut Ids,
    to: &mut Contents,
) -> Result<Sides, PlanError> {
    let mut sides = Sides::default();
    let mut marks4 = marks(intent, network, true)?;
    let mut marks6 = marks(intent, network, false)?;
    exchange(&intent.nat, ids, to, &mut marks6)?;
    uplinks(intent, network, &mut marks4, ids, &mut to.v4.uplinks)?;
    uplinks(intent, network, &mut marks6, ids, &mut to.v6.uplinks)?;
    marks4.extend(pods(intent, true));
    marks6.extend(pods(intent, false));
    sides.v4 = composed(&marks4, network);
    sides.v6 = composed(&marks6, network);
    let inside = |(net, owned): (IpNet, Owned)| owned.is(Owned::INSIDE | Owned::PREFIX_INSIDE).then_some(net);
    sides.inside = marks4.into_iter().chain(marks6).filter_map(inside).collect();
    let crosses = !to.v4.uplinks.is_empty() || !to.v6.uplinks.is_empty() || !to.prefixes.is_empty();
    to.settings.nat = if crosses { bits_of(&intent.nat) } else { 0 };
    to.settings.nat_quota = intent.nat.quota;
    Ok(sides)
}

/// Pods' networks, whether or not anything is translated.
fn pods(intent: &Intent, v4: bool) -> impl Iterator<Item = (IpNet, Owned)> {
    let nets = intent.pod_subnets.iter().filter(move |net| net.addr().is_ipv4() == v4);
    nets.map(|net| (net.trunc(), Owned::of(Owned::PODS)))
}

/// The settings of a translation that there is.
fn bits_of(nat: &Nat) -> u16 {
    let filtering = match nat.filtering {
        Filtering::None => Settings::FILTER_NONE,
        Filtering::Address => 0,
        Filtering::Port => Settings::FILTER_PORT,
    };
    let log = if nat.log.is_some() { Settings::NAT_LOG } else { 0 };
    Settings::NAT | filtering | log
}

/// What single networks are: each alone, whatever else covers it.
type Marks = Vec<(IpNet, Owned)>;

fn marks(intent: &Intent, network: &Network, v4: bool) -> Result<Marks, PlanError> {
    let nat = &intent.nat;
    let mut marks = Marks::new();
    let masquerades = intent.masquerades(v4);
    if nat.of(v4) == Translation::Off && !masquerades {
        return Ok(marks);
    }
    if masquerades {
        for net in inside(intent, network, v4) {
            if !fits(net) {
                return Err(PlanError::Inside { net });
            }
            marks.push((net, Owned::of(Owned::INSIDE)));
        }
    }
    marks.extend(untranslated(intent, v4).map(|net| (net, Owned::of(Owned::DIRECT))));
    Ok(marks)
}

/// Where what is inside sends as it is.
fn untranslated(intent: &Intent, v4: bool) -> impl Iterator<Item = IpNet> {
    // Pods and nodes see each other's addresses, and what a node sends to a pod is answered from the pod's.
    let pods = intent.pod_subnets.iter().filter(|_| !intent.pod_blocks.is_empty()).copied();
    let nodes = intent.pod_nodes.iter().flat_map(|node| &node.addresses).map(|addr| IpNet::from(*addr));
    let all = intent.nat.direct.iter().copied().chain(pods).chain(nodes);
    all.filter(move |net| net.addr().is_ipv4() == v4).map(|net| net.trunc())
}

/// Networks to which what is inside sends as it is whatever address it is, and that nobody has outside
/// ([`lb_common::table::NextHop::DIRECT`]).
pub(super) fn direct(intent: &Intent) -> Vec<IpNet> {
    let elsewhere = |net: &IpNet| {
        let mut outside = intent.nat.prefixes.iter().map(|pair| IpNet::from(pair.outside));
        !outside.any(|outside| outside.contains(net) || net.contains(&outside))
    };
    [true, false].into_iter().flat_map(|v4| untranslated(intent, v4)).filter(elsewhere).collect()
}

/// The filter has a bit for each of its /24s or /64s.
fn fits(net: IpNet) -> bool {
    net.prefix_len() >= if net.addr().is_ipv4() { 8 } else { 48 }
}

/// The networks of the internal switch, those named beside it, and those of pods that this node makes.
fn inside(intent: &Intent, network: &Network, v4: bool) -> BTreeSet<IpNet> {
    let nat = &intent.nat;
    let switch = intent.internal_switch.as_ref().filter(|_| nat.of(v4) == Translation::Masquerade);
    let link = switch.and_then(|switch| find(network, &switch.interface)).map(|link| link.index);
    let subnets = nat.subnets.iter().filter(|_| nat.of(v4) == Translation::Masquerade);
    let pods = intent.pod_blocks.iter().filter(|_| nat.masquerades_pods(v4));
    let wished = switch.iter().flat_map(|switch| &switch.addresses).chain(subnets).chain(pods).copied();
    let there = network.addresses.iter().filter(|a| Some(a.link) == link).map(|a| a.net);
    let there = there.filter(|net| fits(*net) && !is_link_local(net.addr()));
    wished.chain(there).filter(|net| net.addr().is_ipv4() == v4).map(|net| net.trunc()).collect()
}

fn find<'n>(network: &'n Network, interface: &str) -> Option<&'n Link> {
    network.links.iter().find(|link| link.name == interface)
}

fn is_link_local(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    }
}

/// Adds the pairs of prefixes that are exchanged.
fn exchange(nat: &Nat, ids: &mut Ids, to: &mut Contents, marks: &mut Marks) -> Result<(), PlanError> {
    if nat.ipv6 != Translation::Prefix {
        return Ok(());
    }
    if nat.prefixes.len() > PREFIXES as usize {
        let (need, capacity) = (nat.prefixes.len() as u64, PREFIXES.into());
        return Err(PlanError::Full { table: "prefixes", need, capacity });
    }
    for pair in &nat.prefixes {
        let len = u32::from(pair.inside.prefix_len());
        let (inside, outside) = (pair.inside.trunc(), pair.outside.trunc());
        let (a, b) = (Ip6::from(inside.addr()), Ip6::from(outside.addr()));
        let Some(index) = ids.prefixes.number_below((a, b, len), PREFIXES) else {
            ids.waits = true;
            continue;
        };
        to.prefixes.insert(index, PrefixPair::new(a, b, len));
        marks.push((inside.into(), Owned { kind: Owned::PREFIX_INSIDE, index: index as u16 }));
        marks.push((outside.into(), Owned { kind: Owned::PREFIX_OUTSIDE, index: index as u16 }));
    }
    Ok(())
}

/// Adds the links that lead out, and their addresses to `marks`; none where nothing is inside.
fn uplinks<A: Addr>(
    intent: &Intent,
    network: &Network,
    marks: &mut Marks,
    ids: &mut Ids,
    to: &mut BTreeMap<u32, Uplink<A>>,
) -> Result<(), PlanError> {
    if !marks.iter().any(|(_, owned)| owned.is(Owned::INSIDE | Owned::PREFIX_INSIDE)) {
        return Ok(());
    }
    let ports = intent.ports.iter().filter(|port| port.leads_out(!A::IS_V6));
    let found = ports.filter_map(|port| Some((find(network, &port.interface)?.index, port)));
    let shared = intent.masquerades(!A::IS_V6);
    let pools: BTreeMap<u32, Vec<IpAddr>> =
        found.map(|(link, port)| (link, if shared { pool(network, link, port, !A::IS_V6) } else { vec![] })).collect();
    if pools.is_empty() && !marks.iter().any(|(_, owned)| owned.is(Owned::PREFIX_INSIDE)) {
        // Nothing leaves: there are no sides.
        marks.clear();
    }
    full("uplinks", pools.len() as u64, UPLINKS)?;
    let capacity = intent.tuning.capacity.nat_addresses;
    let wished: BTreeSet<&IpAddr> = pools.values().flatten().collect();
    full("nat_addresses", wished.len() as u64, capacity.into())?;
    for (link, pool) in pools {
        let mut uplink = Uplink::default();
        for addr in pool {
            let Some(a) = A::from_ip(addr) else { continue };
            let Some(plane) = ids.planes(A::IS_V6).number_below(addr, capacity) else {
                ids.waits = true;
                continue;
            };
            uplink.addrs[uplink.count as usize] = a;
            uplink.planes[uplink.count as usize] = plane;
            uplink.count += 1;
            marks.push((addr.into(), Owned { kind: Owned::OUTSIDE, index: plane as u16 }));
        }
        to.insert(link, uplink);
    }
    Ok(())
}

fn full(table: &'static str, need: u64, capacity: u64) -> Result<(), PlanError> {
    if need > capacity { Err(PlanError::Full { table, need, capacity }) } else { Ok(()) }
}

/// The addresses of a port that translated packets get: those that the wish names and the link has, or
/// one of its static ones, best one in the gateway's network.
fn pool(network: &Network, link: u32, port: &Port, v4: bool) -> Vec<IpAddr> {
    let there: Vec<IpNet> = network
        .addresses
        .iter()
        .filter(|a| a.link == link && !a.temporary && a.net.addr().is_ipv4() == v4 && !is_link_local(a.net.addr()))
        .map(|a| a.net)
        .collect();
    let mut named = port.nat_addresses.iter().filter(|addr| addr.is_ipv4() == v4).peekable();
    if named.peek().is_some() {
        let mut pool: Vec<IpAddr> = Vec::new();
        for &addr in named.filter(|addr| there.iter().any(|net| net.addr() == **addr)) {
            if pool.len() < POOL && !pool.contains(&addr) {
                pool.push(addr);
            }
        }
        return pool;
    }
    let near = there.iter().find(|net| port.gateways.iter().any(|gateway| net.contains(gateway)));
    near.or(there.first()).map(|net| net.addr()).into_iter().collect()
}

/// Each network's entry: all that covers it. This node's own addresses are its own alone: those that
/// packets get outside say only that, and none is in a prefix that is exchanged for one inside.
fn composed<A: Addr>(marks: &Marks, network: &Network) -> BTreeMap<Prefix<A>, Owned> {
    let of = |net: IpNet| {
        let covering = marks.iter().filter(|(wide, owned)| !owned.is(Owned::OUTSIDE) && wide.contains(&net));
        covering.fold(Owned::default(), |all, (_, owned)| Owned {
            kind: all.kind | owned.kind,
            index: all.index | owned.index,
        })
    };
    let prefix = |net: IpNet| Some(Prefix { len: net.prefix_len().into(), addr: A::from_ip(net.addr())? });
    let mut side = BTreeMap::new();
    let own =
        network.addresses.iter().map(|a| IpNet::from(a.net.addr())).filter(|net| A::from_ip(net.addr()).is_some());
    for net in own.filter(|net| of(*net).is(Owned::PREFIX_OUTSIDE)) {
        side.extend(prefix(net).map(|prefix| (prefix, Owned::of(of(net).kind & !Owned::PREFIX_OUTSIDE))));
    }
    for &(net, owned) in marks {
        let owned = if owned.is(Owned::OUTSIDE) { owned } else { of(net) };
        side.extend(prefix(net).map(|prefix| (prefix, owned)));
    }
    side
}
