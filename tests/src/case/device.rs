//! The lines of a case that describe its device, into a [`World`].

use std::net::IpAddr;

use ipnet::IpNet;
use lb_common::table::{self, Service};
use lb_user::policy::{Ports, Range};

use super::World;
use super::policies::{AllowedLine, Judged};
use super::world::{BackendLine, Built, Here, Host, Link, Overlay, Place, ServiceLine};
use crate::packet::End;
use crate::packet::build::parse_mac;

/// A line that describes the device.
pub(super) fn line(world: &mut World, word: &str, rest: &str) -> Built<()> {
    let words: Vec<&str> = rest.split_whitespace().collect();
    match (word, words.as_slice()) {
        ("link", [name, index, mac, addr4, addr6, more @ ..]) => link(world, name, index, mac, (addr4, addr6), more),
        ("host", [name, addr4, addr6, at @ ..]) => host(world, name, (addr4, addr6), at),
        ("route", [net4, net6, "via", hosts @ ..]) => route(world, (net4, net6), hosts),
        ("overlay", [net4, net6, "to", node, "from", own, "by", neighbour]) => {
            let (net, len) = prefix(if world.v6 { net6 } else { net4 })?;
            let [node, own, neighbour] = [node, own, neighbour].map(|host| (*host).to_owned());
            world.overlay.push(Overlay { net, len, node, own, neighbour });
            Ok(())
        }
        ("blackhole", [net4, net6]) => route(world, (net4, net6), &[]),
        ("forwards", [link, more @ ..]) => {
            let flags = more.iter().map(|word| match *word {
                "strict" => Ok(table::Link::STRICT4),
                "loose" => Ok(table::Link::LOOSE4),
                _ => Err(format!("{word}: strict or loose")),
            });
            let flags = table::Link::FORWARDS4 | table::Link::FORWARDS6 | flags.sum::<Built<u16>>()?;
            world.forwards.retain(|(name, _)| name != link);
            world.forwards.push(((*link).into(), flags));
            Ok(())
        }
        ("inside", [link]) => {
            flag(world, link, table::Link::INSIDE);
            Ok(())
        }
        ("port", [link]) => {
            flag(world, link, table::Link::PORT);
            Ok(())
        }
        ("unused", [net4, net6]) => {
            world.unused.push(prefix(if world.v6 { net6 } else { net4 })?);
            Ok(())
        }
        ("nat", [net4, net6]) => {
            world.insides.push(prefix(if world.v6 { net6 } else { net4 })?);
            Ok(())
        }
        ("pods", [net4, net6]) => {
            world.pods.push(prefix(if world.v6 { net6 } else { net4 })?);
            Ok(())
        }
        ("direct", [net4, net6]) => {
            world.directs.push(prefix(if world.v6 { net6 } else { net4 })?);
            Ok(())
        }
        ("uplink", [link, pool @ ..]) => {
            let link = world.link(link)?.clone();
            let addrs = match pool {
                [] => vec![link.addr.ok_or("an uplink has an address")?],
                names => names.iter().map(|name| world.names().resolve(name)).collect::<Built<_>>()?,
            };
            world.uplinks.insert(link.index, addrs);
            let addresses = world.uplinks.values().map(Vec::len).sum::<usize>() as u32;
            world.capacity.nat_addresses = world.capacity.nat_addresses.max(addresses);
            Ok(())
        }
        ("prefix", [link, inside, outside]) => {
            let link = world.link(link)?.index;
            world.uplinks.entry(link).or_default();
            world.prefixes.push((prefix(inside)?, prefix(outside)?));
            Ok(())
        }
        ("vip", names) => {
            world.vips.extend(names.iter().map(|n| n.to_string()));
            Ok(())
        }
        ("announced", [link, names @ ..]) => {
            world.announced.extend(names.iter().map(|name| (link.to_string(), name.to_string())));
            Ok(())
        }
        ("judged", [link, host, more @ ..]) => {
            let mut judged = Judged { link: world.link(link)?.index, host: (*host).into(), policies: [0; 2] };
            each_number(more, |key, value| {
                let place =
                    ["ingress", "egress"].iter().position(|name| *name == key).ok_or("ingress=N or egress=N")?;
                judged.policies[place] = value;
                Ok(())
            })?;
            world.judged.retain(|other| other.link != judged.link);
            world.judged.push(judged);
            Ok(())
        }
        ("allow", [policy, net4, net6, more @ ..]) => {
            let policy = policy.parse().map_err(|_| format!("{policy}: no number"))?;
            world.allowed.push(allowed(world.v6, policy, (net4, net6), more)?);
            Ok(())
        }
        ("service", [proto, rest @ ..]) => service(world, proto, rest),
        ("set", pairs) => each_number(pairs, |key, value| {
            world.settings.insert(key.into(), value);
            Ok(())
        }),
        ("capacity", pairs) => each_number(pairs, |key, value| {
            let capacity = &mut world.capacity;
            match key {
                "connections" => capacity.connections = value,
                "affinity" => capacity.affinity = value,
                "fragments" => capacity.fragments = value,
                "nat_addresses" => capacity.nat_addresses = value,
                _ => return Err(format!("{key}: no such capacity")),
            }
            Ok(())
        }),
        _ => Err(format!("{word} {rest}: not a line of a case")),
    }
}

