//! Name servers that are slow, silent, lying, cut short, or gone.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RData;
use hickory_proto::rr::rdata::{A, CNAME, SOA};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use super::*;
use crate::dns::metrics::Event;

/// A name server that does as it is told: what to send, one packet after the other, to a question.
struct Fake {
    at: SocketAddr,
    asked: Arc<AtomicUsize>,
}

type Answers = Vec<Message>;

async fn fake(
    over_udp: impl Fn(Message) -> Answers + Send + 'static,
    over_tcp: impl Fn(Message) -> Answers + Send + 'static,
) -> Fake {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let at = listener.local_addr().expect("an address");
    let socket = UdpSocket::bind(at).await.expect("the same port");
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 2_048];
        while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
            count.fetch_add(1, Ordering::SeqCst);
            for answer in over_udp(Message::from_vec(&buffer[..len]).expect("a question")) {
                _ = socket.send_to(&answer.to_vec().expect("bytes"), from).await;
            }
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let len = stream.read_u16().await.expect("a length");
            let mut buffer = vec![0; usize::from(len)];
            stream.read_exact(&mut buffer).await.expect("a question");
            for answer in over_tcp(Message::from_vec(&buffer).expect("a question")) {
                let bytes = answer.to_vec().expect("bytes");
                _ = stream.write_u16(bytes.len() as u16).await;
                _ = stream.write_all(&bytes).await;
            }
        }
    });
    Fake { at, asked }
}

async fn over_udp(answer: impl Fn(Message) -> Answers + Send + 'static) -> Fake {
    fake(answer, |_| Vec::new()).await
}

fn response(question: &Message) -> Message {
    let mut answer = Message::response(question.id, OpCode::Query);
    answer.metadata.recursion_available = true;
    answer.queries = question.queries.clone();
    answer
}

fn address(name: &Name, ttl: u32, last: u8) -> Record {
    Record::from_rdata(name.clone(), ttl, RData::A(A::new(192, 0, 2, last)))
}

/// One address.
fn good(question: Message, last: u8) -> Message {
    let mut answer = response(&question);
    answer.answers.push(address(question.queries[0].name(), 60, last));
    answer
}

fn coded(question: &Message, code: ResponseCode) -> Message {
    let mut answer = response(question);
    answer.metadata.response_code = code;
    answer
}

fn denied(question: &Message) -> Message {
    let mut answer = coded(question, ResponseCode::NXDomain);
    let zone = Name::from_ascii("example.").expect("a name");
    let soa = SOA::new(zone.clone(), zone.clone(), 1, 1, 1, 1, 60);
    answer.authorities.push(Record::from_rdata(zone, 60, RData::SOA(soa)));
    answer
}

fn world(dns: &str, upstreams: &[SocketAddr]) -> World {
    let all: Vec<String> = upstreams.iter().map(|at| format!("\"{at}\"")).collect();
    World::new(&format!("upstreams: [{}]{dns}", all.join(", ")), "")
}

async fn ask(world: &World, question: &str) -> String {
    match world.handler.begin(&query(question), &pod(false)) {
        Outcome::Reply(bytes) => show(&bytes),
        Outcome::Later(asking) => show(&world.handler.finish(*asking).await),
        other => panic!("{other:?}"),
    }
}

const FOUND: &str = "NOERROR\na.example. 60 A 192.0.2.1";

/// An address where nobody is.
async fn nobody() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address")
}

#[tokio::test]
async fn answers_are_fetched_and_kept() {
    let server = over_udp(|q| vec![good(q, 1)]).await;
    let world = world("", &[server.at]);
    for _ in 0..3 {
        assert_eq!(ask(&world, "a.example A").await, FOUND);
    }
    assert_eq!(ask(&world, "A.Example A").await, FOUND.replace("a.example", "A.Example"));
    assert_eq!(server.asked.load(Ordering::SeqCst), 1);
    assert_eq!((world.handler.metrics.events(Event::CacheMiss), world.handler.metrics.events(Event::CacheHit)), (1, 3));
}

