//! What is refused, and in which words.

use super::*;

/// Lines behind `node: n` and `inside: x`, so that each case is only what it is about.
fn errors(text: &str) -> String {
    parse(&format!("node: n\ninside: x\n{text}")).err().unwrap_or_else(|| "no error".into())
}

#[test]
fn wrong_values() {
    for (text, want) in CASES {
        assert_eq!(errors(text), want.join("\n"), "for\n{text}");
    }
}

#[test]
fn wrong_files() {
    let cases = [
        ("", "c.yaml: is empty; expected a map with the keys node, ports, …"),
        (
            "- a",
            "c.yaml:1:1: a list is not a map with the keys node, ports, internalSwitch, inside, publish, routes, cluster, timeouts, snatPorts, icmpRate, forwarding, capacity, log, draining, pods, nodes, web, control",
        ),
        ("node: n", "c.yaml:1:1: names no interface; expected at least one of ports, internalSwitch, inside"),
        (
            "inside: x",
            "c.yaml:1:1: node: is missing; expected this node's name, as endpoints name it (a word of letters, digits, `-` and `.`)",
        ),
        (
            "node: a b\ninside: x",
            "c.yaml:1:7: node: `a b` is not this node's name, as endpoints name it (a word of letters, digits, `-` and `.`)",
        ),
        ("node: n\ninside: x\n---\nnode: m", "c.yaml:4:1: a second document starts here; a configuration is one"),
        ("node: n\nnode: m", "c.yaml:2:1: the key `node` is given twice, first at 1:1"),
        (
            "node: n\nports:\n  A: {interface: a}\n  A: {interface: b}",
            "c.yaml:4:3: the key `A` is given twice, first at 3:3",
        ),
        ("node: [n", "c.yaml:1:7: not YAML: unclosed bracket '['"),
    ];
    for (text, want) in cases {
        assert_eq!(parse(text).err().unwrap_or_default(), want, "for\n{text}");
    }
    let missing = Config::load(Path::new("/nowhere/c.yaml")).unwrap_err();
    assert_eq!(missing.to_string(), "/nowhere/c.yaml: there is no such file");
    let folder = Config::load(Path::new("/")).unwrap_err();
    assert_eq!(folder.to_string(), "/: is a folder; expected a file");
}

