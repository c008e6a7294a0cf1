//! Replays the fuzzer's corpora on stable Rust, and makes their seeds (`BLESS=1`): of the packet cases one file a case,
//! its packets in their order; of names one file a question; of what is asked of the agent one file a call.

use std::fs;
use std::path::{Path, PathBuf};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use lb_common::verdict::Hook;
use stellwerk_tests::case::{Case, What};
use stellwerk_tests::{chaos, control, names, packet, runner};

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

#[test]
fn the_corpus_of_calls_holds() {
    replay("control", calls, 14, control::fuzz);
}

/// Calls of the plugin, requests at the socket, words of other nodes.
fn calls() -> Vec<(String, Vec<u8>)> {
    let env = "CNI_CONTAINERID=c1\nCNI_IFNAME=eth0\nCNI_NETNS=/run/netns/a\nCNI_PATH=/opt/cni/bin\n\
               CNI_ARGS=K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;IP=172.27.1.7";
    let conf =
        |more: &str| format!("{{\"cniVersion\":\"1.1.0\",\"name\":\"stellwerk\",\"type\":\"stellwerk-cni\"{more}}}");
    let before = ",\"prevResult\":{\"cniVersion\":\"1.1.0\",\"ips\":[{\"address\":\"172.27.1.7/32\"}]}";
    let ports = ",\"runtimeConfig\":{\"portMappings\":[{\"hostPort\":8080,\"containerPort\":80,\"protocol\":\"tcp\"}]}";
    let valid = ",\"cni.dev/valid-attachments\":[{\"containerID\":\"c1\",\"ifname\":\"eth0\"}]";
    let mut all = Vec::new();
    for (verb, more) in [
        ("ADD", ""),
        ("ADD", ports),
        ("DEL", before),
        ("CHECK", before),
        ("STATUS", ""),
        ("GC", valid),
        ("VERSION", ""),
        ("MOVE", ""),
    ] {
        let text = format!("CNI_COMMAND={verb}\n{env}\n\n{}", conf(more));
        all.push((format!("call {verb} {}", more.len()), [&[control::CALL], text.as_bytes()].concat()));
    }
    for (name, text) in [
        ("status", "\"status\""),
        ("release", "{\"release\":{\"of\":\"default/web-0\"}}"),
        ("gc", "{\"gc\":{\"valid\":[{\"container\":\"c1\",\"interface\":\"eth0\"}]}}"),
        ("half", "{\"del\":{\"key\":"),
    ] {
        all.push((format!("request {name}"), [&[control::REQUEST], text.as_bytes()].concat()));
    }
    for text in ["stellwerk 1 here edge-2", "stellwerk 1 leaving edge-2", "stellwerk 2 here edge-2"] {
        all.push((format!("word {text}"), [&[control::WORD], text.as_bytes()].concat()));
    }
    all
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
