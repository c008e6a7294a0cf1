//! NetworkPolicy between pods that the plugin made on three nodes: a table of policies, who asks and what passes.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use stellwerk_tests::load::{Task, echo};
use stellwerk_tests::netns::Ns;
use stellwerk_tests::netns::cluster::{Cluster, ECHO, Nodes};
use stellwerk_tests::netns::config::Service;
use stellwerk_tests::netns::device;
use stellwerk_tests::netns::probe::{self, Datagram, From, Talk};

/// The second port of a pod that is asked.
const SECOND: u16 = ECHO + 1;
/// How long what doesn't pass is waited for.
const SILENCE: Duration = Duration::from_millis(500);

/// A pod's node, namespace and label.
type Who = (usize, &'static str, &'static str);

/// Twenty on three nodes: the first two are on one network, and the third is reached in the overlay.
const PODS: [Who; 20] = [
    (0, "default", "web"),
    (1, "default", "client"),
    (2, "default", "client"),
    (0, "blue", "client"),
    (1, "default", "other"),
    (2, "blue", "other"),
    (1, "default", "web"),
    (2, "default", "web"),
    (0, "default", "client"),
    (0, "default", "other"),
    (0, "blue", "other"),
    (0, "default", "other"),
    (1, "blue", "client"),
    (1, "blue", "other"),
    (1, "default", "client"),
    (1, "blue", "client"),
    (2, "default", "other"),
    (2, "blue", "client"),
    (2, "default", "client"),
    (2, "default", "other"),
];
/// Those of them that are asked: one on each node that policies select, and one of a namespace without any.
const ASKED: [usize; 4] = [0, 6, 7, 3];
/// As many are enough where it isn't about the table.
const FEW: usize = 6;

/// By name, the spec of the policy in `default`, and what passes: from pods of these words to such, by the first line that
/// holds. TCP to the first and to the second port, UDP to the same; where no line holds, all of it.
type Row = (&'static str, &'static str, &'static [(&'static str, &'static str, &'static str)]);
const ALL: &str = "TtUu";
const NONE: &str = "----";

const TABLE: [Row; 9] = [
    ("there is none", "", &[]),
    ("nothing", "{ podSelector: { matchLabels: { app: web } } }", &[("", "web", NONE)]),
    (
        "pods of its namespace",
        "{ podSelector: { matchLabels: { app: web } }, ingress: [{ from: [{ podSelector: { matchLabels: { app: client } } }] }] }",
        &[("default client", "web", ALL), ("", "web", NONE)],
    ),
    (
        "another namespace",
        "{ podSelector: { matchExpressions: [{ key: app, operator: In, values: [web] }] }, \
         ingress: [{ from: [{ namespaceSelector: { matchLabels: { team: blue } } }] }] }",
        &[("blue", "web", ALL), ("", "web", NONE)],
    ),
    (
        "a block but for a part",
        "{ podSelector: {}, ingress: [{ from: [\
         { ipBlock: { cidr: 172.27.0.0/16, except: [172.27.2.0/26] } }, \
         { ipBlock: { cidr: \"fd00:27::/32\", except: [\"fd00:27:2::/122\"] } }] }] }",
        &[("n2", "web", NONE)],
    ),
    (
        "a port by its name",
        "{ podSelector: { matchLabels: { app: web } }, ingress: [{ ports: [{ port: echo }] }] }",
        &[("", "web", "T---")],
    ),
    (
        "a range of ports",
        "{ podSelector: { matchLabels: { app: web } }, \
         ingress: [{ ports: [{ port: 7001, endPort: 7010 }, { protocol: UDP, port: 6999, endPort: 7000 }] }] }",
        &[("", "web", "-tU-")],
    ),
    (
        "what leaves",
        "{ podSelector: { matchLabels: { app: client } }, policyTypes: [Egress], \
         egress: [{ to: [{ podSelector: { matchLabels: { app: web } } }], ports: [{ port: echo }] }] }",
        &[("default client", "web", "T---"), ("default client", "", NONE)],
    ),
    (
        "nothing leaves",
        "{ podSelector: { matchLabels: { app: other } }, policyTypes: [Egress] }",
        &[("default other", "", NONE)],
    ),
];

