//! Routes that the operator sets: by command, kept in a file of their own, and in the configuration.
//!
//! Invariant: what a route may be ([`form`], [`check`]) and which of them the kernel shall have
//! ([`decide`], [`reply`]) are pure functions of the wish and the kernel's facts. Only live
//! candidates are in the kernel, so that `ip route` tells the truth and whoever mirrors the kernel
//! agrees with it. Not here: the doing (`agent/routes.rs`).

pub mod check;
pub mod command;
pub mod decide;
pub mod form;
pub mod reply;
pub mod store;

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The protocol number (`rtm_protocol`, `FRA_PROTOCOL`) of all that is ours in the kernel's routing.
/// It is in no registry; `ip route` prints it as `proto 83`.
pub const PROTOCOL: u8 = 0x53;
/// Of a route that names none. Behind connected subnets (0), before what DHCP clients and IPv6 (1024) give.
pub const METRIC: u32 = 100;
/// As many as one byte of the kernel's next hops has room for.
pub const MAX_WEIGHT: u32 = 256;
/// The kernel's main table.
pub const MAIN: u32 = 254;

/// What a route does with its packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    #[default]
    Unicast,
    /// Dropped in silence.
    Blackhole,
    /// Answered by ICMP: host unreachable.
    Unreachable,
    /// Answered by ICMP: administratively prohibited.
    Prohibit,
    /// Looks in the next table. Never an operator's.
    Throw,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Unicast => "unicast",
            Kind::Blackhole => "blackhole",
            Kind::Unreachable => "unreachable",
            Kind::Prohibit => "prohibit",
            Kind::Throw => "throw",
        }
    }
}

/// A route as the operator says it. Its identity is the port and the destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StaticRoute {
    /// The port's name.
    pub interface: String,
    pub destination: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_hop: Option<IpAddr>,
    pub metric: u32,
    #[serde(default = "one")]
    pub weight: u32,
    #[serde(default, rename = "type")]
    pub kind: Kind,
}

fn one() -> u32 {
    1
}

impl StaticRoute {
    pub fn is(&self, interface: &str, destination: IpNet) -> bool {
        self.interface == interface && self.destination == destination
    }
}

/// `192.168.21.0/24 by 192.168.20.1 on Port3, metric 100`
impl fmt::Display for StaticRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.destination)?;
        match self.next_hop {
            Some(next_hop) => write!(f, "by {next_hop} on {}", self.interface)?,
            None => write!(f, "{} on {}", self.kind.name(), self.interface)?,
        }
        write!(f, ", metric {}", self.metric)?;
        if self.weight == 1 { Ok(()) } else { write!(f, ", weight {}", self.weight) }
    }
}

/// Where a route was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In the configuration file.
    File,
    /// By command.
    Command,
}

impl Origin {
    pub fn name(self) -> &'static str {
        match self {
            Origin::File => "file",
            Origin::Command => "command",
        }
    }
}

/// A wished route. The file's stand before those added by command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wished {
    pub route: StaticRoute,
    pub origin: Origin,
}

/// The whole wish, in its order.
pub fn wish(file: &[StaticRoute], stored: &[StaticRoute]) -> Vec<Wished> {
    let of = |routes: &[StaticRoute], origin| {
        routes.iter().map(move |route| Wished { route: route.clone(), origin }).collect::<Vec<_>>()
    };
    [of(file, Origin::File), of(stored, Origin::Command)].concat()
}

/// What makes a route in the kernel one of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub table: u32,
    pub prefix: IpNet,
    pub metric: u32,
}

/// `192.168.21.0/24 metric 100`
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} metric {}", self.prefix, self.metric)?;
        if self.table == MAIN { Ok(()) } else { write!(f, " in table {}", self.table) }
    }
}

/// The other half of it. Several next hops share by weight; only a unicast route has any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub kind: Kind,
    /// In the order of their links.
    pub hops: Vec<Hop>,
    /// That the kernel keeps to; 0: the link's.
    pub mtu: u32,
    /// What this node sends has this address; None: the kernel chooses.
    pub source: Option<IpAddr>,
}

impl Target {
    pub fn new(kind: Kind, hops: Vec<Hop>) -> Target {
        Target { kind, hops, mtu: 0, source: None }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hop {
    pub link: u32,
    pub gateway: Option<IpAddr>,
    /// 1 where there is one hop.
    pub weight: u32,
}

/// A policy rule: what this node sends from an address looks into a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    pub from: IpAddr,
    pub table: u32,
}

/// What the kernel has, or shall have, of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    pub routes: std::collections::BTreeMap<Key, Target>,
    pub rules: std::collections::BTreeSet<Rule>,
}

#[cfg(test)]
mod tests;
