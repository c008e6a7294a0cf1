//! Configurations against what the kernel says.

use super::*;
use crate::intent::{Address, Link, Network, Path, Route};

fn link(index: u32, name: &str, master: Option<u32>, master_kind: Option<&str>) -> Link {
    Link {
        index,
        name: name.into(),
        mac: None,
        mtu: 1500,
        up: true,
        master,
        kind: None,
        master_kind: master_kind.map(Into::into),
        xdp_transmit: true,
        queued: false,
    }
}

fn address(link: u32, net: &str, temporary: bool) -> Address {
    Address { link, net: net.parse().unwrap(), temporary }
}

#[test]
fn against_the_kernel() {
    let text = "node: n\nports:\n  A: { interface: eth0, gateway: 'fd00::1' }\n  B: { interface: eth1 }\n  C: { interface: eth2, gateway: 10.2.0.1 }\n  D: { interface: eth9 }\n  E: { interface: eth4 }\ninternalSwitch: { interface: br9 }\n";
    let config = parse(text).unwrap();
    let network = Network {
        links: vec![
            link(1, "lo", None, None),
            link(2, "eth0", None, None),
            link(3, "eth1", None, None),
            link(4, "eth2", Some(5), Some("bond")),
            link(5, "bond0", None, None),
            link(6, "eth4", Some(7), Some("bridge")),
        ],
        addresses: vec![
            address(2, "10.0.0.2/24", false),
            address(3, "10.1.0.2/24", true),
            address(4, "10.2.0.2/24", false),
            address(6, "fe80::1/64", true),
        ],
        ..Network::default()
    };
    let got: Vec<_> = verify(&config, &network).iter().map(ToString::to_string).collect();
    let want = [
        "c.yaml:3:34: ports.A.gateway: `fd00::1` is IPv6, but `eth0` has only 10.0.0.2/24; expected a gateway of its family",
        "c.yaml:4:19: ports.B.interface: `eth1` has its address 10.1.0.2/24 from DHCP or router advertisement (it has a lifetime); expected a static address, since a port's address must stay",
        "c.yaml:5:19: ports.C.interface: `eth2` is a slave of the bond `bond0`; teaming is not supported: expected an interface of its own",
        "c.yaml:6:19: ports.D.interface: `eth9` is not an interface of this node; expected one of bond0, eth0, eth1, eth2, eth4",
        "c.yaml:8:30: internalSwitch.interface: `br9` is not an interface of this node; expected one of bond0, eth0, eth1, eth2, eth4",
    ];
    assert_eq!(got, want);
}

/// One port with this gateway, on a link with an address and an on-link route of each family.
fn gateway(gateway: &str) -> String {
    let config = parse(&format!("node: n\nports: {{ A: {{ interface: eth0, gateway: '{gateway}' }} }}\n")).unwrap();
    let route = |prefix: &str, gateway: Option<&str>| Route {
        prefix: prefix.parse().unwrap(),
        path: Path { gateway: gateway.map(|g| g.parse().unwrap()), link: 2, ..Path::default() },
    };
    let network = Network {
        links: vec![link(2, "eth0", None, None), link(3, "eth1", None, None)],
        addresses: vec![
            address(2, "10.0.0.2/24", false),
            address(2, "fe80::2/64", false),
            address(3, "10.1.0.2/24", false),
        ],
        routes: [route("10.9.0.1/32", None), route("0.0.0.0/0", Some("10.0.0.1"))].into(),
        ..Network::default()
    };
    verify(&config, &network).iter().map(ToString::to_string).collect()
}

#[test]
fn gateways() {
    for good in ["10.0.0.1", "10.9.0.1", "fe80::1"] {
        assert_eq!(gateway(good), "");
    }
    for (bad, why) in [
        ("10.0.0.2", "this node's own address on `eth0`; expected its router's"),
        ("10.1.0.2", "this node's own address on `eth1`; expected its router's"),
        ("10.1.0.1", "in none of the networks of `eth0` (10.0.0.2/24, fe80::2/64); expected a router in one of them"),
        ("fd00::1", "in none of the networks of `eth0` (10.0.0.2/24, fe80::2/64); expected a router in one of them"),
    ] {
        assert_eq!(gateway(bad), format!("c.yaml:2:41: ports.A.gateway: `{bad}` is {why}"));
    }
}

