//! Programs on links: pinned XDP and tcx links or filters of a clsact qdisc, before 6.6 and on pods' interfaces.
//!
//! Invariant: a program is replaced in one step, never detached and attached: no packet meets a
//! link without one. What hangs on a link is read from the kernel, not remembered.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::{Context, Result, bail};
use aya::Ebpf;
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::xdp::{XdpLink, XdpMode};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType, Xdp};
use aya::sys::SyscallError;
use aya::util::KernelVersion;

use super::load;
use super::maps::Paths;
use super::repin;
use super::state::State;
use super::sys::{self, links};
use crate::plan::Hooks;
use crate::pods::wire::PREFIX;
use crate::source::netlink::message::Connection;
use crate::source::netlink::write::{self, Filter, Place};

/// Ours among the filters of a clsact qdisc.
const PRIORITY: u16 = 87;
const HANDLE: u32 = 0x57;
/// What judges packets to a pod: ahead of that, and leaves the rest to it.
const JUDGES: u16 = 86;

/// Where a program hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    Xdp,
    Ingress,
    Egress,
    /// At egress, too: what goes to a pod is judged by policies. The program at ingress then judges as well.
    Policy,
}

impl Point {
    pub const ALL: [Point; 4] = [Point::Xdp, Point::Ingress, Point::Egress, Point::Policy];

    pub fn label(self) -> &'static str {
        match self {
            Point::Xdp => "xdp",
            Point::Ingress => "ingress",
            Point::Egress => "egress",
            Point::Policy => "policy",
        }
    }

    /// `policy`: where policies are judged.
    fn program(self, policy: bool) -> &'static str {
        match self {
            Point::Xdp => load::XDP,
            Point::Ingress if policy => load::POLICY_OUT,
            Point::Ingress => load::INGRESS,
            Point::Egress => load::EGRESS,
            Point::Policy => load::POLICY_IN,
        }
    }

    fn direction(self) -> TcAttachType {
        if self == Point::Ingress { TcAttachType::Ingress } else { TcAttachType::Egress }
    }

    /// Of our filter.
    fn place(self) -> Place {
        let priority = if self == Point::Policy { JUDGES } else { PRIORITY };
        Place { egress: self != Point::Ingress, priority, handle: HANDLE }
    }

    fn flag(self, hooks: &mut Hooks) -> &mut bool {
        match self {
            Point::Xdp => &mut hooks.xdp,
            Point::Ingress => &mut hooks.tc_ingress,
            Point::Egress => &mut hooks.tc_egress,
            Point::Policy => &mut hooks.policy,
        }
    }
}

fn pin(paths: &Paths, link: u32, point: Point) -> PathBuf {
    paths.links().join(format!("{link}-{}", point.label()))
}

/// The links and points that pins name.
fn pins(paths: &Paths) -> Result<Vec<(u32, Point, PathBuf)>> {
    let mut all = Vec::new();
    let entries = match fs::read_dir(paths.links()) {
        Ok(entries) => entries,
        // Somebody removed it, with all that hung by the pins in it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(all),
        Err(error) => return Err(error).with_context(|| paths.links().display().to_string()),
    };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some((link, label)) = name.split_once('-') else { continue };
        let point = Point::ALL.into_iter().find(|point| point.label() == label);
        if let (Ok(link), Some(point)) = (link.parse(), point) {
            all.push((link, point, path));
        }
    }
    all.sort();
    Ok(all)
}

/// What hangs where, with the id of its program: pinned links whose interface lives, and our
/// filters on the interfaces that got a clsact qdisc or have been recorded.
pub fn attached(paths: &Paths, state: &State) -> Result<BTreeMap<(u32, Point), u32>> {
    let mut connection = Connection::open(libc::NETLINK_ROUTE)?;
    let pinned = pins(paths)?.into_iter().map(|(link, point, _)| (link, point));
    let points = [Point::Ingress, Point::Egress, Point::Policy];
    let filtered = state.filters.keys().flat_map(|link| points.map(|point| (*link, point)));
    let mut all = BTreeMap::new();
    for (link, point) in pinned.chain(filtered).collect::<BTreeSet<_>>() {
        if let Some(program) = hangs(&mut connection, paths, state, link, point)? {
            all.insert((link, point), program);
        }
    }
    Ok(all)
}

