//! Leases, in a file.
//!
//! Invariant: the file is always whole ([`disk`]); only the agent writes it, before anybody is told of what it says.
//! One that can't be understood is refused, never written over. What was said before the machine was started last is
//! void: the interfaces that had those addresses ended with it. So the file is where nothing outlives that, and is not
//! synced: on a memory card that would cost each pod's start tens of milliseconds, for nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{Key, Lease, State};
use crate::disk;

const VERSION: u32 = 1;
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    /// Which start of the machine it was written in.
    boot: String,
    leases: Vec<Entry>,
    cooling: BTreeMap<IpAddr, u64>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    #[serde(flatten)]
    key: Key,
    #[serde(flatten)]
    lease: Lease,
}

/// What is stored; nothing, if nothing ever was.
pub fn read(path: &Path) -> Result<State> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(State::default()),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let damaged = || format!("{} is damaged; expected it as the agent wrote it", path.display());
    let file: File = serde_json::from_slice(&text).with_context(damaged)?;
    ensure!(file.version == VERSION, "{} is of version {}; expected {VERSION}", path.display(), file.version);
    if file.boot != boot()? {
        return Ok(State::default());
    }
    let leases = file.leases.into_iter().map(|entry| (entry.key, entry.lease)).collect();
    Ok(State { leases, cooling: file.cooling })
}

pub fn write(path: &Path, state: &State) -> Result<()> {
    let entry = |(key, lease): (&Key, &Lease)| Entry { key: key.clone(), lease: lease.clone() };
    let leases = state.leases.iter().map(entry).collect();
    let file = File { version: VERSION, boot: boot()?, leases, cooling: state.cooling.clone() };
    let text = serde_json::to_string_pretty(&file)? + "\n";
    fs::create_dir_all(disk::folder(path))
        .and_then(|()| disk::exchange(path, text.as_bytes()))
        .with_context(|| format!("writing {}", path.display()))
}

fn boot() -> Result<String> {
    Ok(fs::read_to_string(BOOT).context(BOOT)?.trim().to_owned())
}
