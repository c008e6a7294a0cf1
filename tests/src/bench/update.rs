//! `bench update`: how long it takes from manifests, or from a Kubernetes API, into the kernel, and what it costs, with
//! the agent's real process. The API is a small one in this process, on the same cores.
//!
//! Invariant: what is waited for is the kernel's own table, read by its pin: nothing that the agent says.

use std::fmt::Write as _;
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lb_common::table::{Owned, Prefix, Service, ServiceKey};
use lb_common::wire::header::TCP;
use lb_common::wire::{Be16, Ip4};
use lb_user::apply::table::Table;
use lb_user::apply::{Maps, Paths};
use serde_json::Value;
use stellwerk_tests::fake_api::FakeApi;
use stellwerk_tests::netns::clean::{self, Proc};
use stellwerk_tests::netns::{Lab, Ns};

use super::report::{Reach, Report, Row};
use super::series::{median, quantile};

const SERVICES: u32 = 10_000;
/// Of the smaller cluster, for what memory a service costs.
const FEW: u32 = 1_000;
const ENDPOINTS: u32 = 10;
const SETTLES: Duration = Duration::from_secs(2);
/// How long it is looked at while nothing changes: the sweep of the flow tables and the comparison with the kernel come
/// by several times.
const RESTS: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(60);

/// Where services come from.
#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    Manifests,
    Api,
}

struct World {
    // Ends before the namespace that it is in.
    agent: Proc,
    api: Option<FakeApi>,
    services: u32,
    paths: Paths,
    dir: PathBuf,
    _dev: Ns,
    _far: Ns,
    _lab: Lab,
}

pub fn run(quick: bool) -> Result<Report> {
    let mut rows = Vec::new();
    for by in [By::Manifests, By::Api] {
        let (world, first) = World::start(by, SERVICES)?;
        let name = |what: &str| format!("{}: {what}", if by == By::Manifests { "manifests" } else { "API" });
        let load = Row::new(name("full load, from the agent's start"), first.as_secs_f64(), "s");
        let load = load.verdict("services", SERVICES).verdict("endpoints", SERVICES * ENDPOINTS);
        // An API that lists its objects in this very process is not what the reach is about.
        rows.push(if by == By::Manifests { load.reach(Reach::AtMost(3.0)) } else { load });
        rows.push(Row::new(name("the agent's processor time for that"), world.agent_time()?, "s"));
        // What came with the start is to settle: the neighbours, the first sweep.
        std::thread::sleep(SETTLES);
        let before = world.agent_time()?;
        let times = world.changes(if quick { 100 } else { 1000 })?;
        let count = times.len() as u64;
        let each = (world.agent_time()? - before) * 1e3 / count as f64;
        rows.push(Row::new(name("one endpoint's change, p50"), median(&times), "ms").verdict("changes", count));
        let p99 = Row::new(name("one endpoint's change, p99"), quantile(&times, 0.99), "ms");
        rows.push(p99.reach(Reach::AtMost(5.0)).verdict("changes", count));
        rows.push(Row::new(name("the agent's processor time for a change"), each, "ms"));
        rows.push(Row::new(name("memory of the agent"), world.agent_memory("VmRSS:")?, "MB"));
        rows.push(Row::new(name("memory of the agent, most"), world.agent_memory("VmHWM:")?, "MB"));
        if by == By::Manifests {
            rows.push(Row::new("memory of the maps", world.map_memory()?, "MB"));
        }
        world.stop()?;
        let (few, _) = World::start(by, FEW)?;
        std::thread::sleep(SETTLES);
        let before = few.agent_time()?;
        std::thread::sleep(RESTS);
        let share = (few.agent_time()? - before) * 100.0 / RESTS.as_secs_f64();
        // Not the kernel's own tables, which it has mapped.
        let memory = few.agent_memory("RssAnon:")?;
        for (what, value, unit, most) in [("memory", memory, "MB", 40.0), ("share of a core", share, "%", 0.5)] {
            let row = Row::new(name(&format!("the agent at rest, 1,000 services: {what}")), value, unit);
            rows.push(row.reach(Reach::AtMost(most)).verdict("services", FEW).verdict("endpoints", FEW * ENDPOINTS));
        }
        few.stop()?;
    }
    Ok(Report { bench: "update", rows })
}

