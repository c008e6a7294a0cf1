//! What must hold of translation between inside and outside after any sequence of packets: no two live
//! connections share a tuple outside, an answer finds back to who asked, and the tables of ports, of hosts
//! and of connections agree.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::drop::Drop;
use lb_common::port_table::{HOLDERS, PLANE, class};
use lb_common::table::{Flow, FlowKey};
use lb_common::tcp;
use lb_common::verdict::{Arrival, Hook, Verdict};
use lb_common::wire::{Ip4, Ip6};
use lb_user::plan::Contents;
use proptest::prelude::*;
use stellwerk_tests::case::{What, parse};
use stellwerk_tests::fake::ports::{Mapped, PortMemory};
use stellwerk_tests::fake::{Fake, InFake};
use stellwerk_tests::packet::{self, End, Names, Spec};
use stellwerk_tests::runner::{START, host};

const DEVICE: &str = "nat 172.27.0.0/16 fd00:27::/64
    uplink port2
    set snat_first=20000 snat_last=20007 nat_quota=6
    service tcp out:20003 = pod3:8080
    advance 0s";
const PODS: u32 = 104;
const PORT2: u32 = 102;

/// One step of a sequence.
#[derive(Clone, Debug)]
enum Event {
    /// A host inside, or this node, sends.
    Out {
        host: usize,
        own: bool,
        port: u16,
        remote: usize,
        rport: u16,
        kind: usize,
        flags: usize,
    },
    /// Somebody outside sends to a port of ours.
    In {
        remote: usize,
        rport: u16,
        port: u16,
        kind: usize,
        flags: usize,
    },
    /// Somebody outside answers the last packet that left.
    Answer {
        flags: usize,
    },
    Wait {
        seconds: u32,
    },
}

/// A host and a port.
type Place = (String, u16);

const KINDS: &[&str] = &["tcp", "udp", "icmp", "sctp"];
const REMOTES: &[&str] = &["other", "client", "client2"];
const FLAGS: &[&[&str]] = &[&["SYN"], &["ACK"], &["SYN", "ACK"], &["FIN", "ACK"], &["RST", "ACK"]];

fn event() -> impl Strategy<Value = Event> {
    let port = || prop::sample::select(&[20_000u16, 20_001, 20_003, 20_004, 40_000, 40_001][..]);
    let (kind, flags) = (0..KINDS.len(), 0..FLAGS.len());
    prop_oneof![
        6 => (0usize..3, prop::bool::weighted(0.1), port(), 0usize..3, 1u16..4, kind.clone(), flags.clone())
            .prop_map(|(host, own, port, remote, rport, kind, flags)| Event::Out { host, own, port, remote, rport, kind, flags }),
        2 => (0usize..3, 1u16..4, 20_000u16..20_008, kind, flags.clone())
            .prop_map(|(remote, rport, port, kind, flags)| Event::In { remote, rport, port, kind, flags }),
        4 => flags.prop_map(|flags| Event::Answer { flags }),
        1 => prop::sample::select(&[1u32, 12, 40, 400, 8_000][..]).prop_map(|seconds| Event::Wait { seconds }),
    ]
}

fn device(v6: bool) -> (Fake, Names) {
    let case = parse::case("device", DEVICE, v6).unwrap().unwrap();
    let names = case.world.names().with_macs([2, 0, 0, 0, 2, 1], [2, 0, 0, 0, 1, 2]);
    let tables = case.steps.into_iter().find_map(|step| match step.what {
        What::Tables(contents) => Some(contents),
        _ => None,
    });
    let contents: Contents = *tables.unwrap();
    let mut fake = Fake::holding(&contents);
    (fake.ports4, fake.ports6) = (PortMemory::new(1), PortMemory::new(1));
    (fake, names)
}