/// Whether all of these words are the pod's: its node's name, its namespace, its label.
fn is_one_of(words: &str, (node, namespace, label): Who) -> bool {
    let node = format!("n{}", node + 1);
    words.split_whitespace().all(|word| [node.as_str(), namespace, label].contains(&word))
}

fn wanted(row: &Row, from: usize, to: usize) -> &'static str {
    let line = row.2.iter().find(|(one, other, _)| is_one_of(one, PODS[from]) && is_one_of(other, PODS[to]));
    line.map_or(ALL, |(_, _, passes)| *passes)
}

/// The first pods of the list, whose objects everybody knows, and the second servers of those that are asked.
fn cluster(hook: &str, count: usize) -> Result<(Cluster, Vec<Task>)> {
    let mut cluster = Cluster::new(hook, ", policy: on", Nodes::Configuration)?;
    PODS[..count].iter().try_for_each(|(node, namespace, _)| cluster.pod_in(*node, namespace))?;
    let mut text = "kind: Namespace\napiVersion: v1\nmetadata: { name: blue, labels: { team: blue } }\n".to_owned();
    for (pod, (_, namespace, label)) in cluster.pods.iter().zip(PODS) {
        text += &format!(
            "---\nkind: Pod\napiVersion: v1\nmetadata: {{ name: {}, namespace: {namespace}, labels: {{ app: {label} }} }}\n\
             spec: {{ containers: [{{ name: c, ports: [{{ name: echo, containerPort: {ECHO} }}] }}] }}\n\
             status: {{ podIPs: [{{ ip: {} }}, {{ ip: \"{}\" }}] }}\n",
            pod.name, pod.at.v4, pod.at.v6
        );
    }
    cluster.write("pods.yaml", &text)?;
    let second = |asked: usize| {
        let pod = &cluster.pods[asked];
        echo::serve(&pod.ns, &pod.name, &pod.at.both().map(|ip| SocketAddr::new(ip, SECOND)))
    };
    let second = ASKED.into_iter().filter(|asked| *asked < count).map(second).collect::<Result<_>>()?;
    Ok((cluster, second))
}

fn policy(cluster: &Cluster, spec: &str) -> Result<()> {
    let text = match spec {
        "" => String::new(),
        spec => format!(
            "kind: NetworkPolicy\napiVersion: networking.k8s.io/v1\nmetadata: {{ name: p, namespace: default }}\nspec: {spec}\n"
        ),
    };
    cluster.write("policy.yaml", &text)
}

fn answers(ns: &Ns, to: SocketAddr, udp: bool) -> bool {
    let from = From::ns(ns);
    if !udp {
        return probe::connects(&from, to, SILENCE);
    }
    let ask = || -> Result<()> {
        let socket = probe::udp_socket(&from, to, Datagram::default())?;
        socket.set_read_timeout(Some(SILENCE))?;
        socket.send(b"anybody?")?;
        socket.recv(&mut [0; 64])?;
        Ok(())
    };
    ask().is_ok()
}

/// What passes from a pod to an address, in the words of the table.
fn cell(ns: &Ns, to: IpAddr) -> String {
    let asked = [("T", ECHO, false), ("t", SECOND, false), ("U", ECHO, true), ("u", SECOND, true)];
    thread::scope(|scope| {
        let asks: Vec<_> = asked
            .into_iter()
            .map(|(letter, port, udp)| {
                scope.spawn(move || if answers(ns, SocketAddr::new(to, port), udp) { letter } else { "-" })
            })
            .collect();
        asks.into_iter().map(|ask| ask.join().unwrap_or("?")).collect()
    })
}

