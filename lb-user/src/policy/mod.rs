//! NetworkPolicy (networking.k8s.io/v1): what policies say, and what of it each pod of this node is allowed.
//!
//! Invariant: a pure function of the cluster's objects and of this node's leases ([`compile()`]). What can't be put into
//! tables allows nothing: a policy that is too large shuts, and never opens. Not here: reading objects
//! ([`crate::source::manifests`]), and judging packets (`lb_common::path::network_policy`).

mod allowed;
mod compile;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

pub use self::allowed::{Allowed, Entry, PortPrefix, Ports, Range};
pub use self::compile::{Compiled, compile};
use crate::intent::Protocol;
use crate::source::endpoints::{Labels, Pod, Selector};
use crate::source::manifests::ServiceName;

/// Policies as they are wished for.
#[derive(Clone, Debug, PartialEq)]
pub struct Policies {
    /// None: nothing is known of the cluster yet, and pods wait.
    pub cluster: Option<Arc<Cluster>>,
    pub leases: Arc<Vec<LeasedPod>>,
}

impl Policies {
    /// Whether these are the very same; others may still say the same.
    pub fn is(&self, other: &Policies) -> bool {
        let same = match (&self.cluster, &other.cluster) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        };
        same && Arc::ptr_eq(&self.leases, &other.leases)
    }
}

/// What bears on policies of the cluster's objects.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cluster {
    /// Ordered by name.
    pub policies: Vec<Arc<Policy>>,
    pub pods: BTreeMap<ServiceName, Arc<Pod>>,
    /// Labels of the namespaces that objects are in.
    pub namespaces: BTreeMap<String, Labels>,
}

/// A pod of this node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LeasedPod {
    /// The node's end of its link.
    pub interface: String,
    pub namespace: String,
    pub name: String,
    pub addresses: Vec<IpAddr>,
}

/// A NetworkPolicy.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    pub namespace: String,
    pub name: String,
    /// Of pods in its namespace.
    pub selector: Selector,
    /// What is allowed to them and from them; None: it doesn't say, by its `policyTypes`.
    pub ingress: Option<Vec<Rule>>,
    pub egress: Option<Vec<Rule>>,
}

/// Allows these peers these ports.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    /// None: everybody.
    pub peers: Vec<Peer>,
    /// None: all of all protocols.
    pub ports: Vec<Port>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Peer {
    /// ipBlock
    Block { net: IpNet, except: Vec<IpNet> },
    /// Pods of namespaces, or of the policy's own.
    Pods { namespaces: Option<Selector>, pods: Selector },
}

#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    pub protocol: Protocol,
    pub which: Which,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Which {
    All,
    /// From first to last.
    Range(u16, u16),
    /// Of a container of who is connected to.
    Named(String),
}
