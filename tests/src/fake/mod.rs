//! The kernel's maps, in one process and without a kernel: every table of the engine over the
//! collections of the standard library, with the capacities and the answers to "full" of the maps.
//!
//! [`Fake`] answers the packet path ([`Common`], [`Tables`]) and takes the agent's operations
//! ([`Apply`]), so that configuration and packets meet here as they meet in the kernel. The packet
//! code that runs on it is the real one. What is not here: decisions.

mod apply;
pub mod fib;
pub mod flows;
pub mod lru;
mod policy;
pub mod ports;
pub mod show;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use lb_common::drop::{Drop, Note};
use lb_common::flow_table::cell::Cell64;
use lb_common::flow_table::{Entry, FlowTable};
use lb_common::path::socket::SocketTable;
use lb_common::port_table::{Holder, Owner, PortTable};
use lb_common::table::{
    Admitted, Affinity, AffinityKey, Announced, Backend, Counters, FlowKey, FragmentKey, FragmentPorts, Group, Link,
    MappingEvent, Name, NextHop, Owned, PeerPortPrefix, Pod, Prefix, PrefixPair, Service, ServiceKey, Settings,
    SocketKey, SocketPeer, Source, SourcePrefix, Tunnel, Uplink,
};
use lb_common::tables::{Common, Configured, Tables};
use lb_common::wire::{Addr, Be16, Ip4, Ip6};
use lb_user::apply::flows::slots;
use lb_user::intent::Capacity;
use lb_user::plan::{Family, Hooks};

pub use apply::Refused;
use flows::Memory;
use lru::Lru;
use ports::PortMemory;

/// What packets leave behind in one address family.
#[derive(Clone, PartialEq)]
pub struct State<A: Addr> {
    pub affinity: Lru<AffinityKey<A>, Affinity>,
    pub fragments: Lru<FragmentKey<A>, FragmentPorts>,
    pub sockets: Lru<SocketKey<A>, SocketPeer<A>>,
    pub admitted: Lru<FlowKey<A>, Admitted<A>>,
    pub allowed_fragments: Lru<FragmentKey<A>, u32>,
}

impl<A: Addr> State<A> {
    fn new(capacity: &Capacity) -> Self {
        State {
            affinity: Lru::new(capacity.affinity),
            fragments: Lru::new(capacity.fragments),
            sockets: Lru::new(capacity.sockets),
            admitted: Lru::new(1 << 16),
            allowed_fragments: Lru::new(4_096),
        }
    }

    /// Makes everything older by `ticks`, as a clock that moved on would.
    fn age(&mut self, ticks: u32) {
        self.affinity.values_mut().for_each(|a| a.last = a.last.wrapping_sub(ticks));
        self.fragments.values_mut().for_each(|f| f.last = f.last.wrapping_sub(ticks));
        self.admitted.values_mut().for_each(|a| a.last = a.last.wrapping_sub(ticks));
        self.allowed_fragments.values_mut().for_each(|last| *last = last.wrapping_sub(ticks));
    }
}

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    pub drops: BTreeMap<&'static str, u64>,
    pub notes: BTreeMap<&'static str, u64>,
    pub backends: BTreeMap<u32, Counters>,
}

/// All tables. Packets come in by shared reference, as in the kernel.
#[derive(Clone)]
pub struct Fake {
    pub settings: Settings,
    pub filter: BTreeMap<u32, u64>,
    /// Says of every packet that it may be ours: the filter must change time alone.
    pub ignore_filter: bool,
    /// The flat slot array, as far as it was ever written.
    pub slots: Vec<u32>,
    pub next_hops: BTreeMap<u32, NextHop>,
    pub groups: BTreeMap<u32, Group>,
    pub links: BTreeMap<u32, Link>,
    pub names: BTreeMap<u32, Name>,
    pub prefixes: BTreeMap<u32, PrefixPair<Ip6>>,
    pub tunnels: BTreeMap<u32, Tunnel>,
    pub peers: BTreeMap<Ip6, u32>,
    pub pods: BTreeMap<u32, Pod>,
    pub peer_ports: BTreeMap<PeerPortPrefix, u64>,
    pub v4: Family<Ip4>,
    pub v6: Family<Ip6>,
    pub hooks: BTreeMap<u32, Hooks>,
    pub capacity: Capacity,
    pub tally: RefCell<Tally>,
    pub flows4: Memory<Ip4>,
    pub flows6: Memory<Ip6>,
    pub ports4: PortMemory<Ip4>,
    pub ports6: PortMemory<Ip6>,
    /// Mappings that began and ended, as they are logged.
    pub events: RefCell<Vec<String>>,
    pub state4: RefCell<State<Ip4>>,
    pub state6: RefCell<State<Ip6>>,
    /// The tick since which ICMP errors are counted, and how many there were.
    permits: Cell<(u32, u32)>,
}

