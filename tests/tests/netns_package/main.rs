//! The Debian package, installed and purged by dpkg in a root of its own: what it brings works there, and nothing of it
//! stays behind.
//!
//! The root is the host's files below an overlay in memory, with file systems of its own for pins and `/run`, so that
//! what the overlay holds is what changed. It is in a mount namespace that ends with its processes. A root made by
//! debootstrap would be purer, and would take longer than all of this.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use stellwerk_tests::netns::clean::Proc;
use stellwerk_tests::netns::{Device, unit};

const PATIENCE: Duration = Duration::from_secs(30);

const EDITED: &str = "node: edge-1\nports:\n  Port2: { interface: eth0, gateway: 203.0.113.1 }\n  \
    Port3: { interface: eth1, compute: true }\ninternalSwitch: { interface: br-own, address: 10.44.0.1/24 }\n\
    cluster: { podSubnet: 172.26.0.0/16, serviceSubnet: 172.28.0.0/16, manifests: ./cluster, socketBalancing: false, dns: {} }\n\
    pods: { blocks: 172.26.3.0/26 }\n";

const SCRIPTS: [(&str, &str); 3] = [
    ("root.sh", include_str!("root.sh")),
    ("boot.sh", include_str!("boot.sh")),
    ("inside.sh", include_str!("inside.sh")),
];

/// dpkg's own book-keeping, and what maintainers' scripts of others (man-db) cache of what is installed.
const DPKG: [&str; 4] = ["var/lib/dpkg", "var/log", "var/cache", "etc/ld.so.cache"];

/// Fields are in the order in which they end.
struct Root {
    holder: Proc,
    dir: PathBuf,
    _groups: Option<Groups>,
    device: Device,
}

/// Systemd's control groups, several levels deep; its processes take a moment to end.
struct Groups(PathBuf);

