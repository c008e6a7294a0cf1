//! Pools, and which services have which addresses, or go without, and why.
//!
//! Invariant: what is stored is what is told; where maps are pinned, addresses of pools that services name themselves
//! are told of, too.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, Result};
use lb_common::wire::Addr;

use super::{Table, names, open};
use crate::address::store::{self, Stored};
use crate::address::{Pool, Waiting};
use crate::agent::running;
use crate::apply::{Maps, Paths};
use crate::config::Config;

/// Who has an address, and why.
#[derive(Default)]
struct Had {
    services: BTreeSet<String>,
    why: String,
}

type All = BTreeMap<IpAddr, Had>;

pub fn addresses(paths: &Paths) -> Result<Table> {
    let stored = store::read(&paths.addresses())?.unwrap_or_default();
    let (about, _) = running(paths);
    let config = (!about.config.as_os_str().is_empty()).then(|| Config::load(&about.config)).transpose();
    let config = config.context("the configuration doesn't tell the pools")?;
    let pools = config.map(|config| config.rules().all_pools()).unwrap_or_default();
    let mut all = given(&stored);
    if paths.maps().exists() {
        named(&open(paths)?, &pools, &mut all)?;
    }
    Ok(table(&pools, &all, &stored.waiting))
}

/// How many load balancers go without an address, and of how many that ask for one.
pub(super) fn brief(paths: &Paths) -> Option<(usize, usize)> {
    let stored = store::read(&paths.addresses()).ok()??;
    let asking: BTreeSet<_> = stored.leases.keys().chain(stored.waiting.keys()).collect();
    Some((stored.waiting.len(), asking.len()))
}

/// Why services go without, by `namespace/name`.
pub(super) fn waiting(paths: &Paths) -> BTreeMap<String, String> {
    let waiting = store::read(&paths.addresses()).ok().flatten().unwrap_or_default().waiting;
    waiting.iter().map(|(name, why)| (name.to_string(), why.join("; "))).collect()
}

fn given(stored: &Stored) -> All {
    let mut all = All::new();
    for (name, lease) in &stored.leases {
        for addr in &lease.addresses {
            let had = all.entry(*addr).or_default();
            had.services.insert(name.to_string());
            let why = if lease.asked { "asked for" } else { "given" };
            had.why = match (&lease.terms.key, had.why.as_str()) {
                (Some(key), _) => format!("{why}, by the sharing key {key}"),
                (None, _) => why.to_owned(),
            };
        }
    }
    all
}

/// Those that services have in the kernel's tables without having asked for them here.
fn named(maps: &Maps, pools: &[Pool], all: &mut All) -> Result<()> {
    let names = names(maps)?;
    let v4 = maps.v4.services.entries()?.into_iter().map(|(key, service)| (key.addr.to_ip(), service.id));
    let v6 = maps.v6.services.entries()?.into_iter().map(|(key, service)| (key.addr.to_ip(), service.id));
    for (addr, id) in v4.chain(v6).filter(|(addr, _)| pools.iter().any(|pool| pool.contains(*addr))) {
        let Some((name, _)) = names.get(&id).and_then(|name| name.rsplit_once(':')) else { continue };
        let had = all.entry(addr).or_default();
        if had.services.insert(name.to_owned()) {
            let more = if had.why.is_empty() { "" } else { ", and " };
            had.why = format!("{}{more}named by {name}", had.why);
        }
    }
    Ok(())
}

fn table(pools: &[Pool], all: &All, waiting: &Waiting) -> Table {
    let mut table = Table::new(&["what", "name", "pool", "services", "used", "free", "detail"]);
    let none = || super::Cell::None;
    for pool in pools {
        let used = all.keys().filter(|addr| pool.contains(**addr)).count() as u64;
        let unasked = all.keys().filter(|addr| pool.contains(**addr) && !pool.keeps_back(**addr)).count() as u64;
        let free = pool.size().saturating_sub(unasked);
        table.push([
            "pool".into(),
            pool.name.clone().into(),
            none(),
            none(),
            used.into(),
            free.into(),
            pool.said().into(),
        ]);
    }
    for (addr, had) in all {
        let pool = pools.iter().find(|pool| pool.contains(*addr)).map(|pool| pool.name.clone());
        let services = super::Cell::List(had.services.iter().cloned().collect());
        let why = had.why.clone().into();
        table.push(["address".into(), addr.to_string().into(), pool.into(), services, none(), none(), why]);
    }
    for (name, why) in waiting {
        let services = super::Cell::List(vec![name.to_string()]);
        table.push(["waiting".into(), none(), none(), services, none(), none(), why.join("; ").into()]);
    }
    table
}
