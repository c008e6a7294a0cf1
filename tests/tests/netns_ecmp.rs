//! Several ways to one destination: how flows are spread over them, that a flow keeps its own, and answers
//! that come back another way.
//!
//! ```text
//!                                       ┌── Port4 192.168.31.2 ── 192.168.31.1 router 1 ── 10.1.0.1
//!   host a 192.168.20.1 ── Port3 device ┼── Port5 192.168.32.2 ── 192.168.32.1 router 2 ── 10.1.0.1
//!                                       └── Port6 192.168.33.2 ── 192.168.33.1 router 3 ── 10.1.0.1
//! ```
//! Routers 1 and 2 are also neighbours: 192.168.40.1 and .2. Every address has an IPv6 twin: fd00:20::1 and so
//! on; 10.1.0.1's is fd00:1::1. Who answers there says its number, so that each answer tells a flow's way.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use stellwerk_tests::load::{Task, echo};
use stellwerk_tests::netns::between::{ECHO, PORTS};
use stellwerk_tests::netns::probe::{self, Datagram, From};
use stellwerk_tests::netns::{Between, Ns};

/// Flows, each a socket.
const FLOWS: usize = 600;
const PATIENCE: Duration = Duration::from_secs(20);
const MORE: &str = "  Port5: { interface: eth3 }\n  Port6: { interface: eth4 }\n";

struct Ways {
    between: Between,
    routers: [Ns; 3],
    _servers: [Task; 3],
}

/// 10.1.0.1 and its twin, or another host's there.
fn far(host: u8) -> [SocketAddr; 2] {
    [IpAddr::from([10, 1, 0, host]), [0xfd00, 1, 0, 0, 0, 0, 0, host.into()].into()].map(|ip| SocketAddr::new(ip, ECHO))
}

impl Ways {
    fn open() -> Ways {
        let between = Between::open("").unwrap();
        let (dev, lab) = (&between.dev, &between.lab);
        let second = ["2", "3"].map(|name| lab.ns(name).unwrap());
        let routers = [between.b.clone(), second[0].clone(), second[1].clone()];
        for (number, router) in (1..).zip(&routers) {
            let (link, port) = (format!("eth{}", number + 1), format!("up{number}"));
            if number > 1 {
                lab.wire((dev, &link), (router, &port)).unwrap();
            } else {
                router.ip(&format!("link set eth0 down\nlink set eth0 name {port}\nlink set {port} up")).unwrap();
            }
            dev.ip(&format!(
                "addr add 192.168.3{number}.2/24 dev {link}\naddr add fd00:3{number}::2/64 dev {link} nodad"
            ))
            .unwrap();
            router
                .ip(&format!(
                    "addr add 10.1.0.1/32 dev lo\naddr add fd00:1::1/128 dev lo nodad\n\
                     addr add 192.168.3{number}.1/24 dev {port}\naddr add fd00:3{number}::1/64 dev {port} nodad\n\
                     route replace default via 192.168.3{number}.2\nroute replace default via fd00:3{number}::2"
                ))
                .unwrap();
            router.forward().unwrap();
        }
        lab.wire((&routers[0], "side"), (&routers[1], "side")).unwrap();
        for (number, router) in (1..).zip(&routers[..2]) {
            router
                .ip(&format!("addr add 192.168.40.{number}/24 dev side\naddr add fd00:40::{number}/64 dev side nodad"))
                .unwrap();
        }
        between.configure(&format!("{PORTS}{MORE}")).unwrap();
        let servers = [0, 1, 2].map(|i| echo::serve(&routers[i], &format!("{}", i + 1), &far(1)).unwrap());
        Ways { between, routers, _servers: servers }
    }

    /// The route to the far network in both families: routers and their weights.
    fn route(&self, ways: &[(u8, u8)]) {
        for (to, net) in [("10.1.0.0/16", "192.168.3"), ("fd00:1::/64", "fd00:3")] {
            let end = if to.contains(':') { "::1" } else { ".1" };
            let hops = ways.iter().map(|(number, weight)| {
                format!(" nexthop via {net}{number}{end} dev eth{} weight {weight}", number + 1)
            });
            self.between.dev.ip(&format!("route replace {to}{}", hops.collect::<String>())).unwrap();
        }
    }

    /// So many flows.
    fn flows(&self, to: SocketAddr) -> Vec<UdpSocket> {
        let from = From::ns(&self.between.a);
        (0..FLOWS).map(|_| probe::udp_socket(&from, to, Datagram::default()).unwrap()).collect()
    }

    /// Sends a packet of each flow: which way it took.
    fn ask(&self, flows: &[UdpSocket]) -> Vec<u8> {
        let one = |socket: &UdpSocket| {
            let mut buffer = [0; 64];
            let mut answer = || socket.send(b"who?").and_then(|_| socket.recv(&mut buffer));
            // What is on its way to a router whose link has just gone is lost; the flow's next packet isn't.
            let n = answer().or_else(|_| answer()).unwrap_or_else(|e| panic!("{socket:?}: {e}"));
            assert_eq!(&buffer[1..n], b" who?");
            buffer[0] - b'0'
        };
        flows.iter().map(one).collect()
    }

    /// Waits until the flows take these ways and no other, all ahead of the kernel; twice, and each the same both
    /// times.
    fn await_ways(&self, flows: &[UdpSocket], ways: &[u8]) -> Vec<u8> {
        let end = Instant::now() + PATIENCE;
        let mut last = Vec::new();
        loop {
            let before = self.between.forwarding().1;
            let took = self.ask(flows);
            let fast = self.between.forwarding().1 - before;
            let mut seen = took.clone();
            seen.sort_unstable();
            seen.dedup();
            let right = seen == ways && fast >= 2 * FLOWS as u64;
            if right && took == last {
                return took;
            }
            assert!(Instant::now() < end, "{seen:?} for {ways:?}, {fast} fast\n{}", self.between.agent.log_tail());
            last = if right { took } else { Vec::new() };
        }
    }
}

