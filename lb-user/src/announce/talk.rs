//! The words that nodes exchange, and echo where they don't.
//!
//! Invariant: what comes from an address that no peer has changes nothing. Without peers no socket is open. Not here:
//! what follows from what was heard ([`super::peers`]).

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lb_common::apply::fold;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{debug, info, warn};

use super::peers::{BEAT, Life, Peers, Word};
use super::report::Report;
use super::sum;

const RETRY: Duration = Duration::from_secs(1);

/// What is to be said, and to whom.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    pub node: String,
    pub port: u16,
    /// None: nothing yet.
    pub word: Option<Word>,
    pub peers: BTreeMap<String, Vec<IpAddr>>,
    /// What an agent before knew of them.
    pub before: BTreeMap<String, Life>,
}

pub type Lives = BTreeMap<String, Life>;

/// Begins; ends with the sender of what is wanted.
pub fn spawn(wanted: watch::Receiver<Wanted>) -> watch::Receiver<Lives> {
    let (lives, lives_by) = watch::channel(Lives::new());
    _ = tokio::spawn(run(wanted, lives));
    lives_by
}

async fn run(mut wanted: watch::Receiver<Wanted>, lives: watch::Sender<Lives>) {
    let mut peers = Peers::default();
    loop {
        let now = wanted.borrow_and_update().clone();
        peers.set(&now.peers, &now.before, Instant::now());
        publish(&peers, &lives);
        let ended = if now.peers.is_empty() {
            wanted.changed().await.is_err()
        } else {
            match Sockets::open(now.port).context("sockets to other nodes") {
                Ok(sockets) => talk(&now, &sockets, &mut peers, &mut wanted, &lives).await,
                Err(error) => {
                    warn!("other nodes don't hear of this one: {error:#}");
                    peers.tick(Instant::now());
                    sleep(RETRY).await;
                    wanted.has_changed().is_err()
                }
            }
        };
        if ended {
            return;
        }
    }
}

/// Until something else is wanted; true when nothing will be any more.
async fn talk(
    now: &Wanted,
    sockets: &Sockets,
    peers: &mut Peers,
    wanted: &mut watch::Receiver<Wanted>,
    lives: &watch::Sender<Lives>,
) -> bool {
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut v4, mut v6, mut echo4, mut echo6) = ([0; 512], [0; 512], [0; 512], [0; 512]);
    loop {
        tokio::select! {
            changed = wanted.changed() => return changed.is_err(),
            _ = beat.tick() => {
                peers.addresses().for_each(|addr| sockets.say(now, addr));
                let time = Instant::now();
                peers.quiet(time).for_each(|addr| sockets.ask(addr));
                peers.tick(time);
            }
            got = receive(&sockets.v4, &mut v4) => heard(now, sockets, peers, got, &v4),
            got = receive(&sockets.v6, &mut v6) => heard(now, sockets, peers, got, &v6),
            (len, from) = receive(&sockets.echo4, &mut echo4) => {
                // IPv4's raw sockets give the IP header, too.
                let start = usize::from(echo4[0] & 0xf) * 4;
                if sockets.is_answer(0, echo4.get(start..len).unwrap_or_default()) {
                    peers.answered(from, Instant::now());
                }
            }
            (len, from) = receive(&sockets.echo6, &mut echo6) => {
                if sockets.is_answer(129, &echo6[..len]) {
                    peers.answered(from, Instant::now());
                }
            }
        }
        publish(peers, lives);
    }
}

fn heard(now: &Wanted, sockets: &Sockets, peers: &mut Peers, (len, from): (usize, IpAddr), datagram: &[u8]) {
    let said = Word::parse(&datagram[..len]);
    match said.and_then(|(node, word)| peers.heard(from, node, word, Instant::now())) {
        // Who has just come is to know of this node before it thinks itself alone.
        Some(true) => sockets.say(now, from),
        Some(false) => {}
        None => debug!("{from} says nothing that a node would which we know"),
    }
}