fn key(service: u32) -> ServiceKey<Ip4> {
    ServiceKey { addr: address(service).into(), port: Be16::new(80), proto: TCP, pad: 0 }
}

fn address(service: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(172, 28, 1, 0)) + service)
}

/// A service and its endpoints in one file. `moved`: the first endpoint is at another place.
fn manifest(service: u32, moved: bool) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: s{service}, namespace: default }}\nspec:\n  \
         clusterIP: {ip}\n  clusterIPs: [{ip}]\n  ports: [{{ name: web, protocol: TCP, port: 80, targetPort: 8080 }}]\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: s{service}-a\n  \
         namespace: default\n  labels: {{ kubernetes.io/service-name: s{service} }}\naddressType: IPv4\n\
         ports: [{{ name: web, protocol: TCP, port: 8080 }}]\nendpoints:\n",
        ip = address(service)
    );
    for i in 0..ENDPOINTS {
        let number = if moved && i == 0 { SERVICES * ENDPOINTS + service } else { service * ENDPOINTS + i };
        let addr = Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(10, 64, 0, 1)) + number);
        let _ = writeln!(
            text,
            "  - {{ addresses: [{addr}], nodeName: n1, conditions: {{ ready: true, serving: true, terminating: false }} }}"
        );
    }
    text
}

fn config(by: By) -> String {
    let source = match by {
        By::Manifests => "manifests: ./cluster",
        By::Api => "kubeconfig: ./kubeconfig",
    };
    format!(
        "node: edge-1\n\
         ports:\n  Port3: {{ interface: eth1, compute: true }}\n\
         cluster:\n  podSubnet: 10.64.0.0/10\n  serviceSubnet: 172.28.0.0/16\n  {source}\n\
         capacity: {{ backends: 262144, slots: 16777216 }}\n"
    )
}

/// The same as objects.
fn objects(service: u32, moved: bool) -> Result<Vec<Value>> {
    Ok(serde_saphyr::from_multiple(&manifest(service, moved))?)
}

impl World {
    /// Makes all services, starts the agent and waits until its last service is in the kernel.
    fn start(by: By, services: u32) -> Result<(World, Duration)> {
        let lab = Lab::new()?;
        let (dev, far) = (lab.ns("dev")?, lab.ns("far")?);
        lab.wire((&dev, "eth1"), (&far, "eth0"))?;
        dev.ip("addr add 192.168.20.10/24 dev eth1\nroute add 10.64.0.0/10 via 192.168.20.11")?;
        far.ip("addr add 192.168.20.11/24 dev eth0")?;
        let dir = lab.dir().to_owned();
        std::fs::create_dir(dir.join("cluster"))?;
        std::fs::write(dir.join("stellwerk.yaml"), config(by))?;
        let mut api = None;
        if by == By::Api {
            let served = FakeApi::serve(dev.run(|| TcpListener::bind("127.0.0.1:0"))??)?;
            let all: Vec<Vec<Value>> = (0..services).map(|service| objects(service, false)).collect::<Result<_>>()?;
            served.put_all(all.into_iter().flatten());
            served.kubeconfig(&dir)?;
            api = Some(served);
        } else {
            (0..services).try_for_each(|service| replace(&dir, service))?;
        }
        let log = std::fs::File::create(dir.join("agent.log"))?;
        let mut command = dev.command(binary()?);
        command.arg("run").arg("--config").arg(dir.join("stellwerk.yaml")).arg("--pin-path").arg(lab.pins());
        command.stdout(log.try_clone()?).stderr(log);
        let begin = Instant::now();
        let agent = Proc::start(&mut command)?;
        let paths = Paths::new(lab.pins());
        let mut world = World { agent, api, services, paths, dir, _dev: dev, _far: far, _lab: lab };
        world.wait_for_all(begin)?;
        Ok((world, begin.elapsed()))
    }

