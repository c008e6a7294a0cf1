//! What goes wrong on demand.
//!
//! Invariant: none is set where no test sets it.

use std::collections::VecDeque;
use std::time::Duration;

/// How a request for a streamed list is met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Streams {
    #[default]
    Yes,
    /// As by servers that know it, but have it switched off.
    Refused,
    /// As by servers that don't know it: it is a watch.
    Unknown,
}

#[derive(Clone, Debug)]
pub struct Faults {
    pub streams: Streams,
    /// Statuses of the next answers, whatever is asked.
    pub statuses: VecDeque<u16>,
    /// The answers to all requests for this kind.
    pub forbidden: Option<String>,
    /// So many of the next lines of watches are cut off in their middle, and the connection with them.
    pub cut_lines: u32,
    /// Before each line of a watch.
    pub pause: Duration,
    /// How often a watch that asks for them gets bookmarks.
    pub bookmarks: Duration,
    /// How long a watch lasts, if not as long as it asks.
    pub lifetime: Option<Duration>,
    /// Versions that are too old are refused by an answer's status, and not by a watch's event.
    pub gone_by_status: bool,
    /// Counts: watches opened before the last one end.
    pub expired: u64,
    pub cut: u64,
}

impl Default for Faults {
    fn default() -> Self {
        Faults {
            streams: Streams::Yes,
            statuses: VecDeque::new(),
            forbidden: None,
            cut_lines: 0,
            pause: Duration::ZERO,
            bookmarks: Duration::from_secs(60),
            lifetime: None,
            gone_by_status: false,
            expired: 0,
            cut: 0,
        }
    }
}

impl Faults {
    /// Whether the next line is to be cut.
    pub fn take_cut(&mut self) -> bool {
        let cut = self.cut_lines > 0;
        self.cut_lines = self.cut_lines.saturating_sub(1);
        cut
    }
}
