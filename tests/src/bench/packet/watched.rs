//! What it costs to be watched: established packets while `stellwerk monitor` is off, sees one in 1000, and sees all.
//!
//! Invariant: all three take turns; a reader empties the buffer, as `monitor` does.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use aya::maps::{Map, MapData, RingBuf};
use lb_common::drop::Note;
use lb_common::table::monitor::Watch;

use super::{ACK, Bench, Order, scene, tcp};
use crate::bench::machine::{At, Lane};
use crate::bench::report::{Reach, Row};
use crate::bench::series::{median, ratio};

/// Off, some, all; and what each may cost beside off.
const KINDS: [(&str, u32, Option<f64>); 3] = [("off", 0, None), ("one in 1000", 1_000, Some(1.05)), ("all", 1, None)];

pub fn rows(bench: &mut Bench<'_>) -> Result<()> {
    let name = "v4 monitored, 1 flow";
    if !bench.0.wanted(name) {
        return Ok(());
    }
    let script = tcp(false, scene::SINGLE, ACK, false, Order::random(1));
    let pin = bench.0.machine.kernel.paths.maps().join(lb_user::apply::maps::SIGHTINGS);
    let ring = MapData::from_pin(&pin).with_context(|| pin.display().to_string())?;
    let mut ring = RingBuf::try_from(Map::from_map_data(ring)?).context("the buffer of packets")?;
    let (done, seen) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut ns = [const { Vec::new() }; KINDS.len()];
    let lost = bench.0.machine.noted(Note::MonitorLost)?;
    thread::scope(|scope| -> Result<()> {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                while ring.next().is_some() {
                    seen.fetch_add(1, Ordering::Relaxed);
                }
                thread::sleep(Duration::from_millis(1));
            }
        });
        let measured = measure(bench, &script, &mut ns);
        done.store(true, Ordering::Relaxed);
        measured
    })?;
    let lost = bench.0.machine.noted(Note::MonitorLost)? - lost;
    for ((what, _, most), figures) in KINDS.iter().zip(&ns) {
        let row = Row::new(format!("{name}: {what}"), median(figures), "ns");
        let row = match most {
            Some(most) => row.against(median(&ns[0]), ratio(figures, &ns[0]), Reach::AtMost(*most)),
            None => row.verdict("times_off", (ratio(figures, &ns[0]) * 100.0).round() / 100.0),
        };
        let row = row.verdict("seen", seen.load(Ordering::Relaxed)).verdict("lost", lost);
        bench.0.rows.push(row.prove(seen.load(Ordering::Relaxed) > 0));
    }
    Ok(())
}

fn measure(
    bench: &mut Bench<'_>,
    script: &crate::bench::script::Script,
    ns: &mut [Vec<f64>; KINDS.len()],
) -> Result<()> {
    let packets = bench.0.effort.packets;
    for _ in 0..bench.0.effort.rounds {
        for ((_, every, _), figures) in KINDS.iter().zip(ns.iter_mut()) {
            let machine = &mut bench.0.machine;
            let until = if *every == 0 { 0 } else { machine.kernel.now()?.wrapping_add(1 << 20).max(1) };
            machine.kernel.maps.watch_left.zero(0)?;
            machine.kernel.maps.watch.set(&0, &Watch { until, every: *every })?;
            machine.script(script)?;
            let stub = machine.run(Lane::Stub, At::Xdp, false, packets)?.ns;
            figures.push(machine.run(Lane::Stellwerk, At::Xdp, false, packets)?.ns - stub);
        }
    }
    bench.0.machine.kernel.maps.watch.set(&0, &Watch::default())
}
