//! Real sockets: connections and requests a second from small clients and servers in threads, and
//! iperf3's throughput.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use stellwerk_tests::netns::Ns;
use stellwerk_tests::netns::clean::Proc;

/// The port that the servers listen on.
pub const PORT: u16 = 8080;
/// The port that iperf3 listens on.
pub const IPERF: u16 = 5201;
/// Connections at a time.
const CLIENTS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(3);
/// Asks for one answer and the connection's end.
const ONCE: u8 = b'o';
/// Asks for one answer.
const MORE: u8 = b'm';

/// The server's side: threads that end with the process, and iperf3.
pub struct Servers {
    /// Who connected last.
    seen: Arc<AtomicU32>,
    _iperf: Proc,
}

impl Servers {
    pub fn start(ns: &Ns) -> Result<Servers> {
        let listener = ns.run(|| TcpListener::bind(("0.0.0.0", PORT)))?.context("the server's port")?;
        let seen = Arc::new(AtomicU32::new(0));
        for _ in 0..CLIENTS {
            let (listener, seen) = (listener.try_clone()?, seen.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    if let Ok(SocketAddr::V4(peer)) = stream.peer_addr() {
                        seen.store(peer.ip().to_bits(), Ordering::Relaxed);
                    }
                    let _ = answer(stream);
                }
            });
        }
        let mut command = ns.command("iperf3");
        command.args(["-s", "-p", &IPERF.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Servers { seen, _iperf: Proc::start(&mut command).context("iperf3")? })
    }

    pub fn seen(&self) -> Ipv4Addr {
        self.seen.load(Ordering::Relaxed).into()
    }
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = [0; 64];
    while stream.read(&mut buffer)? > 0 {
        stream.write_all(&buffer)?;
        // This side ends first, so that no client's port waits.
        if buffer[0] == ONCE {
            return stream.shutdown(std::net::Shutdown::Both);
        }
    }
    Ok(())
}

fn open(at: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&at, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn connection(at: SocketAddr) -> std::io::Result<()> {
    let mut stream = open(at)?;
    stream.write_all(&[ONCE; 64])?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    if answer.len() == 64 { Ok(()) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
}

/// Work of several clients at once, each done as often as the time allows: how often a second.
fn clients(ns: &Ns, time: Duration, client: impl Fn(&AtomicU64, Instant) -> std::io::Result<()> + Sync) -> Result<f64> {
    let done = AtomicU64::new(0);
    let begin = Instant::now();
    let end = begin + time;
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..CLIENTS).map(|_| scope.spawn(|| ns.enter().and_then(|()| Ok(client(&done, end)?)))).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    let elapsed = begin.elapsed();
    results.into_iter().collect::<Result<Vec<()>>>()?;
    Ok(done.load(Ordering::Relaxed) as f64 / elapsed.as_secs_f64())
}

/// Connections that are opened, asked once and closed; those that aren't are counted as failed, too.
pub fn connections(ns: &Ns, at: SocketAddr, time: Duration, failed: &AtomicU64) -> Result<f64> {
    clients(ns, time, |done, end| {
        while Instant::now() < end {
            let counter = if connection(at).is_ok() { done } else { failed };
            counter.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    })
}

/// Requests on connections that stay.
pub fn requests(ns: &Ns, at: SocketAddr, time: Duration) -> Result<f64> {
    clients(ns, time, |done, end| {
        let mut stream = open(at)?;
        let mut buffer = [MORE; 64];
        while Instant::now() < end {
            stream.write_all(&buffer)?;
            stream.read_exact(&mut buffer)?;
            done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    })
}

/// Gbit/s of iperf3.
pub fn throughput(ns: &Ns, at: SocketAddr, time: Duration) -> Result<f64> {
    let seconds = format!("{:.1}", time.as_secs_f64().max(1.0));
    let mut command: Command = ns.command("iperf3");
    command.args(["-J", "-c", &at.ip().to_string(), "-p", &at.port().to_string(), "-t"]);
    let out = command.arg(seconds.trim_end_matches(".0")).stdout(Stdio::piped()).output().context("iperf3")?;
    let said: serde_json::Value = serde_json::from_slice(&out.stdout).context("iperf3's answer")?;
    ensure!(out.status.success(), "iperf3: {}", said["error"]);
    let bits = said["end"]["sum_received"]["bits_per_second"].as_f64().context("iperf3 tells no figure")?;
    Ok(bits / 1e9)
}
