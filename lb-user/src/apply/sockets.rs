//! Services at the socket: the programs of a control group that change the calls of this node's sockets.
//!
//! Invariant: who translates comes after who names, and goes before: a socket that was given a backend is told of its
//! service. A program is replaced in one step. Where something fails all of them go, and packets are translated as
//! without: that is told, and stops nothing.
//! Not here: what a call becomes ([`lb_common::path::socket`]).

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr, ProgramError};
use aya::util::KernelVersion;
use tracing::{info, warn};

use super::cgroup;
use super::load::verified;
use super::maps::Paths;
use super::repin;
use super::state::State;
use super::sys::{self, links};
use crate::intent::SocketBalancing;

/// The programs in the order in which they come; pinned as `socket-connect4` and so on.
const CALLS: [&str; 8] =
    ["getpeername4", "getpeername6", "recvmsg4", "recvmsg6", "sendmsg4", "sendmsg6", "connect4", "connect6"];

fn pin(paths: &Paths, call: &str) -> PathBuf {
    paths.links().join(format!("socket-{call}"))
}

/// What the programs take for constants.
pub(super) struct Constants {
    /// The number of the network namespace whose sockets are this node's; 0: none has it.
    pub namespace: u64,
    pub refuses: u32,
}

impl Constants {
    pub fn new() -> Self {
        // Before 6.1 these programs have no helper for it.
        let refuses = KernelVersion::current().is_ok_and(|kernel| kernel >= KernelVersion::new(6, 1, 0));
        Constants { namespace: sys::namespace_cookie().unwrap_or(0), refuses: refuses.into() }
    }
}

/// Makes them be as is wished, and says how it went in the state.
pub fn settle(ebpf: &mut Ebpf, paths: &Paths, state: &mut State, wished: &SocketBalancing) -> Result<()> {
    let done = match wished {
        SocketBalancing::Off => detach(paths, state).map(|_| None),
        SocketBalancing::At(group) => attach(ebpf, paths, group).map(|()| Some(group.clone())),
        SocketBalancing::On => {
            cgroup::root(paths, state).and_then(|group| attach(ebpf, paths, &group).map(|()| Some(group)))
        }
    };
    let (group, trouble) = match done {
        Ok(group) => (group, None),
        Err(error) => {
            let trouble = format!("{error:#}");
            warn!("sockets of this node are not balanced, their packets are: {trouble}");
            detach(paths, state)?;
            (None, Some(trouble.lines().next().unwrap_or_default().to_owned()))
        }
    };
    let group = group.map(|group| group.display().to_string());
    if group.is_some() && group != state.sockets.group {
        info!("services are balanced at this node's sockets, in {}", group.as_deref().unwrap_or_default());
    }
    state.change(paths, |state| (state.sockets.group, state.sockets.trouble) = (group, trouble))
}

fn attach(ebpf: &mut Ebpf, paths: &Paths, group: &Path) -> Result<()> {
    sys::namespace_cookie().context("the number of the network namespace (kernels from 5.14 tell it)")?;
    let id = cgroup::id(group)?;
    if cgroup::is_part() {
        warn!("the agent is in a namespace of control groups: processes outside of it are balanced by packets");
    }
    let open = File::open(group).with_context(|| group.display().to_string())?;
    for call in CALLS {
        let program = load(ebpf, call)?;
        put(program, &pin(paths, call), &open, id)
            .with_context(|| format!("attaching {call} to {}", group.display()))?;
    }
    Ok(())
}

/// Has all of them verified.
pub fn load_all(ebpf: &mut Ebpf) -> Result<()> {
    CALLS.iter().try_for_each(|call| load(ebpf, call).map(drop))
}

fn load<'e>(ebpf: &'e mut Ebpf, call: &str) -> Result<&'e mut CgroupSockAddr> {
    let name = format!("stellwerk_{call}");
    let program = ebpf.program_mut(&name).with_context(|| format!("the object has no program {name}"))?;
    let program: &mut CgroupSockAddr = program.try_into()?;
    let loaded = match program.load() {
        Err(ProgramError::AlreadyLoaded) => Ok(()),
        result => result,
    };
    verified(&name, loaded)?;
    Ok(program)
}

/// Puts a program on a group, in the place of ours before.
fn put(program: &mut CgroupSockAddr, pin: &Path, group: &File, id: u64) -> Result<()> {
    let before = links::group_link(pin)?;
    if before.is_some_and(|link| link.group == id) {
        links::update(pin, program.fd()?.as_fd())?;
        return Ok(());
    }
    // With a link any number of programs may be there.
    let link = program.attach(group, CgroupAttachMode::Single)?;
    let link = FdLink::try_from(program.take_link(link)?)?;
    if before.is_some() {
        fs::remove_file(pin)?;
    }
    repin::link(link, pin)
}

/// Puts this object's programs wherever any of ours are.
pub fn take_over(ebpf: &mut Ebpf, paths: &Paths) -> Result<()> {
    for call in CALLS {
        let pin = pin(paths, call);
        if links::group_link(&pin)?.is_some_and(|link| link.group != 0) {
            links::update(&pin, load(ebpf, call)?.fd()?.as_fd()).with_context(|| format!("replacing {call}"))?;
        }
    }
    Ok(())
}

/// Takes all of them away; how many there were.
pub fn detach(paths: &Paths, state: &State) -> Result<usize> {
    let mut count = 0;
    for call in CALLS.iter().rev() {
        let pin = pin(paths, call);
        // One that can't be detached goes with its pin.
        let _ = links::detach(&pin);
        match fs::remove_file(pin) {
            Ok(()) => count += 1,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("detaching {call}")),
        }
    }
    if let (1.., Some(group)) = (count, &state.sockets.group) {
        info!("services are no longer balanced at this node's sockets, in {group}");
    }
    Ok(count)
}

/// How many of them are in force, of all.
pub fn attached(paths: &Paths) -> Result<(usize, usize)> {
    let mut count = 0;
    for call in CALLS {
        let pin = pin(paths, call);
        let link = links::group_link(&pin).with_context(|| pin.display().to_string())?;
        count += usize::from(link.is_some_and(|link| link.group != 0));
    }
    Ok((count, CALLS.len()))
}

/// The ids of those that are in force.
pub fn programs(paths: &Paths) -> Result<Vec<u32>> {
    let links = CALLS.iter().map(|call| Ok(links::group_link(&pin(paths, call))?.filter(|link| link.group != 0)));
    let links: Vec<_> = links.collect::<Result<_>>()?;
    Ok(links.into_iter().flatten().map(|link| link.program).collect())
}
