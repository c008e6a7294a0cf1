//! Real servers on the loopback that fail and come back, and what a thousand endpoints cost.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use super::*;
use crate::source::manifests::ServiceName;

/// An HTTP status, or a gRPC health status, that all servers answer with.
type Answer = Arc<AtomicU16>;

async fn http(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: Answer) {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") && stream.read_buf(&mut text).await.unwrap_or(0) > 0 {}
    let status = if text.starts_with(b"GET /up HTTP/1.1\r\nHost: a.org\r\n") { answer.load(Relaxed) } else { 404 };
    _ = stream.write_all(format!("HTTP/1.1 {status} X\r\n\r\n").as_bytes()).await;
    _ = stream.shutdown().await;
}

fn acceptor() -> TlsAcceptor {
    let (cert, key) = (include_bytes!("cert.der").to_vec(), include_bytes!("key.der").to_vec());
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let config = config.with_single_cert(vec![cert.into()], PrivateKeyDer::Pkcs8(key.into())).unwrap();
    TlsAcceptor::from(Arc::new(config))
}

async fn grpc(stream: tokio::net::TcpStream, answer: Answer) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
        let answer = answer.clone();
        _ = tokio::spawn(async move {
            let mut body = request.into_body();
            let mut asked = Vec::new();
            while let Some(Ok(part)) = body.data().await {
                asked.extend_from_slice(&part);
            }
            assert_eq!(asked, b"\0\0\0\0\x05\x0a\x03a.B");
            let response = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            let mut send = respond.send_response(response, false).unwrap();
            let status = answer.load(Relaxed) as u8;
            send.send_data(bytes::Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 8, status]), false).unwrap();
            let trailers = http::HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
            send.send_trailers(trailers).unwrap();
        });
    }
}

/// Serves TCP as `kind` says, until the task is ended.
fn serve(listener: TcpListener, kind: &'static str, answer: Answer) -> JoinHandle<()> {
    let tls = acceptor();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (answer, tls) = (answer.clone(), tls.clone());
            _ = tokio::spawn(async move {
                match kind {
                    "http" => http(stream, answer).await,
                    "https" => {
                        if let Ok(stream) = tls.accept(stream).await {
                            http(stream, answer).await;
                        }
                    }
                    "grpc" => grpc(stream, answer).await,
                    _ => {}
                }
            });
        }
    })
}

fn target(name: &str, port: u16) -> Target {
    let service = ServiceName { namespace: "default".into(), name: name.into() };
    Target { service, addr: Ipv4Addr::LOCALHOST.into(), port }
}

/// What is told of each target, once it is told of all.
async fn told(reports: &mut mpsc::UnboundedReceiver<Told>, of: usize) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    while all.len() < of {
        let next = timeout(Duration::from_secs(20), reports.recv()).await;
        let told = next.unwrap_or_else(|_| panic!("no more than {all:?}")).unwrap();
        all.insert(told.target.service.name, told.failing.unwrap_or_else(|| "well".into()));
    }
    all
}

