//! Who is asked: the agent, dnsmasq, and unbound where it is installed, with the same names; and whom they ask.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use hickory_proto::op::{Message, OpCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record};
use stellwerk_tests::netns::clean::Proc;
use stellwerk_tests::netns::{Lab, Ns};

use super::super::update::binary;
use super::SERVICES;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 20, 0, 1);
pub const OURS: SocketAddr = SocketAddr::new(IpAddr::V4(ADDRESS), 53);
const DNSMASQ: SocketAddr = SocketAddr::new(IpAddr::V4(ADDRESS), 5_301);
const UNBOUND: SocketAddr = SocketAddr::new(IpAddr::V4(ADDRESS), 5_302);
/// Whom they ask for others' names.
pub const FAR: &str = "10.20.0.2";

pub struct Server {
    pub name: &'static str,
    pub at: SocketAddr,
    pub process: Proc,
}

/// Starts all of them on one core; ours is the first.
pub fn start(lab: &Lab, dev: &Ns) -> Result<Vec<Server>> {
    let dir = lab.dir();
    files(dir)?;
    let start = |name: &'static str, at: SocketAddr, words: &dyn Fn(&mut Command)| -> Result<Server> {
        let log = fs::File::create(dir.join(format!("{name}.log")))?;
        let mut command = dev.command("taskset");
        command.args(["-c", "0"]);
        words(&mut command);
        let process = Proc::start(command.stdout(log.try_clone()?).stderr(log))?;
        Ok(Server { name, at, process })
    };
    let binary = binary()?;
    let agent = |command: &mut Command| {
        command.arg(&binary).arg("run").arg("--config").arg(dir.join("stellwerk.yaml"));
        command.arg("--pin-path").arg(lab.pins());
    };
    let dnsmasq = |command: &mut Command| {
        command.args(["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file", "--user=root"]);
        command.args(["--no-resolv", "--no-hosts", "--local-ttl=5", "--cache-size=10000", "--dns-forward-max=1000"]);
        command.args(["--bind-interfaces", &format!("--listen-address={ADDRESS}")]);
        command.args([format!("--port={}", DNSMASQ.port()), format!("--server={FAR}")]);
        command.arg(format!("--addn-hosts={}", dir.join("hosts").display()));
    };
    let unbound = |command: &mut Command| {
        command.args(["unbound", "-d", "-c"]).arg(dir.join("unbound.conf"));
    };
    let mut all = vec![start("stellwerk", OURS, &agent)?, start("dnsmasq", DNSMASQ, &dnsmasq)?];
    // Its package starts one for the whole machine, so that setup doesn't install it.
    if Command::new("unbound").arg("-V").output().is_ok() {
        all.push(start("unbound", UNBOUND, &unbound)?);
    }
    Ok(all)
}

pub fn address(service: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(172, 28, 1, 0)) + service)
}

pub fn service(to: &mut String, name: &str, ip: Ipv4Addr) {
    let _ = writeln!(
        to,
        "---\napiVersion: v1\nkind: Service\nmetadata: {{ name: {name}, namespace: default }}\n\
         spec: {{ clusterIP: {ip}, ports: [{{ name: web, port: 80 }}] }}"
    );
}

/// A manifest for all services, the same names as a file of hosts and as unbound's data, and the configurations.
fn files(dir: &Path) -> Result<()> {
    let (mut manifest, mut hosts, mut data) = (String::new(), String::new(), String::new());
    for i in 0..SERVICES {
        let ip = address(i);
        service(&mut manifest, &format!("s{i}"), ip);
        let _ = writeln!(hosts, "{ip} s{i}.default.svc.cluster.local");
        let _ = writeln!(data, "  local-data: \"s{i}.default.svc.cluster.local. 5 IN A {ip}\"");
    }
    fs::create_dir(dir.join("cluster"))?;
    fs::write(dir.join("cluster/all.yaml"), manifest)?;
    fs::write(dir.join("hosts"), hosts)?;
    let unbound = format!(
        "server:\n  chroot: \"\"\n  username: \"\"\n  pidfile: \"\"\n  directory: \"{}\"\n  use-syslog: no\n  num-threads: 1\n  \
         interface: {ADDRESS}@{}\n  access-control: 10.20.0.0/24 allow\n  module-config: \"iterator\"\n  \
         msg-cache-size: 64m\n  rrset-cache-size: 64m\n  so-rcvbuf: 1m\n  \
         local-zone: \"cluster.local.\" static\n{data}\
         forward-zone:\n  name: \".\"\n  forward-addr: {FAR}\n",
        dir.display(),
        UNBOUND.port()
    );
    fs::write(dir.join("unbound.conf"), unbound)?;
    let config = format!(
        "node: edge-1\ninternalSwitch: {{ interface: br-int, address: 10.20.0.1/24 }}\ncluster:\n  \
         serviceSubnet: 172.28.0.0/16\n  manifests: ./cluster\n  \
         dns: {{ nodeAddresses: 10.20.0.1, upstreams: {FAR}, rateLimit: 0 }}\n"
    );
    Ok(fs::write(dir.join("stellwerk.yaml"), config)?)
}

/// A name server that knows an address for every name.
pub fn upstream(ns: &Ns) -> Result<()> {
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
