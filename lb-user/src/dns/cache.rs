//! Answers of others, kept for their time.
//!
//! Invariant: bounded; the answer that was used least recently goes first. A record is never told to be good for
//! longer than whoever gave it said. Negative answers are kept as their SOA says (RFC 2308). Not here: asking.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, Record, RecordType};

/// The longest that an answer is kept, and one that there is none.
const LONGEST: u32 = 3_600;
const LONGEST_NEGATIVE: u32 = 1_800;
/// How long it is known that nobody could tell.
const FAILURE: u32 = 2;
/// What an answer after its time is told to be good for (RFC 8767 §4).
const STALE: u32 = 30;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub name: Name,
    pub kind: RecordType,
    /// Signatures are wanted, too.
    pub dnssec: bool,
    /// Answers that don't hold are wanted, too.
    pub unchecked: bool,
}

/// An answer of others.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    pub code: ResponseCode,
    pub answers: Vec<Record>,
    pub authorities: Vec<Record>,
    pub authentic: bool,
}

impl Reply {
    pub fn failure() -> Self {
        Reply { code: ResponseCode::ServFail, answers: Vec::new(), authorities: Vec::new(), authentic: false }
    }

    /// For how many seconds it is good; 0: not at all after this.
    pub fn good_for(&self) -> u32 {
        let least = |records: &[Record]| records.iter().map(|r| r.ttl).min();
        match (self.code, least(&self.answers)) {
            (ResponseCode::NoError, Some(ttl)) => ttl.min(LONGEST),
            (ResponseCode::NoError | ResponseCode::NXDomain, _) => {
                let soa = self.authorities.iter().find_map(|r| match &r.data {
                    RData::SOA(soa) => Some(r.ttl.min(soa.minimum)),
                    _ => None,
                });
                let aliases = least(&self.answers).unwrap_or(u32::MAX);
                soa.map_or(0, |ttl| ttl.min(aliases).min(LONGEST_NEGATIVE))
            }
            _ => FAILURE,
        }
    }

    /// The same after some time.
    fn aged(&self, by: Duration, stale: bool) -> Reply {
        let mut reply = self.clone();
        let seconds = by.as_secs().min(u64::from(u32::MAX)) as u32;
        for record in reply.answers.iter_mut().chain(&mut reply.authorities) {
            record.ttl = if stale { STALE } else { record.ttl.saturating_sub(seconds) };
        }
        reply
    }
}

#[derive(Debug)]
struct Entry {
    reply: Reply,
    since: Instant,
    until: Instant,
    used: u64,
}

#[derive(Debug)]
pub struct Cache {
    room: usize,
    /// How long an answer stays after its time.
    stale: Duration,
    entries: HashMap<Key, Entry>,
    /// By when they were used.
    order: BTreeMap<u64, Key>,
    uses: u64,
}

/// What the cache has.
#[derive(Debug, PartialEq)]
pub enum Kept {
    Fresh(Reply),
    /// After its time: better than none.
    Stale(Reply),
    Nothing,
}

