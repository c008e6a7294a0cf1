//! The wall clock is set back and forward; nothing that lasts is measured by it.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use stellwerk_tests::netns::agent;
use stellwerk_tests::netns::cni::addresses;
use stellwerk_tests::netns::probe::Talk;
use stellwerk_tests::netns::scene::{PORT, Scene, Which};

use super::{SOON, edit, edited, loads, none_failed, runtime, scene, until};

/// An agent whose wall clock a file sets.
struct Clock(PathBuf);

impl Clock {
    fn of(scene: &mut Scene) -> Clock {
        let dir = scene.device.lab.dir();
        let (file, program) = (dir.join("clock"), dir.join("faked"));
        let text = format!(
            "#!/bin/sh\nexport LD_PRELOAD={} FAKETIME_TIMESTAMP_FILE={} FAKETIME_NO_CACHE=1\n\
             export FAKETIME_DONT_FAKE_MONOTONIC=1 DONT_FAKE_MONOTONIC=1\nexec {} \"$@\"\n",
            library().display(),
            file.display(),
            agent::binary().unwrap().display()
        );
        fs::write(&program, text).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let clock = Clock(file);
        clock.set("+0");
        scene.agent.started_by(program);
        clock
    }

    fn set(&self, by: &str) {
        fs::write(&self.0, format!("{by}\n")).unwrap();
    }
}

/// Where Debian's package faketime has it.
fn library() -> PathBuf {
    let folders = fs::read_dir("/usr/lib").unwrap().flatten().map(|entry| entry.path());
    let mut all = folders.map(|dir| dir.join(Path::new("faketime/libfaketimeMT.so.1")));
    all.find(|path| path.exists()).expect("libfaketimeMT.so.1 (package faketime)")
}

#[test]
fn a_clock_that_is_set_ends_and_prolongs_nothing() {
    let mut scene = scene();
    let clock = Clock::of(&mut scene);
    scene.start_agent().unwrap();
    let loads = loads(&scene);
    the_agents_clock_follows(&mut scene, &clock);
    cooling_addresses_stay_cool(&scene, &clock);
    farewells_take_their_time(&mut scene, &clock);
    none_failed(&loads, &scene);
}

/// Else the test would see nothing: what is logged has the time that is set.
fn the_agents_clock_follows(scene: &mut Scene, clock: &Clock) {
    let date =
        |scene: &Scene| scene.agent.log().lines().rev().find_map(|line| Some(line.get(..10)?.to_owned())).unwrap();
    let before = date(scene);
    clock.set("+40d");
    edit(scene, true);
    edited(scene, true);
    assert_ne!(date(scene), before, "{}", scene.agent.log_tail());
    clock.set("+0");
}

/// Addresses that pods gave back are nobody's for a minute, whatever the clock says.
fn cooling_addresses_stay_cool(scene: &Scene, clock: &Clock) {
    let runtime = runtime(scene);
    let pod = scene.device.lab.ns("pod").unwrap();
    let mut had: Vec<Vec<String>> = Vec::new();
    for by in ["+0", "+1d", "-1h", "+0"] {
        clock.set(by);
        let now = addresses(&runtime.add(&pod, "pod", "").unwrap());
        assert!(!had.contains(&now), "{by}: {now:?} cools down");
        had.push(now);
        runtime.del(&pod, "pod").unwrap();
    }
}

/// An endpoint that leaves keeps its connections for four seconds: neither none of them nor an hour.
fn farewells_take_their_time(scene: &mut Scene, clock: &Clock) {
    let target = SocketAddr::new(Which::Both.external().v4, PORT);
    for by in ["+1d", "-1h"] {
        clock.set("+0");
        let client = scene.client();
        let mut talks = (0..100).map(|_| Talk::open(&client, target).unwrap());
        let mut talk = talks.find(|talk| talk.greeting.name == "pod-2").unwrap();
        let begin = Instant::now();
        scene.change(Which::Both, |s| s.endpoints[1].terminating = true).unwrap();
        scene.agent.wait("backends", |rows| rows.iter().any(|row| row["state"] == "draining")).unwrap();
        clock.set(by);
        // A change of something else has the agent look at its clock.
        edit(scene, by == "-1h");
        edited(scene, by == "-1h");
        if begin.elapsed() < Duration::from_secs(3) {
            talk.exchange(1_000).unwrap_or_else(|e| panic!("{by}: {e:#}\n{}", scene.agent.log_tail()));
        }
        scene.agent.wait("backends", |rows| rows.iter().all(|row| row["state"] != "draining")).unwrap();
        let took = begin.elapsed();
        assert!((Duration::from_secs(4)..SOON).contains(&took), "{by}: its farewell took {took:?}");
        scene.change(Which::Both, |s| s.endpoints[1].terminating = false).unwrap();
        until(scene, "it is back", SOON, || Talk::open(&client, target).unwrap().greeting.name == "pod-2");
    }
}