#[tokio::test]
async fn servers_that_fail_and_recover() {
    let words = "interval=200ms rise=2 fall=2";
    let answers: BTreeMap<&str, Answer> =
        [("http", 200), ("https", 399), ("grpc", 1)].map(|(kind, n)| (kind, Arc::new(AtomicU16::new(n)))).into();
    let mut targets = Targets::new();
    let mut ports = BTreeMap::new();
    let mut servers = Vec::new();
    for (kind, more) in
        [("tcp", ""), ("http", "path=/up host=a.org"), ("https", "path=/up host=a.org"), ("grpc", "service=a.B")]
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let check = Check::parse(&format!("{kind} {more} {words}")).unwrap().unwrap();
        targets.insert(target(kind, port), (Arc::new(check), false));
        ports.insert(kind, port);
        servers.push(serve(listener, kind, answers.get(kind).cloned().unwrap_or_default()));
    }
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    ports.insert("udp", udp.local_addr().unwrap().port());
    let check = Check::parse(&format!("udp timeout=100ms {words}")).unwrap().unwrap();
    targets.insert(target("udp", ports["udp"]), (Arc::new(check), false));
    // Taken for failing until a probe says otherwise.
    targets.values_mut().for_each(|(_, failing)| *failing = true);
    let (sender, receiver) = watch::channel(targets.clone());
    let mut reports = spawn(receiver).unwrap();
    let well: BTreeMap<String, String> = ports.keys().map(|kind| ((*kind).to_owned(), "well".to_owned())).collect();
    assert_eq!(told(&mut reports, 5).await, well);

    answers["http"].store(503, Relaxed);
    answers["https"].store(400, Relaxed);
    answers["grpc"].store(2, Relaxed);
    servers.remove(0).abort();
    drop(udp);
    let failing = [
        ("grpc", "it says that it is NOT_SERVING"),
        ("http", "HTTP status 503"),
        ("https", "HTTP status 400"),
        ("tcp", "connection refused"),
        ("udp", "connection refused"),
    ];
    let failing: BTreeMap<_, _> = failing.map(|(kind, why)| (kind.to_owned(), why.to_owned())).into();
    assert_eq!(told(&mut reports, 5).await, failing);
    // Another reason is told, too.
    servers.remove(0).abort();
    assert_eq!(told(&mut reports, 1).await, BTreeMap::from([("http".to_owned(), "connection refused".to_owned())]));

    answers["http"].store(200, Relaxed);
    answers["https"].store(200, Relaxed);
    answers["grpc"].store(1, Relaxed);
    let _udp = UdpSocket::bind(("127.0.0.1", ports["udp"])).await.unwrap();
    for kind in ["tcp", "http"] {
        let listener = TcpListener::bind(("127.0.0.1", ports[kind])).await.unwrap();
        servers.push(serve(listener, kind, answers.get(kind).cloned().unwrap_or_default()));
    }
    assert_eq!(told(&mut reports, 5).await, well);
    // Who isn't a target any more is probed no more.
    sender.send_replace(Targets::new());
    servers.iter().for_each(JoinHandle::abort);
    let more = timeout(Duration::from_secs(1), reports.recv()).await;
    assert!(more.is_err(), "{more:?}");
}

/// One who says nothing, and what isn't what it shall be.
#[tokio::test]
async fn servers_that_are_none() {
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closing = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let [silent, closed] = [&mute, &closing].map(|listener| listener.local_addr().unwrap().port());
    let closing = serve(closing, "tcp", Answer::default());
    let mut targets = Targets::new();
    for (text, port) in [("http", silent), ("https", silent), ("grpc", silent), ("http", closed), ("grpc", closed)] {
        let check = Check::parse(&format!("{text} interval=300ms")).unwrap().unwrap();
        let name = format!("{text} {}", if port == silent { "silent" } else { "closed" });
        targets.insert(target(&name, port), (Arc::new(check), false));
    }
    let (_sender, receiver) = watch::channel(targets);
    let mut reports = spawn(receiver).unwrap();
    let told = told(&mut reports, 5).await;
    for (name, why) in told {
        match name.ends_with("silent") {
            true => assert_eq!(why, "no answer within 300ms", "{name}"),
            false => assert!(["closed", "reset", "broken pipe"].iter().any(|word| why.contains(word)), "{name}: {why}"),
        }
    }
    closing.abort();
}

/// A thousand at a second cost a tenth of a core at the most: the part that probes, beside servers elsewhere.
#[test]
fn a_thousand_endpoints() {
    let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    _ = std::thread::spawn(move || listener.incoming().for_each(drop));
    let check = Arc::new(Check::parse("tcp interval=1s").unwrap().unwrap());
    let address = |i: u32| IpAddr::V4(Ipv4Addr::from_bits(0x7f01_0001 + i));
    let targets: Targets =
        (0..1_000).map(|i| (Target { addr: address(i), ..target("a", port) }, (check.clone(), true))).collect();
    let spent = || {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let share = runtime.block_on(async {
        let (_sender, receiver) = watch::channel(targets);
        let mut reports = spawn(receiver).unwrap();
        for _ in 0..1_000 {
            let told = timeout(Duration::from_secs(20), reports.recv()).await.unwrap().unwrap();
            assert_eq!(told.failing, None, "{told:?}");
        }
        let (from, before) = (Instant::now(), spent());
        sleep(Duration::from_secs(4)).await;
        (spent() - before).as_secs_f64() / from.elapsed().as_secs_f64()
    });
    println!("1000 endpoints at 1 s: {:.1} % of a core", share * 100.0);
    // Without optimization it costs several times as much.
    assert!(share < if cfg!(debug_assertions) { 0.5 } else { 0.1 }, "{share}");
}
