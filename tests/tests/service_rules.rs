//! Kubernetes' rules for services, from objects to verdicts: manifests → plan → tables → where packets went, for
//! each family. `docs/service-semantics.md` names these tests.
//!
//! In the objects `VIP` is the service's address, `E5` to `E7` are endpoints' (`ADDRESS` is the word VIP itself).

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use lb_common::verdict::{Arrival, Hook, Verdict};
use lb_common::wire::header::{TCP, TCP_SYN, UDP};
use lb_user::intent::ServiceRange;
use lb_user::plan::{Ids, plan};
use lb_user::source::manifests::{Manifests, Rules, Scope};
use stellwerk_tests::fake::Fake;
use stellwerk_tests::runner::host::{self, Refuses};
use stellwerk_tests::sim::packet::{self, Tuple};
use stellwerk_tests::sim::world::{self, World, ip};

/// A folder of its own, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("stellwerk-rules-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The tables that objects make.
fn tables(name: &str, objects: &str, world: &mut World) -> Fake {
    let folder = Folder::new(name);
    fs::write(folder.0.join("a.yaml"), objects).unwrap();
    let range = |first: &str, last: &str| ServiceRange { first: ip(first), last: ip(last) };
    world.intent.service_ranges = vec![range("192.168.20.100", "192.168.20.120"), range("fd20::100", "fd20::120")];
    let rules = Rules {
        node: world.intent.node.clone(),
        service_ranges: world.intent.service_ranges.clone(),
        draining: Duration::from_secs(30),
        classless: true,
        ..Rules::default()
    };
    let mut manifests = Manifests::new(folder.0.clone(), rules);
    let update = manifests.load(&Scope::All, world.clock().now).unwrap();
    assert_eq!(update.notices, [], "{name}");
    world.intent.services = manifests.services();
    let mut ids = Ids::default();
    Fake::holding(&plan(&world.intent, &world.network, &mut ids, world.clock()).unwrap())
}

/// Where many clients' first packets to a port go: endpoints, or what else becomes of them.
fn went(fake: &Fake, world: &World, v4: bool, proto: u8, port: u16) -> String {
    let (src, dst) = if v4 { ("192.168.20.77", "192.168.20.100") } else { ("fd20::77", "fd20::100") };
    let now = world.clock().tick;
    let at = Arrival { hook: Hook::Ingress, ifindex: world::PORT, now, gso_size: 0, tagged: 0, own: 0 };
    let mut all = BTreeSet::new();
    for sport in 2_000..2_100 {
        let client = Tuple { proto, src: ip(src), sport, dst: ip(dst), dport: port };
        let (verdict, bytes) = host::run(fake, &at, packet::build(&client, TCP_SYN), Refuses::default());
        all.insert(match verdict {
            Verdict::Continue | Verdict::Transmit { .. } => {
                let to = packet::tuple(&bytes);
                let name = to.dst.to_string().replace(if v4 { "10.20.0." } else { "fd10::" }, "E");
                format!("{name}:{}", to.dport)
            }
            Verdict::Refuse(reason) | Verdict::Drop(reason) => reason.label().to_owned(),
            other => format!("{other:?}"),
        });
    }
    // The rate of errors is another test's.
    all.remove("icmp_rate_limited");
    all.into_iter().collect::<Vec<_>>().join(" ")
}

/// Objects, and for `PROTOCOL port` where its packets go.
fn check(name: &str, objects: &str, want: &[(&str, &str)]) {
    for v4 in [true, false] {
        let (vip, net, family) =
            if v4 { ("192.168.20.100", "10.20.0.", "IPv4") } else { ("fd20::100", "fd10::", "IPv6") };
        let mut text = objects.replace("VIP", &format!("'{vip}'")).replace("FAMILY", family).replace("ADDRESS", "VIP");
        for i in 5..8 {
            text = text.replace(&format!("E{i}"), &format!("'{net}{i}'"));
        }
        let mut world = World::new(0);
        let fake = tables(&format!("{name}-{family}"), &text, &mut world);
        for (probe, want) in want {
            let (proto, port) = probe.split_once(' ').unwrap();
            let number = if proto == "TCP" { TCP } else { UDP };
            assert_eq!(
                went(&fake, &world, v4, number, port.parse().unwrap()),
                *want,
                "{name}, {family}: {probe}\n{text}"
            );
        }
    }
}

fn service(spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{ name: a }}\nspec: {{ {spec} }}\n")
}

fn slice(ports: &str, endpoints: &str) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{ name: a-1, labels: {{ kubernetes.io/service-name: a }} }}\naddressType: FAMILY\n\
         ports: [{ports}]\nendpoints: [{endpoints}]\n"
    )
}

