//! Pods of several nodes: each reaches each, whatever is between their nodes.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use stellwerk_tests::netns::cluster::{Cluster, ECHO, Nodes, PORT, Pod};
use stellwerk_tests::netns::device;
use stellwerk_tests::netns::nat::capture::Capture;
use stellwerk_tests::netns::probe::{self, Datagram, From, Talk};

/// Pods on the three nodes.
fn cluster(hook: &str, pods: &str, count: usize) -> Result<Cluster> {
    let mut cluster = Cluster::new(hook, pods, Nodes::Configuration)?;
    (0..count).try_for_each(|n| cluster.pod(n % 3))?;
    Ok(cluster)
}

/// Everything from everywhere: pods, a service, its name, the Internet, other nodes.
fn all_reach_all(cluster: &Cluster) -> Result<()> {
    cluster.service("web", 40)?;
    for pod in &cluster.pods {
        let from = From::ns(&pod.ns);
        for other in cluster.pods.iter().filter(|other| other.name != pod.name) {
            for (addr, own) in other.at.both().into_iter().zip(pod.at.both()) {
                let between =
                    || format!("{} (n{}) to {} (n{}) {addr}", pod.name, pod.node + 1, other.name, other.node + 1);
                let greeting = probe::tcp(&from, SocketAddr::new(addr, ECHO), 100).with_context(between)?;
                ensure!(
                    (greeting.name.as_str(), greeting.client) == (&other.name, Some(own)),
                    "{}: {greeting:?}",
                    between()
                );
            }
        }
        for addr in device::cluster(40).both() {
            let service = || eventually(|| probe::tcp(&from, SocketAddr::new(addr, 80), 1_000));
            service().with_context(|| format!("{} to the service {addr}", pod.name))?;
        }
        outgoing(cluster, pod, device::far().v4)?;
    }
    Ok(())
}

/// Out of the cluster pods have their nodes' addresses.
fn outgoing(cluster: &Cluster, pod: &Pod, far: IpAddr) -> Result<()> {
    let greeting = probe::tcp(&From::ns(&pod.ns), SocketAddr::new(far, ECHO), 1_000).context("the Internet")?;
    let node = cluster.nodes[pod.node].at.both()[usize::from(far.is_ipv6())];
    ensure!(greeting.client == Some(node), "{}: not translated: {greeting:?}", pod.name);
    Ok(())
}

/// What may take a moment: manifests were written just now.
fn eventually<T>(what: impl Fn() -> Result<T>) -> Result<T> {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        match what() {
            Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(20)),
            result => return result,
        }
    }
}

/// Large and many packets between pods of two nodes, and packets that are as large as pods may send.
fn much(cluster: &Cluster, one: usize, other: usize) -> Result<()> {
    let (from, to) = (From::ns(&cluster.pods[one].ns), cluster.pods[other].at);
    for addr in to.both() {
        probe::tcp(&from, SocketAddr::new(addr, ECHO), 4 << 20).with_context(|| format!("4 MiB to {addr}"))?;
        // A full packet of 1,430 bytes, and one that is cut into pieces.
        let headers = if addr.is_ipv4() { 28 } else { 48 };
        probe::ping(&from, addr, 1_430 - headers).context("a full packet")?;
        probe::ping(&from, addr, 4_000).context("fragments")?;
        // The nodes' own stacks, there and back.
        let node = From::ns(&cluster.nodes[cluster.pods[one].node].ns);
        probe::tcp(&node, SocketAddr::new(addr, ECHO), 1 << 20).with_context(|| format!("from the node to {addr}"))?;
    }
    Ok(())
}

fn drops(cluster: &Cluster) -> Result<Vec<(String, u64)>> {
    let mut all = Vec::new();
    for node in &cluster.nodes {
        for row in node.agent.rows("drops")? {
            let (reason, count) = (row["reason"].as_str().unwrap_or_default(), row["count"].as_u64().unwrap_or(0));
            if count > 0 && row["kind"] == "drop" {
                all.push((format!("{} {reason}", node.name), count));
            }
        }
    }
    Ok(all)
}

