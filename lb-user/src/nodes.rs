//! The cluster's other nodes: the way to their pods.
//!
//! To a node on a network of this one packets go as they are, by its address. To others they go in the overlay
//! ([`crate::intent::Overlay`]), since who is between doesn't know pods' addresses: the engine puts them into VXLAN,
//! also those that the kernel sends, which gets a route by a gateway that is nobody, with room for the headers.
//! Invariant: a pure function of the wish and the facts.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use lb_common::hash;
use lb_common::wire::Mac;

use crate::intent::{Intent, Link, Network, OverlayMode, PodNode, RouteKind};
use crate::route::check::is_link_local;
use crate::route::{Hop, Key, Kind, MAIN, Own, Target};
use crate::source::netlink::write::octets;

/// Of the kernel's routes to pods. Operators' routes of a lower one go before.
const METRIC: u32 = 1_000;
/// Bytes that the overlay puts before an IP packet, but for the outer IP header: UDP, VXLAN, Ethernet.
const INNER: u32 = 8 + 8 + 14;

/// The way to a block of another node's pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    pub block: IpNet,
    /// The link and the neighbour that packets go to, also those that hold others.
    pub link: u32,
    pub neighbour: IpAddr,
    /// In the overlay: from this address to that one.
    pub overlay: Option<(IpAddr, IpAddr)>,
}

/// Bytes of headers that a packet to this address gets in the overlay.
pub fn overhead(remote: IpAddr) -> u32 {
    INNER + if remote.is_ipv4() { 20 } else { 40 }
}

/// Bytes of a packet that finds room in the overlay to this address, by a link of this MTU.
pub fn mtu(network: &Network, link: u32, remote: IpAddr) -> u32 {
    let way = network.path_mtus.get(&remote).copied().unwrap_or(link);
    way.min(link).saturating_sub(overhead(remote))
}

/// The gateway of the kernel's routes into the overlay, and its link-layer address. No host has either.
pub fn gateway(v4: bool) -> IpAddr {
    if v4 { Ipv4Addr::new(169, 254, 1, 2).into() } else { Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 1, 2).into() }
}

pub const GATEWAY_MAC: [u8; 6] = [0x0a, 0, 0, 0x53, 0x57, 0x01];

/// This node's own address among pods, by which what it sends itself in the overlay is answered in the overlay: the first
/// of its blocks, which is no pod's.
pub fn own_address(intent: &Intent, v4: bool) -> Option<IpAddr> {
    intent.pod_blocks.iter().find(|block| block.addr().is_ipv4() == v4).map(|block| block.network())
}

/// The next hop in the overlay to a node, as if it had a link-layer address.
pub fn inner_mac(remote: IpAddr) -> Mac {
    let [a, b, c, d, e, ..] = hash::bytes(octets(remote)).to_be_bytes();
    Mac([0x0e, a, b, c, d, e])
}

/// The ways that there are at the moment.
pub fn ways(intent: &Intent, network: &Network) -> Vec<Way> {
    let of = |node| move |block: &IpNet| way(*block, node, intent, network);
    intent.other_nodes().flat_map(|node| node.blocks.iter().filter_map(of(node))).collect()
}

fn way(block: IpNet, node: &PodNode, intent: &Intent, network: &Network) -> Option<Way> {
    let mode = intent.overlay.mode;
    let near = |addr: &IpAddr| connected(*addr, network).map(|link| (link, *addr));
    if mode != OverlayMode::Always {
        let same_family = node.addresses.iter().filter(|addr| addr.is_ipv4() == block.addr().is_ipv4());
        if let Some((link, neighbour)) = same_family.filter_map(near).next() {
            return Some(Way { block, link, neighbour, overlay: None });
        }
    }
    if mode == OverlayMode::Never {
        return None;
    }
    // Elsewhere there are no programs that could put the headers around.
    let name = |index: u32| network.links.iter().find(|link| link.index == index).map(|link| &link.name);
    let is_port = |link: u32| intent.ports.iter().any(|port| Some(&port.interface) == name(link));
    node.addresses.iter().find_map(|remote| {
        let (link, neighbour) = near(remote).or_else(|| routed(*remote, network)).filter(|(link, _)| is_port(*link))?;
        let local = local(*remote, link, intent, network)?;
        Some(Way { block, link, neighbour, overlay: Some((local, *remote)) })
    })
}

fn usable(link: &&Link) -> bool {
    link.up && link.mac.is_some()
}

/// The link that an address is on.
fn connected(addr: IpAddr, network: &Network) -> Option<u32> {
    let on = network.addresses.iter().find(|a| a.net.contains(&addr) && a.net.addr() != addr)?;
    network.links.iter().filter(usable).find(|link| link.index == on.link).map(|link| link.index)
}

/// The router to an address.
fn routed(addr: IpAddr, network: &Network) -> Option<(u32, IpAddr)> {
    let is_up = |index: u32| network.links.iter().filter(usable).any(|link| link.index == index);
    network.routes.covering(addr).find_map(|(_, paths)| {
        let path = paths.iter().find(|path| path.kind == RouteKind::Unicast && is_up(path.link))?;
        Some((path.link, path.gateway?))
    })
}

