//! IPv6 prefixes that are exchanged for others (RFC 6296).
//!
//! Pure: an address in, an address out. Invariant: no checksum over the address changes. Not here: which
//! packets are translated so ([`super::nat`]).

use crate::apply::fold;
use crate::table::PrefixPair;
use crate::wire::Ip6;

/// RFC 6296 §3: another prefix, and one 16-bit word changed by what that does to the checksum: the
/// fourth where the prefix ends before it (§3.4), else the first behind it that is not 0xffff (§3.5).
#[inline(always)]
pub fn exchange(addr: Ip6, pair: &PrefixPair<Ip6>, back: bool) -> Option<Ip6> {
    let (to, adjust) = if back { (pair.inside, !pair.adjust) } else { (pair.outside, pair.adjust) };
    let mut words = addr.raw();
    let to = to.raw();
    for i in 0..4 {
        // Bits of this word that are of the prefix.
        let bits = pair.len.saturating_sub(i as u32 * 32).min(32);
        let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0).to_be();
        words[i] = to[i] & mask | words[i] & !mask;
    }
    // An interface's id of zeros stands for all routers of a subnet (§3.7).
    if pair.len > 48 && words[2] == 0 && words[3] == 0 {
        return None;
    }
    let halves = |word: u32| -> [u16; 2] { zerocopy::transmute!(word) };
    let added = |word: u16| match fold(word as u64 + adjust as u64) {
        0xffff => 0,
        sum => sum,
    };
    if pair.len <= 48 {
        let [third, fourth] = halves(words[1]);
        // All ones can't be told from zero: such an address is not translated (§3.4).
        if fourth == 0xffff {
            return None;
        }
        words[1] = zerocopy::transmute!([third, added(fourth)]);
        return Some(Ip6::from_raw(words));
    }
    for i in 2..4 {
        let [high, low] = halves(words[i]);
        if high != 0xffff {
            words[i] = zerocopy::transmute!([added(high), low]);
            return Some(Ip6::from_raw(words));
        }
        if low != 0xffff {
            words[i] = zerocopy::transmute!([high, added(low)]);
            return Some(Ip6::from_raw(words));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::Diff;
    use crate::path::parse::Ip;
    use core::net::Ipv6Addr;

    fn ip(text: &str) -> Ip6 {
        text.parse::<Ipv6Addr>().unwrap().into()
    }

    #[test]
    fn prefixes_are_exchanged_as_in_rfc_6296() {
        // §3.1's and §3.2's own example is the first.
        for (len, inside, outside, from, to) in [
            (48, "fd01:203:405::", "2001:db8:1::", "fd01:203:405:1::1234", "2001:db8:1:d550::1234"),
            (40, "fd01:203::", "2001:db8::", "fd01:203:5:1::1234", "2001:db8:5:d14c::1234"),
            (64, "fd01:203:405:1::", "2001:db8:1:2::", "fd01:203:405:1::1234", "2001:db8:1:2:d54e::1234"),
            (64, "fd01:203:405:1::", "2001:db8:1:2::", "fd01:203:405:1:ffff:0:0:9", "2001:db8:1:2:ffff:d54e:0:9"),
        ] {
            let pair = PrefixPair::new(ip(inside), ip(outside), len);
            let there = ip(from).exchange(&pair, false).unwrap();
            assert_eq!(Ipv6Addr::from(there), to.parse::<Ipv6Addr>().unwrap(), "/{len}");
            assert_eq!(there.exchange(&pair, true), Some(ip(from)), "/{len} back");
            // No checksum over the address changes.
            let diff = Diff::of_addrs((ip(from), Ip6::default()), (there, Ip6::default()));
            assert_eq!(diff.applied(0x1234), 0x1234, "/{len}");
        }
        let pair = PrefixPair::new(ip("fd01:203:405::"), ip("2001:db8:1::"), 48);
        assert_eq!(ip("fd01:203:405:ffff::1").exchange(&pair, false), None, "all ones can't be told from zero");
    }
}
