//! From bytes to the line that would build them: for blessing, and for people who read a failure.
//!
//! The line is tried: where it doesn't build the very same bytes, they are shown as `raw`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::build::{build, network};
use super::{End, ICMP_NAMES, Names, Spec, TCP_FLAGS, default, hex, pattern};

/// The line for a frame.
pub fn show(frame: &[u8], names: &Names) -> Spec {
    let mut raw = Spec { kind: "raw".into(), ..Spec::default() };
    raw.set("data", hex(frame));
    let Some(mut spec) = link(frame, names) else {
        return raw;
    };
    let same = |spec: &Spec| build(spec, names).is_ok_and(|built| built == frame);
    if same(&spec) {
        return spec;
    }
    if let Some(len) = build(&spec, names).ok().map(|b| b.len()).filter(|len| *len < frame.len()) {
        spec.set("pad", frame.len() - len);
    } else if build(&spec, names).is_ok_and(|built| built.len() > frame.len()) {
        spec.set("cut", frame.len());
    }
    if same(&spec) { spec } else { raw }
}

/// The headers of a frame that has no exact line, as far as they go: for people only.
pub fn headers(frame: &[u8], names: &Names) -> String {
    match link(frame, names) {
        Some(spec) => spec.text(),
        None => format!("{} bytes: {}", frame.len(), hex(frame)),
    }
}

