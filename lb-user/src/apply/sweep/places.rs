//! Places of hosts' counts that an agent left that was killed in the middle of forgetting the host: neither
//! free nor anybody's.
//!
//! Invariant: a place is freed only after two passes found it so. Packets and a living agent leave that state
//! within a microsecond. Should a packet all the same take the place while it is freed, a count is wrong at
//! worst, which the sweep corrects.

use std::collections::HashSet;

use lb_common::flow_table::cell::Cell64;
use lb_common::port_table::{self, HOLDERS, HOSTS_FULL, Holder, Owner, PortTable};
use lb_common::wire::Addr;

/// A table that is one place, wherever it is looked at.
struct One<A: Addr>(Holder<A>);

impl<A: Addr> PortTable<A> for One<A> {
    fn ports(&self, _: u32) -> Option<&Cell64> {
        None
    }

    fn owner(&self, _: u32) -> Option<&Owner<A>> {
        None
    }

    fn holder(&self, index: u32) -> Option<&Holder<A>> {
        (index < HOLDERS).then_some(&self.0)
    }
}

/// Whether a place is nobody's, but refuses everybody: a copy of it is tried.
fn is_half_free<A: Addr>(holder: &Holder<A>) -> bool {
    if holder.read().is_some() {
        return false;
    }
    let copy = One(Holder::default());
    copy.0.copy(holder);
    copy.0.read().is_none() && port_table::charge(&copy, A::default(), u32::MAX) == HOSTS_FULL
}

/// Frees the places that `before` names and that are still half free; how many, and those found now.
pub fn free<A: Addr, T: PortTable<A>>(table: &T, before: &HashSet<u32>) -> (usize, HashSet<u32>) {
    let holders = (0..HOLDERS).filter_map(|index| Some((index, table.holder(index)?)));
    let (mut freed, mut found) = (0, HashSet::new());
    for (index, holder) in holders.filter(|(_, holder)| is_half_free(holder)) {
        if before.contains(&index) {
            holder.copy(&Holder::default());
            freed += 1;
        } else {
            found.insert(index);
        }
    }
    (freed, found)
}
