//! Every way through the device with real sockets: each kind of client, to each kind of backend,
//! through each hook, in both families.
//!
//! One table of ways; each test sends another kind of traffic along all of them.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use stellwerk_tests::netns::config::Files;
use stellwerk_tests::netns::device::{self, Twin};
use stellwerk_tests::netns::ethtool::{self, Offload};
use stellwerk_tests::netns::probe::{self, Datagram, From, Greeting};
use stellwerk_tests::netns::scene::{NODE_PORT, PORT, Scene, Which};

/// One way through the device.
struct Way {
    name: &'static str,
    from: fn(&Scene, IpAddr) -> From,
    to: fn() -> (Twin, u16),
    /// Who may answer.
    answers: &'static [&'static str],
    /// What the backend sees as its client, if the client's own address must arrive.
    seen: Option<fn() -> Twin>,
}

const WAYS: &[Way] = &[
    Way {
        name: "Port3 to a local pod",
        from: client,
        to: || external(Which::Local),
        answers: &["pod-1"],
        seen: Some(|| device::lan(50)),
    },
    Way {
        name: "Port2 to a local pod",
        from: far,
        to: || external(Which::Local),
        answers: &["pod-1"],
        seen: Some(device::far),
    },
    Way {
        name: "Port3 to two local pods",
        from: client,
        to: || external(Which::Both),
        answers: &["pod-1", "pod-2"],
        seen: Some(|| device::lan(50)),
    },
    Way {
        name: "Port3 to a pod on edge-2, back out of the same port",
        from: client,
        to: || external(Which::Remote),
        answers: &["remote"],
        seen: None,
    },
    Way {
        name: "Port2 to a pod on edge-2",
        from: far,
        to: || external(Which::Remote),
        answers: &["remote"],
        seen: None,
    },
    Way {
        name: "Port3 to the device's own stack",
        from: client,
        to: || external(Which::Host),
        answers: &["host"],
        seen: Some(|| device::lan(50)),
    },
    Way {
        name: "Port2 to the device's own stack",
        from: far,
        to: || external(Which::Host),
        answers: &["host"],
        seen: Some(device::far),
    },
    Way {
        name: "pod to pod on the same bridge",
        from: pod2,
        to: || cluster(Which::Local),
        answers: &["pod-1"],
        seen: None,
    },
    Way { name: "pod to itself (hairpin)", from: pod1, to: || cluster(Which::Local), answers: &["pod-1"], seen: None },
    Way { name: "pod to a pod on edge-2", from: pod2, to: || cluster(Which::Remote), answers: &["remote"], seen: None },
    Way {
        name: "pod to the device's own stack",
        from: pod2,
        to: || cluster(Which::Host),
        answers: &["host"],
        seen: None,
    },
    Way {
        name: "edge-2 to a pod on edge-1",
        from: edge2,
        to: || cluster(Which::Local),
        answers: &["pod-1"],
        seen: None,
    },
    Way {
        name: "the device itself to a local pod",
        from: dev,
        to: || cluster(Which::Local),
        answers: &["pod-1"],
        seen: None,
    },
    Way {
        name: "the device itself to a pod on edge-2",
        from: dev,
        to: || cluster(Which::Remote),
        answers: &["remote"],
        seen: None,
    },
    Way {
        name: "the device itself to its own stack",
        from: dev,
        to: || cluster(Which::Host),
        answers: &["host"],
        seen: None,
    },
    Way {
        name: "NodePort on Port3",
        from: client,
        to: || (device::lan(10), NODE_PORT),
        answers: &["pod-1", "pod-2"],
        seen: Some(|| device::lan(50)),
    },
    Way {
        name: "NodePort on Port2",
        from: far,
        to: || (device::uplink(), NODE_PORT),
        answers: &["pod-1", "pod-2"],
        seen: Some(device::far),
    },
];

fn client(scene: &Scene, _: IpAddr) -> From {
    scene.client()
}

fn far(scene: &Scene, like: IpAddr) -> From {
    scene.far(like)
}

fn pod1(scene: &Scene, _: IpAddr) -> From {
    From::ns(&scene.pod1)
}

fn pod2(scene: &Scene, _: IpAddr) -> From {
    From::ns(&scene.pod2)
}

fn edge2(scene: &Scene, _: IpAddr) -> From {
    From::ns(&scene.device.edge2)
}

