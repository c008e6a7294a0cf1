//! The device of a case: its links, hosts, services and settings, and the tables that these mean.
//!
//! A case says them by name and for both IP versions; [`World::contents`] is the tables of one.
//! Ids are handed out in order: services and backends from 1, next hops from the first that may
//! be. A row has one slot for each backend, in order.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use lb_common::table::{
    self, Announced, Backend, Name, NextHop, Owned, Prefix, PrefixPair, Service, ServiceKey, Settings, SourcePrefix,
    Tunnel, Uplink, filter,
};
use lb_common::wire::{Addr, Be16, Ip4, Ip6, Mac};
use lb_user::intent::Capacity;
use lb_user::plan::{Contents, Family};

use super::policies::{AllowedLine, Judged};
use crate::packet::{self, End, Names};

/// Ticks a second in cases, where the clock is ours.
pub const TICKS: u32 = 100;

#[derive(Clone, Debug)]
pub struct Link {
    pub name: String,
    pub index: u32,
    pub mac: packet::Mac,
    pub mtu: u32,
    pub xdp: bool,
    /// Its other end is in another network namespace, and may be handed packets.
    pub peer: bool,
    /// This node's address on it.
    pub addr: Option<IpAddr>,
}

#[derive(Clone, Debug)]
pub struct Host {
    pub name: String,
    pub addr: IpAddr,
    pub at: Place,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Place {
    /// A neighbour on a link.
    On(String, packet::Mac),
    /// Behind another host.
    Via(String),
    /// On a link, but nobody has asked for its link-layer address yet.
    Unresolved(String),
    /// This node.
    Local,
    /// Only a name.
    Nowhere,
}

#[derive(Clone, Debug)]
pub struct BackendLine {
    pub at: End,
    pub remote: bool,
    /// Of a node that has the same services.
    pub direct: bool,
    pub draining: bool,
    /// The slot names it, but it isn't there.
    pub gone: bool,
    /// On this node, and how: in both rows, or in that of this node alone.
    pub here: Option<Here>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Here {
    Ready,
    Last,
}

#[derive(Clone, Debug)]
pub struct ServiceLine {
    pub proto: u8,
    pub at: Vec<End>,
    pub backends: Vec<BackendLine>,
    pub affinity: u32,
    /// [`Service::flags`].
    pub flags: u32,
    /// Its source ranges.
    pub sources: Vec<(IpAddr, u32)>,
}

/// A network of another node's pods, reached in the overlay. Of the hosts' IP version.
#[derive(Clone, Debug)]
pub struct Overlay {
    pub net: IpAddr,
    pub len: u32,
    pub node: String,
    pub own: String,
    pub neighbour: String,
}

impl Overlay {
    fn holds(&self, host: IpAddr) -> bool {
        ipnet::IpNet::new(self.net, self.len as u8).is_ok_and(|net| net.contains(&host))
    }
}

/// The next hop by the overlay of this place.
fn into_overlay(place: usize) -> u32 {
    NextHop::FIRST + 1_000 + place as u32
}

#[derive(Clone, Debug, Default)]
pub struct World {
    pub v6: bool,
    pub links: Vec<Link>,
    pub hosts: Vec<Host>,
    /// The hosts that each leads to; none: a blackhole.
    pub routes: Vec<(IpAddr, u32, Vec<String>)>,
    pub overlay: Vec<Overlay>,
    /// Links that packets are forwarded from or that lead to the inside, and their flags.
    pub forwards: Vec<(String, u16)>,
    pub unused: Vec<(IpAddr, u32)>,
    pub vips: Vec<String>,
    /// Links, and the hosts whose addresses are announced on them.
    pub announced: Vec<(String, String)>,
    pub services: Vec<ServiceLine>,
    /// Subnets of the inside, and those that the inside reaches as it is.
    pub insides: Vec<(IpAddr, u32)>,
    pub directs: Vec<(IpAddr, u32)>,
    /// Pods' networks.
    pub pods: Vec<(IpAddr, u32)>,
    /// Addresses that translated packets get, by the link that they leave by.
    pub uplinks: BTreeMap<u32, Vec<IpAddr>>,
    /// Prefixes inside, and what they are outside.
    pub prefixes: Vec<((IpAddr, u32), (IpAddr, u32))>,
    pub judged: Vec<Judged>,
    pub allowed: Vec<AllowedLine>,
    pub settings: BTreeMap<String, u32>,
    pub capacity: Capacity,
    /// Backends keep their ids when others come and go.
    pub(super) ids: BTreeMap<(usize, String, u16), u32>,
}

pub(super) type Built<T> = Result<T, String>;

impl World {
    pub fn names(&self) -> Names {
        let hosts = self.hosts.iter().map(|h| (h.name.clone(), h.addr)).collect();
        Names { v6: self.v6, hosts, macs: Default::default() }
    }

