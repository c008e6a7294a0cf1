//! Sockets and waits of the translation's tests.

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::capture::Capture;
use super::packet::{self, Seen};
use super::{MIRROR, outside, uplink};
use crate::netns::Ns;

pub const PATIENCE: Duration = Duration::from_secs(3);

pub fn families() -> [IpAddr; 2] {
    uplink().both()
}

/// A UDP socket in a namespace, bound to a port (0: any).
pub fn udp(ns: &Ns, like: IpAddr, port: u16) -> UdpSocket {
    let any: IpAddr = if like.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = ns.run(|| UdpSocket::bind(SocketAddr::new(any, port))).unwrap().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// The endpoint outside of a socket, by the mirror's answer.
pub fn seen_as(socket: &UdpSocket, like: IpAddr) -> Option<SocketAddr> {
    let mut buffer = [0; 128];
    for _ in 0..2 {
        socket.send_to(b"who am I?", outside(like, MIRROR)).ok()?;
        if let Ok((n, _)) = socket.recv_from(&mut buffer) {
            return std::str::from_utf8(&buffer[..n]).ok()?.parse().ok();
        }
    }
    None
}

pub fn eventually(what: &str, patience: u64, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(patience);
    while !done() {
        assert!(Instant::now() < end, "{what}: not within {patience} s");
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub fn packets(capture: Capture) -> Vec<Seen> {
    capture.end().unwrap().iter().filter_map(|bytes| packet::frame(bytes)).collect()
}

/// A TCP connection from this port.
pub fn tcp_from(ns: &Ns, port: u16, to: SocketAddr) -> std::io::Result<TcpStream> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    tcp_at(ns, SocketAddr::new(any, port), to, PATIENCE)
}

/// As [`tcp_from`], with an address, and so much patience.
pub fn tcp_at(ns: &Ns, from: SocketAddr, to: SocketAddr, patience: Duration) -> std::io::Result<TcpStream> {
    ns.run(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())?;
        socket.connect_timeout(&to.into(), patience)?;
        Ok(socket.into())
    })
    .unwrap()
}

/// Greeting and a line there and back.
pub fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    use std::io::{BufRead, BufReader, ErrorKind, Write};
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"hello\n")?;
    let mut lines = BufReader::new(stream).lines();
    let greeting = lines.next().ok_or(ErrorKind::UnexpectedEof)??;
    let answer = lines.next().ok_or(ErrorKind::UnexpectedEof)??;
    if answer == "hello" { Ok(()) } else { Err(std::io::Error::other(format!("{greeting}, then {answer}"))) }
}
