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
use crate::intent::ServiceRange;

/// What a range of addresses is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Nodes,
    Services,
    Pods,
    Cluster,
    Switch,
}

/// A range of addresses, and where it was said.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Extent {
    pub used: Use,
    pub path: String,
    pub place: Place,
    pub range: ServiceRange,
}

/// Nodes and pods may be in the internal switch's network, where they are; everything else is
/// apart.
fn may_overlap(a: Use, b: Use) -> bool {
    matches!((a, b), (Use::Switch, Use::Nodes | Use::Pods) | (Use::Nodes | Use::Pods, Use::Switch))
}

pub(super) fn whole(config: &Config, root: &At<'_>, log: &mut Log) {
    if config.ports.is_empty() && config.internal_switch.is_none() && config.inside.is_empty() && log.errors.is_empty()
    {
        log.error(root, "names no interface; expected at least one of ports, internalSwitch, inside");
    }
    interfaces(config, log);
    gateways(config, log);
    overlaps(config, log);
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
    let mut ports: Vec<_> =
        config.ports.iter().filter_map(|port| Some((format!("ports.{}.gateway", port.name), port.gateway?))).collect();
    ports.sort_by_key(|(path, _)| config.places.by_path.get(path));
    let mut seen: BTreeMap<bool, String> = BTreeMap::new();
    for (path, gateway) in &ports {
        if let Some(first) = seen.get(&gateway.is_ipv4()) {
            let family = family(*gateway);
            let message =
                format!("`{gateway}` is a second {family} default gateway beside {first}; expected one a family");
            log.errors.push(config.error_at(path, message));
        } else {
            seen.insert(gateway.is_ipv4(), path.clone());
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
    let Some(inside) = config.internal_switch.as_ref().and_then(|s| s.address) else {
        return;
    };
    let wanted = inside.addr();
    if !ports.is_empty() && ports.iter().all(|(_, gateway)| gateway.is_ipv4() != wanted.is_ipv4()) {
        let (path, gateway) = &ports[0];
        let message = format!(
            "`{gateway}` is {}, but internalSwitch.address ({inside}) is {}; expected a gateway of that family",
            family(*gateway),
            family(wanted)
        );
        log.errors.push(config.error_at(path, message));
    }
}

fn family(addr: IpAddr) -> &'static str {
    if addr.is_ipv4() { "IPv4" } else { "IPv6" }
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
