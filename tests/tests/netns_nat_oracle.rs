//! Linux's own masquerading as the oracle: the same traffic through both, seen from both sides.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;
use stellwerk_tests::netns::nat::capture::Capture;
use stellwerk_tests::netns::nat::packet::{self, Connection, Seen};
use stellwerk_tests::netns::nat::sockets::{families, packets, udp};
use stellwerk_tests::netns::nat::{self, CLOSED, ECHO, MIRROR, Router, Translated, outside};
use stellwerk_tests::netns::probe::{self, Datagram, Talk};

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
