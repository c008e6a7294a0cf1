//! One kind of object, listed and watched for as long as the task lives.
//!
//! Invariant: what is told to [`Shared`] is what a list at some moment and the events since then give: what can't be
//! continued is listed again. Lists are streamed where the server can, else they come in pages, always as of now and
//! not out of a cache, since a server's may be older than what we know. Not here: when it is handed over.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{AsyncBufReadExt, StreamExt};
use kube::api::{ListParams, WatchParams};
use kube::core::Request;
use kube::{Client, Error};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info};

use super::backoff::Backoff;
use super::client::{Access, words};
use super::gather::Shared;
use super::kind::{Kind, Object};

const PAGE: u32 = 500;
/// A list's page, or a watch's first words, take no longer.
const ANSWER: Duration = Duration::from_secs(30);
/// A streamed list that pauses for so long isn't one: the server took the request for a watch.
const PAUSE: Duration = Duration::from_secs(10);
/// The server ends a watch after so many seconds, and says something once a minute (a bookmark). One that says
/// nothing for longer may have gone without a word.
const WATCH: u32 = 290;
const SILENCE: Duration = Duration::from_secs(90);
/// A watch that lives for so long was a good one, whatever it brought.
const GOOD: Duration = Duration::from_secs(1);

pub(super) struct Follower {
    access: Access,
    kind: &'static Kind,
    shared: Arc<Shared>,
    client: Option<Client>,
    /// What is known is as of this.
    version: Option<String>,
    /// Lists are streamed.
    streams: bool,
    /// How many objects a page of a list has.
    page: Option<u32>,
    /// An event came by this watch.
    heard: bool,
}

enum Fault {
    /// What is known is too old to be continued.
    Gone(String),
    /// The server doesn't stream lists.
    NoStreams(String),
    Failed {
        error: String,
        /// By the server, and not on the way to it.
        answered: bool,
        after: Option<Duration>,
    },
}

fn unreached(error: String) -> Fault {
    Fault::Failed { error, answered: false, after: None }
}

fn failed(error: impl Into<String>) -> Fault {
    Fault::Failed { error: error.into(), answered: true, after: None }
}

#[derive(Deserialize)]
struct Page {
    metadata: PageMetadata,
    #[serde(default)]
    items: Option<Vec<Value>>,
}

#[derive(Deserialize)]
struct PageMetadata {
    #[serde(rename = "resourceVersion")]
    version: String,
    #[serde(default, rename = "continue")]
    token: String,
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: Value,
}

type Listed = BTreeMap<PathBuf, Object>;

impl Follower {
    pub fn new(access: Access, kind: &'static Kind, shared: Arc<Shared>) -> Self {
        Follower { access, kind, shared, client: None, version: None, streams: true, page: Some(PAGE), heard: false }
    }

    pub async fn run(mut self) {
        let mut backoff = Backoff::default();
        loop {
            let started = Instant::now();
            self.heard = false;
            let result = self.session().await;
            self.shared.behind(self.kind);
            let good = self.heard || started.elapsed() >= GOOD;
            let fault = match result {
                Ok(()) if good => None,
                Ok(()) => Some(failed("the watch ended as soon as it had begun")),
                Err(Fault::NoStreams(why)) => {
                    info!("the Kubernetes API streams no lists, they are asked for by page: {why}");
                    self.streams = false;
                    None
                }
                Err(Fault::Gone(why)) => {
                    debug!("{} are listed again: {why}", self.kind.plural);
                    self.version = None;
                    (!good).then(|| failed(why))
                }
                Err(fault) => Some(fault),
            };
            match fault {
                Some(Fault::Failed { error, answered, after }) => self.wait(&mut backoff, error, answered, after).await,
                _ => backoff.reset(),
            }
        }
    }

    async fn wait(&mut self, backoff: &mut Backoff, error: String, answered: bool, after: Option<Duration>) {
        // Credentials may be others by now.
        self.client = None;
        if !answered {
            // All that it has missed as one change.
            self.version = None;
        }
        let wait = backoff.next().max(after.unwrap_or_default());
        let back = self.shared.back.notified();
        self.shared.away(self.kind, error, wait);
        tokio::select! {
            () = sleep(wait) => {}
            () = back => {}
        }
    }

    /// Lists, where that is needed, and watches until the watch ends.
    async fn session(&mut self) -> Result<(), Fault> {
        let client = match &self.client {
            Some(client) => client.clone(),
            None => self.client.insert(self.access.client().await.map_err(unreached)?).clone(),
        };
        if self.version.is_none() && !self.streams {
            let (objects, version) = self.list(&client).await?;
            self.shared.listed(self.kind, objects);
            self.version = Some(version);
        }
        let mut listing = self.version.is_none().then(Listed::new);
        let params =
            WatchParams { timeout: Some(WATCH), send_initial_events: listing.is_some(), ..WatchParams::default() };
        let request = Request::new(self.kind.url()).watch(&params, self.version.as_deref().unwrap_or_default());
        let request = request.map_err(|error| failed(error.to_string()))?;
        let answer = timeout(ANSWER, client.request_stream(request)).await.map_err(|_| unanswered())?;
        let mut lines = answer.map_err(|error| fault(&error, listing.is_some()))?.lines();
        if listing.is_none() {
            self.shared.current(self.kind);
        }
        loop {
            let pause = if listing.is_some() { PAUSE } else { SILENCE };
            match timeout(pause, lines.next()).await {
                Err(_) if listing.is_some() => {
                    return Err(Fault::NoStreams(format!("no end of the list within {} s", pause.as_secs())));
                }
                Err(_) => return Ok(()),
                Ok(None) if listing.is_some() => return Err(failed("the list ended before all was told")),
                Ok(None) => return Ok(()),
                Ok(Some(line)) => match self.line(line, &mut listing)? {
                    true => {}
                    false => return Ok(()),
                },
            }
        }
    }

