//! What load balancers ask for, and what they get, from objects.

use super::*;

fn balancer(name: &str, annotations: &str, spec: &str) -> String {
    service(name, &format!("{{ type: LoadBalancer, ports: [{{ port: 80 }}]{spec} }}"))
        .replace(&format!("{{ name: {name} }}"), &format!("{{ name: {name}, annotations: {{ {annotations} }} }}"))
}

#[test]
fn requests() {
    let got = |addresses: &str| vec![format!("default/a:80 80/TCP [{addresses}] -> ")];
    for (annotations, spec, want) in [
        ("stellwerk.io/loadBalancerIPs: 10.9.0.2", "", got("10.9.0.2")),
        ("metallb.io/loadBalancerIPs: '10.9.0.2, fd00::2'", ", ipFamilies: [IPv4, IPv6]", got("10.9.0.2 fd00::2")),
        ("metallb.universe.tf/loadBalancerIPs: fd00::2", "", got("fd00::2")),
        ("stellwerk.io/loadBalancerIPs: 10.9.0.2, metallb.io/loadBalancerIPs: 10.9.0.2", "", got("10.9.0.2")),
        ("stellwerk.io/loadBalancerIPs: 10.9.0.2", ", loadBalancerIP: 10.9.0.2", got("10.9.0.2")),
        ("metallb.io/address-pool: default", "", got("10.9.0.1")),
        ("metallb.io/address-pool: '', metallb.io/allow-shared-ip: x", "", got("10.9.0.1")),
        (
            "metallb.universe.tf/address-pool: other",
            "",
            vec![
                "default/a:80 80/TCP [] -> ".into(),
                "a.yaml:2:1: LoadBalancer default/a gets no IPv4 address: there is no pool `other`; expected one of `default`".into(),
            ],
        ),
    ] {
        assert_eq!(read(&balancer("a", annotations, spec)), want, "{annotations}{spec}");
    }
}

#[test]
fn wrong_requests() {
    let right = "expected one address of each family, such as 192.168.20.100 or 192.168.20.100,fd00:20::100";
    let key = "metadata.annotations.stellwerk.io/loadBalancerIPs";
    for (annotations, spec, want) in [
        ("stellwerk.io/loadBalancerIPs: x", "", format!("a.yaml:4:67: {key}: `x` names `x`, which is no address; {right}")),
        (
            "stellwerk.io/loadBalancerIPs: '10.9.0.1,10.9.0.2'",
            "",
            format!("a.yaml:4:67: {key}: `10.9.0.1,10.9.0.2` names two IPv4 addresses; {right}"),
        ),
        (
            "stellwerk.io/loadBalancerIPs: fd00::1",
            ", clusterIP: 10.1.0.1",
            format!("a.yaml:4:67: {key}: `fd00::1` names fd00::1, but the service has no IPv6; {right}"),
        ),
        (
            "stellwerk.io/address-pool: a, metallb.io/address-pool: b",
            "",
            "a.yaml:4:92: metadata.annotations.metallb.io/address-pool: `b` is not what stellwerk.io/address-pool says; expected one of them".into(),
        ),
        (
            "metallb.io/loadBalancerIPs: 10.9.0.1",
            ", loadBalancerIP: 10.9.0.2",
            "a.yaml:5:68: spec.loadBalancerIP: `10.9.0.2` is not what an annotation asks for; expected one of them".into(),
        ),
        (
            "",
            ", clusterIP: 10.1.0.1, loadBalancerIP: 'fd00::1'",
            "a.yaml:5:89: spec.loadBalancerIP: `fd00::1` names fd00::1, but the service has no IPv6; expected an address such as 192.168.1.1 or fd00::1".into(),
        ),
    ] {
        let folder = Folder::new("requests");
        folder.write("a.yaml", &balancer("a", annotations, spec));
        let mut manifests = Manifests::new(folder.0.clone(), rules());
        manifests.load(&Scope::All, at(0)).unwrap();
        let path = format!("{}/", folder.0.display());
        let refused: Vec<_> = manifests.refused().iter().map(|e| e.to_string().replace(&path, "")).collect();
        assert_eq!(refused, [want], "{annotations}{spec}");
    }
}

/// Two services at one address, by a key; the traffic policy and the selector say whether their pods are the same.
#[test]
fn one_address_for_several() {
    let with = |name: &str, port: u16, rest: &str| {
        balancer(name, "metallb.io/allow-shared-ip: k", rest).replace("port: 80", &format!("port: {port}"))
    };
    let both = |a: &str, b: &str| read(&(with("a", 80, a) + &with("b", 81, b)));
    let (local, x, y) = (", externalTrafficPolicy: Local", ", selector: { app: x }", ", selector: { app: y }");
    let addresses = |said: Vec<String>| -> Vec<String> {
        let of = |line: &String| Some(line.split_once('[')?.1.split_once(']')?.0.to_owned());
        said.iter().filter(|line| line.starts_with("default/")).filter_map(of).collect()
    };
    assert_eq!(addresses(both("", "")), ["10.9.0.1", "10.9.0.1"]);
    assert_eq!(addresses(both(x, y)), ["10.9.0.1", "10.9.0.1"]);
    assert_eq!(addresses(both(&format!("{x}{local}"), &format!("{x}{local}"))), ["10.9.0.1", "10.9.0.1"]);
    assert_eq!(addresses(both(&format!("{x}{local}"), &format!("{y}{local}"))), ["10.9.0.1", "10.9.0.2"]);
    assert_eq!(addresses(both(x, &format!("{x}{local}"))), ["10.9.0.1", "10.9.0.2"]);
}

