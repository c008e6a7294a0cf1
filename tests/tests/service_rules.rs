//! Kubernetes' rules for services, from objects to verdicts: manifests → plan → tables → where packets went, for
//! each family. `docs/service-semantics.md` names these tests.
//!
//! In the objects `VIP` is the service's address, `CLUSTER` a cluster IP, `EXTERNAL` an external address, `E5` to `E7`
//! are endpoints' (`ADDRESS` is the word VIP itself, `OTHER` the other family).

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use lb_common::verdict::{Arrival, Hook, Verdict};
use lb_common::wire::header::{TCP, TCP_ACK, TCP_SYN, UDP};
use lb_user::intent::ServiceRange;
use lb_user::plan::{Apply, Contents, Ids, diff, plan};
use lb_user::source::manifests::{Manifests, Rules, Scope};
use stellwerk_tests::fake::Fake;
use stellwerk_tests::runner::host::{self, Refuses};
use stellwerk_tests::sim::packet::{self, Tuple};
use stellwerk_tests::sim::world::{self, World, ip};

#[path = "service_rules/sockets.rs"]
mod sockets;

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
    Fake::holding(&contents(name, objects, world, &mut Ids::default()))
}

fn contents(name: &str, objects: &str, world: &mut World, ids: &mut Ids) -> Contents {
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
    plan(&world.intent, &world.network, ids, world.clock()).unwrap()
}

/// Addresses by name, and their families' net of endpoints.
fn named(name: &str, v4: bool) -> &'static str {
    match (name, v4) {
        ("vip", true) => "192.168.20.100",
        ("vip", false) => "fd20::100",
        ("cluster", true) => "172.28.0.9",
        ("cluster", false) => "fd28::9",
        ("external", true) => "203.0.113.9",
        ("external", false) => "2001:db8::9",
        ("node", true) => "192.168.20.1",
        ("node", false) => "fd20::1",
        ("inside", true) => "10.20.0.1",
        ("inside", false) => "fd10::1",
        (_, true) => "10.20.0.",
        (_, false) => "fd10::",
    }
}

/// Who sends: somebody elsewhere, a pod, this node.
fn sender(who: &str, v4: bool, now: u32) -> (Arrival, IpAddr) {
    let at = |hook, ifindex, own| Arrival { hook, ifindex, now, gso_size: 0, tagged: 0, own, tunneled: 0 };
    let (at, src) = match (who, v4) {
        ("pod", true) => (at(Hook::Ingress, world::SWITCH, 0), "10.20.0.77"),
        ("pod", false) => (at(Hook::Ingress, world::SWITCH, 0), "fd10::77"),
        ("node", _) => (at(Hook::Egress, world::PORT, 1), named("node", v4)),
        (_, true) => (at(Hook::Ingress, world::PORT, 0), "192.168.20.77"),
        (_, false) => (at(Hook::Ingress, world::PORT, 0), "fd20::77"),
    };
    (at, ip(src))
}

/// What becomes of a packet: the endpoint that it goes to, with `*` where that doesn't see who sends it; or what else.
fn fate(fake: &Fake, at: &Arrival, client: &Tuple, flags: u8) -> String {
    let (verdict, bytes) = host::run(fake, at, packet::build(client, flags), Refuses::default());
    match verdict {
        Verdict::Continue | Verdict::Transmit { .. } | Verdict::Reinject => {
            let to = packet::tuple(&bytes);
            let name = to.dst.to_string().replace(named("", to.dst.is_ipv4()), "E");
            let masked = if to.src == client.src { "" } else { "*" };
            format!("{name}:{}{masked}", to.dport)
        }
        // By whether that is an answer of the same protocol.
        Verdict::Refuse(reason) if packet::tuple(&bytes) == client.reversed() => format!("reset, {}", reason.label()),
        Verdict::Refuse(reason) | Verdict::Drop(reason) => reason.label().to_owned(),
        other => format!("{other:?}"),
    }
}