    /// What the last service owns is written behind all services.
    fn wait_for_all(&mut self, begin: Instant) -> Result<()> {
        let last = Prefix { len: 32, addr: Ip4::from(address(self.services - 1)) };
        loop {
            clean::check()?;
            if !self.agent.alive() || begin.elapsed() > PATIENCE {
                let log = std::fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default();
                bail!("the agent did not fill the tables:\n{log}");
            }
            if let Ok(maps) = Maps::open(&self.paths.maps())
                && maps.v4.owned.get(&last)?.is_some_and(|owned| owned.kind == Owned::VIP)
            {
                let services = maps.v4.services.entries()?.len();
                ensure!(services == self.services as usize, "{services} services are in the kernel");
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Milliseconds from a file's replacement, or an object's change, to the service's new row.
    fn changes(&self, count: u32) -> Result<Vec<f64>> {
        let table: Table<ServiceKey<Ip4>, Service> = Table::open(&self.paths.maps(), "SERVICES4")?;
        let mut times = Vec::new();
        for i in 0..count {
            clean::check()?;
            // Spread over all, each moved once and no more.
            let service = i * 7_919 % SERVICES;
            let key = key(service);
            let before = table.get(&key)?.context("the service is there")?.first;
            let begin = self.change(service)?;
            while table.get(&key)?.is_none_or(|s| s.first == before) {
                ensure!(begin.elapsed() < PATIENCE, "a change of s{service} never came");
                std::thread::sleep(Duration::from_micros(50));
            }
            times.push(begin.elapsed().as_secs_f64() * 1e3);
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(times)
    }

    /// Moves an endpoint of a service; when that was.
    fn change(&self, service: u32) -> Result<Instant> {
        if let Some(api) = &self.api {
            let slice = objects(service, true)?.pop().context("a slice")?;
            let begin = Instant::now();
            api.put(slice);
            return Ok(begin);
        }
        let new = write(&self.dir, service, true)?;
        // Else a disk's file system writes it out within rename(2), before it tells of it.
        File::open(&new)?.sync_all()?;
        let begin = Instant::now();
        rename(&self.dir, service, &new)?;
        Ok(begin)
    }

    /// Seconds of processor time that the agent has had.
    fn agent_time(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.agent.id()))?;
        let fields: Vec<&str> = stat.rsplit_once(')').context("the agent's times")?.1.split_whitespace().collect();
        let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
        let rate = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("the clock's rate")?;
        Ok(ticks / rate as f64)
    }

    fn agent_memory(&self, what: &str) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.agent.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(what)).context("the agent's memory")?;
        let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kilobytes / 1024.0)
    }

    /// By the kernel's own account, as it charges each map.
    fn map_memory(&self) -> Result<f64> {
        use std::os::fd::{AsFd, AsRawFd};
        let mut sum = 0.0;
        for entry in std::fs::read_dir(self.paths.maps())? {
            let map = aya::maps::MapData::from_pin(entry?.path())?;
            let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd()))?;
            let line = info.lines().find_map(|line| line.strip_prefix("memlock:")).context("a map's memory")?;
            sum += line.trim().parse::<f64>()?;
        }
        Ok(sum / f64::from(1 << 20))
    }

    fn stop(self) -> Result<()> {
        // What it has pinned goes with the lab.
        ensure!(self.agent.stop(Duration::from_secs(5)), "the agent did not end by itself");
        Ok(())
    }
}

/// Written beside and renamed, as tools that keep such folders do.
fn replace(dir: &Path, service: u32) -> Result<()> {
    rename(dir, service, &write(dir, service, false)?)
}

fn write(dir: &Path, service: u32, moved: bool) -> Result<PathBuf> {
    let new = dir.join("next");
    std::fs::write(&new, manifest(service, moved))?;
    Ok(new)
}

fn rename(dir: &Path, service: u32, new: &Path) -> Result<()> {
    std::fs::rename(new, dir.join(format!("cluster/s{service}.yaml"))).context("replacing a manifest")
}

/// The agent's program.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("STELLWERK_BIN") {
        return Ok(path.into());
    }
    let path = std::env::current_exe()?.with_file_name("stellwerk");
    ensure!(path.is_file(), "no `stellwerk` beside this program: `cargo xtask build` makes it");
    Ok(path)
}
