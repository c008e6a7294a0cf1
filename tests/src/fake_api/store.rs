//! Objects, their versions and what happened to them.
//!
//! Invariant: one version a change, over all kinds. What a watch is told from a version on, with what a list of that
//! version says, is what a list says now.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// A kind that is served.
pub struct Kind {
    pub kind: &'static str,
    /// `v1`, `discovery.k8s.io/v1`
    pub version: &'static str,
    pub plural: &'static str,
}

pub const KINDS: [Kind; 6] = [
    Kind { kind: "Service", version: "v1", plural: "services" },
    Kind { kind: "EndpointSlice", version: "discovery.k8s.io/v1", plural: "endpointslices" },
    Kind { kind: "Node", version: "v1", plural: "nodes" },
    Kind { kind: "Namespace", version: "v1", plural: "namespaces" },
    Kind { kind: "Pod", version: "v1", plural: "pods" },
    Kind { kind: "NetworkPolicy", version: "networking.k8s.io/v1", plural: "networkpolicies" },
];

#[derive(Debug, Default)]
pub struct Store {
    pub version: u64,
    /// By plural, namespace and name.
    objects: BTreeMap<(String, String, String), Value>,
    events: Vec<Event>,
    /// What happened up to here is forgotten.
    oldest: u64,
    /// What is left of lists that were begun, by the token that continues them.
    lists: BTreeMap<String, (u64, Vec<Value>)>,
    tokens: u64,
}

#[derive(Clone, Debug)]
pub struct Event {
    pub version: u64,
    pub kind: &'static str,
    pub object: Value,
    plural: String,
}

impl Store {
    pub fn put(&mut self, mut object: Value) {
        let Some(kind) = KINDS.iter().find(|kind| object["kind"] == kind.kind) else {
            panic!("an object of no known kind: {object}");
        };
        let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
        let key = (kind.plural.to_owned(), text("namespace"), text("name"));
        assert!(!key.2.is_empty(), "an object without a name: {object}");
        self.version += 1;
        let before = self.objects.get(&key);
        let uid = before.map_or(json!(format!("uid-{}", self.version)), |before| before["metadata"]["uid"].clone());
        let event = if before.is_some() { "MODIFIED" } else { "ADDED" };
        object["metadata"]["uid"] = uid;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        object["apiVersion"] = kind.version.into();
        self.events.push(Event { version: self.version, kind: event, object: object.clone(), plural: key.0.clone() });
        self.objects.insert(key, object);
    }

    pub fn delete(&mut self, plural: &str, namespace: &str, name: &str) {
        let Some(mut object) = self.objects.remove(&(plural.into(), namespace.into(), name.into())) else { return };
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.events.push(Event { version: self.version, kind: "DELETED", object, plural: plural.into() });
    }

    pub fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<&Value> {
        self.objects.get(&(plural.into(), namespace.into(), name.into()))
    }

    /// Of all namespaces, or of one.
    pub fn list(&self, plural: &str, namespace: Option<&str>) -> Vec<Value> {
        let all = self.objects.iter().filter(|(key, _)| key.0 == plural);
        all.filter(|(key, _)| namespace.is_none_or(|n| key.1 == n)).map(|(_, object)| object.clone()).collect()
    }

    pub fn forget(&mut self) {
        self.oldest = self.version;
        self.events.clear();
        self.lists.clear();
    }

    /// What happened to objects of a kind since, oldest first. None: that is forgotten.
    pub fn since(&self, plural: &str, version: u64) -> Option<Vec<Event>> {
        if version < self.oldest {
            return None;
        }
        let from = self.events.partition_point(|event| event.version <= version);
        Some(self.events[from..].iter().filter(|event| event.plural == plural).cloned().collect())
    }

    /// The first so many of a list, its version, and the token for the rest.
    pub fn page(&mut self, version: u64, mut items: Vec<Value>, limit: usize) -> (Vec<Value>, u64, String) {
        if limit == 0 || items.len() <= limit {
            return (items, version, String::new());
        }
        let rest = items.split_off(limit);
        self.tokens += 1;
        let token = format!("next-{}", self.tokens);
        self.lists.insert(token.clone(), (version, rest));
        (items, version, token)
    }

    /// The rest of a list. None: that is forgotten.
    pub fn rest(&mut self, token: &str) -> Option<(u64, Vec<Value>)> {
        self.lists.remove(token)
    }
}