/// This node's address towards another: one that others know it by, else one of the link.
fn local(remote: IpAddr, link: u32, intent: &Intent, network: &Network) -> Option<IpAddr> {
    let same_family = |addr: &IpAddr| addr.is_ipv4() == remote.is_ipv4();
    let own = |addr: &IpAddr| network.addresses.iter().any(|a| a.net.addr() == *addr);
    let known = intent.pod_nodes.iter().filter(|node| node.name == intent.node).flat_map(|node| &node.addresses);
    let on_link = network.addresses.iter().filter(|a| a.link == link).map(|a| a.net.addr());
    let on_link = on_link.filter(|addr| !is_link_local(*addr));
    known.copied().filter(own).chain(on_link).find(same_family)
}

/// The routes that the kernel shall have for them. What is a pod's of this node has a route of its own: the rest of this
/// node's blocks is nobody, and nobody else is to be asked for it.
pub fn routes(intent: &Intent, network: &Network, own: &mut Own) {
    let mut put = |prefix, target| {
        own.routes.entry(Key { table: MAIN, prefix, metric: METRIC }).or_insert(target);
    };
    for way in ways(intent, network) {
        let v4 = way.block.addr().is_ipv4();
        let link = network.links.iter().find(|link| link.index == way.link).map_or(0, |link| link.mtu);
        let by = |gateway| vec![Hop { link: way.link, gateway: Some(gateway), weight: 1 }];
        let target = match way.overlay {
            Some((_, remote)) => Target {
                mtu: mtu(network, link, remote),
                source: own_address(intent, v4),
                ..Target::new(Kind::Unicast, by(gateway(v4)))
            },
            None => Target::new(Kind::Unicast, by(way.neighbour)),
        };
        put(way.block, target);
    }
    let connected = |block: &IpNet| network.addresses.iter().any(|a| a.net.trunc().contains(block));
    for block in intent.pod_blocks.iter().filter(|block| !connected(block)) {
        put(*block, Target::new(Kind::Unreachable, Vec::new()));
    }
}

/// This node's own addresses that the routes need.
pub fn own_addresses(own: &Own) -> BTreeSet<IpNet> {
    own.routes.values().filter_map(|target| target.source).map(IpNet::from).collect()
}

/// Links that lead into the overlay, and for which family of pods: there the kernel has to know [`gateway`].
pub fn entries(own: &Own) -> impl Iterator<Item = (u32, bool)> + '_ {
    let hops = own.routes.values().flat_map(|target| &target.hops);
    let into = |v4: bool| move |hop: &&Hop| hop.gateway == Some(gateway(v4));
    let of = move |v4: bool| hops.clone().filter(into(v4)).map(move |hop| (hop.link, v4));
    of(true).chain(of(false))
}

