//! What goes wrong around the agent, while load goes through it: its death and the kernel's refusal at any step, full and
//! read-only file systems, lost notifications, clocks that are set, interfaces that go, and programs of others that
//! take ours off. docs/faults.md says of each what is promised.

mod clock;
mod disk;
mod network;
mod others;
mod steps;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use stellwerk_tests::netns::config::{Endpoint, Files};
use stellwerk_tests::netns::probe;
use stellwerk_tests::netns::scene::{Loads, PORT, Scene, Which};
use stellwerk_tests::netns::{cni::Runtime, device};

/// Pods of the runtime's beside those of the scene, a short farewell, and a table that isn't large.
const LINES: &str =
    "pods: { blocks: [172.27.3.0/26, \"fd00:27:3::/122\"] }\ndraining: 4s\ncapacity: { services: 64 }\n";

/// The agent's loop looks at all tables so often, at most, and a busy machine is slow.
const PRUNE: Duration = Duration::from_secs(40);
/// What is to happen at once.
const SOON: Duration = Duration::from_secs(8);

/// A scene whose agent doesn't run yet, and makes pods, too.
fn scene() -> Scene {
    let scene = Scene::without_agent("auto", "xdp").expect("the scene");
    scene.files.write_config(&(Files::standard("auto", "xdp") + LINES)).unwrap();
    scene
}

fn opened() -> Scene {
    let mut scene = scene();
    scene.start_agent().unwrap();
    scene
}

/// By one agent, whose start is the dearest of it: nothing here needs another one.
#[test]
fn the_network_and_others_behind_its_back() {
    let mut scene = opened();
    others::what_others_take_off_is_back(&scene);
    network::lost_notifications_and_interfaces_that_return(&mut scene);
}

fn runtime(scene: &Scene) -> Runtime {
    Runtime::new(&scene.device.lab, &scene.device.dev).unwrap().beside(&scene.agent)
}

/// Loads of which no request may fail.
fn loads(scene: &Scene) -> Loads {
    Loads::start(scene, Duration::from_millis(60)).expect("loads")
}

fn none_failed(loads: &Loads, scene: &Scene) {
    loads.none_failed(scene, 200);
}

/// Waits, and says how long it took.
#[track_caller]
fn until(scene: &Scene, what: &str, patience: Duration, mut is: impl FnMut() -> bool) -> Duration {
    let begin = Instant::now();
    while !is() {
        assert!(begin.elapsed() < patience, "not within {patience:?}: {what}\n{}", scene.agent.log_tail());
        std::thread::sleep(Duration::from_millis(20));
    }
    begin.elapsed()
}

#[track_caller]
fn until_said(scene: &Scene, words: &str, patience: Duration) {
    until(scene, words, patience, || scene.agent.log().contains(words));
}

/// Gives the service without endpoints some, or takes them away.
fn edit(scene: &mut Scene, on: bool) {
    let endpoints = [11, 12].map(|host| Endpoint::new(device::pod(1, host), "edge-1"));
    scene.change(Which::Empty, |s| s.endpoints = if on { endpoints.to_vec() } else { Vec::new() }).unwrap();
}

/// Whether that edit is in force in both families.
fn is_edited(scene: &Scene, on: bool) -> bool {
    let served = |ip| probe::connects(&scene.client(), SocketAddr::new(ip, PORT), Duration::from_millis(300));
    Which::Empty.external().both().map(served) == [on; 2]
}

#[track_caller]
fn edited(scene: &Scene, on: bool) {
    until(scene, "the edit of endpoints", SOON, || is_edited(scene, on));
}

/// What hangs on an interface, as `status` has it.
fn points(scene: &Scene, interface: &str) -> Vec<String> {
    let rows = scene.agent.rows("status").unwrap_or_default();
    let of = rows.iter().filter(|row| row["what"] == "hook" && row["name"] == interface);
    let point = |detail: &str| detail.split(' ').next().unwrap_or_default().to_owned();
    of.filter_map(|row| row["detail"].as_str()).map(point).collect()
}

/// An interface inside.
fn link(scene: &Scene, name: &str) {
    let peer = name.replace("veth", "peer");
    scene.device.dev.ip(&format!("link add {name} type veth peer name {peer}\nlink set {name} up")).unwrap();
}
