//! Folders of manifests and what they give: data, and the exact words of every error.

use std::collections::BTreeSet;

use super::*;
use crate::intent::EndpointState;

/// A folder of its own, removed at the end.
pub(in crate::source) struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("stellwerk-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn rules() -> Rules {
    let range = |first: &str, last: &str| ServiceRange { first: first.parse().unwrap(), last: last.parse().unwrap() };
    Rules { service_ranges: vec![range("10.9.0.1", "10.9.0.3"), range("fd00::1", "fd00::2")], draining: Duration::from_secs(30) }
}

fn at(second: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000 + second)
}

/// One line a port.
fn show(services: &[ServicePort]) -> Vec<String> {
    services
        .iter()
        .map(|s| {
            let endpoints: Vec<_> = s
                .endpoints
                .iter()
                .map(|e| {
                    let weight = if e.weight == 1 { String::new() } else { format!("*{}", e.weight) };
                    let node = e.node.as_deref().map_or(String::new(), |n| format!("@{n}"));
                    let state = match e.state {
                        EndpointState::Ready => String::new(),
                        EndpointState::Draining { until } => format!("!{}", until.duration_since(at(0)).unwrap().as_secs()),
                    };
                    format!("{}:{}{weight}{node}{state}", e.addr, e.port)
                })
                .collect();
            let addresses: Vec<_> = s.addresses.iter().map(ToString::to_string).collect();
            let node_port = s.node_port.map_or(String::new(), |p| format!(" node {p}"));
            let affinity = s.affinity.map_or(String::new(), |a| format!(" affinity {a}"));
            format!("{} {}/{} [{}]{node_port}{affinity} -> {}", s.full_name(), s.port, protocol(s.protocol), addresses.join(" "), endpoints.join(" "))
        })
        .collect()
}

/// The services of one text, or its errors; behind them its notices.
fn read(text: &str) -> Vec<String> {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let folder = Folder::new(&format!("read{}", COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)));
    folder.write("a.yaml", text);
    let mut manifests = Manifests::new(folder.0.clone(), rules());
    let path = format!("{}/", folder.0.display());
    match manifests.load(&Scope::All, at(0)) {
        Ok(update) => {
            let notices = update.notices.iter().map(|n| n.to_string().replace(&path, ""));
            show(&manifests.services()).into_iter().chain(notices).collect()
        }
        Err(e) => e.to_string().replace(&path, "").lines().map(str::to_owned).collect(),
    }
}

fn service(name: &str, spec: &str) -> String {
    format!("---\napiVersion: v1\nkind: Service\nmetadata: {{ name: {name} }}\nspec: {spec}\n")
}

fn slice(service: &str, name: &str, rest: &str) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{ name: {name}, labels: {{ kubernetes.io/service-name: {service} }} }}\n{rest}\n"
    )
}

#[test]
fn joins() {
    let two_ports = service("a", "{ clusterIP: 10.1.0.1, ports: [{ name: http, port: 80, nodePort: 30080 }, { name: dns, port: 53, protocol: UDP }] }");
    let slices = slice("a", "a-1", "addressType: IPv4\nports: [{ name: http, port: 8080 }, { name: dns, port: 53, protocol: UDP }]\nendpoints: [{ addresses: [10.2.0.1], nodeName: n1 }]")
        + &slice("a", "a-2", "addressType: IPv6\nports: [{ name: http, port: 8081 }, { name: dns, port: 53 }]\nendpoints: [{ addresses: ['fd01::1'], conditions: {} }]")
        + &slice("b", "b-1", "addressType: IPv4\nports: [{ port: 1 }]\nendpoints: [{ addresses: [10.2.0.9] }]");
    assert_eq!(
        read(&(two_ports + &slices)),
        [
            "default/a:http 80/TCP [10.1.0.1] node 30080 -> 10.2.0.1:8080@n1 [fd01::1]:8081".replace("[fd01::1]:8081", "fd01::1:8081"),
            "default/a:dns 53/UDP [10.1.0.1] -> 10.2.0.1:53@n1".into(),
        ]
    );
    let conditions = "addressType: IPv4\nports: [{ port: 80 }]\nendpoints:\n- { addresses: [10.2.0.1], conditions: { ready: true } }\n- { addresses: [10.2.0.2], conditions: { ready: false } }\n- { addresses: [10.2.0.3], conditions: { ready: false, serving: true, terminating: true } }\n- { addresses: [10.2.0.4], conditions: { serving: false, terminating: true } }\n- { addresses: [10.2.0.5], conditions: { ready: true, terminating: true } }";
    let again = slice("a", "a-2", "addressType: IPv4\nports: [{ port: 80 }]\nendpoints: [{ addresses: [10.2.0.3] }, { addresses: [10.2.0.1] }]");
    let plain = service("a", "{ clusterIP: 10.1.0.1, ports: [{ port: 80 }] }");
    assert_eq!(
        read(&(plain.clone() + &slice("a", "a-1", conditions))),
        ["default/a:80 80/TCP [10.1.0.1] -> 10.2.0.1:80 10.2.0.3:80!30 10.2.0.4:80!30 10.2.0.5:80!30"]
    );
    assert_eq!(
        read(&(plain + &slice("a", "a-1", conditions) + &again)),
        ["default/a:80 80/TCP [10.1.0.1] -> 10.2.0.1:80 10.2.0.3:80 10.2.0.4:80!30 10.2.0.5:80!30"]
    );
    assert_eq!(read(&service("none", "{ clusterIP: 10.1.0.1, ports: [{ port: 80 }] }")), ["default/none:80 80/TCP [10.1.0.1] -> "]);
}

