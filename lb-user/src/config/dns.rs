//! The cluster's names: `cluster.dns`.
//!
//! Invariant: what is left out is taken from the rest of the configuration, so that `{}` is enough where there is
//! a subnet for services and an internal switch. Not here: records ([`crate::dns`]).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use super::at::{At, Log};
use super::value::{self, ADDRESS, DURATION, PREFIX};
use super::{Config, Error, read};
use crate::intent::{Endpoint, EndpointState, Protocol, ServicePort, Traffic};

const KEYS: &[&str] = &[
    "domain",
    "address",
    "nodeAddresses",
    "ttl",
    "pods",
    "externalZone",
    "upstreams",
    "forwards",
    "hosts",
    "cacheEntries",
    "serveStale",
    "allowFrom",
    "allowTransfer",
    "rateLimit",
];
const DOMAIN: &str = "a domain such as cluster.local";
const SERVER: &str = "a name server such as 10.0.0.53, 10.0.0.53:5353 or [fd00::53]:53";

/// Names are asked for here.
pub const PORT: u16 = 53;
/// Where the agent listens at an address of the internal switch that isn't to be asked by itself.
const INNER_PORT: u16 = 10_053;

/// What the configuration says of names.
#[derive(Clone, Debug, PartialEq)]
pub struct Dns {
    /// Lower case, without a dot at its end; so are all domains here.
    pub domain: String,
    /// Where the cluster asks, as a service.
    pub addresses: Vec<IpAddr>,
    /// Of this node, where one may ask, too.
    pub node_addresses: Vec<IpAddr>,
    /// Where the service leads: here the agent listens. One a family.
    pub inner: Vec<SocketAddr>,
    pub ttl: u32,
    pub pods: Pods,
    /// Load balancers' names for the world outside are below it.
    pub external_zone: Option<String>,
    /// None: those of the node.
    pub upstreams: Vec<SocketAddr>,
    pub forwards: Vec<(String, Vec<SocketAddr>)>,
    pub hosts: Vec<(String, Vec<IpAddr>)>,
    pub cache_entries: usize,
    /// How long an answer is good in need after its time.
    pub serve_stale: Option<Duration>,
    pub allow_from: Vec<IpNet>,
    pub allow_transfer: Vec<IpNet>,
    /// Queries a second and client; 0: any.
    pub rate_limit: u32,
    /// Subnets whose addresses have names of the cluster or none.
    pub own: Vec<IpNet>,
}

/// Whether pods have names of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pods {
    #[default]
    Disabled,
    /// Whatever address the name spells, in a namespace that is there.
    Insecure,
    /// Addresses of pods alone.
    Verified,
}

impl Default for Dns {
    fn default() -> Self {
        Dns {
            domain: "cluster.local".into(),
            addresses: Vec::new(),
            node_addresses: Vec::new(),
            inner: Vec::new(),
            ttl: 5,
            pods: Pods::default(),
            external_zone: None,
            upstreams: Vec::new(),
            forwards: Vec::new(),
            hosts: Vec::new(),
            cache_entries: 10_000,
            serve_stale: None,
            allow_from: Vec::new(),
            allow_transfer: Vec::new(),
            rate_limit: 2_000,
            own: Vec::new(),
        }
    }
}

impl Dns {
    /// Everywhere that the agent listens.
    pub fn listens(&self) -> BTreeSet<SocketAddr> {
        let named = self.node_addresses.iter().map(|addr| SocketAddr::new(*addr, PORT));
        self.inner.iter().copied().chain(named).collect()
    }

    /// The service through which the cluster asks.
    pub fn services(&self) -> Vec<ServicePort> {
        let one = |(protocol, port_name): (Protocol, &str)| ServicePort {
            namespace: "kube-system".into(),
            name: "stellwerk-dns".into(),
            port_name: port_name.into(),
            protocol,
            port: PORT,
            node_port: None,
            addresses: self.addresses.clone(),
            affinity: None,
            traffic: Traffic::default(),
            endpoints: self.inner.iter().map(|at| endpoint(*at)).collect(),
        };
        [(Protocol::Udp, "dns"), (Protocol::Tcp, "dns-tcp")].map(one).to_vec()
    }
}

fn endpoint(at: SocketAddr) -> Endpoint {
    Endpoint { addr: at.ip(), port: at.port(), weight: 1, node: None, state: EndpointState::Ready }
}

