//! Several nodes and a client on one network, where load balancers' addresses are announced: nobody has a route to them.
//!
//! ```text
//!  client .50 ── switch ── n1 .11, n2 .12, … (192.168.20.0/24, fd00:20::/64), an agent and a server on each
//! ```

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use serde_json::Value;

use super::config::{Files, Service};
use super::device::{self, Twin};
use super::{Agent, Lab, Ns, ethtool, pass};
use crate::load::{Task, echo};

/// Where each node's server listens.
pub const ECHO: u16 = 7100;
/// The nodes' port.
pub const PORT: &str = "eth1";

/// One node; its server says its name. Fields are in the order in which they end.
#[derive(Debug)]
pub struct Node {
    pub name: String,
    pub at: Twin,
    pub agent: Agent,
    _server: Task,
    pub ns: Ns,
}

#[derive(Debug)]
pub struct Nodes {
    pub nodes: Vec<Node>,
    pub client: Ns,
    switch: Ns,
    files: Files,
    _passing: Vec<OwnedFd>,
    pub lab: Lab,
}

impl Nodes {
    /// So many nodes, whose agents don't run yet, with a hook for their port.
    pub fn new(count: u8, hook: &str) -> Result<Nodes> {
        let lab = Lab::new()?;
        let (switch, client) = (lab.ns("switch")?, lab.ns("client")?);
        switch.ip("link add br0 type bridge\nlink set br0 up")?;
        let files = Files::new(lab.dir())?;
        let mut all = Nodes { nodes: Vec::new(), client: client.clone(), switch, files, _passing: Vec::new(), lab };
        all.wire(&client, "eth0", "to-client", device::lan(50))?;
        for number in 1..=count {
            all.node(number, count, hook)?;
        }
        Ok(all)
    }

    fn wire(&mut self, ns: &Ns, link: &str, port: &str, at: Twin) -> Result<()> {
        self.lab.wire((ns, link), (&self.switch, port))?;
        self.switch.ip(&format!("link set {port} master br0"))?;
        ethtool::set(ns, link, ethtool::Offload::TxChecksum, false)?;
        self._passing.push(pass::attach(&self.switch, port)?);
        ns.ip(&format!("addr add {}/24 dev {link}\naddr add {}/64 dev {link} nodad", at.v4, at.v6))
    }

    fn node(&mut self, number: u8, count: u8, hook: &str) -> Result<()> {
        let (name, at) = (format!("n{number}"), device::lan(10 + number));
        let ns = self.lab.ns(&name)?;
        self.wire(&ns, PORT, &format!("to-{name}"), at)?;
        let server = echo::serve(&ns, &name, &at.both().map(|ip| SocketAddr::new(ip, ECHO)))?;
        let peers = (1..=count).filter(|other| *other != number);
        // One by both addresses, the others by one.
        let peers: Vec<String> = peers
            .map(|other| match device::lan(10 + other) {
                Twin { v4, v6 } if other == 1 => format!("n{other}: [{v4}, \"{v6}\"]"),
                Twin { v4, .. } => format!("n{other}: {v4}"),
            })
            .collect();
        let config = self.lab.dir().join(format!("{name}.yaml"));
        let text = format!(
            "node: {name}\nports:\n  Port3: {{ interface: {PORT}, compute: true, hook: {hook} }}\ncluster:\n  \
             serviceIPs: [192.168.20.100-192.168.20.120, \"fd00:20::1:64-fd00:20::1:78\"]\n  manifests: ./cluster\n  \
             announce: {{ peers: {{ {} }} }}\n",
            peers.join(", ")
        );
        std::fs::write(&config, text)?;
        let agent = Agent::new(&self.lab, &ns, &config)?.named(&name);
        self.nodes.push(Node { name, at, agent, _server: server, ns });
        Ok(())
    }

    /// A load balancer of all nodes' servers, at an address of its own.
    pub fn service(&self, name: &str, host: u8) -> Service {
        let service = Service::tcp(name, 80, ECHO, device::cluster(host)).external(device::external(host));
        self.nodes.iter().fold(service, |service, node| service.endpoint(node.at, &node.name))
    }

    pub fn write(&self, service: &Service) -> Result<()> {
        self.files.write(service)
    }

    /// Writes another file of manifests.
    pub fn manifest(&self, name: &str, text: &str) -> Result<()> {
        self.files.replace(&format!("cluster/{name}.yaml"), text)
    }

    /// Starts all agents at once.
    pub fn start(&mut self) -> Result<()> {
        self.nodes.iter_mut().try_for_each(|node| node.agent.start())?;
        self.nodes.iter_mut().try_for_each(|node| node.agent.ready().context(node.name.clone()))
    }

    /// A node's death, as the network sees it: its link goes, and nothing on it runs any more.
    pub fn kill(&mut self, index: usize) -> Result<()> {
        self.nodes[index].agent.kill();
        self.switch.ip(&format!("link set to-{} down", self.nodes[index].name))
    }

    /// The link of a dead node is there again.
    pub fn revive(&mut self, index: usize) -> Result<()> {
        self.switch.ip(&format!("link set to-{} up", self.nodes[index].name))
    }

    /// Who a node says announces an address.
    pub fn owner(&self, index: usize, addr: IpAddr) -> Result<Option<String>> {
        Ok(self.row(index, addr)?["owner"].as_str().map(str::to_owned))
    }

    /// The node's row of an address.
    pub fn row(&self, index: usize, addr: IpAddr) -> Result<Value> {
        let rows = self.nodes[index].agent.rows("announce")?;
        Ok(rows.into_iter().find(|row| row["name"] == addr.to_string()).unwrap_or_default())
    }

    /// Link-layer addresses of all nodes that answer for an address: asked as a host asks that wants to know.
    pub fn answering(&self, addr: IpAddr) -> Result<Vec<String>> {
        let mut command = match addr {
            IpAddr::V4(_) => self.client.command("arping"),
            IpAddr::V6(_) => self.client.command("ndisc6"),
        };
        let addr = addr.to_string();
        match addr.contains(':') {
            false => command.args(["-c", "2", "-w", "2", "-b", "-I", "eth0", &addr]),
            true => command.args(["-m", "-r", "1", "-w", "500", &addr, "eth0"]),
        };
        let out = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).output()?;
        let text = String::from_utf8_lossy(&out.stdout).to_lowercase();
        let macs = text.split(['[', ']', ' ', '\n']).filter(|word| word.len() == 17 && word.matches(':').count() == 5);
        let mut macs: Vec<String> = macs.map(str::to_owned).collect();
        macs.sort();
        macs.dedup();
        Ok(macs)
    }

    /// A node's link-layer address.
    pub fn mac(&self, index: usize) -> Result<String> {
        let text = self.nodes[index].ns.ip_text(&format!("-o link show dev {PORT}"))?;
        let mac = text.split_once("link/ether ").and_then(|(_, rest)| rest.split(' ').next());
        Ok(mac.context("a link-layer address")?.to_owned())
    }
}
