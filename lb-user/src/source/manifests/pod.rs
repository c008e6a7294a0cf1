//! Pods and nodes, as far as endpoints depend on them, and namespaces, as far as pools do.
//!
//! Invariant: what a pod's status doesn't say, it isn't: without the condition Ready it is not ready, without
//! an address it is nobody's endpoint. Not here: whose endpoint it is ([`crate::source::endpoints`]).

use std::net::IpAddr;

use ipnet::IpNet;

use super::ask;
use super::document::{Placed, Said, ServiceName, flag, labels, metadata, port_name, port_number, protocol};
use crate::config::{self, At, Log};
use crate::source::endpoints::{ContainerPort, Labels, Node, Pod};

pub(super) fn read(at: &At<'_>, log: &mut Log) -> Option<Placed<ServiceName, Pod>> {
    let name = metadata(at, log)?;
    let said = Said::new(log, at);
    let mut pod = Pod { labels: labels(at, log), ..Pod::default() };
    pod.terminating = at.get("metadata").is_some_and(|at| at.get("deletionTimestamp").is_some());
    pod.fixed = ask::fixed(at, log);
    if let Some(spec) = at.get("spec") {
        pod.node = spec.get("nodeName").and_then(|at| at.string(log, "a node's name"));
        pod.hostname = spec.get("hostname").and_then(|at| at.string(log, "a host's name"));
        pod.host_network = flag(&spec, "hostNetwork", log).unwrap_or(false);
        pod.subdomain = spec.get("subdomain").and_then(|at| at.string(log, "a service's name"));
        container_ports(&spec, "containers", false, &mut pod.ports, log);
        container_ports(&spec, "initContainers", true, &mut pod.ports, log);
    }
    if let Some(status) = at.get("status") {
        let phase = status.get("phase");
        pod.ended = phase.is_some_and(|at| matches!(at.node.text(), Some("Succeeded" | "Failed")));
        pod.addresses = addresses(&status, log);
        pod.ready = is_ready(&status, log);
    }
    Some(Placed { name, object: pod, said })
}

/// Of init containers those alone that go on running beside the others (sidecars).
fn container_ports(spec: &At<'_>, key: &str, init: bool, into: &mut Vec<ContainerPort>, log: &mut Log) {
    let Some(list) = spec.get(key) else { return };
    for container in list.list(log, "a list of containers") {
        let stays = container.get("restartPolicy").is_some_and(|at| at.node.text() == Some("Always"));
        let Some(ports) = container.get("ports").filter(|_| stays || !init) else { continue };
        for at in ports.list(log, "a list of ports") {
            let number = at.require(log, "containerPort", config::PORT).and_then(|at| port_number(&at, log));
            if let (Some(port), Some(protocol)) = (number, protocol(&at, log)) {
                into.push(ContainerPort { name: port_name(&at), protocol, port });
            }
        }
    }
}

/// podIPs; where there are none, podIP.
fn addresses(status: &At<'_>, log: &mut Log) -> Vec<IpAddr> {
    let mut all = Vec::new();
    if let Some(list) = status.get("podIPs") {
        for entry in list.list(log, "a list of addresses, such as [{ ip: 172.27.0.11 }]") {
            all.extend(
                entry
                    .require(log, "ip", config::ADDRESS)
                    .and_then(|at| at.value(log, config::ADDRESS, config::address)),
            );
        }
    }
    if let Some(at) = status.get("podIP").filter(|at| all.is_empty() && at.node.text() != Some("")) {
        all.extend(at.value(log, config::ADDRESS, config::address));
    }
    all
}

fn is_ready(status: &At<'_>, log: &mut Log) -> bool {
    let Some(list) = status.get("conditions") else { return false };
    let is = |at: &At<'_>, key: &str, text: &str| at.get(key).is_some_and(|at| at.node.text() == Some(text));
    let conditions = list.list(log, "a list of conditions, such as [{ type: Ready, status: \"True\" }]");
    // Written without quotes it is the same to whoever writes it.
    conditions.iter().any(|at| is(at, "type", "Ready") && (is(at, "status", "True") || is(at, "status", "true")))
}

/// A node's, by which others of the cluster reach it.
fn internal_addresses(node: &At<'_>, log: &mut Log) -> Vec<IpAddr> {
    let Some(status) = node.get("status") else { return Vec::new() };
    let Some(list) = status.get("addresses") else { return Vec::new() };
    let list = list.list(log, "a list of addresses, such as [{ type: InternalIP, address: 192.168.1.1 }]");
    let internal = list.iter().filter(|at| at.get("type").is_some_and(|at| at.node.text() == Some("InternalIP")));
    internal
        .filter_map(|at| at.require(log, "address", config::ADDRESS)?.value(log, config::ADDRESS, config::address))
        .collect()
}

/// `podCIDRs`, else `podCIDR`.
fn pod_blocks(node: &At<'_>, log: &mut Log) -> Vec<IpNet> {
    let right = "a subnet such as 172.27.1.0/24 or fd00:27:1::/64";
    let Some(spec) = node.get("spec") else { return Vec::new() };
    let list = spec.get("podCIDRs").or_else(|| spec.get("podCIDR"));
    let read = |text: &str| if text.is_empty() { Ok(None) } else { config::prefix(text).map(|(net, _)| Some(net)) };
    list.iter().flat_map(At::list_or_one).filter_map(|at| at.value(log, right, read)?).collect()
}

pub(super) fn read_node(at: &At<'_>, log: &mut Log) -> Option<Placed<String, Node>> {
    let name = metadata(at, log)?.name;
    let mut labels = labels(at, log);
    let zone = labels.remove("topology.kubernetes.io/zone").filter(|zone| !zone.is_empty());
    let excluded = labels.contains_key("node.kubernetes.io/exclude-from-external-load-balancers");
    let (addresses, pod_blocks) = (internal_addresses(at, log), pod_blocks(at, log));
    Some(Placed { name, object: Node { zone, excluded, addresses, pod_blocks }, said: Said::new(log, at) })
}

pub(super) fn read_namespace(at: &At<'_>, log: &mut Log) -> Option<Placed<String, Labels>> {
    let name = metadata(at, log)?.name;
    Some(Placed { name, object: labels(at, log), said: Said::new(log, at) })
}
