//! A family's routes in the kernel: the table of routes, and what it holds, which nobody can read back.
//!
//! Invariant: the routes of an agent before are in force until all of this one's first plan are there.

use std::path::Path;

use anyhow::{Context, Result};
use imbl::OrdMap;
use lb_common::table::Prefix;
use lb_common::wire::Addr;
use tracing::{info, warn};

use super::fib::Parts;
use super::table::Table;
use crate::fib::{Error, Fib};
use crate::plan::Change;

/// Bytes that the nodes of one route may take.
const BYTES: u64 = 256;

pub struct Routes<A: Addr> {
    /// Not yet taken over.
    parts: Option<Parts>,
    fib: Option<Fib<A, Parts>>,
    held: OrdMap<Prefix<A>, u32>,
    /// Nodes without room, as was told last.
    told: usize,
}

impl<A: Addr> Routes<A> {
    pub fn open(dir: &Path, capacity: u32) -> Result<Self> {
        let parts = Parts::open::<A>(dir, u64::from(capacity) * BYTES)?;
        Ok(Routes { parts: Some(parts), fib: None, held: OrdMap::new(), told: 0 })
    }

    /// Next hops' indexes by prefix.
    pub fn held(&self) -> &OrdMap<Prefix<A>, u32> {
        &self.held
    }

    /// Those of an agent before go also where there are none.
    pub fn settle(&mut self) -> Result<()> {
        if self.parts.is_some() { self.replace(&OrdMap::new()) } else { Ok(()) }
    }

    /// Puts `all` in the place of those that are there.
    pub fn replace(&mut self, all: &OrdMap<Prefix<A>, u32>) -> Result<()> {
        let routes: Vec<_> = all.iter().map(|(&prefix, &index)| (prefix, value(index))).collect();
        self.held = all.clone();
        match self.parts.take() {
            Some(parts) => {
                let mut fib = Fib::load(parts, &routes)?;
                with_room(fib.retry())?;
                self.fib = Some(fib);
                Ok(())
            }
            None => with_room(fib(&mut self.fib)?.replace(&routes)),
        }
    }

    pub fn change(&mut self, change: &Change<Prefix<A>, u32>) -> Result<()> {
        let fib = fib(&mut self.fib)?;
        match change {
            Change::Set(prefix, index) => {
                let result = fib.insert(prefix, value(*index));
                self.held.insert(*prefix, *index);
                with_room(result)
            }
            Change::Remove(prefix) => {
                let result = fib.remove(prefix);
                self.held.remove(prefix);
                with_room(result)?;
                // What had no room before may have it now.
                with_room(fib.retry())
            }
        }
    }

    /// Notes for others how many there are, and how many may be; tells where some have no room.
    pub fn count(&mut self, counts: &Table<u32, [u32; 2]>, capacity: u32) -> Result<()> {
        let spilled = self.fib.as_ref().map_or(0, Fib::spilled);
        if spilled > 2 * self.told {
            let error = Error::Full { spilled };
            warn!("IPv{}: {error}; capacity.routes gives it more room", if A::IS_V6 { 6 } else { 4 });
            self.told = spilled;
        } else if spilled == 0 && self.told > 0 {
            info!("IPv{}: all routes have room again", if A::IS_V6 { 6 } else { 4 });
            self.told = 0;
        }
        counts.set(&u32::from(A::IS_V6), &[self.held.len() as u32, capacity])
    }
}

fn fib<A: Addr>(fib: &mut Option<Fib<A, Parts>>) -> Result<&mut Fib<A, Parts>> {
    fib.as_mut().context("the table of routes is not taken over yet")
}

/// A next hop's index as the table holds it: zero says that there is no route, and one to ask the kernel, as
/// index 0 does.
fn value(index: u32) -> u32 {
    index + 1
}

/// What has no room asks the kernel, and is right all the same.
fn with_room<T>(result: Result<T, Error>) -> Result<()> {
    match result {
        Err(Error::Full { .. }) => Ok(()),
        result => Ok(result.map(drop)?),
    }
}
