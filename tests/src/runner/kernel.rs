//! The engine in the kernel: the real programs and maps, run by BPF_PROG_TEST_RUN in step with the
//! host's engine. After every packet both must agree in verdict, bytes, counters and tables.
//!
//! What differs by nature is taken out: the times in entries (the kernel's clock runs by itself: before a step the
//! entries' times go along with what it ran, and `advance` turns them back), and where a redirect leads, which the
//! test run doesn't tell.

mod times;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{PerCpuArray, PerCpuValues};
use aya::programs::{ProgramError, SchedClassifier, TestRun, TestRunOptions, TestRunResult, Xdp, XdpMode};
use lb_common::drop::{Drop as Reason, Note};
use lb_common::port_table::{HOLDERS, PLANE, PortTable};
use lb_common::table::{Admitted, Flow, Plain};
use lb_common::verdict::{Arrival, Hook, Verdict};
use lb_common::wire::{Addr, Ip4, Ip6};
use lb_user::apply::table::Table;
use lb_user::apply::{Kernel, Paths, clock, load, maps::FamilyMaps, sockets, unload};
use lb_user::intent::Capacity;
use lb_user::plan::{Apply, Contents, Op};
use lb_user::trace::buffer::Refuses;
use lb_user::trace::view::View;
use lb_user::trace::{self, Met};

use super::{Fate, Host, tables};
use crate::case::{Arriving, Case, Step, TICKS, What};
use crate::fake::ports::{empty, mappings};
use crate::fake::{Fake, InFake};
use crate::packet;

/// The index of the loopback device, where a kernel can't be told another for XDP.
const LOOPBACK: u32 = 1;
/// The shortest frame that a test run takes.
const SHORTEST: usize = 14;

/// The loaded programs, in a network namespace of their own with the links of the cases.
pub struct Machine {
    kernel: Kernel,
    paths: Paths,
    contents: Option<Contents>,
    /// The tick to which the entries' times were brought.
    held: u32,
    /// XDP test runs take a context (5.15).
    xdp_context: bool,
}

/// What a machine's capacities are made of, so that cases with the same ones share a machine.
pub fn capacity(case: &Case) -> Capacity {
    let small = |own: u32, usual: u32, small: u32| if own == usual { small } else { own };
    let (own, usual) = (case.world.capacity, Capacity::default());
    Capacity {
        connections: own.connections,
        affinity: small(own.affinity, usual.affinity, 1024),
        fragments: small(own.fragments, usual.fragments, 1024),
        services: 1024,
        backends: 1024,
        slots: 4096,
        routes: 1024,
        next_hops: 1024,
        sockets: 1024,
        nat_addresses: own.nat_addresses.max(1),
    }
}

/// Moves this thread into a new network namespace, onto one CPU, and makes the links of the cases.
#[expect(unsafe_code, reason = "system calls without a safe wrapper here")]
pub fn namespace(links: &[crate::case::world::Link]) -> Result<()> {
    // SAFETY: neither call takes or returns memory but the set, which is whole and on the stack.
    unsafe {
        ensure!(libc::unshare(libc::CLONE_NEWNET) == 0, "unshare: {}", std::io::Error::last_os_error());
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(0, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set);
    }
    ip("link set lo up")?;
    for link in links {
        let name = &link.name;
        ip(&format!("link add name {name} index {} type veth peer name {name}-peer", link.index))?;
        ip(&format!("link set {name} up"))?;
        ip(&format!("link set {name}-peer up"))?;
    }
    Ok(())
}

fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip").args(arguments.split(' ')).output().context("the program ip")?;
    ensure!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

impl Machine {
    pub fn new(links: &[crate::case::world::Link], capacity: &Capacity) -> Result<Self> {
        let paths = Paths::new(format!("/sys/fs/bpf/stellwerk-cases-{}", std::process::id()));
        let loaded = Kernel::load(&paths, capacity, false);
        if loaded.is_err() {
            let _ = unload(&paths);
        }
        let mut kernel = loaded?;
        // A test run's context may name a device only once its receive queue is known to XDP.
        let xdp: &mut Xdp = kernel.ebpf.program_mut(load::XDP).context("the XDP program")?.try_into()?;
        for link in links {
            xdp.attach(&link.name, XdpMode::Driver).with_context(|| format!("XDP on {}", link.name))?;
        }
        sockets::load_all(&mut kernel.ebpf)?;
        load::policy_programs(&mut kernel.ebpf)?;
        Ok(Machine { kernel, paths, contents: None, held: 0, xdp_context: true })
    }

