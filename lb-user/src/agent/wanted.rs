//! Which neighbours traffic needs: where the way to backends and gateways leaves this node.
//!
//! Invariant: a pure function of the wish and the facts. Whether a neighbour is resolved is not
//! asked here; the mirror asks the kernel for those that aren't.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use crate::intent::{Intent, Network, RouteTable, ServicePort};
use crate::nodes;
use crate::source::netlink::Wanted;

/// The wanted ones, and how many want each: a change costs what changed.
#[derive(Default)]
pub struct Neighbours {
    routes: RouteTable,
    /// Links that have neighbours.
    usable: HashSet<u32>,
    local: HashSet<IpAddr>,
    needed: HashMap<(u32, IpAddr), u32>,
    /// Others than the last that were taken.
    changed: bool,
}

impl Neighbours {
    pub fn new(intent: &Intent, network: &Network) -> Self {
        let usable = network.links.iter().filter(|link| link.up && link.mac.is_some());
        let mut all = Neighbours {
            routes: network.routes.clone(),
            usable: usable.map(|link| link.index).collect(),
            local: network.addresses.iter().map(|a| a.net.addr()).collect(),
            needed: HashMap::new(),
            changed: true,
        };
        let ways = intent.services.iter().flat_map(endpoints).filter_map(|addr| all.to(addr));
        let paths = network.routes.paths().flat_map(|paths| paths.iter());
        let hops = paths.filter_map(|path| Some((path.link, path.gateway?)));
        let nodes = nodes::ways(intent, network).into_iter().map(|way| (way.link, way.neighbour));
        let hops = hops.chain(gateways(intent, network)).chain(nodes).filter(|hop| all.is_neighbour(hop));
        let found: Vec<_> = ways.chain(hops).collect();
        for entry in found {
            *all.needed.entry(entry).or_insert(0) += 1;
        }
        all
    }

    fn is_neighbour(&self, (link, addr): &(u32, IpAddr)) -> bool {
        self.usable.contains(link) && !self.local.contains(addr)
    }

    fn to(&self, addr: IpAddr) -> Option<(u32, IpAddr)> {
        if self.local.contains(&addr) {
            return None;
        }
        let (_, paths) = self.routes.covering(addr).next()?;
        let best = paths.first()?;
        Some((best.link, best.gateway.unwrap_or(addr))).filter(|entry| self.is_neighbour(entry))
    }

    /// Other routes, by which backends are where they were; false: these need another look at all of it.
    pub fn follow(&mut self, routes: &RouteTable) -> bool {
        let same = self.routes.leads_as(routes);
        self.routes = routes.clone();
        same
    }

    /// Some service ports are in place of others.
    pub fn replace(&mut self, was: &[&ServicePort], now: &[&ServicePort]) {
        for addr in now.iter().copied().flat_map(endpoints) {
            let Some(entry) = self.to(addr) else { continue };
            let needed = self.needed.entry(entry).or_insert(0);
            *needed += 1;
            self.changed |= *needed == 1;
        }
        for addr in was.iter().copied().flat_map(endpoints) {
            let Some(entry) = self.to(addr) else { continue };
            if let Entry::Occupied(mut needed) = self.needed.entry(entry) {
                *needed.get_mut() -= 1;
                if *needed.get() == 0 {
                    needed.remove();
                    self.changed = true;
                }
            }
        }
    }

    pub fn changed(&self) -> bool {
        self.changed
    }

    /// All that are wanted, if these are others than the last that were taken.
    pub fn take(&mut self) -> Option<Wanted> {
        std::mem::take(&mut self.changed).then(|| self.needed.keys().copied().collect())
    }
}

/// The ports' gateways, each on its port's link, also while no route leads there: what is translated leaves
/// by one of them at once when another fails.
fn gateways<'n>(intent: &'n Intent, network: &'n Network) -> impl Iterator<Item = (u32, IpAddr)> + 'n {
    intent.ports.iter().flat_map(|port| {
        let link = network.links.iter().find(|link| link.name == port.interface);
        link.into_iter().flat_map(|link| port.gateways.iter().map(|&gateway| (link.index, gateway)))
    })
}

