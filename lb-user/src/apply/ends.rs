//! The ends of translated connections that the agent brings about: an address, a prefix or a port is no
//! longer one outside.
//!
//! Invariant: what ends is counted for people, and each mapping that ends is told to whoever logs them. A
//! log that isn't read, or a count that can't be written, keeps nothing from ending.
//! Deliberately not here: ends by time ([`super::sweep`]).

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;

use ipnet::IpNet;
use lb_common::port_table::{PLANE, class};
use lb_common::table::{Flow, FlowKey, Prefix, Settings};
use lb_common::wire::{Addr, Be16};
use tracing::{info, warn};

use super::maps::{FamilyMaps, Paths};
use super::ports::{Ended, Taken};
use super::state::{EndedFor, State};

/// Ends connections, and says so.
pub struct Ends {
    /// Is told of each mapping that ends.
    pub tell: Box<dyn Fn(Ended) + Send>,
    /// Connections that have ended and are not yet noted.
    ended: EndedFor,
}

impl Default for Ends {
    fn default() -> Self {
        Ends { tell: Box::new(|_| {}), ended: EndedFor::default() }
    }
}

impl fmt::Debug for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ended.fmt(f)
    }
}

impl Ends {
    /// Ends the translated connections that have an address outside, and gives its ports back.
    pub(super) fn outside<A: Addr>(&mut self, tables: &FamilyMaps<A>, addr: A, plane: u32) {
        let ended = end_translated(tables, |outside, _, _| outside == addr);
        self.give_back(tables, addr, plane, |_| true);
        info!("{} is no longer an address outside: {ended} translated connections have ended", addr.to_ip());
        self.ended.address += ended;
    }

    /// Ends those that have an address of a prefix outside.
    pub(super) fn prefix<A: Addr>(&mut self, tables: &FamilyMaps<A>, prefix: &Prefix<A>) {
        let ended = end_translated(tables, |addr, _, _| contains(prefix, addr));
        let net = (prefix.addr.to_ip(), prefix.len);
        info!("{}/{} is no longer exchanged: {ended} translated connections have ended", net.0, net.1);
        self.ended.prefix += ended;
    }

    /// Ends those of ports that none may have any more, and gives these back.
    pub(super) fn ports<A: Addr>(&mut self, tables: &FamilyMaps<A>, planes: &BTreeMap<A, u32>, first: u16, last: u16) {
        let settings = Settings { snat_first: first, snat_last: last, ..Settings::default() };
        let ended = end_translated(tables, |addr, port, proto| {
            planes.contains_key(&addr) && class(proto).is_some() && is_not_of(&settings, port)
        });
        for (&addr, &plane) in planes {
            self.give_back(tables, addr, plane, |taken| is_not_of(&settings, Be16::new(taken.outside_port)));
        }
        if ended > 0 {
            info!("translated connections have ports {first} to {last} from now on: {ended} others have ended");
        }
        self.ended.ports += ended;
    }

    fn give_back<A: Addr>(&self, tables: &FamilyMaps<A>, addr: A, plane: u32, gone: impl Fn(&Taken<A>) -> bool) {
        for taken in tables.ports.taken(plane * PLANE, (plane + 1) * PLANE).filter(gone) {
            if tables.ports.give_back(&taken) {
                // Nobody gets such a port while they are given back.
                (self.tell)(taken.ended(addr, None));
            }
        }
    }

    /// Writes down how many have ended since the last time.
    pub(super) fn note(&mut self, paths: &Paths, state: &mut State) {
        if self.ended == EndedFor::default() {
            return;
        }
        match state.change(paths, |state| state.nat_ended.add(&self.ended)) {
            Ok(()) => self.ended = EndedFor::default(),
            Err(error) => warn!("counting ended connections, to be tried again: {error:#}"),
        }
    }
}

/// Whether no translated connection may have the port; what has none has zero.
pub fn is_not_of(settings: &Settings, port: Be16) -> bool {
    port.get() != 0 && !settings.translates_to(port)
}

