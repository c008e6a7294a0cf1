//! The cluster's ranges against the ports' networks.
//!
//! Invariant: nodes and load balancers may be in a compute port's network and in no other port's where there is a
//! compute port; pods and cluster IPs are in none.

use ipnet::IpNet;

use super::is_link_local;
use crate::config::check::{Extent, Use};
use crate::config::{Config, Error, value};
use crate::intent::{Address, Network, Port};

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

fn error(config: &Config, extent: &Extent, why: String) -> Error {
    let message = format!("{} {why}", value::show(&extent.range));
    Error { file: config.file.clone(), place: Some(extent.place), path: extent.path.clone(), message }
}
