//! Services at the socket, with real ones: clients of the node get backends in their calls, and see services.
//!
//! Agents of several tests may be attached to one control group: each serves its own device's sockets alone.

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use stellwerk_tests::netns::caller::{self, Caller, How, mapped};
use stellwerk_tests::netns::config::Files;
use stellwerk_tests::netns::device::{self, Twin};
use stellwerk_tests::netns::scene::{ECHO, NODE_PORT, PORT, Scene, Which};

fn open() -> Result<Scene> {
    Scene::open("tc", "tc")
}

/// The standard configuration with another line below `cluster`.
fn with(line: &str) -> String {
    format!("{}  {line}\n", Files::standard("tc", "tc"))
}

fn named(twin: Twin, port: u16) -> [SocketAddr; 3] {
    caller::names(twin.v4, twin.v6, port)
}

/// How many calls were translated so far.
fn translated(scene: &Scene) -> Result<u64> {
    scene.agent.dropped("socket_translated")
}

/// The row of `status`.
fn row(rows: &[Value]) -> Value {
    rows.iter().find(|row| row["what"] == "sockets").cloned().unwrap_or_default()
}

fn wait(scene: &mut Scene, state: &str) -> Result<Value> {
    scene.agent.wait("status", |rows| row(rows)["state"] == state)?;
    Ok(row(&scene.agent.rows("status")?))
}

/// Who answers several clients, in order of their names.
fn answers(scene: &Scene, how: How, to: SocketAddr) -> Result<Vec<String>> {
    let mut all = (0..12).map(|_| caller::ask(&scene.device.dev, how, to)).collect::<Result<Vec<_>>>()?;
    all.sort();
    all.dedup();
    Ok(all)
}

#[test]
fn clients_of_the_node_talk_to_backends_and_see_services() -> Result<()> {
    let mut scene = open()?;
    let status = wait(&mut scene, "on")?;
    let group = status["name"].as_str().context("a control group")?;
    ensure!(std::path::Path::new(group).join("cgroup.procs").exists(), "{status}");
    let cases = [
        (Which::Local.cluster(), PORT, vec!["pod-1"]),
        (Which::Local.external(), PORT, vec!["pod-1"]),
        (Which::Remote.cluster(), PORT, vec!["remote"]),
        (Which::Host.cluster(), PORT, vec!["host"]),
        (Which::Host.external(), PORT, vec!["host"]),
        (Which::Both.cluster(), PORT, vec!["pod-1", "pod-2"]),
        (device::lan(10), NODE_PORT, vec!["pod-1", "pod-2"]),
        (device::uplink(), NODE_PORT, vec!["pod-1", "pod-2"]),
    ];
    for (twin, port, want) in cases {
        for to in named(twin, port) {
            for how in How::ALL {
                let before = translated(&scene)?;
                ensure!(answers(&scene, how, to)? == want, "{how:?} to {to}: {:?}", answers(&scene, how, to)?);
                ensure!(translated(&scene)? >= before + 12, "{how:?} to {to}: by packets");
            }
        }
    }
    // No packet of all that was translated.
    let flows = scene.agent.rows("flows")?;
    ensure!(flows.is_empty(), "{flows:?}");
    let backends = scene.agent.rows("backends")?;
    ensure!(backends.iter().any(|row| row["connections"].as_u64() > Some(0)), "{backends:?}");
    Ok(())
}

/// A socket that has no name for anybody keeps its backend, and gets another when that is gone.
#[test]
fn datagrams_find_another_backend_when_theirs_is_gone() -> Result<()> {
    let mut scene = open()?;
    for to in named(Which::Both.cluster(), PORT) {
        let caller = Caller::new(&scene.device.dev, How::Unconnected, to)?;
        let first = caller.ask()?;
        for _ in 0..5 {
            ensure!(caller.ask()? == first, "{to}: the datagrams spread");
        }
        let (gone, stays) = if first == "pod-1" { (11, "pod-2") } else { (12, "pod-1") };
        let endpoints = scene.service(Which::Both).endpoints.clone();
        scene.change(Which::Both, |service| {
            service.endpoints.retain(|e| !e.addrs.contains(&device::pod(1, gone).v4));
        })?;
        scene.agent.wait("backends", |rows| {
            rows.iter().filter(|row| row["service"].as_str().is_some_and(|name| name.contains("both"))).count() == 4
        })?;
        ensure!(caller.ask()? == stays, "{to}");
        scene.change(Which::Both, |service| service.endpoints = endpoints)?;
        scene.agent.wait("backends", |rows| {
            rows.iter().filter(|row| row["service"].as_str().is_some_and(|name| name.contains("both"))).count() == 8
        })?;
    }
    Ok(())
}

