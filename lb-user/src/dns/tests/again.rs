//! Queries that come again.

use proptest::prelude::*;

use super::*;
use crate::dns::fast::Fast;

const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: { name: web, namespace: shop }\n\
                   spec: { clusterIP: 172.28.0.20, ports: [{ name: http, port: 80 }] }\n";

/// What is told, and whether it was known.
fn told(fast: &mut Fast, world: &World, bytes: &[u8], client: &Client) -> (String, bool) {
    match fast.begin(&world.handler, bytes, client) {
        Ok(bytes) => (show(bytes), true),
        Err(Outcome::Reply(bytes)) => (show(&bytes), false),
        Err(Outcome::Silence) => ("silence".into(), false),
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn the_same_is_told_again_until_the_zone_is_another() {
    let (world, mut fast) = (World::new("", WEB), Fast::default());
    let (name, want) = ("web.shop.svc.cluster.local A", "NOERROR aa\nweb.shop.svc.cluster.local. 5 A 172.28.0.20");
    for known in [false, true, true] {
        assert_eq!(told(&mut fast, &world, &query(name), &pod(false)), (want.into(), known));
    }
    // In other letters it is another query.
    let upper = "WEB.shop.svc.cluster.local A";
    assert_eq!(told(&mut fast, &world, &query(upper), &pod(false)), (want.replace("web", "WEB"), false));
    let counts = world.handler.metrics.counts();
    let count = |name: &str| counts.iter().find(|c| c.name == name).map(|c| c.count);
    assert_eq!((count("A"), count("NOERROR"), count("cluster")), (Some(4), Some(4), Some(4)));
    let other = zone(&WEB.replace("172.28.0.20", "172.28.0.21"));
    world.snapshot.send_replace(Some(Arc::new(Snapshot { revision: 8, zone: other, ..Snapshot::default() })));
    let want = want.replace("0.20", "0.21");
    assert_eq!(told(&mut fast, &world, &query(name), &pod(false)), (want, false));
}

#[test]
fn what_is_known_is_told_to_those_inside_alone_and_not_too_often() {
    let (world, mut fast) = (World::new("rateLimit: 3", WEB), Fast::default());
    let asked = query("web.shop.svc.cluster.local A");
    told(&mut fast, &world, &asked, &pod(false));
    let outside = Client { addr: "203.0.113.9".parse().ok(), stream: false };
    assert_eq!(told(&mut fast, &world, &asked, &outside), ("REFUSED".into(), false));
    let all: Vec<String> = (0..3).map(|_| told(&mut fast, &world, &asked, &pod(false)).0).collect();
    assert_eq!(all.iter().filter(|said| *said == "silence").count(), 1, "{all:?}");
}

proptest! {
    /// Whatever is asked, the second answer is the first.
    #[test]
    fn nothing_else_is_told_the_second_time(bytes in super::bytes::question()) {
        let (world, mut fast) = (World::new("rateLimit: 0, pods: insecure, upstreams: 127.0.0.1", WEB), Fast::default());
        let mut said = || match fast.begin(&world.handler, &bytes, &pod(false)) {
            Ok(bytes) => Some(bytes.to_vec()),
            Err(Outcome::Reply(bytes)) => Some(bytes),
            Err(_) => None,
        };
        let first = said();
        prop_assert_eq!(said(), first);
    }
}
