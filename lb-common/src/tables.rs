//! What the path may ask of the world.
//!
//! Three implementations: maps (the kernel), `Fake` (tests, simulation), a read-only view of the
//! live maps. All values are handed over by copy. Connections alone are reached by reference, by the
//! operations of [`crate::flow_table`], which know that others write at the same time.

use crate::drop::Note;
use crate::flow_table::FlowTable;
use crate::path::parse::Ip;
use crate::path::{Context, Work, deliver, nat, service};
use crate::port_table::PortTable;
use crate::table::{
    Affinity, AffinityKey, Announced, Backend, FragmentKey, FragmentPorts, Link, MappingEvent, NextHop, Owned,
    PrefixPair, Service, ServiceKey, Settings, Source, Tunnel, Uplink,
};
use crate::verdict::{Arrival, Outcome};
use crate::wire::{Addr, Ip6};

/// What has the engine's settings: all that tables of connections and ports need to know beside themselves.
pub trait Configured {
    fn settings(&self) -> Settings;
}

/// Tables that know no address family.
pub trait Common: Configured {
    /// The word of [`crate::table::filter`] that holds a bit.
    fn filter(&self, bit: u32) -> u64;
    /// The backend in a slot of the flat slot array.
    fn slot(&self, index: u32) -> Option<u32>;
    fn next_hop(&self, index: u32) -> Option<NextHop>;
    /// The next hop in a place of a group ([`crate::table::route::PLACES`]).
    fn member(&self, group: u32, place: u32) -> Option<u32>;
    /// What is around packets to the next hop of this index, in the overlay.
    fn tunnel(&self, next_hop: u32) -> Option<Tunnel>;
    /// Whether this is a node's address that sends in the overlay; IPv4 ones are [`Ip6::mapped`].
    fn is_peer(&self, addr: &Ip6) -> bool;
    /// The link, if it leads to other hosts or to the inside.
    fn link(&self, ifindex: u32) -> Option<Link>;
    /// Takes one of this tick-second's ICMP errors; false when they are used up.
    fn icmp_permit(&self, now: u32) -> bool;
    /// Counts a packet of a backend; `reply`: from it.
    fn count(&self, backend: u32, reply: bool, bytes: u32);
    /// Counts a new connection of a backend.
    fn count_connection(&self, backend: u32);
    fn note(&self, note: Note);
}

/// Tables of one address family.
pub trait Tables<A: Addr>: Common + FlowTable<A> + PortTable<A> {
    fn service(&self, key: &ServiceKey<A>) -> Option<Service>;
    /// Whether a service with [`Service::RANGES`] names the source.
    fn allows(&self, source: &Source<A>) -> bool;
    fn backend(&self, id: u32) -> Option<Backend<A>>;
    /// The next hop on the longest matching route, or a [`NextHop::GROUP`]; beside it perhaps [`NextHop::DIRECT`].
    fn route(&self, dst: A) -> Option<u32>;
    /// What an address of ours is.
    fn owned(&self, addr: A) -> Option<Owned>;
    /// By what this node announces the address, if it does.
    fn announced(&self, addr: A) -> Option<Announced>;

    /// [`service::open`], which the kernel makes a function of its own.
    fn open(&self, work: &mut Work<A>, at: &Arrival, outcome: &mut Outcome) -> bool
    where
        Self: Sized,
        A: Ip,
    {
        service::open(work, &Context { tables: self, at }, outcome)
    }

    /// [`deliver::resolve`], as well.
    fn resolve(&self, work: &mut Work<A>, at: &Arrival) -> u32
    where
        Self: Sized,
        A: Ip,
    {
        deliver::resolve(work, &Context { tables: self, at })
    }

    /// The link, if it leads out.
    fn uplink(&self, ifindex: u32) -> Option<&Uplink<A>>;
    fn prefix_pair(&self, index: u32) -> Option<&PrefixPair<A>>;
    /// Tells whoever logs mappings.
    fn nat_event(&self, event: &MappingEvent<A>);

    // Steps of `nat`, each a function of its own in the kernel.

    /// [`nat::way`].
    fn nat_way(&self, work: &mut Work<A>, at: &Arrival, outcome: &mut Outcome) -> u32
    where
        Self: Sized,
        A: Ip,
    {
        nat::way(work, &Context { tables: self, at }, outcome)
    }

    /// [`nat::known`].
    fn nat_known(&self, work: &mut Work<A>, at: &Arrival) -> u32
    where
        Self: Sized,
        A: Ip,
    {
        nat::known(work, &Context { tables: self, at })
    }

    /// [`nat::take`].
    fn nat_take(&self, work: &mut Work<A>, at: &Arrival) -> u32
    where
        Self: Sized,
        A: Ip,
    {
        nat::take(work, &Context { tables: self, at })
    }

    /// [`nat::cede`].
    fn nat_cede(&self, work: &mut Work<A>, at: &Arrival)
    where
        Self: Sized,
        A: Ip,
    {
        let _ = nat::cede(work, &Context { tables: self, at });
    }

    /// [`nat::map`].
    fn nat_map(&self, work: &mut Work<A>, at: &Arrival) -> u32
    where
        Self: Sized,
        A: Ip,
    {
        nat::map(work, &Context { tables: self, at })
    }

    /// [`nat::remember`].
    fn nat_remember(&self, work: &mut Work<A>)
    where
        Self: Sized,
        A: Ip,
    {
        nat::remember(work, self);
    }

    /// [`nat::put`].
    fn nat_put(&self, work: &mut Work<A>, at: &Arrival, outcome: &mut Outcome) -> bool
    where
        Self: Sized,
        A: Ip,
    {
        nat::put(work, &Context { tables: self, at }, outcome)
    }

    /// [`nat::follow`].
    fn nat_follow(&self, work: &mut Work<A>, at: &Arrival)
    where
        Self: Sized,
        A: Ip,
    {
        let _ = nat::follow(work, &Context { tables: self, at });
    }

    fn affinity(&self, key: &AffinityKey<A>) -> Option<Affinity>;
    fn affinity_put(&self, key: &AffinityKey<A>, affinity: &Affinity);
    fn fragment(&self, key: &FragmentKey<A>) -> Option<FragmentPorts>;
    fn fragment_put(&self, key: &FragmentKey<A>, ports: &FragmentPorts);
}