    /// Instructions that the verifier walked, by program (5.16).
    pub fn verified(&self) -> Result<BTreeMap<String, u32>> {
        let mut counts = BTreeMap::new();
        for (name, program) in self.kernel.ebpf.programs() {
            let info = match program {
                aya::programs::Program::Xdp(p) => p.info(),
                aya::programs::Program::SchedClassifier(p) => p.info(),
                aya::programs::Program::CgroupSockAddr(p) => p.info(),
                _ => continue,
            };
            counts.extend(info?.verified_instruction_count().map(|count| (name.to_string(), count)));
        }
        Ok(counts)
    }

    /// Runs a case on the host and here, and holds the two against each other after every step.
    pub fn run(&mut self, case: &Case) -> Result<()> {
        self.clear()?;
        let mut host = Host::new(case);
        // What is pushed out depends on the hash.
        host.fake.flows4.multipliers = self.kernel.maps.v4.flows.multipliers();
        host.fake.flows6.multipliers = self.kernel.maps.v6.flows.multipliers();
        for step in &case.steps {
            let at = || format!("{}:{}", case.name, step.at.start + 1);
            self.step(&mut host, step)
                .with_context(at)
                .with_context(|| format!("tables of the host:\n{}", host.fake))?;
        }
        Ok(())
    }

    fn step(&mut self, host: &mut Host, step: &Step) -> Result<()> {
        match &step.what {
            What::Packet(arriving) => {
                let bytes = packet::build(&arriving.packet, &arriving.names).map_err(anyhow::Error::msg)?;
                if bytes.len() < SHORTEST || arriving.tagged {
                    return Ok(());
                }
                self.hold()?;
                self.packet(host, arriving, bytes)?;
            }
            What::Flows(_) | What::Mappings(_) | What::Counted { .. } => return Ok(()),
            what => self.change(host, what)?,
        }
        self.agree(&host.fake)
    }

    /// What is done to the tables beside packets, to the host's as well.
    fn change(&mut self, host: &mut Host, what: &What) -> Result<()> {
        match what {
            What::Tables(to) => {
                let ops = host.ops(to);
                host.apply(&ops).map_err(anyhow::Error::msg)?;
                self.apply(&ops)?;
                self.contents = Some((**to).clone());
            }
            What::Apply(op) => {
                host.apply(std::slice::from_ref(op)).map_err(anyhow::Error::msg)?;
                self.apply(std::slice::from_ref(op))?;
            }
            What::Advance(seconds) => {
                host.fake.age(seconds * TICKS);
                self.hold()?;
                let ticks = seconds * self.kernel.ticks_per_second;
                times::retime(&self.kernel.maps, |last| last.wrapping_sub(ticks))?;
            }
            What::Packet(_) | What::Flows(_) | What::Mappings(_) | What::Counted { .. } => {}
        }
        Ok(())
    }

    /// Whether policies are judged at a link.
    fn judges(&self, link: u32) -> bool {
        self.contents.as_ref().is_some_and(|contents| contents.pods.contains_key(&link))
    }

    /// What `stellwerk trace` says of a packet.
    fn trace(&self, arriving: &Arriving, bytes: &[u8]) -> Result<(Verdict, Vec<u8>)> {
        let names = trace::Names::default();
        let view = View::new(&self.kernel.maps, &self.paths.maps(), &names)?;
        let at = Arrival {
            hook: arriving.hook,
            ifindex: arriving.ifindex,
            now: self.now()?,
            gso_size: arriving.gso_size,
            tagged: 0,
            own: (arriving.hook == Hook::Egress && arriving.from == 0).into(),
            tunneled: 0,
        };
        let said = trace::run(&view, &Met { arrival: at, judged: self.judges(at.ifindex) }, bytes.to_vec());
        view.take()?;
        Ok(said)
    }

