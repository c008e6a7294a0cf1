//! The cluster as policies see it: pods, namespaces and the policies themselves, followed change by change.
//!
//! Invariant: it changes, and only then is another one, where something changed that bears on policies: a pod that gets
//! ready is the same to them.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::document::{Documents, ServiceName};
use super::index::Index;
use crate::policy::Cluster;
use crate::source::endpoints::Pod;

/// What policies see of a pod.
fn seen(pod: &Pod) -> Pod {
    Pod {
        labels: pod.labels.clone(),
        addresses: pod.addresses.clone(),
        ports: pod.ports.clone(),
        ended: pod.ended,
        host_network: pod.host_network,
        ..Pod::default()
    }
}

/// Brings it up to date with the documents that came and went.
pub(super) fn follow(cluster: &mut Arc<Cluster>, index: &Index, old: &[Arc<Documents>], new: &[Arc<Documents>]) {
    let both = || old.iter().chain(new);
    let pods: BTreeSet<&ServiceName> = both().flat_map(|d| d.pods.iter().map(|pod| &pod.name)).collect();
    for name in &pods {
        let now = index.pod(name).map(seen);
        if now.as_ref() != cluster.pods.get(*name).map(|pod| &**pod) {
            let cluster = Arc::make_mut(cluster);
            match now {
                Some(pod) => _ = cluster.pods.insert((*name).clone(), Arc::new(pod)),
                None => _ = cluster.pods.remove(*name),
            }
        }
    }
    let named = both().flat_map(|d| d.namespaces.iter().map(|namespace| namespace.name.as_str()));
    let namespaces: BTreeSet<&str> = named.chain(pods.iter().map(|name| name.namespace.as_str())).collect();
    for namespace in namespaces {
        let labels = index.labels(namespace);
        if cluster.namespaces.get(namespace) != Some(&labels) {
            Arc::make_mut(cluster).namespaces.insert(namespace.to_owned(), labels);
        }
    }
    if both().any(|d| !d.policies.is_empty()) {
        let policies: Vec<_> = index.policies().map(|policy| Arc::new(policy.clone())).collect();
        if policies != cluster.policies {
            Arc::make_mut(cluster).policies = policies;
        }
    }
}
