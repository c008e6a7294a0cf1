//! What was asked, what was answered, and what became of it on the way.
//!
//! Invariant: whatever is left unanswered or refused is counted here.

use std::sync::atomic::{AtomicU64, Ordering};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

/// Whose knowledge an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Cluster,
    External,
    Reverse,
    Hosts,
    Forwarded,
    /// Nobody's: it was wrong, or refused.
    None,
}

/// What else happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    CacheHit,
    CacheMiss,
    CacheStale,
    CacheEvicted,
    Upstream,
    UpstreamTimeout,
    UpstreamOverTcp,
    UpstreamWrong,
    UpstreamFailed,
    ForwardsFull,
    Outsider,
    RateLimited,
    Ignored,
    Malformed,
    Truncated,
    Transfer,
    ConnectionsFull,
    ConnectionIdle,
    SendFailed,
}

const TYPES: [&str; 12] = ["A", "AAAA", "SRV", "PTR", "TXT", "CNAME", "NS", "SOA", "MX", "HTTPS", "ANY", "other"];
const CODES: [&str; 8] = ["NOERROR", "NXDOMAIN", "SERVFAIL", "FORMERR", "NOTIMP", "REFUSED", "BADVERS", "other"];
const ORIGINS: [&str; 6] = ["cluster", "external", "reverse", "hosts", "forwarded", "none"];
const TRANSPORTS: [&str; 2] = ["UDP", "TCP"];
const EVENTS: [(&str, &str); 19] = [
    ("cache_hit", "answers out of the cache"),
    ("cache_miss", "answers that the cache didn't have"),
    ("cache_stale", "answers after their time, since no name server gave another"),
    ("cache_evicted", "answers that left the cache for others"),
    ("upstream", "queries to name servers"),
    ("upstream_timeout", "name servers that didn't answer in time"),
    ("upstream_over_tcp", "answers that were fetched again over TCP, since they were cut short"),
    ("upstream_wrong", "packets that came from a name server's address, but were no answer to what was asked"),
    ("upstream_failed", "answers of name servers that say they can't tell"),
    ("forwards_full", "queries beyond those that may wait for name servers at once"),
    ("outsider", "queries from outside, refused"),
    ("rate_limited", "queries beyond a client's rate, left unanswered"),
    ("ignored", "packets that are no queries, left unanswered"),
    ("malformed", "queries that can't be understood"),
    ("truncated", "answers that are too large for UDP, cut short"),
    ("transfer", "transfers of the whole zone"),
    ("connections_full", "connections beyond those that may be open at once, closed"),
    ("connection_idle", "connections on which nothing came for too long, closed"),
    ("send_failed", "answers that the kernel didn't take"),
];

#[derive(Debug, Default)]
pub struct Metrics {
    types: [AtomicU64; TYPES.len()],
    codes: [AtomicU64; CODES.len()],
    origins: [AtomicU64; ORIGINS.len()],
    transports: [AtomicU64; TRANSPORTS.len()],
    events: [AtomicU64; EVENTS.len()],
}

/// A count, by what it counts and which of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    pub kind: &'static str,
    pub name: &'static str,
    pub count: u64,
    pub text: &'static str,
}

fn one_more(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Metrics {
    pub fn query(&self, kind: RecordType, stream: bool) {
        let index = match kind {
            RecordType::A => 0,
            RecordType::AAAA => 1,
            RecordType::SRV => 2,
            RecordType::PTR => 3,
            RecordType::TXT => 4,
            RecordType::CNAME => 5,
            RecordType::NS => 6,
            RecordType::SOA => 7,
            RecordType::MX => 8,
            RecordType::HTTPS => 9,
            RecordType::ANY => 10,
            _ => 11,
        };
        one_more(&self.types[index]);
        one_more(&self.transports[usize::from(stream)]);
    }

    pub fn answer(&self, code: ResponseCode, origin: Origin) {
        let index = match code {
            ResponseCode::NoError => 0,
            ResponseCode::NXDomain => 1,
            ResponseCode::ServFail => 2,
            ResponseCode::FormErr => 3,
            ResponseCode::NotImp => 4,
            ResponseCode::Refused => 5,
            ResponseCode::BADVERS => 6,
            _ => 7,
        };
        one_more(&self.codes[index]);
        one_more(&self.origins[origin as usize]);
    }

    pub fn event(&self, event: Event) {
        one_more(&self.events[event as usize]);
    }

    pub fn events(&self, event: Event) -> u64 {
        self.events[event as usize].load(Ordering::Relaxed)
    }

    pub fn counts(&self) -> Vec<Count> {
        fn all<'m>(
            kind: &'static str,
            names: &'m [&'static str],
            counters: &'m [AtomicU64],
        ) -> impl Iterator<Item = Count> + 'm {
            let count = move |(name, counter): (&&'static str, &AtomicU64)| Count {
                kind,
                name,
                count: counter.load(Ordering::Relaxed),
                text: "",
            };
            names.iter().zip(counters).map(count)
        }
        let events = EVENTS.iter().zip(&self.events).map(|((name, text), counter)| Count {
            kind: "event",
            name,
            count: counter.load(Ordering::Relaxed),
            text,
        });
        all("type", &TYPES, &self.types)
            .chain(all("code", &CODES, &self.codes))
            .chain(all("zone", &ORIGINS, &self.origins))
            .chain(all("transport", &TRANSPORTS, &self.transports))
            .chain(events)
            .collect()
    }
}