#[test]
fn sockets_are_refused_where_nobody_is_there() -> Result<()> {
    let scene = open()?;
    for to in named(Which::Empty.cluster(), PORT) {
        let before = scene.agent.dropped("socket_refused")?;
        let begin = Instant::now();
        ensure!(caller::refusal(&scene.device.dev, How::Tcp, to) == Some(ErrorKind::ConnectionRefused), "{to}");
        ensure!(begin.elapsed() < Duration::from_millis(500), "{to}: after {:?}", begin.elapsed());
        let by_socket = scene.agent.dropped("socket_refused")? == before + 1;
        ensure!(by_socket || scene.agent.dropped("no_backend")? > 0, "{to}: not counted");
        // UDP connects, and is told by ICMP.
        let caller = Caller::new(&scene.device.dev, How::Connected, to)?;
        let error = caller.ask().expect_err("nobody answers");
        let error = error.root_cause().downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        ensure!(error == Some(ErrorKind::ConnectionRefused), "{to}: {error:?}");
    }
    ensure!(scene.agent.dropped("socket_left")? >= 3);
    Ok(())
}

/// Writes a service of pod-1, if it is `here`, and of the pod on edge-2.
fn policy(scene: &Scene, here: bool, more: &str) -> Result<()> {
    let (vip, cluster) = (device::external(110), device::cluster(30));
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: policy, namespace: default }}\nspec:\n  type: LoadBalancer\n  \
         clusterIPs: ['{}', '{}']\n  clusterIP: '{}'\n  ports: [{{ port: {PORT}, targetPort: {ECHO} }}]\n  {more}\n\
         status: {{ loadBalancer: {{ ingress: [{{ ip: '{}' }}, {{ ip: '{}' }}] }} }}\n",
        cluster.v4, cluster.v6, cluster.v4, vip.v4, vip.v6
    );
    for (family, remote, local) in
        [("IPv4", device::pod(2, 11).v4, device::pod(1, 11).v4), ("IPv6", device::pod(2, 11).v6, device::pod(1, 11).v6)]
    {
        let local = if here { format!(", {{ addresses: ['{local}'], nodeName: edge-1 }}") } else { String::new() };
        text += &format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: policy-{}\n  namespace: default\n  \
             labels: {{ kubernetes.io/service-name: policy }}\naddressType: {family}\nports: [{{ port: {ECHO} }}]\n\
             endpoints: [{{ addresses: ['{remote}'], nodeName: edge-2 }}{local}]\n",
            family.to_lowercase()
        );
    }
    let folder = scene.device.lab.dir().join("cluster");
    fs::write(folder.join("policy.new"), text)?;
    fs::rename(folder.join("policy.new"), folder.join("policy.yaml")).context("the service")
}