#[test]
fn pools_by_namespace_and_label() {
    use crate::address::Pool;
    use crate::source::endpoints::Selector;
    let range = ServiceRange { first: "10.8.0.1".parse().unwrap(), last: "10.8.0.9".parse().unwrap() };
    let labels = |key: &str, value: &str| [(key.to_owned(), value.to_owned())].into();
    let selector = |key: &str, value: &str| Selector { labels: labels(key, value), ..Selector::default() };
    let mut pool = Pool::plain("video", vec![range]);
    pool.namespace_selectors = vec![selector("team", "film"), selector("kubernetes.io/metadata.name", "stage")];
    pool.service_selectors = vec![selector("app", "web")];
    let in_namespace = |name: &str, namespace: &str, app: &str| {
        balancer(name, "", "").replace(
            &format!("{{ name: {name},"),
            &format!("{{ name: {name}, namespace: {namespace}, labels: {{ app: {app} }},"),
        )
    };
    let namespace = |labels: &str| {
        format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{ name: cut, labels: {{ {labels} }} }}\n")
    };
    let folder = Folder::new("pools");
    folder.write(
        "a.yaml",
        &(in_namespace("a", "cut", "web") + &in_namespace("b", "stage", "web") + &in_namespace("c", "stage", "db")),
    );
    folder.write("n.yaml", &namespace("team: film"));
    let mut manifests = Manifests::new(folder.0.clone(), Rules { pools: vec![pool], ..rules() });
    let given = |manifests: &Manifests| -> Vec<String> {
        manifests.services().iter().map(|s| format!("{} {}", s.name, s.addresses[0])).collect()
    };
    manifests.load(&Scope::All, at(0)).unwrap();
    assert_eq!(given(&manifests), ["a 10.8.0.1", "b 10.8.0.2", "c 10.9.0.1"]);
    // The namespace is another team's from now on.
    folder.write("n.yaml", &namespace("team: stage"));
    let update = manifests.load(&Scope::Files([folder.0.join("n.yaml")].into()), at(1)).unwrap();
    let notices: Vec<_> = update.notices.iter().map(|notice| notice.message.as_str()).collect();
    assert_eq!(notices, ["LoadBalancer cut/a loses 10.8.0.1: its pool `video` is for others"]);
    assert_eq!(given(&manifests), ["a 10.9.0.2", "b 10.8.0.2", "c 10.9.0.1"]);
    // Said twice it is refused.
    folder.write("o.yaml", &namespace("team: film"));
    manifests.load(&Scope::All, at(2)).unwrap();
    assert!(
        manifests.refused()[0].message.starts_with("Namespace cut is given twice, also at "),
        "{:?}",
        manifests.refused()
    );
}

#[test]
fn nodes_need_an_address_more_than_they_are() {
    let range = |first: &str, last: &str| ServiceRange { first: first.parse().unwrap(), last: last.parse().unwrap() };
    let node = |name: &str| format!("---\napiVersion: v1\nkind: Node\nmetadata: {{ name: {name} }}\n");
    let folder = Folder::new("nodes");
    let node_ranges = vec![range("10.0.0.1", "10.0.0.3"), range("fd00::1", "fd00::4")];
    let mut manifests = Manifests::new(folder.0.clone(), Rules { node_ranges, ..rules() });
    let mut load = |names: &[&str]| -> Vec<String> {
        folder.write("n.yaml", &names.iter().map(|name| node(name)).collect::<String>());
        let update = manifests.load(&Scope::All, at(0)).unwrap();
        update.notices.iter().map(|notice| notice.message.clone()).collect()
    };
    assert_eq!(load(&["a", "b"]), [""; 0]);
    let v4 = "there are 3 Nodes, and cluster.nodeIPs has 3 IPv4 addresses; expected 4 at least";
    assert_eq!(load(&["a", "b", "c"]), [v4]);
    assert_eq!(load(&["a", "b"]), [""; 0]);
}

#[test]
fn checks_of_services() {
    let folder = Folder::new("checks");
    let mut manifests = Manifests::new(folder.0.clone(), rules());
    let mut checks = |annotations: &str| -> Vec<String> {
        folder.write("a.yaml", &balancer("a", annotations, ""));
        manifests.load(&Scope::All, at(0)).unwrap();
        let said = manifests.checks().iter();
        let said = said.map(|(name, check)| format!("{name} {:?}", check.as_ref().map(|check| check.interval)));
        said.chain(manifests.refused().iter().map(|error| error.path.clone())).collect()
    };
    assert_eq!(checks("stellwerk.io/health-check: tcp interval=7s"), ["default/a Some(7s)"]);
    assert_eq!(checks("stellwerk.io/health-check: off"), ["default/a None"]);
    let refused = "metadata.annotations.stellwerk.io/health-check";
    assert_eq!(checks("stellwerk.io/health-check: tcp path=/"), ["default/a None", refused]);
    assert_eq!(checks("metallb.io/health-check: tcp"), [""; 0]);
}
