//! The real agent, as a process in the device's namespace, and questions to it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::clean::Proc;
use super::{Lab, Ns};

/// An agent with a configuration file and a pin folder; killed when dropped.
#[derive(Debug)]
pub struct Agent {
    ns: Ns,
    binary: PathBuf,
    /// Its programs, where they are others than those of all tests.
    object: Option<PathBuf>,
    config: PathBuf,
    pins: PathBuf,
    log: PathBuf,
    process: Option<Proc>,
    /// How often one was ready before this one's start.
    readied: usize,
}

/// Asks the pinned maps by the command line, whether the agent runs or not.
#[derive(Clone, Debug)]
pub struct Asker {
    ns: Ns,
    binary: PathBuf,
    pins: PathBuf,
}

impl Asker {
    /// Runs `stellwerk WORD --pin-path …` in the device's namespace: what it printed.
    pub fn command(&self, words: &[&str]) -> Result<String> {
        let mut command = self.ns.command(&self.binary);
        command.args(words).arg("--pin-path").arg(&self.pins);
        let out = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().context("starting stellwerk")?;
        if !out.status.success() {
            bail!("stellwerk {}: {}", words.join(" "), String::from_utf8_lossy(&out.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// A listing's rows.
    pub fn rows(&self, listing: &str) -> Result<Vec<Value>> {
        let text = self.command(&[listing, "--json"])?;
        serde_json::from_str(&text).with_context(|| format!("stellwerk {listing} --json printed:\n{text}"))
    }
}

impl Agent {
    /// An agent that doesn't run yet.
    pub fn new(lab: &Lab, ns: &Ns, config: &Path) -> Result<Agent> {
        Ok(Agent {
            ns: ns.clone(),
            binary: binary()?,
            object: None,
            config: config.to_owned(),
            pins: lab.pins(),
            log: lab.dir().join("agent.log"),
            process: None,
            readied: 0,
        })
    }

    /// One of several of a lab.
    pub fn named(self, name: &str) -> Agent {
        let pins = self.pins.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let log = self.log.with_file_name(format!("agent-{name}.log"));
        Agent { pins: self.pins.with_file_name(format!("{pins}-{name}")), log, ..self }
    }

    /// Where its maps and programs are pinned.
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// The same with its pins elsewhere.
    pub fn pinned_at(self, pins: PathBuf) -> Agent {
        Agent { pins, ..self }
    }

    /// Another program in its place, which starts it in its own way.
    pub fn started_by(&mut self, program: PathBuf) -> PathBuf {
        std::mem::replace(&mut self.binary, program)
    }

    /// From its next start on it is this version.
    pub fn become_version(&mut self, version: &Version) {
        self.binary.clone_from(&version.binary);
        self.object.clone_from(&version.object);
    }

    /// Starts it; the log goes on where it was.
    pub fn start(&mut self) -> Result<()> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log).context("the agent's log")?;
        let mut command = self.ns.command(&self.binary);
        command.envs(self.object.iter().map(|object| ("STELLWERK_EBPF_OBJECT", object)));
        command.arg("run").arg("--config").arg(&self.config).arg("--pin-path").arg(&self.pins);
        command.stdout(log.try_clone()?).stderr(log);
        self.readied = self.readied();
        self.process = Some(Proc::start(&mut command)?);
        Ok(())
    }

    /// Starts it and waits until it is ready.
    pub fn start_ready(&mut self) -> Result<()> {
        self.start()?;
        self.ready()
    }

    /// Waits until it says, since its last start, that its tables and programs are in force. (The tables alone can be
    /// read earlier, while packets still take the kernel's ways.)
    pub fn ready(&mut self) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(60);
        while self.readied() == self.readied {
            super::clean::check()?;
            if !self.running() || Instant::now() >= end {
                bail!("the agent isn't ready after at most 60 s:\n{}", self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// How often an agent was ready so far.
    fn readied(&self) -> usize {
        self.log().matches("ready: revision").count()
    }

    /// SIGKILL: no word of farewell.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// SIGTERM; true if it ended by itself, with success.
    pub fn stop(&mut self) -> bool {
        self.process.take().is_some_and(|process| process.stop(Duration::from_secs(5)))
    }

    /// SIGHUP: read the configuration again.
    pub fn reload(&self) -> Result<()> {
        self.signal(Signal::SIGHUP)
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.as_ref().context("the agent doesn't run")?.signal(signal)
    }

    /// Its process.
    pub fn id(&self) -> Result<u32> {
        Ok(self.process.as_ref().context("the agent doesn't run")?.id())
    }

    pub fn running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Proc::alive)
    }

    /// Questions without the agent's process: they go to the pinned maps.
    pub fn asker(&self) -> Asker {
        Asker { ns: self.ns.clone(), binary: self.binary.clone(), pins: self.pins.clone() }
    }

    /// See [`Asker::command`].
    pub fn command(&self, words: &[&str]) -> Result<String> {
        self.asker().command(words)
    }

    /// See [`Asker::rows`].
    pub fn rows(&self, listing: &str) -> Result<Vec<Value>> {
        self.asker().rows(listing)
    }

    /// Waits until the rows of a listing are as wanted.
    pub fn wait(&mut self, listing: &str, wanted: impl Fn(&[Value]) -> bool) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(60);
        let mut last = String::new();
        while Instant::now() < end {
            super::clean::check()?;
            if !self.running() {
                bail!("the agent ended:\n{}", self.log_tail());
            }
            match self.rows(listing) {
                Ok(rows) if wanted(&rows) => return Ok(()),
                Ok(rows) => last = serde_json::to_string_pretty(&rows)?,
                Err(e) => last = format!("{e:#}"),
            }
            std::thread::sleep(Duration::from_millis(30));
        }
        bail!("stellwerk {listing} is not as wanted after 60 s:\n{last}\nthe agent's log:\n{}", self.log_tail())
    }

    /// A count from `drops --json`, by its label; 0 if it isn't listed.
    pub fn dropped(&self, label: &str) -> Result<u64> {
        Ok(counts(&self.rows("drops")?).into_iter().find(|(name, _)| name == label).map_or(0, |(_, n)| n))
    }

    /// All log lines so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The log's last lines, for messages.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

/// Labels and counts of the rows of `drops --json`.
pub fn counts(rows: &[Value]) -> Vec<(String, u64)> {
    let row = |row: &Value| {
        let label = ["reason", "label", "name"].iter().find_map(|key| row.get(key)?.as_str())?;
        let count = ["packets", "count"].iter().find_map(|key| row.get(key)?.as_u64())?;
        Some((label.to_owned(), count))
    };
    rows.iter().filter_map(row).collect()
}

/// The agent's program: `STELLWERK_BIN`, or `stellwerk` beside the running program or in a folder
/// above it (tests run from `deps`).
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("STELLWERK_BIN") {
        return Ok(path.into());
    }
    let me = std::env::current_exe().context("this program's path")?;
    let found = me.ancestors().skip(1).take(2).map(|dir| dir.join("stellwerk")).find(|path| path.is_file());
    found.context("no `stellwerk` beside this program: build it (cargo xtask build) or name it in STELLWERK_BIN")
}

/// An agent, and its programs where they are not those of all tests.
#[derive(Clone, Debug)]
pub struct Version {
    pub binary: PathBuf,
    pub object: Option<PathBuf>,
}

impl Version {
    /// This one.
    pub fn own() -> Result<Self> {
        Ok(Version { binary: binary()?, object: None })
    }

    /// One whose tables lie otherwise (`xtask/src/next.rs`).
    pub fn next() -> Result<Self> {
        let path = std::env::var_os("STELLWERK_NEXT").map(PathBuf::from);
        let binary = match path {
            Some(path) => path,
            None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/next/stellwerk"),
        };
        ensure!(binary.exists(), "{}: `cargo xtask build --next` makes it", binary.display());
        let object = binary.with_file_name("source/target/bpf/stellwerk.o");
        Ok(Version { binary, object: Some(object) })
    }
}

/// Runs `stellwerk check FILE`: whether it is content, and what it says.
pub fn check(file: &Path) -> Result<(bool, String)> {
    let out = Command::new(binary()?).arg("check").arg(file).stdin(Stdio::null()).output()?;
    Ok((out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned()))
}
