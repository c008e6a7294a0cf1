//! Notes of interfaces whose containers ended while the agent was away.
//!
//! Invariant: a note is there before the plugin says that its work is done, and until what it says is done. An
//! interface that comes back is made after its note was taken.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::wire::host_name;
use crate::disk;
use crate::ipam::Key;

fn path(folder: &Path, key: &Key) -> PathBuf {
    folder.join(format!("{}.json", host_name(key)))
}

pub fn note(folder: &Path, key: &Key) -> Result<()> {
    let path = path(folder, key);
    let text = serde_json::to_vec(key)?;
    disk::make(folder).and_then(|()| disk::replace(&path, &text)).with_context(|| format!("writing {}", path.display()))
}

pub fn take(folder: &Path, key: &Key) -> Result<()> {
    let path = path(folder, key);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context(path.display().to_string()),
        _ => Ok(()),
    }
}

pub fn has(folder: &Path, key: &Key) -> bool {
    path(folder, key).exists()
}

/// All notes; what can't be read is none.
pub fn all(folder: &Path) -> Vec<Key> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let notes = entries.flatten().map(|entry| entry.path());
    let notes = notes.filter(|path| path.extension().is_some_and(|e| e == "json"));
    notes.filter_map(|path| serde_json::from_slice(&fs::read(path).ok()?).ok()).collect()
}
