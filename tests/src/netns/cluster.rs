//! Three nodes with pods, two of them on one network and the third behind a router, which is the way to the Internet, too.
//!
//! ```text
//!  n1 .11 ─┐                 ┌────────┐
//!          ├─ switch ────────┤ router ├── n3 .13 (192.168.30.0/24)
//!  n2 .12 ─┘ 192.168.20.0/24 └────────┘    198.51.100.7 on it
//! ```
//!
//! The router knows nothing of pods. Pods of node N are 172.27.N.0/26 and fd00:27:N::/122.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};

use super::cni::{Runtime, twin};
use super::config::{Files, Service};
use super::device::{self, Twin};
use super::{Agent, Lab, Ns, ethtool, pass};
use crate::load::{Task, echo};

/// Where each pod's server listens, and the Internet's.
pub const ECHO: u16 = 7000;
/// The nodes' port.
pub const PORT: &str = "eth1";
const NODES: u8 = 3;
/// The hook that needs no whole packets.
const TC: &str = "tc";

/// A pod; its server says its name.
#[derive(Debug)]
pub struct Pod {
    pub name: String,
    pub node: usize,
    pub at: Twin,
    _server: Task,
    pub ns: Ns,
}

#[derive(Debug)]
pub struct Node {
    pub name: String,
    pub at: Twin,
    pub agent: Agent,
    pub runtime: Runtime,
    pub ns: Ns,
}

/// Fields are in the order in which they end.
#[derive(Debug)]
pub struct Cluster {
    pub pods: Vec<Pod>,
    pub nodes: Vec<Node>,
    pub router: Ns,
    pub switch: Ns,
    files: Files,
    _far: Task,
    _passing: Vec<OwnedFd>,
    pub lab: Lab,
}

/// Who says which nodes there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nodes {
    Configuration,
    /// The same, by their IPv6 addresses alone.
    Ipv6,
    /// Node objects in the manifests.
    Objects,
}

/// The address of a node on its network.
fn at(number: u8) -> Twin {
    if number == 3 { device::beyond(13) } else { device::lan(10 + number) }
}

/// A node and its pods' blocks, as the configuration says it.
fn named(number: u8, nodes: Nodes) -> String {
    let Twin { v4, v6 } = at(number);
    let v4 = if nodes == Nodes::Ipv6 { String::new() } else { format!("{v4}, ") };
    let blocks = format!("[172.27.{number}.0/26, \"fd00:27:{number}::/122\"]");
    format!("  - {{ name: n{number}, addresses: [{v4}\"{v6}\"], blocks: {blocks} }}\n")
}

/// The same as a Node.
fn object(number: u8) -> String {
    let Twin { v4, v6 } = at(number);
    format!(
        "---\napiVersion: v1\nkind: Node\nmetadata: {{ name: n{number} }}\n\
         spec: {{ podCIDR: 172.27.{number}.0/26, podCIDRs: [172.27.{number}.0/26, \"fd00:27:{number}::/122\"] }}\n\
         status: {{ addresses: [{{ type: InternalIP, address: {v4} }}, {{ type: InternalIP, address: \"{v6}\" }}] }}\n"
    )
}

