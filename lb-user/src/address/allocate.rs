//! Who gets which address.
//!
//! Invariant: what was had comes before anything new, and what an unedited service had before what an edited one
//! asks to keep; newcomers come in the order of their names, those that name an address first. Nobody is moved for
//! another's sake. A pure function.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use super::pool::address;
use super::{Ask, Lease, Leases, Pool, Terms, Waiting, Wish};
use crate::config;
use crate::source::manifests::ServiceName;

/// Among what it is decided.
#[derive(Clone, Debug)]
pub struct Scene<'a> {
    pub pools: &'a [Pool],
    /// Given to nobody, and who has them.
    pub blocked: &'a BTreeMap<IpAddr, String>,
    /// Named by services as theirs (cluster IPs, external IPs, those of a status): given to none who names none.
    pub named: HashSet<IpAddr>,
    pub had: &'a Leases,
    /// Services that aren't known at the moment, and keep what they had.
    pub absent: BTreeSet<&'a ServiceName>,
    /// Nothing new is given to who names none, and why.
    pub frozen: Option<&'a str>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    pub leases: Leases,
    pub waiting: Waiting,
    /// What services had and can't keep, and why.
    pub lost: Vec<(ServiceName, String)>,
}

pub fn allocate(asks: &[Ask<'_>], scene: &Scene<'_>) -> Outcome {
    let mut book = Book::new(scene);
    for (name, lease) in scene.had.iter().filter(|(name, _)| scene.absent.contains(name)) {
        for &addr in &lease.addresses {
            book.hold(addr, name, &lease.terms);
        }
        book.outcome.leases.insert(name.clone(), lease.clone());
    }
    let mut asks: Vec<&Ask<'_>> = asks.iter().filter(|ask| !scene.absent.contains(ask.service)).collect();
    asks.sort_by_key(|ask| ask.service);
    let (edited, same): (Vec<&Ask<'_>>, Vec<_>) =
        asks.iter().partition(|ask| scene.had.get(ask.service).is_some_and(|lease| lease.terms != *ask.terms));
    for ask in same.into_iter().chain(edited) {
        book.keep(ask);
    }
    for ask in &asks {
        if let Wish::These(list) = ask.wish {
            book.give_these(ask, list);
        }
    }
    for ask in &asks {
        if let Wish::Any(families) = ask.wish {
            book.give_any(ask, families);
        }
    }
    book.outcome
}

/// The part of what is decided so far.
struct Book<'a> {
    scene: &'a Scene<'a>,
    holders: HashMap<IpAddr, Vec<(&'a ServiceName, &'a Terms)>>,
    /// Addresses that are shared, by key.
    shared: BTreeMap<&'a str, BTreeSet<IpAddr>>,
    /// In the order in which they are asked.
    pools: Vec<(&'a Pool, [Free<'a>; 2])>,
    outcome: Outcome,
}

impl<'a> Book<'a> {
    fn new(scene: &'a Scene<'a>) -> Self {
        let mut pools: Vec<_> =
            scene.pools.iter().map(|pool| (pool, [Free::new(pool, false), Free::new(pool, true)])).collect();
        pools.sort_by_key(|(pool, _)| pool.rank());
        Book { scene, holders: HashMap::new(), shared: BTreeMap::new(), pools, outcome: Outcome::default() }
    }

    fn hold(&mut self, addr: IpAddr, service: &'a ServiceName, terms: &'a Terms) {
        self.holders.entry(addr).or_default().push((service, terms));
        if let Some(key) = &terms.key {
            self.shared.entry(key).or_default().insert(addr);
        }
    }

    fn give(&mut self, addr: IpAddr, ask: &Ask<'a>) {
        self.hold(addr, ask.service, ask.terms);
        let lease = self.outcome.leases.entry(ask.service.clone()).or_insert_with(|| Lease {
            addresses: Vec::new(),
            asked: matches!(ask.wish, Wish::These(_)),
            terms: ask.terms.clone(),
        });
        lease.addresses.push(addr);
    }

    fn has(&self, ask: &Ask<'_>, is: impl Fn(&IpAddr) -> bool) -> bool {
        self.outcome.leases.get(ask.service).is_some_and(|lease| lease.addresses.iter().any(is))
    }

    fn waits(&mut self, ask: &Ask<'_>, why: String) {
        self.outcome.waiting.entry(ask.service.clone()).or_default().push(why);
    }

    /// Why a service can't have an address.
    fn against(&self, addr: IpAddr, ask: &Ask<'_>) -> Option<String> {
        if let Some(by) = self.scene.blocked.get(&addr) {
            return Some(format!("{by} has it"));
        }
        let pool = self.scene.pools.iter().find(|pool| pool.contains(addr));
        match (pool, ask.pool) {
            (Some(pool), Some(name)) if pool.name != name => {
                return Some(format!("it is of the pool `{}`, and the service asks for `{name}`", pool.name));
            }
            (Some(pool), _) if !pool.is_for(ask) => return Some(format!("its pool `{}` is for others", pool.name)),
            (None, Some(name)) => return Some(format!("it is not of the pool `{name}`")),
            (None, None) if matches!(ask.wish, Wish::Any(_)) => return Some("no pool has it any more".into()),
            _ => {}
        }
        let holders = self.holders.get(&addr).into_iter().flatten();
        holders
            .filter(|(other, _)| *other != ask.service)
            .find_map(|(other, terms)| terms.against(ask.terms).map(|why| format!("{other} has it, and {why}")))
    }

