//! How long to wait before the API is asked again.
//!
//! Invariant: each wait is between a half and the whole of a bound that doubles from 100 ms to 15 s, by chance, so
//! that the nodes of a cluster don't all come at once.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LAST: Duration = Duration::from_secs(15);

#[derive(Debug, Default)]
pub struct Backoff {
    /// Since something came of it.
    failures: u32,
}

impl Backoff {
    pub fn next(&mut self) -> Duration {
        self.wait(RandomState::new().build_hasher().finish())
    }

    fn wait(&mut self, random: u64) -> Duration {
        let bound = FIRST.saturating_mul(1 << self.failures.min(16)).min(LAST);
        self.failures = self.failures.saturating_add(1);
        let half = bound / 2;
        half + half.mul_f64(random as f64 / u64::MAX as f64)
    }

    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits() {
        let waits = |random| {
            let mut backoff = Backoff::default();
            (0..10).map(|_| backoff.wait(random).as_millis()).collect::<Vec<_>>()
        };
        assert_eq!(waits(0), [50, 100, 200, 400, 800, 1600, 3200, 6400, 7500, 7500]);
        assert_eq!(waits(u64::MAX), [100, 200, 400, 800, 1600, 3200, 6400, 12800, 15000, 15000]);
        let mut backoff = Backoff { failures: u32::MAX };
        assert_eq!(backoff.wait(0), LAST / 2);
        backoff.reset();
        assert!((FIRST / 2..=FIRST).contains(&backoff.next()));
    }
}
