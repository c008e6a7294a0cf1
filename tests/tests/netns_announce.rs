//! Load balancers' addresses on their own network: who answers for them, and who does when nodes die and come back.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use stellwerk_tests::netns::nat::sockets::eventually;
use stellwerk_tests::netns::nodes::Nodes;
use stellwerk_tests::netns::probe::{From, Talk};
use stellwerk_tests::netns::{device, probe};

fn logs(nodes: &Nodes) -> String {
    nodes.nodes.iter().map(|node| format!("{}:\n{}\n", node.name, node.agent.log_tail())).collect()
}

/// Waits until all these nodes say the same owner of an address; its index.
fn agreed(nodes: &Nodes, who: &[usize], addr: IpAddr) -> usize {
    let owners = || who.iter().map(|&i| nodes.owner(i, addr).ok().flatten()).collect::<Vec<_>>();
    let same = || owners().windows(2).all(|two| two[0] == two[1]) && owners()[0].is_some();
    let end = Instant::now() + Duration::from_secs(30);
    while !same() {
        assert!(Instant::now() < end, "{addr}: {:?}\n{}", owners(), logs(nodes));
        std::thread::sleep(Duration::from_millis(50));
    }
    let name = owners()[0].clone().unwrap();
    nodes.nodes.iter().position(|node| node.name == name).unwrap()
}

#[test]
fn one_node_answers_for_its_services_and_for_nothing_else() {
    for hook in ["xdp", "tc"] {
        let mut nodes = Nodes::new(1, hook).unwrap();
        nodes.write(&nodes.service("web", 101)).unwrap();
        nodes.start().unwrap();
        let mac = [nodes.mac(0).unwrap()];
        for addr in device::external(101).both() {
            assert_eq!(nodes.answering(addr).unwrap(), mac, "{hook} {addr}: {}", logs(&nodes));
            let from = probe::tcp(&From::ns(&nodes.client), SocketAddr::new(addr, 80), 1000).unwrap();
            assert_eq!(from.name, "n1");
            probe::ping(&From::ns(&nodes.client), addr, 56).unwrap();
            let row = nodes.row(0, addr).unwrap();
            assert_eq!((row["state"].as_str(), row["interface"].as_str()), (Some("here"), Some("eth1")), "{row}");
        }
        assert!(nodes.nodes[0].agent.dropped("address_announced").unwrap() >= 4);
        for addr in device::external(102).both() {
            assert!(nodes.answering(addr).unwrap().is_empty(), "{addr} is nobody's");
        }
        // It goes before its service does, and comes back behind it.
        let none = |nodes: &Nodes| device::external(101).both().iter().all(|a| nodes.row(0, *a).unwrap().is_null());
        nodes.manifest("web", "").unwrap();
        eventually("the addresses go", 5, || none(&nodes));
        assert!(device::external(101).both().iter().all(|addr| nodes.answering(*addr).unwrap().is_empty()));
        nodes.write(&nodes.service("web", 101)).unwrap();
        eventually("the addresses come back", 5, || !none(&nodes));
        assert_eq!(nodes.answering(device::external(101).v4).unwrap(), mac);
        // The agent's end is not the address's; that of the tables is.
        nodes.nodes[0].agent.kill();
        assert_eq!(nodes.answering(device::external(101).v6).unwrap(), mac);
        nodes.nodes[0].agent.command(&["unload"]).unwrap();
        assert!(nodes.answering(device::external(101).v6).unwrap().is_empty());
    }
}

/// Three nodes share the addresses; one dies, and comes back.
#[test]
fn another_node_takes_over_within_three_seconds() {
    let mut nodes = Nodes::new(3, "xdp").unwrap();
    let hosts = [100, 101, 102, 103, 104, 105];
    for host in hosts {
        nodes.write(&nodes.service(&format!("web-{host}"), host)).unwrap();
    }
    nodes.start().unwrap();
    let all = [0, 1, 2];
    let addrs: Vec<IpAddr> = hosts.iter().flat_map(|host| device::external(*host).both()).collect();
    let owners: Vec<usize> = addrs.iter().map(|addr| agreed(&nodes, &all, *addr)).collect();
    let macs: Vec<String> = all.iter().map(|&i| nodes.mac(i).unwrap()).collect();
    // Asked on the wire: one of each family.
    for (addr, owner) in addrs.iter().zip(&owners).take(2) {
        assert_eq!(nodes.answering(*addr).unwrap(), [macs[*owner].clone()], "{addr}");
    }
    let dead = owners[0];
    let others: Vec<usize> = all.into_iter().filter(|&i| i != dead).collect();
    // Only the survivors serve, so that what fails fails because of the address.
    for host in hosts {
        let mut service = nodes.service(&format!("web-{host}"), host);
        service.endpoints.retain(|endpoint| endpoint.node != nodes.nodes[dead].name);
        nodes.write(&service).unwrap();
    }
    for &other in &others {
        let rows = |rows: &[serde_json::Value]| rows.len() == hosts.len() * 4;
        nodes.nodes[other].agent.wait("backends", rows).unwrap();
    }
    let mine: Vec<IpAddr> = addrs.iter().zip(&owners).filter(|(_, o)| **o == dead).map(|(a, _)| *a).collect();
    for addr in &mine {
        probe::tcp(&From::ns(&nodes.client), SocketAddr::new(*addr, 80), 10).unwrap();
    }
    let killed = Instant::now();
    nodes.kill(dead).unwrap();
    for addr in &mine {
        let answers =
            || probe::connects(&From::ns(&nodes.client), SocketAddr::new(*addr, 80), Duration::from_millis(200));
        eventually("another node serves", 10, answers);
        let took = killed.elapsed();
        println!("{addr} is served by another node {} ms after its owner's death", took.as_millis());
        assert!(took < Duration::from_secs(3), "{addr} took {took:?}\n{}", logs(&nodes));
    }
    for (i, addr) in mine.iter().enumerate() {
        let owner = agreed(&nodes, &others, *addr);
        if i > 1 {
            continue;
        }
        assert_eq!(nodes.answering(*addr).unwrap(), [macs[owner].clone()], "{addr}\n{}", logs(&nodes));
    }
    // What the others had stays theirs.
    for (addr, owner) in addrs.iter().zip(&owners).filter(|(addr, _)| !mine.contains(addr)) {
        assert_eq!(agreed(&nodes, &others, *addr), *owner);
    }
    // It boots: it answers echo long before its tables are in force, and takes nothing until then.
    nodes.revive(dead).unwrap();
    nodes.nodes[dead].agent.command(&["unload"]).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    assert_ne!(nodes.answering(mine[0]).unwrap(), [macs[dead].clone()]);
    nodes.nodes[dead].agent.start_ready().unwrap();
    for (addr, owner) in addrs.iter().zip(&owners) {
        assert_eq!(agreed(&nodes, &all, *addr), *owner);
    }
    assert_eq!(nodes.answering(mine[0]).unwrap(), [macs[dead].clone()]);
}

