//! A small Kubernetes API server in this process, with faults on demand: list, watch and the status of services, as
//! the published API conventions have them.
//!
//! Invariant: what it says of its objects is true of some moment, whichever faults are set. Deliberately not here:
//! schemas, admission, and everything that no test asks for.

mod answer;
mod apply;
mod faults;
mod store;
mod watching;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

pub use self::faults::{Faults, Streams};
use self::store::{KINDS, Store};

/// A request that was made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub query: Vec<(String, String)>,
}

impl Asked {
    pub fn says(&self, key: &str) -> Option<&str> {
        self.query.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }
}

/// The server; it ends when it is dropped.
#[derive(Debug)]
pub struct FakeApi {
    addr: SocketAddr,
    server: Arc<Server>,
    orders: mpsc::UnboundedSender<Order>,
}

/// The connections are all closed once the sender is told.
type Order = (bool, oneshot::Sender<()>);

#[derive(Debug)]
struct Server {
    store: Mutex<Store>,
    faults: Mutex<Faults>,
    asked: Mutex<Vec<Asked>>,
    /// Something is to be looked at.
    changed: watch::Sender<u64>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    fn wake(&self) {
        self.changed.send_modify(|count| *count += 1);
    }
}

impl FakeApi {
    /// On a port of loopback.
    pub fn start() -> Result<FakeApi> {
        FakeApi::serve(TcpListener::bind("127.0.0.1:0").context("a port for the API")?)
    }

    /// On a socket that listens, in whichever namespace that is.
    pub fn serve(listener: TcpListener) -> Result<FakeApi> {
        let addr = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let server = Arc::new(Server {
            store: Mutex::default(),
            faults: Mutex::default(),
            asked: Mutex::default(),
            changed: watch::Sender::new(0),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (orders, ordered) = mpsc::unbounded_channel();
        let serving = server.clone();
        std::thread::spawn(move || runtime.block_on(accept(listener, serving, ordered)));
        Ok(FakeApi { addr, server, orders })
    }

    /// Whether it answers. Away, every connection is closed, those that come too.
    pub fn set_away(&self, away: bool) {
        let (done, told) = oneshot::channel();
        if self.orders.send((away, done)).is_ok() {
            _ = told.blocking_recv();
        }
    }

    pub fn change_faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut lock(&self.server.faults));
        self.server.wake();
    }

    /// Creates an object, or puts it in the place of that of its name.
    pub fn put(&self, object: Value) {
        lock(&self.server.store).put(object);
        self.server.wake();
    }

    /// Several, so that no answer has but some of them.
    pub fn put_all(&self, objects: impl IntoIterator<Item = Value>) {
        let mut store = lock(&self.server.store);
        objects.into_iter().for_each(|object| store.put(object));
        drop(store);
        self.server.wake();
    }

    pub fn delete(&self, plural: &str, namespace: &str, name: &str) {
        lock(&self.server.store).delete(plural, namespace, name);
        self.server.wake();
    }

    /// One object as it is.
    pub fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        lock(&self.server.store).get(plural, namespace, name).cloned()
    }

    /// All objects of a kind as they are.
    pub fn all(&self, plural: &str) -> Vec<Value> {
        lock(&self.server.store).list(plural, None)
    }

    /// Forgets what was before: older versions and lists that have begun can't be continued.
    pub fn forget(&self) {
        lock(&self.server.store).forget();
        self.server.wake();
    }

    /// Ends all open watches with a word that they are too old.
    pub fn expire_watches(&self) {
        self.change_faults(|faults| faults.expired += 1);
    }

    /// Cuts all open watches in the middle of a line.
    pub fn cut_watches(&self) {
        self.change_faults(|faults| faults.cut += 1);
    }

    /// The requests so far.
    pub fn asked(&self) -> Vec<Asked> {
        lock(&self.server.asked).clone()
    }

    pub fn forget_asked(&self) {
        lock(&self.server.asked).clear();
    }

    /// Its server, for a kubeconfig.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Writes a kubeconfig of one context, `fake`.
    pub fn kubeconfig(&self, folder: &Path) -> Result<PathBuf> {
        let path = folder.join("kubeconfig");
        let text = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "fake", "cluster": { "server": self.url() } }],
            "users": [{ "name": "agent", "user": { "token": "secret" } }],
            "contexts": [{ "name": "fake", "context": { "cluster": "fake", "user": "agent" } }],
            "current-context": "fake",
        });
        std::fs::write(&path, text.to_string()).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    /// Writes all its objects as manifests, a file each.
    pub fn manifests(&self, folder: &Path) -> Result<()> {
        for kind in KINDS {
            for object in self.all(kind.plural) {
                let text = |key: &str| object["metadata"][key].as_str().unwrap_or("-").to_owned();
                let name = format!("{}.{}.{}.json", kind.plural, text("namespace"), text("name"));
                std::fs::write(folder.join(name), object.to_string())?;
            }
        }
        Ok(())
    }
}

async fn accept(listener: TcpListener, server: Arc<Server>, mut ordered: mpsc::UnboundedReceiver<Order>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    let (mut connections, mut away) = (JoinSet::new(), false);
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                if away {
                    continue;
                }
                _ = stream.set_nodelay(true);
                let server = server.clone();
                let service = service_fn(move |request| answer::answer(server.clone(), request));
                // It ends as the client or a fault will have it.
                connections.spawn(async move { _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await });
            }
            order = ordered.recv() => {
                let Some((go, done)) = order else { return };
                away = go;
                if away {
                    connections.shutdown().await;
                }
                _ = done.send(());
            }
            _ = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}
