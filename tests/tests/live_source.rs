//! A live Kubernetes API as the source, against an API server in this process: whatever goes wrong on the way, it
//! ends in the services that a fresh list gives, and the same objects in a folder of manifests.

#[path = "live_source/churn.rs"]
mod churn;
#[path = "live_source/harness.rs"]
mod harness;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use harness::*;
use lb_user::source::live::{Access, Api, Live, News};
use lb_user::source::manifests::{Manifests, Objects, Scope, ServiceName};
use serde_json::{Value, json};
use stellwerk_tests::fake_api::{FakeApi, Streams};

#[test]
fn objects_become_services() {
    for (streams, pods) in
        [(Streams::Yes, false), (Streams::Refused, false), (Streams::Unknown, false), (Streams::Yes, true)]
    {
        let api = cluster();
        api.change_faults(|faults| (faults.streams, faults.bookmarks) = (streams, Duration::from_millis(50)));
        let mut agent = Agent::start(&api, pods);
        agent.follows(&api);
        assert_eq!(agent.changes, 1, "the first lists come as one");
        assert_eq!(agent.manifests.services().len(), 2);
        let step = |agent: &mut Agent| {
            agent.follows(&api);
            assert!(!agent.take(Duration::from_millis(20)), "more than was changed");
        };
        step(&mut agent);
        api.put(slice("a", "a-1", json!([endpoint(1), { "addresses": ["10.2.0.2"], "conditions": { "ready": false, "serving": true, "terminating": true } }])));
        step(&mut agent);
        api.put(service("c", 3));
        step(&mut agent);
        // One after the other: two watches tell of them.
        api.delete("endpointslices", "x", "a-1");
        step(&mut agent);
        api.delete("services", "x", "a");
        step(&mut agent);
        if pods {
            api.put(pod("c-1", "c", 1));
            step(&mut agent);
            assert_eq!(agent.manifests.services().iter().map(|s| s.endpoints.len()).collect::<Vec<_>>(), [1, 1]);
            api.delete("pods", "x", "c-1");
            step(&mut agent);
            api.put(policy("shut"));
            agent.until("the policy", |agent| agent.manifests.cluster().policies.len() == 1);
            api.delete("networkpolicies", "x", "shut");
            agent.until("its end", |agent| agent.manifests.cluster().policies.is_empty());
        }
        assert_eq!(agent.api, Api { listed: true, away: None });
    }
}

/// Lists of more than a page, of which the rest may be forgotten before it is asked for.
#[test]
fn long_lists_come_in_pages() {
    let api = FakeApi::start().unwrap();
    api.put_all((0..1_200).map(|i| service(&format!("s{i}"), i)));
    api.change_faults(|faults| faults.streams = Streams::Refused);
    let mut agent = Agent::start(&api, false);
    agent.follows(&api);
    assert_eq!((agent.manifests.services().len(), agent.changes), (1_200, 1));
    let asked = api.asked();
    let pages: Vec<_> = asked.iter().filter(|a| a.path == "/api/v1/services" && a.says("watch").is_none()).collect();
    assert_eq!(pages.iter().map(|a| a.says("limit")).collect::<Vec<_>>(), [Some("500"); 3]);
    assert!(pages[0].says("continue").is_none() && pages[1].says("continue").is_some());
    drop(agent);
    // Without a rest it is asked for in one go.
    let agent = Agent::start(&api, false);
    api.forget_asked();
    let end = Instant::now() + ENOUGH;
    let unpaged = || {
        api.asked()
            .iter()
            .any(|a| a.path == "/api/v1/services" && a.says("watch").is_none() && a.says("limit").is_none())
    };
    let mut agent = agent;
    while !unpaged() {
        assert!(Instant::now() < end);
        // Whatever was begun is forgotten, and so the watch is, too.
        api.forget();
        api.put(node("n1", "east"));
        agent.take(Duration::from_millis(1));
    }
    agent.follows(&api);
}

#[test]
fn nothing_is_told_before_all_is_listed() {
    for streams in [Streams::Yes, Streams::Refused] {
        let api = cluster();
        api.change_faults(|faults| (faults.streams, faults.forbidden) = (streams, Some("endpointslices".into())));
        let mut agent = Agent::start(&api, false);
        agent.until("the refusal", |agent| agent.api.away.is_some());
        let end = Instant::now() + Duration::from_millis(500);
        while Instant::now() < end {
            agent.take(Duration::from_millis(50));
        }
        let away = agent.api.away.clone().unwrap();
        assert_eq!(
            away.error,
            "endpointslices: 403 Forbidden: endpointslices is forbidden: User \"agent\" cannot list resource"
        );
        assert!(away.attempts > 1 && !agent.api.listed, "{away:?}");
        assert_eq!(agent.changes, 0, "half a cluster was told");
        api.change_faults(|faults| faults.forbidden = None);
        agent.follows(&api);
        agent.until("the API", |agent| agent.api == Api { listed: true, away: None });
        assert_eq!(agent.changes, 1);
    }
}

