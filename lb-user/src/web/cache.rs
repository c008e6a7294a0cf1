//! Listings as they were a moment ago, so that many who watch cost the device what one does.
//!
//! Invariant: a listing is read by one at a time and at most once a second; what can't be read is told as the reason.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

use super::listings::{Kind, LISTINGS};
use crate::apply::Paths;
use crate::show::Table;

const FRESH: Duration = Duration::from_secs(1);
const KEPT: Duration = Duration::from_secs(5);

/// A listing, or why there is none.
pub type Read = Result<Arc<Table>, Arc<str>>;

pub struct Cache {
    paths: Paths,
    read: [Mutex<Option<(Instant, Read)>>; LISTINGS.len()],
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("paths", &self.paths).finish_non_exhaustive()
    }
}

impl Cache {
    pub fn new(paths: &Paths) -> Self {
        Cache { paths: paths.clone(), read: [const { Mutex::const_new(None) }; LISTINGS.len()] }
    }

    /// Lets go of what nobody has asked for lately: a listing of a million connections takes room.
    pub async fn forget(&self) {
        for held in &self.read {
            let mut held = held.lock().await;
            if held.as_ref().is_some_and(|(at, _)| at.elapsed() > KEPT) {
                *held = None;
            }
        }
    }

    pub async fn get(&self, kind: Kind) -> Read {
        let mut held = self.read[kind as usize].lock().await;
        if let Some((at, read)) = held.as_ref()
            && at.elapsed() < FRESH
        {
            return read.clone();
        }
        let paths = self.paths.clone();
        let read = match spawn_blocking(move || (kind.listing().read)(&paths)).await {
            Ok(Ok(table)) => Ok(Arc::new(table)),
            Ok(Err(error)) => Err(format!("{error:#}").into()),
            Err(error) => Err(format!("reading {}: {error}", kind.listing().name).into()),
        };
        // A listing may have taken longer than it stays fresh.
        *held = Some((Instant::now(), read.clone()));
        read
    }
}
