//! Operators' routes, on a device between two routers that lead to the same host: what the commands say and
//! keep, who takes over when a router or a cable fails, what others change, and that nothing of it stays.
//!
//! ```text
//!              ┌── Port3 192.168.20.2 ── 192.168.20.1 router a ── 10.1.0.1
//!        device┤
//!              └── Port4 192.168.30.2 ── 192.168.30.1 router b ── 10.1.0.1
//! ```
//! Every address has an IPv6 twin: fd00:20::2 and so on; 10.1.0.1's is fd00:1::1.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use stellwerk_tests::netns::probe::{self, From};
use stellwerk_tests::netns::{Agent, Lab, Ns};

struct Routed {
    agent: Agent,
    dev: Ns,
    a: Ns,
    b: Ns,
    lab: Lab,
}

const PORTS: &str =
    "node: n\nports:\n  Port3: { interface: eth1, compute: true }\n  Port4: { interface: eth2 }\nroutes: []\n";
const FAR: [&str; 2] = ["10.1.0.0/16", "fd00:1::/64"];

impl Routed {
    /// The agent doesn't run yet.
    fn new() -> Routed {
        let lab = Lab::new().unwrap();
        let [dev, a, b] = ["dev", "a", "b"].map(|name| lab.ns(name).unwrap());
        for (router, link, net) in [(&a, "eth1", 20), (&b, "eth2", 30)] {
            lab.wire((&dev, link), (router, "eth0")).unwrap();
            dev.ip(&format!("addr add 192.168.{net}.2/24 dev {link}\naddr add fd00:{net}::2/64 dev {link} nodad"))
                .unwrap();
            // What a router that is down has lost comes back with it.
            router.sysctls(&[("net/ipv6/conf/eth0/keep_addr_on_down", "1")]).unwrap();
            router
                .ip(&format!(
                    "addr add 10.1.0.1/32 dev lo\naddr add fd00:1::1/128 dev lo nodad\n\
                     addr add 192.168.{net}.1/24 dev eth0\naddr add fd00:{net}::1/64 dev eth0 nodad"
                ))
                .unwrap();
            defaults(router, net);
        }
        dev.sysctls(&[("net/ipv6/conf/eth1/keep_addr_on_down", "1")]).unwrap();
        let config = lab.dir().join("stellwerk.yaml");
        std::fs::write(&config, PORTS).unwrap();
        let agent = Agent::new(&lab, &dev, &config).unwrap();
        Routed { agent, dev, a, b, lab }
    }

    fn open() -> Routed {
        let mut routed = Routed::new();
        routed.start();
        routed
    }

    fn start(&mut self) {
        self.agent.start_ready().unwrap();
    }

    fn configure(&self, text: &str) {
        let new = self.lab.dir().join("next");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.lab.dir().join("stellwerk.yaml")).unwrap();
    }

    /// The line in words.
    fn say(&self, line: &str) -> String {
        self.agent.command(&line.split(' ').collect::<Vec<_>>()).unwrap_or_else(|e| format!("{e:#}"))
    }

    /// To both families' far network by a router, by command.
    fn add(&self, port: &str, net: u8, more: &str) {
        for (far, hop) in FAR.into_iter().zip([format!("192.168.{net}.1"), format!("fd00:{net}::1")]) {
            let said = self.say(&format!("route add -i {port} -d {far} -n {hop}{more}"));
            assert!(said.starts_with("added: "), "{said}\n{}", self.agent.log_tail());
        }
    }

    /// Destination and state of each route.
    fn states(&self) -> Vec<String> {
        let rows: Vec<serde_json::Value> = serde_json::from_str(&self.say("route get --json")).unwrap();
        let text = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap_or("-").to_owned();
        rows.iter().map(|row| ["interface", "destination", "state"].map(|key| text(row, key)).join(" ")).collect()
    }

    /// Waits for the states of all routes; next hops have to answer first.
    fn await_states(&self, want: &[&str]) {
        let end = Instant::now() + Duration::from_secs(5);
        while self.states() != want {
            assert!(Instant::now() < end, "not {want:?}\n{}\n{}", self.say("route get"), self.agent.log_tail());
        }
    }

    /// What the kernel has of our protocol to a prefix; to all in both families without one.
    fn kernel(&self, prefix: &str) -> String {
        let of = |family: &str| self.dev.ip_text(&format!("{family} route show table main proto 83 {prefix}")).unwrap();
        match prefix {
            "" => of("-4") + &of("-6"),
            v6 if v6.contains(':') => of("-6"),
            _ => of("-4"),
        }
    }

    /// How long it took until the kernel's route to a prefix was as wanted; not longer than `limit`.
    fn within(&self, limit: Duration, what: &str, prefix: &str, wanted: impl Fn(&str) -> bool) -> Duration {
        let begin = Instant::now();
        loop {
            let now = self.kernel(prefix);
            if wanted(&now) {
                return begin.elapsed();
            }
            let state = || format!("{now}\n{}\n{}", self.say("route get"), self.agent.log_tail());
            assert!(begin.elapsed() < limit, "{what} ({prefix}): not within {limit:?}\n{}", state());
            std::thread::sleep(Duration::from_millis(3));
        }
    }
}

