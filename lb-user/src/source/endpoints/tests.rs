//! Pods → endpoints, as data. Labels are `app=a` unless a pod says otherwise.
//!
//! A service: `port target/PROTOCOL` by commas, then words: `v4`, `v6`, `zone`, `node`, `notready`.
//! A pod: its addresses by `+`, then words: `@node`, `name=port/PROTOCOL`, `notready`, `terminating`, `ended`, `other`.

use super::*;

fn protocol(text: &str) -> Protocol {
    match text {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        _ => Protocol::Sctp,
    }
}

fn labels(value: &str) -> Labels {
    [("app".to_owned(), value.to_owned())].into()
}

fn service(text: &str) -> Selection {
    let (ports, words) = text.split_once(';').unwrap();
    let port = |text: &str| {
        let (name, target) = text.trim().split_once(' ').unwrap();
        let (target, proto) = target.split_once('/').unwrap();
        let target = target.parse().map_or_else(|_| Target::Name(target.to_owned()), Target::Number);
        ServicePort { name: name.to_owned(), protocol: protocol(proto), target }
    };
    let mut all = Selection { selector: labels("a"), ..Selection::default() };
    all.ports = ports.split(',').filter(|p| !p.trim().is_empty()).map(port).collect();
    for word in words.split_whitespace() {
        match word {
            "v4" => all.families.push(true),
            "v6" => all.families.push(false),
            "zone" => all.distribution = Distribution::SameZone,
            "node" => all.distribution = Distribution::SameNode,
            "notready" => all.not_ready_too = true,
            "unselecting" => all.selector.clear(),
            _ => panic!("{word}"),
        }
    }
    all
}

fn pod(text: &str) -> Pod {
    let mut pod = Pod { labels: labels("a"), ready: true, ..Pod::default() };
    for (i, word) in text.split(' ').enumerate() {
        match word {
            _ if i == 0 => pod.addresses = word.split('+').filter_map(|a| a.parse().ok()).collect(),
            "notready" => pod.ready = false,
            "terminating" => pod.terminating = true,
            "ended" => pod.ended = true,
            "other" => pod.labels = labels("b"),
            _ if word.starts_with('@') => pod.node = Some(word[1..].to_owned()),
            _ => {
                let (name, rest) = word.split_once('=').unwrap();
                let (port, proto) = rest.split_once('/').unwrap();
                let port = port.parse().unwrap();
                pod.ports.push(ContainerPort { name: name.to_owned(), protocol: protocol(proto), port });
            }
        }
    }
    pod
}

fn show(slices: &[Slice]) -> Vec<String> {
    let mut lines = Vec::new();
    for slice in slices {
        let ports: Vec<_> = slice.ports.iter().map(|p| format!("{}={}/{:?}", p.name, p.port, p.protocol)).collect();
        for e in &slice.endpoints {
            let place = e.node.as_ref().map(|n| format!(" @{n}")).unwrap_or_default();
            let zone = e.zone.as_ref().map(|z| format!("/{z}")).unwrap_or_default();
            let is = |on: Option<bool>, word: &str| if on == Some(true) { format!(" {word}") } else { String::new() };
            let state = is(e.ready, "ready") + &is(e.serving, "serving") + &is(Some(e.terminating), "terminating");
            let hints: String = e.hints.nodes.iter().chain(&e.hints.zones).map(|h| format!(" for {h}")).collect();
            lines.push(format!("{} {}{place}{zone}{state}{hints}", e.addr, ports.join(",")));
        }
    }
    lines
}

fn check(name: &str, wish: &str, pods: &[&str], nodes: &[(&str, &str)], want: &[&str]) {
    let pods: Vec<Pod> = pods.iter().map(|text| pod(text)).collect();
    let zone = |zone: &str| Some(zone.to_owned()).filter(|z| !z.is_empty());
    let nodes = nodes.iter().map(|(name, z)| ((*name).to_owned(), Node { zone: zone(z), ..Node::default() })).collect();
    assert_eq!(show(&slices(&service(wish), &pods, &nodes)), want, "{name}");
}

const HTTP: &str = "http 8080/TCP; v4";

#[test]
fn readiness() {
    check("ready", HTTP, &["10.2.0.1"], &[], &["10.2.0.1 http=8080/Tcp ready serving"]);
    check("not ready", HTTP, &["10.2.0.1 notready"], &[], &["10.2.0.1 http=8080/Tcp"]);
    check("terminating", HTTP, &["10.2.0.1 terminating"], &[], &["10.2.0.1 http=8080/Tcp serving terminating"]);
    check(
        "terminating and no longer serving",
        HTTP,
        &["10.2.0.1 notready terminating"],
        &[],
        &["10.2.0.1 http=8080/Tcp terminating"],
    );
    check(
        "publishNotReadyAddresses: ready, whatever is so",
        "http 8080/TCP; v4 notready",
        &["10.2.0.1 notready", "10.2.0.2 terminating", "10.2.0.3 notready terminating"],
        &[],
        &[
            "10.2.0.1 http=8080/Tcp ready",
            "10.2.0.2 http=8080/Tcp ready serving terminating",
            "10.2.0.3 http=8080/Tcp ready terminating",
        ],
    );
}

#[test]
fn who_is_no_endpoint() {
    check("ended (Succeeded, Failed)", HTTP, &["10.2.0.1 ended", "10.2.0.2 ended notready"], &[], &[]);
    check("ended, though all are published", "http 8080/TCP; v4 notready", &["10.2.0.1 ended"], &[], &[]);
    check("without an address", HTTP, &["-", "- terminating"], &[], &[]);
    check("of other labels", HTTP, &["10.2.0.1 other"], &[], &[]);
    check("no selector", "http 8080/TCP; v4 unselecting", &["10.2.0.1"], &[], &[]);
}

