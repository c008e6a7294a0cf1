//! Pods' interfaces: made, checked and taken away as a container runtime asks by the CNI plugin.
//!
//! Invariant: a lease is written down before its interface is there, and stays until it is gone; what is done to one
//! interface is done one after the other. Agent and plugin may end at any moment: what a call began, the next start takes away, or the
//! runtime's own next call does. Not here: the CNI's forms ([`crate::cni`]), and who gets which address ([`crate::ipam`]).

mod aggregate;
pub mod keeper;
mod limit;
pub mod ports;
mod server;
pub mod spool;
pub mod talk;
pub mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio::sync::watch;

use self::keeper::Keeper;
use self::ports::HostPorts;
use crate::apply::Paths;
use crate::peers::Peers;

/// How long an interface may be without the programs that serve it before it is given up.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What pods on this node get.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    pub blocks: Vec<IpNet>,
    /// Addresses of the node itself.
    pub avoid: BTreeSet<IpAddr>,
    /// In seconds.
    pub cooldown: u64,
    /// Of pods that ask for certain ones, by `namespace/name`.
    pub fixed: BTreeMap<String, Vec<IpAddr>>,
    pub mtu: u32,
    /// Of the cluster.
    pub nameservers: Vec<IpAddr>,
}

/// The agent's part of it, once the configuration asked for it.
pub struct Pods {
    shared: Option<Arc<Shared>>,
    paths: Paths,
    peers: Arc<Peers>,
    /// What the leases say.
    ports: watch::Sender<HostPorts>,
}

/// What of pods is in force.
#[derive(Clone, Debug, Default)]
pub struct Served {
    /// Links whose programs are in force.
    pub links: BTreeSet<u32>,
    /// The revision of host ports that is in force,
    pub ports: u64,
    /// without these services, and why each is not served.
    pub refused: BTreeMap<String, String>,
}

struct Shared {
    paths: Paths,
    peers: Arc<Peers>,
    keeper: Keeper,
    served: Mutex<Served>,
    more: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pods {
    pub fn new(paths: &Paths, peers: &Arc<Peers>) -> Pods {
        Pods { shared: None, paths: paths.clone(), peers: peers.clone(), ports: watch::Sender::default() }
    }

    /// The host ports of pods, and every change of them.
    pub fn host_ports(&self) -> watch::Receiver<HostPorts> {
        self.ports.subscribe()
    }

    /// Goes by other settings, or says why there are none. Without a word none are served.
    pub fn configure(&mut self, settings: Option<Result<Settings, String>>) {
        let settings = match (settings, &self.shared) {
            (None, None) => return,
            (None, _) => Err("the agent's configuration has no `pods`".to_owned()),
            (Some(settings), _) => settings,
        };
        if let Some(shared) = &self.shared {
            return shared.keeper.configure(settings);
        }
        let keeper = Keeper::open(&self.paths, settings, self.ports.clone());
        let shared = Arc::new(Shared {
            paths: self.paths.clone(),
            peers: self.peers.clone(),
            keeper,
            served: Mutex::default(),
            more: Condvar::new(),
        });
        match server::start(&shared) {
            Ok(()) => self.shared = Some(shared),
            Err(error) => tracing::error!("pods get no interfaces: {error:#}"),
        }
    }

    /// This is in force.
    pub fn served(&self, served: Served) {
        if let Some(shared) = &self.shared {
            *lock(&shared.served) = served;
            shared.more.notify_all();
        }
    }
}

impl Shared {
    /// Waits until a link's programs are in force, and the host ports of a revision but for those that are refused,
    /// which this gives; None: it took too long.
    fn wait(&self, link: u32, ports: u64) -> Option<BTreeMap<String, String>> {
        let end = Instant::now() + PATIENCE;
        let mut served = lock(&self.served);
        while !served.links.contains(&link) || served.ports < ports {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            served = self.more.wait_timeout(served, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Some(served.refused.clone())
    }
}
