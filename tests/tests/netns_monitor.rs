//! `stellwerk monitor` on a device that runs: what is dropped and why, which connections begin, what a capture has, and
//! that nothing goes on once nobody watches.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use stellwerk_tests::netns::device;
use stellwerk_tests::netns::probe::{self, Datagram};
use stellwerk_tests::netns::scene::{ECHO, PORT, Scene, Which};

/// One that has begun.
fn start(scene: &Scene, words: &[&str]) -> Child {
    let binary = std::env::var_os("STELLWERK_BIN").expect("as the tests are run");
    let mut command = scene.device.dev.command(binary);
    command.arg("monitor").args(words).arg("--pin-path").arg(scene.agent.pins());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "stellwerk: watching\n");
    child
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
}

/// What it says while `traffic` happens.
fn watch(scene: &Scene, words: &[&str], traffic: impl FnOnce()) -> Vec<Value> {
    let child = start(scene, &[&["--json"], words].concat());
    traffic();
    signal(&child, Signal::SIGINT);
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn at(which: Which) -> [SocketAddr; 2] {
    which.external().both().map(|ip| SocketAddr::new(ip, PORT))
}

fn knock(scene: &Scene) {
    for to in at(Which::Empty) {
        probe::udp_refused(&scene.client(), to).unwrap();
    }
    for to in at(Which::Local) {
        assert_eq!(probe::tcp(&scene.client(), to, 100).unwrap().name, "pod-1");
    }
    probe::udp(&scene.client(), at(Which::Local)[0], Datagram::default()).unwrap();
}

#[test]
fn events_filters_and_captures() {
    let scene = Scene::open("auto", "xdp").unwrap();
    let file = scene.device.lab.dir().join("seen.pcap");
    let all = watch(&scene, &["--pcap", &file.display().to_string()], || knock(&scene));
    let of = |what: &str| all.iter().filter(|event| event["event"] == what).collect::<Vec<_>>();
    let refused = of("refused");
    assert_eq!(refused.len(), 2, "{all:?}");
    for (event, to) in refused.iter().zip(at(Which::Empty)) {
        assert_eq!((event["reason"].as_str(), event["at"].as_str()), (Some("no_backend"), Some("eth1 XDP")));
        // It is its own answer by now.
        assert!(event["what"].as_str().unwrap().contains(&to.ip().to_string()), "{event}");
    }
    assert!(of("packet").is_empty(), "only what is dropped or refused");
    let begun = of("begins");
    for to in at(Which::Local) {
        let event = begun.iter().find(|event| event["what"].as_str().unwrap().ends_with(&format!("> {to}")));
        let event = event.unwrap_or_else(|| panic!("{to}: {begun:?}"));
        assert!(event["service"].as_str().unwrap().starts_with("default/local:"), "{event}");
        let pod = SocketAddr::new(device::pod(1, 11).like(to.ip()), ECHO);
        assert!(event["outcome"].as_str().unwrap().ends_with(&format!("> {pod}")), "{event}");
    }
    let captured = lb_user::trace::packet::capture(&file);
    // What is longer than what is kept of it was cut.
    assert_eq!(captured.map(|packets| packets.len()).unwrap(), 2);

    let quiet = watch(&scene, &["--reason", "no_service"], || knock(&scene));
    assert!(quiet.is_empty(), "{quiet:?}");
    let own = watch(&scene, &["--service", "default/local", "--every", "1", "--no-flows"], || knock(&scene));
    assert!(own.len() > 8 && own.iter().all(|event| event["event"] == "packet"), "{own:?}");
    let far = watch(&scene, &["--address", "192.0.2.77", "--every", "1"], || knock(&scene));
    assert!(far.is_empty(), "{far:?}");
    let some = watch(&scene, &["--every", "1", "--count", "3"], || knock(&scene));
    assert_eq!(some.len(), 3);
}

#[test]
fn one_at_a_time_and_none_that_stays() {
    let scene = Scene::open("auto", "xdp").unwrap();
    let mut first = start(&scene, &["--every", "1"]);
    let second = format!("{:#}", scene.agent.command(&["monitor", "--seconds", "1"]).unwrap_err());
    assert!(second.contains("another `stellwerk monitor` runs; expected one at a time"), "{second}");
    let unknown = format!("{:#}", scene.agent.command(&["monitor", "--reason", "none"]).unwrap_err());
    assert!(
        unknown.contains("invalid value 'none' for '--reason <REASON>': expected one of no_backend, "),
        "{unknown}"
    );
    // One that doesn't read is told of what the buffer has room for; the rest is counted.
    let lost = || scene.agent.dropped("monitor_lost").unwrap();
    let before = lost();
    signal(&first, Signal::SIGSTOP);
    let vip = at(Which::Local)[0];
    let flood = || -> std::io::Result<()> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        (0..20_000).try_for_each(|_| socket.send_to(b"anybody?", vip).map(drop))
    };
    scene.device.client.run(flood).unwrap().unwrap();
    assert!(lost() > before);
    first.kill().unwrap();
    first.wait().unwrap();
    let unknown = format!("{:#}", scene.agent.command(&["monitor", "--service", "default/none"]).unwrap_err());
    assert!(unknown.contains("there is no service `default/none`"), "{unknown}");
    // Nobody asks any longer: after a few seconds nothing is told, and what was left of it is nobody's.
    thread::sleep(Duration::from_secs(4));
    knock(&scene);
    let left = watch(&scene, &["--no-flows"], || {});
    assert!(left.is_empty(), "{left:?}");
}