fn defaults(router: &Ns, net: u8) {
    router.ip(&format!("route replace default via 192.168.{net}.2\nroute replace default via fd00:{net}::2")).unwrap();
}

fn repaired(routed: &Routed) -> String {
    let status = routed.agent.rows("status").unwrap();
    let row = status.iter().find(|row| row["what"] == "routes").expect("a row of routes");
    row["detail"].as_str().unwrap().to_owned()
}

#[test]
fn by_command_before_during_and_after() {
    let mut routed = Routed::new();
    assert_eq!(routed.say("route get --json"), "[]\n");
    routed.add("Port3", 20, "");
    assert_eq!(routed.states(), ["Port3 10.1.0.0/16 stored", "Port3 fd00:1::/64 stored"]);
    assert_eq!(routed.kernel(""), "");
    routed.start();
    let both = ["Port3 10.1.0.0/16 active", "Port3 fd00:1::/64 active"];
    routed.within(Duration::from_secs(2), "the agent's start", FAR[1], |now| now.contains("via fd00:20::1"));
    probe::ping(&From::ns(&routed.dev), "10.1.0.1".parse().unwrap(), 56).unwrap();
    routed.await_states(&both);
    // An agent that ends and one that is killed leave them, and the next one has them.
    for kill in [false, true] {
        if kill {
            routed.agent.kill()
        } else {
            assert!(routed.agent.stop())
        }
        routed.await_states(&both);
        assert!(routed.kernel(FAR[0]).contains("via 192.168.20.1 dev eth1 metric 100"), "{}", routed.kernel(""));
        let said = routed.say("route remove -i Port3 -d fd00:1::/64");
        assert_eq!(said, "removed: fd00:1::/64 by fd00:20::1 on Port3, metric 100\n");
        routed.start();
        routed.within(Duration::from_secs(2), "the next agent's start", FAR[1], str::is_empty);
        routed.say("route add -i Port3 -d fd00:1::/64 -n fd00:20::1");
        routed.await_states(&both);
    }
    // As other devices' runbooks say it.
    let said = routed.say(
        "Add-HcsNetRoute -InterfaceAlias Port3 -DestinationPrefix 192.168.21.0/24 -NextHop 192.168.20.1 -RouteMetric 50",
    );
    assert_eq!(said, "added: 192.168.21.0/24 by 192.168.20.1 on Port3, metric 50\n");
    assert!(routed.kernel("192.168.21.0/24").contains("via 192.168.20.1 dev eth1 metric 50"));
    assert!(routed.say("Get-HcsNetRoute -InterfaceAlias Port3").contains("192.168.21.0/24"));
    let said = routed.say("Remove-HcsNetRoute -InterfaceAlias Port3 -DestinationPrefix 192.168.21.0/24");
    assert_eq!(said, "removed: 192.168.21.0/24 by 192.168.20.1 on Port3, metric 50\n");
    assert_eq!(routed.kernel("192.168.21.0/24"), "");
    let again = routed.say("route add -i Port3 -d 10.1.0.0/16 -n 192.168.20.1");
    assert!(again.contains("Port3 has a route to 10.1.0.0/16 already"), "{again}");
    // The same in the configuration file.
    let route = "[{ interface: Port4, destination: 10.9.0.0/16, nextHop: 192.168.30.1, metric: 7 }]";
    routed.configure(&PORTS.replace("[]", route));
    let limit = Duration::from_secs(2);
    routed
        .within(limit, "a route of the file", "10.9.0.0/16", |now| now.contains("via 192.168.30.1 dev eth2 metric 7"));
    assert!(routed.say("route remove -i Port4 -d 10.9.0.0/16").contains("was not added by command; expected"));
    routed.configure(PORTS);
    routed.within(limit, "its end", "10.9.0.0/16", str::is_empty);
}

