//! Pods of two nodes on one network: ours, and what the kernel alone does of the same kind.

use anyhow::{Context, Result};
use stellwerk_tests::netns::cluster::{Cluster, Nodes};
use stellwerk_tests::netns::{Lab, Ns};

use super::scene::Pair;

/// Two pods, with further lines of `pods`; and the cluster, which has to outlive them.
pub fn ours(name: &'static str, pods: &str) -> Result<(Pair, Cluster)> {
    let mut cluster = Cluster::new("tc", pods, Nodes::Configuration)?;
    (0..2).try_for_each(|node| cluster.pod(node))?;
    let [client, server] = &cluster.pods[..] else { anyhow::bail!("two pods were made") };
    let pair = Pair::new(name, (client.ns.clone(), client.at.v4), (&server.ns, server.at.v4))?;
    Ok((pair, cluster))
}

/// Two namespaces behind two others, which are routers of the kernel's on a switch.
pub fn kernel(lab: &Lab, name: &'static str, vxlan: bool) -> Result<Pair> {
    let tag = if vxlan { "v" } else { "d" };
    let switch = lab.ns(&format!("{tag}-switch"))?;
    switch.ip("link add br0 type bridge\nlink set br0 up")?;
    let mut ends = Vec::new();
    for (number, other) in [(1, 2), (2, 1)] {
        let (node, pod) = (lab.ns(&format!("{tag}-n{number}"))?, lab.ns(&format!("{tag}-p{number}"))?);
        lab.wire((&node, "eth1"), (&switch, &format!("to-n{number}")))?;
        switch.ip(&format!("link set to-n{number} master br0"))?;
        lab.wire((&pod, "eth0"), (&node, "pod"))?;
        node.forward()?;
        node.ip(&format!("addr add 192.168.40.{number}/24 dev eth1\naddr add 10.6.{number}.1/24 dev pod"))?;
        if vxlan {
            node.ip(&format!(
                "link add vx type vxlan id 42 local 192.168.40.{number} remote 192.168.40.{other} dstport 4789 dev eth1\n\
                 addr add 10.7.0.{number}/24 dev vx\nlink set vx up\nroute add 10.6.{other}.0/24 via 10.7.0.{other}"
            ))?;
        } else {
            node.ip(&format!("route add 10.6.{other}.0/24 via 192.168.40.{other}"))?;
        }
        let mtu = if vxlan { 1_450 } else { 1_500 };
        pod.ip(&format!(
            "link set eth0 mtu {mtu}\naddr add 10.6.{number}.2/24 dev eth0\nroute add default via 10.6.{number}.1"
        ))?;
        ends.push(pod);
    }
    let [client, server]: [Ns; 2] = ends.try_into().ok().context("two ends")?;
    Pair::new(name, (client, [10, 6, 1, 2].into()), (&server, [10, 6, 2, 2].into()))
}
