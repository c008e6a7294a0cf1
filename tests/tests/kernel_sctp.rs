//! SCTP with real sockets: associations through the loaded programs, over IPv4 and IPv6, by each kind
//! of hook, to a backend on this node and to one on another. The kernel checks each packet's CRC.
//!
//! Many kernels lack SCTP, the one of a developer's machine among them: then the test says so and
//! passes. In the virtual machines of `cargo xtask test --kernel` it must be there.
//!
//! Sockets are bound to one address. SCTP tells the other end all addresses that a socket has, and a
//! translation of the IP header alone (RFC 9260 §6.8 leaves no other) can't follow there.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use socket2::{Domain, Protocol, Socket, Type};
use stellwerk_tests::netns::config::{Files, Service, ServicePort};
use stellwerk_tests::netns::device::{self, Device, Twin};
use stellwerk_tests::netns::{Agent, Ns};

/// Service and endpoint share it, since SCTP's checksum covers ports.
const PORT: u16 = 7000;
const PATIENCE: Duration = Duration::from_secs(10);

/// One-to-one style: an association as a stream socket, a message a write.
fn socket(addr: IpAddr) -> std::io::Result<Socket> {
    let domain = if addr.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::from(libc::IPPROTO_SCTP)))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Why there can be no test, if there can't.
fn left_out() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("network namespaces need root".into());
    }
    let error = socket([127, 0, 0, 1].into()).err()?;
    // The virtual machines say which modules they loaded.
    let loaded = std::env::var("STELLWERK_MODULES").unwrap_or_default();
    assert!(!loaded.contains("sctp.ko"), "the module is loaded, but: {error}");
    Some(format!("this kernel has no SCTP: {error}"))
}

/// Says on each association its name and whom it sees, and then every message as it came.
struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Result<()>>>>,
}