fn endpoints(service: &ServicePort) -> impl Iterator<Item = IpAddr> {
    service.endpoints.iter().map(|e| e.addr)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intent::{Address, Endpoint, EndpointState, HookChoice, Link, Path, Port, Protocol, ReplyVia, Route};

    fn link(index: u32, up: bool) -> Link {
        Link {
            index,
            name: format!("eth{index}"),
            mac: Some([2, 0, 0, 0, 0, index as u8]),
            mtu: 1500,
            up,
            master: None,
            kind: None,
            master_kind: None,
            xdp_transmit: false,
            queued: false,
        }
    }

    fn route(prefix: &str, gateway: Option<&str>, link: u32, metric: u32) -> Route {
        let gateway = gateway.map(|g| g.parse().expect("an address"));
        let path = Path { gateway, link, metric, ..Path::default() };
        Route { prefix: prefix.parse().expect("a prefix"), path }
    }

    #[test]
    fn gateways_of_ports_are_asked_for_without_a_route_or_a_service() {
        let port = |index: u32, gateways: &[&str]| Port {
            name: format!("Port{index}"),
            interface: format!("eth{index}"),
            gateways: gateways.iter().map(|g| g.parse().expect("an address")).collect(),
            nat_addresses: vec![],
            compute: false,
            hook: HookChoice::Auto,
            reply_via: ReplyVia::default(),
        };
        // A link that is down has no neighbours, and one is not there.
        let ports = vec![
            port(1, &["10.0.0.254", "fe80::1"]),
            port(2, &["10.2.0.1"]),
            port(3, &["10.3.0.1"]),
            port(4, &["10.4.0.1"]),
            port(5, &[]),
        ];
        let mut network = Network {
            links: vec![link(1, true), link(2, true), link(3, false), link(5, true)],
            routes: [route("0.0.0.0/0", Some("10.2.0.1"), 2, 10)].into(),
            ..Network::default()
        };
        let intent = Intent { ports, ..Intent::default() };
        let wanted = |network: &Network| -> Vec<String> {
            let wanted = Neighbours::new(&intent, network).take().into_iter().flatten();
            wanted.map(|(link, addr)| format!("{link} {addr}")).collect()
        };
        assert_eq!(wanted(&network), ["1 10.0.0.254", "1 fe80::1", "2 10.2.0.1"]);
        network.links[2].up = true;
        assert_eq!(wanted(&network), ["1 10.0.0.254", "1 fe80::1", "2 10.2.0.1", "3 10.3.0.1"]);
    }

    #[test]
    fn backends_and_gateways() {
        let endpoint = |addr: &str| Endpoint {
            addr: addr.parse().expect("an address"),
            port: 80,
            weight: 1,
            node: None,
            state: EndpointState::Ready,
        };
        let service = ServicePort {
            namespace: "a".into(),
            name: "b".into(),
            port_name: String::new(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
            addresses: vec![],
            affinity: None,
            traffic: Default::default(),
            // On link, behind a gateway, ourselves, on a link that is down, by the default route.
            endpoints: ["10.0.0.5", "10.9.0.5", "10.0.0.1", "10.7.0.5", "8.8.8.8"].map(endpoint).into(),
        };
        let network = Network {
            links: vec![link(1, true), link(2, true), link(3, false)],
            addresses: vec![Address { link: 1, net: "10.0.0.1/24".parse().expect("a prefix"), temporary: false }],
            neighbours: vec![],
            routes: [
                route("0.0.0.0/0", Some("10.2.0.9"), 2, 100),
                route("0.0.0.0/0", Some("10.2.0.1"), 2, 10),
                route("10.0.0.0/24", None, 1, 0),
                route("10.7.0.0/24", None, 3, 0),
                route("10.9.0.0/16", Some("10.0.0.9"), 1, 0),
            ]
            .into(),
            ..Network::default()
        };
        let mut intent = Intent { services: vec![service], ..Intent::default() };
        let text = |wanted: Option<Wanted>| -> Vec<String> {
            wanted.into_iter().flatten().map(|(link, addr)| format!("{link} {addr}")).collect()
        };
        let all = ["1 10.0.0.5", "1 10.0.0.9", "2 10.2.0.1", "2 10.2.0.9"];
        let mut neighbours = Neighbours::new(&intent, &network);
        assert_eq!(text(neighbours.take()), all);
        assert_eq!(neighbours.take(), None);

        let old = intent.services[0].clone();
        intent.services[0].endpoints[0] = endpoint("10.0.0.6");
        neighbours.replace(&[&old], &[&intent.services[0]]);
        assert_eq!(neighbours.take(), Neighbours::new(&intent, &network).take());
        neighbours.replace(&[&intent.services[0]], &[&intent.services[0]]);
        assert!(!neighbours.changed());
        neighbours.replace(&[&intent.services[0]], &[&old]);
        assert_eq!(text(neighbours.take()), all);
    }
}
