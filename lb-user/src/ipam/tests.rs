//! The allocation as a table, and under any interleaving of calls, crashes and restarts of several nodes.

use proptest::prelude::*;

use super::*;

fn key(number: u32) -> Key {
    Key { container: format!("c{number}"), interface: "eth0".into() }
}

fn nets(text: &str) -> Vec<IpNet> {
    text.split_whitespace().map(|net| net.parse().expect("a subnet")).collect()
}

fn list(text: &str) -> Vec<IpAddr> {
    text.split_whitespace().map(|addr| addr.parse().expect("an address")).collect()
}

#[test]
fn who_gets_what() {
    // Blocks; what the node has; those before; what is asked for; what is given, or why not.
    for (blocks, avoid, before, asked, want) in [
        ("172.27.1.0/26 fd00:27:1::/122", "", 0, "", "172.27.1.1, fd00:27:1::1"),
        ("172.27.1.0/26 fd00:27:1::/122", "172.27.1.1", 1, "", "172.27.1.3, fd00:27:1::2"),
        ("172.27.1.0/26", "", 61, "", "172.27.1.62"),
        ("172.27.1.0/26", "", 62, "", "all addresses of 172.27.1.0/26 are in use"),
        ("172.27.1.0/30 172.27.9.8/30", "", 2, "", "172.27.9.9"),
        ("172.27.1.4/31", "", 1, "", "172.27.1.5"),
        ("172.27.1.0/26 fd00::4/127", "", 2, "", "all addresses of fd00::4/127 are in use"),
        ("172.27.1.0/26 fd00:27:1::/122", "", 0, "172.27.1.9", "172.27.1.9, fd00:27:1::1"),
        ("172.27.1.0/26 fd00:27:1::/122", "", 0, "fd00:27:1::9 172.27.1.9", "172.27.1.9, fd00:27:1::9"),
        ("172.27.1.0/26", "", 1, "172.27.1.1", "172.27.1.1 is that of eth0 of c0"),
        ("172.27.1.0/26", "172.27.1.9", 0, "172.27.1.9", "172.27.1.9 is this node's own"),
        (
            "172.27.1.0/26",
            "",
            0,
            "172.27.2.1",
            "172.27.2.1 is in none of this node's blocks; expected an address of 172.27.1.0/26",
        ),
        (
            "172.27.1.0/26",
            "",
            0,
            "172.27.1.1 172.27.1.2",
            "172.27.1.1 and 172.27.1.2 are asked for; expected one a family",
        ),
        ("", "", 0, "", "this node has no block of addresses"),
    ] {
        let (blocks, avoid) = (nets(blocks), list(avoid).into_iter().collect());
        let stock = Stock { blocks: &blocks, avoid: &avoid, cooldown: 60 };
        let mut state = State::default();
        let mut take = |number, addresses: &[IpAddr]| {
            let ask = Ask {
                key: &key(number),
                namespace: "default",
                pod: "web",
                addresses,
                ports: &[],
                bandwidth: Bandwidth::default(),
            };
            state.take(&ask, stock, 1_000).map(|lease| lease.addresses.clone())
        };
        for number in 0..before {
            take(number, &[]).expect("there is room");
        }
        let got = match take(before, &list(asked)) {
            Ok(all) => all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            Err(refusal) => refusal.to_string(),
        };
        assert_eq!(got, want, "{blocks:?} {asked}");
    }
}

#[test]
fn what_was_given_back_cools_down() {
    let (blocks, avoid) = (nets("172.27.1.0/30"), BTreeSet::new());
    let stock = Stock { blocks: &blocks, avoid: &avoid, cooldown: 60 };
    let mut state = State::default();
    let take = |state: &mut State, number, now| {
        let ask = Ask {
            key: &key(number),
            namespace: "",
            pod: "",
            addresses: &[],
            ports: &[],
            bandwidth: Bandwidth::default(),
        };
        state.take(&ask, stock, now).map(|lease| lease.addresses[0].to_string()).map_err(|why| why.to_string())
    };
    assert_eq!(take(&mut state, 1, 100), Ok("172.27.1.1".into()));
    assert_eq!(take(&mut state, 1, 101), Ok("172.27.1.1".into()), "asked again");
    assert!(state.give_back(&key(1), 60, 110).is_some());
    assert!(state.give_back(&key(1), 60, 150).is_none());
    assert_eq!(take(&mut state, 2, 111), Ok("172.27.1.2".into()));
    let cools = "all free addresses of 172.27.1.0/30 cool down, the first for 1 s";
    assert_eq!(take(&mut state, 3, 169), Err(cools.into()));
    assert_eq!(take(&mut state, 3, 170), Ok("172.27.1.1".into()));
    // A clock that was set back by a year holds nobody up for one.
    state.give_back(&key(3), 60, 40_000_000);
    assert_eq!(take(&mut state, 4, 1_000), Ok("172.27.1.1".into()));
}

