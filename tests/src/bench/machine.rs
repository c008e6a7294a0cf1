//! The loaded programs: the product's by its own loader, the bench's beside them, and one wrapper in
//! front of whichever is under test.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, ProgramArray};
use aya::programs::{ProgramFd, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use lb_common::table::{Counters, Flow, FlowKey};
use lb_common::tcp;
use lb_common::wire::{Addr, Ip4, Ip6};
use lb_user::apply::flows::Flows;
use lb_user::apply::table::Table;
use lb_user::apply::{Kernel, Paths, load, maps::FamilyMaps, unload};
use lb_user::intent::Capacity;
use stellwerk_tests::netns::{Lab, Ns};

use super::script::Script;

/// Backends whose counters are read.
const BACKENDS: u32 = 64;

/// A program that can be put behind the wrapper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Returns at once.
    Stub,
    /// Parses.
    Parse,
    /// Parses, finds a connection, rewrites.
    Limit,
    /// Parses, inserts a connection's two entries.
    Fresh,
    /// The product.
    Stellwerk,
}

pub struct Machine {
    pub kernel: Kernel,
    bench: Ebpf,
    limit4: Table<FlowKey<Ip4>, Flow<Ip4>>,
    limit6: Table<FlowKey<Ip6>, Flow<Ip6>>,
    // Behind what uses its namespace.
    _ns: Ns,
    _lab: Lab,
}

/// What a measurement gave.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Nanoseconds a packet, with the wrapper's own.
    pub ns: f64,
    /// What the last packet's program returned.
    pub code: u32,
}

/// The object of an eBPF bin.
pub fn object(name: &str) -> Result<Vec<u8>> {
    let beside = |dir: &Path| dir.join(format!("{name}.o"));
    let path = match std::env::var_os("STELLWERK_BPF_DIR") {
        Some(dir) => beside(&PathBuf::from(dir)),
        None => beside(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf")),
    };
    std::fs::read(&path).with_context(|| format!("{}: `cargo xtask build` makes it", path.display()))
}

/// Binds the thread to one CPU, the last.
pub fn pin_cpu() -> Result<()> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let mut set = nix::sched::CpuSet::new();
    set.set(cpus - 1)?;
    Ok(nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?)
}

/// Time that this thread has run.
#[expect(unsafe_code, reason = "the clock has no safe form among the crates used here")]
fn thread_ns() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills the one value it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

impl Machine {
    /// Loads everything in a namespace of its own. The limit's tables are as large as the product's.
    pub fn new(capacity: &Capacity) -> Result<Machine> {
        let lab = Lab::new()?;
        let ns = lab.ns("packet")?;
        ns.enter()?;
        pin_cpu()?;
        let kernel = Kernel::load(&Paths::new(lab.pins()), capacity, false)?;
        let bytes = object("bench")?;
        let mut loader = EbpfLoader::new();
        for name in ["LIMIT4", "LIMIT6", "FRESH4", "FRESH6"] {
            loader.map_max_entries(name, capacity.connections * 2);
        }
        let mut bench = loader.load(&bytes).context("loading bench.o")?;
        for name in ["wrap4", "wrap6", "stub", "parse", "limit", "fresh"] {
            xdp(&mut bench, name)?.load().with_context(|| format!("loading {name}"))?;
        }
        // A typed table is opened by its pin.
        let dir = lab.pins();
        for name in ["LIMIT4", "LIMIT6"] {
            bench.map(name).context(name)?.pin(dir.join(name)).with_context(|| format!("pinning {name}"))?;
        }
        let (limit4, limit6) = (Table::open(&dir, "LIMIT4")?, Table::open(&dir, "LIMIT6")?);
        Ok(Machine { kernel, bench, limit4, limit6, _ns: ns, _lab: lab })
    }

