//! What a route may be beside the ports, the kernel's facts and other routes.
//!
//! Invariant: pure functions, one line an error. A port that is down has no facts to check against:
//! its routes wait for it.

use std::net::IpAddr;

use ipnet::IpNet;

use super::form::family;
use super::{Origin, StaticRoute, Wished};
use crate::intent::{Address, Link, Network, Port};

pub fn port<'p>(ports: &'p [Port], name: &str) -> Result<&'p Port, String> {
    ports.iter().find(|port| port.name == name).ok_or_else(|| {
        let names: Vec<_> = ports.iter().map(|port| port.name.as_str()).collect();
        match names[..] {
            [] => format!(
                "there is no port `{name}`; expected one of those in `ports` of the configuration, which has none"
            ),
            _ => format!("there is no port `{name}`; expected one of {}", names.join(", ")),
        }
    })
}

pub fn link<'n>(port: &Port, network: &'n Network) -> Option<&'n Link> {
    network.links.iter().find(|link| link.name == port.interface)
}

/// What stands against a route on its port, as the kernel knows that.
pub fn facts(route: &StaticRoute, port: &Port, network: &Network) -> Result<(), String> {
    let Some(link) = link(port, network) else { return Ok(()) };
    let name = format!("{} ({})", port.name, link.name);
    let expected = "teaming is not supported: expected an interface of its own";
    let is_team = |kind: &Option<String>| matches!(kind.as_deref(), Some("bond" | "team"));
    if is_team(&link.kind) {
        return Err(format!("{name} is a {}; {expected}", link.kind.as_deref().unwrap_or_default()));
    }
    if is_team(&link.master_kind) {
        let master = network.links.iter().find(|l| Some(l.index) == link.master).map_or("?", |l| l.name.as_str());
        let kind = link.master_kind.as_deref().unwrap_or_default();
        return Err(format!("{name} is a slave of the {kind} {master}; {expected}"));
    }
    let mine: Vec<&Address> = network.addresses.iter().filter(|a| a.link == link.index).collect();
    if let Some(address) = mine.iter().find(|a| a.temporary && !is_link_local(a.net.addr())) {
        return Err(format!(
            "{name} has its address {} from DHCP or router advertisement; expected a static address, since routes need a port that stays",
            address.net
        ));
    }
    match route.next_hop {
        Some(next_hop) => reachable(next_hop, &name, link, &mine, network),
        None => Ok(()),
    }
}

fn reachable(next_hop: IpAddr, name: &str, link: &Link, mine: &[&Address], network: &Network) -> Result<(), String> {
    if let Some(own) = network.addresses.iter().find(|a| a.net.addr() == next_hop) {
        let on = network.links.iter().find(|l| l.index == own.link).map_or("?", |l| l.name.as_str());
        return Err(format!("the next hop {next_hop} is this node's own address on {on}; expected its router's"));
    }
    let nets: Vec<IpNet> =
        mine.iter().map(|a| a.net).filter(|net| net.addr().is_ipv4() == next_hop.is_ipv4()).collect();
    if nets.is_empty() {
        // The kernel takes IPv6 addresses away from a link that is set down.
        let down = Err(format!("{name} has no {} address; expected one in the next hop's network", family(next_hop)));
        return if link.up { down } else { Ok(()) };
    }
    let have: Vec<_> = nets.iter().map(ToString::to_string).collect();
    let have = have.join(", ");
    if let Some(net) = nets.iter().find(|net| net.contains(&next_hop)) {
        let edge = net.addr().is_ipv4() && net.prefix_len() < 31;
        if edge && (next_hop == net.network() || next_hop == net.broadcast()) {
            return Err(format!(
                "the next hop {next_hop} is the own or the broadcast address of {}; expected a router's in it",
                net.trunc()
            ));
        }
        return Ok(());
    }
    // An operator may have said to the kernel that it is on the link, without an address beside it.
    if network.routes.is_on_link(next_hop, link.index) {
        return Ok(());
    }
    Err(format!(
        "the next hop {next_hop} is in none of the networks of {name}, {have}; expected a router's in one of them"
    ))
}

/// Each link has such addresses, and they say nothing beyond it.
pub fn is_link_local(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(addr) if addr.is_unicast_link_local())
}

/// The network of the port that covers a route's destination already.
pub fn covered(route: &StaticRoute, port: &Port, network: &Network) -> Option<String> {
    let link = link(port, network)?;
    let mine = network.addresses.iter().filter(|a| a.link == link.index);
    let net = mine.map(|a| a.net.trunc()).find(|net| net.contains(&route.destination))?;
    Some(format!("{} is in {net}, the network of {} itself: the route isn't needed", route.destination, port.name))
}

/// Another route of the same port and destination.
pub fn duplicate(route: &StaticRoute, others: &[Wished]) -> Result<(), String> {
    let Some(other) = others.iter().find(|other| other.route.is(&route.interface, route.destination)) else {
        return Ok(());
    };
    let right = match other.origin {
        Origin::Command => "expected that to be removed first",
        Origin::File => "expected that to be changed instead",
    };
    let place = match other.origin {
        Origin::Command => "already",
        Origin::File => "already, in the configuration file",
    };
    let (interface, destination) = (&route.interface, route.destination);
    let shown = other.route.to_string();
    let how = shown.strip_prefix(&format!("{destination} ")).unwrap_or(&shown);
    Err(format!("{interface} has a route to {destination} {place} ({how}); {right}"))
}
