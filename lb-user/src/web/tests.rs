//! Who may ask, and in which words others are told that they may not; what is told over a real socket.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::rustls::pki_types::ServerName;

use super::answer::{Asked, answer};
use super::*;
use crate::config::Tls;
use crate::health::tls;

fn asked(token: Option<&str>) -> Asked {
    // Nothing is pinned there.
    let paths = Paths::new(format!("/nowhere/stellwerk-web-{}", std::process::id()));
    let vitals = Arc::new(Vitals::default());
    let web = Web { listen: "127.0.0.1:9617".parse().unwrap(), token: None, tls: None };
    let watched = Watched {
        vitals,
        cache: cache::Cache::new(&paths),
        history: history::History::default(),
        requests: metrics::Requests::default(),
        paths,
    };
    Asked { watched: Arc::new(watched), settings: Settings { web, names: false }, token: token.map(Arc::from) }
}

async fn ask(asked: &Asked, method: Method, path: &str, headers: &[(&str, &str)]) -> (StatusCode, String, String) {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = answer(asked, &request.body(Empty::<Bytes>::new()).unwrap()).await;
    let status = response.status();
    let headers = response.headers();
    assert_eq!(headers["x-content-type-options"], "nosniff");
    assert!(headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"), "{path}");
    let kind = headers["content-type"].to_str().unwrap().to_owned();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, kind, String::from_utf8(body.to_vec()).unwrap())
}

async fn get(asked: &Asked, path: &str) -> (u16, String) {
    let (status, _, body) = ask(asked, Method::GET, path, &[("host", "127.0.0.1:9617")]).await;
    (status.as_u16(), body)
}

#[tokio::test]
async fn nothing_is_changed_here() {
    let asked = asked(None);
    for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
        let (status, _, body) = ask(&asked, method, "/", &[("host", "localhost")]).await;
        let want = r#"{"error":"nothing can be changed here: expected GET or HEAD"}"#;
        assert_eq!((status.as_u16(), body.as_str()), (405, want));
    }
    let (status, _, body) = ask(&asked, Method::HEAD, "/", &[("host", "localhost")]).await;
    assert_eq!((status.as_u16(), body.as_str()), (200, ""));
}

#[tokio::test]
async fn a_loopback_is_asked_by_its_name() {
    let asked = asked(None);
    for (host, want) in [
        ("127.0.0.1:9617", 200),
        ("127.0.0.1", 200),
        ("[::1]:9617", 200),
        ("[::1]", 200),
        ("LocalHost:80", 200),
        ("evil.example:9617", 421),
        ("localhost.evil.example", 421),
        ("192.168.20.10:9617", 421),
        ("", 421),
    ] {
        let (status, ..) = ask(&asked, Method::GET, "/api/v1/about", &[("host", host)]).await;
        assert_eq!(status.as_u16(), want, "{host}");
    }
    assert_eq!(ask(&asked, Method::GET, "/api/v1/about", &[]).await.0.as_u16(), 421);
}

#[tokio::test]
async fn a_token_opens() {
    let asked = asked(Some("0123456789abcdef"));
    let host = ("host", "edge-1.example");
    for (said, want) in [
        ("Bearer 0123456789abcdef", 200),
        ("bearer 0123456789abcdef", 200),
        ("Bearer 0123456789abcdeF", 401),
        ("Bearer 0123456789abcde", 401),
        ("Bearer ", 401),
        ("Basic 0123456789abcdef", 401),
        ("", 401),
    ] {
        for path in ["/api/v1/about", "/metrics"] {
            let (status, ..) = ask(&asked, Method::GET, path, &[host, ("authorization", said)]).await;
            assert_eq!(status.as_u16(), want, "{said} at {path}");
        }
    }
    // The page has no data in it, and probes have no token.
    for (path, want) in [("/", 200), ("/healthz", 200), ("/readyz", 503), ("/api/v1/services", 401), ("/x", 401)] {
        assert_eq!(ask(&asked, Method::GET, path, &[host]).await.0.as_u16(), want, "{path}");
    }
}