    /// Runs `repeat` packets of the script set last through a program.
    pub fn run(&mut self, lane: Lane, v6: bool, repeat: u32) -> Result<Run> {
        stellwerk_tests::netns::clean::check()?;
        let fd = self.target(lane)?;
        let mut target = ProgramArray::try_from(self.bench.map_mut("TARGET").context("TARGET")?)?;
        target.set(0, &fd, 0)?;
        let packet = [0u8; 80];
        let length = if v6 { 74 } else { 64 };
        let wrapper: &Xdp =
            self.bench.program(if v6 { "wrap6" } else { "wrap4" }).context("the wrapper")?.try_into()?;
        let options = TestRunOptions { data_in: Some(&packet[..length]), repeat, ..TestRunOptions::default() };
        let before = thread_ns();
        let ran = wrapper.test_run(options)?;
        let ns = (thread_ns() - before) / f64::from(repeat);
        ensure!(ran.return_value != 0, "{lane:?}: the last packet was aborted");
        Ok(Run { ns, code: ran.return_value })
    }

    fn target(&self, lane: Lane) -> Result<ProgramFd> {
        let (ebpf, name) = match lane {
            Lane::Stub => (&self.bench, "stub"),
            Lane::Parse => (&self.bench, "parse"),
            Lane::Limit => (&self.bench, "limit"),
            Lane::Fresh => (&self.bench, "fresh"),
            Lane::Stellwerk => (&self.kernel.ebpf, load::XDP),
        };
        let program: &Xdp = ebpf.program(name).with_context(|| name.to_owned())?.try_into()?;
        Ok(program.fd()?.try_clone()?)
    }

    pub fn script(&mut self, script: &Script) -> Result<()> {
        let mut map = Array::<_, [u32; 24]>::try_from(self.bench.map_mut("SCRIPT").context("SCRIPT")?)?;
        let words: [u32; 24] = zerocopy::transmute!(*script);
        Ok(map.set(0, words, 0)?)
    }

    /// Of all backends.
    pub fn counters(&self) -> Result<Counters> {
        let mut sum = Counters::default();
        for id in 0..BACKENDS {
            sum = lb_user::apply::table::add(sum, self.kernel.maps.counters.sum(id)?);
        }
        Ok(sum)
    }

    /// Drops of all reasons.
    pub fn drops(&self) -> Result<u64> {
        (0..self.kernel.maps.drops.capacity()).map(|i| self.kernel.maps.drops.sum(i)).sum()
    }

    /// Makes the limit's table hold what the product's holds.
    pub fn fill_limit(&self) -> Result<()> {
        fill(&self.kernel.maps.v4, &self.limit4)?;
        fill(&self.kernel.maps.v6, &self.limit6)
    }

    /// Answered and unanswered entries of a version.
    pub fn entries(&self, v6: bool) -> (usize, usize) {
        let maps = &self.kernel.maps;
        if v6 { count(&maps.v6.flows) } else { count(&maps.v4.flows) }
    }

    /// Removes unanswered connections.
    pub fn clear_half(&self) {
        self.kernel.maps.v4.flows.remove_entries(|_, flow| !tcp::answered(flow.state));
        self.kernel.maps.v6.flows.remove_entries(|_, flow| !tcp::answered(flow.state));
    }

    /// Removes all pins.
    pub fn close(self) -> Result<()> {
        unload(&self.kernel.paths).map(drop)
    }
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    Ok(ebpf.program_mut(name).with_context(|| name.to_owned())?.try_into()?)
}

fn fill<A: Addr>(from: &FamilyMaps<A>, to: &Table<FlowKey<A>, Flow<A>>) -> Result<()> {
    from.flows.entries().iter().try_for_each(|(key, hit)| to.set(key, &hit.flow))
}

fn count<A: Addr>(flows: &Flows<A>) -> (usize, usize) {
    let all = flows.entries();
    let answered = all.iter().filter(|(_, hit)| tcp::answered(hit.flow.state)).count();
    (answered, all.len() - answered)
}
