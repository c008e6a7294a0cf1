//! Properties of the whole path, over random devices and packets. What must hold of any packet
//! stands in `chaos::run`; this file makes the packets and compares whole conversations.

use lb_common::verdict::Verdict;
use proptest::prelude::*;
use stellwerk_tests::packet::{self, End, Names, Spec, checksum};
use stellwerk_tests::{chaos, fake::Fake};

const HOSTS: &[&str] = &[
    "client", "client2", "camera", "pod1", "pod2", "far", "node", "vip", "vip2", "cluster", "other", "unused",
    "inside", "out",
];
const PORTS: &[u16] = &[80, 53, 3868, 8080, 5353, 30080, 20000, 20001, 40000];
const FLAGS: &[&[&str]] =
    &[&["SYN"], &["SYN", "ACK"], &["ACK"], &["ACK", "PSH"], &["FIN", "ACK"], &["RST"], &["RST", "ACK"], &["FIN"], &[]];

fn names(v6: bool) -> Names {
    chaos::world(v6).names().with_macs([2, 0, 0, 0, 2, 1], [2, 0, 0, 0, 1, 2])
}

fn end() -> impl Strategy<Value = End> {
    (prop::sample::select(HOSTS), prop::sample::select(PORTS))
        .prop_map(|(host, port)| End { host: host.into(), port: Some(port) })
}

/// A transport packet with right checksums.
fn transport() -> impl Strategy<Value = Spec> {
    let kind = prop::sample::select(&["tcp", "udp", "sctp"][..]);
    (kind, end(), end(), prop::sample::select(FLAGS), 0usize..64, 0u8..4, any::<bool>()).prop_map(
        |(kind, src, dst, flags, len, ttl, tagged)| {
            let mut spec = Spec { kind: kind.into(), src: Some(src), dst: Some(dst), ..Spec::default() };
            if kind == "tcp" {
                flags.iter().for_each(|flag| spec.set(flag, ""));
            }
            spec.set("len", len);
            spec.set("ttl", if ttl == 0 { 1 } else { 64 });
            if tagged && len % 8 == 0 {
                spec.set("vlan", 7);
            }
            spec
        },
    )
}

/// The same, whole or as fragments, or an ICMP message about one.
fn packet() -> impl Strategy<Value = Spec> {
    let icmp = prop::sample::select(&["port-unreachable", "too-big", "time-exceeded", "echo", "echo-reply"][..]);
    (transport(), end(), end(), icmp, 0u8..8).prop_map(|(mut inner, src, dst, icmp, choice)| match choice {
        0 => {
            inner.attrs.remove("vlan");
            let mut outer = Spec { kind: "icmp".into(), src: Some(src), dst: inner.src.clone(), ..Spec::default() };
            outer.set(icmp, "");
            outer.inner = (!icmp.starts_with("echo")).then(|| Box::new(inner));
            outer
        }
        1 => {
            let mut echo = Spec { kind: "icmp".into(), src: Some(src), dst: Some(dst), ..Spec::default() };
            echo.set("echo", "");
            echo
        }
        2 => {
            inner.set("more", "");
            inner.set("rest", 40);
            inner.set("len", 56);
            inner
        }
        3 => {
            inner.src.as_mut().unwrap().port = None;
            inner.dst.as_mut().unwrap().port = None;
            inner.set("frag", 64);
            inner
        }
        _ => inner,
    })
}

fn bytes(spec: &Spec, names: &Names) -> Vec<u8> {
    packet::build(spec, names).unwrap_or_else(|e| panic!("{e}: {spec:?}"))
}

