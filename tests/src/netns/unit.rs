//! The package's systemd unit, as far as tests run the agent by it, and the service manager that the agent talks to.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Ns;

const UNIT: &str = include_str!("../../../packaging/stellwerk.service");

/// The value of a directive that is there once.
pub fn directive(key: &str) -> Result<&'static str> {
    let mut all = UNIT.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    match (all.next(), all.next()) {
        (Some(value), None) => Ok(value),
        (value, _) => bail!("{key} of the unit: expected it once, found {value:?} first"),
    }
}

/// Its capabilities, such as `CAP_BPF`.
pub fn capabilities() -> Result<Vec<&'static str>> {
    Ok(directive("CapabilityBoundingSet")?.split_whitespace().collect())
}

/// The words before a command that leave it these capabilities of root's and no more, and no way to new ones, as
/// systemd would start it.
pub fn limits(capabilities: &[&str]) -> Vec<String> {
    let set: String =
        capabilities.iter().map(|name| format!(",+{}", name.to_lowercase().replace("cap_", ""))).collect();
    ["setpriv", &format!("--bounding-set=-all{set}"), "--inh-caps=-all", "--no-new-privs", "--"].map(Into::into).into()
}

pub fn command(ns: &Ns, capabilities: &[&str], program: &Path) -> Command {
    let words = limits(capabilities);
    let mut command = ns.command(&words[0]);
    command.args(&words[1..]).arg(program);
    command
}

/// The socket of a service manager.
#[derive(Debug)]
pub struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    said: Vec<String>,
}

impl Manager {
    pub fn new(path: PathBuf) -> Result<Manager> {
        let socket = UnixDatagram::bind(&path).with_context(|| path.display().to_string())?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        Ok(Manager { socket, path, said: Vec::new() })
    }

    /// Tells a command where to say what becomes of it, and how often it is to show that it lives.
    pub fn listen(&self, command: &mut Command, watchdog: Duration) {
        command.env("NOTIFY_SOCKET", &self.path).env("WATCHDOG_USEC", watchdog.as_micros().to_string());
    }

    /// Waits for a line, such as `READY=1`, that comes behind those that were waited for before. Lines are of
    /// messages; what came before the line is given.
    pub fn wait(&mut self, line: &str, patience: Duration) -> Result<Vec<String>> {
        let end = Instant::now() + patience;
        loop {
            if let Some(at) = self.said.iter().position(|said| said == line) {
                let mut before: Vec<String> = self.said.drain(..=at).collect();
                before.pop();
                return Ok(before);
            }
            if Instant::now() > end {
                bail!("no {line} within {patience:?}, but {:?}", self.said);
            }
            let mut bytes = [0; 4_096];
            if let Ok(length) = self.socket.recv(&mut bytes) {
                self.said.extend(String::from_utf8_lossy(&bytes[..length]).lines().map(str::to_owned));
            }
        }
    }
}
