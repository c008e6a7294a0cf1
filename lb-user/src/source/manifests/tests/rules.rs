//! Kubernetes' rules for services, from objects to ports and endpoints. `docs/service-semantics.md` names these tests.

use super::*;
use crate::intent::Traffic;

const PORT: &str = "ports: [{ port: 80 }]";

/// An endpoint by line; each is `address`, and what stands behind it in its braces.
fn endpoints(service: &str, v6: bool, list: &[(&str, &str)]) -> String {
    let one = |(addr, rest): &(&str, &str)| format!("- {{ addresses: ['{addr}']{rest} }}\n");
    let family = if v6 { "IPv6" } else { "IPv4" };
    let list: String = list.iter().map(one).collect();
    slice(
        service,
        &format!("{service}-{family}"),
        &format!("addressType: {family}\nports: [{{ port: 80 }}]\nendpoints:\n{list}"),
    )
}

fn plain(spec: &str) -> String {
    service("a", &format!("{{ clusterIP: 10.1.0.1, {spec}{PORT} }}"))
}

/// What is left of `10.2.0.` behind the arrow.
fn ends(text: &str) -> String {
    let lines = read(text);
    assert_eq!(lines.len(), 1, "{lines:?}");
    lines[0].split_once("-> ").unwrap().1.replace("10.2.0.", "").replace(":80", "")
}

fn node(name: &str, zone: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Node\nmetadata: {{ name: {name}, labels: {{ topology.kubernetes.io/zone: {zone} }} }}\n"
    )
}

fn pod(name: &str, node: &str, addresses: &[&str]) -> String {
    let ips: Vec<_> = addresses.iter().map(|a| format!("{{ ip: '{a}' }}")).collect();
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{ name: {name}, labels: {{ app: a, tier: web }} }}\n\
         spec: {{ nodeName: {node}, containers: [{{ ports: [{{ name: http, containerPort: 8080 }}] }}] }}\n\
         status: {{ phase: Running, podIP: '{}', podIPs: [{}], conditions: [{{ type: Ready, status: 'True' }}] }}\n",
        addresses[0],
        ips.join(", ")
    )
}

#[test]
fn services_without_tables() {
    let labelled = |label: &str| plain("").replace("name: a", &format!("name: a, labels: {{ {label} }}"));
    for text in [
        service("a", "{ clusterIP: None, ports: [{ port: 80 }] }"),
        service("a", "{ clusterIP: None }"),
        service("a", "{ type: ExternalName, externalName: example.org }"),
        labelled("service.kubernetes.io/service-proxy-name: other"),
        labelled("service.kubernetes.io/service-proxy-name: ''"),
        labelled("service.kubernetes.io/headless: ''"),
    ] {
        assert_eq!(read(&text), [""; 0], "{text}");
    }
    assert_eq!(read(&labelled("app: x")).len(), 1);
    // Slices of others, too.
    let others = endpoints("a", false, &[("10.2.0.1", "")])
        .replace("labels: { ", "labels: { service.kubernetes.io/headless: '', ");
    assert_eq!(ends(&(plain("") + &others)), "");
}

#[test]
fn terminating_endpoints() {
    let with = |list: &[(&str, &str)]| ends(&(plain("") + &endpoints("a", false, list)));
    let (serving, gone) = (
        ", conditions: { ready: false, serving: true, terminating: true }",
        ", conditions: { ready: false, serving: false, terminating: true }",
    );
    assert_eq!(with(&[("10.2.0.1", serving), ("10.2.0.2", gone), ("10.2.0.3", "")]), "1!30 2!!30 3");
    let unknown = ", conditions: { ready: false, terminating: true }";
    assert_eq!(with(&[("10.2.0.1", unknown)]), "1!30", "who doesn't say serves");
    // One that moves between slices is as alive as the livelier says.
    let twice = plain("")
        + &endpoints("a", false, &[("10.2.0.1", gone)])
        + &endpoints("a", false, &[("10.2.0.1", serving)]).replace("a-IPv4", "a-2");
    assert_eq!(ends(&twice), "1!30");
}