#[test]
fn an_agents_end_moves_nothing() {
    let mut nodes = Nodes::new(2, "xdp").unwrap();
    nodes.write(&nodes.service("web", 101)).unwrap();
    nodes.start().unwrap();
    let addr = device::external(101).v4;
    let alive = |nodes: &Nodes, i: usize| nodes.nodes[i].agent.rows("announce").unwrap()[0]["state"] == "alive";
    eventually("they know of each other", 3, || alive(&nodes, 0) && alive(&nodes, 1));
    let owner = agreed(&nodes, &[0, 1], addr);
    let other = 1 - owner;
    let mut talk = Talk::open(&From::ns(&nodes.client), SocketAddr::new(addr, 80)).unwrap();
    nodes.nodes[owner].agent.kill();
    let end = Instant::now() + Duration::from_secs(6);
    while Instant::now() < end {
        assert_eq!(nodes.owner(other, addr).unwrap().unwrap(), nodes.nodes[owner].name, "{}", logs(&nodes));
        talk.exchange(1000).unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
    // Who comes next goes on; so does the other one when it is killed.
    nodes.nodes[owner].agent.start_ready().unwrap();
    nodes.nodes[other].agent.kill();
    nodes.nodes[other].agent.start_ready().unwrap();
    assert_eq!(agreed(&nodes, &[0, 1], addr), owner);
    talk.exchange(1000).unwrap();
    // One that is unloaded says so.
    nodes.nodes[owner].agent.stop();
    nodes.nodes[owner].agent.command(&["unload"]).unwrap();
    let told = Instant::now();
    eventually("the other takes over", 3, || nodes.owner(other, addr).unwrap().unwrap() == nodes.nodes[other].name);
    println!("took over {} ms after unload", told.elapsed().as_millis());
    assert_eq!(nodes.answering(addr).unwrap(), [nodes.mac(other).unwrap()]);
}

#[test]
fn only_nodes_that_may_announce() {
    let mut nodes = Nodes::new(2, "tc").unwrap();
    let hosts: Vec<u8> = (100..108).collect();
    for &host in &hosts {
        nodes.write(&nodes.service(&format!("web-{host}"), host)).unwrap();
    }
    nodes.start().unwrap();
    let owners =
        |nodes: &Nodes| hosts.iter().map(|h| agreed(nodes, &[0, 1], device::external(*h).v4)).collect::<Vec<_>>();
    let before = owners(&nodes);
    assert!(before.contains(&0) && before.contains(&1), "{before:?}");
    let node = "apiVersion: v1\nkind: Node\nmetadata:\n  name: n1\n  labels: { node.kubernetes.io/exclude-from-external-load-balancers: \"\" }\n";
    nodes.manifest("nodes", node).unwrap();
    eventually("n1 gives all up", 5, || owners(&nodes).iter().all(|owner| *owner == 1));
    let row = nodes.row(1, device::external(hosts[0]).v4).unwrap();
    assert_eq!(row["detail"], "n1: excluded by its label");
    nodes.manifest("nodes", "").unwrap();
    eventually("n1 has its own again", 5, || owners(&nodes) == before);
    // externalTrafficPolicy Local: where an endpoint serves.
    let host = hosts[before.iter().position(|owner| *owner == 0).unwrap()];
    let mut service = nodes.service(&format!("web-{host}"), host);
    service.external_local = true;
    service.endpoints.retain(|endpoint| endpoint.node == "n2");
    nodes.write(&service).unwrap();
    let addr = device::external(host).v4;
    eventually("n2 has it", 5, || agreed(&nodes, &[0, 1], addr) == 1);
    let greeting = probe::tcp(&From::ns(&nodes.client), SocketAddr::new(addr, 80), 10).unwrap();
    assert_eq!((greeting.name.as_str(), greeting.client), ("n2", Some(device::lan(50).v4)));
    service.endpoints.clear();
    nodes.write(&service).unwrap();
    // Both say so: the one that had it answers until it has read the change.
    eventually("nobody has it", 5, || (0..2).all(|i| nodes.row(i, addr).unwrap()["state"] == "nowhere"));
    assert!(nodes.answering(addr).unwrap().is_empty());
}
