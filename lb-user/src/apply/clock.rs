//! The kernel's ticks, asked of the kernel: no user-space clock says which jiffy it is.
//!
//! Invariant: the rate is one that kernels are built with. `show` runs the pinned program, too, so
//! that ages are right while no agent runs.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};

use super::maps::{Maps, Paths};

/// The name of the program that writes the clock.
pub const PROGRAM: &str = "stellwerk_clock";
const RATES: [u32; 4] = [100, 250, 300, 1000];
const APART: Duration = Duration::from_millis(60);

/// Jiffies and nanoseconds since boot, at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    pub jiffies: u64,
    pub nanoseconds: u64,
}

impl Reading {
    /// The tick as tables hold it.
    pub fn tick(self) -> u32 {
        self.jiffies as u32
    }
}

pub fn read(program: &SchedClassifier, maps: &Maps) -> Result<Reading> {
    let packet = [0; 64];
    let options = TestRunOptions { data_in: Some(&packet), ..TestRunOptions::default() };
    program.test_run(options).context("running the clock program")?;
    let [jiffies, nanoseconds] = maps.clock.get(&0)?.context("the clock has no entry")?;
    Ok(Reading { jiffies, nanoseconds })
}

/// For when no agent runs.
pub fn read_pinned(paths: &Paths, maps: &Maps) -> Result<Reading> {
    let program = SchedClassifier::from_pin(paths.programs().join(PROGRAM)).context("the pinned clock program")?;
    read(&program, maps)
}

/// Ticks a second.
pub fn rate(program: &SchedClassifier, maps: &Maps) -> Result<u32> {
    let first = read(program, maps)?;
    sleep(APART);
    let second = read(program, maps)?;
    let elapsed = second.nanoseconds.wrapping_sub(first.nanoseconds).max(1);
    let measured = second.jiffies.wrapping_sub(first.jiffies).saturating_mul(1_000_000_000) / elapsed;
    // 250 and 300 lie close together for 60 ms: measure those for longer.
    let nearest = |measured: u64| RATES.into_iter().min_by_key(|&rate| measured.abs_diff(rate as u64));
    if !(200..=400).contains(&measured) {
        return nearest(measured).context("no rate");
    }
    sleep(APART * 5);
    let third = read(program, maps)?;
    let elapsed = third.nanoseconds.wrapping_sub(first.nanoseconds).max(1);
    let ticks = third.jiffies.wrapping_sub(first.jiffies);
    nearest(ticks.saturating_mul(1_000_000_000) / elapsed).context("no rate")
}
