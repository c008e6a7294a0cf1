//! Addresses of load balancers: kept over the agent's and the tables' end, told where there are none, and left
//! alone where it isn't known who has which.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use stellwerk_tests::netns::nat::sockets::eventually;
use stellwerk_tests::netns::{Agent, Lab};

struct World {
    agent: Agent,
    store: PathBuf,
    lab: Lab,
}

fn config(last: u8) -> String {
    format!(
        "node: n\nports:\n  Port3: {{ interface: eth1, compute: true }}\ncluster:\n  manifests: ./cluster\n  \
         serviceIPs: 192.168.20.100-192.168.20.{last}\n  pools:\n    spare: {{ addresses: 192.168.20.200/31, autoAssign: false }}\n"
    )
}

fn balancer(name: &str, annotations: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: {name}, annotations: {{ {annotations} }} }}\n\
         spec: {{ type: LoadBalancer, ports: [{{ port: 80 }}] }}\n"
    )
}

impl World {
    /// The agent doesn't run yet.
    fn new() -> World {
        let lab = Lab::new().unwrap();
        let [dev, far] = ["dev", "far"].map(|name| lab.ns(name).unwrap());
        lab.wire((&dev, "eth1"), (&far, "eth0")).unwrap();
        dev.ip("addr add 192.168.20.2/24 dev eth1").unwrap();
        fs::create_dir_all(lab.dir().join("cluster")).unwrap();
        let file = lab.dir().join("stellwerk.yaml");
        fs::write(&file, config(102)).unwrap();
        let agent = Agent::new(&lab, &dev, &file).unwrap();
        let pins = lab.pins();
        let store = PathBuf::from("/var/lib").join(pins.file_name().unwrap()).join("addresses.json");
        World { agent, store, lab }
    }

    fn write(&self, name: &str, text: &str) {
        let new = self.lab.dir().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.lab.dir().join(name)).unwrap();
    }

    fn start(&mut self) {
        self.agent.start_ready().unwrap();
    }

    /// Waits until these are all that have an address, and that wait for one.
    fn wait(&mut self, want: &[&str]) {
        let want: Vec<String> = want.iter().map(|line| (*line).to_owned()).collect();
        self.agent.wait("addresses", |rows| shown(rows) == want).unwrap();
    }
}

fn shown(rows: &[Value]) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let services = |row: &Value| {
        row["services"].as_array().into_iter().flatten().map(text).collect::<Vec<_>>().join(" ").replace("default/", "")
    };
    let line = |row: &Value| match row["what"].as_str() {
        Some("address") => format!("{} {}: {}", text(&row["name"]), services(row), text(&row["detail"])),
        Some("pool") => format!("{} {} used, {} free", text(&row["name"]), row["used"], row["free"]),
        _ => format!("{} {}", services(row), text(&row["detail"])),
    };
    rows.iter().map(line).collect()
}

const TWO: &[&str] =
    &["default 2 used, 1 free", "spare 0 used, 2 free", "192.168.20.100 b: given", "192.168.20.101 a: given"];

/// What is in force, and where.
fn pinned(rows: &[Value]) -> Vec<String> {
    rows.iter().map(|row| format!("{} {}", row["name"], row["addresses"])).collect()
}

