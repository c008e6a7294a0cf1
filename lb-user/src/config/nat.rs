//! The keys of the internal switch, and of how its hosts are translated.
//!
//! Invariant: a family's keys say something only where that family is translated so; what has no effect is
//! told. Not here: what goes with which port and gateway ([`super::check`]).

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::{IpNet, Ipv6Net};
use lb_common::table::nat::POOL;

use super::at::{At, Log};
use super::check::{Extent, Use, family};
use super::read::{interface, set, subnet};
use super::value::{self, PREFIX};
use super::{Config, Places};
use crate::intent::{Filtering, InternalSwitch, Nat, Port, PrefixPair, Translation};

const KEYS: &[&str] =
    &["interface", "address", "natSubnets", "nonMasquerade", "ipv4", "ipv6", "prefixes", "quota", "filtering", "log"];
const PAIR_KEYS: &[&str] = &["inside", "outside"];

const NAT_SUBNET: &str = "a subnet such as 172.27.0.0/16 or fd00::/64, of /8 (IPv4) or /48 (IPv6) at the most";
const EXCHANGED: &str = "an IPv6 prefix such as fd00:20::/64, from /48 to /64";
/// As many as the kernel's table has room for.
const MAX_PREFIXES: usize = 16;
/// The ports of TCP, UDP and ICMP.
const MAX_QUOTA: u32 = 3 * 65_535;

pub(super) fn internal_switch(
    nat: &mut Nat,
    places: &mut Places,
    at: &At<'_>,
    log: &mut Log,
) -> Option<InternalSwitch> {
    if !at.only(log, KEYS) {
        return None;
    }
    let interface = interface(places, at, log);
    let addresses = addresses(places, at, log);
    if let Some(at) = at.get("ipv4") {
        set(&mut nat.ipv4, at.value(log, "masquerade or off", |text| translation(text, false)));
    }
    let ipv6 = at.get("ipv6");
    if let Some(at) = &ipv6 {
        set(&mut nat.ipv6, at.value(log, "off, masquerade or prefix", |text| translation(text, true)));
    }
    nat.subnets = nat_subnets(nat, places, at, log);
    if let Some(at) = at.get("nonMasquerade") {
        let list = at.list_or_one();
        nat.direct = list.iter().filter_map(|at| direct(nat, at, log)).collect();
    }
    prefixes(nat, ipv6.as_ref(), places, at, log);
    if let Some(at) = at.get("quota") {
        let right = format!("a number of ports from 1 to {MAX_QUOTA}");
        set(&mut nat.quota, at.value(log, &right, |text| value::integer(text, 1, MAX_QUOTA)));
    }
    if let Some(at) = at.get("filtering") {
        set(&mut nat.filtering, at.value(log, "address, port or none", filtering));
    }
    if let Some(at) = at.get("log") {
        places.note(&at);
        nat.log = at.string(log, "a file to write to").map(PathBuf::from);
    }
    if nat.ipv4 != Translation::Masquerade && nat.ipv6 != Translation::Masquerade {
        for at in ["quota", "filtering", "log"].into_iter().filter_map(|key| at.get(key)) {
            log.notice(&at, "has no effect, since neither internalSwitch.ipv4 nor internalSwitch.ipv6 is masquerade");
        }
    }
    Some(InternalSwitch { interface: interface?, addresses })
}

fn addresses(places: &mut Places, at: &At<'_>, log: &mut Log) -> Vec<IpNet> {
    let right = "the switch's own address with its prefix length, such as 10.20.0.1/24";
    let Some(list) = at.get("address") else {
        return Vec::new();
    };
    let mut all = Vec::new();
    for at in list.list_or_one() {
        if let Some(net) = at.value(log, right, value::interface_address) {
            let range = value::of_net(net.trunc());
            places.note_member(&list, &at);
            places.extents.push(Extent { used: Use::Switch, path: at.to_string(), place: at.place(), range });
            all.push(net);
        }
    }
    all
}

fn translation(text: &str, v6: bool) -> Result<Translation, String> {
    match text {
        "off" => Ok(Translation::Off),
        "masquerade" => Ok(Translation::Masquerade),
        "prefix" if v6 => Ok(Translation::Prefix),
        _ => Err(String::new()),
    }
}

fn filtering(text: &str) -> Result<Filtering, String> {
    match text {
        "address" => Ok(Filtering::Address),
        "none" => Ok(Filtering::None),
        "port" => Ok(Filtering::Port),
        _ => Err(String::new()),
    }
}

/// Whether the filter has room for each of its /24s or /64s.
pub(super) fn fits(net: IpNet) -> bool {
    net.prefix_len() >= if net.addr().is_ipv4() { 8 } else { 48 }
}

fn direct(nat: &Nat, at: &At<'_>, log: &mut Log) -> Option<IpNet> {
    let net = subnet(at, PREFIX, value::subnet, log)?;
    let v4 = net.addr().is_ipv4();
    if nat.of(v4) == Translation::Off {
        log.notice(at, format!("`{net}` has no effect, since internalSwitch.{} is off", key(v4)));
    }
    Some(net)
}

/// The key that says how a family is translated.
fn key(v4: bool) -> &'static str {
    if v4 { "ipv4" } else { "ipv6" }
}

