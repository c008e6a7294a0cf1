//! The command line as people meet it: what each command says before, while and after an agent runs,
//! to the wrong user, in the wrong namespace and of a wrong pin path; and that `--json` has the
//! fields that docs/json.md promises. What the parser refuses is in `lb-user/src/cli.rs`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use stellwerk_tests::netns::clean::{self, Proc};
use stellwerk_tests::netns::lab::mounts;
use stellwerk_tests::netns::scene::{PORT, Scene, Which};
use stellwerk_tests::netns::{Lab, Ns, probe};

const LISTINGS: [&str; 5] = ["status", "services", "backends", "flows", "drops"];
const NAT: [&str; 3] = ["nat status", "nat flows", "nat top"];

fn words(listing: &str) -> Vec<&str> {
    listing.split(' ').collect()
}

/// As `stellwerk_tests::netns::agent` finds it.
fn binary() -> PathBuf {
    let beside = || std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("stellwerk");
    std::env::var_os("STELLWERK_BIN").map_or_else(beside, PathBuf::from)
}

/// What a command ended with and said on standard output and error.
type Said = (i32, String, String);

fn said(out: Output) -> Said {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (out.status.code().unwrap_or(-1), text(out.stdout), text(out.stderr))
}

fn at(ns: &Ns, pins: &Path, words: &[&str]) -> Said {
    said(ns.command(binary()).args(words).arg("--pin-path").arg(pins).output().unwrap())
}

/// A device of two ports and no more.
struct Small {
    dev: Ns,
    lab: Lab,
}

impl Small {
    fn new() -> Small {
        let lab = Lab::new().unwrap();
        let (dev, out) = (lab.ns("dev").unwrap(), lab.ns("out").unwrap());
        for (link, net) in [("eth0", "203.0.113"), ("eth1", "192.168.20")] {
            lab.wire((&dev, link), (&out, link)).unwrap();
            dev.ip(&format!("addr add {net}.2/24 dev {link}")).unwrap();
        }
        let small = Small { dev, lab };
        small.configure("");
        small
    }

    fn config(&self) -> PathBuf {
        self.lab.dir().join("stellwerk.yaml")
    }

    fn configure(&self, more: &str) {
        let text = "node: n\nports:\n  Port2: { interface: eth0, gateway: 203.0.113.1 }\n  Port3: { interface: eth1, compute: true }\ninternalSwitch: { interface: br-int, address: 10.20.0.1/24, ipv4: off }\n";
        std::fs::write(self.config(), format!("{text}{more}")).unwrap();
    }

    fn pins(&self) -> PathBuf {
        self.lab.pins()
    }

    fn say(&self, words: &[&str]) -> Said {
        at(&self.dev, &self.pins(), words)
    }

    fn run_words(&self) -> Vec<String> {
        vec!["run".into(), "--config".into(), self.config().display().to_string()]
    }

    /// `run`, which is to refuse by itself.
    fn refused(&self, pins: &Path) -> Said {
        let mut command = self.dev.command("timeout");
        command.arg("20").arg(binary()).args(self.run_words()).arg("--pin-path").arg(pins);
        said(command.output().unwrap())
    }

    fn start(&self) -> Proc {
        self.start_at(&self.pins())
    }

