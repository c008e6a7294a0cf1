//! The cluster's ranges against what the node knows: its networks and its routes.
//!
//! Invariant: nodes and load balancers may be in a compute port's network and in no other port's where there is a
//! compute port; cluster IPs are in none of the node's networks and routes, and pods, too, where they are ours: those of
//! others have interfaces and routes that we know nothing of.

use ipnet::IpNet;

use super::is_link_local;
use crate::config::check::{Extent, Use};
use crate::config::{Config, Error, value};
use crate::intent::{Address, Link, Network, Path, Port, RouteKind};
use crate::plan::matches;

/// Bits of a prefix at the least: what is wider stands for all that there is.
const WIDEST: u8 = 4;

pub(super) fn verify(config: &Config, network: &Network) -> Vec<Error> {
    let mut errors = Vec::new();
    let nets = |compute: bool| -> Vec<(&str, IpNet)> {
        let ports = config.ports.iter().filter(|port| port.compute == compute);
        let of = |port: &Port| network.links.iter().find(|l| l.name == port.interface).map(|l| l.index);
        ports
            .filter_map(|port| Some((port.name.as_str(), of(port)?)))
            .flat_map(|(name, link)| {
                let mine = network.addresses.iter().filter(move |a| a.link == link && !is_link_local(a));
                mine.map(move |a| (name, a.net.trunc()))
            })
            .collect()
    };
    let (compute, others) = (nets(true), nets(false));
    let has_compute = config.ports.iter().any(|port| port.compute);
    for extent in &config.places.extents {
        let meets = |(_, net): &&(&str, IpNet)| value::overlap(&value::of_net(*net), &extent.range);
        let inside = compute.iter().any(|(_, net)| {
            let net = value::of_net(*net);
            value::contains(&net, extent.range.first) && value::contains(&net, extent.range.last)
        });
        let clash = match extent.used {
            Use::Nodes | Use::Services if has_compute && !inside => others.iter().find(meets),
            Use::Pods | Use::Cluster => compute.iter().chain(&others).find(meets),
            _ => None,
        };
        let right = match extent.used {
            Use::Nodes | Use::Services => "addresses in a compute port's network, or in no port's",
            _ => "addresses in no port's network",
        };
        errors.extend(clash.map(|(port, net)| {
            error(config, extent, format!("overlaps the network of {port} ({net}); expected {right}"))
        }));
        if clash.is_none() && (extent.used == Use::Cluster || extent.used == Use::Pods && config.pod_network.is_some())
        {
            errors.extend(known(config, network, extent).map(|(what, net)| {
                error(
                    config,
                    extent,
                    format!("overlaps {what} ({net}); expected addresses that this node knows nowhere"),
                )
            }));
        }
        if extent.used == Use::Services {
            // A host's route of its own may be there for the sake of a service.
            let is_own = |a: &&Address| {
                a.net.prefix_len() < a.net.max_prefix_len() && value::contains(&extent.range, a.net.addr())
            };
            let own = network.addresses.iter().find(is_own);
            errors.extend(own.map(|own| {
                let on = network.links.iter().find(|l| l.index == own.link).map_or("?", |l| l.name.as_str());
                let why = format!("has this node's own address {} on `{on}`; expected none of those", own.net.addr());
                error(config, extent, why)
            }));
        }
    }
    errors
}

/// A network or a route of this node that a range meets: what it is, and its prefix.
fn known(config: &Config, network: &Network, extent: &Extent) -> Option<(String, IpNet)> {
    let meets = |net: &IpNet| value::overlap(&value::of_net(*net), &extent.range);
    // Pods may be in the switch's network, and where patterns say that they are.
    let inside = |link: &&Link| {
        let switch = config.internal_switch.iter().any(|switch| switch.interface == link.name);
        switch || config.inside.iter().any(|pattern| matches(pattern, &link.name))
    };
    let name = |index: u32| network.links.iter().find(|link| link.index == index).map_or("?", |link| &link.name);
    let exempt: Vec<u32> = network
        .links
        .iter()
        .filter(|link| link.name == "lo" || (extent.used == Use::Pods && inside(link)))
        .map(|link| link.index)
        .collect();
    let mut networks = network.addresses.iter().filter(|a| !is_link_local(a) && !exempt.contains(&a.link));
    let own = networks.find(|a| a.net.prefix_len() < a.net.max_prefix_len() && meets(&a.net.trunc()));
    if let Some(own) = own {
        return Some((format!("the network of `{}`", name(own.link)), own.net.trunc()));
    }
    // A host's route is there for the sake of that host.
    let counts = |net: &IpNet| (WIDEST..net.max_prefix_len()).contains(&net.prefix_len()) && meets(net);
    let ours = |net: &IpNet| network.own.routes.keys().any(|key| key.prefix == *net);
    network.routes.prefixes().filter(|(net, _)| counts(net) && !ours(net)).find_map(|(net, paths)| {
        // By a router other nodes' pods and services are reached, where an operator says so.
        let elsewhere = value::contains(&extent.range, net.addr());
        let leads = |path: &&Path| {
            let unicast = path.kind == RouteKind::Unicast && !exempt.contains(&path.link);
            unicast && !(elsewhere && path.gateway.is_some())
        };
        let path = paths.iter().find(leads)?;
        let by = path.gateway.map_or(String::new(), |gateway| format!(" by {gateway}"));
        Some((format!("this node's route{by} on `{}`", name(path.link)), *net))
    })
}

fn error(config: &Config, extent: &Extent, why: String) -> Error {
    let message = format!("{} {why}", value::show(&extent.range));
    Error { file: config.file.clone(), place: Some(extent.place), path: extent.path.clone(), message }
}
