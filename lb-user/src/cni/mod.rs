//! The CNI plugin, `stellwerk-cni`: specification 1.1.0, and back to 0.3.1.
//!
//! Invariant: exactly one JSON value on standard output, a result or an error of the specification's form; only success
//! is silent where the specification asks for silence. The agent does the work ([`crate::pods`]); while it is away an
//! interface can still be given up, which is noted and caught up with. Not here: addresses and links.

mod bandwidth;
pub mod call;
pub mod install;
mod ports;
mod result;
#[cfg(test)]
mod tests;

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::{Value, json};

use self::call::{Call, Verb};
use crate::apply::Paths;
use crate::ipam::Key;
use crate::pods::spool;
use crate::pods::talk::{self, Answer, Failure, Reply, Request, code};

/// What networks are found by where the configuration doesn't say.
pub const PIN_PATH: &str = "/sys/fs/bpf/stellwerk";
const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
const NEWEST: &str = "1.1.0";

/// The whole of the program.
pub fn main() -> ExitCode {
    let mut text = Vec::new();
    let read = std::io::stdin().take(talk::LARGEST).read_to_end(&mut text);
    let io = |error| Failure::new(code::IO, "standard input can't be read", error);
    let done = read.map_err(io).map_err(|failure| (NEWEST.to_owned(), failure));
    let done = done.and_then(|_| run(&|name| std::env::var(name).ok(), &text));
    let (value, exit) = match done {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(value)) => (value, ExitCode::SUCCESS),
        Err((version, failure)) => (result::error(&version, &failure), ExitCode::FAILURE),
    };
    // Nobody is there to be told where this fails.
    _ = std::io::stdout().write_all(format!("{value:#}\n").as_bytes());
    exit
}

/// A call; an error with the version of its form.
fn run(env: &dyn Fn(&str) -> Option<String>, text: &[u8]) -> Result<Option<Value>, (String, Failure)> {
    let version = call::version_said(text).filter(|v| VERSIONS.contains(&v.as_str())).unwrap_or(NEWEST.into());
    let call = call::read(env, text).map_err(|failure| (version.clone(), failure))?;
    if call.verb == Verb::Version {
        return Ok(Some(json!({ "cniVersion": version, "supportedVersions": VERSIONS })));
    }
    let answer = ask(&call).map_err(|failure| (version.clone(), failure))?;
    Ok(match answer {
        Reply::Made(made) => Some(result::made(&version, &call, &made)),
        Reply::Done { .. } => None,
    })
}

pub fn request(call: &Call) -> Request {
    let key = call.key.clone();
    match &call.verb {
        Verb::Add => Request::Add {
            key,
            netns: call.netns.clone().unwrap_or_default(),
            namespace: call.namespace.clone(),
            pod: call.pod.clone(),
            addresses: call.addresses.clone(),
            ports: call.ports.clone(),
            bandwidth: call.bandwidth,
        },
        Verb::Del => Request::Del { key },
        Verb::Check => {
            Request::Check { key, netns: call.netns.clone().unwrap_or_default(), addresses: call.before.clone() }
        }
        Verb::Gc => Request::Gc { valid: call.valid.clone() },
        Verb::Status | Verb::Version => Request::Status,
    }
}

fn ask(call: &Call) -> Answer {
    let paths = Paths::new(call.pins.clone());
    let request = request(call);
    let socket = paths.pods();
    let error = match talk::ask(&socket, &request) {
        Ok(answer) => return answer,
        Err(error) => format!("{}: {error}", socket.display()),
    };
    match call.verb {
        Verb::Del => ended(&paths, &call.key, &request),
        Verb::Status => Err(Failure::new(code::UNAVAILABLE, "the agent of stellwerk is away", error)),
        _ => Err(Failure::new(code::LATER, "the agent of stellwerk is away, try again later", error)),
    }
}

/// Notes what has ended. An agent that started meanwhile may have looked for notes before: it is asked again.
fn ended(paths: &Paths, key: &Key, request: &Request) -> Answer {
    let io = |error| Failure::new(code::IO, "the end of an interface can't be noted", format!("{error:#}"));
    spool::note(&paths.spool(), key).map_err(io)?;
    talk::ask(&paths.pods(), request).unwrap_or(Ok(Reply::Done { released: Vec::new() }))
}

/// Where the agent of a network is found.
fn pins(conf: &Value) -> Result<PathBuf, Failure> {
    match conf.get("pinPath") {
        None => Ok(PIN_PATH.into()),
        Some(Value::String(path)) if path.starts_with('/') => Ok(path.into()),
        Some(other) => {
            let details = format!("pinPath: {other}; expected the agent's --pin-path, such as {PIN_PATH:?}");
            Err(Failure::new(code::CONFIG, "invalid network configuration", details))
        }
    }
}
