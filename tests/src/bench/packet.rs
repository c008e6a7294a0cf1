//! `bench packet`: net ns a packet on the real, loaded programs, beside the floor and the limit.
//!
//! Invariant: programs take turns in short rounds, and a ratio is the median of the rounds' ratios,
//! since machines are shared; every row counts its packets' verdicts by the product's own counters, so
//! that no figure is of another path than it says.

use anyhow::{Result, ensure};
use lb_common::table::Counters;
use lb_user::intent::Capacity;

use super::machine::{Lane, Machine};
use super::report::{Reach, Report, Row};
use super::scene;
use super::script::{ACK, Order, Peer, SYN, SYN_ACK, Script};
use super::series::{median, minus, ratio};

const PASS: u32 = 2;
const REDIRECT: u32 = 4;
/// Connections that are opened in one go, half-open for as long.
const CHUNK: u32 = 1 << 14;
const FLOWS: [(u32, &str, f64); 3] = [(1, "1 flow", 1.4), (1 << 16, "64 k flows", 1.3), (1 << 19, "512 k flows", 1.3)];

/// Packets a round, and rounds.
struct Effort {
    packets: u32,
    rounds: u32,
    /// Of rows whose every packet takes a place in a table.
    new: u32,
}

const FULL: Effort = Effort { packets: 1_000_000, rounds: 15, new: 8_192 };
const QUICK: Effort = Effort { packets: 300_000, rounds: 7, new: 8_192 };

/// What all rows share.
struct Bench<'a> {
    machine: Machine,
    effort: &'a Effort,
    only: Option<&'a str>,
    rows: Vec<Row>,
    /// Net ns of the v4 rows and of the new-flow rows, to hold others against.
    net: Vec<(String, f64)>,
}

/// One row to be.
struct Case<'a> {
    name: &'a str,
    v6: bool,
    script: Script,
    lanes: &'a [Lane],
    packets: u32,
    code: u32,
}

/// A row's rounds: net ns by lane.
struct Measured {
    net: Vec<Vec<f64>>,
    /// Packets of the product.
    packets: u64,
    counted: Counters,
    dropped: u64,
    code: u32,
}

pub fn run(quick: bool, only: Option<&str>) -> Result<Report> {
    let effort = if quick { &QUICK } else { &FULL };
    let capacity = Capacity { connections: 600_000, ..Capacity::default() };
    let mut machine = Machine::new(&capacity)?;
    scene::fill(&mut machine.kernel, capacity)?;
    let mut bench = Bench { machine, effort, only, rows: Vec::new(), net: Vec::new() };
    bench.floor()?;
    bench.new_flows()?;
    bench.machine.clear_half();
    let mut filled = 0;
    for (flows, what, reach) in FLOWS {
        bench.open(filled, flows)?;
        filled = flows;
        bench.machine.fill_limit()?;
        bench.established(flows, what, reach)?;
    }
    bench.reply()?;
    bench.flood(filled)?;
    bench.rows.sort_by_key(|row| row.name.starts_with("v6"));
    let Bench { machine, rows, .. } = bench;
    machine.close()?;
    Ok(Report { bench: "packet", rows })
}

