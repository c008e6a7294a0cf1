//! Pods' addresses: who has which of this node's blocks.
//!
//! Invariant: who gets what is a pure function of the state, of the blocks and of the time: no address is anybody's
//! twice, none is outside of the blocks, and none that was given back is given again before its cool-down is over. Not
//! here: interfaces ([`crate::pods`]), and the file ([`store`]).

mod bandwidth;
mod port;
pub mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use self::bandwidth::{Bandwidth, Rate};
pub use self::port::HostPort;
use crate::address::pool::address;
use crate::config::number;

/// An interface of a container: what a lease is known by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key {
    pub container: String,
    pub interface: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.interface, self.container)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Of the pod, and its name; empty where the runtime didn't say.
    pub namespace: String,
    pub pod: String,
    /// One a family.
    pub addresses: Vec<IpAddr>,
    /// Of the node, that lead to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<HostPort>,
    #[serde(default, skip_serializing_if = "Bandwidth::is_unlimited")]
    pub bandwidth: Bandwidth,
}

/// Who has what, and what nobody may have yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub leases: BTreeMap<Key, Lease>,
    /// Addresses that were given back, and until when they cool down, in seconds since the machine's start.
    pub cooling: BTreeMap<IpAddr, u64>,
}

/// What somebody asks for.
#[derive(Clone, Debug)]
pub struct Ask<'a> {
    pub key: &'a Key,
    pub namespace: &'a str,
    pub pod: &'a str,
    /// These, one a family at most, and any of the other families.
    pub addresses: &'a [IpAddr],
    /// None of them meets another.
    pub ports: &'a [HostPort],
    pub bandwidth: Bandwidth,
}

/// What this node may give.
#[derive(Clone, Copy, Debug)]
pub struct Stock<'a> {
    pub blocks: &'a [IpNet],
    /// The node has these itself.
    pub avoid: &'a BTreeSet<IpAddr>,
    /// In seconds.
    pub cooldown: u64,
}

/// Why somebody gets nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    NoBlocks,
    Full {
        blocks: Vec<IpNet>,
    },
    /// All that are free cool down; the first is ready in so many seconds.
    Cooling {
        blocks: Vec<IpNet>,
        seconds: u64,
    },
    Foreign {
        addr: IpAddr,
        blocks: Vec<IpNet>,
    },
    Taken {
        addr: IpAddr,
        why: String,
    },
    Twice {
        addr: IpAddr,
        other: IpAddr,
    },
    Port {
        port: HostPort,
        why: String,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |blocks: &[IpNet]| blocks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        match self {
            Refusal::NoBlocks => write!(f, "this node has no block of addresses"),
            Refusal::Full { blocks } => write!(f, "all addresses of {} are in use", list(blocks)),
            Refusal::Cooling { blocks, seconds } => {
                write!(f, "all free addresses of {} cool down, the first for {seconds} s", list(blocks))
            }
            Refusal::Foreign { addr, blocks } => {
                write!(f, "{addr} is in none of this node's blocks; expected an address of {}", list(blocks))
            }
            Refusal::Taken { addr, why } => write!(f, "{addr} {why}"),
            Refusal::Twice { addr, other } => write!(f, "{other} and {addr} are asked for; expected one a family"),
            Refusal::Port { port, why } => write!(f, "{port} {why}"),
        }
    }
}

impl State {
    /// Gives addresses, one of each family that there are blocks of. Whoever has some keeps them. Of host ports
    /// and limits those that are asked for now count.
    pub fn take(&mut self, ask: &Ask<'_>, stock: Stock<'_>, now: u64) -> Result<&Lease, Refusal> {
        let addresses = match self.leases.get(ask.key) {
            Some(lease) => lease.addresses.clone(),
            None => {
                // What an agent wrote that went by the wall clock means nothing here.
                self.cooling.retain(|_, until| *until > now && *until <= now + stock.cooldown);
                self.choose(ask, stock, now)?
            }
        };
        for port in ask.ports {
            self.is_free(port, ask.key, &addresses, stock).map_err(|why| Refusal::Port { port: *port, why })?;
        }
        let lease = Lease {
            namespace: ask.namespace.into(),
            pod: ask.pod.into(),
            addresses,
            ports: ask.ports.to_vec(),
            bandwidth: ask.bandwidth,
        };
        self.leases.insert(ask.key.clone(), lease);
        Ok(&self.leases[ask.key])
    }