#[test]
fn addresses() {
    let cases = [
        ("{ clusterIP: None, ports: [{ port: 1 }] }", vec![]),
        ("{ type: ExternalName, externalName: x.org }", vec![]),
        ("{ type: LoadBalancer, ports: [{ port: 1 }] }", vec!["default/a:1 1/TCP [10.9.0.1] -> "]),
        ("{ type: LoadBalancer, clusterIP: '', ipFamilies: [IPv6, IPv4], ports: [{ port: 1 }] }", vec!["default/a:1 1/TCP [fd00::1 10.9.0.1] -> "]),
        ("{ type: LoadBalancer, clusterIP: 'fd09::1', ports: [{ port: 1 }] }", vec!["default/a:1 1/TCP [fd09::1 fd00::1] -> "]),
        (
            "{ type: LoadBalancer, clusterIP: 10.1.0.1, clusterIPs: [10.1.0.1, 'fd01::1'], loadBalancerIP: 10.9.0.2, externalIPs: [198.51.100.1, 10.9.0.2], ports: [{ port: 1 }] }",
            vec!["default/a:1 1/TCP [10.1.0.1 fd01::1 10.9.0.2 198.51.100.1] -> "],
        ),
        (
            "{ clusterIP: 10.1.0.1, sessionAffinity: ClientIP, ports: [{ port: 1 }] }\nstatus: { loadBalancer: { ingress: [{ ip: 10.9.0.3 }, { hostname: x }] } }",
            vec!["default/a:1 1/TCP [10.1.0.1 10.9.0.3] affinity 10800 -> "],
        ),
        (
            "{ clusterIP: 10.1.0.1, sessionAffinity: ClientIP, sessionAffinityConfig: { clientIP: { timeoutSeconds: 60 } }, ports: [{ port: 1 }] }",
            vec!["default/a:1 1/TCP [10.1.0.1] affinity 60 -> "],
        ),
        ("{ ports: [{ port: 1 }] }", vec!["default/a:1 1/TCP [] -> ", "a.yaml:2:1: Service default/a has no address: it gives no clusterIP"]),
    ];
    for (spec, want) in cases {
        assert_eq!(read(&service("a", spec)), want, "for {spec}");
    }
    let weighted = service("a", "{ clusterIP: 10.1.0.1, ports: [{ port: 80 }] }")
        .replace("{ name: a }", "{ name: a, annotations: { stellwerk.io/weights: '10.2.0.1=3, 10.2.0.7=9' } }")
        + &slice("a", "a-1", "addressType: IPv4\nports: [{ port: 80 }]\nendpoints: [{ addresses: [10.2.0.1] }, { addresses: [10.2.0.2] }]");
    assert_eq!(read(&weighted), ["default/a:80 80/TCP [10.1.0.1] -> 10.2.0.1:80*3 10.2.0.2:80"]);
}

