//! Translation between inside and outside with real sockets.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use lb_common::port_table::{self, PLANE, PORTS, PortTable};
use lb_user::apply::{Maps, Paths};
use socket2::{Domain, Protocol, Socket, Type};
use stellwerk_tests::load::replica::Replica;
use stellwerk_tests::load::{Load, Plan, Summary, Task};
use stellwerk_tests::netns::Ns;
use stellwerk_tests::netns::nat::capture::Capture;
use stellwerk_tests::netns::nat::packet::{self, Connection, Seen};
use stellwerk_tests::netns::nat::{self, CLOSED, ECHO, MIRROR, Router, Translated, outside};
use stellwerk_tests::netns::probe::{self, Datagram, From, Talk};

const PATIENCE: Duration = Duration::from_secs(3);

fn families() -> [IpAddr; 2] {
    nat::uplink().both()
}

/// A UDP socket in a namespace, bound to a port (0: any).
fn udp(ns: &Ns, like: IpAddr, port: u16) -> UdpSocket {
    let any: IpAddr = if like.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = ns.run(|| UdpSocket::bind(SocketAddr::new(any, port))).unwrap().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// The endpoint outside of a socket, by the mirror's answer.
fn seen_as(socket: &UdpSocket, like: IpAddr) -> Option<SocketAddr> {
    let mut buffer = [0; 128];
    for _ in 0..2 {
        socket.send_to(b"who am I?", outside(like, MIRROR)).ok()?;
        if let Ok((n, _)) = socket.recv_from(&mut buffer) {
            return std::str::from_utf8(&buffer[..n]).ok()?.parse().ok();
        }
    }
    None
}

/// A TCP connection from this port.
fn tcp_from(ns: &Ns, port: u16, to: SocketAddr) -> std::io::Result<TcpStream> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    ns.run(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::new(any, port).into())?;
        socket.connect_timeout(&to.into(), PATIENCE)?;
        Ok(socket.into())
    })
    .unwrap()
}

