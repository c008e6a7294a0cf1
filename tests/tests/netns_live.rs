//! The agent on a live Kubernetes API: what it serves while the API is there, away, and back.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stellwerk_tests::fake_api::FakeApi;
use stellwerk_tests::load::{Load, Plan, Summary};
use stellwerk_tests::netns::config::Files;
use stellwerk_tests::netns::device;
use stellwerk_tests::netns::probe;
use stellwerk_tests::netns::scene::{PORT, Scene, Which};

/// The scene without its agent, and an API in the device's namespace that has the scene's objects.
fn open() -> (Scene, FakeApi) {
    let scene = Scene::without_agent("auto", "xdp").unwrap();
    let listener = scene.device.dev.run(|| TcpListener::bind("127.0.0.1:0")).unwrap().unwrap();
    let api = FakeApi::serve(listener).unwrap();
    for entry in std::fs::read_dir(scene.device.lab.dir().join("cluster")).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        api.put_all(documents.into_iter().map(|mut object| {
            object["metadata"]["namespace"] = "default".into();
            object
        }));
    }
    api.kubeconfig(scene.device.lab.dir()).unwrap();
    (scene, api)
}

fn of_files() -> String {
    Files::standard("auto", "xdp")
}

fn of_api() -> String {
    of_files().replace("manifests: ./cluster", "kubeconfig: ./kubeconfig")
}

fn talks(scene: &Scene, which: Which) {
    for ip in which.external().both() {
        let answer = probe::tcp(&scene.client(), SocketAddr::new(ip, PORT), 1_000);
        assert!(answer.is_ok(), "{which:?} at {ip}: {answer:?}\n{}", scene.agent.log_tail());
    }
}

/// The state and the detail of where services come from.
fn cluster(rows: &[Value]) -> (String, String) {
    let row = rows.iter().find(|row| row["what"] == "cluster");
    let text = |key: &str| row.and_then(|row| row[key].as_str()).unwrap_or_default().to_owned();
    (text("state"), text("detail"))
}

fn wait_for(scene: &mut Scene, state: &str) {
    scene.agent.wait("status", |rows| cluster(rows).0 == state).unwrap();
}

/// How many wishes were put in force so far.
fn revisions(scene: &Scene) -> usize {
    scene.agent.log().matches("is in force").count()
}

fn endpoint(addr: IpAddr) -> Value {
    json!([{ "addresses": [addr], "nodeName": "edge-1", "conditions": { "ready": true } }])
}

fn summary(load: &Load, from: Instant) -> Summary {
    let to = Instant::now();
    load.settle(to);
    Summary::of(&load.reader().between(from, to))
}

#[test]
fn traffic_goes_on_while_the_api_is_away() {
    let (mut scene, api) = open();
    scene.files.write_config(&of_api()).unwrap();
    scene.start_agent().unwrap();
    talks(&scene, Which::Local);
    wait_for(&mut scene, "current");

    let from = Instant::now();
    let pace = Duration::from_millis(20);
    let load =
        Load::start(&scene.device.client, Plan { pace, ..Plan::new(SocketAddr::new(Which::Web.external().v4, PORT)) });
    let load = load.unwrap();
    api.set_away(true);
    wait_for(&mut scene, "away");
    let (_, detail) = cluster(&scene.agent.rows("status").unwrap());
    assert!(detail.starts_with("since 20") && detail.contains(" s, ") && !detail.contains("not listed"), "{detail}");
    talks(&scene, Which::Both);

    // Its successor knows the cluster from what the API said to its predecessor.
    let services = scene.agent.rows("services").unwrap().len();
    for _ in 0..2 {
        scene.agent.kill();
        scene.agent.start().unwrap();
        scene.agent.wait("status", |rows| cluster(rows).1.ends_with("not listed since the agent's start")).unwrap();
        assert_eq!(scene.agent.rows("services").unwrap().len(), services);
        talks(&scene, Which::Both);
    }

    // Much happens meanwhile, and is one change.
    let before = revisions(&scene);
    let empty = |family: &str| {
        api.all("endpointslices").into_iter().find(|slice| {
            slice["metadata"]["name"].as_str().unwrap().starts_with("empty") && slice["addressType"] == family
        })
    };
    for (family, addr) in [("IPv4", device::pod(1, 11).v4), ("IPv6", device::pod(1, 11).v6)] {
        let mut slice = empty(family).unwrap();
        slice["endpoints"] = endpoint(addr);
        api.put(slice);
    }
    api.delete("services", "default", "sticky");
    api.set_away(false);
    wait_for(&mut scene, "current");
    scene.agent.wait("services", |rows| rows.len() < services).unwrap();
    talks(&scene, Which::Empty);
    talks(&scene, Which::Both);
    assert_eq!(revisions(&scene), before + 1, "{}", scene.agent.log_tail());

    // What is refused keeps what it said, and is told.
    let mut wrong = api.get("services", "default", "local").unwrap();
    wrong["spec"]["ports"][0]["port"] = json!(0);
    api.put(wrong);
    let place = "api services/default/local";
    scene.agent.wait("status", |rows| rows.iter().any(|row| row["what"] == "refused" && row["name"] == place)).unwrap();
    talks(&scene, Which::Local);
    let summary = summary(&load, from);
    assert!(summary.requests > 50 && summary.failed == 0, "{summary:#?}\n{}", scene.agent.log_tail());
}

