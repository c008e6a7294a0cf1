//! `bench connect`: how many connections a client of the node opens a second: to a backend, to its service at the
//! socket, and to its service by packets.
//!
//! Invariant: all ways lead from the same client to the same server over the same links, in turns of one run. What says by which
//! way a round went are the kernel's tables.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};
use stellwerk_tests::netns::config::Files;
use stellwerk_tests::netns::device;
use stellwerk_tests::netns::scene::{ECHO, PORT, Scene, Which};
use stellwerk_tests::netns::{Ns, clean};

use super::report::{Reach, Report, Row};
use super::series::{median, ratio};

/// Where the server waits: beside the echo servers, and closing at once.
const SERVER: u16 = ECHO + 1;

/// Connections in a row, and how often in a round.
const CHUNK: u32 = 100;
const CHUNKS: u32 = 30;

/// Connections a second, by round.
#[derive(Default)]
struct Rounds {
    /// Without any program at sockets: to the backend, and to the service.
    direct: Vec<f64>,
    packets: Vec<f64>,
    /// With them.
    beside: Vec<f64>,
    socket: Vec<f64>,
    /// Connections that were translated at the socket, and by packets.
    translated: u64,
    flows: u64,
    made: u64,
}

pub fn run(quick: bool) -> Result<Report> {
    let mut scene = Scene::open("tc", "tc")?;
    let mut rows = Vec::new();
    for v4 in [true, false] {
        let rounds = measure(&mut scene, v4, quick)?;
        let version = if v4 { "v4" } else { "v6" };
        let row = |name: &str, values: &[f64], limit: &[f64], reach| {
            Row::new(format!("{version} {name}"), median(values), "/s").against(
                median(limit),
                ratio(values, limit),
                reach,
            )
        };
        let socket = row("at the socket", &rounds.socket, &rounds.beside, Reach::AtLeast(0.95))
            .verdict("translated", rounds.translated)
            .verdict("sent", rounds.made)
            .prove(rounds.translated == rounds.made);
        // Without a program at sockets. A port that comes again within a moment isn't counted again.
        let mut packets = row("by packets", &rounds.packets, &rounds.direct, Reach::AtLeast(0.0))
            .verdict("connections", rounds.flows)
            .prove(rounds.flows + rounds.made / 1_000 >= rounds.made);
        packets.reach = None;
        let mut beside = row("direct, with programs at sockets", &rounds.beside, &rounds.direct, Reach::AtLeast(0.0));
        beside.reach = None;
        rows.extend([socket, packets, beside]);
    }
    Ok(Report { bench: "connect", rows })
}

fn measure(scene: &mut Scene, v4: bool, quick: bool) -> Result<Rounds> {
    let of = |twin: device::Twin| if v4 { twin.v4 } else { twin.v6 };
    let (backend, service) = (of(device::pod(1, 11)), of(Which::Local.cluster()));
    let (backend, service) = (SocketAddr::new(backend, SERVER), SocketAddr::new(service, PORT));
    scene.service(Which::Local).ports.iter_mut().for_each(|port| port.target = SERVER);
    let local = scene.service(Which::Local).clone();
    scene.files.write(&local)?;
    let rounds = if quick { 5 } else { 30 };
    let _server = serve(&scene.pod1, backend)?;
    let dev = scene.device.dev.clone();
    // To the backend a connection by packets looks as a direct one of that port would. And a node port is no port
    // of the node's own connections.
    let by = |ports: &str, to: SocketAddr| {
        dev.sysctls(&[("net/ipv4/ip_local_port_range", ports)])?;
        connect(&dev, to, CHUNK)
    };
    let mut all = Rounds::default();
    // The first round warms up.
    for round in 0..=rounds {
        switch(scene, false)?;
        let flows = opened(scene)?;
        let [packets, direct] = in_turn(|| by("10000 30000", service), || by("31000 64000", backend))?;
        let flows = opened(scene)? - flows;
        switch(scene, true)?;
        let translated = scene.agent.dropped("socket_translated")?;
        let [socket, beside] = in_turn(|| by("31000 64000", service), || by("31000 64000", backend))?;
        let translated = scene.agent.dropped("socket_translated")? - translated;
        if round > 0 {
            all.direct.push(direct);
            all.packets.push(packets);
            all.socket.push(socket);
            all.beside.push(beside);
            (all.translated, all.flows) = (all.translated + translated, all.flows + flows);
            all.made += u64::from(CHUNK * CHUNKS);
        }
    }
    Ok(all)
}

/// Connections a second of both, by so few at a time that what disturbs one disturbs the other.
fn in_turn(mut a: impl FnMut() -> Result<Duration>, mut b: impl FnMut() -> Result<Duration>) -> Result<[f64; 2]> {
    let mut times = [Duration::ZERO; 2];
    for _ in 0..CHUNKS {
        times[0] += a()?;
        times[1] += b()?;
    }
    Ok(times.map(|time| f64::from(CHUNK * CHUNKS) / time.as_secs_f64()))
}

/// Connections that the service's backends have had.
fn opened(scene: &Scene) -> Result<u64> {
    let rows = scene.agent.rows("backends")?;
    let of = rows.iter().filter(|row| row["service"].as_str().is_some_and(|name| name.contains("default/local")));
    Ok(of.filter_map(|row| row["connections"].as_u64()).sum())
}

fn switch(scene: &mut Scene, on: bool) -> Result<()> {
    let config = format!("{}  socketBalancing: {on}\n", Files::standard("tc", "tc"));
    scene.files.write_config(&config)?;
    let state = if on { "on" } else { "off" };
    scene.agent.wait("status", |rows| rows.iter().any(|row| row["what"] == "sockets" && row["state"] == state))?;
    // The agent is done with all that a reload means.
    std::thread::sleep(Duration::from_millis(300));
    Ok(())
}

/// Takes connections and drops them.
fn serve(ns: &Ns, at: SocketAddr) -> Result<Server> {
    let listener = ns.run(|| {
        let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&at.into())?;
        socket.listen(4_096)?;
        Ok::<TcpListener, std::io::Error>(socket.into())
    })??;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    let thread = std::thread::spawn(move || {
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            drop(listener.accept());
        }
    });
    Ok(Server { ns: ns.clone(), at, stop, thread: Some(thread) })
}

struct Server {
    ns: Ns,
    at: SocketAddr,
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        // One more, which it waits for.
        let _ = self.ns.run(|| std::net::TcpStream::connect_timeout(&self.at, Duration::from_secs(1)).map(drop));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// How long so many connections take.
fn connect(ns: &Ns, to: SocketAddr, count: u32) -> Result<Duration> {
    clean::check()?;
    ns.run(|| {
        let begin = Instant::now();
        for i in 0..count {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
            // Ended by a reset: ports that wait would make the kernel search for others, the longer the later.
            socket.set_linger(Some(Duration::ZERO))?;
            socket.connect(&to.into()).with_context(|| format!("connection {i} to {to}"))?;
        }
        Ok(begin.elapsed())
    })?
}
