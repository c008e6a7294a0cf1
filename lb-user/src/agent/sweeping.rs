//! Sweeping, on a thread of its own: a walk through tables of a million entries never stands
//! between a change and the kernel.
//!
//! Invariant: it shares nothing with the agent but the kernel's tables, and removes what the engine
//! takes for gone anyway. It ends with the process.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use tracing::{debug, warn};

use crate::apply::sweep::{Sweeper, Swept};
use crate::apply::{Maps, Paths, clock};

const EVERY: Duration = Duration::from_secs(1);

/// Begins, once the programs are loaded.
pub fn start(paths: &Paths) -> Result<()> {
    let (maps, paths) = (Maps::open(&paths.maps())?, paths.clone());
    let mut sweeper = Sweeper::default();
    let work = move || loop {
        thread::sleep(EVERY);
        match clock::read_pinned(&paths, &maps).and_then(|now| sweeper.step(&maps, now.tick())) {
            Ok(swept) if swept == Swept::default() => {}
            Ok(swept) => debug!(?swept, total = ?sweeper.total, "expired"),
            Err(error) => warn!("sweeping: {error:#}"),
        }
    };
    thread::Builder::new().name("sweep".into()).spawn(work).context("a thread that sweeps").map(drop)
}
