//! Who announces what, for `stellwerk announce` and for the agent that comes next.
//!
//! Invariant: written whole, in the run folder, which is empty after a reboot, as everybody's tables are.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::peers::Life;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    pub node: String,
    /// Of the words that nodes exchange.
    pub port: u16,
    pub peers: BTreeMap<String, Peer>,
    pub addresses: Vec<Row>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    pub addresses: Vec<IpAddr>,
    pub state: Life,
}

/// One address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    pub address: IpAddr,
    /// The interface that it is announced on.
    pub interface: Option<String>,
    /// The node that announces it.
    pub owner: Option<String>,
    /// That is this one.
    pub here: bool,
    pub services: Vec<String>,
    /// Why it is nobody, or who else isn't asked for and why.
    pub why: String,
}

impl Report {
    /// None where there is none, or one of another version.
    pub fn read(path: &Path) -> Option<Report> {
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }
}
