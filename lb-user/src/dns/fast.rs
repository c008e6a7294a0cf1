//! Answers as bytes, for queries that come byte for byte again.
//!
//! Invariant: it gives what [`Handler::begin`] would: an answer of the cluster's zone as long as the zone is the
//! same, one of others for a second at the most, so that its time is told right. Who may ask is asked for each.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use super::Snapshot;
use super::handler::{Client, Handler, Outcome};
use super::metrics::{Event, Origin};
use super::wire::HEADER;

/// Queries that are known at once; then all are forgotten.
const ROOM: usize = 16_384;
/// Of a query that is worth it: a name of 255 bytes and extensions.
const LONGEST: usize = 300;
const OF_OTHERS: Duration = Duration::from_secs(1);

/// What is counted for an answer that may be given again.
#[derive(Clone, Copy, Debug)]
pub struct Repeat {
    pub kind: RecordType,
    pub code: ResponseCode,
    pub origin: Origin,
    /// Others said so.
    pub of_others: bool,
}

#[derive(Default)]
pub struct Fast {
    /// By all of a query behind its number.
    entries: HashMap<Box<[u8]>, Entry>,
    snapshot: Option<Arc<Snapshot>>,
    /// The answer that was given last.
    answer: Vec<u8>,
}

struct Entry {
    answer: Vec<u8>,
    until: Option<Instant>,
    counted: Repeat,
}

impl Fast {
    /// The answer, where it is known; else what is to be done.
    pub fn begin(&mut self, handler: &Handler, bytes: &[u8], client: &Client) -> Result<&[u8], Outcome> {
        self.follow(handler);
        if self.repeat(handler, bytes, client) {
            return Ok(&self.answer);
        }
        let mut repeat = None;
        let outcome = handler.begin_noting(bytes, client, &mut repeat);
        if let (Some(counted), Outcome::Reply(answer)) = (repeat, &outcome)
            && bytes.len() <= LONGEST
        {
            if self.entries.len() >= ROOM {
                self.entries.clear();
            }
            let until = counted.of_others.then(|| Instant::now() + OF_OTHERS);
            self.entries.insert(bytes[2..].into(), Entry { answer: answer.clone(), until, counted });
        }
        Err(outcome)
    }

    /// Another zone: nothing that was said of the one before counts.
    fn follow(&mut self, handler: &Handler) {
        let now = handler.snapshot.borrow();
        let same = match (&self.snapshot, &*now) {
            (Some(before), Some(now)) => Arc::ptr_eq(before, now),
            (None, None) => true,
            _ => false,
        };
        if !same {
            self.snapshot.clone_from(&now);
            self.entries.clear();
        }
    }

    fn repeat(&mut self, handler: &Handler, bytes: &[u8], client: &Client) -> bool {
        if bytes.len() < HEADER {
            return false;
        }
        let Some(entry) = self.entries.get(&bytes[2..]) else { return false };
        let now = Instant::now();
        if entry.until.is_some_and(|until| now >= until) {
            return false;
        }
        let Some(addr) = client.addr.filter(|addr| handler.may_ask(*addr)) else { return false };
        if !handler.guard.admits(addr, now) {
            return false;
        }
        self.answer.clear();
        self.answer.extend_from_slice(&entry.answer);
        self.answer[..2].copy_from_slice(&bytes[..2]);
        let counted = entry.counted;
        handler.metrics.query(counted.kind, client.stream);
        handler.metrics.answer(counted.code, counted.origin);
        if counted.of_others {
            handler.metrics.event(Event::CacheHit);
        }
        true
    }
}
