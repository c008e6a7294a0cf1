//! The lab of the translation: hosts inside, a router with two uplinks, a gateway and a server outside.
//!
//! ```text
//!  h1 172.27.1.11 ─┐        ┌─────┐eth0 203.0.113.2 ── 203.0.113.1 ┌────┐
//!                  br-int ──┤ dev │                                │ gw ├─ 198.51.100.1 ── out 198.51.100.7
//!  h2 172.27.1.12 ─┘        └─────┘eth2 192.0.2.2 ────── 192.0.2.1 └────┘
//! ```
//!
//! Invariant: the router is either the agent or plain Linux with nftables ([`Router`]); all else is the
//! same, so that what differs outside is the router's. Every address has an IPv6 twin.

pub mod capture;
pub mod packet;
pub mod sockets;

use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use anyhow::{Result, bail};

use super::config::Files;
use super::device::Twin;
use super::ethtool::{self, Offload};
use super::probe::From;
use super::{Agent, Lab, Ns};
use crate::load::{Task, echo};

/// Echo servers listen here, outside and on the hosts inside.
pub const ECHO: u16 = 7000;
/// Who sends UDP here gets its own endpoint as the answer, as the server sees it.
pub const MIRROR: u16 = 7001;
/// Nobody listens here.
pub const CLOSED: u16 = 9;

/// Who translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Router {
    /// The agent.
    Stellwerk,
    /// Linux and its `masquerade`.
    Linux,
}

/// Everything that runs. Fields are in the order in which they end.
#[derive(Debug)]
pub struct Translated {
    servers: Vec<Task>,
    agent: Option<Agent>,
    pub h1: Ns,
    pub h2: Ns,
    pub dev: Ns,
    pub gw: Ns,
    pub out: Ns,
    pub files: Files,
    pub lab: Lab,
}

fn twin(v4: [u8; 4], v6: [u16; 8]) -> Twin {
    Twin { v4: v4.into(), v6: v6.into() }
}

/// The first uplink's address.
pub fn uplink() -> Twin {
    twin([203, 0, 113, 2], [0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 2])
}

/// The first uplink's gateway.
pub fn gateway() -> Twin {
    twin([203, 0, 113, 1], [0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 1])
}

/// The second uplink's address.
pub fn second() -> Twin {
    twin([192, 0, 2, 2], [0x2001, 0xdb8, 2, 0, 0, 0, 0, 2])
}

/// The server outside.
pub fn server() -> Twin {
    twin([198, 51, 100, 7], [0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 7])
}

/// Another address of the server's, for a way that the gateway may be told is narrow.
pub fn narrow() -> Twin {
    twin([198, 51, 101, 7], [0x2001, 0xdb8, 0x101, 0, 0, 0, 0, 7])
}

/// A host inside; 1 is the router.
pub fn inside(host: u8) -> Twin {
    twin([172, 27, 1, host], [0xfd00, 0x27, 1, 0, 0, 0, 0, host.into()])
}

/// A configuration: further keys of `internalSwitch`, each with a comma before it, and further lines.
pub fn config(switch: &str, lines: &str) -> String {
    format!(
        "node: edge-1\n\
         ports:\n  \
           Port2: {{ interface: eth0, gateway: [203.0.113.1, \"2001:db8:113::1\"] }}\n  \
           Port4: {{ interface: eth2, gateway: [192.0.2.1, \"2001:db8:2::1\"] }}\n\
         internalSwitch: {{ interface: br-int, address: [172.27.1.1/24, \"fd00:27:1::1/64\"]{switch} }}\n\
         capacity: {{ natAddresses: 4 }}\n{lines}"
    )
}

impl Translated {
    /// With the agent, both families masqueraded, and echo servers on all hosts.
    pub fn open() -> Result<Translated> {
        Translated::with(&config(", ipv6: masquerade", ""))
    }

    /// With the agent and another configuration.
    pub fn with(config: &str) -> Result<Translated> {
        Translated::make(Router::Stellwerk, config)
    }

    /// The same laboratory with a router of this kind.
    pub fn make(router: Router, config: &str) -> Result<Translated> {
        let lab = Lab::new()?;
        let [h1, h2, dev, gw, out] = ["h1", "h2", "dev", "gw", "out"].map(|name| lab.ns(name));
        let files = Files::new(lab.dir())?;
        let mut all = Translated {
            servers: Vec::new(),
            agent: None,
            h1: h1?,
            h2: h2?,
            dev: dev?,
            gw: gw?,
            out: out?,
            files,
            lab,
        };
        all.outside()?;
        match router {
            Router::Stellwerk => all.start_agent(config)?,
            Router::Linux => all.plain_linux()?,
        }
        all.hosts()?;
        for (ns, name, at) in [(&all.out, "out", server()), (&all.h1, "h1", inside(11)), (&all.h2, "h2", inside(12))] {
            let addrs = at.both().map(|ip| SocketAddr::new(ip, ECHO));
            all.servers.push(echo::serve(ns, name, &addrs)?);
        }
        all.servers.push(mirror(&all.out, server().both().map(|ip| SocketAddr::new(ip, MIRROR)).to_vec())?);
        Ok(all)
    }

