//! Programs of others, and hands, that take ours off their links.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use stellwerk_tests::bpf;
use stellwerk_tests::load::echo;
use stellwerk_tests::netns::cni::twin;
use stellwerk_tests::netns::device::{self, Twin};
use stellwerk_tests::netns::probe::{self, From};
use stellwerk_tests::netns::scene::{ECHO, PORT, Scene, Which};
use stellwerk_tests::netns::{Ns, cni::Runtime};

use super::{SOON, loads, none_failed, points, runtime, until};

/// A pod of the runtime's, its node's end, and an echo server in it.
struct Pod {
    ns: Ns,
    at: Twin,
    host: String,
    _server: stellwerk_tests::load::Task,
}

fn pod(scene: &Scene, runtime: &Runtime) -> Pod {
    let ns = scene.device.lab.ns("pod").unwrap();
    let made = runtime.add(&ns, "pod", "").unwrap();
    let at = twin(&made).unwrap();
    let host = made["interfaces"][0]["name"].as_str().unwrap().to_owned();
    let server = echo::serve(&ns, "pod", &at.both().map(|ip| SocketAddr::new(ip, ECHO))).unwrap();
    Pod { ns, at, host, _server: server }
}

pub fn what_others_take_off_is_back(scene: &Scene) {
    let pod = pod(scene, &runtime(scene));
    let loads = loads(scene);
    std::thread::sleep(Duration::from_millis(500));
    a_pinned_link_is_not_theirs_to_detach(scene);
    a_pods_filter_and_qdisc_come_back(scene, &pod);
    none_failed(&loads, scene);
    drop(loads);
    a_detached_link_comes_back(scene);
    removed_pins_come_back(scene, &pod);
}

/// The kernel itself refuses.
fn a_pinned_link_is_not_theirs_to_detach(scene: &Scene) {
    for mode in ["xdp", "xdpdrv"] {
        let refused = scene.device.dev.ip_text(&format!("link set dev {} {mode} off", device::PORT3));
        assert!(refused.is_err(), "{mode} off took it away");
    }
    assert_eq!(points(scene, device::PORT3), ["xdp", "egress"]);
}

/// The pod as a client of a cluster IP: its filters translate that.
fn reaches(pod: &Pod) -> bool {
    let target = SocketAddr::new(Which::Both.cluster().v4, PORT);
    probe::connects(&From::ns(&pod.ns), target, Duration::from_millis(300))
}

fn a_pods_filter_and_qdisc_come_back(scene: &Scene, pod: &Pod) {
    until(scene, "the pod reaches services", SOON, || reaches(pod));
    for what in [format!("filter del dev {} ingress", pod.host), format!("qdisc del dev {} clsact", pod.host)] {
        scene.device.dev.tc_text(&what).unwrap();
        let took = until(scene, &what, SOON, || points(scene, &pod.host).len() == 2 && reaches(pod));
        println!("tc {what}: back after {took:?}");
    }
    let log = scene.agent.log();
    assert!(log.matches("entries were not as they should be").count() >= 2, "{log}");
}

fn links(scene: &Scene) -> PathBuf {
    scene.agent.pins().join("links")
}

/// Pins of an interface's programs.
fn pins(scene: &Scene, interface: &str) -> Vec<PathBuf> {
    let text = scene.device.dev.ip_text(&format!("-o link show dev {interface}")).unwrap();
    let index = format!("{}-", text.split(':').next().unwrap().trim());
    let all = fs::read_dir(links(scene)).unwrap().flatten().map(|entry| entry.path());
    all.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(&index)).collect()
}

fn serves(scene: &Scene) -> bool {
    let target = SocketAddr::new(Which::Both.external().v4, PORT);
    probe::connects(&scene.client(), target, Duration::from_millis(300))
}

fn a_detached_link_comes_back(scene: &Scene) {
    let all = pins(scene, device::PORT3);
    assert_eq!(all.len(), 2, "{all:?}");
    all.iter().for_each(|pin| bpf::detach_pinned(pin).unwrap());
    assert!(points(scene, device::PORT3).is_empty() && !serves(scene), "the test sees nothing");
    let took = until(scene, "programs of the port", SOON, || points(scene, device::PORT3).len() == 2 && serves(scene));
    println!("detached links: back after {took:?}");
}

/// All that is pinned: what hung by it is gone with it.
fn removed_pins_come_back(scene: &Scene, pod: &Pod) {
    let before = names(scene);
    fs::remove_dir_all(scene.agent.pins()).unwrap();
    let took = until(scene, "all pins", SOON, || names(scene) == before && serves(scene));
    println!("removed pins: back after {took:?}");
    assert!(scene.agent.log().contains(" pins were gone ("), "{}", scene.agent.log());
    // The command line finds the tables again, and the runtime its pods.
    assert!(!scene.agent.rows("services").unwrap().is_empty());
    let target = SocketAddr::new(pod.at.v4, ECHO);
    assert!(probe::connects(&From::ns(&scene.device.dev), target, SOON));
}

fn names(scene: &Scene) -> Vec<PathBuf> {
    let read = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut all: Vec<PathBuf> = read(scene.agent.pins().to_owned()).flat_map(read).collect();
    all.sort();
    all
}