/// What an interface of a pod may send at once, if the ports' interfaces may send `port`.
pub fn pod_mtu(intent: &Intent, port: u32) -> u32 {
    if intent.overlay.mode == OverlayMode::Never {
        return port;
    }
    // Nodes that come later shall not need other pods: without any the smaller header's room is left, too.
    let least = overhead(Ipv4Addr::UNSPECIFIED.into());
    let remotes = intent.other_nodes().flat_map(|node| &node.addresses);
    port.saturating_sub(remotes.map(|addr| overhead(*addr)).max().unwrap_or(least))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intent::{Address, HookChoice, Overlay, Path, Port, ReplyVia, Route};

    fn network() -> Network {
        let link = |index: u32| Link {
            index,
            name: format!("eth{index}"),
            mac: Some([2, 0, 0, 0, 0, index as u8]),
            mtu: 1_500,
            up: index != 9,
            master: None,
            kind: None,
            master_kind: None,
            xdp_transmit: true,
            queued: false,
        };
        let address = |link, net: &str| Address { link, net: net.parse().expect("an address"), temporary: false };
        let path = Path { gateway: Some("192.0.2.254".parse().expect("an address")), link: 2, ..Path::default() };
        Network {
            links: vec![link(2), link(3), link(9)],
            addresses: vec![address(2, "192.0.2.1/24"), address(3, "2001:db8::1/64"), address(9, "203.0.113.1/24")],
            routes: [Route { prefix: "0.0.0.0/0".parse().expect("a prefix"), path }].into_iter().collect(),
            ..Network::default()
        }
    }

    fn intent(mode: OverlayMode, nodes: &[(&str, &[&str], &[&str])]) -> Intent {
        let node = |(name, addresses, blocks): &(&str, &[&str], &[&str])| PodNode {
            name: (*name).into(),
            addresses: addresses.iter().map(|a| a.parse().expect("an address")).collect(),
            blocks: blocks.iter().map(|b| b.parse().expect("a block")).collect(),
        };
        Intent {
            node: "own".into(),
            ports: ["eth2", "eth3"].map(port).to_vec(),
            pod_nodes: nodes.iter().map(node).collect(),
            overlay: Overlay { mode, ..Overlay::default() },
            ..Intent::default()
        }
    }

    fn port(interface: &str) -> Port {
        Port {
            name: interface.to_uppercase(),
            interface: interface.into(),
            gateways: Vec::new(),
            nat_addresses: Vec::new(),
            compute: false,
            hook: HookChoice::Auto,
            reply_via: ReplyVia::default(),
        }
    }

    fn told(intent: &Intent) -> Vec<String> {
        let text = |way: &Way| match way.overlay {
            None => format!("{} by {} on {}", way.block, way.neighbour, way.link),
            Some((from, to)) => format!("{} in {from} > {to} by {} on {}", way.block, way.neighbour, way.link),
        };
        ways(intent, &network()).iter().map(text).collect()
    }

    const NODES: &[(&str, &[&str], &[&str])] = &[
        ("own", &["192.0.2.1"], &["10.1.1.0/26"]),
        ("near", &["192.0.2.2"], &["10.1.2.0/26", "fd00:2::/122"]),
        ("far", &["198.51.100.3", "2001:db8::3"], &["10.1.3.0/26", "fd00:3::/122"]),
        ("down", &["2001:db8:9::4"], &["10.1.4.0/26"]),
    ];

    #[test]
    fn nodes_of_one_network_are_reached_as_they_are() {
        assert_eq!(
            told(&intent(OverlayMode::CrossSubnet, NODES)),
            [
                "10.1.2.0/26 by 192.0.2.2 on 2",
                // Nothing of IPv6 leads there by itself.
                "fd00:2::/122 in 192.0.2.1 > 192.0.2.2 by 192.0.2.2 on 2",
                "10.1.3.0/26 in 192.0.2.1 > 198.51.100.3 by 192.0.2.254 on 2",
                "fd00:3::/122 by 2001:db8::3 on 3",
            ]
        );
        assert_eq!(
            told(&intent(OverlayMode::Never, NODES)),
            ["10.1.2.0/26 by 192.0.2.2 on 2", "fd00:3::/122 by 2001:db8::3 on 3",]
        );
        assert_eq!(
            told(&intent(OverlayMode::Always, NODES)),
            [
                "10.1.2.0/26 in 192.0.2.1 > 192.0.2.2 by 192.0.2.2 on 2",
                "fd00:2::/122 in 192.0.2.1 > 192.0.2.2 by 192.0.2.2 on 2",
                "10.1.3.0/26 in 192.0.2.1 > 198.51.100.3 by 192.0.2.254 on 2",
                "fd00:3::/122 in 192.0.2.1 > 198.51.100.3 by 192.0.2.254 on 2",
            ]
        );
    }

    #[test]
    fn the_overlay_goes_by_ports_alone() {
        let mut intent = intent(OverlayMode::Always, NODES);
        intent.ports.remove(0);
        assert_eq!(
            told(&intent),
            [
                "10.1.3.0/26 in 2001:db8::1 > 2001:db8::3 by 2001:db8::3 on 3",
                "fd00:3::/122 in 2001:db8::1 > 2001:db8::3 by 2001:db8::3 on 3",
            ]
        );
    }

    #[test]
    fn the_kernel_is_told() {
        let mut intent = intent(OverlayMode::CrossSubnet, NODES);
        intent.pod_blocks = vec!["10.1.1.0/26".parse().expect("a block")];
        let mut own = Own::default();
        routes(&intent, &network(), &mut own);
        let text = |(key, target): (&Key, &Target)| {
            let hop = target.hops.first().and_then(|hop| hop.gateway);
            let source = target.source.map(|source| format!(" from {source}")).unwrap_or_default();
            format!("{} {} {hop:?} mtu {}{source}", key.prefix, target.kind.name(), target.mtu)
        };
        assert_eq!(
            own.routes.iter().map(text).collect::<Vec<_>>(),
            [
                "10.1.1.0/26 unreachable None mtu 0",
                "10.1.2.0/26 unicast Some(192.0.2.2) mtu 0",
                "10.1.3.0/26 unicast Some(169.254.1.2) mtu 1450 from 10.1.1.0",
                "fd00:2::/122 unicast Some(fe80::1:2) mtu 1450",
                "fd00:3::/122 unicast Some(2001:db8::3) mtu 0",
            ]
        );
        assert_eq!(own_addresses(&own).into_iter().collect::<Vec<_>>(), ["10.1.1.0/32".parse().expect("an address")]);
        assert_eq!(entries(&own).collect::<Vec<_>>(), [(2, true), (2, false)]);
        assert_eq!(pod_mtu(&intent, 1_500), 1_430, "an IPv6 header may be around");
        // On its way to one node there is a link that takes less.
        let far: IpAddr = "198.51.100.3".parse().expect("an address");
        let narrow = Network { path_mtus: [(far, 1_400)].into(), ..network() };
        let mut own = Own::default();
        routes(&intent, &narrow, &mut own);
        let mtus: Vec<u32> = own.routes.values().map(|target| target.mtu).collect();
        assert_eq!(mtus, [0, 0, 1_350, 1_450, 0]);
        assert_eq!((mtu(&narrow, 1_300, far), mtu(&network(), 1_500, far)), (1_250, 1_450));
    }
}