const TWO_PINNED: [&str; 2] = [r#""default/a:80" ["192.168.20.101"]"#, r#""default/b:80" ["192.168.20.100"]"#];

/// Two load balancers, of which the one that came first has the first address.
fn two() -> World {
    let mut world = World::new();
    world.write("cluster/b.yaml", &balancer("b", ""));
    world.start();
    world.write("cluster/a.yaml", &balancer("a", ""));
    world.wait(TWO);
    // An address is listed once it is on disk, which is before it is in force.
    world.agent.wait("services", |rows| pinned(rows) == TWO_PINNED).unwrap();
    world
}

#[test]
fn addresses_outlive_agents_and_tables() {
    let mut world = two();
    // Killed; and all that is pinned gone.
    world.agent.kill();
    world.start();
    world.wait(TWO);
    assert!(world.agent.stop());
    world.agent.command(&["unload"]).unwrap();
    world.start();
    world.wait(TWO);
    // Without the store what is pinned counts.
    world.agent.kill();
    fs::remove_file(&world.store).unwrap();
    world.start();
    world.wait(TWO);
    assert!(world.store.exists());
    // By annotation, also beside another.
    world.write("cluster/c.yaml", &balancer("c", "metallb.io/address-pool: spare"));
    world.write("cluster/d.yaml", &balancer("d", "metallb.universe.tf/loadBalancerIPs: 192.168.20.100"));
    world.write("cluster/e.yaml", &balancer("e", ""));
    world.write("cluster/f.yaml", &balancer("f", ""));
    let denied = "d gets no address 192.168.20.100: default/b has it, and they have no sharing key in common";
    let none = "f gets no IPv4 address: all of 192.168.20.100-192.168.20.102 are taken";
    world.wait(&[
        "default 3 used, 0 free",
        "spare 1 used, 1 free",
        TWO[2],
        TWO[3],
        "192.168.20.102 e: given",
        "192.168.20.200 c: given",
        denied,
        none,
    ]);
    let rows = world.agent.rows("services").unwrap();
    let waiting = rows.iter().find(|row| row["name"] == "default/f").unwrap();
    assert_eq!(waiting["waiting"], none.strip_prefix("f ").unwrap());
    assert_eq!((&waiting["id"], &waiting["addresses"]), (&Value::Null, &Value::Array(Vec::new())));
    let log = world.agent.log();
    assert!(log.contains("LoadBalancer default/f gets no IPv4 address"), "{log}");
    let status = world.agent.rows("status").unwrap();
    let row = status.iter().find(|row| row["what"] == "addresses").unwrap();
    assert_eq!((row["used"].as_u64(), row["capacity"].as_u64()), (Some(4), Some(6)), "{row}");
    assert_eq!(row["detail"], "2 wait: see `stellwerk addresses`");
    // A larger pool has one for who waits; a smaller one keeps what fits, and tells of the rest.
    world.write("stellwerk.yaml", &config(103));
    world.agent.wait("addresses", |rows| shown(rows).contains(&"192.168.20.103 f: given".to_owned())).unwrap();
    world.write("stellwerk.yaml", &config(101));
    world.agent.wait("addresses", |rows| shown(rows).contains(&"default 2 used, 0 free".to_owned())).unwrap();
    // Told once it is in force, which the listing doesn't wait for.
    let told = "LoadBalancer default/e loses 192.168.20.102: no pool has it any more";
    eventually(told, 5, || world.agent.log().contains(told));
}

#[test]
fn a_broken_store_is_left_alone() {
    let mut world = two();
    world.agent.kill();
    let whole = fs::read_to_string(&world.store).unwrap();
    fs::write(&world.store, &whole[..whole.len() / 2]).unwrap();
    world.write("cluster/c.yaml", &balancer("c", ""));
    world.start();
    let told = |agent: &Agent| agent.log().matches("is damaged; expected it as the agent wrote it").count();
    assert_eq!(told(&world.agent), 1);
    // What is pinned goes on, nobody gets another one, and the file is as it was.
    assert_eq!(pinned(&world.agent.rows("services").unwrap()), TWO_PINNED);
    assert!(world.agent.log().contains("LoadBalancer default/c gets no IPv4 address: "), "{}", world.agent.log());
    assert_eq!(fs::read_to_string(&world.store).unwrap(), whole[..whole.len() / 2]);
    let said = world.agent.command(&["addresses"]).unwrap_err().to_string();
    assert!(said.contains("is damaged"), "{said}");
    // Mended.
    world.agent.kill();
    fs::write(&world.store, &whole).unwrap();
    world.start();
    world.agent.wait("addresses", |rows| shown(rows).contains(&"192.168.20.102 c: given".to_owned())).unwrap();
}