fn eventually(what: impl Fn() -> Result<()>) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(8);
    loop {
        match what() {
            Err(_) if Instant::now() < end => thread::sleep(Duration::from_millis(50)),
            result => return result,
        }
    }
}

/// Waits until every cell is as it should be: each pod to each that is asked, by both families.
fn all_become(cluster: &Cluster, row: &Row) -> Result<()> {
    eventually(|| few_are(cluster, row))?;
    ASKED.into_iter().try_for_each(|to| eventually(|| cells_are(cluster, row, cluster.pods.len(), to)))
}

/// Those that show whether a policy is in force: fewer, since all cost something.
fn few_are(cluster: &Cluster, row: &Row) -> Result<()> {
    cells_are(cluster, row, FEW, ASKED[0])
}

fn cells_are(cluster: &Cluster, row: &Row, count: usize, to: usize) -> Result<()> {
    let addrs = cluster.pods[to].at.both();
    let others = (0..count).filter(|from| *from != to);
    let cells: Vec<_> = others.flat_map(|from| addrs.map(|addr| (from, addr))).collect();
    let passes: Vec<String> = thread::scope(|scope| {
        let ask = |(from, addr): &(usize, IpAddr)| {
            let (ns, addr) = (&cluster.pods[*from].ns, *addr);
            scope.spawn(move || cell(ns, addr))
        };
        let asks: Vec<_> = cells.iter().map(ask).collect();
        asks.into_iter().map(|ask| ask.join().unwrap_or_default()).collect()
    });
    let wrong: Vec<String> = cells
        .iter()
        .zip(passes)
        .filter(|((from, _), is)| wanted(row, *from, to) != is.as_str())
        .map(|(&(from, addr), is)| {
            format!("{:?} to {:?} {addr}: wanted {}, is {is}", PODS[from], PODS[to], wanted(row, from, to))
        })
        .collect();
    ensure!(wrong.is_empty(), "{} of {} cells:\n{}", wrong.len(), cells.len(), wrong.join("\n"));
    Ok(())
}

#[test]
fn who_may_talk_to_whom() -> Result<()> {
    let (cluster, _second) = cluster("xdp", PODS.len())?;
    for row in &TABLE {
        policy(&cluster, row.1)?;
        all_become(&cluster, row).with_context(|| format!("allowed: {}", row.0))?;
        // The pod's own node always may: its kubelet asks whether it is well.
        for pod in ASKED.map(|asked| &cluster.pods[asked]) {
            let node = &cluster.nodes[pod.node].ns;
            for to in pod.at.both().map(|at| SocketAddr::new(at, SECOND)) {
                ensure!(answers(node, to, false) && answers(node, to, true), "{}: {to}", row.0);
            }
        }
    }
    let agent = &cluster.nodes[0].agent;
    ensure!(agent.dropped("policy_ingress")? > 0, "counted");
    let status = agent.rows("status")?;
    ensure!(status.iter().any(|row| row["what"] == "policy" && row["state"] == "on"), "{status:?}");
    // The other nodes are judged by their addresses.
    policy(&cluster, TABLE[1].1)?;
    let to = SocketAddr::new(cluster.pods[0].at.v4, ECHO);
    eventually(|| {
        ensure!(!answers(&cluster.nodes[1].ns, to, false), "another node was heard");
        Ok(())
    })?;
    through_a_service(&cluster)
}

