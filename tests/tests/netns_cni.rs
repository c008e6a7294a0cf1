//! Pods by the CNI: every verb as a runtime calls it, what pods reach, and that nothing leaks, whoever ends when.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use serde_json::{Value, json};
use stellwerk_tests::load::{Task, echo};
use stellwerk_tests::netns::cni::{Call, Runtime, addresses};
use stellwerk_tests::netns::config::{Files, Service};
use stellwerk_tests::netns::device::{self, Device, Twin};
use stellwerk_tests::netns::probe::{self, From};
use stellwerk_tests::netns::{Agent, Ns};

const ECHO: u16 = 7000;
const IP: &str = "IP=172.27.3.20,fd00:27:3::14";

struct Node {
    agent: Agent,
    runtime: Runtime,
    device: Device,
}

impl Node {
    fn open(lines: &str) -> Node {
        let device = Device::new().unwrap();
        let files = Files::new(device.lab.dir()).unwrap();
        let standard = Files::standard("auto", "auto")
            .replace("gateway: 203.0.113.1", "gateway: [203.0.113.1, \"2001:db8:113::1\"]")
            .replace("address: 10.20.0.1/24", "address: 10.20.0.1/24, ipv6: masquerade");
        files.write_config(&format!("{standard}  dns: {{}}\n{lines}")).unwrap();
        let service = Service::tcp("pod", 80, ECHO, device::cluster(40)).external(device::external(112));
        files.write(&service.and_udp().endpoint(device::pod(3, 20), "edge-1")).unwrap();
        let mut agent = Agent::new(&device.lab, &device.dev, &files.config()).unwrap();
        agent.start_ready().unwrap();
        let runtime = Runtime::new(&device.lab, &device.dev).unwrap();
        Node { agent, runtime, device }
    }

    fn standard() -> Node {
        Node::open("pods: { blocks: [172.27.3.0/26, \"fd00:27:3::/122\"], cooldown: 1s }\n")
    }

    fn pod(&self, name: &str) -> Ns {
        self.device.lab.ns(name).unwrap()
    }

    fn leases(&self) -> Vec<Value> {
        serde_json::from_str(&self.agent.command(&["ipam", "show", "--json"]).unwrap()).unwrap()
    }

    fn containers(&self) -> BTreeSet<String> {
        self.leases().iter().filter_map(|row| Some(row["container"].as_str()?.to_owned())).collect()
    }

    /// Neither leases without interfaces nor the other way round.
    fn clean(&self) {
        assert_eq!(self.agent.command(&["ipam", "check"]).unwrap().lines().count(), 1, "only the headline");
    }
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
    let node = Node::standard();
    let (a, b) = (node.pod("a"), node.pod("b"));
    let result = node.runtime.add(&b, "b", IP).unwrap();
    assert_eq!(addresses(&result), ["172.27.3.20", "fd00:27:3::14"]);
    let _b = serve(&b, "b", device::pod(3, 20));
    let _far = serve(&node.device.inet, "far", device::far());
    let result = node.runtime.add(&a, "a", "K8S_POD_NAMESPACE=default;K8S_POD_NAME=a-0").unwrap();
    assert_eq!(addresses(&result), ["172.27.3.1", "fd00:27:3::1"]);

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
    let node = Node::standard();
    let pod = node.pod("pod");
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
    assert!(node.leases().is_empty());
    node.clean();
}

