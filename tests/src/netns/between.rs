//! A device between two hosts, and its agent: for what is forwarded.
//!
//! ```text
//!   host a 192.168.20.1 ── 192.168.20.2 Port3, device, Port4 192.168.30.2 ── 192.168.30.1 host b
//! ```
//! Every address has an IPv6 twin: fd00:20::1 and so on. Both hosts' default routes lead to the device.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{Agent, Lab, Ns};
use crate::load::{Task, echo};

/// The agent's file.
pub const PORTS: &str = "node: n\nports:\n  Port3: { interface: eth1 }\n  Port4: { interface: eth2 }\n";
/// Host b's echo server listens here.
pub const ECHO: u16 = 7_000;

/// Everything that runs. Fields are in the order in which they end.
#[derive(Debug)]
pub struct Between {
    pub agent: Agent,
    pub dev: Ns,
    pub a: Ns,
    pub b: Ns,
    _server: Task,
    pub lab: Lab,
}

impl Between {
    /// Builds it and waits until the agent forwards; `more` comes behind [`PORTS`] in its file.
    pub fn open(more: &str) -> Result<Between> {
        let lab = Lab::new()?;
        let (dev, a, b) = (lab.ns("dev")?, lab.ns("a")?, lab.ns("b")?);
        for (host, link, net) in [(&a, "eth1", 20), (&b, "eth2", 30)] {
            lab.wire((&dev, link), (host, "eth0"))?;
            dev.ip(&format!("addr add 192.168.{net}.2/24 dev {link}\naddr add fd00:{net}::2/64 dev {link} nodad"))?;
            host.ip(&format!(
                "addr add 192.168.{net}.1/24 dev eth0\naddr add fd00:{net}::1/64 dev eth0 nodad\n\
                 route add default via 192.168.{net}.2\nroute add default via fd00:{net}::2"
            ))?;
        }
        let server = echo::serve(&b, "b", &Self::far().map(|ip| SocketAddr::new(ip, ECHO)))?;
        let config = lab.dir().join("stellwerk.yaml");
        std::fs::write(&config, format!("{PORTS}{more}"))?;
        let mut agent = Agent::new(&lab, &dev, &config)?;
        agent.start_ready()?;
        let between = Between { agent, dev, a, b, _server: server, lab };
        between.await_state("fast")?;
        Ok(between)
    }

    /// Host b.
    pub fn far() -> [IpAddr; 2] {
        [[192, 168, 30, 1].into(), [0xfd00, 0x30, 0, 0, 0, 0, 0, 1].into()]
    }

    /// The device, as host a sees it.
    pub fn near() -> [IpAddr; 2] {
        [[192, 168, 20, 2].into(), [0xfd00, 0x20, 0, 0, 0, 0, 0, 2].into()]
    }

    /// The row of `status` that tells of `what`; by its name, where there are several.
    fn status(&self, what: &str, name: Option<&str>) -> Option<serde_json::Value> {
        let rows = self.agent.rows("status").ok()?;
        rows.into_iter().find(|row| row["what"] == what && name.is_none_or(|name| row["name"] == name))
    }

    /// How forwarding is done, and how many packets were forwarded ahead of the kernel.
    pub fn forwarding(&self) -> (String, u64) {
        self.status("forwarding", None).map_or_else(Default::default, |row| {
            (row["state"].as_str().unwrap_or_default().to_owned(), row["used"].as_u64().unwrap_or_default())
        })
    }

    /// How many entries a table of the agent's holds.
    pub fn entries(&self, table: &str) -> Option<u64> {
        self.status("table", Some(table))?["used"].as_u64()
    }

    /// Waits until forwarding is done so.
    pub fn await_state(&self, want: &str) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(60);
        while self.forwarding().0 != want {
            ensure!(Instant::now() < end, "not {want}: {:?}\n{}", self.forwarding(), self.agent.log_tail());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Gives the agent another file.
    pub fn configure(&self, text: &str) -> Result<()> {
        let new = self.lab.dir().join("next");
        std::fs::write(&new, text)?;
        Ok(std::fs::rename(new, self.lab.dir().join("stellwerk.yaml"))?)
    }
}