    /// Runs a case's packets, each with `variants` others that are made of it, and holds what a trace says of each
    /// before against what the kernel then does; how many.
    pub fn run_traced(&mut self, case: &Case, variants: usize) -> Result<usize> {
        self.clear()?;
        let mut host = Host::new(case);
        let (mut count, mut random) = (0, Random(case.name.len() as u64 + 1));
        for step in &case.steps {
            match &step.what {
                What::Packet(arriving) if arriving.refuses == Refuses::Nothing && !arriving.tagged => {
                    let bytes = packet::build(&arriving.packet, &arriving.names).map_err(anyhow::Error::msg)?;
                    for variant in 0..=variants {
                        let bytes = if variant == 0 { bytes.clone() } else { random.bent(&bytes) };
                        let at = || format!("{}:{}, {}", case.name, step.at.start + 1, packet::hex(&bytes));
                        count += usize::from(self.traced(arriving, &bytes).with_context(at)?);
                    }
                }
                what => self.change(&mut host, what)?,
            }
        }
        Ok(count)
    }

    /// Whether the packet could be compared.
    fn traced(&mut self, arriving: &Arriving, bytes: &[u8]) -> Result<bool> {
        // What is judged on its way to a pod is another program's before, which a test run doesn't go on from.
        let alone = arriving.hook == Hook::Egress && self.judges(arriving.ifindex);
        if bytes.len() < SHORTEST || alone || (arriving.hook == Hook::Xdp && !self.xdp_context) {
            return Ok(false);
        }
        self.hold()?;
        let (verdict, said) = self.trace(arriving, bytes)?;
        let limited = || self.kernel.maps.drops.sum(Reason::IcmpRateLimited as u32);
        let before = limited()?;
        // What the kernel doesn't take at all: a frame of a kind that a test run refuses.
        let Ok((ran, out)) = self.test_run(arriving, bytes) else { return Ok(false) };
        if limited()? != before {
            return Ok(false);
        }
        let fate = Fate { verdict, bytes: said, notes: Vec::new() };
        let code = code(&fate, arriving);
        ensure!(ran == code, "the trace says {verdict:?} (code {code}), the kernel's code is {ran}");
        if !matches!(verdict, Verdict::Drop(_)) && out != fate.bytes {
            bail!("the packets differ (expected: the trace's)\n{}", super::byte_diff(&fate.bytes, &out));
        }
        Ok(true)
    }

    fn packet(&mut self, host: &Host, arriving: &Arriving, bytes: Vec<u8>) -> Result<()> {
        let mut arriving = arriving.clone();
        let ran = match self.test_run(&arriving, &bytes) {
            Err(error) if arriving.hook == Hook::Xdp && self.xdp_context => {
                self.xdp_context = false;
                self.test_run(&arriving, &bytes).with_context(|| format!("with a context: {error:#}"))?
            }
            ran => ran?,
        };
        if arriving.hook == Hook::Xdp && !self.xdp_context {
            arriving.ifindex = LOOPBACK;
        }
        let fate = host.packet(&arriving, bytes);
        let judged = arriving.hook == Hook::Egress && host.fake.pods.contains_key(&arriving.ifindex);
        // TC_ACT_UNSPEC: the next program goes on.
        let code = if judged && fate.verdict == Verdict::Pass { u32::MAX } else { code(&fate, &arriving) };
        ensure!(ran.0 == code, "the host says {:?} (code {code}), the kernel's code is {}", fate.verdict, ran.0);
        if !matches!(fate.verdict, Verdict::Drop(_)) && ran.1 != fate.bytes {
            bail!("the packets differ (expected: the host's)\n{}", super::byte_diff(&fate.bytes, &ran.1));
        }
        Ok(())
    }

    fn test_run(&self, arriving: &Arriving, bytes: &[u8]) -> Result<(u32, Vec<u8>)> {
        let mut out = vec![0; bytes.len() + 256];
        let context = context(arriving, bytes.len());
        let wanted = arriving.hook != Hook::Xdp || self.xdp_context;
        let options = TestRunOptions {
            data_in: Some(bytes),
            data_out: Some(&mut out),
            ctx_in: wanted.then_some(&context),
            ..TestRunOptions::default()
        };
        let ran = self.program(arriving, options).context("BPF_PROG_TEST_RUN")?;
        out.truncate(ran.data_size_out as usize);
        Ok((ran.return_value, out))
    }

