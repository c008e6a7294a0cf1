//! Packets out of words, hexadecimal digits and files, and a packet in words.

use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use etherparse::{
    EtherType, Icmpv4Type, Icmpv6Type, IpNumber, LaxNetSlice, LaxSlicedPacket, PacketBuilder, TransportSlice,
};
use pcap_file::DataLink;
use pcap_file::pcap::PcapReader;

/// Of a file at the most.
const MOST: usize = 10_000;
/// Of a sender that nobody knows.
const STRANGER: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// A packet in words.
#[derive(Clone, Debug, PartialEq)]
pub struct Words {
    pub protocol: String,
    pub source: SocketAddr,
    pub target: SocketAddr,
    /// TCP's, by their names.
    pub flags: Vec<String>,
    pub ttl: u8,
    /// Of its payload.
    pub length: usize,
}

impl Words {
    /// `tcp 198.51.100.7:40000 192.168.20.100:80`
    pub fn read(words: &[String]) -> Result<Words> {
        let [protocol, source, target] = words else {
            bail!("{} words; expected three, such as tcp 198.51.100.7:40000 192.168.20.100:80", words.len());
        };
        let ports = match protocol.as_str() {
            "tcp" | "udp" | "sctp" => true,
            "icmp" => false,
            other => bail!("`{other}`; expected tcp, udp, sctp or icmp"),
        };
        let end = |text: &str| -> Result<SocketAddr> {
            let right =
                if ports { "an address and a port, such as 192.0.2.1:80 or [2001:db8::1]:80" } else { "an address" };
            let read = if ports { text.parse().ok() } else { text.parse().ok().map(|addr| SocketAddr::new(addr, 0)) };
            read.with_context(|| format!("`{text}`; expected {right}"))
        };
        let (source, target) = (end(source)?, end(target)?);
        ensure!(source.is_ipv4() == target.is_ipv4(), "{source} and {target} are of two families; expected one");
        Ok(Words { protocol: protocol.clone(), source, target, flags: vec!["syn".into()], ttl: 64, length: 0 })
    }

    /// To the link-layer address `to`.
    pub fn build(&self, to: [u8; 6]) -> Result<Vec<u8>> {
        let link = PacketBuilder::ethernet2(STRANGER, to);
        let ip = match (self.source.ip(), self.target.ip()) {
            (IpAddr::V4(source), IpAddr::V4(target)) => link.ipv4(source.octets(), target.octets(), self.ttl),
            (IpAddr::V6(source), IpAddr::V6(target)) => link.ipv6(source.octets(), target.octets(), self.ttl),
            _ => bail!("two families"),
        };
        let (source, target) = (self.source.port(), self.target.port());
        let (mut bytes, payload) = (Vec::new(), vec![0; self.length]);
        match self.protocol.as_str() {
            "tcp" => {
                let mut tcp = ip.tcp(source, target, 1, 65_535);
                for flag in &self.flags {
                    tcp = match flag.as_str() {
                        "syn" => tcp.syn(),
                        "ack" => tcp.ack(1),
                        "fin" => tcp.fin(),
                        "rst" => tcp.rst(),
                        "psh" => tcp.psh(),
                        other => bail!("`{other}`; expected flags of syn, ack, fin, rst and psh"),
                    };
                }
                tcp.write(&mut bytes, &payload)?;
            }
            "udp" => ip.udp(source, target).write(&mut bytes, &payload)?,
            "icmp" if self.source.is_ipv4() => ip.icmpv4_echo_request(1, 1).write(&mut bytes, &payload)?,
            "icmp" => ip.icmpv6_echo_request(1, 1).write(&mut bytes, &payload)?,
            _ => {
                // Verification tag and checksum: nobody here looks at them.
                let header = [&source.to_be_bytes()[..], &target.to_be_bytes(), &[0; 8], &payload].concat();
                ip.write(&mut bytes, IpNumber::SCTP, &header)?;
            }
        }
        Ok(bytes)
    }
}

