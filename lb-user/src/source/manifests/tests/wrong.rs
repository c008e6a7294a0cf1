//! What is refused, and in which words.

use super::*;

#[test]
fn wrong_texts() {
    let ok = "{ clusterIP: 10.1.0.1, ports: [{ port: 80 }] }";
    let sctp = service("a", "{ clusterIP: 10.1.0.1, ports: [{ port: 80, protocol: SCTP }] }");
    let target = |port: u16| {
        slice(
            "a",
            "a-1",
            &format!(
                "addressType: IPv4\nports: [{{ port: {port}, protocol: SCTP }}]\nendpoints: [{{ addresses: [10.2.0.1] }}]"
            ),
        )
    };
    let cases: Vec<(String, Vec<&str>)> = vec![
        ("a: [".into(), vec!["a.yaml:1:4: not YAML: unclosed bracket '['"]),
        (
            "a: 1".into(),
            vec![
                "a.yaml:1:1: kind: is missing; expected a Kubernetes object, such as a Service",
                "a.yaml:1:1: apiVersion: is missing; expected a Kubernetes API version, such as v1",
            ],
        ),
        (
            "apiVersion: apps/v1\nkind: Deployment\nspec: { ports: 7 }".into(),
            vec![
                "a.yaml:1:1: Deployment (apps/v1) is left alone; Service, Endpoints, Pod, Node, Namespace (v1), EndpointSlice (discovery.k8s.io/v1) and NetworkPolicy (networking.k8s.io/v1) are read",
            ],
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: { name: a, annotations: { stellwerk.io/ip-addresses: \"10.1.0.1, 10.1.0.2\" } }"
                .into(),
            vec![
                "a.yaml:3:64: metadata.annotations.stellwerk.io/ip-addresses: `10.1.0.1, 10.1.0.2` names two IPv4 addresses; expected one address of each family, such as 172.27.1.20 or 172.27.1.20,fd00:27:1::14",
            ],
        ),
        (
            service("a", ok).replace("name: a", "namespace: x"),
            vec!["a.yaml:4:11: metadata.name: is missing; expected the object's name"],
        ),
        (
            service("a", "{ clusterIP: 10.1.0.300, type: Cluster, ports: [{ port: 0 }] }"),
            vec!["a.yaml:5:38: spec.type: `Cluster` is not ClusterIP, NodePort, LoadBalancer or ExternalName"],
        ),
        (
            service(
                "a",
                "{ clusterIP: 10.1.0.300, ports: [{ port: 0 }, { port: 70000, protocol: tcp }, { port: http }, { protocol: UDP }] }",
            ),
            vec![
                "a.yaml:5:20: spec.clusterIP: `10.1.0.300` is not an address such as 192.168.1.1 or fd00::1",
                "a.yaml:5:48: spec.ports[0].port: `0` is too small; expected a port number from 1 to 65535",
                "a.yaml:5:61: spec.ports[1].port: `70000` is too large; expected a port number from 1 to 65535",
                "a.yaml:5:78: spec.ports[1].protocol: `tcp` is not TCP, UDP or SCTP",
                "a.yaml:5:93: spec.ports[2].port: `http` is not a port number from 1 to 65535",
                "a.yaml:5:101: spec.ports[3].port: is missing; expected a port number from 1 to 65535",
            ],
        ),
        (
            service("a", "{ clusterIP: 10.1.0.1, ports: [{ port: 80 }, { port: 81 }] }"),
            vec!["a.yaml:5:52: spec.ports[1]: has no name; several ports of a service each need one of their own"],
        ),
        (
            service("a", "{ clusterIP: 10.1.0.1, ipFamilies: [IPv6], ports: [{ port: 80 }] }"),
            vec![
                "a.yaml:5:43: spec.ipFamilies[0]: `IPv6` is not the family of the cluster IP 10.1.0.1; expected IPv4 or IPv6",
            ],
        ),
        (
            service("a", "{ clusterIP: 10.1.0.1, ipFamilies: [IPv4, IPv4, ipv6], ports: [{ port: 80 }] }"),
            vec![
                "a.yaml:5:49: spec.ipFamilies[1]: `IPv4` is given twice; expected IPv4 or IPv6",
                "a.yaml:5:55: spec.ipFamilies[2]: `ipv6` is not IPv4 or IPv6",
            ],
        ),
        (
            service("a", "{ clusterIP: 10.1.0.1, trafficDistribution: PreferSame, ports: [{ port: 80, targetPort: 70000 }] }"),
            vec![
                "a.yaml:5:51: spec.trafficDistribution: `PreferSame` is not PreferSameZone, PreferSameNode or PreferClose",
                "a.yaml:5:95: spec.ports[0].targetPort: `70000` is too large; expected a port number from 1 to 65535, or a name of the pods' ports",
            ],
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: { name: p }\nspec: { containers: [{ ports: [{ name: x, containerPort: http }] }] }\nstatus: { podIPs: [10.2.0.1] }".into(),
            vec![
                "a.yaml:4:58: spec.containers[0].ports[0].containerPort: `http` is not a port number from 1 to 65535",
                "a.yaml:5:20: status.podIPs[0].ip: is missing; expected an address such as 192.168.1.1 or fd00::1",
            ],
        ),
        (
            "apiVersion: v1\nkind: Node\nmetadata: { name: n }\n---\napiVersion: v1\nkind: Node\nmetadata: { name: n }".into(),
            vec!["a.yaml:5:1: Node n is given twice, also at a.yaml:1"],
        ),
        ("apiVersion: v1\nkind: Namespace\nmetadata: { name: n }".into(), vec![]),
        (
            "apiVersion: v1\nkind: Namespace\nmetadata: {}".into(),
            vec!["a.yaml:3:11: metadata.name: is missing; expected the object's name"],
        ),
        (
            service("a", "{ clusterIP: 10.1.0.1, sessionAffinity: Client, ports: [{ port: 80 }] }"),
            vec!["a.yaml:5:47: spec.sessionAffinity: `Client` is not None or ClientIP"],
        ),
        (
            service("a", ok).replace("{ name: a }", "{ name: a, annotations: { stellwerk.io/weights: '10.2.0.1=0' } }"),
            vec![
                "a.yaml:4:59: metadata.annotations.stellwerk.io/weights: `10.2.0.1=0` gives 10.2.0.1 the weight `0`; expected weights from 1 to 1000 by address, such as 10.20.0.7=3,10.20.0.8=1",
            ],
        ),
        (service("a", ok) + &service("a", ok), vec!["a.yaml:7:1: Service default/a is given twice, also at a.yaml:2"]),
        (
            service("a", ok) + &service("b", ok),
            vec![
                "a.yaml:10:38: spec.ports[0]: default/b and default/a (a.yaml:2) both want 10.1.0.1:80/TCP; expected one of them to change",
            ],
        ),
        (
            service("a", "{ clusterIP: 10.1.0.1, ports: [{ port: 80, nodePort: 30000 }] }")
                + &service("b", "{ clusterIP: 10.1.0.2, ports: [{ port: 80, nodePort: 30000 }] }"),
            vec![
                "a.yaml:10:38: spec.ports[0]: default/b and default/a (a.yaml:2) both want node port 30000/TCP; expected one of them to change",
            ],
        ),
        (sctp.clone() + &target(80), vec!["default/a:80 80/SCTP [10.1.0.1] -> 10.2.0.1:80"]),
        (
            sctp + &target(81),
            vec![
                "a.yaml:11:9: ports[0]: `81` is not the SCTP port of Service default/a (80); expected the same port, since SCTP's checksum covers ports and only addresses are translated",
            ],
        ),
        (
            slice(
                "a",
                "x",
                "addressType: IPv4\nendpoints: [{ addresses: ['fd00::1'] }, { addresses: 10.0.0.1 }, { conditions: { ready: 1 } }]",
            ),
            vec![
                "a.yaml:6:27: endpoints[0].addresses[0]: `fd00::1` is not an IPv4 address, as addressType says",
                "a.yaml:6:54: endpoints[1].addresses: `10.0.0.1` is not a list of one address",
                "a.yaml:6:66: endpoints[2].addresses: is missing; expected a list of one address",
            ],
        ),
        (
            slice("a", "x", "addressType: IPv4") + &slice("a", "x", "addressType: IPv4"),
            vec!["a.yaml:7:1: EndpointSlice default/x is given twice, also at a.yaml:2"],
        ),
        (slice("a", "x", "addressType: ipv4"), vec!["a.yaml:5:14: addressType: `ipv4` is not IPv4, IPv6 or FQDN"]),
        (
            "apiVersion: v1\nkind: List\nitems:\n- { apiVersion: v1, kind: Secret }\n- 7".into(),
            vec![
                "a.yaml:5:3: items[1].kind: is missing; expected a Kubernetes object, such as a Service",
                "a.yaml:5:3: items[1].apiVersion: is missing; expected a Kubernetes API version, such as v1",
            ],
        ),
    ];
    for (text, want) in cases {
        assert_eq!(read(&text), want, "for\n{text}");
    }
    let missing = Manifests::new("/nowhere/x".into(), rules()).load(&Scope::All, at(0)).unwrap_err();
    assert_eq!(missing.to_string(), "/nowhere/x: there is no such folder or file");
}
