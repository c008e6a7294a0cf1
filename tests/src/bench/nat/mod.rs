//! `bench nat`: net ns a packet of the translation between inside and outside, on the real, loaded
//! programs, beside the floor and the limit.
//!
//! Beside them: what passes through a box that translates, measured as `bench wire` does it.
//! Invariant: out goes by the inside link's TC program, back comes by the uplink's XDP program; every row
//! proves by notes, drops, tables and its last packet that its figure is of the path that it says.

mod scene;

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use lb_common::drop::{Drop, Note};
use lb_common::port_table::{self, Mapping, PORTS};
use lb_common::table::Settings;
use lb_common::tcp;
use lb_common::wire::{Addr, Be16};
use lb_user::apply::maps::FamilyMaps;
use lb_user::intent::Capacity;

use super::machine::{At, Lane, Machine};
use super::report::{Reach, Report, Row};
use super::scene::STRANGER;
use super::script::{ACK, Order, SYN, SYN_ACK, Script};
use super::series::median;
use super::turns::{Case, Measured, Turns, chunks, version};
use super::wire;
use scene::{HOSTS, Hosts, POOL};

const TC_OK: u32 = 0;
const TC_SHOT: u32 = 2;
const TC_REDIRECT: u32 = 7;
const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;

/// Connections, how many in words, what packets out and packets back should reach.
const FLOWS: [(u32, &str, f64, bool); 3] =
    [(1, "1 flow", 1.4, true), (1 << 14, "16 k flows", 1.3, false), (1 << 16, "64 k flows", 1.3, true)];
/// Ports of a host that has all of them: those that a number can have.
const ALL: u32 = 1 << 14;
/// The default, which a host reaches.
const QUOTA: u32 = 8_192;
/// Hosts behind those with connections: one that has its quota, and one that has nothing.
const HOLDER: u32 = POOL << 14;
const NOBODY: u32 = (POOL + 1) << 14;

struct Bench<'a> {
    turns: Turns<'a>,
    hosts: Hosts,
}

pub fn run(quick: bool, only: Option<&str>) -> Result<Report> {
    // In a thread of its own, since it binds itself to a CPU and goes into namespaces.
    let wire = std::thread::scope(|scope| scope.spawn(|| wire::nat(quick, only)).join());
    let wire = wire.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    let capacity = Capacity { nat_addresses: POOL, ..Capacity::default() };
    let mut machine = Machine::new(&capacity)?;
    let hosts = Hosts::find()?;
    scene::fill(&mut machine.kernel, hosts, ALL, capacity)?;
    let mut bench = Bench { turns: Turns::new(machine, quick, only), hosts };
    bench.floor()?;
    bench.new_flows()?;
    let mut filled = 0;
    for (flows, what, reach, back) in FLOWS {
        bench.open(filled, flows)?;
        filled = flows;
        bench.turns.machine.fill_limit()?;
        bench.established(flows, what, reach)?;
        if back {
            bench.replies(flows, what, reach)?;
        }
    }
    bench.over_quota()?;
    bench.exhausted()?;
    let Turns { machine, mut rows, .. } = bench.turns;
    rows.sort_by_key(|row| row.name.starts_with("v6"));
    machine.close()?;
    rows.extend(wire);
    Ok(Report { bench: "nat", rows })
}

