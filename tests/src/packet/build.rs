//! From a [`Spec`] to bytes, every length and checksum computed in full.

use std::net::IpAddr;

use super::checksum::{crc32c, internet, octets, pseudo};
use super::{ICMP_NAMES, Mac, Names, Spec, TCP_FLAGS, default, pattern, unhex};

type Built<T> = Result<T, String>;

/// The frame, from the link-layer header on.
pub fn build(spec: &Spec, names: &Names) -> Built<Vec<u8>> {
    known(spec)?;
    if spec.kind == "raw" {
        return unhex(spec.attrs.get("data").map_or("", |d| d));
    }
    let (ethertype, body) = match spec.kind.strip_prefix("ether-0x") {
        Some(hex) => (u16::from_str_radix(hex, 16).map_err(|e| format!("{hex}: {e}"))?, payload(spec, 0, 46)?),
        None if spec.kind == "arp" => (0x0806, arp(spec, names)?),
        None => network(spec, names)?,
    };
    let mut frame = Vec::new();
    frame.extend(mac(spec, "to")?.unwrap_or(names.macs.1));
    frame.extend(mac(spec, "from")?.unwrap_or(names.macs.0));
    for tag in spec.attrs.get("vlan").iter().flat_map(|list| list.split(',')) {
        frame.extend([0x81, 0x00]);
        frame.extend(tag.parse::<u16>().map_err(|_| format!("vlan={tag}"))?.to_be_bytes());
    }
    frame.extend(ethertype.to_be_bytes());
    frame.extend(body);
    frame.extend(vec![0; spec.number("pad", 0)? as usize]);
    frame.truncate(spec.number("cut", frame.len() as u64)? as usize);
    Ok(frame)
}

/// Refuses words that mean nothing here, so that no case says what isn't so.
fn known(spec: &Spec) -> Built<()> {
    const WORDS: &[&str] = &[
        "from", "to", "vlan", "pad", "cut", "data", "len", "ttl", "tos", "id", "df", "more", "frag", "rest", "opts",
        "ext", "iplen", "ipsum", "seq", "ack", "win", "topts", "doff", "sum", "badsum", "ulen", "vtag", "echo-id",
        "echo-seq", "mtu", "type", "code", "word", "quote", "flow", "ihl",
    ];
    let flag = |word: &str| TCP_FLAGS.iter().any(|(f, _)| *f == word) || ICMP_NAMES.iter().any(|(n, ..)| *n == word);
    match spec.attrs.keys().find(|key| !WORDS.contains(&key.as_str()) && !flag(key)) {
        Some(key) => Err(format!("{key}: not a word for packets")),
        None => Ok(()),
    }
}

fn mac(spec: &Spec, key: &str) -> Built<Option<Mac>> {
    spec.attrs.get(key).map(|text| parse_mac(text)).transpose()
}

pub fn parse_mac(text: &str) -> Built<Mac> {
    let bytes = unhex(&text.replace(':', ""))?;
    bytes.try_into().map_err(|_| format!("{text}: not a link-layer address"))
}

fn payload(spec: &Spec, from: usize, default: u64) -> Built<Vec<u8>> {
    match spec.attrs.get("data") {
        Some(data) => unhex(data),
        None => Ok(pattern(from, spec.number("len", default)? as usize)),
    }
}

fn ends(spec: &Spec, names: &Names) -> Built<(IpAddr, IpAddr)> {
    let (Some(src), Some(dst)) = (&spec.src, &spec.dst) else {
        return Err(format!("{}: source and destination are missing", spec.kind));
    };
    Ok((names.resolve(&src.host)?, names.resolve(&dst.host)?))
}

/// RFC 826: who has `dst`, says `src`.
fn arp(spec: &Spec, names: &Names) -> Built<Vec<u8>> {
    let (src, dst) = ends(spec, names)?;
    let mut bytes = vec![0, 1, 8, 0, 6, 4, 0, 1];
    bytes.extend(names.macs.0);
    bytes.extend(octets(src));
    bytes.extend([0; 6]);
    bytes.extend(octets(dst));
    Ok(bytes)
}

