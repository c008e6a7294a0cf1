//! The socket at which the plugin and the command line ask: one request and one answer a connection.
//!
//! Invariant: who may ask for what, [`crate::peers`] says. Whoever is slow or says what can't be understood holds nobody up.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use tracing::{info, warn};

use super::keeper::{Added, New};
use super::talk::{Answer, Failure, LARGEST, Reply, Request, code};
use super::{PATIENCE, Shared, lock};
use crate::ipam::{Key, Lease};
use crate::peers::Right;

const TIDY: Duration = Duration::from_secs(10);
/// To be asked.
const HURRY: Duration = Duration::from_secs(5);

/// Listens, and tidies up from time to time, for as long as the agent runs.
pub fn start(shared: &Arc<Shared>) -> Result<()> {
    let path = shared.paths.pods();
    let listener = listen(shared).with_context(|| format!("listening at {}", path.display()))?;
    let (one, other) = (shared.clone(), shared.clone());
    thread::Builder::new().name("pods".into()).spawn(move || {
        for stream in listener.incoming().flatten() {
            let shared = one.clone();
            let started = thread::Builder::new().spawn(move || serve(&shared, stream));
            if let Err(error) = started {
                warn!("a call of the CNI plugin is not served: {error}");
            }
        }
    })?;
    thread::Builder::new().name("pods-tidy".into()).spawn(move || {
        loop {
            thread::sleep(TIDY);
            other.keeper.tidy();
        }
    })?;
    Ok(())
}

/// A socket that nobody could connect to before its rights were set.
fn listen(shared: &Shared) -> Result<UnixListener> {
    let path = shared.paths.pods();
    let beside = path.with_extension("new");
    _ = fs::remove_file(&beside);
    let listener = UnixListener::bind(&beside)?;
    shared.peers.admit(&beside, &path)?;
    fs::rename(&beside, &path)?;
    Ok(listener)
}

fn serve(shared: &Shared, mut stream: UnixStream) {
    let asked = || -> Result<Request> {
        stream.set_read_timeout(Some(HURRY))?;
        stream.set_write_timeout(Some(HURRY))?;
        let mut text = Vec::new();
        (&stream).take(LARGEST).read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    };
    let answer = match asked() {
        Ok(request) => allowed(shared, &stream, &request).and_then(|()| answer(shared, &request)),
        Err(error) => Err(Failure::new(code::DECODE, "not a request of the CNI plugin", format!("{error:#}"))),
    };
    let text = serde_json::to_vec(&answer).unwrap_or_default();
    // Whoever has gone meanwhile asks again, or gives up what was made.
    _ = stream.write_all(&text);
}

/// Readers may ask for what changes nothing.
fn allowed(shared: &Shared, stream: &UnixStream, request: &Request) -> Result<(), Failure> {
    let refuse = |why: String| {
        warn!("a call of the CNI plugin is refused: {why}");
        Failure::new(code::FORBIDDEN, "not allowed", why)
    };
    match shared.peers.right(stream) {
        Ok(Ok(Right::All)) => Ok(()),
        Ok(Ok(Right::Read)) if request.only_reads() => Ok(()),
        Ok(Ok(Right::Read)) => Err(refuse("members of `control.readers` may only ask for what changes nothing".into())),
        Ok(Err(refused)) => Err(refuse(refused.to_string())),
        Err(error) => Err(refuse(format!("the kernel doesn't say who asks: {error}"))),
    }
}

fn answer(shared: &Shared, request: &Request) -> Answer {
    let done = |released| Ok(Reply::Done { released });
    match request {
        Request::Add { key, netns, namespace, pod, addresses, ports, bandwidth } => {
            add(shared, &New { key, netns, namespace, pod, addresses, ports, bandwidth: *bandwidth })
        }
        Request::Del { key } => {
            let had = shared.keeper.del(key)?;
            done(if had { vec![key.clone()] } else { Vec::new() })
        }
        Request::Check { key, netns, addresses } => {
            let services = shared.keeper.check(key, netns, addresses)?;
            let refused = &lock(&shared.served).refused;
            match services.iter().find_map(|name| refused.get(name)) {
                None => done(Vec::new()),
                Some(why) => Err(Failure::new(code::DIFFERS, "a host port of the pod is not served", why)),
            }
        }
        Request::Status => {
            shared.keeper.ready().map_err(|why| Failure::new(code::UNAVAILABLE, "pods get no interfaces", why))?;
            done(Vec::new())
        }
        Request::Gc { valid } => {
            let released = shared.keeper.release(|key, _| !valid.contains(key))?;
            released.iter().for_each(|key| info!("{key} is no longer known to the runtime, and was removed"));
            done(released)
        }
        Request::Release { of } => {
            let is = |key: &Key, lease: &Lease| {
                key.container == *of || of.split_once('/') == Some((&lease.namespace, &lease.pod))
            };
            let released = shared.keeper.release(is)?;
            released.iter().for_each(|key| info!("{key} was released by command"));
            done(released)
        }
    }
}

/// Makes an interface, and waits while the agent's loop brings its programs into force.
fn add(shared: &Shared, new: &New<'_>) -> Answer {
    let Added { made, link, services, revision } = shared.keeper.add(new)?;
    let waited = shared.wait(link, revision);
    let refused = waited.as_ref().and_then(|refused| services.iter().find_map(|name| refused.get(name)));
    if let (Some(_), None) = (&waited, refused) {
        return Ok(Reply::Made(made));
    }
    shared.keeper.undo(new.key);
    if let Some(why) = refused {
        return Err(Failure::new(code::PORT, "no host port for the pod", why));
    }
    let waited = format!("the programs of {} are not in force after {} s", made.host, PATIENCE.as_secs());
    Err(Failure::new(code::LATER, "the pod's interface isn't served yet, try again later", waited))
}
