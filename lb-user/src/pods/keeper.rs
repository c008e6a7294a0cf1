//! What is done to leases and interfaces: of one interface one call after the other, of several side by side, as a node
//! that starts has them.
//!
//! Invariant: what is known is what is in the file. An order of steps that may end anywhere: the lease, the wire; and on
//! the way out the wire, the lease. Nobody waits for the kernel while what is known is locked.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

use anyhow::Result;
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use super::ports::{self, HostPorts};
use super::talk::{Failure, Made, code};
use super::{Settings, lock, spool, wire};
use crate::apply::Paths;
use crate::ipam::{Ask, Bandwidth, HostPort, Key, Lease, Refusal, State, Stock, store};
use crate::moment::Moment;
use crate::source::netlink::message::Connection;
use crate::source::netlink::{Mirror, write};

pub struct Keeper {
    paths: Paths,
    known: Mutex<Known>,
    /// Interfaces that somebody is at work at, and who waits for that to end.
    busy: Mutex<BTreeSet<Key>>,
    free: Condvar,
    /// Is told the host ports of what is known.
    ports: watch::Sender<HostPorts>,
}

struct Known {
    settings: Result<Settings, String>,
    /// As in the file; or why that isn't known.
    state: Result<State, String>,
}

/// The right to work at an interface, of one at a time. Nobody takes it while what is known is locked.
struct Turn<'a> {
    keeper: &'a Keeper,
    key: Key,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(&self.keeper.busy).remove(&self.key);
        self.keeper.free.notify_all();
    }
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

fn netns(path: &Path) -> Result<File, Failure> {
    let unknown = |error| Failure::new(code::UNKNOWN, format!("no network namespace at {}", path.display()), error);
    File::open(path).map_err(unknown)
}

impl Known {
    fn ready(&self) -> Result<&Settings, String> {
        if let Err(why) = &self.state {
            return Err(why.clone());
        }
        self.settings.as_ref().map_err(Clone::clone)
    }