impl Cluster {
    /// Nodes whose agents run, with a hook for their port and further lines under `pods`.
    pub fn new(hook: &str, pods: &str, nodes: Nodes) -> Result<Cluster> {
        let lab = Lab::new()?;
        let (switch, router) = (lab.ns("switch")?, lab.ns("router")?);
        switch.ip("link add br0 type bridge\nlink set br0 up")?;
        router.sysctls(&[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")])?;
        lab.wire((&router, "lan"), (&switch, "to-router"))?;
        switch.ip("link set to-router master br0")?;
        if hook != TC {
            ethtool::set(&router, "lan", ethtool::Offload::TxChecksum, false)?;
        }
        router.ip("addr add 192.168.20.1/24 dev lan\naddr add fd00:20::1/64 dev lan nodad\n\
             addr add 198.51.100.7/32 dev lo\naddr add 2001:db8:100::7/128 dev lo nodad")?;
        let far = echo::serve(&router, "far", &device::far().both().map(|ip| SocketAddr::new(ip, ECHO)))?;
        let files = Files::new(lab.dir())?;
        let mut cluster = Cluster {
            pods: Vec::new(),
            nodes: Vec::new(),
            router,
            switch,
            files,
            _far: far,
            _passing: Vec::new(),
            lab,
        };
        let said = match nodes {
            Nodes::Objects => String::new(),
            _ => format!("nodes:\n{}", (1..=NODES).map(|n| named(n, nodes)).collect::<String>()),
        };
        if nodes == Nodes::Objects {
            cluster.files.replace("cluster/nodes.yaml", &(1..=NODES).map(object).collect::<String>())?;
        }
        for number in 1..=NODES {
            cluster.node(number, hook, pods, &said)?;
        }
        cluster.nodes.iter_mut().try_for_each(|node| node.agent.start())?;
        cluster.nodes.iter_mut().try_for_each(|node| node.agent.ready().context(node.name.clone()))?;
        Ok(cluster)
    }

    fn node(&mut self, number: u8, hook: &str, pods: &str, nodes: &str) -> Result<()> {
        let (name, at) = (format!("n{number}"), at(number));
        let ns = self.lab.ns(&name)?;
        let net = if number == 3 { (30, &self.router) } else { (20, &self.switch) };
        let port = format!("to-{name}");
        self.lab.wire((&ns, PORT), (net.1, &port))?;
        if number == 3 {
            net.1.ip(&format!("addr add 192.168.30.1/24 dev {port}\naddr add fd00:30::1/64 dev {port} nodad"))?;
            if hook != TC {
                ethtool::set(net.1, &port, ethtool::Offload::TxChecksum, false)?;
            }
        } else {
            net.1.ip(&format!("link set {port} master br0"))?;
        }
        // XDP loses the mark "checksum to be done"; TC has to see it, and what is still to be cut into segments.
        if hook != TC {
            self._passing.push(pass::attach(net.1, &port)?);
            ethtool::set(&ns, PORT, ethtool::Offload::TxChecksum, false)?;
        }
        let subnet = net.0;
        ns.ip(&format!(
            "addr add {}/24 dev {PORT}\naddr add {}/64 dev {PORT} nodad\n\
             route add default via 192.168.{subnet}.1\nroute add default via fd00:{subnet}::1",
            at.v4, at.v6
        ))?;
        let config = self.lab.dir().join(format!("{name}.yaml"));
        let text = format!(
            "node: {name}\nports:\n  Port3: {{ interface: {PORT}, gateway: [192.168.{subnet}.1, \"fd00:{subnet}::1\"], \
             hook: {hook} }}\ncluster:\n  podSubnet: [172.27.0.0/16, \"fd00:27::/32\"]\n  \
             serviceSubnet: [172.28.0.0/16, \"fd00:28::/108\"]\n  manifests: ./cluster\n  dns: {{ nodeAddresses: [{}, \"{}\"] }}\n\
             pods: {{ cooldown: 1s{pods} }}\n{nodes}",
            at.v4, at.v6
        );
        std::fs::write(&config, text)?;
        let agent = Agent::new(&self.lab, &ns, &config)?.named(&name);
        let runtime = Runtime::new(&self.lab, &ns)?.beside(&agent);
        self.nodes.push(Node { name, at, agent, runtime, ns });
        Ok(())
    }

    /// Makes a pod on a node, by the plugin.
    pub fn pod(&mut self, node: usize) -> Result<()> {
        self.pod_in(node, "default")
    }

    /// The same in another namespace.
    pub fn pod_in(&mut self, node: usize, namespace: &str) -> Result<()> {
        let name = format!("p{}", self.pods.len());
        let ns = self.lab.ns(&name)?;
        let args = format!("K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name}");
        let result = self.nodes[node].runtime.add(&ns, &name, &args)?;
        let at = twin(&result)?;
        let server = echo::serve(&ns, &name, &at.both().map(|ip| SocketAddr::new(ip, ECHO)))?;
        self.pods.push(Pod { name, node, at, _server: server, ns });
        Ok(())
    }

    /// A file in all nodes' manifests.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        self.files.replace(&format!("cluster/{name}"), text)
    }

    /// A service, in all nodes' manifests.
    pub fn write_service(&self, service: &Service) -> Result<()> {
        self.files.write(service)
    }

    /// Another set of Nodes in all nodes' manifests: those of these numbers.
    pub fn objects(&self, numbers: &[u8]) -> Result<()> {
        self.files.replace("cluster/nodes.yaml", &numbers.iter().copied().map(object).collect::<String>())
    }

    /// A load balancer of one pod, with annotations, in all nodes' manifests.
    pub fn balancer(&self, name: &str, host: u8, pod: usize, annotations: &str) -> Result<Twin> {
        let (at, pod) = (device::external(host), &self.pods[pod]);
        let service = Service::tcp(name, 80, ECHO, device::cluster(host)).external(at).and_udp();
        self.files.write(&service.endpoint(pod.at, &self.nodes[pod.node].name))?;
        let file = self.lab.dir().join(format!("cluster/{name}.yaml"));
        let text = std::fs::read_to_string(&file)?;
        let named = format!("name: {name}, ");
        let annotated = text.replacen(&named, &format!("{named}annotations: {{ {annotations} }}, "), 1);
        self.files.replace(&format!("cluster/{name}.yaml"), &annotated)?;
        Ok(at)
    }

    /// A service of all pods, in all nodes' manifests.
    pub fn service(&self, name: &str, host: u8) -> Result<Service> {
        let service = Service::tcp(name, 80, ECHO, device::cluster(host));
        let service = self.pods.iter().fold(service, |all, pod| all.endpoint(pod.at, &self.nodes[pod.node].name));
        self.files.write(&service)?;
        Ok(service)
    }
}