fn link(frame: &[u8], names: &Names) -> Option<Spec> {
    let mut at = 12;
    let mut tags = Vec::new();
    while frame.get(at..at + 2)? == [0x81, 0] {
        tags.push(word(frame, at + 2)?.to_string());
        at += 4;
    }
    let rest = &frame[at + 2..];
    let mut spec = match word(frame, at)? {
        0x0800 | 0x86dd => ip(rest, names)?,
        other => {
            let mut spec = Spec { kind: format!("ether-{other:#06x}"), ..Spec::default() };
            data(&mut spec, rest, 0, 46);
            spec
        }
    };
    if !tags.is_empty() {
        spec.set("vlan", tags.join(","));
    }
    for (key, at, usual) in [("to", 0, names.macs.1), ("from", 6, names.macs.0)] {
        if frame[at..at + 6] != usual {
            spec.set(key, frame[at..at + 6].iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":"));
        }
    }
    Some(spec)
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn double(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// `key=value` unless the value goes without saying.
fn say<T: PartialEq + ToString>(spec: &mut Spec, key: &str, value: T, usual: T) {
    if value != usual {
        spec.set(key, value.to_string());
    }
}

fn data(spec: &mut Spec, bytes: &[u8], from: usize, usual: usize) {
    if bytes == pattern(from, bytes.len()) {
        say(spec, "len", bytes.len(), usual);
    } else {
        spec.set("data", hex(bytes));
    }
}

/// A network packet. What the headers promise and the bytes don't hold is taken as the usual.
fn ip(bytes: &[u8], names: &Names) -> Option<Spec> {
    let spec = match bytes.first()? >> 4 {
        4 => ip4(bytes, names)?,
        6 => ip6(bytes, names)?,
        _ => return None,
    };
    let Some((_, built)) = network(&spec, names).ok() else {
        return Some(spec);
    };
    let shared = built.len().min(bytes.len());
    if built[..shared] == bytes[..shared] {
        return Some(spec);
    }
    // The checksum is the one field that isn't read above.
    let at = match spec.kind.as_str() {
        "tcp" => 16,
        "udp" => 6,
        "sctp" => 8,
        _ => 2,
    };
    let header = built.len() - body_len(&spec, &built);
    let mut wrong = spec.clone();
    let sum = match spec.kind.as_str() {
        "sctp" => double(bytes, header + at).map(u32::swap_bytes),
        _ => word(bytes, header + at).map(u32::from),
    };
    if let Some(sum) = sum {
        wrong.set("sum", format!("{sum:#x}"));
    }
    Some(wrong)
}

/// Bytes from the transport header on.
fn body_len(spec: &Spec, built: &[u8]) -> usize {
    let mut bare = spec.clone();
    for key in ["opts", "ext", "frag", "more", "id"] {
        bare.attrs.remove(key);
    }
    let _ = built;
    let header = match built[0] >> 4 {
        4 => usize::from(built[0] & 15) * 4,
        _ => walk(built).map_or(40, |(_, at, _)| at),
    };
    built.len() - header.min(built.len())
}

fn ip4(bytes: &[u8], names: &Names) -> Option<Spec> {
    let header = bytes.get(..20)?;
    let len = usize::from(header[0] & 15) * 4;
    let mut spec = Spec::default();
    say(&mut spec, "tos", header[1], 0);
    say(&mut spec, "ttl", header[8], default::TTL);
    say(&mut spec, "id", word(header, 4)?, default::ID);
    let fragment = word(header, 6)?;
    if fragment & 0x4000 != 0 {
        spec.set("df", "");
    }
    if fragment & 0x2000 != 0 {
        spec.set("more", "");
    }
    let offset = usize::from(fragment & 0x1fff) * 8;
    say(&mut spec, "frag", offset, 0);
    if len > 20 {
        spec.set("opts", hex(bytes.get(20..len)?));
    }
    let at = |i: usize| -> Option<IpAddr> { Some(Ipv4Addr::from(double(header, i)?).into()) };
    let total = usize::from(word(header, 2)?);
    let body = bytes.get(len..)?;
    let promised = total.checked_sub(len)?;
    transport(&mut spec, (at(12)?, at(16)?), header[9], (body, promised, offset), names)?;
    Some(spec)
}

/// Protocol, offset of the transport header, and the names of the extension headers.
fn walk(bytes: &[u8]) -> Option<(u8, usize, Vec<&'static str>)> {
    let (mut proto, mut at, mut names) = (*bytes.get(6)?, 40, Vec::new());
    loop {
        let len = |at: usize| Some(usize::from(*bytes.get(at + 1)?) * 8 + 8);
        let (name, step) = match proto {
            0 => ("hop", len(at)?),
            43 => ("routing", len(at)?),
            44 => ("frag", 8),
            60 if *bytes.get(at + 1)? == 2 => ("long", 24),
            60 => ("dst", len(at)?),
            51 => ("auth", usize::from(*bytes.get(at + 1)?) * 4 + 8),
            _ => return Some((proto, at, names)),
        };
        names.push(name);
        proto = *bytes.get(at)?;
        let later = name == "frag" && word(bytes, at + 2)? & 0xfff8 != 0;
        at += step;
        if later {
            return Some((proto, at, names));
        }
    }
}

fn ip6(bytes: &[u8], names: &Names) -> Option<Spec> {
    let header = bytes.get(..40)?;
    let mut spec = Spec::default();
    say(&mut spec, "tos", (double(header, 0)? >> 20) as u8, 0);
    say(&mut spec, "flow", double(header, 0)? & 0xf_ffff, 0);
    say(&mut spec, "ttl", header[7], default::TTL);
    let (proto, at, ext) = walk(bytes)?;
    let mut offset = 0;
    let mut fragment_at = 40;
    for name in &ext {
        if *name == "frag" {
            let bits = word(bytes, fragment_at + 2)?;
            offset = usize::from(bits & 0xfff8);
            say(&mut spec, "frag", offset, 0);
            if bits & 1 != 0 {
                spec.set("more", "");
            }
            say(&mut spec, "id", double(bytes, fragment_at + 4)?, default::ID.into());
        }
        fragment_at += usize::from(*bytes.get(fragment_at + 1)?) * 8 + 8;
    }
    let implied = ext == ["frag"] && ["frag", "more", "id"].iter().any(|k| spec.has(k));
    if !ext.is_empty() && !implied {
        spec.set("ext", ext.join(","));
    }
    let addr = |i: usize| Some(IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(header.get(i..i + 16)?).ok()?)));
    let promised = (usize::from(word(header, 4)?) + 40).checked_sub(at)?;
    transport(&mut spec, (addr(8)?, addr(24)?), proto, (bytes.get(at..)?, promised, offset), names)?;
    Some(spec)
}

