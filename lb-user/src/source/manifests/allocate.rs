//! Services, and the addresses that load balancers among them get ([`crate::address`]).
//!
//! Invariant: while not all services are known, since a file is refused, nobody else gets what an unknown
//! one had. In a live cluster services' status says what they have, for all nodes; what it says that is of no pool
//! of ours is another's doing, and left as it is.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;

use super::Rules;
use super::document::{Balancer, Service, Wish};
use super::index::Index;
use crate::address::{self, Ask, DEFAULT, Lease, Leases, Outcome, Pool, Scene};
use crate::source::endpoints::Labels;

impl Rules {
    /// All pools, that of `cluster.serviceIPs` first.
    pub fn all_pools(&self) -> Vec<Pool> {
        let first = (!self.service_ranges.is_empty()).then(|| Pool::plain(DEFAULT, self.service_ranges.clone()));
        first.into_iter().chain(self.pools.iter().cloned()).collect()
    }
}

/// What is decided about.
pub(super) struct Order<'a> {
    pub had: &'a Leases,
    /// Not all services are known.
    pub incomplete: bool,
    /// Why nothing is given to who names none.
    pub frozen: Option<&'a str>,
    /// Objects are a live cluster's.
    pub live: bool,
}

pub(super) fn allocate(index: &Index, rules: &Rules, order: &Order<'_>) -> Outcome {
    let services = || index.services.values().flatten();
    let namespaces: BTreeMap<&str, Labels> =
        services().map(|s| &*s.name.namespace).map(|n| (n, index.labels(n))).collect();
    let pools = rules.all_pools();
    let mut had = Cow::Borrowed(order.had);
    let mut asks: Vec<Ask<'_>> = Vec::new();
    for service in services() {
        let Some(balancer) = service.balancer(rules.classless) else { continue };
        let ours = order.live && is_ours(balancer, order.had.get(&service.name), &pools);
        if ours && balancer.status.iter().all(|addr| in_pools(&pools, *addr)) {
            let (addresses, terms) = (balancer.status.clone(), balancer.terms.clone());
            let known = had.get(&service.name);
            if known.is_none_or(|lease| lease.addresses != addresses) {
                let asked = matches!(balancer.wish, Wish::These(_));
                had.to_mut().insert(service.name.clone(), Lease { addresses, asked, terms });
            }
        }
        asks.extend(ask(service, balancer, ours, &namespaces));
    }
    let blocked: BTreeMap<IpAddr, String> =
        rules.published.iter().map(|((addr, ..), by)| (*addr, by.clone())).collect();
    let absent = had.keys().filter(|name| order.incomplete && !index.services.contains_key(*name)).collect();
    let named = services().flat_map(|service| service.addresses.iter().copied()).collect();
    let scene = Scene { pools: &pools, blocked: &blocked, named, had: &had, absent, frozen: order.frozen };
    address::allocate(&asks, &scene)
}

fn in_pools(pools: &[Pool], addr: IpAddr) -> bool {
    pools.iter().any(|pool| pool.contains(addr))
}

/// Whether its status' addresses are what was given here, or by another node's agent.
fn is_ours(balancer: &Balancer, had: Option<&Lease>, pools: &[Pool]) -> bool {
    let given = |addr: &IpAddr| had.is_some_and(|lease| lease.addresses.contains(addr));
    !balancer.proxied && balancer.status.iter().all(|addr| in_pools(pools, *addr) || given(addr))
}

fn ask<'s>(
    service: &'s Service,
    balancer: &'s Balancer,
    ours: bool,
    namespaces: &'s BTreeMap<&str, Labels>,
) -> Option<Ask<'s>> {
    let wish = match &balancer.wish {
        Wish::Any(_) if balancer.is_settled() && !ours => return None,
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
