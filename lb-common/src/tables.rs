//! What the path may ask of the world.
//!
//! Three implementations: maps (the kernel), `Fake` (tests, simulation), a read-only view of the
//! live maps. All values are handed over by copy; a change names the field it changes, so that two
//! CPUs that hold the same entry never undo each other's change of another field.

use crate::drop::Note;
use crate::table::{
    Affinity, AffinityKey, Backend, Flow, FlowKey, FlowSet, FragmentKey, FragmentPorts, NextHop, Owned, Put, Service,
    ServiceKey, Settings,
};
use crate::wire::Addr;

/// Why an entry was not put into a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PutError {
    /// [`Put::New`], and the key is there.
    Exists,
    /// No room.
    Full,
}

/// Tables that know no address family.
pub trait Common {
    fn settings(&self) -> Settings;
    /// The word of [`crate::table::filter`] that holds a bit.
    fn filter(&self, bit: u32) -> u64;
    /// The backend in a slot of the flat slot array.
    fn slot(&self, index: u32) -> Option<u32>;
    fn next_hop(&self, index: u32) -> Option<NextHop>;
    /// Takes one of this tick-second's ICMP errors; false when they are used up.
    fn icmp_permit(&self, now: u32) -> bool;
    /// Counts a packet of a backend; `reply`: from it.
    fn count(&self, backend: u32, reply: bool, bytes: u32);
    /// Counts a new connection of a backend.
    fn count_connection(&self, backend: u32);
    fn note(&self, note: Note);
}

/// Tables of one address family.
pub trait Tables<A: Addr>: Common {
    fn service(&self, key: &ServiceKey<A>) -> Option<Service>;
    fn backend(&self, id: u32) -> Option<Backend<A>>;
    /// The next hop on the longest matching route.
    fn route(&self, dst: A) -> Option<u32>;
    /// What an address of ours is.
    fn owned(&self, addr: A) -> Option<Owned>;

    fn flow(&self, set: FlowSet, key: &FlowKey<A>) -> Option<Flow<A>>;
    fn flow_put(&self, set: FlowSet, key: &FlowKey<A>, flow: &Flow<A>, put: Put) -> Result<(), PutError>;
    /// Sets [`Flow::last`].
    fn flow_touch(&self, set: FlowSet, key: &FlowKey<A>, last: u32);
    /// Sets [`Flow::state`].
    fn flow_state(&self, set: FlowSet, key: &FlowKey<A>, state: u8);
    /// Sets [`Flow::next_hop`] and [`Flow::epoch`].
    fn flow_next_hop(&self, set: FlowSet, key: &FlowKey<A>, next_hop: u32, epoch: u16);
    fn flow_delete(&self, set: FlowSet, key: &FlowKey<A>);

    fn affinity(&self, key: &AffinityKey<A>) -> Option<Affinity>;
    fn affinity_put(&self, key: &AffinityKey<A>, affinity: &Affinity);
    fn fragment(&self, key: &FragmentKey<A>) -> Option<FragmentPorts>;
    fn fragment_put(&self, key: &FragmentKey<A>, ports: &FragmentPorts);
}
