//! `bench route`: net ns a lookup of the table of routes, beside a kernel trie and the kernel's own routes
//! with the same routes, at sizes up to the Internet's; the same of a whole packet that is forwarded; how long it takes
//! to build and to change; memory; frames through namespaces, and how long nothing arrives when a router fails.
//!
//! Invariant: before anything is measured, all three have answered every destination as a naive longest
//! prefix match does. A row whose answers differ is marked.

mod failover;
mod follow;
mod forward;
mod programs;
mod updates;

use std::net::IpAddr;
use std::time::Instant;

use anyhow::{Context, Result};
use lb_common::table::Prefix;
use lb_common::wire::{Ip4, Ip6};
use lb_user::apply::fib::Parts;
use lb_user::fib::Fib;
use stellwerk_tests::netns::clean;
use stellwerk_tests::routes::kernel::{DESTINATIONS, Lane, Routes};
use stellwerk_tests::routes::{self, Drawn, Oracle, Random};

use super::machine::{pin_cpu, thread_ns};
use super::report::{Reach, Report, Row};
use super::series::{median, minus, ratio};

/// Next hops.
const VALUES: u32 = 1_000;
/// Routes, and how many in words.
const SIZES4: [(usize, &str); 3] = [(1_000, "1 k routes"), (100_000, "100 k routes"), (1_000_000, "1 M routes")];
const SIZES6: [(usize, &str); 3] = [(1_000, "1 k routes"), (100_000, "100 k routes"), (250_000, "250 k routes")];

/// What a lookup in the largest table should be, in times.
struct Times {
    trie: f64,
    kernel: Option<f64>,
    /// And what forwarding a packet may cost, as a part of what it costs by `bpf_fib_lookup`.
    forward: Option<f64>,
}

/// `only`: the parts whose rows' names contain this.
pub fn run(quick: bool, only: Option<&str>) -> Result<Report> {
    let wanted = |part: &str| only.is_none_or(|only| part.contains(only));
    let mut rows = Vec::new();
    for (size, what) in SIZES4.into_iter().filter(|(_, what)| wanted(&format!("v4 {what}"))) {
        let largest = size == 1_000_000;
        let reach = largest.then_some(Times { trie: 15.0, kernel: Some(8.0), forward: Some(0.35) });
        rows.extend(table::<Ip4>(size, &format!("v4 {what}"), reach, quick)?);
    }
    for (size, what) in SIZES6.into_iter().filter(|(_, what)| wanted(&format!("v6 {what}"))) {
        let largest = size == 250_000;
        let reach = largest.then_some(Times { trie: 4.0, kernel: None, forward: None });
        rows.extend(table::<Ip6>(size, &format!("v6 {what}"), reach, quick)?);
    }
    rows.extend(super::wire::route(quick, only)?);
    if wanted("one change") {
        rows.extend(follow::changes(quick)?);
    }
    if wanted("failover") {
        rows.extend(failover::rows(quick)?);
    }
    Ok(Report { bench: "route", rows })
}

/// All rows of one table.
fn table<A: Drawn>(size: usize, what: &str, reach: Option<Times>, quick: bool) -> Result<Vec<Row>> {
    clean::check()?;
    let table = routes::table::<A>(size, VALUES, 7);
    let scene = Routes::<A>::new()?;
    let seconds = |begin: Instant| begin.elapsed().as_secs_f64();
    let mut fib = scene.ours(&table)?;
    let mut ours = Vec::new();
    for _ in 0..if reach.is_some() { 5 } else { 0 } {
        // An empty table, then the whole one: as when an agent starts.
        fib.replace(&[])?;
        let (begin, cpu) = (Instant::now(), thread_ns());
        fib.replace(&table)?;
        ours.push((seconds(begin), (thread_ns() - cpu) / 1e9));
    }
    let begin = Instant::now();
    scene.fill_trie(&table)?;
    let trie = seconds(begin);
    let before = kernel_memory()?;
    let begin = Instant::now();
    scene.fill_kernel(&table)?;
    let kernel = seconds(begin);
    let kernel_mb = before - kernel_memory()?;
    let mut rows = scene.ns().run(|| lookups(&scene, &table, what, reach.as_ref(), quick))??;
    let part = reach.as_ref().and_then(|times| times.forward);
    rows.extend(forward::rows(&scene, &table, what, part, quick)?);
    if reach.is_some() {
        let (wall, cpu): (Vec<f64>, Vec<f64>) = ours.into_iter().unzip();
        let build = Row::new(format!("{what}: built and switched"), median(&wall), "s").reach(Reach::AtMost(0.3));
        rows.push(build.verdict("cpu_s", median(&cpu)).verdict("trie_s", trie).verdict("kernel_s", kernel));
        rows.push(memory(&fib, what).verdict("kernel_mb", kernel_mb));
        rows.extend(follow::whole(&mut fib, scene.ns(), size, what)?);
        fib.replace(&table)?;
        rows.extend(updates::rows(fib, &table, what, quick)?);
    }
    Ok(rows)
}

