//! The port tables in this process's memory: the engine's own, over blocks that are made when they are first
//! looked at, so that the copy of a table costs what is used of it.

use std::array::from_fn;
use std::sync::OnceLock;

use lb_common::flow_table::cell::Cell64;
use lb_common::port_table::{self, HOLDERS, Holder, Owner, PLANE, PortTable, proto};
use lb_common::wire::{Addr, Be16};

/// Ports of a word, and what else goes in blocks of that.
const BLOCK: u32 = 64;

struct Block<A: Addr> {
    ports: Cell64,
    owners: [Owner<A>; BLOCK as usize],
}

struct Holders<A: Addr>([Holder<A>; BLOCK as usize]);

impl<A: Addr> Default for Block<A> {
    fn default() -> Self {
        Block { ports: Cell64::default(), owners: from_fn(|_| Owner::default()) }
    }
}

impl<A: Addr> Default for Holders<A> {
    fn default() -> Self {
        Holders(from_fn(|_| Holder::default()))
    }
}

pub struct PortMemory<A: Addr> {
    blocks: Vec<OnceLock<Box<Block<A>>>>,
    holders: Vec<OnceLock<Box<Holders<A>>>>,
}

/// A mapping, for listings: its plane, protocol, port outside, endpoint inside, and how it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mapped<A> {
    pub plane: u32,
    pub proto: u8,
    pub outside: u16,
    pub inside: (A, u16),
    /// Whom it was made to send to.
    pub remote: A,
    pub state: u8,
    pub shared: bool,
    pub away: bool,
}

impl<A: Addr> PortTable<A> for PortMemory<A> {
    fn ports(&self, index: u32) -> Option<&Cell64> {
        self.block(index).map(|block| &block.ports)
    }

    fn owner(&self, index: u32) -> Option<&Owner<A>> {
        self.block(index / BLOCK).map(|block| &block.owners[(index % BLOCK) as usize])
    }

    fn holder(&self, index: u32) -> Option<&Holder<A>> {
        let block = self.holders.get((index / BLOCK) as usize)?;
        Some(&block.get_or_init(Box::default).0[(index % BLOCK) as usize])
    }
}

impl<A: Addr> PortMemory<A> {
    /// For so many addresses outside.
    pub fn new(planes: u32) -> Self {
        let holders = if planes == 0 { 0 } else { HOLDERS };
        PortMemory { blocks: filled(planes * PLANE / BLOCK), holders: filled(holders / BLOCK) }
    }

    fn block(&self, index: u32) -> Option<&Block<A>> {
        Some(self.blocks.get(index as usize)?.get_or_init(Box::default))
    }

    /// All mappings, in order.
    pub fn all(&self) -> Vec<Mapped<A>> {
        self.taken().into_iter().filter_map(|index| mapped(self, index)).collect()
    }

    /// Entries whose bit is set.
    pub fn taken(&self) -> Vec<u32> {
        let used = (0..).zip(&self.blocks).filter_map(|(index, block)| Some((index, block.get()?)));
        used.flat_map(|(index, block)| set(index * BLOCK, block.ports.load())).collect()
    }

    /// Hosts inside, their ports, and packets dropped since they had too many.
    pub fn hosts(&self) -> Vec<(A, u32, u32)> {
        let used = self.holders.iter().filter_map(OnceLock::get);
        let mut all: Vec<_> = used.flat_map(|block| &block.0).filter_map(Holder::read).collect();
        all.sort();
        all
    }

    pub fn age(&self, ticks: u32) {
        self.taken()
            .iter()
            .filter_map(|&index| self.owner(index))
            .for_each(|owner| owner.retime(|last| last.wrapping_sub(ticks)));
    }

    /// Gives all ports of a plane back.
    pub fn empty(&self, plane: u32) {
        self.empty_where(plane, |_| true);
    }

    /// Gives those of a plane's ports back that are `gone`.
    pub fn empty_where(&self, plane: u32, gone: impl Fn(Be16) -> bool) {
        give_back(self, self.taken().into_iter().filter(|&index| index / PLANE == plane && gone(port(index))));
    }
}

fn filled<T: Default>(count: u32) -> Vec<T> {
    (0..count).map(|_| T::default()).collect()
}

/// The mappings of a port table of so many entries, in order.
pub fn mappings<A: Addr>(table: &impl PortTable<A>, entries: u32) -> Vec<Mapped<A>> {
    taken(table, 0, entries).filter_map(|index| mapped(table, index)).collect()
}

fn mapped<A: Addr>(table: &impl PortTable<A>, index: u32) -> Option<Mapped<A>> {
    let owner = table.owner(index)?;
    let (meta, (inside, own, remote)) = (owner.meta(), owner.whose()?);
    Some(Mapped {
        plane: index / PLANE,
        proto: proto::<A>(index % PLANE / port_table::PORTS),
        outside: port(index).get(),
        inside: (inside, own.get()),
        remote,
        state: meta.state(),
        shared: meta.shared(),
        away: meta.away(),
    })
}

/// The port of an entry.
fn port(index: u32) -> Be16 {
    Be16::new((index % port_table::PORTS) as u16)
}

/// The entries from `from` to before `to` whose bits are set.
fn taken<A: Addr>(table: &impl PortTable<A>, from: u32, to: u32) -> impl Iterator<Item = u32> {
    (from / BLOCK..to / BLOCK).flat_map(|word| set(word * BLOCK, table.ports(word).map_or(0, Cell64::load)))
}

/// The numbers of the bits that are set, from `first` on.
fn set(first: u32, bits: u64) -> impl Iterator<Item = u32> {
    (0..BLOCK).filter(move |bit| bits >> bit & 1 != 0).map(move |bit| first + bit)
}

/// Gives all ports of a plane back.
pub fn empty<A: Addr>(table: &impl PortTable<A>, plane: u32) {
    give_back(table, taken(table, plane * PLANE, (plane + 1) * PLANE));
}

fn give_back<A: Addr>(table: &impl PortTable<A>, indexes: impl Iterator<Item = u32>) {
    for index in indexes {
        let Some(owner) = table.owner(index) else { continue };
        let inside = owner.whose().map(|(inside, ..)| inside);
        if port_table::release(table, index, owner.meta()) {
            inside.into_iter().for_each(|inside| port_table::refund(table, inside));
        }
    }
}

impl<A: Addr> Clone for PortMemory<A> {
    fn clone(&self) -> Self {
        let copy = PortMemory { blocks: filled(self.blocks.len() as u32), holders: filled(self.holders.len() as u32) };
        for (to, from) in copy.blocks.iter().zip(&self.blocks).filter_map(|(to, from)| Some((to, from.get()?))) {
            let to = to.get_or_init(Box::default);
            to.ports.store(from.ports.load());
            to.owners.iter().zip(&from.owners).for_each(|(to, from)| to.copy(from));
        }
        for (to, from) in copy.holders.iter().zip(&self.holders).filter_map(|(to, from)| Some((to, from.get()?))) {
            to.get_or_init(Box::default).0.iter().zip(&from.0).for_each(|(to, from)| to.copy(from));
        }
        copy
    }
}

impl<A: Addr> PartialEq for PortMemory<A> {
    fn eq(&self, other: &Self) -> bool {
        self.all() == other.all() && self.taken() == other.taken() && self.hosts() == other.hosts()
    }
}
