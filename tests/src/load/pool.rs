//! A web replica's connections to its database, as apps keep them: a few, opened beforehand, used by turns, and
//! replaced one after the other as they grow old.
//!
//! Invariant: the name is asked for each connection that is opened; an old one goes only once there is a new one.
//! A request waits for a connection, never for a name.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::http::Connection;
use super::name::Name;

const SIZE: usize = 8;
/// How often one of them is replaced.
const TURN: Duration = Duration::from_millis(250);
const RETRY: Duration = Duration::from_millis(100);
/// How long the database may take.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct Pool {
    name: Name,
    /// The family that it is reached by.
    v4: bool,
    open: Cell<usize>,
    /// Those that nobody uses, the one that was used last at the end.
    idle: RefCell<VecDeque<Connection>>,
    freed: Notify,
}

impl Pool {
    /// Ready once the database is reached. Needs a local task set.
    pub async fn start(name: Name, v4: bool) -> Rc<Pool> {
        let (idle, freed) = (RefCell::default(), Notify::new());
        let pool = Rc::new(Pool { name, v4, open: Cell::new(0), idle, freed });
        tokio::task::spawn_local(keep(pool.clone()));
        let first = pool.take().await;
        pool.put(first);
        pool
    }

    /// What the database says.
    pub async fn ask(&self) -> io::Result<String> {
        let mut connection = timeout(PATIENCE, self.take()).await?;
        let said = timeout(PATIENCE, connection.get(false)).await.unwrap_or_else(|late| Err(late.into()));
        match said {
            Ok(_) => self.put(connection),
            Err(_) => self.open.update(|n| n - 1),
        }
        said.map(|answer| answer.body)
    }

    async fn take(&self) -> Connection {
        loop {
            let first = self.idle.borrow_mut().pop_front();
            match first {
                Some(connection) => return connection,
                None => self.freed.notified().await,
            }
        }
    }

    fn put(&self, connection: Connection) {
        self.idle.borrow_mut().push_back(connection);
        self.freed.notify_one();
    }
}

async fn keep(pool: Rc<Pool>) {
    loop {
        let opened = match pool.name.find(pool.v4).await {
            Ok(addr) => timeout(PATIENCE, Connection::open(addr, None)).await.unwrap_or_else(|late| Err(late.into())),
            Err(error) => Err(error),
        };
        let Ok(new) = opened else {
            sleep(RETRY).await;
            continue;
        };
        if pool.open.get() == SIZE {
            drop(pool.take().await);
        } else {
            pool.open.update(|n| n + 1);
        }
        pool.put(new);
        if pool.open.get() == SIZE {
            sleep(TURN).await;
        }
    }
}
