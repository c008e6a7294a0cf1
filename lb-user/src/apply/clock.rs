//! The kernel's ticks, asked of the kernel: no user-space clock says which jiffy it is, only how
//! long one lasts.
//!
//! Invariant: the rate is one that kernels are built with. `show` runs the pinned program, too, so
//! that ages are right while no agent runs.

use anyhow::{Context, Result, ensure};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};

use super::maps::{Maps, Paths};

/// The name of the program that writes the clock.
pub const PROGRAM: &str = "stellwerk_clock";
const RATES: [u32; 4] = [100, 250, 300, 1000];

/// The kernel's jiffies.
#[derive(Clone, Copy, Debug)]
pub struct Reading(u64);

impl Reading {
    /// The tick as tables hold it.
    pub fn tick(self) -> u32 {
        self.0 as u32
    }
}

pub fn read(program: &SchedClassifier, maps: &Maps) -> Result<Reading> {
    let packet = [0; 64];
    let options = TestRunOptions { data_in: Some(&packet), ..TestRunOptions::default() };
    program.test_run(options).context("running the clock program")?;
    Ok(Reading(maps.clock.get(&0)?.context("the clock has no entry")?))
}

/// The pinned program.
pub fn open(paths: &Paths) -> Result<SchedClassifier> {
    SchedClassifier::from_pin(paths.programs().join(PROGRAM)).context("the pinned clock program")
}

/// For when no agent runs.
pub fn read_pinned(paths: &Paths, maps: &Maps) -> Result<Reading> {
    read(&open(paths)?, maps)
}

/// Ticks a second: the kernel's coarse clocks move once a tick, and it says how far.
pub fn rate() -> Result<u32> {
    let mut tick = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    #[expect(unsafe_code, reason = "std has no clock_getres")]
    // SAFETY: the struct lives across the call, which writes nothing else.
    let result = unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &raw mut tick) };
    ensure!(result == 0, "the length of a tick: {}", std::io::Error::last_os_error());
    let rate = RATES.into_iter().find(|&rate| 1_000_000_000 / i64::from(rate) == tick.tv_nsec);
    rate.with_context(|| format!("a tick of {} ns is of no rate that kernels are built with", tick.tv_nsec))
}