impl Drop for Groups {
    fn drop(&mut self) {
        let end = Instant::now() + PATIENCE;
        while self.0.exists() && Instant::now() < end {
            // Those below go first; what isn't empty yet is tried again.
            _ = Command::new("find").arg(&self.0).args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"]).output();
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Root {
    /// Held by a process that does nothing else.
    fn new() -> Root {
        let mut root =
            Root::held("exec unshare --mount --propagation private sh -c '. $DIR/root.sh; exec sleep 600'", None);
        let end = Instant::now() + PATIENCE;
        while !root.file("mounted").exists() {
            assert!(root.holder.alive() && Instant::now() < end, "the root can't be mounted");
            std::thread::sleep(Duration::from_millis(10));
        }
        root
    }

    /// A root by a shell's words, to which `$DIR` is the run's folder; in a control group of its own, if one is named.
    fn held(words: &str, group: Option<&str>) -> Root {
        let device = Device::new().unwrap();
        let dir = device.lab.dir();
        for (name, text) in SCRIPTS {
            std::fs::write(dir.join(name), text).unwrap();
        }
        // Into the folder that is seen inside, wherever it lies.
        std::fs::copy(package(), dir.join("stellwerk.deb")).unwrap();
        std::fs::write(dir.join("edited.yaml"), EDITED).unwrap();
        std::fs::create_dir(dir.join("over")).unwrap();
        let mut command = device.dev.command("sh");
        command.env("DIR", dir);
        let group = group.and_then(|name| Some(device.lab.cgroup()?.join(name)));
        let first = group.as_ref().map_or(String::new(), |group| {
            std::fs::create_dir(group).unwrap();
            format!("echo $$ > {}/cgroup.procs; ", group.display())
        });
        command.args(["-c", &format!("{first}{words}")]);
        let log = std::fs::File::create(dir.join("holder.log")).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let holder = Proc::start(&mut command).unwrap();
        Root { holder, dir: dir.join("over"), _groups: group.map(Groups), device }
    }

    /// Of the run's folder.
    fn file(&self, name: &str) -> PathBuf {
        self.device.lab.dir().join(name)
    }

    fn enter(&self, words: &[&str]) -> Command {
        let mut command = self.device.dev.command("nsenter");
        command.args(["--mount", "--target", &self.holder.id().to_string()]).args(words);
        command
    }

    /// A command inside.
    fn command(&self, words: &[&str]) -> Command {
        let root = self.dir.join("root").display().to_string();
        self.enter(&[&["chroot", &root], words].concat())
    }

    fn output(&self, words: &[&str]) -> Output {
        self.command(words).stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap()
    }

    /// What a command that succeeds prints.
    fn run(&self, words: &[&str]) -> String {
        let out = self.output(words);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(out.status.success(), "{words:?}: {}{}", text(&out.stdout), text(&out.stderr));
        text(&out.stdout)
    }

    /// What differs from the host.
    fn changed(&self) -> BTreeSet<String> {
        let upper = self.dir.join("upper").display().to_string();
        let out = self.enter(&["find", &upper, "-mindepth", "1", "-printf", "%P\n"]).output().unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        let others = |path: &&str| !DPKG.iter().any(|at| path.starts_with(at) || at.starts_with(path));
        text.lines().filter(others).map(str::to_owned).collect()
    }
}

/// `cargo xtask` makes it before these tests.
fn package() -> PathBuf {
    let dir =
        std::env::var_os("STELLWERK_PACKAGES").expect("STELLWERK_PACKAGES: `cargo xtask test --only netns` sets it");
    let all = std::fs::read_dir(Path::new(&dir)).expect("the folder of packages: `cargo xtask package` makes it");
    let mut all: Vec<PathBuf> = all.map(|entry| entry.unwrap().path()).collect();
    all.retain(|path| path.extension().is_some_and(|extension| extension == "deb"));
    assert_eq!(all.len(), 1, "one package: {all:?}");
    all.remove(0)
}

#[test]
fn installed_configured_started_and_purged() {
    let root = Root::new();
    let before = root.changed();
    let links = root.device.dev.ip_text("-o link").unwrap();
    root.run(&["dpkg", "--no-triggers", "--install", &root.file("stellwerk.deb").display().to_string()]);
    is_whole(&root);
    // As installed, it means something.
    root.run(&["stellwerk", "check", "/etc/stellwerk/stellwerk.yaml"]);
    root.run(&["cp", &root.file("edited.yaml").display().to_string(), "/etc/stellwerk/stellwerk.yaml"]);
    root.run(&["stellwerk", "doctor", "--config", "/etc/stellwerk/stellwerk.yaml"]);
    let mut agent = start(&root);
    let status = root.run(&["stellwerk", "status"]);
    assert!(status.contains("running") && status.contains("eth0") && status.contains("br-own"), "{status}");
    assert!(root.device.dev.ip_text("-o link").unwrap().contains("br-own"));
    root.run(&["stellwerk", "cni", "install"]);
    // While it runs and no service manager could stop it, removal is refused, and says why.
    let refused = root.output(&["dpkg", "--no-triggers", "--purge", "stellwerk"]);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("stop it first"), "{why}");
    agent.signal(Signal::SIGTERM).unwrap();
    let end = Instant::now() + PATIENCE;
    while agent.alive() {
        assert!(Instant::now() < end, "it doesn't end");
        std::thread::sleep(Duration::from_millis(10));
    }
    // Traffic goes on: its programs are there until the package goes.
    assert!(root.run(&["stellwerk", "status"]).contains("stopped"));
    root.run(&["dpkg", "--no-triggers", "--purge", "stellwerk"]);
    let pins = root.run(&["ls", "-A", "/sys/fs/bpf"]);
    assert!(!pins.contains("stellwerk"), "{pins}");
    assert_eq!(root.run(&["ls", "-A", "/run"]), "lock\n");
    let after = root.changed();
    let stays: Vec<&String> = after.difference(&before).collect();
    // Folders that the host lacks and others may use by now.
    let folders = ["etc/cni", "etc/cni/net.d", "opt/cni", "opt/cni/bin"];
    let stays: Vec<&&String> = stays.iter().filter(|path| !is_folder(&root, path, &folders)).collect();
    assert!(stays.is_empty(), "{stays:?}");
    let same = |text: &str| {
        // Without counters and states that come and go.
        text.lines().filter_map(|line| line.split(':').nth(1).map(str::trim).map(str::to_owned)).collect::<Vec<_>>()
    };
    assert_eq!(same(&root.device.dev.ip_text("-o link").unwrap()), same(&links));
}

/// As on a node, by systemd, with all of the unit's sandbox: it becomes ready there, makes a pod's interface, is started
/// again when it crashes, and goes with its package.
#[test]
fn under_systemd() {
    let unshare = "exec unshare --mount --pid --cgroup --ipc --uts --fork --kill-child --propagation private";
    let root = Root::held(&format!("{unshare} sh -c '. $DIR/boot.sh'"), Some("systemd"));
    let end = Instant::now() + 2 * PATIENCE;
    while !root.file("done").exists() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
    }
    let said = |name: &str| std::fs::read_to_string(root.file(name)).unwrap_or_default();
    let all = || {
        ["holder.log", "install", "fresh", "start", "started", "cni", "again", "journal", "purge"]
            .map(|name| (name, said(name)))
    };
    assert!(root.file("done").exists(), "{:#?}", all());
    assert_eq!(said("fresh"), "disabled\ninactive\n", "installing starts nothing");
    let started = said("started");
    for line in ["ActiveState=active", "SubState=running", "NRestarts=0"] {
        assert!(started.lines().any(|said| said == line), "no {line}: {:#?}", all());
    }
    assert!(started.contains("StatusText=revision 1, 2 services"), "{started}");
    assert!(said("status").contains("running") && said("cni").contains("172.26.3.1/32"), "{:#?}", all());
    assert_eq!((said("cni-gone"), said("reload")), (String::new(), String::new()));
    let again = said("again");
    assert!(again.contains("ActiveState=active") && again.contains("NRestarts=1"), "{:#?}", all());
    let journal = said("journal");
    let denied = journal.lines().filter(|line| line.contains("not permitted") || line.contains("ermission denied"));
    assert_eq!(denied.count(), 0, "{journal}");
    assert!(said("purge").ends_with("status 0\n"), "{}", said("purge"));
    assert_eq!(said("gone"), "inactive\n");
    assert!(
        !said("pins").contains("stellwerk") && !said("links").contains("br-own"),
        "{}{}",
        said("pins"),
        said("links")
    );
}

/// Where other folders of the host's were written to, the overlay holds them, too.
fn is_folder(root: &Root, path: &str, expected: &[&str]) -> bool {
    let is = |test: &str| root.output(&["test", test, &format!("/{path}")]).status.success();
    is("-d") && (expected.contains(&path) || Path::new("/").join(path).is_dir())
}

/// What is to be there, and by dpkg's own check as it was packed.
fn is_whole(root: &Root) {
    let files = root.run(&["dpkg", "--listfiles", "stellwerk"]);
    for file in [
        "/usr/bin/stellwerk",
        "/usr/bin/stellwerk-cni",
        "/usr/lib/systemd/system/stellwerk.service",
        "/etc/stellwerk/stellwerk.yaml",
        "/etc/stellwerk/cluster",
        "/usr/share/man/man1/stellwerk.1.gz",
        "/usr/share/man/man1/stellwerk-route-add.1.gz",
        "/usr/share/bash-completion/completions/stellwerk",
        "/usr/share/zsh/vendor-completions/_stellwerk",
        "/usr/share/fish/vendor_completions.d/stellwerk.fish",
        "/usr/share/doc/stellwerk/copyright",
        "/usr/share/doc/stellwerk/changelog.gz",
        "/usr/share/doc/stellwerk/changelog.Debian.gz",
    ] {
        assert!(files.lines().any(|line| line == file), "no {file}:\n{files}");
    }
    assert_eq!(root.run(&["dpkg", "--verify", "stellwerk"]), "");
    let kept = root.run(&["dpkg-query", "--show", "--showformat=${Conffiles}", "stellwerk"]);
    assert!(kept.trim().starts_with("/etc/stellwerk/stellwerk.yaml ") && kept.trim().lines().count() == 1, "{kept}");
    let manual = root.run(&["zcat", "/usr/share/man/man1/stellwerk-route-add.1.gz"]);
    assert!(manual.contains("next") && manual.contains("hop"), "{manual}");
    root.run(&["bash", "-n", "/usr/share/bash-completion/completions/stellwerk"]);
    // Runtimes call the plugin on whatever host it was copied to: it needs no library.
    let alone = "mkdir /run/empty && cp /usr/bin/stellwerk-cni /run/empty && \
        CNI_COMMAND=VERSION chroot /run/empty /stellwerk-cni < /dev/null && rm -r /run/empty";
    assert!(root.run(&["sh", "-c", alone]).contains("supportedVersions"));
}

/// By the unit's own words, with its capabilities, until it says that it is ready.
fn start(root: &Root) -> Proc {
    let mut manager = unit::Manager::new(root.file("notify")).unwrap();
    let words: Vec<&str> = unit::directive("ExecStart").unwrap().split_whitespace().collect();
    let inner = root.dir.join("root").display().to_string();
    let limits = unit::limits(&unit::capabilities().unwrap());
    let limits: Vec<&str> = limits.iter().map(String::as_str).collect();
    let mut command = root.enter(&[&["chroot", &inner], &limits[..], &words].concat());
    manager.listen(&mut command, PATIENCE);
    let log = root.file("agent.log");
    command
        .stdout(std::fs::File::create(&log).unwrap())
        .stderr(std::fs::File::options().append(true).open(&log).unwrap());
    let agent = Proc::start(&mut command).unwrap();
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    manager.wait("READY=1", PATIENCE).unwrap_or_else(|error| panic!("{error}\n{}", said()));
    agent
}
