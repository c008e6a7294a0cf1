//! What the configuration has a choice in, and what changes while it is asked.

use super::*;
use crate::source::manifests::ServiceName;

#[test]
fn domain_and_ttl_by_choice() {
    let world = World::new("domain: edge.example, ttl: 30", OBJECTS);
    world.is(&[("web.shop.svc.edge.example A", "NOERROR aa\nweb.shop.svc.edge.example. 30 A 172.28.0.20")]);
    let negative = world.ask("x.shop.svc.edge.example A");
    assert!(
        negative.ends_with("edge.example. 30 SOA ns.dns.edge.example. hostmaster.edge.example. 7 7200 1800 86400 30")
    );
}

#[test]
fn load_balancers_have_names_outside_by_choice() {
    let world = World::new("externalZone: edge.example.org", OBJECTS);
    let nxdomain = "NXDOMAIN aa".to_owned() + &soa("edge.example.org.");
    world.is(&[
        (
            "web.shop.edge.example.org A",
            "NOERROR aa\nweb.shop.edge.example.org. 5 A 198.51.100.7\nweb.shop.edge.example.org. 5 A 192.168.20.100",
        ),
        ("plain.shop.edge.example.org A", &nxdomain),
        ("shop.edge.example.org A", &nxdomain.replace("NXDOMAIN", "NOERROR")),
        ("edge.example.org A", &nxdomain.replace("NXDOMAIN", "NOERROR")),
        ("nowhere.edge.example.org A", &nxdomain),
        ("edge.example.org SOA", &("NOERROR aa".to_owned() + &soa("edge.example.org.").replace("! ", ""))),
    ]);
    let srv = world.ask("_http._tcp.web.shop.edge.example.org SRV");
    assert!(srv.contains("5 SRV 0 100 80 web.shop.edge.example.org."), "{srv}");
}

#[test]
fn hosts_of_the_configuration() {
    let world = World::new("hosts: { registry.local: [10.0.0.5, \"fd00::5\"] }", OBJECTS);
    world.is(&[
        ("Registry.local A", "NOERROR aa\nRegistry.local. 5 A 10.0.0.5"),
        ("registry.local AAAA", "NOERROR aa\nregistry.local. 5 AAAA fd00::5"),
        ("registry.local TXT", "NOERROR aa"),
        ("5.0.0.10.in-addr.arpa PTR", "NOERROR aa\n5.0.0.10.in-addr.arpa. 5 PTR registry.local."),
    ]);
}

#[test]
fn nothing_is_known_before_the_source_has_synced() {
    let world = World::of(config(""), None);
    world.is(&[
        ("web.shop.svc.cluster.local A", "SERVFAIL"),
        ("20.0.28.172.in-addr.arpa PTR", "SERVFAIL"),
        ("cluster.local SOA", "SERVFAIL"),
    ]);
    let zone = zone(OBJECTS);
    world.snapshot.send_replace(Some(Arc::new(Snapshot { revision: 1, zone, ..Snapshot::default() })));
    world.is(&[("web.shop.svc.cluster.local A", "NOERROR aa\nweb.shop.svc.cluster.local. 5 A 172.28.0.20")]);
}

/// As the next agent begins: of two services one is served as it is wished for.
#[test]
fn what_is_not_served_yet_is_not_known() {
    let held = ServiceName { namespace: "shop".into(), name: "web".into() };
    let names = zone(OBJECTS).names().clone();
    let resumed = Zone::resumed(&names, [held].into());
    let snapshot = |zone| Some(Snapshot { revision: 7, zone, ..Snapshot::default() });
    let world = World::of(config("externalZone: edge.example"), snapshot(resumed.clone()));
    world.is(&[
        ("plain.shop.svc.cluster.local A", "NOERROR aa\nplain.shop.svc.cluster.local. 5 A 172.28.0.21"),
        ("web.shop.svc.cluster.local A", "SERVFAIL"),
        ("_http._tcp.web.shop.svc.cluster.local SRV", "SERVFAIL"),
        ("web.shop.edge.example A", "SERVFAIL"),
        ("20.0.28.172.in-addr.arpa PTR", "SERVFAIL"),
    ]);
    assert!(world.ask("nobody.shop.svc.cluster.local A").starts_with("NXDOMAIN aa"));
    let mut whole = resumed;
    whole.follow(&names);
    world.snapshot.send_replace(snapshot(whole).map(Arc::new));
    world.is(&[("web.shop.svc.cluster.local A", "NOERROR aa\nweb.shop.svc.cluster.local. 5 A 172.28.0.20")]);
}

#[test]
fn serial_rises_with_the_revision() {
    let world = world();
    let serial = |world: &World| world.ask("cluster.local SOA").split(' ').nth(6).map(str::to_owned);
    assert_eq!(serial(&world).as_deref(), Some("7"));
    world.snapshot.send_modify(|s| *s = s.as_ref().map(|s| Arc::new(Snapshot { revision: 8, ..(**s).clone() })));
    assert_eq!(serial(&world).as_deref(), Some("8"));
}

#[test]
fn names_follow_services() {
    let mut zone = zone(OBJECTS);
    let before = zone.clone();
    let other = super::zone(
        "apiVersion: v1\nkind: Service\nmetadata: { name: new, namespace: shop }\nspec: { clusterIP: 172.28.0.20, ports: [{ port: 1 }] }\n",
    );
    zone.follow(other.names());
    let (addr, gone) = ("172.28.0.20".parse().unwrap(), "172.27.1.11".parse().unwrap());
    assert_eq!((zone.find_address(addr), zone.find_address(gone)), (vec!["new.shop.svc".to_owned()], vec![]));
    zone.follow(before.names());
    assert_eq!(zone.find_address(addr), before.find_address(addr));
    assert_eq!(zone.find_address(gone), ["db-0.db.shop.svc"]);
}

#[test]
fn addresses_take_turns() {
    let world = world();
    let first = |id: u16| {
        let mut message = message("db.shop.svc.cluster.local A");
        message.metadata.id = id;
        match world.handler.begin(&message.to_vec().unwrap(), &pod(false)) {
            Outcome::Reply(bytes) => show(&bytes).lines().nth(1).map(str::to_owned),
            _ => None,
        }
    };
    let all: BTreeSet<_> = (0..4).map(first).collect();
    assert_eq!(all.len(), 2);
}