    pub fn link(&self, name: &str) -> Built<&Link> {
        self.links.iter().find(|l| l.name == name).ok_or_else(|| format!("{name}: no such link"))
    }

    pub fn host(&self, name: &str) -> Built<&Host> {
        self.hosts.iter().find(|h| h.name == name).ok_or_else(|| format!("{name}: no such host"))
    }

    /// The neighbour that a packet to `addr` goes to: its link and link-layer address.
    pub fn neighbour(&self, addr: IpAddr) -> Option<(&Link, packet::Mac)> {
        let host = self.hosts.iter().find(|h| h.addr == addr);
        let mut place = match host {
            Some(host) => &host.at,
            None => &self.host(self.longest(addr)?.2.first()?).ok()?.at,
        };
        loop {
            match place {
                Place::On(link, mac) => return Some((self.link(link).ok()?, *mac)),
                Place::Via(other) => place = &self.host(other).ok()?.at,
                _ => return None,
            }
        }
    }

    fn longest(&self, addr: IpAddr) -> Option<&(IpAddr, u32, Vec<String>)> {
        let covers = |net: IpAddr, len: u32| ipnet::IpNet::new(net, len as u8).is_ok_and(|net| net.contains(&addr));
        self.routes.iter().filter(|(net, len, _)| covers(*net, *len)).max_by_key(|(_, len, _)| *len)
    }

    fn hop_index(&self, name: &str) -> Built<u32> {
        let at = self.hosts.iter().position(|h| h.name == name).ok_or_else(|| format!("{name}: no such host"))?;
        match &self.hosts[at].at {
            Place::On(..) => Ok(NextHop::FIRST + at as u32),
            Place::Via(other) => self.hop_index(other),
            Place::Local => Ok(NextHop::HOST),
            Place::Unresolved(_) | Place::Nowhere => Ok(NextHop::UNRESOLVED),
        }
    }

    /// The tables.
    pub fn contents(&mut self) -> Built<Contents> {
        let mut contents = Contents::empty(self.settings()?);
        contents.next_hops = self.next_hops()?;
        contents.links = self.forwarding()?;
        if self.v6 {
            contents.v6 = self.family::<Ip6>(&mut contents)?;
        } else {
            contents.v4 = self.family::<Ip4>(&mut contents)?;
        }
        self.policies(&mut contents)?;
        Ok(contents)
    }

    fn settings(&self) -> Built<Settings> {
        let mut s = Settings::with_clock(TICKS);
        for (key, value) in &self.settings {
            let ticks = value.saturating_mul(TICKS);
            match key.as_str() {
                "tcp_established" => s.tcp_established = ticks,
                "tcp_transitory" => s.tcp_transitory = ticks,
                "tcp_closed" => s.tcp_closed = ticks,
                "udp_unanswered" => s.udp_unanswered = ticks,
                "udp_answered" => s.udp_answered = ticks,
                "sctp_established" => s.sctp_established = ticks,
                "sctp_transitory" => s.sctp_transitory = ticks,
                "fragment" => s.fragment = ticks,
                "icmp_rate" => s.icmp_rate = *value,
                "snat_first" => s.snat_first = *value as u16,
                "snat_last" => s.snat_last = *value as u16,
                "epoch" => s.epoch = *value as u16,
                "nat_quota" => s.nat_quota = *value,
                "filter_none" => s.nat |= Settings::FILTER_NONE,
                "filter_port" => s.nat |= Settings::FILTER_PORT,
                "nat_log" => s.nat |= Settings::NAT_LOG,
                _ => return Err(format!("{key}: no such setting")),
            }
        }
        if !self.uplinks.is_empty() {
            s.nat |= Settings::NAT;
        }
        if !self.overlay.is_empty() {
            (s.vxlan_port, s.vni) = (Be16::new(4_789), 4_096);
        }
        Ok(s)
    }

