//! `bench packet`: net ns a packet on the real, loaded programs, beside the floor and the limit.
//!
//! Invariant: every row counts its packets' verdicts by the product's own counters, so that no figure is
//! of another path than it says.

mod watched;

use anyhow::{Result, ensure};
use lb_common::table::Counters;
use lb_user::intent::Capacity;

use super::machine::{At, Lane, Machine};
use super::report::{Reach, Report, Row};
use super::scene;
use super::script::{ACK, Order, Peer, SYN, SYN_ACK, Script};
use super::series::{median, ratio};
use super::turns::{Case, Turns, chunks, less, version};

const PASS: u32 = 2;
const REDIRECT: u32 = 4;
const FLOWS: [(u32, &str, f64); 3] = [(1, "1 flow", 1.4), (1 << 16, "64 k flows", 1.3), (1 << 19, "512 k flows", 1.3)];

/// The device, and rows so far.
struct Bench<'a>(Turns<'a>);

pub fn run(quick: bool, only: Option<&str>) -> Result<Report> {
    let capacity = Capacity { connections: 600_000, ..Capacity::default() };
    let mut machine = Machine::new(&capacity)?;
    scene::fill(&mut machine.kernel, capacity)?;
    let mut bench = Bench(Turns::new(machine, quick, only));
    bench.floor()?;
    bench.new_flows()?;
    bench.0.machine.clear_half();
    let mut filled = 0;
    for (flows, what, reach) in FLOWS {
        bench.open(filled, flows)?;
        filled = flows;
        bench.0.machine.fill_limit()?;
        bench.established(flows, what, reach)?;
        if flows == 1 {
            watched::rows(&mut bench)?;
        }
    }
    bench.reply()?;
    bench.flood(filled)?;
    let Turns { machine, mut rows, .. } = bench.0;
    rows.sort_by_key(|row| row.name.starts_with("v6"));
    machine.close()?;
    Ok(Report { bench: "packet", rows })
}