pub(super) fn dns(config: &mut Config, at: &At<'_>, log: &mut Log) -> Option<Dns> {
    config.places.note(at);
    if !at.only(log, KEYS) {
        return None;
    }
    let mut dns = Dns::default();
    if let Some(domain) = domain_at(at, "domain", log) {
        dns.domain = domain;
    }
    dns.addresses = read::addresses(&mut config.places, at, "address", log);
    dns.node_addresses = read::addresses(&mut config.places, at, "nodeAddresses", log);
    let number = |key: &str, right: &str, max: u32, log: &mut Log| {
        at.get(key).and_then(|at| at.value(log, right, |s| value::integer(s, 0, max)))
    };
    read::set(&mut dns.ttl, number("ttl", "a number of seconds from 0 to 3600", 3_600, log));
    read::set(&mut dns.rate_limit, number("rateLimit", "queries a second from 0 to 1000000", 1_000_000, log));
    if let Some(n) = number("cacheEntries", "a number of answers from 0 to 1000000", 1_000_000, log) {
        dns.cache_entries = n as usize;
    }
    read::set(&mut dns.pods, at.get("pods").and_then(|at| at.value(log, "disabled, insecure or verified", pods)));
    dns.external_zone = domain_at(at, "externalZone", log);
    if let Some(at) = at.get("upstreams") {
        dns.upstreams = servers(&at, log);
    }
    if let Some(at) = at.get("forwards") {
        dns.forwards = by_domain(&at, "a map such as { example.corp: 10.0.0.53 }", servers, log);
    }
    if let Some(at) = at.get("hosts") {
        dns.hosts = by_domain(&at, "a map such as { registry.local: 10.0.0.5 }", hosts, log);
    }
    if let Some(at) = at.get("serveStale") {
        dns.serve_stale = at.value(log, DURATION, value::seconds).map(|s| Duration::from_secs(s.into()));
    }
    dns.allow_from = nets(at, "allowFrom", log);
    dns.allow_transfer = nets(at, "allowTransfer", log);
    Some(dns)
}

fn pods(text: &str) -> Result<Pods, String> {
    match text {
        "disabled" => Ok(Pods::Disabled),
        "insecure" => Ok(Pods::Insecure),
        "verified" => Ok(Pods::Verified),
        _ => Err(String::new()),
    }
}

/// Labels of at most 63 characters, as hosts have them, or with underscores.
fn domain(text: &str) -> Result<String, String> {
    let text = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let fits = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if text.len() <= 200 && text.split('.').all(fits) { Ok(text) } else { Err(String::new()) }
}

fn domain_at(at: &At<'_>, key: &str, log: &mut Log) -> Option<String> {
    at.get(key)?.value(log, DOMAIN, domain)
}

/// An address of a name server, which may be this node's own loopback.
fn server(text: &str) -> Result<SocketAddr, String> {
    let at = text.parse::<SocketAddr>().or_else(|_| text.parse().map(|addr| SocketAddr::new(addr, PORT)));
    let at = at.map_err(|_| String::new())?;
    if at.ip().is_unspecified() || at.ip().is_multicast() || at.port() == 0 { Err(String::new()) } else { Ok(at) }
}

fn servers(at: &At<'_>, log: &mut Log) -> Vec<SocketAddr> {
    let list = at.list_or_one();
    if list.is_empty() {
        log.error(at, format!("is empty; expected {SERVER}"));
    }
    list.iter().filter_map(|at| at.value(log, SERVER, server)).collect()
}

fn hosts(at: &At<'_>, log: &mut Log) -> Vec<IpAddr> {
    at.list_or_one().iter().filter_map(|at| at.value(log, ADDRESS, value::address)).collect()
}

