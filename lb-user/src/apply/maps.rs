//! Typed handles of all maps, and where they are pinned.
//!
//! Invariant: a handle exists only for a map whose key and value sizes are those of its types, and
//! maps are pinned under a hash of how they lie ([`super::layout`]), so that a table of another layout is never
//! reinterpreted. What an entry means, and in which order entries change, is [`crate::plan`]'s.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, ensure};
use lb_common::drop::{Drop as Reason, Note};
use lb_common::fib::{Line, PART, ROOT_WORDS};
use lb_common::flow_table::cell::Cell64;
use lb_common::flow_table::{Entry, MULTIPLIERS};
use lb_common::port_table::{self, HOLDERS, Holder, Owner};
use lb_common::table::monitor::{Sighting, Watch};
use lb_common::table::service::SlotPair;
use lb_common::table::{
    Admitted, Affinity, AffinityKey, Announced, Backend, Counters, Field, Fields, FlowKey, FragmentKey, FragmentPorts,
    Group, Link, MappingEvent, Name, NextHop, Owned, PeerPortPrefix, PeerPrefix, Pod, Prefix, PrefixPair, Service,
    ServiceKey, Settings, SocketKey, SocketPeer, SourcePrefix, Tunnel, Uplink, filter,
};
use lb_common::wire::{Addr, Ip4, Ip6};

use super::flows::{self, Flows};
use super::layout::Layout;
use super::ports::Ports;
use super::sys::{Mapping, bytes};
use super::table::{PerCpu, Table, set_many};
use crate::intent::Capacity;

/// Where mappings that begin and end wait for the agent that logs them: also for the next one.
pub const NAT_LOG: &str = "NAT_LOG";
/// Where packets wait for `stellwerk monitor`.
pub const SIGHTINGS: &str = "SIGHTINGS";

/// A map as it is expected: its name, what it holds, and what the configuration says of its capacity.
pub struct Spec {
    pub name: &'static str,
    pub key: &'static [Field],
    /// Of a ring buffer, which has neither keys nor values: what is told through it.
    pub value: &'static [Field],
    pub capacity: Option<fn(&Capacity) -> u32>,
    /// As in [`super::layout::Shape`].
    pub rows: Option<fn() -> Vec<&'static str>>,
    pub places: Option<u32>,
}

const fn spec<K: Fields, V: Fields>(name: &'static str, capacity: Option<fn(&Capacity) -> u32>) -> Spec {
    Spec { name, key: K::FIELDS, value: V::FIELDS, capacity, rows: None, places: None }
}

impl Spec {
    const fn rows(self, rows: fn() -> Vec<&'static str>) -> Self {
        Spec { rows: Some(rows), ..self }
    }

    const fn places(self, places: u32) -> Self {
        Spec { places: Some(places), ..self }
    }
}

fn reasons() -> Vec<&'static str> {
    Reason::ALL.iter().map(|reason| reason.label()).collect()
}

fn notes() -> Vec<&'static str> {
    Note::ALL.iter().map(|note| note.label()).collect()
}

/// Service addresses, and the ranges' prefixes, which no configuration counts: a trie takes memory
/// only for what is in it.
fn owned(capacity: &Capacity) -> u32 {
    capacity.services.saturating_add(1 << 16)
}

