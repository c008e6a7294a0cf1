//! Port forwards: `publish`, as services of one endpoint.
//!
//! Invariant: what is here is a service like any other from now on, so that it is balanced, counted,
//! shown and drained by what does that for those. Not here: whether a service of the cluster is reached at
//! the same place ([`super::Config::rules`] goes to who knows those).

use std::net::{IpAddr, SocketAddr};

use super::Places;
use super::at::{At, Log};
use super::value::{self, ENDPOINT};
use super::yaml::Kind;
use crate::intent::{Endpoint, EndpointState, Protocol, ServicePort};

const KEYS: &[&str] = &["at", "to", "protocol"];
const TEXT: &str = "a port forward such as 203.0.113.5:8443 -> 10.20.0.7:443 (TCP, or with /udp or /sctp at its end)";
const PROTOCOL: &str = "TCP, UDP or SCTP";

pub(super) fn forwards(places: &mut Places, list: &At<'_>, log: &mut Log) -> Vec<ServicePort> {
    let mut all: Vec<(SocketAddr, Protocol, String)> = Vec::new();
    let mut services = Vec::new();
    for at in list.list_or_one() {
        let Some((from, to, protocol)) = forward(&at, log) else {
            continue;
        };
        let what = format!("`{from} -> {to}`");
        if from.is_ipv4() != to.is_ipv4() {
            log.error(&at, format!("{what} mixes IPv4 and IPv6; expected addresses of one family"));
        } else if protocol == Protocol::Sctp && from.port() != to.port() {
            log.error(&at, format!("{what} changes the port; expected the same one, since SCTP's checksum covers it"));
        } else if let Some((.., first)) = all.iter().find(|(f, p, _)| (*f, *p) == (from, protocol)) {
            log.error(&at, format!("`{from}` is already {first}; expected an address and port of its own"));
        } else {
            places.note_member(list, &at);
            all.push((from, protocol, at.to_string()));
            services.push(service(from, to, protocol));
        }
    }
    services
}

fn forward(at: &At<'_>, log: &mut Log) -> Option<(SocketAddr, SocketAddr, Protocol)> {
    if !matches!(at.node.kind, Kind::Map(_)) {
        return at.value(log, TEXT, text);
    }
    if !at.only(log, KEYS) {
        return None;
    }
    let from = at.require(log, "at", ENDPOINT).and_then(|at| at.value(log, ENDPOINT, value::endpoint));
    let to = at.require(log, "to", ENDPOINT).and_then(|at| at.value(log, ENDPOINT, value::endpoint));
    let named = match at.get("protocol") {
        Some(at) => at.value(log, PROTOCOL, protocol),
        None => Some(Protocol::Tcp),
    };
    Some((from?, to?, named?))
}

/// `at -> to`, with `/protocol` at its end or without.
fn text(text: &str) -> Result<(SocketAddr, SocketAddr, Protocol), String> {
    let (from, to) = text.split_once("->").or_else(|| text.split_once('→')).ok_or_else(String::new)?;
    let (to, named) = match to.split_once('/') {
        Some((to, named)) => (to, protocol(named.trim()).map_err(|_| format!("has not {PROTOCOL} behind its `/`"))?),
        None => (to, Protocol::Tcp),
    };
    let endpoint = |text: &str| {
        value::endpoint(text.trim()).map_err(|why| {
            let why = if why.is_empty() { format!("is not {ENDPOINT}") } else { why };
            format!("is wrong: `{}` {why}", text.trim().escape_debug())
        })
    };
    Ok((endpoint(from)?, endpoint(to)?, named))
}

fn protocol(text: &str) -> Result<Protocol, String> {
    match text.to_ascii_uppercase().as_str() {
        "TCP" => Ok(Protocol::Tcp),
        "UDP" => Ok(Protocol::Udp),
        "SCTP" => Ok(Protocol::Sctp),
        _ => Err(String::new()),
    }
}

/// No Service of a cluster has such a name.
fn service(from: SocketAddr, to: SocketAddr, protocol: Protocol) -> ServicePort {
    let name = match from.ip() {
        IpAddr::V4(addr) => addr.to_string(),
        IpAddr::V6(addr) => format!("[{addr}]"),
    };
    let ready = EndpointState::Ready;
    ServicePort {
        namespace: ServicePort::PUBLISH.into(),
        name,
        port_name: String::new(),
        protocol,
        port: from.port(),
        node_port: None,
        addresses: vec![from.ip()],
        affinity: None,
        traffic: Default::default(),
        endpoints: vec![Endpoint { addr: to.ip(), port: to.port(), weight: 1, node: None, state: ready }],
    }
}