fn transport(
    spec: &mut Spec,
    (src, dst): (IpAddr, IpAddr),
    proto: u8,
    (body, promised, offset): (&[u8], usize, usize),
    names: &Names,
) -> Option<()> {
    let kind = match (proto, src.is_ipv6()) {
        (6, _) => "tcp".into(),
        (17, _) => "udp".into(),
        (132, _) => "sctp".into(),
        (1, false) | (58, true) => "icmp".into(),
        (other, _) => format!("proto-{other}"),
    };
    let ports = offset == 0 && matches!(proto, 6 | 17 | 132);
    let port = |at| if ports { word(body, at) } else { None };
    spec.src = Some(End { host: names.name(src), port: port(0) });
    spec.dst = Some(End { host: names.name(dst), port: port(2) });
    // What is promised and not there is taken as the pattern goes on.
    let mut body = body[..body.len().min(promised)].to_vec();
    let there = body.len();
    body.resize(promised, 0);
    let fill = |body: &mut [u8], header: usize| {
        let from = there.max(header).min(body.len());
        let rest = pattern(from.saturating_sub(header), body.len() - from);
        body[from..].copy_from_slice(&rest);
    };
    match kind.as_str() {
        "tcp" if ports => tcp(spec, &mut body, there, fill)?,
        "udp" if ports => {
            fill(&mut body, 8);
            let len = usize::from(word(&body, 4)?);
            if len > body.len() {
                spec.set("rest", len - body.len());
            }
            data(spec, body.get(8..)?, 0, 8);
        }
        "sctp" if ports => {
            fill(&mut body, 12);
            say(spec, "vtag", double(&body, 4)?, 99);
            data(spec, body.get(12..)?, 0, 16);
        }
        "icmp" if offset == 0 => icmp(spec, &body, src.is_ipv6(), names)?,
        "icmp" => data(spec, &body, 0, 0),
        _ => data(spec, &body, offset.saturating_sub(8), 8),
    }
    spec.kind = kind;
    Some(())
}

fn tcp(spec: &mut Spec, body: &mut [u8], there: usize, fill: impl Fn(&mut [u8], usize)) -> Option<()> {
    say(spec, "seq", double(body, 4)?, default::SEQ);
    if there < 20 {
        // Only the start is quoted: the rest is as if nothing special were in it.
        let len = body.len().checked_sub(20)?;
        say(spec, "len", len, 0);
        return Some(());
    }
    let flags = body[13];
    for (name, bit) in TCP_FLAGS {
        if flags & bit != 0 {
            spec.set(name, "");
        }
    }
    say(spec, "ack", double(body, 8)?, if flags & 16 != 0 { default::ACK } else { 0 });
    say(spec, "win", word(body, 14)?, default::WINDOW);
    let header = usize::from(body[12] >> 4) * 4;
    if header > 20 {
        spec.set("topts", hex(body.get(20..header)?));
    }
    fill(body, header);
    data(spec, body.get(header..)?, 0, 0);
    Some(())
}

fn icmp(spec: &mut Spec, body: &[u8], v6: bool, names: &Names) -> Option<()> {
    let [kind, code, ..] = *body.get(..8)? else {
        return None;
    };
    let named = ICMP_NAMES.iter().find(|(_, four, six)| [kind, code] == if v6 { *six } else { *four });
    match named {
        Some((name, ..)) => spec.set(name, ""),
        None => {
            spec.set("type", kind);
            say(spec, "code", code, 0);
        }
    }
    let echo = matches!((v6, kind), (false, 0 | 8) | (true, 128 | 129));
    if echo {
        say(spec, "echo-id", word(body, 4)?, default::ECHO.0);
        say(spec, "echo-seq", word(body, 6)?, default::ECHO.1);
    } else {
        say(spec, "mtu", double(body, 4)?, 0);
    }
    let rest = &body[8..];
    let error = if v6 { kind < 128 } else { matches!(kind, 3 | 4 | 5 | 11 | 12) };
    if let Some(inner) = error.then(|| ip(rest, names)).flatten() {
        let built = network(&inner, names).ok()?.1;
        if built.len() >= rest.len() && built[..rest.len()] == *rest {
            say(spec, "quote", rest.len(), built.len());
            spec.inner = Some(Box::new(inner));
            return Some(());
        }
    }
    data(spec, rest, 0, 0);
    Some(())
}
