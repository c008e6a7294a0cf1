//! Kernel settings that forwarding needs.
//!
//! Invariant: a setting is changed only where it must be, and its old value is recorded first.

use std::path::PathBuf;
use std::{env, fs};

use anyhow::{Context, Result};

use super::maps::Paths;
use super::state::State;

/// Where settings are, if not in `/proc/sys`: a container's own can't be written, the host's may be mounted elsewhere.
const ROOT: &str = "STELLWERK_PROC_SYS";

/// A setting's file.
pub fn path(name: &str) -> PathBuf {
    env::var_os(ROOT).map_or_else(|| PathBuf::from("/proc/sys"), PathBuf::from).join(name)
}

fn read(name: &str) -> Option<String> {
    Some(fs::read_to_string(path(name)).ok()?.trim().to_owned())
}

pub fn write(name: &str, value: &str) -> Result<()> {
    fs::write(path(name), value).with_context(|| format!("setting {name} to {value}"))
}

/// Those that are otherwise, with what they are. A kernel without IPv6 has none of its settings.
fn differing<'a>(all: &'a [(String, &'a str)]) -> impl Iterator<Item = (&'a str, &'a str, String)> {
    all.iter().filter_map(|(name, value)| Some((name.as_str(), *value, read(name).filter(|old| old != value)?)))
}

/// Records all of them by one change. One that can't be set keeps no other from being set.
fn ensure(paths: &Paths, state: &mut State, all: &[(String, &str)]) -> Result<()> {
    let others: Vec<_> = differing(all).collect();
    if others.is_empty() {
        return Ok(());
    }
    state.change(paths, |state| {
        for (name, _, old) in &others {
            state.sysctls.entry((*name).to_owned()).or_insert_with(|| old.clone());
        }
    })?;
    let set = |(name, value, old): (&str, &str, String)| {
        write(name, value).inspect(|()| tracing::info!("{name}: {old} is now {value}"))
    };
    others.into_iter().map(set).fold(Ok(()), Result::and)
}

/// The node forwards.
pub fn forwarding(paths: &Paths, state: &mut State) -> Result<()> {
    ensure(paths, state, &["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"].map(|name| (name.to_owned(), "1")))
}

/// An interface with next hops whose life decides something. One that is asked and doesn't answer has failed
/// after three times this long, in place of three seconds.
const RETRANSMIT_MS: &str = "100";

/// See [`RETRANSMIT_MS`].
pub fn next_hops(paths: &Paths, state: &mut State, name: &str, v4: bool) -> Result<()> {
    let family = if v4 { "ipv4" } else { "ipv6" };
    let all = [("retrans_time_ms", RETRANSMIT_MS), ("ucast_solicit", "3"), ("mcast_solicit", "3")];
    ensure(paths, state, &all.map(|(key, value)| (format!("net/{family}/neigh/{name}/{key}"), value)))
}

/// Interfaces that carry our programs: the source of a packet may be translated to an address
/// of ours before the kernel gets it, which it would else take for a martian.
pub fn interfaces<'a>(paths: &Paths, state: &mut State, names: impl Iterator<Item = &'a str>) -> Result<()> {
    ensure(paths, state, &names.flat_map(interface).collect::<Vec<_>>())
}

/// An interface of ours: it takes its settings along.
pub fn own(name: &str) -> Result<()> {
    differing(&interface(name)).try_for_each(|(name, value, _)| write(name, value))
}

fn interface(name: &str) -> Vec<(String, &'static str)> {
    let conf = |name: &str, key: &str| format!("net/ipv4/conf/{name}/{key}");
    // The stricter of "all" and the interface's own is in force: 1 strict, 2 loose, the higher wins.
    let filter = conf(name, "rp_filter");
    let strict = |path: &str| read(path).is_some_and(|value| value == "1");
    let mut all = Vec::new();
    if strict(&filter) || (strict(&conf("all", "rp_filter")) && read(&filter).is_some_and(|value| value == "0")) {
        all.push((filter, "2"));
    }
    // What the loopback carries has local sources anyway.
    if name != "lo" {
        all.push((conf(name, "accept_local"), "1"));
        // The kernel goes on using routes of a port whose cable is out; the tables don't.
        let linkdown = |family| (format!("net/{family}/conf/{name}/ignore_routes_with_linkdown"), "1");
        all.extend(["ipv4", "ipv6"].map(linkdown));
    }
    all
}
