//! Who is told nothing, and what is never told.

use hickory_proto::op::{Edns, ResponseCode};
use hickory_proto::rr::DNSClass;

use super::*;

const MANY: &str = "apiVersion: v1\nkind: Service\nmetadata: { name: many }\nspec: { clusterIP: None }\n---\n";

/// A headless service of so many endpoints.
fn many(count: u8) -> World {
    let endpoints: Vec<_> = (0..count).map(|i| format!("{{ addresses: [172.27.9.{i}] }}")).collect();
    let slice = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{ name: m, labels: {{ kubernetes.io/service-name: many }} }}\n\
         addressType: IPv4\nendpoints: [{}]\n",
        endpoints.join(", ")
    );
    World::new("allowTransfer: 172.27.1.11", &(MANY.to_owned() + &slice))
}

fn told(world: &World, message: &Message, client: &Client) -> Message {
    match world.handler.begin(&message.to_vec().unwrap(), client) {
        Outcome::Reply(bytes) => Message::from_vec(&bytes).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn outsiders_are_refused() {
    let world = many(1);
    let from = |addr: &str| Client { addr: addr.parse().ok(), stream: false };
    let code = |addr: &str| told(&world, &message("many.default.svc.cluster.local A"), &from(addr)).response_code;
    for inside in ["172.27.9.9", "10.20.0.7", "127.0.0.1", "fd00:27::9"] {
        assert_eq!(code(inside), ResponseCode::NoError, "{inside}");
    }
    for outside in ["203.0.113.9", "192.168.20.9", "2001:db8::1"] {
        assert_eq!(code(outside), ResponseCode::Refused, "{outside}");
    }
    // The node itself asks from any of its addresses.
    let node = Arc::new(BTreeSet::from(["203.0.113.9".parse().unwrap()]));
    world.snapshot.send_modify(|s| *s = s.as_ref().map(|s| Arc::new(Snapshot { node, ..(**s).clone() })));
    assert_eq!(code("203.0.113.9"), ResponseCode::NoError);
}

#[test]
fn clients_beyond_their_rate_hear_nothing() {
    let world = World::new("rateLimit: 5", "");
    let asked = query("cluster.local SOA");
    let answered = (0..20).filter(|_| matches!(world.handler.begin(&asked, &pod(false)), Outcome::Reply(_))).count();
    assert_eq!(answered, 5);
}

#[test]
fn any_is_answered_with_little() {
    let want = "NOERROR\nmany.default.svc.cluster.local. 3600 HINFO RFC8482 ";
    assert_eq!(many(200).ask("many.default.svc.cluster.local ANY"), want);
    assert_eq!(many(1).ask("example.com ANY"), "NOERROR\nexample.com. 3600 HINFO RFC8482 ");
}

#[test]
fn zone_is_transferred_to_whom_it_may_be() {
    let world = many(250);
    let axfr = query("cluster.local AXFR");
    let refused = |client: &Client, bytes: &[u8]| match world.handler.begin(bytes, client) {
        Outcome::Reply(bytes) => show(&bytes),
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&pod(false), &axfr), "REFUSED", "over UDP");
    let other = Client { addr: "172.27.1.12".parse().ok(), stream: true };
    assert_eq!(refused(&other, &axfr), "REFUSED");
    assert_eq!(refused(&pod(true), &query("example.com AXFR")), "NOTAUTH");
    let Outcome::Replies(all) = world.handler.begin(&axfr, &pod(true)) else { panic!("no transfer") };
    let records: Vec<Record> = all.iter().flat_map(|bytes| Message::from_vec(bytes).unwrap().answers).collect();
    let count = |kind: RecordType| records.iter().filter(|r| r.record_type() == kind).count();
    // Each endpoint's own name and the service's, and this server's.
    assert_eq!((count(RecordType::A), count(RecordType::AAAA), count(RecordType::SOA)), (501, 1, 2));
    assert_eq!((records.first(), records.len()), (records.last(), 2 + 1 + 1 + 502));
}

#[test]
fn what_is_too_large_for_udp_is_cut_short() {
    let (world, asked) = (many(200), message("many.default.svc.cluster.local A"));
    let with_room = |room: u16| {
        let mut message = asked.clone();
        let mut edns = Edns::new();
        edns.set_max_payload(room);
        message.set_edns(edns);
        message
    };
    let whole = told(&world, &asked, &pod(true));
    assert_eq!((whole.truncation, whole.answers.len()), (false, 200));
    for (message, room) in
        [(asked.clone(), 512), (with_room(100), 512), (with_room(1_000), 1_000), (with_room(9_000), 1_232)]
    {
        let answer = told(&world, &message, &pod(false));
        let len = answer.to_vec().unwrap().len();
        assert!(answer.truncation && len <= room && len > room - 40, "{len} of {room}");
        assert_eq!(answer.edns.is_some(), message.edns.is_some());
    }
}

#[test]
fn extensions_are_answered_with_extensions() {
    let world = many(1);
    let mut message = message("cluster.local SOA");
    let mut edns = Edns::new();
    edns.set_max_payload(4_096).set_dnssec_ok(true);
    message.set_edns(edns.clone());
    let answer = told(&world, &message, &pod(false)).edns.expect("extensions");
    assert_eq!((answer.version(), answer.max_payload(), answer.flags().dnssec_ok), (0, 1_232, true));
    edns.set_version(1);
    message.set_edns(edns);
    let answer = told(&world, &message, &pod(false));
    assert_eq!((u16::from(answer.response_code), answer.answers.len()), (16, 0));
}

#[test]
fn other_classes_and_kinds_of_questions_are_refused() {
    let world = many(1);
    for (class, kind, want) in [
        (DNSClass::CH, RecordType::TXT, ResponseCode::Refused),
        (DNSClass::HS, RecordType::A, ResponseCode::Refused),
        (DNSClass::ANY, RecordType::A, ResponseCode::Refused),
        (DNSClass::IN, RecordType::OPT, ResponseCode::NotImp),
        (DNSClass::IN, RecordType::TSIG, ResponseCode::NotImp),
        (DNSClass::IN, RecordType::Unknown(253), ResponseCode::NotImp),
        (DNSClass::IN, RecordType::IXFR, ResponseCode::Refused),
    ] {
        let mut message = message("version.bind A");
        message.queries[0].set_query_class(class).set_query_type(kind);
        assert_eq!(told(&world, &message, &pod(false)).response_code, want, "{class} {kind}");
    }
}

#[test]
fn counts_are_told_over_the_agents_own_socket_alone() {
    let world = many(1);
    world.ask("many.default.svc.cluster.local A");
    let mut message = message("counts.stellwerk TXT");
    message.queries[0].set_query_class(DNSClass::CH);
    let answer = told(&world, &message, &Client { addr: None, stream: true });
    let texts: Vec<String> = answer.answers.iter().map(|r| r.data.to_string()).collect();
    for want in ["typeA1", "codeNOERROR1", "zonecluster1", "transportUDP1"] {
        assert!(texts.iter().any(|text| text == want), "{want}: {texts:#?}");
    }
    assert_eq!(told(&world, &message, &pod(true)).response_code, ResponseCode::Refused);
}
