//! The engine's questions, answered by the kernel's maps.
//!
//! Invariant: values leave by copy, but for the flow table's, whose operations know that other CPUs and
//! the agent write the same entries.

use core::ptr::read_volatile;

use aya_ebpf::helpers::bpf_jiffies64;
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray};
use lb_common::drop::Note;
use lb_common::flow_table::cell::Cell64;
use lb_common::path::Work;
use lb_common::port_table::{Holder, Owner, PortTable};
use lb_common::table::route::PLACES;
use lb_common::table::{
    Affinity, AffinityKey, Announced, Backend, FragmentKey, FragmentPorts, Link, MappingEvent, NextHop, Owned,
    PrefixPair, Service, ServiceKey, Settings, SocketKey, SocketPeer, Source, Tunnel, Uplink,
};
use lb_common::tables::{Common, Configured, Tables};
use lb_common::verdict::{Arrival, Outcome};
use lb_common::wire::{Ip4, Ip6};

use crate::flows::InArrays;
use crate::maps;

const BPF_ANY: u64 = 0;

/// The live maps.
pub struct Kernel;

/// The current tick.
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: the helper takes nothing and changes nothing.
    unsafe { bpf_jiffies64() as u32 }
}

/// The maps of one address family.
pub trait Family: InArrays {
    const SERVICES: &'static HashMap<ServiceKey<Self>, Service>;
    const SOURCES: &'static LpmTrie<Source<Self>, u32>;
    const BACKENDS: &'static Array<Backend<Self>>;
    const OWNED: &'static LpmTrie<Self, Owned>;
    const ANNOUNCED: &'static HashMap<Self, Announced>;
    const AFFINITY: &'static LruHashMap<AffinityKey<Self>, Affinity>;
    const FRAGMENTS: &'static LruHashMap<FragmentKey<Self>, FragmentPorts>;
    const SOCKETS: &'static LruHashMap<SocketKey<Self>, SocketPeer<Self>>;
    const UPLINKS: &'static HashMap<u32, Uplink<Self>>;
    const PREFIXES: Option<&'static Array<PrefixPair<Self>>>;
    const PORTS: &'static Array<Cell64>;
    const OWNERS: &'static Array<Owner<Self>>;
    const HOLDERS: &'static Array<Holder<Self>>;
}

impl Family for Ip4 {
    const SERVICES: &'static HashMap<ServiceKey<Self>, Service> = &maps::SERVICES4;
    const SOURCES: &'static LpmTrie<Source<Self>, u32> = &maps::SOURCES4;
    const BACKENDS: &'static Array<Backend<Self>> = &maps::BACKENDS4;
    const OWNED: &'static LpmTrie<Self, Owned> = &maps::OWNED4;
    const ANNOUNCED: &'static HashMap<Self, Announced> = &maps::ANNOUNCED4;
    const AFFINITY: &'static LruHashMap<AffinityKey<Self>, Affinity> = &maps::AFFINITY4;
    const FRAGMENTS: &'static LruHashMap<FragmentKey<Self>, FragmentPorts> = &maps::FRAGMENTS4;
    const SOCKETS: &'static LruHashMap<SocketKey<Self>, SocketPeer<Self>> = &maps::SOCKETS4;
    const UPLINKS: &'static HashMap<u32, Uplink<Self>> = &maps::UPLINKS4;
    const PREFIXES: Option<&'static Array<PrefixPair<Self>>> = None;
    const PORTS: &'static Array<Cell64> = &maps::PORTS4;
    const OWNERS: &'static Array<Owner<Self>> = &maps::OWNERS4;
    const HOLDERS: &'static Array<Holder<Self>> = &maps::HOLDERS4;
}

impl Family for Ip6 {
    const SERVICES: &'static HashMap<ServiceKey<Self>, Service> = &maps::SERVICES6;
    const SOURCES: &'static LpmTrie<Source<Self>, u32> = &maps::SOURCES6;
    const BACKENDS: &'static Array<Backend<Self>> = &maps::BACKENDS6;
    const OWNED: &'static LpmTrie<Self, Owned> = &maps::OWNED6;
    const ANNOUNCED: &'static HashMap<Self, Announced> = &maps::ANNOUNCED6;
    const AFFINITY: &'static LruHashMap<AffinityKey<Self>, Affinity> = &maps::AFFINITY6;
    const FRAGMENTS: &'static LruHashMap<FragmentKey<Self>, FragmentPorts> = &maps::FRAGMENTS6;
    const SOCKETS: &'static LruHashMap<SocketKey<Self>, SocketPeer<Self>> = &maps::SOCKETS6;
    const UPLINKS: &'static HashMap<u32, Uplink<Self>> = &maps::UPLINKS6;
    const PREFIXES: Option<&'static Array<PrefixPair<Self>>> = Some(&maps::PREFIXES6);
    const PORTS: &'static Array<Cell64> = &maps::PORTS6;
    const OWNERS: &'static Array<Owner<Self>> = &maps::OWNERS6;
    const HOLDERS: &'static Array<Holder<Self>> = &maps::HOLDERS6;
}