    /// What is translated between inside and outside.
    fn translate<A: Addr>(&self, family: &mut Family<A>, contents: &mut Contents) -> Built<()> {
        let all = self.insides.iter().map(|net| (net, Owned::INSIDE));
        let pods = self.pods.iter().map(|net| (net, Owned::PODS));
        for ((net, len), kind) in all.chain(self.directs.iter().map(|net| (net, Owned::DIRECT))).chain(pods) {
            let addr = A::from_ip(*net).ok_or("prefixes are of one IP version")?;
            family.owned.entry(Prefix { len: *len, addr }).or_default().kind |= kind;
            if kind == Owned::INSIDE {
                subnets(addr, *len).for_each(|subnet| set_bit(contents, filter::inside_bit(subnet)));
            }
        }
        let mut plane = 0;
        for (link, addrs) in &self.uplinks {
            let mut uplink = Uplink { count: addrs.len() as u32, ..Uplink::default() };
            for (i, addr) in addrs.iter().enumerate() {
                let addr = A::from_ip(*addr).ok_or("addresses are of one IP version")?;
                (uplink.addrs[i], uplink.planes[i]) = (addr, plane);
                let owned = Owned { kind: Owned::OUTSIDE, index: plane as u16 };
                family.owned.insert(Prefix { len: A::BITS, addr }, owned);
                set_bit(contents, filter::outside_bit(addr));
                plane += 1;
            }
            family.uplinks.insert(*link, uplink);
        }
        for (index, (inside, outside)) in self.prefixes.iter().enumerate().filter(|_| A::IS_V6) {
            let own = |addr: IpAddr| A::from_ip(addr).ok_or("prefixes are of IPv6");
            let (len, inside, outside) = (inside.1, own(inside.0)?, own(outside.0)?);
            let of = |kind| Owned { kind, index: index as u16 };
            family.owned.insert(Prefix { len, addr: inside }, of(Owned::PREFIX_INSIDE));
            family.owned.insert(Prefix { len, addr: outside }, of(Owned::PREFIX_OUTSIDE));
            subnets(inside, len).for_each(|subnet| set_bit(contents, filter::inside_bit(subnet)));
            subnets(outside, len).for_each(|subnet| set_bit(contents, filter::outside_bit(subnet)));
            let six = |addr: A| Ip6::from_ip(addr.to_ip()).ok_or("prefixes are of IPv6");
            contents.prefixes.insert(index as u32, PrefixPair::new(six(inside)?, six(outside)?, len));
        }
        self.mark_direct(family)
    }

    /// Routes to where the inside sends untranslated, as the plan marks them.
    fn mark_direct<A: Addr>(&self, family: &mut Family<A>) -> Built<()> {
        let net = |(addr, len): &(IpAddr, u32)| IpNet::new(*addr, *len as u8).map_err(|e| format!("{addr}/{len}: {e}"));
        let nets = |all: &mut dyn Iterator<Item = &(IpAddr, u32)>| all.map(net).collect::<Built<Vec<IpNet>>>();
        let direct = nets(&mut self.directs.iter())?;
        let outside = nets(&mut self.prefixes.iter().map(|(_, outside)| outside))?;
        for (prefix, index) in family.routes.clone() {
            let to = net(&(prefix.addr.to_ip(), prefix.len))?;
            let within = |all: &[IpNet]| all.iter().any(|net| net.contains(&to));
            let around = outside.iter().any(|net| to.contains(net));
            if index >= NextHop::FIRST && within(&direct) && !within(&outside) && !around {
                family.routes.insert(prefix, index | NextHop::DIRECT);
            }
        }
        Ok(())
    }

    fn next_hops(&self) -> Built<BTreeMap<u32, NextHop>> {
        let mut hops = BTreeMap::from([
            (NextHop::UNRESOLVED, NextHop::default()),
            (NextHop::HOST, NextHop { kind: NextHop::LOCAL, ..NextHop::default() }),
            (NextHop::BLACKHOLE, NextHop { kind: NextHop::DROP, ..NextHop::default() }),
        ]);
        for host in &self.hosts {
            let Place::On(link, mac) = &host.at else {
                continue;
            };
            let link = self.link(link)?;
            let hop = NextHop {
                ifindex: link.index,
                mtu: link.mtu,
                dst: Mac(*mac),
                src: Mac(link.mac),
                kind: NextHop::LINK,
                flags: if link.xdp { NextHop::XDP } else { 0 } | if link.peer { NextHop::PEER } else { 0 },
                pad: 0,
            };
            hops.insert(self.hop_index(&host.name)?, hop);
        }
        Ok(hops)
    }

