//! What can be watched over HTTP: a page, the listings as JSON, and metrics.
//!
//! Invariant: it reads alone, by what the command line reads by ([`crate::show`]), on a thread of its own, so that nobody
//! who watches holds up a change; who isn't on this node needs a token. Not here: what the listings say.

mod answer;
mod cache;
mod history;
pub mod listings;
pub mod metrics;
mod page;
mod secrets;
mod server;

use std::sync::Arc;

pub use secrets::Secrets;
pub use server::Server;

use crate::agent::Vitals;
use crate::apply::Paths;
use crate::config::Web;

/// What is asked for where.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub web: Web,
    /// The cluster's names are answered on this node.
    pub names: bool,
}

/// What answers are made of.
#[derive(Debug)]
pub(crate) struct Watched {
    pub paths: Paths,
    pub vitals: Arc<Vitals>,
    pub cache: cache::Cache,
    pub history: history::History,
    pub requests: metrics::Requests,
}

#[cfg(test)]
pub(crate) mod tests;
