//! Programs and maps into the kernel, with the maps that are already there.
//!
//! Invariant: pinned maps are never emptied or read as another layout. A capacity that differs from the
//! configuration's stays in force and is told, but that flow tables grow ([`super::grow`]); another version's maps are
//! taken over first ([`super::migrate`]).

use std::borrow::Cow;
use std::io::Read;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::{env, fs, io, thread};

use anyhow::{Context, Result, bail, ensure};
use aya::maps::MapInfo;
use aya::programs::{Program, ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfLoader};
use lb_common::flow_table::{MULTIPLIERS, NONE, WAYS};
use lb_common::port_table::PLANE;

use super::clock;
use super::flows;
use super::grow;
use super::layout::Layout;
use super::maps::{Maps, Paths, SPECS, flow_hash, layout};
use super::migrate;
use super::pin;
use super::sockets;
use super::state::{State, namespace};
use super::sys;
use crate::intent::Capacity;

/// Where the object may be instead of in this binary.
const OBJECT: &str = "STELLWERK_EBPF_OBJECT";
static EMBEDDED: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/stellwerk.o"));

pub const XDP: &str = "stellwerk_xdp";
pub const INGRESS: &str = "stellwerk_ingress";
pub const EGRESS: &str = "stellwerk_egress";
/// In place of [`INGRESS`] at the node's ends of pods' links, where policies are judged, and
pub const POLICY_OUT: &str = "stellwerk_policy_out";
/// ahead of [`EGRESS`] there.
pub const POLICY_IN: &str = "stellwerk_policy_in";

/// The eBPF object's bytes.
pub fn object() -> Result<Cow<'static, [u8]>> {
    if let Some(path) = env::var_os(OBJECT) {
        let bytes = fs::read(&path).with_context(|| format!("{OBJECT}={}", path.display()))?;
        return Ok(Cow::Owned(bytes));
    }
    ensure!(
        !EMBEDDED.is_empty(),
        "this stellwerk was built without its eBPF programs: run `cargo xtask build`, which builds both \
         (or name the object in {OBJECT})"
    );
    Ok(Cow::Borrowed(EMBEDDED))
}

/// What is in the kernel now.
pub struct Loaded {
    pub ebpf: Ebpf,
    pub maps: Maps,
    /// The capacities in force.
    pub capacity: Capacity,
    pub state: State,
    /// No map was there.
    fresh: bool,
}

impl Loaded {
    /// Leaves no maps behind that hold nothing.
    pub fn take_back(self, paths: &Paths) -> Result<()> {
        if self.fresh {
            remove_layout(paths, layout())?;
            fs::remove_file(paths.programs().join(clock::PROGRAM))?;
        }
        Ok(())
    }
}

/// Loads all programs on the maps that are there, or on new ones. Nothing is attached yet.
/// `traced`: with the data plane's messages about [`lb_common::table::Settings::trace_port`]; `policies`: also the
/// programs that judge by policies, which are loaded later otherwise, where they are needed.
pub fn load(paths: &Paths, wanted: &Capacity, traced: bool, policies: bool) -> Result<Loaded> {
    let mut state = State::read(paths)?;
    sys::raise_memlock();
    pin::prepare(paths, &mut state)?;
    same_namespace(paths, &mut state)?;
    let dir = paths.maps();
    for dir in [&paths.links(), &paths.programs()] {
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    }
    migrate::migrate(paths, &mut state, wanted, policies)?;
    let fresh = !dir.exists();
    if !paths.layout(layout()).exists() {
        Layout::own().write(paths)?;
    }
    if fresh {
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    }
    let multipliers = multipliers(&dir)?;
    grow::grow(paths, &mut state, wanted, &multipliers)?;
    let capacity = in_force(&dir, wanted)?;
    let constants = Constants::new(multipliers, &capacity, traced);
    let mut ebpf = programs(&dir, &constants, &capacity, &[], policies)?;
    repin_clock(&mut ebpf, paths)?;
    flow_hash(&dir)?.set(&0, &multipliers)?;
    let maps = Maps::open(&dir)?;
    match maps.v4.flows.recover() + maps.v6.flows.recover() {
        0 => {}
        slots => tracing::warn!("freed {slots} slots of the flow tables that a killed agent had owned"),
    }
    Ok(Loaded { ebpf, maps, capacity, state, fresh })
}

