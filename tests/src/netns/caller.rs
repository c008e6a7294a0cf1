//! Clients as programs see them: not only who answered, but whom the socket says that it talks to.

use std::io::{BufRead, BufReader, ErrorKind};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use super::Ns;

const PATIENCE: Duration = Duration::from_secs(3);

/// How a program asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Tcp,
    /// connect(2), then send(2).
    Connected,
    /// sendto(2) and recvfrom(2).
    Unconnected,
}

impl How {
    pub const ALL: [How; 3] = [How::Tcp, How::Connected, How::Unconnected];
}

/// A socket of a namespace that has asked, and goes on to.
#[derive(Debug)]
pub struct Caller {
    socket: Socket,
    how: How,
    to: SocketAddr,
}

impl Caller {
    /// Makes it; TCP connects, and so does UDP if it is to. An IPv4 address in an IPv6 one (`::ffff:a.b.c.d`) is asked by
    /// an IPv6 socket.
    pub fn new(ns: &Ns, how: How, to: SocketAddr) -> std::io::Result<Caller> {
        ns.run(|| {
            let (kind, protocol) =
                if how == How::Tcp { (Type::STREAM, Protocol::TCP) } else { (Type::DGRAM, Protocol::UDP) };
            let socket = Socket::new(Domain::for_address(to), kind, Some(protocol))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            match how {
                How::Tcp => socket.connect_timeout(&to.into(), PATIENCE)?,
                How::Connected => socket.connect(&to.into())?,
                How::Unconnected => {}
            }
            Ok(Caller { socket, how, to })
        })
        .map_err(std::io::Error::other)?
    }

    /// Asks, and checks that the answer comes from whom was asked, as far as the socket says: who answered. TCP once.
    pub fn ask(&self) -> Result<String> {
        self.is_named()?;
        if self.how == How::Tcp {
            let mut line = String::new();
            BufReader::new(&self.socket).read_line(&mut line).context("the greeting")?;
            return Ok(line.split(' ').next().unwrap_or_default().to_owned());
        }
        if self.how == How::Connected {
            self.socket.send(b"who?")?;
        } else {
            self.socket.send_to(b"who?", &self.to.into())?;
        }
        let mut buffer = [MaybeUninit::uninit(); 256];
        let (n, from) = self.socket.recv_from(&mut buffer).context("no answer")?;
        let from = from.as_socket().context("no source")?;
        ensure!(same(from, self.to), "{} was asked, {from} answered", self.to);
        #[expect(unsafe_code, reason = "socket2 fills uninitialized memory")]
        // SAFETY: the kernel said that it wrote so many bytes.
        let bytes: Vec<u8> = buffer[..n].iter().map(|byte| unsafe { byte.assume_init() }).collect();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (name, rest) = text.split_once(' ').context("an answer without a name")?;
        ensure!(rest == "who?", "another answer: {text}");
        Ok(name.to_owned())
    }

    fn is_named(&self) -> Result<()> {
        if self.how == How::Unconnected {
            return Ok(());
        }
        let peer = self.socket.peer_addr()?.as_socket().context("no peer")?;
        ensure!(same(peer, self.to), "connected to {}, and getpeername says {peer}", self.to);
        Ok(())
    }
}

/// Whatever the scope and the flow label are.
fn same(a: SocketAddr, b: SocketAddr) -> bool {
    (a.ip(), a.port()) == (b.ip(), b.port())
}

/// An IPv4 address as IPv6 sockets name it.
pub fn mapped(addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V4(v4) => SocketAddrV6::new(v4.to_ipv6_mapped(), addr.port(), 0, 0).into(),
        IpAddr::V6(_) => addr,
    }
}

/// Connects and asks once.
pub fn ask(ns: &Ns, how: How, to: SocketAddr) -> Result<String> {
    Caller::new(ns, how, to)
        .with_context(|| format!("{how:?} to {to}"))?
        .ask()
        .with_context(|| format!("{how:?} to {to}"))
}

/// Why a connect fails; None: it doesn't.
pub fn refusal(ns: &Ns, how: How, to: SocketAddr) -> Option<ErrorKind> {
    Caller::new(ns, how, to).err().map(|error| error.kind())
}

/// The three ways to name a service: by IPv4, by IPv6, and by IPv4 in IPv6.
pub fn names(v4: IpAddr, v6: IpAddr, port: u16) -> [SocketAddr; 3] {
    let by = |ip: IpAddr| SocketAddr::new(ip, port);
    [by(v4), by(v6), mapped(by(v4))]
}
