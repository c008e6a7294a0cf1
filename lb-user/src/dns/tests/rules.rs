//! "Kubernetes DNS-Based Service Discovery" 1.1.0, and CoreDNS where it is silent.

mod choices;

use super::*;

const OBJECTS: &str = r#"
apiVersion: v1
kind: Service
metadata: { name: web, namespace: shop }
spec:
  type: LoadBalancer
  clusterIP: 172.28.0.20
  clusterIPs: [172.28.0.20, "fd00:28::20"]
  externalIPs: [198.51.100.7]
  ports:
  - { name: http, port: 80, targetPort: 8080 }
  - { name: sip, protocol: UDP, port: 5060 }
---
apiVersion: v1
kind: Service
metadata: { name: plain, namespace: shop }
spec: { clusterIP: 172.28.0.21, ports: [{ port: 443 }] }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: web-1, namespace: shop, labels: { kubernetes.io/service-name: web } }
addressType: IPv4
ports: [{ name: http, port: 8080 }]
endpoints: [{ addresses: [172.27.1.30] }]
---
apiVersion: v1
kind: Service
metadata: { name: db, namespace: shop }
spec: { clusterIP: None, ports: [{ name: sql, port: 5432 }, { name: raw, protocol: UDP, port: 9 }] }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: db-1
  namespace: shop
  labels: { kubernetes.io/service-name: db, service.kubernetes.io/headless: "" }
addressType: IPv4
ports: [{ name: sql, port: 15432 }]
endpoints:
- { addresses: [172.27.1.11], hostname: Db-0 }
- { addresses: [172.27.1.12], conditions: { ready: true } }
- { addresses: [172.27.1.13], conditions: { ready: false } }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: db-2
  namespace: shop
  labels: { kubernetes.io/service-name: db, service.kubernetes.io/headless: "" }
addressType: IPv6
ports: [{ name: sql, port: 15432 }]
endpoints: [{ addresses: ["fd00:27::11"], hostname: Db-0 }]
---
apiVersion: v1
kind: Service
metadata: { name: silent, namespace: shop }
spec: { clusterIP: None, ports: [{ name: sql, port: 5432 }] }
---
apiVersion: v1
kind: Service
metadata: { name: portless, namespace: shop }
spec: { clusterIP: None }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: portless-1, namespace: shop, labels: { kubernetes.io/service-name: portless } }
addressType: IPv4
endpoints: [{ addresses: [10.20.0.7] }]
---
apiVersion: v1
kind: Service
metadata: { name: pets, namespace: shop }
spec: { clusterIP: None, selector: { app: pet }, publishNotReadyAddresses: true, ports: [{ name: bark, port: 7 }] }
---
apiVersion: v1
kind: Pod
metadata: { name: pet-0, namespace: shop, labels: { app: pet } }
spec: { hostname: pet-0, subdomain: pets }
status: { podIPs: [{ ip: 172.27.1.40 }, { ip: "fd00:27::40" }] }
---
apiVersion: v1
kind: Pod
metadata: { name: pet-1, namespace: shop, labels: { app: pet } }
spec: { hostname: pet-1, subdomain: others }
status: { podIPs: [{ ip: 172.27.1.41 }] }
---
apiVersion: v1
kind: Service
metadata: { name: away, namespace: shop }
spec: { type: ExternalName, externalName: web.shop.svc.cluster.local }
---
apiVersion: v1
kind: Service
metadata: { name: circle, namespace: shop }
spec: { type: ExternalName, externalName: circle.shop.svc.cluster.local }
---
apiVersion: v1
kind: Service
metadata: { name: number, namespace: shop }
spec: { type: ExternalName, externalName: 192.0.2.1 }
---
apiVersion: v1
kind: Service
metadata: { name: foreign, namespace: shop, labels: { service.kubernetes.io/service-proxy-name: other } }
spec: { clusterIP: 172.28.0.22, ports: [{ name: x, port: 1 }] }
---
apiVersion: v1
kind: Namespace
metadata: { name: empty }
"#;

fn world() -> World {
    World::new("", OBJECTS)
}

fn soa(zone: &str) -> String {
    format!("\n! {zone} 5 SOA ns.dns.{zone} hostmaster.{zone} 7 7200 1800 86400 5")
}

fn nxdomain() -> String {
    "NXDOMAIN aa".to_owned() + &soa("cluster.local.")
}

fn nodata() -> String {
    "NOERROR aa".to_owned() + &soa("cluster.local.")
}

#[test]
fn schema_version() {
    world().is(&[
        ("dns-version.cluster.local TXT", "NOERROR aa\ndns-version.cluster.local. 28800 TXT 1.1.0"),
        ("dns-version.cluster.local A", &nodata()),
    ]);
}