impl PartialEq for Fake {
    /// Whether the tables hold the same; the order of use and the ICMP rate don't count.
    fn eq(&self, other: &Self) -> bool {
        self.settings == other.settings
            && self.filter == other.filter
            && self.slots == other.slots
            && self.next_hops == other.next_hops
            && self.groups == other.groups
            && self.links == other.links
            && self.names == other.names
            && self.v4 == other.v4
            && self.v6 == other.v6
            && self.hooks == other.hooks
            && self.tally == other.tally
            && self.flows4 == other.flows4
            && self.flows6 == other.flows6
            && self.ports4 == other.ports4
            && self.ports6 == other.ports6
            && self.prefixes == other.prefixes
            && self.tunnels == other.tunnels
            && self.peers == other.peers
            && self.pods == other.pods
            && self.peer_ports == other.peer_ports
            && self.state4 == other.state4
            && self.state6 == other.state6
    }
}

/// Room for what a test opens, so that copies of all tables are cheap; for no address outside.
pub const SMALL: Capacity = Capacity { connections: 256, nat_addresses: 0, ..Capacity::DEFAULT };

impl Default for Fake {
    fn default() -> Self {
        Fake::new(SMALL, 100)
    }
}

/// An address family of [`Fake`]: where its tables are.
pub trait InFake: Addr {
    fn family(fake: &Fake) -> &Family<Self>;
    fn family_mut(fake: &mut Fake) -> &mut Family<Self>;
    fn flows(fake: &Fake) -> &Memory<Self>;
    fn ports(fake: &Fake) -> &PortMemory<Self>;
    fn prefix_pair(fake: &Fake, index: u32) -> Option<&PrefixPair<Self>>;
    fn state(fake: &Fake) -> &RefCell<State<Self>>;
}

impl InFake for Ip4 {
    fn family(fake: &Fake) -> &Family<Ip4> {
        &fake.v4
    }
    fn family_mut(fake: &mut Fake) -> &mut Family<Ip4> {
        &mut fake.v4
    }
    fn flows(fake: &Fake) -> &Memory<Ip4> {
        &fake.flows4
    }
    fn ports(fake: &Fake) -> &PortMemory<Ip4> {
        &fake.ports4
    }
    fn prefix_pair(_: &Fake, _: u32) -> Option<&PrefixPair<Ip4>> {
        None
    }
    fn state(fake: &Fake) -> &RefCell<State<Ip4>> {
        &fake.state4
    }
}

impl InFake for Ip6 {
    fn family(fake: &Fake) -> &Family<Ip6> {
        &fake.v6
    }
    fn family_mut(fake: &mut Fake) -> &mut Family<Ip6> {
        &mut fake.v6
    }
    fn flows(fake: &Fake) -> &Memory<Ip6> {
        &fake.flows6
    }
    fn ports(fake: &Fake) -> &PortMemory<Ip6> {
        &fake.ports6
    }
    fn prefix_pair(fake: &Fake, index: u32) -> Option<&PrefixPair<Ip6>> {
        fake.prefixes.get(&index)
    }
    fn state(fake: &Fake) -> &RefCell<State<Ip6>> {
        &fake.state6
    }
}

