//! What the kernel tells of changes: received, sorted, and held until a burst of it is over.
//!
//! Invariant: nothing is lost without being noticed; what the socket had no room for has everything read again.
//! Changes of routes wait for nobody, unless links or addresses change with them.

use std::time::Duration;

use anyhow::{Context, Result};
use netlink_sys::{Socket, SocketAddr};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout_at};

use super::message;
use crate::source::readiness::readable;

/// Links, neighbours, next hops, and of IPv4 and IPv6 addresses, routes, rules, and links' settings.
const GROUPS: [u32; 11] = [1, 3, 5, 7, 8, 9, 11, 19, 24, 25, 32];
/// What the kernel keeps of notifications that weren't read yet: those of some ten thousand routes.
const BACKLOG: usize = 64 << 20;
/// No larger one comes.
const DATAGRAM: usize = 1 << 17;
/// So many changes of routes are taken at once.
const BATCH: usize = 4_096;
/// Other changes are read once it has been quiet for this long,
const QUIET: Duration = Duration::from_millis(1);
/// or goes on for this long,
const PATIENCE: Duration = Duration::from_millis(10);
/// and for so many times as long as the last read took. Reading leaves time for the rest.
pub const PAUSE: u32 = 3;

pub const NEW_LINK: u16 = 16;
pub const DEL_LINK: u16 = 17;
pub const NEW_ADDRESS: u16 = 20;
pub const DEL_ADDRESS: u16 = 21;
pub const NEW_ROUTE: u16 = 24;
pub const DEL_ROUTE: u16 = 25;
pub const NEW_NEIGHBOUR: u16 = 28;
pub const DEL_NEIGHBOUR: u16 = 29;
pub const NEW_RULE: u16 = 32;
pub const DEL_RULE: u16 = 33;
const NEW_SETTINGS: u16 = 80;
const DEL_SETTINGS: u16 = 81;
pub const DEL_NEXT_HOP: u16 = 105;

/// Which tables to read again.
#[derive(Clone, Copy, Default, PartialEq)]
pub struct Dirty {
    pub links: bool,
    pub addresses: bool,
    pub neighbours: bool,
    pub routes: bool,
    pub rules: bool,
    pub settings: bool,
}

impl Dirty {
    pub const NOTHING: Dirty =
        Dirty { links: false, addresses: false, neighbours: false, routes: false, rules: false, settings: false };
    pub const ALL: Dirty =
        Dirty { links: true, addresses: true, neighbours: true, routes: true, rules: true, settings: true };
}

/// A notification.
pub struct Event {
    pub kind: u16,
    pub flags: u16,
    pub payload: Vec<u8>,
}

/// What has come and was not taken yet.
#[derive(Default)]
pub struct News {
    dirty: Dirty,
    /// Something was lost.
    overran: bool,
    /// When that is taken at the latest.
    end: Option<Instant>,
    /// How long the last read took.
    took: Duration,
    /// Changes of routes, and of what takes them along without a word, in their order.
    events: Vec<Event>,
    buffer: Vec<u8>,
}

impl News {
    fn note(&mut self, kind: u16, flags: u16, payload: &[u8]) {
        match kind {
            NEW_LINK | DEL_LINK => self.dirty.links = true,
            NEW_ADDRESS | DEL_ADDRESS => self.dirty.addresses = true,
            NEW_NEIGHBOUR | DEL_NEIGHBOUR => self.dirty.neighbours = true,
            NEW_RULE | DEL_RULE => self.dirty.rules = true,
            NEW_SETTINGS | DEL_SETTINGS => self.dirty.settings = true,
            _ => {}
        }
        if matches!(kind, NEW_ROUTE | DEL_ROUTE | NEW_LINK | DEL_LINK | NEW_ADDRESS | DEL_ADDRESS | DEL_NEXT_HOP) {
            self.events.push(Event { kind, flags, payload: payload.to_vec() });
        }
    }

    /// Reads what has come without waiting; false: there is more.
    fn drain(&mut self, socket: &Socket) -> bool {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.reserve(DATAGRAM);
        let mut all = false;
        while !all && self.events.len() < BATCH {
            buffer.clear();
            match socket.recv(&mut buffer, 0) {
                Ok(_) => message::each(&buffer).for_each(|(kind, flags, payload)| self.note(kind, flags, payload)),
                Err(error) if is_overrun(&error) => {
                    self.lost(socket, &mut buffer);
                    all = true;
                }
                Err(_) => all = true,
            }
        }
        self.buffer = buffer;
        all
    }

    /// Some of what the kernel told is lost: what it told besides is older than the read of all that follows, and
    /// would only hold that up.
    fn lost(&mut self, socket: &Socket, buffer: &mut Vec<u8>) {
        (self.dirty, self.overran) = (Dirty::ALL, true);
        self.events.clear();
        loop {
            buffer.clear();
            if socket.recv(buffer, 0).is_err_and(|error| !is_overrun(&error)) {
                break;
            }
        }
    }

    /// Whether there is something whose turn it is, however much may still come.
    fn is_due(&self) -> bool {
        let alone = !self.dirty.links && !self.dirty.addresses && !self.dirty.routes;
        self.events.len() >= BATCH || (alone && !self.events.is_empty())
    }

    /// Waits for changes whose turn it is. May be dropped while it waits: what came is kept.
    pub async fn wait(&mut self, socket: &AsyncFd<Socket>) -> Result<()> {
        while !self.is_due() {
            if self.dirty != Dirty::NOTHING {
                self.end.get_or_insert_with(|| Instant::now() + PATIENCE.max(self.took * PAUSE));
            }
            let quiet = Instant::now() + QUIET;
            let mut ready = match self.end {
                None => socket.readable().await?,
                Some(end) if end <= Instant::now() => return Ok(()),
                Some(end) => match timeout_at(quiet.min(end), socket.readable()).await {
                    Ok(ready) => ready?,
                    Err(_) => {
                        self.end = Some(Instant::now());
                        return Ok(());
                    }
                },
            };
            if self.drain(ready.get_inner()) {
                ready.clear_ready();
            }
        }
        Ok(())
    }

    /// The tables that [`Self::take`] named were read in this time.
    pub fn reading_took(&mut self, took: Duration) {
        self.took = took;
    }

    /// Whether something was lost since this was asked last.
    pub fn take_overran(&mut self) -> bool {
        std::mem::take(&mut self.overran)
    }

    /// The events, and, once their burst is over, what else changed.
    pub fn take(&mut self) -> (Vec<Event>, Dirty) {
        let over = self.end.is_some_and(|end| end <= Instant::now());
        let dirty = if over { std::mem::take(&mut self.dirty) } else { Dirty::NOTHING };
        if over {
            self.end = None;
        }
        (std::mem::take(&mut self.events), dirty)
    }
}

fn is_overrun(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOBUFS)
}

pub fn subscribe() -> Result<AsyncFd<Socket>> {
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
