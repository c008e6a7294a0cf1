//! The systemd unit: the agent runs with its capabilities and no others, needs each of them, and tells the service
//! manager what becomes of it.

use std::fs::{File, read_to_string, write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use stellwerk_tests::netns::clean::Proc;
use stellwerk_tests::netns::cni::Runtime;
use stellwerk_tests::netns::config::{Files, Service};
use stellwerk_tests::netns::{Device, agent, device, unit};

const PATIENCE: Duration = Duration::from_secs(30);
/// As short as a test may be; the unit's is a minute.
const WATCHDOG: Duration = Duration::from_millis(400);

const CONTROL: &str = "control: { readers: \"65534\" }\n";

/// A device whose configuration asks for all that takes a right: ports, names at port 53, pods, announcements, and a
/// group that may ask.
struct Node {
    device: Device,
    files: Files,
}

impl Node {
    fn new() -> Node {
        let device = Device::new().unwrap();
        let files = Files::new(device.lab.dir()).unwrap();
        let node = Node { device, files };
        node.configure(CONTROL);
        let service = Service::tcp("web", 80, 8080, device::cluster(10)).external(device::external(100));
        node.files.write(&service.endpoint(device::pod(3, 9), "edge-1")).unwrap();
        node
    }

    fn configure(&self, more: &str) {
        let group = self.device.lab.cgroup().map_or("false".to_owned(), |group| group.display().to_string());
        let text = Files::standard("xdp", "xdp");
        let pods = "pods: { blocks: [172.27.3.0/26, \"fd00:27:3::/122\"] }\n";
        self.files
            .write_config(&format!(
                "{text}  dns: {{ nodeAddresses: 10.20.0.1 }}\n  socketBalancing: {group}\n{pods}{more}"
            ))
            .unwrap();
    }

    fn log(&self) -> PathBuf {
        self.device.lab.dir().join("agent.log")
    }

    fn said(&self) -> String {
        read_to_string(self.log()).unwrap_or_default()
    }

    fn start(&self, capabilities: &[&str], manager: Option<&unit::Manager>) -> Result<Proc> {
        let log = File::create(self.log())?;
        let mut command = unit::command(&self.device.dev, capabilities, &agent::binary()?);
        command.args(["run", "--config"]).arg(self.files.config()).arg("--pin-path").arg(self.device.lab.pins());
        command.stdout(log.try_clone()?).stderr(log);
        if let Some(manager) = manager {
            manager.listen(&mut command, WATCHDOG);
        }
        Proc::start(&mut command).context("is setpriv there?")
    }

    /// Until something is logged, or the agent ends.
    fn wait(&self, agent: &mut Proc, words: &str) -> bool {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            let alive = agent.alive();
            if self.said().contains(words) {
                return true;
            }
            if !alive {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    /// A pod's interface, for which the agent enters the pod's namespace.
    fn pod(&self, name: &str) -> Result<()> {
        let runtime = Runtime::new(&self.device.lab, &self.device.dev)?;
        let pod = self.device.lab.ns(name)?;
        runtime.add(&pod, name, "").map(drop)
    }
}

fn denied(log: &str) -> Vec<&str> {
    let words = ["not permitted", "ermission denied"];
    log.lines().filter(|line| words.iter().any(|words| line.contains(words))).collect()
}

#[test]
fn the_units_capabilities_are_enough_and_the_manager_is_told() {
    assert_eq!(unit::directive("Type").unwrap(), "notify");
    let node = Node::new();
    let mut manager = unit::Manager::new(node.device.lab.dir().join("notify")).unwrap();
    let all = unit::capabilities().unwrap();
    let mut agent = node.start(&all, Some(&manager)).unwrap();
    let before = manager.wait("READY=1", PATIENCE).unwrap_or_else(|error| panic!("{error}\n{}", node.said()));
    assert!(before.contains(&"STATUS=revision 1, 3 services".to_owned()), "{before:?}");
    assert!(!before.contains(&"WATCHDOG=1".to_owned()), "alive before it is ready: {before:?}");
    for _ in 0..3 {
        manager.wait("WATCHDOG=1", 2 * WATCHDOG).unwrap();
    }
    node.pod("pod").unwrap();
    node.configure(&format!("{CONTROL}draining: 7s\n"));
    manager.wait("RELOADING=1", PATIENCE).unwrap();
    let since = manager.wait("READY=1", PATIENCE).unwrap();
    assert!(since.iter().any(|line| line.starts_with("MONOTONIC_USEC=")), "{since:?}");
    agent.signal(Signal::SIGTERM).unwrap();
    manager.wait("STOPPING=1", PATIENCE).unwrap();
    let end = Instant::now() + PATIENCE;
    while agent.alive() {
        assert!(Instant::now() < end, "it doesn't end");
        std::thread::sleep(Duration::from_millis(10));
    }
    let log = node.said();
    assert_eq!(denied(&log), Vec::<&str>::new(), "{log}");
}

/// The sign of life is the loop's own: while that waits for a configuration that nobody writes, there is none, though
/// all other threads go on.
#[test]
fn a_loop_that_hangs_is_not_alive() {
    let node = Node::new();
    let mut manager = unit::Manager::new(node.device.lab.dir().join("notify")).unwrap();
    let _agent = node.start(&unit::capabilities().unwrap(), Some(&manager)).unwrap();
    manager.wait("READY=1", PATIENCE).unwrap();
    let (config, pipe) = (node.files.config(), node.device.lab.dir().join("pipe"));
    let text = read_to_string(&config).unwrap();
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::fs::hard_link(&pipe, pipe.with_extension("end")).unwrap();
    std::fs::rename(&pipe, &config).unwrap();
    manager.wait("RELOADING=1", PATIENCE).unwrap();
    assert!(manager.wait("WATCHDOG=1", 3 * WATCHDOG).is_err());
    // The pipe is the configuration no more when its reader gets what was waited for.
    node.configure("");
    write(pipe.with_extension("end"), text).unwrap();
    manager.wait("READY=1", PATIENCE).unwrap();
    manager.wait("WATCHDOG=1", PATIENCE).unwrap();
}

/// What becomes of an agent that lacks one. `CAP_SYS_ADMIN` stands for several others: without it they are needed, and
/// it is needed for pods alone.
#[test]
fn each_capability_is_needed() {
    let mut rest = unit::capabilities().unwrap();
    let node = Node::new();
    let unloaded = || {
        let mut unload = node.device.dev.command(agent::binary().unwrap());
        assert!(unload.arg("unload").arg("--pin-path").arg(node.device.lab.pins()).output().unwrap().status.success());
    };
    let without = |all: &mut Vec<&'static str>, gone: &[&str]| {
        let before = all.len();
        all.retain(|name| !gone.contains(name));
        assert_eq!(all.len() + gone.len(), before, "the unit has {gone:?}");
    };
    without(&mut rest, &["CAP_SYS_ADMIN"]);
    // It doesn't get as far as being ready.
    for (name, words) in [
        ("CAP_BPF", "loading the eBPF object: map error: failed to create map"),
        ("CAP_PERFMON", "the kernel refuses the program stellwerk_"),
        ("CAP_NET_ADMIN", "the kernel refuses the program stellwerk_"),
    ] {
        let mut some = rest.clone();
        without(&mut some, &[name]);
        let mut agent = node.start(&some, None).unwrap();
        assert!(node.wait(&mut agent, words), "without {name}: {}", node.said());
        assert!(!node.said().contains("ready: revision"), "without {name}");
        drop(agent);
        unloaded();
    }
    // It is ready, and lacks what each is for.
    without(&mut rest, &["CAP_NET_RAW", "CAP_NET_BIND_SERVICE", "CAP_CHOWN"]);
    node.configure("");
    let mut agent = node.start(&rest, None).unwrap();
    assert!(node.wait(&mut agent, "ready: revision"), "{}", node.said());
    let why = node.pod("refused").unwrap_err().to_string();
    assert!(why.contains("entering the pod's network namespace: Operation not permitted"), "{why}");
    node.configure(CONTROL);
    let lacks = [
        "nobody is told of addresses that are announced here now: Operation not permitted",
        "cannot listen at 10.20.0.1:53 (UDP) for names: Permission denied",
        "who may ask at the agent's sockets stays as it was: Operation not permitted",
    ];
    for words in lacks {
        assert!(node.wait(&mut agent, words), "no `{words}`: {}", node.said());
    }
}