/// What the verifier takes for constants: it leaves out what they rule out.
pub(super) struct Constants {
    pub multipliers: [u64; MULTIPLIERS],
    pub mask: u32,
    /// As [`lb_common::flow_table::FlowTable::elder`] says, by family.
    pub elders: [u32; 2],
    /// Not 0: with messages about [`lb_common::table::Settings::trace_port`].
    pub traced: u32,
}

impl Constants {
    /// Of flow tables that don't grow.
    pub fn new(multipliers: [u64; MULTIPLIERS], capacity: &Capacity, traced: bool) -> Self {
        let mask = flows::slots(capacity) / WAYS - 1;
        Constants { multipliers, mask, elders: [NONE; 2], traced: traced.into() }
    }
}

/// A map that is pinned elsewhere than its name says.
pub(super) struct Placed {
    pub name: &'static str,
    pub pin: PathBuf,
    /// How many entries it has if it is made.
    pub entries: u32,
}

/// Loads the object on the maps in a folder, or makes them, and has its programs verified.
pub(super) fn programs(
    dir: &Path,
    constants: &Constants,
    capacity: &Capacity,
    placed: &[Placed],
    policies: bool,
) -> Result<Ebpf> {
    let object = object()?;
    let mut loader = EbpfLoader::new();
    loader.override_global("TRACING", &constants.traced, false);
    loader.override_global("FLOW_MULTIPLIERS", &constants.multipliers, true);
    loader.override_global("FLOW_MASK", &constants.mask, true).override_global("FLOW_ELDERS", &constants.elders, true);
    let of_sockets = sockets::Constants::new();
    loader.override_global("SOCKET_NAMESPACE", &of_sockets.namespace, true);
    loader.override_global("SOCKET_REFUSES", &of_sockets.refuses, true);
    for spec in SPECS {
        loader.map_pin_path(spec.name, dir.join(spec.name));
        if let Some(entries) = spec.capacity {
            loader.map_max_entries(spec.name, entries(capacity).max(1));
        }
    }
    for map in placed {
        loader.map_pin_path(map.name, &*map.pin).map_max_entries(map.name, map.entries);
    }
    let mut ebpf = loader.load(&object).context("loading the eBPF object")?;
    verify_all(&mut ebpf, policies)?;
    Ok(ebpf)
}

/// Loads the programs, each on a thread of its own: the verifier takes a second for one.
fn verify_all(ebpf: &mut Ebpf, policies: bool) -> Result<()> {
    thread::scope(|scope| {
        let load = |(name, program): (&str, &mut Program)| match program {
            Program::Xdp(program) => verified(name, program.load()),
            // Where policies are judged ([`super::hooks`]).
            Program::SchedClassifier(_) if is_of_policy(name) && !policies => Ok(()),
            Program::SchedClassifier(program) => verified(name, program.load()),
            // Where they are wished, and never in the way of packets ([`super::sockets`]).
            Program::CgroupSockAddr(_) => Ok(()),
            _ => bail!("the object has a program {name} of an unknown kind"),
        };
        let programs: Vec<_> = ebpf.programs_mut().map(|(name, program)| (name.to_owned(), program)).collect();
        let loading: Vec<_> =
            programs.into_iter().map(|(name, program)| scope.spawn(move || load((&name, program)))).collect();
        loading.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })?;
    for name in [XDP, INGRESS, EGRESS, POLICY_OUT, POLICY_IN, clock::PROGRAM] {
        ensure!(ebpf.program(name).is_some(), "the object has no program {name}");
    }
    Ok(())
}

pub(super) fn is_of_policy(name: &str) -> bool {
    [POLICY_OUT, POLICY_IN].contains(&name)
}

/// Loads the programs that judge by policies.
pub fn policy_programs(ebpf: &mut Ebpf) -> Result<()> {
    for name in [POLICY_OUT, POLICY_IN] {
        let program: &mut SchedClassifier = ebpf.program_mut(name).context("the object has the program")?.try_into()?;
        match program.load() {
            Err(ProgramError::AlreadyLoaded) => {}
            result => verified(name, result)?,
        }
    }
    Ok(())
}

