//! Kernel settings that forwarding needs.
//!
//! Invariant: a setting is changed only where it must be, and its old value is recorded first.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::maps::Paths;
use super::state::State;

fn read(name: &str) -> Option<String> {
    Some(fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?.trim().to_owned())
}

pub fn write(name: &str, value: &str) -> Result<()> {
    fs::write(Path::new("/proc/sys").join(name), value).with_context(|| format!("setting {name} to {value}"))
}

fn ensure(paths: &Paths, state: &mut State, name: &str, value: &str) -> Result<()> {
    let Some(old) = read(name).filter(|old| old != value) else { return Ok(()) };
    state.change(paths, |state| _ = state.sysctls.entry(name.to_owned()).or_insert_with(|| old.clone()))?;
    write(name, value)?;
    tracing::info!("{name}: {old} is now {value}");
    Ok(())
}

/// The node forwards.
pub fn forwarding(paths: &Paths, state: &mut State) -> Result<()> {
    ensure(paths, state, "net/ipv4/ip_forward", "1")?;
    ensure(paths, state, "net/ipv6/conf/all/forwarding", "1")
}

/// An interface with next hops whose life decides something. One that is asked and doesn't answer has failed
/// after three times this long, in place of three seconds.
const RETRANSMIT_MS: &str = "100";

/// See [`RETRANSMIT_MS`].
pub fn next_hops(paths: &Paths, state: &mut State, name: &str, v4: bool) -> Result<()> {
    let family = if v4 { "ipv4" } else { "ipv6" };
    for (key, value) in [("retrans_time_ms", RETRANSMIT_MS), ("ucast_solicit", "3"), ("mcast_solicit", "3")] {
        ensure(paths, state, &format!("net/{family}/neigh/{name}/{key}"), value)?;
    }
    Ok(())
}

/// An interface that carries our programs: the source of a packet may be translated to an address
/// of ours before the kernel gets it, which it would else take for a martian.
pub fn interface(paths: &Paths, state: &mut State, name: &str) -> Result<()> {
    let conf = |name: &str, key: &str| format!("net/ipv4/conf/{name}/{key}");
    // The stricter of "all" and the interface's own is in force: 1 strict, 2 loose, the higher wins.
    let filter = conf(name, "rp_filter");
    let strict = |path: &str| read(path).is_some_and(|value| value == "1");
    if strict(&filter) || (strict(&conf("all", "rp_filter")) && read(&filter).is_some_and(|value| value == "0")) {
        ensure(paths, state, &filter, "2")?;
    }
    // What the loopback carries has local sources anyway.
    if name == "lo" {
        return Ok(());
    }
    ensure(paths, state, &conf(name, "accept_local"), "1")?;
    // The kernel goes on using routes of a port whose cable is out; the tables don't.
    for family in ["ipv4", "ipv6"] {
        ensure(paths, state, &format!("net/{family}/conf/{name}/ignore_routes_with_linkdown"), "1")?;
    }
    Ok(())
}
