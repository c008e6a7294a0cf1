//! What is said unasked when an address comes here: gratuitous ARP (RFC 5227 §3) and unsolicited neighbour
//! advertisements (RFC 4861 §7.2.6), so that those who knew another owner send here from now on.
//!
//! Invariant: it is said at once and then [`TIMES`] a second apart, for as long as the address stays here; an address
//! that was here before is not told of again. Not here: answers to questions (`lb_common::path::announce`).

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use lb_common::apply::fold;
use lb_common::table::Announced;
use lb_common::wire::header::ICMP6;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

use super::sum;

/// All that this node announces.
pub type All = BTreeMap<IpAddr, Announced>;

/// How often it is said, the first time included.
pub const TIMES: u32 = 6;
const APART: Duration = Duration::from_secs(1);

const BROADCAST: [u8; 6] = [0xff; 6];
const ALL_NODES: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// Begins; what is in `all` now has been told of before. Ends with its sender.
pub fn spawn(mut all: watch::Receiver<All>) {
    let mut told = all.borrow_and_update().clone();
    _ = tokio::spawn(async move {
        let mut left: BTreeMap<IpAddr, u32> = BTreeMap::new();
        let mut ticks = interval(APART);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                changed = all.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = all.borrow_and_update().clone();
                    left.retain(|addr, _| now.contains_key(addr));
                    let new: Vec<IpAddr> = now.iter().filter(|(a, by)| told.get(a) != Some(by)).map(|(a, _)| *a).collect();
                    if left.is_empty() {
                        // Nobody has waited for these ticks: the next one is to be a whole one away.
                        ticks.reset();
                    }
                    left.extend(new.iter().map(|addr| (*addr, TIMES)));
                    told = now;
                    tell(&told, &mut left, |addr| new.contains(&addr));
                }
                _ = ticks.tick(), if !left.is_empty() => tell(&told, &mut left, |_| true),
            }
        }
    });
}

fn tell(all: &All, left: &mut BTreeMap<IpAddr, u32>, which: impl Fn(IpAddr) -> bool) {
    let socket = match Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0))) {
        Ok(socket) => socket,
        Err(error) => return warn!("nobody is told of addresses that are announced here now: {error}"),
    };
    left.retain(|addr, left| {
        let Some(by) = all.get(addr).filter(|_| which(*addr)) else { return true };
        for frame in frames(*addr, by.mac.0) {
            if let Err(error) = out(by.link).and_then(|to| socket.send_to(&frame, &to)) {
                warn!("telling of {addr}: {error}");
            }
        }
        *left -= 1;
        *left > 0
    });
}

/// A link, as whoever sends whole frames names it.
#[expect(unsafe_code, reason = "no library makes a sockaddr_ll of an index")]
fn out(link: u32) -> io::Result<SockAddr> {
    // SAFETY: the storage is zeroed, large enough for any kind of address, and what is written is one of the family
    // and the length that are said.
    let ((), to) = unsafe {
        SockAddr::try_init(|storage, len| {
            let ll = storage.cast::<libc::sockaddr_ll>();
            (*ll).sll_family = libc::AF_PACKET as u16;
            (*ll).sll_ifindex = link as i32;
            (*ll).sll_halen = 6;
            *len = size_of::<libc::sockaddr_ll>() as u32;
            Ok(())
        })
    }?;
    Ok(to)
}

/// What tells of an address: of IPv4 as a request and as a reply, since either is overheard by some alone.
fn frames(addr: IpAddr, mac: [u8; 6]) -> Vec<Vec<u8>> {
    match addr {
        IpAddr::V4(addr) => {
            let arp = |operation: u8| {
                let head = [0, 1, 8, 0, 6, 4, 0, operation];
                let target = if operation == 1 { [0; 6] } else { BROADCAST };
                [&BROADCAST[..], &mac, &[8, 6], &head, &mac, &addr.octets(), &target, &addr.octets()].concat()
            };
            vec![arp(1), arp(2)]
        }
        IpAddr::V6(addr) => {
            let to = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
            let message =
                |check: [u8; 2]| [&[136, 0][..], &check, &[0x20, 0, 0, 0], &addr.octets(), &[2, 1], &mac].concat();
            let pseudo = [&addr.octets()[..], &to.octets(), &[0, 32, 0, ICMP6]].concat();
            let check = !fold(sum(&message([0; 2])) + sum(&pseudo));
            let ip = [0x60, 0, 0, 0, 0, 32, ICMP6, 255];
            let message = message(check.to_ne_bytes());
            vec![[&ALL_NODES[..], &mac, &[0x86, 0xdd], &ip, &addr.octets(), &to.octets(), &message].concat()]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arp() {
        let mac = [2, 0, 0, 0, 0, 1];
        let [request, reply] = &frames([192, 168, 20, 100].into(), mac)[..] else { panic!("two frames") };
        let mut want = vec![0xff; 6];
        want.extend(mac);
        want.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        want.extend(mac);
        want.extend([192, 168, 20, 100, 0, 0, 0, 0, 0, 0, 192, 168, 20, 100]);
        assert_eq!(*request, want);
        want[21] = 2;
        want[32..38].fill(0xff);
        assert_eq!(*reply, want);
    }

    #[test]
    fn advertisement() {
        let addr: std::net::Ipv6Addr = "fd00:20::1:64".parse().unwrap();
        let [frame] = &frames(addr.into(), [2, 0, 0, 0, 0, 1])[..] else { panic!("one frame") };
        assert_eq!(frame.len(), 14 + 40 + 32);
        assert_eq!(frame[..6], ALL_NODES);
        assert_eq!((frame[21], frame[54], frame[58]), (255, 136, 0x20));
        // The checksum of all and the pseudo header is right: the sum has no bit unset.
        let pseudo = u64::from(32u16.to_be()) + u64::from(u16::from(ICMP6).to_be());
        assert_eq!(fold(sum(&frame[22..]) + pseudo), 0xffff);
    }
}
