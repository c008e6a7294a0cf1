//! Who may ask at the agent's sockets: root for all, members of `control.readers` for what changes nothing, nobody else
//! for anything; and that the configuration decides it at once.

use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use stellwerk_tests::netns::cni::Node;
use stellwerk_tests::netns::{agent, config::Files};

const GROUP: u32 = 4_321;
const PODS: &str = "pods: { blocks: [172.27.3.0/26, \"fd00:27:3::/122\"] }\n";

struct Guarded {
    node: Node,
    /// Where everybody may read the programs.
    programs: PathBuf,
}

/// Somebody, by the words of setpriv.
const MEMBER: [&str; 3] = ["--reuid=4242", "--regid=4321", "--clear-groups"];
const ALSO_MEMBER: [&str; 3] = ["--reuid=4242", "--regid=4242", "--groups=7,4321"];
const STRANGER: [&str; 3] = ["--reuid=4242", "--regid=4242", "--groups=7"];
const ROOT: [&str; 3] = ["--reuid=0", "--regid=0", "--clear-groups"];

impl Guarded {
    fn new() -> Guarded {
        let node = Node::open(&format!("{PODS}control: {{ readers: {GROUP} }}\n"), |_| Ok(())).unwrap();
        let programs = node.device.lab.dir().join("bin");
        std::fs::create_dir(&programs).unwrap();
        let stellwerk = agent::binary().unwrap();
        for name in ["stellwerk", "stellwerk-cni"] {
            std::fs::copy(stellwerk.with_file_name(name), programs.join(name)).unwrap();
        }
        Guarded { node, programs }
    }

    fn run_dir(&self) -> PathBuf {
        Path::new("/run").join(self.node.device.lab.id())
    }

    fn by(&self, who: [&str; 3], program: &str, words: &[&str], input: &str, env: &[(&str, &str)]) -> Output {
        let mut command = self.node.device.dev.command("setpriv");
        command.args(who).arg(self.programs.join(program)).args(words).envs(env.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // Who is refused early doesn't read it.
        _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// A command's exit status and what it says of an error.
    fn command(&self, who: [&str; 3], words: &[&str]) -> (i32, String) {
        let pins = self.node.agent.pins().display().to_string();
        let out = self.by(who, "stellwerk", &[words, &["--pin-path", &pins]].concat(), "", &[]);
        (out.status.code().unwrap(), String::from_utf8(out.stderr).unwrap())
    }

    /// The plugin's own error's code and details, or none.
    fn plugin(&self, who: [&str; 3], verb: &str) -> (Option<u64>, String) {
        let pins = self.node.agent.pins().display();
        let conf = format!(
            r#"{{"cniVersion":"1.1.0","name":"test","type":"stellwerk-cni","pinPath":"{pins}","cni.dev/valid-attachments":[]}}"#
        );
        let env = [("CNI_COMMAND", verb), ("CNI_CONTAINERID", "c"), ("CNI_IFNAME", "eth0"), ("CNI_PATH", "/")];
        let out = self.by(who, "stellwerk-cni", &[], &conf, &env);
        let said: Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
        (said["code"].as_u64(), said["details"].as_str().unwrap_or_default().to_owned())
    }

    fn rights(&self) -> Vec<(u32, u32, u32)> {
        let of = |name: &str| {
            let meta = std::fs::metadata(self.run_dir().join(name)).unwrap();
            (meta.permissions().mode() & 0o777, meta.uid(), meta.gid())
        };
        ["cni.sock", "dns.sock"].map(of).to_vec()
    }
}

#[test]
fn readers_read_and_strangers_do_not() {
    let guarded = Guarded::new();
    assert_eq!(guarded.rights(), [(0o660, 0, GROUP); 2]);
    for who in [MEMBER, ALSO_MEMBER, ROOT] {
        assert_eq!(guarded.command(who, &["dns", "status"]), (0, String::new()), "{who:?}");
        assert_eq!(guarded.plugin(who, "STATUS"), (None, String::new()), "{who:?}");
    }
    for who in [MEMBER, ALSO_MEMBER] {
        let (code, details) = guarded.plugin(who, "GC");
        assert_eq!((code, details.contains("may only ask for what changes nothing")), (Some(105), true), "{details}");
        let (code, why) = guarded.command(who, &["ipam", "release", "c"]);
        assert!(code == 1 && why.contains("may only ask for what changes nothing"), "{why}");
    }
    let (code, why) = guarded.command(STRANGER, &["dns", "status"]);
    assert!(code == 1 && why.contains("Permission denied"), "{why}");
    assert!(guarded.plugin(STRANGER, "STATUS").0.is_some());
    // Where the file lets everybody in, the kernel's word on who asks still counts.
    for name in ["cni.sock", "dns.sock"] {
        std::fs::set_permissions(guarded.run_dir().join(name), std::fs::Permissions::from_mode(0o666)).unwrap();
    }
    let (code, details) = guarded.plugin(STRANGER, "STATUS");
    assert_eq!((code, details.contains("user 4242 ")), (Some(105), true), "{details}");
    assert_eq!(guarded.command(STRANGER, &["dns", "status"]).0, 1);
    let log = guarded.node.agent.log();
    assert!(log.contains("a question for names is refused: user 4242"), "{log}");
    the_configuration_decides_at_once(&guarded);
}

/// Also where one edit follows another at once.
fn the_configuration_decides_at_once(guarded: &Guarded) {
    let files = Files::new(guarded.node.device.lab.dir()).unwrap();
    let text = std::fs::read_to_string(files.config()).unwrap();
    let without = text.replace(&format!("control: {{ readers: {GROUP} }}\n"), "");
    assert_ne!(text, without);
    files.write_config(&without).unwrap();
    until(guarded, || guarded.rights() == [(0o600, 0, 0); 2]);
    assert_eq!(guarded.command(MEMBER, &["dns", "status"]).0, 1);
    assert_eq!(guarded.command(ROOT, &["dns", "status"]).0, 0);
    // One that this node doesn't have is refused whole.
    files.write_config(&text.replace(&GROUP.to_string(), "nobody-knows")).unwrap();
    until(guarded, || guarded.node.agent.log().contains("`nobody-knows` is no group of this node"));
    assert_eq!(guarded.rights(), [(0o600, 0, 0); 2]);
    files.write_config(&text).unwrap();
    until(guarded, || guarded.rights() == [(0o660, 0, GROUP); 2]);
    assert_eq!(guarded.command(MEMBER, &["dns", "status"]).0, 0);
}

fn until(guarded: &Guarded, what: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !what() {
        assert!(Instant::now() < end, "not within 10 s: {:?}\n{}", guarded.rights(), guarded.node.agent.log_tail());
        std::thread::sleep(Duration::from_millis(20));
    }
}