fn pod(name: &str, node: &str, addr: &str, ready: bool) -> String {
    let ready = if ready { "True" } else { "False" };
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{ name: {name}, labels: {{ app: a }} }}\n\
         spec: {{ nodeName: {node}, containers: [{{ ports: [{{ name: http, containerPort: 8080 }}] }}] }}\n\
         status: {{ podIPs: [{{ ip: {addr} }}], conditions: [{{ type: Ready, status: '{ready}' }}] }}\n"
    )
}

const SERVING: &str = "conditions: { ready: false, serving: true, terminating: true }";
const GONE: &str = "conditions: { ready: false, serving: false, terminating: true }";

#[test]
fn packets_to_terminating_endpoints() {
    let wish = service("clusterIP: VIP, ports: [{ port: 80 }]");
    for (name, endpoints, want) in [
        ("ready", format!("{{ addresses: [E5] }}, {{ addresses: [E6], {SERVING} }}"), "E5:8080"),
        ("serving", format!("{{ addresses: [E5], {GONE} }}, {{ addresses: [E6], {SERVING} }}"), "E6:8080"),
        ("gone", format!("{{ addresses: [E5], {GONE} }}"), "no_backend"),
        ("none", String::new(), "no_backend"),
    ] {
        check(name, &(wish.clone() + &slice("{ port: 8080 }", &endpoints)), &[("TCP 80", want)]);
    }
}

#[test]
fn packets_to_several_ports() {
    let spec = "clusterIP: VIP, selector: { app: a }, ports: [{ name: web, port: 80, targetPort: http }, \
                { name: dns, port: 53, protocol: UDP, targetPort: 5353 }, { name: tcp, port: 53, targetPort: 5354 }]";
    let pods = pod("p1", "edge-1", "E5", true) + &pod("p2", "edge-1", "E6", true) + &pod("p3", "edge-1", "E7", false);
    let want = [("TCP 80", "E5:8080 E6:8080"), ("UDP 53", "E5:5353 E6:5353"), ("TCP 53", "E5:5354 E6:5354")];
    check("ports", &(service(spec) + &pods), &want);
}

#[test]
fn packets_stay_near() {
    let node = |name: &str, zone: &str| {
        format!(
            "---\napiVersion: v1\nkind: Node\nmetadata: {{ name: {name}, labels: {{ topology.kubernetes.io/zone: {zone} }} }}\n"
        )
    };
    let nodes = node("edge-1", "east") + &node("edge-2", "east") + &node("edge-3", "west");
    let pods = |first: bool| {
        pod("p1", "edge-1", "E5", first) + &pod("p2", "edge-2", "E6", true) + &pod("p3", "edge-3", "E7", true)
    };
    for (name, wish, first, want) in [
        ("anywhere", "", true, "E5:8080 E6:8080 E7:8080"),
        ("zone", "trafficDistribution: PreferSameZone, ", true, "E5:8080 E6:8080"),
        ("close", "trafficDistribution: PreferClose, ", false, "E6:8080"),
        ("node", "trafficDistribution: PreferSameNode, ", true, "E5:8080"),
        ("no-node", "trafficDistribution: PreferSameNode, ", false, "E6:8080"),
    ] {
        let spec = format!("clusterIP: VIP, {wish}selector: {{ app: a }}, ports: [{{ port: 80, targetPort: http }}]");
        check(name, &(service(&spec) + &pods(first) + &nodes), &[("TCP 80", want)]);
    }
}

#[test]
fn packets_to_addresses_without_a_table() {
    let endpoints = slice("{ port: 8080 }", "{ addresses: [E5] }");
    let status = "status: { loadBalancer: { ingress: [{ ip: VIP, ipMode: MODE }] } }\n";
    let spec =
        "type: LoadBalancer, loadBalancerClass: example.org/x, clusterIP: '', ports: [{ port: 80, nodePort: 30080 }]";
    let with = |mode: &str| service(spec) + &status.replace("MODE", mode) + &endpoints;
    check("vip", &with("ADDRESS"), &[("TCP 80", "E5:8080")]);
    check("proxy", &with("Proxy"), &[("TCP 80", "unused_service_address")]);
    let plain = service("clusterIP: VIP, ports: [{ port: 80 }]");
    let others = plain.replace("name: a", "name: a, labels: { service.kubernetes.io/service-proxy-name: x }");
    check("others", &(others + &endpoints), &[("TCP 80", "unused_service_address")]);
    let external = service("type: ExternalName, externalName: example.org, clusterIP: VIP, ports: [{ port: 80 }]");
    check("external", &(external + &endpoints), &[("TCP 80", "unused_service_address")]);
}
