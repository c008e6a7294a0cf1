//! The keys of the configuration file, one function a section.
//!
//! Invariant: every key that is accepted is in a `KEYS` list here and in docs/configuration.md.
//! Not here: the form of single values ([`super::value`]), rules between values ([`super::check`]).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::at::{At, Log};
use super::check::{self, Extent, Use};
use super::error::Errors;
use super::value::{self, ADDRESS, DURATION, PORTS, PREFIX, RANGE};
use super::yaml::Node;
use super::{Config, Places, announce, api, control, dns, nat, pods, pools, publish, routes, web};
use crate::announce::Settings as Announcements;
use crate::health::check::{self as probing, Check};
use crate::intent::{Capacity, HookChoice, Nat, Port, ReplyVia, ServiceRange, SocketBalancing, Tuning};
use crate::source::manifests::ServiceName;

const KEYS: &[&str] = &[
    "node",
    "ports",
    "internalSwitch",
    "inside",
    "publish",
    "routes",
    "cluster",
    "timeouts",
    "snatPorts",
    "icmpRate",
    "forwarding",
    "capacity",
    "log",
    "draining",
    "pods",
    "nodes",
    "web",
    "control",
];
const PORT_KEYS: &[&str] = &["interface", "gateway", "natAddresses", "compute", "hook", "replyVia"];
const CLUSTER_KEYS: &[&str] = &[
    "nodeIPs",
    "serviceIPs",
    "pools",
    "podSubnet",
    "serviceSubnet",
    "nodePortAddresses",
    "manifests",
    "kubeconfig",
    "context",
    "endpoints",
    "classlessLoadBalancers",
    "healthChecks",
    "announce",
    "dns",
    "socketBalancing",
];
const TIMEOUT_KEYS: &[&str] = &[
    "tcpEstablished",
    "tcpTransitory",
    "tcpClosed",
    "udpUnanswered",
    "udpAnswered",
    "sctpEstablished",
    "sctpTransitory",
    "fragment",
];
const CAPACITY_KEYS: &[&str] = &[
    "connections",
    "services",
    "backends",
    "slots",
    "routes",
    "nextHops",
    "affinity",
    "fragments",
    "sockets",
    "natAddresses",
];

/// As the kernel's `dev_valid_name` wants it.
const INTERFACE: &str = "an interface's name, such as eth0 (at most 15 characters, no `/` or space)";
/// What `cluster.socketBalancing` may be.
pub(crate) const SOCKETS: &str = "true, false, or a folder of cgroup2 such as /sys/fs/cgroup/system.slice";
const PATTERN: &str = "an interface's name or a pattern such as `veth*`";

pub(super) fn config(file: &Arc<str>, document: &Node<'_>) -> Result<Config, Errors> {
    let mut log = Log::new(file.clone());
    let root = At::root(document);
    let mut config = Config {
        file: file.clone(),
        node: String::new(),
        ports: Vec::new(),
        internal_switch: None,
        inside: Vec::new(),
        nat: Nat::default(),
        published: Vec::new(),
        routes: Vec::new(),
        node_ranges: Vec::new(),
        service_ranges: Vec::new(),
        pools: Vec::new(),
        pod_subnets: Vec::new(),
        service_subnets: Vec::new(),
        node_port_addresses: Vec::new(),
        manifests: None,
        api: None,
        classless: true,
        checks: BTreeMap::new(),
        announce: Announcements::default(),
        sockets: SocketBalancing::default(),
        dns: None,
        nodes: Vec::new(),
        pod_network: None,
        web: None,
        draining: Duration::from_secs(30),
        tuning: Tuning::default(),
        readers: None,
        notices: Vec::new(),
        places: Places::default(),
    };
    if root.only(&mut log, KEYS) {
        sections(&mut config, &root, &mut log);
        dns::settle(&mut config, &mut log);
        pods::settle(&config, &mut log);
        check::whole(&config, &root, &mut log);
    }
    let (mut config, notices) = log.finish(config)?;
    config.notices = notices;
    Ok(config)
}

