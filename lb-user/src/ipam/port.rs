//! Host ports: ports of the node that lead to a pod's, as a lease has them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::intent::Protocol;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostPort {
    pub host_port: u16,
    pub container_port: u16,
    pub protocol: Protocol,
    /// At this address of the node alone; an unspecified one: at all of its family; none: at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

impl HostPort {
    /// Whether both want the same port at an address.
    pub fn meets(&self, other: &HostPort) -> bool {
        let same = (self.host_port, self.protocol) == (other.host_port, other.protocol);
        same && match (self.host_ip, other.host_ip) {
            (Some(a), Some(b)) => a == b || (a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified())),
            _ => true,
        }
    }

    /// Whether it may lead to this address of the pod.
    pub fn leads_to(&self, addr: &IpAddr) -> bool {
        self.host_ip.is_none_or(|ip| ip.is_ipv4() == addr.is_ipv4())
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            None => write!(f, "{}", self.host_port)?,
            Some(ip) => write!(f, "{}", SocketAddr::new(ip, self.host_port))?,
        }
        write!(f, "/{}", self.protocol.name())
    }
}