#[test]
fn target_ports() {
    check(
        "named, looked up in each pod by name and protocol",
        "web http/TCP, dns dns/UDP; v4",
        &[
            "10.2.0.2 http=81/TCP dns=53/TCP dns=5353/UDP",
            "10.2.0.1 http=80/TCP dns=5353/UDP",
            "10.2.0.3 http=80/TCP dns=5353/UDP",
        ],
        &[],
        &[
            "10.2.0.1 web=80/Tcp,dns=5353/Udp ready serving",
            "10.2.0.3 web=80/Tcp,dns=5353/Udp ready serving",
            "10.2.0.2 web=81/Tcp,dns=5353/Udp ready serving",
        ],
    );
    check(
        "a name that a pod hasn't: the other ports stay",
        "web http/TCP, fix 9/TCP; v4",
        &["10.2.0.1 http=80/UDP", "10.2.0.2"],
        &[],
        &["10.2.0.1 fix=9/Tcp ready serving", "10.2.0.2 fix=9/Tcp ready serving"],
    );
    check(
        "containers before init containers",
        "web http/TCP; v4",
        &["10.2.0.1 http=80/TCP http=81/TCP"],
        &[],
        &["10.2.0.1 web=80/Tcp ready serving"],
    );
    check("headless without ports", "; v4", &["10.2.0.1"], &[], &["10.2.0.1  ready serving"]);
}

#[test]
fn families() {
    let pods = &["10.2.0.1+fd00::1", "fd00::2", "10.2.0.3"];
    let four = ["10.2.0.1 http=80/Tcp ready serving", "10.2.0.3 http=80/Tcp ready serving"];
    let six = ["fd00::1 http=80/Tcp ready serving", "fd00::2 http=80/Tcp ready serving"];
    check("IPv4", "http 80/TCP; v4", pods, &[], &four);
    check("IPv6", "http 80/TCP; v6", pods, &[], &six);
    check("dual stack", "http 80/TCP; v6 v4", pods, &[], &[four, six].concat());
    check(
        "hostNetwork: the node's address, once a pod",
        HTTP,
        &["192.168.20.10 @n1", "192.168.20.10 @n1 notready"],
        &[],
        &["192.168.20.10 http=8080/Tcp @n1 ready serving", "192.168.20.10 http=8080/Tcp @n1"],
    );
}

#[test]
fn nodes_and_zones() {
    let pods = &["10.2.0.1 @n1", "10.2.0.2 @n2", "10.2.0.3"];
    let nodes = &[("n1", "east"), ("n2", "")];
    for (wish, [here, there]) in
        [("", ["", ""]), (" zone", [" for east", ""]), (" node", [" for n1 for east", " for n2"])]
    {
        let want = [
            format!("10.2.0.1 http=80/Tcp @n1/east ready serving{here}"),
            format!("10.2.0.2 http=80/Tcp @n2 ready serving{there}"),
            "10.2.0.3 http=80/Tcp ready serving".to_owned(),
        ];
        check(wish, &format!("http 80/TCP; v4{wish}"), pods, nodes, &want.each_ref().map(String::as_str));
    }
    check("on a node that is gone", HTTP, &["10.2.0.1 @n9"], nodes, &[]);
    check(
        "but published",
        "http 80/TCP; v4 notready",
        &["10.2.0.1 @n9"],
        nodes,
        &["10.2.0.1 http=80/Tcp @n9 ready serving"],
    );
    check("no nodes are named at all", HTTP, &["10.2.0.1 @n9"], &[], &["10.2.0.1 http=8080/Tcp @n9 ready serving"]);
}

/// Hints of each endpoint (`zone` or `@node`, by commas; `-` for none), and who is preferred by n1 in `zone`.
#[test]
fn hints() {
    let cases: &[(&str, Option<&str>, &str)] = &[
        ("- -", Some("east"), "11"),
        ("east west", Some("east"), "10"),
        ("east,west west", Some("east"), "10"),
        ("east west", Some("north"), "11"),
        ("east west", None, "11"),
        ("east -", Some("east"), "11"),
        ("@n1 @n2", Some("east"), "10"),
        ("@n1 -", Some("east"), "11"),
        ("@n1,east @n2,east", Some("east"), "10"),
        ("@n2,east @n3,west", Some("east"), "10"),
        ("@n2,west @n3,west", Some("east"), "11"),
        ("@n1,west east", Some("east"), "01"),
    ];
    for (hints, zone, want) in cases {
        let endpoints: Vec<Endpoint> = hints
            .split(' ')
            .map(|words| {
                let mut hints = Hints::default();
                for word in words.split(',').filter(|w| *w != "-") {
                    match word.strip_prefix('@') {
                        Some(node) => hints.nodes.push(node.to_owned()),
                        None => hints.zones.push(word.to_owned()),
                    }
                }
                let addr = "10.2.0.1".parse().unwrap();
                Endpoint {
                    addr,
                    hostname: None,
                    node: None,
                    zone: None,
                    ready: None,
                    serving: None,
                    terminating: false,
                    hints,
                }
            })
            .collect();
        let got = preferred(&endpoints.iter().collect::<Vec<_>>(), "n1", *zone);
        let got: String = got.iter().map(|near| if *near { '1' } else { '0' }).collect();
        assert_eq!(got, *want, "{hints} in {zone:?}");
    }
}