    fn state(&self) -> Result<&State, Failure> {
        self.state.as_ref().map_err(|why| Failure::new(code::IO, "leases can't be read", why))
    }
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
        let known = Mutex::new(Known { settings, state });
        let keeper = Keeper { paths: paths.clone(), known, busy: Mutex::default(), free: Condvar::new(), ports };
        keeper.tell_ports(&lock(&keeper.known));
        keeper.tidy();
        keeper.mend();
        keeper
    }

    /// Goes by other settings from the next call on.
    pub fn configure(&self, settings: Result<Settings, String>) {
        lock(&self.known).settings = settings;
    }

    /// Whether there would be interfaces for who asks.
    pub fn ready(&self) -> Result<(), String> {
        lock(&self.known).ready().map(drop)
    }

    fn turn(&self, key: &Key) -> Turn<'_> {
        let mut busy = lock(&self.busy);
        while !busy.insert(key.clone()) {
            busy = self.free.wait(busy).unwrap_or_else(PoisonError::into_inner);
        }
        Turn { keeper: self, key: key.clone() }
    }

    fn write(&self, known: &mut Known, state: State) -> Result<(), Failure> {
        let disk = |error| Failure::new(code::IO, "leases can't be written", format!("{error:#}"));
        store::write(&self.paths.ipam(), &state).map_err(disk)?;
        known.state = Ok(state);
        self.tell_ports(known);
        Ok(())
    }

    fn tell_ports(&self, known: &Known) {
        let Ok(state) = &known.state else { return };
        self.ports.send_if_modified(|told| {
            let now = HostPorts::of(state, told.revision + 1);
            let other = told.services != now.services || told.pods != now.pods;
            if other {
                *told = now;
            }
            other
        });
    }

    pub fn add(&self, new: &New<'_>) -> Result<Added, Failure> {
        self.ready().map_err(later)?;
        let turn = self.turn(new.key);
        if spool::has(&self.paths.spool(), new.key) {
            self.end(&turn)?;
        }
        let netns = netns(new.netns)?;
        let there = lock(&self.known).state()?.leases.get(new.key).cloned();
        if there.is_some_and(|lease| wire::verify(new.key, &lease, &netns).is_ok()) {
            return Err(Failure::new(code::EXISTS, "the interface is there already", new.key));
        }
        let host = wire::host_name(new.key);
        let began = Instant::now();
        let (settings, lease) = self.lease(new, &host)?;
        let leased = began.elapsed();
        // A call before this one may have ended half-way.
        let made = wire::remove(new.key).and_then(|_| wire::make(new.key, &lease, &netns, settings.mtu));
        debug!(?leased, made = ?began.elapsed(), "{host}");
        match made {
            Ok(wire) => {
                let services: Vec<String> = ports::of(new.key, &lease).map(|service| service.full_name()).collect();
                let revision = if services.is_empty() { 0 } else { self.ports.borrow().revision };
                Ok(Added { made: told(&settings, host, &wire, &lease), link: wire.link, services, revision })
            }
            Err(error) => {
                // Nobody has used its addresses: they need no time to cool down.
                self.take_back(&turn, 0);
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

    /// Gives an interface its addresses and ports, by the settings of this time.
    fn lease(&self, new: &New<'_>, host: &str) -> Result<(Settings, Lease), Failure> {
        let mut known = lock(&self.known);
        let settings = known.ready().map_err(later)?.clone();
        let mut state = known.state()?.clone();
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
        self.write(&mut known, state)?;
        Ok((settings, lease))
    }

    /// Takes back what an ADD made.
    pub fn undo(&self, key: &Key) {
        self.take_back(&self.turn(key), 0);
    }

    fn take_back(&self, turn: &Turn, cooldown: u64) {
        if let Err(failure) = self.remove(turn, cooldown) {
            error!("{failure}");
        }
    }

    /// Whether there was anything.
    pub fn del(&self, key: &Key) -> Result<bool, Failure> {
        self.end(&self.turn(key))
    }

    /// The same, and the note that says so, if there is one.
    fn end(&self, turn: &Turn) -> Result<bool, Failure> {
        let cooldown = lock(&self.known).settings.as_ref().map_or(60, |settings| settings.cooldown);
        let had = self.remove(turn, cooldown)?;
        let io = |error| Failure::new(code::IO, "a note can't be removed", format!("{error:#}"));
        spool::take(&self.paths.spool(), &turn.key).map_err(io)?;
        Ok(had)
    }

    fn remove(&self, turn: &Turn, cooldown: u64) -> Result<bool, Failure> {
        let kernel = |error| Failure::new(code::KERNEL, "the interface can't be removed", format!("{error:#}"));
        let there = wire::remove(&turn.key).map_err(kernel)?;
        let mut known = lock(&self.known);
        let mut state = known.state()?.clone();
        let had = state.give_back(&turn.key, cooldown, now()).is_some();
        if had {
            self.write(&mut known, state)?;
        }
        Ok(there || had)
    }

    /// Whether it is as it was made; the full names of its host ports.
    pub fn check(&self, key: &Key, path: &Path, addresses: &[IpAddr]) -> Result<Vec<String>, Failure> {
        let _turn = self.turn(key);
        let differs = |why: String| Failure::new(code::DIFFERS, "the interface is not as it was made", why);
        let lease = lock(&self.known).state()?.leases.get(key).cloned();
        let lease = lease.ok_or_else(|| Failure::new(code::UNKNOWN, "there is no such interface", key))?;
        if let Some(addr) = lease.addresses.iter().find(|addr| !addresses.contains(addr)) {
            return Err(differs(format!("prevResult has no {addr}, which it was given")));
        }
        wire::verify(key, &lease, &netns(path)?).map_err(|error| differs(format!("{error:#}")))?;
        Ok(ports::of(key, &lease).map(|service| service.full_name()).collect())
    }

    /// Gives back all of which something is true; which they were.
    pub fn release(&self, which: impl Fn(&Key, &Lease) -> bool) -> Result<Vec<Key>, Failure> {
        let keys = lock(&self.known).state()?.keys(which);
        keys.iter().try_for_each(|key| self.del(key).map(drop))?;
        Ok(keys)
    }

    /// Ends what is noted as ended, leases whose interfaces are gone, and interfaces of which there is no lease.
    pub fn tidy(&self) {
        let folder = self.paths.spool();
        for key in spool::all(&folder) {
            let turn = self.turn(&key);
            // An ADD may have come before.
            if !spool::has(&folder, &key) {
                continue;
            }
            match self.end(&turn) {
                Ok(_) => info!("{key} ended while no agent ran"),
                Err(error) => error!("{key}, which ended while no agent ran: {error}"),
            }
        }
        if let Err(error) = self.compare() {
            error!("comparing leases with interfaces: {error:#}");
        }
    }

    fn compare(&self) -> Result<()> {
        // In this order: who begins after the first look gets a lease after the last one.
        let busy = lock(&self.busy).clone();
        let there = ends()?;
        let is_gone = |key: &Key| there.iter().all(|(name, _)| *name != wire::host_name(key));
        let (gone, known) = {
            let known = lock(&self.known);
            let Ok(state) = &known.state else { return Ok(()) };
            let gone = state.keys(|key, _| !busy.contains(key) && is_gone(key));
            let all = state.leases.keys().chain(&busy).map(wire::host_name).collect::<BTreeSet<String>>();
            (gone, all)
        };
        for key in gone {
            let turn = self.turn(&key);
            // Its runtime may have been quicker.
            if !wire::is_there(&key)? && self.end(&turn).map_err(anyhow::Error::msg)? {
                info!("{key} is gone, and its addresses are free");
            }
        }
        let mut connection = Connection::open(libc::NETLINK_ROUTE)?;
        for (name, link) in there.into_iter().filter(|(name, _)| !known.contains(name)) {
            match write::delete_link(&mut connection, link) {
                Ok(()) => warn!("{name} is nobody's, and was removed"),
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
                Err(error) => warn!("{name} is nobody's: {error}"),
            }
        }
        Ok(())
    }

    /// Sets the node's ends up as they were made.
    fn mend(&self) {
        let Ok(state) = lock(&self.known).state.clone() else { return };
        let all = Connection::open(libc::NETLINK_ROUTE).and_then(|mut connection| {
            state.leases.iter().try_for_each(|(key, lease)| wire::host_side(&mut connection, key, lease).map(drop))
        });
        if let Err(error) = all {
            error!("{error:#}");
        }
    }
}

fn later(why: String) -> Failure {
    Failure::new(code::LATER, "pods get no interfaces yet, try again later", why)
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
