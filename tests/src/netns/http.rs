//! One question by HTTP/1.1, over plain TCP from inside a namespace.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

use super::Ns;

/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// What was answered.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    /// Lines of the head, as they came.
    pub head: String,
    pub body: String,
}

impl Reply {
    /// A header's value; empty without it.
    pub fn header(&self, name: &str) -> &str {
        let mut pairs = self.head.lines().filter_map(|line| line.split_once(':'));
        pairs.find(|(key, _)| key.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value.trim())
    }
}

/// Asks for a path; `headers` are whole lines.
pub fn get(ns: &Ns, at: SocketAddr, path: &str, headers: &[&str]) -> Result<Reply> {
    let lines: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n{lines}\r\n");
    let bytes = ns.run(|| -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&at, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(request.as_bytes())?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        Ok(bytes)
    })?;
    let bytes = bytes.with_context(|| format!("asking {at} for {path}"))?;
    let text = String::from_utf8(bytes).context("an answer that is no text")?;
    let (head, body) = text.split_once("\r\n\r\n").context("an answer without an end of its head")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("an answer without a status")?;
    Ok(Reply { status, head: head.to_owned(), body: body.to_owned() })
}
