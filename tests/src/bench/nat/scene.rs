//! The device that translates: hosts behind its inside link, four addresses on the link that leads out.
//!
//! Hosts that have numbers next to each other get addresses outside that lie next to each other, so that
//! a reply's destination is known from its connection's number. A host's port outside is its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use lb_common::hash;
use lb_common::wire::{Addr, Ip4, Ip6};
use lb_user::apply::Kernel;
use lb_user::intent::{
    Capacity, HookChoice, Intent, InternalSwitch, Nat, Network, Port, ReplyVia, Translation, Tuning,
};

use crate::bench::scene::{address, link, neighbour, put, route};
use crate::bench::script::Clients;

/// Addresses outside, and so hosts whose replies are known.
pub const POOL: u32 = 4;
/// Hosts that rows of new connections take turns with. They are few, and so are the filter's bits for their
/// subnets: a port whose own bit is one of those is not given to anybody, since it could be a service's.
pub const HOSTS: u32 = 64;
const UPLINK: u32 = 2;
const SWITCH: u32 = 3;

/// The first of the hosts inside.
#[derive(Clone, Copy, Debug)]
pub struct Hosts {
    pub inside: Clients,
    /// The same hosts as they are known outside.
    pub outside: Clients,
}

impl Hosts {
    pub fn find() -> Result<Hosts> {
        let inside = Clients {
            v4: first(|i| Ipv4Addr::new(10, 20, (i >> 8) as u8, i as u8), Ip4::from)?,
            v6: first(|i| Ipv6Addr::new(0xfd10, 20, 0, 0, 0, 0, 0, i as u16), Ip6::from)?,
        };
        Ok(Hosts { inside, outside: Clients { v4: Ipv4Addr::new(203, 0, 113, 16), v6: outside6(0) } })
    }

    /// The address of a number, if it is one of the first hosts'.
    fn host(clients: Clients, v6: bool, host: u32) -> IpAddr {
        if v6 {
            IpAddr::V6(Ipv6Addr::from_bits(clients.v6.to_bits() + u128::from(host)))
        } else {
            IpAddr::V4(Ipv4Addr::from_bits(clients.v4.to_bits() + host))
        }
    }

    fn all(clients: Clients) -> impl Iterator<Item = IpAddr> {
        [false, true].into_iter().flat_map(move |v6| (0..POOL).map(move |host| Hosts::host(clients, v6, host)))
    }

    pub fn is_inside(self, addr: IpAddr) -> bool {
        Hosts::all(self.inside).any(|host| host == addr)
    }

    pub fn is_outside(self, addr: IpAddr) -> bool {
        Hosts::all(self.outside).any(|host| host == addr)
    }
}

fn outside6(host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 113, 0, 0, 0, 0, 16 + host)
}

/// The first of as many addresses as the pool has, of which each has its own in the pool, in order.
fn first<I: Copy, A: Addr>(address: impl Fn(u32) -> I, addr: impl Fn(I) -> A) -> Result<I> {
    let place = |i| hash::slot(hash::client(addr(address(i)), 1), POOL);
    let fits = |start: &u32| (0..POOL).all(|i| place(start + i) == i);
    // All hosts of a row lie in one /24.
    (0..0x1_0000)
        .filter(|start| (16..=256 - HOSTS).contains(&(start % 256)))
        .find(fits)
        .map(address)
        .context("no row of hosts has the pool's addresses in their order")
}

pub fn fill(kernel: &mut Kernel, hosts: Hosts, quota: u32, capacity: Capacity) -> Result<()> {
    let gateway4 = IpAddr::from(Ipv4Addr::new(203, 0, 113, 254));
    let gateway6 = IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 113, 0, 0, 0, 0, 0xfe));
    let [a, b, c, _] = hosts.inside.v4.octets();
    let inside = [format!("{a}.{b}.{c}.1/24"), "fd10:14::ffff/64".into()];
    let intent = Intent {
        node: "bench".into(),
        ports: vec![Port {
            name: "Port2".into(),
            interface: "uplink".into(),
            gateways: vec![gateway4, gateway6],
            nat_addresses: Hosts::all(hosts.outside).collect(),
            compute: false,
            hook: HookChoice::Xdp,
            reply_via: ReplyVia::default(),
        }],
        internal_switch: Some(InternalSwitch {
            interface: "switch".into(),
            addresses: inside.iter().map(|net| net.parse()).collect::<Result<_, _>>()?,
        }),
        nat: Nat { ipv6: Translation::Masquerade, quota, ..Nat::default() },
        tuning: Tuning { capacity, ..Tuning::default() },
        ..Intent::default()
    };
    let outside = Hosts::all(hosts.outside);
    let outside = outside.map(|addr| address(UPLINK, &format!("{addr}/{}", if addr.is_ipv4() { 24 } else { 64 })));
    let network = Network {
        links: vec![link(UPLINK, "uplink"), link(SWITCH, "switch")],
        addresses: outside.chain(inside.iter().map(|net| address(SWITCH, net))).collect(),
        neighbours: [neighbour(UPLINK, gateway4), neighbour(UPLINK, gateway6)]
            .into_iter()
            .chain(Hosts::all(hosts.inside).map(|host| neighbour(SWITCH, host)))
            .collect(),
        routes: [
            route("0.0.0.0/0", Some(gateway4), UPLINK),
            route("::/0", Some(gateway6), UPLINK),
            route("203.0.113.0/24", None, UPLINK),
            route("2001:db8:71::/64", None, UPLINK),
            route(&format!("{a}.{b}.{c}.0/24"), None, SWITCH),
            route("fd10:14::/64", None, SWITCH),
        ]
        .into(),
        ..Network::default()
    };
    put(kernel, &intent, &network)
}
