//! Running other programs. Invariant: whatever changes something or takes long is printed before it runs,
//! in a form that can be pasted into a shell; quick questions (`output`) are not.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Read, Write},
    os::unix::{fs::MetadataExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::{SignalsInfo, exfiltrator::WithOrigin},
};

/// Set by `test --no-root`: nothing may ask for root then.
static NO_ROOT: AtomicBool = AtomicBool::new(false);

pub fn forbid_root() {
    NO_ROOT.store(true, Ordering::Relaxed);
}

pub fn is_root() -> bool {
    // The owner of /proc/self is the effective user; this needs no libc call and so no `unsafe`.
    std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

/// The checkout that this xtask belongs to, whatever folder it is called from.
pub fn repo() -> &'static Path {
    static REPO: OnceLock<PathBuf> = OnceLock::new();
    REPO.get_or_init(|| {
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        Path::new(&manifest).parent().expect("xtask is a folder of the repository").to_path_buf()
    })
}

/// The stable cargo that runs xtask.
pub fn cargo() -> Command {
    let mut cmd = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cmd.current_dir(repo());
    // What the cargo that runs xtask says of xtask: build scripts look at it, and would run again for each other caller.
    let of_xtask = |key: &OsStr| key.to_string_lossy().starts_with("CARGO_PKG_") || key == "CARGO_MANIFEST_DIR";
    std::env::vars_os().filter(|(key, _)| of_xtask(key)).for_each(|(key, _)| _ = cmd.env_remove(key));
    cmd
}

/// Where a program lies, also in the sbin folders that a plain user's PATH leaves out.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(sbin).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// The same command as root: itself where we are root already, else by sudo, saying why.
pub fn as_root(cmd: Command, why: &str) -> Result<Command> {
    if is_root() {
        return Ok(cmd);
    }
    if NO_ROOT.load(Ordering::Relaxed) {
        bail!("root is needed ({why}), but --no-root forbids it: run `{}` as root", describe(&cmd));
    }
    if find("sudo").is_none() {
        bail!("root is needed ({why}) and there is no sudo: run this as root");
    }
    say!("Asking for root by sudo: {why}");
    let mut sudo = Command::new("sudo");
    // sudo clears the environment, so what we set for the command is handed through by env(1).
    sudo.arg("env");
    for (key, value) in cmd.get_envs() {
        if let Some(value) = value {
            let mut pair = key.to_os_string();
            pair.push("=");
            pair.push(value);
            sudo.arg(pair);
        }
    }
    sudo.arg(cmd.get_program()).args(cmd.get_args());
    if let Some(dir) = cmd.get_current_dir() {
        sudo.current_dir(dir);
    }
    Ok(sudo)
}

/// Runs to the end, output to the terminal.
pub fn run(mut cmd: Command) -> Result<()> {
    announce(&cmd);
    let status = cmd.status().with_context(|| cannot_start(&cmd))?;
    check(&cmd, status)
}

