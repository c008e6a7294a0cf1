//! Which routes the kernel shall have, and what each wished one is for at this moment.
//!
//! The candidates of a prefix are its routes on all ports. Those that live (their link is up, their next hop
//! answers) are in the kernel, the ones of a metric as one route of several next hops. So the kernel's own
//! rule, the lowest metric, picks the winner, and the next one is there when a link takes its routes along.
//! Invariant: where none lives, the best whose link is up stays: its packets are answered as unreachable
//! instead of leaving by a wider route. A pure function.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Hop, Key, Kind, MAIN, StaticRoute, Target, Wished, check};
use crate::intent::{Link, Network, Port};

/// What a wished route is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Its packets go by it.
    Active,
    /// It lives, and another is better.
    Standby,
    /// Its next hop doesn't answer; true: it stays all the same, since no other is better.
    Silent(bool),
    /// Its link is down, or not there.
    Down(String),
    Invalid(String),
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    pub routes: BTreeMap<Key, Target>,
    /// One for each of the wish.
    pub states: Vec<State>,
    /// Next hops whose life decides something: a link and an address on it.
    pub probed: BTreeSet<(u32, IpAddr)>,
}

/// A valid route.
struct Candidate<'w> {
    index: usize,
    route: &'w StaticRoute,
    /// None: it needs none, or it is not up.
    link: Option<&'w Link>,
    usable: bool,
    alive: bool,
}

pub fn decide(wish: &[Wished], ports: &[Port], network: &Network) -> Decision {
    let mut all = Decision::default();
    let mut by_prefix: BTreeMap<IpNet, Vec<Candidate>> = BTreeMap::new();
    for (index, wished) in wish.iter().enumerate() {
        let (state, candidate) = match candidate(index, wish, ports, network) {
            Ok(candidate) => (down(&candidate, ports), Some(candidate)),
            Err(why) => (State::Invalid(why), None),
        };
        all.states.push(state);
        by_prefix.entry(wished.route.destination).or_default().extend(candidate);
    }
    for (prefix, candidates) in by_prefix {
        rank(prefix, &candidates, &mut all);
        if candidates.len() > 1 {
            let hops = candidates.iter().filter_map(|c| Some((c.link?, c.route.next_hop?)));
            let hops = hops.filter(|(link, _)| link.mac.is_some());
            all.probed.extend(hops.map(|(link, addr)| (link.index, addr)));
        }
    }
    all
}

fn candidate<'w>(
    index: usize,
    wish: &'w [Wished],
    ports: &[Port],
    network: &'w Network,
) -> Result<Candidate<'w>, String> {
    let route = &wish[index].route;
    let port = check::port(ports, &route.interface)?;
    check::duplicate(route, &wish[..index])?;
    check::facts(route, port, network)?;
    let link = check::link(port, network).filter(|link| link.up);
    let usable = route.next_hop.is_none() || link.is_some();
    let alive = usable && route.next_hop.is_none_or(|addr| link.is_some_and(|link| answers(link, addr, network)));
    Ok(Candidate { index, route, link, usable, alive })
}

/// Links without link-layer addresses have nobody to ask.
fn answers(link: &Link, addr: IpAddr, network: &Network) -> bool {
    let known = || network.neighbours.iter().any(|n| n.link == link.index && n.addr == addr && n.mac.is_some());
    link.mac.is_none() || known()
}

/// The state of one that is not ranked.
fn down(candidate: &Candidate, ports: &[Port]) -> State {
    if candidate.usable {
        return State::Silent(false);
    }
    let interface = check::port(ports, &candidate.route.interface).map_or("?", |port| port.interface.as_str());
    State::Down(format!("{interface} is down"))
}

/// The kernel's routes of one prefix.
fn rank(prefix: IpNet, candidates: &[Candidate], all: &mut Decision) {
    let any_alive = candidates.iter().any(|c| c.alive);
    let mut by_metric: BTreeMap<u32, Vec<&Candidate>> = BTreeMap::new();
    for candidate in candidates.iter().filter(|c| if any_alive { c.alive } else { c.usable }) {
        by_metric.entry(candidate.route.metric).or_default().push(candidate);
    }
    let state = |best: bool| match (any_alive, best) {
        (true, true) => State::Active,
        (true, false) => State::Standby,
        (false, best) => State::Silent(best),
    };
    for (place, (metric, of_metric)) in by_metric.into_iter().enumerate() {
        if !any_alive && place > 0 {
            break;
        }
        let mut hops: Vec<Hop> = of_metric.iter().filter_map(|c| hop(c)).collect();
        hops.sort_unstable();
        // What leads somewhere goes before what leads nowhere.
        let kind = if hops.is_empty() { of_metric[0].route.kind } else { Kind::Unicast };
        for (nth, candidate) in of_metric.iter().enumerate() {
            let has_part = candidate.route.kind == kind && (kind == Kind::Unicast || nth == 0);
            all.states[candidate.index] = state(place == 0 && has_part);
        }
        if let [only] = &mut hops[..] {
            only.weight = 1;
        }
        all.routes.insert(Key { table: MAIN, prefix, metric }, Target::new(kind, hops));
    }
}

fn hop(candidate: &Candidate) -> Option<Hop> {
    Some(Hop { link: candidate.link?.index, gateway: Some(candidate.route.next_hop?), weight: candidate.route.weight })
}
