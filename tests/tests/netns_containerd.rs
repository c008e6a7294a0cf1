//! Pods by a container runtime of its own: containerd, runc and the plugin as `stellwerk cni install` puts it there.

use std::time::{Duration, Instant};

use stellwerk_tests::netns::cni::Node;
use stellwerk_tests::netns::config::Service;
use stellwerk_tests::netns::containerd::Containerd;
use stellwerk_tests::netns::device;

#[test]
fn containers_reach_each_other_services_and_names() {
    let node = Node::open("pods: { blocks: [172.27.3.0/26, \"fd00:27:3::/122\"], cooldown: 1s }\n", |files| {
        let service = Service::tcp("web", 80, 8080, device::cluster(40)).endpoint(device::pod(3, 1), "edge-1");
        files.write(&service)
    })
    .unwrap();
    let dir = node.device.lab.dir();
    let (bin, conf) = (dir.join("bin"), dir.join("net.d"));
    let words = ["cni", "install", "--bin-dir", bin.to_str().unwrap(), "--conf-dir", conf.to_str().unwrap()];
    node.agent.command(&words).unwrap();
    let mut containerd = Containerd::start(&node.device.lab, &node.device.dev, (&bin, &conf), "172.28.0.10").unwrap();
    containerd.run("server", "httpd -f -p 8080 -h /www").unwrap();
    containerd.run("client", "sleep 600").unwrap();
    assert_eq!(node.leases().unwrap().len(), 2);

    // The server is up a moment after its container.
    let end = Instant::now() + Duration::from_secs(20);
    while let Err(error) = containerd.exec("client", "wget -q -O - http://172.27.3.1:8080/") {
        assert!(Instant::now() < end, "the server doesn't answer: {error:#}\n{}", node.agent.log_tail());
        std::thread::sleep(Duration::from_millis(100));
    }
    for (from, to) in [("client", device::pod(3, 1)), ("server", device::pod(3, 2))] {
        for addr in to.both() {
            containerd.exec(from, &format!("ping -c 1 -W 5 {addr}")).unwrap();
        }
    }
    for url in ["172.27.3.1:8080", "[fd00:27:3::1]:8080", "172.28.0.40", "[fd00:28::28]"] {
        for from in ["client", "server"] {
            let page = containerd.exec(from, &format!("wget -q -O - http://{url}/")).unwrap();
            assert_eq!(page, "here I am\n", "{url} from the {from}");
        }
    }
    let answer = containerd.exec("client", "nslookup web.default.svc.cluster.local").unwrap();
    assert!(answer.contains("172.28.0.40") && answer.contains("fd00:28::28"), "{answer}");
    node.clean();

    // What ends gives its interface back; others stay.
    containerd.stop("server").unwrap();
    assert_eq!(node.leases().unwrap().len(), 1);
    containerd.exec("client", "ping -c 1 -W 5 192.168.20.10").unwrap();
    containerd.stop("client").unwrap();
    assert!(node.leases().unwrap().is_empty());
    node.clean();
}
