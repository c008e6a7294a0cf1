//! Every map: what it holds, who writes it, who reads it, what happens when it is full.
//!
//! The sizes here are placeholders: the agent sets them at load, from the configuration.

pub mod fib;

use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::LpmTrie;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use lb_common::drop::{Drop, Note};
use lb_common::flow_table::cell::Cell64;
use lb_common::flow_table::{Entry, MULTIPLIERS, WAYS};
use lb_common::path::Scratch;
use lb_common::path::network_policy::Judgement;
use lb_common::port_table::{HOLDERS, Holder, Owner, PLANE};
use lb_common::table::service::SlotPair;
use lb_common::table::{
    Admitted, Affinity, AffinityKey, Announced, Backend, Counters, FlowKey, FragmentKey, FragmentPorts, Group, Link,
    Name, NextHop, Owned, Peer, PeerPort, Pod, PrefixPair, Service, ServiceKey, Settings, SocketKey, SocketPeer,
    Source, Tunnel, Uplink, filter,
    monitor::{Sighting, Watch},
};
use lb_common::wire::{Ip4, Ip6};

const BPF_F_NO_PREALLOC: u32 = 1;
const BPF_F_MMAPABLE: u32 = 1 << 10;

const SERVICE_COUNT: u32 = 16_384;
const BACKEND_COUNT: u32 = 65_536;
const UPLINK_COUNT: u32 = 64;
const FLOW_SLOTS: u32 = 524_288;
const ROUTE_COUNT: u32 = 65_536;

/// The agent writes, every packet reads; never full.
#[map]
pub static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);
/// The agent writes, every packet reads; a fixed number of bits: the more are set, the less it spares.
#[map]
pub static FILTER: Array<u64> = Array::with_max_entries(filter::WORDS, 0);

/// The agent writes, new connections read; full: the plan is refused, the tables in force stay.
#[map]
pub static SERVICES4: HashMap<ServiceKey<Ip4>, Service> = HashMap::with_max_entries(SERVICE_COUNT, 0);
#[map]
pub static SERVICES6: HashMap<ServiceKey<Ip6>, Service> = HashMap::with_max_entries(SERVICE_COUNT, 0);
/// Source ranges of services that have some: the agent writes, new connections to those read; full: the
/// plan is refused.
#[map]
pub static SOURCES4: LpmTrie<Source<Ip4>, u32> = LpmTrie::with_max_entries(SERVICE_COUNT, BPF_F_NO_PREALLOC);
#[map]
pub static SOURCES6: LpmTrie<Source<Ip6>, u32> = LpmTrie::with_max_entries(SERVICE_COUNT, BPF_F_NO_PREALLOC);
/// The agent writes rows that no service uses yet, new connections read; full: the plan is refused.
#[map]
pub static SLOTS: Array<SlotPair> = Array::with_max_entries(1 << 19, BPF_F_MMAPABLE);
/// The agent writes, new connections read; full: the plan is refused.
#[map]
pub static BACKENDS4: Array<Backend<Ip4>> = Array::with_max_entries(BACKEND_COUNT, 0);
#[map]
pub static BACKENDS6: Array<Backend<Ip6>> = Array::with_max_entries(BACKEND_COUNT, 0);
/// Service addresses and ranges: the agent writes, packets of no connection read; full: the plan is refused.
#[map]
pub static OWNED4: LpmTrie<Ip4, Owned> = LpmTrie::with_max_entries(ROUTE_COUNT, BPF_F_NO_PREALLOC);
#[map]
pub static OWNED6: LpmTrie<Ip6, Owned> = LpmTrie::with_max_entries(ROUTE_COUNT, BPF_F_NO_PREALLOC);

/// Addresses that this node announces, and where: the agent writes, ARP requests and neighbour solicitations read; full:
/// the plan is refused.
#[map]
pub static ANNOUNCED4: HashMap<Ip4, Announced> = HashMap::with_max_entries(SERVICE_COUNT, BPF_F_NO_PREALLOC);
#[map]
pub static ANNOUNCED6: HashMap<Ip6, Announced> = HashMap::with_max_entries(SERVICE_COUNT, BPF_F_NO_PREALLOC);

