//! `bench wire`: what passes through a box between a client and a server, by each way of doing it.
//!
//! Invariant: all ways stand side by side, each with its own three namespaces, and take turns in
//! rounds; a ratio is the median of the rounds' ratios. Frames are counted where they arrive.

mod frames;
mod load;
mod path;
mod rules;

use std::net::Ipv4Addr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use stellwerk_tests::netns::Lab;

use super::report::{Reach, Report, Row};
use super::series::{median, ratio};
use path::{FAR, Path, SERVER, Way};

/// A kind of measurement: one figure of one path.
type Measure = fn(&mut Path, Duration) -> Result<f64>;

/// What a way's figure is held against, of which other way, and what the ratio should be.
type Held = (Way, Way, Reach);

struct Kind {
    name: &'static str,
    unit: &'static str,
    ways: &'static [Way],
    measure: Measure,
    held: &'static [Held],
    /// How long one measurement takes, shorter and longer.
    time: (u64, u64),
}

const KINDS: [Kind; 5] = [
    Kind {
        name: "live frames",
        unit: "frames/s",
        ways: &[Way::Forward, Way::BareXdp, Way::BareTc, Way::Nft(1), Way::Nft(10_000), Way::Xdp(1), Way::Xdp(10_000)],
        measure: Path::frames,
        held: &[
            (Way::Xdp(10_000), Way::BareXdp, Reach::AtLeast(0.75)),
            (Way::Xdp(10_000), Way::Nft(10_000), Reach::AtLeast(3.5)),
        ],
        time: (250, 1000),
    },
    Kind {
        name: "connections",
        unit: "1/s",
        ways: &Way::ALL,
        measure: Path::connections,
        held: &[
            (Way::Tc(10_000), Way::BareTc, Reach::AtLeast(0.95)),
            (Way::Tc(10_000), Way::Nft(10_000), Reach::AtLeast(1.15)),
        ],
        time: (300, 1500),
    },
    Kind {
        name: "requests",
        unit: "1/s",
        ways: &Way::ALL,
        measure: Path::requests,
        held: &[(Way::Tc(10_000), Way::Nft(10_000), Reach::AtLeast(1.05))],
        time: (300, 1500),
    },
    Kind {
        name: "throughput, segmentation on",
        unit: "Gbit/s",
        ways: &[Way::Forward, Way::BareTc, Way::Nft(10_000), Way::Tc(10_000)],
        measure: Path::throughput,
        held: &[(Way::Tc(10_000), Way::Nft(10_000), Reach::AtLeast(1.2))],
        time: (500, 2000),
    },
    Kind {
        name: "throughput, segmentation off",
        unit: "Gbit/s",
        ways: &[Way::Forward, Way::BareXdp, Way::Nft(10_000), Way::Xdp(10_000)],
        measure: Path::throughput_in_segments,
        held: &[(Way::Xdp(10_000), Way::Nft(10_000), Reach::AtLeast(1.3))],
        time: (500, 2000),
    },
];

/// What [`nat`] measures.
const NAT: [Kind; 5] = [
    Kind {
        name: "live frames",
        unit: "frames/s",
        ways: &Way::NAT,
        measure: Path::frames,
        held: &[
            (Way::NatXdp, Way::BareXdp, Reach::AtLeast(0.75)),
            (Way::NatXdp, Way::Masquerade, Reach::AtLeast(3.5)),
            (Way::NatTc, Way::Masquerade, Reach::AtLeast(3.5)),
        ],
        time: (250, 1000),
    },
    Kind {
        name: "connections",
        unit: "1/s",
        ways: &Way::NAT,
        measure: Path::connections_by_default,
        held: &[(Way::NatTc, Way::Masquerade, Reach::AtLeast(1.15))],
        time: (300, 1500),
    },
    Kind {
        name: "connections, more ports inside than outside",
        unit: "1/s",
        ways: &[Way::Masquerade, Way::NatTc],
        measure: Path::connections_of_all_ports,
        held: &[(Way::NatTc, Way::Masquerade, Reach::AtLeast(1.15))],
        time: (300, 1500),
    },
    Kind {
        name: "requests",
        unit: "1/s",
        ways: &Way::NAT,
        measure: Path::requests,
        held: &[(Way::NatTc, Way::Masquerade, Reach::AtLeast(1.05))],
        time: (300, 1500),
    },
    Kind {
        name: "throughput",
        unit: "Gbit/s",
        ways: &[Way::Forward, Way::BareTc, Way::Masquerade, Way::NatTc],
        measure: Path::throughput,
        held: &[(Way::NatTc, Way::Masquerade, Reach::AtLeast(1.2))],
        time: (500, 2000),
    },
];