/// Where many clients' first packets go: for `[pod|node] PROTOCOL [vip|cluster|external|node] PORT`.
fn went(fake: &Fake, world: &World, v4: bool, probe: &str) -> String {
    let words: Vec<&str> = probe.split(' ').collect();
    let (who, words) = if matches!(words[0], "pod" | "node") { (words[0], &words[1..]) } else { ("", &words[..]) };
    let proto = if words[0] == "TCP" { TCP } else { UDP };
    let to = if words.len() == 3 { words[1] } else { "vip" };
    let (at, src) = sender(who, v4, world.clock().tick);
    let (dst, dport) = (ip(named(to, v4)), words[words.len() - 1].parse().unwrap());
    let all = (2_000..2_100).map(|sport| fate(fake, &at, &Tuple { proto, src, sport, dst, dport }, TCP_SYN));
    let mut all: BTreeSet<String> = all.collect();
    // The rate of errors is another test's.
    all.remove("icmp_rate_limited");
    all.into_iter().collect::<Vec<_>>().join(" ")
}

/// Objects for a family.
fn of_family(objects: &str, v4: bool) -> String {
    let mut text = objects.to_owned();
    for (word, name) in [("VIP", "vip"), ("CLUSTER", "cluster"), ("EXTERNAL", "external")] {
        text = text.replace(word, &format!("'{}'", named(name, v4)));
    }
    let (family, other) = if v4 { ("IPv4", "fd99::/16") } else { ("IPv6", "10.0.0.0/8") };
    let (here, away, any) =
        if v4 { ("192.168.20.64/26", "10.9.0.0/16", "0.0.0.0/0") } else { ("fd20::70/124", "fd99::/16", "::/0") };
    for (word, value) in [("FAMILY", family), ("OTHER", other), ("NEAR", here), ("FAR", away), ("ANYBODY", any)] {
        text = text.replace(word, value);
    }
    for i in 5..8 {
        text = text.replace(&format!("E{i}"), &format!("'{}{i}'", named("", v4)));
    }
    text.replace("ADDRESS", "VIP")
}

/// Objects, and where packets go.
fn check(name: &str, objects: &str, want: &[(&str, &str)]) {
    check_in(name, objects, want, |_| {});
}

