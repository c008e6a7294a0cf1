//! Wishes and networks to plan for.

use std::net::IpAddr;

use crate::intent::{
    Address, Endpoint, EndpointState, HookChoice, Intent, InternalSwitch, Link, Neighbour, Network, Path, Port,
    Protocol, ReplyVia, Route, ServicePort, ServiceRange,
};
use crate::moment::Moment;

pub const LO: u32 = 1;
pub const ETH0: u32 = 2;
pub const ETH1: u32 = 3;
pub const BR: u32 = 4;

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub fn mac(last: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, last]
}

pub fn link(index: u32, name: &str, kind: Option<&str>) -> Link {
    Link {
        index,
        name: name.into(),
        mac: (name != "lo").then(|| mac(index as u8)),
        mtu: 1_500,
        up: true,
        master: None,
        kind: kind.map(Into::into),
        master_kind: None,
        xdp_transmit: kind.is_none() && name != "lo",
        queued: false,
    }
}

pub fn address(link: u32, net: &str) -> Address {
    Address { link, net: net.parse().expect("a prefix"), temporary: false }
}

pub fn route(prefix: &str, gateway: Option<&str>, link: u32, metric: u32) -> Route {
    let path = Path { gateway: gateway.map(ip), link, metric, ..Path::default() };
    Route { prefix: prefix.parse().expect("a prefix"), path }
}

pub fn neighbour(link: u32, addr: &str, last: u8) -> Neighbour {
    Neighbour { link, addr: ip(addr), mac: Some(mac(last)) }
}

/// An uplink and a compute port, and an internal switch, both families on each.
pub fn network() -> Network {
    Network {
        links: vec![
            link(LO, "lo", None),
            link(ETH0, "eth0", None),
            link(ETH1, "eth1", Some("veth")),
            link(BR, "br-int", Some("bridge")),
        ],
        addresses: vec![
            address(LO, "127.0.0.1/8"),
            address(ETH0, "203.0.113.2/24"),
            address(ETH1, "192.168.20.1/24"),
            address(ETH1, "fd20::1/64"),
            address(ETH1, "fe80::1/64"),
            address(BR, "10.20.0.1/24"),
            address(BR, "fd10::1/64"),
        ],
        neighbours: vec![
            neighbour(ETH0, "203.0.113.1", 0x11),
            neighbour(ETH1, "192.168.20.10", 0x21),
            neighbour(ETH1, "fd20::10", 0x21),
            neighbour(BR, "10.20.0.5", 0x31),
            Neighbour { link: ETH1, addr: ip("192.168.20.99"), mac: None },
        ],
        routes: [
            route("0.0.0.0/0", Some("203.0.113.1"), ETH0, 0),
            route("198.51.100.0/24", Some("192.168.20.99"), ETH1, 10),
        ]
        .into(),
        ..Network::default()
    }
}

pub fn weighted(mut route: Route, weight: u32) -> Route {
    route.path.weight = weight;
    route
}

pub fn service(name: &str, addresses: &[&str], endpoints: Vec<Endpoint>) -> ServicePort {
    ServicePort {
        namespace: "default".into(),
        name: name.into(),
        port_name: "http".into(),
        protocol: Protocol::Tcp,
        port: 80,
        node_port: None,
        addresses: addresses.iter().map(|a| ip(a)).collect(),
        affinity: None,
        traffic: Default::default(),
        endpoints,
    }
}

pub fn ready(addr: &str) -> Endpoint {
    Endpoint { addr: ip(addr), port: 8_080, weight: 1, node: None, state: EndpointState::Ready }
}

pub fn draining(addr: &str, until: Moment) -> Endpoint {
    Endpoint { state: EndpointState::Draining { until }, ..ready(addr) }
}

pub fn intent(services: Vec<ServicePort>) -> Intent {
    let port = |name: &str, interface: &str, compute| Port {
        name: name.into(),
        interface: interface.into(),
        gateways: vec![],
        nat_addresses: vec![],
        compute,
        hook: HookChoice::Auto,
        reply_via: ReplyVia::default(),
    };
    Intent {
        node: "edge-1".into(),
        ports: vec![port("Port2", "eth0", false), port("Port3", "eth1", true)],
        internal_switch: Some(InternalSwitch { interface: "br-int".into(), addresses: vec![] }),
        inside: vec!["pod*".into()],
        service_ranges: vec![ServiceRange { first: ip("192.168.20.100"), last: ip("192.168.20.120") }],
        services,
        ..Intent::default()
    }
}
