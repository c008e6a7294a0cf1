//! Names and addresses as labels.
//!
//! Invariant: what is compared is lower case. Not here: what a name stands for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::Name;
use ipnet::IpNet;

/// The labels of a name above a zone's, in lower case, from left to right. None: it isn't in the zone.
pub fn above(name: &Name, zone: &Name) -> Option<Vec<String>> {
    if !zone.zone_of(name) {
        return None;
    }
    let mut labels: Vec<&[u8]> = name.iter().collect();
    labels.truncate(labels.len() - zone.iter().count());
    Some(labels.iter().map(|label| String::from_utf8_lossy(label).to_ascii_lowercase()).collect())
}

/// A name out of labels from left to right, before a zone's. None: it is too long, or a label is none.
pub fn below<'l>(labels: impl IntoIterator<Item = &'l str>, zone: &Name) -> Option<Name> {
    let labels: Vec<&[u8]> = labels.into_iter().map(str::as_bytes).collect();
    Name::from_labels(labels).ok()?.append_domain(zone).ok()
}

/// A domain of the configuration.
pub fn domain(text: &str) -> Name {
    let mut name = Name::from_ascii(text).unwrap_or_default();
    name.set_fqdn(true);
    name
}

/// `10-20-0-7`, `fd00--7`
pub fn dashed(addr: IpAddr) -> String {
    addr.to_string().replace(['.', ':'], "-")
}

/// The opposite.
pub fn undashed(label: &str) -> Option<IpAddr> {
    let v4 = label.bytes().filter(|b| *b == b'-').count() == 3 && !label.contains("--");
    if v4 {
        label.replace('-', ".").parse::<Ipv4Addr>().ok().map(IpAddr::V4)
    } else {
        label.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::V6)
    }
}

/// The addresses that a name below `in-addr.arpa` or `ip6.arpa` is about.
pub fn reversed(name: &Name) -> Option<IpNet> {
    name.parse_arpa_name().ok()
}

/// The name under `in-addr.arpa` or `ip6.arpa` that all of a network's addresses are below.
pub fn reverse_zone(net: &IpNet) -> Name {
    let mut full = Name::from(net.network());
    full.set_fqdn(true);
    let whole = if net.addr().is_ipv4() { net.prefix_len() / 8 } else { net.prefix_len() / 4 };
    full.trim_to(usize::from(whole) + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_labels() {
        for (addr, label) in [("10.20.0.7", "10-20-0-7"), ("fd00::7", "fd00--7"), ("::1", "--1")] {
            let addr: IpAddr = addr.parse().unwrap();
            assert_eq!(dashed(addr), label);
            assert_eq!(undashed(label), Some(addr));
        }
        for label in ["10-20-0", "10-20-0-256", "web", "", "-", "1--2-3"] {
            let addr = undashed(label).map(|a| a.to_string());
            assert!(addr.is_none() || label == "1--2-3", "{label}: {addr:?}");
        }
    }

    #[test]
    fn zones_of_addresses() {
        for (net, want) in [
            ("172.28.0.0/16", "28.172.in-addr.arpa."),
            ("172.16.0.0/12", "172.in-addr.arpa."),
            ("10.0.0.0/8", "10.in-addr.arpa."),
            ("fd00:28::/32", "8.2.0.0.0.0.d.f.ip6.arpa."),
        ] {
            assert_eq!(reverse_zone(&net.parse().unwrap()).to_ascii(), want);
        }
        let name = Name::from_ascii("10.0.28.172.in-addr.arpa.").unwrap();
        assert_eq!(reversed(&name), Some("172.28.0.10/32".parse().unwrap()));
        assert_eq!(reversed(&Name::from_ascii("web.example.").unwrap()), None);
    }
}
