//! Which neighbours traffic needs: where the way to backends and gateways leaves this node.
//!
//! Invariant: a pure function of the wish and the facts. Whether a neighbour is resolved is not
//! asked here; the mirror asks the kernel for those that aren't.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::intent::{Intent, Network, Route};
use crate::source::netlink::Wanted;

/// The best route by prefix, and which prefix lengths there are: as many look-ups as lengths.
struct Ways<'a> {
    by_prefix: HashMap<IpNet, &'a Route>,
    /// Longest first.
    v4: Vec<u8>,
    v6: Vec<u8>,
}

impl<'a> Ways<'a> {
    fn new(network: &'a Network) -> Self {
        let mut by_prefix: HashMap<IpNet, &Route> = HashMap::new();
        for route in &network.routes {
            let best = by_prefix.entry(route.prefix).or_insert(route);
            if route.metric < best.metric {
                *best = route;
            }
        }
        let lengths = |v4| {
            let mut all: Vec<u8> =
                by_prefix.keys().filter(|p| p.addr().is_ipv4() == v4).map(IpNet::prefix_len).collect();
            all.sort_unstable();
            all.dedup();
            all.reverse();
            all
        };
        Ways { v4: lengths(true), v6: lengths(false), by_prefix }
    }

    /// The link and the neighbour on the way to an address.
    fn to(&self, addr: IpAddr) -> Option<(u32, IpAddr)> {
        let lengths = if addr.is_ipv4() { &self.v4 } else { &self.v6 };
        let route = lengths.iter().find_map(|&len| self.by_prefix.get(&IpNet::new(addr, len).ok()?.trunc()))?;
        Some((route.link, route.gateway.unwrap_or(addr)))
    }
}

pub fn wanted(intent: &Intent, network: &Network) -> Wanted {
    let ways = Ways::new(network);
    let usable: HashMap<u32, bool> =
        network.links.iter().map(|link| (link.index, link.up && link.mac.is_some())).collect();
    let local: std::collections::HashSet<IpAddr> = network.addresses.iter().map(|a| a.net.addr()).collect();
    let endpoints = intent.services.iter().flat_map(|service| service.endpoints.iter().map(|e| e.addr));
    let gateways = intent.ports.iter().filter_map(|port| port.gateway);
    let mut all: Wanted =
        endpoints.chain(gateways).filter(|addr| !local.contains(addr)).filter_map(|addr| ways.to(addr)).collect();
    all.extend(network.routes.iter().filter_map(|route| Some((route.link, route.gateway?))));
    all.retain(|(link, addr)| usable.get(link) == Some(&true) && !local.contains(addr));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intent::{Address, Endpoint, EndpointState, Link, Protocol, ServicePort};

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
        }
    }

    fn route(prefix: &str, gateway: Option<&str>, link: u32, metric: u32) -> Route {
        let gateway = gateway.map(|g| g.parse().expect("an address"));
        Route { prefix: prefix.parse().expect("a prefix"), gateway, link, metric, source: None }
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
            // On link, behind a gateway, ourselves, on a link that is down, by the default route.
            endpoints: ["10.0.0.5", "10.9.0.5", "10.0.0.1", "10.7.0.5", "8.8.8.8"].map(endpoint).into(),
        };
        let network = Network {
            links: vec![link(1, true), link(2, true), link(3, false)],
            addresses: vec![Address { link: 1, net: "10.0.0.1/24".parse().expect("a prefix"), temporary: false }],
            neighbours: vec![],
            routes: vec![
                route("0.0.0.0/0", Some("10.2.0.9"), 2, 100),
                route("0.0.0.0/0", Some("10.2.0.1"), 2, 10),
                route("10.0.0.0/24", None, 1, 0),
                route("10.7.0.0/24", None, 3, 0),
                route("10.9.0.0/16", Some("10.0.0.9"), 1, 0),
            ],
        };
        let intent = Intent { services: vec![service], ..Intent::default() };
        let found: Vec<String> =
            wanted(&intent, &network).iter().map(|(link, addr)| format!("{link} {addr}")).collect();
        assert_eq!(found, ["1 10.0.0.5", "1 10.0.0.9", "2 10.2.0.1", "2 10.2.0.9"]);
    }
}