/// Adds one to a per-CPU counter.
#[inline(always)]
pub fn count(map: &PerCpuArray<u64>, index: u32) {
    if let Some(counter) = map.get_ptr_mut(index) {
        // SAFETY: the map's value, of this CPU alone; programs on one CPU don't preempt each other
        // in the same hook, and one lost count across hooks would be harmless.
        unsafe { *counter += 1 }
    }
}

impl Configured for Kernel {
    #[inline(always)]
    fn settings(&self) -> Settings {
        // The array has one element, always there.
        maps::SETTINGS.get(0).copied().unwrap_or_default()
    }
}

impl Common for Kernel {
    #[inline(always)]
    fn filter(&self, bit: u32) -> u64 {
        maps::FILTER.get(bit / 64).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<u32> {
        let [even, odd] = *maps::SLOTS.get(index / 2)?;
        Some(if index & 1 == 0 { even } else { odd })
    }

    #[inline(always)]
    fn next_hop(&self, index: u32) -> Option<NextHop> {
        maps::NEXT_HOPS.get(index).copied()
    }

    #[inline(always)]
    fn member(&self, group: u32, place: u32) -> Option<u32> {
        maps::GROUPS.get(group)?.get(place as usize % PLACES).copied()
    }

    #[inline(always)]
    fn link(&self, ifindex: u32) -> Option<Link> {
        // SAFETY: a value of 8 bytes, which the agent replaces whole.
        unsafe { maps::LINKS.get(&ifindex) }.copied()
    }

    #[inline(always)]
    fn tunnel(&self, next_hop: u32) -> Option<Tunnel> {
        // SAFETY: a value that the agent replaces whole; half of an old one puts the wrong address on one packet.
        unsafe { maps::TUNNELS.get(&next_hop) }.copied()
    }

    #[inline(always)]
    fn is_peer(&self, addr: &Ip6) -> bool {
        // SAFETY: the value isn't looked at.
        unsafe { maps::PEERS.get(addr) }.is_some()
    }

    fn icmp_permit(&self, now: u32) -> bool {
        let Some(budget) = maps::ICMP_BUDGET.get_ptr_mut(0) else {
            return false;
        };
        let settings = self.settings();
        // SAFETY: the map's value, of this CPU alone.
        let [since, used] = unsafe { &mut *budget };
        if now.wrapping_sub(*since) >= settings.ticks_per_second {
            *since = now;
            *used = 0;
        }
        *used += 1;
        *used <= settings.icmp_rate
    }

    #[inline(always)]
    fn count(&self, backend: u32, reply: bool, bytes: u32) {
        let Some(counters) = maps::COUNTERS.get_ptr_mut(backend) else {
            return;
        };
        // SAFETY: the map's value, of this CPU alone, as in `count`.
        let counters = unsafe { &mut *counters };
        if reply {
            counters.reply_packets += 1;
            counters.reply_bytes += bytes as u64;
        } else {
            counters.packets += 1;
            counters.bytes += bytes as u64;
        }
    }

    #[inline(always)]
    fn count_connection(&self, backend: u32) {
        if let Some(counters) = maps::COUNTERS.get_ptr_mut(backend) {
            // SAFETY: as in `count`.
            unsafe { (*counters).connections += 1 }
        }
    }

    #[inline(always)]
    fn note(&self, note: Note) {
        count(&maps::NOTES, note as u32);
    }
}

impl<A: Family> PortTable<A> for Kernel {
    #[inline(always)]
    fn ports(&self, index: u32) -> Option<&Cell64> {
        A::PORTS.get(index)
    }

    #[inline(always)]
    fn owner(&self, index: u32) -> Option<&Owner<A>> {
        A::OWNERS.get(index)
    }

