//! The standard lab: the edge device, its two networks and its pods.
//!
//! ```text
//!  inet 203.0.113.1 ──eth0 (Port2) ┌────────┐ br-int 10.20.0.1, 172.27.1.1
//!  (198.51.100.7 behind it)        │  dev   ├──────┬───────┬────── …
//!  client 192.168.20.50 ──┐        │ edge-1 │    pod     pod     172.27.1.N
//!                       switch ────┤        │
//!  edge2 192.168.20.11 ───┘  eth1  └────────┘
//!  (pod 172.27.2.11)       (Port3) 192.168.20.10
//! ```
//!
//! Every address has an IPv6 twin (the functions below). Port3's network has routes to service addresses, so that whoever
//! routes in stellwerk's place can be measured beside it; from Port2's side a router would have one anyway.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};

use super::ethtool::{self, Offload};
use super::{Lab, Ns, pass};

/// The namespaces of the standard lab, and the lab itself, which goes last.
#[derive(Debug)]
pub struct Device {
    /// The node that runs the agent.
    pub dev: Ns,
    /// The Internet behind Port2.
    pub inet: Ns,
    /// The switch of Port3's network.
    pub switch: Ns,
    /// A host on Port3's network.
    pub client: Ns,
    /// The other node, on Port3's network.
    pub edge2: Ns,
    /// The programs that let XDP send back on the ports.
    passing: Vec<OwnedFd>,
    pub lab: Lab,
}

/// The uplink.
pub const PORT2: &str = "eth0";
/// The compute port.
pub const PORT3: &str = "eth1";
/// The internal switch.
pub const SWITCH: &str = "br-int";

/// An address in both families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Twin {
    pub v4: IpAddr,
    pub v6: IpAddr,
}

impl Twin {
    fn new(v4: [u8; 4], v6: [u16; 8]) -> Twin {
        Twin { v4: v4.into(), v6: v6.into() }
    }

    pub fn both(self) -> [IpAddr; 2] {
        [self.v4, self.v6]
    }

    /// The address of the family of `other`.
    pub fn like(self, other: IpAddr) -> IpAddr {
        if other.is_ipv4() { self.v4 } else { self.v6 }
    }
}

/// The device on Port2's network.
pub fn uplink() -> Twin {
    Twin::new([203, 0, 113, 2], [0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 2])
}

/// A host in the Internet, a hop behind Port2's network.
pub fn far() -> Twin {
    Twin::new([198, 51, 100, 7], [0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 7])
}

/// A host on Port3's network: 10 = the device, 11 = edge-2, 50 = the client.
pub fn lan(host: u8) -> Twin {
    Twin::new([192, 168, 20, host], [0xfd00, 0x20, 0, 0, 0, 0, 0, host.into()])
}

/// A host on a network behind a router of Port3's.
pub fn beyond(host: u8) -> Twin {
    Twin::new([192, 168, 30, host], [0xfd00, 0x30, 0, 0, 0, 0, 0, host.into()])
}

/// A load-balancer address, 100 to 120.
pub fn external(host: u8) -> Twin {
    Twin::new([192, 168, 20, host], [0xfd00, 0x20, 0, 0, 0, 0, 1, host.into()])
}

/// A cluster address.
pub fn cluster(host: u8) -> Twin {
    Twin::new([172, 28, 0, host], [0xfd00, 0x28, 0, 0, 0, 0, 0, host.into()])
}

/// A pod on edge-1 (1 = the switch itself) or on edge-2 (11).
pub fn pod(node: u8, host: u8) -> Twin {
    Twin::new([172, 27, node, host], [0xfd00, 0x27, node.into(), 0, 0, 0, 0, host.into()])
}

impl Device {
    /// Makes the whole of it but for the pods.
    pub fn new() -> Result<Device> {
        let lab = Lab::new()?;
        let [dev, inet, switch, client, edge2] = ["dev", "inet", "switch", "client", "edge2"].map(|name| lab.ns(name));
        let mut device = Device {
            dev: dev?,
            inet: inet?,
            switch: switch?,
            client: client?,
            edge2: edge2?,
            passing: Vec::new(),
            lab,
        };
        device.uplink().context("Port2's side")?;
        device.private().context("Port3's side")?;
        device.internal().context("the internal switch")?;
        device.second_node().context("the second node")?;
        device.passing.push(pass::attach(&device.switch, "to-dev")?);
        Ok(device)
    }

