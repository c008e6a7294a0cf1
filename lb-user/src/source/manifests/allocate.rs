//! Services, and the addresses that load balancers among them get ([`crate::address`]).
//!
//! Invariant: while not all services are known, since a file is refused, nobody else gets what an unknown
//! one had.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::Rules;
use super::document::{Service, Wish};
use super::index::Index;
use crate::address::{self, Ask, DEFAULT, Leases, Outcome, Pool, Scene};
use crate::source::endpoints::Labels;

impl Rules {
    /// All pools, that of `cluster.serviceIPs` first.
    pub fn all_pools(&self) -> Vec<Pool> {
        let first = (!self.service_ranges.is_empty()).then(|| Pool::plain(DEFAULT, self.service_ranges.clone()));
        first.into_iter().chain(self.pools.iter().cloned()).collect()
    }
}

pub(super) fn allocate(index: &Index, rules: &Rules, had: &Leases, incomplete: bool, frozen: Option<&str>) -> Outcome {
    let services = || index.services.values().flatten();
    let namespaces: BTreeMap<&str, Labels> =
        services().map(|s| &*s.name.namespace).map(|n| (n, index.labels(n))).collect();
    let asks: Vec<Ask<'_>> = services().filter_map(|service| ask(service, rules, &namespaces)).collect();
    let pools = rules.all_pools();
    let blocked: BTreeMap<IpAddr, String> =
        rules.published.iter().map(|((addr, ..), by)| (*addr, by.clone())).collect();
    let absent = had.keys().filter(|name| incomplete && !index.services.contains_key(*name)).collect();
    let named = services().flat_map(|service| service.addresses.iter().copied()).collect();
    address::allocate(&asks, &Scene { pools: &pools, blocked: &blocked, named, had, absent, frozen })
}

fn ask<'s>(service: &'s Arc<Service>, rules: &Rules, namespaces: &'s BTreeMap<&str, Labels>) -> Option<Ask<'s>> {
    let balancer = service.balancer(rules.classless)?;
    let wish = match &balancer.wish {
        Wish::None => return None,
        Wish::Any(families) => address::Wish::Any(families),
        Wish::These(list) => address::Wish::These(list),
    };
    Some(Ask {
        service: &service.name,
        wish,
        pool: balancer.pool.as_deref(),
        terms: &balancer.terms,
        labels: &balancer.labels,
        namespace: namespaces.get(&*service.name.namespace)?,
    })
}
