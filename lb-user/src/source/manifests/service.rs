//! A Service, as far as balancing needs it.
//!
//! Invariant: services without a table of their own (headless, ExternalName, another proxy's) ask for no address.
//! Not here: addresses that are given, and which endpoints there are.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use super::ask;
use super::document::{
    Naming, Said, Service, ServiceName, ServicePort, flag, labels, metadata, port_name, port_number, protocol, strings,
};
use super::traffic;
use crate::config::{self, At, Log};
use crate::intent::Traffic;
use crate::source::endpoints::{self, Distribution, Labels, Selection, Target};

/// Whether an object's labels say that it is no business of this proxy: it has another one, or needs none.
pub(super) fn is_for_others(labels: &Labels) -> bool {
    ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"]
        .iter()
        .any(|label| labels.contains_key(*label))
}

/// None for wrong ones.
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
    if kind == "ExternalName" {
        return external_name(name, said, &spec, log);
    }
    let headless = spec.get("clusterIP").is_some_and(|at| at.node.text() == Some("None"));
    let balanced = !headless && !is_for_others(&labels(at, log));
    let cluster_ips = if headless { Vec::new() } else { cluster_ips(&spec, log) };
    let naming = if headless { Naming::Headless } else { Naming::Cluster(cluster_ips.clone()) };
    let families: Vec<bool> = families(&spec, &cluster_ips, log);
    let (external, proxied) = ingress(at, log);
    let traffic = traffic::read(&spec, &kind, cluster_ips.clone(), external.clone(), log);
    let traffic = Traffic { direct: ask::is_direct(at, log), ..traffic };
    let mut addresses = cluster_ips;
    addresses.extend(external.iter().copied());
    addresses.extend(list_of_addresses(&spec, "externalIPs", log));
    let mut seen = HashSet::new();
    addresses.retain(|addr| seen.insert(*addr));
    let (ports, targets): (Vec<_>, Vec<_>) = service_ports(&spec, headless, log).into_iter().unzip();
    let is_balancer = kind == "LoadBalancer" && balanced;
    let balancer =
        is_balancer.then(|| ask::balancer(at, &spec, &families, &ports, (&external, proxied), log)).flatten();
    let selection = Selection {
        service: name.name.clone(),
        selector: spec.get("selector").map_or(Labels::new(), |at| strings(&at, log)),
        ports: targets,
        families: if families.is_empty() { vec![true, false] } else { families },
        not_ready_too: flag(&spec, "publishNotReadyAddresses", log).unwrap_or(false),
        distribution: distribution(&spec, log),
    };
    Some(Service {
        name,
        said,
        naming,
        balanced,
        addresses,
        balancer,
        affinity: affinity(&spec, log),
        traffic,
        weights: weights(at, log),
        health: ask::health(at, log),
        selection,
        ports,
    })
}

/// A name for another name.
fn external_name(name: ServiceName, said: Said, spec: &At<'_>, log: &mut Log) -> Option<Service> {
    let right = "a DNS name, such as db.example.com";
    let target = spec.require(log, "externalName", right)?.string(log, right)?;
    Some(Service {
        name,
        said,
        naming: Naming::External(target),
        balanced: false,
        addresses: Vec::new(),
        balancer: None,
        affinity: None,
        traffic: Traffic::default(),
        weights: BTreeMap::new(),
        health: None,
        selection: Selection::default(),
        ports: Vec::new(),
    })
}

