//! The kernel's links, addresses, neighbours and routes, mirrored as they change.
//!
//! Invariant: what is published is what a whole read would give. A notification says which table to read again;
//! routes alone, of which there may be a million, are followed by what it says of them. A lost one (the socket
//! overran) costs a read of all tables and nothing else. Deliberately not here: what follows from the facts
//! ([`crate::plan`]).

pub mod message;
pub mod own;
mod read;
mod routes;
pub mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use netlink_sys::{Socket, SocketAddr};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

use self::message::Connection;
use self::read::Features;
use self::routes::{DEL_ROUTE, Effect, NEW_ROUTE, Routes};
use crate::intent::Network;
use crate::route::{Key, MAIN};
use crate::source::readiness::{at, readable};

/// Links, neighbours, next hops, and of IPv4 and IPv6 addresses, routes, rules, and links' settings.
const GROUPS: [u32; 11] = [1, 3, 5, 7, 8, 9, 11, 19, 24, 25, 32];
/// What the kernel keeps of notifications that weren't read yet: those of some ten thousand routes.
const BACKLOG: usize = 64 << 20;
/// Other notifications than of routes are read once it has been quiet for this long,
const QUIET: Duration = Duration::from_millis(3);
/// or goes on for this long.
const PATIENCE: Duration = Duration::from_millis(30);
const NEW_LINK: u16 = 16;
const DEL_LINK: u16 = 17;
const NEW_ADDRESS: u16 = 20;
const DEL_ADDRESS: u16 = 21;
const DEL_NEXT_HOP: u16 = 105;
/// So many changes of routes are taken at once.
const BATCH: usize = 4_096;
/// Unresolved neighbours are asked for again this often.
const ASK_AGAIN: Duration = Duration::from_secs(3);

/// Next hops whose life decides something are asked this often whether they are there.
const PROBE: Duration = Duration::from_millis(250);

/// After a read of all routes the next one waits so many times as long as that took.
const PAUSE: u32 = 3;
/// So long dead next hops may take to come to life behind their link or address.
const REVIVAL: Duration = Duration::from_millis(50);
/// So many IPv6 routes the kernel lists in one go.
const LISTED_AT_ONCE: usize = 16;
/// So often all routes are read again, if they changed meanwhile.
const AGAIN: u32 = 3;

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
}

/// What came from the kernel.
#[derive(Default)]
struct News {
    dirty: Dirty,
    /// Notifications of routes and of what takes them along without a word, in their order: kind, flags, payload.
    of_routes: Vec<(u16, u16, Vec<u8>)>,
}

impl News {
    fn is_empty(&self) -> bool {
        self.are_of_routes_alone() && self.of_routes.is_empty()
    }

    fn are_of_routes_alone(&self) -> bool {
        self.dirty == Dirty::default()
    }

