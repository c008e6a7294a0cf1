//! The ways from a client to a server: two pods on a node, and two namespaces on a bridge.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use stellwerk_tests::netns::cni::{Runtime, addresses};
use stellwerk_tests::netns::{Agent, Lab, Ns};

use crate::bench::sockets::Servers;

const CONFIG: &str = "node: edge-1\nports:\n  Port2: { interface: eth0, gateway: 203.0.113.1 }\n\
                      cluster: { podSubnet: [172.27.0.0/16, \"fd00:27::/32\"] }\n\
                      pods: { blocks: [172.27.1.0/24, \"fd00:27:1::/120\"], cooldown: 1s }\n";

/// A client and a server.
pub struct Pair {
    pub name: &'static str,
    pub client: Ns,
    servers: Servers,
    source: Ipv4Addr,
    target: IpAddr,
}

impl Pair {
    pub fn new(name: &'static str, (client, source): (Ns, IpAddr), (server, target): (&Ns, IpAddr)) -> Result<Pair> {
        let IpAddr::V4(source) = source else { anyhow::bail!("{source} is no address of IPv4") };
        Ok(Pair { name, client, servers: Servers::start(server)?, source, target })
    }

    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.target, port)
    }

    /// The client, as the server saw it.
    pub fn seen(&self) -> Ipv4Addr {
        self.servers.seen()
    }

    /// Whether the server has seen nobody but the client itself.
    pub fn is_seen(&self) -> bool {
        self.seen().is_unspecified() || self.seen() == self.source
    }
}

/// A node with an agent, and a runtime's calls. Fields are in the order in which they end.
pub struct Node {
    pub runtime: Runtime,
    _agent: Agent,
    pods: Vec<(Ns, String)>,
    _dev: Ns,
    _inet: Ns,
    pub lab: Lab,
}

impl Node {
    pub fn new() -> Result<Node> {
        let lab = Lab::new()?;
        let (dev, inet) = (lab.ns("dev")?, lab.ns("inet")?);
        lab.wire((&dev, "eth0"), (&inet, "eth0"))?;
        dev.ip("addr add 203.0.113.2/24 dev eth0\nroute add default via 203.0.113.1")?;
        inet.ip("addr add 203.0.113.1/24 dev eth0")?;
        let config = lab.dir().join("stellwerk.yaml");
        std::fs::write(&config, CONFIG).context("the configuration")?;
        let mut agent = Agent::new(&lab, &dev, &config)?;
        agent.start_ready()?;
        let runtime = Runtime::new(&lab, &dev)?;
        Ok(Node { runtime, _agent: agent, pods: Vec::new(), _dev: dev, _inet: inet, lab })
    }

    /// Two pods.
    pub fn pods(&mut self) -> Result<Pair> {
        let (client, source) = self.pod("client")?;
        let (server, target) = self.pod("server")?;
        Pair::new("pods", (client, source), (&server, target))
    }

    fn pod(&mut self, name: &str) -> Result<(Ns, IpAddr)> {
        let ns = self.lab.ns(name)?;
        let made = self.runtime.add(&ns, name, "")?;
        self.pods.push((ns.clone(), name.to_owned()));
        let addr = addresses(&made).first().context("a pod without an address")?.parse()?;
        Ok((ns, addr))
    }

    /// Takes its pods away.
    pub fn empty(&mut self) -> Result<()> {
        self.pods.drain(..).try_for_each(|(ns, name)| self.runtime.del(&ns, &name))
    }
}

/// Two namespaces on a bridge, as most plugins do it.
pub fn bridge(lab: &Lab) -> Result<Pair> {
    let [node, client, server] = ["bridge", "bridge-c", "bridge-s"].map(|name| lab.ns(name));
    let (node, client, server) = (node?, client?, server?);
    node.ip("link add br0 type bridge\nlink set br0 up")?;
    for (ns, port, host) in [(&client, "veth1", 2), (&server, "veth2", 3)] {
        lab.wire((ns, "eth0"), (&node, port))?;
        node.ip(&format!("link set {port} master br0"))?;
        ns.ip(&format!("addr add 10.5.0.{host}/24 dev eth0"))?;
    }
    // A bridge's ports learn first.
    std::thread::sleep(Duration::from_millis(200));
    Pair::new("veth and bridge", (client, [10, 5, 0, 2].into()), (&server, [10, 5, 0, 3].into()))
}
