//! A replica of the app: answers with its name, and, in the web tier, with what the database says.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::net::TcpListener;

use super::http::Connection;
use super::name::Name;
use super::pool::Pool;

/// What a replica is.
#[derive(Clone, Debug)]
pub struct Replica {
    pub name: String,
    pub listen: Vec<SocketAddr>,
    /// What is asked for each request, by the family that the client used.
    pub database: Option<Name>,
}

/// What its connections share.
#[derive(Debug, Default)]
struct Shared {
    /// Every answer is its connection's last.
    leaving: Cell<bool>,
    open: Cell<u32>,
    last_change: RefCell<Option<Instant>>,
}

/// A replica that listens.
#[derive(Debug)]
pub struct Serving {
    replica: Rc<Replica>,
    /// By family.
    pools: Vec<(bool, Rc<Pool>)>,
    listeners: Vec<TcpListener>,
    shared: Rc<Shared>,
}

impl Replica {
    /// Opens the sockets, once the database is reached. Needs a local task set.
    pub async fn listen(self) -> Result<Serving> {
        let mut pools = Vec::new();
        if let Some(name) = &self.database {
            for v4 in [true, false] {
                pools.push((v4, Pool::start(name.clone(), v4).await));
            }
        }
        let mut listeners = Vec::new();
        for addr in &self.listen {
            listeners
                .push(TcpListener::bind(addr).await.with_context(|| format!("{}: listening on {addr}", self.name))?);
        }
        Ok(Serving { replica: Rc::new(self), pools, listeners, shared: Rc::default() })
    }
}

impl Serving {
    /// Serves for ever.
    pub async fn serve(self) {
        for listener in self.listeners {
            let v4 = listener.local_addr().is_ok_and(|at| at.is_ipv4());
            let pool = self.pools.iter().find(|(of, _)| *of == v4).map(|(_, pool)| pool.clone());
            tokio::task::spawn_local(accept(listener, self.replica.clone(), pool, self.shared.clone()));
        }
        std::future::pending().await
    }

    /// Serves until `leave` is done, and from there on until the connections have ended and for
    /// `quiet` no new one came, at most for `patience`.
    pub async fn serve_until(self, leave: impl Future<Output = ()>, quiet: Duration, patience: Duration) {
        let shared = self.shared.clone();
        let serve = async move {
            leave.await;
            shared.leaving.set(true);
            shared.last_change.replace(Some(Instant::now()));
            let end = Instant::now() + patience;
            while Instant::now() < end {
                tokio::time::sleep(Duration::from_millis(20)).await;
                let still = shared.last_change.borrow().is_none_or(|t| t.elapsed() >= quiet);
                if shared.open.get() == 0 && still {
                    break;
                }
            }
        };
        tokio::select! { () = self.serve() => (), () = serve => () }
    }
}

async fn accept(listener: TcpListener, replica: Rc<Replica>, database: Option<Rc<Pool>>, shared: Rc<Shared>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let (replica, database, shared) = (replica.clone(), database.clone(), shared.clone());
        tokio::task::spawn_local(async move {
            shared.open.set(shared.open.get() + 1);
            // A client that goes away ends its connection, not the replica.
            let _ = converse(Connection::new(stream), &replica.name, database.as_deref(), &shared).await;
            shared.open.set(shared.open.get() - 1);
            shared.last_change.replace(Some(Instant::now()));
        });
    }
}

async fn converse(mut client: Connection, name: &str, database: Option<&Pool>, shared: &Shared) -> std::io::Result<()> {
    while let Some(request) = client.request().await? {
        let (status, body) = match database {
            None => ("200 OK", name.to_owned()),
            Some(database) => match database.ask().await {
                Ok(row) => ("200 OK", format!("{name} {row}")),
                Err(e) => ("502 Bad Gateway", format!("{name}: the database: {e}")),
            },
        };
        // Read late: what is said while the database was asked counts.
        let last = request.last || shared.leaving.get();
        client.answer(status, &body, last).await?;
        if last {
            let _ = tokio::time::timeout(Duration::from_secs(2), client.finish()).await;
            return Ok(());
        }
    }
    Ok(())
}