/// The random numbers of the flow tables that are there, or new ones.
pub(super) fn multipliers(dir: &Path) -> Result<[u64; MULTIPLIERS]> {
    if dir.join("FLOW_HASH").exists()
        && let Some(known) = flow_hash(dir)?.get(&0)?
        && known != [0; MULTIPLIERS]
    {
        return Ok(known);
    }
    let mut random = [[0u8; 8]; MULTIPLIERS];
    let source = "/dev/urandom";
    fs::File::open(source).and_then(|mut file| file.read_exact(random.as_flattened_mut())).context(source)?;
    let mut multipliers = random.map(u64::from_ne_bytes);
    // Odd: it then carries every bit of what it multiplies.
    multipliers[MULTIPLIERS - 1] |= 1;
    Ok(multipliers)
}

/// A verifier's log is long; its end says what it didn't like.
pub(super) fn verified(name: &str, result: Result<(), ProgramError>) -> Result<()> {
    match result {
        Err(ProgramError::LoadError { io_error, verifier_log }) => {
            let log = verifier_log.to_string();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(30)..].join("\n");
            tracing::debug!("verifier log of {name}:\n{log}");
            bail!("the kernel refuses the program {name}: {io_error}\n{tail}")
        }
        result => result.with_context(|| format!("loading the program {name}")),
    }
}

fn repin_clock(ebpf: &mut Ebpf, paths: &Paths) -> Result<()> {
    let path = paths.programs().join(clock::PROGRAM);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).context("replacing the clock"),
        _ => {}
    }
    let program = ebpf.program_mut(clock::PROGRAM).context("the object has no clock")?;
    program.pin(&path).context("pinning the clock program")
}

/// The wanted capacities, but those of maps that are there where they differ.
pub(super) fn in_force(dir: &Path, wanted: &Capacity) -> Result<Capacity> {
    let mut capacity = *wanted;
    for spec in SPECS {
        let (Some(entries), path) = (spec.capacity, dir.join(spec.name)) else { continue };
        if !path.exists() {
            continue;
        }
        let real = MapInfo::from_pin(&path).with_context(|| path.display().to_string())?.max_entries();
        if real != entries(wanted).max(1) {
            tracing::warn!(
                "the table {} keeps its room for {real} entries, not {} as configured: it holds live state; \
                 `stellwerk unload` first for another capacity",
                spec.name,
                entries(wanted)
            );
            adopt(&mut capacity, spec.name, real);
        }
    }
    Ok(capacity)
}

fn adopt(capacity: &mut Capacity, name: &str, entries: u32) {
    match name.trim_end_matches(['4', '6']) {
        "SLOTS" => capacity.slots = entries.saturating_mul(2),
        "NEXT_HOPS" => capacity.next_hops = entries,
        "COUNTERS" | "BACKENDS" => capacity.backends = entries,
        "NAMES" | "RETIRED" | "SERVICES" | "SOURCES" => capacity.services = entries,
        "FLOWS" => capacity.connections = flows::connections(entries),
        "AFFINITY" => capacity.affinity = entries,
        "FRAGMENTS" => capacity.fragments = entries,
        "SOCKETS" => capacity.sockets = entries,
        "OWNERS" => capacity.nat_addresses = entries / PLANE,
        "PORTS" => capacity.nat_addresses = entries * 64 / PLANE,
        _ => {}
    }
}

/// Folders of maps that have not this layout.
pub fn other_layouts(paths: &Paths) -> Result<Vec<String>> {
    let mut others = Vec::new();
    for entry in fs::read_dir(&paths.pin).with_context(|| paths.pin.display().to_string())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with("maps-") && name != layout() {
            others.push(name);
        }
    }
    Ok(others)
}

/// Removes maps of other layouts, once nothing runs on them.
pub fn remove_other_layouts(paths: &Paths) -> Result<()> {
    for name in other_layouts(paths)? {
        remove_layout(paths, &name).with_context(|| format!("removing {name}"))?;
        tracing::info!("removed {name}, the maps of another version");
    }
    Ok(())
}

/// Removes a folder of maps, and what says how they lie.
fn remove_layout(paths: &Paths, name: &str) -> io::Result<()> {
    fs::remove_dir_all(paths.pin.join(name))?;
    match fs::remove_file(paths.layout(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Pins of one network namespace are no use in another.
fn same_namespace(paths: &Paths, state: &mut State) -> Result<()> {
    let here = namespace()?;
    let any_link = fs::read_dir(paths.links()).is_ok_and(|mut links| links.next().is_some());
    if state.namespace != 0 && state.namespace != here && any_link {
        bail!(
            "{} belongs to an agent in another network namespace: choose another pin path, or `stellwerk unload` there",
            paths.pin.display()
        );
    }
    state.change(paths, |state| state.namespace = here)
}
