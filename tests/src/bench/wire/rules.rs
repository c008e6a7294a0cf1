//! The same services in four languages: an nftables verdict map, iptables chains as kube-proxy writes
//! them, and stellwerk's own files. All lead to the one server.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use stellwerk_tests::netns::clean::Proc;
use stellwerk_tests::netns::{Lab, Ns};

use super::path::until;
use crate::bench::sockets::{IPERF, PORT};

const SERVER: &str = "10.2.0.2";

/// The address of a service.
pub fn address(service: u32) -> [u8; 4] {
    Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(172, 28, 0, 1)) + service).octets()
}

fn text(service: u32) -> Ipv4Addr {
    address(service).into()
}

/// A file of one way's.
fn file(lab: &Lab, ns: &Ns, name: &str, text: &str) -> Result<PathBuf> {
    let dir = lab.dir().join(ns.full_name());
    std::fs::create_dir_all(&dir)?;
    let path = dir.join(name);
    std::fs::write(&path, text)?;
    Ok(path)
}

fn run(ns: &Ns, program: &str, words: &[&std::ffi::OsStr]) -> Result<()> {
    let mut command = ns.command(program);
    let out = command.args(words).stdout(Stdio::piped()).stderr(Stdio::piped()).output();
    let out = out.with_context(|| format!("starting {program}"))?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "{program}: {}", said.chars().take(600).collect::<String>());
    Ok(())
}

/// One map lookup for all services, as kube-proxy's nftables mode does it.
pub fn nft(ns: &Ns, lab: &Lab, services: u32) -> Result<()> {
    let (mut chains, mut elements) = (String::new(), Vec::new());
    for i in 0..services {
        let _ = writeln!(chains, "  chain s{i} {{ meta l4proto {{ tcp, udp }} dnat to {SERVER}:{PORT}; }}");
        let _ = writeln!(chains, "  chain i{i} {{ meta l4proto tcp dnat to {SERVER}:{IPERF}; }}");
        for protocol in ["tcp", "udp"] {
            elements.push(format!("{} . {protocol} . 80 : goto s{i}", text(i)));
        }
        elements.push(format!("{} . tcp . 81 : goto i{i}", text(i)));
    }
    let rules = format!(
        "table ip lb {{\n{chains}  map services {{\n    type ipv4_addr . inet_proto . inet_service : verdict;\n    \
         elements = {{ {} }}\n  }}\n  chain pre {{\n    type nat hook prerouting priority dstnat;\n    \
         ip daddr . meta l4proto . th dport vmap @services\n  }}\n}}\n",
        elements.join(",\n")
    );
    let path = file(lab, ns, "rules.nft", &rules)?;
    run(ns, "nft", &["-f".as_ref(), path.as_os_str()])
}

/// What leaves by the server's link gets the box's address there.
pub fn masquerade(ns: &Ns, lab: &Lab) -> Result<()> {
    let rules = "table ip nat {\n  chain post {\n    type nat hook postrouting priority srcnat;\n    \
                 oifname eth1 masquerade;\n  }\n}\n";
    let path = file(lab, ns, "rules.nft", rules)?;
    run(ns, "nft", &["-f".as_ref(), path.as_os_str()])
}

/// A rule a service, one after the other; a chain a service and a chain an endpoint.
pub fn iptables(ns: &Ns, lab: &Lab, services: u32) -> Result<()> {
    let (mut chains, mut rules) = (String::new(), String::new());
    for i in 0..services {
        // Throughput is measured through one of them.
        let kinds = [('W', 80, PORT), ('I', 81, IPERF)];
        for (kind, port, target) in kinds.into_iter().filter(|(kind, ..)| *kind == 'W' || i == services / 2) {
            let _ = writeln!(chains, ":KUBE-SVC-{kind}{i} - [0:0]\n:KUBE-SEP-{kind}{i} - [0:0]");
            let _ = writeln!(
                rules,
                "-A KUBE-SERVICES -d {}/32 -p tcp -m tcp --dport {port} -j KUBE-SVC-{kind}{i}\n\
                 -A KUBE-SVC-{kind}{i} -j KUBE-SEP-{kind}{i}\n\
                 -A KUBE-SEP-{kind}{i} -p tcp -m tcp -j DNAT --to-destination {SERVER}:{target}",
                text(i)
            );
        }
    }
    let all = format!(
        "*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n{chains}-A PREROUTING -j KUBE-SERVICES\n{rules}COMMIT\n"
    );
    let path = file(lab, ns, "rules.iptables", &all)?;
    run(ns, "iptables-restore", &[path.as_os_str()])
}

