//! Programs taking turns in short rounds, and a row of what that gave.
//!
//! Invariant: a ratio is the median of the rounds' ratios, since machines are shared; every figure is
//! net of the round's own stub, behind the same wrapper at the same hook.

use anyhow::Result;
use lb_common::table::Counters;

use super::machine::{At, Lane, Machine};
use super::report::{Reach, Row};
use super::script::Script;
use super::series::{median, minus, ratio};

/// Packets a round, and rounds.
pub struct Effort {
    pub packets: u32,
    pub rounds: u32,
    /// Of rows whose every packet takes a place in a table.
    pub new: u32,
}

pub const FULL: Effort = Effort { packets: 1_000_000, rounds: 15, new: 8_192 };
pub const QUICK: Effort = Effort { packets: 300_000, rounds: 7, new: 8_192 };

/// What all rows share.
pub struct Turns<'a> {
    pub machine: Machine,
    pub effort: &'a Effort,
    only: Option<&'a str>,
    pub rows: Vec<Row>,
    /// Net ns of the v4 rows and of the new-flow rows, to hold others against.
    pub net: Vec<(String, f64)>,
}

/// One row to be.
pub struct Case<'a> {
    pub name: &'a str,
    pub at: At,
    pub v6: bool,
    pub script: Script,
    pub lanes: &'a [Lane],
    pub packets: u32,
    /// What the product's program is to return.
    pub code: u32,
    /// What a round of the product's has left in its tables is removed.
    clear: bool,
    /// The product drops all.
    drops: bool,
}

impl<'a> Case<'a> {
    pub fn new(name: &'a str, at: At, v6: bool, script: Script, lanes: &'a [Lane], packets: u32, code: u32) -> Self {
        Case { name, at, v6, script, lanes, packets, code, clear: false, drops: false }
    }

    /// Every round of the product's begins with its tables empty.
    pub fn cleared(self) -> Self {
        Case { clear: true, ..self }
    }

    pub fn dropped(self) -> Self {
        Case { drops: true, ..self }
    }
}

/// A row's rounds: net ns by lane.
pub struct Measured {
    pub net: Vec<Vec<f64>>,
    /// Packets of the product.
    pub packets: u64,
    pub counted: Counters,
    pub dropped: u64,
    pub code: u32,
    /// The product's last packet.
    pub packet: [u8; 80],
}

impl<'a> Turns<'a> {
    pub fn new(machine: Machine, quick: bool, only: Option<&'a str>) -> Self {
        let effort = if quick { &QUICK } else { &FULL };
        Turns { machine, effort, only, rows: Vec::new(), net: Vec::new() }
    }

    pub fn wanted(&self, name: &str) -> bool {
        self.only.is_none_or(|only| name.contains(only))
    }

    /// The lanes in turns, each less the stub of its round.
    fn measure(&mut self, case: &Case) -> Result<Measured> {
        let Case { at, v6, .. } = *case;
        let mut gross = vec![Vec::new(); case.lanes.len()];
        let mut stub = Vec::new();
        let (mut packets, mut code, mut packet) = (0, 0, [0; 80]);
        let (before, dropped) = (self.machine.counters()?, self.machine.drops()?);
        self.machine.script(&case.script)?;
        // The first round warms up.
        for round in 0..=self.effort.rounds {
            let count = if round == 0 { case.packets / 4 } else { case.packets };
            let ns = self.machine.run(Lane::Stub, at, v6, count)?.ns;
            stub.extend((round > 0).then_some(ns));
            for (gross, &lane) in gross.iter_mut().zip(case.lanes) {
                let ran = self.machine.run(lane, at, v6, count)?;
                gross.extend((round > 0).then_some(ran.ns));
                if lane == Lane::Stellwerk {
                    packets += u64::from(count);
                    (code, packet) = (ran.code, ran.packet);
                    if case.clear {
                        self.machine.clear(v6);
                    }
                }
            }
        }
        let net = gross.iter().map(|gross| minus(gross, &stub)).collect();
        let counted = less(self.machine.counters()?, before);
        Ok(Measured { net, packets, counted, dropped: self.machine.drops()? - dropped, code, packet })
    }

    /// The row of the first lane, held against the second.
    pub fn row(&mut self, case: &Case, reach: Option<Reach>) -> Result<(Row, Measured)> {
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
        let dropped =
            reach.is_some() && if case.drops { measured.dropped != measured.packets } else { measured.dropped != 0 };
        row = row.prove(!product || (measured.code == case.code && !dropped));
        Ok((self.beside_v4(row), measured))
    }

    /// v6's figure beside v4's, as far as it was measured.
    pub fn beside_v4(&self, row: Row) -> Row {
        let twin = row.name.strip_prefix("v6").map(|rest| format!("v4{rest}"));
        let Some((_, v4)) = twin.and_then(|name| self.net.iter().find(|(n, _)| *n == name)) else { return row };
        let ratio = row.value / v4;
        row.verdict("beside_v4", (ratio * 100.0).round() / 100.0)
    }
}

pub fn version(v6: bool) -> &'static str {
    if v6 { "v6" } else { "v4" }
}

pub fn less(a: Counters, b: Counters) -> Counters {
    Counters {
        connections: a.connections - b.connections,
        packets: a.packets - b.packets,
        bytes: a.bytes - b.bytes,
        reply_packets: a.reply_packets - b.reply_packets,
        reply_bytes: a.reply_bytes - b.reply_bytes,
    }
}

/// Connections that are opened in one go, half-open for as long.
const CHUNK: u32 = 1 << 14;

/// The numbers `from..to` in chunks, each its first number and how many. Numbers before a chunk's end may
/// come twice: what is open already stays what it is.
pub fn chunks(from: u32, to: u32) -> Vec<(u32, u32)> {
    let mut chunks = Vec::new();
    let mut first = from;
    while first < to {
        let count = if first == 0 && to < CHUNK { to } else { CHUNK.min(to - first).next_power_of_two() };
        let base = first & !(count - 1);
        chunks.push((base, count));
        first = base + count;
    }
    chunks
}
