//! How long `stellwerk flows` takes for half a million connections, which are a million entries: the process, from
//! its start to its last line.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lb_user::intent::Capacity;
use stellwerk_tests::netns::clean;

use super::super::machine::{At, Lane, Machine, thread_ns};
use super::super::report::{Reach, Row};
use super::super::scene;
use super::super::script::{ACK, Order, SYN, SYN_ACK, Script};
use super::super::series::median;
use super::super::turns::chunks;

const CONNECTIONS: u32 = 1 << 19;

pub fn rows(quick: bool) -> Result<Vec<Row>> {
    let capacity = Capacity { connections: 600_000, ..Capacity::default() };
    let mut machine = Machine::new(&capacity)?;
    scene::fill(&mut machine.kernel, capacity)?;
    for (base, count) in chunks(0, CONNECTIONS) {
        for (peer, flags, reply) in
            [(scene::SINGLE, SYN, false), (scene::BACKEND, SYN_ACK, true), (scene::SINGLE, ACK, false)]
        {
            machine.script(&Script::tcp(false, peer, flags, reply, Order::chunk(base, count)))?;
            machine.run(Lane::Stellwerk, At::Xdp, false, count)?;
        }
    }
    let entries = machine.entries(false).0;
    ensure!(entries == CONNECTIONS as usize * 2, "{entries} entries are answered");
    let times = if quick { 3 } else { 9 };
    let mut rows = Vec::new();
    for (name, form) in [("text", None), ("JSON", Some("--json"))] {
        let (mut seconds, mut lines) = (Vec::new(), 0);
        for _ in 0..times {
            clean::check()?;
            let begin = Instant::now();
            lines = listed(&machine, form)?;
            seconds.push(begin.elapsed().as_secs_f64());
        }
        let row = Row::new(format!("flows listed, 1 M entries, {name}"), median(&seconds), "s");
        rows.push(row.reach(Reach::AtMost(0.5)).verdict("lines", lines).prove(lines > u64::from(CONNECTIONS)));
    }
    let begin = thread_ns();
    let met = machine.kernel.maps.v4.flows.entries().len();
    let walk = Row::new("flows walked, 1 M entries", (thread_ns() - begin) / 1e9, "s");
    rows.push(walk.verdict("entries", met as u64).prove(met == entries));
    machine.close()?;
    Ok(rows)
}

/// How many lines the command writes.
fn listed(machine: &Machine, form: Option<&str>) -> Result<u64> {
    let bin = std::env::var_os("STELLWERK_BIN").context("STELLWERK_BIN")?;
    let mut command = Command::new(bin);
    command.arg("--pin-path").arg(&machine.kernel.paths.pin).arg("flows").args(form).stdout(Stdio::piped());
    let mut child = command.spawn().context("stellwerk flows")?;
    let mut output = child.stdout.take().context("its output")?;
    let (mut lines, mut buffer) = (0, vec![0; 1 << 20]);
    loop {
        let read = std::io::Read::read(&mut output, &mut buffer)?;
        if read == 0 {
            break;
        }
        lines += buffer[..read].iter().filter(|byte| **byte == b'\n').count() as u64;
    }
    ensure!(child.wait()?.success(), "stellwerk flows failed");
    Ok(lines)
}
