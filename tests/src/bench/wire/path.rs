//! One way from a client to a server: three namespaces in a row, and what the one in the middle does.

use std::fmt;
use std::net::Ipv4Addr;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use aya::Ebpf;
use aya::maps::Array;
use aya::programs::{SchedClassifier, TcAttachType, Xdp, XdpMode};
use stellwerk_tests::netns::clean::Proc;
use stellwerk_tests::netns::ethtool::{self, Offload};
use stellwerk_tests::netns::{Lab, Ns};

use super::rules;
use crate::bench::machine::object;
use crate::bench::sockets::{IPERF, PORT, Servers};

/// How the box passes packets on. The number: services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The kernel's forwarding, and no translation at all.
    Forward,
    /// The least at XDP: new link-layer addresses, a redirect.
    BareXdp,
    /// The same at TC.
    BareTc,
    /// An nftables verdict map.
    Nft(u32),
    /// iptables, as kube-proxy writes it.
    Iptables(u32),
    /// stellwerk, by XDP on the client's side.
    Xdp(u32),
    /// stellwerk, by TC.
    Tc(u32),
    /// nftables' masquerade of what the client sends.
    Masquerade,
    /// stellwerk's, as its configuration makes it without further words: by TC.
    NatTc,
    /// stellwerk's, where the client is behind a port that has XDP.
    NatXdp,
    /// stellwerk's forwarding, by TC.
    RouteTc,
    /// The same by XDP.
    RouteXdp,
}

impl Way {
    pub const ALL: [Way; 10] = [
        Way::Forward,
        Way::BareXdp,
        Way::BareTc,
        Way::Nft(1),
        Way::Nft(10_000),
        Way::Iptables(1),
        Way::Iptables(10_000),
        Way::Xdp(1),
        Way::Xdp(10_000),
        Way::Tc(10_000),
    ];

    /// Beside masquerades.
    pub const NAT: [Way; 6] = [Way::Forward, Way::BareXdp, Way::BareTc, Way::Masquerade, Way::NatXdp, Way::NatTc];

    /// Beside the kernel's forwarding.
    pub const ROUTE: [Way; 5] = [Way::Forward, Way::BareXdp, Way::BareTc, Way::RouteXdp, Way::RouteTc];

    fn services(self) -> Option<u32> {
        match self {
            Way::Nft(n) | Way::Iptables(n) | Way::Xdp(n) | Way::Tc(n) => Some(n),
            _ => None,
        }
    }

    /// Whom the server answers, if not the client itself.
    pub fn answered(self) -> Option<[u8; 4]> {
        matches!(self, Way::Masquerade | Way::NatXdp | Way::NatTc).then_some(OUTSIDE)
    }

    /// Whether packets meet XDP, which loses the mark "checksum to be done".
    fn is_xdp(self) -> bool {
        matches!(self, Way::BareXdp | Way::Xdp(_) | Way::NatXdp | Way::RouteXdp)
    }

    fn short(self) -> String {
        format!("{self}").replace([' ', ','], "")
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Way::Forward => f.write_str("kernel forwarding"),
            Way::BareXdp => f.write_str("bare XDP redirect"),
            Way::BareTc => f.write_str("bare TC redirect"),
            Way::Nft(n) => write!(f, "nftables, {n}"),
            Way::Iptables(n) => write!(f, "iptables, {n}"),
            Way::Xdp(n) => write!(f, "stellwerk XDP, {n}"),
            Way::Tc(n) => write!(f, "stellwerk TC, {n}"),
            Way::Masquerade => f.write_str("nftables masquerade"),
            Way::NatXdp | Way::RouteXdp => f.write_str("stellwerk XDP"),
            Way::NatTc | Way::RouteTc => f.write_str("stellwerk TC"),
        }
    }
}

