//! `bench dns`: queries a second and their time, of the agent beside dnsmasq and unbound, each on one core, with the
//! same names.
//!
//! Invariant: all are asked by the same client, at the same address inside, in turns of one run; each answer is
//! looked at, and what isn't answered right is no figure.

mod client;
mod servers;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use stellwerk_tests::netns::clean::{self, Proc};
use stellwerk_tests::netns::{Lab, Ns};

use self::client::Client;
use self::servers::Server;
use super::report::{Reach, Report, Row};
use super::series::{median, quantile, ratio};

const SERVICES: u32 = 10_000;
/// Names of others that are asked for.
const FOREIGN: u32 = 1_000;
const PATIENCE: Duration = Duration::from_secs(60);

struct World {
    // They end before the namespaces that they are in. The first is ours.
    servers: Vec<Server>,
    pod: Ns,
    _dev: Ns,
    lab: Lab,
}

pub fn run(quick: bool) -> Result<Report> {
    let world = World::start()?;
    let (turns, turn) = if quick { (3, Duration::from_millis(300)) } else { (9, Duration::from_secs(1)) };
    let cluster: Vec<String> = (0..SERVICES).map(|i| format!("s{i}.default.svc.cluster.local.")).collect();
    let foreign: Vec<String> = (0..FOREIGN).map(|i| format!("www{i}.example.org.")).collect();
    let mut rows = Vec::new();
    for (what, names) in [("cluster name", &cluster), ("forwarded name, cached", &foreign)] {
        rows.extend(world.beside(what, names, turns, turn)?);
    }
    rows.extend(world.follow(if quick { 10 } else { 50 })?);
    Ok(Report { bench: "dns", rows })
}

impl World {
    fn start() -> Result<World> {
        let lab = Lab::new()?;
        let (dev, pod) = (lab.ns("dev")?, lab.ns("pod")?);
        lab.wire((&dev, "veth1"), (&pod, "eth0"))?;
        dev.ip("link add br-int type bridge\nlink set br-int up\nlink set veth1 master br-int\n\
                addr add 10.20.0.1/24 dev br-int")?;
        pod.ip(&format!("addr add {}/24 dev eth0", servers::FAR))?;
        servers::upstream(&pod)?;
        let mut servers = servers::start(&lab, &dev)?;
        wait(&pod, &mut servers, lab.dir())?;
        Ok(World { servers, pod, _dev: dev, lab })
    }

    /// Rates and times of all, in turns.
    fn beside(&self, what: &str, names: &[String], turns: usize, turn: Duration) -> Result<Vec<Row>> {
        let open = |server: &Server| Client::open(&self.pod, server.at, names);
        let mut clients = self.servers.iter().map(open).collect::<Result<Vec<Client>>>()?;
        let mut all = vec![Series::default(); clients.len()];
        // Everything once, so that all of it is cached.
        for client in &mut clients {
            client.each()?;
        }
        for _ in 0..turns {
            clean::check()?;
            for ((server, client), series) in self.servers.iter().zip(&mut clients).zip(&mut all) {
                let before = ran(&server.process)?;
                let round = client.turn(turn)?;
                series.cpu.push((ran(&server.process)? - before) / round.answers.max(1) as f64);
                series.rate.push(round.rate);
                series.p99.push(round.p99);
                series.lost += round.lost;
            }
        }
        let (ours, others) = all.split_first().context("no server")?;
        let named = self.servers.iter().skip(1).map(|server| server.name);
        Ok(named.zip(others).flat_map(|(name, theirs)| rows(&format!("{what}, {name}"), ours, theirs)).collect())
    }

    /// How long it takes from a new service's file to its name's first answer.
    fn follow(&self, count: u32) -> Result<Vec<Row>> {
        let mut times = Vec::new();
        let dir = self.lab.dir();
        for i in 0..count {
            clean::check()?;
            let mut client = Client::open(&self.pod, servers::OURS, &[format!("new{i}.default.svc.cluster.local.")])?;
            let mut text = String::new();
            servers::service(&mut text, &format!("new{i}"), servers::address(SERVICES + i));
            std::fs::write(dir.join("next"), text)?;
            let written = Instant::now();
            std::fs::rename(dir.join("next"), dir.join(format!("cluster/new{i}.yaml")))?;
            times.push(client.wait(written)?.as_secs_f64() * 1e3);
        }
        let row = |kind: &str, part| Row::new(format!("name of a new service, {kind}"), quantile(&times, part), "ms");
        Ok(vec![row("p50", 0.5), row("slowest", 1.0).reach(Reach::AtMost(50.0))])
    }
}

/// Until all know the last service.
fn wait(pod: &Ns, servers: &mut [Server], dir: &Path) -> Result<()> {
    let begin = Instant::now();
    let last = vec![format!("s{}.default.svc.cluster.local.", SERVICES - 1)];
    for server in servers {
        while Client::open(pod, server.at, &last)?.one().is_err() {
            clean::check()?;
            if begin.elapsed() > PATIENCE || !server.process.alive() {
                let log = std::fs::read_to_string(dir.join(format!("{}.log", server.name))).unwrap_or_default();
                bail!("{} doesn't answer:\n{log}", server.name);
            }
        }
    }
    Ok(())
}

/// What the turns of one gave.
#[derive(Clone, Default)]
struct Series {
    rate: Vec<f64>,
    p99: Vec<f64>,
    cpu: Vec<f64>,
    lost: u64,
}

fn rows(what: &str, ours: &Series, theirs: &Series) -> Vec<Row> {
    let row = |kind: &str, unit, ours: &[f64], theirs: &[f64], reach| {
        let row = Row::new(format!("{what}, {kind}"), median(ours), unit);
        row.against(median(theirs), ratio(ours, theirs), reach)
    };
    let rate = row("rate", "queries/s", &ours.rate, &theirs.rate, Reach::AtLeast(1.0));
    vec![
        rate.prove(ours.lost == 0).verdict("lost", ours.lost).verdict("theirs_lost", theirs.lost),
        // As long as the rate: whoever answers more has as many waiting.
        row("p99", "us", &ours.p99, &theirs.p99, Reach::AtMost(1.0)),
        // What the machine does besides disturbs this one least.
        row("CPU time of a query", "us", &ours.cpu, &theirs.cpu, Reach::AtMost(1.0)),
    ]
}

/// How long a process has run on a CPU so far, in microseconds: all its threads.
fn ran(process: &Proc) -> Result<f64> {
    let mut sum = 0.0;
    for task in std::fs::read_dir(format!("/proc/{}/task", process.id()))? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        let nanoseconds = text.split(' ').next().and_then(|word| word.parse::<f64>().ok());
        sum += nanoseconds.context("schedstat")? / 1e3;
    }
    Ok(sum)
}
