//! Properties of plan and diff under any sequence of wishes, networks, failures and restarts.

use std::net::IpAddr;

use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::super::{Contents, Ids, Op, PlanError, diff, plan};
use super::world::*;
use super::{Model, clock, nothing};
use crate::intent::{
    Endpoint, EndpointState, Filtering, Intent, Nat, Network, Overlay, OverlayMode, PodNode, PrefixPair, ServicePort,
    Traffic, Translation,
};

const ENDPOINTS: [&str; 8] =
    ["10.20.0.5", "10.20.0.6", "192.168.20.10", "192.168.20.1", "198.51.100.7", "fd10::5", "fd20::10", "fd99::1"];

/// One round: what is wished for, how it goes, and how much later it is.
#[derive(Clone, Debug)]
struct Round {
    intent: Intent,
    network: Network,
    seconds: u32,
    /// The operation that fails, if the list is so long.
    fails_at: Option<usize>,
    /// The agent starts anew before this round.
    restart: bool,
}

fn endpoints() -> impl Strategy<Value = Vec<Endpoint>> {
    let state = prop_oneof![3 => Just(None), 1 => (0u32..60).prop_map(Some)];
    let weights = vec((1u32..4, state), ENDPOINTS.len());
    (subsequence(ENDPOINTS.to_vec(), 0..=5), weights).prop_map(|(addrs, rest)| {
        let node = |addr: &str| Some(if addr.ends_with('5') { "edge-1" } else { "edge-2" }.to_owned());
        let one = |(addr, (weight, until)): (&str, (u32, Option<u32>))| Endpoint {
            weight,
            node: node(addr).filter(|_| weight != 1),
            state: until.map_or(EndpointState::Ready, |s| EndpointState::Draining { until: clock(s).now }),
            ..ready(addr)
        };
        addrs.into_iter().zip(rest).map(one).collect()
    })
}

fn traffic() -> impl Strategy<Value = Traffic> {
    let sources: Vec<IpNet> =
        ["0.0.0.0/0", "10.0.0.0/8", "fd00::/8"].map(|net| net.parse().expect("a prefix")).to_vec();
    (any::<bool>(), any::<bool>(), subsequence(sources, 0..=3)).prop_map(|(external_local, internal_local, sources)| {
        Traffic { external_local, internal_local, sources, ..Traffic::default() }
    })
}

pub fn services() -> impl Strategy<Value = Vec<ServicePort>> {
    let all = (0..4usize).map(|i| {
        let addresses = vec![format!("172.28.0.{i}"), format!("192.168.20.10{i}"), format!("fd28::{i}")];
        let there = proptest::bool::weighted(0.8);
        let rest = (subsequence(addresses, 0..=3), any::<bool>(), any::<bool>(), endpoints(), traffic(), there);
        rest.prop_map(move |(addresses, node_port, affinity, endpoints, traffic, there)| {
            let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
            let mut one = service(&format!("s{i}"), &addresses, endpoints);
            one.node_port = node_port.then_some(30_000 + i as u16);
            one.affinity = affinity.then_some(60);
            let is_cluster = |addr: &&IpAddr| addr.to_string().starts_with("172.28.");
            let cluster_ips = one.addresses.iter().filter(is_cluster).copied().collect();
            one.traffic = Traffic { cluster_ips, balancer_ips: one.addresses.clone(), ..traffic };
            there.then_some(one)
        })
    });
    all.collect::<Vec<_>>().prop_map(|all| all.into_iter().flatten().collect())
}

