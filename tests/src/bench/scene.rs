//! The device whose tables the packets meet: two services, pods on an inside link, clients behind a
//! port's gateway. The tables are what the agent's own plan makes of that.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, anyhow};
use lb_user::apply::Kernel;
use lb_user::intent::{
    Address, Capacity, Endpoint, EndpointState, HookChoice, Intent, Link, Neighbour, Network, Path, Port, Protocol,
    ReplyVia, Route, ServicePort, Tuning,
};
use lb_user::moment::Moment;
use lb_user::plan::{Apply, Clock, Ids, Op, diff, plan};

use super::script::Peer;

/// A service of eight backends, for new connections.
pub const SPREAD: Peer = peer(10, 80);
/// A service of one backend, so that a reply's source is known beforehand.
pub const SINGLE: Peer = peer(11, 80);
/// Its backend.
pub const BACKEND: Peer =
    Peer { v4: Ipv4Addr::new(172, 27, 0, 100), v6: Ipv6Addr::new(0xfd00, 27, 0, 0, 0, 0, 0, 100), port: 8080 };
/// Nobody's.
pub const STRANGER: Peer =
    Peer { v4: Ipv4Addr::new(198, 51, 100, 7), v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7), port: 443 };

const PORT: u32 = 2;
const PODS: u32 = 3;

const fn peer(host: u8, port: u16) -> Peer {
    Peer { v4: Ipv4Addr::new(192, 168, 20, host), v6: Ipv6Addr::new(0xfd00, 20, 0, 0, 0, 0, 0, host as u16), port }
}

/// By which packets come in.
pub fn port(interface: &str) -> Port {
    Port {
        name: "Port3".into(),
        interface: interface.into(),
        gateways: vec![],
        nat_addresses: vec![],
        compute: true,
        hook: HookChoice::Xdp,
        reply_via: ReplyVia::default(),
    }
}

/// Plans the scene and fills the kernel's tables; nothing is attached.
pub fn fill(kernel: &mut Kernel, capacity: Capacity) -> Result<()> {
    let intent = Intent {
        node: "bench".into(),
        ports: vec![port("port")],
        inside: vec!["pods".into()],
        services: vec![
            service("spread", SPREAD, (0..8).map(|i| pod(1 + i)).collect()),
            service("single", SINGLE, vec![BACKEND]),
        ],
        tuning: Tuning { capacity, ..Tuning::default() },
        ..Intent::default()
    };
    put(kernel, &intent, &network())
}

/// Fills the kernel's tables by what the plan makes of a wish and a network.
pub fn put(kernel: &mut Kernel, intent: &Intent, network: &Network) -> Result<()> {
    let tick = kernel.now()?;
    let clock = Clock { now: Moment::now(), tick, ticks_per_second: kernel.ticks_per_second };
    let wanted = plan(intent, network, &mut Ids::default(), clock).map_err(|e| anyhow!("{e}"))?;
    let ops = diff(&kernel.read()?, &wanted);
    let ops: Vec<Op> = ops.into_iter().filter(|op| !matches!(op, Op::Hooks(_))).collect();
    kernel.apply_all(&ops)
}

fn pod(host: u8) -> Peer {
    Peer { v4: Ipv4Addr::new(172, 27, 0, host), v6: Ipv6Addr::new(0xfd00, 27, 0, 0, 0, 0, 0, host.into()), port: 8080 }
}

fn service(name: &str, at: Peer, backends: Vec<Peer>) -> ServicePort {
    let endpoint =
        |addr: IpAddr, port: u16| Endpoint { addr, port, weight: 1, node: None, state: EndpointState::Ready };
    ServicePort {
        namespace: "bench".into(),
        name: name.into(),
        port_name: String::new(),
        protocol: Protocol::Tcp,
        port: at.port,
        node_port: None,
        addresses: vec![at.v4.into(), at.v6.into()],
        affinity: None,
        traffic: Default::default(),
        endpoints: backends
            .iter()
            .flat_map(|b| [endpoint(b.v4.into(), b.port), endpoint(b.v6.into(), b.port)])
            .collect(),
    }
}

pub fn link(index: u32, name: &str) -> Link {
    Link {
        index,
        name: name.into(),
        mac: Some([2, 0, 0, 0, 1, index as u8]),
        mtu: 1500,
        up: true,
        master: None,
        kind: None,
        master_kind: None,
        xdp_transmit: true,
        queued: false,
    }
}

pub fn address(link: u32, net: &str) -> Address {
    Address { link, net: net.parse().expect("an address"), temporary: false }
}

pub fn route(prefix: &str, gateway: Option<IpAddr>, link: u32) -> Route {
    Route { prefix: prefix.parse().expect("a prefix"), path: Path { gateway, link, ..Path::default() } }
}

pub fn neighbour(link: u32, addr: IpAddr) -> Neighbour {
    Neighbour { link, addr, mac: Some([2, 0, 0, 0, 2, link as u8]) }
}

fn network() -> Network {
    let gateway4 = IpAddr::from(Ipv4Addr::new(192, 168, 20, 254));
    let gateway6 = IpAddr::from(Ipv6Addr::new(0xfd00, 20, 0, 0, 0, 0, 0, 254));
    let pods = (1..=8).map(pod).chain([BACKEND]);
    let pods = pods.flat_map(|p| [neighbour(PODS, p.v4.into()), neighbour(PODS, p.v6.into())]);
    Network {
        links: vec![link(PORT, "port"), link(PODS, "pods")],
        addresses: vec![
            address(PORT, "192.168.20.1/24"),
            address(PORT, "fd00:14::1/64"),
            address(PODS, "172.27.255.254/16"),
            address(PODS, "fd00:1b::ffff/64"),
        ],
        neighbours: pods.chain([neighbour(PORT, gateway4), neighbour(PORT, gateway6)]).collect(),
        routes: [
            route("0.0.0.0/0", Some(gateway4), PORT),
            route("::/0", Some(gateway6), PORT),
            route("192.168.20.0/24", None, PORT),
            route("fd00:14::/64", None, PORT),
            route("172.27.0.0/16", None, PODS),
            route("fd00:1b::/64", None, PODS),
        ]
        .into(),
        ..Network::default()
    }
}
