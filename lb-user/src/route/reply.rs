//! `replyVia: port`: what this node answers leaves by the port where it was asked.
//!
//! Each such port has a table: its own networks and its gateway. A rule sends what has the port's
//! address as its source there. What leads elsewhere than by another port's gateway (the inside,
//! other ports' networks, routes by this port) is thrown back to the main table.
//! Invariant: a pure function. Not here: what the packet engine forwards.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Hop, Key, Kind, Own, Rule, Target, check};
use crate::intent::{Link, Network, Path, Port, ReplyVia};

/// The rules' place: before the main table's (32766), behind the local one's (0).
pub const PRIORITY: u32 = 5_300;
/// The tables' numbers: this, and the link's index.
pub const TABLES: u32 = 530_000;

pub fn reply(ports: &[Port], network: &Network, own: &mut Own) {
    for port in ports.iter().filter(|port| port.reply_via == ReplyVia::Port) {
        let Some(link) = check::link(port, network).filter(|link| link.up) else { continue };
        for &gateway in &port.gateways {
            table(ports, link, gateway, network, own);
        }
    }
}

fn table(ports: &[Port], link: &Link, gateway: IpAddr, network: &Network, own: &mut Own) {
    let table = TABLES + link.index;
    let v4 = gateway.is_ipv4();
    let mine = network.addresses.iter().filter(|a| a.link == link.index && a.net.addr().is_ipv4() == v4);
    let mine: Vec<IpNet> = mine.map(|a| a.net).filter(|net| !check::is_link_local(net.addr())).collect();
    if mine.is_empty() {
        return;
    }
    own.rules.extend(mine.iter().map(|net| Rule { from: net.addr(), table }));
    // By another port's gateway, whose answers would leave there.
    let leads_out = |index: u32| {
        let link = network.links.iter().find(|link| link.index == index);
        link.is_some_and(|link| ports.iter().any(|port| port.interface == link.name && port.leads_out(v4)))
    };
    let metric = if v4 { 0 } else { 1_024 };
    let mut put = |prefix: IpNet, target| _ = own.routes.insert(Key { table, prefix, metric }, target);
    for (prefix, paths) in network.routes.prefixes().filter(|(p, _)| p.addr().is_ipv4() == v4 && p.prefix_len() > 0) {
        let elsewhere = |path: &Path| path.link != link.index && path.gateway.is_some() && leads_out(path.link);
        if !paths.iter().all(elsewhere) {
            put(*prefix, Target::new(Kind::Throw, Vec::new()));
        }
    }
    let by = |gateway| Target::new(Kind::Unicast, vec![Hop { link: link.index, gateway, weight: 1 }]);
    for net in mine.iter().filter(|net| net.prefix_len() < net.max_prefix_len()) {
        put(net.trunc(), by(None));
    }
    put(if v4 { Ipv4Net::default().into() } else { Ipv6Net::default().into() }, by(Some(gateway)));
}
