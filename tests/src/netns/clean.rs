//! What a run leaves behind is nothing: removal by name, whoever asks for it.
//!
//! Invariant: only things whose name begins with `sw-PID-` of this process, or of a process that no
//! longer lives, are removed. Names are the only book-keeping, so nothing can be forgotten by a
//! panic or a signal; only child processes are listed, by id. A container runtime's leave their parents: they are known by
//! the run's name in their arguments.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

/// Where namespaces are named.
const NAMESPACES: &str = "/run/netns";
/// Where pins are.
pub const BPFFS: &str = "/sys/fs/bpf";

/// A signal came: nothing new is made any more.
static ENDING: AtomicBool = AtomicBool::new(false);
static CHILDREN: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// A child process that ends with this value, at the latest.
#[derive(Debug)]
pub struct Proc(Child);

impl Proc {
    pub fn start(command: &mut Command) -> Result<Proc> {
        let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        CHILDREN.lock().unwrap_or_else(|e| e.into_inner()).insert(child.id() as i32);
        Ok(Proc(child))
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Its input, where that is piped: the first who asks has it.
    pub fn input(&mut self) -> Option<ChildStdin> {
        self.0.stdin.take()
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(nix::sys::signal::kill(Pid::from_raw(self.0.id() as i32), signal)?)
    }

    /// Asks it to end, and makes it after `patience`. True if it ended by itself, with success.
    pub fn stop(mut self, patience: Duration) -> bool {
        let _ = self.signal(Signal::SIGTERM);
        let end = Instant::now() + patience;
        while Instant::now() < end {
            if let Ok(Some(status)) = self.0.try_wait() {
                return status.success();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        // Reaped already, or killed now: either way the id is not ours afterwards.
        if self.alive() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
        CHILDREN.lock().unwrap_or_else(|e| e.into_inner()).remove(&(self.0.id() as i32));
    }
}

/// Fails when a signal has ended the run, so that no work begins behind the removal.
pub fn check() -> Result<()> {
    if ENDING.load(Ordering::Relaxed) {
        bail!("ended by a signal");
    }
    Ok(())
}

/// Removes everything on SIGINT and SIGTERM, says `farewell` and exits with 130.
pub fn on_signals(farewell: fn()) {
    static ONCE: AtomicBool = AtomicBool::new(false);
    if ONCE.swap(true, Ordering::Relaxed) {
        return;
    }
    std::thread::spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let (Ok(mut interrupt), Ok(mut terminate)) =
                (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
            else {
                return;
            };
            tokio::select! { _ = interrupt.recv() => (), _ = terminate.recv() => () }
        });
        ENDING.store(true, Ordering::Relaxed);
        for &child in CHILDREN.lock().unwrap_or_else(|e| e.into_inner()).iter() {
            let child = Pid::from_raw(child);
            if nix::sys::signal::kill(child, Signal::SIGKILL).is_ok() {
                let _ = nix::sys::wait::waitpid(child, None);
            }
        }
        let ours = format!("sw-{}-", std::process::id());
        // Twice: a namespace may have been in the making.
        for _ in 0..2 {
            remove(&|name| name.starts_with(&ours));
            std::thread::sleep(Duration::from_millis(100));
        }
        farewell();
        std::process::exit(130);
    });
}

/// Removes what runs left whose process no longer lives.
pub fn leftovers() {
    remove(&|name| owner(name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()));
}

/// Removes all of one run.
pub fn run(id: &str) {
    remove(&|name| name == id || name.strip_prefix(id).is_some_and(|rest| rest.starts_with('-')));
}

/// The process in a name of ours.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix("sw-")?.split('-').next()?.parse().ok()
}

fn remove(which: &dyn Fn(&str) -> bool) {
    end_containers(which);
    // Pins first: they hold programs on links.
    for pins in matching(Path::new(BPFFS), which) {
        remove_pins(&pins, 8);
    }
    for ns in matching(Path::new(NAMESPACES), which) {
        let _ = Command::new("ip")
            .args(["netns", "del"])
            .arg(ns.file_name().unwrap_or_default())
            .stderr(Stdio::null())
            .status();
    }
    for group in super::lab::all_cgroups().iter().flat_map(|groups| matching(groups, which)) {
        remove_group(&group);
    }
    // The agent notes under /run what it changed, and keeps under /var/lib what outlives a reboot.
    for parent in [std::env::temp_dir(), "/run".into(), "/var/lib".into()] {
        for dir in matching(&parent, which) {
            let _ = std::fs::remove_dir_all(dir);
        }
    }
}

/// Ends daemons and shims of containerd's, and all that they have started.
fn end_containers(which: &dyn Fn(&str) -> bool) {
    let all: Vec<i32> = matching(Path::new("/proc"), &|name| name.parse::<i32>().is_ok_and(|id| id > 1))
        .iter()
        .filter_map(|path| path.file_name()?.to_str()?.parse().ok())
        .collect();
    let read = |id: i32, file: &str| std::fs::read_to_string(format!("/proc/{id}/{file}")).unwrap_or_default();
    let ours = |id: &i32| {
        let name = read(*id, "comm");
        let words = || read(*id, "cmdline");
        (name.starts_with("containerd") || name.trim() == "ctr") && words().split(['\0', '/']).any(which)
    };
    let parent = |id: i32| -> Option<i32> {
        // Behind the name, which may hold anything.
        read(id, "stat").rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let mut ending: BTreeSet<i32> = all.iter().copied().filter(ours).collect();
    if ending.is_empty() {
        return;
    }
    let parents: Vec<(i32, Option<i32>)> = all.iter().map(|id| (*id, parent(*id))).collect();
    loop {
        let children = parents.iter().filter(|(_, parent)| parent.is_some_and(|id| ending.contains(&id)));
        let before = ending.len();
        let more: Vec<i32> = children.map(|(id, _)| *id).collect();
        ending.extend(more);
        if ending.len() == before {
            break;
        }
    }
    for id in &ending {
        let _ = nix::sys::signal::kill(Pid::from_raw(*id), Signal::SIGKILL);
    }
    let end = Instant::now() + Duration::from_secs(5);
    let there = |id: &i32| read(*id, "stat").rsplit_once(')').is_some_and(|(_, rest)| !rest.starts_with(" Z"));
    while ending.iter().any(there) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// With those below it: a runtime's are of two levels.
fn remove_group(group: &Path) {
    for below in matching(group, &|_| true).iter().filter(|path| path.is_dir()) {
        let _ = std::fs::remove_dir(below);
    }
    let _ = std::fs::remove_dir(group);
}

fn matching(dir: &Path, which: &dyn Fn(&str) -> bool) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let entries = entries.flatten().filter(|e| e.file_name().to_str().is_some_and(which));
    entries.map(|e| e.path()).collect()
}

/// bpffs tells no file types that `remove_dir_all` could go by on every kernel.
fn remove_pins(path: &Path, depth: u32) {
    if depth > 0
        && let Ok(entries) = std::fs::read_dir(path)
    {
        for entry in entries.flatten() {
            remove_pins(&entry.path(), depth - 1);
        }
    }
    if std::fs::remove_file(path).is_err() {
        let _ = std::fs::remove_dir(path);
    }
}
