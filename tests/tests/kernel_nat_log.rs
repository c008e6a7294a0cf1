//! The log of mappings, from the programs through the kernel's buffer into the file: by the agent that
//! runs, and by the next one what happened while none did. Needs root; without it the test says so and
//! passes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, UNIX_EPOCH};

use lb_user::agent::nat_log;
use lb_user::apply::Paths;
use lb_user::apply::ports::Ended;
use serde_json::Value;
use stellwerk_tests::case::{Case, parse};
use stellwerk_tests::runner::kernel::{self, Machine};

const CASE: &str = "\
nat     172.27.0.0/16  fd00:27::/64
uplink  port2
set     nat_log=1

in ingress pods tcp pod1:5000 > other:443 SYN seq=1
  out transmit port2 tcp out:5000 > other:443 SYN from=02:00:00:00:01:02 seq=1 to=02:00:00:00:02:01 ttl=63
  note nat_mapped
in ingress pods tcp pod1:5000 > other:443 RST seq=2
  out transmit port2 tcp out:5000 > other:443 RST from=02:00:00:00:01:02 seq=2 to=02:00:00:00:02:01 ttl=63
  note reset
  note nat_unmapped
";

/// What the file holds, once there are so many lines; `event protocol inside outside`.
fn lines(path: &Path, count: usize) -> Vec<String> {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        if text.lines().count() >= count || Instant::now() > end {
            let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).expect(line));
            let word = |row: &Value, name: &str| row[name].as_str().unwrap_or_default().to_owned();
            return rows
                .map(|row| ["event", "protocol", "inside", "outside"].map(|name| word(&row, name)).join(" "))
                .collect();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

const V4: [&str; 2] = ["begin tcp 172.27.0.11:5000 203.0.113.2:5000", "end tcp 172.27.0.11:5000 203.0.113.2:5000"];
const V6: [&str; 2] =
    ["begin tcp [fd00:27::11]:5000 [2001:db8:2::2]:5000", "end tcp [fd00:27::11]:5000 [2001:db8:2::2]:5000"];

#[test]
fn mappings_are_logged_also_those_that_no_agent_saw() {
    if !nix::unistd::geteuid().is_root() {
        println!("left out: loading programs needs root");
        return;
    }
    let [v4, v6]: [Case; 2] = [false, true].map(|v6| parse::case("log", CASE, v6).unwrap().unwrap());
    kernel::namespace(&v4.world.links).unwrap();
    let mut machine = Machine::new(&v4.world.links, &kernel::capacity(&v4)).unwrap();
    let paths = Paths::new(format!("/sys/fs/bpf/stellwerk-cases-{}", std::process::id()));
    let file = |name: &str| -> PathBuf {
        let path = std::env::temp_dir().join(format!("stellwerk-nat-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        path
    };
    let [first, second] = ["first", "second"].map(file);

    let log = nat_log::start(&paths, Some(first.clone())).unwrap();
    machine.run(&v4).unwrap();
    assert_eq!(lines(&first, 2), V4);
    machine.run(&v6).unwrap();
    assert_eq!(lines(&first, 4), [V4, V6].concat());

    // Rotated, and then to another file.
    std::fs::rename(&first, &second).unwrap();
    let end = Instant::now() + Duration::from_secs(5);
    while !first.exists() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
    let inside: SocketAddr = "10.20.0.7:1".parse().unwrap();
    log.ends().send(Ended { time: Some(UNIX_EPOCH), protocol: 17, inside, outside: inside });
    assert_eq!(lines(&first, 1), ["end udp 10.20.0.7:1 10.20.0.7:1"]);
    log.set_path(Some(second.clone()));
    std::thread::sleep(Duration::from_millis(100));
    machine.run(&v4).unwrap();
    assert_eq!(lines(&second, 6), [V4, V6, V4].concat());

    // No agent, and then the next one.
    drop(log);
    machine.run(&v6).unwrap();
    std::fs::remove_file(&second).unwrap();
    let log = nat_log::start(&paths, Some(second.clone())).unwrap();
    assert_eq!(lines(&second, 2), V6);

    // To no file, nothing is kept.
    log.set_path(None);
    std::thread::sleep(Duration::from_millis(100));
    machine.run(&v6).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    log.set_path(Some(second.clone()));
    std::thread::sleep(Duration::from_millis(100));
    machine.run(&v4).unwrap();
    assert_eq!(lines(&second, 4), [V6, V4].concat());
    drop(log);
    [first, second].iter().for_each(|path| std::fs::remove_file(path).unwrap());
}