#[test]
fn not_ready_addresses() {
    let list = [
        ("10.2.0.1", ", conditions: { ready: true, serving: false, terminating: true }"),
        ("10.2.0.2", ", conditions: { ready: true, serving: false }"),
    ];
    assert_eq!(ends(&(plain("publishNotReadyAddresses: true, ") + &endpoints("a", false, &list))), "1 2");
    let pods = pod("p", "n1", &["10.2.0.1"]).replace("'True'", "'False'");
    let of_pods = |more: &str| plain(&format!("selector: {{ app: a }}, {more}")) + &pods;
    assert_eq!(ends(&of_pods("")), "");
    assert_eq!(ends(&of_pods("publishNotReadyAddresses: true, ")), "1@n1");
}

/// This node is n1.
#[test]
fn traffic_distribution() {
    let zone = |zone: &str| format!(", hints: {{ forZones: [{{ name: {zone} }}] }}");
    let (east, west) = (zone("east"), zone("west"));
    let both = ", hints: { forZones: [{ name: east }], forNodes: [{ name: n1 }] }";
    let away = ", hints: { forZones: [{ name: east }], forNodes: [{ name: n2 }] }";
    let here = node("n1", "east");
    let with = |list: &[(&str, &str)], nodes: &str| ends(&(plain("") + &endpoints("a", false, list) + nodes));
    for (list, want, without_zone) in [
        (vec![("10.2.0.1", &*east), ("10.2.0.2", &*west)], "1 2~", "1 2"),
        (vec![("10.2.0.1", &*east), ("10.2.0.2", "")], "1 2", "1 2"),
        (vec![("10.2.0.1", &*west), ("10.2.0.2", &*west)], "1 2", "1 2"),
        (vec![("10.2.0.1", both), ("10.2.0.2", away)], "1 2~", "1 2~"),
        (vec![("10.2.0.1", away), ("10.2.0.2", &*west)], "1 2~", "1 2"),
    ] {
        assert_eq!(with(&list, &here), want, "{list:?}");
        assert_eq!(with(&list, ""), without_zone, "{list:?} without a zone");
    }
    // Only ready ones count, and each family for itself.
    let leaving = ", conditions: { ready: false, serving: true, terminating: true }";
    assert_eq!(with(&[("10.2.0.1", &east), ("10.2.0.2", &west), ("10.2.0.3", leaving)], &here), "1 2~ 3!30");
    let dual = plain("")
        + &endpoints("a", false, &[("10.2.0.1", &east), ("10.2.0.2", &west)])
        + &endpoints("a", true, &[("fd00::1", &west)]);
    assert_eq!(ends(&(dual + &here)), "1 2~ fd00::1");

    // Hints that the endpoint controller gives.
    let nodes = here + &node("n2", "east") + &node("n3", "west");
    let pods = pod("p1", "n1", &["10.2.0.1"]) + &pod("p2", "n2", &["10.2.0.2"]) + &pod("p3", "n3", &["10.2.0.3"]);
    for (wish, want) in [
        ("", "1@n1 2@n2 3@n3"),
        ("trafficDistribution: PreferClose, ", "1@n1 2@n2 3@n3~"),
        ("trafficDistribution: PreferSameZone, ", "1@n1 2@n2 3@n3~"),
        ("trafficDistribution: PreferSameNode, ", "1@n1 2@n2~ 3@n3~"),
    ] {
        assert_eq!(ends(&(plain(&format!("selector: {{ app: a }}, {wish}")) + &pods + &nodes)), want, "{wish}");
    }
}

#[test]
fn load_balancer_classes() {
    let with =
        |spec: &str, status: &str| read(&(service("a", &format!("{{ type: LoadBalancer, {spec}{PORT} }}")) + status));
    let address = |spec: &str, status: &str| with(spec, status)[0].split(['[', ']']).nth(1).unwrap().to_owned();
    let of_others = "loadBalancerClass: example.org/lb, clusterIP: 10.1.0.1, ";
    assert_eq!(address("", ""), "10.9.0.1");
    assert_eq!(address("loadBalancerClass: stellwerk.io/stellwerk, ", ""), "10.9.0.1");
    assert_eq!(address(of_others, ""), "10.1.0.1", "none is given");
    assert_eq!(address(&format!("loadBalancerIP: 10.9.0.2, {of_others}"), ""), "10.1.0.1");
    let status = "status: { loadBalancer: { ingress: [{ ip: 198.51.100.1 }] } }";
    assert_eq!(address(of_others, status), "10.1.0.1 198.51.100.1", "what others gave is served");
}

