//! The listener: sockets, TLS, and how long anyone may take.
//!
//! Invariant: it has a thread of its own; whoever asks holds a bounded share of it, for a bounded time. A socket that
//! can't be had is tried again, and files that are exchanged count within half a minute.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{error, info, warn};

use super::answer::{self, Asked};
use super::{Secrets, Settings, Watched, history};
use crate::agent::Vitals;
use crate::apply::Paths;

const RETRY: Duration = Duration::from_secs(1);
/// Connections at once.
const CONNECTIONS: usize = 64;
/// How long a request, or the next one, may take to come, and a handshake.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a connection may last; who watches on begins another one.
const LONGEST: Duration = Duration::from_secs(600);
/// How often the files are looked at again.
const AGAIN: Duration = Duration::from_secs(30);

/// The thread, as long as it is held.
#[derive(Debug)]
pub struct Server {
    settings: watch::Sender<Option<Settings>>,
}

impl Server {
    /// Begins; nobody is answered before there are settings.
    pub fn start(paths: &Paths, vitals: &Arc<Vitals>) -> Result<Server> {
        let (settings, settings_by) = watch::channel(None);
        let watched = Arc::new(Watched {
            paths: paths.clone(),
            vitals: vitals.clone(),
            cache: super::cache::Cache::new(paths),
            history: history::History::default(),
            requests: super::metrics::Requests::default(),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(2).build()?;
        let work = move || runtime.block_on(run(watched, settings_by));
        thread::Builder::new().name("web".into()).spawn(work).context("a thread for those who watch")?;
        Ok(Server { settings })
    }

    pub fn configure(&self, settings: Option<Settings>) {
        self.settings.send_if_modified(|old| {
            let other = *old != settings;
            if other {
                *old = settings;
            }
            other
        });
    }
}

async fn run(watched: Arc<Watched>, mut settings: watch::Receiver<Option<Settings>>) {
    let mut tasks = JoinSet::new();
    loop {
        let now = settings.borrow_and_update().clone();
        // The socket is to be free before another one wants the same.
        tasks.shutdown().await;
        if let Some(now) = now {
            let this = watched.clone();
            tasks.spawn(async move { listen(this, now).await });
            let this = watched.clone();
            tasks.spawn(async move { remember(&this).await });
        }
        tokio::select! {
            changed = settings.changed() => if changed.is_err() {
                return;
            },
            // None of them ends by itself.
            Some(ended) = tasks.join_next() => {
                error!("a part of what answers those who watch has ended ({ended:?}); all of it begins anew");
                sleep(RETRY).await;
            }
        }
    }
}

async fn remember(watched: &Watched) {
    let mut every = interval(history::EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        watched.history.sample(&watched.cache).await;
        watched.cache.forget().await;
    }
}

/// Listens and answers, for ever.
async fn listen(watched: Arc<Watched>, settings: Settings) {
    let listener = bound(settings.web.listen).await;
    let scheme = if settings.web.tls.is_some() { "https" } else { "http" };
    info!("the node can be watched at {scheme}://{}/", settings.web.listen);
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut secrets = None;
    let mut again = interval(AGAIN);
    let mut tasks = JoinSet::new();
    loop {
        let turn = tokio::select! {
            _ = again.tick() => {
                match Secrets::read(&settings.web) {
                    Ok(read) => secrets = Some(read),
                    Err(wrong) => error!("{}: {}; what was read before stays", wrong.key, wrong.message),
                }
                continue;
            }
            Ok(turn) = room.clone().acquire_owned(), if secrets.is_some() => turn,
        };
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = again.tick() => {
                again.reset_immediately();
                continue;
            }
        };
        while tasks.try_join_next().is_some() {}
        match (stream, &secrets) {
            (Ok((stream, _)), Some(secrets)) => {
                let token = secrets.token.clone();
                let asked = Asked { watched: watched.clone(), settings: settings.clone(), token };
                _ = tasks.spawn(connection(stream, secrets.clone(), asked, turn));
            }
            // Of that connection, or too many open files.
            _ => sleep(Duration::from_millis(100)).await,
        }
    }
}

/// A socket, however often it takes.
async fn bound(at: SocketAddr) -> TcpListener {
    let mut said = String::new();
    loop {
        match TcpListener::bind(at).await {
            Ok(listener) => return listener,
            Err(why) if why.to_string() != said => {
                warn!("cannot listen at {at} for those who watch: {why}; trying again every second");
                said = why.to_string();
            }
            Err(_) => {}
        }
        sleep(RETRY).await;
    }
}

async fn connection(stream: TcpStream, secrets: Secrets, asked: Asked, turn: OwnedSemaphorePermit) {
    _ = stream.set_nodelay(true);
    match secrets.tls {
        None => serve(stream, &asked).await,
        Some(tls) => {
            if let Ok(Ok(stream)) = timeout(PATIENCE, tls.accept(stream)).await {
                serve(stream, &asked).await;
            }
        }
    }
    drop(turn);
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, asked: &Asked) {
    let answer = service_fn(|request| async move { Ok::<_, Infallible>(answer::answer(asked, &request).await) });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(stream), answer);
    let mut connection = pin!(connection);
    // Whoever asks badly or too slowly has no answer; what is being answered is brought to its end.
    if timeout(LONGEST, connection.as_mut()).await.is_err() {
        connection.as_mut().graceful_shutdown();
        _ = timeout(PATIENCE, connection).await;
    }
}
