//! The two-tier app on its two nodes: web replicas and a database, each a process of its own in a pod that the CNI plugin
//! made, and the manifests that describe them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::netns::clean::Proc;
use crate::netns::cni::{Runtime, twin};
use crate::netns::config::{Files, Service};
use crate::netns::device::{self, Twin};
use crate::netns::{Agent, Device, Ns};

/// Web replicas listen here.
const WEB: u16 = 8080;
/// The database listens here.
const DATABASE: u16 = 5432;
/// The cluster's nodes and their pods' blocks, as all of them know it.
const NODES: &str = "nodes:\n  \
    - { name: edge-1, addresses: [192.168.20.10, \"fd00:20::a\"], blocks: [172.27.3.0/26, \"fd00:27:3::/122\"] }\n  \
    - { name: edge-2, addresses: [192.168.20.11, \"fd00:20::b\"], blocks: [172.27.4.0/26, \"fd00:27:4::/122\"] }\n\
    pods: {}\n";
/// The second node: it announces nothing.
const EDGE_2: &str = "node: edge-2\nports:\n  Port3: { interface: eth0 }\ncluster:\n  \
    podSubnet: [172.27.0.0/16, \"fd00:27::/32\"]\n  serviceSubnet: [172.28.0.0/16, \"fd00:28::/112\"]\n  \
    manifests: ./cluster\n  announce: { enabled: false }\n  dns: { nodeAddresses: [192.168.20.11, \"fd00:20::b\"] }\n";
/// A replica listens once it has found its database: two tries of a resolver, and what a busy machine adds.
const LISTENS: Duration = Duration::from_secs(60);

/// A replica that has its place.
#[derive(Debug)]
struct Place {
    ns: Ns,
    at: Twin,
    node: &'static str,
}

/// Everything that runs. Fields are in the order in which they end: processes before the lab.
#[derive(Debug)]
pub struct App {
    processes: BTreeMap<String, Proc>,
    pub agent: Agent,
    second: Agent,
    /// By the nodes' names.
    runtimes: BTreeMap<&'static str, Runtime>,
    places: BTreeMap<String, Place>,
    web: Service,
    files: Files,
    pub device: Device,
}

impl App {
    /// Builds the device, writes configuration and manifests, starts both nodes' agents, and in pods the database and the
    /// first three replicas.
    pub fn start() -> Result<App> {
        let device = Device::new()?;
        let files = Files::new(device.lab.dir())?;
        let agent = Agent::new(&device.lab, &device.dev, &files.config())?;
        files.replace("edge-2.yaml", &format!("{EDGE_2}{NODES}"))?;
        let second = Agent::new(&device.lab, &device.edge2, &device.lab.dir().join("edge-2.yaml"))?.named("edge-2");
        let runtimes = BTreeMap::from([
            ("edge-1", Runtime::new(&device.lab, &device.dev)?),
            ("edge-2", Runtime::new(&device.lab, &device.edge2)?.beside(&second)),
        ]);
        let web = Service::tcp("web", 80, WEB, device::cluster(30)).external(device::external(100));
        let (processes, places) = (BTreeMap::new(), BTreeMap::new());
        let mut app = App { processes, agent, second, runtimes, places, web, files, device };
        let names = "  dns: { nodeAddresses: \"fd00:27:1::1\" }\n";
        app.files.write_config(&(Files::standard("auto", "xdp") + names + NODES))?;
        app.second.start()?;
        app.agent.start_ready()?;
        app.second.ready()?;
        for (name, node) in [("db", "edge-1"), ("web-1", "edge-1"), ("web-2", "edge-1"), ("web-3", "edge-2")] {
            app.place(name, node)?;
        }
        app.run("db")?;
        let database = Service::tcp("db", DATABASE, DATABASE, device::cluster(20));
        app.files.write(&database.endpoint(app.places["db"].at, "edge-1"))?;
        for name in ["web-1", "web-2", "web-3"] {
            app.list(name)?;
        }
        app.files.write(&app.web)?;
        // As in a house: nobody has a route to service addresses, and whoever wants one asks for it on the network.
        app.device.client.ip("route del 192.168.20.96/27\nroute del fd00:20::1:0/112")?;
        // They find the database by its name, and listen once they have.
        for name in ["web-1", "web-2", "web-3"] {
            app.run(name)?;
        }
        Ok(app)
    }

    /// The address that users know, in both families.
    pub fn address() -> [SocketAddr; 2] {
        device::external(100).both().map(|ip| SocketAddr::new(ip, 80))
    }

