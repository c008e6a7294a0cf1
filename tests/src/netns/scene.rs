//! The scene of the tests: the standard lab with echo servers in all the places that a backend can
//! be, one service for each, and the agent.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::config::{Files, Service, ServicePort};
use super::device::{self, Device, Twin};
use super::{Agent, Ns, probe};
use crate::load::{Load, Plan, Sample, Summary, Task, echo, replica::Replica};

/// Services listen here.
pub const PORT: u16 = 80;
/// Echo servers listen here.
pub const ECHO: u16 = 7000;
/// The NodePort of [`Which::Both`].
pub const NODE_PORT: u16 = 30080;

/// The services of the scene. Their numbers are in their addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Which {
    /// pod-1
    Local = 0,
    /// The pod on edge-2.
    Remote = 1,
    /// The device's own stack.
    Host = 2,
    /// pod-1 and pod-2; also on a NodePort.
    Both = 3,
    /// Nobody.
    Empty = 4,
    /// pod-1 and pod-2, with ClientIP affinity.
    Sticky = 5,
    /// pod-1, pod-2 and the pod on edge-2, over HTTP.
    Web = 6,
}

impl Which {
    pub fn cluster(self) -> Twin {
        device::cluster(10 + self as u8)
    }

    pub fn external(self) -> Twin {
        device::external(100 + self as u8)
    }
}

/// Everything that runs. Fields are in the order in which they end.
#[derive(Debug)]
pub struct Scene {
    servers: Vec<Task>,
    pub agent: Agent,
    pub services: Vec<Service>,
    pub files: Files,
    pub pod1: Ns,
    pub pod2: Ns,
    pub device: Device,
}

impl Scene {
    /// Builds it, with the hooks of Port2 and Port3, and waits until the agent has filled the tables.
    pub fn open(port2: &str, port3: &str) -> Result<Scene> {
        let mut scene = Scene::without_agent(port2, port3)?;
        scene.start_agent()?;
        Ok(scene)
    }

    /// Builds it, but leaves the agent to the test.
    pub fn without_agent(port2: &str, port3: &str) -> Result<Scene> {
        let device = Device::new()?;
        let (pod1, pod2) = (device.pod("pod-1", 11)?, device.pod("pod-2", 12)?);
        let servers = vec![
            echo::serve(&pod1, "pod-1", &at(device::pod(1, 11), ECHO))?,
            echo::serve(&pod2, "pod-2", &at(device::pod(1, 12), ECHO))?,
            echo::serve(&device.edge2, "remote", &at(device::pod(2, 11), ECHO))?,
            echo::serve(&device.dev, "host", &at(device::lan(10), ECHO))?,
            web(&pod1, "pod-1", device::pod(1, 11))?,
            web(&pod2, "pod-2", device::pod(1, 12))?,
            web(&device.edge2, "remote", device::pod(2, 11))?,
        ];
        let files = Files::new(device.lab.dir())?;
        let services = services();
        services.iter().try_for_each(|service| files.write(service))?;
        files.write_config(&Files::standard(port2, port3))?;
        let agent = Agent::new(&device.lab, &device.dev, &files.config())?;
        Ok(Scene { servers, agent, services, files, pod1, pod2, device })
    }

    /// Starts the agent and waits until the tables are as the files say.
    pub fn start_agent(&mut self) -> Result<()> {
        self.agent.start_ready()?;
        let services = self.services.len();
        self.agent.wait("services", |rows| rows.len() >= services)?;
        let ports = |s: &Service| s.endpoints.iter().map(|e| e.addrs.len()).sum::<usize>() * s.ports.len();
        let backends: usize = self.services.iter().map(ports).sum();
        self.agent.wait("backends", |rows| rows.len() >= backends)
    }

    /// The service's description, to be changed and written again.
    pub fn service(&mut self, which: Which) -> &mut Service {
        &mut self.services[which as usize]
    }

    /// Changes a service's endpoints in the files.
    pub fn change(&mut self, which: Which, change: impl FnOnce(&mut Service)) -> Result<()> {
        let service = &mut self.services[which as usize];
        change(service);
        self.files.write_endpoints(service)
    }

    /// A server that lives as long as the scene.
    pub fn keep(&mut self, server: Task) {
        self.servers.push(server);
    }

    /// The client behind Port3.
    pub fn client(&self) -> probe::From {
        probe::From::ns(&self.device.client)
    }

    /// The host far behind Port2.
    pub fn far(&self, like: IpAddr) -> probe::From {
        probe::From::at(&self.device.inet, device::far().like(like))
    }
}

/// HTTP through the VIP from both networks, a family each, since they were started.
#[derive(Debug)]
pub struct Loads([Load; 2], Instant);

impl Loads {
    pub fn start(scene: &Scene, pace: Duration) -> Result<Loads> {
        let from = Instant::now();
        let vip = Which::Web.external();
        let plan = |to| Plan { pace, ..Plan::new(SocketAddr::new(to, PORT)) };
        let one = Load::start(&scene.device.client, plan(vip.v4))?;
        let two = Load::start(&scene.device.inet, Plan { source: Some(device::far().v6), ..plan(vip.v6) })?;
        Ok(Loads([one, two], from))
    }

    /// All requests so far, once they have ended.
    pub fn samples(&self) -> Vec<Sample> {
        let to = Instant::now();
        self.0.iter().for_each(|load| load.settle(to));
        self.0.iter().flat_map(|load| load.reader().between(self.1, to)).collect()
    }

    /// There were more than so many, and none has failed.
    #[track_caller]
    pub fn none_failed(&self, scene: &Scene, more_than: u64) -> Summary {
        let summary = Summary::of(&self.samples());
        assert!(summary.requests > more_than, "only {} requests", summary.requests);
        assert!(summary.failed == 0, "{summary:#?}\n{}", scene.agent.log_tail());
        summary
    }
}

fn services() -> Vec<Service> {
    let tcp =
        |name: &str, which: Which| Service::tcp(name, PORT, ECHO, which.cluster()).and_udp().external(which.external());
    let (pod1, pod2, remote) = (device::pod(1, 11), device::pod(1, 12), device::pod(2, 11));
    let mut both = tcp("both", Which::Both).endpoint(pod1, "edge-1").endpoint(pod2, "edge-1");
    for port in &mut both.ports {
        *port = ServicePort { node_port: Some(NODE_PORT), ..*port };
    }
    let mut sticky = tcp("sticky", Which::Sticky).endpoint(pod1, "edge-1").endpoint(pod2, "edge-1");
    sticky.affinity = Some(60);
    let web = Service::tcp("web", PORT, 8080, Which::Web.cluster()).external(Which::Web.external());
    vec![
        tcp("local", Which::Local).endpoint(pod1, "edge-1"),
        tcp("remote", Which::Remote).endpoint(remote, "edge-2"),
        tcp("host", Which::Host).endpoint(device::lan(10), "edge-1"),
        both,
        tcp("empty", Which::Empty),
        sticky,
        web.endpoint(pod1, "edge-1").endpoint(pod2, "edge-1").endpoint(remote, "edge-2"),
    ]
}

fn at(twin: Twin, port: u16) -> Vec<SocketAddr> {
    twin.both().map(|ip| SocketAddr::new(ip, port)).to_vec()
}

/// A replica of the app on port 8080.
pub fn web(ns: &Ns, name: &str, twin: Twin) -> Result<Task> {
    let replica = Replica { name: name.into(), listen: at(twin, 8080), database: None };
    Task::start(ns, async move || Ok(replica.listen().await?.serve()))
}
