//! Pods' host ports as services, which the agent's loop brings into force, and the pods themselves, for policies.
//!
//! Invariant: they are those of the leases on disk. Not here: whose a host port is ([`crate::ipam`]), and whether a
//! service of the cluster or of the configuration has its place ([`crate::plan`]).

use std::net::SocketAddr;
use std::sync::Arc;

use crate::apply::Paths;
use crate::intent::{Endpoint, EndpointState, ServicePort};
use crate::ipam::{HostPort, Key, Lease, State, store};

use super::wire::host_name;
use crate::policy::LeasedPod;

/// Those of all pods.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostPorts {
    /// Rises with every change.
    pub revision: u64,
    /// Ordered by name.
    pub services: Vec<ServicePort>,
    /// All that have a lease; another one with each change.
    pub pods: Arc<Vec<LeasedPod>>,
}

impl HostPorts {
    /// As an agent before left them; none, where nothing can be read: the keeper says why.
    pub fn read(paths: &Paths) -> HostPorts {
        store::read(&paths.ipam()).map(|state| HostPorts::of(&state, 0)).unwrap_or_default()
    }

    pub(super) fn of(state: &State, revision: u64) -> HostPorts {
        HostPorts { revision, services: of_all(state), pods: Arc::new(leased(state)) }
    }
}

/// A pod by what the runtime calls it.
fn leased(state: &State) -> Vec<LeasedPod> {
    let of = |(key, lease): (&Key, &Lease)| LeasedPod {
        interface: host_name(key),
        namespace: lease.namespace.clone(),
        name: lease.pod.clone(),
        addresses: lease.addresses.clone(),
    };
    state.leases.iter().map(of).collect()
}

fn of_all(state: &State) -> Vec<ServicePort> {
    let mut all: Vec<ServicePort> = state.leases.iter().flat_map(|(key, lease)| of(key, lease)).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

pub(super) fn of(key: &Key, lease: &Lease) -> impl Iterator<Item = ServicePort> {
    lease.ports.iter().map(|port| service(key, lease, port))
}

fn service(key: &Key, lease: &Lease, port: &HostPort) -> ServicePort {
    let at = port.host_ip.map(|ip| SocketAddr::new(ip, port.host_port));
    let own = port.host_ip.filter(|ip| !ip.is_unspecified());
    let state = EndpointState::Ready;
    let endpoint = |addr| Endpoint { addr, port: port.container_port, weight: 1, node: None, state };
    ServicePort {
        namespace: ServicePort::HOST_PORT.into(),
        name: host_name(key),
        port_name: at.map_or(String::new(), |at| at.to_string()),
        protocol: port.protocol,
        port: port.host_port,
        node_port: own.is_none().then_some(port.host_port),
        addresses: own.into_iter().collect(),
        affinity: None,
        traffic: Default::default(),
        endpoints: lease.addresses.iter().filter(|addr| port.leads_to(addr)).copied().map(endpoint).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intent::Protocol;

    #[test]
    fn where_they_are_reached_and_lead_to() {
        let key = Key { container: "c1".into(), interface: "eth0".into() };
        let addresses = vec!["172.27.1.9".parse().unwrap(), "fd00::9".parse().unwrap()];
        // At which address; the service's name, its node port, its addresses, whom it leads to.
        for (ip, want) in [
            (None, "hostPort/stpod6f19677b26:8080 8080 [] 172.27.1.9:80 [fd00::9]:80"),
            (Some("0.0.0.0"), "hostPort/stpod6f19677b26:0.0.0.0:8080 8080 [] 172.27.1.9:80"),
            (Some("::"), "hostPort/stpod6f19677b26:[::]:8080 8080 [] [fd00::9]:80"),
            (Some("10.0.0.5"), "hostPort/stpod6f19677b26:10.0.0.5:8080 - [10.0.0.5] 172.27.1.9:80"),
        ] {
            let host_ip = ip.map(|ip| ip.parse().unwrap());
            let port = HostPort { host_port: 8080, container_port: 80, protocol: Protocol::Tcp, host_ip };
            let lease = Lease { addresses: addresses.clone(), ports: vec![port], ..Lease::default() };
            let service = of(&key, &lease).next().unwrap();
            let node_port = service.node_port.map_or("-".into(), |port| port.to_string());
            let to: Vec<_> = service.endpoints.iter().map(|e| SocketAddr::new(e.addr, e.port).to_string()).collect();
            let said = format!("{} {node_port} {:?} {}", service.full_name(), service.addresses, to.join(" "));
            assert_eq!(said, want);
        }
    }
}