#[test]
fn addresses_for_translated_packets() {
    let text = "node: n\nports: { A: { interface: eth0, gateway: 10.0.0.1, natAddresses: [10.0.0.2, 10.0.0.3] }, B: { interface: eth1, gateway: 10.1.0.1, natAddresses: 10.1.0.3 } }\n";
    let mut network = Network {
        links: vec![link(2, "eth0", None, None), link(3, "eth1", None, None)],
        addresses: vec![address(2, "10.0.0.2/24", false), address(2, "10.0.0.3/24", false)],
        ..Network::default()
    };
    network.addresses.push(address(3, "10.1.0.2/24", false));
    let errors = |network: &Network| -> Vec<String> {
        verify(&parse(text).unwrap(), network).iter().map(ToString::to_string).collect()
    };
    let wrong = "c.yaml:2:144: ports.B.natAddresses: `10.1.0.3` is not an address of `eth1`; expected one of its own, such as 10.1.0.2";
    assert_eq!(errors(&network), [wrong]);
    network.addresses.remove(1);
    let missing = "c.yaml:2:76: ports.A.natAddresses[1]: `10.0.0.3` is not an address of `eth0`; expected one of its own, such as 10.0.0.2";
    assert_eq!(errors(&network), [missing, wrong]);
}

/// What a configuration's ranges meet on a node with a bridge of somebody's, a VPN and routes of its own.
fn ranges(cluster: &str) -> Vec<String> {
    let text = format!("node: n\nports: {{ A: {{ interface: eth0 }} }}\ninside: cni0\ncluster: {{ {cluster} }}\n");
    let route = |prefix: &str, link| Route { prefix: prefix.parse().unwrap(), path: Path { link, ..Path::default() } };
    let mut network = Network {
        links: vec![link(1, "lo", None, None), link(2, "eth0", None, None), link(3, "docker0", None, None)],
        addresses: vec![
            address(1, "127.0.0.1/8", false),
            address(2, "10.0.0.2/24", false),
            address(3, "172.17.0.1/16", false),
            address(3, "172.30.0.10/32", false),
            address(4, "10.42.0.1/24", false),
        ],
        routes: [
            route("0.0.0.0/1", 2),
            route("10.8.0.0/16", 3),
            route("10.43.0.0/24", 2),
            route("10.43.9.9/32", 2),
            route("10.42.0.0/24", 4),
        ]
        .into(),
        ..Network::default()
    };
    network.links.push(link(4, "cni0", None, None));
    let by = |prefix: &str| Route {
        prefix: prefix.parse().unwrap(),
        path: Path { link: 2, gateway: Some("10.0.0.1".parse().unwrap()), ..Path::default() },
    };
    for route in [by("10.41.2.0/24"), by("10.48.0.0/13")] {
        network.routes.add(route.prefix, &[route.path]);
    }
    let key = crate::route::Key { table: crate::route::MAIN, prefix: "10.43.0.0/24".parse().unwrap(), metric: 1_000 };
    network.own.routes.insert(key, crate::route::Target::new(crate::route::Kind::Unicast, Vec::new()));
    verify(&parse(&text).unwrap(), &network).iter().map(ToString::to_string).collect()
}

#[test]
fn ranges_of_the_cluster() {
    let none: [&str; 0] = [];
    for good in [
        "podSubnet: 10.42.0.0/16, serviceSubnet: 10.44.0.0/16",
        "podSubnet: 10.43.0.0/16",
        "serviceSubnet: 172.30.0.0/16",
    ] {
        assert_eq!(ranges(good), none, "{good}");
    }
    let wrong = |path: &str, column: u32, range: &str, what: &str| {
        let right = if what.starts_with("the network of A") {
            "addresses in no port's network"
        } else {
            "addresses that this node knows nowhere"
        };
        format!("c.yaml:4:{column}: cluster.{path}: {range} overlaps {what}; expected {right}")
    };
    let pods = "podSubnet: 10.41.0.0/16 }\npods: { blocks: 10.41.1.0/26";
    assert_eq!(ranges(pods), none);
    assert_eq!(
        ranges("serviceSubnet: 10.0.0.0/20"),
        [wrong("serviceSubnet", 27, "10.0.0.0-10.0.15.255", "the network of A (10.0.0.0/24)")]
    );
    assert_eq!(
        ranges("serviceSubnet: 172.17.4.0/24"),
        [wrong("serviceSubnet", 27, "172.17.4.0-172.17.4.255", "the network of `docker0` (172.17.0.0/16)")]
    );
    assert_eq!(
        ranges(&pods.replace("10.41", "10.8")),
        [wrong("podSubnet", 23, "10.8.0.0-10.8.255.255", "this node's route on `docker0` (10.8.0.0/16)")]
    );
    assert_eq!(
        ranges(&pods.replace("10.41", "10.50")),
        [wrong("podSubnet", 23, "10.50.0.0-10.50.255.255", "this node's route by 10.0.0.1 on `eth0` (10.48.0.0/13)")]
    );
    assert_eq!(ranges("podSubnet: 10.8.0.0/16"), none, "pods of others have routes of others");
    assert_eq!(ranges(&pods.replace("10.41", "10.42")), none, "pods are inside");
}