pub fn networks() -> impl Strategy<Value = Network> {
    let full = network();
    let neighbours = subsequence(full.neighbours.clone(), 0..=full.neighbours.len());
    let routes = subsequence(
        [
            full.routes.iter().collect(),
            vec![route("198.51.100.0/24", Some("203.0.113.1"), ETH0, 5), route("::/0", Some("fd20::10"), ETH1, 1)],
            // As the kernel has them, or still has them.
            vec![
                route("172.27.3.0/26", Some("169.254.1.2"), ETH1, 1_000),
                route("fd27:3::/122", Some("fe80::1:2"), ETH0, 1_000),
                route("fd27:4::/122", Some("fe80::1:2"), ETH1, 1_000),
            ],
        ]
        .concat(),
        0..=6,
    );
    let routes = (routes, any::<bool>()).prop_map(|(mut routes, several)| {
        let ways = [("203.0.113.1", ETH0), ("192.168.20.10", ETH1)].into_iter().filter(|_| several);
        routes.extend(ways.map(|(via, link)| weighted(route("10.8.0.0/16", Some(via), link, 3), 2)));
        routes.into_iter().collect()
    });
    let macs = select(vec![0x21u8, 0x22, 0x31]);
    let more = ["203.0.113.2/24", "203.0.113.3/24", "203.0.113.4/24", "2001:db8:7::2/64", "2001:db8:7::3/64"];
    let outside = subsequence(more.to_vec(), 0..=5);
    (neighbours, routes, vec(proptest::bool::weighted(0.9), 4), macs, any::<bool>(), outside).prop_map(
        move |(mut neighbours, routes, up, last, port_there, outside)| {
            let moved = neighbours.iter_mut().filter(|n| n.mac == Some(mac(0x21)));
            moved.for_each(|n| n.mac = Some(mac(last)));
            let mut network = Network { neighbours, routes, ..full.clone() };
            network.links.iter_mut().zip(up).for_each(|(link, up)| link.up = up);
            network.addresses.retain(|a| a.link != ETH0);
            network.addresses.extend(outside.iter().map(|net| address(ETH0, net)));
            if !port_there {
                network.links.retain(|l| l.index != ETH1);
                network.addresses.retain(|a| a.link != ETH1);
            }
            network
        },
    )
}

/// How the inside is translated, which ports lead out, and their addresses for that.
fn translations() -> impl Strategy<Value = (Nat, [bool; 3], Vec<&'static str>)> {
    use Translation::{Masquerade, Off, Prefix};
    let nets = |all: &[&str], max| {
        let all: Vec<_> = all.iter().map(|net| net.parse().expect("a subnet")).collect();
        subsequence(all, 0..=max)
    };
    let subnets = nets(&["10.20.0.0/22", "172.27.0.0/21", "192.168.20.120/32", "fd27::/60", "fd28::99/128"], 4);
    let direct = nets(&["10.0.0.0/8", "203.0.113.2/32", "172.28.9.9/32", "2001:db8:7::/64", "fd00::/8"], 4);
    let pair = |inside: &str, outside: &str| PrefixPair {
        inside: inside.parse().expect("a prefix"),
        outside: outside.parse().expect("a prefix"),
    };
    let pairs = select(vec![
        vec![pair("fd10::/64", "2001:db8:7::/64")],
        vec![pair("fd10::/64", "2001:db8:8::/64"), pair("fd20::/64", "2001:db8:7::/64")],
        vec![pair("fd10::/64", "2001:db8:10::/64"), pair("fd27::/60", "2001:db8:8::/60")],
    ]);
    let ipv4 = select(vec![Masquerade, Masquerade, Off]);
    let ipv6 = select(vec![Off, Masquerade, Masquerade, Prefix, Prefix]);
    let filtering = select(vec![Filtering::Address, Filtering::None, Filtering::Port]);
    let named = subsequence(vec!["203.0.113.3", "203.0.113.4", "203.0.113.2", "2001:db8:7::3"], 0..=3);
    let gateways = any::<[bool; 3]>();
    (subnets, direct, pairs, ipv4, ipv6, filtering, named, gateways).prop_map(
        |(subnets, direct, prefixes, ipv4, ipv6, filtering, named, gateways)| {
            let nat = Nat { ipv4, ipv6, subnets, direct, prefixes, filtering, ..Nat::default() };
            (nat, gateways, named)
        },
    )
}

/// Nodes whose pods are reached: on a network, behind a router, by neither.
fn nodes() -> impl Strategy<Value = (Vec<PodNode>, Overlay)> {
    let node = |name: &str, addresses: &[&str], blocks: &[&str]| PodNode {
        name: name.into(),
        addresses: addresses.iter().map(|addr| ip(addr)).collect(),
        blocks: blocks.iter().map(|net| net.parse().expect("a block")).collect(),
    };
    let all = vec![
        node("n1", &["192.168.20.1"], &["172.27.1.0/26"]),
        node("n2", &["192.168.20.10"], &["172.27.2.0/26", "fd27:2::/122"]),
        node("n3", &["198.51.100.3"], &["172.27.3.0/26", "fd27:3::/122"]),
        node("n4", &["fd20:4::4"], &["172.27.4.0/26", "fd27:4::/122"]),
    ];
    let modes = select(vec![OverlayMode::Never, OverlayMode::Always, OverlayMode::CrossSubnet]);
    let overlay = modes.prop_map(|mode| Overlay { mode, ..Overlay::default() });
    (subsequence(all, 0..=4), overlay)
}