    fn forwarding(&self) -> Built<BTreeMap<u32, table::Link>> {
        let entry = |(name, flags): &(String, u16)| {
            let link = self.link(name)?;
            Ok((link.index, table::Link { mac: Mac(link.mac), flags: *flags }))
        };
        self.forwards.iter().map(entry).collect()
    }

    fn addr<A: Addr>(&self, host: &str) -> Built<A> {
        A::from_ip(self.names().resolve(host)?).ok_or_else(|| format!("{host}: of the other IP version"))
    }

    fn family<A: Addr>(&mut self, contents: &mut Contents) -> Built<Family<A>> {
        let mut family = Family::<A>::default();
        let whole = |addr: A| Prefix { len: A::BITS, addr };
        for host in self.hosts.iter().filter(|h| h.at != Place::Nowhere) {
            let addr = A::from_ip(host.addr).ok_or("hosts are of one IP version")?;
            family.routes.insert(whole(addr), self.hop_index(&host.name)?);
        }
        for (net, len, via) in &self.routes {
            let addr = A::from_ip(*net).ok_or("routes are of one IP version")?;
            let via = via.iter().map(|host| self.hop_index(host)).collect::<Built<Vec<u32>>>()?;
            let index = match via.as_slice() {
                [] => NextHop::BLACKHOLE,
                [one] => *one,
                several => {
                    let group = contents.groups.len() as u32;
                    contents.groups.insert(group, std::array::from_fn(|place| several[place % several.len()]));
                    NextHop::GROUP | group
                }
            };
            family.routes.insert(Prefix { len: *len, addr }, index);
        }
        for (place, overlay) in self.overlay.iter().enumerate() {
            let addr = A::from_ip(overlay.net).ok_or("networks are of one IP version")?;
            let index = into_overlay(place);
            family.routes.insert(Prefix { len: overlay.len, addr }, index);
            let to = contents.next_hops.get(&self.hop_index(&overlay.neighbour)?).copied().unwrap_or_default();
            let (local, remote) = (self.addr::<A>(&overlay.own)?.mapped(), self.addr::<A>(&overlay.node)?.mapped());
            let headers = if A::IS_V6 { 70 } else { 50 };
            let hop = NextHop {
                mtu: to.mtu.saturating_sub(headers),
                dst: Mac([0x0e, 0, 0, 0, 0, place as u8]),
                flags: to.flags | NextHop::TUNNEL,
                ..to
            };
            contents.next_hops.insert(index, hop);
            contents.tunnels.insert(index, Tunnel { local, remote, dst: to.dst, src: to.src, ifindex: to.ifindex });
            contents.peers.insert(remote, 1);
        }
        for vip in &self.vips {
            self.own(vip, &mut family, contents)?;
        }
        for (link, host) in &self.announced {
            let (link, addr) = (self.link(link)?, self.addr::<A>(host)?);
            family.announced.insert(addr, Announced { link: link.index, mac: Mac(link.mac), pad: 0 });
        }
        for (net, len) in &self.unused {
            let addr = A::from_ip(*net).ok_or("ranges are of one IP version")?;
            family.owned.insert(Prefix { len: *len, addr }, Owned::of(Owned::UNUSED));
            let bit = if *len == A::BITS { filter::addr_bit(addr) } else { filter::grain_bit(addr) };
            set_bit(contents, bit);
        }
        self.translate(&mut family, contents)?;
        let mut first = 0;
        for (at, line) in self.services.clone().iter().enumerate() {
            self.service(at, line, &mut first, &mut family, contents)?;
        }
        Ok(family)
    }

    fn own<A: Addr>(&self, vip: &str, family: &mut Family<A>, contents: &mut Contents) -> Built<()> {
        let addr = self.addr::<A>(vip)?;
        family.owned.insert(Prefix { len: A::BITS, addr }, Owned::of(Owned::VIP));
        set_bit(contents, filter::addr_bit(addr));
        Ok(())
    }

