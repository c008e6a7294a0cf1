//! Any bytes as a query for names, and what must hold whatever they are: for the fuzzer.

use std::sync::{Arc, OnceLock};

use hickory_proto::op::Message;
use hickory_proto::rr::Name;
use lb_user::config::Config;
use lb_user::dns::fast::Fast;
use lb_user::dns::handler::{Client, Handler, Outcome};
use lb_user::dns::metrics::Metrics;
use lb_user::dns::server::handler;
use lb_user::dns::wire::{HEADER, LONGEST};
use lb_user::dns::{Snapshot, Zone};
use lb_user::source::manifests::ServiceName;
use lb_user::source::manifests::names::{Endpoint, Named, Names, Port, Target};
use tokio::sync::watch;

const CONFIG: &str = "node: n1
internalSwitch: { interface: br-int, address: 10.20.0.1/24 }
cluster:
  podSubnet: 172.27.0.0/16
  serviceSubnet: 172.28.0.0/16
  dns: { rateLimit: 0, allowTransfer: 172.27.1.11, pods: insecure, externalZone: edge.example, upstreams: 192.0.2.53,
         hosts: { printer.lan: 10.20.0.9 } }
";
/// Over UDP.
const ROOM: usize = 1_232;

/// The fuzzer's language: a byte that says who asks, then what is asked: the packet.
pub fn fuzz(data: &[u8]) {
    let Some((who, packet)) = data.split_first() else { return };
    static HANDLER: OnceLock<Handler> = OnceLock::new();
    let (handler, client) = (HANDLER.get_or_init(made), client(*who));
    let mut fast = Fast::default();
    let first = match fast.begin(handler, packet, &client) {
        Ok(_) => panic!("it was known before it was asked"),
        Err(outcome) => outcome,
    };
    match &first {
        Outcome::Silence => return,
        Outcome::Reply(reply) => answered(packet, reply, &client),
        Outcome::Replies(all) => all.iter().for_each(|reply| answered(packet, reply, &client)),
        Outcome::Later(asking) => leaves(asking.name()),
    }
    match (fast.begin(handler, packet, &client), &first) {
        (Ok(again), Outcome::Reply(reply)) => assert_eq!(again, reply),
        (Ok(_), _) => panic!("what was no answer is given as one again"),
        (Err(_), _) => {}
    }
}

/// Whoever asks: a pod, somebody outside, or the command line.
fn client(who: u8) -> Client {
    let addr = match who >> 1 & 3 {
        0 => None,
        1 => Some([198, 51, 100, 7].into()),
        _ => Some([172, 27, 1, 11].into()),
    };
    Client { addr, stream: who & 1 == 1 || addr.is_none() }
}

/// An answer to this, whole, and no longer than it may be.
fn answered(packet: &[u8], reply: &[u8], client: &Client) {
    let room = if client.stream { LONGEST } else { ROOM };
    assert!((HEADER..=room).contains(&reply.len()), "{} bytes", reply.len());
    assert_eq!((&reply[..2], reply[2] & 0x80), (&packet[..2], 0x80), "it is no answer to this");
    let message = Message::from_vec(reply).expect("a whole message");
    assert!(client.addr.is_some_and(|a| a.is_ipv4()) || client.stream, "{message:?}");
}

/// The cluster's names don't.
fn leaves(name: &Name) {
    for zone in ["cluster.local.", "edge.example.", "28.172.in-addr.arpa.", "27.172.in-addr.arpa."] {
        let zone = Name::from_ascii(zone).expect("a name");
        assert!(!zone.zone_of(name), "{name} is asked of others");
    }
}

fn made() -> Handler {
    let config = Config::parse(&"stellwerk.yaml".into(), CONFIG).unwrap_or_else(|errors| panic!("{errors}"));
    let snapshot = Snapshot { revision: 7, zone: Zone::new(&names()), ..Snapshot::default() };
    let (_, by) = watch::channel(Some(Arc::new(snapshot)));
    handler(config.dns.expect("cluster.dns"), by, Arc::new(Metrics::default()))
}

/// One service of each kind.
fn names() -> Names {
    let ports: Arc<[Port]> = [Port { name: "http".into(), protocol: lb_user::intent::Protocol::Tcp, port: 80 }].into();
    let endpoint = |last: u8| Endpoint { addr: [172, 27, 1, last].into(), hostname: None, ports: ports.clone() };
    let of = |target: Target, endpoints: Vec<Endpoint>| Named {
        target,
        ports: ports.to_vec(),
        endpoints,
        external: vec![[192, 168, 20, 100].into()],
    };
    let mut names = Names::default();
    for (name, named) in [
        ("web", of(Target::Addresses(vec![[172, 28, 0, 20].into()]), vec![endpoint(30)])),
        ("db", of(Target::Endpoints, (1..100).map(endpoint).collect())),
        ("own", of(Target::Name("web.shop.svc.cluster.local".into()), Vec::new())),
        ("circle", of(Target::Name("circle.shop.svc.cluster.local".into()), Vec::new())),
        ("away", of(Target::Name("www.example.org".into()), Vec::new())),
    ] {
        let name = ServiceName { namespace: "shop".into(), name: name.into() };
        names.replace(&name, Some(&Arc::new(named)));
    }
    names
}