#[test]
fn wrong_texts() {
    let ok = "{ clusterIP: 10.1.0.1, ports: [{ port: 80 }] }";
    let sctp = service("a", "{ clusterIP: 10.1.0.1, ports: [{ port: 80, protocol: SCTP }] }");
    let target = |port: u16| slice("a", "a-1", &format!("addressType: IPv4\nports: [{{ port: {port}, protocol: SCTP }}]\nendpoints: [{{ addresses: [10.2.0.1] }}]"));
    let cases: Vec<(String, Vec<&str>)> = vec![
        ("a: [".into(), vec!["a.yaml:1:4: not YAML: unclosed bracket '['"]),
        ("a: 1".into(), vec![
            "a.yaml:1:1: kind: is missing; expected a Kubernetes object, such as a Service",
            "a.yaml:1:1: apiVersion: is missing; expected a Kubernetes API version, such as v1",
        ]),
        ("apiVersion: apps/v1\nkind: Deployment\nspec: { ports: 7 }".into(), vec![
            "a.yaml:1:1: Deployment (apps/v1) is left alone; Service (v1) and EndpointSlice (discovery.k8s.io/v1) are read",
        ]),
        (service("a", ok).replace("name: a", "namespace: x"), vec!["a.yaml:4:11: metadata.name: is missing; expected the object's name"]),
        (service("a", "{ clusterIP: 10.1.0.300, type: Cluster, ports: [{ port: 0 }] }"), vec![
            "a.yaml:5:38: spec.type: `Cluster` is not ClusterIP, NodePort, LoadBalancer or ExternalName",
        ]),
        (service("a", "{ clusterIP: 10.1.0.300, ports: [{ port: 0 }, { port: 70000, protocol: tcp }, { port: http }, { protocol: UDP }] }"), vec![
            "a.yaml:5:20: spec.clusterIP: `10.1.0.300` is not an address such as 192.168.1.1 or fd00::1",
            "a.yaml:5:48: spec.ports[0].port: `0` is too small; expected a port number from 1 to 65535",
            "a.yaml:5:61: spec.ports[1].port: `70000` is too large; expected a port number from 1 to 65535",
            "a.yaml:5:78: spec.ports[1].protocol: `tcp` is not TCP, UDP or SCTP",
            "a.yaml:5:93: spec.ports[2].port: `http` is not a port number from 1 to 65535",
            "a.yaml:5:101: spec.ports[3].port: is missing; expected a port number from 1 to 65535",
        ]),
        (service("a", "{ clusterIP: 10.1.0.1, ports: [{ port: 80 }, { port: 81 }] }"), vec![
            "a.yaml:5:52: spec.ports[1]: has no name; several ports of a service each need one of their own",
        ]),
        (service("a", "{ clusterIP: 10.1.0.1, sessionAffinity: Client, ports: [{ port: 80 }] }"), vec![
            "a.yaml:5:47: spec.sessionAffinity: `Client` is not None or ClientIP",
        ]),
        (service("a", ok).replace("{ name: a }", "{ name: a, annotations: { stellwerk.io/weights: '10.2.0.1=0' } }"), vec![
            "a.yaml:4:59: metadata.annotations.stellwerk.io/weights: `10.2.0.1=0` gives 10.2.0.1 the weight `0`; expected weights from 1 to 1000 by address, such as 10.20.0.7=3,10.20.0.8=1",
        ]),
        (service("a", ok) + &service("a", ok), vec!["a.yaml:7:1: Service default/a is given twice, also at a.yaml:2"]),
        (service("a", ok) + &service("b", ok), vec![
            "a.yaml:10:38: spec.ports[0]: default/b and default/a (a.yaml:2) both want 10.1.0.1:80/TCP; expected one of them to change",
        ]),
        (
            service("a", "{ clusterIP: 10.1.0.1, ports: [{ port: 80, nodePort: 30000 }] }") + &service("b", "{ clusterIP: 10.1.0.2, ports: [{ port: 80, nodePort: 30000 }] }"),
            vec!["a.yaml:10:38: spec.ports[0]: default/b and default/a (a.yaml:2) both want node port 30000/TCP; expected one of them to change"],
        ),
        (sctp.clone() + &target(80), vec!["default/a:80 80/SCTP [10.1.0.1] -> 10.2.0.1:80"]),
        (sctp + &target(81), vec![
            "a.yaml:11:9: ports[0]: `81` is not the SCTP port of Service default/a (80); expected the same port, since SCTP's checksum covers ports and only addresses are translated",
        ]),
        (slice("a", "x", "addressType: IPv4\nendpoints: [{ addresses: ['fd00::1'] }, { addresses: 10.0.0.1 }, { conditions: { ready: 1 } }]"), vec![
            "a.yaml:6:27: endpoints[0].addresses[0]: `fd00::1` is not an IPv4 address, as addressType says",
            "a.yaml:6:54: endpoints[1].addresses: `10.0.0.1` is not a list of one address",
            "a.yaml:6:66: endpoints[2].addresses: is missing; expected a list of one address",
        ]),
        (slice("a", "x", "addressType: IPv4") + &slice("a", "x", "addressType: IPv4"), vec!["a.yaml:7:1: EndpointSlice default/x is given twice, also at a.yaml:2"]),
        (slice("a", "x", "addressType: ipv4"), vec!["a.yaml:5:14: addressType: `ipv4` is not IPv4, IPv6 or FQDN"]),
        ("apiVersion: v1\nkind: List\nitems:\n- { apiVersion: v1, kind: Secret }\n- 7".into(), vec![
            "a.yaml:5:3: items[1].kind: is missing; expected a Kubernetes object, such as a Service",
            "a.yaml:5:3: items[1].apiVersion: is missing; expected a Kubernetes API version, such as v1",
        ]),
    ];
    for (text, want) in cases {
        assert_eq!(read(&text), want, "for\n{text}");
    }
    let missing = Manifests::new("/nowhere/x".into(), rules()).load(&Scope::All, at(0)).unwrap_err();
    assert_eq!(missing.to_string(), "/nowhere/x: there is no such folder or file");
}

