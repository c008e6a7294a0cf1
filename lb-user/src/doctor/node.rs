//! What the agent finds in the node's file systems: pins, control groups, kernel settings.

use std::fs::{self, OpenOptions};

use anyhow::Result;

use super::Finding;
use crate::apply::{Paths, mounts, pin, sysctl};
use crate::config::Config;
use crate::intent::SocketBalancing;

const FORWARDING: [(&str, &str); 2] = [("IPv4", "net/ipv4/ip_forward"), ("IPv6", "net/ipv6/conf/all/forwarding")];

pub fn examine(paths: &Paths, config: Option<&Config>) -> Result<Vec<Finding>> {
    let mut all = vec![pins(paths)];
    if config.is_none_or(|config| config.sockets == SocketBalancing::On) {
        all.push(groups(&mounts::read()?));
    }
    let writable = |key: &str| OpenOptions::new().write(true).open(sysctl::path(key)).is_ok();
    for (family, key) in FORWARDING {
        let value = fs::read_to_string(sysctl::path(key)).ok();
        all.push(forwarding(family, value.as_deref().map(str::trim), writable(key)));
    }
    Ok(all)
}

fn pins(paths: &Paths) -> Finding {
    let shown = paths.pin.display().to_string();
    match pin::check(paths) {
        Ok(false) => Finding::ok("bpffs", shown, "in a BPF file system"),
        Ok(true) => {
            let found = "no BPF file system is mounted there; `run` mounts one";
            Finding::warn("bpffs", shown, found, "mount -t bpf bpf /sys/fs/bpf, as systemd does at boot")
        }
        Err(error) => Finding::fail("bpffs", shown, format!("{error:#}"), "mount one, or choose another --pin-path"),
    }
}

/// Services at sockets hang on the root of the second version's tree.
fn groups(mountinfo: &str) -> Finding {
    let tree = mounts::all(mountinfo).find(|mount| mount.kind == "cgroup2" && mount.root == "/");
    match tree {
        Some(tree) => Finding::ok("cgroup2", tree.point.display().to_string(), "mounted"),
        None => {
            let found = "is mounted nowhere; `run` mounts it for itself";
            Finding::warn("cgroup2", "", found, "mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified, or boot with it")
        }
    }
}

fn forwarding(family: &'static str, value: Option<&str>, writable: bool) -> Finding {
    const CHECK: &str = "forwarding";
    match value {
        Some("1") => Finding::ok(CHECK, family, "on"),
        _ if !writable => {
            let found = "off, and /proc/sys can't be written";
            Finding::fail(CHECK, family, found, "set it where /proc/sys may be written, or mount it so")
        }
        _ => {
            let advice = "nothing, unless another program turns it off again (see /etc/sysctl.d)";
            Finding::warn(CHECK, family, "off; `run` turns it on and `unload` off again", advice)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn settings_that_can_be_made_only_warn() {
        for (value, writable, want) in [
            (Some("1"), false, State::Ok),
            (Some("0"), true, State::Warn),
            (Some("0"), false, State::Fail),
            (None, false, State::Fail),
        ] {
            assert_eq!(forwarding("IPv4", value, writable).state, want, "{value:?} {writable}");
        }
    }

    #[test]
    fn control_groups() {
        let first = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let part = "40 31 0:38 /pods/a /other rw - cgroup2 cgroup2 rw\n";
        let whole = "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        for (mounts, want) in [(first, State::Warn), (part, State::Warn), (whole, State::Ok)] {
            assert_eq!(groups(mounts).state, want, "{mounts}");
        }
    }
}
