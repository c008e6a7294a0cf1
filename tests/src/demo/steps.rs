//! The steps: what is done to the app under load, and what must be true of its users' requests.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::report::{Report, Step};
use super::stage::Stage;
use crate::load::{Sample, Summary};

/// A replica's share of new connections may be this far from an equal one: more than four standard
/// deviations of the few hundred connections of the shortest step.
const SHARE_TOLERANCE: f64 = 0.08;

/// What a step found.
#[derive(Debug, Default)]
struct Findings {
    seen: Vec<String>,
    wrong: Vec<String>,
}

impl Findings {
    fn expect(&mut self, met: bool, text: String) {
        if met { self.seen.push(text) } else { self.wrong.push(format!("not as expected: {text}")) }
    }

    /// No request failed.
    fn none_failed(&mut self, summary: &Summary) {
        if summary.failed > 0 {
            self.wrong.push(format!("{} failed: {:?}", summary.failed, summary.failures));
        }
        self.expect(summary.requests > 100, format!("{} requests were sent", summary.requests));
    }

    /// These replicas, and no others, share new connections equally.
    fn shares(&mut self, summary: &Summary, replicas: &[&str]) {
        let equal = 1.0 / replicas.len() as f64;
        let shares: Vec<f64> = replicas.iter().map(|r| summary.share(r)).collect();
        let text: Vec<_> = replicas.iter().zip(&shares).map(|(r, s)| format!("{r} {:.1} %", s * 100.0)).collect();
        let even = shares.iter().all(|s| (s - equal).abs() <= SHARE_TOLERANCE);
        self.expect(
            even && shares.iter().sum::<f64>() > 0.999,
            format!("shares of new connections: {}", text.join(", ")),
        );
    }
}

type Act = fn(&mut Stage, &mut Findings) -> Result<Summary>;

/// Name, explanation, act.
const STEPS: &[(&str, &str, Act)] = &[
    ("steady", "three replicas share the load of one address, in both families and from both networks", steady),
    ("drain", "web-2 is deleted the Kubernetes way: terminating first; it finishes what it has", drain),
    ("add", "web-4 is started and listed: it gets its share, nobody else notices", add),
    ("kill", "web-1 is killed (SIGKILL); a second later its endpoint is removed", kill),
    ("restart-agent", "the agent is killed (kill -9), traffic goes on without it, a new one takes over", restart_agent),
];

/// Takes all steps. One that breaks is told; the next are tried all the same.
pub fn all(stage: &mut Stage) -> Report {
    let mut report = Report::default();
    for (name, explained, act) in STEPS {
        stage.announce(name, explained);
        let mut findings = Findings::default();
        let step = match act(stage, &mut findings) {
            Ok(summary) => {
                let ok = findings.wrong.is_empty();
                let why = if ok { findings.seen } else { findings.wrong }.join("; ");
                Step { name, summary, ok, why }
            }
            Err(error) => Step::broken(name, &error),
        };
        stage.note(&step);
        report.steps.push(step);
    }
    report
}

fn steady(stage: &mut Stage, findings: &mut Findings) -> Result<Summary> {
    // The first packets resolve neighbours and warm everything up; they are judged, too.
    let from = Instant::now();
    std::thread::sleep(stage.watch);
    let paths = stage.judge(from, Instant::now());
    let summary = Summary::of(paths.iter().flat_map(|(_, samples)| samples));
    findings.none_failed(&summary);
    for (label, samples) in &paths {
        let Summary { requests, failed, .. } = Summary::of(samples);
        findings.expect(requests > 20 && failed < requests, format!("{label}: {requests} requests"));
    }
    findings.shares(&summary, &["web-1", "web-2", "web-3"]);
    let told = stage.app.names_told_by_both()?;
    findings
        .expect(told >= 48, format!("the database's name was told {told} times, to six pools of eight connections"));
    let links = stage.app.device.dev.ip_text("-d link show eth1")?;
    let native = links.contains("prog/xdp") && !links.contains("xdpgeneric");
    findings.expect(native, "Port3 runs native XDP".into());
    let links = stage.app.device.dev.ip_text("-d link show eth0")?;
    findings.expect(!links.contains("prog/xdp"), "Port2 runs TC".into());
    Ok(summary)
}

fn drain(stage: &mut Stage, findings: &mut Findings) -> Result<Summary> {
    let from = Instant::now();
    stage.app.mark_leaving("web-2")?;
    stage.app.ask_to_leave("web-2")?;
    stage.state("web-2", "leaving");
    // Long enough for any agent: what comes later is judged.
    std::thread::sleep(Duration::from_secs(1));
    let settled = Instant::now();
    let gone = wait(Duration::from_secs(8), || !stage.app.runs("web-2"));
    findings.expect(gone, "web-2 finished its connections and ended by itself".into());
    stage.app.unlist("web-2")?;
    stage.state("web-2", "gone");
    std::thread::sleep(stage.watch / 2);
    let samples = flat(stage, from, Instant::now());
    let summary = Summary::of(&samples);
    findings.none_failed(&summary);
    let after = Summary::of(samples.iter().filter(|s| s.at >= settled));
    let late = after.replicas.get("web-2").map_or(0, |f| f.connections);
    findings.expect(late == 0, format!("{late} new connections to web-2 once it was leaving"));
    findings.shares(&after, &["web-1", "web-3"]);
    Ok(summary)
}