#[test]
fn policies_hold_at_the_socket() -> Result<()> {
    let mut scene = open()?;
    let row = |rows: &[Value]| rows.iter().find(|row| row["name"] == format!("default/policy:{PORT}")).cloned();
    policy(&scene, true, "internalTrafficPolicy: Local")?;
    scene.agent.wait("services", |rows| row(rows).is_some())?;
    for (inside, outside) in named(device::cluster(30), PORT).into_iter().zip(named(device::external(110), PORT)) {
        ensure!(answers(&scene, How::Tcp, inside)? == ["pod-1"], "{inside}");
        ensure!(answers(&scene, How::Tcp, outside)? == ["pod-1", "remote"], "{outside}");
    }
    policy(&scene, false, "internalTrafficPolicy: Local")?;
    scene.agent.wait("backends", |rows| {
        rows.iter().filter(|row| row["service"].as_str().is_some_and(|name| name.contains("policy"))).count() == 2
    })?;
    for to in named(device::cluster(30), PORT) {
        let before = scene.agent.dropped("no_local_backend")?;
        ensure!(caller::refusal(&scene.device.dev, How::Tcp, to) == Some(ErrorKind::TimedOut), "{to}");
        ensure!(scene.agent.dropped("no_local_backend")? > before, "{to}: not counted");
    }
    policy(&scene, true, "loadBalancerSourceRanges: [198.51.100.0/24, '2001:db8:100::/48']")?;
    scene.agent.wait("services", |rows| {
        row(rows).is_some_and(|row| row["sources"].as_array().is_some_and(|s| s.len() == 2))
    })?;
    for (inside, outside) in named(device::cluster(30), PORT).into_iter().zip(named(device::external(110), PORT)) {
        // Nobody answers for the address on this network.
        let link = device::external(110).like(outside.ip());
        scene.device.dev.ip(&format!("neigh replace {link} lladdr 02:00:00:00:00:01 dev eth1 nud permanent"))?;
        let before = scene.agent.dropped("source_not_allowed")?;
        ensure!(caller::refusal(&scene.device.dev, How::Tcp, outside) == Some(ErrorKind::TimedOut), "{outside}");
        ensure!(scene.agent.dropped("source_not_allowed")? > before, "{outside}: not counted");
        ensure!(answers(&scene, How::Tcp, inside)? == ["pod-1", "remote"], "{inside}");
    }
    // One client, whichever socket it has.
    for to in named(Which::Sticky.cluster(), PORT) {
        ensure!(answers(&scene, How::Tcp, to)?.len() == 1, "{to}: no affinity");
    }
    Ok(())
}

/// Off at a reload, on again at the next; connections that are open go on, and packets are translated meanwhile.
#[test]
fn one_switch_turns_it_off_and_on() -> Result<()> {
    let mut scene = open()?;
    let to = named(Which::Both.cluster(), PORT);
    let kept = Caller::new(&scene.device.dev, How::Connected, to[0])?;
    let first = kept.ask()?;
    scene.files.write_config(&with("socketBalancing: false"))?;
    wait(&mut scene, "off")?;
    let pins = scene.device.lab.pins().join("links");
    let pinned = || -> Result<usize> {
        let names = fs::read_dir(&pins)?.flatten().map(|entry| entry.file_name());
        Ok(names.filter(|name| name.to_string_lossy().starts_with("socket-")).count())
    };
    ensure!(pinned()? == 0, "programs are still pinned");
    let before = translated(&scene)?;
    for to in to {
        for how in How::ALL {
            ensure!(answers(&scene, how, to)? == ["pod-1", "pod-2"], "{how:?} to {to} by packets");
        }
    }
    ensure!(translated(&scene)? == before && !scene.agent.rows("flows")?.is_empty(), "not by packets");
    scene.files.write_config(&with("socketBalancing: true"))?;
    wait(&mut scene, "on")?;
    ensure!(pinned()? == 8);
    ensure!(kept.ask()? == first, "the socket was given another backend");
    ensure!(answers(&scene, How::Tcp, to[0])?.len() == 2 && translated(&scene)? > before);
    // Another start without it finds what the agent before left.
    scene.agent.kill();
    scene.files.write_config(&with("socketBalancing: false"))?;
    scene.agent.start_ready()?;
    ensure!(pinned()? == 0, "programs are still pinned after another start");
    Ok(())
}

#[test]
fn sockets_are_balanced_while_no_agent_runs_and_no_more_after_unload() -> Result<()> {
    let mut scene = open()?;
    let to = named(Which::Local.cluster(), PORT);
    let caller = Caller::new(&scene.device.dev, How::Unconnected, to[1])?;
    caller.ask()?;
    scene.agent.kill();
    for to in to {
        for how in How::ALL {
            ensure!(caller::ask(&scene.device.dev, how, to)? == "pod-1", "{how:?} to {to}");
        }
    }
    // Programs are replaced while clients connect: each of them is served at the socket.
    let before = translated(&scene)?;
    let (dev, end) = (scene.device.dev.clone(), std::sync::atomic::AtomicBool::new(false));
    let calls = std::thread::scope(|scope| {
        let calling = scope.spawn(|| -> Result<u64> {
            let mut calls = 0;
            while !end.load(std::sync::atomic::Ordering::Relaxed) {
                ensure!(caller::ask(&dev, How::Tcp, to[0])? == "pod-1");
                calls += 1;
            }
            Ok(calls)
        });
        let started = scene.agent.start_ready();
        end.store(true, std::sync::atomic::Ordering::Relaxed);
        started.and(calling.join().expect("the clients"))
    })?;
    ensure!(translated(&scene)? - before == calls, "of {calls} calls {} were", translated(&scene)? - before);
    ensure!(caller.ask()? == "pod-1", "a socket of before");
    ensure!(scene.agent.stop(), "the agent didn't stop");
    let told = scene.agent.command(&["unload"])?;
    ensure!(told.contains("programs at sockets detached: 8"), "{told}");
    for how in [How::Connected, How::Unconnected] {
        ensure!(caller::ask(&scene.device.dev, how, to[0]).is_err(), "{how:?}: still balanced");
    }
    Ok(())
}