impl Bench<'_> {
    /// Packets out, or back, of numbered connections with one host outside.
    fn tcp(&self, v6: bool, flags: u8, reply: bool, order: Order) -> Script {
        let clients = if reply { self.hosts.outside } else { self.hosts.inside };
        Script::tcp_of(clients, v6, STRANGER, flags, reply, order)
    }

    fn floor(&mut self) -> Result<()> {
        for (v6, at, hook, code) in [
            (false, At::Tc, "TC", TC_OK),
            (false, At::Xdp, "XDP", XDP_PASS),
            (true, At::Tc, "TC", TC_OK),
            (true, At::Xdp, "XDP", XDP_PASS),
        ] {
            let name = format!("{} floor: parse, {hook}", version(v6));
            if self.turns.wanted(&name) {
                let script = self.tcp(v6, ACK, false, Order::random(1 << 16));
                let case = Case::new(&name, at, v6, script, &[Lane::Parse], self.turns.effort.packets, code);
                let (row, _) = self.turns.row(&case, None)?;
                self.turns.rows.push(row);
            }
        }
        Ok(())
    }

    /// Every packet is of an endpoint inside that has no port outside, and there is room for all.
    fn new_flows(&mut self) -> Result<()> {
        for (v6, udp) in [(false, false), (false, true), (true, false), (true, true)] {
            let name = format!("{} new flow, {}", version(v6), if udp { "UDP" } else { "TCP" });
            if !self.turns.wanted(&name) {
                continue;
            }
            // More than a row has packets.
            let order = Order::chunk(0, HOSTS << 14);
            let script = if udp {
                Script::udp_of(self.hosts.inside, v6, STRANGER, order)
            } else {
                self.tcp(v6, SYN, false, order)
            };
            let lanes = [Lane::Stellwerk, Lane::Fresh];
            let case = Case::new(&name, At::Tc, v6, script, &lanes, self.turns.effort.new, TC_REDIRECT).cleared();
            let mapped = self.turns.machine.noted(Note::NatMapped)?;
            let (row, measured) = self.turns.row(&case, Some(Reach::AtMost(1.5)))?;
            let mapped = self.turns.machine.noted(Note::NatMapped)? - mapped;
            let row = row.verdict("nat_mapped", mapped).prove(mapped == measured.packets);
            self.turns.rows.push(self.went_out(row, v6, &measured));
        }
        Ok(())
    }

    /// Opens the connections `from..to` by their three packets.
    fn open(&mut self, from: u32, to: u32) -> Result<()> {
        for v6 in [false, true] {
            let before = self.turns.machine.entries(v6).0;
            for (base, count) in chunks(from, to) {
                for (at, flags) in [(At::Tc, SYN), (At::Xdp, SYN_ACK), (At::Tc, ACK)] {
                    let script = self.tcp(v6, flags, at == At::Xdp, Order::chunk(base, count));
                    self.turns.machine.script(&script)?;
                    self.turns.machine.run(Lane::Stellwerk, at, v6, count)?;
                }
            }
            let (now, half) = self.turns.machine.entries(v6);
            ensure!(
                now - before == (to - from) as usize * 2,
                "{}: {} entries came instead of {}; {half} are not answered, dropped so far: {:?}",
                version(v6),
                now - before,
                (to - from) * 2,
                self.turns.machine.all_dropped()?
            );
        }
        Ok(())
    }

    fn established(&mut self, flows: u32, what: &str, reach: f64) -> Result<()> {
        for v6 in [false, true] {
            let name = format!("{} established, {what}", version(v6));
            let script = self.tcp(v6, ACK, false, Order::random(flows));
            let lanes = [Lane::Stellwerk, Lane::Limit, Lane::LimitHelper];
            let case = Case::new(&name, At::Tc, v6, script, &lanes, self.turns.effort.packets, TC_REDIRECT);
            if let Some((row, measured)) = self.known(&case, reach)? {
                let helper = (median(&measured.net[2]) * 10.0).round() / 10.0;
                let row = row.verdict("limit_with_helper_ns", helper);
                self.turns.rows.push(self.went_out(row, v6, &measured));
            }
        }
        Ok(())
    }

    fn replies(&mut self, flows: u32, what: &str, reach: f64) -> Result<()> {
        for v6 in [false, true] {
            let name = format!("{} reply, {what}", version(v6));
            let script = self.tcp(v6, ACK, true, Order::random(flows));
            let lanes = [Lane::Stellwerk, Lane::Limit];
            let case = Case::new(&name, At::Xdp, v6, script, &lanes, self.turns.effort.packets, XDP_REDIRECT);
            if let Some((row, measured)) = self.known(&case, reach)? {
                let inside = self.hosts.is_inside(ends(v6, &measured.packet).1);
                self.turns.rows.push(row.verdict("to_inside", inside).prove(inside));
            }
        }
        Ok(())
    }

    /// A row whose packets neither open nor end a connection.
    fn known(&mut self, case: &Case, reach: f64) -> Result<Option<(Row, Measured)>> {
        if !self.turns.wanted(case.name) {
            return Ok(None);
        }
        let state =
            |machine: &Machine| Ok::<_, anyhow::Error>((machine.entries(case.v6), machine.noted(Note::NatMapped)?));
        let before = state(&self.turns.machine)?;
        let (row, measured) = self.turns.row(case, Some(Reach::AtMost(reach)))?;
        let same = state(&self.turns.machine)? == before;
        Ok(Some((row.verdict("tables_the_same", same).prove(same), measured)))
    }

    /// Holds the last packet against what it should have become.
    fn went_out(&self, row: Row, v6: bool, measured: &Measured) -> Row {
        let outside = self.hosts.is_outside(ends(v6, &measured.packet).0);
        row.verdict("from_outside", outside).prove(outside)
    }

    /// Another port of a host that has as many as it may have.
    fn over_quota(&mut self) -> Result<()> {
        self.quota(QUOTA)?;
        for v6 in [false, true] {
            let name = format!("{} over quota", version(v6));
            if !self.turns.wanted(&name) {
                continue;
            }
            // Ports of all protocols count, and those of UDP are all free.
            let script = Script::udp_of(self.hosts.inside, v6, STRANGER, Order::chunk(HOLDER, QUOTA));
            self.turns.machine.script(&script)?;
            self.turns.machine.run(Lane::Stellwerk, At::Tc, v6, QUOTA)?;
            let order = Order { count: ALL, first: HOLDER, shuffled: true };
            self.refused(&name, v6, order, Drop::NatQuota)?;
        }
        self.quota(ALL)
    }

    /// A port of a host whose address outside has none left.
    fn exhausted(&mut self) -> Result<()> {
        for v6 in [false, true] {
            let name = format!("{} ports exhausted", version(v6));
            if !self.turns.wanted(&name) {
                continue;
            }
            let (maps, now) = (&self.turns.machine.kernel.maps, self.turns.machine.kernel.now()?);
            let settings = maps.settings.get(&0)?.context("the settings")?;
            if v6 {
                take_all(&maps.v6, &settings, now)
            } else {
                take_all(&maps.v4, &settings, now)
            }
            let order = Order { count: ALL, first: NOBODY, shuffled: true };
            self.refused(&name, v6, order, Drop::NatPortsExhausted)?;
        }
        Ok(())
    }

    /// A row whose every packet is dropped for a reason, held against a lookup that finds nothing.
    fn refused(&mut self, name: &str, v6: bool, order: Order, reason: Drop) -> Result<()> {
        let script = self.tcp(v6, SYN, false, order);
        let packets = self.turns.effort.packets / 2;
        let lanes = [Lane::Stellwerk, Lane::Limit];
        let case = Case::new(name, At::Tc, v6, script, &lanes, packets, TC_SHOT).dropped();
        let before = self.turns.machine.dropped(reason)?;
        let (row, measured) = self.turns.row(&case, Some(Reach::AtMost(3.0)))?;
        let dropped = self.turns.machine.dropped(reason)? - before;
        self.turns.rows.push(row.verdict(reason.label(), dropped).prove(dropped == measured.packets));
        Ok(())
    }

    fn quota(&mut self, ports: u32) -> Result<()> {
        let settings = &self.turns.machine.kernel.maps.settings;
        let old = settings.get(&0)?.context("the settings")?;
        settings.set(&0, &Settings { nat_quota: ports, ..old })
    }
}