impl Bench<'_> {
    /// What comes to nothing: the empty programs, and packets that aren't ours.
    fn floor(&mut self) -> Result<()> {
        for (v6, version) in [(false, "v4"), (true, "v6")] {
            let script = tcp(v6, scene::STRANGER, ACK, false, Order::random(1 << 16));
            let packets = self.0.effort.packets;
            let name = format!("{version} floor: parse");
            if self.0.wanted(&name) {
                let case = Case::new(&name, At::Xdp, v6, script, &[Lane::Parse], packets, PASS);
                let (row, _) = self.0.row(&case, None)?;
                self.0.rows.push(row);
            }
        }
        Ok(())
    }

    fn not_ours(&mut self, v6: bool) -> Result<()> {
        let name = format!("{} not ours", version(v6));
        if !self.0.wanted(&name) {
            return Ok(());
        }
        // The limit of one established connection takes turns with it, each with its own packets.
        let strangers = tcp(v6, scene::STRANGER, ACK, false, Order::random(1 << 16));
        let known = tcp(v6, scene::SINGLE, ACK, false, Order::random(1));
        let (mut ours, mut limit, mut code) = (Vec::new(), Vec::new(), 0);
        let (before, dropped) = (self.0.machine.counters()?, self.0.machine.drops()?);
        let packets = self.0.effort.packets;
        for _ in 0..self.0.effort.rounds {
            self.0.machine.script(&strangers)?;
            let stub = self.0.machine.run(Lane::Stub, At::Xdp, v6, packets)?.ns;
            let ran = self.0.machine.run(Lane::Stellwerk, At::Xdp, v6, packets)?;
            (code, _) = (ran.code, ours.push(ran.ns - stub));
            self.0.machine.script(&known)?;
            let stub = self.0.machine.run(Lane::Stub, At::Xdp, v6, packets)?.ns;
            limit.push(self.0.machine.run(Lane::Limit, At::Xdp, v6, packets)?.ns - stub);
        }
        let counted = less(self.0.machine.counters()?, before);
        let dropped = self.0.machine.drops()? - dropped;
        let row = Row::new(&name, median(&ours), "ns")
            .against(median(&limit), ratio(&ours, &limit), Reach::AtMost(0.6))
            .verdict("last", code)
            .verdict("packets", counted.packets)
            .verdict("dropped", dropped)
            .prove(code == PASS && counted == Counters::default() && dropped == 0);
        self.0.net.push((name, row.value));
        let row = self.0.beside_v4(row);
        self.0.rows.push(row);
        Ok(())
    }

    /// Every packet opens a connection, and there is room for all.
    fn new_flows(&mut self) -> Result<()> {
        for v6 in [false, true] {
            let name = format!("{} new flow", version(v6));
            if !self.0.wanted(&name) && !self.0.wanted("flood") {
                continue;
            }
            let script = tcp(v6, scene::SPREAD, SYN, false, Order::endless());
            let lanes = [Lane::Stellwerk, Lane::Fresh];
            let case = Case::new(&name, At::Xdp, v6, script, &lanes, self.0.effort.new, REDIRECT);
            let (row, measured) = self.0.row(&case, Some(Reach::AtMost(1.3)))?;
            let (_, half) = self.0.machine.entries(v6);
            let row = row
                .verdict("half_open_entries", half as u64)
                .prove(measured.counted.connections == measured.packets && half as u64 == 2 * measured.packets);
            self.0.rows.push(row);
        }
        Ok(())
    }

    /// Opens the connections `from..to` of the single backend by their three packets.
    fn open(&mut self, from: u32, to: u32) -> Result<()> {
        for v6 in [false, true] {
            let before = self.0.machine.entries(v6).0;
            for (base, count) in chunks(from, to) {
                for (peer, flags, reply) in
                    [(scene::SINGLE, SYN, false), (scene::BACKEND, SYN_ACK, true), (scene::SINGLE, ACK, false)]
                {
                    self.0.machine.script(&tcp(v6, peer, flags, reply, Order::chunk(base, count)))?;
                    self.0.machine.run(Lane::Stellwerk, At::Xdp, v6, count)?;
                }
            }
            let now = self.0.machine.entries(v6).0;
            let grown = (to - from) as usize * 2;
            let (half, drops) = (self.0.machine.entries(v6).1, self.0.machine.drops()?);
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
            if !self.0.wanted(&name) {
                continue;
            }
            let script = tcp(v6, scene::SINGLE, ACK, false, Order::random(flows));
            let lanes = [Lane::Stellwerk, Lane::Limit];
            let case = Case::new(&name, At::Xdp, v6, script, &lanes, self.0.effort.packets, REDIRECT);
            let (row, measured) = self.0.row(&case, Some(Reach::AtMost(reach)))?;
            let row = row.prove(measured.counted.packets == measured.packets && measured.counted.connections == 0);
            self.0.rows.push(row);
        }
        Ok(())
    }

    /// From the backend to its clients.
    fn reply(&mut self) -> Result<()> {
        for v6 in [false, true] {
            let name = format!("{} reply, 64 k flows", version(v6));
            if !self.0.wanted(&name) {
                continue;
            }
            let script = tcp(v6, scene::BACKEND, ACK, true, Order::random(1 << 16));
            let lanes = [Lane::Stellwerk, Lane::Limit];
            let case = Case::new(&name, At::Xdp, v6, script, &lanes, self.0.effort.packets, REDIRECT);
            let (row, measured) = self.0.row(&case, Some(Reach::AtMost(1.3)))?;
            let row = row.prove(measured.counted.reply_packets == measured.packets);
            self.0.rows.push(row);
        }
        Ok(())
    }

    /// Connections that nobody will ever answer, far more than there is room for.
    fn flood(&mut self, flows: u32) -> Result<()> {
        for v6 in [false, true] {
            let name = format!("{} SYN flood", version(v6));
            if !self.0.wanted(&name) {
                continue;
            }
            let script = tcp(v6, scene::SPREAD, SYN, false, Order::endless());
            let lanes = [Lane::Stellwerk, Lane::Fresh];
            self.0.machine.script(&script)?;
            // Until no slot is free any more.
            for lane in lanes {
                self.0.machine.run(lane, At::Xdp, v6, 1 << 20)?;
            }
            let case = Case::new(&name, At::Xdp, v6, script, &lanes, 65_536, REDIRECT);
            let (mut row, measured) = self.0.row(&case, None)?;
            let new = format!("{} new flow", version(v6));
            if let Some((_, new)) = self.0.net.iter().find(|(n, _)| *n == new) {
                let ratio = row.value / new;
                row = row.against(*new, ratio, Reach::AtMost(1.0));
            }
            let whole = self.whole(v6, flows)?;
            self.0.rows.push(
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
        let before = self.0.machine.counters()?;
        self.0.machine.script(&tcp(v6, scene::SINGLE, ACK, false, Order::chunk(0, flows)))?;
        self.0.machine.run(Lane::Stellwerk, At::Xdp, v6, flows)?;
        let counted = less(self.0.machine.counters()?, before);
        // What is not known any more opens a connection anew.
        Ok(counted.packets - counted.connections)
    }
}

fn tcp(v6: bool, peer: Peer, flags: u8, reply: bool, order: Order) -> Script {
    Script::tcp(v6, peer, flags, reply, order)
}
