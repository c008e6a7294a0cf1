//! Pods by the CNI: every verb as a runtime calls it, what pods reach, and that nothing leaks, whoever ends when.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use serde_json::{Value, json};
use stellwerk_tests::load::{Task, echo};
use stellwerk_tests::netns::Ns;
use stellwerk_tests::netns::cni::{Call, Node, Runtime, Said, addresses};
use stellwerk_tests::netns::config::{Files, Service};
use stellwerk_tests::netns::device::{self, Twin};
use stellwerk_tests::netns::probe::{self, Datagram, From};

#[path = "netns_cni/asked.rs"]
mod asked;

const ECHO: u16 = 7000;
const IP: &str = "IP=172.27.3.20,fd00:27:3::14";

fn open(lines: &str) -> Node {
    let service = Service::tcp("pod", 80, ECHO, device::cluster(40)).external(device::external(112));
    let service = service.and_udp().endpoint(device::pod(3, 20), "edge-1");
    Node::open(lines, |files| files.write(&service)).unwrap()
}

fn standard() -> Node {
    open("pods: { blocks: [172.27.3.0/26, \"fd00:27:3::/122\"], cooldown: 1s }\n")
}

fn resolve(pod: &Ns, server: &str, name: &str) -> Vec<String> {
    let at: SocketAddr = SocketAddr::new(server.parse().unwrap(), 53);
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    let answer = pod.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        socket.send_to(&message.to_vec().unwrap(), at).unwrap();
        let mut bytes = [0; 1_500];
        let (length, from) = socket.recv_from(&mut bytes).unwrap();
        assert_eq!(from, at);
        Message::from_vec(&bytes[..length]).unwrap()
    });
    answer.unwrap().answers.iter().map(|record| record.data.to_string()).collect()
}

fn serve(ns: &Ns, name: &str, at: Twin) -> Task {
    echo::serve(ns, name, &at.both().map(|ip| SocketAddr::new(ip, ECHO))).unwrap()
}

#[test]
fn pods_reach_each_other_services_and_the_world() {
    let node = standard();
    let (a, b) = (node.pod("a").unwrap(), node.pod("b").unwrap());
    let result = node.runtime.add(&b, "b", IP).unwrap();
    assert_eq!(addresses(&result), ["172.27.3.20", "fd00:27:3::14"]);
    let _b = serve(&b, "b", device::pod(3, 20));
    let _far = serve(&node.device.inet, "far", device::far());
    let result = node.runtime.add(&a, "a", "K8S_POD_NAMESPACE=default;K8S_POD_NAME=a-0").unwrap();
    assert_eq!(addresses(&result), ["172.27.3.1", "fd00:27:3::1"]);
    let host = node.leases().unwrap()[0]["host_interface"].as_str().unwrap().to_owned();
    for (ns, name) in [(&a, "eth0"), (&node.device.dev, host.as_str())] {
        let link = ns.ip_text(&format!("-d link show {name}")).unwrap();
        assert!(link.contains("numtxqueues 1 ") && link.contains("numrxqueues 1 "), "{link}");
    }
    // The node's end was made with what programs need of it.
    let setting = format!("/proc/sys/net/ipv4/conf/{host}/accept_local");
    assert_eq!(node.device.dev.run(|| std::fs::read_to_string(&setting)).unwrap().unwrap(), "1\n");

    // All of it at once: ADD has waited for the programs.
    let from = From::ns(&a);
    for (addr, own) in device::pod(3, 20).both().into_iter().zip(device::pod(3, 1).both()) {
        probe::ping(&from, addr, 100).unwrap();
        let greeting = probe::tcp(&from, SocketAddr::new(addr, ECHO), 5_000).unwrap();
        assert_eq!((greeting.name.as_str(), greeting.client), ("b", Some(own)));
        let service = SocketAddr::new(device::cluster(40).like(addr), 80);
        let greeting = probe::tcp(&from, service, 5_000).unwrap();
        assert_eq!((greeting.name.as_str(), greeting.client), ("b", Some(own)), "by its cluster address");
        let far = SocketAddr::new(device::far().like(addr), ECHO);
        let greeting = probe::tcp(&from, far, 5_000).unwrap();
        assert_eq!((greeting.name.as_str(), greeting.client), ("far", Some(device::uplink().like(addr))));
        // From outside, to a service in a pod.
        let client = From::ns(&node.device.client);
        let external = SocketAddr::new(device::external(112).like(addr), 80);
        assert_eq!(probe::tcp(&client, external, 5_000).unwrap().name, "b");
        // The node itself, there and back.
        probe::tcp(&From::ns(&node.device.dev), SocketAddr::new(addr, ECHO), 100).unwrap();
        probe::ping(&from, device::lan(10).like(addr), 100).unwrap();
    }
    let server = result["dns"]["nameservers"][0].as_str().unwrap();
    assert_eq!(resolve(&a, server, "pod.default.svc.cluster.local."), ["172.28.0.40"]);
    node.clean();
}

