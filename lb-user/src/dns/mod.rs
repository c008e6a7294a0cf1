//! The cluster's names: who answers for them, and asks others for all the rest.
//!
//! Invariant: a name points to what the kernel's tables serve already, since the agent hands a [`Snapshot`] over
//! only once they do; and no name below the cluster's domain is ever asked of anybody else. What a query leads to
//! is a pure function of the snapshot ([`zone`], [`answer`]); the wire's form is hickory's. Rules and the tests
//! that show them stand in `docs/dns.md`. Not here: which services there are ([`crate::source::manifests`]).

pub mod answer;
pub mod cache;
pub mod fast;
pub mod forward;
pub mod guard;
pub mod handler;
pub mod metrics;
mod name;
pub mod query;
mod records;
pub mod resolv;
pub mod server;
pub mod settings;
pub mod transfer;
pub mod upstream;
pub mod wire;
pub mod zone;

#[cfg(test)]
mod tests;

pub use settings::Settings;
pub use zone::{Snapshot, Zone};
