//! Addresses that this node answers for, and the filter in front of all tables.
//!
//! Invariants: an address of the node itself is never owned here, also not inside a service range;
//! the filter has the bits of whatever stands in the service, backend and owned tables
//! (`lb_common::table::filter`). Not here: what is inside and outside ([`super::nat`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use lb_common::table::filter::{addr_bit, grain_bit, tuple_bit};
use lb_common::table::{Owned, Prefix};
use lb_common::wire::{Addr, Ip4, Ip6};

use super::contents::Family;
use super::error::PlanError;
use super::nat::Sides;
use crate::intent::ServiceRange;

/// Longest part of a range whose addresses are in the filter one by one.
const SINGLE: u128 = 4_096;
/// Most /24s or /112s of a range.
const GRAINS: u128 = 65_536;

/// Adds what no service has: the ranges but this node's own addresses.
pub(super) fn unused<A: Addr>(
    ranges: &[ServiceRange],
    local: &BTreeSet<IpAddr>,
    family: &mut Family<A>,
) -> Result<(), PlanError> {
    for range in ranges {
        if A::from_ip(range.first).is_none() {
            continue;
        }
        for (first, last) in gaps(range, local)? {
            for net in subnets(first, last) {
                if let Some(addr) = A::from_ip(net.network()) {
                    let prefix = Prefix { len: u32::from(net.prefix_len()), addr };
                    family.owned.entry(prefix).or_insert(Owned::of(Owned::UNUSED));
                }
            }
        }
    }
    Ok(())
}

pub(super) fn number(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(a) => u128::from(a.to_bits()),
        IpAddr::V6(a) => a.to_bits(),
    }
}

pub(super) fn address(number: u128, like: IpAddr) -> IpAddr {
    if like.is_ipv4() { IpAddr::V4((number as u32).into()) } else { IpAddr::V6(number.into()) }
}

/// The stretches of a range between this node's own addresses.
fn gaps(range: &ServiceRange, local: &BTreeSet<IpAddr>) -> Result<Vec<(IpAddr, IpAddr)>, PlanError> {
    let ServiceRange { first, last } = *range;
    if first.is_ipv4() != last.is_ipv4() || first > last {
        return Err(PlanError::Range { first, last });
    }
    let (mut from, end) = (number(first), number(last));
    let shift = if first.is_ipv4() { 8 } else { 16 };
    if (end >> shift) - (from >> shift) >= GRAINS {
        return Err(PlanError::RangeTooLong { first, last });
    }
    let mut gaps = Vec::new();
    for own in local.range(first..=last) {
        let own = number(*own);
        if own > from {
            gaps.push((address(from, first), address(own - 1, first)));
        }
        from = own + 1;
    }
    if from <= end {
        gaps.push((address(from, first), last));
    }
    Ok(gaps)
}

/// The fewest prefixes that make up a stretch.
fn subnets(first: IpAddr, last: IpAddr) -> Vec<IpNet> {
    match (first, last) {
        (IpAddr::V4(a), IpAddr::V4(b)) => Ipv4Subnets::new(a, b, 0).map(IpNet::V4).collect(),
        (IpAddr::V6(a), IpAddr::V6(b)) => Ipv6Subnets::new(a, b, 0).map(IpNet::V6).collect(),
        _ => Vec::new(),
    }
}

/// The filter's words.
pub(super) fn filter(ranges: &[ServiceRange], sides: &Sides, v4: &Family<Ip4>, v6: &Family<Ip6>) -> BTreeMap<u32, u64> {
    let mut bits = bits(v4, v6);
    bits.extend(sides.bits());
    ranges_bits(ranges, &mut bits);
    bits.sort_unstable();
    let mut words: Vec<(u32, u64)> = Vec::new();
    for bit in bits {
        let (index, word) = (bit / 64, 1 << (bit % 64));
        match words.last_mut() {
            Some((last, value)) if *last == index => *value |= word,
            _ => words.push((index, word)),
        }
    }
    words.into_iter().collect()
}

/// The bits of services, each as often as something needs it: those of all are those of each.
pub(super) fn bits(v4: &Family<Ip4>, v6: &Family<Ip6>) -> Vec<u32> {
    let mut bits = Vec::new();
    tuples(v4, &mut bits);
    tuples(v6, &mut bits);
    bits
}

pub(super) fn ranges_bits(ranges: &[ServiceRange], bits: &mut Vec<u32>) {
    for range in ranges {
        match (range.first, range.last) {
            (IpAddr::V4(_), IpAddr::V4(_)) => range_bits::<Ip4>(range, 8, bits),
            (IpAddr::V6(_), IpAddr::V6(_)) => range_bits::<Ip6>(range, 16, bits),
            _ => {}
        }
    }
}

fn tuples<A: Addr>(family: &Family<A>, bits: &mut Vec<u32>) {
    bits.extend(family.services.keys().map(|k| tuple_bit(k.addr, k.port, k.proto)));
    let proto: BTreeMap<u32, u8> = family.services.iter().map(|(k, s)| (s.id, k.proto)).collect();
    for b in family.backends.values() {
        if let Some(&proto) = proto.get(&b.service) {
            bits.push(tuple_bit(b.addr, b.port, proto));
        }
    }
    let is_vip = |addr| family.owned.get(&Prefix { len: A::BITS, addr }).is_some_and(|o| o.kind == Owned::VIP);
    bits.extend(family.services.keys().filter(|k| is_vip(k.addr)).map(|k| addr_bit(k.addr)));
}

fn range_bits<A: Addr>(range: &ServiceRange, grain: u32, bits: &mut Vec<u32>) {
    let (first, last) = (number(range.first), number(range.last));
    let each = |n: u128| A::from_ip(address(n, range.first));
    if last - first < SINGLE {
        bits.extend((first..=last).filter_map(each).map(addr_bit));
    } else {
        bits.extend((first >> grain..=last >> grain).filter_map(|g| each(g << grain)).map(grain_bit));
    }
}