    /// Takes a line of a watch. False: it is cut off, and what came before counts.
    fn line(&mut self, line: io::Result<String>, listing: &mut Option<Listed>) -> Result<bool, Fault> {
        let event: Event = match line
            .map_err(|error| error.to_string())
            .and_then(|line| serde_json::from_str(&line).map_err(|error| format!("told what is no event: {error}")))
        {
            Ok(event) => event,
            Err(error) => {
                debug!("the watch of {} was cut off: {error}", self.kind.plural);
                return if listing.is_some() { Err(failed(error)) } else { Ok(false) };
            }
        };
        match event.kind.as_str() {
            "ADDED" | "MODIFIED" | "DELETED" => {
                let gone = event.kind == "DELETED";
                let object = self.kind.object(event.object).map_err(failed)?;
                match listing {
                    Some(listed) if gone => _ = listed.remove(&object.said),
                    Some(listed) => _ = listed.insert(object.said.clone(), object),
                    None => {
                        self.version = Some(object.version.clone());
                        self.heard = true;
                        if gone { self.shared.gone(object.said) } else { self.shared.put(object) }
                    }
                }
            }
            "BOOKMARK" => self.bookmark(&event.object, listing)?,
            "ERROR" => return Err(said(&event.object, listing.is_some())),
            other => return Err(failed(format!("told an event of the type `{other}`"))),
        }
        Ok(true)
    }

    /// All up to here was told; it may be the end of a streamed list.
    fn bookmark(&mut self, object: &Value, listing: &mut Option<Listed>) -> Result<(), Fault> {
        let metadata = &object["metadata"];
        let version = metadata["resourceVersion"].as_str().unwrap_or_default();
        if version.is_empty() {
            return Err(failed("told a bookmark without a version"));
        }
        if listing.is_some() && metadata["annotations"]["k8s.io/initial-events-end"] != "true" {
            return Err(Fault::NoStreams("a bookmark came before the list's end".into()));
        }
        self.version = Some(version.to_owned());
        if let Some(objects) = listing.take() {
            self.shared.listed(self.kind, objects);
            self.shared.current(self.kind);
        }
        Ok(())
    }

    async fn list(&mut self, client: &Client) -> Result<(Listed, String), Fault> {
        let (mut all, mut token, mut version) = (Listed::new(), None, None);
        loop {
            let params = ListParams { limit: self.page, continue_token: token.clone(), ..ListParams::default() };
            let request = Request::new(self.kind.url()).list(&params).map_err(|error| failed(error.to_string()))?;
            let text = timeout(ANSWER, client.request_text(request)).await.map_err(|_| unanswered())?;
            let text = text.map_err(|error| {
                let fault = fault(&error, false);
                if token.is_some() && matches!(fault, Fault::Gone(_)) {
                    // It takes longer than the server remembers: all in one go.
                    self.page = None;
                }
                fault
            })?;
            let page: Page = serde_json::from_str(&text).map_err(|error| failed(format!("told no list: {error}")))?;
            for item in page.items.unwrap_or_default() {
                let object = self.kind.object(item).map_err(failed)?;
                all.insert(object.said.clone(), object);
            }
            // Of the first page: what happened since is told again.
            let version = version.get_or_insert(page.metadata.version);
            if page.metadata.token.is_empty() {
                return Ok((all, version.clone()));
            }
            token = Some(page.metadata.token);
        }
    }
}

fn unanswered() -> Fault {
    unreached(format!("no answer within {} s", ANSWER.as_secs()))
}

/// What an answer, or none, means.
fn fault(error: &Error, streams: bool) -> Fault {
    match error {
        Error::Api(status) => {
            let wait = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
            refused(status.code, words(error), u64::from(wait), streams)
        }
        error => unreached(words(error)),
    }
}

/// The same, of a status among a watch's events.
fn said(status: &Value, streams: bool) -> Fault {
    let text = |key: &str| status[key].as_str().unwrap_or_default();
    let code = status["code"].as_u64().unwrap_or_default() as u16;
    let wait = status["details"]["retryAfterSeconds"].as_u64().unwrap_or_default();
    refused(code, format!("{code} {}: {}", text("reason"), text("message")), wait, streams)
}

/// `streams`: it was an answer to a request for a streamed list.
fn refused(code: u16, error: String, wait: u64, streams: bool) -> Fault {
    match code {
        410 => Fault::Gone(error),
        400 | 422 if streams => Fault::NoStreams(error),
        _ => Fault::Failed { error, answered: true, after: (wait > 0).then(|| Duration::from_secs(wait)) },
    }
}