/// Source and destination of a packet that `packet::show` understands.
fn tuple(frame: &[u8], names: &Names) -> Option<(End, End)> {
    let spec = packet::show(frame, names);
    Some((spec.src?, spec.dst?))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// No bytes whatsoever make the engine panic or break its tables.
    #[test]
    fn any_bytes(device in 0..chaos::COUNT, packets in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..200)), 1..8)) {
        let fake = chaos::fake(device);
        for (place, packet) in packets {
            chaos::run(&fake, &chaos::arrival(place), &packet);
        }
    }

    /// The same for packets that are nearly right.
    #[test]
    fn bent_packets(
        device in 0..chaos::COUNT, v6: bool, place: u8,
        packets in prop::collection::vec((packet(), any::<prop::sample::Index>(), any::<u8>(), any::<prop::sample::Index>()), 1..8),
    ) {
        let (fake, names) = (chaos::fake(device), names(v6));
        for (spec, at, value, cut) in packets {
            let mut frame = bytes(&spec, &names);
            let at = at.index(frame.len());
            frame[at] = value;
            if value % 4 == 0 {
                frame.truncate(cut.index(frame.len()));
            }
            chaos::run(&fake, &chaos::arrival(place), &frame);
        }
    }

    /// Random conversations keep every flow's two directions agreed, and every checksum right.
    #[test]
    fn conversations(device in 0..chaos::COUNT, v6: bool, packets in prop::collection::vec((packet(), any::<u8>(), 0u32..9), 1..40)) {
        let (fake, names) = (chaos::fake(device), names(v6));
        for (spec, place, pause) in packets {
            let frame = bytes(&spec, &names);
            prop_assert_ne!(checksum::right(&frame), Some(false));
            chaos::run(&fake, &chaos::arrival(place & 0x7f), &frame);
            if pause > 5 {
                fake.age(fake.settings.ticks_per_second * pause * pause * pause);
            }
        }
    }

    /// What the engine sends to a backend comes back, answered, as the client expects it.
    #[test]
    fn there_and_back(device in 0usize..2, v6: bool, spec in transport(), place in 0u8..2, before in prop::collection::vec(transport(), 0..6)) {
        let (fake, names) = (chaos::fake(device), names(v6));
        for spec in before {
            chaos::run(&fake, &chaos::arrival(place), &bytes(&spec, &names));
        }
        let sent = bytes(&spec, &names);
        let chaos::Fate { verdict, bytes: out } = chaos::run(&fake, &chaos::arrival(place), &sent);
        let Some((src, dst)) = tuple(&out, &names).filter(|_| out != sent) else { return Ok(()) };
        // A RST is not answered (RFC 9293 §3.5.2), and leaves no entry.
        if matches!(verdict, Verdict::Transmit { .. } | Verdict::Continue) && !spec.attrs.contains_key("RST") {
            let mut answer = Spec { kind: spec.kind.clone(), src: Some(dst), dst: Some(src), ..Spec::default() };
            if spec.kind == "tcp" {
                answer.set("ACK", "");
            }
            let chaos::Fate { bytes: back, .. } = chaos::run(&fake, &chaos::arrival(7), &bytes(&answer, &names));
            prop_assert_eq!(tuple(&back, &names), Some((spec.dst.unwrap(), spec.src.unwrap())));
        }
    }

    /// One client's packets fare the same whether or not another's come between them.
    #[test]
    fn no_leaks(v6: bool, packets in prop::collection::vec((transport(), any::<bool>()), 1..30)) {
        let names = names(v6);
        let between = |spec: &Spec, host: &str| {
            let mut spec = spec.clone();
            spec.src.as_mut().unwrap().host = host.into();
            spec.dst.as_mut().unwrap().host = "vip".into();
            bytes(&spec, &names)
        };
        let (alone, shared) = (chaos::fake(0), chaos::fake(0));
        for (spec, others) in packets {
            let at = chaos::arrival(0);
            let frame = between(&spec, "client");
            if others {
                chaos::run(&shared, &at, &between(&spec, "client2"));
            }
            prop_assert_eq!(chaos::run(&alone, &at, &frame), chaos::run(&shared, &at, &frame));
        }
    }

    /// Another library than ours finds the rewritten packets whole.
    #[test]
    fn etherparse_agrees(v6: bool, spec in transport(), place in 0u8..6) {
        let (fake, names): (Fake, _) = (chaos::fake(0), names(v6));
        let chaos::Fate { verdict, bytes: out } = chaos::run(&fake, &chaos::arrival(place), &bytes(&spec, &names));
        if !matches!(verdict, Verdict::Drop(_)) {
            judge(&out);
        }
    }
}

/// Asserts by etherparse that a packet's checksums are right.
fn judge(frame: &[u8]) {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let payload_sum = |tcp: &etherparse::TcpSlice| match sliced.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination()),
        NetSlice::Ipv6(ip) => tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination()),
        NetSlice::Arp(_) => unreachable!("no ARP is built here"),
    };
    if let Some(NetSlice::Ipv4(ip)) = &sliced.net {
        assert_eq!(ip.header().header_checksum(), ip.header().to_header().calc_header_checksum());
    }
    match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => assert_eq!(tcp.checksum(), payload_sum(tcp).unwrap()),
        Some(TransportSlice::Udp(udp)) => {
            let header = udp.to_header();
            let sum = match sliced.net.as_ref().unwrap() {
                NetSlice::Ipv4(ip) => header.calc_checksum_ipv4(&ip.header().to_header(), udp.payload()),
                NetSlice::Ipv6(ip) => header.calc_checksum_ipv6(&ip.header().to_header(), udp.payload()),
                NetSlice::Arp(_) => unreachable!("no ARP is built here"),
            };
            assert_eq!(udp.checksum(), sum.unwrap());
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            let Some(NetSlice::Ipv6(ip)) = &sliced.net else { panic!("ICMPv6 in IPv4") };
            assert!(icmp.is_checksum_valid(ip.header().source(), ip.header().destination()));
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            assert_eq!(icmp.checksum(), icmp.icmp_type().calc_checksum(icmp.payload()));
        }
        _ => {}
    }
}