impl Bench<'_> {
    fn wanted(&self, name: &str) -> bool {
        self.only.is_none_or(|only| name.contains(only))
    }

    /// The lanes in turns, each less the stub of its round.
    fn measure(&mut self, case: &Case) -> Result<Measured> {
        let mut gross = vec![Vec::new(); case.lanes.len()];
        let mut stub = Vec::new();
        let (mut packets, mut code) = (0, 0);
        let (before, dropped) = (self.machine.counters()?, self.machine.drops()?);
        self.machine.script(&case.script)?;
        for &lane in case.lanes {
            self.machine.run(lane, case.v6, case.packets / 4)?;
            packets += if lane == Lane::Stellwerk { u64::from(case.packets / 4) } else { 0 };
        }
        for _ in 0..self.effort.rounds {
            stub.push(self.machine.run(Lane::Stub, case.v6, case.packets)?.ns);
            for (gross, &lane) in gross.iter_mut().zip(case.lanes) {
                let ran = self.machine.run(lane, case.v6, case.packets)?;
                gross.push(ran.ns);
                if lane == Lane::Stellwerk {
                    packets += u64::from(case.packets);
                    code = ran.code;
                }
            }
        }
        let net = gross.iter().map(|gross| minus(gross, &stub)).collect();
        let counted = less(self.machine.counters()?, before);
        Ok(Measured { net, packets, counted, dropped: self.machine.drops()? - dropped, code })
    }

    /// The row of the first lane, held against the second.
    fn row(&mut self, case: &Case, reach: Option<Reach>) -> Result<(Row, Measured)> {
        let measured = self.measure(case)?;
        let ours = median(&measured.net[0]);
        self.net.push((case.name.to_owned(), ours));
        let mut row = Row::new(case.name, ours, "ns");
        if let (Some(reach), Some(limit)) = (reach, measured.net.get(1)) {
            row = row.against(median(limit), ratio(&measured.net[0], limit), reach);
        }
        row = row
            .verdict("last", measured.code)
            .verdict("sent", measured.packets)
            .verdict("connections", measured.counted.connections)
            .verdict("packets", measured.counted.packets)
            .verdict("reply_packets", measured.counted.reply_packets)
            .verdict("dropped", measured.dropped);
        let product = case.lanes[0] == Lane::Stellwerk;
        // A flood may find both its buckets full of answered connections.
        let dropped = reach.is_some() && measured.dropped != 0;
        row = row.prove(!product || (measured.code == case.code && !dropped));
        Ok((self.beside_v4(row), measured))
    }

    /// v6's figure beside v4's, as far as it was measured.
    fn beside_v4(&self, row: Row) -> Row {
        let twin = row.name.strip_prefix("v6").map(|rest| format!("v4{rest}"));
        let Some((_, v4)) = twin.and_then(|name| self.net.iter().find(|(n, _)| *n == name)) else { return row };
        let ratio = row.value / v4;
        row.verdict("beside_v4", (ratio * 100.0).round() / 100.0)
    }

    /// What comes to nothing: the empty programs, and packets that aren't ours.
    fn floor(&mut self) -> Result<()> {
        for (v6, version) in [(false, "v4"), (true, "v6")] {
            let script = tcp(v6, scene::STRANGER, ACK, false, Order::random(1 << 16));
            let packets = self.effort.packets;
            let name = format!("{version} floor: parse");
            if self.wanted(&name) {
                let case = Case { name: &name, v6, script, lanes: &[Lane::Parse], packets, code: PASS };
                let (row, _) = self.row(&case, None)?;
                self.rows.push(row);
            }
        }
        Ok(())
    }

    fn not_ours(&mut self, v6: bool) -> Result<()> {
        let name = format!("{} not ours", version(v6));
        if !self.wanted(&name) {
            return Ok(());
        }
        // The limit of one established connection takes turns with it, each with its own packets.
        let strangers = tcp(v6, scene::STRANGER, ACK, false, Order::random(1 << 16));
        let known = tcp(v6, scene::SINGLE, ACK, false, Order::random(1));
        let (mut ours, mut limit, mut code) = (Vec::new(), Vec::new(), 0);
        let (before, dropped) = (self.machine.counters()?, self.machine.drops()?);
        let packets = self.effort.packets;
        for _ in 0..self.effort.rounds {
            self.machine.script(&strangers)?;
            let stub = self.machine.run(Lane::Stub, v6, packets)?.ns;
            let ran = self.machine.run(Lane::Stellwerk, v6, packets)?;
            (code, _) = (ran.code, ours.push(ran.ns - stub));
            self.machine.script(&known)?;
            let stub = self.machine.run(Lane::Stub, v6, packets)?.ns;
            limit.push(self.machine.run(Lane::Limit, v6, packets)?.ns - stub);
        }
        let counted = less(self.machine.counters()?, before);
        let dropped = self.machine.drops()? - dropped;
        let row = Row::new(&name, median(&ours), "ns")
            .against(median(&limit), ratio(&ours, &limit), Reach::AtMost(0.6))
            .verdict("last", code)
            .verdict("packets", counted.packets)
            .verdict("dropped", dropped)
            .prove(code == PASS && counted == Counters::default() && dropped == 0);
        self.net.push((name, row.value));
        let row = self.beside_v4(row);
        self.rows.push(row);
        Ok(())
    }

    /// Every packet opens a connection, and there is room for all.
    fn new_flows(&mut self) -> Result<()> {
        for v6 in [false, true] {
            let name = format!("{} new flow", version(v6));
            if !self.wanted(&name) && !self.wanted("flood") {
                continue;
            }
            let script = tcp(v6, scene::SPREAD, SYN, false, Order::endless());
            let lanes = [Lane::Stellwerk, Lane::Fresh];
            let case = Case { name: &name, v6, script, lanes: &lanes, packets: self.effort.new, code: REDIRECT };
            let (row, measured) = self.row(&case, Some(Reach::AtMost(1.3)))?;
            let (_, half) = self.machine.entries(v6);
            let row = row
                .verdict("half_open_entries", half as u64)
                .prove(measured.counted.connections == measured.packets && half as u64 == 2 * measured.packets);
            self.rows.push(row);
        }
        Ok(())
    }

    /// Opens the connections `from..to` of the single backend by their three packets.
    fn open(&mut self, from: u32, to: u32) -> Result<()> {
        for v6 in [false, true] {
            let before = self.machine.entries(v6).0;
            let mut first = from;
            while first < to {
                let count = if first == 0 && to < CHUNK { to } else { CHUNK.min(to - first).next_power_of_two() };
                // The numbers before a chunk's end may be open already: they stay what they are.
                let base = first & !(count - 1);
                for (peer, flags, reply) in
                    [(scene::SINGLE, SYN, false), (scene::BACKEND, SYN_ACK, true), (scene::SINGLE, ACK, false)]
                {
                    self.machine.script(&tcp(v6, peer, flags, reply, Order::chunk(base, count)))?;
                    self.machine.run(Lane::Stellwerk, v6, count)?;
                }
                first = base + count;
            }
            let now = self.machine.entries(v6).0;
            let grown = (to - from) as usize * 2;
            let (half, drops) = (self.machine.entries(v6).1, self.machine.drops()?);
            ensure!(
                now - before == grown,
                "{} entries came instead of {grown}; {half} are not answered, {drops} packets were dropped",
                now - before
            );
        }
        Ok(())
    }

    fn established(&mut self, flows: u32, what: &str, reach: f64) -> Result<()> {
        for v6 in [false, true] {
            if flows == 1 {
                self.not_ours(v6)?;
            }
            let name = format!("{} established, {what}", version(v6));
            if !self.wanted(&name) {
                continue;
            }
            let script = tcp(v6, scene::SINGLE, ACK, false, Order::random(flows));
            let lanes = [Lane::Stellwerk, Lane::Limit];
            let case = Case { name: &name, v6, script, lanes: &lanes, packets: self.effort.packets, code: REDIRECT };
            let (row, measured) = self.row(&case, Some(Reach::AtMost(reach)))?;
            let row = row.prove(measured.counted.packets == measured.packets && measured.counted.connections == 0);
            self.rows.push(row);
        }
        Ok(())
    }

    /// From the backend to its clients.
    fn reply(&mut self) -> Result<()> {
        for v6 in [false, true] {
            let name = format!("{} reply, 64 k flows", version(v6));
            if !self.wanted(&name) {
                continue;
            }
            let script = tcp(v6, scene::BACKEND, ACK, true, Order::random(1 << 16));
            let lanes = [Lane::Stellwerk, Lane::Limit];
            let case = Case { name: &name, v6, script, lanes: &lanes, packets: self.effort.packets, code: REDIRECT };
            let (row, measured) = self.row(&case, Some(Reach::AtMost(1.3)))?;
            let row = row.prove(measured.counted.reply_packets == measured.packets);
            self.rows.push(row);
        }
        Ok(())
    }

    /// Connections that nobody will ever answer, far more than there is room for.
    fn flood(&mut self, flows: u32) -> Result<()> {
        for v6 in [false, true] {
            let name = format!("{} SYN flood", version(v6));
            if !self.wanted(&name) {
                continue;
            }
            let script = tcp(v6, scene::SPREAD, SYN, false, Order::endless());
            let lanes = [Lane::Stellwerk, Lane::Fresh];
            self.machine.script(&script)?;
            // Until no slot is free any more.
            for lane in lanes {
                self.machine.run(lane, v6, 1 << 20)?;
            }
            let case = Case { name: &name, v6, script, lanes: &lanes, packets: 65_536, code: REDIRECT };
            let (mut row, measured) = self.row(&case, None)?;
            let new = format!("{} new flow", version(v6));
            if let Some((_, new)) = self.net.iter().find(|(n, _)| *n == new) {
                let ratio = row.value / new;
                row = row.against(*new, ratio, Reach::AtMost(1.0));
            }
            let whole = self.whole(v6, flows)?;
            self.rows.push(
                row.verdict("established_flows", flows)
                    .verdict("established_whole", whole)
                    .verdict("limit_evicting_ns", (median(&measured.net[1]) * 10.0).round() / 10.0)
                    .prove(
                        measured.counted.connections + measured.dropped == measured.packets
                            && measured.dropped * 1_000 <= measured.packets
                            && whole == u64::from(flows),
                    ),
            );
        }
        Ok(())
    }

    /// How many of the established connections are still that: one packet of each is sent.
    fn whole(&mut self, v6: bool, flows: u32) -> Result<u64> {
        let before = self.machine.counters()?;
        self.machine.script(&tcp(v6, scene::SINGLE, ACK, false, Order::chunk(0, flows)))?;
        self.machine.run(Lane::Stellwerk, v6, flows)?;
        let counted = less(self.machine.counters()?, before);
        // What is not known any more opens a connection anew.
        Ok(counted.packets - counted.connections)
    }
}

fn tcp(v6: bool, peer: Peer, flags: u8, reply: bool, order: Order) -> Script {
    Script::tcp(v6, peer, flags, reply, order)
}

fn version(v6: bool) -> &'static str {
    if v6 { "v6" } else { "v4" }
}

fn less(a: Counters, b: Counters) -> Counters {
    Counters {
        connections: a.connections - b.connections,
        packets: a.packets - b.packets,
        bytes: a.bytes - b.bytes,
        reply_packets: a.reply_packets - b.reply_packets,
        reply_bytes: a.reply_bytes - b.reply_bytes,
    }
}
