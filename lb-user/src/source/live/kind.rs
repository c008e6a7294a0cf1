//! The kinds of objects that are watched, and one object of them.
//!
//! Invariant: an object keeps all that balancing reads of it; what only costs room (who manages which field, what
//! was applied last, containers' environments) is left out. What is watched is what
//! `examples/kubernetes/rbac.yaml` allows.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;

use super::Access;

/// A kind, as the API names it.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// `/api/v1`
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    /// `services`
    pub plural: &'static str,
}

const fn core(kind: &'static str, plural: &'static str) -> Kind {
    Kind { group: "/api/v1", version: "v1", kind, plural }
}

const ALWAYS: [Kind; 4] = [
    core("Service", "services"),
    Kind {
        group: "/apis/discovery.k8s.io/v1",
        version: "discovery.k8s.io/v1",
        kind: "EndpointSlice",
        plural: "endpointslices",
    },
    core("Node", "nodes"),
    core("Namespace", "namespaces"),
];
const PODS: Kind = core("Pod", "pods");
const POLICIES: Kind = Kind {
    group: "/apis/networking.k8s.io/v1",
    version: "networking.k8s.io/v1",
    kind: "NetworkPolicy",
    plural: "networkpolicies",
};

/// What is watched: pods and policies where they are asked for.
pub fn watched(access: &Access) -> impl Iterator<Item = &'static Kind> {
    let pods = access.pods || access.policies;
    ALWAYS.iter().chain(pods.then_some(&PODS)).chain(access.policies.then_some(&POLICIES))
}

impl Kind {
    /// Where all of them are.
    pub fn url(&self) -> String {
        format!("{}/{}", self.group, self.plural)
    }

    /// What its objects' names begin with.
    pub fn prefix(&self) -> String {
        format!("api {}/", self.plural)
    }

    /// Takes an object as the API tells it.
    pub fn object(&self, mut value: Value) -> Result<Object, String> {
        let text = |key: &str| value["metadata"][key].as_str().unwrap_or_default().to_owned();
        let (name, namespace, uid, version) = (text("name"), text("namespace"), text("uid"), text("resourceVersion"));
        if name.is_empty() {
            return Err(format!("told an object without a name among {}", self.plural));
        }
        let between = if namespace.is_empty() { "" } else { "/" };
        let said = format!("{}{namespace}{between}{name}", self.prefix()).into();
        value["apiVersion"] = self.version.into();
        value["kind"] = self.kind.into();
        shorten(&mut value);
        Ok(Object { said, identity: format!("{uid}/{version}"), version, value: Arc::new(value) })
    }
}

/// An object, and what tells its states apart.
#[derive(Clone, Debug)]
pub struct Object {
    /// Its name for people: `api services/default/web`.
    pub said: PathBuf,
    /// Of the change that made it.
    pub version: String,
    /// Differs between any two states of any two objects of a name.
    pub identity: String,
    pub value: Arc<Value>,
}

/// [`Object::identity`] of what was taken before.
pub fn identity(value: &Value) -> String {
    let text = |key: &str| value["metadata"][key].as_str().unwrap_or_default();
    format!("{}/{}", text("uid"), text("resourceVersion"))
}

fn shorten(value: &mut Value) {
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
        }
    }
    let Some(spec) = value.get_mut("spec").and_then(Value::as_object_mut) else { return };
    for key in ["containers", "initContainers"] {
        let containers = spec.get_mut(key).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
            container.retain(|key, _| ["name", "ports", "restartPolicy"].contains(&key.as_str()));
        }
    }
    spec.remove("volumes");
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects() {
        let pod = json!({
            "metadata": {
                "name": "a", "namespace": "x", "uid": "u", "resourceVersion": "7", "managedFields": [1],
                "annotations": { "kubectl.kubernetes.io/last-applied-configuration": "{}", "k": "v" },
            },
            "spec": {
                "containers": [{ "name": "c", "ports": [{ "containerPort": 80 }], "env": [{ "name": "SECRET" }] }],
                "volumes": [], "nodeName": "n",
            },
        });
        let object = PODS.object(pod).unwrap();
        assert_eq!(object.said, PathBuf::from("api pods/x/a"));
        assert_eq!((object.version.as_str(), object.identity.as_str()), ("7", "u/7"));
        assert_eq!(identity(&object.value), object.identity);
        let want = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "a", "namespace": "x", "uid": "u", "resourceVersion": "7", "annotations": { "k": "v" },
            },
            "spec": { "containers": [{ "name": "c", "ports": [{ "containerPort": 80 }] }], "nodeName": "n" },
        });
        assert_eq!(*object.value, want);
        let node = ALWAYS[2].object(json!({ "metadata": { "name": "n1" } })).unwrap();
        assert_eq!(node.said, PathBuf::from("api nodes/n1"));
        assert_eq!(PODS.object(json!({})).unwrap_err(), "told an object without a name among pods");
    }
}
