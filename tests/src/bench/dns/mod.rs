//! `bench dns`: queries a second and their time, of the agent beside dnsmasq, each on one core, with the same names.
//!
//! Invariant: both are asked by the same client, at the same address inside, in turns of one run; each answer is
//! looked at, and what isn't answered right is no figure.

mod client;

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use hickory_proto::op::{Message, OpCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record};
use stellwerk_tests::netns::clean::{self, Proc};
use stellwerk_tests::netns::{Lab, Ns};

use self::client::Client;
use super::report::{Reach, Report, Row};
use super::series::{median, ratio};
use super::update::binary;

const SERVICES: u32 = 10_000;
/// Names of others that are asked for.
const FOREIGN: u32 = 1_000;
const OURS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 20, 0, 1)), 53);
const THEIRS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 20, 0, 1)), 5_301);
const FAR: &str = "10.20.0.2";
const PATIENCE: Duration = Duration::from_secs(60);

struct World {
    // These end before the namespaces that they are in.
    agent: Proc,
    dnsmasq: Proc,
    pod: Ns,
    _dev: Ns,
    _lab: Lab,
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
    Ok(Report { bench: "dns", rows })
}

fn address(service: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(172, 28, 1, 0)) + service)
}

impl World {
    fn start() -> Result<World> {
        let lab = Lab::new()?;
        let (dev, pod) = (lab.ns("dev")?, lab.ns("pod")?);
        lab.wire((&dev, "veth1"), (&pod, "eth0"))?;
        dev.ip("link add br-int type bridge\nlink set br-int up\nlink set veth1 master br-int\n\
                addr add 10.20.0.1/24 dev br-int")?;
        pod.ip(&format!("addr add {FAR}/24 dev eth0"))?;
        upstream(&pod)?;
        let dir = lab.dir().to_owned();
        files(&dir)?;
        let log = std::fs::File::create(dir.join("agent.log"))?;
        let mut command = dev.command("taskset");
        command.args(["-c", "0"]).arg(binary()?).arg("run").arg("--config").arg(dir.join("stellwerk.yaml"));
        command.arg("--pin-path").arg(lab.pins()).stdout(log.try_clone()?).stderr(log);
        let agent = Proc::start(&mut command)?;
        let log = std::fs::File::create(dir.join("dnsmasq.log"))?;
        let mut command = dev.command("taskset");
        command.args([
            "-c",
            "0",
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--pid-file",
            "--user=root",
        ]);
        command.args(["--no-resolv", "--no-hosts", "--local-ttl=5", "--cache-size=10000", "--dns-forward-max=1000"]);
        command.args(["--bind-interfaces", &format!("--listen-address={}", THEIRS.ip())]);
        command.args([format!("--port={}", THEIRS.port()), format!("--server={FAR}")]);
        command.arg(format!("--addn-hosts={}", dir.join("hosts").display()));
        command.stdout(log.try_clone()?).stderr(log);
        let mut world = World { agent, dnsmasq: Proc::start(&mut command)?, pod, _dev: dev, _lab: lab };
        world.wait(&dir)?;
        Ok(world)
    }

    /// Until both know the last service.
    fn wait(&mut self, dir: &Path) -> Result<()> {
        let begin = Instant::now();
        let last = vec![format!("s{}.default.svc.cluster.local.", SERVICES - 1)];
        for at in [OURS, THEIRS] {
            while Client::open(&self.pod, at, &last)?.one().is_err() {
                clean::check()?;
                if begin.elapsed() > PATIENCE || !self.agent.alive() || !self.dnsmasq.alive() {
                    let log = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap_or_default();
                    bail!("{at} doesn't answer:\n{}\n{}", log("agent.log"), log("dnsmasq.log"));
                }
            }
        }
        Ok(())
    }

    /// Rates and times of both, in turns.
    fn beside(&self, what: &str, names: &[String], turns: usize, turn: Duration) -> Result<Vec<Row>> {
        let mut clients = [Client::open(&self.pod, OURS, names)?, Client::open(&self.pod, THEIRS, names)?];
        let (mut rates, mut times, mut lost) = ([vec![], vec![]], [vec![], vec![]], [0, 0]);
        // Everything once, so that all of it is cached.
        for client in &mut clients {
            client.each()?;
        }
        for _ in 0..turns {
            clean::check()?;
            for (i, client) in clients.iter_mut().enumerate() {
                let round = client.turn(turn)?;
                rates[i].push(round.rate);
                times[i].push(round.p99);
                lost[i] += round.lost;
            }
        }
        let row = |kind: &str, unit, all: &[Vec<f64>; 2], reach| {
            let ratio = ratio(&all[0], &all[1]);
            Row::new(format!("{what}, {kind}"), median(&all[0]), unit).against(median(&all[1]), ratio, reach)
        };
        let rate = row("rate", "queries/s", &rates, Reach::AtLeast(1.0)).prove(lost[0] == 0).verdict("lost", lost[0]);
        // As long as the rate: whoever answers more has as many waiting.
        Ok(vec![rate, row("p99", "us", &times, Reach::AtMost(1.0))])
    }
}

/// A manifest for all services, the same names as a file of hosts, and the configuration.
fn files(dir: &Path) -> Result<()> {
    let (mut manifest, mut hosts) = (String::new(), String::new());
    for i in 0..SERVICES {
        let ip = address(i);
        let _ = writeln!(
            manifest,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{ name: s{i}, namespace: default }}\n\
             spec: {{ clusterIP: {ip}, ports: [{{ name: web, port: 80 }}] }}"
        );
        let _ = writeln!(hosts, "{ip} s{i}.default.svc.cluster.local");
    }
    std::fs::create_dir(dir.join("cluster"))?;
    std::fs::write(dir.join("cluster/all.yaml"), manifest)?;
    std::fs::write(dir.join("hosts"), hosts)?;
    let config = format!(
        "node: edge-1\ninternalSwitch: {{ interface: br-int, address: 10.20.0.1/24 }}\ncluster:\n  \
         serviceSubnet: 172.28.0.0/16\n  manifests: ./cluster\n  \
         dns: {{ nodeAddresses: 10.20.0.1, upstreams: {FAR}, rateLimit: 0 }}\n"
    );
    Ok(std::fs::write(dir.join("stellwerk.yaml"), config)?)
}

/// A name server that knows an address for every name.
fn upstream(ns: &Ns) -> Result<()> {
    let socket = ns.run(|| UdpSocket::bind((FAR, 53)))??;
    std::thread::spawn(move || {
        let mut buffer = [0; 1_500];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let Ok(question) = Message::from_vec(&buffer[..len]) else { continue };
            let mut answer = Message::response(question.id, OpCode::Query);
            answer.metadata.recursion_available = true;
            answer.queries.clone_from(&question.queries);
            let names = question.queries.iter().map(|query| query.name().clone());
            let record = |name| Record::from_rdata(name, 3_600, RData::A(A::new(192, 0, 2, 80)));
            answer.answers.extend(names.map(record));
            let Ok(bytes) = answer.to_vec() else { continue };
            let _ = socket.send_to(&bytes, from);
        }
    });
    Ok(())
}
