//! Sweeping, on a thread of its own: a walk through tables of a million entries never stands
//! between a change and the kernel.
//!
//! Invariant: it shares nothing with the agent but the kernel's tables, and removes what the engine
//! takes for gone anyway. It ends with the process.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use tracing::{debug, warn};

use super::nat_log::Ends;
use crate::apply::sweep::{Sweeper, Swept};
use crate::apply::{Maps, Paths, clock};

const EVERY: Duration = Duration::from_secs(1);

/// Begins, once the programs are loaded. Mappings that it ends are told to the log.
pub fn start(paths: &Paths, log: Ends) -> Result<()> {
    // Of this agent's own: a pin may go while it runs.
    let (maps, clock) = (Maps::open(&paths.maps())?, clock::open(paths)?);
    let mut sweeper = Sweeper::default();
    let work = move || loop {
        thread::sleep(EVERY);
        match clock::read(&clock, &maps).and_then(|now| sweeper.step(&maps, now.tick(), |ended| log.send(ended))) {
            Ok(swept) if swept == Swept::default() => {}
            Ok(swept) => say(&swept, &sweeper.total),
            Err(error) => warn!("sweeping: {error:#}"),
        }
    };
    thread::Builder::new().name("sweep".into()).spawn(work).context("a thread that sweeps").map(drop)
}

/// What nobody should have to find is said aloud.
fn say(swept: &Swept, total: &Swept) {
    debug!(?swept, ?total, "expired");
    if swept.leaked != 0 {
        warn!("freed {} ports that nobody had ({} so far)", swept.leaked, total.leaked);
    }
    if swept.counts != 0 {
        warn!("corrected the number of ports of {} hosts inside ({} so far)", swept.counts, total.counts);
    }
    if swept.places != 0 {
        warn!("freed the places of {} hosts that an agent had left half free ({} so far)", swept.places, total.places);
    }
}
