//! Flow tables that grow while packets use them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use stellwerk_tests::load::{Load, Plan, Summary};
use stellwerk_tests::netns::config::Files;
use stellwerk_tests::netns::device;
use stellwerk_tests::netns::probe::Talk;
use stellwerk_tests::netns::scene::{PORT, Scene, Which};
use stellwerk_tests::routes::Random;

fn configure(scene: &Scene, connections: u32) {
    let text = Files::standard("auto", "xdp") + &format!("capacity: {{ connections: {connections} }}\n");
    scene.files.write_config(&text).unwrap();
}

/// A scene with little room for connections, some that stay open, and load.
fn open(connections: u32) -> (Scene, Vec<Talk>, [Load; 2]) {
    let mut scene = Scene::without_agent("auto", "xdp").unwrap();
    configure(&scene, connections);
    start(&mut scene, 4_096);
    let web = |v4| {
        let twin = Which::Web.external();
        SocketAddr::new(if v4 { twin.v4 } else { twin.v6 }, PORT)
    };
    let pace = Duration::from_millis(10);
    let one = Load::start(&scene.device.client, Plan { pace, ..Plan::new(web(true)) }).unwrap();
    let source = Some(device::far().v6);
    let two = Load::start(&scene.device.inet, Plan { pace, source, ..Plan::new(web(false)) }).unwrap();
    let mut talks = Vec::new();
    for _ in 0..20 {
        for ip in Which::Both.external().both().into_iter().chain(Which::Remote.external().both()) {
            let mut talk = Talk::open(&scene.client(), SocketAddr::new(ip, PORT)).unwrap();
            talk.exchange(100).unwrap();
            talks.push(talk);
        }
    }
    (scene, talks, [one, two])
}

/// Starts an agent, and waits until it runs and the tables of both families have so many slots.
fn start(scene: &mut Scene, slots: u64) {
    scene.start_agent().unwrap();
    let rows = scene.agent.rows("status").unwrap();
    let tables = ["FLOWS4", "FLOWS6"].map(|name| rows.iter().find(|row| row["name"] == name));
    let room = tables.map(|row| row.and_then(|row| row["capacity"].as_u64()));
    assert_eq!(room, [Some(slots); 2], "{}", scene.agent.log_tail());
}

fn check(scene: &Scene, talks: &mut [Talk], loads: &[Load; 2], from: Instant) {
    for talk in talks {
        talk.exchange(1000).unwrap_or_else(|e| panic!("{e:#}\n{}", scene.agent.log_tail()));
    }
    let to = Instant::now();
    loads.iter().for_each(|load| load.settle(to));
    let samples: Vec<_> = loads.iter().flat_map(|load| load.reader().between(from, to)).collect();
    let summary = Summary::of(&samples);
    assert!(summary.requests > 200, "only {} requests", summary.requests);
    assert!(summary.failed == 0, "{summary:#?}\n{}", scene.agent.log_tail());
}

#[test]
fn tables_grow_under_load() {
    let from = Instant::now();
    let (mut scene, mut talks, loads) = open(1_000);
    for (connections, slots) in [(3_000, 16_384), (100_000, 524_288)] {
        configure(&scene, connections);
        assert!(scene.agent.stop(), "it did not end well:\n{}", scene.agent.log_tail());
        start(&mut scene, slots);
        check(&scene, &mut talks, &loads, from);
    }
    // Never smaller: who is in it stays.
    configure(&scene, 1_000);
    assert!(scene.agent.stop());
    start(&mut scene, 524_288);
    check(&scene, &mut talks, &loads, from);
    let log = scene.agent.log();
    assert!(log.contains("entries moved") && !log.contains("are lost"), "{log}");
}

/// Whenever the agent dies in the midst of it, the next one goes on.
#[test]
fn a_killed_agent_leaves_it_to_the_next() {
    let from = Instant::now();
    let (mut scene, mut talks, loads) = open(1_000);
    let mut random = Random(u64::from(std::process::id()));
    let mut slots = 4_096;
    for connections in [3_000, 12_000, 50_000] {
        configure(&scene, connections);
        slots *= 4;
        // A start takes a few seconds, more on a busy machine: of these deaths some are before, some in the midst.
        for death in 0..4 {
            assert!(death > 0 || scene.agent.stop());
            scene.agent.start().unwrap();
            std::thread::sleep(Duration::from_millis(random.below(4_000)));
            scene.agent.kill();
            for talk in &mut talks {
                talk.exchange(1000).unwrap_or_else(|e| panic!("{e:#}\n{}", scene.agent.log_tail()));
            }
        }
        start(&mut scene, slots);
        check(&scene, &mut talks, &loads, from);
    }
}
