//! Keys of the cluster's names: what they give, and what is refused in which words.

use super::*;
use crate::config::Pods;
use crate::intent::{Endpoint, EndpointState, Protocol, ServicePort, Traffic};

fn config(cluster: &str) -> Result<Config, String> {
    parse(&format!("node: n\ninternalSwitch: {{ interface: br0, address: 10.20.0.1/24 }}\ncluster:\n{cluster}"))
}

fn text<T: ToString>(all: impl IntoIterator<Item = T>) -> String {
    all.into_iter().map(|one| one.to_string()).collect::<Vec<_>>().join(" ")
}

#[test]
fn names_by_default() {
    assert_eq!(config("  serviceSubnet: 172.28.0.0/16").unwrap().dns, None);
    let config =
        config("  serviceSubnet: [172.28.0.0/16, 'fd00:28::/112']\n  podSubnet: 172.27.0.0/16\n  dns: {}\n").unwrap();
    let dns = config.dns.clone().unwrap();
    assert_eq!((dns.domain.as_str(), dns.ttl, dns.pods), ("cluster.local", 5, Pods::Disabled));
    // There is no address of IPv6 to listen at.
    assert_eq!((text(&dns.addresses), text(&dns.inner)), ("172.28.0.10".into(), "10.20.0.1:10053".into()));
    assert_eq!(text(dns.listens()), "10.20.0.1:10053");
    assert_eq!(text(&dns.allow_from), "10.20.0.0/24 172.27.0.0/16");
    assert_eq!((dns.upstreams, dns.serve_stale, dns.rate_limit, dns.cache_entries), (vec![], None, 2_000, 10_000));
    assert_eq!(config.notices, []);
}

#[test]
fn names_by_choice() {
    let dns = "  serviceSubnet: [172.28.0.0/16, 'fd00:28::/112']
  dns:
    domain: Edge.Example.
    address: [172.28.0.53, 'fd00:28::53']
    nodeAddresses: [10.20.0.1, 'fd00:20::1']
    ttl: 30
    pods: verified
    externalZone: out.example
    upstreams: [127.0.0.53, '[fd00::53]:5353']
    forwards: { example.corp: 10.0.0.53, 'lab.example.corp': [10.0.0.54, 10.0.0.55] }
    hosts: { registry.local: 10.0.0.5 }
    cacheEntries: 5
    serveStale: 1h
    allowFrom: [10.0.0.0/8, 192.0.2.1]
    allowTransfer: 10.0.0.9
    rateLimit: 0
";
    let dns = config(dns).unwrap().dns.unwrap();
    assert_eq!((dns.domain.as_str(), dns.ttl, dns.pods), ("edge.example", 30, Pods::Verified));
    assert_eq!(text(&dns.addresses), "172.28.0.53 fd00:28::53");
    assert_eq!(text(&dns.inner), "10.20.0.1:53 [fd00:20::1]:53");
    assert_eq!(text(dns.listens()), "10.20.0.1:53 [fd00:20::1]:53");
    assert_eq!(text(&dns.upstreams), "127.0.0.53:53 [fd00::53]:5353");
    let forwards: Vec<String> = dns.forwards.iter().map(|(domain, to)| format!("{domain}={}", text(to))).collect();
    assert_eq!(forwards, ["example.corp=10.0.0.53:53", "lab.example.corp=10.0.0.54:53 10.0.0.55:53"]);
    assert_eq!((dns.hosts.len(), dns.cache_entries, dns.rate_limit), (1, 5, 0));
    assert_eq!((dns.serve_stale, dns.external_zone), (Some(Duration::from_secs(3_600)), Some("out.example".into())));
    assert_eq!(
        (text(&dns.allow_from), text(&dns.allow_transfer)),
        ("10.0.0.0/8 192.0.2.1/32".into(), "10.0.0.9/32".into())
    );
}

