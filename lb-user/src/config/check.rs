//! Rules between the values of a configuration: what each may be only beside the others.
//!
//! Invariant: the later of two values that clash carries the error and names the earlier one.
//! Not here: what only the kernel knows ([`super::verify`]).

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::Config;
use super::at::{At, Log};
use super::error::{Error, Place};
use super::value::{self, MAX_RANGE, show};
use super::{nat, routes};
use crate::intent::{Port, ReplyVia, ServiceRange, Translation};

/// What a range of addresses is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Nodes,
    Services,
    Pods,
    Cluster,
    Switch,
    /// Translated beside the switch's own.
    Nat,
    PrefixInside,
    PrefixOutside,
}

/// A range of addresses, and where it was said.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Extent {
    pub used: Use,
    pub path: String,
    pub place: Place,
    pub range: ServiceRange,
}

/// Nodes and pods may be in the internal switch's network, where they are, and whatever hosts have may be
/// translated; everything else is apart.
fn may_overlap(a: Use, b: Use) -> bool {
    use Use::{Nat, Nodes, Pods, PrefixInside, Services, Switch};
    let either = |one: Use, others: &[Use]| (a == one && others.contains(&b)) || (b == one && others.contains(&a));
    either(Switch, &[Nodes, Pods])
        || either(Nat, &[Nodes, Services, Pods, Switch, Nat, PrefixInside])
        || either(PrefixInside, &[Nodes, Pods, Switch])
}

pub(super) fn whole(config: &Config, root: &At<'_>, log: &mut Log) {
    if config.ports.is_empty() && config.internal_switch.is_none() && config.inside.is_empty() && log.errors.is_empty()
    {
        log.error(root, "names no interface; expected at least one of ports, internalSwitch, inside");
    }
    interfaces(config, log);
    gateways(config, log);
    nat::whole(config, log);
    published(config, log);
    routes::whole(config, log);
    reply_via(config, log);
    overlaps(config, log);
    apart(config, log);
    few_nodes(config, log);
    for extent in config.places.extents.iter().filter(|e| e.used == Use::Cluster) {
        if value::size(&extent.range) > MAX_RANGE {
            let message = format!(
                "{} has more than {MAX_RANGE} addresses; expected a subnet of /12 (IPv4) or /108 (IPv6) at most",
                show(&extent.range)
            );
            push(log, extent.place, &extent.path, message);
        }
    }
}

fn push(log: &mut Log, place: Place, path: &str, message: String) {
    log.errors.push(Error { file: log.file.clone(), place: Some(place), path: path.to_owned(), message });
}

/// Keys and interfaces' names, of the ports and the switch.
fn named(config: &Config) -> Vec<(String, &str)> {
    let ports = config.ports.iter().map(|p| (format!("ports.{}.interface", p.name), p.interface.as_str()));
    let switch = config.internal_switch.iter().map(|s| ("internalSwitch.interface".to_owned(), s.interface.as_str()));
    let mut all: Vec<_> = ports.chain(switch).collect();
    all.sort_by_key(|(path, _)| config.places.by_path.get(path));
    all
}

fn interfaces(config: &Config, log: &mut Log) {
    let mut seen: BTreeMap<&str, String> = BTreeMap::new();
    for (path, interface) in named(config) {
        if let Some(first) = seen.get(interface) {
            let message = format!("`{interface}` is already {first}; expected an interface of its own");
            log.errors.push(config.error_at(&path, message));
        } else {
            seen.insert(interface, path);
        }
    }
}

fn gateways(config: &Config, log: &mut Log) {
    let mut all = Vec::new();
    for port in &config.ports {
        let list = format!("ports.{}.gateway", port.name);
        all.extend(port.gateways.iter().enumerate().map(|(i, gateway)| (config.member(&list, i), *gateway, port)));
    }
    all.sort_by_key(|(path, ..)| config.places.by_path.get(path));
    for (i, (path, gateway, port)) in all.iter().enumerate() {
        let same =
            |(_, other, its): &&(String, IpAddr, &Port)| its.name == port.name && other.is_ipv4() == gateway.is_ipv4();
        if let Some((first, ..)) = all[..i].iter().find(same) {
            let family = family(*gateway);
            let message = format!("`{gateway}` is a second {family} gateway beside {first}; expected one a family");
            log.errors.push(config.error_at(path, message));
        }
        if let Some(inside) =
            config.places.extents.iter().find(|e| value::contains(&e.range, *gateway) && e.used != Use::Nodes)
        {
            let message = format!(
                "`{gateway}` is inside {} ({}); expected a router in the port's network",
                inside.path,
                show(&inside.range)
            );
            log.errors.push(config.error_at(path, message));
        }
    }
    let Some((path, gateway, _)) = all.first() else {
        return;
    };
    for (i, inside) in config.internal_switch.iter().flat_map(|switch| &switch.addresses).enumerate() {
        let v4 = inside.addr().is_ipv4();
        if config.nat.of(v4) != Translation::Off && all.iter().all(|(_, gateway, _)| gateway.is_ipv4() != v4) {
            let message = format!(
                "`{gateway}` is {}, but {} ({inside}) is {}; expected a gateway of that family",
                family(*gateway),
                config.member("internalSwitch.address", i),
                family(inside.addr())
            );
            log.errors.push(config.error_at(path, message));
        }
    }
}

