//! Names, as hosts of the device's networks ask for them: by `dig`, by the C library's own resolver, and by apps.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use stellwerk_tests::netns::config::{Files, Service};
use stellwerk_tests::netns::scene::{ECHO, PORT, Scene, Which};
use stellwerk_tests::netns::{Ns, device, probe};

const AT: &str = "172.28.0.10";
const AT6: &str = "fd00:28::a";

/// The scene with names: asked at the service's addresses, at the pods' gateways, and on Port3.
fn open(more: &str) -> Scene {
    let mut scene = Scene::without_agent("auto", "xdp").expect("the scene");
    scene.files.write_config(&config(more)).expect("a configuration");
    scene.start_agent().expect("the agent");
    scene
}

fn config(more: &str) -> String {
    let nodes = "172.27.1.1, \"fd00:27:1::1\", 192.168.20.10";
    Files::standard("auto", "xdp") + &format!("  dns: {{ nodeAddresses: [{nodes}]{more} }}\n")
}

/// Runs dig inside, and gives what it printed; a try that the agent wasn't ready for is repeated by it.
fn dig(ns: &Ns, words: &str) -> String {
    let mut command = ns.command("dig");
    let Output { stdout, stderr, .. } =
        command.args(["+time=2", "+tries=3"]).args(words.split(' ')).output().expect("dig (package bind9-dnsutils)");
    String::from_utf8_lossy(&[stdout, stderr].concat()).trim().to_owned()
}

fn is(ns: &Ns, words: &str, want: &str) {
    assert_eq!(dig(ns, words), want, "dig {words}");
}

#[test]
fn pods_ask_by_dig() {
    let scene = open("");
    let web = Which::Web.cluster();
    for at in [AT, AT6, "172.27.1.1", "fd00:27:1::1"] {
        for over in ["+notcp", "+tcp"] {
            let ask = |what: &str| dig(&scene.pod1, &format!("@{at} {over} +short {what}"));
            assert_eq!(ask("web.default.svc.cluster.local A"), web.v4.to_string(), "@{at} {over}");
            assert_eq!(ask("web.default.svc.cluster.local AAAA"), web.v6.to_string(), "@{at} {over}");
            assert_eq!(ask("dns-version.cluster.local TXT"), "\"1.1.0\"", "@{at} {over}");
            assert_eq!(ask(&format!("-x {}", web.v4)), "web.default.svc.cluster.local.", "@{at} {over}");
        }
    }
    // The node itself, and the other node's pod.
    for ns in [&scene.device.dev, &scene.device.edge2] {
        is(ns, &format!("@{AT} +short web.default.svc.cluster.local"), &web.v4.to_string());
    }
    is(&scene.pod1, &format!("@{AT} +short kube-dns.kube-system.svc.cluster.local"), AT);
    let whole = dig(&scene.pod1, &format!("@{AT} +nocookie nobody.default.svc.cluster.local"));
    for line in
        ["status: NXDOMAIN", "flags: qr aa rd ra; QUERY: 1, ANSWER: 0, AUTHORITY: 1, ADDITIONAL: 1", "udp: 1232"]
    {
        assert!(whole.contains(line), "{line}:\n{whole}");
    }
    assert!(!whole.contains("recursion requested but not available"), "{whole}");
}

#[test]
fn nobody_else_is_answered() {
    let scene = open("");
    let said = dig(&scene.device.client, "@192.168.20.10 web.default.svc.cluster.local");
    assert!(said.contains("status: REFUSED") && said.contains("ANSWER: 0"), "{said}");
    let said = dig(&scene.device.client, "@192.168.20.10 +tcp cluster.local AXFR");
    assert!(said.contains("Transfer failed"), "{said}");
}

/// Asks once and waits a little.
fn ask(socket: &UdpSocket, name: &str) -> Option<Message> {
    let mut name = Name::from_ascii(name).expect("a name");
    name.set_fqdn(true);
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(name, RecordType::A));
    socket.send(&message.to_vec().expect("bytes")).ok()?;
    let mut buffer = [0; 1_500];
    let len = socket.recv(&mut buffer).ok()?;
    Message::from_vec(&buffer[..len]).ok()
}

