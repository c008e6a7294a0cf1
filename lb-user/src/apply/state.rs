//! What was changed outside of the pins, written down beside them so that `unload` can undo it; and what
//! shall be known of agents before.
//!
//! Invariant: a change is recorded before it is made, with the value that it replaces; the first
//! record of a thing wins, since later agents find what earlier ones made.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::maps::Paths;
use crate::disk;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// The network namespace that links, filters and sysctls are in.
    pub namespace: u64,
    /// Where a BPF file system was mounted.
    pub mounted: Option<String>,
    /// Whether control groups were mounted, at [`Paths::cgroups`].
    pub cgroups_mounted: bool,
    /// Values of sysctls before we set them, by path below /proc/sys.
    pub sysctls: BTreeMap<String, String>,
    /// Interfaces that got a clsact qdisc, by index.
    pub clsact: BTreeMap<u32, String>,
    /// Interfaces that got our filters (kernels before 6.6), by index.
    pub filters: BTreeMap<u32, String>,
    /// Bridges that we created.
    pub bridges: BTreeSet<String>,
    /// Addresses that we added, by interface.
    pub addresses: BTreeSet<(String, IpNet)>,
    /// Neighbours that the kernel keeps fresh for us.
    pub neighbours: BTreeSet<(u32, IpAddr)>,
    /// Whether routes or rules of our protocol were set.
    pub routes: bool,
    /// Ports of health checks, as the last agent had them: nothing to undo.
    pub health_checks: BTreeMap<u16, HealthCheck>,
    /// Of the programs at sockets, whose pins say that they are there: nothing to undo.
    pub sockets: Sockets,
    /// What pods may do, where policies say that: nothing to undo.
    pub policies: Option<Policies>,
    /// Translated connections that agents ended so far: nothing to undo, but it shall outlive them.
    pub nat_ended: EndedFor,
}

/// Services at the socket, as the last agent had them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sockets {
    /// The control group whose processes are served.
    pub group: Option<String>,
    /// Why there is none, though it is wished.
    pub trouble: Option<String>,
}

/// Policies, as the last agent had them in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Policies {
    pub policies: usize,
    /// Of this node: all, and those that a policy selects, to them and from them.
    pub pods: usize,
    pub ingress: usize,
    pub egress: usize,
    /// What allows nothing since it doesn't fit.
    pub troubles: Vec<String>,
}

/// A health check node port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HealthCheck {
    /// `namespace/name`
    pub service: String,
    /// Why it isn't listened at.
    pub trouble: Option<String>,
}

/// Translated connections that have ended since what they had outside is no longer there, by what that was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndedFor {
    pub address: u64,
    pub ports: u64,
    pub prefix: u64,
}

impl EndedFor {
    pub fn add(&mut self, other: &EndedFor) {
        self.address += other.address;
        self.ports += other.ports;
        self.prefix += other.prefix;
    }
}

impl State {
    /// What was recorded; nothing, if nothing was.
    pub fn read(paths: &Paths) -> Result<Self> {
        let path = paths.state();
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(State::default()),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    /// Records a change, whole or not at all.
    pub fn change(&mut self, paths: &Paths, change: impl FnOnce(&mut State)) -> Result<()> {
        // Others may have recorded something since, by a copy of their own.
        let old = State::read(paths)?;
        let mut new = old.clone();
        change(&mut new);
        if new == old {
            *self = old;
            return Ok(());
        }
        let path = paths.state();
        fs::create_dir_all(&paths.run)
            .and_then(|()| disk::exchange(&path, &serde_json::to_vec_pretty(&new)?))
            .with_context(|| format!("writing {}", path.display()))?;
        *self = new;
        Ok(())
    }
}

/// The number of the network namespace that we are in.
pub fn namespace() -> Result<u64> {
    Ok(fs::metadata("/proc/self/ns/net").context("/proc/self/ns/net")?.ino())
}
