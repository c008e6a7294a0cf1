//! A routing daemon beside the agent: what a BGP peer announces comes by the kernel's main table into the
//! agent's, in the Internet's order of magnitude, and goes again; what stays is forwarded all the while.
//!
//! ```text
//!   host a ── Port3, device (BIRD, the agent), Port4 ── host b (BIRD), 10.50.0.1, 16.0.0.0/4
//! ```

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use stellwerk_tests::load::echo;
use stellwerk_tests::netns::between::ECHO;
use stellwerk_tests::netns::clean::Proc;
use stellwerk_tests::netns::probe::{self, Datagram, From};
use stellwerk_tests::netns::{Between, Lab, Ns};
use stellwerk_tests::routes::Random;

/// Prefixes that come and go.
const PREFIXES: usize = 100_000;
/// In the prefix that stays.
const STAYS: Ipv4Addr = Ipv4Addr::new(10, 50, 0, 1);
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two of the probe's datagrams.
const BEAT: Duration = Duration::from_millis(4);

/// A routing daemon, which ends with this value.
struct Bird {
    _process: Proc,
    socket: PathBuf,
}

impl Bird {
    fn start(lab: &Lab, ns: &Ns, name: &str, config: &str) -> Bird {
        let at = |end: &str| lab.dir().join(format!("{name}.{end}"));
        std::fs::write(at("conf"), config).unwrap();
        let log = std::fs::File::create(at("log")).unwrap();
        let mut command = ns.command("bird");
        command.arg("-f").arg("-c").arg(at("conf")).arg("-s").arg(at("ctl"));
        command.stdout(log.try_clone().unwrap()).stderr(log);
        Bird { _process: Proc::start(&mut command).unwrap(), socket: at("ctl") }
    }

    fn say(&self, words: &str) -> String {
        let mut command = Command::new("birdc");
        command.arg("-s").arg(&self.socket).args(words.split(' ')).stdin(Stdio::null());
        let out = command.output().expect("birdc");
        String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
    }
}

/// What both daemons have: one session, by the link between the device and host b.
fn session(own: &str, own_as: u32, other: &str, other_as: u32, import: &str, export: &str) -> String {
    format!(
        "log stderr all;\nrouter id {own};\nprotocol device {{ scan time 1; }}\n\
         protocol bgp peer {{\n  local {own} as {own_as};\n  neighbor {other} as {other_as};\n  connect delay time 1;\n  \
         error wait time 1, 2;\n  ipv4 {{ import {import}; export {export}; }};\n}}\n"
    )
}

/// Different /24s of 16.0.0.0/4.
fn prefixes() -> BTreeSet<Ipv4Addr> {
    let (mut random, mut all) = (Random(41), BTreeSet::new());
    while all.len() < PREFIXES {
        all.insert(Ipv4Addr::from_bits(16 << 24 | (random.below(1 << 20) as u32) << 8));
    }
    all
}

/// The daemons of the device and of host b. Host b answers for all addresses of what it announces.
fn daemons(between: &Between, prefixes: &BTreeSet<Ipv4Addr>) -> (Bird, Bird) {
    between.b.ip(&format!("addr add {STAYS}/32 dev lo\nroute add local 16.0.0.0/4 dev lo")).unwrap();
    let mut peer = session("192.168.30.1", 64501, "192.168.30.2", 64500, "none", "all");
    peer += "protocol static stays { ipv4; route 10.50.0.0/24 blackhole; }\n\
             protocol static many {\n  disabled;\n  ipv4;\n";
    for prefix in prefixes {
        writeln!(peer, "  route {prefix}/24 blackhole;").unwrap();
    }
    peer += "}\n";
    let device = session("192.168.30.2", 64500, "192.168.30.1", 64501, "all", "none");
    let device = format!("{device}protocol kernel {{ ipv4 {{ import none; export all; }}; }}\n");
    let lab = &between.lab;
    (Bird::start(lab, &between.dev, "device", &device), Bird::start(lab, &between.b, "peer", &peer))
}

/// How many routes of the daemon the kernel has.
fn in_kernel(between: &Between) -> u64 {
    between.dev.ip_text("-4 route show table main proto bird").unwrap().lines().count() as u64
}

/// Waits until the agent's table holds so many; how long that took.
fn await_entries(between: &Between, birds: (&Bird, &Bird), want: u64) -> Duration {
    let begin = Instant::now();
    while between.entries("ROUTES4") != Some(want) {
        let state = || {
            let (entries, kernel) = (between.entries("ROUTES4"), in_kernel(between));
            let said = [birds.0, birds.1].map(|bird| bird.say("show protocols all peer"));
            format!("{entries:?}, the kernel {kernel}\n{}\n{}", said.join("\n"), between.agent.log_tail())
        };
        assert!(begin.elapsed() < PATIENCE, "not {want} routes within {PATIENCE:?}: {}", state());
        std::thread::sleep(Duration::from_millis(100));
    }
    begin.elapsed()
}

/// A conversation with the host in the prefix that stays: a datagram each beat, and all that came back.
struct Beats {
    ended: Arc<AtomicBool>,
    thread: JoinHandle<(u32, BTreeSet<u32>)>,
}

