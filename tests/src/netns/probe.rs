//! Single questions to the network, with answers that a test can compare: who answered, from where
//! it saw us, what error came instead.

use std::io::{ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use super::Ns;

/// No answer here takes so long.
const PATIENCE: Duration = Duration::from_secs(3);

/// Where a question starts.
#[derive(Clone, Debug)]
pub struct From {
    pub ns: Ns,
    /// Its address, where the namespace has several.
    pub source: Option<IpAddr>,
}

impl From {
    pub fn ns(ns: &Ns) -> From {
        From { ns: ns.clone(), source: None }
    }

    pub fn at(ns: &Ns, source: IpAddr) -> From {
        From { ns: ns.clone(), source: Some(source) }
    }
}

/// Who answered, and the client's address as it saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    pub name: String,
    pub client: Option<IpAddr>,
}

/// An echo server's TCP connection.
#[derive(Debug)]
pub struct Talk {
    stream: TcpStream,
    pub greeting: Greeting,
}

impl Talk {
    /// Connects and reads the greeting.
    pub fn open(from: &From, target: SocketAddr) -> Result<Talk> {
        let mut stream = from.ns.run(|| connect(from.source, target))??;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            stream.read_exact(&mut byte).context("reading the greeting")?;
            line.push(byte[0]);
        }
        let line = String::from_utf8_lossy(&line).into_owned();
        let (name, client) = line.trim().split_once(' ').context("a greeting without an address")?;
        let greeting = Greeting { name: name.to_owned(), client: client.parse().ok() };
        Ok(Talk { stream, greeting })
    }

    /// Sends so many bytes and compares what comes back.
    pub fn exchange(&mut self, length: usize) -> Result<()> {
        let seed = length as u32;
        let mut out = self.stream.try_clone()?;
        std::thread::scope(|scope| {
            let writer = scope.spawn(move || -> Result<()> {
                let mut pattern = Pattern(seed);
                let mut left = length;
                while left > 0 {
                    let chunk = pattern.take(left.min(64 << 10));
                    out.write_all(&chunk).context("sending")?;
                    left -= chunk.len();
                }
                Ok(())
            });
            let read = self.compare(Pattern(seed), length);
            writer.join().map_err(|_| anyhow::anyhow!("the writer broke"))?.and(read)
        })
    }

    fn compare(&mut self, mut pattern: Pattern, length: usize) -> Result<()> {
        let mut buffer = vec![0; 64 << 10];
        let mut seen = 0;
        while seen < length {
            let want = buffer.len().min(length - seen);
            let n = self.stream.read(&mut buffer[..want]).with_context(|| format!("after {seen} of {length} bytes"))?;
            ensure!(n > 0, "closed after {seen} of {length} bytes");
            ensure!(buffer[..n] == pattern.take(n), "other bytes came back within {} of byte {seen}", n);
            seen += n;
        }
        Ok(())
    }

    /// Says that nothing more comes and waits for the other side's end.
    pub fn close(mut self) -> Result<()> {
        self.stream.shutdown(Shutdown::Write)?;
        let mut rest = [0; 16];
        ensure!(self.stream.read(&mut rest)? == 0, "bytes behind the end");
        Ok(())
    }
}

/// Bytes that never repeat at a distance where a mistake would hide.
struct Pattern(u32);

impl Pattern {
    fn take(&mut self, n: usize) -> Vec<u8> {
        let mut next = || {
            self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (self.0 >> 24) as u8
        };
        (0..n).map(|_| next()).collect()
    }
}

fn connect(source: Option<IpAddr>, target: SocketAddr) -> Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    socket.connect_timeout(&target.into(), PATIENCE).context("connecting")?;
    Ok(socket.into())
}

/// Whether somebody takes a TCP connection, within this time.
pub fn connects(from: &From, target: SocketAddr, patience: Duration) -> bool {
    from.ns.run(|| TcpStream::connect_timeout(&target, patience).is_ok()).unwrap_or(false)
}

/// A whole TCP conversation.
pub fn tcp(from: &From, target: SocketAddr, length: usize) -> Result<Greeting> {
    let mut talk = Talk::open(from, target)?;
    talk.exchange(length)?;
    let greeting = talk.greeting.clone();
    talk.close()?;
    Ok(greeting)
}

/// How a datagram is sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Datagram {
    pub length: usize,
    /// No checksum (IPv4 allows it).
    pub unsummed: bool,
    pub ttl: Option<u32>,
}

