//! Whom else translated hosts meet: strangers, peers that open at once, prefixes; and the log of mappings.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;
use stellwerk_tests::netns::Ns;
use stellwerk_tests::netns::nat::capture::Capture;
use stellwerk_tests::netns::nat::sockets::{
    PATIENCE, echo, eventually, families, packets, seen_as, tcp_at, tcp_from, udp,
};
use stellwerk_tests::netns::nat::{self, CLOSED, ECHO, Translated, outside};
use stellwerk_tests::netns::probe::{self, Datagram, From};

/// Peers open at the same time, and more than once.
const LONG: Duration = Duration::from_secs(8);

#[test]
fn mappings_are_logged() {
    let lab = Translated::with(&nat::config(", ipv6: masquerade, log: nat.jsonl", "")).unwrap();
    let like = nat::uplink().v4;
    let socket = udp(&lab.h1, like, 20_001);
    assert!(seen_as(&socket, like).is_some());
    echo(tcp_from(&lab.h1, 20_002, outside(like, ECHO)).unwrap()).unwrap();
    let mut text = String::new();
    let file = lab.lab.dir().join("nat.jsonl");
    eventually("three lines", 5, || {
        text = std::fs::read_to_string(&file).unwrap_or_default();
        text.lines().count() >= 3
    });
    for (event, protocol, port) in [("begin", "udp", 20_001), ("begin", "tcp", 20_002), ("end", "tcp", 20_002)] {
        let wanted = |line: &&str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["event"] == event
                && line["protocol"] == protocol
                && line["inside"] == format!("172.27.1.11:{port}")
                && line["outside"] == format!("203.0.113.2:{port}")
                && line["time"].is_string()
        };
        assert_eq!(text.lines().filter(wanted).count(), 1, "{event} of {protocol}:\n{text}");
    }
    assert!(!text.contains("198.51.100.7"), "a destination:\n{text}");
}

#[test]
fn unwanted_syn_is_not_answered() {
    let lab = Translated::open().unwrap();
    let stranger = stranger(&lab);
    for like in families() {
        let _held = tcp_from(&lab.h1, 20_001, outside(like, ECHO)).unwrap();
        let (before, capture) = (lab.count("nat_filtered"), Capture::start(&lab.out).unwrap());
        let stranger = stranger.like(like);
        let (error, _) = probe::tcp_refused(&From::at(&lab.out, stranger), SocketAddr::new(like, 20_001)).unwrap();
        std::thread::sleep(Duration::from_secs(4));
        let answers: Vec<_> = packets(capture).into_iter().filter(|seen| seen.to == stranger).collect();
        assert_eq!((error, answers), (Some(ErrorKind::TimedOut), vec![]), "{}", lab.state());
        assert!(lab.count("nat_filtered") > before, "{}", lab.state());
    }
}

/// A second address outside, that nobody inside has sent to.
fn stranger(lab: &Translated) -> stellwerk_tests::netns::device::Twin {
    let at = nat::narrow();
    lab.out.ip(&format!("addr add {}/32 dev lo\naddr add {}/128 dev lo nodad", at.v4, at.v6)).unwrap();
    lab.gw
        .ip(&format!("route add {}/32 via 198.51.100.7\nroute add {}/128 via 2001:db8:100::7", at.v4, at.v6))
        .unwrap();
    at
}

/// A line each way.
fn greet(one: TcpStream, two: TcpStream) -> std::io::Result<()> {
    use std::io::{Read, Write};
    for (mut from, mut to) in [(&one, &two), (&two, &one)] {
        to.set_read_timeout(Some(PATIENCE))?;
        from.write_all(b"hello")?;
        to.read_exact(&mut [0; 5])?;
    }
    Ok(())
}

/// Neither side listens. The first SYN from outside is too early, and is lost without a word; its repetition
/// succeeds. Then both cross on the way, where the kernel can delay packets.
#[test]
fn both_sides_open_at_once() {
    let lab = Translated::open().unwrap();
    let stranger = stranger(&lab);
    for like in families() {
        let _held = tcp_from(&lab.h1, 20_011, outside(like, ECHO)).unwrap();
        let ways = [(&lab.gw, "eth1"), (&lab.out, "eth0")];
        for (port, early) in [(20_012, 400), (20_013, 0)] {
            let delay = |(ns, link): (&Ns, &str)| ns.tc_text(&format!("qdisc add dev {link} root netem delay 150ms"));
            if early == 0 && ways.into_iter().map(delay).any(|delayed| delayed.is_err()) {
                println!("no SYNs that cross: the kernel has no netem");
                continue;
            }
            let filtered = lab.count("nat_filtered");
            let peer = SocketAddr::new(stranger.like(like), port);
            let any: IpAddr = if like.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
            let (inside, outside) = std::thread::scope(|scope| {
                let outside = scope.spawn(|| tcp_at(&lab.out, peer, SocketAddr::new(like, 20_011), LONG));
                std::thread::sleep(Duration::from_millis(early));
                let inside = tcp_at(&lab.h1, SocketAddr::new(any, 20_011), peer, LONG);
                (inside, outside.join().unwrap())
            });
            let both = inside.and_then(|inside| greet(inside, outside?));
            both.unwrap_or_else(|e| panic!("{peer}, {early} ms early: {e}\n{}", lab.state()));
            assert!(early == 0 || lab.count("nat_filtered") > filtered, "{}", lab.state());
        }
        for (ns, link) in ways {
            let _ = ns.tc_text(&format!("qdisc del dev {link} root"));
        }
    }
}

