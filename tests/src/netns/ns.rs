//! One network namespace: work inside it, in a thread or in a child process.
//!
//! Threads and children enter by setns(2) alone. `ip netns exec` would also remount /sys and
//! hide bpffs and the control groups.

use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

/// A named network namespace; clones mean the same one. [`super::Lab`] removes it.
#[derive(Clone, Debug)]
pub struct Ns {
    full: Arc<str>,
    file: Arc<File>,
}

impl Ns {
    /// Makes the namespace `full`, with loopback up and the settings that tests rely on.
    pub(super) fn make(full: &str) -> Result<Ns> {
        run(Command::new("ip").args(["netns", "add", full]))?;
        let file = File::open(PathBuf::from("/run/netns").join(full)).context("opening the namespace")?;
        let ns = Ns { full: full.into(), file: Arc::new(file) };
        ns.ip("link set lo up")?;
        ns.sysctls(&[
            // Some systems copy the first namespace's settings into new ones.
            ("net/ipv4/ip_forward", "0"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
            ("net/ipv6/conf/all/disable_ipv6", "0"),
            ("net/ipv6/conf/default/disable_ipv6", "0"),
            // No wait for duplicate addresses: every address here is known to be unique.
            ("net/ipv6/conf/all/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/default/router_solicitations", "0"),
            // Above the node ports: an answer to a host's own connection from one of them would be a call at it.
            ("net/ipv4/ip_local_port_range", "32768 65000"),
            // A load test opens more connections than TIME_WAIT's minute has ports.
            ("net/ipv4/tcp_tw_reuse", "1"),
            ("net/ipv4/ping_group_range", "0 2147483647"),
        ])?;
        Ok(ns)
    }

    /// The name that `ip netns` shows.
    pub fn full_name(&self) -> &str {
        &self.full
    }

    /// Where another process finds it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&*self.full)
    }

    /// Moves the calling thread into it, for the rest of the thread's life.
    pub fn enter(&self) -> Result<()> {
        setns(&*self.file, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering {}", self.full))
    }

    /// Runs `work` in a thread inside, and waits for it. A panic inside goes on outside.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| self.enter().map(|()| work()));
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs `work` in a thread inside. The thread's first result is whether it could enter.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<Result<T>> {
        let ns = self.clone();
        std::thread::spawn(move || ns.enter().map(|()| work()))
    }

    /// A command that will run inside, in a process group of its own, and die with the calling
    /// thread: start it from one that lives as long as the command shall.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let file = self.file.clone();
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).process_group(0);
        let enter = move || {
            setns(&*file, CloneFlags::CLONE_NEWNET)?;
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            Ok(())
        };
        #[expect(unsafe_code, reason = "setns between fork and exec has no safe form")]
        // SAFETY: the closure makes two system calls on values that live in it, allocates nothing
        // and takes no lock, as the time between fork and exec asks.
        unsafe {
            command.pre_exec(enter)
        };
        command
    }

    /// Lines of `ip` commands (`addr add …`), run inside.
    pub fn ip(&self, lines: &str) -> Result<()> {
        let mut child = Command::new("ip")
            .args(["-n", &self.full, "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting ip (package iproute2)")?;
        child.stdin.take().context("ip's input")?.write_all(format!("{lines}\n").as_bytes())?;
        let out = child.wait_with_output()?;
        if !out.status.success() {
            bail!("in {}:\n{lines}\nip: {}", self.full, String::from_utf8_lossy(&out.stderr).trim());
        }
        Ok(())
    }

    /// What `ip ARGS` prints inside.
    pub fn ip_text(&self, args: &str) -> Result<String> {
        run(Command::new("ip").args(["-n", &self.full]).args(args.split_whitespace()))
    }

    /// What `tc ARGS` prints inside.
    pub fn tc_text(&self, args: &str) -> Result<String> {
        run(Command::new("tc").args(["-n", &self.full]).args(args.split_whitespace()))
    }

    /// Sets kernel settings, named by their path below /proc/sys.
    pub fn sysctls(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            settings.iter().try_for_each(|(key, value)| {
                std::fs::write(format!("/proc/sys/{key}"), value).with_context(|| format!("setting {key} to {value}"))
            })
        })?
    }

    /// Reads a kernel setting.
    pub fn sysctl(&self, key: &str) -> Result<String> {
        let text = self.run(|| std::fs::read_to_string(format!("/proc/sys/{key}")))?;
        Ok(text.with_context(|| format!("reading {key}"))?.trim().to_owned())
    }

    /// Makes the namespace a router. Redirects off: every path here is meant.
    pub fn forward(&self) -> Result<()> {
        self.sysctls(&[
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv4/conf/all/send_redirects", "0"),
            ("net/ipv4/conf/default/send_redirects", "0"),
        ])
    }
}

/// Runs a command to its end and returns what it printed.
pub(super) fn run(command: &mut Command) -> Result<String> {
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("starting {command:?}"))?;
    if !out.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