fn routes(cluster: &Cluster, node: usize) -> Result<String> {
    cluster.nodes[node].ns.ip_text("route show proto 83")
}

#[test]
fn twenty_pods_on_two_networks_by_xdp() -> Result<()> {
    let mut cluster = cluster("xdp", ", natOutgoing: on", 20)?;
    all_reach_all(&cluster)?;
    cluster.pods.iter().try_for_each(|pod| outgoing(&cluster, pod, device::far().v6))?;
    much(&cluster, 0, 2)?;
    much(&cluster, 0, 1)?;
    let routes = routes(&cluster, 0)?;
    ensure!(routes.contains(&format!("172.27.2.0/26 via 192.168.20.12 dev {PORT}")), "{routes}");
    ensure!(
        routes.contains(&format!("172.27.3.0/26 via 169.254.1.2 dev {PORT}")) && routes.contains("mtu 1450"),
        "{routes}"
    );
    ensure!(drops(&cluster)?.is_empty(), "{:?}", drops(&cluster)?);
    // A connection between nodes lives on while both agents are away, and with new ones.
    let to = SocketAddr::new(cluster.pods[2].at.v4, ECHO);
    let mut talk = Talk::open(&From::ns(&cluster.pods[0].ns), to)?;
    for node in [0, 2] {
        cluster.nodes[node].agent.kill();
        talk.exchange(100_000).context("without an agent")?;
    }
    for node in [0, 2] {
        cluster.nodes[node].agent.start_ready()?;
        talk.exchange(100_000).context("with another agent")?;
    }
    all_reach_all(&cluster)
}

#[test]
fn by_traffic_control_and_always_in_the_overlay() -> Result<()> {
    let cluster = cluster("tc", ", overlay: always, vxlanPort: 8472, vni: 77", 6)?;
    all_reach_all(&cluster)?;
    much(&cluster, 0, 2)?;
    much(&cluster, 0, 1)?;
    let routes = routes(&cluster, 0)?;
    ensure!(routes.contains("172.27.2.0/26 via 169.254.1.2"), "{routes}");
    ensure!(drops(&cluster)?.is_empty(), "{:?}", drops(&cluster)?);
    Ok(())
}

/// Nodes that know each other by IPv6 alone: pods' IPv4 packets go in the overlay even to a neighbour.
#[test]
fn over_ipv6() -> Result<()> {
    for hook in ["xdp", "tc"] {
        let mut cluster = Cluster::new(hook, "", Nodes::Ipv6)?;
        (0..3).try_for_each(|n| cluster.pod(n))?;
        let from = From::ns(&cluster.pods[0].ns);
        for (other, addr) in [1, 2].into_iter().flat_map(|n| cluster.pods[n].at.both().map(|addr| (n, addr))) {
            let what = || format!("{hook}: to {addr} on n{}", other + 1);
            eventually(|| probe::tcp(&from, SocketAddr::new(addr, ECHO), 2 << 20)).with_context(what)?;
        }
        let routes = routes(&cluster, 0)?;
        ensure!(routes.contains("172.27.2.0/26 via 169.254.1.2") && routes.contains("mtu 1430"), "{routes}");
        ensure!(drops(&cluster)?.is_empty(), "{:?}", drops(&cluster)?);
    }
    Ok(())
}

/// A router between two nodes takes less than their links do, and says so about packets in the overlay: then these become
/// smaller, and pods and nodes are told.
#[test]
fn a_narrow_way_between_nodes() -> Result<()> {
    for (nodes, room) in [(Nodes::Configuration, 1_400 - 50), (Nodes::Ipv6, 1_400 - 70)] {
        let mut cluster = Cluster::new("auto", "", nodes)?;
        (0..3).try_for_each(|n| cluster.pod(n))?;
        cluster.router.ip(
            "route replace 192.168.20.0/24 dev lan mtu 1400\nroute replace fd00:20::/64 dev lan metric 256 mtu 1400\n\
             route replace 192.168.30.0/24 dev to-n3 mtu 1400\nroute replace fd00:30::/64 dev to-n3 metric 256 mtu 1400",
        )?;
        let from = From::ns(&cluster.pods[0].ns);
        for addr in cluster.pods[2].at.both() {
            let to = SocketAddr::new(addr, ECHO);
            let what = || format!("{nodes:?}: to {addr}");
            eventually(|| probe::tcp(&from, to, 500_000)).with_context(what)?;
            let large = Datagram { length: 1_370, ..Datagram::default() };
            eventually(|| probe::udp(&from, to, large)).with_context(what)?;
        }
        for node in [0, 2] {
            let routes = routes(&cluster, node)?;
            ensure!(routes.contains(&format!("mtu {room}")), "n{}: {routes}", node + 1);
        }
        ensure!(drops(&cluster)?.is_empty(), "{:?}", drops(&cluster)?);
    }
    Ok(())
}

