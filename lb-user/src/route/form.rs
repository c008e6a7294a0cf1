//! What a route may be by itself, whatever the ports and the kernel are.
//!
//! Invariant: a message names the value and what would be right; whoever asks adds the place (an
//! option, or a file's line). Not here: what goes with a port ([`super::check`]).

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Kind, MAX_WEIGHT, METRIC, StaticRoute};
use crate::config::{address, integer, prefix};

pub const DESTINATION: &str = "a prefix or an address such as 192.168.21.0/24, 192.168.21.7 or fd00:21::/64";
pub const NEXT_HOP: &str = "a router's address in the port's network, such as 192.168.20.1 or fd00:20::1";
pub const METRICS: &str = "a number from 1 to 4294967295 (the lower wins)";
pub const WEIGHTS: &str = "a number from 1 to 256";
pub const KINDS: &str = "blackhole, unreachable or prohibit";

/// A prefix, or an address, which is one of full length.
pub fn destination(text: &str, mask: bool) -> Result<IpNet, String> {
    if let Ok(addr) = text.parse::<IpAddr>() {
        return sendable(text, addr.into());
    }
    let (net, cleared) = prefix(text).map_err(|why| wrong(text, &why, DESTINATION))?;
    if cleared && !mask {
        return Err(format!("`{text}` has bits behind its prefix; expected {net}"));
    }
    sendable(text, net)
}

/// Whether packets to there are a matter of routes.
fn sendable(text: &str, net: IpNet) -> Result<IpNet, String> {
    let first = net.network();
    let link_local = matches!(first, IpAddr::V6(addr) if addr.is_unicast_link_local());
    if first.is_multicast() || first.is_loopback() || link_local || text == "255.255.255.255" {
        return Err(format!("`{text}` is of addresses that are not routed; expected {DESTINATION}"));
    }
    Ok(net)
}

pub fn next_hop(text: &str) -> Result<IpAddr, String> {
    address(text).map_err(|why| wrong(text, &why, NEXT_HOP))
}

pub fn metric(text: &str) -> Result<u32, String> {
    integer(text, 1, u32::MAX).map_err(|why| wrong(text, &why, METRICS))
}

pub fn weight(text: &str) -> Result<u32, String> {
    integer(text, 1, MAX_WEIGHT).map_err(|why| wrong(text, &why, WEIGHTS))
}

pub fn kind(text: &str) -> Result<Kind, String> {
    match text {
        "blackhole" => Ok(Kind::Blackhole),
        "unreachable" => Ok(Kind::Unreachable),
        "prohibit" => Ok(Kind::Prohibit),
        _ => Err(wrong(text, "", KINDS)),
    }
}

fn wrong(text: &str, why: &str, right: &str) -> String {
    if why.is_empty() { format!("`{text}` is not {right}") } else { format!("`{text}` {why}; expected {right}") }
}

/// Whether the parts go together.
pub fn whole(route: &StaticRoute) -> Result<(), String> {
    let kind = route.kind.name();
    match (route.kind, route.next_hop) {
        (Kind::Throw, _) => Err(format!("`{kind}` is not {KINDS}")),
        (Kind::Unicast, None) => Err(format!("the next hop is missing; expected {NEXT_HOP}, or the type {KINDS}")),
        (Kind::Unicast, Some(next_hop)) if next_hop.is_ipv4() != route.destination.addr().is_ipv4() => Err(format!(
            "the destination {} is {}, but the next hop {next_hop} is {}; expected both of one family",
            route.destination,
            family(route.destination.addr()),
            family(next_hop)
        )),
        (Kind::Unicast, Some(_)) => Ok(()),
        (_, Some(next_hop)) => {
            Err(format!("a route of the type {kind} leads to no next hop; expected it without {next_hop}"))
        }
        (_, None) if route.weight != 1 => {
            Err(format!("a route of the type {kind} has no weight; expected it without {}", route.weight))
        }
        (_, None) => Ok(()),
    }
}

pub fn family(addr: IpAddr) -> &'static str {
    if addr.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// A route in the words of a command line.
#[derive(Clone, Copy, Debug, Default)]
pub struct Words<'w> {
    pub interface: &'w str,
    pub destination: &'w str,
    pub next_hop: Option<&'w str>,
    pub metric: Option<&'w str>,
    pub weight: Option<&'w str>,
    pub kind: Option<&'w str>,
    /// Clears bits behind the prefix.
    pub mask: bool,
}

impl Words<'_> {
    /// The destination of an option `--destination`.
    pub fn destination(&self) -> Result<IpNet, String> {
        destination(self.destination, self.mask).map_err(|why| {
            let hint = if why.contains("bits behind") { ", or --force-mask to take it so" } else { "" };
            format!("--destination: {why}{hint}")
        })
    }

    pub fn route(&self) -> Result<StaticRoute, String> {
        fn said<T>(
            option: &str,
            text: Option<&str>,
            read: impl Fn(&str) -> Result<T, String>,
        ) -> Result<Option<T>, String> {
            text.map(|text| read(text).map_err(|why| format!("{option}: {why}"))).transpose()
        }
        let route = StaticRoute {
            interface: self.interface.to_owned(),
            destination: self.destination()?,
            next_hop: said("--next-hop", self.next_hop, next_hop)?,
            metric: said("--metric", self.metric, metric)?.unwrap_or(METRIC),
            weight: said("--weight", self.weight, weight)?.unwrap_or(1),
            kind: said("--type", self.kind, kind)?.unwrap_or_default(),
        };
        whole(&route)?;
        Ok(route)
    }
}
