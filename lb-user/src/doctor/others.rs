//! Others who would do the same work, or whose rules would not be asked: kube-proxy, IPVS, packet filters.

use std::collections::BTreeMap;
use std::fs;

use anyhow::Result;

use super::Finding;
use crate::config::Config;
use crate::source::netlink::Mirror;
use crate::source::netlink::message::{Attrs, Connection, Message, text};

/// NFNL_SUBSYS_NFTABLES and NFT_MSG_GETCHAIN.
const GET_CHAIN: u16 = 10 << 8 | 4;
const FORWARD: u32 = 2;

#[derive(Clone, Debug, Default, PartialEq)]
struct Chain {
    table: String,
    name: String,
    /// The netfilter hook that it hangs on, if any.
    hook: Option<u32>,
}

pub fn examine(config: Option<&Config>, mirror: &Mirror) -> Result<Vec<Finding>> {
    let chains = chains();
    let mut all = vec![kube_proxy(&chains)];
    let read = |name: &str| fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default();
    all.extend(legacy(&[read("ip_tables_names"), read("ip6_tables_names")].concat()));
    all.push(ipvs(&read("ip_vs")));
    let fast = config.is_none_or(|config| config.tuning.fast_forwarding);
    all.push(filters(&chains, fast));
    all.push(policy(mirror.network().policy));
    Ok(all)
}

/// All chains of nftables, those of iptables' newer form among them. A kernel without nftables has none.
fn chains() -> Vec<Chain> {
    let Ok(mut connection) = Connection::open(libc::NETLINK_NETFILTER) else { return Vec::new() };
    let all = connection.dump(
        || Message::new(GET_CHAIN, 0, &[0, 0, 0, 0]),
        |all: &mut Vec<Chain>, payload| {
            all.extend(chain(payload));
        },
    );
    all.unwrap_or_default()
}

fn chain(payload: &[u8]) -> Option<Chain> {
    let attrs = Attrs(payload.get(4..)?);
    let hook = attrs.find(4).and_then(|hook| Attrs(hook).find(1)).and_then(|number| number.try_into().ok());
    Some(Chain { table: text(attrs.find(1)?), name: text(attrs.find(3)?), hook: hook.map(u32::from_be_bytes) })
}

/// The kubelet makes a few chains for others to find its marks; those balance nothing.
fn kube_proxy(chains: &[Chain]) -> Finding {
    let balances = |chain: &&Chain| {
        let name = &chain.name;
        chain.table == "kube-proxy"
            || ["KUBE-SERVICES", "KUBE-NODEPORTS"].contains(&&**name)
            || ["KUBE-SVC-", "KUBE-SEP-", "KUBE-EXT-"].iter().any(|begin| name.starts_with(begin))
    };
    match chains.iter().filter(balances).count() {
        0 => Finding::ok("kube-proxy", "", "no chains of it"),
        count => {
            let found = format!("chains of it: {count}; packets would be balanced twice");
            let advice = "stop kube-proxy, then `kube-proxy --cleanup` (or reboot)";
            Finding::fail("kube-proxy", "", found, advice)
        }
    }
}

fn legacy(names: &str) -> Option<Finding> {
    let mut tables: Vec<&str> = names.lines().collect();
    tables.sort_unstable();
    tables.dedup();
    if tables.is_empty() {
        return None;
    }
    let found = format!("tables of iptables-legacy: {}", tables.join(", "));
    let advice = "see by `iptables-legacy-save` whether kube-proxy or a filter of forwarding has rules there";
    Some(Finding::warn("filters", "legacy", found, advice))
}

/// Three lines are the listing's head.
fn ipvs(listing: &str) -> Finding {
    let services = listing.lines().skip(3).filter(|line| !line.trim_start().starts_with("->")).count();
    match services {
        0 => Finding::ok("ipvs", "", "no services"),
        count => {
            let found = format!("services: {count}; packets would be balanced twice");
            Finding::fail("ipvs", "", found, "stop their owner (kube-proxy in IPVS mode, keepalived), then ipvsadm -C")
        }
    }
}

