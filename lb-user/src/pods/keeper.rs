//! What is done to leases and interfaces, one call after the other.
//!
//! Invariant: what is known is what is on disk. An order of steps that may end anywhere: the lease, the wire; and on the
//! way out the wire, the lease.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::IpAddr;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use super::ports::{self, HostPorts};
use super::talk::{Failure, Made, code};
use super::{Settings, spool, wire};
use crate::apply::Paths;
use crate::ipam::{Ask, Bandwidth, HostPort, Key, Lease, Refusal, State, Stock, store};
use crate::moment::Moment;
use crate::source::netlink::message::Connection;
use crate::source::netlink::{Mirror, write};

pub struct Keeper {
    paths: Paths,
    pub settings: Result<Settings, String>,
    /// As on disk; or why that isn't known.
    state: Result<State, String>,
    /// Is told the host ports of what is on disk.
    ports: watch::Sender<HostPorts>,
}

/// An interface to make.
pub struct New<'a> {
    pub key: &'a Key,
    pub netns: &'a Path,
    pub namespace: &'a str,
    pub pod: &'a str,
    pub addresses: &'a [IpAddr],
    pub ports: &'a [HostPort],
    pub bandwidth: Bandwidth,
}

/// What was made, and what has to be in force before it is of use.
pub struct Added {
    pub made: Made,
    pub link: u32,
    /// Full names of the services of its host ports, and the revision that they are in.
    pub services: Vec<String>,
    pub revision: u64,
}

/// Seconds since the machine's start: leases are void after the next one.
fn now() -> u64 {
    Moment::now().since(Moment::START).as_secs()
}

fn disk(error: &anyhow::Error) -> Failure {
    Failure::new(code::IO, "leases can't be written", format!("{error:#}"))
}

fn netns(path: &Path) -> Result<File, Failure> {
    let unknown = |error| Failure::new(code::UNKNOWN, format!("no network namespace at {}", path.display()), error);
    File::open(path).map_err(unknown)
}

impl Keeper {
    /// Takes over what agents before left, and what ended without one.
    pub fn open(paths: &Paths, settings: Result<Settings, String>, ports: watch::Sender<HostPorts>) -> Keeper {
        let read = store::read(&paths.ipam()).map_err(|error| format!("{error:#}"));
        let state = read.and_then(|state| match state.twice() {
            Some(addr) => Err(format!("{}: two have {addr}; expected one of them", paths.ipam().display())),
            None => Ok(state),
        });
        if let Err(why) = &state {
            error!("pods get no interfaces: {why}");
        }
        let mut keeper = Keeper { paths: paths.clone(), settings, state, ports };
        keeper.tell_ports();
        keeper.tidy();
        keeper.mend();
        keeper
    }

    pub fn ready(&self) -> Result<&Settings, String> {
        if let Err(why) = &self.state {
            return Err(why.clone());
        }
        self.settings.as_ref().map_err(Clone::clone)
    }

    fn known(&self) -> Result<&State, Failure> {
        self.state.as_ref().map_err(|why| Failure::new(code::IO, "leases can't be read", why))
    }

    fn write(&mut self, state: State) -> Result<()> {
        store::write(&self.paths.ipam(), &state)?;
        self.state = Ok(state);
        self.tell_ports();
        Ok(())
    }

    fn tell_ports(&self) {
        let Ok(state) = &self.state else { return };
        self.ports.send_if_modified(|told| {
            let now = HostPorts::of(state, told.revision + 1);
            let other = told.services != now.services || told.pods != now.pods;
            if other {
                *told = now;
            }
            other
        });
    }

    pub fn add(&mut self, new: &New<'_>) -> Result<Added, Failure> {
        let later = |why| Failure::new(code::LATER, "pods get no interfaces yet, try again later", why);
        let settings = self.ready().map_err(later)?.clone();
        let netns = netns(new.netns)?;
        let mut state = self.known()?.clone();
        if let Some(lease) = state.leases.get(new.key)
            && wire::verify(new.key, lease, &netns).is_ok()
        {
            return Err(Failure::new(code::EXISTS, "the interface is there already", new.key));
        }
        let host = wire::host_name(new.key);
        let same = state.leases.keys().find(|other| *other != new.key && wire::host_name(other) == host);
        if let Some(other) = same {
            return Err(Failure::new(code::EXISTS, format!("{host} is there already"), format!("for {other}")));
        }
        let New { key, namespace, pod, addresses, ports, bandwidth, .. } = *new;
        // What the runtime says goes before what the pod does.
        let fixed = settings.fixed.get(&format!("{namespace}/{pod}")).filter(|_| addresses.is_empty());
        let addresses = fixed.map_or(addresses, Vec::as_slice);
        let ask = Ask { key, namespace, pod, addresses, ports, bandwidth };
        let stock = Stock { blocks: &settings.blocks, avoid: &settings.avoid, cooldown: settings.cooldown };
        let lease = state.take(&ask, stock, now()).map_err(refused)?.clone();
        let began = Instant::now();
        self.write(state).map_err(|error| disk(&error))?;
        let written = began.elapsed();
        // A call before this one may have ended half-way.
        let made = wire::remove(new.key).and_then(|_| wire::make(new.key, &lease, &netns, settings.mtu));
        debug!(?written, made = ?began.elapsed(), "{host}");
        match made {
            Ok(wire) => {
                let services: Vec<String> = ports::of(key, &lease).map(|service| service.full_name()).collect();
                let revision = if services.is_empty() { 0 } else { self.ports.borrow().revision };
                Ok(Added { made: told(&settings, host, &wire, &lease), link: wire.link, services, revision })
            }
            Err(error) => {
                // Nobody has used its addresses: they need no time to cool down.
                self.undo(new.key, 0);
                let text = format!("{error:#}");
                let exists = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
                Err(match exists {
                    Some(libc::EEXIST) => {
                        Failure::new(code::EXISTS, format!("the pod has an interface {}", new.key.interface), "")
                    }
                    _ => Failure::new(code::KERNEL, "the pod's interface can't be made", text),
                })
            }
        }
    }