fn sections(config: &mut Config, root: &At<'_>, log: &mut Log) {
    let node = "this node's name, as endpoints name it (a word of letters, digits, `-` and `.`)";
    if let Some(at) = root.require(log, "node", node) {
        config.node = at.value(log, node, node_name).unwrap_or_default();
    }
    if let Some(at) = root.get("ports") {
        config.places.note(&at);
        ports(config, &at, log);
    }
    if let Some(at) = root.get("internalSwitch") {
        config.internal_switch = nat::internal_switch(&mut config.nat, &mut config.places, &at, log);
    }
    if let Some(at) = root.get("publish") {
        config.published = publish::forwards(&mut config.places, &at, log);
    }
    if let Some(at) = root.get("control") {
        config.readers = control::readers(&mut config.places, &at, log);
    }
    if let Some(at) = root.get("routes") {
        config.routes = routes::routes(&mut config.places, &at, log);
    }
    if let Some(at) = root.get("inside") {
        config.inside = at.list_or_one().iter().filter_map(|at| at.value(log, PATTERN, interface_name)).collect();
    }
    if let Some(at) = root.get("cluster") {
        cluster(config, &at, log);
    }
    if let Some(at) = root.get("nodes") {
        config.nodes = pods::nodes(&mut config.places, &at, log);
    }
    if let Some(at) = root.get("pods") {
        config.pod_network = pods::pods(config, &at, log);
    }
    if let Some(at) = root.get("draining")
        && let Some(seconds) = at.value(log, DURATION, value::seconds)
    {
        config.draining = Duration::from_secs(seconds.into());
    }
    if let Some(at) = root.get("web") {
        config.web = web::web(&mut config.places, &at, log);
    }
    tuning(&mut config.tuning, root, log);
    if let Some(at) = root.get("capacity").as_ref().and_then(|at| at.get("natAddresses")) {
        config.places.note(&at);
    }
}

/// A node's name, as [`node_name`] takes it.
pub(super) const NODE: &str = "a node's name, a word of letters, digits, `-` and `.`";

pub(super) fn node_name(text: &str) -> Result<String, String> {
    let fits =
        !text.is_empty() && text.len() <= 253 && text.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
    if fits { Ok(text.to_owned()) } else { Err(String::new()) }
}

fn interface_name(text: &str) -> Result<String, String> {
    let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    if text.is_empty() || text == "." || text == ".." || text.contains(bad) {
        return Err(String::new());
    }
    if text.len() > 15 { Err("is too long".into()) } else { Ok(text.to_owned()) }
}

/// An interface's own name, remembered for [`super::verify`].
pub(super) fn interface(places: &mut Places, at: &At<'_>, log: &mut Log) -> Option<String> {
    let at = at.require(log, "interface", INTERFACE)?;
    places.note(&at);
    at.value(log, INTERFACE, |text| match text {
        "lo" => Err("is the loopback".into()),
        text if text.contains('*') => Err(String::new()),
        text => interface_name(text),
    })
}

fn ports(config: &mut Config, at: &At<'_>, log: &mut Log) {
    for (key, at) in at.entries(log, "a map of port names, such as Port2: { interface: eth0 }") {
        let name = key.text().unwrap_or("");
        if name.is_empty() || name.contains(char::is_whitespace) {
            log.error(&at, format!("{} is not a port's name; expected a word such as Port2", key.describe()));
        }
        if !at.only(log, PORT_KEYS) {
            continue;
        }
        let interface = interface(&mut config.places, &at, log);
        let gateways = addresses(&mut config.places, &at, "gateway", log);
        let nat_addresses = addresses(&mut config.places, &at, "natAddresses", log);
        let compute = at.get("compute").and_then(|at| at.value(log, "true or false", value::boolean));
        let hook = at.get("hook").and_then(|at| at.value(log, "auto, xdp or tc", hook));
        let reply_via = at.get("replyVia").and_then(|at| {
            config.places.note(&at);
            at.value(log, "routes or port", reply_via)
        });
        if let Some(interface) = interface {
            config.ports.push(Port {
                name: name.to_owned(),
                interface,
                gateways,
                nat_addresses,
                compute: compute.unwrap_or(false),
                hook: hook.unwrap_or_default(),
                reply_via: reply_via.unwrap_or_default(),
            });
        }
    }
}

/// An address or several, each remembered for [`super::check`] and [`super::verify`].
pub(super) fn addresses(places: &mut Places, at: &At<'_>, key: &str, log: &mut Log) -> Vec<IpAddr> {
    let Some(list) = at.get(key) else {
        return Vec::new();
    };
    let mut all = Vec::new();
    for at in list.list_or_one() {
        if let Some(addr) = at.value(log, ADDRESS, value::address) {
            places.note_member(&list, &at);
            all.push(addr);
        }
    }
    all
}

