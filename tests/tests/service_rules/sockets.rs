//! The same rules where a client on the node asks by its socket: what becomes of its calls, beside what becomes of its
//! packets.

use std::net::{IpAddr, Ipv4Addr};

use lb_common::path::socket::{self, Answer, Call};
use lb_common::wire::{Be16, Ip4, Ip6};

use super::*;

/// A socket, and what it calls with.
#[derive(Clone, Copy)]
struct Client {
    cookie: u64,
    proto: u8,
    /// The address that it is bound to.
    bound: Option<IpAddr>,
    sends: bool,
    now: u32,
}

/// What becomes of a call: where it goes instead; or `left`, or `refused`.
fn call(fake: &Fake, client: Client, to: (IpAddr, u16)) -> String {
    if to.0.is_ipv4() { call_of::<Ip4>(fake, client, to) } else { call_of::<Ip6>(fake, client, to) }
}

fn call_of<A: stellwerk_tests::fake::InFake + lb_common::path::parse::Ip>(
    fake: &Fake,
    client: Client,
    (dst, dport): (IpAddr, u16),
) -> String {
    let Client { cookie, proto, bound, sends, now } = client;
    let addr = |ip: IpAddr| A::from_ip(ip).unwrap();
    let src = bound.map(addr).unwrap_or_default();
    let mut call = Call { cookie, dst: addr(dst), dport: Be16::new(dport), proto, src, now };
    let answer = if sends { socket::send(fake, &mut call) } else { socket::connect(fake, &mut call) };
    match answer {
        Answer::Left => "left".into(),
        Answer::Refused => "refused".into(),
        Answer::Changed => {
            let (mut told, mut port) = (call.dst, call.dport);
            assert!(socket::name(fake, cookie, &mut told, &mut port), "{dst} is not remembered");
            assert_eq!((told.to_ip(), port.get()), (dst, dport), "the socket is told of another");
            let to = call.dst.to_ip();
            format!("{}:{}", to.to_string().replace(named("", to.is_ipv4()), "E"), call.dport.get())
        }
    }
}

/// What becomes of many sockets' calls, for `PROTOCOL [vip|cluster|external|node] PORT`.
fn called(fake: &Fake, world: &World, v4: bool, probe: &str, sends: bool) -> String {
    let words: Vec<&str> = probe.split(' ').collect();
    let to = (ip(named(words[1], v4)), words[2].parse().unwrap());
    let (now, proto) = (world.clock().tick, if words[0] == "TCP" { TCP } else { UDP });
    let all: BTreeSet<String> =
        (1..100).map(|cookie| call(fake, Client { cookie, proto, bound: None, sends, now }, to)).collect();
    all.into_iter().collect::<Vec<_>>().join(" ")
}

fn of_web_and_dns(more: &str) -> String {
    let ports = "ports: [{ name: web, port: 80, nodePort: 30080 }, { name: dns, port: 53, protocol: UDP }]";
    let spec = format!("type: LoadBalancer, clusterIP: CLUSTER, externalIPs: [EXTERNAL], {ports}{more}");
    service(&spec) + "status: { loadBalancer: { ingress: [{ ip: VIP }] } }\n"
}

fn endpoints(all: &str) -> String {
    on_nodes(all).replace("{ port: 8080 }", "{ name: web, port: 8080 }, { name: dns, port: 5353, protocol: UDP }")
}

/// The tables that objects make, and what is in a family.
fn scene(name: &str, objects: &str, v4: bool) -> (Fake, World) {
    let mut world = World::new(0);
    (tables(&format!("{name}-{v4}"), &of_family(objects, v4), &mut world), world)
}

/// What sockets get is what their packets would get; who asks in vain is refused, or left to be judged by packets.
#[test]
fn sockets_get_what_packets_get() {
    let external = ", externalTrafficPolicy: Local";
    let internal = ", internalTrafficPolicy: Local";
    let ranges = ", loadBalancerSourceRanges: ['ANYBODY']";
    let (both, one) = (["E5:8080 E6:8080", "E5:5353 E6:5353"], ["E5:8080", "E5:5353"]);
    let (left, none) = (["left"; 2], ["refused", "left"]);
    for (name, policy, on, vip, cluster) in [
        ("cluster", "", "E5@edge-1 E6@edge-2", both, both),
        ("external", external, "E5@edge-1 E6@edge-2", both, both),
        ("internal", internal, "E5@edge-1 E6@edge-2", both, one),
        ("internal-away", internal, "E6@edge-2", ["E6:8080", "E6:5353"], left),
        ("internal-none", internal, "", none, none),
        ("terminating", "", "E5@edge-1- E6@edge-2", ["E6:8080", "E6:5353"], ["E6:8080", "E6:5353"]),
        ("ranges", ranges, "E5@edge-1 E6@edge-2", left, both),
        ("none", "", "", none, none),
    ] {
        for v4 in [true, false] {
            let (fake, world) = scene(name, &(of_web_and_dns(policy) + &endpoints(on)), v4);
            let external = if name == "ranges" { both } else { vip };
            let probes = [("vip", vip), ("cluster", cluster), ("external", external), ("node", external)];
            for (to, [web, dns]) in probes {
                let port = if to == "node" { 30080 } else { 80 };
                let asked = [(format!("TCP {to} {port}"), web), (format!("UDP {to} 53"), dns)];
                for (probe, want) in asked.iter().filter(|(probe, _)| probe != "UDP node 53") {
                    let about = format!("{name}, IPv4 {v4}: {probe}\n{fake}");
                    assert_eq!(called(&fake.clone(), &world, v4, probe, false), *want, "connect, {about}");
                    if probe.starts_with("UDP") {
                        assert_eq!(called(&fake.clone(), &world, v4, probe, true), *want, "send, {about}");
                    }
                    if want.starts_with('E') {
                        assert_eq!(
                            went(&fake.clone(), &world, v4, &format!("node {probe}")),
                            *want,
                            "packets, {about}"
                        );
                    }
                }
            }
            assert_eq!(called(&fake, &world, v4, "TCP vip 81", false), "left", "no service's port");
            assert_eq!(called(&fake, &world, v4, "UDP vip 80", false), "left", "another protocol's port");
        }
    }
}

