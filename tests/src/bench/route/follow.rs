//! How soon the data plane goes by what the kernel's own table says: by a whole one, and by one change of it.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lb_common::table::Prefix;
use lb_common::wire::{Addr, Ip4};
use lb_user::apply::fib::Parts;
use lb_user::apply::{Maps, Paths};
use lb_user::fib::Fib;
use lb_user::intent::{Intent, Neighbour, Network};
use lb_user::moment::Moment;
use lb_user::plan::{Clock, Ids, Planned};
use lb_user::source::netlink::Mirror;
use stellwerk_tests::netns::clean::{self, Proc};
use stellwerk_tests::netns::{Between, Ns};
use stellwerk_tests::routes::{self, Drawn};

use super::super::report::{Reach, Row};
use super::super::series::{median, quantile};

const PATIENCE: Duration = Duration::from_secs(120);
/// Other routes than the one that changes, and how many in words.
const SIZES: [(usize, &str); 2] = [(1_000, "1 k routes"), (1_000_000, "1 M routes")];

/// Every gateway is resolved.
fn resolved(network: &mut Network) {
    let hops: BTreeSet<_> =
        network.routes.paths().flat_map(|paths| paths.iter().filter_map(|p| Some((p.link, p.gateway?)))).collect();
    network.neighbours = (0u16..)
        .zip(hops)
        .map(|(i, (link, addr))| {
            let [high, low] = i.to_be_bytes();
            Neighbour { link, addr, mac: Some([2, 0, 0, 7, high, low]) }
        })
        .collect();
}

/// What the agent does at its start: reads the kernel's table over netlink, plans, and has the programs go by it.
pub fn whole<A: Drawn>(fib: &mut Fib<A, Parts>, ns: &Ns, routes: usize, what: &str) -> Result<Vec<Row>> {
    ns.run(|| {
        let begin = Instant::now();
        let mut network = Mirror::open()?.network().clone();
        let read = begin.elapsed();
        resolved(&mut network);
        let clock = Clock { now: Moment::now(), tick: 1, ticks_per_second: 100 };
        let begin = Instant::now();
        let planned = Planned::new(&Intent::default(), &network, &mut Ids::default(), clock, None)?;
        let contents = planned.contents();
        let plan = begin.elapsed();
        let value = |index: &u32| index + 1;
        let table: Vec<(Prefix<A>, u32)> = if A::IS_V6 {
            contents.v6.routes.iter().filter_map(|(p, i)| Some((same(p.len, p.addr)?, value(i)))).collect()
        } else {
            contents.v4.routes.iter().filter_map(|(p, i)| Some((same(p.len, p.addr)?, value(i)))).collect()
        };
        fib.replace(&table)?;
        let all = read + begin.elapsed();
        let seconds = |time: Duration| time.as_secs_f64();
        let row = Row::new(format!("{what}: in force from the kernel's table"), seconds(all), "s");
        let row = row.reach(Reach::AtMost(4.0)).verdict("read_s", seconds(read)).verdict("planned_s", seconds(plan));
        Ok(vec![row.verdict("routes", table.len() as u64).prove(table.len() >= routes)])
    })?
}

fn same<A: Drawn, B: Addr>(len: u32, addr: B) -> Option<Prefix<A>> {
    Some(Prefix { len, addr: A::from_ip(addr.to_ip())? })
}

/// The agent beside a kernel's table of some size, of which one route changes.
pub fn changes(quick: bool) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (size, what) in SIZES {
        let between = Between::open("")?;
        let table = routes::table::<Ip4>(size, 1, 7);
        let far = Between::far()[0];
        let lines: Vec<String> =
            table.iter().map(|(p, _)| format!("route replace {}/{} via {far}", p.addr.to_ip(), p.len)).collect();
        between.dev.ip(&lines.join("\n"))?;
        let end = Instant::now() + PATIENCE;
        while between.entries("ROUTES4").is_none_or(|entries| entries < size as u64) {
            ensure!(Instant::now() < end, "not all routes came\n{}", between.agent.log_tail());
            std::thread::sleep(Duration::from_millis(100));
        }
        let times = times(&between, if quick { 200 } else { 1_000 })?;
        let row = |name: &str, value| {
            Row::new(format!("one change beside {what}, {name}"), value, "ms").verdict("changes", times.len() as u64)
        };
        rows.push(row("p50", median(&times)));
        rows.push(row("p99", quantile(&times, 0.99)).reach(Reach::AtMost(2.0)));
    }
    Ok(rows)
}

/// Milliseconds from before `ip` is told until programs that see the new epoch see the route, too.
fn times(between: &Between, changes: usize) -> Result<Vec<f64>> {
    let maps = Maps::open(&Paths::new(between.lab.pins()).maps())?;
    let epoch = || anyhow::Ok(maps.settings.get(&0)?.context("settings")?.epoch);
    let mut command = between.dev.command("ip");
    let mut ip = Proc::start(command.args(["-batch", "-"]).stdin(Stdio::piped()))?;
    let mut input = ip.input().context("ip's input")?;
    let mut times = Vec::new();
    for turn in 0..changes {
        clean::check()?;
        let way = if turn % 2 == 0 { "blackhole 203.0.113.0/24" } else { "203.0.113.0/24 via 192.168.30.1" };
        let before = epoch()?;
        let begin = Instant::now();
        input.write_all(format!("route replace {way}\n").as_bytes())?;
        loop {
            let now = epoch()?;
            if now != before && now % 2 == 0 {
                break;
            }
            ensure!(begin.elapsed() < Duration::from_secs(5), "a change never came\n{}", between.agent.log_tail());
            // Else it has a processor to itself that the agent may need.
            std::thread::sleep(Duration::from_micros(10));
        }
        times.push(begin.elapsed().as_secs_f64() * 1e3);
        // Not in step with anything.
        std::thread::sleep(Duration::from_micros(500 + 137 * (turn as u64 % 40)));
    }
    Ok(times)
}
