//! The node's own name servers: `/etc/resolv.conf`.
//!
//! Invariant: what can't be understood is left alone, as by the C library. Not here: when it is read.

use std::net::{IpAddr, SocketAddr};

/// The servers that a file's text names, in their order. An address with a link's name (`fe80::1%eth0`) has no
/// meaning here and is left out.
pub fn servers(text: &str) -> Vec<SocketAddr> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let addr = words.next().filter(|word| *word == "nameserver").and(words.next())?;
        Some(SocketAddr::new(addr.parse::<IpAddr>().ok()?, 53))
    };
    let mut all = Vec::new();
    for server in text.lines().filter_map(line) {
        if !all.contains(&server) {
            all.push(server);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nameservers_of_a_resolv_conf() {
        let text = "# by hand\nsearch example.corp\nnameserver 10.0.0.53 # near\n nameserver fd00::53\n\
                    nameserver fe80::1%eth0\nnameserver\nnameserver 10.0.0.53\nnameservers 10.0.0.54\noptions ndots:5\n";
        let all: Vec<String> = servers(text).iter().map(ToString::to_string).collect();
        assert_eq!(all, ["10.0.0.53:53", "[fd00::53]:53"]);
        assert!(servers("").is_empty());
    }
}
