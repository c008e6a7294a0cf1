//! How many ports each host inside has: a table of counts, found by a hash of the host's address.
//!
//! Invariant: a count is only added to, since packets and the agent do so at the same time. What a host may
//! have is the caller's.

use super::{NONE, PortTable};
use crate::flow_table::cell::{Cell32, Cells};
use crate::hash;
use crate::wire::Addr;

/// Hosts that ports are counted for; a power of two.
pub const HOLDERS: u32 = 1 << 14;
/// Places of a host's count that are looked at.
const PROBES: u32 = 8;

crate::table::cells! {
    /// How many ports a host on the inside has.
    #[repr(C)]
    pub struct Holder<A> {
        /// 0: free; [`Holder::CLAIMED`]; [`Holder::VALID`].
        state: Cell32,
        ports: Cell32,
        /// Packets dropped since it had too many.
        denied: Cell32,
        pad: Cell32,
        /// The host, and nothing.
        addr: A::Pair,
    }
}

impl<A: Addr> Holder<A> {
    /// Somebody writes the address.
    const CLAIMED: u32 = 1;
    const VALID: u32 = 2;

    /// The host, how many ports it has, and how many packets were dropped since it had too many.
    pub fn read(&self) -> Option<(A, u32, u32)> {
        let valid = self.state.load() == Self::VALID;
        valid.then(|| (A::unpair(self.addr.load()).0, self.ports.load(), self.denied.load()))
    }

    /// Whether somebody has the place's host in hand: for a microsecond, or for good, where an agent was killed
    /// in the midst of it.
    pub fn is_claimed(&self) -> bool {
        self.state.load() == Self::CLAIMED
    }

    /// Frees a place that somebody left claimed; false where it is not.
    pub fn recover(&self) -> bool {
        self.state.swap_if(Self::CLAIMED, 0)
    }

    /// Corrects the count by so much.
    pub fn correct(&self, by: u32) {
        self.ports.add(by);
    }

    /// Forgets a host that has no port; false where it got one.
    pub fn forget(&self) -> bool {
        if !self.state.swap_if(Self::VALID, Self::CLAIMED) {
            return false;
        }
        let idle = self.ports.load() == 0;
        if idle {
            self.denied.store(0);
        }
        self.state.store(if idle { 0 } else { Self::VALID });
        idle
    }

    /// For tests that try one thing twice.
    #[cfg(not(target_arch = "bpf"))]
    pub fn copy(&self, other: &Self) {
        self.state.store(other.state.load());
        self.ports.store(other.ports.load());
        self.denied.store(other.denied.load());
        self.addr.store(other.addr.load());
    }
}

/// What [`admit`] answers in place of a place: the host has all the ports that it may have,
pub const OVER_QUOTA: u32 = NONE - 1;
/// or there is no room to count another host's.
pub const HOSTS_FULL: u32 = NONE;

/// The place where a host's ports are counted, made if `make`; [`NONE`] without one.
#[inline(always)]
fn place<A: Addr, T: PortTable<A>>(table: &T, inside: A, make: bool) -> u32 {
    let words = A::pair(inside, A::default());
    let start = hash::client(inside, 0);
    let mut free = NONE;
    for i in 0..PROBES {
        let index = start.wrapping_add(i) % HOLDERS;
        let Some(holder) = table.holder(index) else {
            break;
        };
        let state = holder.state.load();
        if state == Holder::<A>::VALID && holder.addr.holds(&words) {
            return index;
        }
        if state == 0 && free == NONE {
            free = index;
        }
    }
    let Some(holder) = table.holder(free).filter(|_| make) else {
        return NONE;
    };
    // Where it fails another host took it just now: this one's next packet finds another.
    if !holder.state.swap_if(0, Holder::<A>::CLAIMED) {
        return NONE;
    }
    holder.ports.store(0);
    holder.denied.store(0);
    holder.addr.store(words);
    let _ = holder.state.swap_if(Holder::<A>::CLAIMED, Holder::<A>::VALID);
    free
}

/// The place where a host's ports are counted, if it may have one more.
#[inline(always)]
pub fn admit<A: Addr, T: PortTable<A>>(table: &T, inside: A, quota: u32) -> u32 {
    let place = place(table, inside, true);
    let Some(holder) = table.holder(place) else {
        return HOSTS_FULL;
    };
    if holder.ports.load() >= quota {
        holder.denied.add(1);
        return OVER_QUOTA;
    }
    place
}

/// Counts one more port of the host that was [`admit`]ted. Of several packets at a time each may have seen room
/// for one.
#[inline(always)]
pub fn charge<A: Addr, T: PortTable<A>>(table: &T, place: u32) {
    if let Some(holder) = table.holder(place) {
        holder.ports.add(1);
    }
}

/// Counts one port of a host less.
#[inline(always)]
pub fn refund<A: Addr, T: PortTable<A>>(table: &T, inside: A) {
    if let Some(holder) = table.holder(place(table, inside, false))
        && holder.ports.load() != 0
    {
        holder.ports.add(u32::MAX);
    }
}

const _: () = {
    use crate::wire::{Ip4, Ip6};
    assert!(size_of::<Holder<Ip4>>() == 24 && size_of::<Holder<Ip6>>() == 48);
};
