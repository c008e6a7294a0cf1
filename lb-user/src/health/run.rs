//! Probes all targets, each at its interval.
//!
//! Invariant: at most [`AT_ONCE`] probes are under way; where more are due they wait their turn. What changes is told,
//! and nothing else.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_rustls::TlsConnector;

use super::probe::probe;
use super::state::State;
use super::{Check, Target, Targets, tls};

/// Probes under way: a third of the files that a process may have open by default.
const AT_ONCE: usize = 256;
/// The first probes of a target are spread over this time at the most.
const SPREAD: Duration = Duration::from_secs(1);

/// A target's state, or its reason, is another one.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    pub target: Target,
    /// None: it is well.
    pub failing: Option<String>,
}

#[derive(Clone)]
struct Means {
    permits: Arc<Semaphore>,
    tls: TlsConnector,
    told: mpsc::UnboundedSender<Told>,
}

/// Begins; it ends with the sender of targets, or the receiver of what is told.
pub fn spawn(targets: watch::Receiver<Targets>) -> Result<mpsc::UnboundedReceiver<Told>> {
    let (told, receiver) = mpsc::unbounded_channel();
    let tls = tls::connector().context("TLS for probes")?;
    let means = Means { permits: Arc::new(Semaphore::new(AT_ONCE)), tls, told };
    _ = tokio::spawn(supervise(targets, means));
    Ok(receiver)
}

async fn supervise(mut targets: watch::Receiver<Targets>, means: Means) {
    let mut running: BTreeMap<Target, (Arc<Check>, JoinHandle<()>)> = BTreeMap::new();
    loop {
        let wanted = targets.borrow_and_update().clone();
        running.retain(|target, (check, task)| {
            let stays = wanted.get(target).is_some_and(|(wanted, _)| wanted == check);
            if !stays {
                task.abort();
            }
            stays
        });
        for (target, (check, failing)) in wanted {
            running.entry(target.clone()).or_insert_with(|| {
                let task = tokio::spawn(follow(target, check.clone(), !failing, means.clone()));
                (check, task)
            });
        }
        if targets.changed().await.is_err() {
            running.values().for_each(|(_, task)| task.abort());
            return;
        }
    }
}

async fn follow(target: Target, check: Arc<Check>, well: bool, means: Means) {
    let mut state = State::new(well);
    let mut reason = String::new();
    sleep(share(&target, check.interval.min(SPREAD))).await;
    let mut ticks = interval(check.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let at = SocketAddr::new(target.addr, target.port);
    loop {
        ticks.tick().await;
        let Ok(permit) = means.permits.acquire().await else { return };
        let result = probe(&check, at, &means.tls).await;
        drop(permit);
        let changed = state.step(result.is_ok(), &check);
        let failing = result.err().filter(|_| !state.well);
        let news = changed || failing.as_ref().is_some_and(|why| *why != reason);
        if let Some(why) = &failing {
            reason.clone_from(why);
        }
        if news && means.told.send(Told { target: target.clone(), failing }).is_err() {
            return;
        }
    }
}

/// A part of a time, another one for each target.
fn share(target: &Target, time: Duration) -> Duration {
    let mut hasher = DefaultHasher::new();
    (&target.service, target.addr, target.port).hash(&mut hasher);
    time.mul_f64((hasher.finish() % 1_000) as f64 / 1_000.0)
}

#[cfg(test)]
mod tests;
