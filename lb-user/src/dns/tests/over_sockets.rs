//! Real UDP and TCP.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

use super::*;
use crate::dns::metrics::Event;

const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: { name: web, namespace: shop }\n\
                   spec: { clusterIP: 172.28.0.20, ports: [{ name: http, port: 80 }] }\n";
const TABLE: &[(&str, &str)] = &[
    ("web.shop.svc.cluster.local A", "NOERROR aa\nweb.shop.svc.cluster.local. 5 A 172.28.0.20"),
    (
        "_http._tcp.web.shop.svc.cluster.local SRV",
        "NOERROR aa\n_http._tcp.web.shop.svc.cluster.local. 5 SRV 0 100 80 web.shop.svc.cluster.local.\n\
         + web.shop.svc.cluster.local. 5 A 172.28.0.20",
    ),
    ("dns-version.cluster.local TXT", "NOERROR aa\ndns-version.cluster.local. 28800 TXT 1.1.0"),
    ("20.0.28.172.in-addr.arpa PTR", "NOERROR aa\n20.0.28.172.in-addr.arpa. 5 PTR web.shop.svc.cluster.local."),
    ("a.example HTTPS", "SERVFAIL"),
];

/// A server on the loopback, where both protocols have one port.
async fn serve() -> (SocketAddr, Arc<Handler>, watch::Sender<Option<Arc<Snapshot>>>) {
    let nobody = UdpSocket::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
    let World { handler, snapshot } = World::new(&format!("upstreams: \"{nobody}\""), WEB);
    let handler = Arc::new(handler);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let at = listener.local_addr().expect("an address");
    tokio::spawn(server::udp(handler.clone(), UdpSocket::bind(at).await.expect("the same port")));
    tokio::spawn(server::tcp(handler.clone(), listener, Arc::default()));
    (at, handler, snapshot)
}

async fn receive(stream: &mut TcpStream) -> Vec<u8> {
    let answer = async {
        let mut bytes = vec![0; usize::from(stream.read_u16().await.expect("a length"))];
        stream.read_exact(&mut bytes).await.expect("an answer");
        bytes
    };
    timeout(Duration::from_secs(10), answer).await.expect("an answer in time")
}

fn framed(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

#[tokio::test]
async fn the_same_is_told_over_udp_and_tcp() {
    let (at, _, _snapshot) = serve().await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut stream = TcpStream::connect(at).await.unwrap();
    let mut buffer = [0; 2_048];
    for (question, want) in TABLE {
        socket.send_to(&query(question), at).await.unwrap();
        let (len, from) = timeout(Duration::from_secs(10), socket.recv_from(&mut buffer)).await.unwrap().unwrap();
        assert_eq!((show(&buffer[..len]).as_str(), from), (*want, at), "{question} over UDP");
        stream.write_all(&framed(&query(question))).await.unwrap();
        assert_eq!(show(&receive(&mut stream).await), *want, "{question} over TCP");
    }
}

#[tokio::test]
async fn questions_of_one_connection_may_come_at_once_and_in_pieces() {
    let (at, _, _snapshot) = serve().await;
    let mut stream = TcpStream::connect(at).await.unwrap();
    let mut all = Vec::new();
    for id in 1..=50u16 {
        let mut message = message("web.shop.svc.cluster.local A");
        message.metadata.id = id;
        all.extend(framed(&message.to_vec().unwrap()));
    }
    for piece in all.chunks(7) {
        stream.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut ids = BTreeSet::new();
    for _ in 0..50 {
        let answer = Message::from_vec(&receive(&mut stream).await).unwrap();
        assert_eq!(answer.answers.len(), 1);
        ids.insert(answer.id);
    }
    assert_eq!(ids, (1..=50).collect());
}

#[tokio::test]
async fn connections_that_say_nonsense_or_nothing_end() {
    let (at, handler, _snapshot) = serve().await;
    let begun = Instant::now();
    for wrong in [&[0u8, 3, 1, 2, 3][..], &framed(&[0xff; 40]), &[0, 0]] {
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(wrong).await.unwrap();
        let mut rest = Vec::new();
        timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await.expect("an end").unwrap_or_default();
        assert!(rest.is_empty(), "{rest:?}");
    }
    assert!(begun.elapsed() < Duration::from_secs(5));
    // Half a question, and then nothing.
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(&framed(&query("a.example A"))[..9]).await.unwrap();
    let mut rest = Vec::new();
    timeout(Duration::from_secs(20), stream.read_to_end(&mut rest)).await.expect("an end").unwrap_or_default();
    assert!(begun.elapsed() > Duration::from_secs(9) && rest.is_empty());
    assert_eq!(handler.metrics.events(Event::ConnectionIdle), 1);
}

#[tokio::test]
async fn one_client_has_no_more_than_its_share_of_connections() {
    let (at, handler, _snapshot) = serve().await;
    let mut all = Vec::new();
    for _ in 0..70 {
        all.push(TcpStream::connect(at).await.unwrap());
    }
    let end = Instant::now() + Duration::from_secs(5);
    while handler.metrics.events(Event::ConnectionsFull) < 6 && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(handler.metrics.events(Event::ConnectionsFull), 6);
    all[0].write_all(&framed(&query(TABLE[0].0))).await.unwrap();
    assert_eq!(show(&receive(&mut all[0]).await), TABLE[0].1);
}
