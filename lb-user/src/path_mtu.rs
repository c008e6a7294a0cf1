//! What the network says of packets in the overlay: ICMP errors about the outer ones, which nobody else here knows what to
//! do with, and what the way to a node takes by them (RFC 1191, RFC 8201).
//!
//! Invariant: pure. A way is only ever said to be narrower than before, never narrower than what pods may always send by
//! IPv6, and is as wide as its link again after [`FORGET`]. Not here: who listens (`agent::overlay_errors`), and what
//! follows ([`crate::nodes`]).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{IpNumber, Ipv4HeaderSlice, Ipv6HeaderSlice};
use tokio::time::{Duration, Instant};

use crate::nodes::overhead;

/// After this long a larger packet is tried again (RFC 1191 §6.3, RFC 8201 §4).
const FORGET: Duration = Duration::from_secs(600);
/// What every link has to take of IPv6 (RFC 8200 §5).
const LEAST: u32 = 1_280;
const ICMP_LEN: usize = 8;

/// An ICMP error about a packet in the overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Who sent that packet, and to whom.
    pub local: IpAddr,
    pub remote: IpAddr,
    /// None: it doesn't get there, whatever its size.
    pub mtu: Option<u32>,
}

/// What a message says, as raw sockets give it: IPv4's with its header. `port`: of VXLAN. None: it is about another packet,
/// or no error.
pub fn told(message: &[u8], v4: bool, port: u16) -> Option<Told> {
    let icmp = if v4 { message.get(Ipv4HeaderSlice::from_slice(message).ok()?.slice().len()..)? } else { message };
    let (kind, quote) = (icmp.get(..ICMP_LEN)?, icmp.get(ICMP_LEN..)?);
    let mtu = match (v4, kind[0], kind[1]) {
        // Routers before RFC 1191 say nothing, which is no MTU.
        (true, 3, 4) => Some(u16::from_be_bytes([kind[6], kind[7]]).into()),
        (false, 2, _) => Some(u32::from_be_bytes([kind[4], kind[5], kind[6], kind[7]])),
        (true, 3, _) | (false, 1, _) => None,
        _ => return None,
    };
    let (local, remote, protocol, udp): (IpAddr, IpAddr, IpNumber, &[u8]) = if v4 {
        let header = Ipv4HeaderSlice::from_slice(quote).ok()?;
        let (local, remote): (Ipv4Addr, Ipv4Addr) = (header.source_addr(), header.destination_addr());
        (local.into(), remote.into(), header.protocol(), quote.get(header.slice().len()..)?)
    } else {
        let header = Ipv6HeaderSlice::from_slice(quote).ok()?;
        let (local, remote): (Ipv6Addr, Ipv6Addr) = (header.source_addr(), header.destination_addr());
        (local.into(), remote.into(), header.next_header(), quote.get(header.slice().len()..)?)
    };
    let to = u16::from_be_bytes([*udp.get(2)?, *udp.get(3)?]);
    (protocol == IpNumber::UDP && to == port).then_some(Told { local, remote, mtu })
}

/// What ways to nodes take, where that is less than their links do.
#[derive(Debug, Default)]
pub struct PathMtus {
    known: BTreeMap<IpAddr, (u32, Instant)>,
}

impl PathMtus {
    /// A packet to this node was too large for a way of `mtu`. True: that is news.
    pub fn learn(&mut self, remote: IpAddr, mtu: u32, now: Instant) -> bool {
        let mtu = mtu.max(LEAST + overhead(remote));
        let before = self.known.get(&remote).map(|(mtu, _)| *mtu);
        if before.is_some_and(|before| mtu > before) {
            return false;
        }
        self.known.insert(remote, (mtu, now + FORGET));
        before != Some(mtu)
    }

    /// Forgets what is old. True: there was something.
    pub fn forget(&mut self, now: Instant) -> bool {
        let before = self.known.len();
        self.known.retain(|_, (_, until)| *until > now);
        self.known.len() != before
    }

    /// When something is to be forgotten.
    pub fn next(&self) -> Option<Instant> {
        self.known.values().map(|(_, until)| *until).min()
    }

