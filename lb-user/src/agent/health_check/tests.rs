//! Real sockets on the loopback; ports that were free a moment ago.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::intent::{Protocol, Traffic};
use crate::moment::Moment;

async fn free_port() -> u16 {
    let listener = TcpListener::bind("[::]:0").await.expect("a socket");
    listener.local_addr().expect("its address").port()
}

fn answers(port: u16, endpoints: usize) -> Answers {
    let answer = Answer { namespace: "shop".into(), name: "web".into(), endpoints };
    Answers { ports: [(port, answer)].into(), nets: Vec::new() }
}

/// The status line, the weight and the body.
async fn ask(addr: &str, port: u16) -> Option<(String, String, String)> {
    let mut stream = TcpStream::connect((addr, port)).await.ok()?;
    stream.write_all(b"GET /any HTTP/1.1\r\nHost: node\r\n\r\n").await.ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let status = lines.next()?.to_owned();
    let weight = lines.find_map(|line| line.strip_prefix("x-load-balancing-endpoint-weight: "))?;
    Some((status, weight.to_owned(), body.to_owned()))
}

#[tokio::test]
async fn health_checks_tell_of_endpoints_on_this_node() {
    let port = free_port().await;
    let mut checks = HealthChecks::default();
    assert!(checks.set(answers(port, 2)));
    checks.changed().await;
    for addr in ["127.0.0.1", "::1"] {
        let (status, weight, body) = ask(addr, port).await.expect("an answer");
        assert_eq!((status.as_str(), weight.as_str()), ("HTTP/1.1 200 OK", "2"));
        let want = r#"{"service":{"namespace":"shop","name":"web"},"localEndpoints":2,"serviceProxyHealthy":true}"#;
        assert_eq!(body, want);
    }
    assert!(!checks.set(answers(port, 0)));
    let (status, weight, body) = ask("127.0.0.1", port).await.expect("an answer");
    assert_eq!((status.as_str(), weight.as_str()), ("HTTP/1.1 503 Service Unavailable", "0"));
    assert!(body.contains(r#""localEndpoints":0"#), "{body}");
    // At other addresses alone.
    let nets = vec!["192.0.2.0/24".parse().expect("a network")];
    assert!(!checks.set(Answers { nets, ..answers(port, 2) }));
    assert_eq!(ask("127.0.0.1", port).await, None);
    // The service goes, and its port with it.
    assert!(checks.set(Answers::default()));
    for _ in 0..100 {
        if TcpListener::bind(("::", port)).await.is_ok() {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("the port {port} is still taken");
}

#[tokio::test]
async fn a_taken_health_check_port_is_told_and_tried_again() {
    let other = TcpListener::bind("[::]:0").await.expect("a socket");
    let port = other.local_addr().expect("its address").port();
    let mut checks = HealthChecks::default();
    checks.set(answers(port, 1));
    checks.changed().await;
    let known = checks.known();
    assert_eq!(known[&port].service, "shop/web");
    assert!(known[&port].trouble.as_ref().is_some_and(|why| why.contains("in use")), "{known:?}");
    drop(other);
    timeout(Duration::from_secs(10), checks.changed()).await.expect("it is tried again");
    assert_eq!(checks.known()[&port].trouble, None);
    assert!(ask("127.0.0.1", port).await.is_some());
}

#[test]
fn ready_endpoints_on_this_node_are_counted_once() {
    let endpoint = |addr: &str, node: &str, state| {
        let addr = addr.parse().expect("an address");
        Endpoint { addr, port: 80, weight: 1, node: Some(node.into()), state }
    };
    let leaving = EndpointState::Draining { until: Moment::START };
    let service = |name: &str, port_name: &str, health_check, endpoints| ServicePort {
        namespace: "shop".into(),
        name: name.into(),
        port_name: port_name.into(),
        protocol: Protocol::Tcp,
        port: 80,
        node_port: None,
        addresses: Vec::new(),
        affinity: None,
        traffic: Traffic { health_check, ..Traffic::default() },
        endpoints,
    };
    let here = |addr, state| endpoint(addr, "n1", state);
    let services = [
        service("plain", "", None, vec![here("10.0.0.1", EndpointState::Ready)]),
        service(
            "web",
            "a",
            Some(31_000),
            vec![
                here("10.0.0.1", EndpointState::Ready),
                here("10.0.0.2", EndpointState::Spare),
                here("10.0.0.3", leaving),
                endpoint("10.0.0.4", "n2", EndpointState::Ready),
            ],
        ),
        service("web", "b", Some(31_000), vec![here("10.0.0.1", EndpointState::Ready)]),
        service("none", "", Some(31_001), vec![endpoint("10.0.0.4", "n2", EndpointState::Ready)]),
    ];
    let Answers { ports, .. } = Answers::new(&services, &[], |e| e.node.as_deref() == Some("n1"));
    let counts: Vec<(u16, &str, usize)> = ports.iter().map(|(&port, a)| (port, a.name.as_str(), a.endpoints)).collect();
    assert_eq!(counts, [(31_000, "web", 2), (31_001, "none", 0)]);
}