/// A connected UDP socket in a namespace.
pub fn udp_socket(from: &From, target: SocketAddr, how: Datagram) -> Result<UdpSocket> {
    from.ns.run(|| {
        let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let socket = UdpSocket::bind(SocketAddr::new(from.source.unwrap_or(any), 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        if how.unsummed {
            unsummed(&socket)?;
        }
        if let Some(ttl) = how.ttl {
            let socket = socket2::SockRef::from(&socket);
            if target.is_ipv4() { socket.set_ttl_v4(ttl)? } else { socket.set_unicast_hops_v6(ttl)? }
        }
        socket.connect(target)?;
        Ok(socket)
    })?
}

/// One datagram and its answer: who answered.
pub fn udp(from: &From, target: SocketAddr, how: Datagram) -> Result<Greeting> {
    let socket = udp_socket(from, target, how)?;
    let sent = Pattern(how.length as u32).take(how.length);
    let mut buffer = vec![0; 64 << 10];
    socket.send(&sent).context("sending")?;
    let n = socket.recv(&mut buffer).context("receiving")?;
    let space = buffer[..n].iter().position(|&b| b == b' ').context("an answer without a name")?;
    ensure!(buffer[space + 1..n] == sent, "other bytes came back");
    Ok(Greeting { name: String::from_utf8_lossy(&buffer[..space]).into_owned(), client: None })
}

fn unsummed(socket: &UdpSocket) -> Result<()> {
    let on: libc::c_int = 1;
    let size = size_of_val(&on) as libc::socklen_t;
    #[expect(unsafe_code, reason = "SO_NO_CHECK has no safe wrapper")]
    // SAFETY: the pointer and the size are of `on`, which lives until the call returns.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, (&raw const on).cast(), size)
    };
    nix::errno::Errno::result(result)?;
    Ok(())
}

/// How an attempt to connect ended, and after how long.
pub fn tcp_refused(from: &From, target: SocketAddr) -> Result<(Option<ErrorKind>, Duration)> {
    let begin = Instant::now();
    let error = from.ns.run(|| {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
        if let Some(source) = from.source {
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        Ok::<_, anyhow::Error>(socket.connect_timeout(&target.into(), PATIENCE).err().map(|e| e.kind()))
    })??;
    Ok((error, begin.elapsed()))
}

/// How waiting for the answer to a datagram ended.
pub fn udp_refused(from: &From, target: SocketAddr) -> Result<(Option<ErrorKind>, Duration)> {
    let begin = Instant::now();
    let socket = udp_socket(from, target, Datagram::default())?;
    socket.send(b"anybody?")?;
    let error = socket.recv(&mut [0; 64]).err().map(|e| e.kind());
    Ok((error, begin.elapsed()))
}

/// An echo request of so many bytes; fails without the very same bytes in an answer.
pub fn ping(from: &From, target: IpAddr, length: usize) -> Result<()> {
    Pings::open(from, target)?.one(length)
}

/// Echo requests of one identifier.
#[derive(Debug)]
pub struct Pings {
    socket: Socket,
    target: IpAddr,
}

impl Pings {
    pub fn open(from: &From, target: IpAddr) -> Result<Pings> {
        let (domain, protocol) = match target {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        let socket = from.ns.run(|| Socket::new(domain, Type::DGRAM, Some(protocol)))??;
        if let Some(source) = from.source {
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Pings { socket, target })
    }

    /// See [`ping`].
    pub fn one(&self, length: usize) -> Result<()> {
        let kind = if self.target.is_ipv4() { (8, 0) } else { (128, 129) };
        let payload = Pattern(7).take(length);
        // Checksum and identifier are the kernel's.
        let request = [&[kind.0, 0, 0, 0, 0, 0, 0, 1], &payload[..]].concat();
        self.socket.send_to(&request, &SocketAddr::new(self.target, 0).into())?;
        let mut buffer = vec![0; 64 << 10];
        let n = (&self.socket).read(&mut buffer).context("no echo")?;
        ensure!(
            n == request.len() && buffer[0] == kind.1 && buffer[8..n] == payload,
            "another echo: {:?}",
            &buffer[..n.min(32)]
        );
        Ok(())
    }
}

/// An ICMP error as it came: its type and code, who sent it, and the packet it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IcmpError {
    pub kind: (u8, u8),
    pub from: IpAddr,
    /// What stands behind the checksum: with packets that are too large, the MTU.
    pub word: u32,
    pub about: Vec<u8>,
}

impl IcmpError {
    /// The quoted packet's destination.
    pub fn about_destination(&self) -> Option<IpAddr> {
        match self.from {
            IpAddr::V4(_) => Some(<[u8; 4]>::try_from(self.about.get(16..20)?).ok()?.into()),
            IpAddr::V6(_) => Some(<[u8; 16]>::try_from(self.about.get(24..40)?).ok()?.into()),
        }
    }
}

/// Listens for ICMP errors in a namespace while `work` runs; the first that came, of this type.
pub fn icmp_error(ns: &Ns, v4: bool, kind: u8, work: impl FnOnce() -> Result<()>) -> Result<IcmpError> {
    let (domain, protocol) = if v4 { (Domain::IPV4, Protocol::ICMPV4) } else { (Domain::IPV6, Protocol::ICMPV6) };
    let socket = ns.run(|| Socket::new(domain, Type::RAW, Some(protocol)))??;
    socket.set_read_timeout(Some(PATIENCE))?;
    work()?;
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let (n, from) = socket.recv_from(&mut buffer).context("no ICMP error came")?;
        let bytes = initialized(&buffer[..n]);
        // IPv4's raw sockets give the header, too.
        let icmp = if v4 { &bytes[usize::from(bytes[0] & 15) * 4..] } else { &bytes[..] };
        if icmp.len() > 8 && icmp[0] == kind {
            let from = from.as_socket().context("no sender")?.ip();
            let word = u32::from_be_bytes([icmp[4], icmp[5], icmp[6], icmp[7]]);
            return Ok(IcmpError { kind: (icmp[0], icmp[1]), from, word, about: icmp[8..].to_vec() });
        }
    }
    bail!("no ICMP error of type {kind} came")
}

fn initialized(buffer: &[MaybeUninit<u8>]) -> Vec<u8> {
    #[expect(unsafe_code, reason = "socket2 fills uninitialized memory")]
    // SAFETY: the caller passes only the bytes that the kernel said it wrote.
    buffer.iter().map(|byte| unsafe { byte.assume_init() }).collect()
}
