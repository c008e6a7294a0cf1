//! The kernel's links, addresses, neighbours and routes, mirrored as they change.
//!
//! Invariant: what is published was read whole. A notification never becomes a fact by itself: it
//! says which table to read again, so that a lost one (the socket overran) costs a read of all
//! tables and nothing else. Deliberately not here: what follows from the facts ([`crate::plan`]).

pub mod message;
pub mod own;
mod read;
pub mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use netlink_sys::{Socket, SocketAddr};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

use self::message::Connection;
use self::read::Features;
use crate::intent::Network;
use crate::source::readiness::readable;

/// Links, neighbours, and of IPv4 and IPv6 addresses, routes, rules, and links' settings.
const GROUPS: [u32; 10] = [1, 3, 5, 7, 8, 9, 11, 19, 24, 25];
/// A burst of notifications is read once it has been quiet for this long,
const QUIET: Duration = Duration::from_millis(3);
/// or goes on for this long.
const PATIENCE: Duration = Duration::from_millis(30);
/// Unresolved neighbours are asked for again this often.
const ASK_AGAIN: Duration = Duration::from_secs(3);

/// Next hops whose life decides something are asked this often whether they are there.
const PROBE: Duration = Duration::from_millis(250);

/// Neighbours that traffic needs: a link and an address on it.
pub type Wanted = BTreeSet<(u32, IpAddr)>;

/// Which tables to read again.
#[derive(Clone, Copy, Default, PartialEq)]
struct Dirty {
    links: bool,
    addresses: bool,
    neighbours: bool,
    routes: bool,
    rules: bool,
    settings: bool,
}

impl Dirty {
    const ALL: Dirty =
        Dirty { links: true, addresses: true, neighbours: true, routes: true, rules: true, settings: true };

    fn note(&mut self, kind: u16) {
        match kind {
            // Routes vanish without a word when their link goes down.
            16 | 17 => (self.links, self.routes) = (true, true),
            // Addresses bring routes, and take them along, for IPv4 without a word, too.
            20 | 21 => (self.addresses, self.routes) = (true, true),
            24 | 25 => self.routes = true,
            28 | 29 => self.neighbours = true,
            32 | 33 => self.rules = true,
            80 | 81 => self.settings = true,
            _ => {}
        }
    }
}

/// The kernel's tables at one moment.
pub struct Mirror {
    connection: Connection,
    features: Option<Features>,
    network: Network,
    /// Links with an XDP program: 1 native, 2 generic.
    xdp: BTreeMap<u32, u8>,
    permanent: BTreeSet<(u32, IpAddr)>,
}

impl Mirror {
    /// Reads all tables.
    pub fn open() -> Result<Self> {
        let mut mirror = Mirror {
            connection: Connection::open(libc::NETLINK_ROUTE)?,
            features: Features::open(),
            network: Network::default(),
            xdp: BTreeMap::new(),
            permanent: BTreeSet::new(),
        };
        mirror.refresh(Dirty::ALL)?;
        Ok(mirror)
    }

    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Links with an XDP program: 1 native, 2 generic.
    pub fn xdp_modes(&self) -> &BTreeMap<u32, u8> {
        &self.xdp
    }

    /// Somebody set this neighbour for good: it is not ours to refresh.
    pub fn is_permanent(&self, link: u32, addr: IpAddr) -> bool {
        self.permanent.contains(&(link, addr))
    }

    fn refresh(&mut self, dirty: Dirty) -> Result<()> {
        if dirty.links {
            let links = read::links(&mut self.connection).context("reading the kernel's links")?;
            self.network.links = links.links;
            self.xdp = links.xdp;
            self.refresh_features()?;
        }
        if dirty.addresses {
            self.network.addresses = read::addresses(&mut self.connection).context("reading the kernel's addresses")?;
        }
        if dirty.neighbours {
            let all = read::neighbours(&mut self.connection).context("reading the kernel's neighbours")?;
            self.network.neighbours = all.neighbours;
            self.permanent = all.permanent;
        }
        if dirty.routes {
            let all = read::routes(&mut self.connection).context("reading the kernel's routes")?;
            self.network.routes = all.routes;
            self.network.own.routes = all.own;
        }
        if dirty.rules {
            let all = read::rules(&mut self.connection).context("reading the kernel's policy rules")?;
            self.network.own.rules = all.own;
            self.network.policy = all.policy;
        }
        if dirty.settings {
            self.network.forwarding = read::forwarding(&mut self.connection).context("reading which links forward")?;
        }
        Ok(())
    }

    /// What XDP can transmit on. It changes without a notification when a veth's peer turns GRO or
    /// XDP on. Kernels before 6.3 don't say: there, only hardware that runs native XDP is trusted.
    fn refresh_features(&mut self) -> Result<()> {
        let transmit = match &mut self.features {
            Some(features) => features.transmit().context("reading the devices' XDP features")?,
            None => {
                let native = |index: &u32| self.xdp.get(index) == Some(&1);
                let links = self.network.links.iter().filter(|l| l.kind.is_none());
                links.map(|l| l.index).filter(native).collect()
            }
        };
        for link in &mut self.network.links {
            link.xdp_transmit = transmit.contains(&link.index);
        }
        Ok(())
    }

    /// Asks whether next hops are there.
    fn probe(&mut self, hops: &Wanted) {
        for &(link, addr) in hops.iter().filter(|hop| !self.permanent.contains(hop)) {
            if let Err(error) = write::probe(&mut self.connection, link, addr) {
                tracing::debug!(link, address = %addr, %error, "asking whether a next hop is there");
            }
        }
    }