/// `cluster.classlessLoadBalancers`
#[test]
fn load_balancers_without_a_class() {
    let folder = Folder::new("classless");
    let balancer = |name: &str, spec: &str| service(name, &format!("{{ type: LoadBalancer, {spec}{PORT} }}"));
    let ours = "loadBalancerClass: stellwerk.io/stellwerk, ";
    folder.write(
        "a.yaml",
        &(balancer("a", "") + &balancer("b", "loadBalancerIP: 10.9.0.9, clusterIP: 10.1.0.1, ") + &balancer("c", ours)),
    );
    let mut manifests = Manifests::new(folder.0.clone(), rules());
    let mut addresses = |classless: bool| -> Vec<String> {
        manifests.set_rules(Rules { classless, ..rules() });
        manifests.load(&Scope::All, at(0)).unwrap();
        let all = manifests.services().into_iter();
        all.map(|s| s.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")).collect()
    };
    assert_eq!(addresses(true), ["10.9.0.1", "10.1.0.1 10.9.0.9", "10.9.0.2"]);
    assert_eq!(addresses(false), ["", "10.1.0.1", "10.9.0.2"]);
}

#[test]
fn session_affinity() {
    for (spec, want) in [
        ("", None),
        ("sessionAffinity: None, ", None),
        ("sessionAffinity: ClientIP, ", Some(10_800)),
        ("sessionAffinity: ClientIP, sessionAffinityConfig: { clientIP: {} }, ", Some(10_800)),
        ("sessionAffinity: ClientIP, sessionAffinityConfig: { clientIP: { timeoutSeconds: 86400 } }, ", Some(86_400)),
    ] {
        let want = want.map_or(String::new(), |seconds: u32| format!(" affinity {seconds}"));
        assert_eq!(read(&plain(spec)), [format!("default/a:80 80/TCP [10.1.0.1]{want} -> ")], "{spec}");
    }
    let config = "sessionAffinity: ClientIP, sessionAffinityConfig: { clientIP: { timeoutSeconds: 86401 } }, ";
    let wrong = read(&plain(config));
    assert_eq!(wrong.len(), 1);
    assert!(wrong[0].ends_with("`86401` is too large; expected a number of seconds from 1 to 86400"), "{wrong:?}");
}

#[test]
fn forwarding_modes() {
    let mode = |value: &str| {
        let folder = Folder::new("forwarding");
        let spec = format!("{{ clusterIP: 10.1.0.1, {PORT} }}");
        let annotated = format!("name: a, annotations: {{ stellwerk.io/forwarding-mode: {value} }}");
        folder.write("a.yaml", &service("a", &spec).replacen("name: a", &annotated, 1));
        let mut manifests = Manifests::new(folder.0.clone(), rules());
        manifests.load(&Scope::All, at(0)).unwrap();
        match manifests.refused().first() {
            Some(error) => error.to_string(),
            None => manifests.services()[0].traffic.direct.to_string(),
        }
    };
    assert_eq!([mode("dsr"), mode("snat"), mode("''")], ["true", "false", "false"]);
    let wrong = mode("direct");
    assert!(wrong.contains("forwarding-mode: `direct` is not snat or dsr"), "{wrong}");
}

#[test]
fn traffic_policies_and_source_ranges() {
    let traffic = |spec: &str| {
        let folder = Folder::new("traffic");
        folder.write("a.yaml", &service("a", &format!("{{ clusterIP: 10.1.0.1, {spec}{PORT} }}")));
        let mut manifests = Manifests::new(folder.0.clone(), rules());
        manifests.load(&Scope::All, at(0)).unwrap();
        let [port] = &manifests.services()[..] else { panic!("{spec}: no service") };
        let Traffic {
            cluster_ips,
            balancer_ips,
            announced: _,
            external_local,
            internal_local,
            sources,
            direct: _,
            health_check,
        } = &port.traffic;
        let list = |of: Vec<String>| of.join(" ");
        let addrs = |of: &[IpAddr]| list(of.iter().map(ToString::to_string).collect());
        let sources = list(sources.iter().map(ToString::to_string).collect());
        let local = [external_local, internal_local].map(|&local| if local { "Local" } else { "Cluster" }).join(" ");
        let health = health_check.map_or(String::new(), |port| format!(" health {port}"));
        format!("[{}] [{}] {local} [{sources}]{health}", addrs(cluster_ips), addrs(balancer_ips))
    };
    for (spec, want) in [
        ("", "[10.1.0.1] [] Cluster Cluster []"),
        ("externalTrafficPolicy: Cluster, internalTrafficPolicy: Local, ", "[10.1.0.1] [] Cluster Local []"),
        ("type: NodePort, externalTrafficPolicy: Local, ", "[10.1.0.1] [] Local Cluster []"),
        ("externalIPs: [198.51.100.1], ", "[10.1.0.1] [] Cluster Cluster []"),
        ("type: LoadBalancer, loadBalancerSourceRanges: [], ", "[10.1.0.1] [10.9.0.1] Cluster Cluster []"),
        (
            "type: LoadBalancer, loadBalancerIP: 10.9.0.9, loadBalancerSourceRanges: [' 10.0.0.0/8', 'fd00::/8', 0.0.0.0/0], ",
            "[10.1.0.1] [10.9.0.9] Cluster Cluster [10.0.0.0/8 fd00::/8 0.0.0.0/0]",
        ),
        (
            "type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 31000, ",
            "[10.1.0.1] [10.9.0.1] Local Cluster [] health 31000",
        ),
        ("type: LoadBalancer, healthCheckNodePort: 0, ", "[10.1.0.1] [10.9.0.1] Cluster Cluster []"),
    ] {
        assert_eq!(traffic(spec), want, "{spec}");
    }
    for (spec, want) in [
        ("externalTrafficPolicy: Here, ", "externalTrafficPolicy: `Here` is not Cluster or Local"),
        (
            "type: LoadBalancer, loadBalancerSourceRanges: [10.0.0.0/33], ",
            "loadBalancerSourceRanges[0]: `10.0.0.0/33` has a prefix longer than 32; expected a network such as 203.0.113.0/24 or 2001:db8::/32",
        ),
        (
            "loadBalancerSourceRanges: [10.0.0.0/8], ",
            "loadBalancerSourceRanges: is for Services of type LoadBalancer; expected none with the type ClusterIP",
        ),
        (
            "type: LoadBalancer, healthCheckNodePort: 31000, ",
            "healthCheckNodePort: is for load balancers whose traffic stays on the node; expected none, or type LoadBalancer with externalTrafficPolicy Local",
        ),
    ] {
        let wrong = read(&plain(spec));
        assert_eq!(wrong.len(), 1, "{spec}: {wrong:?}");
        assert!(wrong[0].ends_with(&format!(": spec.{want}")), "{spec}: {wrong:?}");
    }
    let balancer = |name: &str, more: &str| {
        let spec = "type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 31000";
        service(name, &format!("{{ {spec}, ports: [{{ name: a, port: 80{more} }}, {{ name: b, port: 81 }}] }}"))
    };
    let taken = read(&(balancer("a", "") + &balancer("b", "")));
    let want = "default/b and default/a (a.yaml:2) both want node port 31000/TCP; expected one of them to change";
    assert!(taken.len() == 1 && taken[0].ends_with(want), "{taken:?}");
    let own = read(&balancer("a", ", nodePort: 31000"));
    assert!(own[0].ends_with("both want node port 31000/TCP; expected one of them to change"), "{own:?}");
    let cleared = read(&plain("type: LoadBalancer, loadBalancerSourceRanges: [10.0.0.7/8], "));
    assert!(cleared[1].ends_with("`10.0.0.7/8` has bits behind its prefix; taken as 10.0.0.0/8"), "{cleared:?}");
}

#[test]
fn ip_modes() {
    let address = |ingress: &str| {
        let text = service("a", &format!("{{ type: LoadBalancer, clusterIP: 10.1.0.1, {PORT} }}"));
        let lines = read(&format!("{text}status: {{ loadBalancer: {{ ingress: [{ingress}] }} }}"));
        lines[0].split_once("[").map_or(lines[0].clone(), |(_, rest)| rest.split(']').next().unwrap().to_owned())
    };
    assert_eq!(address("{ ip: 10.9.0.3, ipMode: VIP }"), "10.1.0.1 10.9.0.3");
    assert_eq!(address("{ ip: 198.51.100.1, ipMode: Proxy }"), "10.1.0.1", "neither that one nor another");
    assert_eq!(address("{ ip: 198.51.100.1, ipMode: Proxy }, { ip: 10.9.0.3 }"), "10.1.0.1 10.9.0.3");
    let wrong = read(&(plain("") + "status: { loadBalancer: { ingress: [{ ip: 198.51.100.1, ipMode: NAT }] } }"));
    assert_eq!(wrong, ["a.yaml:6:65: status.loadBalancer.ingress[0].ipMode: `NAT` is not VIP or Proxy"]);
}

#[test]
fn ports_by_name_and_protocol() {
    let spec = "{ clusterIP: 10.1.0.1, selector: { app: a, tier: web }, ports: [{ name: web, port: 80, targetPort: http }, \
                { name: dns, port: 53, protocol: UDP }, { name: dns-tcp, port: 53 }, { name: none, port: 9, targetPort: ftp }] }";
    assert_eq!(
        read(&(service("a", spec) + &pod("p1", "n1", &["10.2.0.1"]))),
        [
            "default/a:web 80/TCP [10.1.0.1] -> 10.2.0.1:8080@n1",
            "default/a:dns 53/UDP [10.1.0.1] -> 10.2.0.1:53@n1",
            "default/a:dns-tcp 53/TCP [10.1.0.1] -> 10.2.0.1:53@n1",
            "default/a:none 9/TCP [10.1.0.1] -> ",
        ]
    );
    // A sidecar's port; not that of an init container that ends.
    let init = |policy: &str| {
        let init = format!("initContainers: [{{ {policy}ports: [{{ name: ftp, containerPort: 2121 }}] }}], containers");
        read(&(service("a", spec) + &pod("p1", "n1", &["10.2.0.1"]).replace("containers", &init)))[3].clone()
    };
    assert_eq!(init("restartPolicy: Always, "), "default/a:none 9/TCP [10.1.0.1] -> 10.2.0.1:2121@n1");
    assert_eq!(init(""), "default/a:none 9/TCP [10.1.0.1] -> ");
}

#[test]
fn dual_stack() {
    let pods = pod("p1", "n1", &["10.2.0.1", "fd00::1"])
        + &pod("p2", "n1", &["fd00::2", "10.2.0.2"])
        + &pod("p3", "n1", &["10.2.0.3"]);
    for (spec, want) in [
        ("clusterIP: 10.1.0.1", "10.2.0.1 10.2.0.2 10.2.0.3"),
        ("clusterIP: 10.1.0.1, ipFamilies: [IPv4]", "10.2.0.1 10.2.0.2 10.2.0.3"),
        ("clusterIP: 'fd01::1', ipFamilies: [IPv6]", "fd00::1 fd00::2"),
        ("clusterIPs: [10.1.0.1, 'fd01::1'], ipFamilies: [IPv4, IPv6]", "10.2.0.1 10.2.0.2 10.2.0.3 fd00::1 fd00::2"),
    ] {
        let lines = read(&(service("a", &format!("{{ {spec}, selector: {{ app: a }}, {PORT} }}")) + &pods));
        let got = lines[0].split_once("-> ").unwrap().1.replace(":80@n1", "");
        assert_eq!(got, want, "{spec}");
    }
}

#[test]
fn where_endpoints_come_from() {
    let wish = plain("selector: { app: a }, ");
    let legacy = "---\napiVersion: v1\nkind: Endpoints\nmetadata: { name: a }\nsubsets:\n\
                  - { ports: [{ port: 80 }], addresses: [{ ip: 10.2.0.3, nodeName: n2 }, { ip: 'fd00::3' }], notReadyAddresses: [{ ip: 10.2.0.4 }] }\n\
                  - { ports: [{ name: x, port: 80 }], addresses: [{ ip: 10.2.0.5 }] }\n";
    let pods = pod("p", "n1", &["10.2.0.2"]);
    let slices = endpoints("a", false, &[("10.2.0.1", "")]);
    assert_eq!(ends(&(wish.clone() + legacy + &pods + &slices)), "1", "slices");
    assert_eq!(ends(&(wish.clone() + legacy + &pods)), "3@n2 fd00::3", "without any, Endpoints");
    assert_eq!(ends(&(wish.clone() + &pods)), "2@n1", "without these, pods");
    assert_eq!(ends(&(plain("") + &pods)), "", "but none without a selector");
    let skipped = legacy.replace("name: a }", "name: a, labels: { endpointslice.kubernetes.io/skip-mirror: 'true' } }");
    assert_eq!(ends(&(wish.clone() + &skipped + &pods)), "2@n1");
    let lock = legacy.replace("name: a }", "name: a, annotations: { control-plane.alpha.kubernetes.io/leader: x } }");
    assert_eq!(ends(&(wish.clone() + &lock + &pods)), "2@n1");
    let elsewhere = pods.replace("name: p,", "name: p, namespace: other,");
    assert_eq!(ends(&(wish.clone() + &elsewhere)), "", "pods of other namespaces");
    for (what, with) in [("'True'", "'False'"), ("Running", "Succeeded"), ("Running", "Failed"), ("app: a", "app: b")] {
        assert_eq!(ends(&(wish.clone() + &pods.replace(what, with))), "", "{with}");
    }
    let leaving = pods.replace("name: p,", "name: p, deletionTimestamp: '2026-01-01T00:00:00Z',");
    assert_eq!(ends(&(wish.clone() + &leaving)), "2@n1!30");
    assert_eq!(ends(&(wish + &leaving.replace("'True'", "'False'"))), "2@n1!!30");
}

/// Pods and nodes in files of their own, as they come and go.
#[test]
fn pods_change() {
    let folder = Folder::new("pods");
    let mut manifests = Manifests::new(folder.0.clone(), rules());
    let mut list = Vec::new();
    let mut step = |name: &str, text: Option<&str>, second: u64| -> (String, String) {
        let path = folder.0.join(name);
        match text {
            Some(text) => std::fs::write(&path, text).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        let update = manifests.load(&Scope::Files([path].into()), at(second)).unwrap();
        let names: Vec<_> = update.changed.keys().map(|n| n.name.clone()).collect();
        update.apply_to(&mut list);
        assert_eq!(list, manifests.services());
        let said = manifests.refused().iter().map(|e| e.message.clone());
        let ends =
            show(&list).into_iter().map(|l| l.split_once("-> ").unwrap().1.replace("10.2.0.", "").replace(":80", ""));
        (names.join(" "), ends.chain(said).collect::<Vec<_>>().join("; "))
    };
    let b = service("b", "{ clusterIP: 10.1.0.2, selector: { app: b }, ports: [{ port: 80 }] }");
    let got = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    let (one, two) = (pod("p1", "n1", &["10.2.0.1"]), pod("p2", "n2", &["10.2.0.2"]));
    assert_eq!(
        step("a.yaml", Some(&plain("selector: { app: a }, trafficDistribution: PreferSameZone, ")), 0),
        got("a", "")
    );
    assert_eq!(step("b.yaml", Some(&b), 0), got("b", "; "));
    assert_eq!(step("p1.yaml", Some(&one), 1), got("a", "1@n1; "));
    assert_eq!(step("p2.yaml", Some(&two), 1), got("a", "1@n1 2@n2; "));
    // Nodes, and so zones.
    let nodes = node("n1", "east") + &node("n2", "west");
    assert_eq!(step("n.yaml", Some(&nodes), 2), got("a", "1@n1 2@n2~; "));
    assert_eq!(step("n.yaml", Some(&nodes), 2), got("", "1@n1 2@n2~; "));
    assert_eq!(step("n.yaml", Some(&node("n1", "east")), 2), got("a", "1@n1; "), "a node is gone");
    assert_eq!(step("n.yaml", None, 3), got("a", "1@n1 2@n2; "));
    // One leaves, and keeps its deadline.
    let leaving = one.replace("name: p1,", "name: p1, deletionTimestamp: '2026-01-01T00:00:00Z',");
    assert_eq!(step("p1.yaml", Some(&leaving), 5), got("a", "1@n1!35 2@n2; "));
    assert_eq!(step("p1.yaml", Some(&leaving.replace("'True'", "'False'")), 9), got("a", "1@n1!!35 2@n2; "));
    // Another label: another service's.
    assert_eq!(step("p2.yaml", Some(&two.replace("app: a", "app: b")), 10), got("a b", "1@n1!!35; 2@n2"));
    // One pod in two files is refused in the second, and its labels are not lost with it.
    let twice = got("", "1@n1!!35; 2@n2; Pod default/p2 is given twice, also at ");
    let (names, said) = step("p3.yaml", Some(&two.replace("app: a", "app: b")), 11);
    assert_eq!((names, said.starts_with(&twice.1)), (twice.0, true), "{said}");
    assert_eq!(step("p3.yaml", None, 12), got("", "1@n1!!35; 2@n2"));
    assert_eq!(step("b.yaml", Some(&b), 12), got("", "1@n1!!35; 2@n2"));
    assert_eq!(step("p1.yaml", None, 13), got("a", "; 2@n2"));
    assert_eq!(step("p2.yaml", None, 14), got("b", "; "));
}