/// A port forward is not at an address that the cluster gives, and none leads to a service.
fn published(config: &Config, log: &mut Log) {
    let extents = || config.places.extents.iter().filter(|e| matches!(e.used, Use::Services | Use::Cluster));
    for (i, service) in config.published.iter().enumerate() {
        let path = config.member("publish", i);
        let of_cluster = |addr: &IpAddr| extents().find(|e| e.used == Use::Cluster && value::contains(&e.range, *addr));
        if let Some((addr, extent)) = service.addresses.iter().find_map(|addr| Some((addr, of_cluster(addr)?))) {
            let message = format!("`{addr}` is inside {} ({}); expected another one", extent.path, show(&extent.range));
            log.errors.push(config.error_at(&path, message));
        }
        let of_services = |addr: IpAddr| extents().find(|e| value::contains(&e.range, addr));
        if let Some((to, extent)) = service.endpoints.iter().find_map(|to| Some((to.addr, of_services(to.addr)?))) {
            let message =
                format!("`{to}` is inside {} ({}); expected a host's address", extent.path, show(&extent.range));
            log.errors.push(config.error_at(&path, message));
        }
    }
}

/// Answers leave by a port only where that leads out.
fn reply_via(config: &Config, log: &mut Log) {
    for port in config.ports.iter().filter(|port| port.reply_via == ReplyVia::Port && port.gateways.is_empty()) {
        let path = format!("ports.{}.replyVia", port.name);
        let message = "`port` says nothing without a gateway of the port; expected `gateway` beside it";
        log.errors.push(config.error_at(&path, message));
    }
}

pub(super) fn family(addr: IpAddr) -> &'static str {
    if addr.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// nodeIPs and serviceIPs are one range of a family each, which may be written in parts.
fn apart(config: &Config, log: &mut Log) {
    for (used, key) in [(Use::Nodes, "cluster.nodeIPs"), (Use::Services, "cluster.serviceIPs")] {
        for v4 in [true, false] {
            let of = |e: &&Extent| e.used == used && e.path.starts_with(key) && e.range.first.is_ipv4() == v4;
            let mut mine: Vec<&Extent> = config.places.extents.iter().filter(of).collect();
            mine.sort_by_key(|extent| extent.range.first);
            for pair in mine.windows(2) {
                let (last, first) = (value::number(pair[0].range.last), value::number(pair[1].range.first));
                // What overlaps is told of as that.
                if last.saturating_add(1) < first {
                    let more = if used == Use::Services { "; cluster.pools takes more" } else { "" };
                    let message = format!(
                        "{} does not join {} ({}); expected one contiguous range a family{more}",
                        show(&pair[1].range),
                        pair[0].path,
                        show(&pair[0].range)
                    );
                    push(log, pair[1].place, &pair[1].path, message);
                }
            }
        }
    }
}

/// This node is one: the others are counted where they are known.
fn few_nodes(config: &Config, log: &mut Log) {
    for v4 in [true, false] {
        let mine = config.places.extents.iter().filter(|e| e.used == Use::Nodes && e.range.first.is_ipv4() == v4);
        let mine: Vec<&Extent> = mine.collect();
        if let [one] = &mine[..]
            && value::size(&one.range) == 1
        {
            let message =
                format!("{} is one address; expected one more than there are nodes, so two at least", show(&one.range));
            push(log, one.place, &one.path, message);
        }
    }
}

fn overlaps(config: &Config, log: &mut Log) {
    let mut extents: Vec<&Extent> = config.places.extents.iter().collect();
    extents.sort_by_key(|e| e.place);
    for (i, later) in extents.iter().enumerate() {
        let clash =
            extents[..i].iter().find(|e| value::overlap(&e.range, &later.range) && !may_overlap(e.used, later.used));
        if let Some(earlier) = clash {
            let message = format!(
                "{} overlaps {} ({}); expected addresses of its own",
                show(&later.range),
                earlier.path,
                show(&earlier.range)
            );
            push(log, later.place, &later.path, message);
        }
    }
}
