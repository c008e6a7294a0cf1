//! What is refused, in which words, and what the kernel shall have: data.

use super::check::{covered, duplicate, facts, port};
use super::decide::{State, decide};
use super::form::Words;
use super::reply::{TABLES, reply};
use super::*;
use crate::intent::{Address, HookChoice, Link, Neighbour, Network, Path, Port, ReplyVia, Route};

fn link(index: u32, name: &str) -> Link {
    Link {
        index,
        name: name.into(),
        mac: Some([2, 0, 0, 0, 0, index as u8]),
        mtu: 1500,
        up: true,
        master: None,
        kind: None,
        master_kind: None,
        xdp_transmit: false,
        queued: false,
    }
}

fn net<T: std::str::FromStr<Err: fmt::Debug>>(text: &str) -> T {
    text.parse().expect(text)
}

fn address(link: u32, text: &str) -> Address {
    Address { link, net: net(text), temporary: false }
}

fn ports() -> Vec<Port> {
    let port = |index: u32| Port {
        name: format!("Port{index}"),
        interface: format!("eth{index}"),
        gateways: vec![],
        nat_addresses: vec![],
        compute: false,
        hook: HookChoice::Auto,
        reply_via: ReplyVia::Routes,
    };
    (2..=6).map(port).collect()
}

/// Port5's address is from DHCP, and Port6 is a slave of a bond.
fn network() -> Network {
    let mut slave = link(6, "eth6");
    (slave.master, slave.master_kind) = (Some(7), Some("bond".into()));
    let mut bond = link(7, "bond0");
    bond.kind = Some("bond".into());
    Network {
        links: vec![link(2, "eth2"), link(3, "eth3"), link(4, "eth4"), link(5, "eth5"), slave, bond],
        addresses: vec![
            address(2, "203.0.113.2/24"),
            address(3, "192.168.20.2/24"),
            address(3, "fd00:20::2/64"),
            address(4, "192.168.30.2/24"),
            Address { temporary: true, ..address(5, "10.5.0.2/24") },
            address(6, "10.6.0.2/24"),
        ],
        ..Network::default()
    }
}

/// What a command line says to a route, on Port3 where nothing else is said.
fn words(line: &str) -> Result<StaticRoute, String> {
    let mut words = Words { interface: "Port3", ..Words::default() };
    let mut rest = line.split(' ');
    words.destination = rest.next().unwrap_or_default();
    while let Some(option) = rest.next() {
        match option {
            "-i" => words.interface = rest.next().unwrap_or_default(),
            "-n" => words.next_hop = rest.next(),
            "-m" => words.metric = rest.next(),
            "-w" => words.weight = rest.next(),
            "-t" => words.kind = rest.next(),
            _ => words.mask = true,
        }
    }
    words.route()
}

fn checked(line: &str) -> Result<String, String> {
    let (route, network, ports) = (words(line)?, network(), ports());
    let there = words("10.1.0.0/16 -n 192.168.20.1 -m 7")?;
    let file = words("10.2.0.0/16 -t blackhole")?;
    let port = port(&ports, &route.interface)?;
    duplicate(&route, &wish(&[file], &[there]))?;
    facts(&route, port, &network)?;
    Ok(covered(&route, port, &network).unwrap_or_else(|| route.to_string()))
}

#[test]
fn accepted() {
    for (line, want) in [
        ("192.168.21.0/24 -n 192.168.20.1", "192.168.21.0/24 by 192.168.20.1 on Port3, metric 100"),
        ("192.168.21.9/24 -n 192.168.20.1 -f", "192.168.21.0/24 by 192.168.20.1 on Port3, metric 100"),
        ("192.168.21.7 -n 192.168.20.1 -m 5 -w 256", "192.168.21.7/32 by 192.168.20.1 on Port3, metric 5, weight 256"),
        ("fd00:21::7 -n fd00:20::1 -m 4294967295", "fd00:21::7/128 by fd00:20::1 on Port3, metric 4294967295"),
        ("0.0.0.0/0 -n 192.168.20.1", "0.0.0.0/0 by 192.168.20.1 on Port3, metric 100"),
        ("10.0.0.0/8 -t prohibit", "10.0.0.0/8 prohibit on Port3, metric 100"),
        ("10.1.0.0/16 -i Port4 -n 192.168.30.1", "10.1.0.0/16 by 192.168.30.1 on Port4, metric 100"),
        (
            "192.168.20.128/25 -n 192.168.20.1",
            "192.168.20.128/25 is in 192.168.20.0/24, the network of Port3 itself: the route isn't needed",
        ),
    ] {
        assert_eq!(checked(line), Ok(want.into()), "{line}");
    }
}

