//! Addresses of load balancers: pools, who asks, who has which and why.
//!
//! Invariant: who gets what is a pure function ([`allocate`]) of the pools, of what is asked and of what was
//! had before; an address that somebody has is taken from him only by an edit of his own service, or of the pools.
//! Not here: where services come from ([`crate::source::manifests`]), and who answers for an address.

pub mod allocate;
pub mod pool;
pub mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use allocate::{Outcome, Scene, allocate};
pub use pool::{DEFAULT, Pool};

use crate::source::endpoints::Labels;
use crate::source::manifests::ServiceName;

/// What a load balancer asks for.
#[derive(Clone, Debug)]
pub struct Ask<'a> {
    pub service: &'a ServiceName,
    pub wish: Wish<'a>,
    /// Of this pool alone.
    pub pool: Option<&'a str>,
    pub terms: &'a Terms,
    /// The service's, and its namespace's.
    pub labels: &'a Labels,
    pub namespace: &'a Labels,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish<'a> {
    /// Any of each family (true = IPv4), or of the first pool's first family where there is none.
    Any(&'a [bool]),
    These(&'a [IpAddr]),
}

/// What decides with whom a service may have an address together.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terms {
    /// None: with nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// With externalTrafficPolicy Local: the selector of its pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<Labels>,
    /// Such as `80/TCP`.
    #[serde(default)]
    pub ports: BTreeSet<String>,
}

impl Terms {
    /// Why two services can't have an address together.
    pub fn against(&self, other: &Terms) -> Option<String> {
        if self.key.is_none() || self.key != other.key {
            return Some("they have no sharing key in common".into());
        }
        if self.pods != other.pods {
            let right = "both externalTrafficPolicy Cluster, or Local and the same selector";
            return Some(format!("they lead to other pods; sharing needs {right}"));
        }
        self.ports.intersection(&other.ports).next().map(|port| format!("both want {port}"))
    }
}

/// What a service has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    pub addresses: Vec<IpAddr>,
    /// It named them.
    pub asked: bool,
    pub terms: Terms,
}

pub type Leases = BTreeMap<ServiceName, Lease>;

/// Why services go without what they ask for.
pub type Waiting = BTreeMap<ServiceName, Vec<String>>;
