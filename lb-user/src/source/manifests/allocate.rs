//! Addresses for load-balancer services that name none: the lowest free ones of the service ranges.
//!
//! Invariant: who has an address keeps it as long as it is in a range and nobody names it
//! explicitly; newcomers choose in the order of their names. While not all services are known, since a
//! file is refused, nobody else gets what an unknown one had. So a pure function of the services and
//! of what they had. What they had is kept in memory, and after a restart told by the agent (the
//! pinned tables know it); a file of its own is for a later version.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use super::Rules;
use super::document::{Service, ServiceName, Wish};
use crate::config::{self, Error};
use crate::intent::ServiceRange;

pub(super) type Given = BTreeMap<ServiceName, Vec<IpAddr>>;

pub(super) fn allocate<'s>(
    services: impl Iterator<Item = &'s Arc<Service>> + Clone,
    rules: &Rules,
    had: &Given,
    incomplete: bool,
) -> (Given, Vec<Error>) {
    let ranges = &rules.service_ranges[..];
    let named = services.clone().flat_map(|s| s.named(rules.classless));
    let mut used: HashSet<IpAddr> = named.chain(rules.published.keys().map(|(addr, ..)| *addr)).collect();
    let mut given = Given::new();
    if incomplete {
        let there: HashSet<&ServiceName> = services.clone().map(|s| &s.name).collect();
        given.extend(had.iter().filter(|(name, _)| !there.contains(name)).map(|(name, a)| (name.clone(), a.clone())));
        used.extend(given.values().flatten());
    }
    let asks = |service: &'s Arc<Service>| match service.wish(rules.classless) {
        Wish::Any(families) => Some((&**service, &families[..])),
        Wish::None | Wish::This(_) => None,
    };
    let mut asking: Vec<(&Service, &[bool])> = services.filter_map(asks).collect();
    asking.sort_by(|a, b| a.0.name.cmp(&b.0.name));
    for (service, families) in &asking {
        for addr in had.get(&service.name).into_iter().flatten().copied() {
            let wanted = families.is_empty() || families.contains(&addr.is_ipv4());
            if wanted && ranges.iter().any(|r| config::contains(r, addr)) && used.insert(addr) {
                given.entry(service.name.clone()).or_default().push(addr);
            }
        }
    }
    let mut free = [Free::new(ranges, false), Free::new(ranges, true)];
    let mut notices = Vec::new();
    for (service, families) in &asking {
        let first = ranges.first().is_none_or(|r| r.first.is_ipv4());
        let families = if families.is_empty() { &[first][..] } else { families };
        for v4 in families {
            let mine = given.entry(service.name.clone()).or_default();
            if mine.iter().any(|a| a.is_ipv4() == *v4) {
                continue;
            }
            match free[usize::from(*v4)].next(&mut used) {
                Some(addr) => mine.push(addr),
                None => notices.push(service.said.message(none_left(service, ranges, *v4))),
            }
        }
    }
    (given, notices)
}

fn none_left(service: &Service, ranges: &[ServiceRange], v4: bool) -> String {
    let family = if v4 { "IPv4" } else { "IPv6" };
    let ranges: Vec<_> = ranges.iter().filter(|r| r.first.is_ipv4() == v4).map(config::show).collect();
    if ranges.is_empty() {
        return format!("LoadBalancer {} gets no {family} address: cluster.serviceIPs has none", service.name);
    }
    format!("LoadBalancer {} gets no {family} address: all of {} are taken", service.name, ranges.join(", "))
}

/// Walks a family's ranges upwards, once.
struct Free {
    /// First and last as numbers; rising.
    ranges: Vec<(u128, u128)>,
    v4: bool,
}

impl Free {
    fn new(ranges: &[ServiceRange], v4: bool) -> Self {
        let mut ranges: Vec<_> = ranges
            .iter()
            .filter(|r| r.first.is_ipv4() == v4)
            .map(|r| (config::number(r.first), config::number(r.last)))
            .collect();
        ranges.sort_unstable_by(|a, b| b.cmp(a));
        Free { ranges, v4 }
    }

    fn next(&mut self, used: &mut HashSet<IpAddr>) -> Option<IpAddr> {
        while let Some((first, last)) = self.ranges.last_mut() {
            let number = *first;
            if number == *last {
                self.ranges.pop();
            } else {
                *first += 1;
            }
            if self.is_special(number) {
                continue;
            }
            let addr = if self.v4 { IpAddr::V4((number as u32).into()) } else { IpAddr::V6(Ipv6Addr::from(number)) };
            if used.insert(addr) {
                return Some(addr);
            }
        }
        None
    }

    /// In a network that reaches beyond the range these may be the network's own, its broadcast
    /// address (IPv4) or all its routers (RFC 4291 §2.6.1): given to nobody who didn't ask.
    fn is_special(&self, number: u128) -> bool {
        if self.v4 { matches!(number & 0xff, 0 | 0xff) } else { number & 0xffff == 0 }
    }
}
