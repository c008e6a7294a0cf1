//! A large cluster that changes for long: 10,000 services with 100,000 endpoints in a release build, a tenth of that in
//! others. Objects → services → plan, in parts as the agent plans → tables; at each quiet point these are what
//! everything planned anew makes of all objects.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lb_user::intent::{Capacity, ServicePort};
use lb_user::plan::{Apply, Ids, Op, Planned, diff, plan};
use lb_user::source::manifests::{Manifests, Objects, Rules, Scope, Update};
use serde_json::{Value, json};
use stellwerk_tests::fake::Fake;
use stellwerk_tests::sim::world::{Random, TICKS, World};

const SERVICES: usize = if cfg!(debug_assertions) { 1_000 } else { 10_000 };
const ENDPOINTS: usize = 10;
const ROUNDS: usize = 60;
/// Everything is planned anew every so many rounds.
const QUIET: usize = 10;

/// What an API would tell, and tells of a change.
struct Cluster {
    random: Random,
    all: Objects,
}

impl Cluster {
    fn new() -> Self {
        let mut cluster = Cluster { random: Random(6), all: Objects::new() };
        (0..SERVICES).for_each(|service| cluster.create(service, &mut Objects::new()));
        cluster
    }

    fn set(&mut self, name: String, object: Option<Value>, told: &mut Objects) {
        let (path, object) = (PathBuf::from(name), object.map(Arc::new));
        match &object {
            Some(_) => self.all.insert(path.clone(), object.clone()),
            None => self.all.remove(&path),
        };
        told.insert(path, object);
    }

    fn create(&mut self, service: usize, told: &mut Objects) {
        let affinity = if self.random.one_in(10) { "ClientIP" } else { "None" };
        let object = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": format!("s{service}"), "namespace": "x" },
            "spec": {
                "clusterIP": format!("172.28.{}.{}", service / 250, service % 250 + 1), "sessionAffinity": affinity,
                "ports": [{ "name": "web", "port": 80, "targetPort": 8080 }],
            },
        });
        self.set(format!("api services/x/s{service}"), Some(object), told);
        self.endpoints(service, told);
    }

    /// Other endpoints, of which some leave and some aren't ready.
    fn endpoints(&mut self, service: usize, told: &mut Objects) {
        let count = if self.random.one_in(5) { self.random.below(2 * ENDPOINTS) } else { ENDPOINTS };
        let first = self.random.below(200);
        let endpoints: Vec<Value> = (0..count)
            .map(|i| {
                let leaves = self.random.one_in(20);
                let ready = !leaves && !self.random.one_in(20);
                json!({
                    "addresses": [format!("10.{}.{}.{}", 64 + service / 250, service % 250, 1 + (first + i) % 220)],
                    "conditions": { "ready": ready, "serving": true, "terminating": leaves },
                })
            })
            .collect();
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "name": format!("s{service}-a"), "namespace": "x",
                "labels": { "kubernetes.io/service-name": format!("s{service}") },
            },
            "ports": [{ "name": "web", "port": 8080 }], "endpoints": endpoints,
        });
        self.set(format!("api endpointslices/x/s{service}-a"), Some(slice), told);
    }

    /// A few changes, which are told at once.
    fn change(&mut self) -> Objects {
        let mut told = Objects::new();
        for _ in 0..1 + self.random.below(40) {
            let service = self.random.below(SERVICES);
            match self.random.below(8) {
                0 => {
                    self.set(format!("api services/x/s{service}"), None, &mut told);
                    self.set(format!("api endpointslices/x/s{service}-a"), None, &mut told);
                }
                1 | 2 => self.create(service, &mut told),
                _ if self.all.contains_key(&PathBuf::from(format!("api services/x/s{service}"))) => {
                    self.endpoints(service, &mut told);
                }
                _ => {}
            }
        }
        told
    }
}

/// The agent's state between two rounds.
struct Agent {
    world: World,
    manifests: Manifests,
    ids: Ids,
    planned: Planned,
    fake: Fake,
}