fn addr(at: &At<'_>, log: &mut Log) -> Option<IpAddr> {
    at.value(log, config::ADDRESS, config::address)
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

/// ipFamilies; without any, those of the cluster IPs.
fn families(spec: &At<'_>, cluster: &[IpAddr], log: &mut Log) -> Vec<bool> {
    let Some(list) = spec.get("ipFamilies") else {
        let mut all: Vec<bool> = cluster.iter().map(IpAddr::is_ipv4).collect();
        all.dedup();
        return all;
    };
    let mut all = Vec::new();
    for (i, at) in list.list(log, "a list of IPv4 and IPv6").iter().enumerate() {
        let taken = all.clone();
        all.extend(at.value(log, "IPv4 or IPv6", |text| {
            let v4 = match text {
                "IPv4" => true,
                "IPv6" => false,
                _ => return Err(String::new()),
            };
            match cluster.get(i) {
                _ if taken.contains(&v4) => Err("is given twice".to_owned()),
                Some(ip) if ip.is_ipv4() != v4 => Err(format!("is not the family of the cluster IP {ip}")),
                _ => Ok(v4),
            }
        }));
    }
    all
}

/// The status' addresses, and whether there are any that somebody else proxies (KEP-1860): these are only for show.
fn ingress(at: &At<'_>, log: &mut Log) -> (Vec<IpAddr>, bool) {
    let (mut all, mut proxied) = (Vec::new(), false);
    let status = at.get("status");
    let balancer = status.as_ref().and_then(|at| at.get("loadBalancer"));
    let Some(list) = balancer.as_ref().and_then(|at| at.get("ingress")) else {
        return (all, proxied);
    };
    for entry in list.list(log, "a list of addresses") {
        let mode = entry.get("ipMode").and_then(|at| {
            at.value(log, "VIP or Proxy", |s| match s {
                "VIP" => Ok(false),
                "Proxy" => Ok(true),
                _ => Err(String::new()),
            })
        });
        let Some(ip) = entry.get("ip").and_then(|at| addr(&at, log)) else { continue };
        if mode == Some(true) {
            proxied = true;
        } else {
            all.push(ip);
        }
    }
    (all, proxied)
}

fn distribution(spec: &At<'_>, log: &mut Log) -> Distribution {
    let right = "PreferSameZone, PreferSameNode or PreferClose";
    let wish = spec.get("trafficDistribution").and_then(|at| {
        at.value(log, right, |s| match s {
            "PreferSameZone" | "PreferClose" => Ok(Distribution::SameZone),
            "PreferSameNode" => Ok(Distribution::SameNode),
            _ => Err(String::new()),
        })
    });
    wish.unwrap_or_default()
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

/// Each port, and whom it means.
fn service_ports(spec: &At<'_>, headless: bool, log: &mut Log) -> Vec<(ServicePort, endpoints::ServicePort)> {
    if headless && spec.get("ports").is_none() {
        return Vec::new();
    }
    let Some(list) = spec.require(log, "ports", "a list of ports") else {
        return Vec::new();
    };
    let mut all: Vec<(ServicePort, _)> = Vec::new();
    for at in list.list(log, "a list of ports") {
        let said = Said::new(log, &at);
        let port = at.require(log, "port", config::PORT).and_then(|at| port_number(&at, log));
        let protocol = protocol(&at, log);
        let node_port =
            at.get("nodePort").filter(|at| at.node.text() != Some("0")).and_then(|at| port_number(&at, log));
        let (Some(port), Some(protocol)) = (port, protocol) else {
            continue;
        };
        let name = port_name(&at);
        if let Some(first) = all.iter().map(|(p, _)| p).find(|p| p.name == name) {
            let message = match name.as_str() {
                "" => "has no name; several ports of a service each need one of their own".to_owned(),
                _ => format!("the name `{name}` is given twice, first at line {}", first.said.place.line),
            };
            log.error(&at, message);
        }
        let target = target(&at, log).unwrap_or(Target::Number(port));
        let meant = endpoints::ServicePort { name: name.clone(), protocol, target };
        all.push((ServicePort { name, protocol, port, node_port, said }, meant));
    }
    all
}

/// None: the service's own port.
fn target(at: &At<'_>, log: &mut Log) -> Option<Target> {
    let at = at.get("targetPort").filter(|at| !matches!(at.node.text(), Some("" | "0")))?;
    if at.node.text().is_some_and(|text| text.bytes().any(|b| b.is_ascii_alphabetic())) {
        return at.string(log, "a port's name").map(Target::Name);
    }
    at.value(log, "a port number from 1 to 65535, or a name of the pods' ports", |s| config::integer(s, 1, 65_535))
        .map(|port| Target::Number(port as u16))
}