/// The better candidate's router goes silent, or its cable is out: the other one takes over, and gives back.
#[test]
fn another_candidate_takes_over_and_gives_back() {
    let routed = Routed::open();
    routed.add("Port3", 20, "");
    routed.add("Port4", 30, " -m 200");
    let by_a = |now: &str| now.contains("dev eth1");
    let limit = Duration::from_secs(1);
    for (far, net, addr) in [(FAR[0], "192.168.20.1/24", "192.168.20.1"), (FAR[1], "fd00:20::1/64", "fd00:20::1")] {
        routed.within(limit, "the start", far, |now| by_a(now) && now.contains("dev eth2"));
        for _ in 0..3 {
            routed.a.ip(&format!("addr del {net} dev eth0")).unwrap();
            let failed = routed.within(limit, "a router that is silent", far, |now| !by_a(now));
            assert!(routed.kernel(far).contains("dev eth2"), "{}", routed.kernel(far));
            routed.a.ip(&format!("addr add {net} dev eth0{}", if addr.contains(':') { " nodad" } else { "" })).unwrap();
            defaults(&routed.a, 20);
            let back = routed.within(limit, "a router that is back", far, by_a);
            println!("{far}: the neighbour dead after {failed:?}, back after {back:?}");
        }
    }
    let far_host: IpAddr = "10.1.0.1".parse().unwrap();
    for (who, what) in [(&routed.a, "eth0"), (&routed.dev, "eth1")] {
        std::thread::sleep(Duration::from_millis(300));
        who.ip(&format!("link set {what} down")).unwrap();
        let failed = FAR.map(|far| routed.within(limit, "a link that is down", far, |now| !by_a(now)));
        probe::ping(&From::ns(&routed.dev), far_host, 56).unwrap();
        who.ip(&format!("link set {what} up")).unwrap();
        defaults(&routed.a, 20);
        let back = FAR.map(|far| routed.within(2 * limit, "a link that is back", far, by_a));
        println!("{what}: the link down after {failed:?}, back after {back:?}");
    }
}

#[test]
fn equal_metrics_are_one_route_of_several_hops() {
    let routed = Routed::open();
    routed.add("Port3", 20, " --weight 3");
    routed.add("Port4", 30, "");
    let limit = Duration::from_secs(2);
    for (far, a, b) in [(FAR[0], "192.168.20.1", "192.168.30.1"), (FAR[1], "fd00:20::1", "fd00:30::1")] {
        let whole = format!("nexthop via {a} dev eth1 weight 3");
        let other = format!("nexthop via {b} dev eth2 weight 1");
        routed.within(limit, "both hops", far, |now| now.contains(&whole) && now.contains(&other));
    }
    assert_eq!(routed.states().iter().filter(|state| state.ends_with("active")).count(), 4);
    routed.a.ip("link set eth0 down").unwrap();
    for (far, b) in FAR.into_iter().zip(["via 192.168.30.1 dev eth2", "via fd00:30::1 dev eth2"]) {
        routed.within(limit, "the hop that is left", far, |now| now.contains(b) && !now.contains("nexthop"));
    }
    routed.a.ip("link set eth0 up").unwrap();
    defaults(&routed.a, 20);
    for far in FAR {
        routed.within(limit, "both again", far, |now| now.matches("nexthop").count() == 2);
    }
}

/// Who asks for what is nowhere is told so, by the right words.
#[test]
fn routes_that_lead_nowhere_say_so() {
    let routed = Routed::open();
    for (kind, v4, v6) in [("unreachable", (3, 1), (1, 0)), ("prohibit", (3, 13), (1, 1))] {
        let number = 50 + v4.1;
        for (to, want) in [(format!("10.{number}.0.1"), v4), (format!("fd00:f{number}::1"), v6)] {
            let said = routed.say(&format!("route add -i Port3 -d {to} --type {kind}"));
            assert!(said.starts_with("added: "), "{said}");
            let to: IpAddr = to.parse().unwrap();
            let work = || {
                // No echo comes; the error does.
                _ = probe::ping(&From::ns(&routed.a), to, 8);
                Ok(())
            };
            let error = probe::icmp_error(&routed.a, to.is_ipv4(), want.0, work).unwrap();
            assert_eq!((error.kind, error.about_destination()), (want, Some(to)), "{kind}");
        }
    }
    assert!(routed.say("route add -i Port3 -d 10.8.0.0/16 --type blackhole").starts_with("added: "));
    assert!(routed.kernel("10.8.0.0/16").contains("blackhole 10.8.0.0/16"), "{}", routed.kernel(""));
    let silent = probe::icmp_error(&routed.a, true, 3, || {
        _ = probe::ping(&From::ns(&routed.a), "10.8.0.1".parse().unwrap(), 8);
        Ok(())
    });
    assert!(silent.is_err(), "{silent:?}");
}

