//! Any bytes: an answer that is well-formed, or silence.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::dns::wire::HEADER;

const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: { name: web, namespace: shop }\n\
                   spec: { clusterIP: 172.28.0.20, ports: [{ name: http, port: 80 }] }\n";

/// Hands bytes over, and checks what comes back.
fn feed(world: &World, bytes: &[u8], stream: bool) -> Option<Message> {
    let replies = match world.handler.begin(bytes, &pod(stream)) {
        Outcome::Silence | Outcome::Later(_) => return None,
        Outcome::Reply(reply) => vec![reply],
        Outcome::Replies(all) => all,
    };
    let mut last = None;
    for reply in replies {
        let room = if stream { usize::from(u16::MAX) } else { 1_232 };
        assert!((HEADER..=room).contains(&reply.len()), "{} bytes", reply.len());
        assert_eq!((&reply[..2], reply[2] & 0x80), (&bytes[..2], 0x80), "it isn't an answer to this");
        let message = Message::from_vec(&reply).expect("a whole message");
        assert_eq!(message.to_vec().expect("bytes").len(), reply.len());
        last = Some(message);
    }
    last
}

fn world() -> World {
    World::new("rateLimit: 0, allowTransfer: 172.27.1.11, pods: insecure", WEB)
}

fn code(bytes: &[u8]) -> String {
    match world().handler.begin(bytes, &pod(false)) {
        Outcome::Reply(reply) => show(&reply),
        Outcome::Silence => "silence".into(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn wrong_packets_have_their_answers() {
    let good = query("web.shop.svc.cluster.local A");
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let long_name: Vec<u8> = (0..5).flat_map(|_| [&[63u8][..], &[b'a'; 63]].concat()).chain([0, 0, 1, 0, 1]).collect();
    let raw = |question: &[u8]| [&good[..HEADER], question].concat();
    for (what, bytes, want) in [
        ("nothing", vec![], "silence"),
        ("half a header", good[..11].to_vec(), "silence"),
        ("an answer", with(2, 0x81), "silence"),
        ("a header alone", good[..12].to_vec(), "FORMERR"),
        ("a question cut off", good[..20].to_vec(), "FORMERR"),
        ("no question", with(5, 0), "FORMERR"),
        ("two questions", with(5, 2), "FORMERR"),
        ("answers in a question", with(7, 9), "FORMERR"),
        ("opcode IQUERY", with(2, 0x08), "NOTIMP"),
        ("opcode STATUS", with(2, 0x10), "NOTIMP"),
        ("opcode NOTIFY", with(2, 0x20), "NOTIMP"),
        ("opcode UPDATE", with(2, 0x28), "NOTIMP"),
        ("opcode 15", with(2, 0x78), "NOTIMP"),
        ("a name that points to itself", raw(&[0xc0, 12, 0, 1, 0, 1]), "FORMERR"),
        ("two names that point to each other", raw(&[0xc0, 14, 0xc0, 12, 0, 1, 0, 1]), "FORMERR"),
        ("a name that points behind the end", raw(&[0xff, 0xff, 0, 1, 0, 1]), "FORMERR"),
        ("a label of 64", raw(&[64, b'a', 0, 0, 1, 0, 1]), "FORMERR"),
        ("a label of an unknown kind", raw(&[0x80, 0, 0, 1, 0, 1]), "FORMERR"),
        ("a name of 320", raw(&long_name), "FORMERR"),
    ] {
        assert_eq!(code(&bytes), want, "{what}");
    }
    // What stands behind a message is nobody's.
    assert_eq!(code(&[&good[..], &[0; 20]].concat()), "NOERROR aa\nweb.shop.svc.cluster.local. 5 A 172.28.0.20");
}

/// Labels that are no host's, but may be asked for.
#[test]
fn labels_of_any_bytes() {
    let label = [&[5u8][..], &[0, 255, b'.', b'\\', 0xc3]].concat();
    let rest = b"\x04shop\x03svc\x07cluster\x05local\x00\x00\x01\x00\x01";
    let bytes = [&query("a. A")[..HEADER], &label[..], &rest[..]].concat();
    assert!(code(&bytes).starts_with("NXDOMAIN aa"));
}

pub fn question() -> impl Strategy<Value = Vec<u8>> {
    let labels = prop::sample::select(vec![
        "web",
        "shop",
        "svc",
        "pod",
        "cluster",
        "local",
        "_http",
        "_tcp",
        "10-0-0-1",
        "dns-version",
        "ns",
        "dns",
        "arpa",
        "in-addr",
        "ip6",
        "172",
        "28",
        "d",
        "",
    ]);
    (vec(labels, 0..9), any::<u16>(), any::<u16>(), any::<bool>()).prop_map(|(labels, kind, class, usual)| {
        let mut bytes = query(". A")[..HEADER].to_vec();
        for label in labels.iter().filter(|label| !label.is_empty()) {
            bytes.push(label.len() as u8);
            bytes.extend(label.bytes());
        }
        bytes.push(0);
        bytes.extend(if usual { kind % 260 } else { kind }.to_be_bytes());
        bytes.extend(if usual { 1 } else { class }.to_be_bytes());
        bytes
    })
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in vec(any::<u8>(), 0..600), stream: bool) {
        feed(&world(), &bytes, stream);
    }

    #[test]
    fn any_question_is_survived(bytes in question(), stream: bool) {
        feed(&world(), &bytes, stream);
    }

    /// Bytes of a good question that were changed.
    #[test]
    fn changed_questions_are_survived(
        mut bytes in question(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        stream: bool,
    ) {
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        feed(&world(), &bytes, stream);
    }
}