fn eventually(what: &str, patience: u64, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(patience);
    while !done() {
        assert!(Instant::now() < end, "{what}: not within {patience} s");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn packets(capture: Capture) -> Vec<Seen> {
    capture.end().unwrap().iter().filter_map(|bytes| packet::frame(bytes)).collect()
}

#[test]
fn hosts_inside_reach_the_outside_by_the_uplinks_address() {
    let lab = Translated::open().unwrap();
    let capture = Capture::start(&lab.out).unwrap();
    let mut wrong = Vec::new();
    for like in families() {
        for (name, from) in [("h1", lab.from_h1()), ("h2", lab.from_h2())] {
            let how = Datagram { length: 300, ..Datagram::default() };
            let tcp = probe::tcp(&from, outside(like, ECHO), 2_000_000);
            if !tcp.as_ref().is_ok_and(|g| g.client == Some(like)) {
                wrong.push(format!("{name} TCP {like}: {tcp:?}"));
            }
            for (kind, result) in [
                ("UDP", probe::udp(&from, outside(like, ECHO), how).map(drop)),
                ("ping", probe::ping(&from, nat::server().like(like), 100)),
            ] {
                if let Err(e) = result {
                    wrong.push(format!("{name} {kind} {like}: {e:#}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), lab.state());
    let ours = [families(), nat::server().both()].concat();
    for seen in packets(capture) {
        assert!(seen.from.is_ipv6() && seen.icmp.is_some() || ours.contains(&seen.from), "{seen:?}");
    }
}

#[test]
fn equal_ports_and_ids_stay_apart() {
    let lab = Translated::open().unwrap();
    for like in families() {
        let (one, two) = (udp(&lab.h1, like, 20_000), udp(&lab.h2, like, 20_000));
        let (one, two) = (seen_as(&one, like).unwrap(), seen_as(&two, like).unwrap());
        assert_eq!((one.ip(), two.ip()), (like, like));
        assert_eq!(one.port(), 20_000);
        assert_ne!(one.port(), two.port());
    }
}

/// The device's own connections leave beside those of its hosts, from the same ports, too.
#[test]
fn the_device_itself_shares_its_address() {
    let lab = Translated::open().unwrap();
    for like in families() {
        let to = outside(like, ECHO);
        let inside = tcp_from(&lab.h1, 21_000, to).unwrap_or_else(|e| panic!("h1 {like}: {e}\n{}", lab.state()));
        let own = tcp_from(&lab.dev, 21_000, to).unwrap_or_else(|e| panic!("dev {like}: {e}\n{}", lab.state()));
        // And the other way round: the device was first.
        let own2 = tcp_from(&lab.dev, 21_001, to).unwrap_or_else(|e| panic!("dev {like}: {e}\n{}", lab.state()));
        let inside2 = tcp_from(&lab.h1, 21_001, to).unwrap_or_else(|e| panic!("h1 {like}: {e}\n{}", lab.state()));
        for (name, stream) in [("h1", inside), ("dev", own), ("dev, first", own2), ("h1, second", inside2)] {
            echo(stream).unwrap_or_else(|e| panic!("{name} {like}: {e}\n{}", lab.state()));
        }
        probe::tcp(&From::ns(&lab.dev), to, 500_000).unwrap();
        // A server of the device, for who is outside.
        let server = stellwerk_tests::load::echo::serve(&lab.dev, "dev", &[SocketAddr::new(like, 8022)]).unwrap();
        probe::tcp(&From::ns(&lab.out), SocketAddr::new(like, 8022), 500_000)
            .unwrap_or_else(|e| panic!("to dev {like}: {e:#}\n{}", lab.state()));
        drop(server);
    }
}

/// Greeting and a line there and back.
fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    use std::io::{BufRead, BufReader, Write};
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"hello\n")?;
    let mut lines = BufReader::new(stream).lines();
    let greeting = lines.next().ok_or(ErrorKind::UnexpectedEof)??;
    let answer = lines.next().ok_or(ErrorKind::UnexpectedEof)??;
    if answer == "hello" { Ok(()) } else { Err(std::io::Error::other(format!("{greeting}, then {answer}"))) }
}

/// From inside: the router, its gateway, the server; each says so about the packet that the host sent.
#[test]
fn traceroute_sees_the_way() {
    let lab = Translated::open().unwrap();
    let mut wrong = Vec::new();
    for like in families() {
        let (expired, unreachable) = if like.is_ipv4() { (11, 3) } else { (3, 1) };
        let hops = [(nat::inside(1), expired), (nat::gateway(), expired), (nat::server(), unreachable)];
        for (ttl, (hop, kind)) in (1..).zip(hops) {
            let how = Datagram { length: 32, ttl: Some(ttl), ..Datagram::default() };
            let error = probe::icmp_error(&lab.h1, like.is_ipv4(), kind, || {
                probe::udp_socket(&lab.from_h1(), outside(like, 33_434), how)?.send(&[0; 32])?;
                Ok(())
            });
            let source = |about: &[u8]| match like {
                IpAddr::V4(_) => <[u8; 4]>::try_from(&about[12..16]).ok().map(IpAddr::from),
                IpAddr::V6(_) => <[u8; 16]>::try_from(&about[8..24]).ok().map(IpAddr::from),
            };
            match error {
                Ok(e) if e.from == hop.like(like) && source(&e.about) == Some(nat::inside(11).like(like)) => {}
                other => wrong.push(format!("{like}, hop {ttl}: {other:?}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), lab.state());
}

/// From outside to a mapping: a router inside, where it expires, is known by the address outside.
#[test]
fn a_router_inside_is_known_by_the_address_outside() {
    let lab = Translated::with(&nat::config(", natSubnets: 172.27.9.0/24", "")).unwrap();
    let deep = lab.lab.ns("deep").unwrap();
    lab.lab.wire((&lab.h1, "eth1"), (&deep, "eth0")).unwrap();
    lab.h1.forward().unwrap();
    lab.h1.ip("addr add 172.27.9.1/24 dev eth1").unwrap();
    deep.ip("addr add 172.27.9.2/24 dev eth0\nroute add default via 172.27.9.1").unwrap();
    lab.dev.ip("route add 172.27.9.0/24 via 172.27.1.11").unwrap();
    let like = nat::uplink().v4;
    let socket = udp(&deep, like, 20_001);
    let at = seen_as(&socket, like).unwrap_or_else(|| panic!("no answer\n{}", lab.state()));
    assert_eq!(at, SocketAddr::new(like, 20_001));
    for (ttl, hop) in [(1, "198.51.100.1"), (2, "203.0.113.2"), (3, "203.0.113.2")] {
        let how = Datagram { length: 32, ttl: Some(ttl), ..Datagram::default() };
        let error = probe::icmp_error(&lab.out, true, 11, || {
            probe::udp_socket(&From::at(&lab.out, nat::server().v4), at, how)?.send(&[0; 32])?;
            Ok(())
        })
        .unwrap_or_else(|e| panic!("hop {ttl}: {e:#}\n{}", lab.state()));
        assert_eq!(error.from, hop.parse::<IpAddr>().unwrap(), "hop {ttl}");
        assert_eq!(error.about_destination(), Some(like), "hop {ttl}");
        assert_eq!(error.about[22..24], 20_001_u16.to_be_bytes(), "hop {ttl}");
    }
}

/// TCP and datagrams where the path is narrower: at the uplink itself, and behind the gateway.
#[test]
fn too_big_is_told_or_cut_up() {
    for at_uplink in [true, false] {
        let lab = Translated::open().unwrap();
        if at_uplink {
            lab.dev.ip("link set eth0 mtu 1400").unwrap();
            lab.gw.ip("link set eth0 mtu 1400").unwrap();
            // The agent hears of it.
            std::thread::sleep(Duration::from_secs(1));
        } else {
            lab.gw
                .ip("route replace 198.51.100.0/24 dev eth1 src 198.51.100.1 mtu lock 1400\n\
                     route add 2001:db8:100::7/128 dev eth1 mtu lock 1400")
                .unwrap();
        }
        for like in families() {
            let name = format!("{like}, narrow at the uplink: {at_uplink}");
            let kind = if like.is_ipv4() { 3 } else { 2 };
            let socket = udp(&lab.h1, like, 0);
            let error = probe::icmp_error(&lab.h1, like.is_ipv4(), kind, || {
                socket.send_to(&[7; 1440], outside(like, ECHO))?;
                Ok(())
            })
            .unwrap_or_else(|e| panic!("{name}: {e:#}\n{}", lab.state()));
            let hop = if at_uplink { nat::inside(1) } else { nat::gateway() };
            assert_eq!(error.from, hop.like(like), "{name}");
            let route = lab.h1.ip_text(&format!("route get {}", nat::server().like(like))).unwrap();
            assert!(route.contains("mtu 1400"), "{name}: {route}");
            probe::tcp(&lab.from_h2(), outside(like, ECHO), 1_000_000)
                .unwrap_or_else(|e| panic!("{name}: {e:#}\n{}", lab.state()));
        }
        // Without "don't fragment" it is cut up on the way, the first part first.
        lab.h2.sysctls(&[("net/ipv4/ip_no_pmtu_disc", "1")]).unwrap();
        let capture = Capture::start(&lab.out).unwrap();
        lab.h2.ip("route flush cache").unwrap();
        let how = Datagram { length: 1440, ..Datagram::default() };
        let whole = probe::udp(&lab.from_h2(), outside(nat::uplink().v4, ECHO), how);
        let parts: Vec<_> = packets(capture).into_iter().filter(|seen| seen.from == nat::uplink().v4).collect();
        whole.unwrap_or_else(|e| panic!("{e:#} {parts:#?}\n{}", lab.state()));
        let offsets: Vec<_> = parts.iter().filter_map(|seen| seen.fragment).map(|(offset, _)| offset).collect();
        assert!(offsets.len() == 2 && offsets[0] == 0, "{parts:#?}");
    }
}

#[test]
fn published_ports_from_outside_and_from_inside() {
    let publish = "publish:\n  - 203.0.113.2:8443 -> 172.27.1.11:7000\n  - 203.0.113.2:8443 -> 172.27.1.11:7000/udp\n  \
                   - \"[2001:db8:113::2]:8443 -> [fd00:27:1::b]:7000\"\n";
    let mut lab = Translated::with(&nat::config(", ipv6: masquerade", publish)).unwrap();
    lab.agent().wait("backends", |rows| rows.len() >= 3).unwrap();
    let mut wrong = Vec::new();
    for like in families() {
        let at = SocketAddr::new(like, 8443);
        for (name, ns) in [("out", &lab.out), ("h2", &lab.h2), ("h1 itself", &lab.h1)] {
            match probe::tcp(&From::ns(ns), at, 300_000) {
                Ok(greeting) if greeting.name == "h1" => {
                    let outside = greeting.client == Some(nat::server().like(like));
                    if (name == "out") != outside {
                        wrong.push(format!("{name} to {at}: {greeting:?}"));
                    }
                }
                other => wrong.push(format!("{name} to {at}: {other:?}")),
            }
        }
    }
    let how = Datagram { length: 100, ..Datagram::default() };
    for ns in [&lab.out, &lab.h2] {
        if let Err(e) = probe::udp(&From::ns(ns), "203.0.113.2:8443".parse().unwrap(), how) {
            wrong.push(format!("UDP: {e:#}"));
        }
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), lab.state());
}

/// Echo requests and their answers in fragments.
#[test]
fn large_pings_are_answered() {
    let lab = Translated::open().unwrap();
    for like in families() {
        probe::ping(&lab.from_h1(), nat::server().like(like), 3000)
            .unwrap_or_else(|e| panic!("{like}: {e:#}\n{}", lab.state()));
    }
}

/// What was seen outside and by the host inside of the same traffic.
fn scripted(router: Router) -> [Vec<(String, Vec<Connection>)>; 2] {
    let lab = Translated::make(router, &nat::config(", ipv6: masquerade", "")).unwrap();
    let narrow = nat::narrow();
    lab.out.ip(&format!("addr add {}/32 dev lo\naddr add {}/128 dev lo nodad", narrow.v4, narrow.v6)).unwrap();
    lab.gw
        .ip(&format!(
            "route add {}/32 via 198.51.100.7 mtu lock 1400\nroute add {}/128 via 2001:db8:100::7 mtu lock 1400",
            narrow.v4, narrow.v6
        ))
        .unwrap();
    for ns in [&lab.dev, &lab.gw, &lab.out] {
        ns.sysctls(&[("net/ipv4/icmp_ratelimit", "0"), ("net/ipv6/icmp/ratelimit", "0")]).unwrap();
    }
    type Step = (&'static str, fn(&Translated, IpAddr) -> anyhow::Result<()>);
    let steps: &[Step] = &[
        ("TCP", |lab, like| {
            let mut talk = Talk::open(&lab.from_h1(), outside(like, ECHO))?;
            talk.exchange(100)?;
            talk.exchange(20_000)?;
            talk.close()
        }),
        ("TCP given up", |lab, like| {
            let stream = lab.h1.run(|| TcpStream::connect(outside(like, ECHO)))??;
            std::thread::sleep(Duration::from_millis(50));
            // Unread bytes at the end make it a RST.
            drop(stream);
            Ok(())
        }),
        ("TCP to a closed port", |lab, like| probe::tcp_refused(&lab.from_h1(), outside(like, CLOSED)).map(drop)),
        ("UDP to two servers", |lab, like| {
            let socket = udp(&lab.h1, like, 20_001);
            let mut buffer = [0; 2000];
            for port in [ECHO, MIRROR, ECHO] {
                socket.send_to(b"one", outside(like, port))?;
                socket.recv_from(&mut buffer)?;
            }
            Ok(())
        }),
        ("UDP to a closed port", |lab, like| probe::udp_refused(&lab.from_h1(), outside(like, CLOSED)).map(drop)),
        ("UDP to a port inside that was closed", |lab, like| {
            let (near, far) = (udp(&lab.h1, like, 20_003), udp(&lab.out, like, 20_103));
            near.send_to(b"one", outside(like, 20_103))?;
            let (_, from) = far.recv_from(&mut [0; 9])?;
            drop(near);
            far.send_to(b"too late", from)?;
            Ok(())
        }),
        ("UDP of a class of traffic", |lab, like| {
            let socket = udp(&lab.h1, like, 20_004);
            let options = socket2::SockRef::from(&socket);
            if like.is_ipv4() {
                options.set_tos_v4(0xb8)?
            } else {
                options.set_tclass_v6(0xb8)?
            }
            socket.send_to(b"soon", outside(like, ECHO))?;
            socket.recv_from(&mut [0; 64])?;
            Ok(())
        }),
        ("UDP in fragments", |lab, like| {
            probe::udp(&lab.from_h1(), outside(like, ECHO), Datagram { length: 4000, ..Datagram::default() }).map(drop)
        }),
        ("UDP that expires", |lab, like| {
            for ttl in 1..=2 {
                let how = Datagram { ttl: Some(ttl), ..Datagram::default() };
                probe::udp_socket(&lab.from_h1(), outside(like, ECHO), how)?.send(&[1; 40])?;
                std::thread::sleep(Duration::from_millis(50));
            }
            Ok(())
        }),
        ("UDP that is too large, then cut up", |lab, like| {
            let socket = udp(&lab.h1, like, 20_002);
            // The host cuts up the second one. Of IPv6 Linux's connection tracking puts the parts together
            // again and sends a whole that is too large as before: nothing to compare with.
            for _ in 0..if like.is_ipv4() { 2 } else { 1 } {
                socket.send_to(&[3; 1440], SocketAddr::new(nat::narrow().like(like), CLOSED))?;
                std::thread::sleep(Duration::from_millis(100));
            }
            Ok(())
        }),
        ("ping", |lab, like| {
            [0, 56, 1400].iter().try_for_each(|n| probe::ping(&lab.from_h1(), nat::server().like(like), *n))
        }),
    ];
    let mut seen = [Vec::new(), Vec::new()];
    for (name, step) in steps {
        for like in families() {
            let captures = [Capture::start(&lab.out).unwrap(), Capture::start(&lab.h1).unwrap()];
            let done = step(&lab, like);
            if let Err(e) = done {
                let [outside, inside] = captures.map(packets);
                panic!("{router:?}, {name} {like}: {e:#}\noutside {outside:#?}\ninside {inside:#?}\n{}", lab.state());
            }
            let near = [families(), nat::inside(11).both()];
            for (((capture, near), seen), outside) in captures.into_iter().zip(near).zip(&mut seen).zip([true, false]) {
                // What its own host sends a capture may show as a router has changed it since: fragments of one buffer.
                let theirs = |seen: &Seen| near.contains(&seen.from) == outside;
                let arrived: Vec<_> = packets(capture).into_iter().filter(theirs).collect();
                seen.push((format!("{name} {like}"), packet::connections(&arrived, &near)));
            }
        }
    }
    seen
}

/// Outside and inside see of stellwerk what they see of Linux and its masquerading.
#[test]
fn linux_would_have_done_the_same() {
    let [ours, linux] = [Router::Stellwerk, Router::Linux].map(scripted);
    let mut wrong = Vec::new();
    for (place, (ours, linux)) in ["outside", "inside"].iter().zip(ours.into_iter().zip(linux)) {
        for ((name, ours), (_, linux)) in ours.into_iter().zip(linux) {
            assert!(*place == "outside" || !ours.is_empty(), "{name}: the captures are empty");
            if ours != linux {
                wrong.push(format!("{name}, seen {place}: stellwerk {ours:#?}\nLinux {linux:#?}"));
            }
            if let Some(bad) = ours.iter().flat_map(|c| c.out.iter().chain(&c.back)).find(|seen| !seen.sums) {
                wrong.push(format!("{name}, seen {place}: wrong checksum: {bad:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

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
    // Nobody answers there.
    lab.gw.ip("route add blackhole 198.18.0.0/15").unwrap();
    let begin = Instant::now();
    lab.h1
        .run(|| {
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).unwrap();
            socket.set_header_included_v4(true).unwrap();
            for n in 0..PACKETS {
                let port = (n / 2 % 60_000 + 1024) as u16;
                let to = [198, 18, (n / 2 / 60_000) as u8, 1];
                let _ = socket.send_to(&crafted(n % 2 == 0, port, to), &SocketAddr::from((to, 80)).into());
            }
        })
        .unwrap();
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

/// Down by the operator's word, and back again.
#[test]
fn another_uplink_takes_over() {
    let lab = Translated::open().unwrap();
    for like in families() {
        let mirror = |port| seen_as(&udp(&lab.h1, like, port), like).map(|at| at.ip());
        assert_eq!(mirror(20_001), Some(nat::uplink().like(like)), "{}", lab.state());
    }
    let v4 = nat::uplink().v4;
    let [mut quiet, mut busy] = [(); 2].map(|()| Talk::open(&lab.from_h1(), outside(v4, ECHO)).unwrap());
    lab.dev.ip("link set eth0 down").unwrap();
    let begin = Instant::now();
    for like in families() {
        leaves_by(&lab, like, nat::second().like(like), begin);
    }
    let moved = lab.count("nat_moved");
    assert!(busy.exchange(10).is_err(), "its address is the other uplink's");
    assert!(lab.count("nat_moved") > moved, "{}", lab.state());
    // What goes down has lost its addresses and routes of IPv6.
    lab.dev
        .ip("link set eth0 up\naddr replace 2001:db8:113::2/64 dev eth0 nodad\n\
             route replace default via 203.0.113.1 metric 100\nroute replace default via 2001:db8:113::1 metric 100")
        .unwrap();
    let begin = Instant::now();
    for like in families() {
        leaves_by(&lab, like, nat::uplink().like(like), begin);
    }
    // Who sent nothing meanwhile goes on.
    quiet.exchange(10_000).unwrap_or_else(|e| panic!("{e:#}\n{}", lab.state()));
}

/// The cable is pulled: the port stays up and loses its carrier.
#[test]
fn another_uplink_takes_over_when_the_cable_is_pulled() {
    let lab = Translated::open().unwrap();
    lab.gw.ip("link set eth0 down").unwrap();
    let begin = Instant::now();
    for like in families() {
        leaves_by(&lab, like, nat::second().like(like), begin);
    }
}

/// The kernel's own routes know it, too: a route over a link without carrier stays where nobody says otherwise.
#[test]
fn the_devices_own_connections_leave_by_another_uplink_too() {
    let lab = Translated::open().unwrap();
    lab.gw.ip("link set eth0 down").unwrap();
    std::thread::sleep(Duration::from_secs(1));
    for like in families() {
        let greeting = probe::tcp(&From::ns(&lab.dev), outside(like, ECHO), 1000);
        let routes = || lab.dev.ip_text(if like.is_ipv4() { "route" } else { "-6 route" }).unwrap();
        let greeting = greeting.unwrap_or_else(|e| panic!("{e:#}\n{}\n{}", routes(), lab.state()));
        assert_eq!(greeting.client, Some(nat::second().like(like)));
    }
}

/// New connections, of TCP and UDP, have this address, 2 seconds after `begin` at the latest.
fn leaves_by(lab: &Translated, like: IpAddr, address: IpAddr, begin: Instant) {
    let mut last = String::new();
    let mut port = 25_000;
    while begin.elapsed() < Duration::from_millis(2500) {
        port += 1;
        let socket = udp(&lab.h1, like, port);
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let seen = seen_as(&socket, like).map(|at| at.ip());
        if seen == Some(address) {
            let greeting = probe::tcp(&lab.from_h2(), outside(like, ECHO), 100_000)
                .unwrap_or_else(|e| panic!("TCP by {address}: {e:#}\n{}", lab.state()));
            assert_eq!(greeting.client, Some(address));
            return;
        }
        last = format!("{seen:?}");
    }
    panic!(
        "not by {address} after {:?}, but {last}\n{}\n{}",
        begin.elapsed(),
        lab.dev.ip_text("route").unwrap(),
        lab.state()
    );
}

/// The uplink gets another address: old connections end, new ones have it.
#[test]
fn a_new_address_of_the_uplink_is_taken() {
    let mut lab = Translated::open().unwrap();
    let like = nat::uplink().v4;
    let mut talk = Talk::open(&lab.from_h1(), outside(like, ECHO)).unwrap();
    talk.exchange(1000).unwrap();
    lab.dev
        .ip("addr del 203.0.113.2/24 dev eth0\naddr add 203.0.113.22/24 dev eth0\n\
             route replace default via 203.0.113.1 metric 100")
        .unwrap();
    leaves_by(&lab, like, "203.0.113.22".parse().unwrap(), Instant::now());
    assert!(talk.exchange(1000).is_err(), "the old connection lives");
    let log = lab.agent().log();
    assert!(log.contains("203.0.113.2"), "nothing said of the connections that ended:\n{}", lab.state());
}

/// Killed at several moments: no connection breaks, and its successor finds what nobody has.
#[test]
fn a_killed_agent_breaks_nothing_and_leaks_are_found() {
    let mut lab = Translated::open().unwrap();
    let web = Replica {
        name: "out".into(),
        listen: nat::server().both().map(|ip| SocketAddr::new(ip, 8080)).to_vec(),
        database: Vec::new(),
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
        lab.agent().start().unwrap();
        // The next one is killed while it begins.
        if pause == 300 {
            continue;
        }
        lab.ready().unwrap();
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

/// As [`tcp_from`], with an address.
fn tcp_at(ns: &Ns, from: SocketAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    ns.run(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())?;
        socket.connect_timeout(&to.into(), Duration::from_secs(8))?;
        Ok(socket.into())
    })
    .unwrap()
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
                let outside = scope.spawn(|| tcp_at(&lab.out, peer, SocketAddr::new(like, 20_011)));
                std::thread::sleep(Duration::from_millis(early));
                let inside = tcp_at(&lab.h1, SocketAddr::new(any, 20_011), peer);
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
            let other = scope.spawn(|| tcp_at(&lab.h2, SocketAddr::new(any, 20_022), SocketAddr::new(like, 20_021)));
            let inner = tcp_at(&lab.h1, SocketAddr::new(any, 20_021), SocketAddr::new(like, 20_022));
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