/// They are in the same control group, but their calls are their own.
#[test]
fn other_namespaces_sockets_are_left_alone() -> Result<()> {
    let scene = open()?;
    let before = translated(&scene)?;
    for to in named(Which::Local.cluster(), PORT) {
        for how in How::ALL {
            ensure!(caller::ask(&scene.pod2, how, to)? == "pod-1", "{how:?} to {to}");
        }
    }
    ensure!(translated(&scene)? == before, "a pod's socket was changed");
    ensure!(!scene.agent.rows("flows")?.is_empty(), "no packet was translated");
    Ok(())
}

/// A named group's processes alone are served; a folder that is none is refused.
#[test]
fn a_named_control_group_is_served_alone() -> Result<()> {
    let mut scene = Scene::without_agent("tc", "tc")?;
    scene.files.write_config(&with("socketBalancing: /tmp"))?;
    ensure!(scene.agent.start_ready().is_err(), "/tmp is no control group");
    let wrong = "cluster.socketBalancing: `/tmp` is not in a cgroup2 file system; expected true, false, or a folder of cgroup2 such as /sys/fs/cgroup/system.slice";
    ensure!(scene.agent.log().contains(wrong), "{}", scene.agent.log_tail());
    scene.agent.kill();
    let group = scene.device.lab.cgroup().context("this system has no cgroup2")?;
    scene.files.write_config(&with(&format!("socketBalancing: {}", group.display())))?;
    scene.start_agent()?;
    let status = wait(&mut scene, "on")?;
    ensure!(status["name"] == group.display().to_string(), "{status}");
    let to = named(Which::Local.cluster(), PORT)[0];
    let before = translated(&scene)?;
    ensure!(caller::ask(&scene.device.dev, How::Tcp, to)? == "pod-1", "by packets");
    ensure!(translated(&scene)? == before, "this process isn't in the group");
    let script = format!(
        "echo $$ > {}/cgroup.procs; exec 3<>/dev/tcp/{}/{}; read -r name rest <&3; echo $name",
        group.display(),
        to.ip(),
        to.port()
    );
    let mut command = scene.device.dev.command("bash");
    let out = command.args(["-c", &script]).stdout(Stdio::piped()).stderr(Stdio::piped()).output()?;
    ensure!(String::from_utf8_lossy(&out.stdout).trim() == "pod-1", "{out:?}");
    ensure!(translated(&scene)? == before + 1, "a process of the group");
    Ok(())
}

/// A node of the first version alone: the tree is mounted where only the agent looks.
#[test]
fn control_groups_are_mounted_where_they_are_not() -> Result<()> {
    let mut scene = Scene::without_agent("tc", "tc")?;
    let wrapper = scene.device.lab.dir().join("without-cgroup2");
    let real = scene.agent.started_by(wrapper.clone());
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = run ]; then\n  exec unshare -m sh -c 'umount -a -t cgroup2; exec \"$0\" \"$@\"' {0} \"$@\"\nfi\nexec {0} \"$@\"\n",
        std::path::absolute(real)?.display()
    );
    fs::write(&wrapper, script)?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    scene.start_agent()?;
    let status = wait(&mut scene, "on")?;
    let own = format!("/run/{}/cgroup", scene.device.lab.id());
    ensure!(status["name"] == own, "{status}");
    let before = translated(&scene)?;
    for to in [named(Which::Local.cluster(), PORT)[1], mapped(named(Which::Local.cluster(), PORT)[0])] {
        ensure!(caller::ask(&scene.device.dev, How::Tcp, to)? == "pod-1");
    }
    ensure!(translated(&scene)? == before + 2, "by packets");
    ensure!(scene.agent.stop());
    scene.agent.command(&["unload"])?;
    ensure!(!std::path::Path::new(&own).exists(), "{own} is left");
    Ok(())
}