#[test]
fn an_api_that_comes_back_is_one_change() {
    for streams in [Streams::Yes, Streams::Refused] {
        let api = cluster();
        api.change_faults(|faults| faults.streams = streams);
        let mut agent = Agent::start(&api, false);
        agent.follows(&api);
        let before = agent.manifests.services();
        for round in 0..3 {
            let changes = agent.changes;
            // Watches that live for a while: who fails soon waits for longer.
            assert!(!agent.take(Duration::from_millis(1_100)));
            let left = SystemTime::now();
            api.set_away(true);
            agent.until("the API's absence", |agent| agent.api.away.is_some());
            agent.until("several attempts", |agent| agent.api.away.as_ref().is_some_and(|away| away.attempts > 2));
            let away = agent.api.away.clone().unwrap();
            assert!(away.since >= left && away.since <= SystemTime::now(), "{away:?}");
            assert_eq!(agent.changes, changes, "it says nothing while it is away");
            if round == 0 {
                assert_eq!(agent.manifests.services(), before);
            }
            // Of every kind, and something that comes and goes.
            api.put_all([
                service("late", 50 + round),
                slice("late", "late-1", json!([endpoint(50 + round)])),
                slice("a", "a-1", json!([endpoint(60 + round)])),
                node("n1", ["west", "east"][round as usize % 2]),
                service("short", 70),
            ]);
            api.delete("services", "x", "short");
            api.delete("services", "x", if round == 0 { "b" } else { "none" });
            api.set_away(false);
            agent.follows(&api);
            agent.until("the API", |agent| agent.api == Api { listed: true, away: None });
            assert_eq!(agent.changes, changes + 1, "round {round}: it came in parts");
        }
    }
}

