//! One agent at a time, and what it tells of itself to others.
//!
//! Invariant: the kernel gives the lock up when its holder dies, however it dies: whoever holds it
//! runs.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::apply::Paths;

/// What an agent says of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct About {
    pub pid: u32,
    /// Of the wish in force.
    pub revision: u64,
}

/// Held while the agent runs.
pub struct Lock {
    file: File,
    about: About,
}

/// Locks, or says who runs.
pub fn take(paths: &Paths) -> Result<Lock> {
    fs::create_dir_all(&paths.run).with_context(|| format!("creating {}", paths.run.display()))?;
    let path = paths.lock();
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| path.display().to_string())?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => bail!("an agent runs already: process {}", about(&mut file).pid),
        Err(TryLockError::Error(error)) => return Err(error).with_context(|| path.display().to_string()),
    }
    let revision = about(&mut file).revision;
    let mut lock = Lock { file, about: About { pid: std::process::id(), revision } };
    lock.write()?;
    Ok(lock)
}

fn about(file: &mut File) -> About {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
    read.ok().and_then(|_| serde_json::from_str(&text).ok()).unwrap_or_default()
}

/// What the agent said last, and whether it runs.
pub fn running(paths: &Paths) -> (About, bool) {
    let Ok(mut file) = File::open(paths.lock()) else { return (About::default(), false) };
    let about = about(&mut file);
    // A shared lock is refused while the agent holds its own; ours goes with the file.
    let runs = matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock));
    (about, runs)
}

impl Lock {
    /// The revision in force, also that of an agent before.
    pub fn revision(&self) -> u64 {
        self.about.revision
    }

    pub fn note(&mut self, revision: u64) {
        if revision != self.about.revision {
            self.about.revision = revision;
            // Told to people only: nothing depends on it.
            _ = self.write();
        }
    }

    fn write(&mut self) -> Result<()> {
        let text = serde_json::to_vec(&self.about)?;
        self.file.rewind()?;
        self.file.write_all(&text)?;
        self.file.set_len(text.len() as u64)?;
        Ok(())
    }
}