    fn uplink(&self) -> Result<()> {
        self.lab.wire((&self.dev, PORT2), (&self.inet, "eth0"))?;
        self.dev.ip("addr add 203.0.113.2/24 dev eth0\naddr add 2001:db8:113::2/64 dev eth0 nodad\n\
             route add default via 203.0.113.1\nroute add default via 2001:db8:113::1")?;
        self.inet.ip("addr add 203.0.113.1/24 dev eth0\naddr add 2001:db8:113::1/64 dev eth0 nodad\n\
             addr add 198.51.100.7/32 dev lo\naddr add 2001:db8:100::7/128 dev lo nodad\n\
             route add 192.168.20.0/24 via 203.0.113.2 src 198.51.100.7\n\
             route add fd00:20::/64 via 2001:db8:113::2 src 2001:db8:100::7")
    }

    fn private(&self) -> Result<()> {
        self.switch.ip("link add br0 type bridge\nlink set br0 up")?;
        let wires = [
            (&self.dev, PORT3, "to-dev", 10),
            (&self.client, "eth0", "to-client", 50),
            (&self.edge2, "eth0", "to-edge2", 11),
        ];
        for (ns, link, port, host) in wires {
            self.lab.wire((ns, link), (&self.switch, port))?;
            self.switch.ip(&format!("link set {port} master br0"))?;
            ns.ip(&format!(
                "addr add 192.168.20.{host}/24 dev {link}\naddr add fd00:20::{host:x}/64 dev {link} nodad"
            ))?;
        }
        // XDP loses the mark "checksum to be done": what comes from a wire has its checksums.
        for ns in [&self.client, &self.edge2] {
            ethtool::set(ns, "eth0", Offload::TxChecksum, false)?;
            ns.ip("route add 192.168.20.96/27 via 192.168.20.10\nroute add fd00:20::1:0/112 via fd00:20::a")?;
        }
        Ok(())
    }

    fn internal(&self) -> Result<()> {
        self.dev.ip("link add br-int type bridge\nlink set br-int up\naddr add 10.20.0.1/24 dev br-int\n\
             addr add 172.27.1.1/24 dev br-int\naddr add fd00:27:1::1/64 dev br-int nodad")
    }

    fn second_node(&self) -> Result<()> {
        self.edge2.forward()?;
        self.edge2.ip("addr add 172.27.2.11/32 dev lo\naddr add fd00:27:2::b/128 dev lo nodad\n\
             route add 172.27.1.0/24 via 192.168.20.10\nroute add fd00:27:1::/64 via fd00:20::a\n\
             route add 172.28.0.0/16 via 192.168.20.10 src 172.27.2.11\n\
             route add fd00:28::/112 via fd00:20::a src fd00:27:2::b")?;
        self.dev.ip("route add 172.27.2.0/24 via 192.168.20.11\nroute add fd00:27:2::/64 via fd00:20::b")
    }

    /// Makes Port2's side ready for XDP on Port2, as Port3's is.
    pub fn uplink_for_xdp(&mut self) -> Result<()> {
        ethtool::set(&self.inet, "eth0", Offload::TxChecksum, false)?;
        self.passing.push(pass::attach(&self.inet, "eth0")?);
        Ok(())
    }

    /// A pod on edge-1: a namespace behind a veth on the internal switch. `host` is 2 to 254.
    pub fn pod(&self, name: &str, host: u8) -> Result<Ns> {
        let ns = self.lab.ns(name)?;
        let port = format!("veth{host}");
        self.lab.wire((&ns, "eth0"), (&self.dev, &port))?;
        self.dev.ip(&format!("link set {port} master br-int"))?;
        ns.ip(&format!(
            "addr add 172.27.1.{host}/24 dev eth0\naddr add fd00:27:1::{host:x}/64 dev eth0 nodad\n\
             route add default via 172.27.1.1\nroute add default via fd00:27:1::1"
        ))?;
        Ok(ns)
    }
}