impl Beats {
    fn start(between: &Between) -> Beats {
        let to = SocketAddr::new(STAYS.into(), ECHO);
        let socket = probe::udp_socket(&From::ns(&between.a), to, Datagram::default()).unwrap();
        // A busy machine lets its reader wait.
        socket2::SockRef::from(&socket).set_recv_buffer_size(1 << 20).unwrap();
        // A read's timeout is rounded up to the kernel's ticks; a sleep isn't.
        socket.set_nonblocking(true).unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let end = ended.clone();
        Beats { ended, thread: std::thread::spawn(move || beat(&socket, &end)) }
    }

    /// How many were sent; those that never came back.
    fn end(self) -> (u32, Vec<u32>) {
        self.ended.store(true, Ordering::Relaxed);
        let (sent, back) = self.thread.join().unwrap();
        (sent, (0..sent).filter(|number| !back.contains(number)).collect())
    }
}

fn beat(socket: &UdpSocket, ended: &AtomicBool) -> (u32, BTreeSet<u32>) {
    let (mut sent, mut back, mut buffer) = (0u32, BTreeSet::new(), [0; 64]);
    let (mut next, mut last) = (Instant::now(), Instant::now());
    // The last ones get a second to come back.
    while last.elapsed() < Duration::from_secs(1) {
        if !ended.load(Ordering::Relaxed) {
            last = Instant::now();
            if last >= next {
                socket.send(&sent.to_be_bytes()).unwrap();
                (sent, next) = (sent + 1, last + BEAT);
            }
        }
        // The echo begins with the server's name.
        while let Ok(n @ 4..) = socket.recv(&mut buffer) {
            back.insert(u32::from_be_bytes(buffer[n - 4..n].try_into().unwrap()));
        }
        std::thread::sleep(BEAT / 4);
    }
    (sent, back)
}

/// Every so manieth of the prefixes answers, and ahead of the kernel.
fn all_answer(between: &Between, prefixes: &BTreeSet<Ipv4Addr>) {
    let some: Vec<Ipv4Addr> = prefixes.iter().step_by(PREFIXES / 50).copied().collect();
    let before = between.forwarding().1;
    for prefix in &some {
        let host = Ipv4Addr::from_bits(prefix.to_bits() | 7);
        probe::ping(&From::ns(&between.a), host.into(), 56).unwrap_or_else(|e| panic!("{host}: {e:#}"));
    }
    let fast = between.forwarding().1 - before;
    assert!(fast >= 2 * some.len() as u64, "{fast} of {} pings and answers", 2 * some.len());
}

/// What nobody announces any more is nowhere, and the device says so.
fn none_answers(between: &Between, prefixes: &BTreeSet<Ipv4Addr>) {
    let host = Ipv4Addr::from_bits(prefixes.first().unwrap().to_bits() | 7);
    let error = probe::icmp_error(&between.a, true, 3, || {
        _ = probe::ping(&From::ns(&between.a), host.into(), 8);
        Ok(())
    });
    let error = error.unwrap();
    assert_eq!((error.kind, error.from, error.about_destination()), ((3, 0), Between::near()[0], Some(host.into())));
}

#[test]
fn a_peers_hundred_thousand_prefixes_come_and_go() {
    let between = Between::open("capacity: { routes: 200000 }\n").unwrap();
    let prefixes = prefixes();
    let (device, peer) = daemons(&between, &prefixes);
    let _server = echo::serve(&between.b, "b", &[SocketAddr::new(STAYS.into(), ECHO)]).unwrap();
    let birds = (&device, &peer);
    let end = Instant::now() + PATIENCE;
    while probe::udp(&From::ns(&between.a), SocketAddr::new(STAYS.into(), ECHO), Datagram::default()).is_err() {
        assert!(Instant::now() < end, "{}\n{}", device.say("show protocols all"), peer.say("show protocols all"));
    }
    // By now the neighbours are known, and the agent has the one route.
    std::thread::sleep(Duration::from_secs(1));
    let base = between.entries("ROUTES4").unwrap();
    assert_eq!(in_kernel(&between), 1);

    let (beats, before) = (Beats::start(&between), between.forwarding().1);
    peer.say("enable many");
    let came = await_entries(&between, birds, base + PREFIXES as u64);
    assert_eq!(in_kernel(&between), 1 + PREFIXES as u64);
    all_answer(&between, &prefixes);
    peer.say("disable many");
    let gone = await_entries(&between, birds, base);
    assert_eq!(in_kernel(&between), 1);
    let (sent, lost) = beats.end();
    let fast = between.forwarding().1 - before;
    println!(
        "{PREFIXES} prefixes came in {came:?} and went in {gone:?}; {sent} datagrams, {fast} packets ahead of the kernel"
    );
    assert!(sent > 100 && lost.is_empty(), "{} of {sent} lost, numbers {lost:?}", lost.len());
    assert!(fast >= 2 * u64::from(sent), "{fast} packets ahead of the kernel of {sent} datagrams and their echoes");
    none_answers(&between, &prefixes);
}
