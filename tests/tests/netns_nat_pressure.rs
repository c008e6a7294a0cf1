//! Translation under pressure: full pools, floods, an agent that is killed.

use lb_common::port_table::{self, PLANE, PORTS, PortTable};
use lb_user::apply::{Maps, Paths};
use socket2::{Domain, Protocol, Socket, Type};
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};
use stellwerk_tests::load::replica::Replica;
use stellwerk_tests::load::{Load, Plan, Summary, Task};
use stellwerk_tests::netns::nat::sockets::{eventually, families};
use stellwerk_tests::netns::nat::{self, CLOSED, ECHO, Translated, outside};
use stellwerk_tests::netns::probe::{self, Datagram, Talk};

/// More flows than the pool has ports: nothing leaves as it is, who is established stays, who is modest gets in.
#[test]
fn a_full_pool_lets_nothing_out_untranslated() {
    let lines = "snatPorts: 20000-20999\n";
    let lab = Translated::with(&nat::config(", ipv6: masquerade, quota: 800", lines)).unwrap();
    lab.watch_untranslated().unwrap();
    let like = nat::uplink().v4;
    let mut talk = Talk::open(&lab.from_h1(), outside(like, ECHO)).unwrap();
    talk.exchange(1000).unwrap();
    let sent = lab.h1.run(|| {
        let mut sent = 0;
        for port in 30_000..50_000_u16 {
            let Ok(socket) = UdpSocket::bind(("0.0.0.0", port)) else { continue };
            sent += u32::from(socket.send_to(b"one of many", outside(like, CLOSED)).is_ok());
        }
        sent
    });
    assert!(sent.unwrap() > 19_000);
    std::thread::sleep(Duration::from_millis(300));
    let (untranslated, translated) = lab.watched().unwrap();
    assert_eq!(untranslated, 0, "{}", lab.state());
    assert!((700..=820).contains(&translated), "{translated} left\n{}", lab.state());
    assert!(lab.count("nat_quota") > 15_000, "{}", lab.state());
    talk.exchange(100_000).unwrap_or_else(|e| panic!("the old connection: {e:#}\n{}", lab.state()));
    // The other host has the rest of the pool: 200 ports and some of its own.
    let mut others: Vec<Talk> = Vec::new();
    for n in 0..50 {
        let talk = Talk::open(&lab.from_h2(), outside(like, ECHO));
        others.push(talk.unwrap_or_else(|e| panic!("h2's connection {n}: {e:#}\n{}", lab.state())));
    }
    let how = Datagram { length: 10, ..Datagram::default() };
    probe::udp(&lab.from_h2(), outside(like, ECHO), how).unwrap_or_else(|e| panic!("{e:#}\n{}", lab.state()));
    others.into_iter().chain([talk]).for_each(|talk| talk.close().unwrap());
    assert_eq!(lab.watched().unwrap().0, 0);
}

/// Ports of closed TCP connections are another's at once.
#[test]
fn ports_come_back_with_the_connections_end() {
    let lab = Translated::with(&nat::config("", "snatPorts: 20000-20063\n")).unwrap();
    lab.watch_untranslated().unwrap();
    let like = nat::uplink().v4;
    for round in 0..3 {
        let mut talks = Vec::new();
        while talks.len() < 64 {
            let talk = Talk::open(&lab.from_h1(), outside(like, ECHO));
            talks.push(
                talk.unwrap_or_else(|e| panic!("round {round}, connection {}: {e:#}\n{}", talks.len(), lab.state())),
            );
        }
        let exhausted = lab.count("nat_ports_exhausted");
        assert!(probe::tcp(&lab.from_h2(), outside(like, ECHO), 1).is_err(), "a port too many");
        assert!(lab.count("nat_ports_exhausted") > exhausted, "{}", lab.state());
        talks.into_iter().for_each(|talk| talk.close().unwrap());
        // The last acknowledgement may be on its way.
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(lab.watched().unwrap().0, 0);
}

/// Many beginnings, crafted: SYNs and datagrams of more endpoints than there are ports.
#[test]
fn a_flood_from_inside_leaves_translated_or_not_at_all() {
    const PACKETS: u32 = 200_000;
    let lab = Translated::with(&nat::config(", quota: 100000", "")).unwrap();
    lab.watch_untranslated().unwrap();
    let begin = Instant::now();
    flood(&lab, PACKETS);
    println!("{PACKETS} packets in {:?}", begin.elapsed());
    std::thread::sleep(Duration::from_millis(500));
    let (untranslated, translated) = lab.watched().unwrap();
    println!("{translated} left translated\n{}", lab.state());
    assert_eq!(untranslated, 0, "{}", lab.state());
    assert!(translated > 30_000, "{translated} left\n{}", lab.state());
    let like = nat::uplink().v4;
    let how = Datagram { length: 10, ..Datagram::default() };
    assert!(lab.count("nat_ports_exhausted") > 0 || probe::udp(&lab.from_h2(), outside(like, ECHO), how).is_ok());
    assert_eq!(lab.watched().unwrap().0, 0);
}

/// SYNs and datagrams of h1, of as many endpoints as there can be, to where nobody answers.
fn flood(lab: &Translated, packets: u32) {
    lab.gw.ip("route replace blackhole 198.18.0.0/15").unwrap();
    lab.h1
        .run(|| {
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).unwrap();
            socket.set_header_included_v4(true).unwrap();
            for n in 0..packets {
                let port = (n / 2 % 60_000 + 1024) as u16;
                let to = [198, 18, (n / 2 / 60_000) as u8, 1];
                let _ = socket.send_to(&crafted(n % 2 == 0, port, to), &SocketAddr::from((to, 80)).into());
            }
        })
        .unwrap();
}

