//! Where services come from, as the agent follows it: a live API's news are taken, and what is to be known of the
//! source is told to others.
//!
//! Invariant: the API that is followed is the one that the configuration in force names. Not here: what news mean
//! ([`super::wish`]).

use std::fs;
use std::future::pending;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};
use tracing::{error, info, warn};

use super::Agent;
use super::addresses::GIVER_UNKNOWN;
use super::wish::Wish;
use crate::apply::Paths;
use crate::config::Config;
use crate::disk;
use crate::source::live::{Access, Api, Feed, Live, News, Statuses};
use crate::source::manifests::{Objects, Scope};

/// How long a start waits for an API of which nothing is known, so that it serves from the first moment on.
const FIRST: Duration = Duration::from_secs(3);

/// What is told of the source of services.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Source {
    /// A folder or file, a kubeconfig, or `in-cluster`; empty: there is none.
    pub name: String,
    pub api: Option<Api>,
    /// What is not in force as it is now.
    pub refused: Vec<Refused>,
}

/// A place in a file, or an object, and what is wrong there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Refused {
    pub place: String,
    pub message: String,
}

impl Source {
    fn of(wish: &Wish, api: Option<&Api>) -> Self {
        let refused = wish.refused().iter().map(|error| {
            // Without the file and the place, which stand in a column of their own.
            let (file, whole) = (error.file.to_string(), error.to_string());
            let rest = whole.strip_prefix(&file).unwrap_or(&whole);
            let (place, message) = rest.split_once(": ").unwrap_or(("", rest));
            Refused { place: format!("{file}{place}"), message: message.to_owned() }
        });
        Source { name: wish.source().unwrap_or_default(), api: api.cloned(), refused: refused.collect() }
    }

    /// What the last agent told.
    pub fn read(paths: &Paths) -> Result<Self> {
        let path = paths.source();
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Source::default()),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    fn write(&self, paths: &Paths) -> Result<()> {
        let path = paths.source();
        disk::exchange(&path, &serde_json::to_vec(self)?).with_context(|| format!("writing {}", path.display()))
    }
}

/// The API that is followed.
pub(super) struct Followed {
    live: Live,
    api: Api,
}

impl Followed {
    fn start(access: &Access, paths: &Paths) -> (Self, Objects) {
        let (live, kept) = Live::start(access.clone(), &paths.cluster());
        (Followed { live, api: Api::default() }, kept)
    }

    /// The API that a configuration names, and what is known of the cluster: what an agent before was told, else
    /// what the API says soon.
    pub async fn first(config: &Config, paths: &Paths) -> (Option<Self>, Option<Objects>) {
        let Some(access) = &config.api else {
            forget(paths);
            return (None, None);
        };
        let (mut followed, kept) = Followed::start(access, paths);
        let mut objects = (!kept.is_empty()).then_some(kept);
        let (feed, until) = (followed.live.feed(), Instant::now() + FIRST);
        while objects.is_none() {
            match timeout_at(until, feed.next()).await {
                Ok(News::Objects(first)) => {
                    followed.live.keep(&first);
                    objects = Some(first);
                }
                Ok(News::Api(api)) => {
                    followed.api = api;
                    if followed.api.away.is_some() {
                        break;
                    }
                }
                Err(_) => break,
            }
        }
        (Some(followed), objects)
    }
}

/// What was kept of an API is not to outlive its being followed.
fn forget(paths: &Paths) {
    let path = paths.cluster();
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => warn!("{}: {error}", path.display()),
        _ => {}
    }
}

/// Waits for news of the API, if one is followed.
pub(super) async fn news(feed: Option<Feed>) -> News {
    match feed {
        Some(feed) => feed.next().await,
        None => pending().await,
    }
}

impl Agent {
    pub(super) fn feed(&self) -> Option<Feed> {
        self.followed.as_ref().map(|followed| followed.live.feed())
    }

    pub(super) fn cluster_news(&mut self, news: News) {
        match news {
            News::Objects(objects) => self.objects_changed(objects),
            News::Api(api) => {
                if let Some(followed) = &mut self.followed {
                    followed.api = api;
                }
            }
        }
        self.tell_source();
    }

    fn objects_changed(&mut self, objects: Objects) {
        let scope = Scope::Objects(objects);
        let result = self.wish.manifests_changed(&scope);
        self.wish_changed(result);
        // After the kernel has it.
        if let (Some(followed), Scope::Objects(objects)) = (&mut self.followed, scope) {
            followed.live.keep(&objects);
        }
    }

    /// Gives addresses to services, if it is this node that does, and has their status say so.
    pub(super) fn settle_giver(&mut self) {
        if self.followed.is_none() {
            return;
        }
        let giver = self.announce.giver(&self.wish, self.gives);
        self.gives = giver.as_ref() == Some(&self.wish.intent.node);
        let elsewhere = match giver {
            _ if self.gives => None,
            Some(other) => Some(format!("node {other} gives addresses")),
            None => Some(GIVER_UNKNOWN.to_owned()),
        };
        // Nothing is given to services of which not all are known.
        if !self.wish.waits() && self.wish.leave_giving(elsewhere) {
            match self.wish.manifests_changed(&Scope::Objects(Objects::new())) {
                Ok(None) => {}
                Ok(undo) => self.replan_or_retry(undo),
                Err(error) => return error!("giving addresses to services: {error:#}"),
            }
        }
        if let Some(followed) = &self.followed {
            followed.live.say(if self.gives { self.wish.unsaid() } else { Statuses::new() });
        }
    }

    /// Follows the API that the configuration in force names.
    pub(super) fn follow_again(&mut self) {
        let access = self.wish.api().cloned();
        if access.as_ref() == self.followed.as_ref().map(|followed| followed.live.access()) {
            return;
        }
        self.followed = None;
        let Some(access) = access else { return forget(&self.options.paths) };
        info!("following the Kubernetes API: {access}; services stay as they are until it has told of all");
        let (followed, kept) = Followed::start(&access, &self.options.paths);
        self.followed = Some(followed);
        if !kept.is_empty() {
            self.objects_changed(kept);
        }
    }

    /// Tells others of the source, where that has changed.
    pub(super) fn tell_source(&mut self) {
        let source = Source::of(&self.wish, self.followed.as_ref().map(|followed| &followed.api));
        if self.told.as_ref() != Some(&source) {
            if let Err(error) = source.write(&self.options.paths) {
                error!("{error:#}");
            }
            self.told = Some(source);
        }
    }
}