#[test]
fn wrong_names() {
    let cases = [
        (
            "{}",
            "c.yaml:4:8: cluster.dns: has nowhere to be asked; expected a cluster.serviceSubnet, whose tenth address it gets, or `address`, and of its family an internalSwitch.address or one of `nodeAddresses`",
        ),
        (
            "{ address: 'fd00::1' }",
            "c.yaml:4:19: cluster.dns.address: `fd00::1` leads nowhere, since this node has no IPv6 address to listen at; expected an internalSwitch.address or one of cluster.dns.nodeAddresses of that family",
        ),
        (
            "{ address: [172.28.0.10, 172.28.0.11] }",
            "c.yaml:4:33: cluster.dns.address[1]: `172.28.0.11` is a second IPv4 address; expected one a family",
        ),
        (
            "{ address: 172.28.0.10, pods: yes }",
            "c.yaml:4:38: cluster.dns.pods: `yes` is not disabled, insecure or verified",
        ),
        (
            "{ address: 172.28.0.10, domain: a..b }",
            "c.yaml:4:40: cluster.dns.domain: `a..b` is not a domain such as cluster.local",
        ),
        (
            "{ address: 172.28.0.10, upstreams: dns.example }",
            "c.yaml:4:43: cluster.dns.upstreams: `dns.example` is not a name server such as 10.0.0.53, 10.0.0.53:5353 or [fd00::53]:53",
        ),
        (
            "{ address: 172.28.0.10, forwards: { example: [] } }",
            "c.yaml:4:53: cluster.dns.forwards.example: is empty; expected a name server such as 10.0.0.53, 10.0.0.53:5353 or [fd00::53]:53",
        ),
        (
            "{ address: 172.28.0.10, externalZone: x.cluster.local }",
            "c.yaml:4:8: cluster.dns: externalZone `x.cluster.local` and the domain `cluster.local` are one in the other; expected two apart",
        ),
        ("{ address: 172.28.0.10, zone: x }", "c.yaml:4:33: cluster.dns.zone: unknown key; expected"),
    ];
    for (dns, want) in cases {
        let said = config(&format!("  dns: {dns}\n")).err().unwrap_or_else(|| "no error".into());
        assert!(
            said == want || (want.ends_with("expected") && said.contains("zone: unknown key")),
            "{said}\nfor {dns}"
        );
    }
}

/// A service of the cluster at its address holds, and that is told.
#[test]
fn a_service_at_its_place_holds() {
    let config = config("  dns: { address: 172.28.0.10 }\n").unwrap();
    let service = |addr: &str, protocol| ServicePort {
        namespace: "kube-system".into(),
        name: "kube-dns".into(),
        port_name: "dns".into(),
        protocol,
        port: 53,
        node_port: None,
        addresses: vec![addr.parse().unwrap()],
        affinity: None,
        traffic: Traffic::default(),
        endpoints: vec![Endpoint {
            addr: "172.27.1.9".parse().unwrap(),
            port: 53,
            weight: 1,
            node: None,
            state: EndpointState::Ready,
        }],
    };
    let names = |services: Vec<ServicePort>| text(config.with_published(services).iter().map(ServicePort::full_name));
    let ours = "kube-system/stellwerk-dns:dns kube-system/stellwerk-dns:dns-tcp";
    assert_eq!(names(vec![]), ours);
    let elsewhere = service("172.28.0.11", Protocol::Udp);
    assert_eq!(names(vec![elsewhere.clone()]), format!("kube-system/kube-dns:dns {ours}"));
    assert_eq!(config.dns_notices(&[elsewhere]), []);
    let there = [service("172.28.0.10", Protocol::Udp), service("172.28.0.10", Protocol::Tcp)];
    assert_eq!(names(there.to_vec()), "kube-system/kube-dns:dns kube-system/kube-dns:dns");
    let told = text(config.dns_notices(&there));
    assert_eq!(
        told,
        "c.yaml:4:8: cluster.dns: the Service kube-system/kube-dns has the address 172.28.0.10: it holds, and stellwerk's DNS is not asked there"
    );
}
