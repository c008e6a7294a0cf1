//! A live Kubernetes API as the source of services.
//!
//! Each kind of object is listed and watched by a task of its own ([`follow`]); what they hear gathers until the
//! agent takes it ([`gather`]), and is read as if a file said it ([`super::manifests`]): the same objects give the
//! same services. Invariant: while the API is away nothing changes; what it said last outlives the agent
//! ([`store`]). Of what is written to it [`write`] tells.

mod backoff;
mod client;
mod follow;
mod gather;
pub mod kind;
mod store;
mod write;

use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::AbortHandle;

pub use client::Access;
pub use gather::{Api, Away, News};
pub use write::Statuses;

use self::follow::Follower;
use self::gather::Shared;
use self::store::Store;
use super::manifests::Objects;

/// Follows an API until it is dropped.
#[derive(Debug)]
pub struct Live {
    access: Access,
    shared: Arc<Shared>,
    tasks: Vec<AbortHandle>,
    store: Store,
    statuses: watch::Sender<Statuses>,
}

/// Where news come from.
#[derive(Clone, Debug)]
pub struct Feed(Arc<Shared>);

impl Feed {
    /// Waits for news and takes all there are. May be dropped while it waits.
    pub async fn next(&self) -> News {
        self.0.next().await
    }
}

impl Live {
    /// Begins to follow, from what is kept at `path`; call within a tokio runtime. Beside it, what was kept.
    pub fn start(access: Access, path: &Path) -> (Live, Objects) {
        let (store, kept) = Store::open(path, &access);
        let known = kept.iter().filter_map(|(said, object)| Some((said.clone(), kind::identity(object.as_deref()?))));
        let shared = Arc::new(Shared::new(kind::watched(&access), known.collect()));
        let follow = |kind| tokio::spawn(Follower::new(access.clone(), kind, shared.clone()).run()).abort_handle();
        let mut tasks: Vec<AbortHandle> = kind::watched(&access).map(follow).collect();
        let (statuses, wanted) = watch::channel(Statuses::new());
        tasks.push(tokio::spawn(write::run(access.clone(), wanted)).abort_handle());
        (Live { access, shared, tasks, store, statuses }, kept)
    }

    pub fn access(&self) -> &Access {
        &self.access
    }

    pub fn feed(&self) -> Feed {
        Feed(self.shared.clone())
    }

    /// Has these services' status say these addresses.
    pub fn say(&self, statuses: Statuses) {
        self.statuses.send_if_modified(|old| {
            let other = *old != statuses;
            *old = statuses;
            other
        });
    }

    /// Keeps what was taken, for the next agent.
    pub fn keep(&mut self, objects: &Objects) {
        self.store.append(objects);
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}
