//! Replays the fuzzer's corpora on stable Rust, and makes their seeds (`BLESS=1`): of the packet cases one file a case,
//! its packets in their order; of names one file a question.

use std::fs;
use std::path::{Path, PathBuf};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use lb_common::verdict::Hook;
use stellwerk_tests::case::{Case, What};
use stellwerk_tests::{chaos, names, packet, runner};

/// Feeds each file of a target's corpus to it; there are at least so many.
fn replay(target: &str, seeds: impl FnOnce() -> Vec<(String, Vec<u8>)>, least: usize, fuzz: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    if !folder.parent().is_some_and(Path::exists) {
        println!("left out: the source tree is not here");
        return;
    }
    if std::env::var_os("BLESS").is_some() {
        fs::create_dir_all(&folder).unwrap();
        for (name, bytes) in seeds() {
            fs::write(folder.join(name.replace(['/', ' ', '.'], "-")), bytes).unwrap();
        }
    }
    let mut files: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= least, "the corpus has {} files", files.len());
    for file in files {
        println!("{}", file.display());
        fuzz(&fs::read(&file).unwrap());
    }
}

#[test]
fn the_corpus_of_packets_holds() {
    let case = |case: Result<Case, String>| {
        let case = case.unwrap();
        (case.name.clone(), seed(&case))
    };
    replay("path", || runner::cases().into_iter().map(case).collect(), 80, chaos::fuzz);
}

#[test]
fn the_corpus_of_names_holds() {
    replay("dns", questions, 25, names::fuzz);
}

/// A pod's over UDP, but for whole zones.
fn questions() -> Vec<(String, Vec<u8>)> {
    let asked = [
        "web.shop.svc.cluster.local A",
        "WEB.shop.svc.cluster.local AAAA",
        "_http._tcp.web.shop.svc.cluster.local SRV",
        "db.shop.svc.cluster.local A",
        "db.shop.svc.cluster.local SRV",
        "172-27-1-30.db.shop.svc.cluster.local A",
        "own.shop.svc.cluster.local A",
        "circle.shop.svc.cluster.local CNAME",
        "circle.shop.svc.cluster.local A",
        "away.shop.svc.cluster.local A",
        "10-1-2-3.shop.pod.cluster.local A",
        "nobody.shop.svc.cluster.local A",
        "dns-version.cluster.local TXT",
        "cluster.local SOA",
        "cluster.local AXFR",
        "web.shop.edge.example A",
        "20.0.28.172.in-addr.arpa PTR",
        "printer.lan A",
        "www.example.org A",
        "web.shop.svc.cluster.local ANY",
    ];
    let mut all = Vec::new();
    for text in asked {
        let (name, kind) = text.split_once(' ').unwrap();
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        let mut name = Name::from_ascii(name).unwrap();
        name.set_fqdn(true);
        message.add_query(Query::query(name, kind.parse::<RecordType>().unwrap()));
        let stream = u8::from(kind == "AXFR");
        all.push((text.to_owned(), [&[4 | stream], &message.to_vec().unwrap()[..]].concat()));
        let mut edns = Edns::new();
        edns.set_max_payload(4_096).set_dnssec_ok(true);
        message.edns = Some(edns);
        all.push((format!("{text} extended"), [&[4 | stream], &message.to_vec().unwrap()[..]].concat()));
    }
    // Behind a header with one question.
    let header = [4, 0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for (what, question) in [
        ("a name that points to itself", &[0xc0, 12, 0, 1, 0, 1][..]),
        ("names that point to each other", &[0xc0, 14, 0xc0, 12, 0, 1, 0, 1]),
        ("a name that points behind the end", &[0xff, 0xff, 0, 1, 0, 1]),
        ("a label of 64", &[64, b'a', 0, 0, 1, 0, 1]),
        ("a label of an unknown kind", &[0x80, 0, 0, 1, 0, 1]),
    ] {
        all.push((what.to_owned(), [&header, question].concat()));
    }
    all
}

fn seed(case: &Case) -> Vec<u8> {
    let mut packets = Vec::new();
    let mut pause = 0;
    for step in &case.steps {
        match &step.what {
            What::Advance(seconds) => pause = (*seconds).min(255) as u8,
            What::Packet(arriving) => {
                let hook = [Hook::Xdp, Hook::Ingress, Hook::Egress].iter().position(|h| *h == arriving.hook).unwrap();
                let place = hook as u8 + 3 * (arriving.ifindex - 102) as u8;
                packets.push((place, pause, packet::build(&arriving.packet, &arriving.names).unwrap()));
                pause = 0;
            }
            _ => {}
        }
    }
    let device = if case.name.starts_with("nat/") { chaos::TRANSLATES } else { 0 };
    chaos::seed(device, packets.iter().map(|(place, pause, bytes)| (*place, *pause, &bytes[..])))
}