const CASES: &[(&str, &[&str])] = &[
    (
        "pods: {}",
        &[
            "c.yaml:3:7: pods: there is no cluster.podSubnet; expected the one that pods' addresses are of",
            "c.yaml:3:7: pods: has no blocks of addresses; expected `blocks` such as [172.27.1.0/26, fd00:27:1::/122], or this node among `nodes`, or cluster.manifests or cluster.kubeconfig with this node's Node, whose podCIDRs they are",
        ],
    ),
    (
        "cluster: { podSubnet: 172.27.0.0/16 }\npods: { blocks: [172.27.1.0/26, 172.28.1.0/26, 172.27.1.32/27, 172.27.1.0] }",
        &[
            "c.yaml:4:33: pods.blocks[1]: `172.28.1.0/26` is in no cluster.podSubnet; expected a part of one",
            "c.yaml:4:48: pods.blocks[2]: `172.27.1.32/27` overlaps pods.blocks[0] (172.27.1.0/26); expected blocks apart",
            "c.yaml:4:64: pods.blocks[3]: `172.27.1.0` has no prefix length; expected a subnet such as 172.27.0.0/16 or fd00::/64",
        ],
    ),
    (
        "cluster: { podSubnet: 172.27.0.0/16 }\npods: { blocks: 172.27.1.0/26, mtu: 1279, cooldown: 0, block: 3 }",
        &[
            "c.yaml:4:37: pods.mtu: `1279` is too small; expected a number of bytes from 1280 to 65535",
            "c.yaml:4:53: pods.cooldown: `0` is no time at all; expected a time from 1s to 20d, such as 30, 90s or 2h4m",
            "c.yaml:4:56: pods.block: unknown key; expected `blocks`",
        ],
    ),
    (
        "cluster: { podSubnet: 172.27.0.0/16 }\npods: { blocks: 172.27.1.0/26, policy: yes }",
        &["c.yaml:4:40: pods.policy: `yes` is not on or off"],
    ),
    (
        "cluster: { podSubnet: 172.27.0.0/16 }\npods: { blocks: 172.27.1.0/26, natOutgoing: ipv6 }",
        &["c.yaml:4:45: pods.natOutgoing: `ipv6` is not on or off"],
    ),
    (
        "cluster: { podSubnet: 172.27.0.0/16 }\npods: { blocks: 172.27.1.0/26, natOutgoing: on }\ninternalSwitch: { interface: br, ipv6: prefix, prefixes: { inside: \"fd00::/64\", outside: \"2001:db8::/64\" } }",
        &[
            "c.yaml:4:45: pods.natOutgoing: `on` is a masquerade, but internalSwitch.ipv6 is prefix; expected one of the two",
        ],
    ),
    (
        "cluster: { podSubnet: 172.27.0.0/16 }\npods: { blocks: 172.27.1.0/26, policy: on }",
        &[
            "c.yaml:4:40: pods.policy: nobody says which policies there are; expected cluster.manifests or cluster.kubeconfig, whose NetworkPolicies, Pods and Namespaces they are",
        ],
    ),
    (
        "cluster: { podSubnet: 172.27.0.0/16 }\npods: { overlay: sometimes, vxlanPort: 0, vni: 16777216 }\nnodes: [{ name: n, addresses: 1.2.3, blocks: 172.27.1.0/26 }, { name: n, addresses: 192.0.2.1, blocks: 172.27.2.0/26 }, { name: b, blocks: 172.27.1.0/27 }, { name: c, addresses: 192.0.2.3, blocks: 10.0.0.0/8 }, { name: d, addresses: 192.0.2.4, blocks: 172.27.4.0/26, zone: a }, 7]",
        &[
            "c.yaml:4:18: pods.overlay: `sometimes` is not never, always or crossSubnet",
            "c.yaml:4:40: pods.vxlanPort: `0` is too small; expected a UDP port from 1 to 65535",
            "c.yaml:4:48: pods.vni: `16777216` is too large; expected a VXLAN network identifier from 1 to 16777215",
            "c.yaml:5:31: nodes[0].addresses: `1.2.3` is not an address such as 192.168.1.1 or fd00::1",
            "c.yaml:5:71: nodes[1].name: `n` is there already; expected each node once",
            "c.yaml:5:121: nodes[2].addresses: is missing; expected an address such as 192.168.1.1 or fd00::1",
            "c.yaml:5:140: nodes[2].blocks: `172.27.1.0/27` overlaps nodes[0].blocks (172.27.1.0/26); expected blocks apart",
            "c.yaml:5:198: nodes[3].blocks: `10.0.0.0/8` is in no cluster.podSubnet; expected a part of one",
            "c.yaml:5:268: nodes[4].zone: unknown key; expected one of name, addresses, blocks",
            "c.yaml:5:279: nodes[5]: `7` is not a map with the keys name, addresses, blocks",
        ],
    ),
    ("inside: y", &["c.yaml:3:1: the key `inside` is given twice, first at 2:1"]),
    ("draning: 3", &["c.yaml:3:1: draning: unknown key; expected `draining`"]),
    ("log: { traceport: 3 }", &["c.yaml:3:8: log.traceport: unknown key; expected `tracePort`"]),
    ("port: {}", &["c.yaml:3:1: port: unknown key; expected `ports`"]),
    ("control: {}", &["no error"]),
    (
        "control: { readers: [a] }",
        &["c.yaml:3:21: control.readers: a list is not a group of this node by its name or number, such as netops"],
    ),
    (
        "control: { readers: 'a:b', writers: c }",
        &[
            "c.yaml:3:21: control.readers: `a:b` is not a group of this node by its name or number, such as netops",
            "c.yaml:3:28: control.writers: unknown key; expected one of readers",
        ],
    ),
    (
        "colour: red",
        &[
            "c.yaml:3:1: colour: unknown key; expected one of node, ports, internalSwitch, inside, publish, routes, cluster, timeouts, snatPorts, icmpRate, forwarding, capacity, log, draining, pods, nodes, web, control",
        ],
    ),
    ("ports: eth0", &["c.yaml:3:8: ports: `eth0` is not a map of port names, such as Port2: { interface: eth0 }"]),
    (
        "ports: { A: eth0 }",
        &[
            "c.yaml:3:13: ports.A: `eth0` is not a map with the keys interface, gateway, natAddresses, compute, hook, replyVia",
        ],
    ),
    (
        "ports: { A: { } }",
        &[
            "c.yaml:3:13: ports.A.interface: is missing; expected an interface's name, such as eth0 (at most 15 characters, no `/` or space)",
        ],
    ),
    (
        "ports: { A B: { interface: a } }",
        &["c.yaml:3:15: ports.A B: `A B` is not a port's name; expected a word such as Port2"],
    ),
    (
        "ports:\n  A: { interface: [a], gateway: 203.0.113.300, compute: yes, hook: XDP, vlan: 3 }",
        &[
            "c.yaml:4:19: ports.A.interface: a list is not an interface's name, such as eth0 (at most 15 characters, no `/` or space)",
            "c.yaml:4:33: ports.A.gateway: `203.0.113.300` is not an address such as 192.168.1.1 or fd00::1",
            "c.yaml:4:57: ports.A.compute: `yes` is not true or false",
            "c.yaml:4:68: ports.A.hook: `XDP` is not auto, xdp or tc",
            "c.yaml:4:73: ports.A.vlan: unknown key; expected one of interface, gateway, natAddresses, compute, hook, replyVia",
        ],
    ),
    (
        "ports: { A: { interface: abcdefghijklmnop } }",
        &[
            "c.yaml:3:26: ports.A.interface: `abcdefghijklmnop` is too long; expected an interface's name, such as eth0 (at most 15 characters, no `/` or space)",
        ],
    ),
    (
        "ports: { A: { interface: 'eth*' } }",
        &[
            "c.yaml:3:26: ports.A.interface: `eth*` is not an interface's name, such as eth0 (at most 15 characters, no `/` or space)",
        ],
    ),
    (
        "ports: { A: { interface: lo } }",
        &[
            "c.yaml:3:26: ports.A.interface: `lo` is the loopback; expected an interface's name, such as eth0 (at most 15 characters, no `/` or space)",
        ],
    ),
    (
        "internalSwitch: { interface: lo }",
        &[
            "c.yaml:3:30: internalSwitch.interface: `lo` is the loopback; expected an interface's name, such as eth0 (at most 15 characters, no `/` or space)",
        ],
    ),
    (
        "ports:\n  A: { interface: eth0 }\n  B: { interface: eth0 }\ninternalSwitch: { interface: eth0 }",
        &[
            "c.yaml:5:19: ports.B.interface: `eth0` is already ports.A.interface; expected an interface of its own",
            "c.yaml:6:30: internalSwitch.interface: `eth0` is already ports.A.interface; expected an interface of its own",
        ],
    ),
    (
        "ports: { A: { interface: a, gateway: [10.0.0.1, 'fd00::1', 10.0.0.2] } }",
        &[
            "c.yaml:3:60: ports.A.gateway[2]: `10.0.0.2` is a second IPv4 gateway beside ports.A.gateway[0]; expected one a family",
        ],
    ),
    (
        "ports: { A: { interface: a, gateway: 'fd00::1' } }\ninternalSwitch: { interface: b, address: 10.0.0.1/24 }",
        &[
            "c.yaml:3:38: ports.A.gateway: `fd00::1` is IPv6, but internalSwitch.address (10.0.0.1/24) is IPv4; expected a gateway of that family",
        ],
    ),
    (
        "ports: { A: { interface: a, gateway: 10.0.0.1/24 } }",
        &["c.yaml:3:38: ports.A.gateway: `10.0.0.1/24` is not an address such as 192.168.1.1 or fd00::1"],
    ),
    (
        "ports: { A: { interface: a, gateway: 224.0.0.1 } }",
        &[
            "c.yaml:3:38: ports.A.gateway: `224.0.0.1` is a multicast or broadcast address; expected an address such as 192.168.1.1 or fd00::1",
        ],
    ),
    (
        "ports: { A: { interface: a, gateway: 10.0.0.5 } }\ncluster: { serviceIPs: 10.0.0.1-10.0.0.9 }",
        &[
            "c.yaml:3:38: ports.A.gateway: `10.0.0.5` is inside cluster.serviceIPs (10.0.0.1-10.0.0.9); expected a router in the port's network",
        ],
    ),
    (
        "internalSwitch: { interface: b, address: 10.0.0.1 }",
        &[
            "c.yaml:3:42: internalSwitch.address: `10.0.0.1` has no prefix length; expected the switch's own address with its prefix length, such as 10.20.0.1/24",
        ],
    ),
    (
        "internalSwitch: { interface: b, address: 10.0.0.0/24 }",
        &[
            "c.yaml:3:42: internalSwitch.address: `10.0.0.0/24` is the network's own address or its broadcast address; expected the switch's own address with its prefix length, such as 10.20.0.1/24",
        ],
    ),
    (
        "ports: { A: { interface: a, gateway: 10.0.0.1 } }\ninternalSwitch: { interface: b, address: [10.20.0.1/24, 'fd00:20::1/64'], ipv6: masquerade }",
        &[
            "c.yaml:3:38: ports.A.gateway: `10.0.0.1` is IPv4, but internalSwitch.address[1] (fd00:20::1/64) is IPv6; expected a gateway of that family",
        ],
    ),
    (
        "internalSwitch: { interface: b, address: [10.20.0.1/24, 10.20.0.2/24], adress: 1 }",
        &[
            "c.yaml:3:57: internalSwitch.address[1]: 10.20.0.0-10.20.0.255 overlaps internalSwitch.address[0] (10.20.0.0-10.20.0.255); expected addresses of its own",
            "c.yaml:3:72: internalSwitch.adress: unknown key; expected `address`",
        ],
    ),
    (
        "cluster: { nodeIPs: 10.0.0.9-10.0.0.1 }",
        &[
            "c.yaml:3:21: cluster.nodeIPs: `10.0.0.9-10.0.0.1` is reversed (did you mean 10.0.0.1-10.0.0.9?); expected a range such as 192.168.20.10-192.168.20.20, a subnet or an address",
        ],
    ),
    (
        "cluster: { nodeIPs: 10.0.0.1-fd00::1 }",
        &[
            "c.yaml:3:21: cluster.nodeIPs: `10.0.0.1-fd00::1` mixes IPv4 and IPv6; expected a range such as 192.168.20.10-192.168.20.20, a subnet or an address",
        ],
    ),
    (
        "cluster: { serviceIPs: [10.0.0.1, 10.0.0.x] }",
        &[
            "c.yaml:3:35: cluster.serviceIPs[1]: `10.0.0.x` is not a range such as 192.168.20.10-192.168.20.20, a subnet or an address",
        ],
    ),
    (
        "cluster: { serviceIPs: 10.0.0.0/8 }",
        &[
            "c.yaml:3:24: cluster.serviceIPs: `10.0.0.0/8` has more than 1048576 addresses; expected a range such as 192.168.20.10-192.168.20.20, a subnet or an address",
        ],
    ),
    (
        "cluster:\n  serviceIPs: [10.0.0.1-10.0.0.20, 10.0.0.20]\n  nodeIPs: 10.0.0.5\n  podSubnet: 10.0.0.0/28\n  serviceSubnet: fd00::/112",
        &[
            "c.yaml:4:36: cluster.serviceIPs[1]: 10.0.0.20 overlaps cluster.serviceIPs[0] (10.0.0.1-10.0.0.20); expected addresses of its own",
            "c.yaml:5:12: cluster.nodeIPs: 10.0.0.5 overlaps cluster.serviceIPs[0] (10.0.0.1-10.0.0.20); expected addresses of its own",
            "c.yaml:5:12: cluster.nodeIPs: 10.0.0.5 is one address; expected one more than there are nodes, so two at least",
            "c.yaml:6:14: cluster.podSubnet: 10.0.0.0-10.0.0.15 overlaps cluster.serviceIPs[0] (10.0.0.1-10.0.0.20); expected addresses of its own",
        ],
    ),
    (
        "cluster: { serviceIPs: [10.0.0.40-10.0.0.50, 10.0.0.1-10.0.0.20, 10.0.0.21, 'fd00::1'], nodeIPs: [10.0.1.1, 10.0.1.3] }",
        &[
            "c.yaml:3:25: cluster.serviceIPs[0]: 10.0.0.40-10.0.0.50 does not join cluster.serviceIPs[2] (10.0.0.21); expected one contiguous range a family; cluster.pools takes more",
            "c.yaml:3:109: cluster.nodeIPs[1]: 10.0.1.3 does not join cluster.nodeIPs[0] (10.0.1.1); expected one contiguous range a family",
        ],
    ),
    (
        "cluster: { pools: { default: { addresses: 10.0.0.1 }, a b: { addresses: [] }, c: { addresses: 10.0.0.1/30, priority: -1, autoassign: no }, d: 10.0.0.9 } }",
        &[
            "c.yaml:3:30: cluster.pools.default: `default` is the name of cluster.serviceIPs; expected another one",
            "c.yaml:3:60: cluster.pools.a b: `a b` is not a pool's name; expected a word such as cameras",
            "c.yaml:3:73: cluster.pools.a b.addresses: is empty; expected a range such as 192.168.20.10-192.168.20.20, a subnet or an address",
            "c.yaml:3:95: cluster.pools.c.addresses: 10.0.0.0-10.0.0.3 overlaps cluster.pools.default.addresses (10.0.0.1); expected addresses of its own",
            "c.yaml:3:118: cluster.pools.c.priority: `-1` is too small; expected a number from 0 to 1000000, the lower one first (0: last)",
            "c.yaml:3:122: cluster.pools.c.autoassign: unknown key; expected `autoAssign`",
            "c.yaml:3:143: cluster.pools.d: `10.0.0.9` is not a map with the keys addresses, autoAssign, avoidBuggyIPs, priority, namespaces, namespaceSelectors, serviceSelectors",
        ],
    ),
    (
        "cluster: { pools: { a: { addresses: 10.0.0.9, namespaceSelectors: [{ }], serviceSelectors: { matchExpressions: [{ key: a, operator: in }, { operator: In }, { key: b, operator: In }, { key: c, operator: Exists, values: [x] }] } } } }",
        &[
            "c.yaml:3:68: cluster.pools.a.namespaceSelectors[0]: selects everything; expected labels in matchLabels or matchExpressions",
            "c.yaml:3:133: cluster.pools.a.serviceSelectors.matchExpressions[0].operator: `in` is not In, NotIn, Exists or DoesNotExist",
            "c.yaml:3:139: cluster.pools.a.serviceSelectors.matchExpressions[1].key: is missing; expected a label's name",
            "c.yaml:3:157: cluster.pools.a.serviceSelectors.matchExpressions[2]: has no values; expected those that In and NotIn are about",
            "c.yaml:3:183: cluster.pools.a.serviceSelectors.matchExpressions[3]: has values; expected none beside Exists and DoesNotExist",
        ],
    ),
    (
        "cluster: { announce: { enabled: yes, port: 0, peers: { n: 10.0.0.1, 'a b': 10.0.0.2, n2: 10.0.0.3, n3: [10.0.0.3, x] }, lease: 1 } }",
        &[
            "c.yaml:3:33: cluster.announce.enabled: `yes` is not true or false",
            "c.yaml:3:44: cluster.announce.port: `0` is too small; expected a port number from 1 to 65535",
            "c.yaml:3:59: cluster.announce.peers.n: `n` is this node; expected others",
            "c.yaml:3:76: cluster.announce.peers.a b: `a b` is not a node's name; expected a map of nodes' names to their addresses, such as edge-2: 192.168.20.11",
            "c.yaml:3:104: cluster.announce.peers.n3: 10.0.0.3 is the address of n2, too; expected one of its own",
            "c.yaml:3:115: cluster.announce.peers.n3[1]: `x` is not an address such as 192.168.1.1 or fd00::1",
            "c.yaml:3:121: cluster.announce.lease: unknown key; expected one of enabled, peers, port",
        ],
    ),
    (
        "cluster: { healthChecks: { web: tcp, default/a: ping, default/b: tcp fall=0, default/c: off } }",
        &[
            "c.yaml:3:33: cluster.healthChecks.web: `web` is not a service's name such as default/web",
            "c.yaml:3:49: cluster.healthChecks.default/a: `ping` is not off, tcp, http, https, grpc or udp, and such words as port=8080, path=/healthz, host=NAME, service=NAME, interval=5s, timeout=500ms, rise=2, fall=3 or allFailing=closed behind it",
            "c.yaml:3:66: cluster.healthChecks.default/b: `tcp fall=0` has `fall=0`, which is too small; expected off, tcp, http, https, grpc or udp, and such words as port=8080, path=/healthz, host=NAME, service=NAME, interval=5s, timeout=500ms, rise=2, fall=3 or allFailing=closed behind it",
        ],
    ),
    (
        "cluster: { podSubnet: [0.0.0.0/0, 'ff00::/8'], serviceIPs: 127.0.0.0/30 }",
        &[
            "c.yaml:3:24: cluster.podSubnet[0]: `0.0.0.0/0` is of addresses that no host has; expected a subnet such as 172.27.0.0/16 or fd00::/64",
            "c.yaml:3:35: cluster.podSubnet[1]: `ff00::/8` is of addresses that no host has; expected a subnet such as 172.27.0.0/16 or fd00::/64",
            "c.yaml:3:60: cluster.serviceIPs: `127.0.0.0/30` is of addresses that no host has; expected a range such as 192.168.20.10-192.168.20.20, a subnet or an address",
        ],
    ),
    (
        "cluster: { manifests: ./a, kubeconfig: ./b, endpoints: both }",
        &[
            "c.yaml:3:40: cluster.kubeconfig: is given beside cluster.manifests; expected one source of services",
            "c.yaml:3:56: cluster.endpoints: `both` is not slices or pods",
        ],
    ),
    (
        "cluster: { context: a, endpoints: pods }",
        &[
            "c.yaml:3:21: cluster.context: says how a Kubernetes API is read, but there is none; expected cluster.kubeconfig, too",
            "c.yaml:3:35: cluster.endpoints: says how a Kubernetes API is read, but there is none; expected cluster.kubeconfig, too",
        ],
    ),
    (
        "cluster: { kubeconfig: in-cluster, context: a }",
        &[
            "c.yaml:3:45: cluster.context: names a context, but in-cluster has none; expected cluster.kubeconfig to be a path",
        ],
    ),
    (
        "cluster: { kubeconfig: [a], context: '' }",
        &[
            "c.yaml:3:24: cluster.kubeconfig: a list is not the path of a kubeconfig, or in-cluster",
            "c.yaml:3:38: cluster.context: `` is not the name of a context of the kubeconfig",
        ],
    ),
    (
        "cluster: { podSubnet: 10.0.0.0 }",
        &[
            "c.yaml:3:23: cluster.podSubnet: `10.0.0.0` has no prefix length; expected a subnet such as 172.27.0.0/16 or fd00::/64",
        ],
    ),
    (
        "cluster: { podSubnet: 10.0.0.0/33 }",
        &[
            "c.yaml:3:23: cluster.podSubnet: `10.0.0.0/33` has a prefix longer than 32; expected a subnet such as 172.27.0.0/16 or fd00::/64",
        ],
    ),
    (
        "cluster: { nodePortAddresses: [0.0.0.0/0, primary] }",
        &["c.yaml:3:43: cluster.nodePortAddresses[1]: `primary` is not a subnet such as 172.27.0.0/16 or fd00::/64"],
    ),
    (
        "cluster: { socketBalancing: sys/fs/cgroup }",
        &[
            "c.yaml:3:29: cluster.socketBalancing: `sys/fs/cgroup` is not true, false, or a folder of cgroup2 such as /sys/fs/cgroup/system.slice",
        ],
    ),
    (
        "cluster: { socketBalancing: [true] }",
        &[
            "c.yaml:3:29: cluster.socketBalancing: a list is not true, false, or a folder of cgroup2 such as /sys/fs/cgroup/system.slice",
        ],
    ),
    (
        "cluster: { serviceSubnet: 'fd00::/64' }",
        &[
            "c.yaml:3:27: cluster.serviceSubnet: fd00::-fd00::ffff:ffff:ffff:ffff has more than 1048576 addresses; expected a subnet of /12 (IPv4) or /108 (IPv6) at most",
        ],
    ),
    (
        "timeouts: { tcpClosed: 0, udpAnswered: 3x, fragment: 1m2h, tcpEstablished: 30d, tcp: 1 }",
        &[
            "c.yaml:3:24: timeouts.tcpClosed: `0` is no time at all; expected a time from 1s to 20d, such as 30, 90s or 2h4m",
            "c.yaml:3:40: timeouts.udpAnswered: `3x` is not a time from 1s to 20d, such as 30, 90s or 2h4m",
            "c.yaml:3:54: timeouts.fragment: `1m2h` is not a time from 1s to 20d, such as 30, 90s or 2h4m",
            "c.yaml:3:76: timeouts.tcpEstablished: `30d` is too long; expected a time from 1s to 20d, such as 30, 90s or 2h4m",
            "c.yaml:3:81: timeouts.tcp: unknown key; expected one of tcpEstablished, tcpTransitory, tcpClosed, udpUnanswered, udpAnswered, sctpEstablished, sctpTransitory, fragment",
        ],
    ),
    (
        "snatPorts: 3000-2000",
        &[
            "c.yaml:3:12: snatPorts: `3000-2000` is reversed (did you mean 2000-3000?); expected two port numbers such as 1024-29999",
        ],
    ),
    (
        "snatPorts: 1024-70000",
        &["c.yaml:3:12: snatPorts: `1024-70000` goes beyond port 65535; expected two port numbers such as 1024-29999"],
    ),
    (
        "snatPorts: 65535-65535",
        &["c.yaml:3:12: snatPorts: `65535-65535` is one port alone; expected two port numbers such as 1024-29999"],
    ),
    ("snatPorts: 1024", &["c.yaml:3:12: snatPorts: `1024` is not two port numbers such as 1024-29999"]),
    ("forwarding: slow", &["c.yaml:3:13: forwarding: `slow` is not fast or kernel"]),
    ("icmpRate: many", &["c.yaml:3:11: icmpRate: `many` is not a number of packets a second from 0 to 1000000"]),
    (
        "capacity: { backends: 1, flows: 9 }",
        &[
            "c.yaml:3:23: capacity.backends: `1` is too small; expected a number of entries from 16 to 16777216",
            "c.yaml:3:26: capacity.flows: unknown key; expected one of connections, services, backends, slots, routes, nextHops, affinity, fragments, sockets, natAddresses",
        ],
    ),
    (
        "log: { tracePort: 70000 }",
        &["c.yaml:3:19: log.tracePort: `70000` is too large; expected a port number from 0 to 65535 (0: none)"],
    ),
    ("draining: soon", &["c.yaml:3:11: draining: `soon` is not a time from 1s to 20d, such as 30, 90s or 2h4m"]),
    ("draining:\n  a: 1", &["c.yaml:4:3: draining: a map is not a time from 1s to 20d, such as 30, 90s or 2h4m"]),
];
