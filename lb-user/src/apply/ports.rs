//! The port tables in this process: the kernel's own arrays, mapped, under the engine's own operations.
//!
//! Invariant: no system call a port; what is changed here is changed by the rules that packets keep to.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use lb_common::flow_table::cell::Cell64;
use lb_common::port_table::{self, CLASSES, HOLDERS, Holder, Owner, PLANE, PORTS, PortTable};
use lb_common::wire::Addr;

use super::sys::{Mapping, RawMap, Shared};

/// A family's tables.
#[derive(Debug)]
pub struct Ports<A: Addr> {
    ports: Mapping<Cell64>,
    owners: Mapping<Owner<A>>,
    holders: Mapping<Holder<A>>,
}

impl<A: Addr> PortTable<A> for Ports<A> {
    fn ports(&self, index: u32) -> Option<&Cell64> {
        self.ports.get().get(index as usize)
    }

    fn owner(&self, index: u32) -> Option<&Owner<A>> {
        self.owners.get().get(index as usize)
    }

    fn holder(&self, index: u32) -> Option<&Holder<A>> {
        self.holders.get().get(index as usize)
    }
}

/// A port outside that somebody inside has.
#[derive(Clone, Copy, Debug)]
pub struct Taken<A> {
    pub index: u32,
    pub plane: u32,
    /// Of TCP, UDP or ICMP ([`port_table::class`]).
    pub class: u32,
    pub outside_port: u16,
    pub inside: A,
    pub inside_port: u16,
    pub state: u8,
    pub last: u32,
}

impl<A: Addr> Ports<A> {
    pub fn open(dir: &Path) -> Result<Self> {
        let ports: Mapping<Cell64> = map(dir, if A::IS_V6 { "PORTS6" } else { "PORTS4" })?;
        let owners: Mapping<Owner<A>> = map(dir, if A::IS_V6 { "OWNERS6" } else { "OWNERS4" })?;
        let holders: Mapping<Holder<A>> = map(dir, if A::IS_V6 { "HOLDERS6" } else { "HOLDERS4" })?;
        ensure!(ports.get().len() * 64 == owners.get().len(), "the port tables are of different sizes");
        ensure!(holders.get().len() >= HOLDERS as usize, "the table of hosts is too small");
        Ok(Ports { ports, owners, holders })
    }

    /// Addresses that there is room for.
    pub fn planes(&self) -> u32 {
        self.owners.get().len() as u32 / PLANE
    }

    /// The entries of a part of the table, from `from` to before `to`, that somebody has.
    pub fn taken(&self, from: u32, to: u32) -> impl Iterator<Item = Taken<A>> {
        let words = (from / 64..to.div_ceil(64)).filter(|&word| self.ports(word).is_some_and(|w| w.load() != 0));
        words.flat_map(|word| word * 64..word * 64 + 64).filter_map(|index| self.at(index))
    }

    fn at(&self, index: u32) -> Option<Taken<A>> {
        let owner = self.owner(index)?;
        let meta = owner.meta();
        let (inside, _) = owner.addrs(meta)?;
        Some(Taken {
            index,
            plane: index / PLANE,
            class: index / PORTS % CLASSES,
            outside_port: (index % PORTS) as u16,
            inside,
            inside_port: meta.port().get(),
            state: meta.state(),
            last: owner.last(),
        })
    }

    /// Gives a port back, whoever has it; false where nobody does any more.
    pub fn give_back(&self, taken: &Taken<A>) -> bool {
        let Some(owner) = self.owner(taken.index) else { return false };
        let meta = owner.meta();
        let same = owner.addrs(meta).is_some_and(|(inside, _)| inside == taken.inside);
        // The host's count first: an agent that dies in between leaves a port without an owner.
        same && port_table::release(self, taken.index, meta) && {
            port_table::refund(self, taken.inside);
            true
        }
    }

    /// Hosts inside: how many ports each has, and how many packets were dropped since it had too many.
    pub fn hosts(&self) -> impl Iterator<Item = (A, u32, u32)> {
        self.holders.get().iter().filter_map(Holder::read)
    }
}

fn map<T: Shared>(dir: &Path, name: &str) -> Result<Mapping<T>> {
    RawMap::from_pin(&dir.join(name))?.mapping()?.with_context(|| format!("the map {name} can't be mapped"))
}
