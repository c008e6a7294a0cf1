//! Configuration texts and what they give: data, and the exact words of every error.

use super::*;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(&"c.yaml".into(), text).map_err(|e| e.to_string())
}

const WHOLE: &str = "\
node: edge-1
ports:
  Port2: { interface: eth0, gateway: 203.0.113.1 }
  Port3: { interface: eth1, compute: true, hook: tc }
internalSwitch: { interface: br-int, address: 10.20.0.1/24 }
inside: ['veth*', cni0]
cluster:
  nodeIPs: [192.168.20.10-192.168.20.12, fd00:20::10/127]
  serviceIPs: [192.168.20.100-192.168.20.120, fd00:20::100 - fd00:20::1ff]
  podSubnet: [172.27.0.0/16, fd00:27::/64]
  serviceSubnet: 172.28.0.1/16
  manifests: ./cluster
timeouts: { tcpEstablished: 2h4m, tcpTransitory: 240, tcpClosed: 5s, udpUnanswered: 30, udpAnswered: 3m, sctpEstablished: 1d2h, sctpTransitory: 1m30s, fragment: 60 }
snatPorts: 2000-3000
icmpRate: 0
capacity: { connections: 1000, nextHops: 20 }
log: { tracePort: 8080 }
draining: 45s
";

#[test]
fn whole_file() {
    let config = parse(WHOLE).unwrap();
    let intent = config.intent(7, Vec::new());
    assert_eq!((intent.revision, intent.node.as_str(), intent.inside.join(" ").as_str()), (7, "edge-1", "veth* cni0"));
    let ports: Vec<_> = intent
        .ports
        .iter()
        .map(|p| format!("{} {} {:?} {} {:?}", p.name, p.interface, p.gateways, p.compute, p.hook))
        .collect();
    assert_eq!(ports, ["Port2 eth0 [203.0.113.1] false Auto", "Port3 eth1 [] true Tc"]);
    let ranges: Vec<_> = intent.service_ranges.iter().map(show).collect();
    assert_eq!(ranges, ["192.168.20.100-192.168.20.120", "fd00:20::100-fd00:20::1ff", "172.28.0.0-172.28.255.255"]);
    let tuning = &intent.tuning;
    let times =
        [tuning.tcp_established, tuning.tcp_transitory, tuning.tcp_closed, tuning.udp_unanswered, tuning.udp_answered];
    assert_eq!(times, [7_440, 240, 5, 30, 180]);
    assert_eq!([tuning.sctp_established, tuning.sctp_transitory, tuning.fragment], [93_600, 90, 60]);
    assert_eq!((tuning.snat_first, tuning.snat_last, tuning.icmp_rate, tuning.trace_port), (2_000, 3_000, 0, 8_080));
    let capacity = tuning.capacity;
    assert_eq!((capacity.connections, capacity.next_hops, capacity.services), (1_000, 20, 16_384));
    assert_eq!(config.draining, Duration::from_secs(45));
    assert_eq!(config.manifests, Some("./cluster".into()));
    let notices: Vec<_> = config.notices.iter().map(ToString::to_string).collect();
    assert_eq!(
        notices,
        ["c.yaml:11:18: cluster.serviceSubnet: `172.28.0.1/16` has bits behind its prefix; taken as 172.28.0.0/16"]
    );
}

#[test]
fn socket_balancing() {
    let with = |cluster: &str| parse(&format!("node: n\ninside: a\ncluster: {{{cluster}}}\n")).unwrap().sockets;
    for (cluster, want) in [
        ("", SocketBalancing::On),
        ("socketBalancing: true", SocketBalancing::On),
        ("socketBalancing: false", SocketBalancing::Off),
        ("socketBalancing: /sys/fs/cgroup/a", SocketBalancing::At("/sys/fs/cgroup/a".into())),
    ] {
        assert_eq!(with(cluster), want, "{cluster}");
    }
}

#[test]
fn least_file() {
    let config = parse("node: n\ninternalSwitch: { interface: br0 }\n").unwrap();
    assert_eq!(config.tuning, Tuning::default());
    assert_eq!(config.draining, Duration::from_secs(30));
}

mod api;
mod dns;
mod kernel;
mod nat;
mod pools;
mod routes;
mod web;
mod wrong;
