//! What is nobody's connection, through the device from one host to another: ahead of the kernel, and as it
//! would.
//!
//! ```text
//!   host a 192.168.20.1 ── 192.168.20.2 Port3, device, Port4 192.168.30.2 ── 192.168.30.1 host b
//! ```
//! Every address has an IPv6 twin: fd00:20::1 and so on.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use stellwerk_tests::load::Task;
use stellwerk_tests::load::echo;
use stellwerk_tests::netns::probe::{self, Datagram, From};
use stellwerk_tests::netns::{Agent, Lab, Ns};

const PORTS: &str = "node: n\nports:\n  Port3: { interface: eth1 }\n  Port4: { interface: eth2 }\n";
const ECHO: u16 = 7_000;

struct Between {
    agent: Agent,
    dev: Ns,
    a: Ns,
    lab: Lab,
    _server: Task,
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

impl Between {
    fn open() -> Between {
        let lab = Lab::new().unwrap();
        let [dev, a, b] = ["dev", "a", "b"].map(|name| lab.ns(name).unwrap());
        for (host, link, net) in [(&a, "eth1", 20), (&b, "eth2", 30)] {
            lab.wire((&dev, link), (host, "eth0")).unwrap();
            dev.ip(&format!("addr add 192.168.{net}.2/24 dev {link}\naddr add fd00:{net}::2/64 dev {link} nodad"))
                .unwrap();
            host.ip(&format!(
                "addr add 192.168.{net}.1/24 dev eth0\naddr add fd00:{net}::1/64 dev eth0 nodad\n\
                 route add default via 192.168.{net}.2\nroute add default via fd00:{net}::2"
            ))
            .unwrap();
        }
        let at = Self::far().map(|ip| SocketAddr::new(ip, ECHO));
        let server = echo::serve(&b, "b", &at).unwrap();
        let config = lab.dir().join("stellwerk.yaml");
        std::fs::write(&config, PORTS).unwrap();
        let mut agent = Agent::new(&lab, &dev, &config).unwrap();
        agent.start().unwrap();
        let between = Between { agent, dev, a, lab, _server: server };
        between.await_state("fast");
        between
    }

    fn far() -> [IpAddr; 2] {
        [ip("192.168.30.1"), ip("fd00:30::1")]
    }

    /// How forwarding is done, and how many packets were forwarded ahead of the kernel.
    fn forwarding(&self) -> (String, u64) {
        let rows = self.agent.rows("status").unwrap_or_default();
        let row = rows.iter().find(|row| row["what"] == "forwarding");
        row.map_or_else(Default::default, |row| {
            (row["state"].as_str().unwrap_or_default().to_owned(), row["used"].as_u64().unwrap_or_default())
        })
    }

    fn await_state(&self, want: &str) {
        let end = Instant::now() + Duration::from_secs(60);
        while self.forwarding().0 != want {
            assert!(Instant::now() < end, "not {want}: {:?}\n{}", self.forwarding(), self.agent.log_tail());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Conversations and pings to the other host, in both families.
    fn talk(&self) {
        let from = From::ns(&self.a);
        for far in Self::far() {
            let at = SocketAddr::new(far, ECHO);
            let about = |e: anyhow::Error| panic!("{far}: {e:#}\n{}", self.agent.command(&["drops"]).unwrap());
            probe::tcp(&from, at, 2_000_000).unwrap_or_else(about);
            probe::udp(&from, at, Datagram { length: 300, ..Datagram::default() }).unwrap_or_else(about);
            probe::ping(&from, far, 1_000).unwrap_or_else(|e| panic!("{far}: {e:#}"));
        }
    }
}

#[test]
fn hosts_talk_through_the_device_ahead_of_the_kernel() {
    let between = Between::open();
    // The first packets resolve the neighbours.
    between.talk();
    let before = between.forwarding().1;
    between.talk();
    let after = between.forwarding().1;
    assert!(after > before + 100, "{before} and {after}");

    // A part of the way takes only smaller packets; where their time ends the device says so.
    between.dev.ip("link set eth2 mtu 1400").unwrap();
    between.talk();
    for (far, near) in Between::far().into_iter().zip([ip("192.168.20.2"), ip("fd00:20::2")]) {
        let kind = if far.is_ipv4() { 11 } else { 3 };
        let error = probe::icmp_error(&between.a, far.is_ipv4(), kind, || {
            let how = Datagram { length: 32, ttl: Some(1), ..Datagram::default() };
            probe::udp_socket(&From::ns(&between.a), SocketAddr::new(far, ECHO), how)?.send(&[0; 32])?;
            Ok(())
        });
        assert_eq!(error.unwrap_or_else(|e| panic!("{far}: {e:#}")).from, near);
    }
}

#[test]
fn a_blackhole_is_the_kernels_and_ours() {
    let between = Between::open();
    between.dev.ip("route add blackhole 10.9.0.0/16\nroute add unreachable 10.8.0.0/16").unwrap();
    let end = Instant::now() + Duration::from_secs(5);
    while between.agent.dropped("blackhole").unwrap() == 0 {
        assert!(Instant::now() < end, "{}", between.agent.command(&["drops"]).unwrap());
        _ = probe::ping(&From::ns(&between.a), ip("10.9.0.1"), 8);
    }
    let error = probe::icmp_error(&between.a, true, 3, || {
        _ = probe::ping(&From::ns(&between.a), ip("10.8.0.1"), 8);
        Ok(())
    });
    assert_eq!(error.unwrap().from, ip("192.168.20.2"));
}

#[test]
fn it_can_be_left_to_the_kernel() {
    let between = Between::open();
    between.talk();
    let new = between.lab.dir().join("next");
    std::fs::write(&new, format!("{PORTS}forwarding: kernel\n")).unwrap();
    std::fs::rename(new, between.lab.dir().join("stellwerk.yaml")).unwrap();
    between.await_state("kernel");
    let before = between.forwarding().1;
    between.talk();
    assert_eq!(between.forwarding().1, before);
}