/// All maps that are pinned.
pub const SPECS: &[Spec] = &[
    spec::<u32, Settings>("SETTINGS", None),
    spec::<u32, u64>("FILTER", None).places(filter::WORDS),
    spec::<u32, SlotPair>("SLOTS", Some(|c| c.slots.div_ceil(2))),
    spec::<u32, NextHop>("NEXT_HOPS", Some(|c| c.next_hops)),
    spec::<u32, Group>("GROUPS", None),
    spec::<u32, Tunnel>("TUNNELS", None),
    spec::<Ip6, u32>("PEERS", None),
    spec::<u32, Link>("LINKS", None),
    spec::<u32, Counters>("COUNTERS", Some(|c| c.backends)),
    spec::<u32, u64>("DROPS", None).rows(reasons),
    spec::<u32, u64>("NOTES", None).rows(notes),
    spec::<u32, Name>("NAMES", Some(|c| c.services)),
    spec::<u32, Counters>("RETIRED", Some(|c| c.services)),
    spec::<u32, u64>("CLOCK", None),
    spec::<ServiceKey<Ip4>, Service>("SERVICES4", Some(|c| c.services)),
    spec::<ServiceKey<Ip6>, Service>("SERVICES6", Some(|c| c.services)),
    spec::<SourcePrefix<Ip4>, u32>("SOURCES4", Some(|c| c.services)),
    spec::<SourcePrefix<Ip6>, u32>("SOURCES6", Some(|c| c.services)),
    spec::<u32, Backend<Ip4>>("BACKENDS4", Some(|c| c.backends)),
    spec::<u32, Backend<Ip6>>("BACKENDS6", Some(|c| c.backends)),
    spec::<u32, [u32; 2]>("ROUTE_COUNTS", None),
    spec::<Prefix<Ip4>, Owned>("OWNED4", Some(owned)),
    spec::<Prefix<Ip6>, Owned>("OWNED6", Some(owned)),
    spec::<Ip4, Announced>("ANNOUNCED4", Some(|c| c.services)),
    spec::<Ip6, Announced>("ANNOUNCED6", Some(|c| c.services)),
    spec::<u32, Cell64>("FIB_ROOT4", None).places(ROOT_WORDS),
    spec::<u32, Cell64>("FIB_ROOT6", None).places(ROOT_WORDS),
    // Arrays of maps; what those hold is the layout.
    spec::<u32, Line>("FIB4", None).places(PART),
    spec::<u32, Line>("FIB6", None).places(PART),
    spec::<u32, Entry<Ip4>>("FLOWS4", Some(flows::slots)),
    spec::<u32, Entry<Ip6>>("FLOWS6", Some(flows::slots)),
    spec::<u32, [u64; MULTIPLIERS]>("FLOW_HASH", None),
    spec::<AffinityKey<Ip4>, Affinity>("AFFINITY4", Some(|c| c.affinity)),
    spec::<AffinityKey<Ip6>, Affinity>("AFFINITY6", Some(|c| c.affinity)),
    spec::<FragmentKey<Ip4>, FragmentPorts>("FRAGMENTS4", Some(|c| c.fragments)),
    spec::<FragmentKey<Ip6>, FragmentPorts>("FRAGMENTS6", Some(|c| c.fragments)),
    spec::<SocketKey<Ip4>, SocketPeer<Ip4>>("SOCKETS4", Some(|c| c.sockets)),
    spec::<SocketKey<Ip6>, SocketPeer<Ip6>>("SOCKETS6", Some(|c| c.sockets)),
    spec::<u32, Pod>("PODS", None),
    spec::<PeerPrefix<Ip4>, u64>("PEERS4", None),
    spec::<PeerPrefix<Ip6>, u64>("PEERS6", None),
    spec::<PeerPortPrefix, u64>("PEER_PORTS", None),
    spec::<FlowKey<Ip4>, Admitted<Ip4>>("ADMITTED4", None),
    spec::<FlowKey<Ip6>, Admitted<Ip6>>("ADMITTED6", None),
    spec::<FragmentKey<Ip4>, u32>("ALLOWED_FRAGMENTS4", None),
    spec::<FragmentKey<Ip6>, u32>("ALLOWED_FRAGMENTS6", None),
    spec::<u32, Uplink<Ip4>>("UPLINKS4", None),
    spec::<u32, Uplink<Ip6>>("UPLINKS6", None),
    spec::<u32, PrefixPair<Ip6>>("PREFIXES6", None),
    spec::<u32, Cell64>("PORTS4", Some(|c| c.nat_addresses.saturating_mul(port_table::PLANE / 64))),
    spec::<u32, Cell64>("PORTS6", Some(|c| c.nat_addresses.saturating_mul(port_table::PLANE / 64))),
    spec::<u32, Owner<Ip4>>("OWNERS4", Some(|c| c.nat_addresses.saturating_mul(port_table::PLANE))),
    spec::<u32, Owner<Ip6>>("OWNERS6", Some(|c| c.nat_addresses.saturating_mul(port_table::PLANE))),
    spec::<u32, Holder<Ip4>>("HOLDERS4", None).places(HOLDERS),
    spec::<u32, Holder<Ip6>>("HOLDERS6", None).places(HOLDERS),
    spec::<(), MappingEvent<Ip6>>(NAT_LOG, None),
    spec::<u32, Watch>("WATCH", None),
    spec::<u32, u32>("WATCH_LEFT", None),
    spec::<(), Sighting>(SIGHTINGS, None),
];

