//! Records of the zones that are answered here.
//!
//! Invariant: their form is CoreDNS', so that what reads its answers reads these.

use std::collections::BTreeSet;
use std::net::IpAddr;

use hickory_proto::rr::rdata::{A, AAAA, CNAME, HINFO, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::name;
use super::zone::Host;

/// Of "Kubernetes DNS-Based Service Discovery".
pub const VERSION: &str = "1.1.0";
const VERSION_TTL: u32 = 28_800;
const ANY_TTL: u32 = 3_600;

pub fn address(owner: &Name, ttl: u32, addr: IpAddr) -> Record {
    let data = match addr {
        IpAddr::V4(addr) => RData::A(A(addr)),
        IpAddr::V6(addr) => RData::AAAA(AAAA(addr)),
    };
    Record::from_rdata(owner.clone(), ttl, data)
}

/// The zone's own record; in a negative answer it says how long that is good.
pub fn soa(zone: &Name, ttl: u32, revision: u64) -> Option<Record> {
    let (server, mail) = (name::below(["ns", "dns"], zone)?, name::below(["hostmaster"], zone)?);
    let soa = SOA::new(server, mail, revision as u32, 7_200, 1_800, 86_400, ttl);
    Some(Record::from_rdata(zone.clone(), ttl, RData::SOA(soa)))
}

pub fn ns(zone: &Name, ttl: u32) -> Option<Record> {
    Some(Record::from_rdata(zone.clone(), ttl, RData::NS(NS(name::below(["ns", "dns"], zone)?))))
}

pub fn version(owner: &Name) -> Record {
    Record::from_rdata(owner.clone(), VERSION_TTL, RData::TXT(TXT::new(vec![VERSION.into()])))
}

pub fn alias(owner: &Name, ttl: u32, target: &Name) -> Record {
    Record::from_rdata(owner.clone(), ttl, RData::CNAME(CNAME(target.clone())))
}

pub fn ptr(owner: &Name, ttl: u32, target: Name) -> Record {
    Record::from_rdata(owner.clone(), ttl, RData::PTR(PTR(target)))
}

/// The answer to whoever asks for anything at all (RFC 8482).
pub fn not_all(owner: &Name) -> Record {
    Record::from_rdata(owner.clone(), ANY_TTL, RData::HINFO(HINFO::new("RFC8482".into(), String::new())))
}

/// Hosts' addresses of a family, each once.
pub fn addresses(hosts: &[Host], owner: &Name, ttl: u32, kind: RecordType) -> Vec<Record> {
    let of_family = |addr: &IpAddr| addr.is_ipv4() == (kind == RecordType::A);
    let mut seen = BTreeSet::new();
    let all = hosts.iter().map(|h| h.addr).filter(of_family).filter(|addr| seen.insert(*addr));
    all.map(|addr| address(owner, ttl, addr)).collect()
}

/// Where named ports are served, and beside them the hosts' addresses.
pub fn services(hosts: &[Host], owner: &Name, zone: &Name, ttl: u32) -> (Vec<Record>, Vec<Record>) {
    let pairs: BTreeSet<(&str, u16)> =
        hosts.iter().flat_map(|h| h.ports.iter().map(|port| (h.name.as_str(), *port))).collect();
    let weight = (100 / pairs.len().max(1)).max(1) as u16;
    let target = |host: &str| name::below(host.split('.'), zone);
    let srv = |(host, port): &(&str, u16)| {
        let data = RData::SRV(SRV::new(0, weight, *port, target(host)?));
        Some(Record::from_rdata(owner.clone(), ttl, data))
    };
    let mut seen = BTreeSet::new();
    let extra = hosts.iter().filter(|h| !h.ports.is_empty() && seen.insert((&h.name, h.addr)));
    let extra = extra.filter_map(|h| Some(address(&target(&h.name)?, ttl, h.addr)));
    (pairs.iter().filter_map(srv).collect(), extra.collect())
}
