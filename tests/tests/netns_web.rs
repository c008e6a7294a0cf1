//! What can be watched over HTTP: metrics and interface against the command line, and who may ask.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;
use stellwerk_tests::exposition::{self, Samples};
use stellwerk_tests::netns::config::Files;
use stellwerk_tests::netns::http::{Reply, get};
use stellwerk_tests::netns::scene::{PORT, Scene, Which};
use stellwerk_tests::netns::{Ns, probe};
use stellwerk_tests::schema::Description;

const LOCAL: &str = "127.0.0.1:9617";
const TOKEN: &str = "a-token-of-some-length";

fn configure(scene: &Scene, web: &str) {
    let text = Files::standard("auto", "auto") + &format!("  dns: {{ address: 172.28.0.53 }}\nweb: {web}\n");
    scene.files.write_config(&text).unwrap();
}

fn scene() -> Scene {
    let mut scene = Scene::without_agent("auto", "auto").unwrap();
    configure(&scene, "{}");
    scene.start_agent().unwrap();
    scene
}

/// Asks until somebody listens there, which may take a moment after a change.
fn ask(ns: &Ns, at: &str, path: &str, headers: &[&str]) -> Reply {
    let (at, end): (SocketAddr, _) = (at.parse().unwrap(), Instant::now() + Duration::from_secs(20));
    loop {
        match get(ns, at, path, headers) {
            Ok(reply) => return reply,
            Err(why) => assert!(Instant::now() < end, "{why:#}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn scrape(scene: &Scene, open: bool) -> Samples {
    let accept: &[&str] = if open { &["Accept: application/openmetrics-text; version=1.0.0"] } else { &[] };
    let reply = ask(&scene.device.dev, LOCAL, "/metrics", accept);
    assert_eq!(reply.status, 200, "{}", reply.body);
    exposition::parse(&reply.body, open).unwrap_or_else(|error| panic!("{error:#}\nin\n{}", reply.body))
}

fn number(row: &Value, key: &str) -> f64 {
    row[key].as_f64().unwrap_or_else(|| panic!("{key} in {row}"))
}

/// Connections and refusals, so that there is something to tell.
fn traffic(scene: &Scene) {
    for ip in Which::Both.external().both() {
        for _ in 0..20 {
            probe::tcp(&scene.client(), SocketAddr::new(ip, PORT), 10).unwrap();
        }
    }
    assert!(probe::tcp(&scene.client(), SocketAddr::new(Which::Empty.external().v4, PORT), 10).is_err());
    // What is told over HTTP is at most a second old: of the agent's start, if that was just before.
    std::thread::sleep(Duration::from_millis(1_200));
}

#[test]
fn metrics_are_what_the_command_line_says() {
    let scene = scene();
    traffic(&scene);
    let samples = scrape(&scene, false);
    let open = scrape(&scene, true);
    // Bounds of buckets are written as `1` and as `1.0`; the others come and go by themselves.
    let passing =
        |key: &&String| !["_bucket{", "http_requests", "stellwerk_flows{"].iter().any(|part| key.contains(part));
    let names = |all: &Samples| all.keys().filter(passing).cloned().collect::<BTreeSet<_>>();
    let (one, other) = (names(&samples), names(&open));
    let differ: Vec<_> = one.symmetric_difference(&other).collect();
    assert!(differ.is_empty() && one.len() > 300, "both forms tell the same: {differ:?}");
    let at = |series: &str| *samples.get(series).unwrap_or_else(|| panic!("no {series}"));

    let status = scene.agent.rows("status").unwrap();
    let mut tables = 0;
    for row in status.iter().filter(|row| row["what"] == "table") {
        let name = row["name"].as_str().unwrap();
        assert_eq!(at(&format!("stellwerk_table_capacity{{table=\"{name}\"}}")), number(row, "capacity"), "{name}");
        // Entries of connections and neighbours come and go by themselves.
        if !matches!(name, "NEXT_HOPS" | "FLOWS4" | "FLOWS6") {
            assert_eq!(at(&format!("stellwerk_table_entries{{table=\"{name}\"}}")), number(row, "used"), "{name}");
        }
        tables += 1;
    }
    assert!(tables >= 20, "{tables}");
    let revision = status.iter().find(|row| row["what"] == "agent").unwrap()["detail"].to_string();
    assert_eq!(revision, format!("\"revision {}\"", at("stellwerk_agent_revision")));
    assert_eq!((at("stellwerk_agent_revision_lag"), at("stellwerk_source_refused")), (0.0, 0.0));
    assert!(at("stellwerk_apply_duration_seconds_count") >= 1.0);

    let mut connections = 0.0;
    for row in scene.agent.rows("services").unwrap() {
        let [name, protocol] = ["name", "protocol"].map(|key| row[key].as_str().unwrap().to_owned());
        let labels = format!("service=\"{name}\",protocol=\"{protocol}\",port=\"{}\"", row["port"]);
        assert_eq!(at(&format!("stellwerk_service_backends{{{labels}}}")), number(&row, "backends"));
        let told = at(&format!("stellwerk_service_connections_total{{{labels}}}"));
        assert_eq!(told, number(&row, "connections"), "{name}");
        let bytes = at(&format!("stellwerk_service_bytes_total{{{labels},direction=\"reply\"}}"));
        assert_eq!(bytes, number(&row, "reply_bytes"), "{name}");
        connections += told;
    }
    assert!(connections >= 40.0, "{connections}");
    let drops: BTreeMap<String, f64> = scene
        .agent
        .rows("drops")
        .unwrap()
        .iter()
        .filter(|row| row["kind"] == "drop")
        .map(|row| (row["reason"].as_str().unwrap().to_owned(), number(row, "count")))
        .collect();
    assert!(drops["no_backend"] >= 1.0, "{drops:?}");
    for (reason, count) in drops {
        assert_eq!(at(&format!("stellwerk_dropped_packets_total{{reason=\"{reason}\"}}")), count, "{reason}");
    }
    for (port, interface, role) in [("Port2", "eth0", "uplink"), ("Port3", "eth1", "compute")] {
        assert_eq!(at(&format!("stellwerk_port_up{{port=\"{port}\",interface=\"{interface}\",role=\"{role}\"}}")), 1.0);
    }
    assert!(at("stellwerk_port_receive_bytes_total{port=\"Port3\",interface=\"eth1\"}") > 1_000.0);
    // All that metrics are made of could be read.
    let unread: Vec<_> = samples.iter().filter(|(key, up)| key.contains("listing_up") && **up != 1.0).collect();
    assert!(unread.is_empty(), "{unread:?}");
    assert!(samples.contains_key("stellwerk_dns_queries_total{type=\"AAAA\"}"));
}

#[test]
fn each_path_answers_as_described() {
    let scene = scene();
    traffic(&scene);
    let described = Description::read().unwrap();
    for path in described.paths() {
        let reply = ask(&scene.device.dev, LOCAL, &path, &[]);
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
        described.check(&path, reply.status, reply.header("content-type"), &reply.body).unwrap();
        assert!(reply.header("content-security-policy").starts_with("default-src 'none'"), "{path}: {}", reply.head);
    }
    let rows = |path: &str| serde_json::from_str::<Vec<Value>>(&ask(&scene.device.dev, LOCAL, path, &[]).body).unwrap();
    assert!(!rows("/api/v1/flows").is_empty() && rows("/api/v1/flows?limit=1").len() == 1);
    let names = |rows: &[Value]| rows.iter().map(|row| row["name"].clone()).collect::<Vec<_>>();
    assert_eq!(names(&rows("/api/v1/services")), names(&scene.agent.rows("services").unwrap()));
    assert_eq!(names(&rows("/api/v1/ports")), names(&scene.agent.rows("ports").unwrap()));
    let wrong = ask(&scene.device.dev, LOCAL, "/api/v1/flows?limit=x", &[]);
    described.check("/api/v1/flows", wrong.status, wrong.header("content-type"), &wrong.body).unwrap();
    let history: Value = serde_json::from_str(&ask(&scene.device.dev, LOCAL, "/api/v1/history", &[]).body).unwrap();
    assert_eq!(history["at"].as_array().unwrap().len(), history["series"][0]["values"].as_array().unwrap().len());
}

#[test]
fn who_is_elsewhere_needs_the_token() {
    let scene = scene();
    let client = &scene.device.client;
    let there = "192.168.20.10:9617";
    assert!(get(client, there.parse().unwrap(), "/healthz", &[]).is_err(), "it listens at the loopback alone");
    std::fs::write(scene.files.config().with_file_name("token"), format!("{TOKEN}\n")).unwrap();
    configure(&scene, &format!("{{ listen: '{there}', tokenFile: token }}"));
    let bearer = format!("Authorization: Bearer {TOKEN}");
    for (path, without, with) in [
        ("/", 200, 200),
        ("/healthz", 200, 200),
        ("/readyz", 200, 200),
        ("/metrics", 401, 200),
        ("/api/v1/drops", 401, 200),
    ] {
        assert_eq!(ask(client, there, path, &[]).status, without, "{path}");
        assert_eq!(ask(client, there, path, &[&bearer]).status, with, "{path}");
    }
    assert_eq!(ask(client, there, "/metrics", &["Authorization: Bearer another-token-of-that"]).status, 401);
    // What is refused changes nothing.
    configure(&scene, &format!("{{ listen: '{there}' }}"));
    let end = Instant::now() + Duration::from_secs(20);
    while !scene.agent.log().contains("can be asked from elsewhere") {
        assert!(Instant::now() < end, "{}", scene.agent.log_tail());
        std::thread::sleep(Duration::from_millis(30));
    }
    assert_eq!(ask(client, there, "/metrics", &[]).status, 401);
    configure(&scene, "{}");
    assert_eq!(ask(&scene.device.dev, LOCAL, "/readyz", &[]).status, 200);
    assert!(get(client, there.parse().unwrap(), "/healthz", &[]).is_err());
}
