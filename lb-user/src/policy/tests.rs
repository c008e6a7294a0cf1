//! What policies allow: each row is a question to what they were compiled to, as packets ask it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use lb_common::wire::header::{SCTP, TCP, UDP};

use super::*;
use crate::config::parse_yaml;
use crate::source::manifests::{Manifests, Rules, Scope};

const PODS: &str = r#"
kind: Namespace
apiVersion: v1
metadata: { name: a }
---
kind: Namespace
apiVersion: v1
metadata: { name: b, labels: { team: blue } }
---
kind: Pod
apiVersion: v1
metadata: { name: web, namespace: a, labels: { app: web, tier: front } }
spec: { containers: [{ name: c, ports: [{ name: http, containerPort: 8080 }, { name: dns, containerPort: 53, protocol: UDP }] }] }
status: { podIPs: [{ ip: 10.0.0.1 }, { ip: "fd00::1" }] }
---
kind: Pod
apiVersion: v1
metadata: { name: db, namespace: a, labels: { app: db } }
spec: { containers: [{ name: c, ports: [{ name: http, containerPort: 9090 }] }] }
status: { podIPs: [{ ip: 10.0.0.2 }, { ip: "fd00::2" }] }
---
kind: Pod
apiVersion: v1
metadata: { name: web, namespace: b, labels: { app: web } }
spec: { containers: [{ name: c, ports: [{ name: http, containerPort: 7070 }] }] }
status: { podIPs: [{ ip: 10.0.0.3 }, { ip: "fd00::3" }] }
---
kind: Pod
apiVersion: v1
metadata: { name: host, namespace: a, labels: { app: db } }
spec: { hostNetwork: true }
status: { podIP: 10.0.0.4 }
---
kind: Pod
apiVersion: v1
metadata: { name: done, namespace: a, labels: { app: db } }
status: { phase: Succeeded, podIP: 10.0.0.5 }
"#;

fn folder(name: &str) -> std::path::PathBuf {
    let folder = std::env::temp_dir().join(format!("stellwerk-policy-{}-{name}", std::process::id()));
    _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir(&folder).unwrap();
    folder
}

/// The cluster of [`PODS`] with these policies, each given by its spec, in namespace `a`.
fn cluster(name: &str, specs: &[&str]) -> Arc<Cluster> {
    let mut text = PODS.to_owned();
    for (i, spec) in specs.iter().enumerate() {
        text += &format!(
            "---\nkind: NetworkPolicy\napiVersion: networking.k8s.io/v1\nmetadata: {{ name: p{i}, namespace: a }}\nspec: {spec}\n"
        );
    }
    assert!(parse_yaml(&"a.yaml".into(), &text).is_ok());
    let folder = folder(name);
    std::fs::write(folder.join("a.yaml"), text).unwrap();
    let mut manifests = Manifests::new(folder.clone(), Rules::default());
    let update = manifests.load(&Scope::All, crate::moment::Moment::now()).unwrap();
    std::fs::remove_dir_all(folder).unwrap();
    assert_eq!(update.notices.iter().map(ToString::to_string).collect::<Vec<_>>(), Vec::<String>::new());
    manifests.cluster().clone()
}

fn lease(namespace: &str, name: &str, addr: &str) -> LeasedPod {
    let addresses = vec![addr.parse().unwrap()];
    LeasedPod {
        interface: format!("stpod-{namespace}-{name}"),
        namespace: namespace.into(),
        name: name.into(),
        addresses,
    }
}