fn by_domain<T>(
    at: &At<'_>,
    right: &str,
    read: impl Fn(&At<'_>, &mut Log) -> Vec<T>,
    log: &mut Log,
) -> Vec<(String, Vec<T>)> {
    let mut all: Vec<(String, Vec<T>)> = Vec::new();
    for (key, at) in at.entries(log, right) {
        match domain(key.text().unwrap_or_default()) {
            Ok(name) if all.iter().any(|(other, _)| *other == name) => {
                log.error(&at, format!("{} is given twice; expected each domain once", key.describe()));
            }
            Ok(name) => all.push((name, read(&at, log))),
            Err(_) => log.error(&at, format!("{} is not {DOMAIN}", key.describe())),
        }
    }
    all
}

fn nets(at: &At<'_>, key: &str, log: &mut Log) -> Vec<IpNet> {
    let Some(at) = at.get(key) else { return Vec::new() };
    let read = |text: &str| match text.parse::<IpAddr>() {
        Ok(addr) => Ok((IpNet::from(addr), false)),
        Err(_) => value::prefix(text),
    };
    at.list_or_one().iter().filter_map(|at| read::subnet(at, PREFIX, read, log)).collect()
}

/// Takes from the rest what was left out, once all is read.
pub(super) fn settle(config: &mut Config, log: &mut Log) {
    let Some(mut dns) = config.dns.take() else { return };
    if config.places.members.contains_key("cluster.dns.address") {
        given(config, &mut dns, log);
    } else {
        for addr in config.service_subnets.iter().filter_map(tenth) {
            // A family in which this node has no address to listen at goes without.
            let first = dns.addresses.iter().all(|other| other.is_ipv4() != addr.is_ipv4());
            if let Some(inner) = inner(config, &dns, addr).filter(|_| first) {
                dns.addresses.push(addr);
                dns.inner.push(inner);
            }
        }
        if dns.addresses.is_empty() {
            let message = "has nowhere to be asked; expected a cluster.serviceSubnet, whose tenth address it gets, or \
                           `address`, and of its family an internalSwitch.address or one of `nodeAddresses`";
            log.errors.push(config.error_at("cluster.dns", message));
        }
    }
    if let Some(zone) = &dns.external_zone
        && (is_below(zone, &dns.domain) || is_below(&dns.domain, zone))
    {
        let message =
            format!("externalZone `{zone}` and the domain `{}` are one in the other; expected two apart", dns.domain);
        log.errors.push(config.error_at("cluster.dns", message));
    }
    dns.own = config.service_subnets.iter().chain(&config.pod_subnets).copied().collect();
    if dns.allow_from.is_empty() {
        dns.allow_from = inside(config);
    }
    config.dns = Some(dns);
}

/// Addresses that are given by name: each leads somewhere.
fn given(config: &Config, dns: &mut Dns, log: &mut Log) {
    for (i, addr) in dns.addresses.iter().enumerate() {
        let path = config.member("cluster.dns.address", i);
        let family = super::check::family(*addr);
        let mut error = |message: String| log.errors.push(config.error_at(&path, message));
        if dns.addresses[..i].iter().any(|other| other.is_ipv4() == addr.is_ipv4()) {
            error(format!("`{addr}` is a second {family} address; expected one a family"));
        }
        if dns.node_addresses.contains(addr) {
            error(format!("`{addr}` is among nodeAddresses, too; expected an address of its own"));
        }
        match inner(config, dns, *addr) {
            Some(at) => dns.inner.push(at),
            None => error(format!(
                "`{addr}` leads nowhere, since this node has no {family} address to listen at; expected an \
                 internalSwitch.address or one of cluster.dns.nodeAddresses of that family"
            )),
        }
    }
}

/// Where the agent listens for what goes to an address.
fn inner(config: &Config, dns: &Dns, addr: IpAddr) -> Option<SocketAddr> {
    let node = dns.node_addresses.iter().map(|addr| SocketAddr::new(*addr, PORT));
    let switch = config.internal_switch.iter().flat_map(|switch| &switch.addresses).map(IpNet::addr);
    let switch = switch.map(|addr| SocketAddr::new(addr, INNER_PORT));
    node.chain(switch).find(|at| at.is_ipv4() == addr.is_ipv4())
}

fn tenth(net: &IpNet) -> Option<IpAddr> {
    let addr = match net.network() {
        IpAddr::V4(first) => IpAddr::from(std::net::Ipv4Addr::from_bits(first.to_bits() | 10)),
        IpAddr::V6(first) => IpAddr::from(std::net::Ipv6Addr::from_bits(first.to_bits() | 10)),
    };
    net.contains(&addr).then_some(addr)
}

fn is_below(name: &str, domain: &str) -> bool {
    name.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// The networks inside: the switch's, pods', what is translated beside them, and nodes.
fn inside(config: &Config) -> Vec<IpNet> {
    let switch = config.internal_switch.iter().flat_map(|switch| &switch.addresses).map(IpNet::trunc);
    let mut all: Vec<IpNet> = switch.chain(config.pod_subnets.iter().copied()).collect();
    all.extend(&config.nat.subnets);
    for range in &config.node_ranges {
        match (range.first, range.last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                all.extend(ipnet::Ipv4Subnets::new(first, last, 0).map(IpNet::from));
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => {
                all.extend(ipnet::Ipv6Subnets::new(first, last, 0).map(IpNet::from));
            }
            _ => {}
        }
    }
    all
}

impl Config {
    /// The service of the cluster's DNS, where no service of the cluster has its place.
    pub(super) fn dns_services(&self, services: &[ServicePort]) -> Vec<ServicePort> {
        let Some(dns) = &self.dns else { return Vec::new() };
        let free = |mine: &ServicePort| {
            let there = |other: &ServicePort| {
                (other.port, other.protocol) == (mine.port, mine.protocol)
                    && other.addresses.iter().any(|addr| mine.addresses.contains(addr))
            };
            !services.iter().any(there)
        };
        dns.services().into_iter().filter(free).collect()
    }

    /// Notices of services of the cluster that have the place of its DNS.
    pub fn dns_notices(&self, services: &[ServicePort]) -> Vec<Error> {
        let Some(dns) = &self.dns else { return Vec::new() };
        let has = |s: &&ServicePort| {
            s.port == PORT
                && s.name != "stellwerk-dns"
                && matches!(s.protocol, Protocol::Udp | Protocol::Tcp)
                && s.addresses.iter().any(|addr| dns.addresses.contains(addr))
        };
        let names: BTreeSet<String> =
            services.iter().filter(has).map(|s| format!("{}/{}", s.namespace, s.name)).collect();
        let all: Vec<String> = dns.addresses.iter().map(ToString::to_string).collect();
        let message = |name: String| {
            format!(
                "the Service {name} has the address {}: it holds, and stellwerk's DNS is not asked there",
                all.join(", ")
            )
        };
        names.into_iter().map(|name| self.error_at("cluster.dns", message(name))).collect()
    }
}