#[test]
fn an_api_takes_the_place_of_manifests() {
    let (mut scene, api) = open();
    scene.start_agent().unwrap();
    let services = scene.agent.rows("services").unwrap().len();
    wait_for(&mut scene, "files");
    // A file that is refused is told, too.
    std::fs::write(scene.device.lab.dir().join("cluster/wrong.yaml"), "a: [").unwrap();
    let refused = |rows: &[Value]| {
        rows.iter().any(|row| row["what"] == "refused" && row["name"].as_str().unwrap().contains("wrong.yaml:1:"))
    };
    scene.agent.wait("status", refused).unwrap();

    // An API that is away changes nothing: neither for the agent that runs, nor for one that starts.
    api.set_away(true);
    scene.files.write_config(&of_api()).unwrap();
    wait_for(&mut scene, "away");
    talks(&scene, Which::Local);
    scene.agent.kill();
    scene.agent.start().unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    while !scene.agent.log().contains("what is pinned stays in force as it is") {
        assert!(Instant::now() < until, "{}", scene.agent.log_tail());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(scene.agent.rows("services").unwrap().len(), services);
    talks(&scene, Which::Local);

    // It comes: a service less than in the folder.
    api.delete("services", "default", "sticky");
    api.set_away(false);
    scene.agent.wait("services", |rows| rows.len() < services).unwrap();
    talks(&scene, Which::Local);
    wait_for(&mut scene, "current");

    // And back to the folder.
    scene.files.write_config(&of_files()).unwrap();
    scene.agent.wait("services", |rows| rows.len() == services).unwrap();
    wait_for(&mut scene, "files");
    talks(&scene, Which::Local);
}

/// Services get addresses, and their status says which: that is what counts from then on, also for an agent that knows
/// nothing else.
#[test]
fn addresses_are_said_in_the_status() {
    let (mut scene, api) = open();
    let balancer = |name: &str, host: u8, pool: Option<&str>| {
        let annotations = pool.map_or(json!({}), |pool| json!({ "stellwerk.io/address-pool": pool }));
        let cluster = device::cluster(host).both();
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": name, "namespace": "default", "annotations": annotations },
            "spec": {
                "type": "LoadBalancer", "clusterIP": cluster[0], "clusterIPs": cluster, "ipFamilies": ["IPv4", "IPv6"],
                "ports": [{ "name": "tcp", "port": 80, "targetPort": 8080 }],
            },
        })
    };
    let pools = |second: &str| of_api() + &format!("  pools: {{ second: {{ addresses: [{second}] }} }}\n");
    scene.files.write_config(&pools("192.168.20.122-192.168.20.125")).unwrap();
    api.put_all([balancer("a", 61, None), balancer("b", 62, Some("second"))]);
    scene.start_agent().unwrap();
    let said = |api: &FakeApi, name: &str| -> Vec<String> {
        let service = api.get("services", "default", name).unwrap();
        let ingress = service["status"]["loadBalancer"]["ingress"].as_array().cloned().unwrap_or_default();
        ingress
            .iter()
            .map(|at| format!("{} {}", at["ip"].as_str().unwrap(), at["ipMode"].as_str().unwrap_or("-")))
            .collect()
    };
    let until = |what: &str, scene: &Scene, met: &dyn Fn() -> bool| {
        let end = Instant::now() + Duration::from_secs(10);
        while !met() {
            assert!(Instant::now() < end, "{what}\n{}", scene.agent.log_tail());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    until("an address of each family is said", &scene, &|| said(&api, "a").len() == 2 && said(&api, "b").len() == 1);
    assert_eq!(said(&api, "b"), ["192.168.20.122 VIP"]);
    let first = said(&api, "a");
    assert!(first.iter().all(|at| at.ends_with(" VIP")), "{first:?}");
    let manager = api.get("services", "default", "a").unwrap()["metadata"]["managedFields"][0]["manager"].clone();
    assert_eq!(manager, "stellwerk");

    // Another node's agent, or one that lost its disk, takes what the status says, though a lower one is free.
    scene.agent.stop();
    let kept = std::path::Path::new("/var/lib").join(scene.device.lab.id()).join("addresses.json");
    std::fs::remove_file(&kept).unwrap();
    scene.agent.command(&["unload"]).unwrap();
    let mut moved = api.get("services", "default", "b").unwrap();
    moved["status"]["loadBalancer"]["ingress"] = json!([{ "ip": "192.168.20.124" }]);
    api.put(moved);
    scene.start_agent().unwrap();
    let named = |rows: &[Value], addr: &str| rows.iter().any(|row| row["what"] == "address" && row["name"] == addr);
    scene.agent.wait("addresses", |rows| named(rows, "192.168.20.124") && !named(rows, "192.168.20.122")).unwrap();
    assert_eq!((said(&api, "a"), said(&api, "b").len()), (first, 1));

    // A pool that is edited takes what doesn't fit any more, and the status follows.
    scene.files.write_config(&pools("192.168.20.126")).unwrap();
    until("the status follows the pool", &scene, &|| said(&api, "b") == ["192.168.20.126 VIP"]);

    // What no pool has is another's doing, and stays.
    let mut foreign = balancer("c", 63, None);
    foreign["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": "198.51.100.77" }] } });
    api.put(foreign.clone());
    scene.agent.wait("services", |rows| rows.iter().any(|row| row["name"] == "default/c:tcp")).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(api.get("services", "default", "c").unwrap()["status"], foreign["status"]);
}