impl Server {
    fn start(ns: &Ns, name: &'static str, addr: IpAddr) -> Result<Server> {
        let listener = ns.run(|| {
            let listener = socket(addr)?;
            listener.set_reuse_address(true)?;
            listener.bind(&SocketAddr::new(addr, PORT).into())?;
            listener.listen(16)?;
            // So that the end is heard.
            listener.set_read_timeout(Some(Duration::from_millis(100)))?;
            Ok::<_, std::io::Error>(listener)
        })?;
        let listener = listener.with_context(|| format!("an SCTP server at {addr}"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let serve = move || -> Result<()> {
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((socket, client)) => {
                        let client = client.as_socket().context("no client")?;
                        // A client's failure is the client's to tell.
                        let _ = echo(socket, &format!("{name} {client}"));
                    }
                    Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                    Err(e) => return Err(e).context("accepting"),
                }
            }
            Ok(())
        };
        Ok(Server { stop, thread: Some(ns.spawn(serve)) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn echo(mut socket: Socket, greeting: &str) -> std::io::Result<()> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.write_all(greeting.as_bytes())?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        match socket.read(&mut buffer)? {
            0 => return Ok(()),
            n => socket.write_all(&buffer[..n])?,
        }
    }
}

/// One association from its start to its end: who answered, and whom it saw.
fn talk(ns: &Ns, source: IpAddr, target: IpAddr) -> Result<(String, SocketAddr, SocketAddr)> {
    ns.run(|| {
        let mut socket = socket(source)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
        socket.connect_timeout(&SocketAddr::new(target, PORT).into(), PATIENCE).context("connecting")?;
        let mut buffer = vec![0; 64 << 10];
        let n = socket.read(&mut buffer).context("reading the greeting")?;
        let greeting = String::from_utf8_lossy(&buffer[..n]).into_owned();
        let (name, seen) = greeting.split_once(' ').context("no greeting")?;
        let seen = seen.parse().with_context(|| greeting.clone())?;
        // Short ones, odd ones, and some that take several packets.
        for length in [1, 5, 1000, 1399, 8191, 20_000] {
            let sent: Vec<u8> = (0..length).map(|i| (i * 7 + length) as u8).collect();
            socket.write_all(&sent).with_context(|| format!("sending {length} bytes"))?;
            let mut got = 0;
            while got < length {
                let n = socket.read(&mut buffer[got..]).with_context(|| format!("after {got} of {length} bytes"))?;
                ensure!(n > 0, "ended after {got} of {length} bytes");
                got += n;
            }
            ensure!(buffer[..got] == sent, "other bytes came back");
        }
        let me = socket.local_addr()?.as_socket().context("no local address")?;
        socket.shutdown(Shutdown::Write)?;
        // SCTP knows no half-closed associations: the end comes as either of the two.
        match socket.read(&mut buffer) {
            Ok(0) => {}
            Err(e) if e.kind() == ErrorKind::NotConnected => {}
            other => bail!("waiting for the end: {other:?}"),
        }
        Ok((name.to_owned(), seen, me))
    })?
}

fn service(name: &str, which: u8) -> Service {
    let mut service = Service::tcp(name, PORT, PORT, device::cluster(which)).external(device::external(90 + which));
    service.ports = vec![ServicePort { protocol: "SCTP", port: PORT, target: PORT, node_port: None }];
    service
}

fn run(words: &str) -> Result<()> {
    let mut words = words.split(' ');
    let out = Command::new(words.next().context("no program")?).args(words).output()?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Ok(())
}

/// Who asks, at which address, whom; who answers, and whether as whom it asked.
type Way<'a> = (&'static str, &'a Ns, Twin, Twin, &'static str, bool);

/// Every message's packets by themselves, as from a wire.
#[test]
fn associations_through_the_programs() {
    associations(false);
}

/// Messages that leave their sender's stack as a list of packets, to be cut into them by the last link.
#[test]
fn associations_with_segmentation_offload() {
    associations(true);
}

fn associations(offload: bool) {
    if let Some(why) = left_out() {
        println!("left out: {why}");
        return;
    }
    let device = Device::new().unwrap();
    let (pod1, pod2) = (device.pod("pod-1", 11).unwrap(), device.pod("pod-2", 12).unwrap());
    let servers = [(&pod1, "pod-1", device::pod(1, 11)), (&device.edge2, "remote", device::pod(2, 11))];
    if !offload {
        for ns in [&pod1, &pod2, &device.edge2, &device.inet, &device.client] {
            ns.run(|| run("ethtool -K eth0 tx-sctp-segmentation off")).unwrap().unwrap();
        }
    }
    let serve =
        |(ns, name, at): (&Ns, &'static str, Twin)| at.both().map(|addr| Server::start(ns, name, addr).unwrap());
    let servers = servers.map(serve);
    let files = Files::new(device.lab.dir()).unwrap();
    files.write(&service("local", 10).endpoint(device::pod(1, 11), "edge-1")).unwrap();
    files.write(&service("remote", 11).endpoint(device::pod(2, 11), "edge-2")).unwrap();
    files.write_config(&Files::standard("tc", "xdp")).unwrap();
    let mut agent = Agent::new(&device.lab, &device.dev, &files.config()).unwrap();
    agent.start_ready().unwrap();
    assert_eq!(agent.rows("backends").unwrap().len(), 4);

    let (local, remote) = (device::external(100), device::external(101));
    let ways: [Way<'_>; 5] = [
        ("Port3 to a local pod", &device.client, device::lan(50), local, "pod-1", true),
        ("Port2 to a local pod", &device.inet, device::far(), local, "pod-1", true),
        ("a pod to a local pod", &pod2, device::pod(1, 12), device::cluster(10), "pod-1", true),
        ("Port3 to edge-2, back out of the same port", &device.client, device::lan(50), remote, "remote", false),
        ("Port2 to edge-2", &device.inet, device::far(), remote, "remote", false),
    ];
    let mut wrong = Vec::new();
    for (name, ns, source, target, server, same) in ways {
        for target in target.both() {
            let source = source.like(target);
            let result = talk(ns, source, target).and_then(|(answered, seen, me)| {
                ensure!(answered == server, "{answered} answered");
                ensure!(seen.port() == me.port(), "port {} arrived as {}", me.port(), seen.port());
                ensure!((seen.ip() == source) == same, "the backend sees {seen}");
                Ok(())
            });
            match result {
                Ok(()) => println!("{name}: {source} to {target}"),
                Err(e) => wrong.push(format!("{name}, {source} to {target}: {e:#}")),
            }
        }
    }
    let flows = agent.command(&["flows"]).unwrap();
    let drops = agent.command(&["drops"]).unwrap();
    assert!(wrong.is_empty(), "{}\n{flows}\n{drops}\n{}", wrong.join("\n"), agent.log_tail());
    // What the tables say of it: each association ended in order, and was counted once.
    let flows = agent.rows("flows").unwrap();
    assert!(flows.iter().all(|flow| flow["protocol"] == "SCTP" && flow["set"] == "established"), "{flows:#?}");
    let backends = agent.rows("backends").unwrap();
    let count = |row: &serde_json::Value| row["connections"].as_u64().unwrap_or(0);
    assert_eq!(backends.iter().map(count).sum::<u64>(), 10, "{backends:#?}");
    assert!(agent.stop(), "{}", agent.log_tail());
    agent.command(&["unload"]).unwrap();
    drop(servers);
}