/// EtherType and network packet.
pub fn network(spec: &Spec, names: &Names) -> Built<(u16, Vec<u8>)> {
    let (src, dst) = ends(spec, names)?;
    if src.is_ipv6() != dst.is_ipv6() {
        return Err(format!("{src} and {dst} are of different families"));
    }
    let proto = match spec.kind.as_str() {
        "tcp" => 6,
        "udp" => 17,
        "sctp" => 132,
        "icmp" if src.is_ipv6() => 58,
        "icmp" => 1,
        kind => kind.strip_prefix("proto-").and_then(|n| n.parse().ok()).ok_or(format!("{kind}: not a protocol"))?,
    };
    let body = transport(spec, names, (src, dst), proto)?;
    let tos = spec.number("tos", 0)? as u8;
    let ttl = spec.number("ttl", default::TTL.into())? as u8;
    match src {
        IpAddr::V4(_) => Ok((0x0800, ip4(spec, (src, dst), [tos, ttl, proto], &body)?)),
        IpAddr::V6(_) => Ok((0x86dd, ip6(spec, (src, dst), [tos, ttl, proto], &body)?)),
    }
}

fn ip4(spec: &Spec, (src, dst): (IpAddr, IpAddr), [tos, ttl, proto]: [u8; 3], body: &[u8]) -> Built<Vec<u8>> {
    let mut options = unhex(spec.attrs.get("opts").map_or("", |o| o))?;
    options.resize(options.len().div_ceil(4) * 4, 0);
    let words = spec.number("ihl", 5 + options.len() as u64 / 4)? as u8;
    let len = spec.number("iplen", (20 + options.len() + body.len()) as u64)? as u16;
    let mut fragment = (spec.number("frag", 0)? / 8) as u16;
    fragment |= u16::from(spec.has("df")) << 14 | u16::from(spec.has("more")) << 13;
    let mut header = vec![0x40 | words, tos];
    header.extend(len.to_be_bytes());
    header.extend((spec.number("id", default::ID.into())? as u16).to_be_bytes());
    header.extend(fragment.to_be_bytes());
    header.extend([ttl, proto, 0, 0]);
    header.extend(octets(src));
    header.extend(octets(dst));
    header.extend(options);
    let sum = spec.number("ipsum", internet(&[&header]).into())? as u16;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header.extend(body);
    Ok(header)
}

fn ip6(spec: &Spec, (src, dst): (IpAddr, IpAddr), [class, limit, proto]: [u8; 3], body: &[u8]) -> Built<Vec<u8>> {
    let listed = spec.attrs.get("ext").map_or("", |e| e);
    let mut names: Vec<&str> = listed.split(',').filter(|n| !n.is_empty()).collect();
    if !names.contains(&"frag") && ["frag", "more", "id"].iter().any(|k| spec.has(k)) {
        names.push("frag");
    }
    let number = |name: &str| match name {
        "hop" => Ok(0u8),
        "routing" => Ok(43),
        "frag" => Ok(44),
        "dst" | "long" => Ok(60),
        "auth" => Ok(51),
        _ => Err(format!("ext={name}: not an extension header")),
    };
    let mut next: Vec<u8> = names.iter().map(|n| number(n)).collect::<Built<_>>()?;
    next.push(proto);
    let mut rest = Vec::new();
    for (name, next) in names.iter().zip(&next[1..]) {
        match *name {
            "frag" => {
                let word = spec.number("frag", 0)? as u16 & !7 | u16::from(spec.has("more"));
                rest.extend([*next, 0]);
                rest.extend(word.to_be_bytes());
                rest.extend((spec.number("id", default::ID.into())? as u32).to_be_bytes());
            }
            // Filled by one PadN option (RFC 8200 §4.2).
            "long" => rest.extend([&[*next, 2, 1, 20][..], &[0; 20]].concat()),
            "auth" => rest.extend([&[*next, 2][..], &[0; 14]].concat()),
            _ => rest.extend([*next, 0, 1, 4, 0, 0, 0, 0]),
        }
    }
    rest.extend(body);
    let mut header = (0x6000_0000 | u32::from(class) << 20 | spec.number("flow", 0)? as u32).to_be_bytes().to_vec();
    header.extend((spec.number("iplen", rest.len() as u64)? as u16).to_be_bytes());
    header.extend([next[0], limit]);
    header.extend(octets(src));
    header.extend(octets(dst));
    header.extend(rest);
    Ok(header)
}