fn nat_subnets(nat: &Nat, places: &mut Places, at: &At<'_>, log: &mut Log) -> Vec<IpNet> {
    let Some(at) = at.get("natSubnets") else {
        return Vec::new();
    };
    let read = |text: &str| {
        let (net, cleared) = value::subnet(text)?;
        if fits(net) { Ok((net, cleared)) } else { Err("is too large".into()) }
    };
    let mut all = Vec::new();
    for at in at.list_or_one() {
        let Some(net) = subnet(&at, NAT_SUBNET, read, log) else {
            continue;
        };
        let v4 = net.addr().is_ipv4();
        if nat.of(v4) != Translation::Masquerade {
            log.notice(&at, format!("`{net}` is not translated, since internalSwitch.{} is not masquerade", key(v4)));
        }
        let range = value::of_net(net);
        places.extents.push(Extent { used: Use::Nat, path: at.to_string(), place: at.place(), range });
        all.push(net);
    }
    all
}

fn prefixes(nat: &mut Nat, ipv6: Option<&At<'_>>, places: &mut Places, at: &At<'_>, log: &mut Log) {
    let Some(at) = at.get("prefixes") else {
        if let Some(ipv6) = ipv6.filter(|_| nat.ipv6 == Translation::Prefix) {
            log.error(ipv6, "`prefix` says nothing without internalSwitch.prefixes; expected these beside it");
        }
        return;
    };
    if nat.ipv6 != Translation::Prefix {
        log.error(&at, "has no effect without internalSwitch.ipv6: prefix; expected that beside it");
    }
    let list = at.list_or_one();
    if list.is_empty() || list.len() > MAX_PREFIXES {
        log.error(&at, format!("has {} members; expected 1 to {MAX_PREFIXES}", list.len()));
    }
    nat.prefixes = list.iter().filter_map(|at| pair(places, at, log)).collect();
}

fn pair(places: &mut Places, at: &At<'_>, log: &mut Log) -> Option<PrefixPair> {
    if !at.only(log, PAIR_KEYS) {
        return None;
    }
    let inside = exchanged(places, at, "inside", Use::PrefixInside, log);
    let outside = exchanged(places, at, "outside", Use::PrefixOutside, log);
    let (inside, outside) = (inside?, outside?);
    if inside.prefix_len() != outside.prefix_len() {
        log.error(at, format!("`{inside}` and `{outside}` are of two lengths; expected one"));
        return None;
    }
    Some(PrefixPair { inside, outside })
}

fn exchanged(places: &mut Places, at: &At<'_>, key: &str, used: Use, log: &mut Log) -> Option<Ipv6Net> {
    let at = at.require(log, key, EXCHANGED)?;
    let read = |text: &str| match value::subnet(text)? {
        (IpNet::V4(_), _) => Err("is IPv4".into()),
        (net, _) if is_link_local(net.addr()) => Err("is link-local".into()),
        (net, _) if net.prefix_len() < 48 => Err("is too large".into()),
        (net, _) if net.prefix_len() > 64 => Err("is too small".into()),
        all => Ok(all),
    };
    let IpNet::V6(net) = subnet(&at, EXCHANGED, read, log)? else {
        return None;
    };
    let range = value::of_net(net.into());
    places.extents.push(Extent { used, path: at.to_string(), place: at.place(), range });
    Some(net)
}

fn is_link_local(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(addr) if addr.is_unicast_link_local())
}

/// Rules between a translation and the ports and addresses that it goes with.
pub(super) fn whole(config: &Config, log: &mut Log) {
    for (i, net) in config.internal_switch.iter().flat_map(|switch| &switch.addresses).enumerate() {
        if config.nat.of(net.addr().is_ipv4()) == Translation::Masquerade && !fits(net.trunc()) {
            let message = format!("`{net}` is too large to be translated; expected {NAT_SUBNET}");
            log.errors.push(config.error_at(&config.member("internalSwitch.address", i), message));
        }
    }
    for port in &config.ports {
        nat_addresses(config, port, log);
    }
    for v4 in [true, false] {
        let wished = outside(config, v4);
        let room = config.tuning.capacity.nat_addresses as usize;
        let switch = config.nat.of(v4) == Translation::Masquerade && config.internal_switch.is_some();
        if (switch || config.nat.pods == Some(true)) && wished > room {
            let given = "capacity.natAddresses";
            let path = if config.places.by_path.contains_key(given) { given } else { "ports" };
            let family = if v4 { "IPv4" } else { "IPv6" };
            let message = format!(
                "the ports with a gateway have {wished} {family} addresses for translated packets, but {given} is {room}; expected {wished} there"
            );
            log.errors.push(config.error_at(path, message));
        }
    }
}

/// How many addresses of a family the ports that lead out have for translated packets.
fn outside(config: &Config, v4: bool) -> usize {
    let named = |port: &Port| port.nat_addresses.iter().filter(|addr| addr.is_ipv4() == v4).count();
    config.ports.iter().filter(|port| port.leads_out(v4)).map(|port| named(port).max(1)).sum()
}

fn nat_addresses(config: &Config, port: &Port, log: &mut Log) {
    let list = format!("ports.{}.natAddresses", port.name);
    for (i, addr) in port.nat_addresses.iter().enumerate() {
        let (before, path) = (&port.nat_addresses[..i], config.member(&list, i));
        let family = family(*addr);
        let message = if before.contains(addr) {
            format!("`{addr}` stands there twice; expected each address once")
        } else if !port.leads_out(addr.is_ipv4()) {
            format!("`{addr}` is {family}, but the port has no gateway of that family; expected one beside it")
        } else if before.iter().filter(|a| a.is_ipv4() == addr.is_ipv4()).count() >= POOL {
            format!("`{addr}` is one too many; expected at most {POOL} addresses of {family}")
        } else {
            continue;
        };
        log.errors.push(config.error_at(&path, message));
    }
}
