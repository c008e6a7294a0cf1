//! A family's routes in the kernel: the table of routes, and what it holds, which nobody can read back.
//!
//! Invariant: the routes of an agent before are in force until all of this one's first plan are there.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, bail};
use lb_common::table::Prefix;
use lb_common::wire::Addr;
use tracing::warn;

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
    held: BTreeMap<Prefix<A>, u32>,
}

impl<A: Addr> Routes<A> {
    pub fn open(dir: &Path, capacity: u32) -> Result<Self> {
        let parts = Parts::open::<A>(dir, u64::from(capacity) * BYTES)?;
        Ok(Routes { parts: Some(parts), fib: None, held: BTreeMap::new() })
    }

    /// Next hops' indexes by prefix.
    pub fn held(&self) -> &BTreeMap<Prefix<A>, u32> {
        &self.held
    }

    /// Puts `all` in the place of an agent's before, the first time; else does nothing.
    pub fn take_over(&mut self, all: impl Iterator<Item = (Prefix<A>, u32)>) -> Result<()> {
        let Some(parts) = self.parts.take() else { return Ok(()) };
        self.held = all.collect();
        let routes: Vec<_> = self.held.iter().map(|(&prefix, &index)| (prefix, value(index))).collect();
        let mut fib = Fib::load(parts, &routes)?;
        told(fib.retry())?;
        self.fib = Some(fib);
        Ok(())
    }

    pub fn change(&mut self, change: &Change<Prefix<A>, u32>) -> Result<()> {
        let Some(fib) = &mut self.fib else { bail!("the table of routes is not taken over yet") };
        match change {
            Change::Set(prefix, index) => {
                self.held.insert(*prefix, *index);
                told(fib.insert(prefix, value(*index)))
            }
            Change::Remove(prefix) => {
                self.held.remove(prefix);
                told(fib.remove(prefix))?;
                // What had no room before may have it now.
                told(fib.retry())
            }
        }
    }

    /// Notes for others how many there are, and how many have room.
    pub fn count(&self, counts: &Table<u32, [u32; 2]>, capacity: u32) -> Result<()> {
        counts.set(&u32::from(A::IS_V6), &[self.held.len() as u32, capacity])
    }
}

/// A next hop's index as the table holds it: zero says that there is no route, and one to ask the kernel, as
/// index 0 does.
fn value(index: u32) -> u32 {
    index + 1
}

/// What has no room asks the kernel, and is right all the same.
fn told<T>(result: Result<T, Error>) -> Result<()> {
    match result {
        Err(error @ Error::Full { .. }) => {
            warn!("{error}; capacity.routes gives it more room");
            Ok(())
        }
        result => Ok(result.map(drop)?),
    }
}