#[test]
fn refused() {
    for (line, want) in ERRORS {
        assert_eq!(checked(line), Err((*want).into()), "{line}");
    }
    let none = port(&[], "Port3").unwrap_err();
    assert_eq!(none, "there is no port `Port3`; expected one of those in `ports` of the configuration, which has none");
    // What an operator says to the kernel himself, and a link that is down, are no errors.
    let mut network = network();
    let ports = ports();
    let route = words("10.0.0.0/8 -n 10.9.0.1").unwrap();
    assert!(facts(&route, &ports[1], &network).is_err());
    network.routes = [Route { prefix: net("10.9.0.1/32"), path: Path { link: 3, ..Path::default() } }].into();
    assert_eq!(facts(&route, &ports[1], &network), Ok(()));
    let v6 = words("fd00::/16 -i Port4 -n fd00:30::1").unwrap();
    let why = facts(&v6, &ports[2], &network).unwrap_err();
    assert_eq!(why, "Port4 (eth4) has no IPv6 address; expected one in the next hop's network");
    network.links[2].up = false;
    assert_eq!(facts(&v6, &ports[2], &network), Ok(()));
}

const ERRORS: &[(&str, &str)] = &[
    (
        "192.168.21.5/24 -n 192.168.20.1",
        "--destination: `192.168.21.5/24` has bits behind its prefix; expected 192.168.21.0/24, or --force-mask to take it so",
    ),
    (
        "10.0.0.0/33 -n 192.168.20.1",
        "--destination: `10.0.0.0/33` has a prefix longer than 32; expected a prefix or an address such as 192.168.21.0/24, 192.168.21.7 or fd00:21::/64",
    ),
    (
        "there -n 192.168.20.1",
        "--destination: `there` is not a prefix or an address such as 192.168.21.0/24, 192.168.21.7 or fd00:21::/64",
    ),
    (
        "224.0.0.0/4 -n 192.168.20.1",
        "--destination: `224.0.0.0/4` is of addresses that are not routed; expected a prefix or an address such as 192.168.21.0/24, 192.168.21.7 or fd00:21::/64",
    ),
    (
        "10.0.0.0/8 -n 192.168.20.300",
        "--next-hop: `192.168.20.300` is not a router's address in the port's network, such as 192.168.20.1 or fd00:20::1",
    ),
    (
        "10.0.0.0/8 -n 255.255.255.255",
        "--next-hop: `255.255.255.255` is a multicast or broadcast address; expected a router's address in the port's network, such as 192.168.20.1 or fd00:20::1",
    ),
    (
        "10.0.0.0/8",
        "the next hop is missing; expected a router's address in the port's network, such as 192.168.20.1 or fd00:20::1, or the type blackhole, unreachable or prohibit",
    ),
    (
        "10.0.0.0/8 -n 192.168.20.1 -m 0",
        "--metric: `0` is too small; expected a number from 1 to 4294967295 (the lower wins)",
    ),
    (
        "10.0.0.0/8 -n 192.168.20.1 -m 4294967296",
        "--metric: `4294967296` is too large; expected a number from 1 to 4294967295 (the lower wins)",
    ),
    ("10.0.0.0/8 -n 192.168.20.1 -m low", "--metric: `low` is not a number from 1 to 4294967295 (the lower wins)"),
    ("10.0.0.0/8 -n 192.168.20.1 -w 257", "--weight: `257` is too large; expected a number from 1 to 256"),
    ("10.0.0.0/8 -t throw", "--type: `throw` is not blackhole, unreachable or prohibit"),
    (
        "10.0.0.0/8 -t blackhole -n 192.168.20.1",
        "a route of the type blackhole leads to no next hop; expected it without 192.168.20.1",
    ),
    ("10.0.0.0/8 -t prohibit -w 2", "a route of the type prohibit has no weight; expected it without 2"),
    (
        "10.0.0.0/8 -n fd00:20::1",
        "the destination 10.0.0.0/8 is IPv4, but the next hop fd00:20::1 is IPv6; expected both of one family",
    ),
    (
        "fd00:21::/64 -n 192.168.20.1",
        "the destination fd00:21::/64 is IPv6, but the next hop 192.168.20.1 is IPv4; expected both of one family",
    ),
    (
        "10.0.0.0/8 -i Port9 -n 192.168.20.1",
        "there is no port `Port9`; expected one of Port2, Port3, Port4, Port5, Port6",
    ),
    (
        "10.1.0.0/16 -n 192.168.20.1",
        "Port3 has a route to 10.1.0.0/16 already (by 192.168.20.1 on Port3, metric 7); expected that to be removed first",
    ),
    (
        "10.2.0.0/16 -n 192.168.20.1",
        "Port3 has a route to 10.2.0.0/16 already, in the configuration file (blackhole on Port3, metric 100); expected that to be changed instead",
    ),
    (
        "10.0.0.0/8 -n 192.168.30.1",
        "the next hop 192.168.30.1 is in none of the networks of Port3 (eth3), 192.168.20.2/24; expected a router's in one of them",
    ),
    (
        "10.0.0.0/8 -n 192.168.20.2",
        "the next hop 192.168.20.2 is this node's own address on eth3; expected its router's",
    ),
    ("10.0.0.0/8 -n 203.0.113.2", "the next hop 203.0.113.2 is this node's own address on eth2; expected its router's"),
    (
        "10.0.0.0/8 -n 192.168.20.255",
        "the next hop 192.168.20.255 is the own or the broadcast address of 192.168.20.0/24; expected a router's in it",
    ),
    (
        "10.0.0.0/8 -i Port5 -n 10.5.0.1",
        "Port5 (eth5) has its address 10.5.0.2/24 from DHCP or router advertisement; expected a static address, since routes need a port that stays",
    ),
    (
        "10.0.0.0/8 -i Port6 -n 10.6.0.1",
        "Port6 (eth6) is a slave of the bond bond0; teaming is not supported: expected an interface of its own",
    ),
];