/// A service is judged by its endpoints, whatever its own address and port.
fn through_a_service(cluster: &Cluster) -> Result<()> {
    let service = |name: &str, host: u8, pod: usize| -> Result<[SocketAddr; 2]> {
        let at = device::cluster(host);
        let service = Service::tcp(name, 80, ECHO, at).and_udp();
        let pod = &cluster.pods[pod];
        cluster.write_service(&service.endpoint(pod.at, &cluster.nodes[pod.node].name))?;
        Ok(at.both().map(|ip| SocketAddr::new(ip, 80)))
    };
    let (web, other, own) = (service("web", 40, 0)?, service("other", 41, 4)?, service("own", 42, 1)?);
    policy(cluster, TABLE[7].1)?;
    let client = &cluster.pods[1].ns;
    eventually(|| {
        for i in 0..2 {
            ensure!(answers(client, web[i], false), "{} is allowed", web[i]);
            ensure!(!answers(client, web[i], true), "{} by UDP is not", web[i]);
            ensure!(!answers(client, other[i], false), "{} is not", other[i]);
            ensure!(answers(client, own[i], false) && answers(client, own[i], true), "{} leads to itself", own[i]);
        }
        Ok(())
    })?;
    ensure!(cluster.nodes[1].agent.dropped("policy_egress")? > 0, "counted");
    // Fragments follow what is allowed, there and back.
    policy(
        cluster,
        "{ podSelector: {}, policyTypes: [Ingress, Egress], egress: [{ to: [{ podSelector: {} }] }], \
                      ingress: [{ from: [{ podSelector: {} }] }] }",
    )?;
    for at in cluster.pods[2].at.both() {
        let large = Datagram { length: 4_000, ..Datagram::default() };
        let to = SocketAddr::new(at, ECHO);
        eventually(|| probe::udp(&From::ns(client), to, large).map(drop)).with_context(|| format!("to {to}"))?;
        probe::ping(&From::ns(client), at, 4_000)?;
    }
    Ok(())
}

/// What is open stays open without an agent and with another one, and not without permission.
#[test]
fn open_connections() -> Result<()> {
    let (mut cluster, _second) = cluster("tc", FEW)?;
    let allowed = &TABLE[2];
    policy(&cluster, allowed.1)?;
    eventually(|| few_are(&cluster, allowed))?;
    let to = |v6: usize| SocketAddr::new(cluster.pods[0].at.both()[v6], ECHO);
    let mut talks = Vec::new();
    let asker = cluster.nodes[0].agent.asker();
    let watched = thread::spawn(move || asker.command(&["monitor", "--json", "--seconds", "3"]));
    thread::sleep(Duration::from_secs(1));
    for (pod, v6) in [(1, 0), (1, 1), (2, 0)] {
        talks.push(Talk::open(&From::ns(&cluster.pods[pod].ns), to(v6))?);
    }
    let seen = watched.join().expect("it ends")?;
    for v6 in [0, 1] {
        let told = |line: &&str| line.contains("\"allowed\"") && line.contains(&format!("> {}\"", to(v6)));
        let event = seen.lines().find(told).with_context(|| format!("{}:\n{seen}", to(v6)))?;
        ensure!(event.contains("a NetworkPolicy allows it to the pod"), "{event}");
    }
    let mut all = |what: &str| talks.iter_mut().try_for_each(|talk| talk.exchange(50_000)).context(what.to_owned());
    all("with the first agent")?;
    for node in [0, 1] {
        cluster.nodes[node].agent.kill();
    }
    all("without an agent")?;
    ensure!(
        !answers(&cluster.pods[4].ns, SocketAddr::new(cluster.pods[0].at.v4, ECHO), false),
        "judged without an agent"
    );
    for node in [0, 1] {
        cluster.nodes[node].agent.start_ready()?;
    }
    all("with another agent")?;
    few_are(&cluster, allowed)?;
    // Another policy allows the same: nobody notices.
    policy(&cluster, TABLE[0].1)?;
    eventually(|| few_are(&cluster, &TABLE[0]))?;
    all("without a policy")?;
    policy(&cluster, TABLE[1].1)?;
    eventually(|| few_are(&cluster, &TABLE[1]))?;
    for talk in &mut talks {
        ensure!(talk.exchange(50_000).is_err(), "it goes on without permission");
    }
    Ok(())
}