    /// Takes back what an ADD made.
    pub fn undo(&mut self, key: &Key, cooldown: u64) {
        if let Err(failure) = self.del_cooling(key, cooldown) {
            error!("{failure}");
        }
    }

    /// Whether there was anything.
    pub fn del(&mut self, key: &Key) -> Result<bool, Failure> {
        let cooldown = self.settings.as_ref().map_or(60, |settings| settings.cooldown);
        self.del_cooling(key, cooldown)
    }

    fn del_cooling(&mut self, key: &Key, cooldown: u64) -> Result<bool, Failure> {
        let kernel = |error| Failure::new(code::KERNEL, "the interface can't be removed", format!("{error:#}"));
        let there = wire::remove(key).map_err(kernel)?;
        let mut state = self.known()?.clone();
        let had = state.give_back(key, cooldown, now()).is_some();
        if had {
            self.write(state).map_err(|error| disk(&error))?;
        }
        Ok(there || had)
    }

    /// Whether it is as it was made; the full names of its host ports.
    pub fn check(&self, key: &Key, path: &Path, addresses: &[IpAddr]) -> Result<Vec<String>, Failure> {
        let differs = |why: String| Failure::new(code::DIFFERS, "the interface is not as it was made", why);
        let lease = self.known()?.leases.get(key);
        let lease = lease.ok_or_else(|| Failure::new(code::UNKNOWN, "there is no such interface", key))?;
        if let Some(addr) = lease.addresses.iter().find(|addr| !addresses.contains(addr)) {
            return Err(differs(format!("prevResult has no {addr}, which it was given")));
        }
        wire::verify(key, lease, &netns(path)?).map_err(|error| differs(format!("{error:#}")))?;
        Ok(ports::of(key, lease).map(|service| service.full_name()).collect())
    }

    /// Gives back all of which something is true; which they were.
    pub fn release(&mut self, which: impl Fn(&Key, &Lease) -> bool) -> Result<Vec<Key>, Failure> {
        let keys = self.known()?.keys(which);
        keys.iter().try_for_each(|key| self.del(key).map(drop))?;
        Ok(keys)
    }

    /// Ends what is noted as ended, leases whose interfaces are gone, and interfaces of which there is no lease.
    pub fn tidy(&mut self) {
        let folder = self.paths.spool();
        for key in spool::all(&folder) {
            let done = self.del(&key).map_err(anyhow::Error::msg).and_then(|_| spool::take(&folder, &key));
            match done {
                Ok(()) => info!("{key} ended while no agent ran"),
                Err(error) => error!("{key}, which ended while no agent ran: {error:#}"),
            }
        }
        if let Err(error) = self.compare() {
            error!("comparing leases with interfaces: {error:#}");
        }
    }

    fn compare(&mut self) -> Result<()> {
        let Ok(state) = &self.state else { return Ok(()) };
        let there = ends()?;
        let gone = state.keys(|key, _| !there.iter().any(|(name, _)| *name == wire::host_name(key)));
        let known: BTreeSet<String> = state.leases.keys().map(wire::host_name).collect();
        for key in gone {
            self.del(&key).map_err(anyhow::Error::msg)?;
            info!("{key} is gone, and its addresses are free");
        }
        let mut connection = Connection::open(libc::NETLINK_ROUTE)?;
        for (name, link) in there.into_iter().filter(|(name, _)| !known.contains(name)) {
            match write::delete_link(&mut connection, link) {
                Ok(()) => warn!("{name} is nobody's, and was removed"),
                Err(error) => warn!("{name} is nobody's: {error}"),
            }
        }
        Ok(())
    }

    /// Sets the node's ends up as they were made.
    fn mend(&self) {
        let Ok(state) = &self.state else { return };
        let all = Connection::open(libc::NETLINK_ROUTE).and_then(|mut connection| {
            state.leases.iter().try_for_each(|(key, lease)| wire::host_side(&mut connection, key, lease).map(drop))
        });
        if let Err(error) = all {
            error!("{error:#}");
        }
    }
}

fn refused(why: Refusal) -> Failure {
    match why {
        Refusal::Port { .. } => Failure::new(code::PORT, "no host port for the pod", why),
        Refusal::Cooling { .. } => Failure::new(code::LATER, "no address for the pod", why),
        _ => Failure::new(code::ADDRESS, "no address for the pod", why),
    }
}

/// The node's ends of pods' interfaces: their names and numbers.
pub fn ends() -> Result<Vec<(String, u32)>> {
    let mirror = Mirror::without_routes()?;
    let ours = mirror.network().links.iter().filter(|l| l.name.starts_with(wire::PREFIX));
    let ours = ours.filter(|l| l.kind.as_deref() == Some("veth"));
    Ok(ours.map(|link| (link.name.clone(), link.index)).collect())
}

fn told(settings: &Settings, host: String, wire: &wire::Wire, lease: &Lease) -> Made {
    let text = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    Made {
        host,
        host_mac: text(wire.host_mac),
        mac: text(wire.mac),
        mtu: settings.mtu,
        addresses: lease.addresses.clone(),
        nameservers: settings.nameservers.clone(),
    }
}