/// The name of this version's folder of maps.
pub fn layout() -> &'static str {
    static NAME: LazyLock<String> = LazyLock::new(|| Layout::own().name());
    &NAME
}

/// Where everything of one instance is: pins on a BPF file system, and what they can't hold beside it.
#[derive(Clone, Debug)]
pub struct Paths {
    pub pin: PathBuf,
    /// State, lock: `/run/<the pin folder's name>`.
    pub run: PathBuf,
    /// What outlives a reboot: `/var/lib/<the pin folder's name>`.
    pub kept: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Paths::new("/sys/fs/bpf/stellwerk")
    }
}

impl Paths {
    pub fn new(pin: impl Into<PathBuf>) -> Self {
        let pin = pin.into();
        let name = pin.file_name().unwrap_or("stellwerk".as_ref());
        Paths { run: Path::new("/run").join(name), kept: Path::new("/var/lib").join(name), pin }
    }

    pub fn maps(&self) -> PathBuf {
        self.pin.join(layout())
    }

    /// How the maps in a folder lie.
    pub fn layout(&self, folder: &str) -> PathBuf {
        self.run.join(format!("{folder}.json"))
    }

    pub fn links(&self) -> PathBuf {
        self.pin.join("links")
    }

    pub fn programs(&self) -> PathBuf {
        self.pin.join("programs")
    }

    pub fn state(&self) -> PathBuf {
        self.run.join("state.json")
    }

    /// Routes added by command, where nothing else is said.
    pub fn routes(&self) -> PathBuf {
        self.kept.join("routes.json")
    }

    /// What is told of the source of services.
    pub fn source(&self) -> PathBuf {
        self.run.join("source.json")
    }

    /// What a live cluster said last.
    pub fn cluster(&self) -> PathBuf {
        self.run.join("cluster.json")
    }

    /// Which services have which addresses.
    pub fn addresses(&self) -> PathBuf {
        self.kept.join("addresses.json")
    }

    /// Which endpoints fail their probes.
    pub fn health(&self) -> PathBuf {
        self.run.join("health.json")
    }

    /// Who announces what.
    pub fn announce(&self) -> PathBuf {
        self.run.join("announce.json")
    }

    pub fn lock(&self) -> PathBuf {
        self.run.join("agent.lock")
    }

    /// Where control groups are mounted, if they were nowhere.
    pub fn cgroups(&self) -> PathBuf {
        self.run.join("cgroup")
    }

    /// The socket through which names are asked for by command.
    pub fn dns(&self) -> PathBuf {
        self.run.join("dns.sock")
    }

    /// The socket at which the CNI plugin asks.
    pub fn pods(&self) -> PathBuf {
        self.run.join("cni.sock")
    }

    /// Which pods' interfaces have which addresses.
    pub fn ipam(&self) -> PathBuf {
        self.run.join("ipam.json")
    }

