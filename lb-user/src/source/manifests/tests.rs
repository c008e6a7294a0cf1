//! Folders of manifests and what they give: data, and the exact words of every error.

use super::*;
use crate::intent::EndpointState;

/// A folder of its own, removed at the end.
pub(crate) struct Folder(pub PathBuf);

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
    Rules {
        node: "n1".into(),
        node_ranges: Vec::new(),
        service_ranges: vec![range("10.9.0.1", "10.9.0.3"), range("fd00::1", "fd00::2")],
        pools: Vec::new(),
        published: BTreeMap::new(),
        draining: Duration::from_secs(30),
        classless: true,
    }
}

fn at(second: u64) -> Moment {
    Moment::START + Duration::from_secs(1_000 + second)
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
                    let seconds = |until: Moment| until.since(at(0)).as_secs();
                    let state = match e.state {
                        EndpointState::Ready => String::new(),
                        EndpointState::Spare => "~".into(),
                        EndpointState::Draining { until } => format!("!{}", seconds(until)),
                        EndpointState::Ending { until } => format!("!!{}", seconds(until)),
                    };
                    format!("{}:{}{weight}{node}{state}", e.addr, e.port)
                })
                .collect();
            let addresses: Vec<_> = s.addresses.iter().map(ToString::to_string).collect();
            let node_port = s.node_port.map_or(String::new(), |p| format!(" node {p}"));
            let affinity = s.affinity.map_or(String::new(), |a| format!(" affinity {a}"));
            format!(
                "{} {}/{} [{}]{node_port}{affinity} -> {}",
                s.full_name(),
                s.port,
                s.protocol.name(),
                addresses.join(" "),
                endpoints.join(" ")
            )
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
            // Without the one that counts the refused files.
            let notices = update.notices.iter().filter(|n| n.place.is_some());
            let notices = notices.map(|n| n.to_string().replace(&path, ""));
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
    let two_ports = service(
        "a",
        "{ clusterIP: 10.1.0.1, ports: [{ name: http, port: 80, nodePort: 30080 }, { name: dns, port: 53, protocol: UDP }] }",
    );
    let slices = slice(
        "a",
        "a-1",
        "addressType: IPv4\nports: [{ name: http, port: 8080 }, { name: dns, port: 53, protocol: UDP }]\nendpoints: [{ addresses: [10.2.0.1], nodeName: n1 }]",
    ) + &slice(
        "a",
        "a-2",
        "addressType: IPv6\nports: [{ name: http, port: 8081 }, { name: dns, port: 53 }]\nendpoints: [{ addresses: ['fd01::1'], conditions: {} }]",
    ) + &slice(
        "b",
        "b-1",
        "addressType: IPv4\nports: [{ port: 1 }]\nendpoints: [{ addresses: [10.2.0.9] }]",
    );
    assert_eq!(
        read(&(two_ports + &slices)),
        [
            "default/a:http 80/TCP [10.1.0.1] node 30080 -> 10.2.0.1:8080@n1 [fd01::1]:8081"
                .replace("[fd01::1]:8081", "fd01::1:8081"),
            "default/a:dns 53/UDP [10.1.0.1] -> 10.2.0.1:53@n1".into(),
        ]
    );
    let conditions = "addressType: IPv4\nports: [{ port: 80 }]\nendpoints:\n- { addresses: [10.2.0.1], conditions: { ready: true } }\n- { addresses: [10.2.0.2], conditions: { ready: false } }\n- { addresses: [10.2.0.3], conditions: { ready: false, serving: true, terminating: true } }\n- { addresses: [10.2.0.4], conditions: { serving: false, terminating: true } }\n- { addresses: [10.2.0.5], conditions: { ready: true, terminating: true } }";
    let again = slice(
        "a",
        "a-2",
        "addressType: IPv4\nports: [{ port: 80 }]\nendpoints: [{ addresses: [10.2.0.3] }, { addresses: [10.2.0.1] }]",
    );
    let plain = service("a", "{ clusterIP: 10.1.0.1, ports: [{ port: 80 }] }");
    assert_eq!(
        read(&(plain.clone() + &slice("a", "a-1", conditions))),
        ["default/a:80 80/TCP [10.1.0.1] -> 10.2.0.1:80 10.2.0.3:80!30 10.2.0.4:80!!30 10.2.0.5:80!30"]
    );
    assert_eq!(
        read(&(plain + &slice("a", "a-1", conditions) + &again)),
        ["default/a:80 80/TCP [10.1.0.1] -> 10.2.0.1:80 10.2.0.3:80 10.2.0.4:80!!30 10.2.0.5:80!30"]
    );
    assert_eq!(
        read(&service("none", "{ clusterIP: 10.1.0.1, ports: [{ port: 80 }] }")),
        ["default/none:80 80/TCP [10.1.0.1] -> "]
    );
}

