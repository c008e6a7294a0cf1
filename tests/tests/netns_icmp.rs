//! What is not a conversation: refusals, echoes, expired packets, packets that are too big,
//! addresses that nobody has.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use stellwerk_tests::load::echo;
use stellwerk_tests::netns::device::{self, Twin};
use stellwerk_tests::netns::probe::{self, Datagram, From, Talk};
use stellwerk_tests::netns::scene::{ECHO, PORT, Scene, Which};

fn open() -> Scene {
    Scene::open("auto", "xdp").expect("the scene")
}

/// Clients of every kind, with the address of a service by which they reach it.
fn clients(scene: &Scene, which: Which, like: IpAddr) -> Vec<(&'static str, From, IpAddr)> {
    let (external, cluster) = (which.external().like(like), which.cluster().like(like));
    vec![
        ("Port3", scene.client(), external),
        ("Port2", scene.far(like), external),
        ("a pod", From::ns(&scene.pod2), cluster),
        ("edge-2", From::ns(&scene.device.edge2), cluster),
    ]
}

fn families() -> [IpAddr; 2] {
    device::lan(10).both()
}

/// Runs `what` for each client and family, and tells all that went wrong.
fn for_all(scene: &Scene, which: Which, what: impl Fn(&From, IpAddr) -> Result<()>) {
    let mut wrong = Vec::new();
    for like in families() {
        for (name, from, ip) in clients(scene, which, like) {
            if let Err(e) = what(&from, ip) {
                wrong.push(format!("from {name} to {ip}: {e:#}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), scene.agent.command(&["drops"]).unwrap_or_default());
}

fn refused(from: &From, to: SocketAddr) -> Result<()> {
    // Over veths a refusal can come back while connect(2) still holds the socket: Linux then takes it
    // from the next SYN on, a second later (`sock_owned_by_user` in tcp_v4_err and tcp_v6_err). No wire is so fast.
    let (tcp, udp) = (Duration::from_millis(1500), Duration::from_millis(700));
    let tcp = ("TCP", probe::tcp_refused(from, to)?, tcp);
    let udp = ("UDP", probe::udp_refused(from, to)?, udp);
    for (name, (error, took), at_once) in [tcp, udp] {
        anyhow::ensure!(error == Some(ErrorKind::ConnectionRefused), "{name}: {error:?} after {took:?}");
        anyhow::ensure!(took < at_once, "{name}: refused only after {took:?}");
    }
    Ok(())
}

#[test]
fn service_without_backend_refuses_at_once() {
    let scene = open();
    let before = scene.agent.dropped("no_backend").unwrap();
    for_all(&scene, Which::Empty, |from, ip| refused(from, SocketAddr::new(ip, PORT)));
    let counted = scene.agent.dropped("no_backend").unwrap() - before;
    assert!(counted >= 16, "{counted} counted");
}

#[test]
fn port_without_service_refuses_at_once() {
    let scene = open();
    let before = scene.agent.dropped("no_service").unwrap();
    for_all(&scene, Which::Local, |from, ip| refused(from, SocketAddr::new(ip, 81)));
    assert!(scene.agent.dropped("no_service").unwrap() > before);
}

#[test]
fn unused_service_address_is_dropped_and_counted() {
    let scene = open();
    let before = scene.agent.dropped("unused_service_address").unwrap();
    for ip in device::external(115).both() {
        let (error, _) = probe::tcp_refused(&scene.client(), SocketAddr::new(ip, PORT)).unwrap();
        assert_eq!(error, Some(ErrorKind::TimedOut), "{ip}");
    }
    assert!(scene.agent.dropped("unused_service_address").unwrap() >= before + 2);
}

#[test]
fn service_addresses_answer_echo() {
    let scene = open();
    for_all(&scene, Which::Local, |from, ip| [0, 56, 1400].iter().try_for_each(|n| probe::ping(from, ip, *n)));
}

/// As traceroute sees it: the first hop is the device, the second the service itself.
#[test]
fn expired_packets_are_told_about_the_service() {
    let scene = open();
    for ip in Which::Local.external().both() {
        let target = SocketAddr::new(ip, PORT);
        for (from, device) in [(scene.far(ip), device::uplink()), (scene.client(), device::lan(10))] {
            let kind = if ip.is_ipv4() { 11 } else { 3 };
            let error = probe::icmp_error(&from.ns, ip.is_ipv4(), kind, || {
                let how = Datagram { length: 32, ttl: Some(1), ..Datagram::default() };
                probe::udp_socket(&from, target, how)?.send(&[0; 32])?;
                Ok(())
            });
            let error = error.unwrap_or_else(|e| panic!("{ip}: {e:#}"));
            assert_eq!(error.from, device.like(ip));
            assert_eq!(error.about_destination(), Some(ip));
            let how = Datagram { length: 32, ttl: Some(2), ..Datagram::default() };
            assert_eq!(probe::udp(&from, target, how).unwrap_or_else(|e| panic!("{ip}: {e:#}")).name, "pod-1");
        }
    }
}

/// A router behind the device (towards the backend) takes only smaller packets.
#[test]
fn smaller_path_towards_the_backend() {
    let mut scene = open();
    let behind = Twin { v4: "172.27.9.2".parse().unwrap(), v6: "fd00:27:9::2".parse().unwrap() };
    let router = scene.device.pod("router", 30).unwrap();
    let deep = scene.device.lab.ns("deep").unwrap();
    scene.device.lab.wire((&router, "eth1"), (&deep, "eth0")).unwrap();
    router.forward().unwrap();
    router
        .ip("addr add 172.27.9.1/32 dev eth1\naddr add fd00:27:9::1/128 dev eth1 nodad\n\
             route add 172.27.9.0/24 dev eth1 mtu lock 1400\nroute add fd00:27:9::/64 dev eth1 mtu lock 1400")
        .unwrap();
    deep.ip("addr add 172.27.9.2/24 dev eth0\naddr add fd00:27:9::2/64 dev eth0 nodad\n\
             route add default via 172.27.9.1\nroute add default via fd00:27:9::1")
        .unwrap();
    let dev = &scene.device.dev;
    dev.ip("route add 172.27.9.0/24 via 172.27.1.30\nroute add fd00:27:9::/64 via fd00:27:1::1e").unwrap();
    scene.keep(echo::serve(&deep, "deep", &behind.both().map(|ip| SocketAddr::new(ip, ECHO))).unwrap());
    scene
        .change(Which::Empty, |service| {
            service.endpoints = vec![stellwerk_tests::netns::config::Endpoint::new(behind, "edge-1")]
        })
        .unwrap();
    scene.agent.wait("backends", |rows| rows.iter().any(|row| row.to_string().contains("fd00:27:9::2"))).unwrap();
    let before = scene.agent.dropped("icmp_translated").unwrap();
    for ip in Which::Empty.external().both() {
        for from in [scene.far(ip), scene.client()] {
            let target = SocketAddr::new(ip, PORT);
            let greeting = probe::tcp(&from, target, 300_000)
                .unwrap_or_else(|e| panic!("{ip}: {e:#}\n{}", scene.agent.command(&["drops"]).unwrap()));
            assert_eq!(greeting.name, "deep");
        }
    }
    assert!(scene.agent.dropped("icmp_translated").unwrap() > before, "the path was no smaller");
}

/// A router in the Internet (towards the client) takes only smaller packets.
#[test]
fn smaller_path_towards_the_client() {
    let scene = open();
    let home = scene.device.lab.ns("home").unwrap();
    let inet = &scene.device.inet;
    scene.device.lab.wire((inet, "eth1"), (&home, "eth0")).unwrap();
    inet.forward().unwrap();
    inet.ip("route add 198.51.100.64/26 dev eth1 mtu lock 1400\nroute add 2001:db8:200::/64 dev eth1 mtu lock 1400\n\
             addr add 198.51.100.65/32 dev eth1\naddr add 2001:db8:200::1/128 dev eth1 nodad")
        .unwrap();
    home.ip("addr add 198.51.100.66/26 dev eth0\naddr add 2001:db8:200::2/64 dev eth0 nodad\n\
             route add default via 198.51.100.65\nroute add default via 2001:db8:200::1")
        .unwrap();
    let before = scene.agent.dropped("icmp_translated").unwrap();
    for which in [Which::Local, Which::Remote, Which::Host] {
        for ip in which.external().both() {
            probe::tcp(&From::ns(&home), SocketAddr::new(ip, PORT), 300_000)
                .unwrap_or_else(|e| panic!("{which:?} {ip}: {e:#}\n{}", scene.agent.command(&["drops"]).unwrap()));
        }
    }
    assert!(scene.agent.dropped("icmp_translated").unwrap() > before, "the path was no smaller");
}

/// A connection to a pod that refuses: the pod's own refusal reaches the client, as the service's.
#[test]
fn backends_refusals_are_the_services() {
    let mut scene = open();
    scene
        .change(Which::Empty, |service| {
            service.endpoints = vec![stellwerk_tests::netns::config::Endpoint::new(device::pod(1, 12), "edge-1")];
            service.ports.iter_mut().for_each(|port| port.target = 9);
        })
        .unwrap();
    scene
        .agent
        .wait("backends", |rows| rows.iter().filter(|row| row.to_string().contains("empty")).count() >= 4)
        .unwrap();
    for_all(&scene, Which::Empty, |from, ip| refused(from, SocketAddr::new(ip, PORT)));
}

#[test]
fn conversations_stay_whole_while_others_come_and_go() {
    let scene = open();
    let mut talks: Vec<Talk> = Vec::new();
    for like in families() {
        for (_, from, ip) in clients(&scene, Which::Both, like) {
            talks.push(Talk::open(&from, SocketAddr::new(ip, PORT)).unwrap());
        }
    }
    for round in 1..20 {
        for ip in Which::Local.external().both() {
            probe::tcp(&scene.client(), SocketAddr::new(ip, PORT), 10).unwrap();
        }
        talks.iter_mut().for_each(|talk| talk.exchange(round * 10).unwrap());
    }
    talks.into_iter().for_each(|talk| talk.close().unwrap());
}
