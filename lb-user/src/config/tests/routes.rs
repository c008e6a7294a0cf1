//! `routes` and `replyVia`: what they give, and what is refused in which words.

use super::*;
use crate::intent::{Address, Link, Network, ReplyVia};

const PORTS: &str =
    "node: n\nports: { A: { interface: eth0 }, B: { interface: eth1, gateway: 10.1.0.1, replyVia: port } }\n";

fn routes(lines: &[&str]) -> Result<Config, String> {
    let lines: String = lines.iter().map(|line| format!("  - {{ {line} }}\n")).collect();
    parse(&format!("{PORTS}routes:\n{lines}"))
}

#[test]
fn routes_of_the_file() {
    let config = routes(&[
        "interface: A, destination: 10.9.0.0/16, nextHop: 10.0.0.1",
        "interface: B, destination: 'fd00:9::7', nextHop: 'fe80::1', metric: 7, weight: 256",
        "interface: A, destination: 10.8.0.0/16, type: prohibit",
    ])
    .unwrap();
    let shown: Vec<_> = config.routes.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "10.9.0.0/16 by 10.0.0.1 on A, metric 100",
            "fd00:9::7/128 by fe80::1 on B, metric 7, weight 256",
            "10.8.0.0/16 prohibit on A, metric 100",
        ]
    );
    assert_eq!(config.ports.iter().map(|p| p.reply_via).collect::<Vec<_>>(), [ReplyVia::Routes, ReplyVia::Port]);
}

#[test]
fn wrong_routes() {
    let errors = |lines: &[&str]| routes(lines).unwrap_err();
    let good = "interface: A, destination: 10.9.0.0/16, nextHop: 10.0.0.1";
    for (line, want) in [
        (
            "interface: A, destination: 10.9.0.1/16, nextHop: 10.0.0.1",
            "c.yaml:5:34: routes[1].destination: `10.9.0.1/16` has bits behind its prefix; expected 10.9.0.0/16",
        ),
        (
            "destination: 10.9.0.0/16, metric: 0",
            "c.yaml:5:5: routes[1].interface: is missing; expected a port's name, such as Port3",
        ),
        (
            "interface: A, destination: 10.8.0.0/16, nextHop: 10.0.0.1, metric: 0, weight: x",
            "c.yaml:5:74: routes[1].metric: `0` is too small; expected a number from 1 to 4294967295 (the lower wins)\nc.yaml:5:85: routes[1].weight: `x` is not a number from 1 to 256",
        ),
        (
            "interface: A, destination: 10.8.0.0/16, nextHop: 'fd00::1'",
            "c.yaml:5:5: routes[1]: the destination 10.8.0.0/16 is IPv4, but the next hop fd00::1 is IPv6; expected both of one family",
        ),
        (
            "interface: C, destination: 10.8.0.0/16, nextHop: 10.0.0.1",
            "c.yaml:5:5: routes[1]: there is no port `C`; expected one of A, B",
        ),
        (
            "interface: A, destination: 10.9.0.0/16, nextHop: 10.0.0.7",
            "c.yaml:5:5: routes[1]: A has a route to 10.9.0.0/16 already, routes[0]; expected one",
        ),
        (
            "interface: A, destination: 10.8.0.0/16, nexthop: 10.0.0.7",
            "c.yaml:5:5: routes[1]: the next hop is missing; expected a router's address in the port's network, such as 192.168.20.1 or fd00:20::1, or the type blackhole, unreachable or prohibit\nc.yaml:5:47: routes[1].nexthop: unknown key; expected `nextHop`",
        ),
        (
            "interface: A, destination: 10.8.0.0/16, type: local",
            "c.yaml:5:53: routes[1].type: `local` is not blackhole, unreachable or prohibit",
        ),
    ] {
        assert_eq!(errors(&[good, line]), want);
    }
    let reply = |text: &str| parse(&format!("node: n\nports: {{ A: {{ interface: eth0, replyVia: {text} }} }}\n"));
    assert_eq!(reply("Port").unwrap_err(), "c.yaml:2:42: ports.A.replyVia: `Port` is not routes or port");
    assert_eq!(
        reply("port").unwrap_err(),
        "c.yaml:2:42: ports.A.replyVia: `port` says nothing without a gateway of the port; expected `gateway` beside it"
    );
}

#[test]
fn the_kernel_speaks_against_a_route() {
    let config = routes(&["interface: A, destination: 10.9.0.0/16, nextHop: 10.0.1.1"]).unwrap();
    let link = |index, name: &str| Link {
        index,
        name: name.into(),
        mac: None,
        mtu: 1500,
        up: true,
        master: None,
        kind: None,
        master_kind: None,
        xdp_transmit: false,
        queued: false,
    };
    let address = |link, net: &str| Address { link, net: net.parse().unwrap(), temporary: false };
    let network = Network {
        links: vec![link(1, "eth0"), link(2, "eth1")],
        addresses: vec![address(1, "10.0.0.2/24"), address(2, "10.1.0.2/24")],
        ..Network::default()
    };
    let got: Vec<_> = verify(&config, &network).iter().map(ToString::to_string).collect();
    assert_eq!(
        got,
        [
            "c.yaml:4:5: routes[0]: the next hop 10.0.1.1 is in none of the networks of A (eth0), 10.0.0.2/24; expected a router's in one of them"
        ]
    );
}