#[test]
fn a_bond_itself_is_no_port_of_routes() {
    let mut ports = ports();
    ports[4].interface = "bond0".into();
    let why = facts(&words("10.0.0.0/8 -t blackhole").unwrap(), &ports[4], &network()).unwrap_err();
    assert_eq!(why, "Port6 (bond0) is a bond; teaming is not supported: expected an interface of its own");
}

/// The kernel's routes, the states, and the next hops that are probed, as texts. `neighbours` answer.
fn decided(lines: &[&str], neighbours: &[&str], down: &[u32]) -> (Vec<String>, String, usize) {
    let mut network = network();
    network.links.iter_mut().for_each(|link| link.up = !down.contains(&link.index));
    network.neighbours = neighbours
        .iter()
        .map(|addr| Neighbour { link: if addr.contains(".30.") { 4 } else { 3 }, addr: net(addr), mac: Some([2; 6]) })
        .collect();
    let routes: Vec<_> = lines.iter().map(|line| words(line).expect(line)).collect();
    let decision = decide(&wish(&[], &routes), &ports(), &network);
    let shown = decision.routes.iter().map(|(key, target)| {
        let hop = |hop: &Hop| format!(" {}*{}", hop.gateway.unwrap(), hop.weight);
        format!("{key} {}{}", target.kind.name(), target.hops.iter().map(hop).collect::<String>())
    });
    let state = |state: &State| match state {
        State::Active => "active".to_owned(),
        State::Standby => "standby".into(),
        State::Silent(stays) => format!("silent{}", if *stays { "!" } else { "" }),
        State::Down(why) | State::Invalid(why) => why.clone(),
    };
    let states: Vec<_> = decision.states.iter().map(state).collect();
    (shown.collect(), states.join(", "), decision.probed.len())
}

