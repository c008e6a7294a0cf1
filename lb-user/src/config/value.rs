//! Readers of single values: durations, addresses, prefixes, ranges, numbers.
//!
//! Each says what is wrong with a text, or nothing (an empty message) where it simply isn't such a
//! value; the caller adds what would be right. Not here: how values go together.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::intent::ServiceRange;

/// Ticks are 32 bits and may be as short as a millisecond: no time may be longer.
pub const MAX_SECONDS: u32 = 20 * 86_400;

/// What the readers expect, for messages.
pub const ADDRESS: &str = "an address such as 192.168.1.1 or fd00::1";
pub const PORT: &str = "a port number from 1 to 65535";
pub const PREFIX: &str = "a subnet such as 172.27.0.0/16 or fd00::/64";
pub const RANGE: &str = "a range such as 192.168.20.10-192.168.20.20, a subnet or an address";
pub const DURATION: &str = "a time from 1s to 20d, such as 30, 90s or 2h4m";
pub const ENDPOINT: &str = "an address and a port such as 203.0.113.5:8443 or [2001:db8::5]:8443";
pub const PORTS: &str = "two port numbers such as 1024-29999";

/// Seconds, or numbers with d, h, m, s.
pub fn seconds(text: &str) -> Result<u32, String> {
    let mut total = 0u64;
    let mut rest = text.trim();
    if let Ok(plain) = rest.parse::<u64>() {
        (total, rest) = (plain, "");
    } else if rest.is_empty() {
        return Err(String::new());
    }
    let mut last = u64::MAX;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let number: u64 = rest[..digits].parse().map_err(|_| String::new())?;
        let unit = match rest[digits..].chars().next() {
            Some('d') => 86_400,
            Some('h') => 3_600,
            Some('m') => 60,
            Some('s') => 1,
            _ => return Err(String::new()),
        };
        if unit >= last {
            return Err(String::new());
        }
        last = unit;
        total = total.saturating_add(number.saturating_mul(unit));
        rest = &rest[digits + 1..];
    }
    match u32::try_from(total) {
        Ok(0) => Err("is no time at all".into()),
        Ok(seconds) if seconds <= MAX_SECONDS => Ok(seconds),
        _ => Err("is too long".into()),
    }
}

/// An address that a single host can have.
pub fn address(text: &str) -> Result<IpAddr, String> {
    let addr: IpAddr = text.parse().map_err(|_| String::new())?;
    match unusable(addr) {
        Some(why) => Err(why),
        None => Ok(addr),
    }
}

/// An address that a single host can have, and a port.
pub fn endpoint(text: &str) -> Result<SocketAddr, String> {
    let Ok(endpoint) = text.parse::<SocketAddr>() else {
        return Err(if address(text).is_ok() { "has no port".into() } else { String::new() });
    };
    match unusable(endpoint.ip()) {
        Some(why) => Err(why),
        None if endpoint.port() == 0 => Err("has port 0".into()),
        None => Ok(endpoint),
    }
}

fn unusable(addr: IpAddr) -> Option<String> {
    let broadcast = matches!(addr, IpAddr::V4(v4) if v4.is_broadcast());
    if addr.is_unspecified() {
        Some("is the unspecified address".into())
    } else if addr.is_multicast() || broadcast {
        Some("is a multicast or broadcast address".into())
    } else if addr.is_loopback() {
        Some("is a loopback address".into())
    } else {
        None
    }
}

/// A subnet, and whether bits behind its prefix had to be cleared.
pub fn prefix(text: &str) -> Result<(IpNet, bool), String> {
    let Some((_, len)) = text.split_once('/') else {
        return match text.parse::<IpAddr>() {
            Ok(_) => Err("has no prefix length".into()),
            Err(_) => Err(String::new()),
        };
    };
    let net: IpNet = text.parse().map_err(|_| length_out_of_range(text, len))?;
    Ok((net.trunc(), net.trunc() != net))
}

/// A subnet that hosts can have addresses in, and whether bits behind its prefix had to be cleared.
pub fn subnet(text: &str) -> Result<(IpNet, bool), String> {
    let (net, cleared) = prefix(text)?;
    match unusable(net.network()) {
        Some(_) => Err("is of addresses that no host has".into()),
        None => Ok((net, cleared)),
    }
}

