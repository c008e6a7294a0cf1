//! `stellwerk doctor`: nothing to say of a node that is well, and a line for each thing that isn't.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use stellwerk_tests::netns::config::Files;
use stellwerk_tests::netns::{Agent, Device, agent, pass, unit};

struct Node {
    device: Device,
    files: Files,
}

impl Node {
    fn new() -> Node {
        let device = Device::new().unwrap();
        device.dev.forward().unwrap();
        let files = Files::new(device.lab.dir()).unwrap();
        let node = Node { device, files };
        node.configure("xdp", "");
        node
    }

    fn configure(&self, hook: &str, more: &str) {
        let text = Files::standard(hook, hook);
        self.files.write_config(&format!("{text}  socketBalancing: false\n{more}")).unwrap();
    }

    fn examine(&self) -> Seen {
        self.by(self.device.dev.command(agent::binary().unwrap()), &self.device.lab.pins())
    }

    fn by(&self, mut command: Command, pins: &Path) -> Seen {
        command.args(["doctor", "--json", "--config"]).arg(self.files.config()).arg("--pin-path").arg(pins);
        let out = command.output().unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        let rows = serde_json::from_str(&text);
        let rows = rows.unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&out.stderr)));
        Seen { code: out.status.code(), rows }
    }
}

struct Seen {
    code: Option<i32>,
    rows: Vec<Value>,
}

impl Seen {
    /// What isn't well, as `check name: state`.
    fn bad(&self) -> Vec<String> {
        let bad = self.rows.iter().filter(|row| row["state"] != "ok");
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        bad.map(|row| format!("{} {}: {}", text(&row["check"]), text(&row["name"]), text(&row["state"]))).collect()
    }

    fn check(&self, name: &str) -> &Value {
        self.rows.iter().find(|row| row["check"] == name).unwrap_or_else(|| panic!("no {name}: {:?}", self.rows))
    }
}

#[test]
fn a_node_that_is_well() {
    let node = Node::new();
    let seen = node.examine();
    assert_eq!((seen.bad(), seen.code), (Vec::new(), Some(0)), "{:#?}", seen.rows);
    assert!(seen.rows.iter().all(|row| row["advice"].is_null() && row["found"].is_string()), "{:#?}", seen.rows);
    assert!(seen.check("xdp")["found"].as_str().unwrap().contains("driver veth: native"));
    // The fields that docs/json.md names, in their order.
    let fields: Vec<&String> = seen.rows[0].as_object().unwrap().keys().collect();
    let mut names = vec!["check", "name", "state", "found", "advice"];
    names.sort_unstable();
    let mut sorted = fields.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, names);
    // With an agent at work it is as well: its own programs are no others'.
    let mut agent = Agent::new(&node.device.lab, &node.device.dev, &node.files.config()).unwrap();
    agent.start_ready().unwrap();
    let seen = node.examine();
    assert_eq!((seen.bad(), seen.code), (Vec::new(), Some(0)), "{:#?}", seen.rows);
    let table = agent.command(&["doctor"]).unwrap();
    assert!(table.starts_with("CHECK ") && table.contains("stellwerk.yaml"), "by the agent's configuration:\n{table}");
    version(&agent);
}

/// What `stellwerk version` says of an agent that runs.
fn version(agent: &Agent) {
    let rows = agent.rows("version").unwrap();
    assert_eq!((&rows[0]["what"], &rows[0]["name"]), (&"stellwerk".into(), &env!("CARGO_PKG_VERSION").into()));
    let of = |what: &str, name: &str| {
        let found = rows.iter().find(|row| row["what"] == what && row["name"] == name);
        found.unwrap_or_else(|| panic!("no {what} {name}: {rows:#?}"))
    };
    let program = of("program", "stellwerk_xdp");
    assert_eq!(program["type"], "xdp");
    assert_eq!(program["tag"].as_str().unwrap().len(), 16);
    assert!(program["loaded_at"].as_str().unwrap().ends_with('Z') && program["id"].as_u64().unwrap() > 0);
    let hooks = agent.rows("status").unwrap();
    let hook = hooks.iter().find(|row| row["what"] == "hook" && row["name"] == "eth0").unwrap();
    assert_eq!(hook["detail"], format!("xdp (program {})", program["id"]));
    let map = of("map", "SETTINGS");
    assert_eq!((&map["type"], &map["key_size"], &map["max_entries"]), (&"array".into(), &4.into(), &1.into()));
    assert!(of("map", "OWNED4")["type"] == "lpm_trie");
}

