//! Header layouts: offsets and numbers from the standards.

/// EtherTypes (IEEE 802).
pub const ETH_P_IP: u16 = 0x0800;
pub const ETH_P_ARP: u16 = 0x0806;
pub const ETH_P_IPV6: u16 = 0x86dd;
pub const ETH_P_8021Q: u16 = 0x8100;
pub const ETH_P_8021AD: u16 = 0x88a8;

pub const ETH_LEN: u32 = 14;
pub const VLAN_LEN: u32 = 4;
/// Length of an IPv4 header without options (RFC 791).
pub const IP4_LEN: u32 = 20;
/// Length of the fixed IPv6 header (RFC 8200).
pub const IP6_LEN: u32 = 40;

/// Protocol numbers (IANA).
pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const DCCP: u8 = 33;
pub const ICMP6: u8 = 58;
pub const SCTP: u8 = 132;
pub const UDP_LITE: u8 = 136;

/// IPv6 extension headers that are walked (RFC 8200 §4).
pub const HOP_BY_HOP: u8 = 0;
pub const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const DEST_OPTIONS: u8 = 60;

/// TCP flags, byte 13 of the header (RFC 9293).
pub const TCP_FIN: u8 = 0x01;
pub const TCP_SYN: u8 = 0x02;
pub const TCP_RST: u8 = 0x04;
pub const TCP_ACK: u8 = 0x10;