fn files(paths: &[&PathBuf]) -> Scope {
    Scope::Files(paths.iter().map(|p| (*p).clone()).collect::<BTreeSet<_>>())
}

const ENDPOINT: &str = "addressType: IPv4\nports: [{ port: 80 }]\nendpoints: [{ addresses: [10.2.0.1] }]";
const LEAVING: &str = "addressType: IPv4\nports: [{ port: 80 }]\nendpoints: [{ addresses: [10.2.0.1], conditions: { ready: false, terminating: true } }]";

#[test]
fn changes() {
    let folder = Folder::new("changes");
    let a = folder.write("a.yaml", &service("a", "{ clusterIP: 10.1.0.1, ports: [{ port: 80 }] }"));
    folder.write("b.yaml", &(service("b", "{ type: LoadBalancer, ports: [{ port: 80 }] }") + &slice("b", "b-1", ENDPOINT)));
    folder.write(".c.yaml", "not: [read");
    folder.write("readme.txt", "not: [read");
    let mut manifests = Manifests::new(folder.0.clone(), rules());
    let mut list = Vec::new();
    let mut step = |manifests: &mut Manifests, scope: &Scope, second: u64| -> Result<Vec<String>, String> {
        let path = format!("{}/", folder.0.display());
        let update = manifests.load(scope, at(second)).map_err(|e| e.to_string().replace(&path, ""))?;
        let names = update.changed.keys().map(ToString::to_string).collect();
        update.apply_to(&mut list);
        assert_eq!(list, manifests.services());
        Ok(names)
    };
    assert_eq!(step(&mut manifests, &Scope::All, 0).unwrap(), ["default/a", "default/b"]);
    assert_eq!(step(&mut manifests, &Scope::All, 0).unwrap(), [""; 0]);

    // A slice in a file of its own; then it leaves, and its deadline stays.
    let slices = folder.write("a-slice.yaml", &slice("a", "a-1", ENDPOINT));
    assert_eq!(step(&mut manifests, &files(&[&slices]), 1).unwrap(), ["default/a"]);
    folder.write("a-slice.yaml", &slice("a", "a-1", LEAVING));
    assert_eq!(step(&mut manifests, &files(&[&slices]), 5).unwrap(), ["default/a"]);
    assert_eq!(step(&mut manifests, &files(&[&slices]), 9).unwrap(), [""; 0]);
    assert_eq!(show(&manifests.services())[0], "default/a:80 80/TCP [10.1.0.1] -> 10.2.0.1:80!35");

    // Back, and leaving anew: a new deadline.
    folder.write("a-slice.yaml", &slice("a", "a-1", ENDPOINT));
    step(&mut manifests, &Scope::All, 10).unwrap();
    folder.write("a-slice.yaml", &slice("a", "a-1", LEAVING));
    step(&mut manifests, &files(&[&slices]), 20).unwrap();
    assert_eq!(show(&manifests.services())[0], "default/a:80 80/TCP [10.1.0.1] -> 10.2.0.1:80!50");

    // A bad file refuses all of it, also later, until it is mended; a good one waits with it.
    let before = manifests.services();
    folder.write("a.yaml", "a: [");
    std::fs::remove_file(&slices).unwrap();
    assert_eq!(step(&mut manifests, &files(&[&a, &slices]), 21).unwrap_err(), "a.yaml:1:4: not YAML: unclosed bracket '['");
    assert_eq!(manifests.services(), before);
    let other = folder.write("d.yaml", &service("d", "{ clusterIP: 10.1.0.4, ports: [{ port: 80 }] }"));
    step(&mut manifests, &files(&[&other]), 22).unwrap_err();
    assert_eq!(manifests.services(), before);
    folder.write("a.yaml", &service("a", "{ clusterIP: 10.1.0.4, ports: [{ port: 80 }] }"));
    assert_eq!(
        step(&mut manifests, &files(&[&a]), 23).unwrap_err(),
        "d.yaml:5:38: spec.ports[0]: default/d and default/a (a.yaml:2) both want 10.1.0.4:80/TCP; expected one of them to change"
    );
    assert_eq!(manifests.services(), before);
    std::fs::remove_file(&other).unwrap();
    assert_eq!(step(&mut manifests, &files(&[&other]), 24).unwrap(), ["default/a"]);
    assert_eq!(show(&manifests.services()), ["default/a:80 80/TCP [10.1.0.4] -> ", "default/b:80 80/TCP [10.9.0.1] -> 10.2.0.1:80"]);

    // Two services change places in one load.
    folder.write("a.yaml", &service("a", "{ clusterIP: 10.1.0.5, ports: [{ port: 80 }] }"));
    let e = folder.write("e.yaml", &service("e", "{ clusterIP: 10.1.0.4, ports: [{ port: 80 }] }"));
    assert_eq!(step(&mut manifests, &files(&[&a, &e]), 25).unwrap(), ["default/a", "default/e"]);

    // Many at once.
    for i in 0..200 {
        folder.write(&format!("m{i}.yaml"), &service(&format!("m{i}"), &format!("{{ clusterIP: 10.7.0.{i}, ports: [{{ port: 80 }}] }}")));
    }
    assert_eq!(step(&mut manifests, &Scope::All, 26).unwrap().len(), 200);
    for i in 0..200 {
        std::fs::remove_file(folder.0.join(format!("m{i}.yaml"))).unwrap();
    }
    assert_eq!(step(&mut manifests, &Scope::All, 27).unwrap().len(), 200);
}