/// The agent writes, every packet of a connection reads; full: the plan is refused.
#[map]
pub static NEXT_HOPS: Array<NextHop> = Array::with_max_entries(16_384, 0);
/// Groups of next hops that are as good: as above.
#[map]
pub static GROUPS: Array<Group> = Array::with_max_entries(64, 0);
/// What is around packets in the overlay, by next hop: the agent writes, packets to other nodes' pods read; full: the
/// plan is refused.
#[map]
pub static TUNNELS: HashMap<u32, Tunnel> = HashMap::with_max_entries(4_096, BPF_F_NO_PREALLOC);
/// Nodes' addresses that send in the overlay: the agent writes, what comes in the overlay reads; full: as above.
#[map]
pub static PEERS: HashMap<Ip6, u32> = HashMap::with_max_entries(4_096, BPF_F_NO_PREALLOC);
/// Links that lead to other hosts or to the inside, by index: the agent writes, packets of no connection read; full:
/// the plan is refused.
#[map]
pub static LINKS: HashMap<u32, Link> = HashMap::with_max_entries(4_096, 0);

/// Connections: packets write and read, the agent sweeps, all by the
/// operations of `lb_common::flow_table`; full: unanswered connections go first, then new ones are dropped.
#[map]
pub static FLOWS4: Array<Entry<Ip4>> = Array::with_max_entries(FLOW_SLOTS, BPF_F_MMAPABLE);
#[map]
pub static FLOWS6: Array<Entry<Ip6>> = Array::with_max_entries(FLOW_SLOTS, BPF_F_MMAPABLE);
/// While these grow: the tables whose entries move into them, else a bucket that is never used; as above.
#[map]
pub static FLOW_ELDER4: Array<Entry<Ip4>> = Array::with_max_entries(WAYS, BPF_F_MMAPABLE);
#[map]
pub static FLOW_ELDER6: Array<Entry<Ip6>> = Array::with_max_entries(WAYS, BPF_F_MMAPABLE);
/// While they grow, whether new entries already go into them: the agent writes, new connections read.
#[map]
pub static FLOW_MOVED_IN: Array<u32> = Array::with_max_entries(1, 0);
/// The random numbers of the flow tables' hash: the agent draws them once, when the tables are made,
/// and hands them to the programs as constants; user space alone reads them here.
#[map]
pub static FLOW_HASH: Array<[u64; MULTIPLIERS]> = Array::with_max_entries(1, 0);
/// Clients bound to backends: new connections write and read; full: the least recently used goes.
#[map]
pub static AFFINITY4: LruHashMap<AffinityKey<Ip4>, Affinity> = LruHashMap::with_max_entries(65_536, 0);
#[map]
pub static AFFINITY6: LruHashMap<AffinityKey<Ip6>, Affinity> = LruHashMap::with_max_entries(65_536, 0);
/// Ports of first fragments: packets write and read; full: the least recently used goes.
#[map]
pub static FRAGMENTS4: LruHashMap<FragmentKey<Ip4>, FragmentPorts> = LruHashMap::with_max_entries(8_192, 0);
#[map]
pub static FRAGMENTS6: LruHashMap<FragmentKey<Ip6>, FragmentPorts> = LruHashMap::with_max_entries(8_192, 0);

/// Backends that sockets of this node were given, and the services that they asked: their calls write and read;
/// full: the least recently used goes, and its socket is told of the backend.
#[map]
pub static SOCKETS4: LruHashMap<SocketKey<Ip4>, SocketPeer<Ip4>> = LruHashMap::with_max_entries(65_536, 0);
#[map]
pub static SOCKETS6: LruHashMap<SocketKey<Ip6>, SocketPeer<Ip6>> = LruHashMap::with_max_entries(65_536, 0);

/// Pods of this node, by the index of the node's end of their link: the agent writes, their packets read; full: what is
/// to and from another pod is dropped.
#[map]
pub static PODS: HashMap<u32, Pod> = HashMap::with_max_entries(4_096, BPF_F_NO_PREALLOC);
/// Peers and ports that pods' policies allow: the agent writes, packets that open a connection of a pod read; full: the
/// policies without room allow nothing.
#[map]
pub static PEERS4: LpmTrie<Peer<Ip4>, u64> = LpmTrie::with_max_entries(1 << 18, BPF_F_NO_PREALLOC);
#[map]
pub static PEERS6: LpmTrie<Peer<Ip6>, u64> = LpmTrie::with_max_entries(1 << 18, BPF_F_NO_PREALLOC);
#[map]
pub static PEER_PORTS: LpmTrie<PeerPort, u64> = LpmTrie::with_max_entries(1 << 16, BPF_F_NO_PREALLOC);
/// Connections of pods that were allowed: packets write and read; full: the least recently used goes, and is judged
/// anew by its next packet.
#[map]
pub static ADMITTED4: LruHashMap<FlowKey<Ip4>, Admitted<Ip4>> = LruHashMap::with_max_entries(1 << 16, 0);
#[map]
pub static ADMITTED6: LruHashMap<FlowKey<Ip6>, Admitted<Ip6>> = LruHashMap::with_max_entries(1 << 16, 0);
/// First fragments that were allowed, and when: packets write and read; full: the least recently used goes.
#[map]
pub static ALLOWED_FRAGMENTS4: LruHashMap<FragmentKey<Ip4>, u32> = LruHashMap::with_max_entries(4_096, 0);
#[map]
pub static ALLOWED_FRAGMENTS6: LruHashMap<FragmentKey<Ip6>, u32> = LruHashMap::with_max_entries(4_096, 0);

