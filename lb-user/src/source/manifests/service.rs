//! A Service, as far as balancing needs it.
//!
//! Invariant: headless and ExternalName services read as none. Not here: addresses that are given.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use super::document::{PORT, Said, Service, ServicePort, flag, metadata, port_name, port_number, protocol};
use crate::config::{self, At, Log};

const ADDRESS: &str = "an address such as 192.168.1.1 or fd00::1";

/// None for services that are not balanced, and for wrong ones.
pub(super) fn read(at: &At<'_>, log: &mut Log) -> Option<Service> {
    let name = metadata(at, log)?;
    let said = Said::new(log, at);
    let spec = at.require(log, "spec", "a map with the service's ports")?;
    let kind = spec.get("type").map(|at| {
        at.value(log, "ClusterIP, NodePort, LoadBalancer or ExternalName", |s| match s {
            "ClusterIP" | "NodePort" | "LoadBalancer" | "ExternalName" => Ok(s.to_owned()),
            _ => Err(String::new()),
        })
    });
    let kind = kind.map_or(Some("ClusterIP".to_owned()), |kind| kind)?;
    let headless = spec.get("clusterIP").is_some_and(|at| at.node.text() == Some("None"));
    if headless || kind == "ExternalName" {
        return None;
    }
    let balancer = kind == "LoadBalancer";
    let mut addresses = cluster_ips(&spec, log);
    let families: Vec<bool> = families(&spec, &addresses, log);
    let external = load_balancer_ips(at, &spec, balancer, log);
    let wants = (balancer && external.is_empty()).then_some(families);
    addresses.extend(external);
    addresses.extend(list_of_addresses(&spec, "externalIPs", log));
    let mut seen = HashSet::new();
    addresses.retain(|addr| seen.insert(*addr));
    policies(&spec, log);
    Some(Service {
        name,
        said,
        addresses,
        wants,
        affinity: affinity(&spec, log),
        weights: weights(at, log),
        not_ready_too: flag(&spec, "publishNotReadyAddresses", log).unwrap_or(false),
        ports: service_ports(&spec, log),
    })
}

fn addr(at: &At<'_>, log: &mut Log) -> Option<IpAddr> {
    at.value(log, ADDRESS, config::address)
}

fn list_of_addresses(at: &At<'_>, key: &str, log: &mut Log) -> Vec<IpAddr> {
    let Some(list) = at.get(key) else {
        return Vec::new();
    };
    list.list(log, "a list of addresses").iter().filter_map(|at| addr(at, log)).collect()
}

fn cluster_ips(spec: &At<'_>, log: &mut Log) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = spec
        .get("clusterIP")
        .filter(|at| at.node.text() != Some(""))
        .and_then(|at| addr(&at, log))
        .into_iter()
        .collect();
    for extra in list_of_addresses(spec, "clusterIPs", log) {
        if !all.contains(&extra) {
            all.push(extra);
        }
    }
    all
}

fn families(spec: &At<'_>, cluster: &[IpAddr], log: &mut Log) -> Vec<bool> {
    let mut all: Vec<bool> = match spec.get("ipFamilies") {
        Some(list) => list
            .list(log, "a list of IPv4 and IPv6")
            .iter()
            .filter_map(|at| {
                at.value(log, "IPv4 or IPv6", |s| match s {
                    "IPv4" => Ok(true),
                    "IPv6" => Ok(false),
                    _ => Err(String::new()),
                })
            })
            .collect(),
        None => cluster.iter().map(IpAddr::is_ipv4).collect(),
    };
    all.dedup();
    all
}

fn load_balancer_ips(at: &At<'_>, spec: &At<'_>, balancer: bool, log: &mut Log) -> Vec<IpAddr> {
    let mut all = Vec::new();
    if let Some(at) = spec.get("loadBalancerIP").filter(|at| balancer && at.node.text() != Some("")) {
        all.extend(addr(&at, log));
    }
    let Some(status) = at.get("status") else {
        return all;
    };
    let Some(balancer) = status.get("loadBalancer") else {
        return all;
    };
    let Some(ingress) = balancer.get("ingress") else {
        return all;
    };
    for entry in ingress.list(log, "a list of addresses") {
        if let Some(at) = entry.get("ip") {
            all.extend(addr(&at, log));
        }
    }
    all
}

fn affinity(spec: &At<'_>, log: &mut Log) -> Option<u32> {
    let by_client = spec.get("sessionAffinity")?.value(log, "None or ClientIP", |s| match s {
        "ClientIP" => Ok(true),
        "None" => Ok(false),
        _ => Err(String::new()),
    })?;
    if !by_client {
        return None;
    }
    const DEFAULT: u32 = 10_800;
    let Some(config) = spec.get("sessionAffinityConfig") else {
        return Some(DEFAULT);
    };
    let Some(client) = config.get("clientIP") else {
        return Some(DEFAULT);
    };
    let Some(timeout) = client.get("timeoutSeconds") else {
        return Some(DEFAULT);
    };
    timeout.value(log, "a number of seconds from 1 to 86400", |s| config::integer(s, 1, 86_400))
}

/// Our own annotation: `10.20.0.7=3,10.20.0.8=1`.
fn weights(at: &At<'_>, log: &mut Log) -> BTreeMap<IpAddr, u32> {
    let mut all = BTreeMap::new();
    let Some(metadata) = at.get("metadata") else {
        return all;
    };
    let Some(annotations) = metadata.get("annotations") else {
        return all;
    };
    let Some(at) = annotations.get("stellwerk.io/weights") else {
        return all;
    };
    let right = "weights from 1 to 1000 by address, such as 10.20.0.7=3,10.20.0.8=1";
    at.value(log, right, |text| {
        for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let (addr, weight) = part.split_once('=').ok_or_else(String::new)?;
            let addr = addr.trim().parse::<IpAddr>().map_err(|_| format!("names `{addr}`, which is no address"))?;
            let weight =
                config::integer(weight.trim(), 1, 1_000).map_err(|_| format!("gives {addr} the weight `{weight}`"))?;
            if all.insert(addr, weight).is_some() {
                return Err(format!("names {addr} twice"));
            }
        }
        Ok(())
    });
    all
}

fn policies(spec: &At<'_>, log: &mut Log) {
    for key in ["externalTrafficPolicy", "internalTrafficPolicy"] {
        if let Some(at) = spec.get(key).filter(|at| at.node.text() == Some("Local")) {
            log.notice(&at, "`Local` is not known here: all endpoints are used, as with Cluster");
        }
    }
}

fn service_ports(spec: &At<'_>, log: &mut Log) -> Vec<ServicePort> {
    let Some(list) = spec.require(log, "ports", "a list of ports") else {
        return Vec::new();
    };
    let mut all: Vec<ServicePort> = Vec::new();
    for at in list.list(log, "a list of ports") {
        let said = Said::new(log, &at);
        let port = at.require(log, "port", PORT).and_then(|at| port_number(&at, log));
        let protocol = protocol(&at, log);
        let node_port =
            at.get("nodePort").filter(|at| at.node.text() != Some("0")).and_then(|at| port_number(&at, log));
        let (Some(port), Some(protocol)) = (port, protocol) else {
            continue;
        };
        let name = port_name(&at);
        if let Some(first) = all.iter().find(|p| p.name == name) {
            let message = match name.as_str() {
                "" => "has no name; several ports of a service each need one of their own".to_owned(),
                _ => format!("the name `{name}` is given twice, first at line {}", first.said.place.line),
            };
            log.error(&at, message);
        }
        all.push(ServicePort { name, protocol, port, node_port, said });
    }
    all
}
