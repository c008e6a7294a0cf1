//! `bench pods`: what passes between two pods of a node and of two nodes, beside namespaces that the kernel's own
//! bridge, routes and VXLAN connect; and how long a runtime waits for a pod's interface.
//!
//! Invariant: pods are made by the plugin's own program, as a runtime calls it; all ways take turns in rounds, and a
//! ratio is the median of the rounds' ratios.

mod latency;
mod nodes;
mod scene;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use stellwerk_tests::netns::{Lab, clean};

use self::scene::{Node, Pair, bridge};
use super::report::{Reach, Report, Row};
use super::series::{median, ratio};
use super::sockets::{self, IPERF, PORT};

struct Kind {
    name: &'static str,
    unit: &'static str,
    measure: fn(&Pair, Duration, &AtomicU64) -> Result<f64>,
    /// How long one measurement takes, shorter and longer.
    time: (u64, u64),
}

const KINDS: [Kind; 3] = [
    Kind {
        name: "throughput",
        unit: "Gbit/s",
        measure: |pair, time, _| sockets::throughput(&pair.client, pair.at(IPERF), time),
        time: (1_000, 2_000),
    },
    Kind {
        name: "requests",
        unit: "1/s",
        measure: |pair, time, _| sockets::requests(&pair.client, pair.at(PORT), time),
        time: (300, 1_500),
    },
    Kind {
        name: "connections",
        unit: "1/s",
        measure: |pair, time, failed| sockets::connections(&pair.client, pair.at(PORT), time, failed),
        time: (300, 1_500),
    },
];

const PARTS: [&str; 4] = ["one node", "two nodes, direct", "two nodes, overlay", "at once"];

/// `only`: the parts whose names contain this.
pub fn run(quick: bool, only: Option<&str>) -> Result<Report> {
    let wanted = |part: &str| only.is_none_or(|only| part.contains(only));
    ensure!(
        PARTS.into_iter().any(wanted),
        "--only {}: expected a piece of `{}`",
        only.unwrap_or_default(),
        PARTS.join("`, `")
    );
    let [one_node, direct, overlay, at_once] = PARTS;
    let mut rows = Vec::new();
    let mut node = Node::new()?;
    if wanted(one_node) {
        let ways = [node.pods()?, bridge(&node.lab)?];
        rows.extend(between(one_node, &ways, 1.0, quick)?);
    }
    for (place, lines, vxlan, reach) in [(direct, "", false, 1.0), (overlay, ", overlay: always", true, 1.1)] {
        if !wanted(place) {
            continue;
        }
        let (pods, cluster) = nodes::ours("pods", lines)?;
        let lab = Lab::new()?;
        let ways =
            [pods, nodes::kernel(&lab, if vxlan { "the kernel's VXLAN" } else { "the kernel's routes" }, vxlan)?];
        rows.extend(between(place, &ways, reach, quick)?);
        drop(ways);
        drop(cluster);
    }
    node.empty()?;
    if wanted(at_once) {
        rows.extend(latency::rows(&node, quick)?);
    }
    Ok(Report { bench: "pods", rows })
}

/// Two ways between a client and a server: ours, and what it is held against.
fn between(place: &str, ways: &[Pair; 2], reach: f64, quick: bool) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for kind in &KINDS {
        let (time, rounds) = if quick { (kind.time.0, 4) } else { (kind.time.1, 9) };
        let (mut figures, failed) = ([Vec::new(), Vec::new()], AtomicU64::new(0));
        for round in 0..=rounds {
            clean::check()?;
            for (figures, pair) in figures.iter_mut().zip(ways) {
                let figure = (kind.measure)(pair, Duration::from_millis(time), &failed);
                let figure = figure.with_context(|| format!("{place}, {}: {}", kind.name, pair.name))?;
                // The first round warms up.
                figures.extend((round > 0).then_some(figure));
            }
        }
        let [ours, other] = &figures;
        let row = Row::new(
            format!("{place}, {}: {} against {}", kind.name, ways[0].name, ways[1].name),
            median(ours),
            kind.unit,
        )
        .against(median(other), ratio(ours, other), Reach::AtLeast(reach))
        .verdict("failed", failed.load(Ordering::Relaxed))
        .verdict("client", ways[0].seen().to_string())
        .prove(failed.into_inner() == 0 && ways.iter().all(Pair::is_seen));
        rows.push(row);
    }
    Ok(rows)
}