/// What packets ask: the longest prefixes' bits.
fn allows(compiled: &Compiled, number: u32, peer: &str, proto: u8, port: u16) -> bool {
    if number == 0 {
        return true;
    }
    let addr: IpAddr = peer.parse().unwrap();
    let allowed = &compiled.allowed[&number];
    let peers = allowed.peers.iter().filter(|(net, _)| net.contains(&addr)).max_by_key(|(net, _)| net.prefix_len());
    let asked = |p: &&PortPrefix| {
        p.proto.is_none() || (p.proto == Some(proto) && u32::from(p.port ^ port) >> (16 - u32::from(p.len)) == 0)
    };
    let longest = |p: &PortPrefix| p.proto.map_or(0, |_| u32::from(p.len) + 1);
    let ports = allowed.ports.keys().filter(asked).max_by_key(|p| longest(p)).map(|p| allowed.ports[p]);
    peers.map_or(0, |(_, bits)| *bits) & ports.unwrap_or_default() != 0
}

type Question<'a> = (&'a str, u8, u16, bool);

/// Asks about the pod `a/web`; `to`: what comes to it, else what leaves it.
fn ask(name: &str, specs: &[&str], to: bool, questions: &[Question<'_>]) {
    let cluster = cluster(name, specs);
    let compiled = compile(&cluster, &[lease("a", "web", "10.0.0.1")]);
    let number = compiled.pods[0][usize::from(!to)];
    for (peer, proto, port, yes) in questions {
        assert_eq!(allows(&compiled, number, peer, *proto, *port), *yes, "{name}: {peer} {proto}/{port}: {compiled:?}");
    }
}

const EVERYBODY: [Question<'static>; 2] = [("192.0.2.1", TCP, 80, true), ("2001:db8::1", UDP, 80, true)];
const NOBODY: [Question<'static>; 2] = [("10.0.0.2", TCP, 80, false), ("2001:db8::1", UDP, 80, false)];

#[test]
fn who_is_selected_in_which_direction() {
    ask("none", &[], true, &EVERYBODY);
    ask("other", &["{ podSelector: { matchLabels: { app: db } } }"], true, &EVERYBODY);
    // An empty selector selects all; policyTypes default to Ingress, and to Egress where there are such rules.
    ask("all", &["{ podSelector: {} }"], true, &NOBODY);
    ask("all-out", &["{ podSelector: {} }"], false, &EVERYBODY);
    ask("out", &["{ podSelector: {}, egress: [{ to: [{ ipBlock: { cidr: 192.0.2.0/24 } }] }] }"], true, &NOBODY);
    let out = "{ podSelector: {}, egress: [{ to: [{ ipBlock: { cidr: 192.0.2.0/24 } }] }] }";
    ask("out-out", &[out], false, &[("192.0.2.9", TCP, 1, true), ("192.0.3.9", TCP, 1, false)]);
    ask("types", &["{ podSelector: {}, policyTypes: [Egress] }"], false, &NOBODY);
    ask("types-in", &["{ podSelector: {}, policyTypes: [Egress] }"], true, &EVERYBODY);
    ask("empty-rule", &["{ podSelector: {}, ingress: [{}] }"], true, &EVERYBODY);
}

#[test]
fn expressions() {
    let web = |expression: &str| format!("{{ podSelector: {{ matchExpressions: [{{ {expression} }}] }} }}");
    for (name, expression, selected) in [
        ("in", "key: app, operator: In, values: [db, web]", true),
        ("not-in", "key: app, operator: In, values: [db]", false),
        ("notin", "key: app, operator: NotIn, values: [db]", true),
        ("notin-none", "key: nothing, operator: NotIn, values: [db]", true),
        ("notin-it", "key: app, operator: NotIn, values: [web]", false),
        ("exists", "key: tier, operator: Exists", true),
        ("exists-not", "key: nothing, operator: Exists", false),
        ("without", "key: nothing, operator: DoesNotExist", true),
        ("without-it", "key: tier, operator: DoesNotExist", false),
    ] {
        ask(name, &[&web(expression)], true, if selected { &NOBODY } else { &EVERYBODY });
    }
}

#[test]
fn peers() {
    let from = |peers: &str| format!("{{ podSelector: {{}}, ingress: [{{ from: [{peers}] }}] }}");
    let near = [("10.0.0.2", TCP, 1, true), ("fd00::2", UDP, 9, true), ("10.0.0.3", TCP, 1, false)];
    ask("pods", &[&from("{ podSelector: { matchLabels: { app: db } } }")], true, &near);
    // Neither who has the node's address nor who has ended is anybody's peer.
    let others = [("10.0.0.4", TCP, 1, false), ("10.0.0.5", TCP, 1, false)];
    ask("others", &[&from("{ podSelector: { matchLabels: { app: db } } }")], true, &others);
    let blue = [("10.0.0.3", TCP, 1, true), ("10.0.0.2", TCP, 1, false), ("10.0.0.1", TCP, 1, false)];
    ask("blue", &[&from("{ namespaceSelector: { matchLabels: { team: blue } } }")], true, &blue);
    let b = "{ namespaceSelector: { matchLabels: { kubernetes.io/metadata.name: b } } }";
    ask("name", &[&from(b)], true, &blue);
    let all = [("10.0.0.3", TCP, 1, true), ("10.0.0.2", TCP, 1, true), ("192.0.2.1", TCP, 1, false)];
    ask("every", &[&from("{ namespaceSelector: {} }")], true, &all);
    let both = "{ namespaceSelector: {}, podSelector: { matchLabels: { app: web } } }";
    ask("both", &[&from(both)], true, &[("10.0.0.3", TCP, 1, true), ("10.0.0.2", TCP, 1, false)]);
}

#[test]
fn blocks() {
    let block = "{ ipBlock: { cidr: 10.1.0.0/16, except: [10.1.2.0/24, 10.1.3.0/24] } }";
    let within = "{ ipBlock: { cidr: 10.1.2.128/25 } }";
    let rule = format!("{{ podSelector: {{}}, ingress: [{{ from: [{block}, {within}] }}] }}");
    let questions = [
        ("10.1.1.1", TCP, 1, true),
        ("10.1.2.1", TCP, 1, false),
        ("10.1.2.129", TCP, 1, true),
        ("10.1.3.1", TCP, 1, false),
        ("10.2.0.1", TCP, 1, false),
    ];
    ask("blocks", &[&rule], true, &questions);
    // What one policy leaves out another may allow, with its own ports.
    let other = "{ podSelector: {}, ingress: [{ from: [{ ipBlock: { cidr: 10.1.0.0/16 } }], ports: [{ port: 80 }] }] }";
    let questions = [("10.1.3.1", TCP, 80, true), ("10.1.3.1", TCP, 81, false), ("10.1.1.1", TCP, 81, true)];
    ask("blocks-two", &[&rule, other], true, &questions);
}

#[test]
fn ports() {
    let rule = |ports: &str| format!("{{ podSelector: {{}}, ingress: [{{ ports: [{ports}] }}] }}");
    let questions = [
        ("192.0.2.1", TCP, 80, true),
        ("192.0.2.1", UDP, 80, false),
        ("192.0.2.1", TCP, 999, false),
        ("192.0.2.1", TCP, 1000, true),
        ("2001:db8::1", TCP, 2001, true),
        ("192.0.2.1", TCP, 2002, false),
        ("192.0.2.1", SCTP, 5, true),
        ("192.0.2.1", UDP, 5, false),
        ("192.0.2.1", 1, 0, false),
    ];
    ask("ports", &[&rule("{ port: 80 }, { port: 1000, endPort: 2001 }, { protocol: SCTP }")], true, &questions);
    // By name: the port of who is connected to.
    let named = [("192.0.2.1", TCP, 8080, true), ("192.0.2.1", TCP, 9090, false), ("192.0.2.1", UDP, 53, true)];
    ask("named", &[&rule("{ port: http }, { port: dns, protocol: UDP }")], true, &named);
    ask("named-other", &[&rule("{ port: dns }")], true, &[("192.0.2.1", TCP, 53, false)]);
    let out = "{ podSelector: {}, egress: [{ to: [{ namespaceSelector: {} }], ports: [{ port: http }] }] }";
    let named = [
        ("10.0.0.2", TCP, 9090, true),
        ("10.0.0.2", TCP, 7070, false),
        ("10.0.0.3", TCP, 7070, true),
        ("10.0.0.3", TCP, 9090, false),
    ];
    ask("named-out", &[out], false, &named);
    let anywhere = "{ podSelector: {}, egress: [{ ports: [{ port: http }, { port: 443 }] }] }";
    let named = [("10.0.0.2", TCP, 9090, true), ("192.0.2.1", TCP, 9090, false), ("192.0.2.1", TCP, 443, true)];
    ask("named-anywhere", &[anywhere], false, &named);
}

#[test]
fn every_port_of_every_range() {
    for (first, last) in [(1, 65_535), (0, 65_535), (80, 80), (1_000, 2_001), (65_535, 65_535), (1, 32_768)] {
        let entry = Entry {
            net: "0.0.0.0/0".parse().unwrap(),
            except: &[],
            ports: [Range { proto: Some(TCP), first, last }].into(),
        };
        let compiled = Compiled { allowed: [(1, Allowed::new(&[entry]).unwrap())].into(), ..Compiled::default() };
        for port in 0..=u16::MAX {
            let is = allows(&compiled, 1, "192.0.2.1", TCP, port);
            assert_eq!(is, (first..=last).contains(&port), "{port} of {first} to {last}");
        }
    }
}

#[test]
fn the_same_has_the_same_number() {
    let specs =
        ["{ podSelector: {}, ingress: [{ from: [{ podSelector: {} }], ports: [{ port: 80 }, { port: 90 }] }] }"];
    let other = [
        "{ podSelector: {}, ingress: [{ from: [{ podSelector: {} }], ports: [{ port: 90 }] }, { from: [{ podSelector: {} }], ports: [{ port: 80 }] }] }",
    ];
    let leases = [lease("a", "web", "10.0.0.1"), lease("a", "db", "10.0.0.2"), lease("b", "web", "10.0.0.3")];
    let one = compile(&cluster("same", &specs), &leases);
    assert_eq!(one.pods[0], one.pods[1]);
    assert_eq!(one.pods[2], [0, 0]);
    assert_eq!(one, compile(&cluster("same", &specs), &leases));
    let other = compile(&cluster("same", &other), &leases);
    assert_ne!(one.pods[0], other.pods[0]);
}

#[test]
fn a_pod_that_is_not_known_yet_is_shut() {
    let specs = [
        "{ podSelector: { matchLabels: { app: web } }, ingress: [{}] }",
        "{ podSelector: {}, ingress: [{ ports: [{ port: 22 }] }] }",
    ];
    let compiled =
        compile(&cluster("unknown", &specs), &[lease("a", "new", "10.0.0.9"), lease("c", "new", "10.0.0.8")]);
    let [number, egress] = compiled.pods[0];
    assert!(number != 0 && egress == 0);
    assert!(allows(&compiled, number, "192.0.2.1", TCP, 22));
    assert!(!allows(&compiled, number, "192.0.2.1", TCP, 80));
    assert_eq!(compiled.pods[1], [0, 0], "its namespace has no policies");
}

#[test]
fn a_pod_is_a_peer_by_its_lease_before_its_status_says_so() {
    let specs = ["{ podSelector: {}, ingress: [{ from: [{ podSelector: { matchLabels: { app: db } } }] }] }"];
    let compiled = compile(&cluster("lease", &specs), &[lease("a", "web", "10.0.0.1"), lease("a", "db", "10.0.0.77")]);
    let [number, _] = compiled.pods[0];
    assert!(allows(&compiled, number, "10.0.0.77", TCP, 1) && allows(&compiled, number, "10.0.0.2", TCP, 1));
}

#[test]
fn what_does_not_fit_allows_nothing_and_says_so() {
    let rules = |count: u16| {
        let all: Vec<String> = (1..=count).map(|port| format!("{{ ports: [{{ port: {port} }}] }}")).collect();
        format!("{{ podSelector: {{}}, ingress: [{}] }}", all.join(", "))
    };
    let leases = [lease("a", "web", "10.0.0.1")];
    let fits = compile(&cluster("fits", &[&rules(64)]), &leases);
    assert_eq!(fits.troubles.len(), 0);
    assert!((1..=64).all(|port| allows(&fits, fits.pods[0][0], "192.0.2.1", TCP, port)));
    let full = compile(&cluster("full", &[&rules(65)]), &leases);
    let said: Vec<&String> = full.troubles.iter().collect();
    let wanted = "NetworkPolicy a/p0: more than 64 different sets of ports in a direction of a pod; nothing is allowed to its pods";
    assert_eq!(said, [wanted]);
    assert!((1..=65).all(|port| !allows(&full, full.pods[0][0], "192.0.2.1", TCP, port)));
    // The very same of another cluster is as shut.
    let both = compile(&cluster("both", &[&rules(65), "{ podSelector: {}, ingress: [{}] }"]), &leases);
    assert_eq!(both.allowed.keys().collect::<Vec<_>>(), full.allowed.keys().collect::<Vec<_>>());
}

#[test]
fn what_is_wrong_is_refused_and_what_was_there_stays() {
    let wrong = |spec: &str| -> Vec<String> {
        let folder = folder("wrong");
        let text =
            format!("kind: NetworkPolicy\napiVersion: networking.k8s.io/v1\nmetadata: {{ name: p }}\nspec: {spec}\n");
        std::fs::write(folder.join("a.yaml"), text).unwrap();
        let mut manifests = Manifests::new(folder.clone(), Rules::default());
        manifests.load(&Scope::All, crate::moment::Moment::now()).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        let tail = |e: &crate::config::Error| e.to_string().rsplit_once("a.yaml:").unwrap().1.to_owned();
        assert!(manifests.cluster().policies.is_empty());
        manifests.refused().iter().map(tail).collect()
    };
    let cases: BTreeMap<&str, &str> = [
        ("{ podSelectr: {} }", "4:9: spec.podSelectr: unknown key; expected `podSelector`"),
        ("{ podSelector: {}, policyTypes: [Egres] }", "4:40: spec.policyTypes[0]: `Egres` is not Ingress or Egress"),
        (
            "{ ingress: [{ from: [{}] }] }",
            "4:28: spec.ingress[0].from[0]: names nobody; expected podSelector, namespaceSelector or ipBlock",
        ),
        (
            "{ ingress: [{ from: [{ ipBlock: { cidr: 10.0.0.0/8, except: [11.0.0.0/16] } }] }] }",
            "4:68: spec.ingress[0].from[0].ipBlock.except[0]: `11.0.0.0/16` is not a part of 10.0.0.0/8",
        ),
        (
            "{ ingress: [{ ports: [{ port: 80, endPort: 79 }] }] }",
            "4:50: spec.ingress[0].ports[0].endPort: `79` is too small; expected a port number from 80 to 65535",
        ),
        (
            "{ ingress: [{ ports: [{ port: http, endPort: 79 }] }] }",
            "4:52: spec.ingress[0].ports[0].endPort: is given with the name of a port; expected a number there",
        ),
        (
            "{ podSelector: { matchExpressions: [{ key: a, operator: Inn }] } }",
            "4:63: spec.podSelector.matchExpressions[0].operator: `Inn` is not In, NotIn, Exists or DoesNotExist",
        ),
        (
            "{ podSelector: { matchExpressions: [{ key: a, operator: In }] } }",
            "4:63: spec.podSelector.matchExpressions[0].operator: `In` has no values; expected In, NotIn, Exists or DoesNotExist",
        ),
    ]
    .into();
    for (spec, said) in cases {
        assert_eq!(wrong(spec), [said], "{spec}");
    }
}
