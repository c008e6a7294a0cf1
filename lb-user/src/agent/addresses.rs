//! Who has which address, kept from one agent to the next.
//!
//! Invariant: it is on disk before it is in force. A store that can't be understood is not written over: what is
//! pinned holds then, and nobody who names no address gets another one. Not here: who gets what
//! ([`crate::address`]).

use std::path::PathBuf;

use tracing::{error, info, warn};

use crate::address::store::{self, Stored};
use crate::address::{Lease, Leases};
use crate::apply::{Maps, Paths};
use crate::config::{Config, contains};
use crate::source::manifests::{Manifests, ServiceName};

pub const GIVER_UNKNOWN: &str = "it is not known yet which node gives addresses";

pub struct Addresses {
    path: PathBuf,
    /// What is on disk; None: nothing yet.
    stored: Option<Stored>,
    /// Why it is left alone.
    broken: Option<String>,
    /// What went wrong when it was written last: told once.
    failed: Option<String>,
}

impl Addresses {
    pub fn read(paths: &Paths) -> Self {
        let path = paths.addresses();
        let mut addresses = Addresses { path, stored: None, broken: None, failed: None };
        match store::read(&addresses.path) {
            Ok(stored) => addresses.stored = stored,
            Err(why) => {
                let path = addresses.path.display();
                error!(
                    "{why:#}; services keep the addresses that are in force, and no others are given: mend or remove \
                     the file and start the agent again"
                );
                addresses.broken = Some(format!("{path} can't be read, which says who has which"));
            }
        }
        addresses
    }

    /// Tells a source of services what they had.
    pub fn recall(&self, manifests: &mut Manifests, config: &Config, paths: &Paths) {
        match &self.stored {
            Some(stored) => manifests.remember(stored.leases.clone()),
            None => manifests.remember(pinned(config, paths)),
        }
        // In a live cluster one node gives addresses, and which one is known soon.
        let elsewhere = config.api.is_some().then(|| GIVER_UNKNOWN.to_owned());
        _ = self.freeze(manifests, elsewhere);
    }

    /// Whether anybody gets an address who names none: not while the store is broken, or `elsewhere` another node gives
    /// them. True: that is another answer than before.
    pub fn freeze(&self, manifests: &mut Manifests, elsewhere: Option<String>) -> bool {
        manifests.freeze(self.broken.clone().or(elsewhere))
    }

    /// Writes what changed, if anything did.
    pub fn keep(&mut self, manifests: Option<&Manifests>) {
        let Some(manifests) = manifests.filter(|_| self.broken.is_none()) else { return };
        let is = |stored: &Stored| stored.leases == *manifests.leases() && stored.waiting == *manifests.waiting();
        if self.stored.as_ref().is_some_and(is) {
            return;
        }
        let stored = Stored { leases: manifests.leases().clone(), waiting: manifests.waiting().clone() };
        if self.stored.is_none() && stored == Stored::default() {
            return;
        }
        match store::write(&self.path, &stored) {
            Ok(()) => {
                self.stored = Some(stored);
                if self.failed.take().is_some() {
                    info!("services' addresses are in {} again", self.path.display());
                }
            }
            Err(why) => {
                let why = format!("{why:#}");
                if self.failed.as_ref() != Some(&why) {
                    warn!("services' addresses may change with a restart: {why}");
                }
                self.failed = Some(why);
            }
        }
    }
}

/// What is in force, by what is pinned.
fn pinned(config: &Config, paths: &Paths) -> Leases {
    let mut leases = Leases::new();
    let Ok(maps) = Maps::open(&paths.maps()) else { return leases };
    let (Ok(v4), Ok(v6)) = (maps.v4.services.entries(), maps.v6.services.entries()) else { return leases };
    let keys = v4.into_iter().map(|(k, s)| (lb_common::wire::Addr::to_ip(k.addr), s.id));
    let pools = config.rules().all_pools();
    for (addr, id) in keys.chain(v6.into_iter().map(|(k, s)| (lb_common::wire::Addr::to_ip(k.addr), s.id))) {
        let given = pools.iter().flat_map(|pool| &pool.ranges).any(|range| contains(range, addr));
        let Ok(Some(name)) = maps.names.get(&id) else { continue };
        if let (true, Some((namespace, rest))) = (given, name.as_str().split_once('/'))
            && let Some((name, _)) = rest.rsplit_once(':')
        {
            let name = ServiceName { namespace: namespace.into(), name: name.into() };
            let lease: &mut Lease = leases.entry(name).or_default();
            if !lease.addresses.contains(&addr) {
                lease.addresses.push(addr);
            }
        }
    }
    leases
}
