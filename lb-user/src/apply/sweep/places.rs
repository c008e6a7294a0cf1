//! Places of hosts' counts that an agent left that was killed in the middle of forgetting the host: neither
//! free nor anybody's.
//!
//! Invariant: a place is freed only after two passes found it so. Packets and a living agent leave that state
//! within a microsecond. Should a packet all the same take the place while it is freed, a count is wrong at
//! worst, which the sweep corrects.

use std::collections::HashSet;

use lb_common::port_table::{HOLDERS, Holder, PortTable};
use lb_common::wire::Addr;

/// Frees the places that `before` names and that are still half free; how many, and those found now.
pub fn free<A: Addr, T: PortTable<A>>(table: &T, before: &HashSet<u32>) -> (usize, HashSet<u32>) {
    let holders = (0..HOLDERS).filter_map(|index| Some((index, table.holder(index)?)));
    let (known, found): (Vec<_>, Vec<_>) =
        holders.filter(|(_, holder)| holder.is_claimed()).partition(|(index, _)| before.contains(index));
    let freed = known.into_iter().filter(|(_, holder): &(u32, &Holder<A>)| holder.recover()).count();
    (freed, found.into_iter().map(|(index, _)| index).collect())
}
