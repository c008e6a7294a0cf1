//! The loaded programs: the product's by its own loader, the bench's beside them, and one wrapper in
//! front of whichever is under test.

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, ProgramArray};
use aya::programs::{ProgramFd, SchedClassifier, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use lb_common::drop::{Drop, Note};
use lb_common::port_table::{HOLDERS, Holder, PLANE, PortTable};
use lb_common::table::{Counters, Flow, FlowKey};
use lb_common::tcp;
use lb_common::wire::{Addr, Ip4, Ip6};
use lb_user::apply::flows::Flows;
use lb_user::apply::table::Table;
use lb_user::apply::{Kernel, Paths, load, maps::FamilyMaps, unload};
use lb_user::intent::Capacity;
use stellwerk_tests::netns::{Lab, Ns};
pub use stellwerk_tests::object::object;

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
    /// The same at TC, with the TCP checksum by the kernel's helper.
    LimitHelper,
    /// Parses, inserts a connection's two entries.
    Fresh,
    /// The product.
    Stellwerk,
}

/// Where the programs of a lane get their packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    Xdp,
    Tc,
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
    /// What the last packet became.
    pub packet: [u8; 80],
}

/// Programs of the bench's object: at XDP and at TC.
const XDP: [&str; 6] = ["wrap4", "wrap6", "stub", "parse", "limit", "fresh"];
const TC: [&str; 7] = ["wrap4_tc", "wrap6_tc", "stub_tc", "parse_tc", "limit_tc", "limit_helper_tc", "fresh_tc"];
/// Room for what the limit of new connections inserts, so that it evicts nothing.
const FRESH: u32 = 1 << 20;
/// What the wrapper returns when it can't call.
const ABORTED_XDP: u32 = 0;
const ABORTED_TC: u32 = -2i32 as u32;

/// Binds the thread to one CPU, the last.
pub fn pin_cpu() -> Result<()> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let mut set = nix::sched::CpuSet::new();
    set.set(cpus - 1)?;
    Ok(nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?)
}

/// Time that this thread has run.
#[expect(unsafe_code, reason = "the clock has no safe form among the crates used here")]
pub fn thread_ns() -> f64 {
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
        for name in ["LIMIT4", "LIMIT6"] {
            loader.map_max_entries(name, capacity.connections * 2);
        }
        for name in ["FRESH4", "FRESH6"] {
            loader.map_max_entries(name, (capacity.connections * 2).max(FRESH));
        }
        let mut bench = loader.load(&bytes).context("loading bench.o")?;
        for name in XDP {
            let program: &mut Xdp = bench.program_mut(name).context(name)?.try_into()?;
            program.load().with_context(|| format!("loading {name}"))?;
        }
        for name in TC {
            let program: &mut SchedClassifier = bench.program_mut(name).context(name)?.try_into()?;
            program.load().with_context(|| format!("loading {name}"))?;
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
    pub fn run(&mut self, lane: Lane, at: At, v6: bool, repeat: u32) -> Result<Run> {
        stellwerk_tests::netns::clean::check()?;
        let fd = self.target(lane, at)?;
        let (wrapper, target) = match (at, v6) {
            (At::Xdp, false) => ("wrap4", "TARGET"),
            (At::Xdp, true) => ("wrap6", "TARGET"),
            (At::Tc, false) => ("wrap4_tc", "TARGET_TC"),
            (At::Tc, true) => ("wrap6_tc", "TARGET_TC"),
        };
        let mut targets = ProgramArray::try_from(self.bench.map_mut(target).context(target)?)?;
        targets.set(0, &fd, 0)?;
        let (input, mut packet) = ([0u8; 80], [0u8; 80]);
        let length = if v6 { 74 } else { 64 };
        let options = TestRunOptions {
            data_in: Some(&input[..length]),
            data_out: Some(&mut packet),
            repeat,
            ..TestRunOptions::default()
        };
        let wrapper = self.bench.program(wrapper).context(wrapper)?;
        let before = thread_ns();
        let ran = match at {
            At::Xdp => <&Xdp>::try_from(wrapper)?.test_run(options)?,
            At::Tc => <&SchedClassifier>::try_from(wrapper)?.test_run(options)?,
        };
        let ns = (thread_ns() - before) / f64::from(repeat);
        let aborted = if at == At::Xdp { ABORTED_XDP } else { ABORTED_TC };
        ensure!(ran.return_value != aborted, "{lane:?}: the last packet was aborted");
        Ok(Run { ns, code: ran.return_value, packet })
    }

    fn target(&self, lane: Lane, at: At) -> Result<ProgramFd> {
        let (ebpf, xdp, tc) = match lane {
            Lane::Stub => (&self.bench, "stub", "stub_tc"),
            Lane::Parse => (&self.bench, "parse", "parse_tc"),
            Lane::Limit => (&self.bench, "limit", "limit_tc"),
            Lane::LimitHelper => (&self.bench, "", "limit_helper_tc"),
            Lane::Fresh => (&self.bench, "fresh", "fresh_tc"),
            Lane::Stellwerk => (&self.kernel.ebpf, load::XDP, load::INGRESS),
        };
        let name = if at == At::Xdp { xdp } else { tc };
        let program = ebpf.program(name).with_context(|| format!("{lane:?} at {at:?}"))?;
        let fd = match at {
            At::Xdp => <&Xdp>::try_from(program)?.fd()?,
            At::Tc => <&SchedClassifier>::try_from(program)?.fd()?,
        };
        Ok(fd.try_clone()?)
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

    /// Drops of one reason.
    pub fn dropped(&self, reason: Drop) -> Result<u64> {
        self.kernel.maps.drops.sum(reason as u32)
    }

    /// All reasons that packets were dropped for, and how many were.
    pub fn all_dropped(&self) -> Result<Vec<(&'static str, u64)>> {
        let all = Drop::ALL.iter().map(|&reason| Ok((reason.label(), self.dropped(reason)?)));
        Ok(all.collect::<Result<Vec<_>>>()?.into_iter().filter(|(_, count)| *count > 0).collect())
    }

    pub fn noted(&self, note: Note) -> Result<u64> {
        self.kernel.maps.notes.sum(note as u32)
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

    /// Removes all connections of a version, and gives all ports back.
    pub fn clear(&self, v6: bool) {
        let maps = &self.kernel.maps;
        if v6 { clear(&maps.v6) } else { clear(&maps.v4) }
    }

    /// Removes all pins.
    pub fn close(self) -> Result<()> {
        unload(&self.kernel.paths).map(drop)
    }
}

fn fill<A: Addr>(from: &FamilyMaps<A>, to: &Table<FlowKey<A>, Flow<A>>) -> Result<()> {
    from.flows.entries().iter().try_for_each(|(key, hit)| to.set(key, &hit.flow))
}

fn count<A: Addr>(flows: &Flows<A>) -> (usize, usize) {
    let all = flows.entries();
    let answered = all.iter().filter(|(_, hit)| tcp::answered(hit.flow.state)).count();
    (answered, all.len() - answered)
}

fn clear<A: Addr>(maps: &FamilyMaps<A>) {
    maps.flows.remove_entries(|_, _| true);
    for taken in maps.ports.taken(0, maps.ports.planes() * PLANE) {
        maps.ports.give_back(&taken);
    }
    (0..HOLDERS).filter_map(|index| maps.ports.holder(index)).for_each(|holder: &Holder<A>| {
        holder.forget();
    });
}