#[test]
fn cluster_ips_have_addresses() {
    world().is(&[
        ("web.shop.svc.cluster.local A", "NOERROR aa\nweb.shop.svc.cluster.local. 5 A 172.28.0.20"),
        ("web.shop.svc.cluster.local AAAA", "NOERROR aa\nweb.shop.svc.cluster.local. 5 AAAA fd00:28::20"),
        ("plain.shop.svc.cluster.local A", "NOERROR aa\nplain.shop.svc.cluster.local. 5 A 172.28.0.21"),
        // Another proxy serves it; its name is the cluster's.
        ("foreign.shop.svc.cluster.local A", "NOERROR aa\nforeign.shop.svc.cluster.local. 5 A 172.28.0.22"),
    ]);
}

#[test]
fn cluster_ips_have_services_for_named_ports() {
    let http = "0 100 80 web.shop.svc.cluster.local.";
    let beside = "\n+ web.shop.svc.cluster.local. 5 A 172.28.0.20\n+ web.shop.svc.cluster.local. 5 AAAA fd00:28::20";
    world().is(&[
        (
            "_http._tcp.web.shop.svc.cluster.local SRV",
            &format!("NOERROR aa\n_http._tcp.web.shop.svc.cluster.local. 5 SRV {http}{beside}"),
        ),
        (
            "_sip._udp.web.shop.svc.cluster.local SRV",
            &format!(
                "NOERROR aa\n_sip._udp.web.shop.svc.cluster.local. 5 SRV 0 100 5060 web.shop.svc.cluster.local.{beside}"
            ),
        ),
        ("_sip._tcp.web.shop.svc.cluster.local SRV", &nxdomain()),
        (
            "web.shop.svc.cluster.local SRV",
            &format!(
                "NOERROR aa\nweb.shop.svc.cluster.local. 5 SRV 0 50 80 web.shop.svc.cluster.local.\n\
                 web.shop.svc.cluster.local. 5 SRV 0 50 5060 web.shop.svc.cluster.local.{beside}"
            ),
        ),
    ]);
}

#[test]
fn ports_without_a_name_have_no_service() {
    world().is(&[
        ("plain.shop.svc.cluster.local SRV", &nodata()),
        ("_._tcp.plain.shop.svc.cluster.local SRV", &nxdomain()),
        ("_443._tcp.plain.shop.svc.cluster.local SRV", &nxdomain()),
    ]);
}

#[test]
fn cluster_ips_have_pointers() {
    let unknown = "NXDOMAIN aa".to_owned() + &soa("28.172.in-addr.arpa.");
    world().is(&[
        ("20.0.28.172.in-addr.arpa PTR", "NOERROR aa\n20.0.28.172.in-addr.arpa. 5 PTR web.shop.svc.cluster.local."),
        (
            "0.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.2.0.0.0.0.d.f.ip6.arpa PTR",
            "NOERROR aa\n0.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.2.0.0.0.0.d.f.ip6.arpa. 5 PTR web.shop.svc.cluster.local.",
        ),
        ("99.0.28.172.in-addr.arpa PTR", &unknown),
        ("28.172.in-addr.arpa PTR", &unknown.replace("NXDOMAIN", "NOERROR")),
        ("0.28.172.in-addr.arpa PTR", &unknown.replace("NXDOMAIN", "NOERROR")),
        ("20.0.28.172.in-addr.arpa A", &unknown.replace("NXDOMAIN", "NOERROR")),
    ]);
}

#[test]
fn headless_services_have_their_ready_endpoints() {
    world().is(&[
        (
            "db.shop.svc.cluster.local A",
            "NOERROR aa\ndb.shop.svc.cluster.local. 5 A 172.27.1.11\ndb.shop.svc.cluster.local. 5 A 172.27.1.12",
        ),
        ("db.shop.svc.cluster.local AAAA", "NOERROR aa\ndb.shop.svc.cluster.local. 5 AAAA fd00:27::11"),
        ("portless.shop.svc.cluster.local A", "NOERROR aa\nportless.shop.svc.cluster.local. 5 A 10.20.0.7"),
    ]);
}

#[test]
fn headless_services_without_ready_endpoints_are_not_there() {
    world().is(&[
        ("silent.shop.svc.cluster.local A", &nxdomain()),
        ("_sql._tcp.silent.shop.svc.cluster.local SRV", &nxdomain()),
        ("172-27-1-13.db.shop.svc.cluster.local A", &nxdomain()),
    ]);
}

