//! Asking others: whom, how long, and what to do when they don't answer.
//!
//! Invariant: a question is asked once, however many clients wait for its answer; how many wait at once is
//! bounded; and each gets an answer within [`TOTAL`], if only that there is none.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use hickory_proto::rr::Name;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use super::cache::{Cache, Kept, Key, Reply};
use super::metrics::{Event, Metrics};
use super::name;
use super::upstream::{self, Failure};
use crate::config::Dns;

/// Clients ask again, or elsewhere, after five seconds.
pub const TOTAL: Duration = Duration::from_millis(4_500);
/// How long one server may take where there is another.
const EACH: Duration = Duration::from_millis(1_200);
/// After this an answer after its time is better than none yet (RFC 8767 §5).
const PATIENCE: Duration = Duration::from_millis(1_800);
/// Questions that wait for an answer at once.
const WAITING: usize = 1_024;
/// How long a server that doesn't answer is left alone: this, doubled with each time, to that.
const BACKOFF: Duration = Duration::from_millis(500);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Server {
    addr: SocketAddr,
    health: Mutex<Health>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Health {
    failures: u32,
    until: Option<Instant>,
}

/// Servers for a domain; the first that answers is asked.
#[derive(Debug)]
pub struct Pool(Vec<Server>);

impl Pool {
    pub fn new(servers: &[SocketAddr]) -> Arc<Pool> {
        let server = |addr: &SocketAddr| Server { addr: *addr, health: Mutex::default() };
        Arc::new(Pool(servers.iter().map(server).collect()))
    }

    /// Those that answer in their order, then those that didn't, the longest ago first.
    fn order(&self, now: Instant) -> Vec<&Server> {
        let mut all: Vec<(Option<Instant>, &Server)> = self.0.iter().map(|s| (s.down(now), s)).collect();
        all.sort_by_key(|(down, _)| *down);
        all.into_iter().map(|(_, server)| server).collect()
    }
}

impl Server {
    fn health(&self) -> std::sync::MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn down(&self, now: Instant) -> Option<Instant> {
        self.health().until.filter(|until| now < *until)
    }

    fn answered(&self) {
        *self.health() = Health::default();
    }

    fn failed(&self, now: Instant) {
        let mut health = self.health();
        let backoff = BACKOFF.saturating_mul(1 << health.failures.min(6)).min(LONGEST_BACKOFF);
        *health = Health { failures: health.failures + 1, until: Some(now + backoff) };
    }
}

type Flight = watch::Receiver<Option<Reply>>;

#[derive(Debug)]
pub struct Forwarder {
    cache: Mutex<Cache>,
    flights: Mutex<HashMap<Key, Flight>>,
    waiting: Arc<Semaphore>,
    /// The longest domain first.
    domains: Vec<(Name, Arc<Pool>)>,
    rest: RwLock<Arc<Pool>>,
    metrics: Arc<Metrics>,
}

impl Forwarder {
    pub fn new(config: &Dns, metrics: Arc<Metrics>) -> Arc<Self> {
        let pool = |(domain, servers): &(String, Vec<SocketAddr>)| (name::domain(domain), Pool::new(servers));
        let mut domains: Vec<(Name, Arc<Pool>)> = config.forwards.iter().map(pool).collect();
        domains.sort_by_key(|(domain, _)| std::cmp::Reverse(domain.iter().count()));
        Arc::new(Forwarder {
            cache: Mutex::new(Cache::new(config.cache_entries, config.serve_stale)),
            flights: Mutex::default(),
            waiting: Arc::new(Semaphore::new(WAITING)),
            domains,
            rest: RwLock::new(Pool::new(&config.upstreams)),
            metrics,
        })
    }

    /// Other servers for all that has none of its own.
    pub fn set_rest(&self, servers: &[SocketAddr]) {
        *self.rest.write().unwrap_or_else(PoisonError::into_inner) = Pool::new(servers);
    }

    fn pool(&self, name: &Name) -> Arc<Pool> {
        let own = self.domains.iter().find(|(domain, _)| domain.zone_of(name));
        own.map_or_else(|| self.rest.read().unwrap_or_else(PoisonError::into_inner).clone(), |(_, pool)| pool.clone())
    }

    fn look(&self, key: &Key) -> Kept {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).get(key, Instant::now())
    }

    /// What is known already and still good.
    pub fn known(&self, key: &Key) -> Option<Reply> {
        match self.look(key) {
            Kept::Fresh(reply) => {
                self.metrics.event(Event::CacheHit);
                Some(reply)
            }
            Kept::Stale(_) | Kept::Nothing => None,
        }
    }

    /// Asks, or waits with those that did.
    pub async fn resolve(self: &Arc<Self>, key: &Key) -> Reply {
        let stale = match self.look(key) {
            Kept::Fresh(reply) => {
                self.metrics.event(Event::CacheHit);
                return reply;
            }
            Kept::Stale(reply) => Some(reply),
            Kept::Nothing => None,
        };
        let flight = self.join(key);
        let patience = if stale.is_some() { PATIENCE } else { TOTAL + Duration::from_millis(250) };
        let reply = match flight {
            Some(flight) => timeout(patience, landed(flight)).await.ok().flatten(),
            None => None,
        };
        let able = reply.filter(|reply| stale.is_none() || reply.code != hickory_proto::op::ResponseCode::ServFail);
        match (able, stale) {
            (Some(reply), _) => {
                self.metrics.event(Event::CacheMiss);
                reply
            }
            (None, Some(stale)) => {
                self.metrics.event(Event::CacheStale);
                stale
            }
            (None, None) => Reply::failure(),
        }
    }

    /// The question on its way, which begins here unless it is; None: too many are.
    fn join(self: &Arc<Self>, key: &Key) -> Option<Flight> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(key) {
            return Some(flight.clone());
        }
        let Ok(permit) = self.waiting.clone().try_acquire_owned() else {
            self.metrics.event(Event::ForwardsFull);
            return None;
        };
        let (land, flight) = watch::channel(None);
        flights.insert(key.clone(), flight.clone());
        let (this, key) = (self.clone(), key.clone());
        tokio::spawn(async move {
            let reply = this.ask(&key).await;
            let evicted = this.cache.lock().unwrap_or_else(PoisonError::into_inner).put(
                key.clone(),
                reply.clone(),
                Instant::now(),
            );
            (0..evicted).for_each(|_| this.metrics.event(Event::CacheEvicted));
            this.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
            land.send_replace(Some(reply));
            drop(permit);
        });
        Some(flight)
    }

    async fn ask(&self, key: &Key) -> Reply {
        let pool = self.pool(&key.name);
        let end = Instant::now() + TOTAL;
        let servers = pool.order(Instant::now());
        for (i, server) in servers.iter().enumerate() {
            let left = end.saturating_duration_since(Instant::now());
            let within = if i + 1 == servers.len() { left } else { left.min(EACH) };
            if within.is_zero() {
                break;
            }
            match upstream::ask(server.addr, key, within, &self.metrics).await {
                Ok(reply) => {
                    server.answered();
                    return reply;
                }
                Err(Failure::Silent) => {
                    self.metrics.event(Event::UpstreamTimeout);
                    server.failed(Instant::now());
                }
                // It is there, but can't help with this name.
                Err(Failure::Unable(_)) => self.metrics.event(Event::UpstreamFailed),
                Err(Failure::Wrong) => self.metrics.event(Event::UpstreamWrong),
            }
        }
        Reply::failure()
    }
}

async fn landed(mut flight: Flight) -> Option<Reply> {
    flight.wait_for(Option::is_some).await.ok()?.clone()
}
