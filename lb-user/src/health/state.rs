//! When an endpoint counts as failing: a pure state machine over the results of its probes.
//!
//! Invariant: before its first probe an endpoint is taken for what it was before, or for well; the first probe
//! decides; after that it takes a row of contrary results.

use super::Check;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    pub well: bool,
    probed: bool,
    /// Results in a row that say otherwise.
    contrary: u32,
}

impl State {
    pub fn new(well: bool) -> Self {
        State { well, probed: false, contrary: 0 }
    }

    /// Takes a result; true if the state changed.
    pub fn step(&mut self, passed: bool, check: &Check) -> bool {
        self.contrary = if passed == self.well { 0 } else { self.contrary + 1 };
        let enough = match (self.probed, self.well) {
            (false, _) => 1,
            (true, true) => check.fall,
            (true, false) => check.rise,
        };
        self.probed = true;
        let changes = self.contrary >= enough;
        if changes {
            (self.well, self.contrary) = (passed, 0);
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Results as `+` and `-`, and after each whether it counts as well (`W`) or failing (`F`).
    #[test]
    fn thresholds() {
        let check = |rise, fall| Check { rise, fall, ..Check::parse("tcp").unwrap().unwrap() };
        for (well, rise, fall, results, want) in [
            (true, 2, 3, "+--+---+-++", "WWWWWWFFFFW"),
            (true, 2, 3, "-+-++---", "FFFFWWWF"),
            (false, 2, 3, "+--", "WWW"),
            (false, 2, 3, "-++", "FFW"),
            (true, 1, 1, "+-+-", "WFWF"),
        ] {
            let mut state = State::new(well);
            let said: String = results
                .chars()
                .map(|result| {
                    let before = state.well;
                    let changed = state.step(result == '+', &check(rise, fall));
                    assert_eq!(changed, before != state.well, "{results}");
                    if state.well { 'W' } else { 'F' }
                })
                .collect();
            assert_eq!(said, want, "{well} {rise} {fall} {results}");
        }
    }
}
