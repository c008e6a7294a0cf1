//! From one version to another whose tables lie otherwise, and back: nothing that runs is lost, and where it can't be
//! done nothing has changed.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use stellwerk_tests::load::{Load, Plan, Sample, Summary, echo};
use stellwerk_tests::netns::agent::Version;
use stellwerk_tests::netns::config::Files;
use stellwerk_tests::netns::probe::{self, From, Pings, Talk};
use stellwerk_tests::netns::scene::{ECHO, PORT, Scene, Which, web};
use stellwerk_tests::netns::{Ns, device};

const DNS: &str = "172.28.0.10";

/// The scene, with names, pods that are masqueraded, and servers far away.
fn open() -> Scene {
    let mut scene = Scene::without_agent("auto", "xdp").expect("the scene");
    let address = "address: 10.20.0.1/24";
    let config = Files::standard("auto", "xdp").replace(address, &format!("{address}, natSubnets: [172.27.1.0/24]"));
    scene.files.write_config(&(config + "  dns: {}\n")).expect("a configuration");
    scene.start_agent().expect("the agent");
    let far = device::far();
    let servers = [
        web(&scene.device.inet, "far", far),
        echo::serve(&scene.device.inet, "far", &far.both().map(|ip| SocketAddr::new(ip, ECHO))),
    ];
    servers.into_iter().for_each(|server| scene.keep(server.expect("a server")));
    scene
}

/// Something that is tried again and again until it is dropped.
struct Again {
    what: String,
    stop: Arc<AtomicBool>,
    tried: Arc<AtomicU64>,
    thread: Option<JoinHandle<Vec<String>>>,
}

impl Again {
    fn start(what: &str, pace: u64, mut one: impl FnMut() -> Result<(), String> + Send + 'static) -> Again {
        let (stop, tried) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (stopped, count) = (stop.clone(), tried.clone());
        let thread = thread::spawn(move || {
            let mut failed = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                failed.extend(one().err());
                count.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(pace));
            }
            failed
        });
        Again { what: what.to_owned(), stop, tried, thread: Some(thread) }
    }

    /// Ends it once it has been tried so often; it has never failed.
    fn end(mut self, at_least: u64) {
        // A question that is asked again takes five seconds.
        let patience = Instant::now() + Duration::from_secs(30);
        while self.tried.load(Ordering::Relaxed) < at_least && Instant::now() < patience {
            thread::sleep(Duration::from_millis(50));
        }
        self.stop.store(true, Ordering::Relaxed);
        let failed = self.thread.take().expect("it ends once").join().expect("a thread");
        let tried = self.tried.load(Ordering::Relaxed);
        assert!(tried >= at_least, "{}: only {tried}", self.what);
        assert!(failed.is_empty(), "{}: {} of {tried} failed: {failed:?}", self.what, failed.len());
    }
}

