//! The way out: everything that was made, and nothing else.
//!
//! Invariant: traffic first loses the programs, then the tables they read, then the kernel settings
//! that they needed. Each step tells its failure and lets the next go on, so that a second `unload`
//! has only the rest to do.

use std::fs;
use std::io::ErrorKind;

use anyhow::{Context, Result, bail};

use super::cgroup;
use super::hooks;
use super::maps::Paths;
use super::pin;
use super::sockets;
use super::state::{State, namespace};
use super::sys;
use super::sysctl;
use crate::announce::report::Report;
use crate::announce::talk;
use crate::nodes;
use crate::source::netlink::message::Connection;
use crate::source::netlink::{Mirror, own, release, write};

/// Removes links, filters, maps, and restores what was changed. Says what it did, a line each.
pub fn unload(paths: &Paths) -> Result<Vec<String>> {
    let state = State::read(paths)?;
    let mut done = Vec::new();
    let mut failed = Vec::new();
    if state == State::default() && pin::folders(paths)?.is_empty() {
        remove_run(paths)?;
        return Ok(vec![format!("nothing is loaded at {}", paths.pin.display())]);
    }
    if state.namespace != 0 && state.namespace != namespace()? {
        bail!("what {} holds was loaded in another network namespace: unload it there", paths.pin.display());
    }
    let mut step = |what: &str, result: Result<usize>| match result {
        Ok(0) => {}
        Ok(count) => done.push(format!("{what}: {count}")),
        Err(error) => failed.push(format!("{what}: {error:#}")),
    };
    let report = Report::read(&paths.announce()).unwrap_or_default();
    step("other nodes told that nothing is announced here", Ok(talk::leave(&report)));
    step("programs at sockets detached", sockets::detach(paths, &state));
    step("programs detached", detach(paths, &state));
    step("qdiscs removed", remove_qdiscs(&state));
    step("pins removed", pin::remove(paths));
    step("kernel settings restored", restore(&state));
    step("routes and rules removed", routes(&state));
    step("neighbours left to the kernel", neighbours(&state));
    step("switch and addresses removed", remove_switch(&state));
    step("control groups unmounted", cgroup::unmount(paths, &state));
    step("file systems unmounted", pin::unmount(&state));
    if failed.is_empty() {
        remove_run(paths)?;
        return Ok(done);
    }
    bail!("{}", failed.join("\n"))
}

fn detach(paths: &Paths, state: &State) -> Result<usize> {
    if !paths.links().exists() {
        return Ok(0);
    }
    let all = hooks::attached(paths, state)?;
    for &(link, point) in all.keys() {
        hooks::detach(paths, state, link, point)?;
    }
    Ok(all.len())
}

fn remove_qdiscs(state: &State) -> Result<usize> {
    let mut count = 0;
    for (&link, name) in &state.clsact {
        // The index may be another interface's by now; ours took its qdisc along. And others may use
        // the qdisc.
        let mut connection = Connection::open(libc::NETLINK_ROUTE)?;
        if sys::interface_name(link).as_ref() == Some(name) && !write::has_filters(&mut connection, link)? {
            write::delete_clsact(&mut connection, link).context(name.clone())?;
            count += 1;
        }
    }
    Ok(count)
}

fn restore(state: &State) -> Result<usize> {
    for (name, value) in &state.sysctls {
        match sysctl::write(name, value) {
            // An interface that is gone took its settings along.
            Err(_) if !sysctl::path(name).exists() => {}
            result => result?,
        }
    }
    Ok(state.sysctls.len())
}

fn routes(state: &State) -> Result<usize> {
    if !state.routes {
        return Ok(0);
    }
    let mut connection = own::open()?;
    let all = own::read(&mut connection)?;
    for rule in &all.rules {
        own::delete_rule(&mut connection, rule).with_context(|| format!("the rule from {}", rule.from))?;
    }
    for (key, target) in &all.routes {
        own::delete_route(&mut connection, key, target).with_context(|| format!("the route {key}"))?;
    }
    for (link, v4) in nodes::entries(&all) {
        write::forget(&mut connection, link, nodes::gateway(v4)).context("the gateway into the overlay")?;
    }
    Ok(all.rules.len() + all.routes.len())
}

fn neighbours(state: &State) -> Result<usize> {
    if state.neighbours.is_empty() {
        return Ok(0);
    }
    let mirror = Mirror::without_routes()?;
    let mut connection = Connection::open(libc::NETLINK_ROUTE)?;
    for &(link, addr) in &state.neighbours {
        // One that isn't there must not be made.
        let there = mirror.network().neighbours.iter().any(|n| n.link == link && n.addr == addr);
        if there {
            release(&mut connection, link, addr, mirror.is_permanent(link, addr));
        }
    }
    Ok(state.neighbours.len())
}

fn remove_switch(state: &State) -> Result<usize> {
    let mirror = Mirror::without_routes()?;
    let index = |name: &str| mirror.network().links.iter().find(|l| l.name == name).map(|l| l.index);
    let mut connection = Connection::open(libc::NETLINK_ROUTE)?;
    let mut count = 0;
    for (name, net) in &state.addresses {
        if let Some(link) = index(name)
            && mirror.network().addresses.iter().any(|a| a.link == link && a.net == *net)
        {
            write::delete_address(&mut connection, link, *net).with_context(|| format!("{net} on {name}"))?;
            count += 1;
        }
    }
    for name in &state.bridges {
        if let Some(link) = index(name) {
            write::delete_link(&mut connection, link).context(name.clone())?;
            count += 1;
        }
    }
    Ok(count)
}

/// What is written down there. The folder's name is the pin folder's, and others may have one of that name.
fn remove_run(paths: &Paths) -> Result<()> {
    for entry in fs::read_dir(&paths.run).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("maps-") {
            fs::remove_file(entry.path()).with_context(|| entry.path().display().to_string())?;
        }
    }
    let rewritten = [paths.state(), paths.source(), paths.cluster(), paths.health(), paths.announce()];
    let beside = rewritten.clone().map(|path| path.with_extension("new"));
    for file in rewritten.into_iter().chain(beside).chain([paths.lock(), paths.dns(), paths.pods()]) {
        match fs::remove_file(&file) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).context(file.display().to_string()),
            _ => {}
        }
    }
    // Where no route was ever added, the folder that was watched for one is empty.
    for folder in [&paths.kept, &paths.run] {
        match fs::remove_dir(folder) {
            Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {
                return Err(error).context(folder.display().to_string());
            }
            _ => {}
        }
    }
    Ok(())
}
