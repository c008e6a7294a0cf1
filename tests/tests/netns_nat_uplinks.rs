//! Uplinks that go, come back, and change their address; and what is said of the connections that end so.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde_json::Value;
use stellwerk_tests::netns::nat::sockets::{eventually, families, seen_as, udp};
use stellwerk_tests::netns::nat::{self, ECHO, Translated, outside};
use stellwerk_tests::netns::probe::{self, From, Talk};

/// Down by the operator's word, and back again.
#[test]
fn another_uplink_takes_over() {
    let lab = Translated::open().unwrap();
    for like in families() {
        let mirror = |port| seen_as(&udp(&lab.h1, like, port), like).map(|at| at.ip());
        assert_eq!(mirror(20_001), Some(nat::uplink().like(like)), "{}", lab.state());
    }
    let v4 = nat::uplink().v4;
    let [mut quiet, mut busy] = [(); 2].map(|()| Talk::open(&lab.from_h1(), outside(v4, ECHO)).unwrap());
    lab.dev.ip("link set eth0 down").unwrap();
    let begin = Instant::now();
    for like in families() {
        leaves_by(&lab, like, nat::second().like(like), begin);
    }
    let moved = lab.count("nat_moved");
    assert!(busy.exchange(10).is_err(), "its address is the other uplink's");
    assert!(lab.count("nat_moved") > moved, "{}", lab.state());
    // What goes down has lost its addresses and routes of IPv6.
    lab.dev
        .ip("link set eth0 up\naddr replace 2001:db8:113::2/64 dev eth0 nodad\n\
             route replace default via 203.0.113.1 metric 100\nroute replace default via 2001:db8:113::1 metric 100")
        .unwrap();
    let begin = Instant::now();
    for like in families() {
        leaves_by(&lab, like, nat::uplink().like(like), begin);
    }
    // Who sent nothing meanwhile goes on.
    quiet.exchange(10_000).unwrap_or_else(|e| panic!("{e:#}\n{}", lab.state()));
}

/// The cable is pulled: the port stays up and loses its carrier.
#[test]
fn another_uplink_takes_over_when_the_cable_is_pulled() {
    let lab = Translated::open().unwrap();
    lab.gw.ip("link set eth0 down").unwrap();
    let begin = Instant::now();
    for like in families() {
        leaves_by(&lab, like, nat::second().like(like), begin);
    }
}

/// The kernel's own routes know it, too: a route over a link without carrier stays where nobody says otherwise.
#[test]
fn the_devices_own_connections_leave_by_another_uplink_too() {
    let lab = Translated::open().unwrap();
    lab.gw.ip("link set eth0 down").unwrap();
    for like in families() {
        let routes = || lab.dev.ip_text(if like.is_ipv4() { "route" } else { "-6 route" }).unwrap();
        // The kernel looks at links once a second; who has chosen a source before keeps it.
        eventually("the route knows that its cable is pulled", 5, || {
            routes().lines().any(|route| route.starts_with("default") && route.contains("linkdown"))
        });
        let greeting = probe::tcp(&From::ns(&lab.dev), outside(like, ECHO), 1000);
        let greeting = greeting.unwrap_or_else(|e| panic!("{e:#}\n{}\n{}", routes(), lab.state()));
        assert_eq!(greeting.client, Some(nat::second().like(like)));
    }
}

/// New connections, of TCP and UDP, have this address, 2 seconds after `begin` at the latest.
fn leaves_by(lab: &Translated, like: IpAddr, address: IpAddr, begin: Instant) {
    let mut last = String::new();
    let mut port = 25_000;
    while begin.elapsed() < Duration::from_millis(2500) {
        port += 1;
        let socket = udp(&lab.h1, like, port);
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let seen = seen_as(&socket, like).map(|at| at.ip());
        if seen == Some(address) {
            let greeting = probe::tcp(&lab.from_h2(), outside(like, ECHO), 100_000)
                .unwrap_or_else(|e| panic!("TCP by {address}: {e:#}\n{}", lab.state()));
            assert_eq!(greeting.client, Some(address));
            return;
        }
        last = format!("{seen:?}");
    }
    panic!(
        "not by {address} after {:?}, but {last}\n{}\n{}",
        begin.elapsed(),
        lab.dev.ip_text("route").unwrap(),
        lab.state()
    );
}