impl Fake {
    /// Empty tables with default settings for a clock of `ticks_per_second`.
    pub fn new(capacity: Capacity, ticks_per_second: u32) -> Self {
        Fake {
            settings: Settings::with_clock(ticks_per_second),
            filter: BTreeMap::new(),
            ignore_filter: false,
            slots: Vec::new(),
            next_hops: BTreeMap::new(),
            groups: BTreeMap::new(),
            links: BTreeMap::new(),
            names: BTreeMap::new(),
            prefixes: BTreeMap::new(),
            tunnels: BTreeMap::new(),
            peers: BTreeMap::new(),
            pods: BTreeMap::new(),
            peer_ports: BTreeMap::new(),
            v4: Family::default(),
            v6: Family::default(),
            hooks: BTreeMap::new(),
            capacity,
            tally: RefCell::default(),
            flows4: Memory::new(slots(&capacity)),
            flows6: Memory::new(slots(&capacity)),
            ports4: PortMemory::new(capacity.nat_addresses),
            ports6: PortMemory::new(capacity.nat_addresses),
            events: RefCell::default(),
            state4: RefCell::new(State::new(&capacity)),
            state6: RefCell::new(State::new(&capacity)),
            permits: Cell::default(),
        }
    }

    /// Counts a dropped packet, as the hooks do.
    pub fn dropped(&self, reason: Drop) {
        *self.tally.borrow_mut().drops.entry(reason.label()).or_default() += 1;
    }

    /// Makes all flows, affinities and fragments older by `ticks`.
    pub fn age(&self, ticks: u32) {
        self.flows4.age(ticks);
        self.flows6.age(ticks);
        self.ports4.age(ticks);
        self.ports6.age(ticks);
        self.state4.borrow_mut().age(ticks);
        self.state6.borrow_mut().age(ticks);
        let (since, used) = self.permits.get();
        self.permits.set((since.wrapping_sub(ticks), used));
    }

    fn counters(&self, backend: u32, change: impl FnOnce(&mut Counters)) {
        // An array: what is behind its end is not counted.
        if backend >= self.capacity.backends {
            return;
        }
        change(self.tally.borrow_mut().backends.entry(backend).or_default());
    }
}

impl Configured for Fake {
    fn settings(&self) -> Settings {
        self.settings
    }
}

impl Common for Fake {
    fn filter(&self, bit: u32) -> u64 {
        if self.ignore_filter { u64::MAX } else { self.filter.get(&(bit / 64)).copied().unwrap_or_default() }
    }

    fn slot(&self, index: u32) -> Option<u32> {
        // An array: what was never written reads as zero.
        (index < self.capacity.slots).then(|| self.slots.get(index as usize).copied().unwrap_or(0))
    }

    fn next_hop(&self, index: u32) -> Option<NextHop> {
        (index < self.capacity.next_hops).then(|| self.next_hops.get(&index).copied().unwrap_or_default())
    }

    fn member(&self, group: u32, place: u32) -> Option<u32> {
        self.groups.get(&group)?.get(place as usize).copied()
    }

    fn tunnel(&self, next_hop: u32) -> Option<Tunnel> {
        self.tunnels.get(&next_hop).copied()
    }

    fn is_peer(&self, addr: &Ip6) -> bool {
        self.peers.contains_key(addr)
    }

    fn link(&self, ifindex: u32) -> Option<Link> {
        self.links.get(&ifindex).copied()
    }

    fn icmp_permit(&self, now: u32) -> bool {
        let (since, used) = self.permits.get();
        let over = now.wrapping_sub(since) >= self.settings.ticks_per_second;
        let (since, used) = if over { (now, 0) } else { (since, used) };
        self.permits.set((since, used.saturating_add(1)));
        used < self.settings.icmp_rate
    }

    fn count(&self, backend: u32, reply: bool, bytes: u32) {
        self.counters(backend, |c| {
            let (packets, octets) =
                if reply { (&mut c.reply_packets, &mut c.reply_bytes) } else { (&mut c.packets, &mut c.bytes) };
            *packets += 1;
            *octets += u64::from(bytes);
        });
    }

    fn count_connection(&self, backend: u32) {
        self.counters(backend, |c| c.connections += 1);
    }

    fn note(&self, note: Note) {
        *self.tally.borrow_mut().notes.entry(note.label()).or_default() += 1;
    }
}

/// The value of the longest prefix that holds the address.
fn longest<'t, A: Addr, V: Copy + 't>(
    table: impl DoubleEndedIterator<Item = (&'t Prefix<A>, &'t V)>,
    addr: A,
) -> Option<V> {
    // Ordered by length first, so the last match is the longest.
    table.rev().find(|(prefix, _)| covers(prefix, addr)).map(|(_, value)| *value)
}

