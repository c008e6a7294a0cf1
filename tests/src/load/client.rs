//! The load: clients that ask again and again, and remember what each request met.
//!
//! Paced, not as fast as possible: the figures shall show the path, not a starved machine, and a
//! stall must not hide itself by asking less.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::http::{Answer, Connection};
use super::stats::Sample;
use super::task::Task;
use crate::netns::Ns;

/// What a load is.
#[derive(Clone, Debug)]
pub struct Plan {
    pub target: SocketAddr,
    /// The clients' address, where their namespace has several.
    pub source: Option<IpAddr>,
    /// Clients that keep their connection.
    pub keep_alive: usize,
    /// Clients that make a new connection for each request.
    pub fresh: usize,
    /// Time between two requests of a client.
    pub pace: Duration,
    /// After this a request has failed.
    pub timeout: Duration,
    /// The load ends by itself after this.
    pub longest: Duration,
}

impl Plan {
    /// A modest load.
    pub fn new(target: SocketAddr) -> Plan {
        Plan {
            target,
            source: None,
            keep_alive: 12,
            fresh: 8,
            pace: Duration::from_millis(20),
            timeout: Duration::from_secs(3),
            longest: Duration::from_secs(600),
        }
    }
}

/// What the clients write down.
#[derive(Debug, Default)]
struct Book {
    samples: Mutex<Vec<Sample>>,
    /// When each client's request in flight began.
    pending: Mutex<Vec<Option<Instant>>>,
}

/// A running load. Ends when dropped.
#[derive(Debug)]
pub struct Load {
    reader: Reader,
    timeout: Duration,
    _task: Task,
}

/// Reads what a load has met so far; outlives it.
#[derive(Clone, Debug)]
pub struct Reader(Arc<Book>);

impl Load {
    pub fn start(ns: &Ns, plan: Plan) -> Result<Load> {
        let book = Arc::new(Book::default());
        let (to, timeout) = (book.clone(), plan.timeout);
        let task = Task::start(ns, async move || Ok(all_clients(plan, to)))?;
        Ok(Load { reader: Reader(book), timeout, _task: task })
    }

    pub fn reader(&self) -> Reader {
        self.reader.clone()
    }

    /// Waits until no request is under way that began before `to`.
    pub fn settle(&self, to: Instant) {
        let end = Instant::now() + self.timeout + Duration::from_secs(1);
        while Instant::now() < end && locked(&self.reader.0.pending).iter().flatten().any(|at| *at < to) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Reader {
    /// The requests that began at `from` or later and before `to`, and have ended.
    pub fn between(&self, from: Instant, to: Instant) -> Vec<Sample> {
        // Written in the order of their ends, which is that of their beginnings give or take a timeout.
        let early = from.checked_sub(Duration::from_secs(1)).unwrap_or(from);
        let samples = locked(&self.0.samples);
        let recent = samples.iter().rev().take_while(|s| s.at + s.took >= early);
        let mut found: Vec<Sample> = recent.filter(|s| s.at >= from && s.at < to).cloned().collect();
        found.reverse();
        found
    }

    /// The requests that began at `from` or later, and have ended.
    pub fn since(&self, from: Instant) -> Vec<Sample> {
        self.between(from, Instant::now())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

async fn all_clients(plan: Plan, book: Arc<Book>) {
    let end = Instant::now() + plan.longest;
    let clients = plan.keep_alive + plan.fresh;
    locked(&book.pending).resize(clients, None);
    for index in 0..clients {
        let (plan, book) = (plan.clone(), book.clone());
        tokio::task::spawn_local(async move {
            // Not all at once: spread over one pace.
            tokio::time::sleep(plan.pace * index as u32 / clients as u32).await;
            client(&plan, index, end, &book).await;
        });
    }
    std::future::pending().await
}

async fn client(plan: &Plan, index: usize, end: Instant, book: &Book) {
    let fresh = index >= plan.keep_alive;
    let mut connection = None;
    let mut ticks = tokio::time::interval(plan.pace);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut before: Option<Arc<str>> = None;
    while Instant::now() < end {
        ticks.tick().await;
        let at = Instant::now();
        locked(&book.pending)[index] = Some(at);
        let first = connection.is_none();
        if first {
            before = None;
        }
        let asked = tokio::time::timeout(plan.timeout, ask(&mut connection, plan, fresh)).await;
        let result = match asked {
            Ok(Ok(Answer { status: 200, body, .. })) => Ok(Arc::from(body.split(' ').next().unwrap_or(""))),
            Ok(Ok(answer)) => Err(format!("status {}: {}", answer.status, answer.body).into()),
            Ok(Err((stage, e))) => Err(format!("{stage}: {}", reason(&e)).into()),
            Err(_) => Err(if first { "no answer on a new connection" } else { "no answer" }.into()),
        };
        if result.is_err() {
            connection = None;
        }
        let sample = Sample { at, took: at.elapsed(), fresh, first, result, before: before.clone() };
        before = sample.result.clone().ok();
        locked(&book.samples).push(sample);
        locked(&book.pending)[index] = None;
    }
}

async fn ask(
    connection: &mut Option<Connection>,
    plan: &Plan,
    fresh: bool,
) -> Result<Answer, (&'static str, io::Error)> {
    let mut open = match connection.take() {
        Some(open) => open,
        None => Connection::open(plan.target, plan.source).await.map_err(|e| ("connect", e))?,
    };
    let answer = open.get(fresh).await.map_err(|e| ("request", e))?;
    if !fresh && !answer.last {
        *connection = Some(open);
    }
    Ok(answer)
}

fn reason(e: &io::Error) -> String {
    match e.kind() {
        io::ErrorKind::ConnectionRefused => "refused".into(),
        io::ErrorKind::ConnectionReset => "reset".into(),
        io::ErrorKind::UnexpectedEof => "closed without an answer".into(),
        _ => e.to_string(),
    }
}