fn spec(kind: usize, src: (&str, u16), dst: (&str, u16), flags: usize, answer: bool) -> Spec {
    let kind = KINDS[kind];
    let ported = kind != "icmp";
    let end = |(host, port): (&str, u16)| End { host: host.into(), port: ported.then_some(port) };
    let mut spec = Spec { kind: kind.into(), src: Some(end(src)), dst: Some(end(dst)), ..Spec::default() };
    match kind {
        "tcp" => FLAGS[flags].iter().for_each(|flag| spec.set(flag, "")),
        "icmp" if answer => {
            spec.set("echo-reply", "");
            spec.set("echo-id", dst.1);
        }
        "icmp" => {
            spec.set("echo", "");
            spec.set("echo-id", src.1);
        }
        _ => spec.set("len", 8),
    }
    spec
}

/// Runs a packet; what became of it, and its ends as numbers.
fn run(fake: &Fake, names: &Names, hook: Hook, ifindex: u32, own: bool, spec: &Spec) -> (Verdict, Vec<u8>) {
    let bytes = packet::build(spec, names).unwrap();
    let at = Arrival { hook, ifindex, now: START, gso_size: 0, tagged: 0, own: own.into(), tunneled: 0 };
    host::run(fake, &at, bytes, host::Refuses::Nothing)
}

/// Source and destination of a packet that left, as `packet::show` names them, an id for a port.
fn ends(bytes: &[u8], names: &Names) -> (Place, Place) {
    let spec = packet::show(bytes, names);
    let id = spec.number("echo-id", 1).unwrap() as u16;
    let end = |end: &Option<End>| {
        let end = end.clone().unwrap();
        (end.host, end.port.unwrap_or(id))
    };
    (end(&spec.src), end(&spec.dst))
}

/// What must hold of the tables at any time.
fn check<A: InFake>(fake: &Fake) {
    let flows: Vec<(FlowKey<A>, Flow<A>)> = A::flows(fake).all();
    let live = |key: &FlowKey<A>, flow: &Flow<A>| {
        let over = fake.settings.is_over(key.proto as u8, flow.state, flow.last, START);
        flow.is(Flow::<A>::OUT) && flow.state != tcp::CLOSED && !over
    };
    let out = flows.iter().filter(|(key, flow)| live(key, flow));
    let mut outside = BTreeMap::new();
    for (key, flow) in out {
        let tuple = (flow.src, flow.sport, flow.dst, flow.dport, key.proto);
        let inside = (key.src, key.sport);
        let other = outside.insert(tuple, inside);
        assert!(other.is_none_or(|other| other == inside), "{tuple:?} is of {other:?} and of {inside:?}");
    }
    let ports = A::ports(fake);
    let mappings = ports.all();
    assert_eq!(mappings.len(), ports.taken().len(), "every port that is taken has an owner");
    let endpoints: BTreeSet<_> = mappings.iter().map(|m| (m.proto, m.plane, m.inside)).collect();
    assert_eq!(endpoints.len(), mappings.len(), "every endpoint has one port: {mappings:?}");
    let mut count = BTreeMap::new();
    mappings.iter().for_each(|m| *count.entry(m.inside.0).or_insert(0) += 1);
    for (host, ports, _) in ports.hosts() {
        assert_eq!(count.remove(&host).unwrap_or(0), ports, "what {host:?} is said to have");
    }
    assert!(count.is_empty(), "hosts that have ports, but no count: {count:?}");
    // Whoever has a live connection outside by a port of its own has that port.
    for (key, flow) in flows.iter().filter(|(key, flow)| live(key, flow) && tcp::protected(flow.state)) {
        if class(key.proto).is_some() {
            let inside = (key.proto, key.src, key.sport.get());
            let own = |m: &&Mapped<A>| (m.proto.into(), m.inside.0, m.inside.1) == inside;
            let owner = mappings.iter().find(own);
            assert_eq!(owner.map(|m| m.outside), Some(flow.sport.get()), "{key:?} {flow:?}");
        }
    }
}

