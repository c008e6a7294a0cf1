//! What every table of the kernel shall hold, and the single changes that lead there.

use std::collections::{BTreeMap, BTreeSet};

use imbl::OrdMap;
use lb_common::table::{
    Announced, Backend, Group, Link, Name, NextHop, Owned, PeerPortPrefix, PeerPrefix, Pod, Prefix, PrefixPair,
    Service, ServiceKey, Settings, SourcePrefix, Tunnel, Uplink,
};
use lb_common::wire::{Addr, Ip4, Ip6};

/// The whole of it: what is in the maps and which links carry programs.
#[derive(Clone, Debug, PartialEq)]
pub struct Contents {
    pub settings: Settings,
    /// [`lb_common::table::filter`]'s words that are not zero, by index.
    pub filter: BTreeMap<u32, u64>,
    /// Rows of the slot array by first slot; how long each is, its services say.
    pub rows: BTreeMap<u32, Vec<u32>>,
    pub next_hops: BTreeMap<u32, NextHop>,
    /// Groups of next hops that are as good.
    pub groups: BTreeMap<u32, Group>,
    /// What is around packets in the overlay, by next hop.
    pub tunnels: BTreeMap<u32, Tunnel>,
    /// Nodes' addresses that send in the overlay; the value says nothing.
    pub peers: BTreeMap<Ip6, u32>,
    /// Links that lead to other hosts or to the inside, by index.
    pub links: BTreeMap<u32, Link>,
    /// Names of service ids, for people.
    pub names: BTreeMap<u32, Name>,
    /// Prefixes that have another one outside.
    pub prefixes: BTreeMap<u32, PrefixPair<Ip6>>,
    /// Pods of this node by link, where policies are judged.
    pub pods: BTreeMap<u32, Pod>,
    /// Ports that policies allow.
    pub peer_ports: BTreeMap<PeerPortPrefix, u64>,
    pub v4: Family<Ip4>,
    pub v6: Family<Ip6>,
    /// Links by index, and what each carries.
    pub hooks: BTreeMap<u32, Hooks>,
}

impl Contents {
    /// Nothing, but for the settings.
    pub fn empty(settings: Settings) -> Self {
        Contents {
            settings,
            filter: BTreeMap::new(),
            rows: BTreeMap::new(),
            next_hops: BTreeMap::new(),
            groups: BTreeMap::new(),
            tunnels: BTreeMap::new(),
            peers: BTreeMap::new(),
            links: BTreeMap::new(),
            names: BTreeMap::new(),
            prefixes: BTreeMap::new(),
            pods: BTreeMap::new(),
            peer_ports: BTreeMap::new(),
            v4: Family::default(),
            v6: Family::default(),
            hooks: BTreeMap::new(),
        }
    }
}

/// The tables of one address family.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Family<A: Addr> {
    pub services: BTreeMap<ServiceKey<A>, Service>,
    /// Who may ask for services that name their sources; the value says nothing.
    pub sources: BTreeMap<SourcePrefix<A>, u32>,
    pub backends: BTreeMap<u32, Backend<A>>,
    pub owned: BTreeMap<Prefix<A>, Owned>,
    /// Addresses that this node announces.
    pub announced: BTreeMap<A, Announced>,
    /// Next hop index by prefix.
    pub routes: OrdMap<Prefix<A>, u32>,
    /// Links that lead out, by index.
    pub uplinks: BTreeMap<u32, Uplink<A>>,
    /// Peers that policies allow, and this node's own addresses.
    pub allowed: BTreeMap<PeerPrefix<A>, u64>,
}

/// The programs on a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hooks {
    pub interface: String,
    pub xdp: bool,
    pub tc_ingress: bool,
    pub tc_egress: bool,
    /// What comes in and goes out is judged by policies, too.
    pub policy: bool,
}

/// Insert, replace or remove one entry. Idempotent.
#[derive(Clone, Debug, PartialEq)]
pub enum Change<K, V> {
    Set(K, V),
    Remove(K),
}

/// Large values are kept out of lists of operations.
impl<K: Clone, V: Clone> Change<K, Box<V>> {
    pub fn boxed(change: Change<K, V>) -> Self {
        match change {
            Change::Set(key, value) => Change::Set(key, Box::new(value)),
            Change::Remove(key) => Change::Remove(key),
        }
    }

    pub fn unboxed(&self) -> Change<K, V> {
        match self {
            Change::Set(key, value) => Change::Set(key.clone(), V::clone(value)),
            Change::Remove(key) => Change::Remove(key.clone()),
        }
    }
}

/// One change of a family's tables.
#[derive(Clone, Debug, PartialEq)]
pub enum FamilyOp<A: Addr> {
    Service(Change<ServiceKey<A>, Service>),
    Source(Change<SourcePrefix<A>, u32>),
    Backend(Change<u32, Backend<A>>),
    Owned(Change<Prefix<A>, Owned>),
    Announced(Change<A, Announced>),
    Route(Change<Prefix<A>, u32>),
    /// All routes at once, in place of those that are there.
    Routes(OrdMap<Prefix<A>, u32>),
    Uplink(Change<u32, Uplink<A>>),
    Allowed(Change<PeerPrefix<A>, u64>),
    /// Ends the translated connections that have this address outside, and gives its ports back.
    EndOutside {
        addr: A,
        plane: u32,
    },
    /// Ends the translated connections that have an address of this prefix outside.
    EndPrefix(Prefix<A>),
    /// Ends the translated connections that have one of these addresses outside, and a port that is not in
    /// the range from first to last; each with its plane.
    EndPorts {
        planes: BTreeMap<A, u32>,
        first: u16,
        last: u16,
    },
}

/// One change. Idempotent; a list of them is safe to stop behind any of its members.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    Settings(Settings),
    FilterWord {
        index: u32,
        value: u64,
    },
    /// Writes a row of slots that no service uses yet.
    Row {
        first: u32,
        backends: Vec<u32>,
    },
    NextHop(Change<u32, NextHop>),
    Group(Change<u32, Box<Group>>),
    Tunnel(Change<u32, Tunnel>),
    Peer(Change<Ip6, u32>),
    Link(Change<u32, Link>),
    Name(Change<u32, Name>),
    Prefix(Change<u32, PrefixPair<Ip6>>),
    Pod(Change<u32, Pod>),
    PeerPort(Change<PeerPortPrefix, u64>),
    V4(FamilyOp<Ip4>),
    V6(FamilyOp<Ip6>),
    /// Attaches what `Set` says and detaches what it doesn't; `Remove` detaches all of ours.
    Hooks(Change<u32, Hooks>),
    /// Ends the connections and affinities of these backends, and zeroes their counters.
    EndFlows {
        backends: BTreeSet<u32>,
    },
}

/// The only writer: the kernel's maps, or a fake of them.
pub trait Apply {
    type Error: std::fmt::Display + std::fmt::Debug;
    fn apply(&mut self, op: &Op) -> Result<(), Self::Error>;
    /// What is really there (rows: those that services use).
    fn read(&self) -> Result<Contents, Self::Error>;
}