/// Links that lead out, by index: the agent writes, translated packets of no connection read; full: the
/// plan is refused.
#[map]
pub static UPLINKS4: HashMap<u32, Uplink<Ip4>> = HashMap::with_max_entries(UPLINK_COUNT, 0);
#[map]
pub static UPLINKS6: HashMap<u32, Uplink<Ip6>> = HashMap::with_max_entries(UPLINK_COUNT, 0);
/// Prefixes that have another one outside: as above.
#[map]
pub static PREFIXES6: Array<PrefixPair<Ip6>> = Array::with_max_entries(16, 0);
/// Which ports outside are taken, a bit each, and who has each: packets and the agent write and read, by the
/// operations of `lb_common::port_table`; full: what wants another port is dropped.
#[map]
pub static PORTS4: Array<Cell64> = Array::with_max_entries(PLANE / 64, BPF_F_MMAPABLE);
#[map]
pub static PORTS6: Array<Cell64> = Array::with_max_entries(PLANE / 64, BPF_F_MMAPABLE);
#[map]
pub static OWNERS4: Array<Owner<Ip4>> = Array::with_max_entries(PLANE, BPF_F_MMAPABLE);
#[map]
pub static OWNERS6: Array<Owner<Ip6>> = Array::with_max_entries(PLANE, BPF_F_MMAPABLE);
/// How many ports each host inside has: as above; full: another host's packets are dropped.
#[map]
pub static HOLDERS4: Array<Holder<Ip4>> = Array::with_max_entries(HOLDERS, BPF_F_MMAPABLE);
#[map]
pub static HOLDERS6: Array<Holder<Ip6>> = Array::with_max_entries(HOLDERS, BPF_F_MMAPABLE);
/// Mappings that begin and end, where they are logged, told apart by their lengths: packets write, the
/// agent reads; full: one is lost, and counted.
#[map]
pub static NAT_LOG: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// Whether somebody watches packets, and which: `stellwerk monitor` writes, every packet reads.
#[map]
pub static WATCH: Array<Watch> = Array::with_max_entries(1, 0);
/// How many packets of this CPU there are until the next one that is told of: packets write and read.
#[map]
pub static WATCH_LEFT: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);
/// What it is told: packets write, `stellwerk monitor` reads; full: one is lost, and counted.
#[map]
pub static SIGHTINGS: RingBuf = RingBuf::with_byte_size(1 << 21, 0);
/// One of them under way.
#[map]
pub static SIGHTING: PerCpuArray<Sighting> = PerCpuArray::with_max_entries(1, 0);

/// By backend: packets write, the agent and the command line read; as many as backends.
#[map]
pub static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(BACKEND_COUNT, 0);
/// By [`Drop`]: packets write, the command line reads.
#[map]
pub static DROPS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Drop::ALL.len() as u32, 0);
/// By [`Note`]: packets write, the command line reads.
#[map]
pub static NOTES: PerCpuArray<u64> = PerCpuArray::with_max_entries(Note::ALL.len() as u32, 0);
/// The second's first tick and the ICMP errors sent since: packets write and read.
#[map]
pub static ICMP_BUDGET: PerCpuArray<[u32; 2]> = PerCpuArray::with_max_entries(1, 0);
/// A packet's work between the stages: one packet at a time and CPU, since programs of these hooks run
/// with bottom halves off and don't interrupt each other.
#[map]
pub static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);
/// The same, of a packet to or from a pod.
#[map]
pub static JUDGEMENT: PerCpuArray<Judgement> = PerCpuArray::with_max_entries(1, 0);
/// Whether the packet at hand is traced: 0 while nothing is.
#[map]
pub static TRACED: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);
/// The tick: `stellwerk_clock` writes, the agent and the command line read.
#[map]
pub static CLOCK: Array<u64> = Array::with_max_entries(1, 0);

/// By service id: user space alone writes and reads.
#[map]
pub static NAMES: Array<Name> = Array::with_max_entries(SERVICE_COUNT, 0);
/// By family, how many prefixes the table of routes has, and has room for: user space alone.
#[map]
pub static ROUTE_COUNTS: Array<[u32; 2]> = Array::with_max_entries(2, 0);
/// What a service's backends that are gone had counted, by service id: user space alone.
#[map]
pub static RETIRED: Array<Counters> = Array::with_max_entries(SERVICE_COUNT, 0);