/// Whether forwarding is fast.
fn is_fast(text: &str) -> Result<bool, String> {
    match text {
        "fast" => Ok(true),
        "kernel" => Ok(false),
        _ => Err(String::new()),
    }
}

fn hook(text: &str) -> Result<HookChoice, String> {
    match text {
        "auto" => Ok(HookChoice::Auto),
        "xdp" => Ok(HookChoice::Xdp),
        "tc" => Ok(HookChoice::Tc),
        _ => Err(String::new()),
    }
}

fn reply_via(text: &str) -> Result<ReplyVia, String> {
    match text {
        "routes" => Ok(ReplyVia::Routes),
        "port" => Ok(ReplyVia::Port),
        _ => Err(String::new()),
    }
}

fn cluster(config: &mut Config, at: &At<'_>, log: &mut Log) {
    if !at.only(log, CLUSTER_KEYS) {
        return;
    }
    let extents = &mut config.places.extents;
    config.node_ranges = ranges(extents, at, "nodeIPs", Use::Nodes, log);
    config.service_ranges = ranges(extents, at, "serviceIPs", Use::Services, log);
    if let Some(at) = at.get("pools") {
        config.pools = pools::pools(&mut config.places, &at, log);
    }
    let extents = &mut config.places.extents;
    config.pod_subnets = subnets(extents, at, "podSubnet", Use::Pods, log);
    config.service_subnets = subnets(extents, at, "serviceSubnet", Use::Cluster, log);
    if let Some(at) = at.get("nodePortAddresses") {
        let nets = at.list_or_one();
        config.node_port_addresses = nets.iter().filter_map(|at| subnet(at, PREFIX, value::prefix, log)).collect();
    }
    if let Some(at) = at.get("manifests") {
        config.places.note(&at);
        config.manifests = at.string(log, "a folder or file of Kubernetes YAML").map(PathBuf::from);
    }
    api::read(config, at, log);
    if let Some(at) = at.get("healthChecks") {
        config.checks = health_checks(&at, log);
    }
    if let Some(at) = at.get("classlessLoadBalancers") {
        config.classless = at.value(log, "true or false", value::boolean).unwrap_or(true);
    }
    if let Some(at) = at.get("announce") {
        config.announce = announce::announce(&at, &config.node, log);
    }
    if let Some(at) = at.get("socketBalancing") {
        config.places.note(&at);
        config.sockets = at.value(log, SOCKETS, sockets).unwrap_or_default();
    }
    if let Some(at) = at.get("dns") {
        config.dns = dns::dns(config, &at, log);
    }
}

fn sockets(text: &str) -> Result<SocketBalancing, String> {
    match text {
        "true" => Ok(SocketBalancing::On),
        "false" => Ok(SocketBalancing::Off),
        path if path.starts_with('/') => Ok(SocketBalancing::At(path.into())),
        _ => Err(String::new()),
    }
}

/// By `namespace/name`.
fn health_checks(at: &At<'_>, log: &mut Log) -> BTreeMap<ServiceName, Option<Arc<Check>>> {
    let mut all = BTreeMap::new();
    for (key, at) in at.entries(log, "a map of services, such as default/web: http path=/healthz") {
        let Some((namespace, name)) = key.text().and_then(|text| text.split_once('/')) else {
            log.error(&at, format!("{} is not a service's name such as default/web", key.describe()));
            continue;
        };
        let name = ServiceName { namespace: namespace.into(), name: name.into() };
        let check = at.value(log, probing::RIGHT, Check::parse);
        all.extend(check.map(|check| (name, check.map(Arc::new))));
    }
    all
}

pub(super) fn ranges(extents: &mut Vec<Extent>, at: &At<'_>, key: &str, used: Use, log: &mut Log) -> Vec<ServiceRange> {
    let Some(at) = at.get(key) else {
        return Vec::new();
    };
    let mut all = Vec::new();
    for at in at.list_or_one() {
        if let Some((range, cleared)) = at.value(log, RANGE, value::range) {
            if cleared {
                log.notice(
                    &at,
                    format!("{} has bits behind its prefix; taken as {}", at.node.describe(), value::show(&range)),
                );
            }
            extents.push(Extent { used, path: at.to_string(), place: at.place(), range });
            all.push(range);
        }
    }
    all
}

