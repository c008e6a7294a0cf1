//! A live source without an agent around it, a small cluster for it, and what its objects give as manifests.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lb_user::intent::ServicePort;
use lb_user::moment::Moment;
use lb_user::source::live::{Access, Api, Feed, Live, News};
use lb_user::source::manifests::{Manifests, Rules, Scope};
use serde_json::{Value, json};
use stellwerk_tests::fake_api::FakeApi;
use tokio::runtime::Runtime;
use tokio::time::timeout;

/// However slow the machine is.
pub const ENOUGH: Duration = Duration::from_secs(60);

/// A folder of its own, removed at the end.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Folder {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("stellwerk-live-{}-{count}", std::process::id()));
        _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn rules() -> Rules {
    Rules { node: "n1".into(), draining: Duration::from_secs(30), classless: true, ..Rules::default() }
}

pub fn now() -> Moment {
    Moment::START + Duration::from_secs(1_000)
}

/// What the API's objects give as a folder of manifests.
pub fn as_manifests(api: &FakeApi) -> Vec<ServicePort> {
    let folder = Folder::new();
    api.manifests(&folder.0).unwrap();
    let mut manifests = Manifests::new(folder.0.clone(), rules());
    manifests.load(&Scope::All, now()).unwrap();
    manifests.services()
}

/// An agent, as far as its source goes.
pub struct Agent {
    // Before the runtime that it lives in.
    pub live: Live,
    feed: Feed,
    pub manifests: Manifests,
    pub api: Api,
    /// How many times there were objects.
    pub changes: usize,
    runtime: Runtime,
    folder: Folder,
}

pub fn access(api: &FakeApi, folder: &Path, pods: bool) -> Access {
    Access { kubeconfig: Some(api.kubeconfig(folder).unwrap()), context: None, pods, policies: pods }
}

impl Agent {
    pub fn start(api: &FakeApi, pods: bool) -> Agent {
        Agent::start_in(api, pods, Folder::new())
    }

    pub fn start_in(api: &FakeApi, pods: bool, folder: Folder) -> Agent {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let access = access(api, &folder.0, pods);
        let (live, kept) = runtime.block_on(async { Live::start(access.clone(), &folder.0.join("cluster.json")) });
        let mut manifests = Manifests::told_by("the API", rules());
        manifests.load(&Scope::Objects(kept), now()).unwrap();
        let feed = live.feed();
        Agent { live, feed, manifests, api: Api::default(), changes: 0, runtime, folder }
    }

    /// Takes the next news. False: there were none for so long.
    pub fn take(&mut self, wait: Duration) -> bool {
        match self.runtime.block_on(async { timeout(wait, self.feed.next()).await }) {
            Err(_) => return false,
            Ok(News::Api(api)) => self.api = api,
            Ok(News::Objects(objects)) => {
                self.changes += 1;
                let scope = Scope::Objects(objects);
                self.manifests.load(&scope, now()).unwrap();
                let Scope::Objects(objects) = scope else { unreachable!() };
                self.live.keep(&objects);
            }
        }
        true
    }

    pub fn until(&mut self, what: &str, wanted: impl Fn(&Agent) -> bool) {
        let end = Instant::now() + ENOUGH;
        while !wanted(self) {
            assert!(Instant::now() < end, "{what} never came: {:?}\n{:#?}", self.api, self.manifests.services());
            self.take(Duration::from_millis(50));
        }
    }

    pub fn follows(&mut self, api: &FakeApi) {
        let want = as_manifests(api);
        self.until("the same services", |agent| agent.manifests.services() == want);
    }

    /// What it knows, gone with itself.
    pub fn stop(self) -> Folder {
        let Agent { live, folder, .. } = self;
        drop(live);
        folder
    }
}

pub fn service(name: &str, host: u32) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "x" },
        "spec": {
            "clusterIP": format!("10.1.{}.{}", host / 250, host % 250), "selector": { "app": name },
            "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }],
        },
    })
}

pub fn slice(service: &str, name: &str, endpoints: Value) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": { "name": name, "namespace": "x", "labels": { "kubernetes.io/service-name": service } },
        "addressType": "IPv4", "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }], "endpoints": endpoints,
    })
}

pub fn endpoint(host: u32) -> Value {
    json!({ "addresses": [format!("10.2.{}.{}", host / 250, host % 250)], "nodeName": "n1", "conditions": { "ready": true } })
}

pub fn pod(name: &str, app: &str, host: u32) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "x", "labels": { "app": app } },
        "spec": { "nodeName": "n1", "containers": [{ "name": "c" }] },
        "status": {
            "podIP": format!("10.3.{}.{}", host / 250, host % 250), "phase": "Running",
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

pub fn policy(name: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": name, "namespace": "x" }, "spec": { "podSelector": {} },
    })
}

pub fn node(name: &str, zone: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "labels": { "topology.kubernetes.io/zone": zone } },
    })
}

/// Two services with endpoints, and a node.
pub fn cluster() -> FakeApi {
    let api = FakeApi::start().unwrap();
    api.put_all([
        node("n1", "east"),
        service("a", 1),
        slice("a", "a-1", json!([endpoint(1), endpoint(2)])),
        service("b", 2),
        slice("b", "b-1", json!([endpoint(3)])),
    ]);
    api
}
