//! Uplinks that go, come back, and change their address.

use std::net::IpAddr;
use std::time::{Duration, Instant};
use stellwerk_tests::netns::nat::sockets::{families, seen_as, udp};
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
    std::thread::sleep(Duration::from_secs(1));
    for like in families() {
        let greeting = probe::tcp(&From::ns(&lab.dev), outside(like, ECHO), 1000);
        let routes = || lab.dev.ip_text(if like.is_ipv4() { "route" } else { "-6 route" }).unwrap();
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
    assert!(talk.exchange(1000).is_err(), "the old connection lives");
    let log = lab.agent().log();
    assert!(log.contains("203.0.113.2"), "nothing said of the connections that ended:\n{}", lab.state());
}