fn add(stage: &mut Stage, findings: &mut Findings) -> Result<Summary> {
    let from = Instant::now();
    stage.app.place("web-4", "edge-1")?;
    stage.app.run("web-4")?;
    let listed = Instant::now();
    stage.app.list("web-4")?;
    stage.state("web-4", "serving");
    let served = wait(Duration::from_secs(5), || answered(&stage.since(listed), "web-4"));
    findings.expect(served, format!("web-4 answered {} ms after it was listed", listed.elapsed().as_millis()));
    let settled = Instant::now();
    std::thread::sleep(stage.watch);
    let samples = flat(stage, from, Instant::now());
    let summary = Summary::of(&samples);
    findings.none_failed(&summary);
    let after = Summary::of(samples.iter().filter(|s| s.at >= settled));
    findings.shares(&after, &["web-1", "web-3", "web-4"]);
    Ok(summary)
}

fn kill(stage: &mut Stage, findings: &mut Findings) -> Result<Summary> {
    let from = Instant::now();
    stage.app.kill("web-1");
    let died = Instant::now();
    stage.state("web-1", "killed");
    std::thread::sleep(Duration::from_secs(1));
    stage.app.unlist("web-1")?;
    stage.app.wait_backend("web-1", false)?;
    let removed = Instant::now();
    std::thread::sleep(stage.watch / 2);
    let samples = flat(stage, from, Instant::now());
    let summary = Summary::of(&samples);
    let failed: Vec<&Sample> = samples.iter().filter(|s| s.result.is_err()).collect();
    // A connection that was never answered has nobody it was to; one that was must have been web-1's.
    let others = failed.iter().filter(|s| s.before.as_deref().is_some_and(|b| b != "web-1")).count();
    let refused = failed.iter().filter(|s| s.first && !is_dead_end(s)).count();
    findings.expect(others == 0, format!("{others} failed on connections to other replicas"));
    findings.expect(refused == 0, format!("{refused} new connections failed otherwise than at a dead replica"));
    let late = failed.iter().filter(|s| s.at >= removed).count();
    findings.expect(late == 0, format!("{late} failed after the endpoint was removed"));
    findings.expect(summary.requests > 100, format!("{} requests were sent", summary.requests));
    let took = removed.duration_since(died).as_millis();
    let last = failed.iter().map(|s| s.at.duration_since(died).as_millis()).max().unwrap_or(0);
    findings
        .seen
        .push(format!("the last failed request began {last} ms after the kill, the endpoint was gone after {took} ms"));
    if !findings.wrong.is_empty() {
        findings.wrong.push(format!("{:?}", summary.failures));
    }
    Ok(summary)
}

/// What a connection meets at a replica whose process has died: its kernel refuses or resets.
fn is_dead_end(sample: &Sample) -> bool {
    let known = ["connect: refused", "connect: reset", "request: reset", "request: closed without an answer"];
    sample.result.as_ref().is_err_and(|why| known.contains(&&**why))
}

fn restart_agent(stage: &mut Stage, findings: &mut Findings) -> Result<Summary> {
    let from = Instant::now();
    stage.app.agent.kill();
    std::thread::sleep(stage.watch / 3);
    stage.app.agent.start()?;
    std::thread::sleep(stage.watch / 3);
    if !stage.app.agent.running() {
        bail!("the new agent ended:\n{}", stage.app.agent.log_tail());
    }
    // The new one is in charge: a change reaches the kernel.
    let listed = Instant::now();
    stage.app.run("web-2")?;
    findings.seen.push(format!("web-2 found the database and listened after {} ms", listed.elapsed().as_millis()));
    stage.app.list("web-2")?;
    stage.state("web-2", "serving");
    // Its programs are verified before it plans anything: that takes a busy machine long.
    let served = wait(Duration::from_secs(60), || answered(&stage.since(listed), "web-2"));
    findings.expect(served, format!("the new agent took web-2 back in within {} ms", listed.elapsed().as_millis()));
    std::thread::sleep(stage.watch / 3);
    let told = stage.app.names_told()?;
    findings.expect(told > 0, format!("the new agent told the database's name {told} times"));
    let samples = flat(stage, from, Instant::now());
    let summary = Summary::of(&samples);
    findings.none_failed(&summary);
    let kept = samples.iter().filter(|s| !s.fresh).count();
    let again = samples.iter().filter(|s| !s.fresh && s.first).count();
    findings.expect(again == 0, format!("{again} of the kept connections had to be made again, in {kept} requests"));
    Ok(summary)
}

fn flat(stage: &Stage, from: Instant, to: Instant) -> Vec<Sample> {
    stage.judge(from, to).into_iter().flat_map(|(_, samples)| samples).collect()
}

fn answered(samples: &[Sample], replica: &str) -> bool {
    samples.iter().any(|s| s.result.as_deref() == Ok(replica))
}

/// Waits for something, with a bound; whether it came.
fn wait(patience: Duration, mut come: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + patience;
    while Instant::now() < end {
        if come() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}