/// The agent with its files. The server is inside, so that answers need no second translation, as
/// with the others.
pub fn stellwerk(ns: &Ns, lab: &Lab, services: u32, hook: &str) -> Result<Proc> {
    let config = format!(
        "node: edge-1\nports:\n  Port2: {{ interface: eth0, hook: {hook} }}\ninside: [eth1]\n\
         cluster:\n  podSubnet: 10.2.0.0/24\n  serviceSubnet: 172.28.0.0/16\n  manifests: ./cluster\n\
         capacity: {{ services: 65536, slots: 16777216 }}\n"
    );
    let mut manifests = String::new();
    for i in 0..services {
        manifest(&mut manifests, i);
    }
    let folder = lab.dir().join(ns.full_name()).join("cluster");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("all.yaml"), manifests)?;
    agent(ns, lab, &config, &if services == 1 { hook.into() } else { format!("{hook}{services}") })
}

/// The agent as a masquerade: the client is inside, with the addresses that frames come from. Inside is the
/// internal switch, or what is behind a port that has XDP.
pub fn translating(ns: &Ns, lab: &Lab, xdp: bool) -> Result<Proc> {
    let config = if xdp {
        ns.ip("link add br0 type bridge\nlink set br0 up")?;
        "node: edge-1\nports:\n  Port2: { interface: eth1, gateway: 10.2.0.2, hook: xdp }\n  \
         Port3: { interface: eth0, compute: true, hook: xdp }\n\
         internalSwitch:\n  interface: br0\n  natSubnets: [10.1.0.0/24, 10.128.0.0/24]\n"
    } else {
        "node: edge-1\nports:\n  Port2: { interface: eth1, gateway: 10.2.0.2 }\n\
         internalSwitch:\n  interface: eth0\n  address: 10.1.0.1/24\n  natSubnets: [10.128.0.0/24]\n"
    };
    agent(ns, lab, config, if xdp { "nat-xdp" } else { "nat-tc" })
}

/// The agent of a router, which has no services.
pub fn forwarding(ns: &Ns, lab: &Lab, hook: &str) -> Result<Proc> {
    let config = format!(
        "node: edge-1\nports:\n  Port2: {{ interface: eth0, hook: {hook} }}\n  Port3: {{ interface: eth1, hook: {hook} }}\n"
    );
    agent(ns, lab, &config, &format!("route-{hook}"))
}

/// Starts the agent, with pins of its own.
fn agent(ns: &Ns, lab: &Lab, config: &str, name: &str) -> Result<Proc> {
    let config = file(lab, ns, "stellwerk.yaml", config)?;
    let pins = PathBuf::from(format!("{}-{name}", lab.pins().display()));
    let log = std::fs::File::create(config.with_file_name("agent.log"))?;
    let mut command = ns.command(crate::bench::update::binary()?);
    command.arg("run").arg("--config").arg(&config).arg("--pin-path").arg(&pins);
    command.stdout(log.try_clone()?).stderr(log);
    let agent = Proc::start(&mut command)?;
    let log = || std::fs::read_to_string(config.with_file_name("agent.log")).unwrap_or_default();
    until("the agent", || log().lines().any(|line| line.starts_with("ready:"))).with_context(log)?;
    std::thread::sleep(std::time::Duration::from_millis(300));
    Ok(agent)
}

fn manifest(text: &mut String, service: u32) {
    let ip = self::text(service);
    let _ = write!(
        text,
        "---\napiVersion: v1\nkind: Service\nmetadata: {{ name: s{service}, namespace: default }}\nspec:\n  clusterIP: {ip}\n  \
         clusterIPs: [{ip}]\n  ports:\n  - {{ name: web, protocol: TCP, port: 80, targetPort: {PORT} }}\n  \
         - {{ name: udp, protocol: UDP, port: 80, targetPort: {PORT} }}\n  \
         - {{ name: iperf, protocol: TCP, port: 81, targetPort: {IPERF} }}\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: s{service}-a\n  namespace: default\n  \
         labels: {{ kubernetes.io/service-name: s{service} }}\naddressType: IPv4\nports:\n\
         - {{ name: web, protocol: TCP, port: {PORT} }}\n- {{ name: udp, protocol: UDP, port: {PORT} }}\n\
         - {{ name: iperf, protocol: TCP, port: {IPERF} }}\nendpoints:\n\
         - {{ addresses: [{SERVER}], nodeName: edge-1, conditions: {{ ready: true, serving: true, terminating: false }} }}\n"
    );
}