#[test]
fn what_others_change_is_repaired_and_counted() {
    let routed = Routed::open();
    routed.add("Port3", 20, "");
    routed.say("route add -i Port4 -d 10.8.0.0/16 --type blackhole");
    let before = routed.kernel("");
    assert_eq!(repaired(&routed), "0 changes by others repaired");
    for (count, change) in [
        "route del 10.1.0.0/16",
        "route replace 10.1.0.0/16 via 192.168.30.1 metric 100",
        "-6 route del fd00:1::/64",
        "route change 10.1.0.0/16 via 192.168.20.9 metric 100 proto 83",
        "route del blackhole 10.8.0.0/16",
        "route add 10.7.0.0/16 via 192.168.20.1 proto 83",
    ]
    .iter()
    .enumerate()
    {
        routed.dev.ip_text(change).unwrap();
        routed.within(Duration::from_secs(1), change, "", |now| now == before);
        let end = Instant::now() + Duration::from_secs(1);
        let want = format!("{} changes by others repaired", count + 1);
        while repaired(&routed) != want {
            assert!(Instant::now() < end, "{change}: {}\n{}", repaired(&routed), routed.agent.log_tail());
        }
    }
    // Another's own route is left alone, and ours of the same prefix and metric says why it isn't there.
    routed.dev.ip("route add 10.6.0.0/16 via 192.168.30.1 metric 100").unwrap();
    routed.say("route add -i Port3 -d 10.6.0.0/16 -n 192.168.20.1");
    let get = routed.say("route get");
    assert!(get.contains("missing") && get.contains("which is not ours"), "{get}");
    assert!(routed.dev.ip_text("route show 10.6.0.0/16").unwrap().contains("via 192.168.30.1 dev eth2 metric 100"));
}

/// The device is asked at the port whose gateway isn't the better one's.
#[test]
fn answers_leave_by_the_port_that_was_asked() {
    let mut routed = Routed::new();
    routed.dev.ip("route add default via 192.168.20.1 metric 10\nroute add default via fd00:20::1 metric 10").unwrap();
    let ports = "node: n\nports:\n  Port3: { interface: eth1, gateway: [192.168.20.1, 'fd00:20::1'] }\n  \
                 Port4: { interface: eth2, gateway: [192.168.30.1, 'fd00:30::1'] }\n";
    routed.configure(ports);
    routed.start();
    let asked = |from: &str, to: &str| {
        probe::ping(&From::at(&routed.b, from.parse().unwrap()), to.parse().unwrap(), 56).is_ok()
    };
    let far = [("10.1.0.1", "192.168.30.2"), ("fd00:1::1", "fd00:30::2")];
    for (from, to) in far {
        assert!(!asked(from, to), "{to} answers by the other port, where another {from} is");
    }
    routed.configure(&ports.replace("'fd00:30::1'] }", "'fd00:30::1'], replyVia: port }"));
    for (from, to) in far {
        let end = Instant::now() + Duration::from_secs(10);
        while !asked(from, to) {
            assert!(Instant::now() < end, "{to} doesn't answer\n{}", routed.agent.log_tail());
        }
    }
    // Who is at the other port is answered there, as before.
    assert!(probe::ping(&From::ns(&routed.a), "192.168.30.2".parse().unwrap(), 56).is_ok());
}

#[test]
fn unload_leaves_nothing() {
    let mut routed = Routed::new();
    let settings = ["ipv4", "ipv6"].map(|family| format!("net/{family}/neigh/eth1/retrans_time_ms"));
    let read = |dev: &Ns| settings.each_ref().map(|name| dev.sysctl(name).unwrap());
    let all = |dev: &Ns| {
        ["-4 route show table all", "-6 route show table all", "-4 rule", "-6 rule"].map(|what| {
            let text = dev.ip_text(what).unwrap();
            text.lines()
                .filter(|line| line.contains("proto 83") || line.contains("53000"))
                .collect::<Vec<_>>()
                .join("\n")
        })
    };
    let before = read(&routed.dev);
    routed.configure(&PORTS.replace("eth1,", "eth1, gateway: [192.168.20.1, 'fd00:20::1'], replyVia: port,"));
    routed.start();
    routed.add("Port3", 20, "");
    routed.add("Port4", 30, " -m 200");
    routed.say("route add -i Port4 -d 10.8.0.0/16 --type blackhole");
    assert!(all(&routed.dev).iter().all(|text| !text.is_empty()), "{:?}", all(&routed.dev));
    assert_eq!(read(&routed.dev), ["100", "100"].map(String::from));
    assert!(routed.agent.stop());
    let said = routed.say("unload");
    assert!(said.contains("routes and rules removed: "), "{said}");
    assert_eq!(all(&routed.dev), [""; 4].map(String::from));
    assert_eq!(read(&routed.dev), before);
    // The wish is the operator's: it stays.
    assert_eq!(routed.states().len(), 5);
}
