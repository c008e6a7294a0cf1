//! What is nobody's connection, through the device from one host to another: ahead of the kernel, and as it
//! would.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use stellwerk_tests::netns::Between;
use stellwerk_tests::netns::between::{ECHO, PORTS};
use stellwerk_tests::netns::probe::{self, Datagram, From};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Conversations and pings to the other host, in both families.
fn talk(between: &Between) {
    let from = From::ns(&between.a);
    for far in Between::far() {
        let at = SocketAddr::new(far, ECHO);
        let about = |e: anyhow::Error| panic!("{far}: {e:#}\n{}", between.agent.command(&["drops"]).unwrap());
        probe::tcp(&from, at, 2_000_000).unwrap_or_else(about);
        probe::udp(&from, at, Datagram { length: 300, ..Datagram::default() }).unwrap_or_else(about);
        probe::ping(&from, far, 1_000).unwrap_or_else(|e| panic!("{far}: {e:#}"));
    }
}

#[test]
fn hosts_talk_through_the_device_ahead_of_the_kernel() {
    let between = Between::open("").unwrap();
    // The first packets resolve the neighbours.
    talk(&between);
    let before = between.forwarding().1;
    talk(&between);
    let after = between.forwarding().1;
    assert!(after > before + 100, "{before} and {after}");
}

/// A part of the way takes only smaller packets: connections go on, and who asks is told how large.
#[test]
fn what_is_too_large_is_told_by_the_device() {
    let between = Between::open("").unwrap();
    talk(&between);
    between.dev.ip("link set eth2 mtu 1400").unwrap();
    talk(&between);
    // What the connections have learned is forgotten, so that this asks anew.
    for family in ["-4", "-6"] {
        between.a.ip_text(&format!("{family} route flush cache")).unwrap();
    }
    for (far, near) in Between::far().into_iter().zip(Between::near()) {
        // Fragmentation needed; packet too big.
        let kind = if far.is_ipv4() { (3, 4) } else { (2, 0) };
        let ask = |length: usize| {
            let socket = probe::udp_socket(&From::ns(&between.a), SocketAddr::new(far, ECHO), Datagram::default())?;
            socket.send(&vec![0; length])?;
            Ok(())
        };
        let headers = if far.is_ipv4() { 28 } else { 48 };
        let error = probe::icmp_error(&between.a, far.is_ipv4(), kind.0, || ask(1_401 - headers));
        let error = error.unwrap_or_else(|e| panic!("{far}: {e:#}"));
        assert_eq!((error.kind, error.from, error.word, error.about_destination()), (kind, near, 1_400, Some(far)));
        // The largest that fits arrives.
        let fits = Datagram { length: 1_400 - headers, ..Datagram::default() };
        probe::udp(&From::ns(&between.a), SocketAddr::new(far, ECHO), fits).unwrap();
    }
}

/// As traceroute sees it: the device, then the host, which has nobody at that port.
#[test]
fn a_trace_names_the_device_and_the_host() {
    let between = Between::open("").unwrap();
    talk(&between);
    let before = between.forwarding().1;
    for (far, near) in Between::far().into_iter().zip(Between::near()) {
        let (expired, closed) = if far.is_ipv4() { ((11, 0), (3, 3)) } else { ((3, 0), (1, 4)) };
        for (hops, who, kind) in [(1, near, expired), (2, far, closed)] {
            let error = probe::icmp_error(&between.a, far.is_ipv4(), kind.0, || {
                let how = Datagram { ttl: Some(hops), ..Datagram::default() };
                probe::udp_socket(&From::ns(&between.a), SocketAddr::new(far, 33_434), how)?.send(&[0; 32])?;
                Ok(())
            });
            let error = error.unwrap_or_else(|e| panic!("{far}, {hops}: {e:#}"));
            assert_eq!((error.from, error.kind, error.about_destination()), (who, kind, Some(far)));
        }
    }
    // The probes that went on, and what came back of them.
    let fast = between.forwarding().1 - before;
    assert_eq!(fast, 4);
}

#[test]
fn a_blackhole_is_the_kernels_and_ours() {
    let between = Between::open("").unwrap();
    between.dev.ip("route add blackhole 10.9.0.0/16\nroute add unreachable 10.8.0.0/16").unwrap();
    let end = Instant::now() + Duration::from_secs(5);
    while between.agent.dropped("blackhole").unwrap() == 0 {
        assert!(Instant::now() < end, "{}", between.agent.command(&["drops"]).unwrap());
        _ = probe::ping(&From::ns(&between.a), ip("10.9.0.1"), 8);
    }
    let error = probe::icmp_error(&between.a, true, 3, || {
        _ = probe::ping(&From::ns(&between.a), ip("10.8.0.1"), 8);
        Ok(())
    });
    assert_eq!(error.unwrap().from, ip("192.168.20.2"));
}

#[test]
fn it_can_be_left_to_the_kernel() {
    let between = Between::open("").unwrap();
    talk(&between);
    between.configure(&format!("{PORTS}forwarding: kernel\n")).unwrap();
    between.await_state("kernel").unwrap();
    let before = between.forwarding().1;
    talk(&between);
    assert_eq!(between.forwarding().1, before);
}

/// Others' policy rules choose among tables that aren't mirrored: what they concern is the kernel's, and is said.
#[test]
fn policy_rules_of_others_leave_a_family_to_the_kernel() {
    let between = Between::open("").unwrap();
    talk(&between);
    let from = From::ns(&between.a);
    let said =
        || between.agent.command(&["status"]).unwrap().contains("IPv4 by the kernel, since there are policy rules");
    let fast = |far: IpAddr| {
        let before = between.forwarding().1;
        probe::ping(&from, far, 8).unwrap();
        between.forwarding().1 > before
    };
    let [far4, far6] = Between::far();
    for (line, kernels) in
        [("rule add from 10.99.0.0/16 lookup 99", true), ("rule del from 10.99.0.0/16 lookup 99", false)]
    {
        between.dev.ip(line).unwrap();
        let end = Instant::now() + Duration::from_secs(10);
        while fast(far4) == kernels || said() != kernels {
            assert!(Instant::now() < end, "after {line}: {}", between.agent.command(&["status"]).unwrap());
        }
        assert!(fast(far6), "IPv6 has no such rules");
    }
}
