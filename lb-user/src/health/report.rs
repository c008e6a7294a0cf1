//! Which endpoints fail, for the command line and the next agent.
//!
//! Invariant: written by the agent alone, whole; it is of no use after a reboot and isn't kept over one.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Target;
use crate::disk;
use crate::moment::Moment;
use crate::source::manifests::ServiceName;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// How many endpoints are probed.
    pub probed: usize,
    pub failing: Vec<Failing>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failing {
    pub namespace: String,
    pub service: String,
    /// Where it is probed,
    pub address: std::net::IpAddr,
    pub port: u16,
    pub since: Moment,
    pub why: String,
}

impl Failing {
    pub fn target(&self) -> Target {
        let service = ServiceName { namespace: self.namespace.clone(), name: self.service.clone() };
        Target { service, addr: self.address, port: self.port }
    }
}

impl Report {
    /// What was told last; nothing, if that can't be understood.
    pub fn read(path: &Path) -> Report {
        fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    pub fn write(&self, path: &Path) -> io::Result<()> {
        disk::exchange(path, &serde_json::to_vec(self)?)
    }
}
