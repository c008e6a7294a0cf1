//! Objects, questions and whole answers.

mod again;
mod bytes;
mod guarded;
mod over_sockets;
mod rules;
mod upstreams;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, Record, RecordType};
use tokio::sync::watch;

use super::handler::{Client, Handler, Outcome};
use super::metrics::Metrics;
use super::server;
use super::{Snapshot, Zone};
use crate::config::{Config, Dns};
use crate::moment::Moment;
use crate::source::manifests::{Manifests, Scope};

/// What a configuration says of names, beside the least that it must say.
fn config(dns: &str) -> Dns {
    let text = format!(
        "node: n1\ninternalSwitch: {{ interface: br-int, address: [10.20.0.1/24, \"fd00:20::1/64\"] }}\ncluster:\n  \
         podSubnet: [172.27.0.0/16, \"fd00:27::/32\"]\n  serviceSubnet: [172.28.0.0/16, \"fd00:28::/112\"]\n  \
         serviceIPs: [192.168.20.100-192.168.20.120]\n  dns: {{ {dns} }}\n"
    );
    let config = Config::parse(&"c.yaml".into(), &text).unwrap_or_else(|errors| panic!("{errors}"));
    config.dns.expect("cluster.dns")
}

/// The names of a folder with this one file.
fn zone(manifests: &str) -> Zone {
    static COUNT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("stellwerk-dns-{}-{count}.yaml", std::process::id()));
    std::fs::write(&path, manifests).expect("a file");
    let rules = crate::source::manifests::Rules {
        classless: true,
        service_ranges: vec![crate::intent::ServiceRange {
            first: "192.168.20.100".parse().expect("an address"),
            last: "192.168.20.120".parse().expect("an address"),
        }],
        ..Default::default()
    };
    let mut source = Manifests::new(path.clone(), rules);
    let loaded = source.load(&Scope::All, Moment::now());
    std::fs::remove_file(&path).expect("a file");
    loaded.unwrap_or_else(|errors| panic!("{errors}"));
    assert!(source.refused().is_empty(), "{:?}", source.refused());
    Zone::new(source.names())
}

struct World {
    handler: Handler,
    snapshot: watch::Sender<Option<Arc<Snapshot>>>,
}

impl World {
    fn new(dns: &str, manifests: &str) -> World {
        let zone = zone(manifests);
        World::of(config(dns), Some(Snapshot { revision: 7, zone, node: Arc::new(BTreeSet::new()) }))
    }

    fn of(config: Dns, snapshot: Option<Snapshot>) -> World {
        let (snapshot, by) = watch::channel(snapshot.map(Arc::new));
        World { handler: server::handler(config, by, Arc::new(Metrics::default())), snapshot }
    }

    /// What a pod over UDP is told.
    fn ask(&self, question: &str) -> String {
        match self.handler.begin(&query(question), &pod(false)) {
            Outcome::Reply(bytes) => show(&bytes),
            other => panic!("{question}: {other:?}"),
        }
    }

    fn is(&self, table: &[(&str, &str)]) {
        for (question, want) in table {
            assert_eq!(self.ask(question), *want, "{question}");
        }
    }
}

fn pod(stream: bool) -> Client {
    Client { addr: Some("172.27.1.11".parse::<IpAddr>().expect("an address")), stream }
}

/// `NAME TYPE` as a message. Its number is one by which no address changes its place.
fn message(question: &str) -> Message {
    let (name, kind) = question.split_once(' ').expect("a name and a type");
    let mut name = Name::from_ascii(name).expect("a name");
    name.set_fqdn(true);
    let mut message = Message::new(0, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, kind.parse::<RecordType>().expect("a type")));
    message
}

fn query(question: &str) -> Vec<u8> {
    message(question).to_vec().expect("bytes")
}

/// The code and `aa`, then the answers, `!` before what is of the zone, `+` before what is beside.
fn show(bytes: &[u8]) -> String {
    let message = Message::from_vec(bytes).expect("a whole message");
    assert_eq!(message.message_type, MessageType::Response);
    let code = match message.response_code {
        hickory_proto::op::ResponseCode::NoError => "NOERROR",
        hickory_proto::op::ResponseCode::NXDomain => "NXDOMAIN",
        hickory_proto::op::ResponseCode::ServFail => "SERVFAIL",
        hickory_proto::op::ResponseCode::FormErr => "FORMERR",
        hickory_proto::op::ResponseCode::NotImp => "NOTIMP",
        hickory_proto::op::ResponseCode::Refused => "REFUSED",
        hickory_proto::op::ResponseCode::BADVERS => "BADVERS",
        hickory_proto::op::ResponseCode::NotAuth => "NOTAUTH",
        _ => "?",
    };
    let mut text = code.to_owned();
    for (set, word) in [(message.authoritative, " aa"), (message.truncation, " tc"), (message.authentic_data, " ad")] {
        text += if set { word } else { "" };
    }
    let sections = [("", &message.answers), ("! ", &message.authorities), ("+ ", &message.additionals)];
    for (mark, records) in sections {
        for record in records {
            write!(text, "\n{mark}{}", line(record)).expect("a text");
        }
    }
    text
}

fn line(record: &Record) -> String {
    let data = record.data.to_string();
    format!("{} {} {} {data}", record.name.to_ascii(), record.ttl, record.record_type())
}
