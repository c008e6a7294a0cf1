//! Files that outlive a power cut.
//!
//! Invariant: a file is always whole, the old or the new one, whenever the power goes: a new one is written beside
//! it and synced, takes its place, and the folder is synced before anybody is told.

use std::fs::{self, File};
use std::io::{Result, Write};
use std::path::Path;

/// Replaces a file's text.
pub fn replace(path: &Path, text: &[u8]) -> Result<()> {
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    File::open(folder(path))?.sync_all()
}

/// Makes a folder that outlives a power cut, as what will be in it does.
pub fn make(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path)?;
    File::open(folder(path))?.sync_all()
}

/// The folder that something is in.
pub fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
