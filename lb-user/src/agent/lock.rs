//! One agent at a time, and what it tells of itself to others.
//!
//! Invariant: the kernel gives the lock up when its holder dies, however it dies: whoever holds it
//! runs.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::apply::Paths;
use crate::intent::{Intent, Port};

/// What an agent says of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct About {
    pub pid: u32,
    /// Of the wish in force.
    pub revision: u64,
    /// The files that it reads: its configuration, and the routes added by command.
    pub config: PathBuf,
    pub routes: PathBuf,
    /// Of the routes in force.
    pub generation: u64,
    /// This node, as endpoints name it, and its interfaces with names of their own.
    pub node: String,
    pub ports: Vec<Named>,
    /// Changes by others to its routes that it has set right, as agents before it have.
    pub repaired: u64,
}

/// An interface with a name and a role.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Named {
    pub name: String,
    pub interface: String,
    /// `uplink`, `compute`, `port`, `switch`; `inside` for what has no name in the configuration.
    pub role: String,
}

impl Named {
    fn of(intent: &Intent) -> Vec<Named> {
        let port = |port: &Port| {
            let role = match port {
                Port { gateways, .. } if !gateways.is_empty() => "uplink",
                Port { compute: true, .. } => "compute",
                _ => "port",
            };
            Named { name: port.name.clone(), interface: port.interface.clone(), role: role.into() }
        };
        let switch = intent.internal_switch.iter().map(|switch| Named {
            name: "internal switch".into(),
            interface: switch.interface.clone(),
            role: "switch".into(),
        });
        intent.ports.iter().map(port).chain(switch).collect()
    }
}

/// Held while the agent runs.
pub struct Lock {
    file: File,
    about: About,
}

/// Locks, or says who runs.
pub fn take(paths: &Paths, config: PathBuf, routes: PathBuf) -> Result<Lock> {
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
    let before = about(&mut file);
    let mut lock = Lock { file, about: About { pid: std::process::id(), config, routes, generation: 0, ..before } };
    lock.write().with_context(|| format!("writing {}", path.display()))?;
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
    // It may be in the middle of writing.
    let whole = (0..10).map(|_| about(&mut file)).find(|about| {
        let whole = about.pid != 0;
        if !whole {
            thread::sleep(Duration::from_millis(1));
        }
        whole
    });
    let about = whole.unwrap_or_default();
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
        self.change(|about| about.revision = revision);
    }

    /// What the device is made of, as it is in force.
    pub fn note_device(&mut self, intent: &Intent) {
        self.change(|about| (about.node, about.ports) = (intent.node.clone(), Named::of(intent)));
    }

    /// Routes are in force, and so many changes by others were set right just now.
    pub fn note_routes(&mut self, generation: u64, repaired: u64) {
        self.change(|about| (about.generation, about.repaired) = (generation, about.repaired + repaired));
    }

    fn change(&mut self, change: impl FnOnce(&mut About)) {
        let before = self.about.clone();
        change(&mut self.about);
        if self.about != before {
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