#[test]
fn addresses_stay() {
    let folder = Folder::new("stay");
    let wish = "{ type: LoadBalancer, ports: [{ port: 80 }] }";
    folder.write("m.yaml", &service("m", wish));
    let mut manifests = Manifests::new(folder.0.clone(), rules());
    manifests.load(&Scope::All, at(0)).unwrap();
    // Earlier in the alphabet, later in the world.
    folder.write("a.yaml", &service("a", wish));
    manifests.load(&Scope::All, at(1)).unwrap();
    assert_eq!(show(&manifests.services()), ["default/a:80 80/TCP [10.9.0.2] -> ", "default/m:80 80/TCP [10.9.0.1] -> "]);
    // Somebody names m's address: m moves.
    folder.write("x.yaml", &service("x", "{ type: LoadBalancer, loadBalancerIP: 10.9.0.1, ports: [{ port: 80 }] }"));
    let update = manifests.load(&Scope::All, at(2)).unwrap();
    assert_eq!(update.changed.keys().map(ToString::to_string).collect::<Vec<_>>(), ["default/m", "default/x"]);
    assert_eq!(
        show(&manifests.services()),
        ["default/a:80 80/TCP [10.9.0.2] -> ", "default/m:80 80/TCP [10.9.0.3] -> ", "default/x:80 80/TCP [10.9.0.1] -> "]
    );
    // No more: a service without an address, and a notice.
    folder.write("y.yaml", &service("y", wish));
    let update = manifests.load(&Scope::All, at(3)).unwrap();
    let y = folder.0.join("y.yaml");
    let want = format!("{}:2:1: LoadBalancer default/y gets no IPv4 address: all of 10.9.0.1-10.9.0.3 are taken", y.display());
    assert_eq!(update.notices.iter().map(ToString::to_string).collect::<Vec<_>>(), [want]);
    // One goes, the waiting one gets its address.
    std::fs::remove_file(folder.0.join("a.yaml")).unwrap();
    manifests.load(&Scope::All, at(4)).unwrap();
    assert_eq!(show(&manifests.services())[2], "default/y:80 80/TCP [10.9.0.2] -> ");
    // A new life that is told of the former one.
    let mut again = Manifests::new(folder.0.clone(), rules());
    for service in manifests.services() {
        again.remember(ServiceName { namespace: service.namespace.clone(), name: service.name.clone() }, service.addresses[0]);
    }
    again.load(&Scope::All, at(5)).unwrap();
    assert_eq!(again.services(), manifests.services());
    // Other ranges: all move.
    let range = ServiceRange { first: "10.8.0.0".parse().unwrap(), last: "10.8.0.9".parse().unwrap() };
    again.set_rules(Rules { service_ranges: vec![range], ..rules() });
    assert_eq!(again.load(&Scope::Files(BTreeSet::new()), at(6)).unwrap().changed.len(), 2);
    assert_eq!(show(&again.services())[0], "default/m:80 80/TCP [10.8.0.1] -> ");
}
