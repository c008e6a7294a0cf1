//! The wish and the facts: everything that [`crate::plan`] needs, and nothing else.
//!
//! [`Intent`] is what the operator and the cluster want; [`Network`] is what the kernel says of
//! links, addresses, neighbours and routes. Both are plain data without IO.

mod nodes;
mod routes;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::{IpNet, Ipv6Net};
use serde::Serialize;

pub use self::nodes::{Overlay, OverlayMode, PodNode};
pub use self::routes::{Path, Paths, Route, RouteKind, RouteTable};
use crate::moment::Moment;
use crate::policy::Policies;
use crate::route::Own;

/// The whole wish, with a revision that rises with every change.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Intent {
    pub revision: u64,
    /// This node's name, as endpoints name it.
    pub node: String,
    pub ports: Vec<Port>,
    pub internal_switch: Option<InternalSwitch>,
    /// Names or `*` patterns of further inside interfaces (a pod's veth).
    pub inside: Vec<String>,
    pub nat: Nat,
    /// Pods' networks, on all nodes.
    pub pod_subnets: Vec<IpNet>,
    /// Those of them that this node's own pods have addresses of, where it gives them.
    pub pod_blocks: Vec<IpNet>,
    /// The cluster's nodes that have blocks, this one among them; none where pods are not ours.
    pub pod_nodes: Vec<PodNode>,
    pub overlay: Overlay,
    /// Of what pods may do; None: they may do everything.
    pub policies: Option<Policies>,
    /// Node ports are reached at the node's addresses in these networks; none: at all.
    pub node_port_addresses: Vec<IpNet>,
    /// Addresses that services may have: dropped where no service has them.
    pub service_ranges: Vec<ServiceRange>,
    pub services: Vec<ServicePort>,
    pub tuning: Tuning,
}

/// A network interface of the device.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    /// `Port2`
    pub name: String,
    /// `eth0`
    pub interface: String,
    /// One of a family at the most: with one the port leads out.
    pub gateways: Vec<IpAddr>,
    /// Addresses of the port that translated packets get; none of a family: [`crate::plan`] chooses one.
    pub nat_addresses: Vec<IpAddr>,
    pub compute: bool,
    pub hook: HookChoice,
    pub reply_via: ReplyVia,
}

impl Port {
    /// Whether what is of this family leads out here.
    pub fn leads_out(&self, v4: bool) -> bool {
        self.gateways.iter().any(|gateway| gateway.is_ipv4() == v4)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HookChoice {
    /// TC on virtual links that carry segmentation-offloaded packets, XDP elsewhere.
    #[default]
    Auto,
    Xdp,
    Tc,
}

/// By which way answers leave to what came in by a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReplyVia {
    /// As the kernel's routes say.
    #[default]
    Routes,
    /// By the port and its gateway.
    Port,
}

#[derive(Clone, Debug, PartialEq)]
pub struct InternalSwitch {
    pub interface: String,
    pub addresses: Vec<IpNet>,
}

/// How inside and outside are translated.
#[derive(Clone, Debug, PartialEq)]
pub struct Nat {
    pub ipv4: Translation,
    pub ipv6: Translation,
    /// Whether pods of this node are masqueraded, in both families; None: as `ipv4` and `ipv6` say.
    pub pods: Option<bool>,
    /// What is inside beside the internal switch's own networks.
    pub subnets: Vec<IpNet>,
    /// What goes there goes untranslated.
    pub direct: Vec<IpNet>,
    /// Of [`Translation::Prefix`].
    pub prefixes: Vec<PrefixPair>,
    /// Ports that one host may have.
    pub quota: u32,
    pub filtering: Filtering,
    /// A file that is told of mappings.
    pub log: Option<PathBuf>,
}

impl Default for Nat {
    fn default() -> Self {
        Nat {
            ipv4: Translation::Masquerade,
            ipv6: Translation::Off,
            pods: None,
            subnets: Vec::new(),
            direct: Vec::new(),
            prefixes: Vec::new(),
            quota: 8_192,
            filtering: Filtering::Address,
            log: None,
        }
    }
}

impl Nat {
    pub fn of(&self, v4: bool) -> Translation {
        if v4 { self.ipv4 } else { self.ipv6 }
    }

