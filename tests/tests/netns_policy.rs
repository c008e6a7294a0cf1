//! Traffic policies, source ranges and health checks with real sockets: a load balancer with one endpoint on this node
//! and one on another, and a client of each kind.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use stellwerk_tests::netns::device::{self, Twin};
use stellwerk_tests::netns::probe::{self, From};
use stellwerk_tests::netns::scene::{ECHO, PORT, Scene};

const HEALTH: u16 = 31_000;

fn vip() -> Twin {
    device::external(110)
}

/// A load balancer of pod-1, if it is `here`, and of the pod on edge-2; `more` is of its spec.
fn balancer(scene: &Scene, here: bool, more: &str) -> Result<()> {
    let (vip, cluster) = (vip(), device::cluster(30));
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: policy, namespace: default }}\nspec:\n  type: LoadBalancer\n  \
         clusterIPs: ['{}', '{}']\n  clusterIP: '{}'\n  ports: [{{ port: {PORT}, targetPort: {ECHO} }}]\n{more}\
         status: {{ loadBalancer: {{ ingress: [{{ ip: '{}' }}, {{ ip: '{}' }}] }} }}\n",
        cluster.v4, cluster.v6, cluster.v4, vip.v4, vip.v6
    );
    for v4 in [true, false] {
        let of = |twin: Twin| if v4 { twin.v4 } else { twin.v6 };
        let endpoint = |addr: IpAddr, node: &str| format!("{{ addresses: ['{addr}'], nodeName: {node} }}");
        let mut endpoints = vec![endpoint(of(device::pod(2, 11)), "edge-2")];
        if here {
            endpoints.push(endpoint(of(device::pod(1, 11)), "edge-1"));
        }
        text += &format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: policy-{v4}\n  namespace: default\n  \
             labels: {{ kubernetes.io/service-name: policy }}\naddressType: {}\nports: [{{ port: {ECHO} }}]\nendpoints: [{}]\n",
            if v4 { "IPv4" } else { "IPv6" },
            endpoints.join(", ")
        );
    }
    let folder = scene.device.lab.dir().join("cluster");
    std::fs::write(folder.join("policy.new"), text)?;
    std::fs::rename(folder.join("policy.new"), folder.join("policy.yaml")).context("the service")
}

/// Who answers several connections, in order of their names.
fn answers(from: &From, to: IpAddr) -> Result<Vec<String>> {
    let ask =
        |i: usize| probe::tcp(from, SocketAddr::new(to, PORT), 64).with_context(|| format!("{i}: {from:?} to {to}"));
    let all = (0..12).map(|i| Ok(ask(i)?.name));
    let mut all = all.collect::<Result<Vec<_>>>()?;
    all.sort();
    all.dedup();
    Ok(all)
}

/// The status line and what is said in the body, by somebody on Port3.
fn health(scene: &Scene, at: IpAddr) -> Result<(String, Value)> {
    let text = scene.device.client.run(|| -> Result<String> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(at, HEALTH), Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: edge-1\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })??;
    let (head, body) = text.split_once("\r\n\r\n").context("a head")?;
    Ok((head.lines().next().unwrap_or_default().to_owned(), serde_json::from_str(body)?))
}

fn drops(scene: &Scene, reason: &str) -> Result<u64> {
    let rows = scene.agent.rows("drops")?;
    Ok(rows.iter().find(|row| row["reason"] == reason).and_then(|row| row["count"].as_u64()).unwrap_or(0))
}

fn until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds()? {
        ensure!(Instant::now() < end, "{what}: not after 20 s");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

#[test]
fn policies_and_health_checks_with_real_sockets() -> Result<()> {
    let mut scene = Scene::open("tc", "tc")?;
    let local = format!("  externalTrafficPolicy: Local\n  healthCheckNodePort: {HEALTH}\n");
    balancer(&scene, true, &local)?;
    let row = |rows: &[Value]| rows.iter().find(|row| row["name"] == format!("default/policy:{PORT}")).cloned();
    scene.agent.wait("services", |rows| row(rows).is_some_and(|row| row["local"] == "external"))?;
    for to in vip().both() {
        // Nobody answers for the address on this network, and the node's own kernel would ask in vain.
        scene.device.dev.ip(&format!("neigh replace {to} lladdr 02:00:00:00:00:01 dev eth1 nud permanent"))?;
        let client = scene.client();
        ensure!(answers(&client, to)? == ["pod-1"], "Port3 to {to}");
        let greeting = probe::tcp(&client, SocketAddr::new(to, PORT), 64)?;
        ensure!(greeting.client == Some(device::lan(50).like(to)), "{to}: {greeting:?}");
        ensure!(answers(&From::ns(&scene.pod2), to)? == ["pod-1", "remote"], "a pod to {to}");
        ensure!(answers(&From::ns(&scene.device.dev), to)? == ["pod-1", "remote"], "the node to {to}");
        let (status, body) = health(&scene, device::lan(10).like(to))?;
        ensure!(status == "HTTP/1.1 200 OK" && body["localEndpoints"] == 1, "{status} {body}");
    }
    let checks = scene.agent.rows("status")?;
    let check = checks.iter().find(|row| row["what"] == "health check").context("a health check")?;
    ensure!(check["name"] == "default/policy" && check["state"] == "listening", "{check}");

    balancer(&scene, false, &local)?;
    until(
        "the last endpoint here is gone",
        || Ok(health(&scene, device::lan(10).both()[0])?.1["localEndpoints"] == 0),
    )?;
    ensure!(health(&scene, device::lan(10).both()[0])?.0 == "HTTP/1.1 503 Service Unavailable");
    for to in vip().both() {
        let before = drops(&scene, "no_local_backend")?;
        ensure!(probe::tcp(&scene.client(), SocketAddr::new(to, PORT), 64).is_err(), "Port3 to {to}");
        ensure!(drops(&scene, "no_local_backend")? > before, "{to}: not counted");
        ensure!(answers(&From::ns(&scene.pod2), to)? == ["remote"], "a pod to {to}");
    }

    let near = "  loadBalancerSourceRanges: [198.51.100.0/24, '2001:db8:100::/48']\n";
    balancer(&scene, true, near)?;
    scene.agent.wait("services", |rows| {
        row(rows).is_some_and(|row| row["sources"].as_array().is_some_and(|s| s.len() == 2))
    })?;
    for to in vip().both() {
        ensure!(answers(&scene.far(to), to)? == ["pod-1", "remote"], "Port2 to {to}");
        let before = drops(&scene, "source_not_allowed")?;
        ensure!(probe::tcp(&scene.client(), SocketAddr::new(to, PORT), 64).is_err(), "Port3 to {to}");
        ensure!(drops(&scene, "source_not_allowed")? > before, "{to}: not counted");
    }
    // Its port went with the service's wish.
    ensure!(health(&scene, device::lan(10).both()[0]).is_err(), "health checks are still answered");
    Ok(())
}