fn covers<A: Addr>(prefix: &Prefix<A>, addr: A) -> bool {
    let (a, b) = (prefix.addr.as_bytes(), addr.as_bytes());
    let (whole, rest) = (prefix.len as usize / 8, prefix.len % 8);
    prefix.len <= A::BITS && a[..whole] == b[..whole] && (rest == 0 || (a[whole] ^ b[whole]) >> (8 - rest) == 0)
}

impl<A: InFake> FlowTable<A> for Fake {
    fn line(&self, place: u32) -> Option<&Entry<A>> {
        A::flows(self).line(place)
    }

    fn mask(&self) -> u32 {
        A::flows(self).mask()
    }

    fn multiplier(&self, index: usize) -> u64 {
        A::flows(self).multiplier(index)
    }
}

impl<A: InFake> PortTable<A> for Fake {
    fn ports(&self, index: u32) -> Option<&Cell64> {
        A::ports(self).ports(index)
    }

    fn owner(&self, index: u32) -> Option<&Owner<A>> {
        A::ports(self).owner(index)
    }

    fn holder(&self, index: u32) -> Option<&Holder<A>> {
        A::ports(self).holder(index)
    }
}

impl<A: InFake> Tables<A> for Fake {
    fn service(&self, key: &ServiceKey<A>) -> Option<Service> {
        A::family(self).services.get(key).copied()
    }

    fn allows(&self, source: &Source<A>) -> bool {
        let mut named = A::family(self).sources.keys().filter(|prefix| prefix.service == source.service);
        named.any(|&SourcePrefix { len, addr, .. }| covers(&Prefix { len: len - u32::BITS, addr }, source.addr))
    }

    fn backend(&self, id: u32) -> Option<Backend<A>> {
        A::family(self).backends.get(&id).copied()
    }

    fn route(&self, dst: A) -> Option<u32> {
        longest(A::family(self).routes.iter(), dst)
    }

    fn owned(&self, addr: A) -> Option<Owned> {
        longest(A::family(self).owned.iter(), addr)
    }

    fn announced(&self, addr: A) -> Option<Announced> {
        A::family(self).announced.get(&addr).copied()
    }

    fn uplink(&self, ifindex: u32) -> Option<&Uplink<A>> {
        A::family(self).uplinks.get(&ifindex)
    }

    fn prefix_pair(&self, index: u32) -> Option<&PrefixPair<A>> {
        A::prefix_pair(self, index)
    }

    fn nat_event(&self, event: &MappingEvent<A>) {
        let what = if event.what == MappingEvent::<A>::BEGINS { "begins" } else { "ends" };
        let end = |addr: A, port: Be16| format!("{}:{}", addr.to_ip(), port.get());
        let (inside, outside) = (end(event.inside, event.inside_port), end(event.outside, event.outside_port));
        self.events.borrow_mut().push(format!("{what} {} {inside} = {outside}", event.proto));
    }

    fn affinity(&self, key: &AffinityKey<A>) -> Option<Affinity> {
        A::state(self).borrow_mut().affinity.get(key)
    }

    fn affinity_put(&self, key: &AffinityKey<A>, affinity: &Affinity) {
        A::state(self).borrow_mut().affinity.put(*key, *affinity);
    }

    fn fragment(&self, key: &FragmentKey<A>) -> Option<FragmentPorts> {
        A::state(self).borrow_mut().fragments.get(key)
    }

    fn fragment_put(&self, key: &FragmentKey<A>, ports: &FragmentPorts) {
        A::state(self).borrow_mut().fragments.put(*key, *ports);
    }
}

impl<A: InFake> SocketTable<A> for Fake {
    fn socket(&self, key: &SocketKey<A>) -> Option<SocketPeer<A>> {
        A::state(self).borrow_mut().sockets.get(key)
    }

    fn socket_put(&self, key: &SocketKey<A>, peer: &SocketPeer<A>) -> bool {
        let mut state = A::state(self).borrow_mut();
        state.sockets.put(*key, *peer);
        state.sockets.contains(key)
    }
}
