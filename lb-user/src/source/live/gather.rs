//! What the followers of all kinds have heard and the agent hasn't taken yet.
//!
//! Invariant: nothing is handed over before every kind has been listed. A list's difference comes as one, and while
//! a kind has lost its watch the others wait for it, so that an API that comes back is one change; but not for long.
//! Not here: talking to the API ([`super::follow`]).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::{Duration, Instant};
use tracing::{debug, info, warn};

use super::kind::{Kind, Object};
use crate::source::manifests::Objects;
use crate::source::readiness::at;

/// How long after one kind has come back the others are waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// What there is to know of the API itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Api {
    /// All has been listed since the agent's start.
    pub listed: bool,
    /// It can't be followed.
    pub away: Option<Away>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Away {
    pub since: SystemTime,
    /// What the last attempt gave.
    pub error: String,
    pub attempts: u32,
}

/// What the agent is told.
#[derive(Debug)]
pub enum News {
    Objects(Objects),
    Api(Api),
}

/// One kind's state.
#[derive(Debug, Default)]
struct Followed {
    listed: bool,
    /// A watch is open.
    current: bool,
    away: Option<Away>,
}

#[derive(Debug)]
pub(super) struct Shared {
    gathered: Mutex<Gathered>,
    wake: Notify,
    /// Some kind can be followed again: what waits to ask again asks now.
    pub back: Notify,
}

#[derive(Debug)]
struct Gathered {
    kinds: BTreeMap<&'static str, Followed>,
    /// The objects there are, by name, and which state of them.
    known: BTreeMap<PathBuf, String>,
    pending: Objects,
    /// Something was handed over.
    begun: bool,
    /// When a kind was last listed or got its watch.
    caught_up: Instant,
    told: Api,
}

impl Shared {
    pub fn new<'k>(kinds: impl Iterator<Item = &'k Kind>, known: BTreeMap<PathBuf, String>) -> Self {
        let kinds = kinds.map(|kind| (kind.plural, Followed::default())).collect();
        let told = Api::default();
        let gathered =
            Gathered { kinds, known, pending: Objects::new(), begun: false, caught_up: Instant::now(), told };
        Shared { gathered: Mutex::new(gathered), wake: Notify::new(), back: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for news and takes all there are. May be dropped while it waits.
    pub async fn next(&self) -> News {
        loop {
            let until = {
                let mut gathered = self.lock();
                let api = gathered.api();
                if api != gathered.told {
                    gathered.told = api.clone();
                    return News::Api(api);
                }
                match gathered.ready() {
                    Ready::Now => {
                        gathered.begun = true;
                        return News::Objects(std::mem::take(&mut gathered.pending));
                    }
                    Ready::At(time) => Some(time),
                    Ready::No => None,
                }
            };
            tokio::select! {
                () = self.wake.notified() => {}
                () = at(until) => {}
            }
        }
    }

    /// Everything of a kind.
    pub fn listed(&self, kind: &Kind, objects: BTreeMap<PathBuf, Object>) {
        let mut gathered = self.lock();
        gathered.caught_up = Instant::now();
        let prefix = kind.prefix();
        let known = gathered.known.range(PathBuf::from(&prefix)..);
        let known = known.take_while(|(said, _)| said.to_string_lossy().starts_with(&prefix));
        let gone: Vec<PathBuf> =
            known.map(|(said, _)| said).filter(|said| !objects.contains_key(*said)).cloned().collect();
        for said in gone {
            gathered.gone(said);
        }
        for (said, object) in objects {
            if gathered.known.get(&said) != Some(&object.identity) {
                gathered.put(object);
            }
        }
        if let Some(followed) = gathered.kinds.get_mut(kind.plural) {
            followed.listed = true;
        }
        self.wake.notify_one();
    }

    pub fn put(&self, object: Object) {
        self.lock().put(object);
        self.wake.notify_one();
    }

    pub fn gone(&self, said: PathBuf) {
        self.lock().gone(said);
        self.wake.notify_one();
    }

    /// A kind's watch is open.
    pub fn current(&self, kind: &Kind) {
        let mut gathered = self.lock();
        gathered.caught_up = Instant::now();
        let Some(followed) = gathered.kinds.get_mut(kind.plural) else { return };
        followed.current = true;
        if let Some(away) = followed.away.take() {
            let after = away.since.elapsed().unwrap_or_default();
            info!("the Kubernetes API tells of {} again, after {:.1} s", kind.plural, after.as_secs_f64());
            self.back.notify_waiters();
        }
        self.wake.notify_one();
    }

    /// A kind's watch has ended, for now.
    pub fn behind(&self, kind: &Kind) {
        if let Some(followed) = self.lock().kinds.get_mut(kind.plural) {
            followed.current = false;
        }
    }

    /// A kind can't be followed; the next attempt comes after `wait`.
    pub fn away(&self, kind: &Kind, error: String, wait: Duration) {
        let mut gathered = self.lock();
        let Some(followed) = gathered.kinds.get_mut(kind.plural) else { return };
        followed.current = false;
        let error = format!("{}: {error}", kind.plural);
        let wait = wait.as_secs_f64();
        let away = match followed.away.take() {
            Some(away) if away.error == error => {
                debug!("the Kubernetes API is still away: {error}; trying again in {wait:.1} s");
                Away { attempts: away.attempts + 1, ..away }
            }
            before => {
                warn!("the Kubernetes API is away, and what it said stays: {error}; trying again in {wait:.1} s");
                let (since, attempts) = before.map_or((SystemTime::now(), 0), |before| (before.since, before.attempts));
                Away { since, error, attempts: attempts + 1 }
            }
        };
        followed.away = Some(away);
        self.wake.notify_one();
    }
}

enum Ready {
    Now,
    At(Instant),
    No,
}

impl Gathered {
    fn put(&mut self, object: Object) {
        self.known.insert(object.said.clone(), object.identity);
        self.pending.insert(object.said, Some(object.value));
    }

    fn gone(&mut self, said: PathBuf) {
        self.known.remove(&said);
        self.pending.insert(said, None);
    }

    fn api(&self) -> Api {
        let away = self.kinds.values().filter_map(|followed| followed.away.as_ref());
        Api {
            listed: self.kinds.values().all(|followed| followed.listed),
            away: away.min_by_key(|away| away.since).cloned(),
        }
    }

    fn ready(&self) -> Ready {
        let unlisted = self.kinds.values().any(|followed| !followed.listed);
        // The first time also nothing: that is news, too.
        if unlisted || (self.pending.is_empty() && self.begun) {
            return Ready::No;
        }
        let late = self.caught_up + PATIENCE;
        if self.kinds.values().all(|followed| followed.current) || late <= Instant::now() {
            return Ready::Now;
        }
        Ready::At(late)
    }
}