fn manifests() -> Manifests {
    let rules = Rules { node: "edge-1".into(), draining: Duration::from_secs(30), classless: true, ..Rules::default() };
    Manifests::told_by("the cluster", rules)
}

impl Agent {
    fn start(cluster: &Cluster) -> Agent {
        let mut world = World::new(1);
        world.intent.service_ranges = Vec::new();
        world.intent.tuning.capacity =
            Capacity { services: 16_384, backends: 1 << 18, slots: 1 << 24, ..world.intent.tuning.capacity };
        let mut manifests = manifests();
        manifests.load(&Scope::Objects(cluster.all.clone()), world.clock().now).unwrap();
        world.intent.services = manifests.services();
        let mut ids = Ids::default();
        let planned = Planned::new(&world.intent, &world.network, &mut ids, world.clock(), None).unwrap();
        let capacity = Capacity { connections: 1_024, ..world.intent.tuning.capacity };
        let mut agent = Agent { fake: Fake::new(capacity, TICKS), world, manifests, ids, planned };
        let ops = diff(&agent.fake.read().unwrap(), agent.planned.contents());
        agent.apply(&ops);
        agent
    }

    fn apply(&mut self, ops: &[Op]) {
        ops.iter().for_each(|op| self.fake.apply(op).unwrap());
        self.ids.applied();
    }

    /// Takes what is told, and what is due, in parts.
    fn take(&mut self, told: Objects) {
        let clock = self.world.clock();
        let Update { changed, .. } = self.manifests.load(&Scope::Objects(told), clock.now).unwrap();
        let due = self.planned.due(clock.now);
        let is_of = |s: &ServicePort| {
            changed.keys().any(|name| (&name.namespace, &name.name) == (&s.namespace, &s.name))
                || due.contains(&(s.namespace.clone(), s.name.clone()))
        };
        let was: Vec<ServicePort> = self.world.intent.services.iter().filter(|s| is_of(s)).cloned().collect();
        Update { changed: changed.clone(), notices: Vec::new() }.apply_to(&mut self.world.intent.services);
        let now: Vec<ServicePort> = self.world.intent.services.iter().filter(|s| is_of(s)).cloned().collect();
        let (was, now): (Vec<&ServicePort>, Vec<&ServicePort>) = (was.iter().collect(), now.iter().collect());
        let ops = self.planned.update(&was, &now, &mut self.ids, clock).unwrap();
        self.apply(&ops);
    }

    /// The tables are what everything, planned anew, makes of all objects.
    fn is_settled(&self, cluster: &Cluster) {
        let clock = self.world.clock();
        let real = self.fake.read().unwrap();
        assert_eq!(diff(&real, self.planned.contents()), [], "the tables are the plan's");
        let again = plan(&self.world.intent, &self.world.network, &mut Ids::recover(&real), clock).unwrap();
        assert_eq!(diff(&real, &again), [], "what is planned in parts is what is planned whole");
        // Others who hear of all objects for the first time have the same services, but for deadlines.
        let mut others = manifests();
        others.load(&Scope::Objects(cluster.all.clone()), clock.now).unwrap();
        let shown = |services: &[ServicePort]| -> BTreeMap<String, Vec<String>> {
            let endpoint = |e: &lb_user::intent::Endpoint| format!("{} {}", e.addr, e.state.until().is_none());
            services.iter().map(|s| (s.full_name(), s.endpoints.iter().map(endpoint).collect())).collect()
        };
        assert_eq!(shown(&self.world.intent.services), shown(&others.services()));
    }
}

#[test]
fn tables_are_the_plan_at_each_quiet_point() {
    let mut cluster = Cluster::new();
    let mut agent = Agent::start(&cluster);
    agent.is_settled(&cluster);
    let endpoints: usize = agent.world.intent.services.iter().map(|s| s.endpoints.len()).sum();
    assert!(agent.world.intent.services.len() == SERVICES && endpoints > SERVICES * ENDPOINTS * 8 / 10);
    for round in 1..=ROUNDS {
        agent.world.seconds += 3;
        agent.take(cluster.change());
        if round % QUIET == 0 {
            agent.is_settled(&cluster);
        }
    }
}