#[test]
fn host_ports_are_of_one_pod() {
    let (blocks, avoid) =
        (nets("172.27.1.0/26"), list("203.0.113.5 10.20.0.1 fd00::5 127.0.0.1").into_iter().collect());
    let stock = Stock { blocks: &blocks, avoid: &avoid, cooldown: 60 };
    let port = |text: &str| {
        let (at, protocol) = text.split_once('/').expect("a protocol");
        let (ip, at) = at.rsplit_once(':').map_or((None, at), |(ip, at)| (Some(ip), at));
        HostPort {
            host_port: at.parse().expect("a port"),
            container_port: 80,
            protocol: if protocol == "UDP" { crate::intent::Protocol::Udp } else { crate::intent::Protocol::Tcp },
            host_ip: ip.map(|ip| ip.trim_matches(['[', ']']).parse().expect("an address")),
        }
    };
    let take = |state: &mut State, number, ports: &str| {
        let ports: Vec<HostPort> = ports.split_whitespace().map(port).collect();
        let ask = Ask {
            key: &key(number),
            namespace: "",
            pod: "",
            addresses: &[],
            ports: &ports,
            bandwidth: Bandwidth::default(),
        };
        state.take(&ask, stock, 1_000).map(|lease| lease.ports.len()).map_err(|why| why.to_string())
    };
    // What the first pod has; what the second asks for, and what is wrong with that.
    for (first, second, wrong) in [
        ("8080/TCP", "8080/UDP 8081/TCP", ""),
        ("8080/TCP", "8080/TCP", "8080/TCP is that of eth0 of c1"),
        ("8080/TCP", "203.0.113.5:8080/TCP", "203.0.113.5:8080/TCP is that of eth0 of c1"),
        ("203.0.113.5:8080/TCP", "0.0.0.0:8080/TCP", "0.0.0.0:8080/TCP is that of eth0 of c1"),
        ("203.0.113.5:8080/TCP", "10.20.0.1:8080/TCP", ""),
        ("", "192.0.2.1:8080/TCP", "192.0.2.1:8080/TCP is at none of this node's addresses"),
        ("", "127.0.0.1:80/TCP", "127.0.0.1:80/TCP is at a loopback address, where there are no host ports"),
        ("", "[fd00::5]:80/TCP", "[fd00::5]:80/TCP is of a family that the pod has no address of"),
    ] {
        let mut state = State::default();
        take(&mut state, 1, first).expect("nobody has any");
        let got = take(&mut state, 2, second);
        assert_eq!(got.err().unwrap_or_default(), wrong, "{first} {second}");
        assert_eq!(state.leases.len(), if wrong.is_empty() { 2 } else { 1 });
        // Asked again, with others.
        assert_eq!(take(&mut state, 1, "9090/TCP"), Ok(1));
        assert!(state.give_back(&key(1), 0, 1_000).is_some());
        assert_eq!(take(&mut state, 3, "9090/TCP"), Ok(1));
    }
}

#[test]
fn leases_of_before_host_ports_are_read() {
    let text = r#"{ "namespace": "default", "pod": "web-0", "addresses": ["172.27.1.9"] }"#;
    let lease: Lease = serde_json::from_str(text).unwrap();
    assert!(lease.ports.is_empty());
    assert!(!serde_json::to_string(&lease).unwrap().contains("ports"));
}

/// A node: what it knows, and what it has written.
#[derive(Clone, Default)]
struct Node {
    known: State,
    durable: State,
}

