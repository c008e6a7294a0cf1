//! Pods' host ports in the wish: services like others, but for what becomes of one that a plan refuses.
//!
//! Invariant: what is served doesn't hang on who came first: services of the cluster and of the configuration have
//! their places, and a host port that wants one of these yields, which its pod's ADD is told, if it hasn't ended.
//! Not here: which pod has a host port ([`crate::ipam`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use tracing::error;

use super::Agent;
use super::wish::{Undo, Wish};
use crate::config::Config;
use crate::intent::ServicePort;
use crate::plan::PlanError;
use crate::pods::ports;
use crate::policy::LeasedPod;
use crate::source::manifests::{ServiceName, Update};

#[derive(Clone, Debug, Default)]
pub struct HostPorts {
    told: ports::HostPorts,
    /// Full names of those that a plan refuses, and why.
    refused: BTreeMap<String, String>,
    /// What was said of it.
    said: BTreeMap<String, String>,
}

impl HostPorts {
    pub fn new(told: ports::HostPorts) -> HostPorts {
        HostPorts { told, ..HostPorts::default() }
    }

    /// Those that no plan refuses.
    fn wished(&self) -> impl Iterator<Item = &ServicePort> {
        self.told.services.iter().filter(|service| !self.refused.contains_key(&service.full_name()))
    }

    /// The same, if this configuration has pods' interfaces made here.
    pub fn wished_by(&self, config: &Config) -> impl Iterator<Item = &ServicePort> {
        let has_pods = config.pod_network.is_some();
        self.wished().filter(move |_| has_pods)
    }

    pub fn revision(&self) -> u64 {
        self.told.revision
    }

    /// The pods that have a lease.
    pub fn pods(&self) -> &Arc<Vec<LeasedPod>> {
        &self.told.pods
    }

    pub fn refused(&self) -> &BTreeMap<String, String> {
        &self.refused
    }

    fn tell(&mut self, told: ports::HostPorts) {
        self.told = told;
        self.refused.clear();
        let HostPorts { told, said, .. } = self;
        said.retain(|name, _| told.services.iter().any(|service| service.full_name() == *name));
    }

    /// Leaves one out; false: it is none of these.
    fn refuse(&mut self, name: &str, why: &PlanError) -> bool {
        if !self.wished().any(|service| service.full_name() == name) {
            return false;
        }
        let why = why.to_string();
        if self.said.insert(name.into(), why.clone()).as_ref() != Some(&why) {
            error!("a host port is not served: {why}");
        }
        self.refused.insert(name.into(), why);
        true
    }
}

impl Wish {
    /// Wishes for other host ports. None: they are as they were.
    fn settle_host_ports(&mut self) -> Option<Undo> {
        let mut changed: BTreeMap<ServiceName, Vec<ServicePort>> = BTreeMap::new();
        let name = |s: &ServicePort| ServiceName { namespace: s.namespace.clone(), name: s.name.clone() };
        for service in self.intent.services.iter().filter(|service| service.is_host_port()) {
            changed.entry(name(service)).or_default();
        }
        for service in self.wished_host_ports() {
            changed.entry(name(service)).or_default().push(service.clone());
        }
        changed.retain(|name, ports| self.ports(name) != ports.as_slice());
        self.replace_services(Update { changed, notices: Vec::new() })
    }
}

impl Agent {
    /// Leases say other host ports, or what was refused may be served by now.
    pub(super) fn host_ports_changed(&mut self) {
        let told = self.pods_ports.borrow_and_update().clone();
        self.wish.host_ports.tell(told);
        if let Some(undo) = self.wish.settle_policies() {
            self.replan_or_retry(Some(undo));
        }
        while let Some(undo) = self.wish.settle_host_ports() {
            let before = self.wish.host_ports.refused().len();
            let Err(error) = self.replan(Some(undo)) else { break };
            if let Some(why) = error.downcast_ref() {
                self.refuse_new_host_ports(why);
            }
            if self.wish.host_ports.refused().len() == before {
                return error!("{error:#}");
            }
        }
        self.tell_pods();
    }

    /// Tries those again that a plan has refused.
    pub(super) fn retry_host_ports(&mut self) {
        if !self.wish.host_ports.refused().is_empty() {
            self.host_ports_changed();
        }
    }

    /// There is no room for them, or the like.
    fn refuse_new_host_ports(&mut self, why: &PlanError) {
        let there = |new: &&ServicePort| self.wish.intent.services.contains(new);
        let new = self.wish.host_ports.wished().filter(|new| !there(new)).map(ServicePort::full_name);
        for name in new.collect::<Vec<_>>() {
            self.wish.host_ports.refuse(&name, why);
        }
    }

    /// Wishes no longer for the host port that is in the way of a plan; false: there is none.
    pub(super) fn yield_host_port(&mut self, error: &anyhow::Error) -> bool {
        let Some(why @ PlanError::Conflict { first, second, .. }) = error.downcast_ref() else { return false };
        let yields = [second, first].into_iter().any(|name| self.wish.host_ports.refuse(name, why));
        yields && self.wish.settle_host_ports().is_some()
    }
}