/// A whole frame, from its Ethernet header on.
pub fn hex(text: &str) -> Result<Vec<u8>> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace() && *b != b':').collect();
    ensure!(digits.len().is_multiple_of(2), "an odd number of digits; expected two for each byte of a frame");
    let one = |pair: &[u8]| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let bytes: Option<Vec<u8>> = digits.chunks_exact(2).map(one).collect();
    let bytes =
        bytes.context("other characters than hexadecimal digits; expected a frame from its Ethernet header on")?;
    ensure!(bytes.len() >= 14, "{} bytes; expected at least the 14 of an Ethernet header", bytes.len());
    Ok(bytes)
}

/// The packets of a capture file.
pub fn capture(path: &Path) -> Result<Vec<Vec<u8>>> {
    let at = || path.display().to_string();
    let file = File::open(path).with_context(at)?;
    let mut reader =
        PcapReader::new(file).context("expected a file as `tcpdump -w` writes it (pcap)").with_context(at)?;
    let link = reader.header().datalink;
    ensure!(link == DataLink::ETHERNET, "{}: frames of {link:?}; expected Ethernet", at());
    let mut all = Vec::new();
    while let Some(packet) = reader.next_packet() {
        let packet = packet.with_context(|| format!("packet {}", all.len() + 1)).with_context(at)?;
        ensure!(
            packet.data.len() as u32 == packet.orig_len,
            "{}: packet {} was cut; expected whole ones (`tcpdump -s 0`)",
            at(),
            all.len() + 1
        );
        all.push(packet.data.into_owned());
        ensure!(all.len() <= MOST, "{}: more than {MOST} packets; expected fewer", at());
    }
    Ok(all)
}

/// Source and target of a packet, which may be cut; without ports they are of port 0.
pub fn ends(bytes: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    of(&LaxSlicedPacket::from_ethernet(bytes).ok()?).map(|(source, target, _)| (source, target))
}

/// Protocol, source and target of a packet of TCP or UDP.
pub fn tuple(bytes: &[u8]) -> Option<(u8, SocketAddr, SocketAddr)> {
    let packet = LaxSlicedPacket::from_ethernet(bytes).ok()?;
    let (source, target, _) = of(&packet)?;
    match packet.transport? {
        TransportSlice::Tcp(_) => Some((IpNumber::TCP.0, source, target)),
        TransportSlice::Udp(_) => Some((IpNumber::UDP.0, source, target)),
        _ => None,
    }
}

/// Its ends, and what else its IP header says.
fn of(packet: &LaxSlicedPacket<'_>) -> Option<(SocketAddr, SocketAddr, String)> {
    let (source, target, ttl, part): (IpAddr, IpAddr, u8, bool) = match packet.net.as_ref()? {
        LaxNetSlice::Ipv4(ip) => {
            let header = ip.header();
            let part = header.is_fragmenting_payload();
            (header.source_addr().into(), header.destination_addr().into(), header.ttl(), part)
        }
        LaxNetSlice::Ipv6(ip) => {
            let header = ip.header();
            let part = ip.payload().fragmented;
            (header.source_addr().into(), header.destination_addr().into(), header.hop_limit(), part)
        }
        LaxNetSlice::Arp(_) => return None,
    };
    let (from, to) = match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
        Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
        _ => (0, 0),
    };
    let part = if part { ", a fragment" } else { "" };
    Some((SocketAddr::new(source, from), SocketAddr::new(target, to), format!("ttl {ttl}{part}")))
}

/// For people: who sends what to whom.
pub fn show(bytes: &[u8]) -> String {
    show_part(bytes, bytes.len())
}