#[test]
fn endpoints_have_names_by_hostname_or_address() {
    world().is(&[
        ("db-0.db.shop.svc.cluster.local A", "NOERROR aa\ndb-0.db.shop.svc.cluster.local. 5 A 172.27.1.11"),
        ("db-0.db.shop.svc.cluster.local AAAA", "NOERROR aa\ndb-0.db.shop.svc.cluster.local. 5 AAAA fd00:27::11"),
        (
            "172-27-1-12.db.shop.svc.cluster.local A",
            "NOERROR aa\n172-27-1-12.db.shop.svc.cluster.local. 5 A 172.27.1.12",
        ),
        // It has a name of its own.
        ("172-27-1-11.db.shop.svc.cluster.local A", &nxdomain()),
        // As CoreDNS: of balanced services, too.
        (
            "172-27-1-30.web.shop.svc.cluster.local A",
            "NOERROR aa\n172-27-1-30.web.shop.svc.cluster.local. 5 A 172.27.1.30",
        ),
    ]);
}

#[test]
fn pods_are_named_below_their_subdomain() {
    world().is(&[
        ("pet-0.pets.shop.svc.cluster.local A", "NOERROR aa\npet-0.pets.shop.svc.cluster.local. 5 A 172.27.1.40"),
        ("pet-0.pets.shop.svc.cluster.local AAAA", "NOERROR aa\npet-0.pets.shop.svc.cluster.local. 5 AAAA fd00:27::40"),
        ("pet-1.pets.shop.svc.cluster.local A", &nxdomain()),
        (
            "172-27-1-41.pets.shop.svc.cluster.local A",
            "NOERROR aa\n172-27-1-41.pets.shop.svc.cluster.local. 5 A 172.27.1.41",
        ),
    ]);
}

/// None of its pods is ready.
#[test]
fn endpoints_that_are_not_ready_have_names_by_choice() {
    world().is(&[(
        "pets.shop.svc.cluster.local A",
        "NOERROR aa\npets.shop.svc.cluster.local. 5 A 172.27.1.40\npets.shop.svc.cluster.local. 5 A 172.27.1.41",
    )]);
}

#[test]
fn headless_services_have_services_for_each_endpoint() {
    let srv = |target: &str| {
        format!("\n_sql._tcp.db.shop.svc.cluster.local. 5 SRV 0 50 15432 {target}.db.shop.svc.cluster.local.")
    };
    let want = format!(
        "NOERROR aa{}{}\n+ db-0.db.shop.svc.cluster.local. 5 A 172.27.1.11\n\
         + 172-27-1-12.db.shop.svc.cluster.local. 5 A 172.27.1.12\n+ db-0.db.shop.svc.cluster.local. 5 AAAA fd00:27::11",
        srv("172-27-1-12"),
        srv("db-0")
    );
    world().is(&[
        ("_sql._tcp.db.shop.svc.cluster.local SRV", &want),
        // No endpoint has such a port.
        ("_raw._udp.db.shop.svc.cluster.local SRV", &nxdomain()),
        (
            "db-0.db.shop.svc.cluster.local SRV",
            "NOERROR aa\ndb-0.db.shop.svc.cluster.local. 5 SRV 0 100 15432 db-0.db.shop.svc.cluster.local.\n\
             + db-0.db.shop.svc.cluster.local. 5 A 172.27.1.11\n+ db-0.db.shop.svc.cluster.local. 5 AAAA fd00:27::11",
        ),
    ]);
}

#[test]
fn endpoints_have_pointers() {
    world().is(&[
        ("11.1.27.172.in-addr.arpa PTR", "NOERROR aa\n11.1.27.172.in-addr.arpa. 5 PTR db-0.db.shop.svc.cluster.local."),
        (
            "12.1.27.172.in-addr.arpa PTR",
            "NOERROR aa\n12.1.27.172.in-addr.arpa. 5 PTR 172-27-1-12.db.shop.svc.cluster.local.",
        ),
        // Somewhere that isn't the cluster's.
        (
            "7.0.20.10.in-addr.arpa PTR",
            "NOERROR aa\n7.0.20.10.in-addr.arpa. 5 PTR 10-20-0-7.portless.shop.svc.cluster.local.",
        ),
    ]);
}

#[test]
fn external_names_are_aliases() {
    world().is(&[
        (
            "away.shop.svc.cluster.local CNAME",
            "NOERROR aa\naway.shop.svc.cluster.local. 5 CNAME web.shop.svc.cluster.local.",
        ),
        (
            "away.shop.svc.cluster.local A",
            "NOERROR aa\naway.shop.svc.cluster.local. 5 CNAME web.shop.svc.cluster.local.\n\
             web.shop.svc.cluster.local. 5 A 172.28.0.20",
        ),
        ("_http._tcp.away.shop.svc.cluster.local SRV", &nxdomain()),
        ("number.shop.svc.cluster.local A", &nxdomain()),
    ]);
    assert!(world().ask("circle.shop.svc.cluster.local A").starts_with("SERVFAIL"));
}

