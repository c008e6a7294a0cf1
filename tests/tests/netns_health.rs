//! Endpoints that fail their probes and come back: who answers meanwhile, and what is shown.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde_json::Value;
use stellwerk_tests::load::{Task, echo};
use stellwerk_tests::netns::config::{Files, Service};
use stellwerk_tests::netns::device::{self, Twin};
use stellwerk_tests::netns::scene::Scene;
use stellwerk_tests::netns::{Ns, probe};

const PORT: u16 = 7100;

fn server(ns: &Ns, name: &str, at: Twin) -> Task {
    echo::serve(ns, name, &at.both().map(|ip| SocketAddr::new(ip, PORT))).unwrap()
}

fn config(scene: &Scene, more: &str) {
    let check = format!(
        "  healthChecks:\n    default/checked: tcp interval=200ms rise=1 fall=2{more}\n    default/later: tcp interval=200ms\n"
    );
    scene.files.write_config(&(Files::standard("auto", "auto") + &check)).unwrap();
}

/// Who answers many connections, each of which has to succeed; in both families.
fn who(scene: &Scene) -> BTreeSet<String> {
    let all = device::external(110)
        .both()
        .into_iter()
        .flat_map(|ip| (0..30).map(move |_| probe::tcp(&scene.client(), SocketAddr::new(ip, 80), 10).unwrap().name));
    all.collect()
}

fn wait(scene: &mut Scene, failing: u64, taking: u64) {
    wait_for(scene, "default/checked:tcp", failing, taking);
}

/// Waits until so many endpoints fail, all of them this service's, and so many of its endpoints take connections.
fn wait_for(scene: &mut Scene, name: &str, failing: u64, taking: u64) {
    let health = |rows: &[Value]| rows.iter().find(|row| row["what"] == "health").and_then(|row| row["used"].as_u64());
    scene.agent.wait("status", |rows| health(rows) == Some(failing)).unwrap();
    let row = |rows: &[Value]| rows.iter().find(|row| row["name"] == name).cloned();
    let fits =
        |row: Value| row["backends"] == taking && row["failing"].as_array().map_or(0, Vec::len) as u64 == failing;
    scene.agent.wait("services", |rows| row(rows).is_some_and(fits)).unwrap();
}

#[test]
fn endpoints_that_fail_and_recover() {
    let mut scene = Scene::without_agent("auto", "auto").unwrap();
    let (pod1, pod2) = (device::pod(1, 11), device::pod(1, 12));
    let service = Service::tcp("checked", 80, PORT, device::cluster(30)).external(device::external(110));
    let service = service.endpoint(pod1, "edge-1").endpoint(pod2, "edge-1");
    scene.files.write(&service).unwrap();
    scene.services.push(service);
    config(&scene, "");
    let one = server(&scene.pod1, "one", pod1);
    let two = server(&scene.pod2, "two", pod2);
    scene.start_agent().unwrap();
    wait(&mut scene, 0, 4);
    assert_eq!(who(&scene), BTreeSet::from(["one".to_owned(), "two".into()]));

    // Of each family one fails: it leaves, and nobody notices.
    drop(one);
    wait(&mut scene, 2, 2);
    assert_eq!(who(&scene), BTreeSet::from(["two".to_owned()]));
    let log = scene.agent.log();
    assert!(log.contains("172.27.1.11:7100 of default/checked fails its probes: connection refused"), "{log}");
    // Another agent knows of it before its first probe.
    scene.agent.kill();
    scene.start_agent().unwrap();
    assert_eq!(who(&scene), BTreeSet::from(["two".to_owned()]));
    wait(&mut scene, 2, 2);

    // All fail: all serve, or none does.
    drop(two);
    wait(&mut scene, 4, 4);
    config(&scene, " allFailing=closed");
    wait(&mut scene, 4, 0);
    let refused = probe::tcp(&scene.client(), SocketAddr::new(device::external(110).v4, 80), 10).unwrap_err();
    assert!(format!("{refused:#}").to_lowercase().contains("refused"), "{refused:#}");

    // What is to follow from a failure holds as soon as it is written: no probe has anything new to tell.
    for _ in 0..4 {
        config(&scene, " allFailing=open");
        wait(&mut scene, 4, 4);
        config(&scene, " allFailing=closed");
        wait(&mut scene, 4, 0);
    }

    // They come back.
    let _one = server(&scene.pod1, "one", pod1);
    wait(&mut scene, 2, 2);
    assert_eq!(who(&scene), BTreeSet::from(["one".to_owned()]));
    let _two = server(&scene.pod2, "two", pod2);
    wait(&mut scene, 0, 4);
    assert_eq!(who(&scene), BTreeSet::from(["one".to_owned(), "two".into()]));
    assert!(scene.agent.log().contains("172.27.1.12:7100 of default/checked is well again"));

    // One that comes later is probed, too.
    let later = Service::tcp("later", 80, PORT + 1, device::cluster(31)).endpoint(pod1, "edge-1");
    scene.files.write(&later).unwrap();
    wait_for(&mut scene, "default/later:tcp", 2, 2);
}