#[test]
fn every_verb_in_every_version() {
    let node = standard();
    let pod = node.pod("pod").unwrap();
    for (version, check) in [("0.3.1", false), ("0.4.0", true), ("1.0.0", true), ("1.1.0", true)] {
        let call = |verb, conf| {
            node.runtime.call(&Call { verb, container: "c", netns: Some(pod.path()), version, conf, ..Call::default() })
        };
        let made = call("ADD", Value::Null).unwrap();
        assert!(made.success, "{version}: {}", made.value);
        assert_eq!(made.value["cniVersion"], version);
        let result = json!({ "prevResult": made.value });
        let checked = call("CHECK", result.clone()).unwrap();
        assert_eq!((checked.success, checked.code()), (check, (!check).then_some(1)), "{version}: {}", checked.value);
        if check {
            pod.ip("route del default").unwrap();
            let checked = call("CHECK", result.clone()).unwrap();
            assert_eq!((checked.success, checked.code()), (false, Some(103)), "{version}: {}", checked.value);
        }
        for _ in 0..2 {
            let gone = call("DEL", result.clone()).unwrap();
            assert!(gone.success && gone.value.is_null(), "{version}: {}", gone.value);
        }
        assert_eq!(call("CHECK", result).unwrap().code(), Some(if check { 3 } else { 1 }), "{version}");
        assert!(!pod.ip_text("link").unwrap().contains("eth0"));
        let told = call("VERSION", Value::Null).unwrap().value;
        assert_eq!(told, json!({ "cniVersion": version, "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] }));
    }
    assert!(node.leases().unwrap().is_empty());
    node.clean();
}

#[test]
fn what_is_refused_leaves_nothing() {
    let node = standard();
    let (one, two) = (node.pod("one").unwrap(), node.pod("two").unwrap());
    node.runtime.add(&one, "one", "IP=172.27.3.9;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0").unwrap();
    two.ip("link add eth0 type bridge").unwrap();
    let nowhere = || Some("/run/netns/none".into());
    for (what, container, netns, args, code) in [
        ("it is there already", "one", Some(one.path()), "", 101),
        ("somebody else's is there", "two", Some(two.path()), "", 101),
        ("another container's has that name", "three", Some(one.path()), "", 101),
        ("no such namespace", "three", nowhere(), "", 3),
        ("another's address", "three", Some(two.path()), "IP=172.27.3.9", 100),
        ("an address of no block", "three", Some(two.path()), "IP=10.0.0.9", 100),
    ] {
        let said =
            node.runtime.call(&Call { verb: "ADD", container, netns, args, version: "1.0.0", conf: Value::Null });
        let said = said.unwrap();
        assert_eq!((said.success, said.code()), (false, Some(code)), "{what}: {}", said.value);
    }
    assert_eq!(node.containers().unwrap(), BTreeSet::from(["one".to_owned()]));
    node.clean();

    // What the runtime no longer lists goes; by command, too.
    two.ip("link del eth0").unwrap();
    node.runtime.add(&two, "two", "").unwrap();
    let list = json!({ "cni.dev/valid-attachments": [{ "containerID": "one", "ifname": "eth0" }] });
    let gc = node.runtime.call(&Call { verb: "GC", version: "1.1.0", conf: list, ..Call::default() }).unwrap();
    assert!(gc.success && gc.value.is_null(), "{}", gc.value);
    assert_eq!(node.containers().unwrap(), BTreeSet::from(["one".to_owned()]));
    assert_eq!(node.agent.command(&["ipam", "release", "default/web-0"]).unwrap(), "released eth0 of one\n");
    let unknown = format!("{:#}", node.agent.command(&["ipam", "release", "default/web-0"]).unwrap_err());
    assert!(unknown.contains("nothing is known of `default/web-0`"), "{unknown}");
    assert!(node.leases().unwrap().is_empty());
    node.clean();
}

/// An ADD with host ports, each as `8080 to 7000 tcp`, or with an address in front.
fn add_ports(node: &Node, pod: &Ns, container: &str, ports: &[&str]) -> Said {
    let mapping = |text: &&str| {
        let words: Vec<&str> = text.split(' ').collect();
        let (ip, port) = words[0].rsplit_once(':').unwrap_or(("", words[0]));
        let number = |text: &str| text.parse::<u16>().unwrap();
        json!({ "hostPort": number(port), "containerPort": number(words[2]), "protocol": words[3], "hostIP": ip.trim_matches(['[', ']']) })
    };
    let mappings: Vec<Value> = ports.iter().map(mapping).collect();
    let conf = json!({ "runtimeConfig": { "portMappings": mappings } });
    let (netns, args) = (Some(pod.path()), "");
    node.runtime.call(&Call { verb: "ADD", container, netns, args, version: "1.1.0", conf }).unwrap()
}

/// Who answers at a port of the node, as soon as it is who it should be; None: nobody.
fn answers(from: &Ns, at: SocketAddr, want: Option<&str>) {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let said = match probe::connects(&From::ns(from), at, Duration::from_millis(500)) {
            true => probe::tcp(&From::ns(from), at, 100).ok().map(|greeting| greeting.name),
            false => None,
        };
        if said.as_deref() == want {
            return;
        }
        assert!(Instant::now() < end, "{at} is answered by {said:?}, not by {want:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn host_ports() {
    let mut node = standard();
    let [a, b, c] = ["a", "b", "c"].map(|name| node.pod(name).unwrap());
    let said = add_ports(&node, &a, "a", &["8080 to 7000 tcp", "8080 to 7000 udp"]);
    assert!(said.success, "{}", said.value);
    let _a = serve(&a, "a", device::pod(3, 1));
    let said = add_ports(&node, &b, "b", &["192.168.20.10:8081 to 7000 tcp", "[fd00:20::a]:8081 to 7000 tcp"]);
    assert!(said.success, "{}", said.value);
    let _b = serve(&b, "b", device::pod(3, 2));
    node.runtime.add(&c, "c", "").unwrap();

    // From outside, by both ports of the node, from the node, from pods, and from the pod itself.
    let (dev, client, inet) = (&node.device.dev, &node.device.client, &node.device.inet);
    let at = |twin: Twin, like, port| SocketAddr::new(twin.like(like), port);
    for like in device::lan(50).both() {
        let greeting = probe::tcp(&From::ns(client), at(device::lan(10), like, 8080), 5_000).unwrap();
        assert_eq!((greeting.name.as_str(), greeting.client), ("a", Some(like)));
        let greeting = probe::udp(&From::ns(client), at(device::lan(10), like, 8080), Datagram::default()).unwrap();
        assert_eq!(greeting.name, "a");
        for from in [inet, dev, &c, &b, &a] {
            let greeting = probe::tcp(&From::ns(from), at(device::uplink(), like, 8080), 5_000);
            assert_eq!(greeting.with_context(|| from.full_name().to_owned()).unwrap().name, "a");
        }
        // At one address alone.
        assert_eq!(probe::tcp(&From::ns(client), at(device::lan(10), like, 8081), 5_000).unwrap().name, "b");
        answers(inet, at(device::uplink(), like, 8081), None);
    }
    let rows = node.leases().unwrap();
    let row = rows.iter().find(|row| row["container"] == "a").unwrap();
    assert_eq!(row["host_ports"], json!(["8080/TCP -> 7000", "8080/UDP -> 7000"]));

    // Others' places: a pod's, a service's; and an address that isn't the node's.
    let mut service = Service::tcp("web", 80, ECHO, device::cluster(41)).endpoint(device::pod(3, 2), "edge-1");
    service.ports[0].node_port = Some(30_080);
    let files = Files::new(node.device.lab.dir()).unwrap();
    files.write(&service).unwrap();
    answers(client, at(device::lan(10), device::lan(10).v4, 30_080), Some("b"));
    let d = node.pod("d").unwrap();
    for (port, why) in [
        ("8080 to 80 tcp", "8080/TCP is that of eth0 of a"),
        ("192.168.20.10:8080 to 80 udp", "192.168.20.10:8080/UDP is that of eth0 of a"),
        ("8081 to 80 tcp", "8081/TCP is that of eth0 of b"),
        ("30080 to 80 tcp", "services default/web:tcp and hostPort/"),
        ("192.0.2.1:80 to 80 tcp", "192.0.2.1:80/TCP is at none of this node's addresses"),
    ] {
        let said = add_ports(&node, &d, "d", &[port]);
        let details = said.value["details"].as_str().unwrap_or_default();
        assert!(said.code() == Some(104) && details.contains(why), "{port}: {}", said.value);
    }
    assert_eq!(node.containers().unwrap(), ["a", "b", "c"].map(String::from).into());
    node.clean();

    // A service that comes to a host port's place has it, until it goes.
    service.ports[0].node_port = Some(8_080);
    files.write(&service).unwrap();
    let place = at(device::lan(10), device::lan(10).v4, 8_080);
    answers(client, place, Some("b"));
    assert!(node.agent.log().contains("a host port is not served"), "{}", node.agent.log_tail());
    node.agent.kill();
    node.agent.start_ready().unwrap();
    answers(client, place, Some("b"));
    service.ports[0].node_port = Some(30_080);
    files.write(&service).unwrap();
    answers(client, place, Some("a"));

    // An agent that starts again serves them; what ends gives its own back.
    assert!(node.agent.stop());
    answers(client, place, Some("a"));
    node.agent.start_ready().unwrap();
    answers(client, place, Some("a"));
    node.runtime.del(&a, "a").unwrap();
    answers(client, place, None);
    let said = add_ports(&node, &c, "c", &["8080 to 7000 tcp"]);
    assert_eq!(said.code(), Some(101), "{}", said.value);
    node.runtime.del(&c, "c").unwrap();
    let said = add_ports(&node, &c, "c", &["8080 to 7000 tcp"]);
    let own: Vec<SocketAddr> =
        addresses(&said.value).iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), ECHO)).collect();
    let _c = echo::serve(&c, "c", &own).unwrap();
    assert_eq!(probe::tcp(&From::ns(client), place, 100).unwrap().name, "c");
    assert_eq!(node.agent.command(&["ipam", "release", "c"]).unwrap(), "released eth0 of c\n");
    answers(client, place, None);
}

/// Many at once, each in a thread, as a node that starts does it; how long each took.
fn each(pods: &[Ns], work: impl Fn(&Ns, &str) + Sync) -> Vec<Duration> {
    thread::scope(|scope| {
        let threads: Vec<_> = pods
            .iter()
            .enumerate()
            .map(|(i, pod)| {
                let work = &work;
                scope.spawn(move || {
                    let began = Instant::now();
                    work(pod, &format!("c{i}"));
                    began.elapsed()
                })
            })
            .collect();
        let mut took: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        took.sort();
        took
    })
}

#[test]
fn many_at_once() {
    let node = standard();
    let pods: Vec<Ns> = (0..20).map(|i| node.pod(&format!("p{i}")).unwrap()).collect();
    let took = each(&pods, |pod, container| _ = node.runtime.add(pod, container, "").unwrap());
    println!("20 ADDs at once: half within {:?}, all within {:?}", took[10], took[19]);
    let leases = node.leases().unwrap();
    let all: BTreeSet<String> = leases.iter().map(|row| row["addresses"].to_string()).collect();
    assert_eq!((leases.len(), all.len()), (20, 20));
    node.clean();
    for pod in &pods[1..] {
        probe::ping(&From::ns(pod), "172.27.3.1".parse().unwrap(), 64).unwrap();
    }
    let took = each(&pods, |pod, container| node.runtime.del(pod, container).unwrap());
    println!("20 DELs at once: half within {:?}, all within {:?}", took[10], took[19]);
    assert!(node.leases().unwrap().is_empty());
    node.clean();
}

#[test]
fn while_the_agent_is_away() {
    let mut node = standard();
    let (one, two) = (node.pod("one").unwrap(), node.pod("two").unwrap());
    node.runtime.add(&one, "one", "").unwrap();
    node.runtime.add(&two, "two", "").unwrap();
    assert!(node.agent.stop());
    // What there is goes on.
    probe::ping(&From::ns(&one), "172.27.3.2".parse().unwrap(), 64).unwrap();
    let call = |verb, container| {
        let netns = Some(two.path());
        node.runtime.call(&Call { verb, container, netns, version: "1.1.0", ..Call::default() }).unwrap()
    };
    assert_eq!(call("ADD", "three").code(), Some(11));
    assert_eq!(call("STATUS", "").code(), Some(50));
    assert!(call("DEL", "two").success);
    assert!(call("DEL", "two").success);
    node.agent.start_ready().unwrap();
    assert_eq!(node.containers().unwrap(), BTreeSet::from(["one".to_owned()]));
    let status = node.runtime.call(&Call { verb: "STATUS", version: "1.1.0", ..Call::default() }).unwrap();
    assert!(status.success, "{}", status.value);
    assert!(!two.ip_text("link").unwrap().contains("eth0"));
    node.runtime.add(&two, "two", "").unwrap();
    node.clean();

    // An interface that went without a DEL, and one that is nobody's.
    assert!(node.agent.stop());
    let host = node.leases().unwrap()[0]["host_interface"].as_str().unwrap().to_owned();
    node.device.dev.ip(&format!("link del {host}\nlink add stpodstray type veth peer name stpodpeer")).unwrap();
    let check = node.agent.command(&["ipam", "check", "--json"]);
    assert!(check.is_err(), "{check:?}");
    node.agent.start_ready().unwrap();
    assert_eq!(node.containers().unwrap(), BTreeSet::from(["two".to_owned()]));
    node.clean();
}

#[test]
fn an_agent_that_is_killed_at_any_moment() {
    let mut node = standard();
    let pods: Vec<Ns> = (0..6).map(|i| node.pod(&format!("p{i}")).unwrap()).collect();
    let mut there: BTreeSet<String> = BTreeSet::new();
    for round in 0..6u64 {
        let (runtime, before) = (node.runtime.clone(), there.clone());
        let churn = thread::scope(|scope| {
            let threads: Vec<_> = pods
                .iter()
                .enumerate()
                .map(|(i, pod)| {
                    let (runtime, before) = (&runtime, &before);
                    scope.spawn(move || churn(runtime, pod, &format!("c{i}"), before))
                })
                .collect();
            thread::sleep(Duration::from_millis(15 + 37 * round));
            node.agent.kill();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<BTreeSet<String>>()
        });
        there = churn;
        node.agent.start_ready().unwrap();
        assert_eq!(node.containers().unwrap(), there, "round {round}\n{}", node.agent.log_tail());
        node.clean();
    }
    for (i, pod) in pods.iter().enumerate().filter(|(i, _)| there.contains(&format!("c{i}"))) {
        probe::ping(&From::ns(pod), device::lan(10).v4, 64).unwrap();
        node.runtime.del(pod, &format!("c{i}")).unwrap();
    }
    assert!(node.leases().unwrap().is_empty());
    node.clean();
}

/// Comes and goes until the agent is away, and does what a runtime does when an ADD fails. Itself, if it is there.
fn churn(runtime: &Runtime, pod: &Ns, container: &str, before: &BTreeSet<String>) -> Option<String> {
    let mut there = before.contains(container);
    loop {
        if there {
            runtime.del(pod, container).unwrap();
        } else if runtime.add(pod, container, "").is_err() {
            runtime.del(pod, container).unwrap();
            return None;
        }
        there = !there;
        let status = runtime.call(&Call { verb: "STATUS", version: "1.1.0", ..Call::default() }).unwrap();
        if !status.success {
            return there.then(|| container.to_owned());
        }
    }
}

#[test]
fn blocks_of_the_node_and_an_installed_plugin() {
    let node = open("pods: { mtu: 1400 }\n");
    let pod = node.pod("pod").unwrap();
    let add = || {
        let netns = Some(pod.path());
        node.runtime.call(&Call { verb: "ADD", container: "c", netns, version: "1.1.0", ..Call::default() }).unwrap()
    };
    let said = add();
    let why = "neither pods.blocks nor `nodes` nor podCIDRs of the Node edge-1 say which addresses pods have";
    assert_eq!((said.code(), said.value["details"].as_str()), (Some(11), Some(why)));
    let files = Files::new(node.device.lab.dir()).unwrap();
    let node_yaml = "apiVersion: v1\nkind: Node\nmetadata: { name: edge-1 }\n\
                     spec: { podCIDR: 172.27.3.0/24, podCIDRs: [172.27.3.0/24, \"fd00:27:3::/64\"] }\n";
    files.replace("cluster/node.yaml", node_yaml).unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    let said = loop {
        let said = add();
        if said.success || Instant::now() > end {
            break said;
        }
        thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(addresses(&said.value), ["172.27.3.1", "fd00:27:3::1"], "{}", said.value);
    assert!(pod.ip_text("link show eth0").unwrap().contains("mtu 1400"));
    let far = serve(&node.device.inet, "far", device::far());
    let greeting = probe::tcp(&From::ns(&pod), SocketAddr::new(device::far().v4, ECHO), 100).unwrap();
    assert_eq!(greeting.client, Some(device::uplink().v4));
    drop(far);

    let dir = node.device.lab.dir();
    let (bin, conf) = (dir.join("bin"), dir.join("net.d"));
    let install = || {
        let words = ["--bin-dir", bin.to_str().unwrap(), "--conf-dir", conf.to_str().unwrap()];
        node.agent.command(&[&["cni", "install"], &words[..]].concat()).unwrap()
    };
    let (plugin, list) = (bin.join("stellwerk-cni"), conf.join("10-stellwerk.conflist"));
    let lines = |word: &str| format!("{} {word}\n{} {word}\n", plugin.display(), list.display());
    assert_eq!(install(), lines("written"));
    assert_eq!(install(), lines("is there already"));
    let list: Value = serde_json::from_slice(&std::fs::read(list).unwrap()).unwrap();
    assert_eq!((&list["cniVersion"], &list["cniVersions"][3]), (&json!("1.0.0"), &json!("1.1.0")));
    assert_eq!(
        list["plugins"][0],
        json!({ "type": "stellwerk-cni", "capabilities": { "portMappings": true, "bandwidth": true }, "pinPath": node.device.lab.pins() })
    );
}
