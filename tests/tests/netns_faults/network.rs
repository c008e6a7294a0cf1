//! The kernel's network behind the agent's back: notifications that are lost, interfaces that go and return.

use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::signal::Signal;
use stellwerk_tests::load::echo;
use stellwerk_tests::netns::config::Endpoint;
use stellwerk_tests::netns::device;
use stellwerk_tests::netns::pass;
use stellwerk_tests::netns::probe::{self, From};
use stellwerk_tests::netns::scene::{ECHO, PORT, Scene, Which};

use super::{SOON, loads, none_failed, points, until, until_said};

/// More notifications than the agent's socket has room for, of a route that comes and goes.
const STORM: usize = 120_000;

/// What a network manager would do with Port3.
const SETTINGS: &str = "link set eth1 up\naddr add 192.168.20.10/24 dev eth1\naddr add fd00:20::a/64 dev eth1 nodad\n\
     route add 172.27.2.0/24 via 192.168.20.11\nroute add fd00:27:2::/64 via fd00:20::b";

pub fn lost_notifications_and_interfaces_that_return(scene: &mut Scene) {
    lost_notifications(scene);
    a_pods_interface_returns(scene);
    a_port_returns(scene);
}

/// The agent sleeps while the kernel tells more than it keeps, with news at the end of it.
fn lost_notifications(scene: &mut Scene) {
    let loads = loads(scene);
    scene.agent.signal(Signal::SIGSTOP).unwrap();
    let dev = &scene.device.dev;
    let flap = "route add 10.9.0.1/32 via 203.0.113.1\nroute del 10.9.0.1/32 via 203.0.113.1\n";
    dev.ip(&flap.repeat(STORM)).unwrap();
    // A pod that comes in the meantime, with its interface, and the only endpoint of a service.
    let pod = scene.device.pod("pod-3", 13).unwrap();
    let at = device::pod(1, 13);
    scene.keep(echo::serve(&pod, "pod-3", &at.both().map(|ip| SocketAddr::new(ip, ECHO))).unwrap());
    scene.change(Which::Empty, |s| s.endpoints = vec![Endpoint::new(at, "edge-1")]).unwrap();
    scene.agent.signal(Signal::SIGCONT).unwrap();
    until_said(scene, "changed faster than it could be followed (1 times so far): all of it is read again", SOON);
    until(scene, "programs on what came meanwhile", SOON, || points(scene, "veth13").len() == 1);
    for ip in Which::Empty.external().both() {
        assert_eq!(probe::tcp(&scene.client(), SocketAddr::new(ip, PORT), 1_000).unwrap().name, "pod-3");
    }
    none_failed(&loads, scene);
}

fn a_pods_interface_returns(scene: &Scene) {
    let (dev, pod) = (&scene.device.dev, &scene.pod1);
    let served = |from: &From, which: fn(Which) -> device::Twin, to| {
        which(to).both().map(|ip| probe::connects(from, SocketAddr::new(ip, PORT), Duration::from_millis(300)))
    };
    let local = || served(&scene.client(), Which::external, Which::Local);
    until(scene, "the pod", SOON, || local() == [true; 2]);
    dev.ip("link del veth11").unwrap();
    assert_eq!(local(), [false; 2]);
    scene.device.lab.wire((pod, "eth0"), (dev, "veth11")).unwrap();
    dev.ip("link set veth11 master br-int").unwrap();
    pod.ip(
        "addr add 172.27.1.11/24 dev eth0\naddr add fd00:27:1::b/64 dev eth0 nodad\nroute add default via 172.27.1.1\n\
         route add default via fd00:27:1::1",
    )
    .unwrap();
    let took = until(scene, "the pod that returned", SOON, || {
        // Its first packets tell of its new link-layer address.
        served(&From::ns(pod), Which::cluster, Which::Both) == [true; 2] && local() == [true; 2]
    });
    println!("a pod's interface: served {took:?} after its return");
}

/// Port3 is unplugged, and plugged in again; the other port goes on meanwhile.
fn a_port_returns(scene: &mut Scene) {
    let dev = scene.device.dev.clone();
    let (near, far) = (Which::Both.external(), scene.far(device::far().v4));
    let far_served = || probe::connects(&far, SocketAddr::new(near.v4, PORT), Duration::from_secs(1));
    let served = |scene: &Scene| {
        near.both().map(|ip| probe::connects(&scene.client(), SocketAddr::new(ip, PORT), Duration::from_millis(300)))
    };
    until(scene, "both families", SOON, || served(scene) == [true; 2]);
    let text = dev.ip_text("-o link show dev eth1").unwrap();
    let mac = text.split_once("link/ether ").and_then(|(_, rest)| rest.split(' ').next()).unwrap();
    dev.ip("link del eth1").unwrap();
    for _ in 0..20 {
        assert!(far_served(), "Port2 without Port3\n{}", scene.agent.log_tail());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(served(scene), [false; 2]);
    let switch = scene.device.switch.clone();
    scene.device.lab.wire((&dev, device::PORT3), (&switch, "to-dev")).unwrap();
    switch.ip("link set to-dev master br0").unwrap();
    let passing = pass::attach(&switch, "to-dev").unwrap();
    dev.ip(&format!("link set eth1 address {mac}")).unwrap();
    dev.ip(SETTINGS).unwrap();
    let took = until(scene, "the port that returned", SOON, || served(scene) == [true; 2]);
    println!("a port: served {took:?} after its return");
    assert_eq!(points(scene, device::PORT3), ["xdp", "egress"]);
    assert!(far_served());
    // Into another namespace and back: the kernel takes it down and forgets its addresses.
    dev.ip(&format!("link set eth1 netns {}", scene.device.inet.full_name())).unwrap();
    scene.device.inet.ip(&format!("link set eth1 netns {}", dev.full_name())).unwrap();
    dev.ip(SETTINGS).unwrap();
    let took = until(scene, "the port that was elsewhere", SOON, || served(scene) == [true; 2]);
    println!("a port: served {took:?} after its return from another namespace");
    drop(passing);
}