/// Wishes with a translation; the tables have room for three addresses outside.
pub fn intents(services: impl Strategy<Value = Vec<ServicePort>>) -> impl Strategy<Value = Intent> {
    let ports = select(vec![(1_024, 29_999), (1_024, 2_047), (40_000, 50_000)]);
    let all = (services, translations(), ports, nodes());
    all.prop_map(|(services, (nat, [out4, out6, second], named), (first, last), (pod_nodes, overlay))| {
        let mut intent = Intent { nat, pod_nodes, overlay, ..intent(services) };
        intent.pod_blocks = vec!["172.27.1.0/26".parse().expect("a block")];
        intent.ports[0].gateways.extend(out4.then(|| ip("203.0.113.1")));
        intent.ports[0].gateways.extend(out6.then(|| ip("2001:db8:7::1")));
        intent.ports[1].gateways.extend(second.then(|| ip("192.168.20.10")));
        intent.ports[0].nat_addresses = named.into_iter().map(ip).collect();
        intent.tuning.capacity.nat_addresses = 3;
        (intent.tuning.snat_first, intent.tuning.snat_last) = (first, last);
        intent
    })
}

fn rounds() -> impl Strategy<Value = Vec<Round>> {
    let round = (
        intents(services()),
        networks(),
        0u32..20,
        proptest::option::weighted(0.4, 0usize..80),
        proptest::bool::weighted(0.3),
    );
    let round = round.prop_map(|(intent, network, seconds, fails_at, restart)| Round {
        intent,
        network,
        seconds,
        fails_at,
        restart,
    });
    vec(round, 1..6)
}

/// Applies as much as goes; true if all of it went.
pub fn apply(model: &mut Model, ops: &[Op], fails_at: Option<usize>) -> bool {
    for (i, op) in ops.iter().enumerate() {
        if fails_at == Some(i) {
            return false;
        }
        model.apply(op);
        model.check();
        let before = model.read();
        model.apply(op);
        assert_eq!(model.read(), before, "not idempotent: {op:?}");
    }
    true
}

/// Which backend each id means, and of which service.
fn owners(c: &Contents) -> Vec<(u32, String)> {
    let v4 = c.v4.backends.iter().map(|(&id, b)| (id, format!("{:?} {:?} {}", b.addr, b.port, b.service)));
    let v6 = c.v6.backends.iter().map(|(&id, b)| (id, format!("{:?} {:?} {}", b.addr, b.port, b.service)));
    v4.chain(v6).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn every_prefix_is_safe_and_the_end_is_right(rounds in rounds()) {
        let (mut model, mut ids, mut now) = (Model::new(&nothing()), Ids::default(), 0);
        'rounds: for round in rounds {
            now += round.seconds;
            if round.restart {
                ids = Ids::recover(&model.read());
            }
            let mut fails_at = round.fails_at;
            for turn in 0.. {
                prop_assert!(turn < 4, "it never comes to an end");
                let real = model.read();
                let to = match plan(&round.intent, &round.network, &mut ids, clock(now)) {
                    Err(PlanError::Full { table: "nat_addresses", .. }) => continue 'rounds,
                    to => to.expect("a plan"),
                };
                for (id, owner) in owners(&to) {
                    let before = owners(&real).into_iter().find(|(old, _)| *old == id);
                    let same = before.is_none_or(|(_, old)| old == owner);
                    prop_assert!(same, "{id} has a new owner while the old one is there");
                }
                let waits = ids.waits();
                if !apply(&mut model, &diff(&real, &to), fails_at.take()) {
                    ids.settle(&model.read());
                    continue;
                }
                ids.applied();
                prop_assert_eq!(model.read(), to);
                if !waits {
                    break;
                }
            }
            let to = plan(&round.intent, &round.network, &mut ids, clock(now)).expect("a plan");
            prop_assert_eq!(model.read(), to.clone());
            prop_assert_eq!(diff(&model.read(), &to), vec![]);
            let mut recovered = Ids::recover(&model.read());
            let after = plan(&round.intent, &round.network, &mut recovered, clock(now)).expect("a plan");
            prop_assert_eq!(diff(&model.read(), &after), vec![], "a restart changes something");
        }
    }

    /// Also from contents that no plan of ours led to.
    #[test]
    fn any_contents_lead_to_any_other(a in rounds(), b in rounds()) {
        let make = |r: &Round| {
            let mut intent = r.intent.clone();
            intent.tuning.capacity.nat_addresses = 64;
            plan(&intent, &r.network, &mut Ids::default(), clock(0)).expect("a plan")
        };
        let (from, to) = (make(&a[0]), make(&b[0]));
        let mut model = Model::new(&from);
        model.ended.extend(0..1_000);
        model.planes = None;
        diff(&from, &to).iter().for_each(|op| model.apply(op));
        prop_assert_eq!(model.read(), to);
    }
}
