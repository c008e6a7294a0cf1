//! A pool of addresses, and whom it is for.
//!
//! Invariant: selectors mean what they mean in Kubernetes' API: all of one's terms hold; of several selectors
//! one does; none at all is for everybody.

use std::net::{IpAddr, Ipv6Addr};

use super::Ask;
use crate::config;
use crate::intent::ServiceRange;
use crate::source::endpoints::Selector;

/// The name of `cluster.serviceIPs`.
pub const DEFAULT: &str = "default";

#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    pub name: String,
    pub ranges: Vec<ServiceRange>,
    /// Also for services that don't ask for it.
    pub auto_assign: bool,
    /// IPv4 addresses that end in .0 or .255, and IPv6 ones that end in :0, are given only by name.
    pub avoid_buggy: bool,
    /// The lower one first; 0: last.
    pub priority: u32,
    pub namespaces: Vec<String>,
    pub namespace_selectors: Vec<Selector>,
    pub service_selectors: Vec<Selector>,
}

impl Pool {
    /// One that is for everybody, as `cluster.serviceIPs` is.
    pub fn plain(name: &str, ranges: Vec<ServiceRange>) -> Self {
        Pool {
            name: name.to_owned(),
            ranges,
            auto_assign: true,
            avoid_buggy: true,
            priority: 0,
            namespaces: Vec::new(),
            namespace_selectors: Vec::new(),
            service_selectors: Vec::new(),
        }
    }

    pub fn contains(&self, addr: IpAddr) -> bool {
        self.ranges.iter().any(|range| config::contains(range, addr))
    }

    pub fn is_for(&self, ask: &Ask<'_>) -> bool {
        let everywhere = self.namespaces.is_empty() && self.namespace_selectors.is_empty();
        let here = || {
            self.namespaces.contains(&ask.service.namespace)
                || self.namespace_selectors.iter().any(|selector| selector.selects(ask.namespace))
        };
        (everywhere || here())
            && (self.service_selectors.is_empty() || self.service_selectors.iter().any(|s| s.selects(ask.labels)))
    }

    /// Where it stands among others: by priority, then those that are for some before those for all.
    pub fn rank(&self) -> (u32, bool) {
        let all =
            self.namespaces.is_empty() && self.namespace_selectors.is_empty() && self.service_selectors.is_empty();
        (self.priority.wrapping_sub(1), all)
    }

    pub fn shown(&self) -> String {
        self.ranges.iter().map(config::show).collect::<Vec<_>>().join(", ")
    }

    /// Its addresses, and for whom they are.
    pub fn said(&self) -> String {
        let mut said = self.shown();
        if !self.auto_assign {
            said.push_str("; by request alone");
        }
        if self.priority > 0 {
            said.push_str(&format!("; priority {}", self.priority));
        }
        if !self.namespaces.is_empty() {
            said.push_str(&format!("; for namespaces {}", self.namespaces.join(", ")));
        }
        for (whose, selectors) in [("namespaces", &self.namespace_selectors), ("services", &self.service_selectors)] {
            if !selectors.is_empty() {
                let all: Vec<_> = selectors.iter().map(Selector::to_string).collect();
                said.push_str(&format!("; for {whose} with {}", all.join(" or ")));
            }
        }
        said
    }

    /// Whether an address is for those alone that name it.
    pub fn keeps_back(&self, addr: IpAddr) -> bool {
        self.avoid_buggy && is_buggy(addr)
    }

    /// Addresses that can be given to who names none, taken ones among them.
    pub fn size(&self) -> u64 {
        let of = |range: &ServiceRange| {
            let numbers = config::number(range.first)..=config::number(range.last);
            numbers.filter(|&n| !self.keeps_back(address(n, range.first.is_ipv4()))).count() as u64
        };
        self.ranges.iter().map(of).sum()
    }
}

pub fn address(number: u128, v4: bool) -> IpAddr {
    if v4 { IpAddr::V4((number as u32).into()) } else { IpAddr::V6(Ipv6Addr::from(number)) }
}

/// In a network that reaches beyond the range these may be the network's own, its broadcast
/// address (IPv4) or all its routers (RFC 4291 §2.6.1).
fn is_buggy(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(v4) => matches!(v4.octets()[3], 0 | 0xff),
        IpAddr::V6(v6) => v6.segments()[7] == 0,
    }
}