#[tokio::test]
async fn names_that_are_nowhere_are_kept_too() {
    let server = over_udp(|q| vec![denied(&q)]).await;
    let world = world("", &[server.at]);
    for _ in 0..3 {
        let told = ask(&world, "a.example A").await;
        assert!(told.starts_with("NXDOMAIN\n! example. 60 SOA"), "{told}");
    }
    assert_eq!(server.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn names_of_the_cluster_never_leave() {
    let server = over_udp(|q| vec![good(q, 1)]).await;
    let world = world(", externalZone: out.example", &[server.at]);
    for name in [
        "www.example.com.default.svc.cluster.local",
        "www.example.com.svc.cluster.local",
        "www.example.com.cluster.local",
        "cluster.local",
        "99.0.28.172.in-addr.arpa",
        "99.1.27.172.in-addr.arpa",
        "web.default.out.example",
    ] {
        ask(&world, &format!("{name} A")).await;
        ask(&world, &format!("{name} PTR")).await;
    }
    // And what only looks like one of them does.
    assert_eq!(ask(&world, "notcluster.local A").await, FOUND.replace("a.example", "notcluster.local"));
    assert_eq!(server.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn the_next_server_is_asked_where_one_is_dead() {
    let (dead, server) = (nobody().await, over_udp(|q| vec![good(q, 1)]).await);
    let world = world("", &[dead, server.at]);
    let begun = Instant::now();
    assert_eq!(ask(&world, "a.example A").await, FOUND);
    assert!(begun.elapsed() < Duration::from_secs(1), "the kernel says at once that nobody is there");
    assert_eq!(world.handler.metrics.events(Event::UpstreamTimeout), 1);
    // From now on it goes behind the other.
    assert_eq!(ask(&world, "b.example A").await, FOUND.replace("a.", "b."));
    assert_eq!(world.handler.metrics.events(Event::UpstreamTimeout), 1);
}

#[tokio::test]
async fn the_next_server_is_asked_where_one_is_silent() {
    let (silent, server) = (over_udp(|_| vec![]).await, over_udp(|q| vec![good(q, 1)]).await);
    let world = world("", &[silent.at, server.at]);
    let begun = Instant::now();
    assert_eq!(ask(&world, "a.example A").await, FOUND);
    let taken = begun.elapsed();
    assert!(taken > Duration::from_secs(1) && taken < Duration::from_secs(2), "{taken:?}");
    let begun = Instant::now();
    assert_eq!(ask(&world, "b.example A").await, FOUND.replace("a.", "b."));
    assert!(begun.elapsed() < Duration::from_millis(500), "it is left alone for a while");
}

#[tokio::test]
async fn the_next_server_is_asked_where_one_cannot_tell() {
    for code in [ResponseCode::ServFail, ResponseCode::Refused, ResponseCode::NotAuth] {
        let unable = over_udp(move |q| vec![coded(&q, code)]).await;
        let server = over_udp(|q| vec![good(q, 1)]).await;
        assert_eq!(ask(&world("", &[unable.at, server.at]), "a.example A").await, FOUND, "{code}");
    }
}

#[tokio::test]
async fn with_no_server_left_it_fails_in_time() {
    let silent = over_udp(|_| vec![]).await;
    let world = world("", &[silent.at]);
    let begun = Instant::now();
    assert_eq!(ask(&world, "a.example A").await, "SERVFAIL");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    // That is known for a moment, too.
    let begun = Instant::now();
    assert_eq!(ask(&world, "a.example A").await, "SERVFAIL");
    assert!(begun.elapsed() < Duration::from_millis(500));
    assert_eq!(silent.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn answers_cut_short_are_fetched_over_tcp() {
    let cut = |q: Message| {
        let mut answer = response(&q);
        answer.metadata.truncation = true;
        vec![answer]
    };
    let server = fake(cut, |q| vec![good(q, 1)]).await;
    let world = world("", &[server.at]);
    assert_eq!(ask(&world, "a.example A").await, FOUND);
    assert_eq!(world.handler.metrics.events(Event::UpstreamOverTcp), 1);
}

#[tokio::test]
async fn answers_to_something_else_are_not_taken() {
    let lies = |q: Message| {
        let other = |change: fn(&mut Message)| {
            let mut answer = good(q.clone(), 66);
            change(&mut answer);
            answer
        };
        vec![
            other(|a| a.metadata.id ^= 1),
            other(|a| a.metadata.message_type = MessageType::Query),
            other(|a| a.queries.clear()),
            other(|a| a.queries = message("b.example A").queries),
            other(|a| a.queries = message("a.example AAAA").queries),
            good(q, 1),
        ]
    };
    let server = over_udp(lies).await;
    let world = world("", &[server.at]);
    assert_eq!(ask(&world, "a.example A").await, FOUND);
    assert_eq!(world.handler.metrics.events(Event::UpstreamWrong), 5);
}

#[tokio::test]
async fn only_what_was_asked_for_is_taken_of_an_answer() {
    let more = |q: Message| {
        let mut answer = response(&q);
        let [alias, target, bank] = ["a.example.", "b.example.", "bank.example."].map(|n| Name::from_ascii(n).unwrap());
        answer.answers = vec![
            Record::from_rdata(alias, 60, RData::CNAME(CNAME(target.clone()))),
            address(&target, 60, 1),
            address(&bank, 60, 66),
        ];
        answer.authorities.push(address(&bank, 60, 66));
        answer.additionals.push(address(&bank, 60, 66));
        vec![answer]
    };
    let world = world("", &[over_udp(more).await.at]);
    assert_eq!(ask(&world, "a.example A").await, "NOERROR\na.example. 60 CNAME b.example.\nb.example. 60 A 192.0.2.1");
    let bank = over_udp(|q| {
        let mut answer = response(&q);
        answer.answers.push(address(&Name::from_ascii("bank.example.").unwrap(), 60, 66));
        vec![answer]
    });
    assert_eq!(ask(&self::world("", &[bank.await.at]), "a.example A").await, "SERVFAIL");
}

#[tokio::test]
async fn servers_that_know_no_extensions_are_asked_without() {
    let old = |q: Message| vec![if q.edns.is_some() { coded(&q, ResponseCode::FormErr) } else { good(q, 1) }];
    assert_eq!(ask(&world("", &[over_udp(old).await.at]), "a.example A").await, FOUND);
}

#[tokio::test]
async fn a_question_is_asked_once_for_all_who_wait() {
    let slow = over_udp(|q| vec![good(q, 1)]).await;
    let world = world("", &[slow.at]);
    let all = tokio::join!(ask(&world, "a.example A"), ask(&world, "a.example A"), ask(&world, "A.example A"));
    assert_eq!(all, (FOUND.into(), FOUND.into(), FOUND.replace("a.", "A.")));
    assert_eq!(slow.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn domains_have_servers_of_their_own() {
    let (all, corp, lab) = (
        over_udp(|q| vec![good(q, 1)]).await,
        over_udp(|q| vec![good(q, 2)]).await,
        over_udp(|q| vec![good(q, 3)]).await,
    );
    let forwards = format!(", forwards: {{ example.corp: \"{}\", lab.example.corp: \"{}\" }}", corp.at, lab.at);
    let world = world(&forwards, &[all.at]);
    for (name, last) in [
        ("www.example.", 1),
        ("example.corp.", 2),
        ("a.Example.corp.", 2),
        ("a.lab.example.corp.", 3),
        ("lab.example.corp.", 3),
        ("badexample.corp.", 1),
    ] {
        assert_eq!(ask(&world, &format!("{name} A")).await, format!("NOERROR\n{name} 60 A 192.0.2.{last}"));
    }
}

#[tokio::test]
async fn old_answers_are_better_than_none_by_choice() {
    let server = over_udp(|q| {
        static TIMES: AtomicUsize = AtomicUsize::new(0);
        let mut answer = good(q, 1);
        answer.answers[0].ttl = 1;
        if TIMES.fetch_add(1, Ordering::SeqCst) == 0 { vec![answer] } else { vec![] }
    });
    let server = server.await;
    let world = world(", serveStale: 1h", &[server.at]);
    assert_eq!(ask(&world, "a.example A").await, "NOERROR\na.example. 1 A 192.0.2.1");
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let begun = Instant::now();
    assert_eq!(ask(&world, "a.example A").await, "NOERROR\na.example. 30 A 192.0.2.1");
    assert!(begun.elapsed() < Duration::from_millis(2_500), "{:?}", begun.elapsed());
    assert_eq!(world.handler.metrics.events(Event::CacheStale), 1);
}

#[tokio::test]
async fn aliases_out_of_the_cluster_are_followed() {
    let server = over_udp(|q| vec![good(q, 1)]).await;
    let away = "apiVersion: v1\nkind: Service\nmetadata: { name: away }\nspec: { type: ExternalName, externalName: a.example }\n";
    let world = World::new(&format!("upstreams: \"{}\"", server.at), away);
    assert_eq!(
        ask(&world, "away.default.svc.cluster.local A").await,
        "NOERROR aa\naway.default.svc.cluster.local. 5 CNAME a.example.\na.example. 60 A 192.0.2.1"
    );
}

#[tokio::test]
async fn other_servers_take_over() {
    let (one, two) = (over_udp(|q| vec![good(q, 1)]).await, over_udp(|q| vec![good(q, 2)]).await);
    let world = world("", &[one.at]);
    assert_eq!(ask(&world, "a.example A").await, FOUND);
    world.handler.forwarder.set_rest(&[two.at]);
    assert_eq!(ask(&world, "b.example A").await, "NOERROR\nb.example. 60 A 192.0.2.2");
}
