//! Which pods a service selects, and which services select a pod.
//!
//! Invariant: what is looked at is what has one label in common, not all there is. Not here: what makes an
//! endpoint of a pod ([`crate::source::endpoints`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::document::{Documents, Placed, Service, ServiceName};
use super::index::remove;
use crate::source::endpoints::{Labels, Pod, selects};

/// Namespace, key and value.
type Label = (String, String, String);

#[derive(Clone, Debug, Default)]
pub(super) struct Selected {
    pub pods: BTreeMap<ServiceName, Vec<Arc<Placed<ServiceName, Pod>>>>,
    /// Names of the pods that have it.
    labelled: HashMap<Label, BTreeSet<String>>,
    /// Services whose selector begins with it.
    selecting: BTreeMap<Label, Vec<Arc<Service>>>,
}

fn label(namespace: &str, (key, value): (&String, &String)) -> Label {
    (namespace.to_owned(), key.clone(), value.clone())
}

/// The label by which a service is found.
fn first(service: &Service) -> Option<Label> {
    service.selection.selector.iter().next().map(|pair| label(&service.name.namespace, pair))
}

impl Selected {
    pub fn swap(&mut self, out: &[Arc<Documents>], into: &[Arc<Documents>]) {
        for pod in out.iter().flat_map(|d| &d.pods) {
            remove(&mut self.pods, &pod.name, pod);
            for pair in &pod.object.labels {
                let label = label(&pod.name.namespace, pair);
                if let Some(names) = self.labelled.get_mut(&label) {
                    names.remove(&pod.name.name);
                    if names.is_empty() {
                        self.labelled.remove(&label);
                    }
                }
            }
            // One of the same name that is still there has its labels yet.
            for other in self.pods.get(&pod.name).cloned().unwrap_or_default() {
                self.label(&other);
            }
        }
        for service in out.iter().flat_map(|d| &d.services) {
            if let Some(label) = first(service) {
                remove(&mut self.selecting, &label, service);
            }
        }
        for pod in into.iter().flat_map(|d| &d.pods) {
            self.pods.entry(pod.name.clone()).or_default().push(pod.clone());
            self.label(pod);
        }
        for service in into.iter().flat_map(|d| &d.services) {
            if let Some(label) = first(service) {
                self.selecting.entry(label).or_default().push(service.clone());
            }
        }
    }

    fn label(&mut self, pod: &Placed<ServiceName, Pod>) {
        for pair in &pod.object.labels {
            self.labelled.entry(label(&pod.name.namespace, pair)).or_default().insert(pod.name.name.clone());
        }
    }

    /// Pods that a service may select, in the order of their names.
    pub fn pods_for<'s>(&'s self, service: &'s Service) -> impl Iterator<Item = &'s Pod> {
        let namespace = &service.name.namespace;
        let sets = service.selection.selector.iter().map(|pair| self.labelled.get(&label(namespace, pair)));
        let rarest = sets.min_by_key(|set| set.map_or(0, BTreeSet::len)).flatten();
        rarest.into_iter().flatten().filter_map(move |name| {
            let name = ServiceName { namespace: namespace.clone(), name: name.clone() };
            self.pods.get(&name)?.first().map(|pod| &pod.object)
        })
    }

    /// The services that select any of the pods.
    pub fn services_of<'d>(&self, pods: impl Iterator<Item = &'d Placed<ServiceName, Pod>>) -> BTreeSet<ServiceName> {
        // Replicas have the same labels.
        let all: BTreeSet<(&str, &Labels)> =
            pods.map(|pod| (pod.name.namespace.as_str(), &pod.object.labels)).collect();
        let mut names = BTreeSet::new();
        for (namespace, labels) in all {
            let services = labels.iter().filter_map(|pair| self.selecting.get(&label(namespace, pair))).flatten();
            let mine = services.filter(|service| selects(&service.selection.selector, labels));
            names.extend(mine.map(|service| service.name.clone()));
        }
        names
    }
}
