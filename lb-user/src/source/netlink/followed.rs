//! The kernel's routes as they change: followed by events, and read whole where these don't say enough.
//!
//! Invariant: the table is what a whole read gives, or one is owed. Not here: what an event does to the table
//! ([`super::routes`]).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::Instant;

use super::message::{Connection, u32_at};
use super::news::{DEL_ADDRESS, DEL_NEXT_HOP, DEL_ROUTE, Event, NEW_ADDRESS, NEW_LINK, NEW_ROUTE, PAUSE};
use super::routes::{Effect, Entry, Routes};
use super::{own, read, routes};
use crate::intent::RouteTable;
use crate::route::{Key, MAIN, Target};

/// So long dead next hops may take to come to life behind their link or address.
const REVIVAL: Duration = Duration::from_millis(50);
/// So many IPv6 routes the kernel lists in one go.
const LISTED_AT_ONCE: usize = 16;
/// So often all is read again, if it changed meanwhile.
const AGAIN: u32 = 3;

pub struct Followed {
    connection: Connection,
    routes: Routes,
    /// Ours, in all tables.
    own: BTreeMap<Key, Target>,
    /// Links that were set up.
    set_up: BTreeSet<u32>,
    /// A whole read is due, if not yet.
    owed: bool,
    /// Not before this, so that it leaves time for the rest.
    next: Option<Instant>,
    /// The last one is not long ago: events of what it had already may still come.
    fresh: bool,
    /// A link or address came that dead next hops may come to life with.
    revived: bool,
    /// How often it was done again since the table changed meanwhile.
    again: u32,
}

impl Followed {
    /// Nothing: there is no table before [`Self::lost`] asks for one.
    pub fn open() -> Result<Self> {
        Ok(Followed {
            connection: own::open()?,
            routes: Routes::default(),
            own: BTreeMap::new(),
            set_up: BTreeSet::new(),
            owed: false,
            next: None,
            fresh: false,
            revived: false,
            again: 0,
        })
    }

    pub fn table(&self) -> &RouteTable {
        &self.routes.table
    }

    pub fn own(&self) -> &BTreeMap<Key, Target> {
        &self.own
    }

    /// When a whole read is due.
    pub fn due(&self) -> Option<Instant> {
        self.next.filter(|_| self.owed)
    }

    /// Events may have been lost. `set_up`: links that were set up.
    pub fn lost(&mut self, set_up: BTreeSet<u32>) {
        (self.owed, self.set_up) = (true, set_up);
    }

    pub fn take(&mut self, events: &[Event]) -> Result<()> {
        let (mut changed6, mut own) = (false, false);
        for Event { kind, flags, payload } in events {
            if matches!(*kind, NEW_ROUTE | DEL_ROUTE) {
                let entry = routes::entry(payload);
                own |= own::route(payload).is_some() || entry.as_ref().is_some_and(|entry| self.replaces_own(entry));
                let effect = entry.map(|entry| self.routes.note(*kind, *flags, entry, self.fresh));
                self.owed |= effect == Some(Effect::Unclear);
                changed6 |= payload.first() == Some(&(libc::AF_INET6 as u8));
            } else {
                self.owed |= self.takes_along(*kind, payload);
                own |= !self.own.is_empty();
            }
        }
        if own {
            self.own = own::routes(&mut self.connection).context("reading our routes in the kernel")?;
        }
        if !events.is_empty() && std::mem::take(&mut self.fresh) {
            // The kernel goes on by number where an IPv6 table changes between parts of its list: it may leave some out.
            let in_parts = self.routes.table.len6() > LISTED_AT_ONCE;
            self.owed |= changed6 && in_parts && self.again < AGAIN;
            self.again = if self.owed { self.again + 1 } else { 0 };
        }
        self.read()
    }

    /// Reads all, if that is due.
    pub fn read(&mut self) -> Result<()> {
        let now = Instant::now();
        if !self.owed || self.next.is_some_and(|next| now < next) {
            return Ok(());
        }
        self.routes = routes::read(&mut self.connection).context("reading the kernel's routes")?;
        self.own = own::routes(&mut self.connection).context("reading our routes in the kernel")?;
        let took = now.elapsed();
        tracing::debug!(?took, prefixes = self.routes.table.len(), "read all of the kernel's routes");
        let again = std::mem::take(&mut self.revived);
        self.next = Some(now + (took * (PAUSE + 1)).max(if again { REVIVAL } else { Duration::ZERO }));
        (self.owed, self.fresh) = (again, true);
        Ok(())
    }

    /// Routes go without a word with what they need, and dead next hops come to life with that; whether it can't be
    /// told what is left.
    fn takes_along(&mut self, kind: u16, payload: &[u8]) -> bool {
        let index = u32_at(payload, 4).unwrap_or_default();
        let table = &mut self.routes.table;
        match kind {
            DEL_ADDRESS => {
                let mut paths = table.paths().flat_map(|paths| paths.iter());
                // With the last of a link all its routes; before that, those that name it as their source.
                payload.first() == Some(&(libc::AF_INET as u8)) && paths.any(|path| path.link == index)
            }
            DEL_NEXT_HOP => self.routes.objects,
            NEW_ADDRESS => self.revive(),
            NEW_LINK if u32_at(payload, 8).is_some_and(|flags| flags & read::IFF_UP != 0) => {
                self.set_up.insert(index);
                self.revive()
            }
            _ => self.set_up.remove(&index) && table.remove_link(index),
        }
    }

    /// Something came that dead next hops come to life with; not yet while the kernel says so.
    fn revive(&mut self) -> bool {
        self.revived |= self.routes.dead;
        self.routes.dead
    }

    /// Whether a route stands in the place of one of ours.
    fn replaces_own(&self, &Entry { prefix, metric, .. }: &Entry) -> bool {
        self.own.contains_key(&Key { table: MAIN, prefix, metric })
    }
}
