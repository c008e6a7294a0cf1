//! What a Service says of its clients: traffic policies, source ranges, and the port of its health checks.
//!
//! Invariant: what the cluster's API would refuse is an error here, too.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::{self, At, Log};
use crate::intent::Traffic;

const RANGE: &str = "a network such as 203.0.113.0/24 or 2001:db8::/32";

pub(super) fn read(
    spec: &At<'_>,
    kind: &str,
    cluster_ips: Vec<IpAddr>,
    balancer_ips: Vec<IpAddr>,
    log: &mut Log,
) -> Traffic {
    let external_local = is_local(spec, "externalTrafficPolicy", log);
    Traffic {
        cluster_ips,
        balancer_ips,
        announced: false,
        external_local,
        internal_local: is_local(spec, "internalTrafficPolicy", log),
        sources: sources(spec, kind, log),
        direct: false,
        health_check: health_check(spec, kind == "LoadBalancer" && external_local, log),
    }
}

fn is_local(spec: &At<'_>, key: &str, log: &mut Log) -> bool {
    let policy = spec.get(key).filter(|at| at.node.text() != Some(""));
    let local = policy.and_then(|at| {
        at.value(log, "Cluster or Local", |s| match s {
            "Local" => Ok(true),
            "Cluster" => Ok(false),
            _ => Err(String::new()),
        })
    });
    local.unwrap_or(false)
}

fn sources(spec: &At<'_>, kind: &str, log: &mut Log) -> Vec<IpNet> {
    let Some(at) = spec.get("loadBalancerSourceRanges") else {
        return Vec::new();
    };
    let list = at.list(log, "a list of networks");
    if kind != "LoadBalancer" && !list.is_empty() {
        log.error(&at, format!("is for Services of type LoadBalancer; expected none with the type {kind}"));
    }
    let mut all = Vec::new();
    for at in &list {
        let Some((net, cleared)) = at.value(log, RANGE, |text| config::prefix(text.trim())) else { continue };
        if cleared {
            log.notice(at, format!("{} has bits behind its prefix; taken as {net}", at.node.describe()));
        }
        if !all.contains(&net) {
            all.push(net);
        }
    }
    all
}

/// Only the API server gives ports to those that ask for none.
fn health_check(spec: &At<'_>, allowed: bool, log: &mut Log) -> Option<u16> {
    let at = spec.get("healthCheckNodePort").filter(|at| at.node.text() != Some("0"))?;
    let port = at.value(log, config::PORT, |s| config::integer(s, 1, 65_535))?;
    if !allowed {
        let right = "expected none, or type LoadBalancer with externalTrafficPolicy Local";
        log.error(&at, format!("is for load balancers whose traffic stays on the node; {right}"));
        return None;
    }
    Some(port as u16)
}
