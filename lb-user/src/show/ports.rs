//! The device's interfaces: ports, the internal switch and what hangs inside, with what they carry.
//!
//! Invariant: names and roles are those of the configuration in force, as the agent wrote them down; counters are the
//! kernel's own of each interface.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};

use super::{Cell, Table, interfaces, mirror, open};
use crate::agent::{Named, running};
use crate::apply::{Paths, Point, State, attached};
use crate::intent::{Link, Network};

const COLUMNS: &[&str] = &[
    "name",
    "interface",
    "role",
    "state",
    "hook",
    "addresses",
    "rx_bytes",
    "rx_packets",
    "rx_errors",
    "rx_dropped",
    "tx_bytes",
    "tx_packets",
    "tx_errors",
    "tx_dropped",
];

/// Ports, the internal switch, and further interfaces that a program hangs on.
pub fn ports(paths: &Paths) -> Result<Table> {
    _ = open(paths)?;
    let (about, _) = running(paths);
    let state = State::read(paths)?;
    let mirror = mirror(&state)?;
    let names = interfaces(mirror.as_ref());
    let mut hooks: BTreeMap<String, BTreeSet<&'static str>> = BTreeMap::new();
    for (link, point) in attached(paths, &state)?.into_keys() {
        if let Some(name) = names.get(&link).filter(|name| *name != "lo") {
            hooks.entry(name.clone()).or_default().insert(point_name(point));
        }
    }
    let mut all = about.ports;
    let further = hooks.keys().filter(|name| all.iter().all(|port| port.interface != **name)).cloned();
    let further: Vec<Named> =
        further.map(|name| Named { name: name.clone(), interface: name, role: "inside".into() }).collect();
    all.extend(further);
    // Where links can't be told, counters of this namespace would be another device's.
    let counters = match mirror {
        Some(_) => {
            counters(&std::fs::read_to_string("/proc/thread-self/net/dev").context("/proc/thread-self/net/dev")?)
        }
        None => BTreeMap::new(),
    };
    Ok(table(&all, &hooks, mirror.as_ref().map(|mirror| mirror.network()), &counters))
}

fn point_name(point: Point) -> &'static str {
    match point {
        Point::Xdp => "xdp",
        _ => "tc",
    }
}

fn table(
    all: &[Named],
    hooks: &BTreeMap<String, BTreeSet<&'static str>>,
    network: Option<&Network>,
    counters: &BTreeMap<String, [u64; 8]>,
) -> Table {
    let mut table = Table::new(COLUMNS);
    for Named { name, interface, role } in all {
        let link = network.and_then(|network| network.links.iter().find(|link| link.name == *interface));
        let state = match (network, link) {
            (None, _) => "unknown",
            (Some(_), None) => "gone",
            (Some(_), Some(Link { up: true, .. })) => "up",
            (Some(_), Some(_)) => "down",
        };
        let mine = |link: &Link| {
            let all = network.into_iter().flat_map(|network| &network.addresses);
            all.filter(|addr| addr.link == link.index).map(|addr| addr.net.to_string()).collect()
        };
        let hook = hooks.get(interface).map(|hooks| hooks.iter().copied().collect::<Vec<_>>().join("+"));
        let [rb, rp, re, rd, tb, tp, te, td] =
            counters.get(interface).map_or([const { Cell::None }; 8], |all| all.map(Cell::from));
        let (name, interface, role) = (name.clone().into(), interface.clone().into(), role.clone().into());
        let addresses = Cell::List(link.map(mine).unwrap_or_default());
        table.push([name, interface, role, state.into(), hook.into(), addresses, rb, rp, re, rd, tb, tp, te, td]);
    }
    table
}

/// Bytes, packets, errors and drops, received and sent, by interface: proc_net_dev(5).
fn counters(text: &str) -> BTreeMap<String, [u64; 8]> {
    let line = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        let all: Vec<u64> = rest.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let [rb, rp, re, rd, _, _, _, _, tb, tp, te, td, ..] = all[..] else { return None };
        Some((name.trim().to_owned(), [rb, rp, re, rd, tb, tp, te, td]))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intent::Address;

    const DEV: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0
  eth0: 1200 10 1 2 0 0 0 3 3400 20 5 6 0 0 0 0
";

    #[test]
    fn interfaces_with_what_they_carry() {
        let link = |index, name: &str, up| Link {
            index,
            name: name.into(),
            mac: None,
            mtu: 1500,
            up,
            master: None,
            kind: None,
            master_kind: None,
            xdp_transmit: false,
            queued: false,
        };
        let network = Network {
            links: vec![link(2, "eth0", true), link(3, "br-int", false)],
            addresses: vec![Address { link: 2, net: "203.0.113.2/24".parse().unwrap(), temporary: false }],
            ..Network::default()
        };
        let named = |name: &str, interface: &str, role: &str| Named {
            name: name.into(),
            interface: interface.into(),
            role: role.into(),
        };
        let all =
            [named("Port2", "eth0", "uplink"), named("switch", "br-int", "switch"), named("Port9", "eth9", "compute")];
        let hooks = BTreeMap::from([("eth0".to_owned(), BTreeSet::from(["xdp", "tc"]))]);
        let text = table(&all, &hooks, Some(&network), &counters(DEV)).string(false);
        let lines: Vec<String> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            lines,
            [
                "NAME INTERFACE ROLE STATE HOOK ADDRESSES RX BYTES RX PACKETS RX ERRORS RX DROPPED TX BYTES TX PACKETS TX ERRORS TX DROPPED",
                "Port2 eth0 uplink up tc+xdp 203.0.113.2/24 1200 10 1 2 3400 20 5 6",
                "switch br-int switch down - - - - - - - - - -",
                "Port9 eth9 compute gone - - - - - - - - - -",
            ]
        );
        let elsewhere = table(&all[..1], &BTreeMap::new(), None, &BTreeMap::new()).string(false);
        assert!(elsewhere.contains("unknown"), "{elsewhere}");
    }
}
