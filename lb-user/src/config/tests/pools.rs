//! `cluster.pools`: what it gives, and what of it the kernel speaks against.

use super::*;
use crate::intent::{Address, Link, Network};
use crate::source::endpoints::Selector;

#[test]
fn pools_of_a_configuration() {
    let text = "node: n\ninside: x\ncluster:\n  serviceIPs: 10.0.0.1-10.0.0.9\n  pools:\n    \
        cameras: { addresses: [10.1.0.1/24, fd01::/120], priority: 5, autoAssign: false, avoidBuggyIPs: false }\n    \
        video:\n      addresses: 10.2.0.1-10.2.0.9\n      namespaces: [video, film]\n      \
        namespaceSelectors: [{ matchLabels: { team: a }, matchExpressions: [{ key: b, operator: NotIn, values: [x, y] }] }]\n      \
        serviceSelectors: { matchExpressions: [{ key: c, operator: Exists }, { key: d, operator: DoesNotExist }] }\n";
    let config = parse(text).unwrap();
    let notices: Vec<_> = config.notices.iter().map(ToString::to_string).collect();
    let want = "c.yaml:6:28: cluster.pools.cameras.addresses[0]: `10.1.0.1/24` has bits behind its prefix; taken as 10.1.0.0-10.1.0.255";
    assert_eq!(notices, [want]);
    let all = config.rules().all_pools();
    let shown: Vec<_> = all.iter().map(|p| format!("{} {} {}", p.name, p.shown(), p.size())).collect();
    let cameras = "cameras 10.1.0.0-10.1.0.255, fd01::-fd01::ff 512";
    assert_eq!(shown, ["default 10.0.0.1-10.0.0.9 9", cameras, "video 10.2.0.1-10.2.0.9 9"]);
    let (cameras, video) = (&all[1], &all[2]);
    assert_eq!(cameras.said(), "10.1.0.0-10.1.0.255, fd01::-fd01::ff; by request alone; priority 5");
    let for_whom = "for namespaces video, film; for namespaces with team=a,b notin (x,y); for services with c,!d";
    assert_eq!(video.said(), format!("10.2.0.1-10.2.0.9; {for_whom}"));
    assert_eq!((cameras.priority, cameras.auto_assign, cameras.avoid_buggy), (5, false, false));
    assert_eq!((video.priority, video.auto_assign, video.avoid_buggy), (0, true, true));
    assert_eq!(video.namespaces, ["video", "film"]);
    let text = |all: &[Selector]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(text(&video.namespace_selectors), ["team=a,b notin (x,y)"]);
    assert_eq!(text(&video.service_selectors), ["c,!d"]);
    let ranges: Vec<_> = config.intent(1, Vec::new()).service_ranges.iter().map(show).collect();
    assert_eq!(ranges, ["10.0.0.1-10.0.0.9", "10.1.0.0-10.1.0.255", "fd01::-fd01::ff", "10.2.0.1-10.2.0.9"]);
}

#[test]
fn ranges_against_the_kernel() {
    let link = |index: u32, name: &str| Link {
        index,
        name: name.into(),
        mac: None,
        mtu: 1500,
        up: true,
        master: None,
        kind: None,
        master_kind: None,
        xdp_transmit: true,
        queued: false,
    };
    let address = |link: u32, net: &str| Address { link, net: net.parse().unwrap(), temporary: false };
    let network = Network {
        links: vec![link(1, "eth0"), link(2, "eth1")],
        addresses: vec![
            address(1, "203.0.113.2/24"),
            address(2, "10.0.0.2/24"),
            address(2, "10.0.0.77/32"),
            address(1, "fe80::1/64"),
        ],
        ..Network::default()
    };
    let port = |compute| {
        format!(
            "node: n\nports:\n  A: {{ interface: eth0 }}\n  B: {{ interface: eth1, compute: {compute} }}\ncluster:\n"
        )
    };
    for (compute, text, want) in [
        (true, "  nodeIPs: 10.0.0.2-10.0.0.5\n  serviceIPs: 10.0.0.70-10.0.0.80\n", &[][..]),
        (true, "  serviceIPs: 10.9.0.1-10.9.0.5\n  podSubnet: fe80::/64\n", &[]),
        (
            true,
            "  nodeIPs: 203.0.113.5-203.0.113.6\n  pools: { a: { addresses: 203.0.113.9 } }\n",
            &[
                "c.yaml:6:12: cluster.nodeIPs: 203.0.113.5-203.0.113.6 overlaps the network of A (203.0.113.0/24); expected addresses in a compute port's network, or in no port's",
                "c.yaml:7:28: cluster.pools.a.addresses: 203.0.113.9 overlaps the network of A (203.0.113.0/24); expected addresses in a compute port's network, or in no port's",
            ],
        ),
        (false, "  nodeIPs: 203.0.113.5-203.0.113.6\n", &[]),
        (
            false,
            "  serviceIPs: 10.0.0.1-10.0.0.5\n  podSubnet: 203.0.0.0/16\n  serviceSubnet: 10.0.0.128/25\n",
            &[
                "c.yaml:6:15: cluster.serviceIPs: 10.0.0.1-10.0.0.5 has this node's own address 10.0.0.2 on `eth1`; expected none of those",
                "c.yaml:7:14: cluster.podSubnet: 203.0.0.0-203.0.255.255 overlaps the network of A (203.0.113.0/24); expected addresses in no port's network",
                "c.yaml:8:18: cluster.serviceSubnet: 10.0.0.128-10.0.0.255 overlaps the network of B (10.0.0.0/24); expected addresses in no port's network",
            ],
        ),
    ] {
        let config = parse(&format!("{}{text}", port(compute))).unwrap();
        let errors: Vec<_> = verify(&config, &network).iter().map(ToString::to_string).collect();
        assert_eq!(errors, want, "{compute} {text}");
    }
}
