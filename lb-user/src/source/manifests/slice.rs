//! An EndpointSlice or an Endpoints, as far as balancing needs it.
//!
//! Invariant: a slice's addresses are of its family; an Endpoints' are of any. Not here: which endpoints get
//! traffic.

use std::sync::Arc;

use super::document::{
    Endpoints, Placed, Said, ServiceName, Slice, SlicePort, flag, has_annotation, labels, metadata, port_name,
    port_number, protocol,
};
use super::service;
use crate::config::{self, At, Log};
use crate::source::endpoints::{Endpoint, Hints};

/// None for slices of no service, and for wrong ones.
pub(super) fn read(at: &At<'_>, log: &mut Log) -> Option<Slice> {
    let ServiceName { namespace, name } = metadata(at, log)?;
    let said = Said::new(log, at);
    let mut labels = labels(at, log);
    let for_others = service::is_for_others(&labels);
    let service = labels.remove("kubernetes.io/service-name");
    let Some(service) = service else {
        log.notice(
            at,
            format!(
                "EndpointSlice {namespace}/{name} belongs to no service: it has no label kubernetes.io/service-name"
            ),
        );
        return None;
    };
    let types = "IPv4, IPv6 or FQDN";
    let v4 = at.require(log, "addressType", types)?.value(log, types, |s| match s {
        "IPv4" => Ok(Some(true)),
        "IPv6" => Ok(Some(false)),
        "FQDN" => Ok(None),
        _ => Err(String::new()),
    })?;
    let Some(v4) = v4 else {
        log.notice(at, format!("EndpointSlice {namespace}/{name} holds names (FQDN), which are left alone"));
        return None;
    };
    let ports = at.get("ports").map_or(Vec::new(), |at| slice_ports(&at, log));
    let endpoints = at.get("endpoints").map_or(Vec::new(), |at| endpoints(&at, v4, log));
    Some(Slice { name, service: ServiceName { namespace, name: service }, for_others, said, ports, endpoints })
}

fn slice_ports(at: &At<'_>, log: &mut Log) -> Vec<SlicePort> {
    let mut all = Vec::new();
    for at in at.list(log, "a list of ports") {
        let Some(number) = at.get("port") else {
            log.notice(&at, "a port without number is left alone");
            continue;
        };
        let said = Said::new(log, &at);
        if let (Some(port), Some(protocol)) = (port_number(&number, log), protocol(&at, log)) {
            all.push(SlicePort { name: port_name(&at), protocol, port, said });
        }
    }
    all
}

fn endpoints(at: &At<'_>, v4: bool, log: &mut Log) -> Vec<Endpoint> {
    let mut all = Vec::new();
    let right = if v4 { "an IPv4 address, as addressType says" } else { "an IPv6 address, as addressType says" };
    for at in at.list(log, "a list of endpoints") {
        let Some(addresses) = at.require(log, "addresses", "a list of one address") else {
            continue;
        };
        let list = addresses.list(log, "a list of one address");
        if list.len() > 1 {
            log.notice(&addresses, "only the first address of an endpoint is used, as by kube-proxy");
        }
        let Some(first) = list.first() else { continue };
        let addr = first.value(log, right, |s| {
            config::address(s).and_then(|a| if a.is_ipv4() == v4 { Ok(a) } else { Err(String::new()) })
        });
        let text = |key: &str, log: &mut Log| at.get(key).and_then(|at| at.string(log, "a name"));
        let (node, zone, hostname) = (text("nodeName", log), text("zone", log), text("hostname", log));
        let hints = at.get("hints").map_or(Hints::default(), |at| hints(&at, log));
        let conditions = at.get("conditions");
        let condition = |key: &str, log: &mut Log| conditions.as_ref().and_then(|at| flag(at, key, log));
        let (ready, serving) = (condition("ready", log), condition("serving", log));
        let terminating = condition("terminating", log).unwrap_or(false);
        if let Some(addr) = addr {
            all.push(Endpoint { addr, hostname, node, zone, ready, serving, terminating, hints });
        }
    }
    all
}

fn hints(at: &At<'_>, log: &mut Log) -> Hints {
    let mut names = |key: &str| -> Vec<String> {
        let Some(at) = at.get(key) else { return Vec::new() };
        let list = at.list(log, "a list such as [{ name: east }]");
        list.iter().filter_map(|at| at.require(log, "name", "a name")?.string(log, "a name")).collect()
    };
    Hints { zones: names("forZones"), nodes: names("forNodes") }
}

/// None for those that Kubernetes wouldn't mirror into slices either.
pub(super) fn read_endpoints(at: &At<'_>, log: &mut Log) -> Option<Endpoints> {
    let name = metadata(at, log)?;
    let said = Said::new(log, at);
    let labels = labels(at, log);
    let skipped = labels.get("endpointslice.kubernetes.io/skip-mirror").is_some_and(|skip| skip == "true");
    let leads = has_annotation(at, "control-plane.alpha.kubernetes.io/leader");
    if skipped || leads {
        return None;
    }
    let for_others = service::is_for_others(&labels);
    let mut subsets = Vec::new();
    if let Some(list) = at.get("subsets") {
        for at in list.list(log, "a list of subsets") {
            let ports = at.get("ports").map_or(Vec::new(), |at| slice_ports(&at, log));
            let mut endpoints = subset_addresses(&at, "addresses", true, log);
            endpoints.extend(subset_addresses(&at, "notReadyAddresses", false, log));
            let (name, service) = (name.name.clone(), name.clone());
            subsets.push(Arc::new(Slice { name, service, for_others, said: said.clone(), ports, endpoints }));
        }
    }
    Some(Placed { name, object: subsets, said })
}

fn subset_addresses(at: &At<'_>, key: &str, ready: bool, log: &mut Log) -> Vec<Endpoint> {
    let Some(list) = at.get(key) else { return Vec::new() };
    let mut all = Vec::new();
    for at in list.list(log, "a list of addresses, such as [{ ip: 172.27.0.11 }]") {
        let addr =
            at.require(log, "ip", config::ADDRESS).and_then(|at| at.value(log, config::ADDRESS, config::address));
        let node = at.get("nodeName").and_then(|at| at.string(log, "a node's name"));
        let hostname = at.get("hostname").and_then(|at| at.string(log, "a host's name"));
        let Some(addr) = addr else { continue };
        let (ready, serving) = (Some(ready), Some(ready));
        let (zone, hints) = (None, Hints::default());
        all.push(Endpoint { addr, hostname, node, zone, ready, serving, terminating: false, hints });
    }
    all
}