/// What is forwarded ahead of the kernel goes by no chain.
fn filters(chains: &[Chain], fast: bool) -> Finding {
    let mut tables: BTreeMap<&str, usize> = BTreeMap::new();
    for chain in chains.iter().filter(|chain| chain.hook == Some(FORWARD)) {
        *tables.entry(&chain.table).or_default() += 1;
    }
    if tables.is_empty() || !fast {
        return Finding::ok("filters", "forwarding", if fast { "no rules for it" } else { "left to the kernel" });
    }
    let names: Vec<&str> = tables.into_keys().collect();
    let found =
        format!("rules of nftables in {}: what is forwarded ahead of the kernel goes past them", names.join(", "));
    Finding::warn("filters", "forwarding", found, "say `forwarding: kernel` if they matter for what is forwarded")
}

fn policy([v4, v6]: [bool; 2]) -> Finding {
    let families: Vec<&str> = [(v4, "IPv4"), (v6, "IPv6")].iter().filter(|(on, _)| *on).map(|(_, f)| *f).collect();
    if families.is_empty() {
        return Finding::ok("policy rules", "", "none of others");
    }
    let found = format!("rules of others choose among routing tables of {}", families.join(" and "));
    let advice = "nothing, if they are meant: the kernel forwards that family, more slowly (see `ip rule`)";
    Finding::warn("policy rules", "", found, advice)
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    fn of(table: &str, name: &str, hook: Option<u32>) -> Chain {
        Chain { table: table.into(), name: name.into(), hook }
    }

    #[test]
    fn the_kubelets_own_chains_balance_nothing() {
        let kubelet = [of("mangle", "KUBE-IPTABLES-HINT", None), of("nat", "KUBE-KUBELET-CANARY", None)];
        assert_eq!(kube_proxy(&kubelet).state, State::Ok);
        assert_eq!(kube_proxy(&[of("nat", "KUBE-SERVICES", None)]).state, State::Fail);
        assert_eq!(kube_proxy(&[of("nat", "KUBE-SVC-ABC", None)]).state, State::Fail);
        assert_eq!(kube_proxy(&[of("kube-proxy", "services", None)]).state, State::Fail);
    }

    #[test]
    fn only_chains_that_see_forwarding_count() {
        let input = of("filter", "INPUT", Some(1));
        let forward = of("filter", "FORWARD", Some(FORWARD));
        assert_eq!(filters(std::slice::from_ref(&input), true).state, State::Ok);
        assert_eq!(filters(&[input, forward.clone()], true).state, State::Warn);
        assert_eq!(filters(&[forward], false).state, State::Ok);
    }

    #[test]
    fn ipvs_services_are_counted_without_their_backends() {
        let head = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n";
        assert_eq!(ipvs("").state, State::Ok);
        assert_eq!(ipvs(head).state, State::Ok);
        let one = format!("{head}TCP  0A600001:01BB rr  \n  -> C0A80002:192B      Masq    1      0          0\n");
        assert_eq!((ipvs(&one).state, ipvs(&one).found.starts_with("services: 1;")), (State::Fail, true));
    }

    #[test]
    fn a_chains_message() {
        let mut payload = vec![2, 0, 0, 0];
        let mut attr = |kind: u16, value: &[u8]| {
            payload.extend((value.len() as u16 + 4).to_ne_bytes());
            payload.extend(kind.to_ne_bytes());
            payload.extend(value);
            payload.resize(payload.len().next_multiple_of(4), 0);
        };
        attr(1, b"filter\0");
        attr(3, b"FORWARD\0");
        attr(0x8004, &[8, 0, 1, 0, 0, 0, 0, 2]);
        let whole = chain(&payload);
        assert_eq!(whole, Some(of("filter", "FORWARD", Some(FORWARD))));
        // Whatever it ends with, nothing is read behind it.
        for len in 0..payload.len() {
            _ = chain(&payload[..len]);
        }
    }
}