    fn start_at(&self, pins: &Path) -> Proc {
        let log = std::fs::File::create(self.lab.dir().join("agent.log")).unwrap();
        let mut command = self.dev.command(binary());
        command.args(self.run_words()).arg("--pin-path").arg(pins);
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let agent = Proc::start(&mut command).unwrap();
        for _ in 0..400 {
            if self.log().contains("ready: revision") {
                return agent;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("not ready after 20 s:\n{}", self.log());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.lab.dir().join("agent.log")).unwrap_or_default()
    }
}

fn error(text: String) -> Said {
    (1, String::new(), format!("stellwerk: {text}\n"))
}

#[test]
fn before_any_agent() {
    let small = Small::new();
    let pins = small.pins();
    let pins = pins.display();
    for listing in LISTINGS.into_iter().chain(NAT).chain(["flows --nat"]) {
        let want = error(format!("nothing is loaded at {pins}: `stellwerk run --config FILE` loads it"));
        assert_eq!(small.say(&words(listing)), want);
        assert_eq!(small.say(&words(&format!("{listing} --json"))), want);
    }
    assert_eq!(small.say(&["unload"]), (0, format!("nothing is loaded at {pins}\n"), String::new()));
}

/// The kinds of what is mounted over this path, other tests' mounts apart.
fn mounted(path: &Path) -> Vec<String> {
    let all = mounts().unwrap().into_iter();
    all.filter(|(point, _)| point == path).map(|(_, kind)| kind).collect()
}

/// Refused before anything is made, and `unload` of it removes nothing.
#[test]
fn wrong_pin_paths() {
    let small = Small::new();
    let right = "expected a folder of its own in a BPF file system, such as /sys/fs/bpf/stellwerk";
    let dir = small.lab.dir().display().to_string();
    let cases = [
        (
            format!("{dir}/pins"),
            format!("{dir} is no BPF file system, and none is mounted over a folder that holds something; {right}"),
        ),
        (
            "/proc/sw-pins".into(),
            format!("/proc is no BPF file system, and none is mounted over a folder that holds something; {right}"),
        ),
        (clean::BPFFS.into(), "it is the root of a BPF file system; expected a folder of its own in it".into()),
        (format!("{}/no/pins", clean::BPFFS), format!("there is no folder {}/no; {right}", clean::BPFFS)),
        (format!("{}/a.b", clean::BPFFS), format!("a BPF file system takes no name with a dot; {right}")),
        ("/".into(), right.into()),
    ];
    for (pins, why) in cases {
        let pins = Path::new(&pins);
        let over = [Some(pins), pins.parent()].map(|dir| dir.map(mounted));
        assert_eq!(small.refused(pins), error(format!("--pin-path {}: {why}", pins.display())));
        assert_eq!([Some(pins), pins.parent()].map(|dir| dir.map(mounted)), over);
    }
    let links = small.dev.ip_text("-o link").unwrap();
    assert!(!links.contains("br-int"), "{links}");
    let (code, text, _) = at(&small.dev, small.lab.dir(), &["unload"]);
    assert_eq!((code, text), (0, format!("nothing is loaded at {dir}\n")));
    assert!(small.config().exists());
}

/// An empty folder is taken, and given back.
#[test]
fn a_missing_bpf_file_system_is_mounted_and_unmounted() {
    let small = Small::new();
    let dir = small.lab.dir().join("bpf");
    std::fs::create_dir(&dir).unwrap();
    let pins = dir.join(small.lab.id());
    assert!(small.start_at(&pins).stop(Duration::from_secs(20)), "it did not end well:\n{}", small.log());
    let log = small.log();
    assert!(log.contains(&format!("mounted a BPF file system at {}", dir.display())), "{log}");
    let (code, text, log) = at(&small.dev, &pins, &["unload"]);
    assert!(code == 0 && text.contains("file systems unmounted: 1"), "{text}{log}");
    assert_eq!(mounted(&dir), Vec::<String>::new());
}

#[test]
fn one_agent_at_a_time_and_unload_after_it() {
    let small = Small::new();
    let pins = small.pins();
    let agent = small.start();
    let id = agent.id();
    assert_eq!(small.refused(&pins), error(format!("an agent runs already: process {id}")));
    let why = format!("the agent runs (process {id}): stop it first, traffic goes on until it is unloaded");
    assert_eq!(small.say(&["unload"]), error(why));
    let (_, running, _) = small.say(&["status"]);
    assert!(running.contains(&format!("process {id}")) && running.contains("running"), "{running}");
    drop(agent);
    let (_, stopped, _) = small.say(&["status"]);
    assert!(stopped.contains("stopped") && stopped.contains("eth1"), "{stopped}");
    // What is pinned is about the device's links, not about those of the same numbers elsewhere.
    let here = small.lab.ns("elsewhere").unwrap();
    let (_, elsewhere, _) = at(&here, &pins, &["status"]);
    assert!(elsewhere.contains("link 2") && !elsewhere.contains("eth"), "{elsewhere}");
    let foreign = format!("what {} holds was loaded in another network namespace: unload it there", pins.display());
    assert_eq!(at(&here, &pins, &["unload"]), error(foreign));
    let (code, text, log) = small.say(&["unload"]);
    assert!(code == 0 && text.contains("programs detached: "), "{text}{log}");
    assert!(!pins.exists());
    // As one who follows the list would: again, and then a look.
    assert_eq!(small.say(&["unload"]).0, 0);
    assert_eq!(small.say(&["status"]).0, 1);
    let links = small.dev.ip_text("-o link").unwrap();
    assert!(!links.contains("br-int"), "{links}");
}

#[test]
fn only_root_may() {
    let small = Small::new();
    // Where everybody may read it.
    let program = small.lab.dir().join("stellwerk");
    std::fs::copy(binary(), &program).unwrap();
    let agent = small.start();
    let (pins, run) = (small.pins(), Path::new("/run").join(small.lab.id()));
    let root = "; this needs root: try again by sudo\n";
    let nobody = |words: &[&str]| {
        let mut command = small.dev.command("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
        said(command.args(words).arg("--pin-path").arg(&pins).output().unwrap())
    };
    let config = small.config().display().to_string();
    let (code, out, why) = nobody(&["run", "--config", &config]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert_eq!(why, format!("stellwerk: {}/agent.lock: Permission denied (os error 13){root}", run.display()));
    for listing in LISTINGS.into_iter().chain(NAT) {
        let (code, out, why) = nobody(&words(listing));
        assert_eq!((code, out.as_str()), (1, ""));
        assert!(why.starts_with("stellwerk: the pinned map ") && why.ends_with(root), "{why}");
    }
    drop(agent);
    let (code, out, why) = nobody(&["unload"]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(why.ends_with(root), "{why}");
    assert_eq!(nobody(&["check", &config]).0, 0);
}

/// Where nothing is translated, as long as no configuration asks for it.
#[test]
fn translation_that_is_off() {
    let small = Small::new();
    let agent = small.start();
    for (listing, head) in [
        ("flows --nat", "PROTOCOL  CLIENT  VIP  BACKEND  SNAT  SERVICE  STATE  SET  IDLE S\n"),
        ("nat flows", "PROTOCOL  INSIDE  OUTSIDE  REMOTE  OPENED  STATE  SET  IDLE S\n"),
        ("nat top -n 3", "HOST  PORTS  QUOTA  DENIED\n"),
    ] {
        assert_eq!(small.say(&words(listing)), (0, head.to_owned(), String::new()));
        assert_eq!(small.say(&words(&format!("{listing} --json"))), (0, "[]\n".to_owned(), String::new()));
    }
    let (code, text, _) = small.say(&["nat", "status", "--json"]);
    let rows: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let of = |what: &str| rows.iter().filter(|row| row["what"] == what).collect::<Vec<_>>();
    assert_eq!((code, &of("translation")[0]["state"]), (0, &"off".into()));
    assert!(of("uplink").is_empty() && of("ports").is_empty() && of("hosts").is_empty(), "{text}");
    assert!(!of("drop").is_empty() && of("drop").iter().all(|row| row["count"] == 0), "{text}");
    for listing in NAT {
        let (_, text, _) = small.say(&words(listing));
        let columns = text.lines().next().unwrap().split("  ").map(str::trim).filter(|column| !column.is_empty());
        let heads: Vec<String> = documented(listing).iter().map(|name| name.to_uppercase().replace('_', " ")).collect();
        assert_eq!(columns.collect::<Vec<_>>(), heads);
    }
    let (_, text, _) = small.say(&["status"]);
    assert!(!text.contains("\nnat "), "{text}");
    let (code, help, _) = small.say(&["nat", "--help"]);
    assert!(code == 0 && ["status", "flows", "top"].iter().all(|word| help.contains(word)), "{help}");
    drop(agent);
}

/// The names in the first column of a listing's table in docs/json.md.
fn documented(listing: &str) -> Vec<String> {
    let text = include_str!("../../docs/json.md");
    let (_, part) = text.split_once(&format!("### `{listing}`\n")).unwrap();
    let part = part.split("\n#").next().unwrap();
    let cells = part.lines().filter(|line| line.starts_with("| `")).filter_map(|line| line.split('|').nth(1));
    cells.flat_map(|cell| cell.split(',').map(|name| name.trim().trim_matches('`').to_owned())).collect()
}

#[test]
fn json_is_as_documented() {
    let scene = {
        let mut scene = Scene::without_agent("auto", "xdp").unwrap();
        scene.start_agent().unwrap();
        scene
    };
    let talk = probe::Talk::open(&scene.client(), SocketAddr::new(Which::Remote.external().v4, PORT)).unwrap();
    for listing in LISTINGS {
        let text = scene.agent.command(&[listing, "--json"]).unwrap();
        let rows = scene.agent.rows(listing).unwrap();
        assert!(!rows.is_empty(), "no {listing}");
        let names = documented(listing);
        for row in &rows {
            let fields = row.as_object().unwrap();
            assert!(fields.len() == names.len() && names.iter().all(|name| fields.contains_key(name)), "{row}");
        }
        // In their order, as the table's columns are.
        let places: Vec<_> = names.iter().map(|name| text.find(&format!("\"{name}\":")).unwrap()).collect();
        assert!(places.is_sorted(), "{names:?}\n{text}");
        let table = scene.agent.command(&[listing]).unwrap();
        let columns = table.lines().next().unwrap();
        let heads: Vec<_> = names.iter().map(|name| columns.find(&name.to_uppercase().replace('_', " "))).collect();
        assert!(heads.iter().all(Option::is_some), "{columns}");
    }
    drop(talk);
}
