//! The port tables in this process's memory: the engine's own, over vectors.

use lb_common::flow_table::cell::Cell64;
use lb_common::port_table::{self, HOLDERS, Holder, Owner, PLANE, PortTable, proto};
use lb_common::wire::{Addr, Be16};

pub struct PortMemory<A: Addr> {
    ports: Vec<Cell64>,
    owners: Vec<Owner<A>>,
    holders: Vec<Holder<A>>,
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
        self.ports.get(index as usize)
    }

    fn owner(&self, index: u32) -> Option<&Owner<A>> {
        self.owners.get(index as usize)
    }

    fn holder(&self, index: u32) -> Option<&Holder<A>> {
        self.holders.get(index as usize)
    }
}

impl<A: Addr> PortMemory<A> {
    /// For so many addresses outside.
    pub fn new(planes: u32) -> Self {
        PortMemory {
            ports: filled(planes * PLANE / 64),
            owners: filled(planes * PLANE),
            holders: filled(if planes == 0 { 0 } else { HOLDERS }),
        }
    }

    /// All mappings, in order.
    pub fn all(&self) -> Vec<Mapped<A>> {
        mappings(self, self.owners.len() as u32)
    }

    /// Entries whose bit is set.
    pub fn taken(&self) -> Vec<u32> {
        taken(self, self.owners.len() as u32)
    }

    /// Hosts inside, their ports, and packets dropped since they had too many.
    pub fn hosts(&self) -> Vec<(A, u32, u32)> {
        let mut all: Vec<_> = self.holders.iter().filter_map(Holder::read).collect();
        all.sort();
        all
    }

    pub fn age(&self, ticks: u32) {
        self.taken().iter().filter_map(|&index| self.owner(index)).for_each(|owner| owner.age(ticks));
    }

    /// Gives all ports of a plane back.
    pub fn empty(&self, plane: u32) {
        empty(self, plane);
    }

    /// Gives those of a plane's ports back that are `gone`.
    pub fn empty_where(&self, plane: u32, gone: impl Fn(Be16) -> bool) {
        empty_where(self, plane, gone);
    }
}

fn filled<T: Default>(count: u32) -> Vec<T> {
    (0..count).map(|_| T::default()).collect()
}

/// The mappings of a port table of so many entries, in order.
pub fn mappings<A: Addr>(table: &impl PortTable<A>, entries: u32) -> Vec<Mapped<A>> {
    let mapped = |index: u32| {
        let owner = table.owner(index)?;
        let (meta, (inside, port, remote)) = (owner.meta(), owner.whose()?);
        Some(Mapped {
            plane: index / PLANE,
            proto: proto::<A>(index % PLANE / port_table::PORTS),
            outside: (index % port_table::PORTS) as u16,
            inside: (inside, port.get()),
            remote,
            state: meta.state(),
            shared: meta.shared(),
            away: meta.away(),
        })
    };
    taken(table, entries).into_iter().filter_map(mapped).collect()
}

fn taken<A: Addr>(table: &impl PortTable<A>, entries: u32) -> Vec<u32> {
    let word = |index: u32| table.ports(index / 64).map_or(0, Cell64::load);
    let words = (0..entries).step_by(64).filter(|&index| word(index) != 0);
    words.flat_map(|first| (first..first + 64).filter(move |index| word(*index) >> (index % 64) & 1 != 0)).collect()
}

/// Gives all ports of a plane back.
pub fn empty<A: Addr>(table: &impl PortTable<A>, plane: u32) {
    empty_where(table, plane, |_| true);
}

fn empty_where<A: Addr>(table: &impl PortTable<A>, plane: u32, gone: impl Fn(Be16) -> bool) {
    let gone = |index: &u32| index / PLANE == plane && gone(Be16::new((index % port_table::PORTS) as u16));
    for index in taken(table, (plane + 1) * PLANE).into_iter().filter(gone) {
        let Some(owner) = table.owner(index) else { continue };
        let inside = owner.whose().map(|(inside, ..)| inside);
        if port_table::release(table, index, owner.meta()) {
            inside.into_iter().for_each(|inside| port_table::refund(table, inside));
        }
    }
}

impl<A: Addr> Clone for PortMemory<A> {
    fn clone(&self) -> Self {
        let copy = PortMemory::new(self.owners.len() as u32 / PLANE);
        copy.ports.iter().zip(&self.ports).for_each(|(to, from)| to.store(from.load()));
        copy.owners.iter().zip(&self.owners).for_each(|(to, from)| to.copy(from));
        copy.holders.iter().zip(&self.holders).for_each(|(to, from)| to.copy(from));
        copy
    }
}

impl<A: Addr> PartialEq for PortMemory<A> {
    fn eq(&self, other: &Self) -> bool {
        self.all() == other.all() && self.taken() == other.taken() && self.hosts() == other.hosts()
    }
}
