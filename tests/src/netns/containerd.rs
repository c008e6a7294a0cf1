//! containerd and runc, as a node has them, but in a lab: a daemon with folders and a socket of its own.
//!
//! Invariant: what it makes carries the lab's id, and the system's own `/etc`, `/opt` and `/run` are never written to:
//! others lie over them in the mount namespace that daemon, client and shims share. Whatever a test leaves,
//! [`clean`](super::clean) ends.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::clean::{self, Proc};
use super::{Lab, Ns};

const PATIENCE: Duration = Duration::from_secs(30);
const BUSYBOX: &str = "/bin/busybox";
const APPLETS: &str = "sh sleep ping httpd wget nslookup";

/// Fields are in the order in which they end.
#[derive(Debug)]
pub struct Containerd {
    containers: Vec<(String, Proc)>,
    daemon: Proc,
    node: Ns,
    dir: PathBuf,
    id: String,
    executed: u32,
}

impl Containerd {
    /// The daemon of a node whose agent runs, with the plugin and the network that lie in these folders. `nameserver` is
    /// whom its containers ask.
    pub fn start(lab: &Lab, node: &Ns, (bin, conf): (&Path, &Path), nameserver: &str) -> Result<Containerd> {
        let (dir, id) = (lab.dir().join("containerd"), lab.id().to_owned());
        file_system(&dir.join("rootfs"), nameserver)?;
        let script = format!(
            "set -e\n\
             mkdir {dir}/run\n\
             mount --rbind /run {dir}/run\n\
             for at in /etc /opt /run; do mount -t tmpfs tmpfs $at; done\n\
             mkdir -p /etc/cni/net.d /opt/cni/bin /run/{id}\n\
             mount --bind {conf} /etc/cni/net.d\n\
             mount --bind {bin} /opt/cni/bin\n\
             mount --bind {dir}/run/{id} /run/{id}\n\
             exec containerd --config /dev/null --root {dir}/root --state {dir}/state --address {dir}/containerd.sock\n",
            dir = dir.display(),
            conf = conf.display(),
            bin = bin.display(),
        );
        let log = std::fs::File::create(dir.join("log"))?;
        let mut command = node.command("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
        let daemon = Proc::start(command.stdout(log.try_clone()?).stderr(log))?;
        let mut all = Containerd { containers: Vec::new(), daemon, node: node.clone(), dir, id, executed: 0 };
        let end = Instant::now() + PATIENCE;
        while all.ask(&["version"]).is_err() {
            clean::check()?;
            if !all.daemon.alive() || Instant::now() > end {
                bail!("containerd doesn't answer within {PATIENCE:?}: {}", all.log());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(all)
    }

    fn log(&self) -> String {
        let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Its client, where it sees what the daemon sees.
    fn client(&self) -> Command {
        let mut command = self.node.command("timeout");
        command.arg(PATIENCE.as_secs().to_string());
        self.client_of(command)
    }

    fn client_of(&self, mut command: Command) -> Command {
        command.args(["nsenter", "-m", "-t", &self.daemon.id().to_string(), "ctr", "--address"]);
        command.arg(self.dir.join("containerd.sock")).args(["--namespace", &self.id]);
        command
    }

    fn ask(&self, words: &[&str]) -> Result<String> {
        let mut command = self.client();
        let out = command.args(words).stdout(Stdio::piped()).stderr(Stdio::piped()).output().context("starting ctr")?;
        let (said, wrong) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        ensure!(out.status.success(), "ctr {}: {}: {wrong}{said}", words.join(" "), out.status);
        Ok(said.into_owned())
    }

    /// Starts a container with an interface of the network, and waits until it runs its shell's script.
    pub fn run(&mut self, name: &str, script: &str) -> Result<()> {
        let mut command = self.client_of(self.node.command("env"));
        command.args(["run", "--rm", "--cni", "--rootfs"]).arg(self.dir.join("rootfs"));
        let log = std::fs::File::create(self.dir.join(format!("{name}.log")))?;
        command.args([name, "/bin/sh", "-c", script]).stdout(log.try_clone()?).stderr(log);
        let process = Proc::start(&mut command)?;
        self.containers.push((name.to_owned(), process));
        let end = Instant::now() + PATIENCE;
        while !self.ask(&["task", "ls"])?.lines().any(|line| line.starts_with(name) && line.contains("RUNNING")) {
            clean::check()?;
            let alive = self.containers.last_mut().is_some_and(|(_, process)| process.alive());
            if !alive || Instant::now() > end {
                let said = std::fs::read_to_string(self.dir.join(format!("{name}.log"))).unwrap_or_default();
                bail!("the container {name} doesn't run: {said}\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// What a script prints in a container.
    pub fn exec(&mut self, name: &str, script: &str) -> Result<String> {
        self.executed += 1;
        let id = format!("e{}", self.executed);
        self.ask(&["task", "exec", "--exec-id", &id, name, "/bin/sh", "-c", script])
    }

    /// Ends a container, and waits until its client has given up its interface.
    pub fn stop(&mut self, name: &str) -> Result<()> {
        let at = self.containers.iter().position(|(other, _)| other == name).context("no such container")?;
        self.ask(&["task", "kill", "--signal", "SIGKILL", name])?;
        let (_, mut process) = self.containers.swap_remove(at);
        let end = Instant::now() + PATIENCE;
        while process.alive() {
            ensure!(Instant::now() < end, "ctr doesn't end with its container {name}: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// A root file system of nothing but a shell and a few programs.
fn file_system(root: &Path, nameserver: &str) -> Result<()> {
    for dir in ["bin", "etc", "proc", "sys", "dev", "run", "tmp", "www"] {
        std::fs::create_dir_all(root.join(dir))?;
    }
    std::fs::copy(BUSYBOX, root.join("bin/busybox")).with_context(|| format!("copying {BUSYBOX}"))?;
    for applet in APPLETS.split(' ') {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
    }
    std::fs::write(root.join("etc/resolv.conf"), format!("nameserver {nameserver}\n"))?;
    Ok(std::fs::write(root.join("www/index.html"), "here I am\n")?)
}