impl Drop for Again {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn pings(from: From, to: IpAddr) -> Again {
    let pings = Pings::open(&from, to).expect("a socket");
    Again::start(&format!("ping {to}"), 10, move || pings.one(64).map_err(|error| format!("{error:#}")))
}

/// Asks as the C library does: a question without an answer once more after a while.
fn names(pod: &Ns) -> Again {
    let pod = pod.clone();
    let want = format!("{}\n", Which::Web.cluster().v4);
    Again::start("names", 20, move || {
        let mut dig = pod.command("dig");
        dig.args(["+time=5", "+tries=2", "+short", &format!("@{DNS}"), "web.default.svc.cluster.local"]);
        let out = dig.stderr(Stdio::null()).output().map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        // It tells of each question that it asks again.
        if said.ends_with(&want) { Ok(()) } else { Err(said) }
    })
}

/// HTTP through the VIP from both networks, a family each, and from a pod to the outside, translated.
fn loads(scene: &Scene) -> [Load; 3] {
    let (vip, far) = (Which::Web.external(), device::far());
    // Whoever begins while none may sends its SYN again after 1, 3 and 7 s; a slow build on a busy machine takes seconds.
    let (pace, timeout) = (Duration::from_millis(40), Duration::from_secs(15));
    let plan = |to: IpAddr, port| Plan { pace, timeout, ..Plan::new(SocketAddr::new(to, port)) };
    let start = |ns: &Ns, plan| Load::start(ns, plan).expect("a load");
    [
        start(&scene.device.client, plan(vip.v4, PORT)),
        start(&scene.device.inet, Plan { source: Some(far.v6), ..plan(vip.v6, PORT) }),
        start(&scene.pod1, Plan { keep_alive: 6, fresh: 4, ..plan(far.v4, 8080) }),
    ]
}

/// Connections that stay open: through services on this node and another, with affinity, and translated.
fn talks(scene: &Scene) -> Vec<(String, Talk)> {
    let mut all = Vec::new();
    for which in [Which::Local, Which::Remote, Which::Sticky] {
        for ip in which.external().both() {
            let talk = Talk::open(&scene.client(), SocketAddr::new(ip, PORT)).expect("a connection");
            all.push((format!("{which:?} {ip}"), talk));
        }
    }
    let translated = Talk::open(&From::ns(&scene.pod1), SocketAddr::new(device::far().v4, ECHO)).expect("a connection");
    assert_eq!(translated.greeting.client, Some(device::uplink().v4));
    all.push(("translated".into(), translated));
    all
}

fn exchange(scene: &Scene, talks: &mut [(String, Talk)]) {
    for (name, talk) in talks {
        let done = talk.exchange(2_000);
        assert!(done.is_ok(), "{name}: {done:?}\n{}", scene.agent.log_tail());
    }
}

fn counted(scene: &Scene, listing: &str, field: &str) -> u64 {
    scene.agent.rows(listing).expect("a listing").iter().filter_map(|row| row[field].as_u64()).sum()
}

/// The agent's version, and the folders of maps that are pinned.
fn in_force(scene: &Scene) -> (String, usize) {
    let rows: Vec<serde_json::Value> =
        serde_json::from_str(&scene.agent.command(&["version", "--json"]).expect("a version")).expect("JSON");
    let pins = fs::read_dir(scene.agent.pins()).expect("pins").flatten();
    let folders = pins.filter(|entry| entry.file_name().to_string_lossy().starts_with("maps-")).count();
    let pins = rows.iter().filter(|row| row["what"] == "map").count();
    assert!(pins > 40, "{rows:#?}");
    (rows[0]["name"].as_str().unwrap_or_default().to_owned(), folders)
}

#[test]
fn another_version_takes_over_and_gives_back_under_load() {
    let mut scene = open();
    let (next, own) = (Version::next().unwrap(), Version::own().unwrap());
    let mut talks = talks(&scene);
    exchange(&scene, &mut talks);
    let from = Instant::now();
    let loads = loads(&scene);
    let again = [
        pings(From::ns(&scene.pod1), device::far().v4),
        pings(From::ns(&scene.pod1), device::pod(2, 11).v4),
        pings(From::ns(&scene.pod1), device::pod(2, 11).v6),
        pings(scene.client(), Which::Web.external().v4),
        names(&scene.pod1),
    ];
    let mut switches = Vec::new();
    for (version, name) in [(&next, "0.1.1"), (&own, env!("CARGO_PKG_VERSION"))] {
        thread::sleep(Duration::from_millis(700));
        let counts = |scene: &Scene| {
            ["connections", "packets"].map(|field| counted(scene, "backends", field)).map(|count| count.max(1))
        };
        let before = counts(&scene);
        scene.agent.kill();
        scene.agent.become_version(version);
        let begin = Instant::now();
        scene.start_agent().unwrap();
        switches.push(begin..Instant::now());
        exchange(&scene, &mut talks);
        let after = counts(&scene);
        assert!(before.iter().zip(&after).all(|(before, after)| after >= before), "{before:?} {after:?}");
        assert_eq!(in_force(&scene), (name.to_owned(), 1));
    }
    thread::sleep(Duration::from_millis(700));
    let log = scene.agent.log();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("took over maps-")).collect();
    assert_eq!(told.len(), 2, "{log}");
    for table in ["SERVICES4", "BACKENDS", "COUNTERS", "DROPS", "FLOWS4", "OWNERS4", "no connection began for"] {
        assert!(told.iter().all(|line| line.contains(table)), "{table}: {told:?}");
    }
    println!("{}", told.join("\n"));
    again.into_iter().for_each(|again| again.end(100));
    let to = Instant::now();
    for (load, name) in loads.iter().zip(["v4", "v6", "translated"]) {
        load.settle(to);
        let samples: Vec<Sample> = load.reader().between(from, to);
        let summary = Summary::of(&samples);
        assert!(summary.requests > 500 && summary.failed == 0, "{name}: {summary:#?}\n{}", scene.agent.log_tail());
        let slow = samples.iter().filter(|sample| sample.took > Duration::from_millis(500)).count();
        println!("{name}: {} requests, {slow} of them took more than 0.5 s", summary.requests);
    }
    exchange(&scene, &mut talks);
}

/// Starts an agent that must not come up, and gives its last words.
fn refused(scene: &mut Scene, version: &Version) -> String {
    scene.agent.kill();
    scene.agent.become_version(version);
    let error = scene.start_agent().expect_err("it can't start");
    scene.agent.become_version(&Version::own().unwrap());
    format!("{error:#}")
}

#[test]
fn what_cannot_be_taken_over_stays_in_force() {
    let mut scene = open();
    let mut talks = talks(&scene);
    let vip = SocketAddr::new(Which::Both.external().v4, PORT);
    let next = Version::next().unwrap();

    // Programs that the verifier refuses: without their ends.
    let object = fs::read(next.object.as_ref().unwrap()).unwrap();
    let end = [0x95, 0, 0, 0, 0, 0, 0, 0];
    let endless = |word: &[u8]| if word == end { [0xb7, 0, 0, 0, 0, 0, 0, 0].to_vec() } else { word.to_vec() };
    let broken = scene.device.lab.dir().join("endless.o");
    fs::write(&broken, object.chunks(8).flat_map(endless).collect::<Vec<u8>>()).unwrap();
    let error = refused(&mut scene, &Version { object: Some(broken), ..next.clone() });
    assert!(error.contains("are not taken over, and what is in force stays"), "{error}");
    assert!(error.contains("the kernel refuses the program"), "{error}");
    exchange(&scene, &mut talks);
    probe::tcp(&scene.client(), vip, 1_000).unwrap();
    assert_eq!(in_force(&scene).1, 1);

    // Tables whose meaning is another.
    let run = format!("/run/{}", scene.device.lab.id());
    let described = fs::read_dir(&run).unwrap().flatten().map(|entry| entry.path());
    let described = described.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("maps-"));
    let [path] = described.collect::<Vec<_>>().try_into().expect("one layout");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replacen("\"number\":", "\"number\":9", 1)).unwrap();
    let error = refused(&mut scene, &next);
    assert!(error.contains("its meaning is that of number 9"), "{error}");
    assert!(error.contains("or `stellwerk unload` first, which ends all connections"), "{error}");
    exchange(&scene, &mut talks);
    probe::tcp(&scene.client(), vip, 1_000).unwrap();

    // This version is at home in its own tables, whatever is told of them.
    fs::write(&path, text).unwrap();
    scene.start_agent().unwrap();
    exchange(&scene, &mut talks);
    assert_eq!(in_force(&scene).1, 1);
}