    fn note(&mut self, kind: u16, flags: u16, payload: &[u8]) {
        match kind {
            NEW_LINK | DEL_LINK => self.dirty.links = true,
            NEW_ADDRESS | DEL_ADDRESS => self.dirty.addresses = true,
            28 | 29 => self.dirty.neighbours = true,
            32 | 33 => self.dirty.rules = true,
            80 | 81 => self.dirty.settings = true,
            _ => {}
        }
        if matches!(kind, NEW_ROUTE | DEL_ROUTE | NEW_LINK | DEL_LINK | NEW_ADDRESS | DEL_ADDRESS | DEL_NEXT_HOP) {
            self.of_routes.push((kind, flags, payload.to_vec()));
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
    /// Links that were set up.
    set_up: BTreeSet<u32>,
    permanent: BTreeSet<(u32, IpAddr)>,
    routes: Routes,
    reading: Reading,
    /// For what is ours among the routes.
    own: Connection,
}

/// When all routes are to be read.
#[derive(Default)]
struct Reading {
    /// It is due, if not yet.
    owed: bool,
    /// Not before this, so that it leaves time for the rest.
    next: Option<Instant>,
    /// The last one is not long ago: notifications of what it had already may still come.
    fresh: bool,
    /// A link or address came that dead next hops may come to life with.
    revived: bool,
    /// How often it was done again since the tables changed meanwhile.
    again: u32,
}

impl Mirror {
    /// Reads all tables.
    pub fn open() -> Result<Self> {
        let mut mirror = Mirror {
            connection: Connection::open(libc::NETLINK_ROUTE)?,
            features: Features::open(),
            network: Network::default(),
            xdp: BTreeMap::new(),
            set_up: BTreeSet::new(),
            permanent: BTreeSet::new(),
            routes: Routes::default(),
            reading: Reading::default(),
            own: own::open()?,
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

    /// Takes what came from the kernel.
    fn take(&mut self, news: News) -> Result<()> {
        let (mut changed6, mut own) = (false, false);
        for (kind, flags, payload) in &news.of_routes {
            if !matches!(*kind, NEW_ROUTE | DEL_ROUTE) {
                self.follow_others(*kind, payload);
                own = true;
                continue;
            }
            let effect = self.routes.note(*kind, *flags, payload, self.reading.fresh);
            self.reading.owed |= effect == Effect::Unclear;
            changed6 |= payload.first() == Some(&(libc::AF_INET6 as u8));
            own |= self.is_about_own(payload);
        }
        self.network.routes = self.routes.table.clone();
        if own {
            self.network.own.routes = own::routes(&mut self.own).context("reading our routes in the kernel")?;
        }
        if !news.of_routes.is_empty() && std::mem::take(&mut self.reading.fresh) {
            // The kernel goes on by number where an IPv6 table changes between parts of its list: it may leave some out.
            let in_parts = self.routes.table.len6() > LISTED_AT_ONCE;
            self.reading.owed |= changed6 && in_parts && self.reading.again < AGAIN;
            self.reading.again = if self.reading.owed { self.reading.again + 1 } else { 0 };
        }
        self.refresh(news.dirty)
    }

    /// Routes go without a word with what they need, and dead next hops come to life with that.
    fn follow_others(&mut self, kind: u16, payload: &[u8]) {
        let index = message::u32_at(payload, 4).unwrap_or_default();
        let table = &mut self.routes.table;
        self.reading.owed |= match kind {
            DEL_ADDRESS => {
                let mut paths = table.paths().flat_map(|paths| paths.iter());
                // With the last of a link all its routes; before that, those that name it as their source.
                payload.first() == Some(&(libc::AF_INET as u8)) && paths.any(|path| path.link == index)
            }
            DEL_NEXT_HOP => self.routes.objects,
            NEW_ADDRESS => self.revive(),
            NEW_LINK if message::u32_at(payload, 8).is_some_and(|flags| flags & read::IFF_UP != 0) => {
                self.set_up.insert(index);
                self.revive()
            }
            _ => self.set_up.remove(&index) && table.remove_link(index),
        };
    }

    /// Something came that dead next hops come to life with; not yet while the kernel says so.
    fn revive(&mut self) -> bool {
        self.reading.revived |= self.routes.dead;
        self.routes.dead
    }

    /// Whether it is a route of ours, or stands in the place of one.
    fn is_about_own(&self, payload: &[u8]) -> bool {
        let place = || {
            let routes::Entry { prefix, metric, .. } = routes::entry(payload)?;
            self.network.own.routes.get(&Key { table: MAIN, prefix, metric })
        };
        own::route(payload).is_some() || (!self.network.own.routes.is_empty() && place().is_some())
    }

    fn refresh(&mut self, dirty: Dirty) -> Result<()> {
        self.reading.owed |= dirty.routes;
        if dirty.links {
            let links = read::links(&mut self.connection).context("reading the kernel's links")?;
            (self.network.links, self.xdp) = (links.links, links.xdp);
            if dirty.routes {
                self.set_up = links.set_up;
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

    /// Reads all routes, if that is due.
    fn read_routes(&mut self) -> Result<()> {
        let now = Instant::now();
        if !self.reading.owed || self.reading.next.is_some_and(|next| now < next) {
            return Ok(());
        }
        self.routes = routes::read(&mut self.connection).context("reading the kernel's routes")?;
        self.network.routes = self.routes.table.clone();
        self.network.own.routes = own::routes(&mut self.own).context("reading our routes in the kernel")?;
        let took = now.elapsed();
        tracing::debug!(?took, prefixes = self.routes.table.len(), "read all of the kernel's routes");
        let again = std::mem::take(&mut self.reading.revived);
        self.reading.next = Some(now + (took * (PAUSE + 1)).max(if again { REVIVAL } else { Duration::ZERO }));
        (self.reading.owed, self.reading.fresh) = (again, true);
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
    if let Err(error) = set_socket_recv_buffer_size_force(&socket, BACKLOG) {
        tracing::warn!("a burst of the kernel's changes may overrun: {error}");
    }
    socket.set_non_blocking(true)?;
    Ok(readable(socket)?)
}

/// Reads what has come without waiting.
fn drain(socket: &Socket, buffer: &mut Vec<u8>, news: &mut News) {
    loop {
        buffer.clear();
        match socket.recv(buffer, 0) {
            Ok(_) => message::each(buffer).for_each(|(kind, flags, payload)| news.note(kind, flags, payload)),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => news.dirty = Dirty::ALL,
            Err(_) => return,
        }
        if news.of_routes.len() >= BATCH {
            return;
        }
    }
}

/// Waits for a change, and for the end of its burst where it is not of routes alone. May be dropped while it waits:
/// what came is noted in `news`.
async fn changed(socket: &AsyncFd<Socket>, news: &mut News) -> Result<()> {
    let mut buffer = Vec::with_capacity(1 << 17);
    while news.is_empty() {
        let mut ready = socket.readable().await?;
        drain(ready.get_inner(), &mut buffer, news);
        if news.of_routes.len() < BATCH {
            ready.clear_ready();
        }
    }
    let end = Instant::now() + PATIENCE;
    while !news.are_of_routes_alone()
        && news.of_routes.len() < BATCH
        && let Ok(ready) = timeout_at((Instant::now() + QUIET).min(end), socket.readable()).await
    {
        let mut ready = ready?;
        drain(ready.get_inner(), &mut buffer, news);
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
    let (mut asked, mut news) = (Wanted::new(), News::default());
    while !sender.is_closed() {
        let mut ask_again = false;
        let due = mirror.reading.next.filter(|_| mirror.reading.owed);
        let result = tokio::select! {
            result = changed(&socket, &mut news) => {
                result?;
                let news = std::mem::take(&mut news);
                let routes_alone = news.are_of_routes_alone();
                let result = tokio::task::block_in_place(|| mirror.take(news));
                if routes_alone && result.is_ok() {
                    publish(&mirror, sender);
                    continue;
                }
                result
            }
            () = at(due) => tokio::task::block_in_place(|| mirror.read_routes()),
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
