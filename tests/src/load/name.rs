//! A name and its addresses, asked of the cluster's DNS as an app's resolver does.
//!
//! Invariant: an address is asked for again once its time is over; while nobody answers the last one holds.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name as Wire, RecordType};
use tokio::net::UdpSocket;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_millis(500);

/// Who is meant, and who is asked for it.
#[derive(Clone, Debug)]
pub struct Name {
    pub name: String,
    pub port: u16,
    /// One a family at the most.
    pub servers: Vec<IpAddr>,
}

/// What is known of a name, by family.
#[derive(Debug, Default)]
pub struct Known(RefCell<HashMap<bool, (IpAddr, Instant)>>);

impl Name {
    /// `db.default.svc.cluster.local:5432`
    pub fn parse(text: &str, servers: &[IpAddr]) -> Option<Name> {
        let (name, port) = text.rsplit_once(':')?;
        Some(Name { name: name.to_owned(), port: port.parse().ok()?, servers: servers.to_vec() })
    }

    /// Its address of a family.
    pub async fn find(&self, v4: bool, known: &Known) -> io::Result<SocketAddr> {
        let last = known.0.borrow().get(&v4).copied();
        if let Some((addr, _)) = last.filter(|(_, until)| Instant::now() < *until) {
            return Ok(SocketAddr::new(addr, self.port));
        }
        match (tokio::time::timeout(PATIENCE, self.ask(v4)).await, last) {
            (Ok(Ok((addr, ttl))), _) => {
                known.0.borrow_mut().insert(v4, (addr, Instant::now() + ttl));
                Ok(SocketAddr::new(addr, self.port))
            }
            (_, Some((addr, _))) => Ok(SocketAddr::new(addr, self.port)),
            (Ok(Err(error)), None) => Err(error),
            (Err(_), None) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    async fn ask(&self, v4: bool) -> io::Result<(IpAddr, Duration)> {
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
        let found = answer.answers.iter().find_map(|r| Some((r.data.ip_addr()?, Duration::from_secs(r.ttl.into()))));
        found.ok_or_else(|| io::Error::other(format!("{} has no such address", self.name)))
    }
}