/// Each fault, once at the start, and once while it is watched.
#[test]
fn faults_at_each_step() {
    type Fault = (&'static str, fn(&FakeApi));
    let faults: [Fault; 13] = [
        ("500", |api| api.change_faults(|f| f.statuses.push_back(500))),
        ("401", |api| api.change_faults(|f| f.statuses.push_back(401))),
        ("429", |api| api.change_faults(|f| f.statuses.push_back(429))),
        ("410 as an answer", |api| api.change_faults(|f| f.statuses.push_back(410))),
        ("cut lines", |api| api.change_faults(|f| f.cut_lines = 5)),
        ("slow", |api| api.change_faults(|f| f.pause = Duration::from_millis(20))),
        ("short watches", |api| api.change_faults(|f| f.lifetime = Some(Duration::from_millis(30)))),
        ("bookmarks", |api| api.change_faults(|f| f.bookmarks = Duration::from_millis(1))),
        ("expired", FakeApi::expire_watches),
        ("cut", FakeApi::cut_watches),
        ("expired and forgotten", |api| {
            api.expire_watches();
            api.forget();
        }),
        ("forgotten, and told by status", |api| {
            api.change_faults(|f| f.gone_by_status = true);
            api.cut_watches();
            api.put(node("n3", "east"));
            api.forget();
        }),
        ("away", |api| {
            api.set_away(true);
            std::thread::sleep(Duration::from_millis(30));
            api.set_away(false);
        }),
    ];
    for streams in [Streams::Yes, Streams::Refused] {
        for (name, fault) in &faults {
            let api = cluster();
            api.change_faults(|f| f.streams = streams);
            fault(&api);
            let mut agent = Agent::start(&api, false);
            agent.follows(&api);
            for round in 0..2 {
                fault(&api);
                api.put(service("late", 50 + round));
                fault(&api);
                api.put(slice("late", "late-1", json!([endpoint(round)])));
                api.delete("services", "x", if round == 1 { "b" } else { "late" });
                fault(&api);
                agent.follows(&api);
            }
            assert!(!agent.manifests.services().is_empty(), "{name}");
        }
    }
}

#[test]
fn refused_objects_keep_what_they_said() {
    let api = cluster();
    let mut agent = Agent::start(&api, false);
    agent.follows(&api);
    let before = agent.manifests.services();
    let mut wrong = service("a", 1);
    wrong["spec"]["ports"][0]["port"] = json!(0);
    api.put(wrong);
    agent.until("the refusal", |agent| !agent.manifests.refused().is_empty());
    let refused: Vec<_> = agent.manifests.refused().iter().map(ToString::to_string).collect();
    assert_eq!(
        refused,
        ["api services/x/a: spec.ports[0].port: `0` is too small; expected a port number from 1 to 65535"]
    );
    assert_eq!(agent.manifests.services(), before);
    // Others go on meanwhile.
    api.put(service("c", 9));
    agent.until("another service", |agent| agent.manifests.services().len() == 3);
    let mut clash = service("d", 9);
    clash["spec"]["externalIPs"] = json!(["10.1.0.2"]);
    api.put(clash);
    agent.until("the other refusal", |agent| agent.manifests.refused().len() == 3);
    let refused: Vec<_> = agent.manifests.refused().iter().map(ToString::to_string).collect();
    assert_eq!(
        &refused[1..],
        [
            "api services/x/d: spec.ports[0]: x/d and x/c (api services/x/c) both want 10.1.0.9:80/TCP; expected one of them to change",
            "api services/x/d: spec.ports[0]: x/d and x/b (api services/x/b) both want 10.1.0.2:80/TCP; expected one of them to change",
        ]
    );
    // Mended, and gone.
    api.put(service("a", 7));
    api.delete("services", "x", "d");
    agent.follows(&api);
    // What is refused has no part in the services: that it is gone comes by itself.
    agent.until("no refusal", |agent| agent.manifests.refused().is_empty());
}

#[test]
fn what_was_told_outlives_the_agent() {
    let api = cluster();
    let mut agent = Agent::start(&api, false);
    agent.follows(&api);
    api.delete("services", "x", "b");
    api.put(service("c", 3));
    agent.follows(&api);
    let before = agent.manifests.services();
    let folder = agent.stop();
    // One that starts while the API is away.
    api.set_away(true);
    let mut agent = Agent::start_in(&api, false, folder);
    agent.until("the API's absence", |agent| agent.api.away.is_some());
    assert_eq!(agent.manifests.services(), before);
    assert!(!agent.api.listed && agent.changes == 0);
    // The API comes back: what it meanwhile did is one change, and nothing else is.
    api.delete("services", "x", "a");
    api.put(service("d", 4));
    api.set_away(false);
    agent.follows(&api);
    assert_eq!(agent.changes, 1);
}

/// An event is handed over as soon as it comes.
#[test]
fn events_are_not_held_back() {
    let api = cluster();
    let mut agent = Agent::start(&api, false);
    agent.follows(&api);
    let mut taken = Vec::new();
    for round in 0..20 {
        api.put(service("c", 10 + round));
        let start = Instant::now();
        assert!(agent.take(ENOUGH));
        taken.push(start.elapsed());
    }
    agent.follows(&api);
    // The best of several: others may have the machine meanwhile.
    assert!(taken.iter().min().unwrap() < &Duration::from_millis(5), "{taken:?}");
}

/// The role allows what is asked for, and nothing else.
#[test]
fn the_role_is_what_is_used() {
    let text = include_str!("../../examples/kubernetes/rbac.yaml");
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
    let role = documents.iter().find(|document| document["kind"] == "ClusterRole").unwrap();
    let words = |value: &Value| -> Vec<String> {
        value.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    let mut allowed = BTreeSet::new();
    for rule in role["rules"].as_array().unwrap() {
        assert!(
            rule.as_object().unwrap().keys().all(|key| ["apiGroups", "resources", "verbs"].contains(&key.as_str()))
        );
        for group in words(&rule["apiGroups"]) {
            for resource in words(&rule["resources"]) {
                allowed.extend(words(&rule["verbs"]).into_iter().map(|verb| (group.clone(), resource.clone(), verb)));
            }
        }
    }
    let mut used = BTreeSet::new();
    // Streamed lists are watches: who streams none lists, too.
    let api = cluster();
    api.change_faults(|faults| faults.streams = Streams::Refused);
    let mut agent = Agent::start(&api, true);
    agent.follows(&api);
    let name = ServiceName { namespace: "x".into(), name: "a".into() };
    agent.live.say([(name, vec!["192.168.20.100".parse().unwrap()])].into());
    agent.until("the status is written", |_| api.asked().iter().any(|asked| asked.method == "PATCH"));
    for asked in api.asked() {
        if asked.method == "PATCH" {
            assert_eq!(asked.path, "/api/v1/namespaces/x/services/a/status");
            assert_eq!((asked.says("fieldManager"), asked.says("force")), (Some("stellwerk"), Some("true")));
            used.insert((String::new(), "services/status".into(), "patch".into()));
            continue;
        }
        assert_eq!(asked.method, "GET");
        let words: Vec<&str> = asked.path.trim_start_matches('/').split('/').collect();
        let (group, resource) = match words[..] {
            ["api", "v1", resource] => ("", resource),
            ["apis", group, _, resource] => (group, resource),
            _ => panic!("{asked:?}"),
        };
        let verb = if asked.says("watch") == Some("true") { "watch" } else { "list" };
        used.insert((group.to_owned(), resource.to_owned(), verb.to_owned()));
    }
    assert_eq!(allowed, used);
    // Who asks is who is allowed.
    let binding = documents.iter().find(|document| document["kind"] == "ClusterRoleBinding").unwrap();
    let account = documents.iter().find(|document| document["kind"] == "ServiceAccount").unwrap();
    assert_eq!(binding["roleRef"]["name"], role["metadata"]["name"]);
    assert_eq!(binding["subjects"][0]["name"], account["metadata"]["name"]);
    assert_eq!(binding["subjects"][0]["namespace"], account["metadata"]["namespace"]);
}

/// What answers there is no API, or speaks another language.
#[test]
fn what_is_no_api_is_away() {
    let api = cluster();
    let folder = Folder::new();
    let path = api.kubeconfig(&folder.0).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    for (server, want) in [
        (api.url().replace("http:", "https:"), "InvalidContentType"),
        (format!("{}/elsewhere", api.url()), "404 NotFound: the server could not find the requested resource"),
        ("http://127.0.0.1:1".to_owned(), "Connection refused"),
    ] {
        std::fs::write(&path, text.replace(&api.url(), &server)).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let access = Access { kubeconfig: Some(path.clone()), context: None, pods: false, policies: false };
        let error = runtime.block_on(async {
            let (live, _) = Live::start(access, &folder.0.join("cluster.json"));
            let end = tokio::time::Instant::now() + ENOUGH;
            loop {
                match tokio::time::timeout_at(end, live.feed().next()).await.unwrap() {
                    News::Api(Api { away: Some(away), .. }) => break away.error,
                    News::Api(_) => {}
                    News::Objects(objects) => panic!("{server} told of {objects:?}"),
                }
            }
        });
        assert!(error.contains(want), "{server}: {error}");
    }
}

/// The status of a service, as whoever gives addresses will write it.
#[test]
fn an_applied_status_is_told() {
    let api = cluster();
    let mut agent = Agent::start(&api, false);
    agent.follows(&api);
    let body = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "a", "namespace": "x" },
        "status": { "loadBalancer": { "ingress": [{ "ip": "10.9.0.1" }] } },
    })
    .to_string();
    let answer = |query: &str| {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(api.url().trim_start_matches("http://")).unwrap();
        let head = format!(
            "PATCH /api/v1/namespaces/x/services/a/status?{query} HTTP/1.1\r\nhost: api\r\nconnection: close\r\n\
             content-type: application/apply-patch+yaml\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text.split(' ').nth(1).unwrap().to_owned()
    };
    assert_eq!(answer("force=true"), "422");
    assert_eq!(answer("fieldManager=stellwerk&force=true"), "200");
    agent.follows(&api);
    assert_eq!(agent.manifests.services()[0].addresses.len(), 2);
    let changes = agent.changes;
    // What changes nothing is no event.
    assert_eq!(answer("fieldManager=stellwerk&force=true"), "200");
    assert!(!agent.take(Duration::from_millis(50)));
    assert_eq!(agent.changes, changes);
}

/// Objects, as whoever tells them may also put them together.
#[test]
fn objects_alone() {
    let mut manifests = Manifests::told_by("the API", rules());
    let objects: Objects = BTreeMap::from([("api services/x/a".into(), Some(std::sync::Arc::new(service("a", 1))))]);
    manifests.load(&Scope::Objects(objects), now()).unwrap();
    assert_eq!(manifests.services().len(), 1);
    assert_eq!(manifests.load(&Scope::All, now()).unwrap().changed.len(), 0);
    manifests.load(&Scope::Objects(BTreeMap::from([("api services/x/a".into(), None)])), now()).unwrap();
    assert_eq!(manifests.services(), []);
}