    fn outside(&self) -> Result<()> {
        let Translated { lab, dev, gw, out, .. } = self;
        lab.wire((dev, "eth0"), (gw, "eth0"))?;
        lab.wire((dev, "eth2"), (gw, "eth2"))?;
        lab.wire((gw, "eth1"), (out, "eth0"))?;
        gw.forward()?;
        // What leaves a host has its checksums and is no larger than the wire: captures show it as it is.
        ethtool::set(out, "eth0", Offload::TxChecksum, false)?;
        ethtool::set(gw, "eth1", Offload::TxChecksum, false)?;
        dev.ip("addr add 203.0.113.2/24 dev eth0\naddr add 2001:db8:113::2/64 dev eth0 nodad\n\
             addr add 192.0.2.2/24 dev eth2\naddr add 2001:db8:2::2/64 dev eth2 nodad\n\
             route add default via 203.0.113.1 metric 100\nroute add default via 192.0.2.1 metric 200\n\
             route add default via 2001:db8:113::1 metric 100\nroute add default via 2001:db8:2::1 metric 200")?;
        gw.ip("addr add 203.0.113.1/24 dev eth0\naddr add 2001:db8:113::1/64 dev eth0 nodad\n\
             addr add 192.0.2.1/24 dev eth2\naddr add 2001:db8:2::1/64 dev eth2 nodad\n\
             addr add 198.51.100.1/24 dev eth1\naddr add 2001:db8:100::1/64 dev eth1 nodad")?;
        out.ip("addr add 198.51.100.7/24 dev eth0\naddr add 2001:db8:100::7/64 dev eth0 nodad\n\
             route add default via 198.51.100.1\nroute add default via 2001:db8:100::1")
    }

    /// Hosts come when the switch is there.
    fn hosts(&self) -> Result<()> {
        for (ns, host) in [(&self.h1, 11), (&self.h2, 12)] {
            let port = format!("veth{host}");
            self.lab.wire((ns, "eth0"), (&self.dev, &port))?;
            ethtool::set(ns, "eth0", Offload::TxChecksum, false)?;
            self.dev.ip(&format!("link set {port} master br-int"))?;
            ns.ip(&format!(
                "addr add 172.27.1.{host}/24 dev eth0\naddr add fd00:27:1::{host:x}/64 dev eth0 nodad\n\
                 route add default via 172.27.1.1\nroute add default via fd00:27:1::1"
            ))?;
        }
        Ok(())
    }

    fn plain_linux(&self) -> Result<()> {
        self.dev.forward()?;
        self.dev.ip("link add br-int type bridge\nlink set br-int up\n\
             addr add 172.27.1.1/24 dev br-int\naddr add fd00:27:1::1/64 dev br-int nodad")?;
        for family in ["ip", "ip6"] {
            nft(
                &self.dev,
                &format!(
                    "add table {family} nat; add chain {family} nat post {{ type nat hook postrouting priority 100 ; }}; \
                     add rule {family} nat post oifname {{ eth0, eth2 }} masquerade"
                ),
            )?;
        }
        Ok(())
    }

    fn start_agent(&mut self, config: &str) -> Result<()> {
        self.files.write_config(config)?;
        let agent = Agent::new(&self.lab, &self.dev, &self.files.config())?;
        self.agent.insert(agent).start_ready()
    }

    /// The agent: in the lab of [`Router::Stellwerk`] alone.
    pub fn agent(&mut self) -> &mut Agent {
        self.agent.as_mut().expect("the router of this lab is an agent")
    }

    /// A count from `drops`; 0 where there is no agent.
    pub fn count(&self, label: &str) -> u64 {
        self.agent.as_ref().map_or(0, |agent| agent.dropped(label).expect("the counters"))
    }

    /// All counters and the last log lines, for messages.
    pub fn state(&self) -> String {
        self.agent.as_ref().map_or_else(String::new, |agent| {
            format!("{}\n{}", agent.command(&["drops"]).unwrap_or_default(), agent.log_tail())
        })
    }

    pub fn from_h1(&self) -> From {
        From::ns(&self.h1)
    }

    pub fn from_h2(&self) -> From {
        From::ns(&self.h2)
    }

    /// A server that lives as long as the lab.
    pub fn keep(&mut self, server: Task) {
        self.servers.push(server);
    }

    /// From now on the gateway counts packets from inside addresses that come to it.
    pub fn watch_untranslated(&self) -> Result<()> {
        nft(
            &self.gw,
            "add table inet watch; add chain inet watch pre { type filter hook prerouting priority -300 ; }; \
             add rule inet watch pre ip saddr 172.27.0.0/16 counter; add rule inet watch pre ip6 saddr fd00:27::/32 counter; \
             add rule inet watch pre ip saddr { 203.0.113.2, 192.0.2.2 } counter",
        )
    }

    /// How many untranslated and how many translated (IPv4) packets the gateway saw.
    pub fn watched(&self) -> Result<(u64, u64)> {
        let text = nft_text(&self.gw, "list table inet watch")?;
        let counts: Vec<u64> =
            text.lines().filter_map(|line| line.split("packets ").nth(1)?.split(' ').next()?.parse().ok()).collect();
        let [v4, v6, translated] = counts[..] else { bail!("other counters: {text}") };
        Ok((v4 + v6, translated))
    }
}

/// Runs nft commands in a namespace.
pub fn nft(ns: &Ns, commands: &str) -> Result<()> {
    nft_text(ns, commands).map(drop)
}

fn nft_text(ns: &Ns, commands: &str) -> Result<String> {
    let mut command: Command = ns.command("nft");
    super::ns::run(command.arg(commands))
}

/// Answers each datagram by its sender's endpoint.
fn mirror(ns: &Ns, addrs: Vec<SocketAddr>) -> Result<Task> {
    Task::start(ns, async move || {
        for addr in addrs {
            let socket = tokio::net::UdpSocket::bind(addr).await?;
            tokio::task::spawn_local(async move {
                let mut buffer = [0; 2048];
                loop {
                    let Ok((_, from)) = socket.recv_from(&mut buffer).await else { continue };
                    let _ = socket.send_to(from.to_string().as_bytes(), from).await;
                }
            });
        }
        Ok(std::future::pending())
    })
}

/// The port `port` of the server outside, in the family of `like`.
pub fn outside(like: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(server().like(like), port)
}
