//! Where the agent can be watched: `web`.
//!
//! Invariant: who isn't on this node needs a token. Not here: what is to be seen, and what is in the files that are
//! named ([`crate::web`]).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use super::Places;
use super::at::{At, Log};

const KEYS: &[&str] = &["listen", "tokenFile", "tls"];
const TLS_KEYS: &[&str] = &["certificate", "key"];
const LISTEN: &str = "an address of this node and a port such as 127.0.0.1:9617 or [::]:9617";
const TOKEN: &str = "a file whose one line is a token";
const CERTIFICATE: &str = "a file of certificates in PEM, the server's own first";
const KEY: &str = "a file with the certificate's private key in PEM";
/// Where nothing is said.
const PORT: u16 = 9617;

/// What the configuration says of watching.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Web {
    pub listen: SocketAddr,
    /// A file with what those who ask have to know.
    pub token: Option<PathBuf>,
    pub tls: Option<Tls>,
}

/// Files in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Web {
    /// The key paths of files.
    pub const TOKEN: &str = "web.tokenFile";
    pub const CERTIFICATE: &str = "web.tls.certificate";
    pub const KEY: &str = "web.tls.key";

    /// Files are beside the one that names them.
    pub(super) fn beside(&mut self, beside: impl Fn(&Option<PathBuf>) -> Option<PathBuf>) {
        self.token = beside(&self.token);
        if let Some(tls) = &mut self.tls {
            for path in [&mut tls.certificate, &mut tls.key] {
                *path = beside(&Some(path.clone())).unwrap_or_default();
            }
        }
    }
}

pub(super) fn web(places: &mut Places, at: &At<'_>, log: &mut Log) -> Option<Web> {
    if !at.only(log, KEYS) {
        return None;
    }
    let local = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), PORT);
    let said = at.get("listen");
    let listen = match &said {
        Some(at) => at.value(log, LISTEN, endpoint)?,
        None => local,
    };
    let token = file(places, at, "tokenFile", TOKEN, log);
    if let Some(said) = said.filter(|_| token.is_none() && !listen.ip().is_loopback()) {
        let message = format!(
            "`{listen}` can be asked from elsewhere; expected web.tokenFile, too, or a loopback such as {local}"
        );
        log.error(&said, message);
    }
    let tls = at.get("tls").filter(|at| at.only(log, TLS_KEYS)).and_then(|at| {
        let certificate = at.require(log, "certificate", CERTIFICATE).is_some();
        let key = at.require(log, "key", KEY).is_some();
        let certificate = file(places, &at, "certificate", CERTIFICATE, log).filter(|_| certificate);
        let key = file(places, &at, "key", KEY, log).filter(|_| key);
        Some(Tls { certificate: certificate?, key: key? })
    });
    Some(Web { listen, token, tls })
}

fn file(places: &mut Places, at: &At<'_>, key: &str, right: &str, log: &mut Log) -> Option<PathBuf> {
    let at = at.get(key)?;
    places.note(&at);
    at.string(log, right).map(PathBuf::from)
}

fn endpoint(text: &str) -> Result<SocketAddr, String> {
    let Ok(endpoint) = text.parse::<SocketAddr>() else {
        return Err(if text.parse::<IpAddr>().is_ok() { "has no port".into() } else { String::new() });
    };
    match endpoint.port() {
        0 => Err("has port 0".into()),
        _ if endpoint.ip().is_multicast() => Err("is a multicast address".into()),
        _ => Ok(endpoint),
    }
}