/// Sockets that aren't bound are one client; one that is bound is its address' client, as its packets are.
#[test]
fn sockets_keep_to_their_backend_by_affinity() {
    let objects = of_web_and_dns(", sessionAffinity: ClientIP") + &endpoints("E5@edge-1 E6@edge-2 E7@edge-1");
    for v4 in [true, false] {
        let (fake, world) = scene("affinity", &objects, v4);
        let alike = called(&fake, &world, v4, "TCP vip 80", false);
        assert!(["E5:8080", "E6:8080", "E7:8080"].contains(&alike.as_str()), "{alike}");
        let (now, to) = (world.clock().tick, (ip(named("vip", v4)), 80));
        let by_address: BTreeSet<String> = (1..100u8)
            .map(|host| {
                let bound = ip(&format!("{}{host}", if v4 { "192.168.20." } else { "fd20::" }));
                let (at, _) = sender("node", v4, now);
                let packet = Tuple { proto: TCP, src: bound, sport: 2_000, dst: to.0, dport: to.1 };
                let by_packet = fate(&fake, &at, &packet, TCP_SYN);
                let client = Client { cookie: 7, proto: TCP, bound: Some(bound), sends: false, now };
                assert_eq!(call(&fake, client, to), by_packet.trim_end_matches('*'), "{bound}");
                by_packet
            })
            .collect();
        assert_eq!(by_address.len(), 3, "{by_address:?}");
    }
}

/// A socket's datagrams stay with the endpoint that the first went to, while that is there; then another gets them.
#[test]
fn datagrams_stay_with_their_endpoint_while_it_is_there() {
    for v4 in [true, false] {
        let (mut world, mut ids) = (World::new(0), Ids::default());
        let mut plan = |on: &str| {
            contents("datagrams", &of_family(&(of_web_and_dns("") + &endpoints(on)), v4), &mut world, &mut ids)
        };
        let mut before = plan("E5@edge-1 E6@edge-2");
        let mut fake = Fake::holding(&before);
        let to = (ip(named("vip", v4)), 53);
        let ask = |fake: &Fake, cookie| {
            let client = Client { cookie, proto: UDP, bound: None, sends: true, now: 1_000 };
            let first = call(fake, client, to);
            assert_eq!(call(fake, client, to), first);
            first
        };
        let on_five = (1..100).find(|cookie| ask(&fake, *cookie) == "E5:5353").unwrap();
        for (on, old, new) in [
            ("E5@edge-1- E6@edge-2", "E5:5353", "E6:5353"),
            ("E6@edge-2 E7@edge-1", "", ""),
            ("E7@edge-1", "E7:5353", "E7:5353"),
            ("", "left", "left"),
        ] {
            let after = plan(on);
            diff(&before, &after).iter().for_each(|op| fake.apply(op).unwrap());
            before = after;
            let goes = ask(&fake, on_five);
            if old.is_empty() {
                assert!(["E6:5353", "E7:5353"].contains(&goes.as_str()), "{on}: {goes}");
            } else {
                assert_eq!((goes.as_str(), ask(&fake, 1_000 + on.len() as u64).as_str()), (old, new), "{on}");
            }
        }
    }
}

/// Without room to remember what a socket shall be told, its packets are translated instead.
#[test]
fn sockets_are_left_to_packets_for_want_of_room() {
    let (mut fake, world) = scene("room", &(of_web_and_dns("") + &endpoints("E5@edge-1")), true);
    fake.state4.get_mut().sockets = stellwerk_tests::fake::lru::Lru::new(0);
    assert_eq!(called(&fake, &world, true, "TCP vip 80", false), "left");
    let noted = |fake: &Fake, label| fake.tally.borrow().notes.get(label).copied();
    assert_eq!((noted(&fake, "socket_table_full"), noted(&fake, "socket_translated")), (Some(99), None));
    let (fake, world) = scene("room", &(of_web_and_dns("") + &endpoints("")), true);
    assert_eq!(called(&fake, &world, true, "UDP vip 53", true), "left");
    assert_eq!(noted(&fake, "socket_left"), Some(99));
    let (fake, _) = scene("room", &(of_web_and_dns("") + &endpoints("E5@edge-1")), true);
    let client = Client { cookie: 1, proto: UDP, bound: None, sends: true, now: 0 };
    for addr in ["vip", "cluster", "cluster", "vip"] {
        assert_eq!(call(&fake, client, (ip(named(addr, true)), 53)), "E5:5353");
    }
    // Four calls, of which two were the first to their address.
    assert_eq!(noted(&fake, "socket_translated"), Some(2));
    let (mut none, mut port) = (Ip4::from(Ipv4Addr::LOCALHOST), Be16::new(53));
    assert!(!socket::name(&fake, 1, &mut none, &mut port), "nobody's address");
}