/// The three namespaces of a way, ready for traffic.
pub struct Path {
    pub way: Way,
    pub ebpf: Ebpf,
    pub client: Ns,
    pub server: Ns,
    /// The server's address: of the box's own network, or one behind that.
    pub address: [u8; 4],
    /// Where the client sends: the service's address, or the server's own.
    pub target: ([u8; 4], u16),
    pub iperf: u16,
    /// Connections that failed while others were counted.
    pub failed: AtomicU64,
    agent: Option<Proc>,
    pub middle: Ns,
    servers: Servers,
}

pub const SERVER: [u8; 4] = [10, 2, 0, 2];
/// The same host as one far away, as what leaves a masquerade is.
pub const FAR: [u8; 4] = [198, 51, 100, 2];
const CLIENT: [u8; 4] = [10, 1, 0, 2];
/// The box, where the server is.
const OUTSIDE: [u8; 4] = [10, 2, 0, 1];

impl Path {
    pub fn new(lab: &Lab, way: Way, address: [u8; 4]) -> Result<Path> {
        let short = way.short();
        let (client, middle, server) =
            (lab.ns(&format!("{short}-c"))?, lab.ns(&format!("{short}-b"))?, lab.ns(&format!("{short}-s"))?);
        wires(lab, &client, &middle, &server)?;
        if address == FAR {
            server.ip("addr add 198.51.100.2/32 dev eth0")?;
            middle.ip("route add default via 10.2.0.2")?;
        }
        let mut ebpf = Ebpf::load(&object("bench")?).context("loading bench.o")?;
        if way.is_xdp() {
            for (ns, link) in [(&client, "eth0"), (&server, "eth0")] {
                ethtool::set(ns, link, Offload::TxChecksum, false)?;
            }
        }
        // Counts and drops UDP at the end, which is also what an XDP transmission needs to meet.
        attach_xdp(&mut ebpf, &server, "count", "eth0", way.is_xdp())?;
        if way.is_xdp() {
            attach_xdp(&mut ebpf, &client, "pass", "eth0", true)?;
        }
        let mut agent = None;
        match way {
            Way::Forward => {}
            Way::BareXdp | Way::BareTc => bare(&mut ebpf, way, &client, &middle, &server)?,
            Way::Nft(n) => rules::nft(&middle, lab, n)?,
            Way::Iptables(n) => rules::iptables(&middle, lab, n)?,
            Way::Xdp(n) => agent = Some(rules::stellwerk(&middle, lab, n, "xdp")?),
            Way::Tc(n) => agent = Some(rules::stellwerk(&middle, lab, n, "tc")?),
            Way::Masquerade => rules::masquerade(&middle, lab)?,
            Way::NatXdp => agent = Some(rules::translating(&middle, lab, true)?),
            Way::NatTc => agent = Some(rules::translating(&middle, lab, false)?),
            Way::RouteXdp => agent = Some(rules::forwarding(&middle, lab, "xdp")?),
            Way::RouteTc => agent = Some(rules::forwarding(&middle, lab, "tc")?),
        }
        let target = way.services().map_or((address, PORT), |n| (rules::address(n / 2), 80));
        let iperf = if way.services().is_some() { 81 } else { IPERF };
        let servers = Servers::start(&server)?;
        Ok(Path {
            way,
            ebpf,
            client,
            server,
            address,
            target,
            iperf,
            agent,
            failed: AtomicU64::new(0),
            middle,
            servers,
        })
    }

    /// Whether the server sees the client that it is to see, if it has seen one.
    pub fn seen_as(&self) -> (Ipv4Addr, bool) {
        let (seen, client) = (self.servers.seen(), self.way.answered().unwrap_or(CLIENT));
        (seen, seen.is_unspecified() || seen == Ipv4Addr::from(client))
    }

    /// Whether the counter is always on the server's link.
    pub fn counts(&self) -> bool {
        self.way.is_xdp()
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        // What it has pinned goes with the lab.
        if let Some(agent) = self.agent.take() {
            agent.stop(Duration::from_secs(2));
        }
    }
}