    pub fn masquerades_pods(&self, v4: bool) -> bool {
        self.pods.unwrap_or(self.of(v4) == Translation::Masquerade)
    }
}

impl Intent {
    /// Whether anybody of a family is masqueraded.
    pub fn masquerades(&self, v4: bool) -> bool {
        let pods = self.pod_blocks.iter().any(|block| block.addr().is_ipv4() == v4);
        self.nat.of(v4) == Translation::Masquerade || (pods && self.nat.masquerades_pods(v4))
    }
}

/// How a family is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Translation {
    Off,
    /// Hosts share the addresses of a port that leads out.
    Masquerade,
    /// Prefixes are exchanged (RFC 6296).
    Prefix,
}

/// A prefix inside and the one that it has outside, of one length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixPair {
    pub inside: Ipv6Net,
    pub outside: Ipv6Net,
}

/// Who may send to a mapping (RFC 4787 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filtering {
    /// Anybody.
    None,
    /// Addresses that were sent to.
    Address,
    /// Addresses and ports that were sent to.
    Port,
}

/// First and last address, inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceRange {
    pub first: IpAddr,
    pub last: IpAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, serde::Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    pub const fn number(self) -> u8 {
        match self {
            Protocol::Tcp => lb_common::wire::header::TCP,
            Protocol::Udp => lb_common::wire::header::UDP,
            Protocol::Sctp => lb_common::wire::header::SCTP,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        }
    }
}

/// One port of one service: the unit that is balanced.
#[derive(Clone, Debug, PartialEq)]
pub struct ServicePort {
    pub namespace: String,
    pub name: String,
    /// The port's name; may be empty.
    pub port_name: String,
    pub protocol: Protocol,
    pub port: u16,
    /// On every address of this node's ports, too.
    pub node_port: Option<u16>,
    /// Cluster IPs, load-balancer IPs, external IPs.
    pub addresses: Vec<IpAddr>,
    /// ClientIP affinity's timeout in seconds.
    pub affinity: Option<u32>,
    pub traffic: Traffic,
    pub endpoints: Vec<Endpoint>,
}

/// Whose endpoints clients get, and who may be a client.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Those of the addresses that are cluster IPs.
    pub cluster_ips: Vec<IpAddr>,
    /// Those that are the load balancer's.
    pub balancer_ips: Vec<IpAddr>,
    /// These are ours to announce, too.
    pub announced: bool,
    /// externalTrafficPolicy Local: from elsewhere to node ports, load balancers and external addresses.
    pub external_local: bool,
    /// internalTrafficPolicy Local: to cluster IPs.
    pub internal_local: bool,
    /// Who may ask at the load balancer's addresses; none of a family: everybody.
    pub sources: Vec<IpNet>,
    /// Endpoints of other nodes on this one's network get what asks external addresses as it came, and answer clients
    /// themselves.
    pub direct: bool,
    /// The port at which others learn how many endpoints are ready on this node.
    pub health_check: Option<u16>,
}

impl ServicePort {
    /// The namespace of what the configuration publishes itself.
    pub const PUBLISH: &str = "publish";

    /// The namespace of pods' host ports: no cluster's has such a name.
    pub const HOST_PORT: &str = "hostPort";

    /// Whether it is a port that is forwarded to a host inside: by the configuration, or a pod's host port.
    pub fn is_published(&self) -> bool {
        self.namespace == Self::PUBLISH || self.is_host_port()
    }

    pub fn is_host_port(&self) -> bool {
        self.namespace == Self::HOST_PORT
    }