    #[inline(always)]
    fn holder(&self, index: u32) -> Option<&Holder<A>> {
        A::HOLDERS.get(index)
    }
}

impl<A: Family> Tables<A> for Kernel {
    #[inline(always)]
    fn service(&self, key: &ServiceKey<A>) -> Option<Service> {
        // SAFETY: the agent replaces whole entries; a torn read of (first, count) can't be, since a
        // hash map's update makes a new element.
        unsafe { A::SERVICES.get(key) }.copied()
    }

    #[inline(always)]
    fn allows(&self, source: &Source<A>) -> bool {
        A::SOURCES.get(Key::new(u32::BITS + A::BITS, *source)).is_some()
    }

    #[inline(always)]
    fn backend(&self, id: u32) -> Option<Backend<A>> {
        A::BACKENDS.get(id).copied()
    }

    #[inline(always)]
    fn route(&self, dst: A) -> Option<u32> {
        // The table says by zero that there is none.
        A::way_to(&dst).checked_sub(1)
    }

    #[inline(always)]
    fn owned(&self, addr: A) -> Option<Owned> {
        A::OWNED.get(Key::new(A::BITS, addr)).copied()
    }

    #[inline(always)]
    fn announced(&self, addr: A) -> Option<Announced> {
        // SAFETY: as for services.
        unsafe { A::ANNOUNCED.get(&addr) }.copied()
    }

    #[inline(always)]
    fn open(&self, work: &mut Work<A>, at: &Arrival, outcome: &mut Outcome) -> bool {
        A::open(work, at, outcome) != 0
    }

    #[inline(always)]
    fn resolve(&self, work: &mut Work<A>, at: &Arrival) -> u32 {
        A::resolve(work, at)
    }

    #[inline(always)]
    fn uplink(&self, ifindex: u32) -> Option<&Uplink<A>> {
        // SAFETY: as for services.
        unsafe { A::UPLINKS.get(&ifindex) }
    }

    #[inline(always)]
    fn prefix_pair(&self, index: u32) -> Option<&PrefixPair<A>> {
        A::PREFIXES?.get(index)
    }

    #[inline(always)]
    fn nat_event(&self, event: &MappingEvent<A>) {
        if maps::NAT_LOG.output::<MappingEvent<A>>(event, 0).is_err() {
            self.note(Note::NatLogLost);
        }
    }

    #[inline(always)]
    fn nat_way(&self, work: &mut Work<A>, at: &Arrival, outcome: &mut Outcome) -> u32 {
        A::way(work, at, outcome)
    }

    #[inline(always)]
    fn nat_known(&self, work: &mut Work<A>, at: &Arrival) -> u32 {
        A::known(work, at)
    }

    #[inline(always)]
    fn nat_take(&self, work: &mut Work<A>, at: &Arrival) -> u32 {
        A::take_port(work, at)
    }

    #[inline(always)]
    fn nat_cede(&self, work: &mut Work<A>, at: &Arrival) {
        A::cede(work, at);
    }

    #[inline(always)]
    fn nat_map(&self, work: &mut Work<A>, at: &Arrival) -> u32 {
        A::map(work, at)
    }

    #[inline(always)]
    fn nat_remember(&self, work: &mut Work<A>) {
        A::remember(work);
    }

    #[inline(always)]
    fn nat_put(&self, work: &mut Work<A>, at: &Arrival, outcome: &mut Outcome) -> bool {
        A::put(work, at, outcome) != 0
    }

    #[inline(always)]
    fn nat_follow(&self, work: &mut Work<A>, at: &Arrival) {
        A::follow(work, at);
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey<A>) -> Option<Affinity> {
        // SAFETY: an 8-byte value, read as one.
        A::AFFINITY.get_ptr(key).map(|affinity| unsafe { read_volatile(affinity) })
    }

    #[inline(always)]
    fn affinity_put(&self, key: &AffinityKey<A>, affinity: &Affinity) {
        // A least-recently-used map makes room; a lost update costs one client its binding.
        let _ = A::AFFINITY.insert(key, affinity, BPF_ANY);
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey<A>) -> Option<FragmentPorts> {
        // SAFETY: an 8-byte value, read as one.
        A::FRAGMENTS.get_ptr(key).map(|ports| unsafe { read_volatile(ports) })
    }

    #[inline(always)]
    fn fragment_put(&self, key: &FragmentKey<A>, ports: &FragmentPorts) {
        // As with affinity: a lost one shows as `fragment_out_of_order`.
        let _ = A::FRAGMENTS.insert(key, ports, BPF_ANY);
    }
}
