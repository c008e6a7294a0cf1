//! An EndpointSlice, as far as balancing needs it.
//!
//! Invariant: a slice's addresses are of its family. Not here: which endpoints get traffic.

use super::document::{
    Endpoint, Said, ServiceName, Slice, SlicePort, flag, metadata, port_name, port_number, protocol,
};
use crate::config::{self, At, Log};

/// None for slices of no service, and for wrong ones.
pub(super) fn read(at: &At<'_>, log: &mut Log) -> Option<Slice> {
    let ServiceName { namespace, name } = metadata(at, log)?;
    let said = Said::new(log, at);
    let service = {
        let metadata = at.get("metadata")?;
        let labels = metadata.get("labels");
        labels
            .as_ref()
            .and_then(|l| l.get("kubernetes.io/service-name"))
            .and_then(|at| at.node.text().map(str::to_owned))
    };
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
    Some(Slice { name, service: ServiceName { namespace, name: service }, said, ports, endpoints })
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
        let node = at.get("nodeName").and_then(|at| at.string(log, "a node's name"));
        let (ready, terminating) = match at.get("conditions") {
            Some(at) => (flag(&at, "ready", log), flag(&at, "terminating", log).unwrap_or(false)),
            None => (None, false),
        };
        if let Some(addr) = addr {
            all.push(Endpoint { addr, node, ready, terminating });
        }
    }
    all
}