/// The uplink gets another address: old connections end, new ones have it.
#[test]
fn a_new_address_of_the_uplink_is_taken() {
    let mut lab = Translated::open().unwrap();
    let like = nat::uplink().v4;
    let mut talk = Talk::open(&lab.from_h1(), outside(like, ECHO)).unwrap();
    talk.exchange(1000).unwrap();
    lab.dev
        .ip("addr del 203.0.113.2/24 dev eth0\naddr add 203.0.113.22/24 dev eth0\n\
             route replace default via 203.0.113.1 metric 100")
        .unwrap();
    leaves_by(&lab, like, "203.0.113.22".parse().unwrap(), Instant::now());
    // New ones have the new address a moment before the old ones end.
    eventually("the old connection's end", 3, || talk.exchange(1000).is_err());
    let log = lab.agent().log();
    assert!(log.contains("203.0.113.2"), "nothing said of the connections that ended:\n{}", lab.state());
}

/// Connections that the agent has ended for this reason, as `nat status` lists them.
fn ended(lab: &mut Translated, reason: &str) -> u64 {
    let text = lab.agent().command(&["nat", "status", "--json"]).unwrap();
    let rows: Vec<Value> = serde_json::from_str(&text).unwrap();
    let row = rows.iter().find(|row| row["what"] == "ended" && row["name"] == reason);
    row.unwrap_or_else(|| panic!("no such row: {text}"))["count"].as_u64().unwrap()
}

/// Mappings that have begun and not ended, by the log: who has which port outside. Panics where a line doesn't
/// follow from those before it.
fn open_mappings(lab: &Translated) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(lab.files.config().with_file_name("nat.log")).unwrap_or_default();
    let mut open = BTreeMap::new();
    for line in text.lines() {
        let row: Value = serde_json::from_str(line).expect(line);
        let word = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
        let (outside, inside) = (format!("{} {}", word("protocol"), word("outside")), word("inside"));
        let before = if word("event") == "begin" { None } else { Some(inside.clone()) };
        let was = match before {
            None => open.insert(outside, inside),
            Some(_) => open.remove(&outside),
        };
        assert_eq!(was, before, "{line} in\n{text}");
    }
    open
}

/// What ends with its address or its port is in the log of mappings, and counted also for the next agent.
#[test]
fn what_the_agent_ends_is_logged_and_counted() {
    let keys = ", ipv6: masquerade, log: nat.log";
    let mut lab = Translated::with(&nat::config(keys, "")).unwrap();
    let like = nat::uplink().v4;
    let all = 20_001..20_021;
    for port in all.clone() {
        assert!(seen_as(&udp(&lab.h1, like, port), like).is_some(), "{port}\n{}", lab.state());
    }
    let _talk = Talk::open(&lab.from_h1(), outside(like, ECHO)).unwrap();
    let of = |lab: &Translated, address: &str| {
        open_mappings(lab).keys().filter(|outside| outside.contains(&format!(" {address}:"))).count()
    };
    eventually("all beginnings are logged", 5, || of(&lab, "203.0.113.2") > all.len());
    lab.dev
        .ip("addr del 203.0.113.2/24 dev eth0\naddr add 203.0.113.22/24 dev eth0\n\
             route replace default via 203.0.113.1 metric 100")
        .unwrap();
    leaves_by(&lab, like, "203.0.113.22".parse().unwrap(), Instant::now());
    eventually("all ends are logged", 5, || of(&lab, "203.0.113.2") == 0);
    let by_address = ended(&mut lab, "address");
    assert!(by_address > all.len() as u64, "{by_address}\n{}", lab.state());

    // Its successor knows of them, and counts on.
    lab.agent().kill();
    lab.agent().start_ready().unwrap();
    assert_eq!((ended(&mut lab, "address"), ended(&mut lab, "ports")), (by_address, 0));
    eventually("there are others", 5, || of(&lab, "203.0.113.22") > 0);
    lab.files.write_config(&nat::config(keys, "snatPorts: 40000-40999\n")).unwrap();
    eventually("all ports are of the new range", 10, || of(&lab, "203.0.113.22") == 0);
    assert!(ended(&mut lab, "ports") > 0, "{}", lab.state());
}
