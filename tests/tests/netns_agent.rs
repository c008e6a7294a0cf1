//! The agent's life: changes, bad edits, its death and its successor, its farewell.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use stellwerk_tests::netns::config::{Endpoint, Files};
use stellwerk_tests::netns::probe::{self, From, Talk};
use stellwerk_tests::netns::scene::{Loads, PORT, Scene, Which};
use stellwerk_tests::netns::{agent, device};

fn open() -> Scene {
    Scene::open("auto", "xdp").expect("the scene")
}

fn loads(scene: &Scene) -> Loads {
    Loads::start(scene, Duration::from_millis(20)).expect("loads")
}

#[test]
fn replicas_share_the_load() {
    let scene = open();
    let loads = loads(&scene);
    std::thread::sleep(Duration::from_secs(2));
    let summary = loads.none_failed(&scene, 500);
    for replica in ["pod-1", "pod-2", "remote"] {
        let share = summary.share(replica);
        assert!((0.25..0.42).contains(&share), "{replica}: {share}\n{summary:#?}");
    }
}

#[test]
fn killed_agent_loses_nothing_and_its_successor_takes_over() {
    let mut scene = open();
    let loads = loads(&scene);
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(500));
        scene.agent.kill();
        std::thread::sleep(Duration::from_millis(500));
        scene.start_agent().unwrap();
    }
    // The successor is in charge.
    scene.change(Which::Empty, |s| s.endpoints = vec![Endpoint::new(device::pod(1, 11), "edge-1")]).unwrap();
    let target = SocketAddr::new(Which::Empty.external().v4, PORT);
    let end = Instant::now() + Duration::from_secs(5);
    while probe::tcp(&scene.client(), target, 10).is_err() {
        assert!(Instant::now() < end, "the change never came\n{}", scene.agent.log_tail());
    }
    loads.none_failed(&scene, 500);
}

#[test]
fn stopped_agent_leaves_traffic_flowing() {
    let mut scene = open();
    assert!(scene.agent.stop(), "it did not end well:\n{}", scene.agent.log_tail());
    for ip in Which::Both.external().both() {
        probe::tcp(&scene.client(), SocketAddr::new(ip, PORT), 1000).unwrap();
    }
    assert!(!scene.agent.rows("services").unwrap().is_empty(), "listings work without the agent");
}

#[test]
fn bad_edit_is_refused_whole() {
    let scene = open();
    let loads = loads(&scene);
    std::thread::sleep(Duration::from_millis(300));
    let good = Files::standard("auto", "xdp");
    let bad = good.replace("compute: true", "compute: perhaps").replace("node: edge-1", "node: edge-9");
    scene.files.write_config(&bad).unwrap();
    let end = Instant::now() + Duration::from_secs(5);
    while !scene.agent.log().contains("perhaps") {
        assert!(Instant::now() < end, "not a word about the bad edit:\n{}", scene.agent.log_tail());
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(500));
    scene.files.write_config(&good).unwrap();
    std::thread::sleep(Duration::from_millis(700));
    loads.none_failed(&scene, 500);
}

#[test]
fn endpoints_come_and_go_under_load() {
    let mut scene = open();
    let loads = loads(&scene);
    let remote = device::pod(2, 11);
    for _ in 0..5 {
        scene.change(Which::Web, |s| s.endpoints.retain(|e| !e.addrs.contains(&device::pod(1, 12).v4))).unwrap();
        std::thread::sleep(Duration::from_millis(150));
        scene.change(Which::Web, |s| s.endpoints.push(Endpoint::new(device::pod(1, 12), "edge-1"))).unwrap();
        std::thread::sleep(Duration::from_millis(150));
    }
    // Only connections of the one that left may have ended; nothing that began on another one.
    let samples = loads.samples();
    let other = samples.iter().find(|s| s.result.is_err() && s.before.as_deref().is_some_and(|b| b != "pod-2"));
    assert!(other.is_none(), "{other:?} ({remote:?})\n{}", scene.agent.log_tail());
    assert!(samples.len() > 500);
}

#[test]
fn draining_keeps_old_conversations_and_takes_no_new_one() {
    let mut scene = open();
    for ip in Which::Both.external().both() {
        let target = SocketAddr::new(ip, PORT);
        let mut on_pod2 = (0..100)
            .map(|_| Talk::open(&scene.client(), target).unwrap())
            .find(|t| t.greeting.name == "pod-2")
            .unwrap();
        scene.change(Which::Both, |s| s.endpoints[1].terminating = true).unwrap();
        scene
            .agent
            .wait("backends", |rows| rows.iter().any(|row| row.to_string().to_lowercase().contains("draining")))
            .unwrap();
        for _ in 0..60 {
            assert_eq!(probe::tcp(&scene.client(), target, 10).unwrap().name, "pod-1");
        }
        on_pod2.exchange(100_000).unwrap();
        on_pod2.close().unwrap();
        scene.change(Which::Both, |s| s.endpoints[1].terminating = false).unwrap();
        scene
            .agent
            .wait("backends", |rows| !rows.iter().any(|row| row.to_string().to_lowercase().contains("draining")))
            .unwrap();
    }
}

