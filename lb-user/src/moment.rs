//! A moment by the clock that nobody sets: what lasts is measured by it, so that a step of the wall clock neither
//! ends nor prolongs anything.
//!
//! Invariant: it means the same to all processes since one start of the machine, and nothing after the next. Not
//! here: what people are told in, and what comes from others' calendars (certificates): those go by the wall clock.

use std::ops::Add;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Moment(Duration);

impl Moment {
    /// The machine's start.
    pub const START: Moment = Moment(Duration::ZERO);

    pub fn now() -> Moment {
        let now = clock_gettime(ClockId::Monotonic);
        Moment(Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32))
    }

    /// How long it is behind another; nothing, if it is before that.
    pub fn since(self, earlier: Moment) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;

    fn add(self, span: Duration) -> Moment {
        Moment(self.0.saturating_add(span))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_and_is_never_negative() {
        let (before, second) = (Moment::now(), Duration::from_secs(1));
        assert!(Moment::now() >= before && before > Moment::START);
        assert_eq!((before + second).since(before), second);
        assert_eq!(before.since(before + second), Duration::ZERO);
    }
}
