//! A watch: lines of events for as long as it is asked for, or until a fault ends it.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use http_body_util::channel::{Channel, Sender};
use hyper::body::Bytes;
use serde_json::{Value, json};
use tokio::time::{Instant, interval_at, sleep, sleep_until};

use super::answer::{Body, Target};
use super::store::Kind;
use super::{Server, lock};

/// From where a watch goes on.
pub enum Start {
    /// All that there is, and a bookmark behind it.
    Streamed,
    /// All that there is.
    Any,
    At(u64),
}

struct Watching {
    server: Arc<Server>,
    kind: &'static Kind,
    namespace: Option<String>,
    /// All up to here was told.
    version: u64,
    waiting: VecDeque<Value>,
    sender: Sender<Bytes, io::Error>,
    /// What the counts of faults were when it was opened.
    expired: u64,
    cut: u64,
}

pub fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message,
    })
}

pub fn open(server: Arc<Server>, target: &Target<'_>, start: Start, bookmarks: bool, seconds: u64) -> Body {
    let (sender, body) = Channel::new(16);
    let (expired, cut, every, lifetime) = {
        let faults = lock(&server.faults);
        (faults.expired, faults.cut, faults.bookmarks, faults.lifetime.unwrap_or(Duration::from_secs(seconds)))
    };
    let namespace = target.namespace.map(str::to_owned);
    let (kind, waiting) = (target.kind, VecDeque::new());
    let mut watching = Watching { server, kind, namespace, version: 0, waiting, sender, expired, cut };
    watching.begin(&start);
    tokio::spawn(watching.run(bookmarks.then_some(every), lifetime));
    body.boxed()
}

fn event(kind: &str, object: Value) -> Value {
    json!({ "type": kind, "object": object })
}

impl Watching {
    fn begin(&mut self, start: &Start) {
        let store = lock(&self.server.store);
        self.version = match start {
            Start::At(version) => *version,
            Start::Any | Start::Streamed => {
                let all = store.list(self.kind.plural, self.namespace.as_deref());
                self.waiting.extend(all.into_iter().map(|object| event("ADDED", object)));
                store.version
            }
        };
        if matches!(start, Start::Streamed) {
            let mut bookmark = bookmark(self.kind, self.version);
            bookmark["object"]["metadata"]["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
            self.waiting.push_back(bookmark);
        }
    }

    async fn run(mut self, bookmarks: Option<Duration>, lifetime: Duration) {
        let end = Instant::now() + lifetime;
        let every = bookmarks.unwrap_or(Duration::from_secs(3_600));
        let mut due = interval_at(Instant::now() + every, every);
        let mut changed = self.server.changed.subscribe();
        loop {
            if !self.gather() || !self.send().await {
                return;
            }
            tokio::select! {
                result = changed.changed() => if result.is_err() { return },
                _ = due.tick(), if bookmarks.is_some() => {
                    let now = lock(&self.server.store).version;
                    // What came meanwhile goes first.
                    if !self.gather() {
                        return;
                    }
                    self.waiting.push_back(bookmark(self.kind, now.min(self.version)));
                }
                () = sleep_until(end) => return,
            }
        }
    }

    /// Takes what happened since.
    fn gather(&mut self) -> bool {
        let store = lock(&self.server.store);
        let Some(events) = store.since(self.kind.plural, self.version) else {
            self.waiting.push_back(event("ERROR", status(410, "Expired", "too old resource version")));
            return true;
        };
        self.version = store.version;
        for told in events {
            if self.namespace.as_ref().is_none_or(|namespace| told.object["metadata"]["namespace"] == **namespace) {
                self.waiting.push_back(event(told.kind, told.object));
            }
        }
        true
    }

    /// Sends what waits. False: the watch has ended.
    async fn send(&mut self) -> bool {
        loop {
            let (pause, expired, cut) = {
                let mut faults = lock(&self.server.faults);
                let cut = faults.cut > self.cut || (!self.waiting.is_empty() && faults.take_cut());
                (faults.pause, faults.expired > self.expired, cut)
            };
            if expired && !cut {
                self.waiting = [event("ERROR", status(410, "Expired", "the watch was too old"))].into();
            }
            let next = self.waiting.pop_front();
            let ended = next.as_ref().is_some_and(|event| event["type"] == "ERROR");
            let line = match next {
                Some(line) => format!("{line}\n"),
                None if cut => format!("{}\n", event("MODIFIED", json!({ "metadata": { "name": "half" } }))),
                None => return true,
            };
            if !pause.is_zero() {
                sleep(pause).await;
            }
            let length = if cut { line.len() / 2 } else { line.len() };
            if self.sender.send_data(Bytes::copy_from_slice(&line.as_bytes()[..length])).await.is_err() {
                return false;
            }
            if cut {
                // So that the half is on its way.
                sleep(Duration::from_millis(2)).await;
                let (sender, _) = Channel::new(1);
                std::mem::replace(&mut self.sender, sender).abort(io::Error::other("cut off"));
                return false;
            }
            if ended {
                return false;
            }
        }
    }
}

fn bookmark(kind: &Kind, version: u64) -> Value {
    let metadata = json!({ "resourceVersion": version.to_string() });
    event("BOOKMARK", json!({ "kind": kind.kind, "apiVersion": kind.version, "metadata": metadata }))
}