    /// What ended while no agent ran.
    pub fn spool(&self) -> PathBuf {
        self.kept.join("cni-ended")
    }
}

/// The flat array of slots, mapped where the kernel's map allows it.
#[derive(Debug)]
pub struct Slots {
    table: Table<u32, SlotPair>,
    words: Option<Mapping<AtomicU32>>,
}

impl Slots {
    fn open(dir: &Path) -> Result<Self> {
        let table = Table::<u32, SlotPair>::open(dir, "SLOTS")?;
        let words = table.raw().mapping()?;
        Ok(Slots { table, words })
    }

    pub fn capacity(&self) -> u32 {
        self.table.capacity().saturating_mul(2)
    }

    /// Writes a row that no service uses yet. The system call that switches the service comes after
    /// it and orders these stores before it.
    pub fn write(&self, first: u32, backends: &[u32]) -> Result<()> {
        let end = first as usize + backends.len();
        ensure!(end <= self.capacity() as usize, "a row ends at slot {end} of {}", self.capacity());
        match &self.words {
            Some(words) => {
                for (word, &backend) in words.get()[first as usize..end].iter().zip(backends) {
                    word.store(backend, Ordering::Relaxed);
                }
                Ok(())
            }
            None => self.write_pairs(first, backends),
        }
    }

    fn write_pairs(&self, first: u32, backends: &[u32]) -> Result<()> {
        let (start, end) = (first / 2, (first as usize + backends.len()).div_ceil(2) as u32);
        let mut slots = Vec::new();
        for index in start..end {
            slots.extend(self.table.get(&index)?.unwrap_or_default());
        }
        let skip = (first % 2) as usize;
        slots[skip..skip + backends.len()].copy_from_slice(backends);
        let keys: Vec<u32> = (start..end).collect();
        set_many("SLOTS", self.table.raw(), bytes(&keys), bytes(&slots))
    }

    pub fn read(&self, first: u32, count: u32) -> Result<Vec<u32>> {
        let end = (first as usize).saturating_add(count as usize);
        ensure!(end <= self.capacity() as usize, "a service's row ends at slot {end} of {}", self.capacity());
        match &self.words {
            Some(words) => Ok(words.get()[first as usize..end].iter().map(|w| w.load(Ordering::Relaxed)).collect()),
            None => (first..end as u32)
                .map(|slot| Ok(self.table.get(&(slot / 2))?.unwrap_or_default()[(slot % 2) as usize]))
                .collect(),
        }
    }
}

/// The random numbers of the flow tables' hash.
pub fn flow_hash(dir: &Path) -> Result<Table<u32, [u64; MULTIPLIERS]>> {
    Table::open(dir, "FLOW_HASH")
}

/// The tables of one address family.
#[derive(Debug)]
pub struct FamilyMaps<A: Addr> {
    pub services: Table<ServiceKey<A>, Service>,
    pub sources: Table<SourcePrefix<A>, u32>,
    pub backends: Table<u32, Backend<A>>,
    pub owned: Table<Prefix<A>, Owned>,
    pub announced: Table<A, Announced>,
    pub flows: Flows<A>,
    pub affinity: Table<AffinityKey<A>, Affinity>,
    pub fragments: Table<FragmentKey<A>, FragmentPorts>,
    pub sockets: Table<SocketKey<A>, SocketPeer<A>>,
    pub uplinks: Table<u32, Uplink<A>>,
    pub allowed: Table<PeerPrefix<A>, u64>,
    pub admitted: Table<FlowKey<A>, Admitted<A>>,
    pub allowed_fragments: Table<FragmentKey<A>, u32>,
    pub ports: Ports<A>,
}

