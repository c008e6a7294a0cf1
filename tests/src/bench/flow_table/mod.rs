//! `bench flow-table`: net ns an operation of the flow table, beside LRU_HASH and HASH maps with room for as many
//! entries and with the same ones in them; and what a flow takes of memory.
//!
//! Invariant: every program counts what it found, inserted or removed whole; a row whose count is another than it
//! should be is marked.

mod listing;

use anyhow::{Result, ensure};
use lb_common::tcp;
use lb_common::wire::{Ip4, Ip6};
use stellwerk_tests::flow_maps::{FlowMaps, Numbered, ORDER, Setup};
use stellwerk_tests::netns::clean;
use stellwerk_tests::routes::Random;

use super::machine::{pin_cpu, thread_ns};
use super::report::{Reach, Report, Row};
use super::series::{median, minus, ratio};

/// Slots of the tables: of 64 k, 512 k and 2 M flows at about half of their room.
const SLOTS: [u32; 3] = [1 << 17, 1 << 20, 1 << 22];
const LOADS: [f64; 3] = [0.3, 0.6, 0.75];
/// Numbers that no flow has which stays.
const ABSENT: u32 = 1 << 28;
const NEW: u32 = 1 << 29;

/// Operations a round, and rounds.
struct Effort {
    lookups: u32,
    /// Pairs of insertions, and of removals.
    pairs: u32,
    rounds: u32,
}

const FULL: Effort = Effort { lookups: 300_000, pairs: 8_192, rounds: 15 };
const QUICK: Effort = Effort { lookups: 60_000, pairs: 4_096, rounds: 5 };

/// Programs of one operation: none, ours, and those of the kernel's maps.
const HIT: [&str; 4] = ["floor", "hit", "lru_find", "hash_find"];
const MISS: [&str; 4] = ["floor", "miss", "lru_find", "hash_find"];
const PUT: [&str; 4] = ["floor_two", "put", "lru_put", "hash_put"];
const REMOVE: [&str; 4] = ["floor_two", "remove", "lru_remove", "hash_remove"];

/// ns an operation by lane and round, and how many of ours there were and were done.
#[derive(Default)]
struct Rounds {
    gross: [Vec<f64>; 4],
    of: u64,
    /// By lane.
    done: [u64; 4],
}

/// The tables of one family, as full as they are.
struct Bench<'a, A> {
    maps: FlowMaps<A>,
    effort: &'a Effort,
    only: Option<&'a str>,
    flows: u32,
    rows: Vec<Row>,
}

/// `only`: rows whose name contains this.
pub fn run(quick: bool, only: Option<&str>) -> Result<Report> {
    pin_cpu()?;
    let effort = if quick { &QUICK } else { &FULL };
    let mut rows = family::<Ip4>("v4", effort, only)?;
    rows.extend(family::<Ip6>("v6", effort, only)?);
    if only.is_none_or(|only| "flows listed, 1 M entries".contains(only)) {
        rows.extend(listing::rows(quick)?);
    }
    Ok(Report { bench: "flow-table", rows })
}

fn family<A: Numbered>(version: &str, effort: &Effort, only: Option<&str>) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for slots in SLOTS {
        // What a size's rows are called, so that no table is filled for nothing.
        let names: Vec<String> = LOADS.iter().map(|load| what(flows(slots, *load), *load)).collect();
        let one = slots == SLOTS[0];
        let wanted = |only: &str| {
            let all = names.iter().map(String::as_str).chain(one.then_some("1 flow"));
            all.into_iter().any(|name| KINDS.iter().any(|kind| format!("{version} {kind}, {name}").contains(only)))
        };
        if only.is_some_and(|only| !wanted(only)) {
            continue;
        }
        clean::check()?;
        let maps = FlowMaps::<A>::new(slots, slots)?;
        let mut bench = Bench { maps, effort, only, flows: 0, rows: Vec::new() };
        if one {
            bench.fill(2)?;
            bench.maps.set_order(vec![0; ORDER])?;
            bench.lookups(&format!("{version} hit, 1 flow"), HIT, 0, 0.4)?;
        }
        for (load, what) in LOADS.into_iter().zip(&names) {
            bench.fill(flows(slots, load))?;
            bench.at(version, what, slots, load)?;
        }
        rows.extend(bench.rows);
    }
    Ok(rows)
}

const KINDS: [&str; 6] = ["hit", "hit by Zipf", "miss", "two inserts", "two removals", "memory a flow"];

/// An even number.
fn flows(slots: u32, load: f64) -> u32 {
    (f64::from(slots) * load / 2.0) as u32 * 2
}

fn what(flows: u32, load: f64) -> String {
    let count = match flows {
        1_000_000.. => format!("{:.1} M", f64::from(flows) / 1e6),
        _ => format!("{} k", flows / 1_000),
    };
    format!("{count} flows, load {load}")
}

