//! Listens for ICMP errors about packets in the overlay, and has ways to nodes as narrow as these say.
//!
//! Invariant: without an overlay no socket is open. Who is told of nothing loses nothing but large packets on a narrow way.
//! What is quoted has to be of this node to another one; more can't be asked of an error (RFC 5927 §4). Not here: what an
//! error says ([`crate::path_mtu`]).

use std::io::{self, Read};
use std::sync::atomic::Ordering;

use libc::{BPF_ABS, BPF_B, BPF_IND, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_LDX, BPF_MSH, BPF_RET};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::Agent;
use crate::intent::Network;
use crate::path_mtu::{PathMtus, Told, told};
use crate::source::readiness::readable;

/// Errors that wait for the agent; more wait in the kernel, as many as it has room for.
const QUEUE: usize = 256;
/// More than any error is to be (RFC 1812 §4.3.2.3, RFC 4443 §2.4 (c)).
const MESSAGE: usize = 2_048;

/// Who listens, and what was heard.
pub(super) struct OverlayErrors {
    /// VXLAN's port; 0: there is no overlay.
    port: watch::Sender<u16>,
    pub told: mpsc::Receiver<Told>,
    pub mtus: PathMtus,
}

impl OverlayErrors {
    pub fn start() -> Self {
        let (port, wanted) = watch::channel(0);
        let (tell, told) = mpsc::channel(QUEUE);
        for v4 in [true, false] {
            _ = tokio::spawn(listen(v4, wanted.clone(), tell.clone()));
        }
        OverlayErrors { port, told, mtus: PathMtus::default() }
    }

    /// The facts, with what ways take.
    pub fn add_to(&self, network: Network) -> Network {
        Network { path_mtus: self.mtus.known(), ..network }
    }
}

async fn listen(v4: bool, mut port: watch::Receiver<u16>, tell: mpsc::Sender<Told>) {
    loop {
        let wanted = *port.borrow_and_update();
        let ended = match wanted {
            0 => port.changed().await.is_err(),
            _ => match open(v4) {
                Ok(socket) => hear(&socket, v4, wanted, &mut port, &tell).await,
                Err(error) => {
                    warn!("ways between nodes that are narrower than their links are not noticed: {error}");
                    port.changed().await.is_err()
                }
            },
        };
        if ended {
            return;
        }
    }
}

/// Until another port is wanted; whether nobody wants any.
async fn hear(
    socket: &AsyncFd<Socket>,
    v4: bool,
    wanted: u16,
    port: &mut watch::Receiver<u16>,
    tell: &mpsc::Sender<Told>,
) -> bool {
    loop {
        let ready = tokio::select! {
            changed = port.changed() => return changed.is_err(),
            ready = socket.readable() => ready,
        };
        let Ok(mut ready) = ready else { return true };
        let mut buffer = [0; MESSAGE];
        let Ok(read) = ready.try_io(|socket| socket.get_ref().read(&mut buffer)) else { continue };
        let Some(said) = read.ok().and_then(|length| told(&buffer[..length], v4, wanted)) else { continue };
        if tell.send(said).await.is_err() {
            return true;
        }
    }
}

/// A socket that is given errors of the kinds that matter, and no other ICMP, of which there may be much.
fn open(v4: bool) -> io::Result<AsyncFd<Socket>> {
    let (domain, protocol) = if v4 { (Domain::IPV4, Protocol::ICMPV4) } else { (Domain::IPV6, Protocol::ICMPV6) };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    socket.set_nonblocking(true)?;
    let code = |parts: &[u32]| parts.iter().sum::<u32>() as u16;
    // IPv4's begin with the IP header, which the type is behind.
    let mut filter = if v4 {
        vec![
            SockFilter::new(code(&[BPF_LDX, BPF_B, BPF_MSH]), 0, 0, 0),
            SockFilter::new(code(&[BPF_LD, BPF_B, BPF_IND]), 0, 0, 0),
        ]
    } else {
        vec![SockFilter::new(code(&[BPF_LD, BPF_B, BPF_ABS]), 0, 0, 0)]
    };
    let [one, other] = if v4 { [3, 3] } else { [1, 2] };
    let is = code(&[BPF_JMP, BPF_JEQ, BPF_K]);
    let end = code(&[BPF_RET, BPF_K]);
    filter.extend([
        SockFilter::new(is, 1, 0, one),
        SockFilter::new(is, 0, 1, other),
        SockFilter::new(end, 0, 0, u32::MAX),
        SockFilter::new(end, 0, 0, 0),
    ]);
    socket.attach_filter(&filter)?;
    readable(socket)
}

impl Agent {
    /// Listens where there is an overlay now.
    pub(super) fn settle_overlay_errors(&self) {
        let intent = &self.wish.intent;
        let port = if intent.has_overlay() { intent.overlay.port } else { 0 };
        self.overlay_errors.port.send_if_modified(|now| std::mem::replace(now, port) != port);
    }

    pub(super) fn overlay_told(&mut self, told: Told) {
        let node = self.wish.intent.other_nodes().find(|node| node.addresses.contains(&told.remote));
        let ours = self.network.addresses.iter().any(|a| a.net.addr() == told.local);
        let (Some(node), true) = (node, ours) else {
            return debug!(?told, "an error about a packet that isn't ours");
        };
        let Some(mtu) = told.mtu else {
            self.vitals.overlay_unreachable.fetch_add(1, Ordering::Relaxed);
            return debug!(node = node.name, address = %told.remote, "what goes to a node in the overlay does not arrive");
        };
        self.vitals.overlay_too_large.fetch_add(1, Ordering::Relaxed);
        if self.overlay_errors.mtus.learn(told.remote, mtu, Instant::now()) {
            let (name, address) = (node.name.clone(), told.remote);
            info!("the way to node {name} ({address}) takes packets of {mtu} bytes and no larger ones");
            self.narrow();
        }
    }

    /// Tries larger packets again where it is long since one was too large.
    pub(super) fn forget_narrow_ways(&mut self) {
        if self.overlay_errors.mtus.forget(Instant::now()) {
            self.narrow();
        }
    }

    fn narrow(&mut self) {
        let network = self.network.clone();
        self.network_changed(network);
    }
}