impl Cache {
    pub fn new(room: usize, stale: Option<Duration>) -> Self {
        let stale = stale.unwrap_or_default();
        Cache { room, stale, entries: HashMap::new(), order: BTreeMap::new(), uses: 0 }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn get(&mut self, key: &Key, now: Instant) -> Kept {
        let Some(entry) = self.entries.get_mut(key) else { return Kept::Nothing };
        let failed = entry.reply.code == ResponseCode::ServFail;
        if now >= entry.until + if failed { Duration::ZERO } else { self.stale } {
            let used = entry.used;
            self.entries.remove(key);
            self.order.remove(&used);
            return Kept::Nothing;
        }
        self.uses += 1;
        if let Some(key) = self.order.remove(&entry.used) {
            self.order.insert(self.uses, key);
        }
        entry.used = self.uses;
        let age = now.saturating_duration_since(entry.since);
        if now < entry.until {
            Kept::Fresh(entry.reply.aged(age, false))
        } else {
            Kept::Stale(entry.reply.aged(age, true))
        }
    }

    /// Keeps an answer; how many others it pushed out. A failure takes nothing's place that may serve in need.
    pub fn put(&mut self, key: Key, reply: Reply, now: Instant) -> usize {
        let seconds = reply.good_for();
        let failed = reply.code == ResponseCode::ServFail;
        if self.room == 0 || seconds == 0 || (failed && self.entries.contains_key(&key)) {
            return 0;
        }
        self.uses += 1;
        let until = now + Duration::from_secs(seconds.into());
        let entry = Entry { reply, since: now, until, used: self.uses };
        if let Some(before) = self.entries.insert(key.clone(), entry) {
            self.order.remove(&before.used);
        }
        self.order.insert(self.uses, key);
        let mut gone = 0;
        while self.entries.len() > self.room {
            let Some((_, oldest)) = self.order.pop_first() else { break };
            self.entries.remove(&oldest);
            gone += 1;
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::rdata::{A, SOA};

    use super::*;

    fn key(name: &str) -> Key {
        Key { name: Name::from_ascii(name).unwrap(), kind: RecordType::A, dnssec: false, unchecked: false }
    }

    fn positive(ttl: u32) -> Reply {
        let record = Record::from_rdata(Name::from_ascii("a.example.").unwrap(), ttl, RData::A(A::new(192, 0, 2, 1)));
        Reply { code: ResponseCode::NoError, answers: vec![record], authorities: vec![], authentic: false }
    }

    fn negative(code: ResponseCode, ttl: u32, minimum: u32) -> Reply {
        let name = Name::from_ascii("example.").unwrap();
        let soa = SOA::new(name.clone(), name.clone(), 1, 1, 1, 1, minimum);
        let authorities = vec![Record::from_rdata(name, ttl, RData::SOA(soa))];
        Reply { code, answers: vec![], authorities, authentic: false }
    }

    fn ttl(kept: Kept) -> Option<(u32, bool)> {
        match kept {
            Kept::Fresh(reply) => reply.answers.first().or(reply.authorities.first()).map(|r| (r.ttl, false)),
            Kept::Stale(reply) => reply.answers.first().map(|r| (r.ttl, true)),
            Kept::Nothing => None,
        }
    }

    #[test]
    fn answers_age_and_end() {
        let (mut cache, start) = (Cache::new(10, None), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        cache.put(key("A.example."), positive(60), start);
        assert_eq!(ttl(cache.get(&key("a.EXAMPLE."), at(0))), Some((60, false)));
        assert_eq!(ttl(cache.get(&key("a.example."), at(59))), Some((1, false)));
        assert_eq!(ttl(cache.get(&key("a.example."), at(60))), None);
        assert!(cache.is_empty() && cache.order.is_empty());
    }

    #[test]
    fn negative_answers_are_good_as_long_as_their_zone_says() {
        for (reply, want) in [
            (negative(ResponseCode::NXDomain, 300, 60), 60),
            (negative(ResponseCode::NoError, 30, 60), 30),
            (negative(ResponseCode::NXDomain, 90_000, 90_000), LONGEST_NEGATIVE),
            (Reply { authorities: vec![], ..negative(ResponseCode::NXDomain, 1, 1) }, 0),
            (positive(90_000), LONGEST),
            (positive(0), 0),
            (Reply::failure(), FAILURE),
        ] {
            assert_eq!(reply.good_for(), want, "{reply:?}");
        }
    }

    #[test]
    fn stale_answers_stay_by_choice() {
        let start = Instant::now();
        let mut cache = Cache::new(10, Some(Duration::from_secs(100)));
        cache.put(key("a.example."), positive(60), start);
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert_eq!(ttl(cache.get(&key("a.example."), at(61))), Some((STALE, true)));
        cache.put(key("a.example."), Reply::failure(), at(62));
        assert_eq!(ttl(cache.get(&key("a.example."), at(63))), Some((STALE, true)), "a failure doesn't replace it");
        assert_eq!(ttl(cache.get(&key("a.example."), at(160))), None);
    }

    #[test]
    fn least_recently_used_goes_first() {
        let (mut cache, now) = (Cache::new(2, None), Instant::now());
        assert_eq!(cache.put(key("a."), positive(60), now) + cache.put(key("b."), positive(60), now), 0);
        cache.get(&key("a."), now);
        assert_eq!(cache.put(key("c."), positive(60), now), 1);
        assert_eq!(cache.get(&key("b."), now), Kept::Nothing);
        assert!(cache.get(&key("a."), now) != Kept::Nothing && cache.len() == 2 && cache.order.len() == 2);
    }
}