fn dev(scene: &Scene, _: IpAddr) -> From {
    From::ns(&scene.device.dev)
}

fn external(which: Which) -> (Twin, u16) {
    (which.external(), PORT)
}

fn cluster(which: Which) -> (Twin, u16) {
    (which.cluster(), PORT)
}

/// Sends something along every way, and tells all that went wrong, not just the first.
fn along_all(scene: &Scene, send: impl Fn(&From, SocketAddr) -> Result<Greeting>) {
    let mut wrong = Vec::new();
    for way in WAYS {
        let (twin, port) = (way.to)();
        for ip in twin.both() {
            let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
            let judged =
                send(&(way.from)(scene, ip), SocketAddr::new(ip, port)).and_then(|greeting| judge(way, ip, &greeting));
            if let Err(e) = judged {
                wrong.push(format!("{} over {family} ({ip} port {port}): {e:#}", way.name));
            }
        }
    }
    if !wrong.is_empty() {
        let drops = scene.agent.command(&["drops"]).unwrap_or_default();
        panic!(
            "{} of {} ways:\n{}\n{drops}\n{}",
            wrong.len(),
            WAYS.len() * 2,
            wrong.join("\n"),
            scene.agent.log_tail()
        );
    }
}

fn judge(way: &Way, ip: IpAddr, greeting: &Greeting) -> Result<()> {
    ensure!(way.answers.contains(&greeting.name.as_str()), "{} answered", greeting.name);
    if let (Some(seen), Some(client)) = (way.seen, greeting.client) {
        let seen = seen().like(ip);
        ensure!(client == seen, "the backend saw {client} as its client, not {seen}");
    }
    Ok(())
}

fn open() -> Scene {
    Scene::open("auto", "xdp").expect("the scene")
}

#[test]
fn tcp_small() {
    along_all(&open(), |from, to| probe::tcp(from, to, 100));
}

/// With the senders' segmentation on where the link has it: what goes through TC is up to 64 KB a packet.
#[test]
fn tcp_bulk() {
    along_all(&open(), |from, to| probe::tcp(from, to, 3_000_000));
}

/// Both ports by TC, and the neighbours' segmentation and checksum offload on again.
#[test]
fn tcp_bulk_by_tc_with_offloads() {
    let scene = Scene::open("tc", "tc").expect("the scene");
    for ns in [&scene.device.client, &scene.device.edge2] {
        for offload in [Offload::TxChecksum, Offload::TcpSegmentation, Offload::Segmentation] {
            ethtool::set(ns, "eth0", offload, true).expect("an offload");
        }
    }
    along_all(&scene, |from, to| probe::tcp(from, to, 3_000_000));
}

/// Port2 by XDP, as on hardware: the senders' offload off.
#[test]
fn tcp_bulk_by_xdp() {
    let mut scene = Scene::without_agent("xdp", "xdp").expect("the scene");
    scene.device.uplink_for_xdp().expect("Port2's side");
    scene.start_agent().expect("the agent");
    along_all(&scene, |from, to| probe::tcp(from, to, 1_000_000));
}

#[test]
fn udp_small() {
    along_all(&open(), |from, to| probe::udp(from, to, Datagram { length: 64, ..Datagram::default() }));
}

#[test]
fn udp_empty() {
    along_all(&open(), |from, to| probe::udp(from, to, Datagram::default()));
}

#[test]
fn udp_fragmented() {
    along_all(&open(), |from, to| probe::udp(from, to, Datagram { length: 4000, ..Datagram::default() }));
}

/// IPv6 has no datagrams without checksum: there they are sent with it.
#[test]
fn udp_without_checksum() {
    along_all(&open(), |from, to| {
        probe::udp(from, to, Datagram { length: 200, unsummed: to.is_ipv4(), ..Datagram::default() })
    });
}

/// What the device itself sends, where services aren't balanced at its sockets.
#[test]
fn tcp_and_udp_by_packets_alone() {
    let mut scene = Scene::without_agent("auto", "xdp").expect("the scene");
    let config = Files::standard("auto", "xdp") + "  socketBalancing: false\n";
    scene.files.write_config(&config).expect("the configuration");
    scene.start_agent().expect("the agent");
    along_all(&scene, |from, to| probe::tcp(from, to, 1_000_000));
    along_all(&scene, |from, to| probe::udp(from, to, Datagram { length: 4000, ..Datagram::default() }));
}