fn sequence<A: InFake>(v6: bool, events: &[Event]) {
    let (fake, names) = device(v6);
    // Its kind, source and destination as it left, and who sent it.
    let mut last: Option<(usize, Place, Place, Place)> = None;
    for event in events {
        match event {
            Event::Out { host, own, port, remote, rport, kind, flags } => {
                let from = if *own { "out" } else { ["pod1", "pod2", "quiet"][*host] };
                let rport = if *kind == 2 { *port } else { *rport };
                let sent = spec(*kind, (from, *port), (REMOTES[*remote], rport), *flags, false);
                let (hook, link) = if *own { (Hook::Egress, PORT2) } else { (Hook::Ingress, PODS) };
                let (verdict, bytes) = run(&fake, &names, hook, link, *own, &sent);
                let leaves = matches!(verdict, Verdict::Transmit { .. } | Verdict::Continue);
                if let (false, Verdict::Pass) = (*own, verdict) {
                    panic!("{sent:?} was not translated");
                }
                if leaves {
                    let (src, dst) = ends(&bytes, &names);
                    assert_eq!(src.0, "out", "{sent:?} leaves as {src:?}");
                    assert_eq!(dst.0, REMOTES[*remote]);
                    // Behind a RST there is no connection.
                    let ended = *kind == 0 && FLAGS[*flags].contains(&"RST");
                    last = (!ended).then(|| (*kind, src, dst, (from.to_owned(), *port)));
                }
            }
            Event::In { remote, rport, port, kind, flags } => {
                let sent = spec(*kind, (REMOTES[*remote], *rport), ("out", *port), *flags, true);
                let _ = run(&fake, &names, Hook::Xdp, PORT2, false, &sent);
                // It may end what was to be answered.
                last = last.filter(|_| !FLAGS[*flags].contains(&"RST"));
            }
            Event::Answer { flags } => {
                let Some((kind, src, dst, from)) = last.take() else { continue };
                let sent = spec(kind, (&dst.0, dst.1), (&src.0, src.1), *flags, true);
                let (verdict, bytes) = run(&fake, &names, Hook::Xdp, PORT2, false, &sent);
                assert!(matches!(verdict, Verdict::Transmit { .. } | Verdict::Continue), "{sent:?}: {verdict:?}");
                let (_, back) = ends(&bytes, &names);
                assert_eq!(back, from, "the answer to what was translated");
            }
            Event::Wait { seconds } => {
                fake.age(seconds * 100);
                last = None;
            }
        }
        check::<A>(&fake);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(600) })]

    #[test]
    fn no_two_share_a_tuple_and_answers_find_back(events in prop::collection::vec(event(), 1..80)) {
        sequence::<Ip4>(false, &events);
        sequence::<Ip6>(true, &events);
    }
}

#[test]
fn hosts_without_room_to_be_counted_get_no_port() {
    let (fake, names) = device(false);
    let mut full = 0;
    // More hosts than there are places, each with one port: most of them are exhausted, some uncounted.
    for host in 0..2 * HOLDERS {
        let mut from = spec(1, ("pod1", 40_000), ("other", 1), 0, false);
        from.src = Some(End { host: format!("172.27.{}.{}", host >> 8 & 0x7f, host & 0xff), port: Some(host as u16) });
        let (verdict, _) = run(&fake, &names, Hook::Ingress, PODS, false, &from);
        full += usize::from(verdict == Verdict::Drop(Drop::NatHostsFull));
    }
    assert!(full > 0, "nobody was refused");
    let counted = fake.ports4.hosts();
    assert!(counted.len() as u32 <= HOLDERS);
    assert_eq!(counted.iter().map(|(_, ports, _)| ports).sum::<u32>(), fake.ports4.taken().len() as u32);
    assert_eq!(fake.ports4.taken().iter().filter(|&&index| index < PLANE).count(), 8, "the whole range is used");
}
