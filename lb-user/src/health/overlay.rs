//! What follows from failing probes for a service's endpoints.
//!
//! Invariant: a pure function. Of each family those that fail leave while another one can serve; where none can, all
//! stay as sources say (open), or none serves (closed). Who comes back is at once what sources say.

use std::net::IpAddr;
use std::time::Duration;

use super::Check;
use crate::intent::{Endpoint, EndpointState, ServicePort};
use crate::moment::Moment;

/// The ports as they are to be planned; None: as sources say. `failing`: since when what is probed there fails.
pub fn overlay(
    ports: &[ServicePort],
    check: &Check,
    failing: impl Fn(IpAddr, u16) -> Option<Moment>,
    draining: Duration,
) -> Option<Vec<ServicePort>> {
    let mut all = ports.to_vec();
    for port in &mut all {
        let protocol = port.protocol;
        let since = |e: &Endpoint| failing(e.addr, check.port(protocol, e.port)?);
        for v4 in [true, false] {
            let mut family: Vec<_> = port.endpoints.iter_mut().filter(|e| e.addr.is_ipv4() == v4).collect();
            let since: Vec<Option<Moment>> = family.iter().map(|e| since(e)).collect();
            leave(&mut family, &since, check.open, draining);
        }
    }
    (all != ports).then_some(all)
}

fn leave(family: &mut [&mut Endpoint], since: &[Option<Moment>], open: bool, draining: Duration) {
    use EndpointState::{Draining, Ending, Ready, Spare};
    let well = |is: fn(&EndpointState) -> bool| family.iter().zip(since).any(|(e, s)| s.is_none() && is(&e.state));
    let ready = well(|state| matches!(state, Ready));
    let spare = well(|state| matches!(state, Spare));
    if !ready && !spare && !well(|state| matches!(state, Draining { .. })) && open {
        return;
    }
    for (endpoint, since) in family.iter_mut().zip(since) {
        endpoint.state = match (endpoint.state, since) {
            (Ending { until }, _) => Ending { until },
            (Draining { until }, Some(since)) => Ending { until: until.min(*since + draining) },
            (Ready | Spare, Some(since)) => Ending { until: *since + draining },
            // It was for others while somebody nearer could serve.
            (Spare, None) if !ready => Ready,
            (state, None) => state,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intent::Protocol;

    /// Endpoints as `r`eady, `s`pare, `d`raining or `e`nding, in capitals if they fail, and what they become.
    #[test]
    fn who_leaves() {
        let at = |second| Moment::START + Duration::from_secs(second);
        // Failing since 100, draining 30; sources' deadlines are at 200.
        for (open, states, want) in [
            (true, "rr", "rr"),
            (true, "rR", "re130"),
            (true, "RR", "RR"),
            (false, "RR", "e130e130"),
            (true, "Rs", "e130r"),
            (true, "rSs", "re130s"),
            (true, "RS", "RS"),
            (false, "RS", "e130e130"),
            // Better one that is about to go than one that fails.
            (true, "Rd", "e130d200"),
            (true, "RD", "RD"),
            (false, "RDe", "e130e130e200"),
            (true, "rE", "rE"),
            (true, "", ""),
        ] {
            let endpoint = |(i, c): (usize, char)| Endpoint {
                addr: [10, 0, 0, i as u8].into(),
                port: 80,
                weight: 1,
                node: None,
                state: match c.to_ascii_lowercase() {
                    'r' => EndpointState::Ready,
                    's' => EndpointState::Spare,
                    'd' => EndpointState::Draining { until: at(200) },
                    _ => EndpointState::Ending { until: at(200) },
                },
            };
            let mut endpoints: Vec<Endpoint> = states.chars().enumerate().map(endpoint).collect();
            // Of the other family one that is well: it changes nothing.
            endpoints.push(Endpoint { addr: "fd00::1".parse().unwrap(), ..endpoint((0, 'r')) });
            let port = ServicePort {
                namespace: "default".into(),
                name: "a".into(),
                port_name: String::new(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: None,
                addresses: Vec::new(),
                affinity: None,
                traffic: Default::default(),
                endpoints,
            };
            let check = Check { open, ..Check::parse("tcp port=99").unwrap().unwrap() };
            let fails = |addr: IpAddr, port: u16| {
                assert_eq!(port, 99);
                let i = match addr {
                    IpAddr::V4(v4) => usize::from(v4.octets()[3]),
                    IpAddr::V6(_) => return None,
                };
                states.chars().nth(i).is_some_and(char::is_uppercase).then(|| at(100))
            };
            let ports = [port];
            let after = overlay(&ports, &check, fails, Duration::from_secs(30));
            let same = after.is_none();
            let after = after.unwrap_or_else(|| ports.to_vec());
            let left = |until: Moment| until.since(at(0)).as_secs();
            let shown: Vec<String> = after[0].endpoints[..states.len()]
                .iter()
                .map(|e| match e.state {
                    EndpointState::Ready => "r".into(),
                    EndpointState::Spare => "s".into(),
                    EndpointState::Draining { until } => format!("d{}", left(until)),
                    EndpointState::Ending { until } => format!("e{}", left(until)),
                })
                .collect();
            let plain = want.to_lowercase().replace("rd", "rd200").replace('e', "e200");
            assert_eq!(shown.concat(), if want == states { plain } else { want.to_owned() }, "{open} {states}");
            assert_eq!(same, want == states, "{open} {states}");
        }
    }
}
