//! `grpc.health.v1.Health/Check` over HTTP/2 without TLS.
//!
//! Invariant: SERVING alone is well.

use std::io::{Error, Result};
use std::net::SocketAddr;

use bytes::{BufMut, Bytes, BytesMut};
use http::{Request, StatusCode};
use tokio::net::TcpStream;

/// An answer is a message of a few bytes.
const MAX_ANSWER: usize = 1_024;

pub(super) async fn ask(stream: TcpStream, at: SocketAddr, service: &str) -> Result<()> {
    let (send, connection) = h2::client::handshake(stream).await.map_err(Error::other)?;
    let answer = exchange(send, at, service);
    tokio::select! {
        answer = answer => answer,
        ended = connection => Err(ended.err().map_or_else(|| Error::other("connection closed"), Error::other)),
    }
}

async fn exchange(send: h2::client::SendRequest<Bytes>, at: SocketAddr, service: &str) -> Result<()> {
    let request = Request::post(format!("http://{at}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .map_err(Error::other)?;
    let mut send = send.ready().await.map_err(Error::other)?;
    let (response, mut body) = send.send_request(request, false).map_err(Error::other)?;
    body.send_data(message(service), true).map_err(Error::other)?;
    let response = response.await.map_err(Error::other)?;
    if response.status() != StatusCode::OK {
        return Err(Error::other(format!("HTTP status {}", response.status().as_u16())));
    }
    let status = response.headers().get("grpc-status").cloned();
    let mut body = response.into_body();
    let mut answer = BytesMut::new();
    while let Some(part) = body.data().await {
        let part = part.map_err(Error::other)?;
        body.flow_control().release_capacity(part.len()).map_err(Error::other)?;
        answer.extend_from_slice(&part[..part.len().min(MAX_ANSWER - answer.len())]);
    }
    let trailers = body.trailers().await.map_err(Error::other)?;
    let status = status.or_else(|| trailers?.get("grpc-status").cloned());
    match status.as_ref().map(|status| status.to_str().unwrap_or("?")) {
        None | Some("0") => serving(&answer),
        Some(code) => Err(Error::other(format!("gRPC status {code}"))),
    }
}

/// HealthCheckRequest { string service = 1 }, with gRPC's five bytes before it.
fn message(service: &str) -> Bytes {
    let mut request = BytesMut::new();
    if !service.is_empty() {
        request.put_u8(0x0a);
        varint(service.len(), &mut request);
        request.put_slice(service.as_bytes());
    }
    let mut message = BytesMut::new();
    message.put_u8(0);
    message.put_u32(request.len() as u32);
    message.put_slice(&request);
    message.freeze()
}

fn varint(mut number: usize, to: &mut BytesMut) {
    while number > 0x7f {
        to.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    to.put_u8(number as u8);
}

/// HealthCheckResponse { ServingStatus status = 1 }
fn serving(answer: &[u8]) -> Result<()> {
    let status = match answer {
        [0, 0, 0, 0, 0] => 0,
        [0, 0, 0, 0, 2, 0x08, status, ..] => *status,
        _ => return Err(Error::other("its answer is not gRPC's")),
    };
    let name = match status {
        1 => return Ok(()),
        0 => "UNKNOWN",
        2 => "NOT_SERVING",
        3 => "SERVICE_UNKNOWN",
        _ => "of another status",
    };
    Err(Error::other(format!("it says that it is {name}")))
}