    fn service<A: Addr>(
        &mut self,
        at: usize,
        line: &ServiceLine,
        first: &mut u32,
        family: &mut Family<A>,
        contents: &mut Contents,
    ) -> Built<()> {
        let id = at as u32 + 1;
        let (mut row, mut local) = (Vec::new(), Vec::new());
        for backend in &line.backends {
            let port = backend.at.port.ok_or("a backend has a port")?;
            let next = self.ids.len() as u32 + 1;
            let number = *self.ids.entry((at, backend.at.host.clone(), port)).or_insert(next);
            if !backend.draining && backend.here != Some(Here::Last) {
                row.push(number);
            }
            if backend.here.is_some() {
                local.push(number);
            }
            if !backend.gone {
                family.backends.insert(number, self.backend::<A>(backend, id)?);
            }
            set_bit(contents, filter::tuple_bit(self.addr::<A>(&backend.at.host)?, Be16::new(port), line.proto));
        }
        let service = Service {
            id,
            first: *first,
            count: row.len() as u32,
            affinity: line.affinity * TICKS,
            local_first: *first + row.len() as u32,
            local_count: local.len() as u32,
            flags: line.flags,
            pad: 0,
        };
        for (net, len) in &line.sources {
            let addr = A::from_ip(*net).ok_or("source ranges are of one IP version")?;
            family.sources.insert(SourcePrefix { len: u32::BITS + len, service: id, addr }, 1);
        }
        for end in &line.at {
            let (addr, port) = (self.addr::<A>(&end.host)?, Be16::new(end.port.ok_or("a service has a port")?));
            family.services.insert(ServiceKey { addr, port, proto: line.proto, pad: 0 }, service);
            set_bit(contents, filter::tuple_bit(addr, port, line.proto));
            if self.host(&end.host).map_or(true, |h| h.at != Place::Local) {
                self.own(&end.host, family, contents)?;
            }
        }
        contents.names.insert(id, Name::new(&format!("case/service-{id}")));
        *first += (row.len() + local.len()) as u32;
        for (first, row) in [(service.first, row), (service.local_first, local)] {
            if !row.is_empty() {
                contents.rows.insert(first, row);
            }
        }
        Ok(())
    }

    fn backend<A: Addr>(&self, line: &BackendLine, service: u32) -> Built<Backend<A>> {
        let host = self.names().resolve(&line.at.host)?;
        let link = self.neighbour(host).map(|(link, _)| link);
        let source = link.and_then(|link| link.addr).and_then(A::from_ip);
        Ok(Backend {
            addr: self.addr(&line.at.host)?,
            snat: source.or_else(|| self.addr("node").ok()).unwrap_or_default(),
            port: Be16::new(line.at.port.unwrap_or(0)),
            state: if line.draining { Backend::<A>::DRAINING } else { Backend::<A>::ACTIVE },
            flags: if line.remote { Backend::<A>::REMOTE } else { 0 }
                | if line.direct { Backend::<A>::DIRECT } else { 0 }
                | line.here.map_or(0, |_| Backend::<A>::HERE)
                | if line.here == Some(Here::Last) { Backend::<A>::LAST } else { 0 },
            service,
            next_hop: match self.overlay.iter().position(|overlay| overlay.holds(host)) {
                Some(place) => into_overlay(place),
                None => self.hop_index(&line.at.host)?,
            },
            weight: 1,
            deadline: 0,
            link: link.map_or(0, |link| link.index),
        })
    }

    /// The backend at `host:port` by id.
    pub fn backend_id(&self, end: &End) -> Built<u32> {
        let found = self.ids.iter().find(|((_, host, port), _)| *host == end.host && Some(*port) == end.port);
        found.map(|(_, id)| *id).ok_or_else(|| format!("{}: no such backend", end.text()))
    }
}

/// The /24s or /64s that a prefix of a case covers.
fn subnets<A: Addr>(addr: A, len: u32) -> impl Iterator<Item = A> {
    let grain = if A::IS_V6 { 64 } else { 24 };
    let net = ipnet::IpNet::new(addr.to_ip(), len as u8).expect("a prefix");
    let count = 1u128 << u32::saturating_sub(grain, len);
    (0..count).filter_map(move |i| {
        let step = i << (A::BITS - grain);
        A::from_ip(match net.network() {
            IpAddr::V4(a) => IpAddr::V4((a.to_bits() + step as u32).into()),
            IpAddr::V6(a) => IpAddr::V6((a.to_bits() + step).into()),
        })
    })
}

fn set_bit(contents: &mut Contents, bit: u32) {
    *contents.filter.entry(bit / 64).or_default() |= 1 << (bit % 64);
}
