//! Any step of an apply may be the agent's last, or one that the kernel refuses.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use lb_common::table::Link;
use lb_user::apply::{Maps, Paths};
use stellwerk_tests::netns::clean::Proc;
use stellwerk_tests::netns::scene::Scene;

use super::{PRUNE, SOON, edit, edited, is_edited, loads, none_failed, opened, until, until_said};

/// Starts of an agent take seconds.
const DEATHS: usize = 3;
const REFUSALS: usize = 6;

/// The calls of bpf(2) that the agent's loop makes are counted from now on.
struct Traced {
    tracer: Proc,
    calls: PathBuf,
}

impl Traced {
    /// `inject`: what becomes of a call, in strace's words.
    fn start(scene: &Scene, inject: Option<String>) -> Traced {
        let (id, calls) = (scene.agent.id().unwrap(), scene.device.lab.dir().join("calls"));
        let mut strace = Command::new("strace");
        strace.args(["-e", "trace=bpf", "-p", &id.to_string(), "-o"]).arg(&calls);
        strace.args(inject.map(|what| format!("--inject=bpf:{what}")));
        let tracer = Proc::start(strace.stdin(Stdio::null()).stderr(Stdio::null())).unwrap();
        let status = format!("/proc/{id}/status");
        until(scene, "strace (package strace) traces the agent", SOON, || {
            std::fs::read_to_string(&status).is_ok_and(|text| !text.contains("TracerPid:\t0"))
        });
        Traced { tracer, calls }
    }

    /// Lets the agent go; how many there were.
    fn end(self) -> usize {
        _ = self.tracer.stop(Duration::from_secs(5));
        std::fs::read_to_string(&self.calls).unwrap_or_default().matches("bpf(").count()
    }
}

fn in_force(scene: &Scene) -> usize {
    scene.agent.log().matches("is in force:").count()
}

/// How many calls an edit takes.
fn count(scene: &mut Scene, on: bool) -> usize {
    let (before, traced) = (in_force(scene), Traced::start(scene, None));
    edit(scene, on);
    until(scene, "the edit's revision", SOON, || in_force(scene) > before);
    edited(scene, on);
    let calls = traced.end();
    assert!(calls > DEATHS, "an edit takes {calls} calls: the test sees nothing");
    calls
}

/// Of so many steps those that are even apart, as (number, whether endpoints come).
fn spread(calls: [usize; 2], times: usize) -> impl Iterator<Item = (usize, bool)> {
    (0..times).map(move |i| (1 + i * (calls[i % 2] - 1) / (times - 1), i % 2 == 0))
}

#[test]
fn any_step_of_an_apply_may_be_the_last() {
    let mut scene = opened();
    let loads = loads(&scene);
    let calls = [true, false].map(|on| count(&mut scene, on));
    let refused = spread(calls, REFUSALS).filter(|(step, on)| the_kernel_refuses(&mut scene, *step, *on)).count();
    assert!(refused >= REFUSALS / 2, "only {refused} refusals\n{}", scene.agent.log_tail());
    for (step, on) in spread(calls, DEATHS) {
        the_agent_dies(&mut scene, step, on);
    }
    a_full_table_takes_nothing(&mut scene);
    none_failed(&loads, &scene);
    only_what_others_change_is_repaired(&scene);
    none_failed(&loads, &scene);
}

/// From that call on there is no memory; then there is again. False: this time the edit took fewer calls.
fn the_kernel_refuses(scene: &mut Scene, step: usize, on: bool) -> bool {
    let failures = |scene: &Scene| scene.agent.log().matches("trying again: ").count();
    let before = failures(scene);
    let traced = Traced::start(scene, Some(format!("error=ENOMEM:when={step}+")));
    edit(scene, on);
    until(scene, &format!("call {step} of bpf(2)"), SOON, || failures(scene) > before || is_edited(scene, on));
    _ = traced.end();
    edited(scene, on);
    failures(scene) > before
}

/// It is killed ahead of that call, and the next agent finishes what it began.
fn the_agent_dies(scene: &mut Scene, step: usize, on: bool) {
    let traced = Traced::start(scene, Some(format!("signal=KILL:when={step}")));
    edit(scene, on);
    until_dead(scene, step);
    _ = traced.end();
    scene.agent.start_ready().unwrap();
    edited(scene, on);
}

fn until_dead(scene: &mut Scene, step: usize) {
    let end = std::time::Instant::now() + SOON;
    while scene.agent.running() {
        assert!(std::time::Instant::now() < end, "it outlives call {step} of bpf(2)\n{}", scene.agent.log_tail());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// More than a table has room for is refused whole, and said; with less all is taken that waited.
fn a_full_table_takes_nothing(scene: &mut Scene) {
    let service = |i: usize| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{ name: many-{i} }}\n\
             spec: {{ clusterIPs: [172.28.0.{}], ports: [{{ port: 80 }}] }}\n---\n",
            100 + i
        )
    };
    let names = |scene: &Scene| scene.agent.rows("services").unwrap().len();
    let before = names(scene);
    let many = |count| (0..count).map(service).collect::<String>();
    scene.files.replace("cluster/many.yaml", &many(60)).unwrap();
    until_said(scene, "table `services` is full: ", SOON);
    assert!(
        scene.agent.log().contains(" entries needed, room for 64; raise its capacity"),
        "{}",
        scene.agent.log_tail()
    );
    assert_eq!(names(scene), before);
    edit(scene, false);
    edited(scene, true);
    scene.files.replace("cluster/many.yaml", &many(2)).unwrap();
    edited(scene, false);
    until(scene, "what has room", SOON, || names(scene) == before + 2);
}

/// The agent compares all of its tables with its plan: of all entries only one of another's is not as planned.
fn only_what_others_change_is_repaired(scene: &Scene) {
    let log = scene.agent.log();
    assert!(!log.contains("were not as they should be"), "{log}");
    let maps = Maps::open(&Paths::new(scene.agent.pins()).maps()).unwrap();
    maps.links.set(&9_999, &Link { flags: Link::INSIDE, ..Link::default() }).unwrap();
    until_said(scene, "1 entries were not as they should be (1 so far): Link(Remove(9999))", PRUNE);
    until(scene, "the entry is gone", SOON, || maps.links.get(&9_999).unwrap().is_none());
}
