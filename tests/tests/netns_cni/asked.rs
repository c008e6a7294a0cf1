//! What pods and their runtimes ask for beside an interface: certain addresses, and limits.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;
use stellwerk_tests::netns::Ns;
use stellwerk_tests::netns::cni::{Call, Node, addresses, twin};
use stellwerk_tests::netns::device;
use stellwerk_tests::netns::probe::{self, From};

use super::{ECHO, IP, serve, standard};

#[test]
fn addresses_that_pods_ask_for() {
    let pod = |name: &str, addresses: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  annotations: {{ stellwerk.io/ip-addresses: \"{addresses}\" }}\n"
        )
    };
    let text = [("both", "172.27.3.40,fd00:27:3::28"), ("one", "172.27.3.41"), ("far", "172.27.9.1")];
    let text: String = text.iter().map(|(name, addresses)| pod(name, addresses)).collect();
    let lines = "pods: { blocks: [172.27.3.0/26, \"fd00:27:3::/122\"] }\n";
    let node = Node::open(lines, |files| files.replace("cluster/pods.yaml", &text)).unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|name| node.pod(name).unwrap());
    let args = |name: &str| format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME={name}");
    assert_eq!(addresses(&node.runtime.add(&a, "a", &args("both")).unwrap()), ["172.27.3.40", "fd00:27:3::28"]);
    // Of the other family any; what the runtime says goes before.
    assert_eq!(addresses(&node.runtime.add(&b, "b", &args("one")).unwrap()), ["172.27.3.41", "fd00:27:3::1"]);
    let said = format!("{:#}", node.runtime.add(&c, "c", &args("far")).unwrap_err());
    assert!(said.contains("172.27.9.1 is in none of this node's blocks") && said.contains("100"), "{said}");
    let runtimes = format!("{};IP=172.27.3.50", args("far"));
    assert_eq!(addresses(&node.runtime.add(&c, "c", &runtimes).unwrap())[0], "172.27.3.50");
    node.clean();
}

/// How long it takes to send so many bytes and to get them back.
fn exchange(from: &Ns, to: SocketAddr, length: usize) -> Duration {
    let began = Instant::now();
    probe::tcp(&From::ns(from), to, length).unwrap();
    began.elapsed()
}

/// What a bucket has let pass can't have taken less than its rate says: there is no other way in, also not by XDP.
#[test]
fn bandwidth() {
    let node = standard();
    let [a, b] = ["a", "b"].map(|name| node.pod(name).unwrap());
    node.runtime.add(&a, "a", "").unwrap();
    let (rate, burst) = (8_000_000, 800_000_usize);
    let conf = json!({ "runtimeConfig": { "bandwidth": { "ingressRate": rate, "ingressBurst": burst } } });
    let call = Call { verb: "ADD", container: "b", netns: Some(b.path()), args: IP, version: "1.1.0", conf };
    let said = node.runtime.call(&call).unwrap();
    assert!(said.success, "{}", said.value);
    let (slow, length) = (device::pod(3, 20), 600_000);
    let _b = serve(&b, "b", slow);
    let least = Duration::from_secs_f64((length - burst / 8) as f64 / f64::from(rate / 8));
    for (at, service) in slow.both().into_iter().zip(device::external(112).both()) {
        let (at, service) = (SocketAddr::new(at, ECHO), SocketAddr::new(service, 80));
        for (from, to) in [(&a, at), (&node.device.client, service), (&node.device.dev, at)] {
            let took = exchange(from, to, length);
            assert!(took >= least, "{length} bytes from {} to {to} took {took:?}", from.full_name());
        }
    }
    // What it sends has a limit of its own.
    let c = node.pod("c").unwrap();
    let conf = json!({ "runtimeConfig": { "bandwidth": { "egressRate": rate, "egressBurst": burst } } });
    let said = node.runtime.call(&Call { conf, container: "c", netns: Some(c.path()), args: "", ..call }).unwrap();
    assert!(said.success, "{}", said.value);
    let at = twin(&said.value).unwrap();
    let _c = serve(&c, "c", at);
    let took = exchange(&a, SocketAddr::new(at.v6, ECHO), length);
    assert!(took >= least, "{length} bytes to and from {} took {took:?}", at.v6);
    node.clean();
}