/// The id of our program at a point of a link.
fn hangs(connection: &mut Connection, paths: &Paths, state: &State, link: u32, point: Point) -> Result<Option<u32>> {
    let filters = point != Point::Xdp && state.filters.contains_key(&link);
    if let Some(filter) = filters.then(|| ours(connection, link, point)).flatten() {
        return Ok(Some(filter.program));
    }
    let path = pin(paths, link, point);
    match sys::link_facts(&path) {
        Ok(facts) => Ok((facts.ifindex == link).then_some(facts.program)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// Our filter on a link. A link or qdisc that isn't there has none.
fn ours(connection: &mut Connection, link: u32, point: Point) -> Option<Filter> {
    let place = point.place();
    let all = write::filters(connection, link, place.egress).ok()?;
    all.into_iter().find(|f| f.place == place)
}

/// Attaches and detaches the programs of one object.
pub struct Attacher {
    tcx: bool,
    /// Ids of our programs, and of those where policies are judged.
    programs: BTreeMap<(Point, bool), u32>,
}

impl Attacher {
    pub fn new(ebpf: &Ebpf) -> Result<Self> {
        let mut programs = BTreeMap::new();
        for (point, policy) in Point::ALL.into_iter().flat_map(|point| [(point, false), (point, true)]) {
            let name = point.program(policy);
            let program = ebpf.program(name).context("the object has the program")?;
            match program.info() {
                Ok(info) => _ = programs.insert((point, policy), info.id()),
                // Not loaded yet.
                Err(_) if load::is_of_policy(name) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Attacher { tcx: KernelVersion::current()? >= KernelVersion::new(6, 6, 0), programs })
    }

    /// What hangs on links and is this object's. A link that carries another's is listed without.
    pub fn read(&self, paths: &Paths, state: &State) -> Result<BTreeMap<u32, Hooks>> {
        let mut all: BTreeMap<u32, Hooks> = BTreeMap::new();
        let attached = attached(paths, state)?;
        for ((link, point), program) in &attached {
            let hooks = all.entry(*link).or_default();
            let policy = attached.contains_key(&(*link, Point::Policy));
            *point.flag(hooks) = self.programs.get(&(*point, policy)) == Some(program);
        }
        for (&link, hooks) in &mut all {
            hooks.interface = sys::interface_name(link).unwrap_or_default();
        }
        Ok(all)
    }

    /// Loads the programs that judge, once there is something to judge.
    fn judge(&mut self, ebpf: &mut Ebpf) -> Result<()> {
        if self.programs.contains_key(&(Point::Policy, true)) {
            return Ok(());
        }
        load::policy_programs(ebpf)?;
        for (point, policy) in [(Point::Ingress, true), (Point::Policy, false), (Point::Policy, true)] {
            let program = ebpf.program(point.program(policy)).context("the programs are loaded")?;
            self.programs.insert((point, policy), program.info()?.id());
        }
        Ok(())
    }

    /// Notes the filters that links are to carry, by one change.
    pub fn note(&self, paths: &Paths, state: &mut State, all: &[(u32, &Hooks)]) -> Result<()> {
        let filtered = all.iter().filter(|(link, hooks)| {
            let filters = |point| self.filters(&hooks.interface, hooks.policy, &pin(paths, *link, point));
            hooks.policy || hooks.tc_ingress && filters(Point::Ingress) || hooks.tc_egress && filters(Point::Egress)
        });
        state.change(paths, |state| filtered.for_each(|(link, hooks)| note(state, *link, &hooks.interface)))
    }

    /// Whether what hangs at a point of TC is a filter.
    fn filters(&self, name: &str, policy: bool, pin: &Path) -> bool {
        // The kernel lets nobody else near its links until all CPUs have gone by a new tcx link (`tcx_entry_sync`,
        // 6.6 to 6.18), 10 ms or so: too long for many pods at once. A filter costs less than 1 ms.
        // Where policies are judged, nothing is to come before the filters.
        !self.tcx || policy || (name.starts_with(PREFIX) && !pin.exists())
    }

    /// Makes a link carry what `hooks` says, and nothing else of ours.
    pub fn set(
        &mut self,
        ebpf: &mut Ebpf,
        paths: &Paths,
        state: &mut State,
        link: u32,
        hooks: Option<&Hooks>,
    ) -> Result<()> {
        // One that is gone has no packets, and its name may be another's by now.
        if hooks.is_some_and(|hooks| is_gone(link, hooks)) {
            return Ok(());
        }
        let mut wanted = hooks.cloned().unwrap_or_default();
        if wanted.policy {
            self.judge(ebpf)?;
        }
        let mut connection = Connection::open(libc::NETLINK_ROUTE)?;
        let mut there = BTreeSet::new();
        for point in Point::ALL {
            there.extend(hangs(&mut connection, paths, state, link, point)?.map(|_| point));
        }
        // First what comes, then what goes: a link that changes hooks is never without.
        let (name, policy) = (wanted.interface.clone(), wanted.policy);
        for point in Point::ALL {
            if *point.flag(&mut wanted) {
                self.attach(ebpf, paths, state, (link, &name), point, policy)
                    .with_context(|| format!("attaching {} to {name}", point.label()))?;
            }
        }
        for point in there {
            if !*point.flag(&mut wanted) {
                detach(paths, state, link, point)
                    .with_context(|| format!("detaching {} from link {link}", point.label()))?;
            }
        }
        Ok(())
    }

    /// Puts this object's programs wherever any of ours hang.
    pub fn take_over(&mut self, ebpf: &mut Ebpf, paths: &Paths, state: &mut State) -> Result<()> {
        let attached = attached(paths, state)?;
        if attached.keys().any(|(_, point)| *point == Point::Policy) {
            self.judge(ebpf)?;
        }
        for &(link, point) in attached.keys() {
            // A link that is gone meanwhile has no packets.
            let Some(name) = sys::interface_name(link) else { continue };
            let policy = attached.contains_key(&(link, Point::Policy));
            self.attach(ebpf, paths, state, (link, &name), point, policy)
                .with_context(|| format!("attaching {} to {name}", point.label()))?;
        }
        Ok(())
    }

    fn attach(
        &self,
        ebpf: &mut Ebpf,
        paths: &Paths,
        state: &mut State,
        (link, name): (u32, &str),
        point: Point,
        policy: bool,
    ) -> Result<()> {
        let path = pin(paths, link, point);
        let called = point.program(policy);
        let program = ebpf.program_mut(called).context("the programs are loaded")?;
        match point {
            Point::Xdp => attach_xdp(program.try_into()?, &path, link, name),
            _ if !self.filters(name, policy, &path) => attach_tcx(program.try_into()?, &path, name, point),
            _ => {
                attach_filter((called, (&*program).try_into()?), paths, state, (link, name), point)?;
                // What an agent before had there comes ahead of filters.
                if policy && path.exists() {
                    links::detach(&path).and_then(|()| fs::remove_file(path))?;
                }
                Ok(())
            }
        }
    }
}

/// Whether there is no such link any more.
pub fn is_gone(link: u32, hooks: &Hooks) -> bool {
    sys::interface_name(link).as_ref() != Some(&hooks.interface)
}

/// The pinned link, if there is one.
fn pinned(path: &Path) -> Result<Option<FdLink>> {
    match PinnedLink::from_pin(path) {
        Ok(link) => Ok(Some(FdLink::from(link))),
        Err(LinkError::SyscallError(SyscallError { io_error, .. })) if io_error.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// The errno behind an attachment's failure.
fn errno(error: &ProgramError) -> Option<i32> {
    match error {
        ProgramError::SyscallError(SyscallError { io_error, .. }) => io_error.raw_os_error(),
        _ => None,
    }
}

/// The link's interface is gone; another may have its name and even its index.
fn is_defunct(error: &ProgramError) -> bool {
    errno(error) == Some(libc::ENOLINK)
}

fn attach_xdp(program: &mut Xdp, path: &Path, link: u32, name: &str) -> Result<()> {
    if let Some(old) = pinned(path)? {
        match program.attach_to_link(XdpLink::try_from(old)?) {
            Ok(id) => return FdLink::try_from(program.take_link(id)?).map(drop).map_err(Into::into),
            Err(error) if is_defunct(&error) => fs::remove_file(path)?,
            Err(error) => return Err(error).context("replacing the XDP program"),
        }
    }
    let id = match program.attach_to_if_index(link, XdpMode::Driver) {
        Err(error) if errno(&error) == Some(libc::EBUSY) => {
            bail!("another XDP program is attached to {name}; detach it, or set this port's hook to tc")
        }
        Err(error) => {
            let id = program.attach_to_if_index(link, XdpMode::Skb)?;
            tracing::warn!(
                "{name}: its driver takes no native XDP ({}); generic XDP serves it, more slowly than hook: tc would",
                reason(&error)
            );
            id
        }
        Ok(id) => id,
    };
    let link = program.take_link(id)?;
    repin::link(FdLink::try_from(link).context("this kernel has no XDP links")?, path)
}

fn reason(error: &ProgramError) -> String {
    match error {
        ProgramError::SyscallError(SyscallError { io_error, .. }) => io_error.to_string(),
        other => other.to_string(),
    }
}

fn attach_tcx(program: &mut SchedClassifier, path: &Path, name: &str, point: Point) -> Result<()> {
    if let Some(old) = pinned(path)? {
        match program.attach_to_link(SchedClassifierLink::try_from(old)?) {
            Ok(id) => return FdLink::try_from(program.take_link(id)?).map(drop).map_err(Into::into),
            Err(error) if is_defunct(&error) => fs::remove_file(path)?,
            Err(error) => return Err(error).context("replacing the tcx program"),
        }
    }
    let options = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program.attach_with_options(name, point.direction(), options)?;
    repin::link(FdLink::try_from(program.take_link(id)?)?, path)
}

/// A link that gets filters. A pod's was made by us, and so will be its qdisc.
fn note(state: &mut State, link: u32, name: &str) {
    state.filters.insert(link, name.to_owned());
    if name.starts_with(PREFIX) {
        state.clsact.insert(link, name.to_owned());
    }
}

fn attach_filter(
    (called, program): (&str, &SchedClassifier),
    paths: &Paths,
    state: &mut State,
    (link, name): (u32, &str),
    point: Point,
) -> Result<()> {
    if state.filters.get(&link).is_none_or(|known| known != name) {
        state.change(paths, |state| note(state, link, name))?;
    }
    let mut connection = Connection::open(libc::NETLINK_ROUTE)?;
    let made = write::create_clsact(&mut connection, link).context("adding a clsact qdisc")?;
    if made && state.clsact.get(&link).is_none_or(|known| known != name) {
        state.change(paths, |state| _ = state.clsact.insert(link, name.to_owned()))?;
    }
    write::set_filter(&mut connection, link, point.place(), called, program.fd()?.as_fd()).context("setting a filter")
}

/// Takes our program off a point. What is gone already is fine.
pub fn detach(paths: &Paths, state: &State, link: u32, point: Point) -> Result<()> {
    let pin = pin(paths, link, point);
    match links::detach(&pin).and_then(|()| fs::remove_file(pin)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    if state.filters.contains_key(&link) {
        let mut connection = Connection::open(libc::NETLINK_ROUTE)?;
        if ours(&mut connection, link, point).is_some() {
            write::delete_filter(&mut connection, link, point.place())?;
        }
    }
    Ok(())
}

/// Removes pins whose interface is gone.
pub fn prune(paths: &Paths) -> Result<()> {
    for (link, _, path) in pins(paths)? {
        if sys::link_facts(&path).is_ok_and(|facts| facts.ifindex != link) {
            fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}
