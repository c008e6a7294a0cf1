//! One probe of one endpoint.
//!
//! Invariant: it ends within its time, whatever the endpoint does, and reads no more than it needs.

use std::io::{Error, ErrorKind, Result};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::check::Kind;
use super::{Check, grpc};

/// A status line is not longer.
const MAX_LINE: usize = 1_024;

/// Why it failed, in words.
pub(super) async fn probe(check: &Check, at: SocketAddr, tls: &TlsConnector) -> std::result::Result<(), String> {
    let asked = async {
        match &check.kind {
            Kind::Tcp => connect(at).await.map(drop),
            Kind::Http { tls: false, path, host } => http(connect(at).await?, at, path, host.as_deref()).await,
            Kind::Http { tls: true, path, host } => {
                let name = host.as_deref().and_then(|host| ServerName::try_from(host.to_owned()).ok());
                let name = name.unwrap_or(ServerName::IpAddress(at.ip().into()));
                http(tls.connect(name, connect(at).await?).await?, at, path, host.as_deref()).await
            }
            Kind::Grpc { service } => grpc::ask(connect(at).await?, at, service).await,
            Kind::Udp => udp(at).await,
        }
    };
    match timeout(check.timeout, asked).await {
        Ok(result) => result.map_err(|error| said(&error)),
        // Whom nobody refuses, UDP has.
        Err(_) if check.kind == Kind::Udp => Ok(()),
        Err(_) => Err(format!("no answer within {:?}", check.timeout)),
    }
}

fn said(error: &Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionRefused => "connection refused".into(),
        ErrorKind::ConnectionReset => "connection reset".into(),
        ErrorKind::HostUnreachable => "host unreachable".into(),
        ErrorKind::NetworkUnreachable => "network unreachable".into(),
        ErrorKind::UnexpectedEof => "connection closed without an answer".into(),
        _ => error.to_string(),
    }
}

async fn connect(at: SocketAddr) -> Result<TcpStream> {
    let socket = if at.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A port that waits a minute after every probe would be one too many.
    socket.set_zero_linger()?;
    socket.connect(at).await
}

/// 200 to 399 is well, as Kubernetes has it.
async fn http(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    at: SocketAddr,
    path: &str,
    host: Option<&str>,
) -> Result<()> {
    let host = host.map_or_else(|| at.to_string(), str::to_owned);
    let version = env!("CARGO_PKG_VERSION");
    let text = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: stellwerk/{version}\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(text.as_bytes()).await?;
    stream.flush().await?;
    let mut line = Vec::with_capacity(128);
    while !line.contains(&b'\n') && line.len() < MAX_LINE {
        if stream.read_buf(&mut line).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
    let text = String::from_utf8_lossy(&line);
    let status = text.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)).and_then(|code| code.parse::<u16>().ok());
    match status {
        Some(200..=399) => Ok(()),
        Some(code) => Err(Error::other(format!("HTTP status {code}"))),
        None => Err(Error::other("its answer is not HTTP/1")),
    }
}

/// Waits for an ICMP error; anything else is well.
async fn udp(at: SocketAddr) -> Result<()> {
    let any = if at.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(at).await?;
    socket.send(&[]).await?;
    socket.recv(&mut [0; 1]).await.map(drop)
}