    /// Makes a pod on a node, as a container runtime would.
    pub fn place(&mut self, name: &str, node: &'static str) -> Result<()> {
        let ns = self.device.lab.ns(name)?;
        let args = format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME={name}");
        let at = self.runtimes[node].add(&ns, name, &args)?;
        self.places.insert(name.into(), Place { ns, at: twin(&at)?, node });
        Ok(())
    }

    /// Where a replica is, for people.
    pub fn node(&self, name: &str) -> &'static str {
        self.places.get(name).map_or("", |place| place.node)
    }

    /// Starts a replica's process and waits until it listens.
    pub fn run(&mut self, name: &str) -> Result<()> {
        let place = self.places.get(name).with_context(|| format!("{name} has no place"))?;
        let port = if name == "db" { DATABASE } else { WEB };
        let mut command = place.ns.command(std::env::current_exe()?);
        command.args(["replica", "--name", name]);
        for ip in place.at.both() {
            command.arg("--listen").arg(SocketAddr::new(ip, port).to_string());
        }
        if name != "db" {
            command.arg("--database").arg(format!("db.default.svc.cluster.local:{DATABASE}"));
            for ip in device::cluster(10).both() {
                command.arg("--name-server").arg(ip.to_string());
            }
        }
        let process = Proc::start(&mut command)?;
        listens(&place.ns, place.at.v4, port)?;
        self.processes.insert(name.into(), process);
        Ok(())
    }

    /// Adds a replica's endpoint to the slice.
    pub fn list(&mut self, name: &str) -> Result<()> {
        let place = &self.places[name];
        self.web.endpoints.push(crate::netns::config::Endpoint::new(place.at, place.node));
        self.files.write_endpoints(&self.web)
    }

    /// Marks a replica's endpoint as terminating, as Kubernetes does when a pod is deleted.
    pub fn mark_leaving(&mut self, name: &str) -> Result<()> {
        let at = self.places[name].at;
        let endpoint = self.web.endpoints.iter_mut().find(|e| e.addrs.contains(&at.v4));
        endpoint.with_context(|| format!("{name} is no endpoint"))?.terminating = true;
        self.files.write_endpoints(&self.web)
    }

    /// Takes a replica's endpoint out of the slice.
    pub fn unlist(&mut self, name: &str) -> Result<()> {
        let at = self.places[name].at;
        self.web.endpoints.retain(|e| !e.addrs.contains(&at.v4));
        self.files.write_endpoints(&self.web)
    }

    /// Waits until the kernel's tables have (or no longer have) a replica as a backend.
    pub fn wait_backend(&mut self, name: &str, there: bool) -> Result<()> {
        let addrs = self.places[name].at.both().map(|a: IpAddr| a.to_string());
        self.agent.wait("backends", |rows| {
            let has = |addr: &String| rows.iter().any(|row| row.to_string().contains(addr.as_str()));
            addrs.iter().all(|addr| has(addr) == there)
        })
    }

    /// How often the first node's agent has told a name of the cluster.
    pub fn names_told(&self) -> Result<u64> {
        told(&self.agent)
    }

    /// The same of both nodes' agents.
    pub fn names_told_by_both(&self) -> Result<u64> {
        Ok(told(&self.agent)? + told(&self.second)?)
    }

    /// Asks a replica's process to leave: it finishes what it has.
    pub fn ask_to_leave(&self, name: &str) -> Result<()> {
        self.process(name)?.signal(nix::sys::signal::Signal::SIGTERM)
    }

    /// Whether a replica's process runs.
    pub fn runs(&mut self, name: &str) -> bool {
        self.processes.get_mut(name).is_some_and(Proc::alive)
    }

    /// SIGKILL: its connections are reset by its kernel, in the middle of whatever they did.
    pub fn kill(&mut self, name: &str) {
        self.processes.remove(name);
    }

    fn process(&self, name: &str) -> Result<&Proc> {
        self.processes.get(name).with_context(|| format!("{name} doesn't run"))
    }
}

fn told(agent: &Agent) -> Result<u64> {
    let rows: Vec<serde_json::Value> = serde_json::from_str(&agent.asker().command(&["dns", "status", "--json"])?)?;
    let row = rows.iter().find(|row| row["kind"] == "zone" && row["name"] == "cluster");
    row.and_then(|row| row["count"].as_u64()).context("no count of the cluster's names")
}

/// Waits until something listens.
fn listens(ns: &Ns, ip: IpAddr, port: u16) -> Result<()> {
    let end = Instant::now() + LISTENS;
    while Instant::now() < end {
        crate::netns::clean::check()?;
        let addr = SocketAddr::new(ip, port);
        if ns.run(|| TcpStream::connect_timeout(&addr, Duration::from_secs(1)).is_ok())? {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    bail!("nothing listens on {ip} port {port} after {} s", LISTENS.as_secs())
}