#[tokio::test]
async fn what_cannot_be_told_is_said() {
    let asked = asked(None);
    let (status, body) = get(&asked, "/api/v1/services").await;
    assert_eq!(status, 503);
    assert!(body.starts_with(r#"{"error":"nothing is loaded at /nowhere/"#), "{body}");
    assert_eq!(get(&asked, "/api/v1/dns").await, (200, "[]".into()));
    assert_eq!(get(&asked, "/api/v1/pods?limit=0").await.0, 400);
    let (status, body) = get(&asked, "/api/v1/flows?q=1").await;
    assert_eq!(status, 400);
    assert_eq!(body, r#"{"error":"`q=1` is not limit=N with a number from 1 to 10000"}"#);
    assert_eq!(get(&asked, "/api/v1/nothing").await.0, 404);
    assert_eq!(get(&asked, "/readyz").await, (503, "the tables have not been filled yet\n".into()));
    asked.watched.vitals.turn(3, 3);
    asked.watched.vitals.fill();
    assert_eq!(get(&asked, "/readyz").await, (200, "ok\n".into()));
    let (_, about) = get(&asked, "/api/v1/about").await;
    let about: serde_json::Value = serde_json::from_str(&about).unwrap();
    assert_eq!((&about["revision"], &about["ready"]), (&3.into(), &true.into()));
}

#[tokio::test]
async fn metrics_without_tables() {
    let asked = asked(None);
    asked.watched.vitals.turn(4, 3);
    asked.watched.vitals.apply(Duration::from_millis(3), 7);
    let (_, text) = get(&asked, "/metrics").await;
    for line in [
        "# TYPE stellwerk_apply_operations_total counter",
        "stellwerk_apply_operations_total 7",
        "stellwerk_agent_revision_lag 1.0",
        "stellwerk_apply_duration_seconds_bucket{le=\"0.0025\"} 0",
        "stellwerk_apply_duration_seconds_bucket{le=\"0.005\"} 1",
        "stellwerk_apply_duration_seconds_count 1",
        "stellwerk_listing_up{listing=\"services\"} 0.0",
        "stellwerk_listing_up{listing=\"pods\"} 1.0",
        "stellwerk_pods 0.0",
    ] {
        assert!(text.lines().any(|have| have == line), "no {line} in\n{text}");
    }
    assert!(!text.contains("# EOF") && !text.contains("listing=\"dns\""), "{text}");
    let accept = ("accept", "application/openmetrics-text;version=1.0.0");
    let (_, kind, text) = ask(&asked, Method::GET, "/metrics", &[("host", "localhost"), accept]).await;
    assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"), "{kind}");
    assert!(text.ends_with("# EOF\n") && text.contains("# UNIT stellwerk_apply_duration_seconds seconds\n"), "{text}");
    // The first one was counted.
    assert!(text.contains("stellwerk_http_requests_total{code=\"200\"} 1\n"), "{text}");
}

/// Each path is described, and what is described is there.
#[test]
fn the_description_has_each_path() {
    let described: Vec<&str> = page::OPENAPI
        .lines()
        .filter_map(|line| line.strip_prefix("  /").and_then(|line| line.strip_suffix(':')))
        .filter(|path| path.starts_with("api/v1/"))
        .map(|path| &path["api/v1/".len()..])
        .collect();
    let mut there: Vec<&str> = vec!["openapi.yaml", "about", "history"];
    there.extend(listings::LISTINGS.iter().map(|listing| listing.name));
    assert_eq!(described, there);
}

/// A server at a free port; it ends with the runtime.
async fn served() -> (Server, SocketAddr) {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let paths = Paths::new(format!("/nowhere/stellwerk-served-{}", std::process::id()));
    let server = Server::start(&paths, &Arc::default()).unwrap();
    let web = Web { listen: free, token: None, tls: None };
    server.configure(Some(Settings { web, names: false }));
    (server, free)
}

async fn connect(at: SocketAddr) -> TcpStream {
    for _ in 0..200 {
        if let Ok(stream) = TcpStream::connect(at).await {
            return stream;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("nobody listens at {at}");
}

async fn talk(stream: &mut TcpStream, text: &[u8]) -> String {
    stream.write_all(text).await.unwrap();
    let mut got = vec![0; 4096];
    // Who is refused may find the connection closed at once.
    let n = stream.read(&mut got).await.unwrap_or(0);
    String::from_utf8_lossy(&got[..n]).into_owned()
}

#[tokio::test]
async fn over_a_socket_and_elsewhere_after_a_change() {
    let (server, at) = served().await;
    let mut stream = connect(at).await;
    let got = talk(&mut stream, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert!(got.starts_with("HTTP/1.1 200 OK") && got.ends_with("ok\n"), "{got}");
    // The same connection again, then what is no HTTP.
    let got = talk(&mut stream, b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert!(got.starts_with("HTTP/1.1 503"), "{got}");
    let got = talk(&mut connect(at).await, b"\x16\x03\x01 hello\r\n\r\n").await;
    assert!(got.starts_with("HTTP/1.1 400"), "{got}");

    server.configure(None);
    for left in (0..200).rev() {
        if TcpStream::connect(at).await.is_err() {
            break;
        }
        assert!(left > 0, "it listens although nobody is to watch");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn over_tls_with_a_token() {
    let dir = std::env::temp_dir().join(format!("stellwerk-tls-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = |name: &str, text: String| {
        std::fs::write(dir.join(name), text).unwrap();
        dir.join(name)
    };
    let certificate = file("cert.pem", pem("CERTIFICATE", include_bytes!("../health/run/cert.der")));
    let key = file("key.pem", pem("PRIVATE KEY", include_bytes!("../health/run/key.der")));
    let token = Some(file("token", "0123456789abcdef\n".into()));
    let (server, at) = served().await;
    let settings = |tls| Settings { web: Web { listen: at, token: token.clone(), tls }, names: false };
    server.configure(Some(settings(Some(Tls { certificate, key }))));
    let name = ServerName::try_from("edge-1.example").unwrap();
    let mut left = 200;
    let mut stream = loop {
        let tried = tls::connector().unwrap().connect(name.clone(), connect(at).await).await;
        if let Ok(stream) = tried {
            break stream;
        }
        // The former settings may still answer.
        left -= 1;
        assert!(left > 0, "{tried:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    for (said, want) in [("", "HTTP/1.1 401"), ("Authorization: Bearer 0123456789abcdef\r\n", "HTTP/1.1 200")] {
        let request = format!("GET /api/v1/history HTTP/1.1\r\nHost: edge-1.example\r\n{said}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut got = vec![0; 4096];
        let n = stream.read(&mut got).await.unwrap();
        let got = String::from_utf8_lossy(&got[..n]).into_owned();
        assert!(got.starts_with(want), "{got}");
    }
    // Who speaks without TLS gets nothing told.
    let got = talk(&mut connect(at).await, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert!(!got.contains("HTTP/1.1"), "{got}");
    std::fs::remove_dir_all(&dir).unwrap();
}

/// Bytes as text that PEM has between its lines.
pub fn pem(kind: &str, der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in der.chunks(3) {
        let bits = three.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for at in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * at)) as usize & 63] as char;
            text.push(if at <= three.len() { digit } else { '=' });
        }
    }
    format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n")
}