    fn program(&self, arriving: &Arriving, options: TestRunOptions) -> Result<TestRunResult> {
        let judged = self.judges(arriving.ifindex);
        let get = |name| self.kernel.ebpf.program(name).context("the program is loaded");
        let tc = |name| -> Result<&SchedClassifier, anyhow::Error> { Ok(get(name)?.try_into()?) };
        let ran: Result<_, ProgramError> = match arriving.hook {
            Hook::Xdp => <&Xdp>::try_from(get(load::XDP)?)?.test_run(options),
            Hook::Ingress if judged => tc(load::POLICY_OUT)?.test_run(options),
            Hook::Egress if judged => tc(load::POLICY_IN)?.test_run(options),
            Hook::Ingress => tc(load::INGRESS)?.test_run(options),
            Hook::Egress => tc(load::EGRESS)?.test_run(options),
        };
        Ok(ran?)
    }

    /// Operations in the kernel's own ticks.
    fn apply(&mut self, ops: &[Op]) -> Result<()> {
        let rate = self.kernel.ticks_per_second;
        ops.iter().try_for_each(|op| self.kernel.apply(&times::in_ticks(op, rate)))
    }

    fn now(&self) -> Result<u32> {
        Ok(clock::read_pinned(&self.paths, &self.kernel.maps)?.tick())
    }

    /// No time passes between steps, however slow the machine is: what was used since this was done last was used now.
    fn hold(&mut self) -> Result<()> {
        let now = self.now()?;
        let passed = now.wrapping_sub(std::mem::replace(&mut self.held, now));
        if passed == 0 {
            return Ok(());
        }
        let change = |last| if now.wrapping_sub(last) <= passed { now } else { last.wrapping_add(passed) };
        times::retime(&self.kernel.maps, change)
    }

    /// Empties every table.
    fn clear(&mut self) -> Result<()> {
        if let Some(contents) = self.contents.take() {
            let nothing = Contents { hooks: contents.hooks.clone(), ..Contents::empty(contents.settings) };
            self.apply(&tables::ops(Some(&contents), &nothing))?;
        }
        clear_family(&self.kernel.maps.v4)?;
        clear_family(&self.kernel.maps.v6)?;
        let maps = &self.kernel.maps;
        (0..64).try_for_each(|id| maps.counters.zero(id))?;
        (0..Reason::ALL.len() as u32).try_for_each(|i| maps.drops.zero(i))?;
        (0..Note::ALL.len() as u32).try_for_each(|i| maps.notes.zero(i))?;
        let budget = self.kernel.ebpf.map_mut("ICMP_BUDGET").context("the ICMP budget")?;
        let mut budget = PerCpuArray::<_, [u32; 2]>::try_from(budget)?;
        let zero = vec![[0; 2]; aya::util::nr_cpus().map_err(|(what, e)| anyhow::anyhow!("{what}: {e}"))?];
        budget.set(0, PerCpuValues::try_from(zero)?, 0)?;
        self.held = self.now()?;
        Ok(())
    }

    /// Whether the kernel's tables and counters hold what the host's do.
    fn agree(&self, fake: &Fake) -> Result<()> {
        agree_family::<Ip4>(&self.kernel.maps.v4, fake)?;
        agree_family::<Ip6>(&self.kernel.maps.v6, fake)?;
        let tally = fake.tally.borrow();
        for (index, reason) in Reason::ALL.iter().enumerate() {
            let host = tally.drops.get(reason.label()).copied().unwrap_or(0);
            same(reason.label(), &host, &self.kernel.maps.drops.sum(index as u32)?)?;
        }
        for (index, note) in Note::ALL.iter().enumerate() {
            let host = tally.notes.get(note.label()).copied().unwrap_or(0);
            same(note.label(), &host, &self.kernel.maps.notes.sum(index as u32)?)?;
        }
        for (id, host) in &tally.backends {
            same("a backend's counters", host, &self.kernel.maps.counters.sum(*id)?)?;
        }
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = unload(&self.paths) {
            eprintln!("unloading: {error:#}");
        }
    }
}

/// Packets that are nearly others: the same ones in every run (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }

    /// With a few other bytes behind the link-layer header: addresses, ports, flags, lengths.
    fn bent(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.below(3) {
            if bytes.len() > SHORTEST {
                let at = SHORTEST + self.below(bytes.len() - SHORTEST);
                bytes[at] = self.below(256) as u8;
            }
        }
        if bytes.len() > SHORTEST && self.below(16) == 0 {
            bytes.truncate(SHORTEST + self.below(bytes.len() - SHORTEST + 1));
        }
        bytes
    }
}