#[test]
fn what_is_refused_leaves_nothing() {
    let node = Node::standard();
    let (one, two) = (node.pod("one"), node.pod("two"));
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
    assert_eq!(node.containers(), BTreeSet::from(["one".to_owned()]));
    node.clean();

    // What the runtime no longer lists goes; by command, too.
    two.ip("link del eth0").unwrap();
    node.runtime.add(&two, "two", "").unwrap();
    let list = json!({ "cni.dev/valid-attachments": [{ "containerID": "one", "ifname": "eth0" }] });
    let gc = node.runtime.call(&Call { verb: "GC", version: "1.1.0", conf: list, ..Call::default() }).unwrap();
    assert!(gc.success && gc.value.is_null(), "{}", gc.value);
    assert_eq!(node.containers(), BTreeSet::from(["one".to_owned()]));
    assert_eq!(node.agent.command(&["ipam", "release", "default/web-0"]).unwrap(), "released eth0 of one\n");
    let unknown = format!("{:#}", node.agent.command(&["ipam", "release", "default/web-0"]).unwrap_err());
    assert!(unknown.contains("nothing is known of `default/web-0`"), "{unknown}");
    assert!(node.leases().is_empty());
    node.clean();
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
    let node = Node::standard();
    let pods: Vec<Ns> = (0..20).map(|i| node.pod(&format!("p{i}"))).collect();
    let took = each(&pods, |pod, container| _ = node.runtime.add(pod, container, "").unwrap());
    println!("20 ADDs at once: half within {:?}, all within {:?}", took[10], took[19]);
    let leases = node.leases();
    let all: BTreeSet<String> = leases.iter().map(|row| row["addresses"].to_string()).collect();
    assert_eq!((leases.len(), all.len()), (20, 20));
    node.clean();
    for pod in &pods[1..] {
        probe::ping(&From::ns(pod), "172.27.3.1".parse().unwrap(), 64).unwrap();
    }
    let took = each(&pods, |pod, container| node.runtime.del(pod, container).unwrap());
    println!("20 DELs at once: half within {:?}, all within {:?}", took[10], took[19]);
    assert!(node.leases().is_empty());
    node.clean();
}

#[test]
fn while_the_agent_is_away() {
    let mut node = Node::standard();
    let (one, two) = (node.pod("one"), node.pod("two"));
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
    assert_eq!(node.containers(), BTreeSet::from(["one".to_owned()]));
    let status = node.runtime.call(&Call { verb: "STATUS", version: "1.1.0", ..Call::default() }).unwrap();
    assert!(status.success, "{}", status.value);
    assert!(!two.ip_text("link").unwrap().contains("eth0"));
    node.runtime.add(&two, "two", "").unwrap();
    node.clean();

    // An interface that went without a DEL, and one that is nobody's.
    assert!(node.agent.stop());
    let host = node.leases()[0]["host_interface"].as_str().unwrap().to_owned();
    node.device.dev.ip(&format!("link del {host}\nlink add stpodstray type veth peer name stpodpeer")).unwrap();
    let check = node.agent.command(&["ipam", "check", "--json"]);
    assert!(check.is_err(), "{check:?}");
    node.agent.start_ready().unwrap();
    assert_eq!(node.containers(), BTreeSet::from(["two".to_owned()]));
    node.clean();
}

#[test]
fn an_agent_that_is_killed_at_any_moment() {
    let mut node = Node::standard();
    let pods: Vec<Ns> = (0..6).map(|i| node.pod(&format!("p{i}"))).collect();
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
        assert_eq!(node.containers(), there, "round {round}\n{}", node.agent.log_tail());
        node.clean();
    }
    for (i, pod) in pods.iter().enumerate().filter(|(i, _)| there.contains(&format!("c{i}"))) {
        probe::ping(&From::ns(pod), device::lan(10).v4, 64).unwrap();
        node.runtime.del(pod, &format!("c{i}")).unwrap();
    }
    assert!(node.leases().is_empty());
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
    let node = Node::open("pods: { mtu: 1400 }\n");
    let pod = node.pod("pod");
    let add = || {
        let netns = Some(pod.path());
        node.runtime.call(&Call { verb: "ADD", container: "c", netns, version: "1.1.0", ..Call::default() }).unwrap()
    };
    let said = add();
    let why = "neither pods.blocks nor podCIDRs of the Node edge-1 say which addresses pods have";
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
    assert_eq!(list["plugins"][0], json!({ "type": "stellwerk-cni", "pinPath": node.device.lab.pins() }));
}
