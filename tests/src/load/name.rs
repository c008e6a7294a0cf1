//! A name and its addresses, asked of the cluster's DNS as the C library does.
//!
//! Invariant: nothing is kept: each call asks. Not here: who calls, and what is done with a failure.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name as Wire, RecordType};
use tokio::net::UdpSocket;
use tokio::time::timeout;

/// As `resolv.conf` has them where it says nothing: how long an answer may take, and how often one is asked for.
const PATIENCE: Duration = Duration::from_secs(5);
const ATTEMPTS: usize = 2;

/// Who is meant, and who is asked for it.
#[derive(Clone, Debug)]
pub struct Name {
    pub name: String,
    pub port: u16,
    /// One a family at the most.
    pub servers: Vec<IpAddr>,
}

impl Name {
    /// `db.default.svc.cluster.local:5432`
    pub fn parse(text: &str, servers: &[IpAddr]) -> Option<Name> {
        let (name, port) = text.rsplit_once(':')?;
        Some(Name { name: name.to_owned(), port: port.parse().ok()?, servers: servers.to_vec() })
    }

    /// Its address of a family.
    pub async fn find(&self, v4: bool) -> io::Result<SocketAddr> {
        let mut last = io::ErrorKind::TimedOut.into();
        for _ in 0..ATTEMPTS {
            match timeout(PATIENCE, self.ask(v4)).await {
                Ok(Ok(addr)) => return Ok(SocketAddr::new(addr, self.port)),
                Ok(Err(error)) => last = error,
                Err(_) => {}
            }
        }
        Err(last)
    }

    async fn ask(&self, v4: bool) -> io::Result<IpAddr> {
        let server = self.servers.iter().find(|server| server.is_ipv4() == v4).ok_or(io::ErrorKind::NotFound)?;
        let any: IpAddr = if v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect((*server, 53)).await?;
        let mut name = Wire::from_ascii(&self.name).map_err(io::Error::other)?;
        name.set_fqdn(true);
        let mut question = Message::new(1, MessageType::Query, OpCode::Query);
        question.metadata.recursion_desired = true;
        question.add_query(Query::query(name, if v4 { RecordType::A } else { RecordType::AAAA }));
        socket.send(&question.to_vec().map_err(io::Error::other)?).await?;
        let mut buffer = [0; 1_500];
        let len = socket.recv(&mut buffer).await?;
        let answer = Message::from_vec(&buffer[..len]).map_err(io::Error::other)?;
        let found = answer.answers.iter().find_map(|record| record.data.ip_addr());
        found.ok_or_else(|| io::Error::other(format!("{} has no such address", self.name)))
    }
}