/// A SYN or a datagram of h1. The kernel fills in the IP checksum.
fn crafted(tcp: bool, port: u16, to: [u8; 4]) -> Vec<u8> {
    let length: u16 = if tcp { 20 } else { 12 };
    let mut bytes =
        vec![0x45, 0, 0, 20 + length as u8, 0, 0, 0x40, 0, 64, if tcp { 6 } else { 17 }, 0, 0, 172, 27, 1, 11];
    bytes.extend(to);
    bytes.extend(port.to_be_bytes());
    bytes.extend(80_u16.to_be_bytes());
    if tcp {
        bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    } else {
        bytes.extend([0, length as u8, 0, 0, b'm', b'a', b'n', b'y']);
    }
    let pseudo = [&bytes[12..20], &[0, bytes[9]], &length.to_be_bytes(), &bytes[20..]].concat();
    let sum: u32 = pseudo.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    let at = if tcp { 36 } else { 26 };
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// While nobody reads the log of mappings: what it has no room for is counted, and shown; the next agent writes
/// the rest.
#[test]
fn what_the_log_has_no_room_for_is_counted() {
    let mut lab = Translated::with(&nat::config(", quota: 100000, log: nat.log", "")).unwrap();
    lab.agent().kill();
    flood(&lab, 110_000);
    std::thread::sleep(Duration::from_millis(300));
    let lost = lab.count("nat_log_lost");
    assert!(lost > 10_000, "{}", lab.state());
    let rows = lab.agent().rows("status").unwrap();
    let nat = rows.iter().find(|row| row["what"] == "nat").and_then(|row| row["detail"].as_str()).unwrap_or_default();
    assert!(nat.ends_with(&format!(", {lost} events lost to the log")), "{nat}");
    lab.agent().start_ready().unwrap();
    let file = lab.files.config().with_file_name("nat.log");
    let lines = || std::fs::read_to_string(&file).unwrap_or_default().lines().count() as u64;
    let mut wanted = (0, 0);
    for _ in 0..50 {
        // Each beginning and end is a line, or lost.
        wanted = (lines(), lab.count("nat_mapped") + lab.count("nat_unmapped") - lab.count("nat_log_lost"));
        if wanted.0 == wanted.1 {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("{} lines, but {} events\n{}", wanted.0, wanted.1, lab.state());
}

/// Killed at several moments: no connection breaks, and its successor finds what nobody has.
#[test]
fn a_killed_agent_breaks_nothing_and_leaks_are_found() {
    let mut lab = Translated::open().unwrap();
    let web = Replica {
        name: "out".into(),
        listen: nat::server().both().map(|ip| SocketAddr::new(ip, 8080)).to_vec(),
        database: None,
    };
    let server = Task::start(&lab.out, async move || Ok(web.listen().await?.serve())).unwrap();
    lab.keep(server);
    let begin = Instant::now();
    let loads: Vec<_> = [(&lab.h1, 0), (&lab.h2, 1)]
        .map(|(ns, family)| Load::start(ns, Plan::new(outside(families()[family], 8080))).unwrap())
        .into();
    for pause in [50, 300, 700] {
        std::thread::sleep(Duration::from_millis(pause));
        lab.agent().kill();
        std::thread::sleep(Duration::from_millis(400));
        if pause == 300 {
            // The next one is killed while it begins.
            lab.agent().start().unwrap();
        } else {
            lab.agent().start_ready().unwrap();
        }
    }
    let leaked = leak(&lab, 40_000);
    // What nobody has is looked at in two walks through the whole table.
    let found = format!("ports that nobody had ({leaked} so far)");
    eventually("the leak is found", 60, || lab.agent().log().contains(&found));
    let to = Instant::now();
    loads.iter().for_each(|load| load.settle(to));
    let samples: Vec<_> = loads.iter().flat_map(|load| load.reader().between(begin, to)).collect();
    let summary = Summary::of(&samples);
    assert!(summary.requests > 500 && summary.failed == 0, "{summary:#?}\n{}", lab.state());
}

/// Takes a free port of each IPv4 address outside, as a program that was interrupted would leave it: how many.
fn leak(lab: &Translated, port: u32) -> u32 {
    let maps = Maps::open(&Paths::new(lab.lab.pins()).maps()).unwrap();
    let uplinks: Vec<_> = maps.v4.uplinks.entries().unwrap();
    let planes: std::collections::BTreeSet<u32> = uplinks.iter().map(|(_, uplink)| uplink.planes[0]).collect();
    for plane in &planes {
        let index = plane * PLANE + port_table::class(17).unwrap() * PORTS + port;
        let word = maps.v4.ports.ports(index / 64).unwrap();
        let bits = word.load();
        assert!(word.swap_if(bits, bits | 1 << (index % 64)));
    }
    planes.len() as u32
}
