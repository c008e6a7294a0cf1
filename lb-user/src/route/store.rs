//! Routes added by command, on disk.
//!
//! Invariant: the file is always whole ([`disk`]); writers take turns by a lock. A file that can't be
//! understood is refused, never written over.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};

use super::{StaticRoute, form};
use crate::disk;

const VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stored {
    version: u32,
    /// Rises with every change.
    pub generation: u64,
    pub routes: Vec<StaticRoute>,
}

impl Default for Stored {
    fn default() -> Self {
        Stored { version: VERSION, generation: 0, routes: Vec::new() }
    }
}

/// What is stored; nothing, if nothing was.
pub fn read(path: &Path) -> Result<Stored> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Stored::default()),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let damaged = || format!("{} is damaged; expected it as `stellwerk route add` wrote it", path.display());
    let stored: Stored = serde_json::from_slice(&text).with_context(damaged)?;
    ensure!(stored.version == VERSION, "{} is of version {}; expected {VERSION}", path.display(), stored.version);
    for route in &stored.routes {
        let well = form::whole(route)
            .and_then(|()| form::destination(&route.destination.to_string(), false).map(drop))
            .and_then(|()| form::metric(&route.metric.to_string()).map(drop))
            .and_then(|()| form::weight(&route.weight.to_string()).map(drop));
        well.map_err(|why| anyhow!("{route}: {why}")).with_context(damaged)?;
    }
    Ok(stored)
}

/// The store, for one who changes it.
pub struct Store {
    path: PathBuf,
    /// Others wait until it is closed.
    _lock: File,
    pub stored: Stored,
}

impl Store {
    pub fn open(path: &Path) -> Result<Store> {
        let folder = disk::folder(path);
        disk::make(folder).with_context(|| format!("creating {}", folder.display()))?;
        let beside = path.with_extension("lock");
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open(&beside);
        let lock = lock.with_context(|| beside.display().to_string())?;
        lock.lock().with_context(|| format!("locking {}", beside.display()))?;
        Ok(Store { path: path.to_owned(), _lock: lock, stored: read(path)? })
    }

    /// Writes what is stored, as another generation.
    pub fn write(mut self) -> Result<u64> {
        self.stored.generation += 1;
        let text = serde_json::to_string_pretty(&self.stored)? + "\n";
        disk::replace(&self.path, text.as_bytes()).with_context(|| format!("writing {}", self.path.display()))?;
        Ok(self.stored.generation)
    }
}
