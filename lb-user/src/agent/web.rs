//! What those who watch are told of the agent.
//!
//! Not here: how they ask and what of ([`crate::web`]).

use super::Agent;
use crate::web::Settings;

impl Agent {
    pub(super) fn configure_web(&mut self) {
        let names = self.wish.dns().is_some();
        self.web.configure(self.wish.web().map(|web| Settings { web: web.clone(), names }));
    }

    /// A sign of life, and how far what is in force is behind what is wished.
    pub(super) fn tell_vitals(&self) {
        self.vitals.turn(self.wish.intent.revision, self.lock.revision());
        if self.planned.is_some() {
            self.vitals.fill();
        }
    }
}