#[test]
fn affinity_holds_a_client_to_its_backend() {
    let scene = open();
    for ip in Which::Sticky.external().both() {
        let target = SocketAddr::new(ip, PORT);
        for from in [scene.client(), scene.far(ip), From::ns(&scene.device.edge2)] {
            let names: Vec<_> = (0..12).map(|_| probe::tcp(&from, target, 10).unwrap().name).collect();
            assert!(names.iter().all(|name| *name == names[0]), "{names:?}");
        }
    }
}

#[test]
fn replies_survive_a_new_neighbour_and_a_moved_link() {
    let scene = open();
    let target = SocketAddr::new(Which::Local.external().v4, PORT);
    let mut talk = Talk::open(&scene.client(), target).unwrap();
    talk.exchange(1000).unwrap();
    // The client gets another card: its link-layer address changes.
    scene.device.client.ip("link set eth0 down\nlink set eth0 address 02:00:00:00:00:77\nlink set eth0 up").unwrap();
    let client = &scene.device.client;
    client.ip("route replace 192.168.20.96/27 via 192.168.20.10").unwrap();
    scene.device.dev.ip("neigh flush dev eth1").unwrap();
    talk.exchange(1000).unwrap();
    talk.close().unwrap();
}

/// What `unload` must leave as it was.
fn traces(scene: &Scene) -> BTreeMap<&'static str, String> {
    let dev = &scene.device.dev;
    let mut traces = BTreeMap::new();
    let links = dev.ip_text("-o -d link").unwrap();
    // Counters and queue settings aside: which links there are, and their programs.
    let programs =
        links.lines().map(|l| format!("{} xdp={}", l.split(' ').nth(1).unwrap_or(""), l.contains("prog/xdp")));
    traces.insert("links", programs.collect::<Vec<_>>().join("\n"));
    for link in [device::PORT2, device::PORT3, device::SWITCH, "veth11"] {
        let filters = ["ingress", "egress"]
            .map(|side| dev.tc_text(&format!("filter show dev {link} {side}")).unwrap_or_default());
        traces.insert(link, filters.concat());
    }
    traces.insert("addresses", dev.ip_text("-o addr show scope global").unwrap());
    traces.insert("routes", dev.ip_text("route show table all").unwrap());
    traces.insert("rules", dev.ip_text("rule").unwrap());
    for key in [
        "net/ipv4/ip_forward",
        "net/ipv6/conf/all/forwarding",
        "net/ipv4/conf/all/rp_filter",
        "net/ipv4/conf/eth0/rp_filter",
        "net/ipv4/conf/all/send_redirects",
        "net/ipv4/conf/eth1/send_redirects",
        "net/ipv4/conf/eth0/accept_local",
        "net/ipv4/conf/eth1/accept_local",
    ] {
        traces.insert(key, dev.sysctl(key).unwrap());
    }
    traces.insert("pins", scene.device.lab.pins().exists().to_string());
    traces
}

#[test]
fn unload_leaves_nothing_behind() {
    let mut scene = Scene::without_agent("auto", "xdp").unwrap();
    let before = traces(&scene);
    scene.start_agent().unwrap();
    let target = SocketAddr::new(Which::Local.external().v4, PORT);
    probe::tcp(&scene.client(), target, 1000).unwrap();
    assert_ne!(traces(&scene), before, "the test sees nothing");
    assert!(scene.agent.stop(), "{}", scene.agent.log_tail());
    scene.agent.command(&["unload"]).unwrap();
    assert_eq!(traces(&scene), before);
    // Twice is no error.
    scene.agent.command(&["unload"]).unwrap();
}

/// An address with a lifetime, as DHCP clients set it: no port may live on it.
#[test]
fn port_with_a_leased_address_is_refused() {
    let mut scene = Scene::without_agent("auto", "xdp").unwrap();
    let dev = &scene.device.dev;
    dev.ip("addr change 203.0.113.2/24 dev eth0 valid_lft 3600 preferred_lft 3600").unwrap();
    scene.agent.start().unwrap();
    let end = Instant::now() + Duration::from_secs(10);
    while scene.agent.running() {
        assert!(Instant::now() < end, "it goes on:\n{}", scene.agent.log_tail());
        std::thread::sleep(Duration::from_millis(20));
    }
    let log = scene.agent.log();
    assert!(log.contains("ports.Port2.interface") && log.contains("203.0.113.2"), "{log}");
    assert!(!scene.device.dev.ip_text("-d link show eth1").unwrap().contains("prog/xdp"));
}

#[test]
fn check_reads_what_the_scene_writes() {
    let scene = Scene::without_agent("auto", "xdp").unwrap();
    let (ok, said) = agent::check(&scene.files.config()).unwrap();
    assert!(ok, "{said}");
}
