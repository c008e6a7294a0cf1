//! How the agent itself is: what it has in force, what it is behind with, how long that takes.
//!
//! Invariant: written by the agent's loop, read by whoever watches ([`crate::web`]); nothing depends on it. Not here:
//! what is in the kernel ([`crate::show`]).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use prometheus_client::metrics::histogram::Histogram;

/// The agent's loop turns every ten seconds at least: after this long without a turn it hangs.
const HANGS: Duration = Duration::from_secs(90);
/// Seconds from a change to the kernel's tables.
const BUCKETS: [f64; 15] =
    [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

#[derive(Debug)]
pub struct Vitals {
    pub started: SystemTime,
    pub applied: Histogram,
    /// How often, and for how many microseconds together: the histogram itself tells nobody but a scrape.
    changes: AtomicU64,
    microseconds: AtomicU64,
    pub operations: AtomicU64,
    /// Plans and changes that the kernel didn't take as a whole.
    pub failed: AtomicU64,
    /// Changes of the files or the cluster that were refused.
    pub refused: AtomicU64,
    /// Entries that others broke.
    pub repaired: AtomicU64,
    /// ICMP errors about packets in the overlay: too large for the way, or not arriving at all.
    pub overlay_too_large: AtomicU64,
    pub overlay_unreachable: AtomicU64,
    /// Times that the kernel told of changes faster than they were read, and all was read again.
    pub overruns: Arc<AtomicU64>,
    /// The tables are as the sources have them, for the first time.
    filled: AtomicBool,
    revisions: Mutex<Revisions>,
    turned: Mutex<Instant>,
}

/// What is wished and what is in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Revisions {
    pub wished: u64,
    pub in_force: u64,
    /// Since when the two differ.
    pub since: Option<Instant>,
}

impl Default for Vitals {
    fn default() -> Self {
        Vitals {
            started: SystemTime::now(),
            applied: Histogram::new(BUCKETS),
            changes: AtomicU64::new(0),
            microseconds: AtomicU64::new(0),
            operations: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            repaired: AtomicU64::new(0),
            overlay_too_large: AtomicU64::new(0),
            overlay_unreachable: AtomicU64::new(0),
            overruns: Arc::default(),
            filled: AtomicBool::new(false),
            revisions: Mutex::default(),
            turned: Mutex::new(Instant::now()),
        }
    }
}

impl Vitals {
    /// The tables have taken a change.
    pub fn apply(&self, took: Duration, operations: usize) {
        self.applied.observe(took.as_secs_f64());
        self.changes.fetch_add(1, Ordering::Relaxed);
        self.microseconds.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
        self.operations.fetch_add(operations as u64, Ordering::Relaxed);
    }

    /// How many changes the tables have taken, and how long one took in the mean.
    pub fn changes(&self) -> (u64, Duration) {
        let (count, sum) = (self.changes.load(Ordering::Relaxed), self.microseconds.load(Ordering::Relaxed));
        (count, Duration::from_micros(sum.checked_div(count).unwrap_or(0)))
    }

    pub fn fill(&self) {
        self.filled.store(true, Ordering::Relaxed);
    }

    /// A sign of life, and which revision is wished and which in force.
    pub fn turn(&self, wished: u64, in_force: u64) {
        *self.turned.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        let mut now = self.revisions.lock().unwrap_or_else(PoisonError::into_inner);
        let since = (wished != in_force).then(|| now.since.unwrap_or_else(Instant::now));
        *now = Revisions { wished, in_force, since };
    }

    pub fn revisions(&self) -> Revisions {
        *self.revisions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why it is not alive, if so.
    pub fn hangs(&self) -> Option<String> {
        let silent = self.turned.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
        (silent > HANGS).then(|| format!("the agent's loop has not turned for {} s", silent.as_secs()))
    }

    /// Why what is in force is not what is wished, if so.
    pub fn unready(&self) -> Option<String> {
        if !self.filled.load(Ordering::Relaxed) {
            return Some("the tables have not been filled yet".into());
        }
        let Revisions { wished, in_force, since } = self.revisions();
        since.map(|since| {
            let seconds = since.elapsed().as_secs();
            format!("revision {wished} is wished, {in_force} is in force, for {seconds} s")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_follows_the_revisions() {
        let vitals = Vitals::default();
        assert_eq!(vitals.unready().as_deref(), Some("the tables have not been filled yet"));
        vitals.turn(3, 3);
        vitals.fill();
        assert_eq!((vitals.unready(), vitals.hangs()), (None, None));
        vitals.turn(4, 3);
        let since = vitals.revisions().since;
        assert!(since.is_some());
        assert_eq!(vitals.unready().as_deref(), Some("revision 4 is wished, 3 is in force, for 0 s"));
        vitals.turn(5, 3);
        assert_eq!(vitals.revisions().since, since, "the lag began with the first change that is not in force");
        vitals.turn(5, 5);
        assert_eq!((vitals.revisions().since, vitals.unready()), (None, None));
    }

    #[test]
    fn what_is_applied_is_counted() {
        let vitals = Vitals::default();
        vitals.apply(Duration::from_millis(3), 7);
        vitals.apply(Duration::from_secs(2), 1);
        assert_eq!(vitals.changes(), (2, Duration::from_micros(1_001_500)));
        assert_eq!(vitals.operations.load(Ordering::Relaxed), 8);
        assert_eq!(Vitals::default().changes(), (0, Duration::ZERO));
    }
}