fn wires(lab: &Lab, client: &Ns, middle: &Ns, server: &Ns) -> Result<()> {
    lab.wire((client, "eth0"), (middle, "eth0"))?;
    lab.wire((server, "eth0"), (middle, "eth1"))?;
    middle.forward()?;
    // By chance ARP's bytes would look like what the counter drops.
    middle.ip("link set eth1 address 02:00:00:00:00:01")?;
    client.ip("addr add 10.1.0.2/24 dev eth0\nroute add default via 10.1.0.1")?;
    server.ip("addr add 10.2.0.2/24 dev eth0\nroute add default via 10.2.0.1")?;
    middle.ip("addr add 10.1.0.1/24 dev eth0\naddr add 10.2.0.1/24 dev eth1\nroute add 10.128.0.0/9 via 10.1.0.2")?;
    // Live frames from a link without an XDP program at its other end need this queue there.
    for link in ["eth0", "eth1"] {
        ethtool::set(middle, link, Offload::Aggregation, true)?;
    }
    Ok(())
}

/// Loads a program once and puts it on a link. `own`: on the driver, from the beginning.
pub fn attach_xdp(ebpf: &mut Ebpf, ns: &Ns, name: &str, link: &str, own: bool) -> Result<()> {
    let program: &mut Xdp = ebpf.program_mut(name).with_context(|| name.to_owned())?.try_into()?;
    if program.fd().is_err() {
        program.load().with_context(|| format!("loading {name}"))?;
    }
    if own {
        ns.run(|| program.attach(link, XdpMode::Driver))?.with_context(|| format!("{name} on {link}"))?;
    }
    Ok(())
}

/// A link's index and hardware address.
pub fn link(ns: &Ns, name: &str) -> Result<(u32, [u8; 6])> {
    let text = ns.ip_text(&format!("-o link show dev {name}"))?;
    let index = text.split(':').next().and_then(|n| n.trim().parse().ok()).context("no index")?;
    let words: Vec<&str> = text.split_whitespace().collect();
    let at = words.iter().position(|w| *w == "link/ether").context("no address")?;
    let mut mac = [0; 6];
    for (byte, text) in mac.iter_mut().zip(words[at + 1].split(':')) {
        *byte = u8::from_str_radix(text, 16)?;
    }
    Ok((index, mac))
}

/// Sets where a program of the bench sends what comes in by `from`.
pub fn way(ebpf: &mut Ebpf, from: u32, to: u32, dst: [u8; 6], src: [u8; 6]) -> Result<()> {
    let mut addrs = [0; 12];
    addrs[..6].copy_from_slice(&dst);
    addrs[6..].copy_from_slice(&src);
    let word = |i: usize| u32::from_ne_bytes([addrs[i], addrs[i + 1], addrs[i + 2], addrs[i + 3]]);
    let mut ways = Array::<_, [u32; 4]>::try_from(ebpf.map_mut("WAYS").context("WAYS")?)?;
    Ok(ways.set(from, [to, word(0), word(4), word(8)], 0)?)
}

fn bare(ebpf: &mut Ebpf, kind: Way, client: &Ns, middle: &Ns, server: &Ns) -> Result<()> {
    let (left, right) = (link(middle, "eth0")?, link(middle, "eth1")?);
    way(ebpf, left.0, right.0, link(server, "eth0")?.1, right.1)?;
    way(ebpf, right.0, left.0, link(client, "eth0")?.1, left.1)?;
    for name in ["eth0", "eth1"] {
        if kind == Way::BareXdp {
            attach_xdp(ebpf, middle, "redirect_xdp", name, true)?;
            continue;
        }
        let program: &mut SchedClassifier = ebpf.program_mut("redirect_tc").context("redirect_tc")?.try_into()?;
        if program.fd().is_err() {
            program.load().context("loading redirect_tc")?;
        }
        middle.run(|| program.attach(name, TcAttachType::Ingress))??;
    }
    Ok(())
}

/// Waits until something is so.
pub fn until(what: &str, mut so: impl FnMut() -> bool) -> Result<()> {
    let begin = Instant::now();
    while !so() {
        if begin.elapsed() > Duration::from_secs(20) {
            bail!("{what}: not after 20 s");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
