//! Active probes of endpoints, by choice per service.
//!
//! Invariant: probes say which endpoints fail, and nothing else. What follows from that is a pure function
//! ([`overlay`]) over what sources say, which stays as they say it; when an endpoint counts as failing is a pure
//! state machine ([`state`]). Not here: when plans are made ([`crate::agent`]).

pub mod check;
mod grpc;
pub mod overlay;
mod probe;
pub mod report;
pub mod run;
pub mod state;
pub(crate) mod tls;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

pub use check::Check;

use crate::source::manifests::ServiceName;

/// What is probed, for whom.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    pub service: ServiceName,
    pub addr: IpAddr,
    pub port: u16,
}

/// How each is probed, and whether it is known to fail.
pub type Targets = BTreeMap<Target, (Arc<Check>, bool)>;