fn link(world: &mut World, name: &str, index: &str, mac: &str, addrs: (&str, &str), more: &[&str]) -> Built<()> {
    let addr = if world.v6 { addrs.1 } else { addrs.0 };
    let mut link = Link {
        name: name.into(),
        index: index.parse().map_err(|_| format!("{index}: no index"))?,
        mac: parse_mac(mac)?,
        mtu: 1500,
        xdp: false,
        peer: false,
        addr: addr.parse().ok(),
    };
    for word in more {
        match word.split_once('=') {
            Some(("mtu", mtu)) => link.mtu = mtu.parse().map_err(|_| format!("{word}: no MTU"))?,
            None if *word == "xdp" => link.xdp = true,
            None if *word == "peer" => link.peer = true,
            _ => return Err(format!("{word}: not a word for links")),
        }
    }
    world.links.retain(|l| l.name != name);
    world.links.push(link);
    Ok(())
}

fn route(world: &mut World, nets: (&str, &str), hosts: &[&str]) -> Built<()> {
    let (addr, len) = prefix(if world.v6 { nets.1 } else { nets.0 })?;
    world.routes.retain(|(a, l, _)| (*a, *l) != (addr, len));
    world.routes.push((addr, len, hosts.iter().map(ToString::to_string).collect()));
    Ok(())
}

fn host(world: &mut World, name: &str, addrs: (&str, &str), at: &[&str]) -> Built<()> {
    let addr = if world.v6 { addrs.1 } else { addrs.0 };
    let at = match at {
        ["on", link, mac] => Place::On((*link).into(), parse_mac(mac)?),
        ["via", host] => Place::Via((*host).into()),
        ["unresolved", link] => Place::Unresolved((*link).into()),
        ["local"] => Place::Local,
        [] => Place::Nowhere,
        _ => {
            return Err("host NAME V4 V6 [on LINK MAC | via HOST | unresolved LINK | local]".into());
        }
    };
    let host = Host { name: name.into(), addr: addr.parse().map_err(|_| format!("{addr}: no address"))?, at };
    // In place, so that the other hosts keep their next hops' indexes.
    match world.hosts.iter_mut().find(|h| h.name == name) {
        Some(old) => *old = host,
        None => world.hosts.push(host),
    }
    Ok(())
}

fn service(world: &mut World, proto: &str, words: &[&str]) -> Built<()> {
    let proto = proto_number(proto)?;
    let mut sides = words.split(|w| *w == "=");
    let at = sides.next().unwrap_or(&[]).iter().map(|w| w.parse()).collect::<Built<Vec<End>>>()?;
    let mut line = ServiceLine { proto, at, backends: Vec::new(), affinity: 0, flags: 0, sources: Vec::new() };
    for word in sides.next().unwrap_or(&[]) {
        match (*word, word.split_once('=')) {
            ("local", _) => line.flags |= Service::LOCAL,
            ("everybody", _) => line.flags |= Service::EVERYBODY,
            ("masquerade", _) => line.flags |= Service::MASQUERADE,
            ("direct", _) => line.flags |= Service::DIRECT,
            (_, Some(("affinity", time))) => line.affinity = seconds(time)?,
            (_, Some(("from", nets))) => {
                let (net4, net6) = nets.split_once(',').ok_or("from=NET4,NET6")?;
                line.flags |= Service::RANGES;
                line.sources.push(prefix(if world.v6 { net6 } else { net4 })?);
            }
            _ => line.backends.push(backend(word)?),
        }
    }
    let same = |other: &ServiceLine| other.proto == proto && other.at == line.at;
    match world.services.iter_mut().find(|s| same(s)) {
        Some(old) => *old = line,
        None => world.services.push(line),
    }
    Ok(())
}

