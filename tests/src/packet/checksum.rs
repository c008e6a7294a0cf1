//! Checksums computed in full, from the standards: the judge of the engine's incremental ones.

use std::net::IpAddr;

/// RFC 1071: the one's complement of the one's complement sum.
pub fn internet(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The pseudo header of RFC 9293 §3.1 and RFC 8200 §8.1.
pub fn pseudo(src: IpAddr, dst: IpAddr, proto: u8, len: usize) -> Vec<u8> {
    let mut bytes = octets(src);
    bytes.extend(octets(dst));
    bytes.extend((len as u32).to_be_bytes());
    bytes.extend([0, 0, 0, proto]);
    bytes
}

pub fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// RFC 9260 appendix A: CRC32c.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    !crc
}

/// Whether all checksums of an unfragmented packet are right; None where this can't say.
pub fn right(frame: &[u8]) -> Option<bool> {
    let at = if frame.get(12..14)? == [0x81, 0] { 16 } else { 12 };
    let (ethertype, packet) = (frame.get(at..at + 2)?, frame.get(at + 2..)?);
    match ethertype {
        [0x08, 0x00] => right4(packet),
        [0x86, 0xdd] => right6(packet),
        _ => None,
    }
}

fn right4(packet: &[u8]) -> Option<bool> {
    let header = packet.get(..usize::from(packet.first()? & 15) * 4).filter(|h| h.len() >= 20)?;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
    if internet(&[header]) != 0 {
        return Some(false);
    }
    let body = packet.get(header.len()..total).filter(|_| !fragment)?;
    let addr = |at: usize| <[u8; 4]>::try_from(&header[at..at + 4]).map(IpAddr::from).ok();
    transport((addr(12)?, addr(16)?), header[9], body)
}

fn right6(packet: &[u8]) -> Option<bool> {
    let header = packet.get(..40)?;
    let total = 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
    let (mut next, mut at) = (header[6], 40);
    while matches!(next, 0 | 43 | 60) {
        let [following, len] = *packet.get(at..at + 2)? else {
            return None;
        };
        (next, at) = (following, at + usize::from(len) * 8 + 8);
    }
    let addr = |at: usize| <[u8; 16]>::try_from(&header[at..at + 16]).map(IpAddr::from).ok();
    transport((addr(8)?, addr(24)?), next, packet.get(at..total)?)
}

fn transport((src, dst): (IpAddr, IpAddr), proto: u8, body: &[u8]) -> Option<bool> {
    let shortest = [(1, 8), (6, 20), (17, 8), (58, 8), (132, 12)].iter().find(|(p, _)| *p == proto)?.1;
    let check = |body: &[u8]| internet(&[&pseudo(src, dst, proto, body.len()), body]) == 0;
    match proto {
        _ if body.len() < shortest => None,
        1 => Some(internet(&[body]) == 0),
        17 if body[6..8] == [0, 0] => src.is_ipv4().then_some(true),
        17 => Some(check(body.get(..usize::from(u16::from_be_bytes([body[4], body[5]])))?)),
        132 => Some(crc32c(&[&body[..8], &[0; 4], &body[12..]].concat()).to_le_bytes() == body[8..12]),
        _ => Some(check(body)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        // RFC 1071 §3's example, and the check value of CRC-32C's catalogue entry.
        assert_eq!(internet(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }
}