#[test]
fn case_is_kept_and_means_nothing() {
    world().is(&[
        ("WeB.Shop.SVC.cluster.LOCAL A", "NOERROR aa\nWeB.Shop.SVC.cluster.LOCAL. 5 A 172.28.0.20"),
        ("DB-0.db.shop.svc.cluster.local A", "NOERROR aa\nDB-0.db.shop.svc.cluster.local. 5 A 172.27.1.11"),
        ("20.0.28.172.IN-ADDR.arpa PTR", "NOERROR aa\n20.0.28.172.IN-ADDR.arpa. 5 PTR web.shop.svc.cluster.local."),
    ]);
    let http = world().ask("_HTTP._Tcp.web.shop.svc.cluster.local SRV");
    assert!(http.starts_with("NOERROR aa\n_HTTP._Tcp.web.shop.svc.cluster.local. 5 SRV 0 100 80"), "{http}");
}

#[test]
fn pods_by_address() {
    let mine = "172-27-1-40.shop.pod.cluster.local A";
    let any = "192-0-2-1.shop.pod.cluster.local A";
    let found = |question: &str, addr: &str| {
        format!("NOERROR aa\n{}. 5 A {addr}", question.strip_suffix(" A").unwrap_or_default())
    };
    world().is(&[(mine, &nxdomain()), (any, &nxdomain())]);
    let insecure = World::new("pods: insecure", OBJECTS);
    insecure.is(&[
        (mine, &found(mine, "172.27.1.40")),
        (any, &found(any, "192.0.2.1")),
        ("192-0-2-1.nowhere.pod.cluster.local A", &nxdomain()),
        ("web.shop.pod.cluster.local A", &nxdomain()),
        ("192-0-2-1.shop.pod.cluster.local AAAA", &nodata()),
        (
            "fd00-27--40.shop.pod.cluster.local AAAA",
            "NOERROR aa\nfd00-27--40.shop.pod.cluster.local. 5 AAAA fd00:27::40",
        ),
    ]);
    let verified = World::new("pods: verified", OBJECTS);
    verified.is(&[
        (mine, &found(mine, "172.27.1.40")),
        (any, &nxdomain()),
        ("172-27-1-40.empty.pod.cluster.local A", &nxdomain()),
        (
            "fd00-27--40.shop.pod.cluster.local AAAA",
            "NOERROR aa\nfd00-27--40.shop.pod.cluster.local. 5 AAAA fd00:27::40",
        ),
    ]);
}

#[test]
fn names_that_are_not_there() {
    for name in [
        "nobody.shop.svc.cluster.local",
        "web.nowhere.svc.cluster.local",
        "nowhere.svc.cluster.local",
        "web.shop.cluster.local",
        "shop.cluster.local",
        "a.b.c.web.shop.svc.cluster.local",
        "www.example.com.cluster.local",
        "*.shop.svc.cluster.local",
        "web.shop.svc.svc.cluster.local",
    ] {
        world().is(&[(&format!("{name} A"), &nxdomain())]);
    }
}

#[test]
fn names_that_stand_for_nothing_themselves() {
    for question in [
        "cluster.local A",
        "svc.cluster.local A",
        "pod.cluster.local A",
        "shop.svc.cluster.local A",
        "shop.pod.cluster.local A",
        "empty.svc.cluster.local A",
        "web.shop.svc.cluster.local TXT",
        "web.shop.svc.cluster.local MX",
        "web.shop.svc.cluster.local HTTPS",
        "plain.shop.svc.cluster.local AAAA",
        "cluster.local DS",
    ] {
        world().is(&[(question, &nodata())]);
    }
}

#[test]
fn zone_has_its_own_records() {
    world().is(&[
        ("cluster.local SOA", &("NOERROR aa".to_owned() + &soa("cluster.local.").replace("! ", ""))),
        (
            "cluster.local NS",
            "NOERROR aa\ncluster.local. 5 NS ns.dns.cluster.local.\n+ ns.dns.cluster.local. 5 A 172.28.0.10\n\
             + ns.dns.cluster.local. 5 AAAA fd00:28::a",
        ),
        ("ns.dns.cluster.local A", "NOERROR aa\nns.dns.cluster.local. 5 A 172.28.0.10"),
        ("web.shop.svc.cluster.local SOA", &nodata()),
    ]);
}