/// Gives all free ports of TCP to somebody inside who never sends.
fn take_all<A: Addr>(maps: &FamilyMaps<A>, settings: &Settings, now: u32) {
    let class = port_table::class(6).unwrap_or_default();
    let (first, count) = settings.ports();
    let (inside, remote) = (A::default(), A::default());
    for plane in 0..POOL {
        for port in (0..PORTS).skip(first as usize).take(count as usize) {
            let index = port_table::base(plane, class) + port;
            if port_table::take(&maps.ports, index) {
                let port = Be16::new(port as u16);
                let mapping = Mapping { inside, remote, port, state: tcp::ESTABLISHED, away: false, now };
                port_table::own(&maps.ports, index, &mapping);
            }
        }
    }
}

/// Source and destination of a packet.
fn ends(v6: bool, packet: &[u8; 80]) -> (IpAddr, IpAddr) {
    fn of<const N: usize>(packet: &[u8; 80], at: usize) -> IpAddr
    where
        IpAddr: From<[u8; N]>,
    {
        let mut octets = [0; N];
        octets.copy_from_slice(&packet[at..at + N]);
        octets.into()
    }
    if v6 { (of::<16>(packet, 22), of::<16>(packet, 38)) } else { (of::<4>(packet, 26), of::<4>(packet, 30)) }
}