#[test]
fn each_thing_that_is_wrong_has_its_line() {
    let node = Node::new();
    let dev = &node.device.dev;
    let see = |want: &str, code: i32| {
        let seen = node.examine();
        let bad = seen.bad();
        assert!(bad.contains(&want.to_owned()) && seen.code == Some(code), "no `{want}` and {code}: {:#?}", seen.rows);
        let row = seen.rows.iter().find(|row| row["state"] != "ok").unwrap();
        assert!(row["advice"].is_string(), "{row}");
    };
    dev.sysctls(&[("net/ipv4/ip_forward", "0")]).unwrap();
    see("forwarding IPv4: warn", 0);
    dev.sysctls(&[("net/ipv4/conf/eth1/rp_filter", "1")]).unwrap();
    see("rp_filter Port3: warn", 0);
    dev.ip("rule add from 10.9.0.0/16 lookup 100").unwrap();
    see("policy rules -: warn", 0);
    run(dev.command("nft").args(["add table inet f; add chain inet f c { type filter hook forward priority 0; }"]));
    see("filters forwarding: warn", 0);
    node.configure("xdp", "forwarding: kernel\n");
    assert!(!node.examine().bad().contains(&"filters forwarding: warn".to_owned()));
    run(dev.command("iptables").args(["-t", "nat", "-N", "KUBE-KUBELET-CANARY"]));
    assert_eq!(node.examine().check("kube-proxy")["state"], "ok");
    run(dev.command("iptables").args(["-t", "nat", "-N", "KUBE-SERVICES"]));
    see("kube-proxy -: fail", 1);
    let foreign = pass::attach(dev, "eth0").unwrap();
    see("programs Port2: fail", 1);
    node.configure("tc", "");
    see("programs Port2: warn", 1);
    drop(foreign);
    node.configure("xdp", "");
    dev.ip("link set eth1 down").unwrap();
    see("port Port3: warn", 1);
    dev.ip("link set eth1 up\nlink set eth1 mtu 1000").unwrap();
    see("mtu Port3: warn", 1);
}

#[test]
fn wrong_configurations_pins_and_rights() {
    let node = Node::new();
    let pins = node.device.lab.pins();
    let broken = |text: &str, words: &str| {
        node.files.write_config(text).unwrap();
        let seen = node.examine();
        let row = seen.check("configuration");
        assert!(row["state"] == "fail" && seen.code == Some(1), "{row}");
        assert!(row["found"].as_str().unwrap().contains(words), "{row}");
    };
    broken("node: n\nports: { P: { interface: eth7 } }\n", "2:26: ports.P.interface: `eth7` is not an interface");
    broken("node: n\nport: {}\n", "2:1: port: unknown key; expected `ports`");
    broken("node: n\ninside: x\ncontrol: { readers: nobody-knows }\n", "`nobody-knows` is no group of this node");
    node.device.dev.ip("addr add 192.0.2.9/24 dev eth0 valid_lft 900 preferred_lft 900").unwrap();
    broken("node: n\nports: { P: { interface: eth0 } }\n", "has its address 192.0.2.9/24 from DHCP");
    node.configure("xdp", "");
    let program = agent::binary().unwrap();
    let used = node.by(node.device.dev.command(&program), &node.device.lab.dir().join("pins"));
    assert_eq!((&used.check("bpffs")["state"], used.code), (&"fail".into(), Some(1)));
    let mut some = unit::capabilities().unwrap();
    some.retain(|name| *name != "CAP_NET_RAW");
    let seen = node.by(unit::command(&node.device.dev, &some, &program), &pins);
    assert_eq!(seen.check("rights")["found"], "without CAP_NET_RAW");
    assert_eq!(seen.code, Some(1));
}

fn run(command: &mut Command) {
    let out = command.output().unwrap();
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
}
