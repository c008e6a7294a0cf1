//! What the plugin and the command line ask of the agent, and what it answers: one JSON value each.
//!
//! Invariant: a call that gets no answer may be made again: each brings about a state, whatever was before.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ipam::{Bandwidth, HostPort, Key};

/// Longer than any answer takes: a pod's interface waits at most [`super::PATIENCE`] for its programs.
const PATIENCE: Duration = Duration::from_secs(60);
/// A request or an answer is not larger.
pub const LARGEST: u64 = 8 << 20;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    Add {
        key: Key,
        netns: PathBuf,
        namespace: String,
        pod: String,
        /// That the runtime asks for.
        addresses: Vec<IpAddr>,
        #[serde(default)]
        ports: Vec<HostPort>,
        #[serde(default)]
        bandwidth: Bandwidth,
    },
    Del {
        key: Key,
    },
    /// Whether it is as it was made, with these addresses.
    Check {
        key: Key,
        netns: PathBuf,
        addresses: Vec<IpAddr>,
    },
    Status,
    /// The runtime has these and no others.
    Gc {
        valid: Vec<Key>,
    },
    /// By command: all of a container, or of a pod (`namespace/name`).
    Release {
        of: String,
    },
}

impl Request {
    pub fn only_reads(&self) -> bool {
        match self {
            Request::Check { .. } | Request::Status => true,
            Request::Add { .. } | Request::Del { .. } | Request::Gc { .. } | Request::Release { .. } => false,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    Made(Made),
    Done { released: Vec<Key> },
}

/// An interface that pods use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Made {
    pub host: String,
    pub host_mac: String,
    pub mac: String,
    pub mtu: u32,
    pub addresses: Vec<IpAddr>,
    /// Of the cluster.
    pub nameservers: Vec<IpAddr>,
}

/// An error as the CNI has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    pub code: u32,
    pub msg: String,
    pub details: String,
}

/// The specification's codes, and from 100 on our own.
pub mod code {
    pub const INCOMPATIBLE: u32 = 1;
    pub const UNSUPPORTED: u32 = 2;
    pub const UNKNOWN: u32 = 3;
    pub const ENVIRONMENT: u32 = 4;
    pub const IO: u32 = 5;
    pub const DECODE: u32 = 6;
    pub const CONFIG: u32 = 7;
    pub const LATER: u32 = 11;
    pub const UNAVAILABLE: u32 = 50;
    /// No address, or not the one that is asked for.
    pub const ADDRESS: u32 = 100;
    /// The pod has such an interface.
    pub const EXISTS: u32 = 101;
    /// The kernel refused a step, which was undone.
    pub const KERNEL: u32 = 102;
    /// It isn't as it was made.
    pub const DIFFERS: u32 = 103;
    /// A host port is another's, or can't be served.
    pub const PORT: u32 = 104;
    /// Who asks may not.
    pub const FORBIDDEN: u32 = 105;
}

impl Failure {
    pub fn new(code: u32, msg: impl Into<String>, details: impl fmt::Display) -> Failure {
        Failure { code, msg: msg.into(), details: details.to_string() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure { msg, details, .. } = self;
        if details.is_empty() { write!(f, "{msg}") } else { write!(f, "{msg}: {details}") }
    }
}

pub type Answer = Result<Reply, Failure>;

/// Asks the agent. An error: it is away.
pub fn ask(socket: &Path, request: &Request) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(&serde_json::to_vec(request)?)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut text = Vec::new();
    stream.take(LARGEST).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}