/// The code that a hook gives the kernel for a verdict.
fn code(fate: &Fate, arriving: &Arriving) -> u32 {
    // The kernel's numbers: XDP_DROP 1, XDP_PASS 2, XDP_TX 3, XDP_REDIRECT 4; TC_ACT_OK 0,
    // TC_ACT_SHOT 2, TC_ACT_REDIRECT 7.
    match (arriving.hook, fate.verdict) {
        (Hook::Xdp, Verdict::Pass | Verdict::Continue) => 2,
        (Hook::Xdp, Verdict::Transmit { ifindex }) if ifindex != arriving.ifindex => 4,
        (Hook::Xdp, Verdict::Transmit { .. } | Verdict::Reply | Verdict::Refuse(_)) => 3,
        (Hook::Xdp, Verdict::Drop(_)) => 1,
        (Hook::Xdp, Verdict::Reinject) => 0,
        (_, Verdict::Pass | Verdict::Continue) => 0,
        (_, Verdict::Drop(_)) => 2,
        _ => 7,
    }
}

/// `struct xdp_md` or `struct __sk_buff` (include/uapi/linux/bpf.h): the device, and the segment size.
fn context(arriving: &Arriving, len: usize) -> Vec<u8> {
    if arriving.hook == Hook::Xdp {
        let words = [0, len as u32, 0, arriving.ifindex, 0, 0];
        return words.iter().flat_map(|w| w.to_ne_bytes()).collect();
    }
    let mut words = [0u32; 45];
    words[40 / 4] = arriving.ifindex;
    words[176 / 4] = arriving.gso_size;
    words[36 / 4] = arriving.from;
    words.iter().flat_map(|w| w.to_ne_bytes()).collect()
}

fn clear_family<A: Addr>(maps: &FamilyMaps<A>) -> Result<()> {
    fn all<K: Plain, V: Plain>(table: &Table<K, V>) -> Result<()> {
        table.entries()?.iter().try_for_each(|(key, _)| table.remove(key).map(drop))
    }
    maps.flows.remove_entries(|_, _| true);
    (0..maps.ports.planes()).for_each(|plane| empty(&maps.ports, plane));
    (0..HOLDERS).filter_map(|index| maps.ports.holder(index)).for_each(|holder| _ = holder.forget());
    all(&maps.affinity)?;
    all(&maps.admitted)?;
    all(&maps.allowed_fragments)?;
    all(&maps.fragments)
}

fn agree_family<A: InFake>(maps: &FamilyMaps<A>, fake: &Fake) -> Result<()> {
    let timeless = |flow: &Flow<A>| Flow { last: 0, ..*flow };
    let host: BTreeMap<_, _> = A::flows(fake).all().iter().map(|(k, v)| (*k, timeless(v))).collect();
    let kernel: BTreeMap<_, _> = maps.flows.entries().iter().map(|(k, hit)| (*k, timeless(&hit.flow))).collect();
    same("the flows", &host, &kernel)?;
    same("the mappings", &A::ports(fake).all(), &mappings(&maps.ports, maps.ports.planes() * PLANE))?;
    let mut hosts: Vec<_> = maps.ports.hosts().collect();
    hosts.sort();
    same("the hosts inside", &A::ports(fake).hosts(), &hosts)?;
    let state = A::state(fake).borrow();
    let host: BTreeMap<_, _> = state.affinity.iter().map(|(k, v)| (*k, v.backend)).collect();
    let admitted = |a: &Admitted<A>| Admitted { last: 0, ..*a };
    same(
        "admitted connections",
        &state.admitted.iter().map(|(k, v)| (*k, admitted(v))).collect::<BTreeMap<_, _>>(),
        &maps.admitted.entries()?.iter().map(|(k, v)| (*k, admitted(v))).collect(),
    )?;
    same("affinity", &host, &maps.affinity.entries()?.iter().map(|(k, v)| (*k, v.backend)).collect())?;
    let host: BTreeMap<_, _> = state.fragments.iter().map(|(k, v)| (*k, (v.sport, v.dport))).collect();
    same("fragments", &host, &maps.fragments.entries()?.iter().map(|(k, v)| (*k, (v.sport, v.dport))).collect())
}

fn same<T: PartialEq + Debug>(what: &str, host: &T, kernel: &T) -> Result<()> {
    ensure!(host == kernel, "{what} differ:\n  host   {host:?}\n  kernel {kernel:?}");
    Ok(())
}
