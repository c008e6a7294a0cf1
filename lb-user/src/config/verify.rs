//! What the kernel says against a configuration: interfaces that are not there, or that can't be
//! ports.
//!
//! Invariant: a pure function of the configuration and the kernel's state. A port keeps its
//! address for good: one from DHCP is refused, and so are slaves of a bond or team, whose packets
//! are their master's.

mod ranges;

use std::net::IpAddr;

use crate::intent::{Address, Link, Network, Port};

use super::{Config, Error, routes};

/// Everything that stands against attaching to these interfaces.
pub fn verify(config: &Config, network: &Network) -> Vec<Error> {
    let mut errors = Vec::new();
    for port in &config.ports {
        let path = format!("ports.{}.interface", port.name);
        let Some(link) = find(config, network, &path, &port.interface, &mut errors) else {
            continue;
        };
        if let Some(address) =
            network.addresses.iter().find(|a| a.link == link.index && a.temporary && !is_link_local(a))
        {
            let message = format!(
                "`{}` has its address {} from DHCP or router advertisement (it has a lifetime); expected a static address, since a port's address must stay",
                port.interface, address.net
            );
            errors.push(config.error_at(&path, message));
        }
        if let Some(kind) = link.master_kind.as_deref().filter(|kind| matches!(*kind, "bond" | "team")) {
            let master = network.links.iter().find(|l| Some(l.index) == link.master).map_or("?", |l| l.name.as_str());
            let message = format!(
                "`{}` is a slave of the {kind} `{master}`; teaming is not supported: expected an interface of its own",
                port.interface
            );
            errors.push(config.error_at(&path, message));
        }
        let list = format!("ports.{}.gateway", port.name);
        let gateways = port.gateways.iter().enumerate();
        errors.extend(
            gateways.filter_map(|(i, &addr)| gateway(config, network, port, link, addr, &config.member(&list, i))),
        );
        errors.extend(nat_addresses(config, network, port, link));
    }
    errors.extend(ranges::verify(config, network));
    errors.extend(routes::verify(config, network));
    if let Some(switch) = &config.internal_switch {
        find(config, network, "internalSwitch.interface", &switch.interface, &mut errors);
    }
    errors
}

/// A gateway that the port can't reach: of another family than its addresses, in none of its
/// networks, or this node itself.
fn gateway(config: &Config, network: &Network, port: &Port, link: &Link, gateway: IpAddr, path: &str) -> Option<Error> {
    let error = |message: String| Some(config.error_at(path, message));
    if let Some(own) = network.addresses.iter().find(|a| a.net.addr() == gateway) {
        let on = network.links.iter().find(|l| l.index == own.link).map_or("?", |l| l.name.as_str());
        return error(format!("`{gateway}` is this node's own address on `{on}`; expected its router's"));
    }
    let mine: Vec<_> = network.addresses.iter().filter(|a| a.link == link.index).map(|a| a.net).collect();
    let have: Vec<_> = mine.iter().map(ToString::to_string).collect();
    let (interface, have) = (&port.interface, have.join(", "));
    if !mine.iter().any(|net| net.addr().is_ipv4() == gateway.is_ipv4()) {
        let family = if gateway.is_ipv4() { "IPv4" } else { "IPv6" };
        let have = if have.is_empty() { "no address".to_owned() } else { format!("only {have}") };
        return error(format!(
            "`{gateway}` is {family}, but `{interface}` has {have}; expected a gateway of its family"
        ));
    }
    // An operator may have said to the kernel that it is on the link, without an address beside it.
    if mine.iter().any(|net| net.contains(&gateway)) || network.routes.is_on_link(gateway, link.index) {
        return None;
    }
    error(format!("`{gateway}` is in none of the networks of `{interface}` ({have}); expected a router in one of them"))
}

/// Addresses for translated packets that the port doesn't have.
fn nat_addresses(config: &Config, network: &Network, port: &Port, link: &Link) -> Vec<Error> {
    let mine: Vec<_> = network.addresses.iter().filter(|a| a.link == link.index && !is_link_local(a)).collect();
    let list = format!("ports.{}.natAddresses", port.name);
    let wrong = port.nat_addresses.iter().enumerate().filter(|(_, addr)| mine.iter().all(|a| a.net.addr() != **addr));
    let error = |(i, addr): (usize, &IpAddr)| {
        let have: Vec<_> = mine.iter().map(|a| a.net.addr().to_string()).collect();
        let have = if have.is_empty() { "which has none".to_owned() } else { format!("such as {}", have.join(", ")) };
        let message = format!("`{addr}` is not an address of `{}`; expected one of its own, {have}", port.interface);
        config.error_at(&config.member(&list, i), message)
    };
    wrong.map(error).collect()
}

fn is_link_local(address: &Address) -> bool {
    matches!(address.net.addr(), std::net::IpAddr::V6(v6) if v6.is_unicast_link_local())
}

fn find<'n>(
    config: &Config,
    network: &'n Network,
    path: &str,
    name: &str,
    errors: &mut Vec<Error>,
) -> Option<&'n Link> {
    let link = network.links.iter().find(|link| link.name == name);
    if link.is_none() {
        // What this configuration has for itself already is no choice.
        let switch = config.internal_switch.as_ref().map(|switch| switch.interface.as_str());
        let free = |name: &&str| *name != "lo" && Some(*name) != switch;
        let mut names: Vec<_> = network.links.iter().map(|l| l.name.as_str()).filter(free).collect();
        names.sort_unstable();
        names.truncate(12);
        let message = format!("`{name}` is not an interface of this node; expected one of {}", names.join(", "));
        errors.push(config.error_at(path, message));
    }
    link
}
