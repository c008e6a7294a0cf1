//! The flow table in the kernel by itself, and the kernel's own maps beside it: programs that look up, insert and
//! remove numbered connections (`lb-ebpf/src/bin/flow_table.rs`).
//!
//! Invariant: key and value of a number here are those of the programs.

use std::cell::Cell;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;

use anyhow::{Context, Result};
use aya::maps::MapData;
use aya::programs::Xdp;
use aya::{Ebpf, EbpfLoader};
use lb_common::flow_table::{Entry, FlowTable, MULTIPLIERS, WAYS};
use lb_common::table::{Flow, FlowKey, NextHop, Settings};
use lb_common::tcp;
use lb_common::wire::{Addr, Be16, Ip4, Ip6};
use lb_user::apply::flows::Flows;
use lb_user::apply::table::Table;

use crate::netns::Lab;
use crate::object::{object, run};
use crate::routes::Random;

/// Numbers in the order that lookups keep to.
pub const ORDER: usize = 1 << 20;
/// When everything happens, in ticks.
pub const NOW: u32 = 1_000;

/// An address family whose connections are numbered.
pub trait Numbered: Addr + Sync {
    fn numbered(number: u32) -> Self;
}

impl Numbered for Ip4 {
    fn numbered(number: u32) -> Self {
        Ip4::from_raw(0x0a00_0000u32.wrapping_add(number).to_be())
    }
}

impl Numbered for Ip6 {
    fn numbered(number: u32) -> Self {
        Ip6::from_raw([0xfd00_0000u32.to_be(), 0, 0, number.to_be()])
    }
}

/// A connection's key: 14 bits of its number in the port, as a client's connections count up.
pub fn key<A: Numbered>(number: u32) -> FlowKey<A> {
    FlowKey {
        src: A::numbered(number >> 14),
        dst: A::numbered(1 << 20),
        sport: Be16::new(1024 + (number & 0x3fff) as u16),
        dport: Be16::new(80),
        proto: 6,
    }
}

/// A connection's value, every word of which tells its number.
pub fn flow<A: Numbered>(number: u32, state: u8) -> Flow<A> {
    Flow {
        src: A::numbered(number),
        dst: A::numbered(!number),
        sport: Be16::new(number as u16),
        dport: Be16::new(!number as u16),
        service: number,
        backend: !number,
        next_hop: NextHop::UNRESOLVED,
        last: NOW,
        state,
        flags: 0,
        epoch: 0,
    }
}

/// Whether a value is whole.
pub fn whole<A: Numbered>(flow: &Flow<A>) -> bool {
    let number = flow.service;
    let addrs = flow.src == A::numbered(number) && flow.dst == A::numbered(!number);
    let ports = flow.sport.get() == number as u16 && flow.dport.get() == !number as u16;
    addrs && ports && flow.backend == !number
}

/// Multipliers as an agent draws them.
pub fn drawn(random: &mut Random) -> [u64; MULTIPLIERS] {
    let mut numbers = [0; MULTIPLIERS].map(|_: u64| random.word());
    numbers[MULTIPLIERS - 1] |= 1;
    numbers
}

/// What connections a run is of.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Added to every number.
    pub base: u32,
    /// Of what is inserted.
    pub state: u8,
    /// Torture: so many connections, less than 1024.
    pub keys: u32,
    /// Steps before.
    pub turn: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Setup { base: 0, state: tcp::ESTABLISHED, keys: 1, turn: 0 }
    }
}

/// The loaded programs and their maps, of one family.
pub struct FlowMaps<A> {
    ebpf: Ebpf,
    dir: PathBuf,
    multipliers: [u64; MULTIPLIERS],
    _lab: Lab,
    family: PhantomData<A>,
}

fn name<A: Addr>(stem: &str) -> String {
    format!("{stem}{}", if A::IS_V6 { 6 } else { 4 })
}