/// The same of a packet of which no more is known than its beginning.
pub fn show_part(bytes: &[u8], length: usize) -> String {
    let Ok(packet) = LaxSlicedPacket::from_ethernet(bytes) else {
        return format!("{length} bytes that can't be read");
    };
    let Some((source, target, about)) = of(&packet) else { return format!("{length} bytes of {}", ether_type(bytes)) };
    let what = match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let flags =
                [(tcp.syn(), "SYN"), (tcp.ack(), "ACK"), (tcp.fin(), "FIN"), (tcp.rst(), "RST"), (tcp.psh(), "PSH")];
            let flags: Vec<&str> = flags.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect();
            format!("TCP {source} > {target} {}", flags.join("+"))
        }
        Some(TransportSlice::Udp(_)) => format!("UDP {source} > {target}"),
        Some(TransportSlice::Icmpv4(icmp)) => {
            let kind = match icmp.icmp_type() {
                Icmpv4Type::EchoRequest(_) => "echo request".to_owned(),
                Icmpv4Type::EchoReply(_) => "echo reply".to_owned(),
                other => format!("{other:?}"),
            };
            format!("ICMP {} > {} {kind}", source.ip(), target.ip())
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            let kind = match icmp.icmp_type() {
                Icmpv6Type::EchoRequest(_) => "echo request".to_owned(),
                Icmpv6Type::EchoReply(_) => "echo reply".to_owned(),
                other => format!("{other:?}"),
            };
            format!("ICMPv6 {} > {} {kind}", source.ip(), target.ip())
        }
        None => format!("{} > {}", source.ip(), target.ip()),
    };
    format!("{what}, {about}, {length} bytes")
}

fn ether_type(bytes: &[u8]) -> String {
    let Some(&[a, b]) = bytes.get(12..14) else { return "no Ethernet".into() };
    match EtherType(u16::from_be_bytes([a, b])) {
        EtherType::ARP => "ARP".into(),
        EtherType(other) => format!("Ethernet type {other:#06x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Result<Words> {
        Words::read(&text.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn words_become_packets() {
        for (text, want) in [
            (
                "tcp 198.51.100.7:40000 192.168.20.100:80",
                "TCP 198.51.100.7:40000 > 192.168.20.100:80 SYN, ttl 64, 54 bytes",
            ),
            ("udp [2001:db8::1]:53 [fd00::1]:5353", "UDP [2001:db8::1]:53 > [fd00::1]:5353, ttl 64, 62 bytes"),
            ("sctp 10.0.0.1:1 10.0.0.2:2", "10.0.0.1 > 10.0.0.2, ttl 64, 46 bytes"),
        ] {
            assert_eq!(show(&words(text).unwrap().build([2, 0, 0, 0, 0, 9]).unwrap()), want);
        }
        let echo = show(&words("icmp 10.0.0.1 10.0.0.2").unwrap().build([2; 6]).unwrap());
        assert!(echo.starts_with("ICMP 10.0.0.1 > 10.0.0.2 echo request"), "{echo}");
    }

    #[test]
    fn wrong_words() {
        let said = |text: &str| words(text).map(drop).unwrap_err().to_string();
        assert_eq!(said("tcp 10.0.0.1:1"), "2 words; expected three, such as tcp 198.51.100.7:40000 192.168.20.100:80");
        assert_eq!(said("gre 10.0.0.1 10.0.0.2"), "`gre`; expected tcp, udp, sctp or icmp");
        assert_eq!(
            said("tcp 10.0.0.1 10.0.0.2:80"),
            "`10.0.0.1`; expected an address and a port, such as 192.0.2.1:80 or [2001:db8::1]:80"
        );
        assert_eq!(said("icmp 10.0.0.1 fd00::1"), "10.0.0.1:0 and [fd00::1]:0 are of two families; expected one");
        for (text, want) in
            [("abc", "an odd number"), ("0x", "other characters"), ("00:11", "2 bytes; expected at least")]
        {
            let said = hex(text).unwrap_err().to_string();
            assert!(said.starts_with(want), "{said}");
        }
    }
}
