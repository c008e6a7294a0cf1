//! What a load balancer asks of us: addresses, a pool, and with whom it shares; and how any service has its endpoints
//! probed.
//!
//! Invariant: our own annotations and MetalLB's (`metallb.io/…`, and the older `metallb.universe.tf/…`) mean the
//! same, and where two are there they say the same. Not here: what it gets ([`super::allocate`]).

use std::net::IpAddr;
use std::sync::Arc;

use super::document::{Balancer, ServicePort, Wish, labels, strings};
use crate::address::Terms;
use crate::config::{self, At, Log};
use crate::health::check::{self, Check};

/// The class of load balancers that are ours.
const CLASS: &str = "stellwerk.io/stellwerk";
const PREFIXES: [&str; 3] = ["stellwerk.io", "metallb.io", "metallb.universe.tf"];
const ADDRESSES: &str = "one address of each family, such as 192.168.20.100 or 192.168.20.100,fd00:20::100";

/// None for load balancers of another class. `status` are the addresses in its status, and whether there are such of a
/// proxy.
pub(super) fn balancer(
    at: &At<'_>,
    spec: &At<'_>,
    families: &[bool],
    ports: &[ServicePort],
    (status, proxied): (&[IpAddr], bool),
    log: &mut Log,
) -> Option<Balancer> {
    let class = spec.get("loadBalancerClass").and_then(|at| at.string(log, "a class of load balancers"));
    if class.as_ref().is_some_and(|class| class != CLASS) {
        return None;
    }
    let wish = match addresses(at, spec, families, log) {
        Some(asked) => Wish::These(asked),
        None => Wish::Any(families.to_vec()),
    };
    let text = |text: &str| Ok(text.to_owned());
    let local = spec.get("externalTrafficPolicy").is_some_and(|at| at.node.text() == Some("Local"));
    let selector = || spec.get("selector").map(|at| strings(&at, log)).unwrap_or_default();
    let pods = local.then(selector);
    let terms = Terms {
        key: annotation(at, &PREFIXES, "allow-shared-ip", "a key that services share an address by", log, text),
        pods,
        ports: ports.iter().map(|p| format!("{}/{}", p.port, p.protocol.name())).collect(),
    };
    let pool = annotation(at, &PREFIXES, "address-pool", "a pool's name", log, text);
    let (classless, labels) = (class.is_none(), labels(at, log));
    Some(Balancer { classless, wish, status: status.to_vec(), proxied, pool, terms, labels })
}

/// Addresses of a pod that asks for certain ones.
pub(super) fn fixed(at: &At<'_>, log: &mut Log) -> Vec<IpAddr> {
    let right = "one address of each family, such as 172.27.1.20 or 172.27.1.20,fd00:27:1::14";
    annotation(at, &PREFIXES[..1], "ip-addresses", right, log, one_a_family).unwrap_or_default()
}

fn one_a_family(text: &str) -> Result<Vec<IpAddr>, String> {
    let mut all: Vec<IpAddr> = Vec::new();
    for part in text.split(',').map(str::trim) {
        let addr = config::address(part).map_err(|why| format!("names `{part}`, which {}", or(why)))?;
        let family = if addr.is_ipv4() { "IPv4" } else { "IPv6" };
        if all.iter().any(|other| other.is_ipv4() == addr.is_ipv4()) {
            return Err(format!("names two {family} addresses"));
        }
        all.push(addr);
    }
    Ok(all)
}

/// loadBalancerIP, or the annotation in its place.
fn addresses(at: &At<'_>, spec: &At<'_>, families: &[bool], log: &mut Log) -> Option<Vec<IpAddr>> {
    let read = |text: &str| {
        let all = one_a_family(text)?;
        let missing = |addr: &&IpAddr| !families.is_empty() && !families.contains(&addr.is_ipv4());
        match all.iter().find(missing) {
            Some(addr) if addr.is_ipv4() => Err(format!("names {addr}, but the service has no IPv4")),
            Some(addr) => Err(format!("names {addr}, but the service has no IPv6")),
            None => Ok(all),
        }
    };
    let asked = spec.get("loadBalancerIP").filter(|at| at.node.text() != Some(""));
    let named = annotation(at, &PREFIXES, "loadBalancerIPs", ADDRESSES, log, read);
    let Some(at) = asked else { return named };
    let one = at.value(log, config::ADDRESS, |text| {
        config::address(text)?;
        read(text)
    })?;
    if named.as_ref().is_some_and(|named| *named != one) {
        log.error(&at, format!("{} is not what an annotation asks for; expected one of them", at.node.describe()));
    }
    Some(one)
}

fn or(why: String) -> String {
    if why.is_empty() { "is no address".into() } else { why }
}

/// How its endpoints are to be probed, if it says so; Some(None): not at all.
pub(super) fn health(at: &At<'_>, log: &mut Log) -> Option<Option<Arc<Check>>> {
    annotation(at, &PREFIXES[..1], "health-check", check::RIGHT, log, Check::parse).map(|check| check.map(Arc::new))
}

/// Whether nodes send what asks it to each other as it came, and answer clients directly.
pub(super) fn is_direct(at: &At<'_>, log: &mut Log) -> bool {
    let read = |text: &str| match text {
        "dsr" => Ok(true),
        "snat" => Ok(false),
        _ => Err(String::new()),
    };
    annotation(at, &PREFIXES[..1], "forwarding-mode", "snat or dsr", log, read).unwrap_or(false)
}

/// The value of an annotation, by whichever of its names.
fn annotation<T: PartialEq>(
    at: &At<'_>,
    prefixes: &[&str],
    name: &str,
    right: &str,
    log: &mut Log,
    read: impl Fn(&str) -> Result<T, String>,
) -> Option<T> {
    let metadata = at.get("metadata")?;
    let annotations = metadata.get("annotations")?;
    let mut found: Option<(String, T)> = None;
    for prefix in prefixes {
        let key = format!("{prefix}/{name}");
        let Some(at) = annotations.get(&key).filter(|at| at.node.text() != Some("")) else { continue };
        let Some(value) = at.value(log, right, &read) else { continue };
        match &found {
            None => found = Some((key.clone(), value)),
            Some((first, other)) if *other != value => {
                log.error(&at, format!("{} is not what {first} says; expected one of them", at.node.describe()));
            }
            Some(_) => {}
        }
    }
    found.map(|(_, value)| value)
}
