//! The kernel's links, addresses, neighbours and routes, mirrored as they change.
//!
//! Invariant: what is published is what a whole read would give. A notification says which table to read again;
//! routes alone, of which there may be a million, are followed by what it says of them. A lost one (the socket
//! overran) costs a read of all tables and nothing else. Deliberately not here: what follows from the facts
//! ([`crate::plan`]).

mod followed;
pub mod message;
mod news;
pub mod own;
mod read;
mod routes;
pub mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use netlink_sys::Socket;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

use self::followed::Followed;
use self::message::Connection;
use self::news::{Dirty, Event, News};
use self::read::Features;
pub use self::read::without_statistics;
use crate::intent::Network;
use crate::source::readiness::at;

/// Unresolved neighbours are asked for again this often.
const ASK_AGAIN: Duration = Duration::from_secs(3);

/// Next hops whose life decides something are asked this often whether they are there.
const PROBE: Duration = Duration::from_millis(250);

/// Neighbours that traffic needs: a link and an address on it.
pub type Wanted = BTreeSet<(u32, IpAddr)>;

/// The kernel's tables at one moment.
pub struct Mirror {
    connection: Connection,
    features: Option<Features>,
    network: Network,
    /// Links with an XDP program: 1 native, 2 generic.
    xdp: BTreeMap<u32, u8>,
    permanent: BTreeSet<(u32, IpAddr)>,
    routes: Followed,
}

impl Mirror {
    /// Reads all tables.
    pub fn open() -> Result<Self> {
        Mirror::read(Dirty::ALL)
    }

    /// Reads all tables but that of routes, which may be large.
    pub fn without_routes() -> Result<Self> {
        Mirror::read(Dirty { routes: false, ..Dirty::ALL })
    }

    fn read(tables: Dirty) -> Result<Self> {
        let mut mirror = Mirror {
            connection: Connection::open(libc::NETLINK_ROUTE)?,
            features: Features::open(),
            network: Network::default(),
            xdp: BTreeMap::new(),
            permanent: BTreeSet::new(),
            routes: Followed::open()?,
        };
        mirror.refresh(tables)?;
        Ok(mirror)
    }

    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Links with an XDP program: 1 native, 2 generic.
    pub fn xdp_modes(&self) -> &BTreeMap<u32, u8> {
        &self.xdp
    }

    /// Links whose drivers run XDP programs themselves; None: a kernel before 6.3, which doesn't say.
    pub fn native_xdp(&mut self) -> Result<Option<BTreeSet<u32>>> {
        self.features.as_mut().map(Features::native).transpose().context("reading the devices' XDP features")
    }

    /// Somebody set this neighbour for good: it is not ours to refresh.
    pub fn is_permanent(&self, link: u32, addr: IpAddr) -> bool {
        self.permanent.contains(&(link, addr))
    }

    /// Takes what came from the kernel.
    fn take(&mut self, events: &[Event], dirty: Dirty) -> Result<()> {
        let result = self.routes.take(events);
        self.show_routes();
        result.and_then(|()| self.refresh(dirty))
    }

    fn show_routes(&mut self) {
        self.network.routes = self.routes.table().clone();
        self.network.own.routes.clone_from(self.routes.own());
    }

    fn refresh(&mut self, dirty: Dirty) -> Result<()> {
        if dirty.links {
            let links = read::links(&mut self.connection).context("reading the kernel's links")?;
            (self.network.links, self.xdp) = (links.links, links.xdp);
            if dirty.routes {
                self.routes.lost(links.set_up);
            }
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
        if dirty.rules {
            let all = read::rules(&mut self.connection).context("reading the kernel's policy rules")?;
            self.network.own.rules = all.own;
            self.network.policy = all.policy;
        }
        if dirty.settings {
            self.network.forwarding = read::forwarding(&mut self.connection).context("reading which links forward")?;
        }
        self.read_routes()
    }

    fn read_routes(&mut self) -> Result<()> {
        let result = self.routes.read();
        self.show_routes();
        result
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
            link.xdp_transmit = transmit.contains(&link.index) && !link.queued;
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

/// What the mirror is to ask for, as it may change at any time.
pub struct Asked {
    pub wanted: watch::Receiver<Wanted>,
    /// Next hops whose life decides something. The kernel keeps no neighbour fresh that it is told to probe:
    /// those are none of the wanted meanwhile.
    pub probed: watch::Receiver<Wanted>,
    /// Counts the times that the socket overran.
    pub overruns: Arc<AtomicU64>,
}

/// Mirrors until the receivers are gone.
pub fn spawn(asked: Asked) -> Result<watch::Receiver<Network>> {
    // Subscribed before the first read: nothing falls between.
    let socket = news::subscribe()?;
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
    Asked { mut wanted, mut probed, overruns }: Asked,
    sender: &watch::Sender<Network>,
) -> Result<()> {
    let mut features = interval(Duration::from_secs(1));
    let mut again = interval(ASK_AGAIN);
    let mut probe = interval(PROBE);
    features.set_missed_tick_behavior(MissedTickBehavior::Delay);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    probe.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut asked, mut news) = (Wanted::new(), News::default());
    while !sender.is_closed() {
        let mut ask_again = false;
        let result = tokio::select! {
            result = news.wait(&socket) => {
                result?;
                let (events, dirty) = news.take();
                if news.take_overran() {
                    let times = overruns.fetch_add(1, Ordering::Relaxed) + 1;
                    tracing::warn!(
                        "the kernel's network changed faster than it could be followed ({times} times so far): all of it is read again"
                    );
                }
                let begin = Instant::now();
                let result = tokio::task::block_in_place(|| mirror.take(&events, dirty));
                if dirty == Dirty::NOTHING && result.is_ok() {
                    publish(&mirror, sender);
                    continue;
                }
                news.reading_took(begin.elapsed());
                result
            }
            () = at(mirror.routes.due()) => tokio::task::block_in_place(|| mirror.read_routes()),
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
        publish(&mirror, sender);
    }
    Ok(())
}

fn publish(mirror: &Mirror, sender: &watch::Sender<Network>) {
    sender.send_if_modified(|network| {
        let differs = *network != mirror.network;
        if differs {
            network.clone_from(&mirror.network);
        }
        differs
    });
}