/// What [`route`] measures.
const ROUTE: [Kind; 2] = [
    Kind {
        name: "live frames",
        unit: "frames/s",
        ways: &Way::ROUTE,
        measure: Path::frames,
        held: &[
            (Way::RouteXdp, Way::Forward, Reach::AtLeast(1.5)),
            (Way::RouteXdp, Way::BareXdp, Reach::AtLeast(0.75)),
            (Way::RouteTc, Way::Forward, Reach::AtLeast(1.0)),
        ],
        time: (250, 1000),
    },
    Kind {
        name: "throughput",
        unit: "Gbit/s",
        ways: &[Way::Forward, Way::BareTc, Way::RouteTc],
        measure: Path::throughput,
        held: &[(Way::RouteTc, Way::Forward, Reach::AtLeast(0.95))],
        time: (500, 2000),
    },
];

pub fn run(quick: bool) -> Result<Report> {
    Ok(Report { bench: "wire", rows: rows(&Way::ALL, SERVER, &KINDS, quick, None)? })
}

/// The same of a box that gives what comes from the inside its own address.
pub fn nat(quick: bool, only: Option<&str>) -> Result<Vec<Row>> {
    rows(&Way::NAT, FAR, &NAT, quick, only)
}

/// The same of a router, which translates nothing.
pub fn route(quick: bool, only: Option<&str>) -> Result<Vec<Row>> {
    rows(&Way::ROUTE, SERVER, &ROUTE, quick, only)
}

fn rows(ways: &[Way], server: [u8; 4], kinds: &[Kind], quick: bool, only: Option<&str>) -> Result<Vec<Row>> {
    let wanted = |kind: &&Kind| only.is_none_or(|only| kind.name.contains(only));
    let mut kinds = kinds.iter().filter(wanted).peekable();
    if kinds.peek().is_none() {
        return Ok(Vec::new());
    }
    let lab = Lab::new()?;
    let mut paths = Vec::new();
    for &way in ways {
        paths.push(Path::new(&lab, way, server).with_context(|| way.to_string())?);
    }
    let rounds = if quick { 3 } else { 9 };
    let mut rows = Vec::new();
    for kind in kinds {
        rows.extend(measure(&mut paths, kind, rounds, quick)?);
    }
    // Before the lab, which removes what they are in.
    drop(paths);
    Ok(rows)
}

fn measure(paths: &mut [Path], kind: &Kind, rounds: u32, quick: bool) -> Result<Vec<Row>> {
    let time = Duration::from_millis(if quick { kind.time.0 } else { kind.time.1 });
    let mut figures = vec![Vec::new(); kind.ways.len()];
    for round in 0..=rounds {
        for (figures, way) in figures.iter_mut().zip(kind.ways) {
            stellwerk_tests::netns::clean::check()?;
            let path = paths.iter_mut().find(|path| path.way == *way).context("a way without a path")?;
            let figure = (kind.measure)(path, time).with_context(|| format!("{}: {way}", kind.name))?;
            // The first round resolves neighbours and opens connections.
            if round > 0 {
                figures.push(figure);
            }
        }
    }
    let of = |way: Way| kind.ways.iter().position(|w| *w == way).map(|i| figures[i].as_slice()).unwrap_or_default();
    let plain = kind.ways.iter().map(|way| {
        let figure = median(of(*way));
        let path = paths.iter().find(|path| path.way == *way);
        let failed = path.map_or(0, |path| path.failed.swap(0, Ordering::Relaxed));
        let (seen, right) = path.map_or((Ipv4Addr::UNSPECIFIED, false), Path::seen_as);
        Row::new(format!("{}: {way}", kind.name), figure, kind.unit)
            .verdict("failed", failed)
            .verdict("client", seen.to_string())
            .prove(figure > 0.0 && failed == 0 && right)
    });
    let held = kind.held.iter().map(|&(ours, other, reach)| {
        let (a, b) = (of(ours), of(other));
        Row::new(format!("{}: {ours} against {other}", kind.name), median(a), kind.unit)
            .against(median(b), ratio(a, b), reach)
            .verdict("rounds", rounds)
            .prove(median(b) > 0.0)
    });
    Ok(plain.chain(held).collect())
}