fn allowed(v6: bool, policy: u32, nets: (&str, &str), more: &[&str]) -> Built<AllowedLine> {
    let net = |text: &str| text.parse::<IpNet>().map_err(|_| format!("{text}: no prefix"));
    let pick = |(net4, net6)| net(if v6 { net6 } else { net4 });
    let mut line = AllowedLine { policy, net: pick(nets)?, except: Vec::new(), ports: Ports::new() };
    for word in more {
        match word.split_once('=') {
            Some(("except", nets)) => line.except.push(pick(nets.split_once(',').ok_or("except=NET4,NET6")?)?),
            Some((proto, ports)) => {
                let proto = Some(proto_number(proto)?);
                let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
                let number = |text: &str| text.parse::<u16>().map_err(|_| format!("{text}: no port"));
                line.ports.insert(Range { proto, first: number(first)?, last: number(last)? });
            }
            None => return Err(format!("{word}: except=NET4,NET6 or PROTO=FIRST-LAST")),
        }
    }
    if line.ports.is_empty() {
        line.ports.insert(Range::ALL);
    }
    Ok(line)
}

fn proto_number(proto: &str) -> Built<u8> {
    match proto {
        "tcp" => Ok(6),
        "udp" => Ok(17),
        "sctp" => Ok(132),
        _ => Err(format!("{proto}: tcp, udp or sctp")),
    }
}

/// `pod1:8080/remote/draining`
fn backend(word: &str) -> Built<BackendLine> {
    let mut parts = word.split('/');
    let at = parts.next().unwrap_or("").parse()?;
    let mut line = BackendLine { at, remote: false, direct: false, draining: false, gone: false, here: None };
    for part in parts {
        match part {
            "remote" => line.remote = true,
            "direct" => (line.remote, line.direct) = (true, true),
            "draining" => line.draining = true,
            "gone" => line.gone = true,
            "here" => line.here = Some(Here::Ready),
            "last" => line.here = Some(Here::Last),
            _ => return Err(format!("{part}: remote, direct, draining, gone, here or last")),
        }
    }
    Ok(line)
}

fn prefix(text: &str) -> Built<(IpAddr, u32)> {
    let net: ipnet::IpNet = text.parse().map_err(|_| format!("{text}: no prefix"))?;
    Ok((net.network(), net.prefix_len().into()))
}

pub(super) fn seconds(text: &str) -> Built<u32> {
    let (number, unit) = match (text.strip_suffix('h'), text.strip_suffix('m'), text.strip_suffix('s')) {
        (Some(n), _, _) => (n, 3600),
        (_, Some(n), _) => (n, 60),
        (_, _, Some(n)) => (n, 1),
        _ => return Err(format!("{text}: a time is 30s, 4m or 2h")),
    };
    number.parse::<u32>().map(|n| n * unit).map_err(|_| format!("{text}: no time"))
}

fn each_number(pairs: &[&str], mut with: impl FnMut(&str, u32) -> Built<()>) -> Built<()> {
    for pair in pairs {
        let (key, value) = pair.split_once('=').ok_or_else(|| format!("{pair}: KEY=NUMBER"))?;
        with(key, value.parse().map_err(|_| format!("{pair}: no number"))?)?;
    }
    Ok(())
}

fn flag(world: &mut World, link: &str, flag: u16) {
    match world.forwards.iter_mut().find(|(name, _)| name == link) {
        Some((_, flags)) => *flags |= flag,
        None => world.forwards.push((link.into(), flag)),
    }
}