/// Nobody tells of pods' networks: those on the same network are reached, others are not.
#[test]
fn never_in_the_overlay() -> Result<()> {
    let cluster = cluster("auto", ", overlay: never", 3)?;
    let from = From::ns(&cluster.pods[0].ns);
    for addr in cluster.pods[1].at.both() {
        probe::tcp(&from, SocketAddr::new(addr, ECHO), 100_000)?;
    }
    let far: IpAddr = cluster.pods[2].at.v4;
    ensure!(!probe::connects(&from, SocketAddr::new(far, ECHO), Duration::from_millis(500)), "who told the router?");
    ensure!(!routes(&cluster, 0)?.contains("172.27.3.0"), "{}", routes(&cluster, 0)?);
    Ok(())
}

/// A load balancer's packet goes to the pod's node as it came, by its link-layer address or in the overlay, and the answer
/// from there to the client; without the annotation the answer comes back through the node that was asked.
#[test]
fn answers_go_directly() -> Result<()> {
    for hook in ["xdp", "tc"] {
        let cluster = cluster(hook, "", 3)?;
        let dsr = "stellwerk.io/forwarding-mode: dsr";
        let ways =
            [(100, 1, dsr, true), (101, 1, "", false), (102, 2, dsr, true), (103, 0, dsr, true), (104, 2, "", false)];
        for (host, pod, annotation, kept) in ways {
            let vip = cluster.balancer(&format!("b{host}"), host, pod, annotation)?;
            // The network's way to it is by the first node.
            cluster
                .router
                .ip(&format!("route add {} via 192.168.20.11\nroute add {} via fd00:20::b", vip.v4, vip.v6))?;
            for (addr, client) in vip.both().into_iter().zip(device::far().both()) {
                let (from, to) = (From::at(&cluster.router, client), SocketAddr::new(addr, 80));
                let what = || format!("{hook}: {to} in pod {pod}");
                eventually(|| probe::udp(&from, to, Datagram::default())).with_context(what)?;
                let passing = Capture::start(&cluster.switch)?;
                let greeting = probe::tcp(&from, to, 200_000).with_context(what)?;
                ensure!(greeting.name == cluster.pods[pod].name, "{}: {greeting:?}", what());
                ensure!((greeting.client == Some(client)) == kept, "{}: {greeting:?}", what());
                probe::udp(&from, to, Datagram::default()).with_context(what)?;
                // What the third node answers doesn't come by here, unless the first has to see it.
                let answers = passing.end()?.iter().filter(|frame| is_from(frame, addr)).count();
                ensure!(pod != 2 || (answers == 0) == kept, "{}: {answers} answers by the first node", what());
                if pod == 2 {
                    larger_than_the_overlay_takes(&from, to).with_context(what)?;
                }
            }
        }
        let flows = cluster.nodes[0].agent.rows("flows")?;
        let passing = |pod: usize| {
            let at = cluster.pods[pod].at.both().map(|addr| addr.to_string());
            flows.iter().filter(|flow| at.iter().any(|addr| flow.to_string().contains(addr.as_str()))).count()
        };
        ensure!(passing(1) > 0 && passing(2) > 0, "translated ones are there");
        let vips = [100, 102].map(device::external).into_iter().flat_map(|vip| vip.both());
        let vips: Vec<String> = vips.map(|addr| SocketAddr::new(addr, 80).to_string()).collect();
        let direct: Vec<_> = flows.iter().filter(|flow| vips.iter().any(|vip| flow["vip"] == vip.as_str())).collect();
        ensure!(
            direct.len() >= 8 && direct.iter().all(|flow| flow["vip"] == flow["backend"] && flow["state"] == "new"),
            "{direct:?}"
        );
        let drops = drops(&cluster)?;
        ensure!(matches!(&drops[..], [(name, 2..)] if name == "n1 too_large"), "{drops:?}");
    }
    Ok(())
}