/// Runs quietly and returns what it printed; its stderr is part of the error.
pub fn output(mut cmd: Command) -> Result<String> {
    let out = cmd.stdin(Stdio::null()).output().with_context(|| cannot_start(&cmd))?;
    if !out.status.success() {
        bail!("`{}` failed ({}): {}", describe(&cmd), out.status, String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Runs to the end, shows stdout line by line and hands each line to `line` as well.
pub fn tee(mut cmd: Command, mut line: impl FnMut(&str)) -> Result<ExitStatus> {
    announce(&cmd);
    let mut child = cmd.stdout(Stdio::piped()).spawn().with_context(|| cannot_start(&cmd))?;
    let stdout = child.stdout.take().context("stdout is piped")?;
    follow(child, stdout, |text| {
        line(text);
        say!("{text}");
    })
}

/// What a program that ran beside others has left.
pub struct Ran {
    pub name: String,
    pub status: ExitStatus,
    /// What it printed, in lines.
    pub printed: Vec<String>,
    pub took: Duration,
}

/// Runs programs to their ends, so many at a time, and hands each to `ended` when it has.
pub fn side_by_side(commands: Vec<(String, Command)>, at_once: usize, mut ended: impl FnMut(Ran)) -> Result<()> {
    let left = Mutex::new(commands.into_iter());
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..at_once {
            let (left, sender) = (&left, sender.clone());
            scope.spawn(move || {
                let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
                while let Some((name, cmd)) = next() {
                    // Who reads has met an error.
                    if sender.send(collect(name, cmd)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        receiver.into_iter().try_for_each(|ran| ran.map(&mut ended))
    })
}

fn collect(name: String, mut cmd: Command) -> Result<Ran> {
    announce(&cmd);
    let begin = Instant::now();
    let (reader, writer) = std::io::pipe()?;
    let child = cmd.stdout(writer.try_clone()?).stderr(writer).spawn().with_context(|| cannot_start(&cmd))?;
    // With its ends of the pipe.
    drop(cmd);
    let mut printed = Vec::new();
    let status = follow(child, reader, |text| printed.push(text.to_owned()))?;
    Ok(Ran { name, status, printed, took: begin.elapsed() })
}

/// Hands each line of what a child prints to `line`, until it ends.
fn follow(mut child: Child, from: impl Read + Send + 'static, mut line: impl FnMut(&str)) -> Result<ExitStatus> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for text in BufReader::new(from).split(b'\n').map_while(Result::ok) {
            let text = String::from_utf8_lossy(&text).trim_end_matches('\r').to_owned();
            if sender.send(text).is_err() {
                return;
            }
        }
    });
    let mut status = None;
    loop {
        match receiver.recv_timeout(Duration::from_millis(200)) {
            Ok(text) => line(&text),
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            // A process that outlives a crashed test may hold the pipe open forever: the child's own end counts.
            Err(mpsc::RecvTimeoutError::Timeout) if status.is_some() => break,
            Err(mpsc::RecvTimeoutError::Timeout) => status = child.try_wait()?,
        }
    }
    match status {
        Some(status) => Ok(status),
        None => Ok(child.wait()?),
    }
}

/// Runs a program that cleans up after itself on signals: we stay until it has ended, and pass on what it ended with.
pub fn foreground(mut cmd: Command) -> Result<ExitStatus> {
    announce(&cmd);
    let mut signals =
        SignalsInfo::<WithOrigin>::new([SIGINT, SIGTERM, SIGHUP]).context("cannot install signal handlers")?;
    let handle = signals.handle();
    let mut child = cmd.spawn().with_context(|| cannot_start(&cmd))?;
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    let forwarder = thread::spawn(move || {
        for origin in &mut signals {
            // Ctrl-C reaches the whole foreground group, the child too; a kill(1) by somebody reaches only us.
            let from_terminal = origin.process.is_none();
            let signal = rustix::process::Signal::from_named_raw(origin.signal);
            if let (false, Some(pid), Some(signal)) = (from_terminal, pid, signal) {
                // The child may be gone already, or be root's by sudo: either way there is nothing to do here.
                let _ = rustix::process::kill_process(pid, signal);
            }
        }
    });
    let status = child.wait();
    handle.close();
    let _ = forwarder.join();
    Ok(status?)
}

/// An exit code for our caller, as a shell would give it.
pub fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Executables that a cargo command built or found fresh, as (target name, path).
pub fn executables(mut cargo: Command) -> Result<Vec<(String, PathBuf)>> {
    cargo.arg("--message-format=json-render-diagnostics");
    announce(&cargo);
    let out = cargo.stderr(Stdio::inherit()).output().with_context(|| cannot_start(&cargo))?;
    check(&cargo, out.status)?;
    let mut found = Vec::new();
    for line in out.stdout.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"{")) {
        let message: serde_json::Value = serde_json::from_slice(line).context("cargo printed broken JSON")?;
        if let (Some(name), Some(path)) = (message["target"]["name"].as_str(), message["executable"].as_str()) {
            found.push((name.to_owned(), PathBuf::from(path)));
        }
    }
    Ok(found)
}

fn check(cmd: &Command, status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("`{}` failed ({status})", describe(cmd));
    }
    Ok(())
}

fn cannot_start(cmd: &Command) -> String {
    format!("cannot start `{}`: is it installed?", cmd.get_program().to_string_lossy())
}

fn announce(cmd: &Command) {
    let dir = cmd.get_current_dir().and_then(|dir| dir.strip_prefix(repo()).ok());
    let dir = dir.filter(|dir| !dir.as_os_str().is_empty());
    let place = dir.map(|dir| format!("({}) ", dir.display())).unwrap_or_default();
    let sets = cmd.get_envs().filter_map(|(key, value)| Some(format!("{}={} ", key.to_string_lossy(), quote(value?))));
    say!("+ {place}{}{}", sets.collect::<String>(), describe(cmd));
    let _ = std::io::stdout().flush();
}

/// The command as one would type it.
fn describe(cmd: &Command) -> String {
    std::iter::once(quote(cmd.get_program())).chain(cmd.get_args().map(quote)).collect::<Vec<_>>().join(" ")
}

fn quote(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}