/// The transport header and what it carries. A later fragment and a protocol without ports are data alone.
fn transport(spec: &Spec, names: &Names, (src, dst): (IpAddr, IpAddr), proto: u8) -> Built<Vec<u8>> {
    let ports = (spec.src.as_ref().and_then(|e| e.port), spec.dst.as_ref().and_then(|e| e.port));
    let (mut header, at, default_len) = match (spec.kind.as_str(), ports) {
        ("icmp", _) if spec.number("frag", 0)? > 0 => return payload(spec, 0, 0),
        ("icmp", _) => (icmp(spec, names, src.is_ipv6())?, 2, 0),
        ("tcp", (Some(s), Some(d))) => (tcp(spec, s, d)?, 16, 0),
        ("udp", (Some(s), Some(d))) => ([s.to_be_bytes(), d.to_be_bytes(), [0; 2], [0; 2]].concat(), 6, 8),
        ("sctp", (Some(s), Some(d))) => {
            let vtag = (spec.number("vtag", 99)? as u32).to_be_bytes();
            ([&s.to_be_bytes(), &d.to_be_bytes(), &vtag[..], &[0; 4]].concat(), 8, 16)
        }
        _ => return payload(spec, spec.number("frag", 0)?.saturating_sub(8) as usize, 8),
    };
    let data = if spec.inner.is_some() { quoted(spec, names)? } else { payload(spec, 0, default_len)? };
    let whole = header.len() + data.len() + spec.number("rest", 0)? as usize;
    if spec.kind == "udp" {
        let len = spec.number("ulen", whole as u64)? as u16;
        header[4..6].copy_from_slice(&len.to_be_bytes());
    }
    let rest = pattern(data.len(), whole - header.len() - data.len());
    if spec.kind == "sctp" {
        let sum = crc32c(&[&header[..], &data, &rest].concat());
        let sum = spec.number("sum", sum.into())? as u32;
        header[8..12].copy_from_slice(&sum.to_le_bytes());
    } else {
        let pseudo = if proto == 1 { Vec::new() } else { pseudo(src, dst, proto, whole) };
        // An odd middle part would shift the words behind it.
        let body = [&header[..], &data, &rest].concat();
        let wrong = (spec.number("badsum", 0)? as u16).to_be_bytes();
        let sum = match internet(&[&pseudo, &body, &wrong]) {
            0 if proto == 17 => 0xffff,
            sum => sum,
        };
        header[at..at + 2].copy_from_slice(&(spec.number("sum", sum.into())? as u16).to_be_bytes());
    }
    header.extend(data);
    Ok(header)
}

fn tcp(spec: &Spec, sport: u16, dport: u16) -> Built<Vec<u8>> {
    let flags = TCP_FLAGS.iter().filter(|(name, _)| spec.has(name)).fold(0, |all, (_, bit)| all | bit);
    let ack = if flags & 16 != 0 { default::ACK } else { 0 };
    let mut options = unhex(spec.attrs.get("topts").map_or("", |o| o))?;
    options.resize(options.len().div_ceil(4) * 4, 0);
    let words = spec.number("doff", 5 + options.len() as u64 / 4)? as u8;
    let mut header = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
    header.extend((spec.number("seq", default::SEQ.into())? as u32).to_be_bytes());
    header.extend((spec.number("ack", ack.into())? as u32).to_be_bytes());
    header.extend([words << 4, flags]);
    header.extend((spec.number("win", default::WINDOW.into())? as u16).to_be_bytes());
    header.extend([0; 4]);
    header.extend(options);
    Ok(header)
}

fn icmp(spec: &Spec, names: &Names, v6: bool) -> Built<Vec<u8>> {
    let named = ICMP_NAMES.iter().find(|(name, ..)| spec.has(name));
    let [kind, code] = named.map_or([0, 0], |(_, four, six)| if v6 { *six } else { *four });
    let kind = spec.number("type", kind.into())? as u8;
    let mut header = vec![kind, spec.number("code", code.into())? as u8, 0, 0];
    let echo = matches!((v6, kind), (false, 0 | 8) | (true, 128 | 129));
    let word = match echo {
        true => {
            let (id, seq) = default::ECHO;
            (spec.number("echo-id", id.into())? << 16 | spec.number("echo-seq", seq.into())?) as u32
        }
        false => spec.number("mtu", 0)? as u32,
    };
    header.extend((spec.number("word", word.into())? as u32).to_be_bytes());
    let _ = names;
    Ok(header)
}

/// The packet that an ICMP error quotes, cut at `quote=` bytes.
fn quoted(spec: &Spec, names: &Names) -> Built<Vec<u8>> {
    let Some(inner) = &spec.inner else {
        return Ok(Vec::new());
    };
    known(inner)?;
    let (_, mut bytes) = network(inner, names)?;
    bytes.truncate(spec.number("quote", bytes.len() as u64)? as usize);
    Ok(bytes)
}