    /// What it had, as far as it still fits.
    fn keep(&mut self, ask: &Ask<'a>) {
        let scene = self.scene;
        for &addr in scene.had.get(ask.service).into_iter().flat_map(|lease| &lease.addresses) {
            let wanted = match ask.wish {
                Wish::These(list) => list.contains(&addr) && !self.has(ask, |a| *a == addr),
                Wish::Any([]) => !self.has(ask, |_| true),
                Wish::Any(families) => {
                    families.contains(&addr.is_ipv4()) && !self.has(ask, |a| a.is_ipv4() == addr.is_ipv4())
                }
            };
            match self.against(addr, ask) {
                None if wanted => self.give(addr, ask),
                Some(why) if wanted && matches!(ask.wish, Wish::Any(_)) => {
                    self.outcome.lost.push((ask.service.clone(), format!("loses {addr}: {why}")));
                }
                _ => {}
            }
        }
    }

    fn give_these(&mut self, ask: &Ask<'a>, list: &[IpAddr]) {
        for &addr in list {
            if self.has(ask, |a| *a == addr) {
                continue;
            }
            match self.against(addr, ask) {
                None => self.give(addr, ask),
                Some(why) => self.waits(ask, format!("gets no address {addr}: {why}")),
            }
        }
    }

    fn give_any(&mut self, ask: &Ask<'a>, families: &[bool]) {
        let pools: Vec<usize> = (0..self.pools.len()).filter(|&i| self.offers(i, ask)).collect();
        // One that has an address already has its family.
        let had = self.outcome.leases.get(ask.service).and_then(|lease| lease.addresses.first());
        let first = had.or(pools.first().and_then(|&i| Some(&self.pools[i].0.ranges.first()?.first)));
        let first = [first.is_none_or(IpAddr::is_ipv4)];
        for &v4 in if families.is_empty() { &first[..] } else { families } {
            if self.has(ask, |a| a.is_ipv4() == v4) {
                continue;
            }
            let found = match self.scene.frozen {
                Some(_) => None,
                None => self.joins(ask, &pools, v4).or_else(|| self.free(&pools, v4)),
            };
            match found {
                Some(addr) => self.give(addr, ask),
                None => {
                    let why = self.none(ask, &pools, v4);
                    self.waits(ask, why);
                }
            }
        }
    }

    /// Whether a service that names no address may get one of this pool.
    fn offers(&self, pool: usize, ask: &Ask<'_>) -> bool {
        let pool = self.pools[pool].0;
        ask.pool.map_or(pool.auto_assign, |name| name == pool.name) && pool.is_for(ask)
    }

    /// An address of others with the same key.
    fn joins(&self, ask: &Ask<'_>, pools: &[usize], v4: bool) -> Option<IpAddr> {
        let shared = self.shared.get(ask.terms.key.as_deref()?)?;
        pools.iter().find_map(|&i| {
            let mut mine = shared.iter().filter(|addr| addr.is_ipv4() == v4 && self.pools[i].0.contains(**addr));
            mine.find(|addr| self.against(**addr, ask).is_none()).copied()
        })
    }

    fn free(&mut self, pools: &[usize], v4: bool) -> Option<IpAddr> {
        let (scene, holders) = (self.scene, &self.holders);
        let is_free = |addr: &IpAddr| {
            !holders.contains_key(addr) && !scene.named.contains(addr) && !scene.blocked.contains_key(addr)
        };
        pools.iter().find_map(|&i| self.pools[i].1[usize::from(v4)].next(is_free))
    }

    /// Why a service goes without.
    fn none(&self, ask: &Ask<'_>, pools: &[usize], v4: bool) -> String {
        let family = if v4 { "IPv4" } else { "IPv6" };
        let no = |why: String| format!("gets no {family} address: {why}");
        if let Some(why) = self.scene.frozen {
            return no(why.to_owned());
        }
        let ranges = pools.iter().flat_map(|&i| &self.pools[i].0.ranges).filter(|r| r.first.is_ipv4() == v4);
        let ranges: Vec<_> = ranges.map(config::show).collect();
        if !ranges.is_empty() {
            return no(format!("all of {} are taken", ranges.join(", ")));
        }
        let names: Vec<_> = self.scene.pools.iter().map(|pool| format!("`{}`", pool.name)).collect();
        match ask.pool {
            Some(name) if self.scene.pools.iter().all(|pool| pool.name != name) && !names.is_empty() => {
                no(format!("there is no pool `{name}`; expected one of {}", names.join(", ")))
            }
            Some(name) if !pools.is_empty() => no(format!("the pool `{name}` has none")),
            Some(name) if !names.is_empty() => no(format!("the pool `{name}` is for others")),
            _ if names.len() <= 1 => no("cluster.serviceIPs has none".to_owned()),
            _ => no("no pool that is for it has one".to_owned()),
        }
    }
}

/// Walks a family's ranges upwards, once.
struct Free<'a> {
    pool: &'a Pool,
    v4: bool,
    /// First and last as numbers; falling.
    ranges: Vec<(u128, u128)>,
}

impl<'a> Free<'a> {
    fn new(pool: &'a Pool, v4: bool) -> Self {
        let mine = pool.ranges.iter().filter(|r| r.first.is_ipv4() == v4);
        let mut ranges: Vec<_> = mine.map(|r| (config::number(r.first), config::number(r.last))).collect();
        ranges.sort_unstable_by(|a, b| b.cmp(a));
        Free { pool, v4, ranges }
    }

    fn next(&mut self, is_free: impl Fn(&IpAddr) -> bool) -> Option<IpAddr> {
        while let Some((first, last)) = self.ranges.last_mut() {
            let addr = address(*first, self.v4);
            if *first == *last {
                self.ranges.pop();
            } else {
                *first += 1;
            }
            if !self.pool.keeps_back(addr) && is_free(&addr) {
                return Some(addr);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