impl<A: Addr> FamilyMaps<A> {
    fn open(dir: &Path, multipliers: [u64; MULTIPLIERS]) -> Result<Self> {
        let name = |v4, v6| if A::IS_V6 { v6 } else { v4 };
        Ok(FamilyMaps {
            services: Table::open(dir, name("SERVICES4", "SERVICES6"))?,
            sources: Table::open(dir, name("SOURCES4", "SOURCES6"))?,
            backends: Table::open(dir, name("BACKENDS4", "BACKENDS6"))?,
            owned: Table::open(dir, name("OWNED4", "OWNED6"))?,
            announced: Table::open(dir, name("ANNOUNCED4", "ANNOUNCED6"))?,
            flows: Flows::open(dir, multipliers)?,
            affinity: Table::open(dir, name("AFFINITY4", "AFFINITY6"))?,
            fragments: Table::open(dir, name("FRAGMENTS4", "FRAGMENTS6"))?,
            sockets: Table::open(dir, name("SOCKETS4", "SOCKETS6"))?,
            uplinks: Table::open(dir, name("UPLINKS4", "UPLINKS6"))?,
            allowed: Table::open(dir, name("PEERS4", "PEERS6"))?,
            admitted: Table::open(dir, name("ADMITTED4", "ADMITTED6"))?,
            allowed_fragments: Table::open(dir, name("ALLOWED_FRAGMENTS4", "ALLOWED_FRAGMENTS6"))?,
            ports: Ports::open(dir)?,
        })
    }
}

/// All maps.
#[derive(Debug)]
pub struct Maps {
    pub settings: Table<u32, Settings>,
    pub filter: Table<u32, u64>,
    pub slots: Slots,
    pub next_hops: Table<u32, NextHop>,
    pub groups: Table<u32, Group>,
    pub tunnels: Table<u32, Tunnel>,
    pub peers: Table<Ip6, u32>,
    pub links: Table<u32, Link>,
    pub names: Table<u32, Name>,
    pub prefixes: Table<u32, PrefixPair<Ip6>>,
    pub pods: Table<u32, Pod>,
    pub peer_ports: Table<PeerPortPrefix, u64>,
    pub retired: Table<u32, Counters>,
    pub route_counts: Table<u32, [u32; 2]>,
    pub clock: Table<u32, u64>,
    pub watch: Table<u32, Watch>,
    pub watch_left: PerCpu<u32>,
    pub counters: PerCpu<Counters>,
    pub drops: PerCpu<u64>,
    pub notes: PerCpu<u64>,
    pub v4: FamilyMaps<Ip4>,
    pub v6: FamilyMaps<Ip6>,
}

impl Maps {
    /// Opens what is pinned.
    pub fn open(dir: &Path) -> Result<Self> {
        let multipliers = flow_hash(dir)?.get(&0)?.unwrap_or_default();
        Ok(Maps {
            settings: Table::open(dir, "SETTINGS")?,
            filter: Table::open(dir, "FILTER")?,
            slots: Slots::open(dir)?,
            next_hops: Table::open(dir, "NEXT_HOPS")?,
            groups: Table::open(dir, "GROUPS")?,
            tunnels: Table::open(dir, "TUNNELS")?,
            peers: Table::open(dir, "PEERS")?,
            links: Table::open(dir, "LINKS")?,
            names: Table::open(dir, "NAMES")?,
            prefixes: Table::open(dir, "PREFIXES6")?,
            pods: Table::open(dir, "PODS")?,
            peer_ports: Table::open(dir, "PEER_PORTS")?,
            retired: Table::open(dir, "RETIRED")?,
            route_counts: Table::open(dir, "ROUTE_COUNTS")?,
            clock: Table::open(dir, "CLOCK")?,
            watch: Table::open(dir, "WATCH")?,
            watch_left: PerCpu::open(dir, "WATCH_LEFT")?,
            counters: PerCpu::open(dir, "COUNTERS")?,
            drops: PerCpu::open(dir, "DROPS")?,
            notes: PerCpu::open(dir, "NOTES")?,
            v4: FamilyMaps::open(dir, multipliers)?,
            v6: FamilyMaps::open(dir, multipliers)?,
        })
    }
}