    pub fn known(&self) -> BTreeMap<IpAddr, u32> {
        self.known.iter().map(|(remote, (mtu, _))| (*remote, *mtu)).collect()
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    const LOCAL4: [u8; 4] = [192, 0, 2, 1];
    const REMOTE4: [u8; 4] = [198, 51, 100, 3];
    const LOCAL6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    const REMOTE6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3];

    /// An error about a datagram to this port, with so many bytes of it.
    fn message(v4: bool, [kind, code]: [u8; 2], word: u32, port: u16, quoted: usize) -> Vec<u8> {
        let (mut about, mut outer) = (Vec::new(), Vec::new());
        let datagram =
            if v4 { PacketBuilder::ipv4(LOCAL4, REMOTE4, 64) } else { PacketBuilder::ipv6(LOCAL6, REMOTE6, 64) };
        datagram.udp(50_000, port).write(&mut about, &[0; 32]).expect("a datagram");
        about.truncate(quoted);
        let mut icmp = vec![kind, code, 0, 0];
        icmp.extend(word.to_be_bytes());
        icmp.extend(about);
        if !v4 {
            return icmp;
        }
        PacketBuilder::ipv4([203, 0, 113, 1], LOCAL4, 64).write(&mut outer, IpNumber::ICMP, &icmp).expect("a message");
        outer
    }

    #[test]
    fn what_is_about_the_overlay_is_understood() {
        let four = |mtu| Some(Told { local: LOCAL4.into(), remote: REMOTE4.into(), mtu });
        let six = |mtu| Some(Told { local: LOCAL6.into(), remote: REMOTE6.into(), mtu });
        for (message, v4, want) in [
            (message(true, [3, 4], 1_400, 4_789, 28), true, four(Some(1_400))),
            (message(true, [3, 4], 0, 4_789, 60), true, four(Some(0))),
            (message(true, [3, 3], 0, 4_789, 60), true, four(None)),
            (message(true, [3, 1], 0, 4_789, 60), true, four(None)),
            (message(true, [11, 0], 0, 4_789, 60), true, None),
            (message(true, [8, 0], 0, 4_789, 60), true, None),
            (message(true, [3, 4], 1_400, 4_790, 60), true, None),
            (message(true, [3, 4], 1_400, 4_789, 23), true, None),
            (message(true, [3, 4], 1_400, 4_789, 12), true, None),
            (message(false, [2, 0], 1_300, 4_789, 48), false, six(Some(1_300))),
            (message(false, [1, 4], 0, 4_789, 80), false, six(None)),
            (message(false, [3, 0], 0, 4_789, 80), false, None),
            (message(false, [2, 0], 1_300, 53, 80), false, None),
            (message(false, [2, 0], 1_300, 4_789, 41), false, None),
            (Vec::new(), true, None),
            (vec![2, 0, 0], false, None),
        ] {
            assert_eq!(told(&message, v4, 4_789), want, "{message:02x?}");
        }
    }

    #[test]
    fn ways_become_narrower_until_they_are_tried_again() {
        let (mut mtus, start) = (PathMtus::default(), Instant::now());
        let [four, six]: [IpAddr; 2] = [REMOTE4.into(), REMOTE6.into()];
        assert!(mtus.learn(four, 1_400, start));
        assert!(!mtus.learn(four, 1_400, start + Duration::from_secs(100)), "the same is no news");
        assert!(!mtus.learn(four, 1_450, start + Duration::from_secs(200)), "nobody says that a way is wider");
        assert!(mtus.learn(six, 0, start), "as narrow as it may be");
        assert_eq!(mtus.known(), BTreeMap::from([(four, 1_400), (six, 1_350)]));
        assert_eq!(mtus.next(), Some(start + FORGET));
        assert!(mtus.forget(start + FORGET) && !mtus.forget(start + FORGET));
        assert_eq!(mtus.known(), BTreeMap::from([(four, 1_400)]), "it was heard of later");
        assert!(mtus.forget(start + FORGET + Duration::from_secs(100)) && mtus.next().is_none());
    }
}