    /// `namespace/name:port`, where port is its name or, without one, its number.
    pub fn full_name(&self) -> String {
        if self.port_name.is_empty() {
            format!("{}/{}:{}", self.namespace, self.name, self.port)
        } else {
            format!("{}/{}:{}", self.namespace, self.name, self.port_name)
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    pub addr: IpAddr,
    pub port: u16,
    /// Relative share; at least 1.
    pub weight: u32,
    /// The node it is on, where the source says so.
    pub node: Option<String>,
    pub state: EndpointState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointState {
    Ready,
    /// Is ready, but others are nearer: no new connection, and those it has stay.
    Spare,
    /// Leaves, still serving: no new connection unless nobody is ready (KEP-1669), and those it has end at
    /// the deadline.
    Draining {
        until: Moment,
    },
    /// Leaves and serves no more: no new connection at all.
    Ending {
        until: Moment,
    },
}

impl EndpointState {
    /// The deadline of who leaves.
    pub fn until(self) -> Option<Moment> {
        match self {
            EndpointState::Ready | EndpointState::Spare => None,
            EndpointState::Draining { until } | EndpointState::Ending { until } => Some(until),
        }
    }
}

/// What the configuration may change of the engine's own numbers. Times in seconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Tuning {
    pub tcp_established: u32,
    pub tcp_transitory: u32,
    pub tcp_closed: u32,
    pub udp_unanswered: u32,
    pub udp_answered: u32,
    pub sctp_established: u32,
    pub sctp_transitory: u32,
    pub fragment: u32,
    pub icmp_rate: u32,
    /// What is nobody's connection is forwarded without the kernel, where that can be.
    pub fast_forwarding: bool,
    pub snat_first: u16,
    pub snat_last: u16,
    pub trace_port: u16,
    pub capacity: Capacity,
}

/// Whether clients on this node get their services' backends at the socket, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SocketBalancing {
    /// All processes.
    #[default]
    On,
    Off,
    /// Those of a control group.
    At(PathBuf),
}

/// Entries that each table has room for; in force when the tables are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Connections, per address family.
    pub connections: u32,
    pub services: u32,
    pub backends: u32,
    pub slots: u32,
    pub routes: u32,
    pub next_hops: u32,
    pub affinity: u32,
    pub fragments: u32,
    /// Whom sockets of this node talk to in a service's place, per address family.
    pub sockets: u32,
    /// Addresses outside that translated packets get, per address family.
    pub nat_addresses: u32,
}

impl Default for Tuning {
    fn default() -> Self {
        Tuning {
            tcp_established: 7_440,
            tcp_transitory: 240,
            tcp_closed: 10,
            udp_unanswered: 30,
            udp_answered: 180,
            sctp_established: 7_440,
            sctp_transitory: 240,
            fragment: 30,
            icmp_rate: 1_000,
            fast_forwarding: true,
            snat_first: 1_024,
            snat_last: 29_999,
            trace_port: 0,
            capacity: Capacity::default(),
        }
    }
}

impl Capacity {
    pub const DEFAULT: Capacity = Capacity {
        connections: 131_072,
        services: 16_384,
        backends: 65_536,
        slots: 1 << 20,
        routes: 1 << 20,
        next_hops: 16_384,
        affinity: 65_536,
        fragments: 8_192,
        sockets: 65_536,
        nat_addresses: 2,
    };
}

impl Default for Capacity {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// What the kernel says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Network {
    pub links: Vec<Link>,
    pub addresses: Vec<Address>,
    pub neighbours: Vec<Neighbour>,
    /// Those of the main table.
    pub routes: RouteTable,
    /// What is ours among the kernel's routes and rules.
    pub own: Own,
    /// What the kernel forwards, by the link that it comes in by.
    pub forwarding: BTreeMap<u32, Forwarding>,
    /// Whether policy rules of others choose among routing tables, for IPv4 and for IPv6: then the main
    /// table isn't all.
    pub policy: [bool; 2],
    /// What ways to other nodes take, where that is less than their links do.
    pub path_mtus: BTreeMap<IpAddr, u32>,
}

impl Network {
    /// Whether nothing but routes of the main table differs, none of which is ours.
    pub fn differs_in_routes_alone(&self, other: &Network) -> bool {
        let Network { links, addresses, neighbours, routes: _, own, forwarding, policy, path_mtus } = self;
        *links == other.links
            && *addresses == other.addresses
            && *neighbours == other.neighbours
            && *own == other.own
            && *forwarding == other.forwarding
            && *policy == other.policy
            && *path_mtus == other.path_mtus
    }
}

/// What the kernel forwards from a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forwarding {
    pub v4: bool,
    pub v6: bool,
    /// The larger of the link's `rp_filter` and that of all links, as the kernel takes it.
    pub rp_filter: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// None: a link without link-layer addresses (a tunnel, loopback).
    pub mac: Option<[u8; 6]>,
    pub mtu: u32,
    pub up: bool,
    /// Index of the bridge, bond or team it is a slave of.
    pub master: Option<u32>,
    /// `veth`, `bridge`, `bond`, …; None for hardware.
    pub kind: Option<String>,
    /// The kind of its master.
    pub master_kind: Option<String>,
    /// XDP can transmit on it (`ndo_xdp_xmit`).
    pub xdp_transmit: bool,
    /// A virtual one with a queueing discipline, which nothing may pass by.
    pub queued: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Address {
    pub link: u32,
    pub net: IpNet,
    /// From DHCP or router advertisement: it has a finite lifetime.
    pub temporary: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Neighbour {
    pub link: u32,
    pub addr: IpAddr,
    /// None: not resolved.
    pub mac: Option<[u8; 6]>,
}
