//! What the service manager is told: sd_notify(3), where one asks for it (`NOTIFY_SOCKET`).
//!
//! Invariant: "ready" is said when the tables and programs are in force, and the watchdog is answered from the
//! agent's loop alone, so that a loop which hangs is noticed. Without a manager nothing is said and nothing is due.

use std::future::pending;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tracing::warn;

use super::Agent;

/// What is in force, as a line for people.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Status {
    pub revision: u64,
    pub services: usize,
    /// Files and objects that are not in force as they are now.
    pub refused: usize,
}

impl Status {
    fn line(self) -> String {
        let Status { revision, services, refused } = self;
        let refused = if refused == 0 { String::new() } else { format!(", {refused} refused: see `stellwerk status`") };
        format!("revision {revision}, {services} services{refused}")
    }
}

pub struct Manager {
    /// Due twice in the time that the manager allows between two signs of life.
    alive: Option<Interval>,
    told: Status,
}

impl Manager {
    pub fn new() -> Manager {
        let alive = sd_notify::watchdog_enabled().map(|allowed| {
            let mut alive = interval((allowed / 2).max(Duration::from_millis(1)));
            alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
            alive
        });
        Manager { alive, told: Status::default() }
    }

    pub fn ready(&mut self, status: Status) {
        self.told = status;
        tell(&[NotifyState::Status(&status.line()), NotifyState::Ready]);
    }

    /// The configuration is read again; `ready` says that this is over.
    pub fn reloading(&self) {
        let since = NotifyState::monotonic_usec_now();
        tell(&[NotifyState::Reloading, since.unwrap_or(NotifyState::MonotonicUsec(0))]);
    }

    pub fn status(&mut self, status: Status) {
        if self.told != status {
            self.told = status;
            tell(&[NotifyState::Status(&status.line())]);
        }
    }

    pub fn stopping(&self) {
        tell(&[NotifyState::Status("stopped; traffic goes on"), NotifyState::Stopping]);
    }

    /// When a sign of life is due; never without a watchdog.
    pub async fn due(&mut self) {
        match &mut self.alive {
            Some(alive) => _ = alive.tick().await,
            None => pending().await,
        }
    }

    pub fn alive(&self) {
        tell(&[NotifyState::Watchdog]);
    }
}

impl Agent {
    pub(super) fn status(&self) -> Status {
        Status {
            revision: self.lock.revision(),
            services: self.wish.intent.services.len(),
            refused: self.wish.refused().len(),
        }
    }
}

fn tell(words: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(words) {
        warn!("the service manager could not be told: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::Status;

    #[test]
    fn lines() {
        let status = Status { revision: 3, services: 12, refused: 0 };
        assert_eq!(status.line(), "revision 3, 12 services");
        let status = Status { refused: 2, ..status };
        assert_eq!(status.line(), "revision 3, 12 services, 2 refused: see `stellwerk status`");
    }
}