    /// Asks for wanted neighbours: for new ones always, for all those that are unresolved on `again`.
    fn resolve(&mut self, wanted: &Wanted, asked: &mut Wanted, again: bool) {
        let resolved: BTreeSet<(u32, IpAddr)> =
            self.network.neighbours.iter().filter(|n| n.mac.is_some()).map(|n| (n.link, n.addr)).collect();
        for entry in wanted.iter().filter(|entry| !self.permanent.contains(entry)) {
            if asked.contains(entry) && (!again || resolved.contains(entry)) {
                continue;
            }
            match write::resolve(&mut self.connection, entry.0, entry.1, true) {
                Ok(()) => _ = asked.insert(*entry),
                Err(error) => tracing::debug!(link = entry.0, address = %entry.1, %error, "asking for a neighbour"),
            }
        }
        for (link, addr) in asked.extract_if(.., |entry| !wanted.contains(entry)) {
            release(&mut self.connection, link, addr, self.permanent.contains(&(link, addr)));
        }
    }
}

/// Leaves a neighbour to the kernel's ordinary care. It may be gone, with its link.
pub fn release(connection: &mut Connection, link: u32, addr: IpAddr, permanent: bool) {
    if !permanent {
        _ = write::resolve(connection, link, addr, false);
    }
}

fn subscribe() -> Result<AsyncFd<Socket>> {
    let mut socket = Socket::new(libc::NETLINK_ROUTE as isize).context("a netlink socket")?;
    socket.bind(&SocketAddr::new(0, 0)).context("binding a netlink socket")?;
    for group in GROUPS {
        socket.add_membership(group).context("subscribing to the kernel's changes")?;
    }
    _ = socket.set_rx_buf_sz(4 << 20);
    socket.set_non_blocking(true)?;
    Ok(readable(socket)?)
}

/// Reads what has come without waiting.
fn drain(socket: &Socket, buffer: &mut Vec<u8>, dirty: &mut Dirty) {
    loop {
        buffer.clear();
        match socket.recv(buffer, 0) {
            Ok(_) => message::kinds(buffer).for_each(|kind| dirty.note(kind)),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => *dirty = Dirty::ALL,
            Err(_) => return,
        }
    }
}

/// Waits for a change and the end of its burst. May be dropped while it waits: what came is noted in `dirty`.
async fn changed(socket: &AsyncFd<Socket>, dirty: &mut Dirty) -> Result<()> {
    let mut buffer = Vec::with_capacity(1 << 17);
    while *dirty == Dirty::default() {
        let mut ready = socket.readable().await?;
        drain(ready.get_inner(), &mut buffer, dirty);
        ready.clear_ready();
    }
    let end = Instant::now() + PATIENCE;
    while let Ok(ready) = timeout_at((Instant::now() + QUIET).min(end), socket.readable()).await {
        let mut ready = ready?;
        drain(ready.get_inner(), &mut buffer, dirty);
        ready.clear_ready();
        if Instant::now() >= end {
            break;
        }
    }
    Ok(())
}

/// What the mirror is to ask for, as it may change at any time.
pub struct Asked {
    pub wanted: watch::Receiver<Wanted>,
    /// Next hops whose life decides something. The kernel keeps no neighbour fresh that it is told to probe:
    /// those are none of the wanted meanwhile.
    pub probed: watch::Receiver<Wanted>,
}

/// Mirrors until the receivers are gone.
pub fn spawn(asked: Asked) -> Result<watch::Receiver<Network>> {
    // Subscribed before the first read: nothing falls between.
    let socket = subscribe()?;
    let mirror = Mirror::open()?;
    let (sender, receiver) = watch::channel(mirror.network.clone());
    tokio::spawn(async move {
        if let Err(error) = follow(socket, mirror, asked, &sender).await {
            tracing::error!("no longer following the kernel's network: {error:#}");
        }
    });
    Ok(receiver)
}

async fn follow(
    socket: AsyncFd<Socket>,
    mut mirror: Mirror,
    Asked { mut wanted, mut probed }: Asked,
    sender: &watch::Sender<Network>,
) -> Result<()> {
    let mut features = interval(Duration::from_secs(1));
    let mut again = interval(ASK_AGAIN);
    let mut probe = interval(PROBE);
    features.set_missed_tick_behavior(MissedTickBehavior::Delay);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    probe.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut asked, mut dirty) = (Wanted::new(), Dirty::default());
    while !sender.is_closed() {
        let mut ask_again = false;
        let result = tokio::select! {
            result = changed(&socket, &mut dirty) => {
                result?;
                let dirty = std::mem::take(&mut dirty);
                tokio::task::block_in_place(|| mirror.refresh(dirty))
            }
            _ = features.tick() => tokio::task::block_in_place(|| mirror.refresh_features()),
            _ = again.tick() => { ask_again = true; Ok(()) }
            _ = probe.tick(), if !probed.borrow().is_empty() => {
                let hops = probed.borrow().clone();
                tokio::task::block_in_place(|| mirror.probe(&hops));
                continue;
            }
            change = wanted.changed() => { if change.is_err() { return Ok(()); } Ok(()) }
            change = probed.changed() => { if change.is_err() { return Ok(()); } Ok(()) }
        };
        if let Err(error) = result {
            // The tables are as they were; the next change or second tries again.
            tracing::warn!("{error:#}");
            tokio::time::sleep(Duration::from_millis(200)).await;
            tokio::task::block_in_place(|| mirror.refresh(Dirty::ALL)).unwrap_or_default();
        }
        let want = &*wanted.borrow_and_update() - &*probed.borrow_and_update();
        tokio::task::block_in_place(|| mirror.resolve(&want, &mut asked, ask_again));
        sender.send_if_modified(|network| {
            let differs = *network != mirror.network;
            if differs {
                network.clone_from(&mirror.network);
            }
            differs
        });
    }
    Ok(())
}
