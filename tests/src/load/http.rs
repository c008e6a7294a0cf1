//! As much of HTTP/1.1 as the load needs: GET, Content-Length, keep-alive. Both sides.

use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// A head longer than this is refused.
const HEAD_MAX: usize = 4096;
/// A body longer than this is refused.
const BODY_MAX: usize = 1 << 20;

/// A connection, with the bytes that were read too far.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// A received answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: String,
    /// The server will close the connection.
    pub last: bool,
}

/// A received request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The client wants the connection closed.
    pub last: bool,
}

impl Connection {
    pub fn new(stream: TcpStream) -> Connection {
        let _ = stream.set_nodelay(true);
        Connection { stream, buffer: Vec::with_capacity(512) }
    }

    /// Connects, from `source` if it is given.
    pub async fn open(target: SocketAddr, source: Option<IpAddr>) -> io::Result<Connection> {
        let socket = if target.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        if let Some(source) = source {
            socket.bind(SocketAddr::new(source, 0))?;
        }
        Ok(Connection::new(socket.connect(target).await?))
    }

    /// Sends a request and reads its answer.
    pub async fn get(&mut self, last: bool) -> io::Result<Answer> {
        let close = if last { "Connection: close\r\n" } else { "" };
        self.stream.write_all(format!("GET / HTTP/1.1\r\nHost: app\r\n{close}\r\n").as_bytes()).await?;
        let head = self.head().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| bad("no status"))?;
        let length = header(&head, "content-length").and_then(|l| l.parse().ok()).ok_or_else(|| bad("no length"))?;
        if length > BODY_MAX {
            return Err(bad("the body is too long"));
        }
        while self.buffer.len() < length {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let body = String::from_utf8_lossy(&self.buffer[..length]).into_owned();
        self.buffer.drain(..length);
        Ok(Answer { status, body, last: says_close(&head) })
    }

    /// Reads a request; None when the client closed the connection.
    pub async fn request(&mut self) -> io::Result<Option<Request>> {
        Ok(self.head().await?.map(|head| Request { last: says_close(&head) }))
    }

    /// Sends an answer.
    pub async fn answer(&mut self, status: &str, body: &str, last: bool) -> io::Result<()> {
        let connection = if last { "close" } else { "keep-alive" };
        let length = body.len();
        let text = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: {connection}\r\n\r\n{body}");
        self.stream.write_all(text.as_bytes()).await
    }

    /// Says that nothing more comes, and waits for the other side to say so, too: closing with
    /// unread bytes would reset the connection and lose the last answer.
    pub async fn finish(mut self) {
        if self.stream.shutdown().await.is_ok() {
            let mut rest = [0; 64];
            while matches!(self.stream.read(&mut rest).await, Ok(1..)) {}
        }
    }

    /// Everything up to an empty line; None at the end of the stream before its first byte.
    async fn head(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
                self.buffer.drain(..end + 4);
                return Ok(Some(head));
            }
            if self.buffer.len() > HEAD_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the head is too long"));
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                let clean = self.buffer.is_empty();
                return if clean { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    fields.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

fn says_close(head: &str) -> bool {
    header(head, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
}
