//! The port tables in this process: the kernel's own arrays, mapped, under the engine's own operations.
//!
//! Invariant: no system call a port; what is changed here is changed by the rules that packets keep to.

use std::net::SocketAddr;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use lb_common::flow_table::cell::Cell64;
use lb_common::port_table::{self, CLASSES, HOLDERS, Holder, Owner, PLANE, PORTS, PortTable};
use lb_common::wire::{Addr, Be16};

use super::sys::{Mapping, RawMap, Shared};

/// How often a port is tried to be given back that a packet uses at the same time.
const TRIES: u32 = 4;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// A mapping that the agent ended, as it is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// None: behind all that packets have begun so far, and before all that they begin from now on.
    pub time: Option<SystemTime>,
    pub protocol: u8,
    pub inside: SocketAddr,
    pub outside: SocketAddr,
}

impl<A: Addr> Taken<A> {
    /// The end of it, `outside` being its plane's address.
    pub fn ended(&self, outside: A, time: Option<SystemTime>) -> Ended {
        Ended {
            time,
            protocol: port_table::proto::<A>(self.class),
            inside: SocketAddr::new(self.inside.to_ip(), self.inside_port),
            outside: SocketAddr::new(outside.to_ip(), self.outside_port),
        }
    }
}

/// Who has an entry; None: nobody.
pub fn at<A: Addr, T: PortTable<A>>(table: &T, index: u32) -> Option<Taken<A>> {
    let owner = table.owner(index)?;
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

/// The entries from `from` to before `to` whose bits are set.
pub fn bits<A: Addr, T: PortTable<A>>(table: &T, from: u32, to: u32) -> impl Iterator<Item = u32> {
    let words = (from / 64..to.div_ceil(64)).map(|word| (word, table.ports(word).map_or(0, Cell64::load)));
    words
        .filter(|(_, bits)| *bits != 0)
        .flat_map(|(word, bits)| (0..64).filter(move |bit| bits >> bit & 1 != 0).map(move |bit| word * 64 + bit))
}

/// Gives a port back, as long as its endpoint has it; false where it doesn't any more.
pub fn give_back<A: Addr, T: PortTable<A>>(table: &T, taken: &Taken<A>) -> bool {
    let Some(owner) = table.owner(taken.index) else { return false };
    // A packet may change its state meanwhile.
    for _ in 0..TRIES {
        let Some(meta) = owner.of(taken.inside, Be16::new(taken.inside_port)) else { return false };
        if port_table::release(table, taken.index, meta) {
            // Who is killed before this, or in `release`, leaves a count or a bit that the sweep corrects.
            port_table::refund(table, taken.inside);
            return true;
        }
    }
    false
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
        bits(self, from, to).filter_map(|index| at(self, index))
    }

    /// See [`give_back`].
    pub fn give_back(&self, taken: &Taken<A>) -> bool {
        give_back(self, taken)
    }

    /// Hosts inside: how many ports each has, and how many packets were dropped since it had too many.
    pub fn hosts(&self) -> impl Iterator<Item = (A, u32, u32)> {
        self.holders.get().iter().filter_map(Holder::read)
    }
}

fn map<T: Shared>(dir: &Path, name: &str) -> Result<Mapping<T>> {
    RawMap::from_pin(&dir.join(name))?.mapping()?.with_context(|| format!("the map {name} can't be mapped"))
}