#[test]
fn addresses() {
    let cases = [
        ("{ clusterIP: None, ports: [{ port: 1 }] }", vec![]),
        ("{ type: ExternalName, externalName: x.org }", vec![]),
        ("{ type: LoadBalancer, ports: [{ port: 1 }] }", vec!["default/a:1 1/TCP [10.9.0.1] -> "]),
        (
            "{ type: LoadBalancer, clusterIP: '', ipFamilies: [IPv6, IPv4], ports: [{ port: 1 }] }",
            vec!["default/a:1 1/TCP [fd00::1 10.9.0.1] -> "],
        ),
        (
            "{ type: LoadBalancer, clusterIP: 'fd09::1', ports: [{ port: 1 }] }",
            vec!["default/a:1 1/TCP [fd09::1 fd00::1] -> "],
        ),
        (
            "{ type: LoadBalancer, clusterIP: 10.1.0.1, clusterIPs: [10.1.0.1, 'fd01::1'], loadBalancerIP: 10.9.0.2, externalIPs: [198.51.100.1, 10.9.0.2], ports: [{ port: 1 }] }",
            vec!["default/a:1 1/TCP [10.1.0.1 fd01::1 198.51.100.1 10.9.0.2] -> "],
        ),
        (
            "{ clusterIP: 10.1.0.1, sessionAffinity: ClientIP, ports: [{ port: 1 }] }\nstatus: { loadBalancer: { ingress: [{ ip: 10.9.0.3 }, { hostname: x }] } }",
            vec!["default/a:1 1/TCP [10.1.0.1 10.9.0.3] affinity 10800 -> "],
        ),
        (
            "{ clusterIP: 10.1.0.1, sessionAffinity: ClientIP, sessionAffinityConfig: { clientIP: { timeoutSeconds: 60 } }, ports: [{ port: 1 }] }",
            vec!["default/a:1 1/TCP [10.1.0.1] affinity 60 -> "],
        ),
        (
            "{ ports: [{ port: 1 }] }",
            vec!["default/a:1 1/TCP [] -> ", "a.yaml:2:1: Service default/a has no address: it gives no clusterIP"],
        ),
    ];
    for (spec, want) in cases {
        assert_eq!(read(&service("a", spec)), want, "for {spec}");
    }
    let weighted = service("a", "{ clusterIP: 10.1.0.1, ports: [{ port: 80 }] }")
        .replace("{ name: a }", "{ name: a, annotations: { stellwerk.io/weights: '10.2.0.1=3, 10.2.0.7=9' } }")
        + &slice(
            "a",
            "a-1",
            "addressType: IPv4\nports: [{ port: 80 }]\nendpoints: [{ addresses: [10.2.0.1] }, { addresses: [10.2.0.2] }]",
        );
    assert_eq!(read(&weighted), ["default/a:80 80/TCP [10.1.0.1] -> 10.2.0.1:80*3 10.2.0.2:80"]);
}

mod balancers;
mod changes;
mod rules;
mod wrong;
