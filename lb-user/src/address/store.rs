//! Who has which address, on disk.
//!
//! Invariant: the file is always whole ([`disk`]); only the agent writes it, before what it says is in
//! force. One that can't be understood is refused, never written over.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{Lease, Leases, Waiting};
use crate::disk;
use crate::source::manifests::ServiceName;

const VERSION: u32 = 1;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    pub leases: Leases,
    pub waiting: Waiting,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    /// By `namespace/name`.
    services: BTreeMap<String, Lease>,
    waiting: BTreeMap<String, Vec<String>>,
}

/// What is stored; None, if nothing ever was.
pub fn read(path: &Path) -> Result<Option<Stored>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let damaged = || format!("{} is damaged; expected it as the agent wrote it", path.display());
    let file: File = serde_json::from_slice(&text).with_context(damaged)?;
    ensure!(file.version == VERSION, "{} is of version {}; expected {VERSION}", path.display(), file.version);
    Ok(Some(Stored {
        leases: named(file.services).with_context(damaged)?,
        waiting: named(file.waiting).with_context(damaged)?,
    }))
}

pub fn write(path: &Path, stored: &Stored) -> Result<()> {
    let file = File { version: VERSION, services: texts(&stored.leases), waiting: texts(&stored.waiting) };
    let text = serde_json::to_string_pretty(&file)? + "\n";
    disk::make(disk::folder(path))
        .and_then(|()| disk::replace(path, text.as_bytes()))
        .with_context(|| format!("writing {}", path.display()))
}

fn texts<T: Clone>(all: &BTreeMap<ServiceName, T>) -> BTreeMap<String, T> {
    all.iter().map(|(name, value)| (name.to_string(), value.clone())).collect()
}

fn named<T>(all: BTreeMap<String, T>) -> Result<BTreeMap<ServiceName, T>> {
    let name = |(text, value): (String, T)| {
        let (namespace, name) =
            text.split_once('/').with_context(|| format!("`{text}` is not a service such as default/web"))?;
        Ok((ServiceName { namespace: namespace.into(), name: name.into() }, value))
    };
    all.into_iter().map(name).collect()
}

#[cfg(test)]
mod tests;
