//! Who announces an address: rendezvous hashing over the nodes that may.
//!
//! Invariant: a pure function; nodes that see the same state choose the same owner, and a node that comes or goes
//! moves only the addresses that it gains or had.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::hash;

use super::demand::Demand;
use super::peers::Life;

/// The nodes, as this one sees them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nodes {
    pub own: String,
    /// All others.
    pub peers: BTreeMap<String, Life>,
    /// Those that are not to announce, by their label.
    pub excluded: BTreeSet<String>,
}

/// Who announces an address, and why not others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    pub owner: Option<String>,
    pub here: bool,
    /// Nodes that are left out, and why.
    pub others: Vec<(String, &'static str)>,
}

/// Chooses; `holds`: this node announces it now.
///
/// A peer of which nothing is known yet counts as there for what this node would take from it, and as gone for what it
/// holds: so a start takes nothing from anybody and gives nothing up.
pub fn choose(addr: IpAddr, demand: &Demand, nodes: &Nodes, holds: bool) -> Choice {
    let mut choice = Choice::default();
    let (mut sure, mut possible) = (Vec::new(), Vec::new());
    let own = [(&nodes.own, &Life::Alive)];
    for (node, life) in own.into_iter().chain(&nodes.peers) {
        let out = if nodes.excluded.contains(node) {
            Some("excluded by its label")
        } else if demand.nodes.as_ref().is_some_and(|serving| !serving.contains(node)) {
            Some("no serving endpoint there")
        } else if *life == Life::Gone {
            Some("not there")
        } else {
            None
        };
        match out {
            Some(why) => choice.others.push((node.clone(), why)),
            None if *life == Life::Unknown => possible.push(node),
            None => {
                sure.push(node);
                possible.push(node);
            }
        }
    }
    let first = |nodes: &[&String]| nodes.iter().max_by_key(|node| (weight(node, addr), **node)).map(|n| n.to_string());
    choice.owner = first(&possible);
    if holds && first(&sure).as_deref() == Some(nodes.own.as_str()) {
        choice.owner = Some(nodes.own.clone());
    }
    choice.here = choice.owner.as_deref() == Some(nodes.own.as_str());
    choice
}

fn weight(node: &str, addr: IpAddr) -> u64 {
    let number = match addr {
        IpAddr::V4(addr) => addr.to_ipv6_mapped(),
        IpAddr::V6(addr) => addr,
    };
    hash::bytes(node.bytes().chain([0]).chain(number.octets()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(own: &str, peers: &[(&str, Life)]) -> Nodes {
        Nodes {
            own: own.into(),
            peers: peers.iter().map(|(name, life)| ((*name).into(), *life)).collect(),
            excluded: BTreeSet::new(),
        }
    }

    fn addr(i: u8) -> IpAddr {
        [192, 168, 20, i].into()
    }

    fn owners(nodes: &Nodes, holds: bool) -> Vec<Option<String>> {
        (0..=255).map(|i| choose(addr(i), &Demand::default(), nodes, holds).owner).collect()
    }

    #[test]
    fn all_nodes_choose_the_same_and_share() {
        use Life::Alive;
        let a = owners(&nodes("a", &[("b", Alive), ("c", Alive)]), false);
        assert_eq!(a, owners(&nodes("b", &[("a", Alive), ("c", Alive)]), true));
        assert_eq!(a, owners(&nodes("c", &[("a", Alive), ("b", Alive)]), false));
        for node in ["a", "b", "c"] {
            let share = a.iter().flatten().filter(|owner| *owner == node).count();
            assert!((60..=110).contains(&share), "{node} has {share} of 256");
        }
    }

    #[test]
    fn who_goes_moves_only_its_own() {
        let before = owners(&nodes("a", &[("b", Life::Alive), ("c", Life::Alive)]), false);
        let after = owners(&nodes("a", &[("b", Life::Alive), ("c", Life::Gone)]), false);
        for (before, after) in before.into_iter().zip(after) {
            if before.as_deref() != Some("c") {
                assert_eq!(before, after);
            } else {
                assert_ne!(after.as_deref(), Some("c"));
            }
        }
    }

    #[test]
    fn a_start_takes_nothing_and_gives_nothing_up() {
        let unknown = nodes("a", &[("b", Life::Unknown)]);
        let (alone, both) = (nodes("a", &[("b", Life::Gone)]), nodes("a", &[("b", Life::Alive)]));
        assert_eq!(owners(&unknown, false), owners(&both, false));
        assert_eq!(owners(&unknown, true), owners(&alone, true));
    }

    #[test]
    fn who_may_not() {
        let mut three = nodes("a", &[("b", Life::Alive), ("c", Life::Gone)]);
        three.excluded.insert("a".into());
        let choice = choose(addr(1), &Demand::default(), &three, true);
        assert_eq!((choice.owner.as_deref(), choice.here), (Some("b"), false));
        assert_eq!(choice.others, [("a".into(), "excluded by its label"), ("c".into(), "not there")]);
        let local = Demand { nodes: Some(["c".into()].into()), ..Demand::default() };
        let choice = choose(addr(1), &local, &three, false);
        assert_eq!(choice.owner, None);
        assert_eq!(choice.others[1], ("b".into(), "no serving endpoint there"));
    }
}
