//! Who may ask, and how often.
//!
//! Invariant: nobody from outside gets an answer but that he gets none, and what it takes to know clients is
//! bounded. Not here: what they ask.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ipnet::IpNet;

/// Clients whose rate is known at once. Beyond it the ones that were silent for a second are forgotten, then all.
const CLIENTS: usize = 16_384;

#[derive(Debug)]
pub struct Guard {
    allow: Vec<IpNet>,
    transfer: Vec<IpNet>,
    /// Queries a second; 0: any.
    rate: u32,
    clients: Mutex<HashMap<IpAddr, Bucket>>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    since: Instant,
}

impl Guard {
    pub fn new(allow: Vec<IpNet>, transfer: Vec<IpNet>, rate: u32) -> Self {
        Guard { allow, transfer, rate, clients: Mutex::default() }
    }

    pub fn is_inside(&self, client: IpAddr) -> bool {
        client.is_loopback() || self.allow.iter().any(|net| net.contains(&client))
    }

    pub fn may_transfer(&self, client: IpAddr) -> bool {
        self.transfer.iter().any(|net| net.contains(&client))
    }

    /// Takes one of what a client has left of its rate, a second's worth at the most.
    pub fn admits(&self, client: IpAddr, now: Instant) -> bool {
        if self.rate == 0 {
            return true;
        }
        let rate = f64::from(self.rate);
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.len() >= CLIENTS {
            clients.retain(|_, bucket| now.duration_since(bucket.since) < Duration::from_secs(1));
            if clients.len() >= CLIENTS {
                clients.clear();
            }
        }
        let bucket = clients.entry(of_one(client)).or_insert(Bucket { left: rate, since: now });
        let gained = now.duration_since(bucket.since).as_secs_f64() * rate;
        bucket.left = (bucket.left + gained).min(rate);
        bucket.since = now;
        let admitted = bucket.left >= 1.0;
        if admitted {
            bucket.left -= 1.0;
        }
        admitted
    }
}

/// A host has as many addresses of its IPv6 network as it likes.
fn of_one(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(addr) => Ipv6Addr::from_bits(addr.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(rate: u32) -> Guard {
        let net = |text: &str| text.parse().unwrap();
        Guard::new(vec![net("10.20.0.0/24"), net("fd00:27::/32")], vec![net("10.20.0.9/32")], rate)
    }

    #[test]
    fn only_inside_networks_are_answered() {
        for (client, inside, transfer) in [
            ("10.20.0.7", true, false),
            ("10.20.0.9", true, true),
            ("10.20.1.7", false, false),
            ("127.0.0.1", true, false),
            ("fd00:27::1", true, false),
            ("2001:db8::1", false, false),
        ] {
            let client = client.parse().unwrap();
            assert_eq!((guard(0).is_inside(client), guard(0).may_transfer(client)), (inside, transfer), "{client}");
        }
    }

    #[test]
    fn each_client_has_its_own_rate() {
        let (guard, start) = (guard(10), Instant::now());
        let many = |client: &str, at: u64| {
            let now = start + Duration::from_millis(at);
            (0..100).filter(|_| guard.admits(client.parse().unwrap(), now)).count()
        };
        assert_eq!((many("10.20.0.7", 0), many("10.20.0.8", 0)), (10, 10));
        assert_eq!((many("10.20.0.7", 500), many("10.20.0.7", 60_000)), (5, 10));
        // Whatever it calls itself.
        assert_eq!((many("fd00:27::1", 0), many("fd00:27::2", 0)), (10, 0));
    }

    #[test]
    fn what_is_known_of_clients_is_bounded() {
        let (guard, now) = (guard(1), Instant::now());
        for i in 0..100_000u32 {
            assert!(guard.admits(std::net::Ipv4Addr::from_bits(i).into(), now));
        }
        assert!(guard.clients.lock().unwrap().len() <= CLIENTS);
    }
}