impl<A: Numbered> Bench<'_, A> {
    fn wanted(&self, name: &str) -> bool {
        self.only.is_none_or(|only| name.contains(only))
    }

    /// Adds answered connections up to so many, to all tables.
    fn fill(&mut self, to: u32) -> Result<()> {
        for lane in &PUT[1..] {
            self.maps.set_up(&Setup { base: self.flows, ..Setup::default() })?;
            self.maps.run(lane, (to - self.flows) / 2)?;
            let (done, of) = (self.maps.done()?, u64::from(to - self.flows));
            ensure!(done * 1_000 >= of * 995, "{lane}: {done} of {of} found room");
        }
        self.flows = to;
        Ok(())
    }

    /// All rows of a load.
    fn at(&mut self, version: &str, what: &str, slots: u32, load: f64) -> Result<()> {
        let name = |kind: &str| format!("{version} {kind}, {what}");
        let mut random = Random(7);
        let flows = u64::from(self.flows);
        self.maps.set_order((0..ORDER).map(|_| random.below(flows) as u32).collect())?;
        self.lookups(&name("hit"), HIT, 0, 0.45)?;
        self.lookups(&name("miss"), MISS, ABSENT, 0.4)?;
        self.maps.set_order((0..ORDER).map(|_| zipf(&mut random, self.flows)).collect())?;
        self.lookups(&name("hit by Zipf"), HIT, 0, 0.6)?;
        self.changes(&name("two inserts"), &name("two removals"), slots)?;
        if self.wanted(&name("memory a flow")) {
            self.memory(&name("memory a flow"), load)?;
        }
        Ok(())
    }

    /// The lanes of a lookup in turns. `base` 0: all are there.
    fn lookups(&mut self, name: &str, lanes: [&str; 4], base: u32, most: f64) -> Result<()> {
        if !self.wanted(name) {
            return Ok(());
        }
        let mut rounds = Rounds::default();
        let count = self.effort.lookups;
        // The first round warms up.
        for round in 0..=self.effort.rounds {
            clean::check()?;
            rounds.of += u64::from(count);
            for (i, lane) in lanes.into_iter().enumerate() {
                let turn = u64::from(round) * u64::from(count);
                self.maps.set_up(&Setup { base, turn, ..Setup::default() })?;
                self.round(&mut rounds, i, lane, count, round > 0)?;
            }
        }
        let expected = if base == 0 { rounds.of } else { 0 };
        self.row(name, &rounds, expected, Some(most));
        Ok(())
    }

    /// Pairs are inserted and removed again, by each lane in turns.
    fn changes(&mut self, inserts: &str, removals: &str, slots: u32) -> Result<()> {
        if !self.wanted(inserts) && !self.wanted(removals) {
            return Ok(());
        }
        let (mut put, mut remove) = (Rounds::default(), Rounds::default());
        let pairs = self.effort.pairs.min(slots / 64);
        for round in 0..=self.effort.rounds {
            clean::check()?;
            let setup = Setup { base: NEW + round * pairs * 2, state: tcp::NEW, ..Setup::default() };
            for i in 0..4 {
                for (rounds, lanes) in [(&mut put, PUT), (&mut remove, REMOVE)] {
                    self.maps.set_up(&setup)?;
                    self.round(rounds, i, lanes[i], pairs, round > 0)?;
                }
            }
            put.of += u64::from(pairs) * 2;
            remove.of += u64::from(pairs) * 2;
        }
        let all = put.of;
        for (name, rounds, most) in [(inserts, put, Some(0.5)), (removals, remove, None)] {
            if self.wanted(name) {
                self.row(name, &rounds, all, most);
            }
        }
        Ok(())
    }

    fn round(&self, rounds: &mut Rounds, lane: usize, program: &str, count: u32, counts: bool) -> Result<()> {
        let before = thread_ns();
        self.maps.run(program, count)?;
        let ns = (thread_ns() - before) / f64::from(count);
        rounds.gross[lane].extend(counts.then_some(ns));
        rounds.done[lane] += self.maps.done()?;
        Ok(())
    }

    /// Ours beside the LRU map, and the hash map among the verdicts.
    fn row(&mut self, name: &str, rounds: &Rounds, expected: u64, most: Option<f64>) {
        let [floor, ours, lru, hash] = &rounds.gross;
        let [ours, lru, hash] = [ours, lru, hash].map(|gross| minus(gross, floor));
        let row = Row::new(name, median(&ours), "ns");
        let row = match most {
            Some(most) => row.against(median(&lru), ratio(&ours, &lru), Reach::AtMost(most)),
            None => Row { limit: Some(median(&lru)), ratio: Some(ratio(&ours, &lru)), ..row },
        };
        let places = |value: f64| (value * 100.0).round() / 100.0;
        let row = row.verdict("floor_ns", places(median(floor))).verdict("hash_ns", places(median(&hash)));
        let row = row.verdict("beside_hash", places(ratio(&ours, &hash)));
        // Where both its buckets are full of answered connections, one has found no room, or has lost it again.
        let near = |done: u64| done <= expected && done * 100 >= expected * 98;
        let row = row.verdict("expected", expected).verdict("done", rounds.done[1..].to_vec());
        self.rows.push(row.prove(rounds.done[1..].iter().all(|&done| near(done))));
    }

    fn memory(&mut self, name: &str, load: f64) -> Result<()> {
        let each = |bytes: u64| bytes as f64 / f64::from(self.flows);
        let (ours, lru, hash) = (self.maps.bytes("FLOWS")?, self.maps.bytes("LRU")?, self.maps.bytes("HASH")?);
        let row = Row { limit: Some(each(lru)), ..Row::new(name, each(ours), "bytes") };
        let row = if load == 0.6 && !A::IS_V6 { row.reach(Reach::AtMost(130.0)) } else { row };
        self.rows.push(row.verdict("hash", each(hash).round()));
        Ok(())
    }
}

/// One of so many flows, of which the k-th is asked for with a chance of one in k.
fn zipf(random: &mut Random, flows: u32) -> u32 {
    let unit = random.word() as f64 / u64::MAX as f64;
    let rank = f64::from(flows).powf(unit) as u64;
    // Frequent ones are not neighbours.
    (rank * 2_654_435_761 % u64::from(flows)) as u32
}
