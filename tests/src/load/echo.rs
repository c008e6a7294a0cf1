//! Echo servers: TCP and UDP on one port, and each answer says who gave it.

use std::net::SocketAddr;
use std::rc::Rc;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::task::Task;
use crate::netns::Ns;

/// Serves in a namespace until the value is dropped. TCP: the name and the client's address on
/// a line, then every byte as it came. UDP: the name, a space, and the datagram.
pub fn serve(ns: &Ns, name: &str, addrs: &[SocketAddr]) -> Result<Task> {
    let (name, addrs) = (name.to_owned(), addrs.to_vec());
    Task::start(ns, async move || {
        let name: Rc<str> = name.into();
        for &addr in &addrs {
            let tcp = TcpListener::bind(addr).await.with_context(|| format!("TCP {addr}"))?;
            let udp = UdpSocket::bind(addr).await.with_context(|| format!("UDP {addr}"))?;
            tokio::task::spawn_local(accept(tcp, name.clone()));
            tokio::task::spawn_local(datagrams(udp, name.clone()));
        }
        Ok(std::future::pending())
    })
}

async fn accept(listener: TcpListener, name: Rc<str>) {
    loop {
        let Ok((stream, client)) = listener.accept().await else { continue };
        let name = name.clone();
        tokio::task::spawn_local(async move {
            let _ = echo(stream, format!("{name} {}\n", client.ip())).await;
        });
    }
}

async fn echo(mut stream: TcpStream, greeting: String) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(greeting.as_bytes()).await?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            return stream.shutdown().await;
        }
        stream.write_all(&buffer[..n]).await?;
    }
}

async fn datagrams(socket: UdpSocket, name: Rc<str>) {
    let mut buffer = vec![0; 64 << 10];
    let prefix = format!("{name} ");
    loop {
        let Ok((n, client)) = socket.recv_from(&mut buffer).await else { continue };
        let answer = [prefix.as_bytes(), &buffer[..n]].concat();
        let _ = socket.send_to(&answer, client).await;
    }
}