#[derive(Clone, Debug)]
enum Step {
    Add {
        node: usize,
        key: u32,
        named: Option<u8>,
    },
    Del {
        node: usize,
        key: u32,
    },
    /// It ends after `written` or before: what it knew beyond the last write is lost.
    Crash {
        node: usize,
        during: u32,
        written: bool,
        add: bool,
    },
    Wait {
        seconds: u64,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (node, key) = (0..3usize, 0..12u32);
    let step = prop_oneof![
        4 => (node.clone(), key.clone(), proptest::option::weighted(0.2, 0..20u8))
            .prop_map(|(node, key, named)| Step::Add { node, key, named }),
        3 => (node.clone(), key.clone()).prop_map(|(node, key)| Step::Del { node, key }),
        2 => (node, key, any::<bool>(), any::<bool>())
            .prop_map(|(node, during, written, add)| Step::Crash { node, during, written, add }),
        1 => (1..50u64).prop_map(|seconds| Step::Wait { seconds }),
    ];
    proptest::collection::vec(step, 1..120)
}

/// What the world saw: who was told that an address is his and was not told otherwise, and when addresses became free.
#[derive(Default)]
struct World {
    told: BTreeMap<IpAddr, (usize, Key)>,
    freed: BTreeMap<IpAddr, u64>,
}

impl World {
    fn give(&mut self, node: usize, key: &Key, lease: &Lease, now: u64, stock: Stock<'_>) {
        for addr in &lease.addresses {
            assert!(stock.blocks.iter().any(|block| block.contains(addr)), "{addr} is another node's");
            let owner = (node, key.clone());
            let before = self.told.insert(*addr, owner.clone());
            assert!(before.as_ref().is_none_or(|other| *other == owner), "{addr} is given to {owner:?} and {before:?}");
            let freed = self.freed.get(addr).copied();
            let cool = before.is_some() || freed.is_none_or(|freed| now >= freed + stock.cooldown);
            assert!(cool, "{addr} is given at {now}, but was freed at {freed:?}");
        }
    }

    fn free(&mut self, lease: &Lease, now: u64) {
        for addr in &lease.addresses {
            self.told.remove(addr);
            self.freed.insert(*addr, now);
        }
    }
}

proptest! {
    #[test]
    fn no_address_is_anybodys_twice(steps in steps()) {
        let blocks = [0, 1, 2].map(|n| nets(&format!("172.27.{n}.0/28 172.27.{n}.64/29 fd00:27:{n}::/124")));
        let avoid: BTreeSet<IpAddr> = list("172.27.0.1 fd00:27:1::1").into_iter().collect();
        let stock = |node: usize| Stock { blocks: &blocks[node], avoid: &avoid, cooldown: 60 };
        let mut nodes = [Node::default(), Node::default(), Node::default()];
        let (mut world, mut now) = (World::default(), 1_000);
        for step in steps {
            match step {
                Step::Add { node, key: number, named } => {
                    let asked: Vec<IpAddr> = named.map(|n| IpAddr::from([172, 27, node as u8, n])).into_iter().collect();
                    let key = key(number);
                    let ask = Ask { key: &key, namespace: "", pod: "", addresses: &asked, ports: &[], bandwidth: Bandwidth::default() };
                    if let Ok(lease) = nodes[node].known.take(&ask, stock(node), now).cloned() {
                        prop_assert_eq!(lease.addresses.len(), 2);
                        nodes[node].durable = nodes[node].known.clone();
                        world.give(node, &key, &lease, now, stock(node));
                    }
                }
                Step::Del { node, key: number } => {
                    if let Some(lease) = nodes[node].known.give_back(&key(number), 60, now) {
                        nodes[node].durable = nodes[node].known.clone();
                        world.free(&lease, now);
                    }
                }
                Step::Crash { node, during, written, add } => {
                    // Nobody is told of what it was at; an interface that it took away is away all the same.
                    let key = key(during);
                    let mut at = nodes[node].known.clone();
                    if add {
                        let ask = Ask { key: &key, namespace: "", pod: "", addresses: &[], ports: &[], bandwidth: Bandwidth::default() };
                        _ = at.take(&ask, stock(node), now);
                    } else if let Some(lease) = at.give_back(&key, 60, now) && written {
                        world.free(&lease, now);
                    }
                    if written {
                        nodes[node].durable = at;
                    }
                    nodes[node].known = nodes[node].durable.clone();
                }
                Step::Wait { seconds } => now += seconds,
            }
        }
    }
}