/// Ends the translated connections whose end outside (address, port and protocol) is `gone`; how many.
fn end_translated<A: Addr>(tables: &FamilyMaps<A>, gone: impl Fn(A, Be16, u32) -> bool) -> u64 {
    let ended = Cell::new(0);
    tables.flows.remove_entries(|key, flow| {
        let gone = outside(key, flow).is_some_and(|(addr, port)| gone(addr, port, key.proto));
        // One of its two entries counts, and no memory of it does.
        let counts = gone && flow.is(Flow::<A>::OUT) && !flow.is(Flow::<A>::MEMORY);
        ended.set(ended.get() + u64::from(counts));
        gone
    });
    ended.get()
}

/// The address and port that an entry's translated connection has outside.
pub fn outside<A: Addr>(key: &FlowKey<A>, flow: &Flow<A>) -> Option<(A, Be16)> {
    let source = flow.is(Flow::<A>::OUT | Flow::<A>::MEMORY);
    let end = if source { (flow.src, flow.sport) } else { (key.dst, key.dport) };
    flow.is(Flow::<A>::NAT).then_some(end)
}

/// Whether an entry is of a translated connection that has this address outside.
pub fn is_outside<A: Addr>(key: &FlowKey<A>, flow: &Flow<A>, addr: A) -> bool {
    outside(key, flow).is_some_and(|(outside, _)| outside == addr)
}

/// Whether an address is in a prefix.
pub fn contains<A: Addr>(prefix: &Prefix<A>, addr: A) -> bool {
    IpNet::new(prefix.addr.to_ip(), prefix.len as u8).is_ok_and(|net| net.contains(&addr.to_ip()))
}

#[cfg(test)]
mod tests {
    use lb_common::wire::{Ip4, Ip6};

    use super::*;

    fn a<A: Addr>(text: &str) -> A {
        A::from_ip(text.parse().expect("an address")).expect("one of the family")
    }

    #[test]
    fn the_end_outside_of_an_entry() {
        let (inside, remote, outer) = (a::<Ip4>("10.20.0.5"), a("198.51.100.7"), a("203.0.113.2"));
        let [near, far, port] = [40_000, 443, 2_000].map(Be16::new);
        let nat = Flow::<Ip4>::NAT;
        let out =
            Flow { src: outer, dst: remote, sport: port, dport: far, flags: nat | Flow::<Ip4>::OUT, ..Flow::default() };
        let out_key = FlowKey { src: inside, dst: remote, sport: near, dport: far, proto: 6 };
        let back = Flow { src: remote, dst: inside, sport: far, dport: near, flags: nat, ..Flow::default() };
        let memory = Flow { flags: nat | Flow::<Ip4>::MEMORY, ..out };
        let service = Flow { flags: Flow::<Ip4>::SNAT, ..out };
        let ends = [(out_key, out), (out.reverse_key(6), back), (out_key, memory), (out_key, service)];
        let end = Some((outer, port));
        assert_eq!(ends.map(|(key, flow)| outside(&key, &flow)), [end, end, end, None]);
        assert!(is_outside(&out_key, &out, outer) && !is_outside(&out_key, &out, inside));
    }

    #[test]
    fn ports_and_prefixes() {
        let settings = Settings { snat_first: 1_024, snat_last: 2_048, ..Settings::default() };
        let others = [0, 1, 1_023, 1_024, 2_047, 2_048, 65_535].map(|port| is_not_of(&settings, Be16::new(port)));
        // A range of an odd number of ports has one less.
        assert_eq!(others, [false, true, true, false, false, true, true]);
        let prefix = Prefix { len: 60, addr: a::<Ip6>("2001:db8:7::") };
        let there = ["2001:db8:7:f::1", "2001:db8:7:10::1"].map(|addr| contains(&prefix, a(addr)));
        assert_eq!(there, [true, false]);
    }
}