/// The part of the flows that take a way.
fn share(took: &[u8], way: u8) -> f64 {
    took.iter().filter(|w| **w == way).count() as f64 / took.len() as f64
}

fn assert_share(took: &[u8], way: u8, want: f64) {
    let share = share(took, way);
    println!("router {way}: {share:.3} of {want:.3}");
    // A place more or less of 256, and what chance does with 600 flows: three times its deviation is 0.061.
    assert!((share - want).abs() < 0.075, "router {way} has {share:.3} of the flows, not {want:.3}");
}

#[test]
fn flows_are_spread_by_weight() {
    let ways = Ways::open();
    for to in far(1) {
        let flows = ways.flows(to);
        for (hops, want) in [(&[(1, 1), (2, 1)][..], &[0.5, 0.5][..]), (&[(1, 3), (2, 1)], &[0.75, 0.25])] {
            ways.route(hops);
            let end = Instant::now() + PATIENCE;
            // The first of the two may be that of the route before.
            while (share(&ways.await_ways(&flows, &[1, 2]), 1) - want[0]).abs() > 0.125 {
                assert!(Instant::now() < end, "the weights {hops:?} are never seen");
            }
            let took = ways.await_ways(&flows, &[1, 2]);
            (1..).zip(want).for_each(|(way, want)| assert_share(&took, way, *want));
        }
    }
}

#[test]
fn a_flow_keeps_its_way_while_others_come_and_go() {
    let ways = Ways::open();
    for to in far(1) {
        let flows = ways.flows(to);
        ways.route(&[(1, 1), (2, 1)]);
        let two = ways.await_ways(&flows, &[1, 2]);
        for _ in 0..3 {
            assert_eq!(ways.ask(&flows), two, "a flow changed its way, and nothing else did");
        }
        ways.route(&[(1, 1), (2, 1), (3, 1)]);
        let three = ways.await_ways(&flows, &[1, 2, 3]);
        (1..=3).for_each(|way| assert_share(&three, way, 1.0 / 3.0));
        let strayed = two.iter().zip(&three).filter(|(was, is)| was != is && **is != 3).count();
        // The link goes, then the route: only what was there moves.
        ways.routers[2].ip("link set up3 down").unwrap();
        let left = ways.await_ways(&flows, &[1, 2]);
        let moved = three.iter().zip(&left).filter(|(was, is)| was != is && **was != 3).count();
        println!("{to}: {strayed} strayed when one came, {moved} when it went, of {FLOWS}");
        assert!(strayed <= FLOWS / 20 && moved <= FLOWS / 20, "{strayed} and {moved} of {FLOWS}");
        ways.route(&[(1, 1), (2, 1)]);
        assert_eq!(ways.await_ways(&flows, &[1, 2]), left);
        ways.routers[2].ip("link set up3 up").unwrap();
        let back = ["route replace default via 192.168.33.2", "route replace default via fd00:33::2"].join("\n");
        // Its IPv6 addresses have gone with the link.
        ways.routers[2].ip(&format!("addr replace fd00:33::1/64 dev up3 nodad\n{back}")).unwrap();
    }
}

/// The better metric leads by router 1, whose answers go by router 2.
#[test]
fn answers_may_come_another_way_unless_forbidden() {
    let ways = Ways::open();
    let (dev, from) = (&ways.between.dev, From::ns(&ways.between.a));
    for (to, one, two) in [("10.1.0.0/16", "192.168.31.1", "192.168.32.1"), ("fd00:1::/64", "fd00:31::1", "fd00:32::1")]
    {
        dev.ip(&format!("route add {to} via {one} metric 10\nroute add {to} via {two} metric 20")).unwrap();
    }
    ways.routers[0].ip("route add 192.168.20.0/24 via 192.168.40.2\nroute add fd00:20::/64 via fd00:40::2").unwrap();
    // Router 2 would not take what comes from an address that it has itself.
    let only = far(9);
    ways.routers[0].ip("addr add 10.1.0.9/32 dev lo\naddr add fd00:1::9/128 dev lo nodad").unwrap();
    let _server = echo::serve(&ways.routers[0], "1", &only).unwrap();
    let received = || {
        let text = dev.ip_text("-j -s link show dev eth3").unwrap();
        let all: serde_json::Value = serde_json::from_str(&text).unwrap();
        all[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
    };
    for to in only {
        // The first packets resolve the neighbours.
        probe::tcp(&from, to, 1_000).unwrap();
        let (fast, back) = (ways.between.forwarding().1, received());
        assert_eq!(probe::tcp(&from, to, 300_000).unwrap().name, "1");
        let (fast, back) = (ways.between.forwarding().1 - fast, received() - back);
        assert!(fast > 20 && back > 10, "{to}: {fast} packets ahead of the kernel, {back} by router 2");
    }
    let answered = || probe::udp(&from, only[0], Datagram::default()).is_ok();
    let await_answer = |want: bool, mode: &str| {
        let end = Instant::now() + PATIENCE;
        while answered() != want {
            assert!(
                Instant::now() < end,
                "rp_filter {mode}: an answer should have come: {want}\n{}",
                ways.between.agent.log_tail()
            );
        }
    };
    for (mode, passes) in [("1", false), ("2", true), ("1", false), ("0", true)] {
        dev.sysctls(&[("net/ipv4/conf/eth3/rp_filter", mode)]).unwrap();
        await_answer(passes, mode);
    }
}
