//! File systems that take nothing: full ones for what the agent writes down, a read-only one for its pins.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use stellwerk_tests::netns::scene::Scene;

use super::{PRUNE, SOON, edit, edited, link, loads, none_failed, points, runtime, scene, until, until_said};

const NONE: Option<&str> = None;

/// File systems of a mount namespace of the thread's own; they go before the lab does.
#[derive(Default)]
struct Mounts(Vec<PathBuf>);

impl Mounts {
    fn add(&mut self, kind: &str, at: &Path, options: Option<&str>) {
        fs::create_dir_all(at).unwrap();
        mount(Some(kind), at, Some(kind), MsFlags::empty(), options).unwrap();
        self.0.push(at.to_owned());
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        for at in &self.0 {
            _ = umount2(at, MntFlags::MNT_DETACH);
        }
    }
}

/// Runs a test where nobody else sees what it mounts.
fn alone(test: fn()) {
    let work = move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).unwrap();
        test();
    };
    std::thread::spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

#[test]
fn full_and_read_only_file_systems_are_waited_for() {
    alone(|| {
        let mut scene = scene();
        let id = scene.device.lab.id().to_owned();
        let (run, kept) = (Path::new("/run").join(&id), Path::new("/var/lib").join(&id));
        let pins = scene.device.lab.dir().join("bpf");
        let mut mounts = Mounts::default();
        mounts.add("tmpfs", &run, Some("size=512k"));
        mounts.add("tmpfs", &kept, Some("size=512k"));
        mounts.add("bpf", &pins, None);
        let agent = stellwerk_tests::netns::Agent::new(&scene.device.lab, &scene.device.dev, &scene.files.config());
        scene.agent = agent.unwrap().pinned_at(pins.join(&id));
        scene.start_agent().unwrap();
        let loads = loads(&scene);
        a_full_disk(&mut scene, &run, &kept);
        none_failed(&loads, &scene);
        read_only_pins(&mut scene, &pins);
        none_failed(&loads, &scene);
        scene.agent.kill();
        drop(loads);
        drop(mounts);
    });
}

/// Takes all room that there is.
fn fill(dir: &Path) -> PathBuf {
    let path = dir.join("fill");
    let mut file = fs::File::create(&path).unwrap();
    while file.write_all(&[1; 512]).is_ok() {}
    path
}

/// A service that asks for an address.
fn balancer(scene: &Scene, name: &str) {
    let text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: {name} }}\nspec: {{ type: LoadBalancer, ports: [{{ port: 80 }}] }}\n"
    );
    scene.files.replace(&format!("cluster/{name}.yaml"), &text).unwrap();
}

fn a_full_disk(scene: &mut Scene, run: &Path, kept: &Path) {
    let runtime = runtime(scene);
    let pods = ["one", "two"].map(|name| scene.device.lab.ns(name).unwrap());
    runtime.add(&pods[0], "one", "").unwrap();
    balancer(scene, "early");
    until(scene, "an address on disk", SOON, || kept.join("addresses.json").exists());
    let files = [run.join("state.json"), kept.join("addresses.json"), run.join("ipam.json")];
    let before = files.clone().map(|file| fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display())));
    let filled = [run, kept].map(fill);

    // A pod: nothing of it is made.
    let why = runtime.add(&pods[1], "two", "").unwrap_err().to_string();
    assert!(why.contains("leases can't be written") && why.contains("No space left on device"), "{why}");
    assert_eq!(scene.device.dev.ip_text("-o link show type veth").unwrap().matches("stpod").count(), 1);
    // An address.
    balancer(scene, "late");
    until_said(scene, "services' addresses may change with a restart: writing", SOON);
    // A new interface, whose settings are to be noted first; what needs no note doesn't wait for it.
    link(scene, "veth99");
    until_said(scene, &format!("writing {}: No space left on device", files[0].display()), SOON);
    edit(scene, true);
    edited(scene, true);
    let after = files.clone().map(|file| fs::read(file).unwrap());
    assert!(before == after, "a file is neither the old one nor a new one");

    filled.iter().for_each(|file| fs::remove_file(file).unwrap());
    until(scene, "programs on the new interface", SOON, || points(scene, "veth99").len() == 2);
    assert!(scene.agent.log().contains("net/ipv4/conf/veth99/accept_local: 0 is now 1"));
    runtime.add(&pods[1], "two", "").unwrap();
    until(scene, "the address on disk", PRUNE, || fs::read_to_string(&files[1]).unwrap().contains("default/late"));
    until_said(scene, "addresses.json again", SOON);
}

fn read_only_pins(scene: &mut Scene, pins: &Path) {
    let remount = |flags| mount(NONE, pins, NONE, MsFlags::MS_REMOUNT | flags, NONE).unwrap();
    remount(MsFlags::MS_RDONLY);
    // What needs no pin.
    edit(scene, false);
    edited(scene, false);
    link(scene, "veth98");
    until_said(scene, "attaching ingress to veth98: pinning ", SOON);
    // The next agent doesn't start, and leaves in force what is.
    scene.agent.kill();
    scene.agent.start().unwrap();
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while scene.agent.running() {
        assert!(std::time::Instant::now() < end, "it goes on:\n{}", scene.agent.log_tail());
        std::thread::sleep(Duration::from_millis(20));
    }
    let log = scene.agent.log();
    let why = log.lines().rev().find(|line| line.starts_with("stellwerk: the pinned map ")).unwrap_or_default();
    assert!(why.contains("Read-only file system") && why.contains(&*pins.to_string_lossy()), "{log}");
    remount(MsFlags::empty());
    scene.start_agent().unwrap();
    until(scene, "programs on the new interface", SOON, || points(scene, "veth98").len() == 2);
}