/// Peers that know each other's endpoints outside, inside as well as outside.
#[test]
fn peers_meet_by_their_ports_outside() {
    let lab = Translated::open().unwrap();
    for like in families() {
        let [one, two, far] =
            [(&lab.h1, 20_001), (&lab.h2, 20_001), (&lab.out, 20_003)].map(|(ns, port)| udp(ns, like, port));
        let (first, second) = (seen_as(&one, like).unwrap(), seen_as(&two, like).unwrap());
        let far_at = outside(like, 20_003);
        let mut buffer = [0; 64];
        let mut heard = |from: &UdpSocket, at: SocketAddr, to: &UdpSocket| {
            from.send_to(b"peer", at).unwrap();
            to.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            to.recv_from(&mut buffer).ok().map(|(_, from)| from)
        };
        assert_eq!(heard(&one, far_at, &far), Some(first), "{}", lab.state());
        assert_eq!(heard(&far, first, &one), Some(far_at), "{}", lab.state());
        // Each has to have sent to the other's address.
        assert_eq!(heard(&one, second, &two), None, "{}", lab.state());
        assert_eq!(heard(&two, first, &one), Some(second), "{}", lab.state());
        assert_eq!(heard(&one, second, &two), Some(first), "{}", lab.state());
        // TCP, opened from both sides.
        let _held = [tcp_from(&lab.h1, 20_021, outside(like, ECHO)), tcp_from(&lab.h2, 20_022, outside(like, ECHO))]
            .map(Result::unwrap);
        let any: IpAddr = if like.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let (inner, other) = std::thread::scope(|scope| {
            let other =
                scope.spawn(|| tcp_at(&lab.h2, SocketAddr::new(any, 20_022), SocketAddr::new(like, 20_021), LONG));
            let inner = tcp_at(&lab.h1, SocketAddr::new(any, 20_021), SocketAddr::new(like, 20_022), LONG);
            (inner, other.join().unwrap())
        });
        let both = inner.and_then(|inner| greet(inner, other?));
        both.unwrap_or_else(|e| panic!("TCP between hosts inside, {like}: {e}\n{}", lab.state()));
    }
}

/// IPv6 prefixes for each other: out, in to who never sent, and errors.
#[test]
fn prefixes_are_exchanged() {
    let keys = ", ipv6: prefix, prefixes: [{ inside: \"fd00:27:1::/64\", outside: \"2001:db8:27:1::/64\" }]";
    let lab = Translated::with(&nat::config(keys, "")).unwrap();
    lab.gw.ip("route add 2001:db8:27:1::/64 via 2001:db8:113::2").unwrap();
    let like = nat::uplink().v6;
    let socket = udp(&lab.h1, like, 20_001);
    let at = seen_as(&socket, like).unwrap_or_else(|| panic!("no answer\n{}", lab.state()));
    let IpAddr::V6(h1) = at.ip() else { panic!("{at}") };
    assert_eq!((&h1.segments()[..4], at.port()), (&[0x2001, 0xdb8, 0x27, 1][..], 20_001));
    assert_eq!(probe::tcp(&lab.from_h1(), outside(like, ECHO), 300_000).unwrap().client, Some(h1.into()));
    let mut h2 = h1.segments();
    h2[7] = 12;
    for (name, ip) in [("h1", h1.into()), ("h2", IpAddr::from(h2))] {
        let (from, to) = (From::ns(&lab.out), SocketAddr::new(ip, ECHO));
        let said = probe::tcp(&from, to, 300_000).unwrap_or_else(|e| panic!("{to}: {e:#}\n{}", lab.state()));
        assert_eq!((said.name.as_str(), said.client), (name, Some(nat::server().v6)));
        probe::udp(&from, to, Datagram { length: 4000, ..Datagram::default() })
            .unwrap_or_else(|e| panic!("{to}: {e:#}\n{}", lab.state()));
        probe::ping(&from, ip, 100).unwrap_or_else(|e| panic!("{to}: {e:#}\n{}", lab.state()));
    }
    let error = probe::icmp_error(&lab.h1, false, 1, || {
        socket.send_to(b"anybody?", outside(like, CLOSED))?;
        Ok(())
    })
    .unwrap_or_else(|e| panic!("{e:#}\n{}", lab.state()));
    assert_eq!(error.from, nat::server().v6);
    assert_eq!(error.about[8..24], "fd00:27:1::b".parse::<std::net::Ipv6Addr>().unwrap().octets());
}