fn socket(ns: &Ns, to: &str) -> UdpSocket {
    let to = SocketAddr::new(to.parse::<IpAddr>().expect("an address"), 53);
    let socket = ns
        .run(|| UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }))
        .expect("the namespace")
        .expect("a socket");
    socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a time");
    socket.connect(to).expect("a way");
    socket
}

/// A name is there soon after its service is written, and never before what it names is served.
#[test]
fn a_new_service_has_its_name_once_it_is_served() {
    let scene = open("");
    let socket = socket(&scene.pod1, AT);
    let (pod2, mut slowest) = (device::pod(1, 12), Duration::ZERO);
    for i in 0..10u8 {
        let name = format!("new{i}");
        let service = Service::tcp(&name, PORT, ECHO, device::cluster(100 + i)).endpoint(pod2, "edge-1");
        let full = format!("{name}.default.svc.cluster.local");
        assert_eq!(ask(&socket, &full).map(|m| m.response_code), Some(ResponseCode::NXDomain));
        scene.files.write(&service).expect("manifests");
        let written = Instant::now();
        let found = loop {
            assert!(written.elapsed() < Duration::from_secs(5), "no such name:\n{}", scene.agent.log_tail());
            match ask(&socket, &full).and_then(|m| m.answers.first().and_then(|r| r.data.ip_addr())) {
                Some(found) => break found,
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        slowest = slowest.max(written.elapsed());
        // At once, with no second try.
        let talk = probe::tcp(&probe::From::ns(&scene.pod1), SocketAddr::new(found, PORT), 100);
        assert!(talk.is_ok(), "{found}: {talk:?}\n{}", scene.agent.log_tail());
    }
    println!("the slowest of 10 new names was there after {slowest:?}");
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
}

/// A name server on the Internet's side that knows one answer.
fn internet(ns: &Ns, at: IpAddr) {
    let socket = ns.run(|| UdpSocket::bind((at, 53))).expect("the namespace").expect("port 53");
    std::thread::spawn(move || {
        let mut buffer = [0; 1_500];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let Ok(question) = Message::from_vec(&buffer[..len]) else { continue };
            let mut answer = Message::response(question.id, OpCode::Query);
            answer.queries = question.queries.clone();
            let name = question.queries[0].name().clone();
            answer.answers.push(Record::from_rdata(name, 60, RData::A(A::new(192, 0, 2, 80))));
            let _ = socket.send_to(&answer.to_vec().expect("bytes"), from);
        }
    });
}

#[test]
fn other_names_are_asked_of_others() {
    let scene = open(", upstreams: [203.0.113.99, 198.51.100.7]");
    internet(&scene.device.inet, device::far().v4);
    // The first one isn't there.
    is(&scene.pod1, &format!("@{AT} +short www.example.org"), "192.0.2.80");
    is(&scene.pod1, &format!("@{AT} +short www.example.org.default.svc.cluster.local"), "");
    let rows = scene.agent.asker().command(&["dns", "status", "--json"]).expect("counts");
    let rows: Vec<serde_json::Value> = serde_json::from_str(&rows).expect("JSON");
    let count = |kind: &str, name: &str| {
        let row = rows.iter().find(|row| row["kind"] == kind && row["name"] == name);
        row.and_then(|row| row["count"].as_u64()).unwrap_or_else(|| panic!("no count {kind} {name}"))
    };
    assert!(count("zone", "forwarded") == 1 && count("event", "cache_miss") == 1, "{rows:#?}");
    assert!(count("event", "upstream") >= 2 && count("code", "NXDOMAIN") == 1, "{rows:#?}");
}

#[test]
fn names_by_command() {
    let scene = open(", externalZone: edge.example");
    let said = scene.agent.command(&["dns", "query", "web.default.svc.cluster.local"]).expect("an answer");
    assert_eq!(
        said,
        format!(
            "NAME                            TTL  TYPE  DATA\nweb.default.svc.cluster.local.    5  A     {}\n",
            Which::Web.cluster().v4
        )
    );
    let nobody =
        scene.agent.command(&["dns", "query", "nobody.default.svc.cluster.local", "AAAA"]).expect_err("no name");
    assert!(format!("{nobody:#}").contains("nobody.default.svc.cluster.local.: there is no such name (NXDOMAIN)"));
    let wrong = scene.agent.command(&["dns", "query", "web", "AAAAA"]).expect_err("no type");
    assert!(format!("{wrong:#}").contains("`AAAAA` is none; expected a type of records, such as A"), "{wrong:#}");
    let dump: Vec<serde_json::Value> =
        serde_json::from_str(&scene.agent.command(&["dns", "dump", "--json"]).expect("a dump")).expect("JSON");
    let has = |name: &str, kind: &str, data: &str| {
        assert!(
            dump.iter().any(|row| row["name"] == name && row["type"] == kind && row["data"] == data),
            "{name} {kind} {data}: {dump:#?}"
        );
    };
    has("web.default.svc.cluster.local.", "A", &Which::Web.cluster().v4.to_string());
    has("_tcp._tcp.web.default.svc.cluster.local.", "SRV", "0 100 80 web.default.svc.cluster.local.");
    has("dns-version.cluster.local.", "TXT", "\"1.1.0\"");
    has("web.default.edge.example.", "AAAA", &Which::Web.external().v6.to_string());
}

#[test]
fn a_cluster_that_brings_its_own_dns_keeps_it() {
    let mut scene = open("");
    is(&scene.pod1, &format!("@{AT} +short cluster.local SOA").replace("SOA", "NS"), "ns.dns.cluster.local.");
    let mut theirs =
        Service::tcp("theirs", 53, ECHO, device::cluster(10)).and_udp().endpoint(device::pod(1, 12), "edge-1");
    theirs.cluster = vec![AT.parse().expect("an address"), AT6.parse().expect("an address")];
    scene.files.write(&theirs).expect("manifests");
    let has = |rows: &[serde_json::Value], name: &str| rows.iter().any(|row| row.to_string().contains(name));
    scene.agent.wait("services", |rows| has(rows, "default/theirs") && !has(rows, "stellwerk-dns")).expect("theirs");
    let log = scene.agent.log();
    assert!(log.contains("the Service default/theirs has the address 172.28.0.10, fd00:28::a: it holds"), "{log}");
    // Where the node itself is asked nothing changes.
    is(&scene.pod1, "@172.27.1.1 +short web.default.svc.cluster.local", &Which::Web.cluster().v4.to_string());
}

#[test]
fn another_configuration_is_in_force_at_once() {
    let scene = open("");
    is(&scene.pod1, &format!("@{AT} +short web.default.svc.cluster.local"), &Which::Web.cluster().v4.to_string());
    scene.files.write_config(&config(", domain: edge.example, ttl: 77")).expect("a configuration");
    let socket = socket(&scene.pod1, "172.27.1.1");
    let end = Instant::now() + Duration::from_secs(5);
    let ttl = loop {
        match ask(&socket, "web.default.svc.edge.example").and_then(|m| m.answers.first().map(|r| r.ttl)) {
            Some(ttl) => break ttl,
            None => assert!(Instant::now() < end, "no such name:\n{}", scene.agent.log_tail()),
        }
    };
    assert_eq!(ttl, 77);
}

/// What the C library's own resolver says in a pod.
fn getent(scene: &Scene, name: &str) -> String {
    getent_by(&scene.pod1, scene.device.lab.dir(), name)
}

fn getent_by(pod: &Ns, dir: &Path, name: &str) -> String {
    let conf = dir.join("resolv.conf");
    std::fs::write(&conf, format!("nameserver {AT}\n")).expect("a file");
    let script = format!("mount --bind {} /etc/resolv.conf && getent ahostsv4 $0", conf.display());
    let mut command = pod.command("unshare");
    let Output { stdout, stderr, .. } =
        command.args(["--mount", "sh", "-c", &script, name]).output().expect("unshare (package util-linux)");
    String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned()
}

/// The next agent answers long before its programs are verified, by what the tables serve: of a service that isn't
/// there as it is wished for nothing is known until then.
#[test]
fn names_are_answered_before_the_next_agent_is_ready() {
    let mut scene = open("");
    let readied = |scene: &Scene| scene.agent.log().matches("ready: revision").count();
    let before = readied(&scene);
    scene.agent.kill();
    let late = Service::tcp("late", PORT, ECHO, device::cluster(100)).endpoint(device::pod(1, 12), "edge-1");
    scene.files.write(&late).expect("manifests");
    scene.agent.start().expect("the next agent");
    let (started, v4, v6) = (Instant::now(), socket(&scene.pod1, AT), socket(&scene.pod1, AT6));
    for socket in [&v4, &v6] {
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a time");
    }
    let answer_over = |socket: &UdpSocket, name: &str| {
        while started.elapsed() < Duration::from_secs(60) {
            match ask(socket, name) {
                Some(message) => return message,
                // Refused, where nobody listens yet.
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        panic!("no answer:\n{}", scene.agent.log_tail());
    };
    let answer = |name: &str| answer_over(&v4, name);
    let known = answer("web.default.svc.cluster.local");
    let after = started.elapsed();
    let over_v6 = answer_over(&v6, "web.default.svc.cluster.local");
    let after_v6 = started.elapsed();
    let nobody = answer("nobody.default.svc.cluster.local");
    let unserved = answer("late.default.svc.cluster.local");
    let found = getent(&scene, "web.default.svc.cluster.local");
    assert_eq!(readied(&scene), before, "it was ready before it had been asked");
    println!("the next agent answered {after:?} after its start, over IPv6 {after_v6:?}");
    assert_eq!(known.answers.first().and_then(|r| r.data.ip_addr()), Some(Which::Web.cluster().v4));
    assert_eq!(over_v6.answers.first().and_then(|r| r.data.ip_addr()), Some(Which::Web.cluster().v4));
    assert!(found.starts_with(&Which::Web.cluster().v4.to_string()), "{found}");
    assert_eq!(nobody.response_code, ResponseCode::NXDomain);
    assert_eq!(unserved.response_code, ResponseCode::ServFail);
    while answer("late.default.svc.cluster.local").answers.is_empty() {
        assert!(started.elapsed() < Duration::from_secs(60), "no such name:\n{}", scene.agent.log_tail());
        std::thread::sleep(Duration::from_millis(20));
    }
    let talk = probe::tcp(&probe::From::ns(&scene.pod1), SocketAddr::new(device::cluster(100).v4, PORT), 100);
    assert!(talk.is_ok(), "{talk:?}\n{}", scene.agent.log_tail());
    assert!(scene.agent.stop());
}

/// It asks twice, and waits five seconds for each answer unless it is refused.
#[test]
fn the_c_library_survives_a_restart() {
    let mut scene = open("");
    let name = "web.default.svc.cluster.local";
    let found = |scene: &Scene| getent(scene, name).starts_with(&Which::Web.cluster().v4.to_string());
    assert!(found(&scene));
    scene.agent.kill();
    let pod = scene.pod1.clone();
    let (conf, asked) = (scene.device.lab.dir().to_owned(), Instant::now());
    let asking = std::thread::spawn(move || (getent_by(&pod, &conf, name), asked.elapsed()));
    std::thread::sleep(Duration::from_secs(2));
    scene.agent.start().expect("the next agent");
    let (text, after) = asking.join().expect("getent");
    println!("asked while no agent ran, and told after {after:?}");
    assert!(text.starts_with(&Which::Web.cluster().v4.to_string()), "{after:?}: {text}");
    let drops = scene.agent.asker().command(&["drops"]).expect("counts");
    assert!(drops.contains("no_agent_for_names"), "{drops}");
}
