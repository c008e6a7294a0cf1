//! The writing side of [`lb_common::fib`]: which prefixes there are, and how lookups come to see it.
//!
//! Promises, beside those of the reading side:
//!
//! 1. A change is there when the call returns, and touches the one node that the prefix ends in, the
//!    defaults of those right below, and nothing else.
//! 2. A whole table is built beside the one in force, and takes over address by address, by the stores of
//!    the root alone.
//! 3. Lines are used again only when every lookup that could have known them has ended ([`Store::wait`]).
//! 4. A change that finds no room is told ([`Error::Full`]) and kept: the addresses that it would have
//!    needed a node for ask the kernel ([`lb_common::fib::KERNEL`]) until [`Fib::retry`] finds room.
//!
//! What is not here: where the memory comes from (`apply/fib.rs`), what a value means.

mod flat;
mod node;
mod pool;
mod room;

use std::fmt;

use lb_common::fib::MAX_VALUE;
use lb_common::table::Prefix;
use lb_common::wire::Addr;

use flat::Flat;
use node::Rest;
use pool::Pool;
pub use pool::Store;

/// Why a prefix isn't in the table as it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The prefix is longer than an address, or has bits behind its length.
    Prefix,
    /// Values are 1 to [`MAX_VALUE`].
    Value(u32),
    /// There was no room. The table is right, but so many of its nodes ask the kernel.
    Full { spilled: usize },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Prefix => write!(f, "no prefix"),
            Error::Value(value) => write!(f, "a route's value is 1 to {MAX_VALUE}, not {value}"),
            Error::Full { spilled } => {
                write!(f, "the table of routes is full: the kernel is asked for {spilled} of its nodes")
            }
        }
    }
}

impl std::error::Error for Error {}

/// How full a table is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub prefixes: usize,
    pub nodes: usize,
    /// Lines of 64 bytes: all there are now, beside the root; those in nodes; those that lookups may still read.
    pub lines: u32,
    pub used: u32,
    pub retired: u32,
    /// Nodes whose addresses ask the kernel.
    pub spilled: usize,
}

/// One family's table.
pub struct Fib<A: Addr, S: Store<A>> {
    root: Flat,
    pool: Pool<A, S>,
    prefixes: usize,
}

fn rest<A: Addr>(prefix: &Prefix<A>) -> Result<Rest, Error> {
    let (high, low) = prefix.addr.halves();
    let (bits, len) = (u128::from(high) << 64 | u128::from(low), prefix.len);
    if len > A::BITS || bits.checked_shl(len).unwrap_or(0) != 0 {
        return Err(Error::Prefix);
    }
    Ok(Rest { bits, len })
}

fn checked(value: u32) -> Result<u32, Error> {
    if (1..=MAX_VALUE).contains(&value) { Ok(value) } else { Err(Error::Value(value)) }
}

impl<A: Addr, S: Store<A>> Fib<A, S> {
    /// Takes over a memory: what it held before is in force until all of `routes` is there. Of a prefix
    /// that comes twice the later one counts. Whether all had room [`Self::retry`] tells.
    pub fn load(store: S, routes: &[(Prefix<A>, u32)]) -> Result<Self, Error> {
        let mut fib = Fib { root: Flat::root::<A>(std::iter::empty()), pool: Pool::new(store), prefixes: 0 };
        match fib.replace(routes) {
            Ok(()) | Err(Error::Full { .. }) => Ok(fib),
            Err(error) => Err(error),
        }
    }

    /// Makes the table another one. Refused as a whole where a route isn't one.
    pub fn replace(&mut self, routes: &[(Prefix<A>, u32)]) -> Result<(), Error> {
        let mut order = Vec::with_capacity(routes.len());
        for (index, (prefix, value)) in (0u32..).zip(routes) {
            let rest = rest(prefix)?;
            order.push(((rest.bits >> 64) as u64, index, rest.len, checked(*value)?));
        }
        // So that a node's prefixes come together; of two that are one the later one comes later.
        order.sort_unstable_by_key(|&(high, index, ..)| (high, index));
        let mut root =
            Flat::root::<A>(order.iter().map(|&(high, _, len, _)| Rest { bits: u128::from(high) << 64, len }));
        for (high, index, len, value) in order {
            // The lower half of a few alone is looked for where it is.
            let low = if len > 64 { routes[index as usize].0.addr.halves().1 } else { 0 };
            root.note(Rest { bits: u128::from(high) << 64 | u128::from(low), len }, Some(value));
        }
        (_, self.prefixes) = root.count();
        self.root.take_back(&mut self.pool);
        self.pool.whole = true;
        root.write(&mut self.pool);
        self.root = root;
        self.pool.done();
        if self.pool.room.retired() >= pool::WORTH {
            self.pool.reclaim();
        }
        self.pool.store.settled();
        self.retry()
    }

    /// Sets a prefix's value, whether it is there or not; the value that it had.
    pub fn insert(&mut self, prefix: &Prefix<A>, value: u32) -> Result<Option<u32>, Error> {
        let (rest, value) = (rest(prefix)?, checked(value)?);
        let old = self.root.get(rest);
        self.prefixes += usize::from(old.is_none());
        self.change(rest, Some(value), old)
    }

    /// Removes a prefix; the value that it had.
    pub fn remove(&mut self, prefix: &Prefix<A>) -> Result<Option<u32>, Error> {
        let rest = rest(prefix)?;
        let old = self.root.get(rest);
        self.prefixes -= usize::from(old.is_some());
        self.change(rest, None, old)
    }

    fn change(&mut self, rest: Rest, value: Option<u32>, old: Option<u32>) -> Result<Option<u32>, Error> {
        if value == old {
            return Ok(old);
        }
        self.pool.met_spilled = false;
        self.root.change(&mut self.pool, rest, value);
        self.pool.done();
        if self.pool.met_spilled { Err(self.full()) } else { Ok(old) }
    }

    /// Writes what had no room before, as far as there is room now.
    pub fn retry(&mut self) -> Result<(), Error> {
        if self.pool.spilled > 0 {
            self.root.retry(&mut self.pool);
            self.pool.done();
        }
        if self.pool.spilled > 0 { Err(self.full()) } else { Ok(()) }
    }

    fn full(&self) -> Error {
        Error::Full { spilled: self.pool.spilled }
    }

    /// The prefix's own value.
    pub fn get(&self, prefix: &Prefix<A>) -> Option<u32> {
        self.root.get(rest(prefix).ok()?)
    }

    /// Nodes whose addresses ask the kernel.
    pub fn spilled(&self) -> usize {
        self.pool.spilled
    }

    pub fn store(&self) -> &S {
        &self.pool.store
    }

    pub fn usage(&self) -> Usage {
        let room = &self.pool.room;
        Usage {
            prefixes: self.prefixes,
            nodes: self.root.count().0,
            lines: room.lines(),
            used: room.used(),
            retired: room.retired(),
            spilled: self.pool.spilled,
        }
    }
}
