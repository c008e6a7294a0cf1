//! Translation between inside and outside with real sockets: the way out and back, errors, narrow paths,
//! forwards.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use stellwerk_tests::netns::nat::capture::Capture;
use stellwerk_tests::netns::nat::sockets::{echo, families, packets, seen_as, tcp_from, udp};
use stellwerk_tests::netns::nat::{self, ECHO, Translated, outside};
use stellwerk_tests::netns::probe::{self, Datagram, From};

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

/// Sockets of the device that wait and have sent nothing yet keep their ports.
#[test]
fn ports_that_the_device_waits_at_are_nobodys_inside() {
    let lab = Translated::open().unwrap();
    for like in families() {
        let server = stellwerk_tests::load::echo::serve(&lab.dev, "dev", &[SocketAddr::new(like, 22_000)]).unwrap();
        let seen = seen_as(&udp(&lab.h1, like, 22_000), like).unwrap_or_else(|| panic!("h1\n{}", lab.state()));
        assert_eq!((seen.ip(), seen.port() == 22_000), (like, false), "{}", lab.state());
        let inside = tcp_from(&lab.h1, 22_000, outside(like, ECHO)).unwrap();
        echo(inside).unwrap_or_else(|e| panic!("h1 {like}: {e}\n{}", lab.state()));

        let at = SocketAddr::new(like, 22_000);
        probe::udp(&From::ns(&lab.out), at, Datagram::default())
            .unwrap_or_else(|e| panic!("dev {like}: {e:#}\n{}", lab.state()));
        probe::tcp(&From::ns(&lab.out), at, 500_000).unwrap_or_else(|e| panic!("dev {like}: {e:#}\n{}", lab.state()));
        drop(server);
    }
    assert_eq!(lab.count("nat_left_to_socket"), 4);
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