/// In a world that is a little different.
fn check_in(name: &str, objects: &str, want: &[(&str, &str)], change: impl Fn(&mut World)) {
    for v4 in [true, false] {
        let text = of_family(objects, v4);
        let mut world = World::new(0);
        change(&mut world);
        let fake = tables(&format!("{name}-{v4}"), &text, &mut world);
        for (probe, want) in want {
            assert_eq!(went(&fake.clone(), &world, v4, probe), *want, "{name}, IPv4 {v4}: {probe}\n{text}\n{fake}");
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
    let wish = service("externalIPs: [VIP], ports: [{ port: 80 }]");
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
    let spec = "externalIPs: [VIP], selector: { app: a }, ports: [{ name: web, port: 80, targetPort: http }, \
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
        let spec =
            format!("externalIPs: [VIP], {wish}selector: {{ app: a }}, ports: [{{ port: 80, targetPort: http }}]");
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
    let plain = service("externalIPs: [VIP], ports: [{ port: 80 }]");
    let others = plain.replace("name: a", "name: a, labels: { service.kubernetes.io/service-proxy-name: x }");
    check("others", &(others + &endpoints), &[("TCP 80", "unused_service_address")]);
    let external = service("type: ExternalName, externalName: example.org, clusterIP: VIP, ports: [{ port: 80 }]");
    check("external", &(external + &endpoints), &[("TCP 80", "unused_service_address")]);
}

/// A load balancer that is reached in every way.
fn balancer(more: &str) -> String {
    let spec =
        "type: LoadBalancer, clusterIP: CLUSTER, externalIPs: [EXTERNAL], ports: [{ port: 80, nodePort: 30080 }]";
    service(&format!("{spec}{more}")) + "status: { loadBalancer: { ingress: [{ ip: VIP }] } }\n"
}

/// Endpoints, each `name@node` with `-` behind it where it terminates and serves; without a node where none is said.
fn on_nodes(endpoints: &str) -> String {
    let endpoint = |text: &str| {
        let (text, state) = text.strip_suffix('-').map_or((text, String::new()), |text| (text, format!(", {SERVING}")));
        let (addr, node) = text.split_once('@').unwrap_or((text, ""));
        let node = if node.is_empty() { String::new() } else { format!(", nodeName: {node}") };
        format!("{{ addresses: [{addr}]{node}{state} }}")
    };
    let all: Vec<String> = endpoints.split_whitespace().map(endpoint).collect();
    slice("{ port: 8080 }", &all.join(", "))
}

#[test]
fn packets_of_external_policy_local() {
    let local = ", externalTrafficPolicy: Local";
    let (both, pods) = ("E5:8080 E6:8080", "E5:8080* E6:8080*");
    for (name, policy, endpoints, want) in [
        ("cluster", "", "E5@edge-1 E6@edge-2", [both, both, both, pods, pods, both]),
        ("local", local, "E5@edge-1 E6@edge-2", ["E5:8080", "E5:8080", "E5:8080", pods, pods, both]),
        ("no-node", local, "E5 E6@edge-2", ["E5:8080", "E5:8080", "E5:8080", pods, pods, both]),
        (
            "elsewhere",
            local,
            "E6@edge-2",
            ["no_local_backend", "no_local_backend", "no_local_backend", "E6:8080*", "E6:8080*", "E6:8080"],
        ),
        ("none", local, "", ["no_backend"; 6]),
    ] {
        let probes =
            ["TCP vip 80", "TCP node 30080", "TCP external 80", "TCP cluster 80", "pod TCP vip 80", "node TCP vip 80"];
        let want: Vec<_> = probes.into_iter().zip(want).collect();
        check(&format!("external-{name}"), &(balancer(policy) + &on_nodes(endpoints)), &want);
    }
}

#[test]
fn packets_of_internal_policy_local() {
    let local = ", internalTrafficPolicy: Local";
    for (name, endpoints, pod, node, elsewhere) in [
        ("local", "E5@edge-1 E6@edge-2", "E5:8080*", "E5:8080", "E5:8080 E6:8080"),
        ("elsewhere", "E6@edge-2", "no_local_backend", "no_local_backend", "E6:8080"),
        ("none", "", "no_backend", "no_backend", "no_backend"),
    ] {
        let want = [
            ("pod TCP cluster 80", pod),
            ("node TCP cluster 80", node),
            ("TCP vip 80", elsewhere),
            ("TCP node 30080", elsewhere),
        ];
        check(&format!("internal-{name}"), &(balancer(local) + &on_nodes(endpoints)), &want);
    }
}

/// KEP-1669: among endpoints on this node as among all, each for itself.
#[test]
fn packets_to_terminating_local_endpoints() {
    for (name, endpoints, here, all) in [
        ("last", "E5@edge-1- E6@edge-2", "E5:8080", "E6:8080*"),
        ("not-last", "E5@edge-1- E6@edge-2 E7@edge-1", "E7:8080", "E6:8080* E7:8080*"),
        ("all", "E5@edge-1- E6@edge-2-", "E5:8080", "E5:8080* E6:8080*"),
        ("elsewhere", "E6@edge-2-", "no_local_backend", "E6:8080*"),
    ] {
        let objects = balancer(", externalTrafficPolicy: Local") + &on_nodes(endpoints);
        check(&format!("leaving-{name}"), &objects, &[("TCP vip 80", here), ("TCP cluster 80", all)]);
    }
}

/// Hints say who is near among all; the policy Local doesn't ask.
#[test]
fn packets_stay_local_whatever_is_near() {
    let hint = |addr: &str, node: &str, zone: &str| {
        format!("{{ addresses: [{addr}], nodeName: {node}, hints: {{ forNodes: [{{ name: {zone} }}] }} }}")
    };
    let endpoints = [hint("E5", "edge-1", "edge-2"), hint("E6", "edge-2", "edge-1")].join(", ");
    let objects = balancer(", externalTrafficPolicy: Local") + &slice("{ port: 8080 }", &endpoints);
    check("local-hints", &objects, &[("TCP vip 80", "E5:8080"), ("pod TCP vip 80", "E6:8080*")]);
}

#[test]
fn packets_from_source_ranges() {
    let barred = "source_not_allowed";
    for (name, ranges, vip, pod) in [
        ("near", "NEAR", "E5:8080", barred),
        ("far", "FAR", barred, barred),
        ("two", "FAR, NEAR", "E5:8080", barred),
        ("anybody", "ANYBODY", "E5:8080", "E5:8080*"),
        ("other-family", "'OTHER'", "E5:8080", "E5:8080*"),
    ] {
        let ranges =
            ranges.split(", ").map(|net| format!("'{}'", net.trim_matches('\''))).collect::<Vec<_>>().join(", ");
        let objects = balancer(&format!(", loadBalancerSourceRanges: [{ranges}]")) + &on_nodes("E5@edge-1");
        // On the load balancer's addresses alone.
        let others =
            [("TCP external 80", "E5:8080"), ("TCP node 30080", "E5:8080"), ("pod TCP cluster 80", "E5:8080*")];
        let want = [[("TCP vip 80", vip), ("pod TCP vip 80", pod)].as_slice(), &others].concat();
        check(&format!("sources-{name}"), &objects, &want);
    }
}

#[test]
fn packets_to_cluster_ips_from_who_is_no_pod() {
    let objects =
        service("clusterIP: CLUSTER, externalIPs: [EXTERNAL], ports: [{ port: 80 }]") + &on_nodes("E5@edge-1");
    let want = [("TCP cluster 80", "E5:8080*"), ("node TCP cluster 80", "E5:8080"), ("TCP external 80", "E5:8080")];
    check("no-pod", &objects, &want);
    // A pod of another node comes by a port, and is none the less a pod.
    let lan = ["192.168.20.0/24", "fd20::/64"].map(|net| net.parse().unwrap());
    check_in("pods", &objects, &[("TCP cluster 80", "E5:8080")], |world| world.intent.pod_subnets = lan.to_vec());
}

#[test]
fn packets_to_node_ports_by_network() {
    let objects = service("type: NodePort, ports: [{ port: 80, nodePort: 30080 }]") + &on_nodes("E5@edge-1");
    let of = |nets: &[&str]| nets.iter().map(|net| net.parse().unwrap()).collect::<Vec<_>>();
    for (name, nets, port, inside) in [
        ("all", of(&[]), "E5:8080", "E5:8080*"),
        ("port", of(&["192.168.20.0/24", "fd20::/64"]), "E5:8080", "Pass"),
        ("inside", of(&["10.20.0.0/16", "fd10::/64"]), "Pass", "E5:8080*"),
        ("whole", of(&["0.0.0.0/0", "::/0"]), "E5:8080", "E5:8080*"),
    ] {
        let want = [("TCP node 30080", port), ("pod TCP inside 30080", inside)];
        check_in(&format!("node-ports-{name}"), &objects, &want, |world| {
            world.intent.node_port_addresses = nets.clone();
        });
    }
}

/// Changes of objects while connections are open: what a connection's next packet meets, once its endpoint is gone.
#[test]
fn connections_of_endpoints_that_are_gone() {
    let spec = "externalIPs: [VIP], ports: [{ name: web, port: 80 }, { name: dns, port: 53, protocol: UDP }]";
    let endpoints = |list: &str| {
        let list: Vec<String> = list.split_whitespace().map(|addr| format!("{{ addresses: [{addr}] }}")).collect();
        service(spec) + &slice("{ name: web, port: 8080 }, { name: dns, port: 5353, protocol: UDP }", &list.join(", "))
    };
    for v4 in [true, false] {
        let mut world = World::new(0);
        let mut ids = Ids::default();
        let mut before = contents("gone", &of_family(&endpoints("E5"), v4), &mut world, &mut ids);
        let mut fake = Fake::holding(&before);
        let (at, src) = sender("", v4, world.clock().tick);
        let client = |proto, dport| Tuple { proto, src, sport: 2_000, dst: ip(named("vip", v4)), dport };
        let (web, dns) = (client(TCP, 80), client(UDP, 53));
        assert_eq!(fate(&fake, &at, &web, TCP_SYN), "E5:8080");
        assert_eq!(fate(&fake, &at, &dns, 0), "E5:5353");
        assert_eq!(fake.flow_lines().len(), 4);
        for (list, web_goes, dns_goes, left) in [
            // Another endpoint gets what comes next: it answers a segment that it knows nothing of by a reset.
            ("E6", "E6:8080", "E6:5353", 4),
            // Nobody is left.
            ("", "reset, no_backend", "no_backend", 0),
        ] {
            let after = contents("gone", &of_family(&endpoints(list), v4), &mut world, &mut ids);
            for op in diff(&before, &after) {
                fake.apply(&op).unwrap();
            }
            ids.applied();
            before = after;
            // They have ended, and not only when a packet comes.
            assert_eq!(fake.flow_lines(), Vec::<String>::new(), "{list}");
            assert_eq!(fate(&fake, &at, &web, TCP_ACK), web_goes, "{list}");
            assert_eq!(fate(&fake, &at, &dns, 0), dns_goes, "{list}");
            assert_eq!(fake.flow_lines().len(), left, "{list}");
        }
    }
}