fn publish(peers: &Peers, to: &watch::Sender<Lives>) {
    let new = peers.lives();
    _ = to.send_if_modified(|old| {
        for (node, life) in new.iter().filter(|(node, life)| old.get(*node) != Some(life)) {
            match life {
                Life::Unknown => {}
                Life::Alive => info!("node {node} is there"),
                Life::Gone => info!("node {node} is not there"),
            }
        }
        let other = *old != new;
        *old = new;
        other
    });
}

/// An error is of a former packet (ICMP): the next one may be well.
async fn receive(socket: &UdpSocket, into: &mut [u8]) -> (usize, IpAddr) {
    loop {
        match socket.recv_from(into).await {
            Ok((len, from)) => return (len, from.ip().to_canonical()),
            Err(error) => {
                debug!("from other nodes: {error}");
                sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

struct Sockets {
    v4: UdpSocket,
    v6: UdpSocket,
    echo4: UdpSocket,
    echo6: UdpSocket,
    id: [u8; 2],
}

impl Sockets {
    fn open(port: u16) -> Result<Sockets> {
        let own = |domain, kind, protocol, at: Option<SocketAddr>| -> io::Result<UdpSocket> {
            let socket = Socket::new(domain, kind, Some(protocol))?;
            if let Some(at) = at {
                if at.is_ipv6() {
                    socket.set_only_v6(true)?;
                }
                socket.bind(&at.into())?;
            }
            socket.set_nonblocking(true)?;
            UdpSocket::from_std(socket.into())
        };
        let at = |addr: IpAddr| Some(SocketAddr::new(addr, port));
        let (any4, any6) = ([0, 0, 0, 0].into(), [0u16; 8].into());
        let name = |family| format!("UDP port {port}, {family}");
        Ok(Sockets {
            v4: own(Domain::IPV4, Type::DGRAM, Protocol::UDP, at(any4)).with_context(|| name("IPv4"))?,
            v6: own(Domain::IPV6, Type::DGRAM, Protocol::UDP, at(any6)).with_context(|| name("IPv6"))?,
            echo4: own(Domain::IPV4, Type::RAW, Protocol::ICMPV4, None).context("ICMP")?,
            echo6: own(Domain::IPV6, Type::RAW, Protocol::ICMPV6, None).context("ICMPv6")?,
            id: rand::random(),
        })
    }

    fn say(&self, now: &Wanted, to: IpAddr) {
        let Some(text) = now.word.map(|word| word.text(&now.node)) else { return };
        let socket = if to.is_ipv4() { &self.v4 } else { &self.v6 };
        if let Err(error) = socket.try_send_to(text.as_bytes(), SocketAddr::new(to, now.port)) {
            debug!("to node {to}: {error}");
        }
    }

    /// Sends an echo request; ICMPv6's checksum is the kernel's.
    fn ask(&self, to: IpAddr) {
        let (socket, kind) = if to.is_ipv4() { (&self.echo4, 8) } else { (&self.echo6, 128) };
        let [a, b] = self.id;
        let mut request = [kind, 0, 0, 0, a, b, 0, 1];
        if to.is_ipv4() {
            let check = !fold(sum(&request));
            request[2..4].copy_from_slice(&check.to_ne_bytes());
        }
        if let Err(error) = socket.try_send_to(&request, SocketAddr::new(to, 0)) {
            debug!("echo to node {to}: {error}");
        }
    }

    fn is_answer(&self, kind: u8, message: &[u8]) -> bool {
        matches!(message, [k, 0, _, _, a, b, ..] if *k == kind && [*a, *b] == self.id)
    }
}

/// Tells all peers of a report that this node announces nothing any more, without an agent.
pub fn leave(report: &Report) -> usize {
    let text = Word::Leaving.text(&report.node);
    let mut told = 0;
    for addr in report.peers.values().flat_map(|peer| &peer.addresses) {
        let any: IpAddr = if addr.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
        let Ok(socket) = std::net::UdpSocket::bind((any, 0)) else { continue };
        // One of them gets there.
        let sent = (0..3).filter(|_| socket.send_to(text.as_bytes(), (*addr, report.port)).is_ok()).count();
        told += usize::from(sent > 0);
    }
    told
}
