//! A made-up cluster and network that change from round to round.

use std::net::IpAddr;
use std::time::Duration;

use lb_user::intent::{
    Address, Endpoint, EndpointState, HookChoice, Intent, InternalSwitch, Link, Neighbour, Network, Path, Port,
    Protocol, ReplyVia, Route, ServicePort, ServiceRange,
};
use lb_user::moment::Moment;
use lb_user::plan::Clock;

/// splitmix64.
pub struct Random(pub u64);

impl Random {
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.draw() % n as u64) as usize
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

pub const PORT: u32 = 2;
pub const SWITCH: u32 = 3;
pub const TICKS: u32 = 100;

/// Where endpoints may be: on the switch, on the port, behind a gateway, on the node itself.
const PLACES: [&str; 12] = [
    "10.20.0.5",
    "10.20.0.6",
    "10.20.0.7",
    "192.168.20.10",
    "192.168.20.11",
    "198.51.100.7",
    "192.168.20.1",
    "fd10::5",
    "fd10::6",
    "fd20::10",
    "fd20::11",
    "fd99::1",
];

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub struct World {
    pub random: Random,
    pub intent: Intent,
    pub network: Network,
    pub seconds: u32,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x1234_5678_9abc_def1));
        let services = (0..3).map(|i| service(i, &mut random)).collect();
        let port = Port {
            name: "Port3".into(),
            interface: "eth1".into(),
            gateways: vec![],
            nat_addresses: vec![],
            compute: true,
            hook: HookChoice::Auto,
            reply_via: ReplyVia::default(),
        };
        let intent = Intent {
            node: "edge-1".into(),
            ports: vec![port],
            internal_switch: Some(InternalSwitch { interface: "br-int".into(), addresses: vec![] }),
            service_ranges: vec![ServiceRange { first: ip("192.168.20.100"), last: ip("192.168.20.120") }],
            services,
            ..Intent::default()
        };
        World { random, intent, network: network(), seconds: 1_000 }
    }

    pub fn clock(&self) -> Clock {
        let now = Moment::START + Duration::from_secs(u64::from(self.seconds));
        Clock { now, tick: self.seconds * TICKS, ticks_per_second: TICKS }
    }

    /// One to three changes, and some time.
    pub fn change(&mut self) {
        self.seconds += self.random.below(15) as u32;
        for _ in 0..1 + self.random.below(3) {
            match self.random.below(8) {
                0..=4 => self.change_endpoint(),
                5 => self.change_neighbour(),
                6 => self.change_route(),
                _ => self.change_service(),
            }
        }
        let now = self.clock().now;
        for service in &mut self.intent.services {
            service.endpoints.retain(|e| !matches!(e.state, EndpointState::Draining { until } if until <= now));
        }
    }

    fn change_endpoint(&mut self) {
        let until = self.clock().now + Duration::from_secs(5 + self.random.below(40) as u64);
        let World { random, intent, .. } = self;
        if intent.services.is_empty() {
            return;
        }
        let at = random.below(intent.services.len());
        let endpoints = &mut intent.services[at].endpoints;
        let addr: IpAddr = ip(PLACES[random.below(PLACES.len())]);
        let Some(i) = endpoints.iter().position(|e| e.addr == addr) else {
            endpoints.push(endpoint(addr, random));
            return;
        };
        match random.below(4) {
            0 => drop(endpoints.remove(i)),
            1 => endpoints[i].weight = 1 + random.below(3) as u32,
            _ => {
                let ready = endpoints[i].state == EndpointState::Ready;
                endpoints[i].state = if ready { EndpointState::Draining { until } } else { EndpointState::Ready };
            }
        }
    }

    fn change_neighbour(&mut self) {
        let i = self.random.below(self.network.neighbours.len());
        let mac = [2, 0, 0, 0, 1, self.random.below(6) as u8];
        let unresolved = self.random.one_in(3);
        self.network.neighbours[i].mac = (!unresolved).then_some(mac);
    }

    fn change_route(&mut self) {
        let prefix = "198.51.100.0/24".parse().expect("a prefix");
        let extra = Path { gateway: Some(ip("192.168.20.11")), link: PORT, metric: 5, ..Path::default() };
        let there = self.network.routes.get(&prefix).is_some();
        self.network.routes.set(prefix, if there { vec![] } else { vec![extra] });
    }

    /// The last service comes and goes.
    fn change_service(&mut self) {
        if self.intent.services.len() == 3 {
            self.intent.services.pop();
        } else {
            self.intent.services.push(service(2, &mut self.random));
        }
    }
}

/// The addresses of a service.
pub fn addresses(i: u8) -> [IpAddr; 3] {
    [format!("192.168.20.10{i}"), format!("172.28.0.{i}"), format!("fd28::1{i}")].map(|a| ip(&a))
}

fn endpoint(addr: IpAddr, random: &mut Random) -> Endpoint {
    Endpoint { addr, port: 8_080, weight: 1 + random.below(3) as u32, node: None, state: EndpointState::Ready }
}

fn service(i: u8, random: &mut Random) -> ServicePort {
    let mut endpoints: Vec<Endpoint> = Vec::new();
    for _ in 0..random.below(8) {
        let addr: IpAddr = ip(PLACES[random.below(PLACES.len())]);
        if !endpoints.iter().any(|e| e.addr == addr) {
            endpoints.push(endpoint(addr, random));
        }
    }
    ServicePort {
        namespace: "default".into(),
        name: format!("s{i}"),
        port_name: String::new(),
        protocol: if i == 1 { Protocol::Udp } else { Protocol::Tcp },
        port: 80,
        node_port: None,
        addresses: addresses(i).to_vec(),
        affinity: random.one_in(3).then_some(120),
        traffic: Default::default(),
        endpoints,
    }
}

fn network() -> Network {
    let link = |index: u32, name: &str, kind: Option<&str>| Link {
        index,
        name: name.into(),
        mac: Some([2, 0, 0, 0, 0, index as u8]),
        mtu: 1_500,
        up: true,
        master: None,
        kind: kind.map(Into::into),
        master_kind: None,
        xdp_transmit: kind.is_none(),
        queued: false,
    };
    let address = |link, net: &str| Address { link, net: net.parse().expect("a prefix"), temporary: false };
    let neighbour = |(i, (link, addr)): (usize, (u32, &str))| Neighbour {
        link,
        addr: ip(addr),
        mac: Some([2, 0, 0, 0, 2, i as u8]),
    };
    let route = |prefix: &str, gateway: &str| Route {
        prefix: prefix.parse().expect("a prefix"),
        path: Path { gateway: Some(ip(gateway)), link: PORT, metric: 10, ..Path::default() },
    };
    let neighbours = [
        (PORT, "192.168.20.10"),
        (PORT, "192.168.20.11"),
        (PORT, "192.168.20.254"),
        (PORT, "fd20::10"),
        (PORT, "fd20::11"),
        (PORT, "fd20::fe"),
        (SWITCH, "10.20.0.5"),
        (SWITCH, "10.20.0.6"),
        (SWITCH, "fd10::5"),
    ];
    Network {
        links: vec![link(PORT, "eth1", None), link(SWITCH, "br-int", Some("bridge"))],
        addresses: vec![
            address(PORT, "192.168.20.1/24"),
            address(PORT, "fd20::1/64"),
            address(SWITCH, "10.20.0.1/24"),
            address(SWITCH, "fd10::1/64"),
        ],
        neighbours: neighbours.into_iter().enumerate().map(neighbour).collect(),
        routes: [route("0.0.0.0/0", "192.168.20.254"), route("::/0", "fd20::fe")].into(),
        ..Network::default()
    }
}