/// The lanes in turns, each less the floor of its round.
fn lookups<A: Drawn>(
    scene: &Routes<A>,
    table: &[(Prefix<A>, u32)],
    what: &str,
    reach: Option<&Times>,
    quick: bool,
) -> Result<Vec<Row>> {
    pin_cpu()?;
    let to = destinations(table);
    scene.set_destinations(&to)?;
    let oracle = Oracle::of(table);
    let right: Vec<u32> = to.iter().map(|addr| oracle.find(*addr)).collect();
    const LANES: [Lane; 3] = [Lane::Ours, Lane::Trie, Lane::Kernel];
    let mut proven = Vec::new();
    for lane in LANES {
        let answers = scene.answers(lane)?;
        proven.push(answers.iter().zip(&right).filter(|(a, b)| a != b).count());
    }
    let (lookups, rounds) = if quick { (200_000, 7) } else { (500_000, 15) };
    let (mut floor, mut gross) = (Vec::new(), [Vec::new(), Vec::new(), Vec::new()]);
    // The first round warms up.
    for round in 0..=rounds {
        clean::check()?;
        let ns = time(scene, Lane::Floor, lookups)?;
        floor.extend((round > 0).then_some(ns));
        for (gross, lane) in gross.iter_mut().zip(LANES) {
            let ns = time(scene, lane, lookups)?;
            gross.extend((round > 0).then_some(ns));
        }
    }
    let [ours, trie, kernel] = gross.map(|gross| minus(&gross, &floor));
    let mut rows = vec![Row::new(what, median(&ours), "ns").verdict("floor_ns", median(&floor))];
    let others = [
        ("LPM_TRIE", &trie, reach.map(|times| times.trie)),
        ("bpf_fib_lookup", &kernel, reach.and_then(|times| times.kernel)),
    ];
    for (name, net, times) in others {
        let row = Row::new(format!("{what}, {name}"), median(net), "ns");
        rows.push(match times {
            Some(times) => row.against(median(&ours), ratio(net, &ours), Reach::AtLeast(times)),
            None => Row { limit: Some(median(&ours)), ratio: Some(ratio(net, &ours)), ..row },
        });
    }
    let proven = rows.into_iter().zip(proven);
    Ok(proven.map(|(row, wrong)| row.verdict("wrong_answers", wrong as u64).prove(wrong == 0)).collect())
}

fn time<A: Drawn>(scene: &Routes<A>, lane: Lane, lookups: u32) -> Result<f64> {
    let before = thread_ns();
    scene.run(lane, lookups)?;
    Ok((thread_ns() - before) / f64::from(lookups))
}

/// An address in a random route each: all hit, and none is of those that no router forwards.
fn destinations<A: Drawn>(table: &[(Prefix<A>, u32)]) -> Vec<A> {
    let mut random = Random(9);
    let mut draw = || loop {
        let (prefix, _) = &table[random.below(table.len() as u64) as usize];
        let addr = routes::within(&mut random, prefix);
        if !matches!(addr.to_ip(), IpAddr::V4(ip) if ip.is_link_local()) {
            return addr;
        }
    };
    (0..DESTINATIONS).map(|_| draw()).collect()
}

fn memory<A: Drawn>(fib: &Fib<A, Parts>, what: &str) -> Row {
    let (usage, bytes) = (fib.usage(), fib.store().bytes());
    let mb = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    Row::new(format!("{what}: memory in the kernel"), mb(bytes as u64), "MB")
        .verdict("nodes", usage.nodes as u64)
        .verdict("in_nodes_mb", mb(u64::from(usage.used) * 64))
        .verdict("spilled", usage.spilled as u64)
        .prove(usage.spilled == 0)
}

/// Memory that is free or could be, in MB.
fn kernel_memory() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("MemAvailable")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}
