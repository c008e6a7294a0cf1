//! How long a runtime waits for the plugin: many calls at once, as a node that starts makes them; beside the CNI
//! project's own `ptp` and `host-local`, which make such an interface without programs, of IPv4 alone.

use std::path::Path;
use std::thread;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};
use stellwerk_tests::netns::cni::{Call, Runtime};
use stellwerk_tests::netns::{Ns, clean};

use super::scene::Node;
use crate::bench::report::{Reach, Row};
use crate::bench::series::{median, quantile, ratio};

const AT_ONCE: usize = 20;
/// Milliseconds.
const REACH: f64 = 50.0;
/// Where Debian's containernetworking-plugins has it.
const OTHER: &str = "/usr/lib/cni/ptp";

/// Another plugin on a node of its own.
struct Other {
    runtime: Runtime,
    conf: Value,
}

impl Other {
    fn new(node: &Node) -> Result<Other> {
        let ns = node.lab.ns("other")?;
        let leases = node.lab.dir().join("host-local");
        let ipam = json!({ "type": "host-local", "subnet": "10.8.0.0/16", "dataDir": leases,
                           "routes": [{ "dst": "0.0.0.0/0" }] });
        let runtime = Runtime::new(&node.lab, &ns)?.of(OTHER.into());
        Ok(Other { runtime, conf: json!({ "type": "ptp", "ipam": ipam }) })
    }

    fn call(&self, runtime: &Runtime, verb: &str, pod: &Ns, container: &str) -> Result<()> {
        let conf = self.conf.clone();
        let call = Call { verb, container, netns: Some(pod.path()), version: "1.0.0", conf, ..Call::default() };
        let said = runtime.call(&call)?;
        if said.success { Ok(()) } else { bail!("{verb} of {container} by {OTHER}: {}", said.value) }
    }
}

pub fn rows(node: &Node, quick: bool) -> Result<Vec<Row>> {
    let pods = (0..AT_ONCE).map(|i| node.lab.ns(&format!("p{i}"))).collect::<Result<Vec<Ns>>>()?;
    ensure!(Path::new(OTHER).is_file(), "there is no {OTHER} (package containernetworking-plugins)");
    let other = Other::new(node)?;
    let rounds = if quick { 10 } else { 50 };
    let [mut nothing, mut alone, mut add, mut del] = [const { Vec::new() }; 4];
    // The slowest of each round.
    let (mut slowest, mut others) = (Vec::new(), Vec::new());
    // The first round warms up.
    for round in 0..=rounds {
        clean::check()?;
        let version = || Call { verb: "VERSION", version: "1.1.0", ..Call::default() };
        let spent = at_once(&node.runtime, &pods, |runtime, _, _| runtime.call(&version()).map(drop))?;
        nothing.extend(spent.into_iter().filter(|_| round > 0));
        let spent = at_once(&node.runtime, &pods, |runtime, pod, name| runtime.add(pod, name, "").map(drop))?;
        slowest.extend(spent.iter().copied().reduce(f64::max).filter(|_| round > 0));
        add.extend(spent.into_iter().filter(|_| round > 0));
        let spent = at_once(&node.runtime, &pods, |runtime, pod, name| runtime.del(pod, name))?;
        del.extend(spent.into_iter().filter(|_| round > 0));
        let spent = at_once(&other.runtime, &pods, |runtime, pod, name| other.call(runtime, "ADD", pod, name))?;
        others.extend(spent.into_iter().reduce(f64::max).filter(|_| round > 0));
        at_once(&other.runtime, &pods, |runtime, pod, name| other.call(runtime, "DEL", pod, name))?;
        let spent = at_once(&node.runtime, &pods[..1], |runtime, pod, name| runtime.add(pod, name, "").map(drop))?;
        alone.extend(spent.into_iter().filter(|_| round > 0));
        node.runtime.del(&pods[0], "c0")?;
    }
    let row = |name: &str, values: &[f64], part: f64| {
        Row::new(name, quantile(values, part), "ms").verdict("calls", values.len())
    };
    Ok(vec![
        row("VERSION, 20 at once: p99, what starting the program costs", &nothing, 0.99),
        row("ADD alone: p50", &alone, 0.5),
        row("ADD, 20 at once: p50", &add, 0.5),
        row("ADD, 20 at once: p99", &add, 0.99).reach(Reach::AtMost(REACH)),
        Row::new("ADD, 20 at once: the slowest, against ptp and host-local", median(&slowest), "ms")
            .against(median(&others), ratio(&slowest, &others), Reach::AtMost(1.0))
            .verdict("rounds", others.len()),
        row("DEL, 20 at once: p50", &del, 0.5),
        row("DEL, 20 at once: p99", &del, 0.99),
    ])
}

/// Milliseconds of each, from threads of a node's.
fn at_once(
    runtime: &Runtime,
    pods: &[Ns],
    work: impl Fn(&Runtime, &Ns, &str) -> Result<()> + Sync,
) -> Result<Vec<f64>> {
    thread::scope(|scope| {
        let one = |(i, pod)| {
            let (work, name) = (&work, format!("c{i}"));
            scope.spawn(move || {
                let runtime = runtime.enter()?;
                let begin = Instant::now();
                work(&runtime, pod, &name).map(|()| begin.elapsed().as_secs_f64() * 1e3)
            })
        };
        let threads: Vec<_> = pods.iter().enumerate().map(one).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}