fn length_out_of_range(text: &str, len: &str) -> String {
    let addr = text.split('/').next().and_then(|a| a.parse::<IpAddr>().ok());
    match (addr, len.parse::<u32>()) {
        (Some(addr), Ok(_)) => format!("has a prefix longer than {}", if addr.is_ipv4() { 32 } else { 128 }),
        _ => String::new(),
    }
}

/// An interface's address with its prefix length.
pub fn interface_address(text: &str) -> Result<IpNet, String> {
    let (net, _) = prefix(text)?;
    let addr: IpNet = text.parse().map_err(|_| String::new())?;
    if let Some(why) = unusable(addr.addr()) {
        return Err(why);
    }
    let long = addr.max_prefix_len() - addr.prefix_len() < 2;
    if !long && (addr.addr() == net.network() || addr.addr() == net.broadcast() && addr.addr().is_ipv4()) {
        return Err("is the network's own address or its broadcast address".into());
    }
    Ok(addr)
}

/// `first-last`, a subnet, or one address; true = host bits were cleared.
pub fn range(text: &str) -> Result<(ServiceRange, bool), String> {
    let (range, cleared) = if let Some((first, last)) = text.split_once('-') {
        (ServiceRange { first: address(first.trim())?, last: address(last.trim())? }, false)
    } else if text.contains('/') {
        let (net, cleared) = subnet(text)?;
        (of_net(net), cleared)
    } else {
        let addr = address(text)?;
        (ServiceRange { first: addr, last: addr }, false)
    };
    if range.first.is_ipv4() != range.last.is_ipv4() {
        return Err("mixes IPv4 and IPv6".into());
    }
    if range.first > range.last {
        return Err(format!("is reversed (did you mean {}-{}?)", range.last, range.first));
    }
    if size(&range) > MAX_RANGE {
        return Err(format!("has more than {MAX_RANGE} addresses"));
    }
    Ok((range, cleared))
}

/// Addresses a range may have.
pub const MAX_RANGE: u128 = 1 << 20;

pub fn number(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

/// Addresses in a range, less one if that is all there are.
pub fn size(range: &ServiceRange) -> u128 {
    (number(range.last) - number(range.first)).saturating_add(1)
}

pub fn of_net(net: IpNet) -> ServiceRange {
    ServiceRange { first: net.network(), last: net.broadcast() }
}

pub fn overlap(a: &ServiceRange, b: &ServiceRange) -> bool {
    a.first.is_ipv4() == b.first.is_ipv4() && a.first <= b.last && b.first <= a.last
}

pub fn contains(range: &ServiceRange, addr: IpAddr) -> bool {
    range.first.is_ipv4() == addr.is_ipv4() && range.first <= addr && addr <= range.last
}

/// As people write it: an address, or first and last.
pub fn show(range: &ServiceRange) -> String {
    if range.first == range.last { range.first.to_string() } else { format!("{}-{}", range.first, range.last) }
}

/// `first-last` of source ports.
pub fn ports(text: &str) -> Result<(u16, u16), String> {
    let (first, last) = text.split_once('-').ok_or_else(String::new)?;
    let first: u32 = first.trim().parse().map_err(|_| String::new())?;
    let last: u32 = last.trim().parse().map_err(|_| String::new())?;
    match (u16::try_from(first), u16::try_from(last)) {
        (Ok(first), Ok(last)) if first > last => Err(format!("is reversed (did you mean {last}-{first}?)")),
        (Ok(0), Ok(_)) => Err("starts at port 0".into()),
        // Even and odd ones are told apart: there is one of each at least.
        (Ok(first), Ok(last)) if first == last => Err("is one port alone".into()),
        (Ok(first), Ok(last)) => Ok((first, last)),
        _ => Err("goes beyond port 65535".into()),
    }
}

/// A whole number within bounds.
pub fn integer(text: &str, min: u32, max: u32) -> Result<u32, String> {
    match text.parse::<i128>() {
        Ok(n) if n < min.into() => Err("is too small".into()),
        Ok(n) => u32::try_from(n).ok().filter(|n| *n <= max).ok_or_else(|| "is too large".into()),
        Err(_) => Err(String::new()),
    }
}

pub fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(String::new()),
    }
}