    /// Whether the host port may lead to a pod with these addresses; else why not.
    fn is_free(&self, port: &HostPort, key: &Key, addresses: &[IpAddr], stock: Stock<'_>) -> Result<(), String> {
        let meets = |(other, lease): &(&Key, &Lease)| *other != key && lease.ports.iter().any(|p| p.meets(port));
        if let Some((other, _)) = self.leases.iter().find(meets) {
            return Err(format!("is that of {other}"));
        }
        if let Some(ip) = port.host_ip.filter(|ip| !ip.is_unspecified()) {
            if ip.is_loopback() {
                return Err("is at a loopback address, where there are no host ports".into());
            }
            if !stock.avoid.contains(&ip) {
                return Err("is at none of this node's addresses".into());
            }
        }
        match addresses.iter().any(|addr| port.leads_to(addr)) {
            true => Ok(()),
            false => Err("is of a family that the pod has no address of".into()),
        }
    }

    fn choose(&self, ask: &Ask<'_>, stock: Stock<'_>, now: u64) -> Result<Vec<IpAddr>, Refusal> {
        if stock.blocks.is_empty() {
            return Err(Refusal::NoBlocks);
        }
        for (i, addr) in ask.addresses.iter().enumerate() {
            if let Some(other) = ask.addresses[..i].iter().find(|other| other.is_ipv4() == addr.is_ipv4()) {
                return Err(Refusal::Twice { addr: *addr, other: *other });
            }
            if !stock.blocks.iter().any(|block| block.contains(addr)) {
                return Err(Refusal::Foreign { addr: *addr, blocks: stock.blocks.to_vec() });
            }
        }
        let used: BTreeSet<IpAddr> = self.leases.values().flat_map(|lease| &lease.addresses).copied().collect();
        let mut chosen = Vec::new();
        for v4 in [true, false] {
            let blocks: Vec<IpNet> = stock.blocks.iter().filter(|b| b.addr().is_ipv4() == v4).copied().collect();
            if let Some(addr) = ask.addresses.iter().find(|addr| addr.is_ipv4() == v4) {
                chosen.push(self.named(*addr, stock, now)?);
            } else if !blocks.is_empty() {
                chosen.push(self.any(blocks, &used, stock, now)?);
            }
        }
        Ok(chosen)
    }

    /// An address that is asked for by name.
    fn named(&self, addr: IpAddr, stock: Stock<'_>, now: u64) -> Result<IpAddr, Refusal> {
        let taken = |why: String| Err(Refusal::Taken { addr, why });
        if let Some((key, _)) = self.leases.iter().find(|(_, lease)| lease.addresses.contains(&addr)) {
            return taken(format!("is that of {key}"));
        }
        if stock.avoid.contains(&addr) {
            return taken("is this node's own".into());
        }
        match self.cooling.get(&addr) {
            Some(until) => taken(format!("cools down for {} s", until - now)),
            None => Ok(addr),
        }
    }

    /// The first that is free.
    fn any(&self, blocks: Vec<IpNet>, used: &BTreeSet<IpAddr>, stock: Stock<'_>, now: u64) -> Result<IpAddr, Refusal> {
        let free = |addr: &IpAddr| !used.contains(addr) && !stock.avoid.contains(addr);
        let free = || blocks.iter().flat_map(|block| addresses(*block)).filter(free);
        if let Some(addr) = free().find(|addr| !self.cooling.contains_key(addr)) {
            return Ok(addr);
        }
        match free().filter_map(|addr| self.cooling.get(&addr)).min() {
            Some(until) => Err(Refusal::Cooling { blocks, seconds: until - now }),
            None => Err(Refusal::Full { blocks }),
        }
    }

    /// Takes a lease back; its addresses cool down.
    pub fn give_back(&mut self, key: &Key, cooldown: u64, now: u64) -> Option<Lease> {
        let lease = self.leases.remove(key)?;
        if cooldown > 0 {
            self.cooling.extend(lease.addresses.iter().map(|addr| (*addr, now + cooldown)));
        }
        Some(lease)
    }

    /// An address that is somebody's twice: nobody wrote such a state but by hand.
    pub fn twice(&self) -> Option<IpAddr> {
        let mut seen = BTreeSet::new();
        self.leases.values().flat_map(|lease| &lease.addresses).find(|addr| !seen.insert(**addr)).copied()
    }

    /// The leases of which something is true.
    pub fn keys(&self, which: impl Fn(&Key, &Lease) -> bool) -> Vec<Key> {
        self.leases.iter().filter(|(key, lease)| which(key, lease)).map(|(key, _)| key.clone()).collect()
    }
}

/// Those that pods may have: all but the first and, of IPv4, the last, which others take for the network's own.
pub fn addresses(block: IpNet) -> impl Iterator<Item = IpAddr> {
    let (first, last) = (number(block.network()), number(block.broadcast()));
    let v4 = block.addr().is_ipv4();
    let small = last - first < 3;
    let first = if small { first } else { first + 1 };
    let last = if small || !v4 { last } else { last - 1 };
    (first..=last).map(move |n| address(n, v4))
}

#[cfg(test)]
mod tests;