#[test]
fn candidates_by_metric() {
    let both = ["10.1.0.0/16 -n 192.168.20.1 -m 10", "10.1.0.0/16 -i Port4 -n 192.168.30.1 -m 20"];
    let (a, b) = ("10.1.0.0/16 metric 10 unicast 192.168.20.1*1", "10.1.0.0/16 metric 20 unicast 192.168.30.1*1");
    let all = ["192.168.20.1", "192.168.30.1"];
    for (neighbours, down, routes, states, probed) in [
        (&all[..], &[][..], &[a, b][..], "active, standby", 2),
        (&all[1..], &[], &[b], "silent, active", 2),
        (&all[..1], &[], &[a], "active, silent", 2),
        (&[], &[], &[a], "silent!, silent", 2),
        (&all, &[3], &[b], "eth3 is down, active", 1),
        (&[], &[3], &[b], "eth3 is down, silent!", 1),
        (&all, &[3, 4], &[], "eth3 is down, eth4 is down", 0),
    ] {
        let want = (routes.iter().map(ToString::to_string).collect(), states.to_owned(), probed);
        assert_eq!(decided(&both, neighbours, down), want);
    }
    // One alone is not asked for.
    assert_eq!(decided(&both[..1], &[], &[]), (vec![a.into()], "silent!".into(), 0));
}

#[test]
fn equal_metrics_share() {
    let both = ["10.1.0.0/16 -n 192.168.20.1 -w 3", "10.1.0.0/16 -i Port4 -n 192.168.30.1"];
    let shared = "10.1.0.0/16 metric 100 unicast 192.168.20.1*3 192.168.30.1*1";
    let all = ["192.168.20.1", "192.168.30.1"];
    assert_eq!(decided(&both, &all, &[]), (vec![shared.into()], "active, active".into(), 2));
    let one = "10.1.0.0/16 metric 100 unicast 192.168.20.1*1";
    assert_eq!(decided(&both, &all, &[4]), (vec![one.into()], "active, eth4 is down".into(), 1));
    assert_eq!(decided(&both, &all[..1], &[]), (vec![one.into()], "active, silent".into(), 2));
}

#[test]
fn routes_that_lead_nowhere() {
    // They need neither link nor neighbour, and stand behind a next hop of the same metric.
    let lines = ["10.1.0.0/16 -n 192.168.20.1", "10.1.0.0/16 -i Port4 -t prohibit", "10.2.0.0/16 -t blackhole"];
    let lives = ["10.1.0.0/16 metric 100 unicast 192.168.20.1*1", "10.2.0.0/16 metric 100 blackhole"];
    let dead = ["10.1.0.0/16 metric 100 prohibit", "10.2.0.0/16 metric 100 blackhole"];
    let texts = |all: [&str; 2]| all.map(ToString::to_string).to_vec();
    assert_eq!(decided(&lines, &["192.168.20.1"], &[]), (texts(lives), "active, standby, active".into(), 1));
    assert_eq!(decided(&lines, &[], &[3]), (texts(dead), "eth3 is down, active, active".into(), 0));
}

#[test]
fn what_is_wrong_is_kept_out_and_told() {
    let lines = ["10.1.0.0/16 -i Port9 -n 192.168.20.1", "10.1.0.0/16 -n 192.168.30.1", "10.2.0.0/16 -n 192.168.20.1"];
    let (routes, states, _) = decided(&lines, &["192.168.20.1"], &[]);
    assert_eq!(routes, ["10.2.0.0/16 metric 100 unicast 192.168.20.1*1"]);
    assert_eq!(
        states,
        "there is no port `Port9`; expected one of Port2, Port3, Port4, Port5, Port6, the next hop 192.168.30.1 is in none of the networks of Port3 (eth3), 192.168.20.2/24; expected a router's in one of them, active"
    );
}