impl<A: Numbered> FlowMaps<A> {
    /// An empty table of so many slots; the kernel's maps beside it have room for `beside` entries.
    pub fn new(slots: u32, beside: u32) -> Result<Self> {
        let lab = Lab::new()?;
        let dir = lab.pins();
        std::fs::create_dir_all(&dir).context("the folder of pins")?;
        let multipliers = drawn(&mut Random(std::process::id().into()));
        let mask = slots / WAYS - 1;
        let mut loader = EbpfLoader::new();
        loader.override_global("FLOW_MULTIPLIERS", &multipliers, true).override_global("FLOW_MASK", &mask, true);
        let sizes = [("FLOWS", slots), ("LRU", beside), ("HASH", beside)];
        let sizes = sizes.map(|(stem, entries)| (name::<A>(stem), entries));
        for (map, entries) in &sizes {
            loader.map_max_entries(map, *entries);
        }
        let mut ebpf = loader.load(&object("flow_table")?).context("loading flow_table.o")?;
        for (program, loaded) in ebpf.programs_mut().filter(|(program, _)| program.ends_with(&name::<A>(""))) {
            let loaded: &mut Xdp = loaded.try_into()?;
            loaded.load().with_context(|| format!("loading {program}"))?;
        }
        for (map, loaded) in ebpf.maps().filter(|(map, _)| !map.starts_with('.')) {
            loaded.pin(dir.join(map)).with_context(|| format!("pinning {map}"))?;
        }
        Table::<u32, Settings>::open(&dir, "SETTINGS")?.set(&0, &Settings::with_clock(100))?;
        let maps = FlowMaps { ebpf, dir, multipliers, _lab: lab, family: PhantomData };
        maps.set_up(&Setup::default())?;
        Ok(maps)
    }

    /// The table in this process.
    pub fn table(&self) -> Result<Flows<A>> {
        Flows::open(&self.dir, self.multipliers)
    }

    pub fn set_up(&self, setup: &Setup) -> Result<()> {
        let words = [setup.base, setup.state.into(), NOW, setup.keys];
        Table::<u32, [u32; 4]>::open(&self.dir, "SETUP")?.set(&0, &words)?;
        Table::<u32, u64>::open(&self.dir, "DONE")?.set(&0, &0)?;
        Table::<u32, u64>::open(&self.dir, "TURN")?.set(&0, &setup.turn)
    }

    /// Sets which connections are looked up.
    pub fn set_order(&self, order: Vec<u32>) -> Result<()> {
        let order: Box<[u32; ORDER]> =
            order.into_boxed_slice().try_into().ok().context("an order of another length")?;
        Table::<u32, [u32; ORDER]>::open(&self.dir, "ORDER")?.set(&0, &order)
    }

    /// Runs a program of the family's so often.
    pub fn run(&self, program: &str, repeat: u32) -> Result<()> {
        run(&self.ebpf, &name::<A>(program), repeat)
    }

    /// How many entries were found, inserted or removed since [`Self::set_up`].
    pub fn done(&self) -> Result<u64> {
        Ok(Table::<u32, u64>::open(&self.dir, "DONE")?.get(&0)?.unwrap_or_default())
    }

    /// What torture has found, inserted, removed, and found wrong; all CPUs together.
    pub fn tortured(&self) -> Result<[u64; 4]> {
        let map = aya::maps::PerCpuArray::<_, [u64; 4]>::try_from(self.ebpf.map("COUNTS").context("COUNTS")?)?;
        let mut sum = [0; 4];
        map.get(&0, 0)?.iter().for_each(|cpu| sum.iter_mut().zip(cpu).for_each(|(sum, count)| *sum += count));
        Ok(sum)
    }

    /// What the kernel charges for a map.
    pub fn bytes(&self, stem: &str) -> Result<u64> {
        let map = MapData::from_pin(self.dir.join(name::<A>(stem)))?;
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("memlock:")).context("memlock")?;
        Ok(line.trim().parse()?)
    }
}

/// A table whose user dies at its next access once it has had so many.
pub struct Dying<'a, T> {
    table: &'a T,
    left: Cell<u32>,
}

impl<'a, T> Dying<'a, T> {
    /// What `work` says of the table, if it gets so far.
    pub fn after<R>(table: &'a T, accesses: u32, work: impl FnOnce(&Self) -> R) -> Option<R> {
        let dying = Dying { table, left: Cell::new(accesses) };
        catch_unwind(AssertUnwindSafe(|| work(&dying))).ok()
    }
}

impl<A: Addr, T: FlowTable<A>> FlowTable<A> for Dying<'_, T> {
    fn line(&self, place: u32) -> Option<&Entry<A>> {
        match self.left.get() {
            // Without a panic's message.
            0 => resume_unwind(Box::new("died")),
            left => self.left.set(left - 1),
        }
        self.table.line(place)
    }

    fn mask(&self) -> u32 {
        self.table.mask()
    }

    fn multiplier(&self, index: usize) -> u64 {
        self.table.multiplier(index)
    }
}
