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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        // RFC 1071 §3's example, and the check value of CRC-32C's catalogue entry.
        assert_eq!(
            internet(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]),
            !0xddf2
        );
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }
}