#[test]
fn answers_leave_by_the_port() {
    let mut ports = ports();
    ports[0].gateways = vec![net("203.0.113.1")];
    (ports[1].gateways, ports[1].reply_via) = (vec![net("192.168.20.1")], ReplyVia::Port);
    let mut network = network();
    let route = |prefix: &str, gateway: Option<&str>, link| Route {
        prefix: net(prefix),
        path: Path { gateway: gateway.map(net), link, ..Path::default() },
    };
    network.routes = [
        route("0.0.0.0/0", Some("203.0.113.1"), 2),
        // By another port's gateway: answers don't go there.
        route("198.51.100.0/24", Some("203.0.113.1"), 2),
        route("203.0.113.0/24", None, 2),
        route("192.168.20.0/24", None, 3),
        route("10.7.0.0/16", Some("192.168.20.9"), 3),
        route("172.27.2.0/24", Some("192.168.30.9"), 4),
    ]
    .into();
    let mut own = Own::default();
    reply(&ports, &network, &mut own);
    assert_eq!(own.rules.iter().collect::<Vec<_>>(), [&Rule { from: net("192.168.20.2"), table: TABLES + 3 }]);
    let shown: Vec<_> = own
        .routes
        .iter()
        .map(|(key, target)| {
            let hops: String = target.hops.iter().map(|hop| format!(" {:?} link {}", hop.gateway, hop.link)).collect();
            format!("{} {}{hops}", key.prefix, target.kind.name())
        })
        .collect();
    assert_eq!(
        shown,
        [
            "0.0.0.0/0 unicast Some(192.168.20.1) link 3",
            "10.7.0.0/16 throw",
            "172.27.2.0/24 throw",
            "192.168.20.0/24 unicast None link 3",
            "203.0.113.0/24 throw",
        ]
    );
    network.links[1].up = false;
    own = Own::default();
    reply(&ports, &network, &mut own);
    assert_eq!(own, Own::default());
}

#[test]
fn the_store_is_whole_or_refused() {
    let dir = std::env::temp_dir().join(format!("stellwerk-routes-{}", std::process::id()));
    let path = dir.join("routes.json");
    assert_eq!(store::read(&path).unwrap(), store::Stored::default());
    let route = words("192.168.21.0/24 -n 192.168.20.1 -w 2").unwrap();
    for generation in 1..=2 {
        let mut store = store::Store::open(&path).unwrap();
        store.stored.routes = vec![route.clone(), words("10.0.0.0/8 -t prohibit").unwrap()];
        assert_eq!(store.write().unwrap(), generation);
    }
    let stored = store::read(&path).unwrap();
    assert_eq!((stored.generation, stored.routes.len(), &stored.routes[0]), (2, 2, &route));
    let text = std::fs::read_to_string(&path).unwrap();
    let damaged = format!("{} is damaged; expected it as `stellwerk route add` wrote it", path.display());
    for (from, to, why) in [
        ("192.168.21.0/24", "192.168.21.1/24", "has bits behind its prefix"),
        ("\"metric\": 100", "\"metric\": 0", "too small"),
        ("\"prohibit\"", "\"throw\"", "is not blackhole, unreachable or prohibit"),
        ("{", "", "invalid type"),
        ("\"weight\"", "\"wait\"", "unknown field"),
    ] {
        std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
        let error = format!("{:#}", store::read(&path).unwrap_err());
        assert!(error.starts_with(&damaged) && error.contains(why), "{error}");
        assert!(store::Store::open(&path).is_err());
    }
    std::fs::write(&path, text.replacen("\"version\": 1", "\"version\": 2", 1)).unwrap();
    assert_eq!(store::read(&path).unwrap_err().to_string(), format!("{} is of version 2; expected 1", path.display()));
    std::fs::remove_dir_all(dir).unwrap();
}