fn subnets(extents: &mut Vec<Extent>, at: &At<'_>, key: &str, used: Use, log: &mut Log) -> Vec<IpNet> {
    let Some(at) = at.get(key) else {
        return Vec::new();
    };
    let mut all = Vec::new();
    for at in at.list_or_one() {
        if let Some(net) = subnet(&at, PREFIX, value::subnet, log) {
            extents.push(Extent { used, path: at.to_string(), place: at.place(), range: value::of_net(net) });
            all.push(net);
        }
    }
    all
}

/// A subnet, with a notice where bits behind its prefix were cleared.
pub(super) fn subnet(
    at: &At<'_>,
    right: &str,
    read: impl FnOnce(&str) -> Result<(IpNet, bool), String>,
    log: &mut Log,
) -> Option<IpNet> {
    let (net, cleared) = at.value(log, right, read)?;
    if cleared {
        log.notice(at, format!("{} has bits behind its prefix; taken as {net}", at.node.describe()));
    }
    Some(net)
}

fn tuning(tuning: &mut Tuning, root: &At<'_>, log: &mut Log) {
    if let Some(at) = root.get("timeouts") {
        timeouts(tuning, &at, log);
    }
    if let Some(at) = root.get("snatPorts")
        && let Some((first, last)) = at.value(log, PORTS, value::ports)
    {
        (tuning.snat_first, tuning.snat_last) = (first, last);
    }
    if let Some(at) = root.get("forwarding") {
        set(&mut tuning.fast_forwarding, at.value(log, "fast or kernel", is_fast));
    }
    if let Some(at) = root.get("icmpRate") {
        let right = "a number of packets a second from 0 to 1000000";
        set(&mut tuning.icmp_rate, at.value(log, right, |s| value::integer(s, 0, 1_000_000)));
    }
    if let Some(at) = root.get("capacity") {
        capacity(&mut tuning.capacity, &at, log);
    }
    if let Some(at) = root.get("log").filter(|at| at.only(log, &["tracePort"]))
        && let Some(at) = at.get("tracePort")
    {
        let right = "a port number from 0 to 65535 (0: none)";
        let port = at.value(log, right, |s| value::integer(s, 0, 65_535));
        tuning.trace_port = port.unwrap_or(0) as u16;
    }
}

fn timeouts(tuning: &mut Tuning, at: &At<'_>, log: &mut Log) {
    if !at.only(log, TIMEOUT_KEYS) {
        return;
    }
    let fields = [
        &mut tuning.tcp_established,
        &mut tuning.tcp_transitory,
        &mut tuning.tcp_closed,
        &mut tuning.udp_unanswered,
        &mut tuning.udp_answered,
        &mut tuning.sctp_established,
        &mut tuning.sctp_transitory,
        &mut tuning.fragment,
    ];
    for (key, field) in TIMEOUT_KEYS.iter().zip(fields) {
        set(field, at.get(key).and_then(|at| at.value(log, DURATION, value::seconds)));
    }
}

fn capacity(capacity: &mut Capacity, at: &At<'_>, log: &mut Log) {
    if !at.only(log, CAPACITY_KEYS) {
        return;
    }
    let right = "a number of entries from 16 to 16777216";
    let fields = [
        &mut capacity.connections,
        &mut capacity.services,
        &mut capacity.backends,
        &mut capacity.slots,
        &mut capacity.routes,
        &mut capacity.next_hops,
        &mut capacity.affinity,
        &mut capacity.fragments,
        &mut capacity.sockets,
    ];
    for (key, field) in CAPACITY_KEYS.iter().zip(fields) {
        set(field, at.get(key).and_then(|at| at.value(log, right, |s| value::integer(s, 16, 1 << 24))));
    }
    let right = "a number of addresses from 1 to 64";
    let addresses = at.get("natAddresses").and_then(|at| at.value(log, right, |s| value::integer(s, 1, 64)));
    set(&mut capacity.nat_addresses, addresses);
}

pub(super) fn set<T: Copy>(field: &mut T, value: Option<T>) {
    *field = value.unwrap_or(*field);
}