/// Whether a frame is no ICMP and has this source.
fn is_from(frame: &[u8], addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => frame[12..14] == [8, 0] && frame[23] != 1 && frame[26..30] == addr.octets(),
        IpAddr::V6(addr) => frame[12..14] == [0x86, 0xdd] && frame[20] != 58 && frame[22..38] == addr.octets(),
    }
}

/// A packet that the port takes, but not with the overlay's headers: its sender is told by whom it has asked, and what it
/// sends then arrives.
fn larger_than_the_overlay_takes(from: &From, to: SocketAddr) -> Result<()> {
    let (kind, headers) = if to.is_ipv4() { (3, 28) } else { (2, 48) };
    let large = Datagram { length: 1_480 - headers, ..Datagram::default() };
    let told = probe::icmp_error(&from.ns, to.is_ipv4(), kind, || {
        let socket = probe::udp_socket(from, to, large)?;
        socket.send(&vec![0; large.length])?;
        Ok(())
    })?;
    ensure!((told.word, told.from, told.about_destination()) == (1_450, to.ip(), Some(to.ip())), "{told:?}");
    eventually(|| probe::udp(from, to, large).map(drop)).context("once it is told")
}

/// Nodes come and go as objects; the way to one that is gone is gone, too, and no other's.
#[test]
fn nodes_of_the_cluster() -> Result<()> {
    let mut cluster = Cluster::new("auto", "", Nodes::Objects)?;
    (0..6).try_for_each(|n| cluster.pod(n % 3))?;
    all_reach_all(&cluster)?;
    let from = From::ns(&cluster.pods[0].ns);
    let at = |pod: usize| SocketAddr::new(cluster.pods[pod].at.v4, ECHO);
    cluster.objects(&[1, 2])?;
    eventually(|| {
        ensure!(!routes(&cluster, 0)?.contains("172.27.3.0"), "the route is still there");
        Ok(())
    })?;
    ensure!(!probe::connects(&from, at(2), Duration::from_millis(500)), "a node that is gone was reached");
    probe::tcp(&from, at(1), 1_000)?;
    cluster.objects(&[1, 2, 3])?;
    eventually(|| probe::tcp(&from, at(2), 1_000).map(drop))
}

/// Whoever is no node is not heard in the overlay, and `unload` leaves nothing of it.
#[test]
fn strangers_are_not_heard_and_nothing_is_left() -> Result<()> {
    let mut cluster = cluster("xdp", "", 3)?;
    let before = cluster.nodes[2].agent.dropped("overlay_stranger")?;
    cluster.router.ip(
        "link add vx type vxlan id 4096 local 192.168.30.1 remote 192.168.30.13 dstport 4789 dev to-n3\n\
         addr add 172.27.9.1/24 dev vx\nlink set vx up\nroute add 172.27.3.0/26 dev vx\n\
         neigh add 172.27.3.1 lladdr 0a:00:00:53:57:02 dev vx",
    )?;
    let pod = SocketAddr::new(cluster.pods[2].at.v4, ECHO);
    let stranger = From::ns(&cluster.router);
    ensure!(!probe::connects(&stranger, pod, Duration::from_millis(500)), "a stranger was heard");
    ensure!(cluster.nodes[2].agent.dropped("overlay_stranger")? > before, "and not counted");
    let node = &mut cluster.nodes[0];
    ensure!(node.agent.stop(), "the agent didn't stop");
    node.agent.command(&["unload"])?;
    let left = node.ns.ip_text("route show proto 83")? + &node.ns.ip_text("neigh show nud permanent dev eth1")?;
    ensure!(left.trim().is_empty(), "{left}");
    Ok(())
}
