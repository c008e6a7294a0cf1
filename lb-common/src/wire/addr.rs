//! Addresses and ports in network byte order.

use core::fmt::Debug;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::flow_table::cell::{Cell64, Cells};
use crate::table::Plain;

/// A 16-bit value in network byte order: a port, a length, an EtherType.
#[repr(transparent)]
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Be16(u16);

impl Be16 {
    #[inline(always)]
    pub const fn new(host: u16) -> Self {
        Be16(host.to_be())
    }

    /// The value in host order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }

    /// The bits as they stand in memory, for checksums and hashes.
    #[inline(always)]
    pub const fn raw(self) -> u16 {
        self.0
    }

    #[inline(always)]
    pub const fn from_raw(raw: u16) -> Self {
        Be16(raw)
    }
}

/// An IPv4 address.
#[repr(transparent)]
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Ip4(u32);

/// An IPv6 address.
#[repr(transparent)]
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Ip6([u32; 4]);

impl Ip4 {
    /// The bits as they stand in memory.
    #[inline(always)]
    pub const fn raw(self) -> u32 {
        self.0
    }

    #[inline(always)]
    pub const fn from_raw(raw: u32) -> Self {
        Ip4(raw)
    }
}

impl Ip6 {
    /// An IPv4 address as IPv6 has it (RFC 4291 §2.5.5.2).
    #[inline(always)]
    pub const fn mapped(addr: Ip4) -> Self {
        Ip6([0, 0, 0xffff_u32.to_be(), addr.0])
    }

    /// Whether it is one, which then stands in the last word.
    #[inline(always)]
    pub const fn is_mapped(self) -> bool {
        let [a, b, c, _] = self.0;
        a | b == 0 && c == 0xffff_u32.to_be()
    }

    /// The bits as they stand in memory.
    #[inline(always)]
    pub const fn raw(self) -> [u32; 4] {
        self.0
    }

    #[inline(always)]
    pub const fn from_raw(raw: [u32; 4]) -> Self {
        Ip6(raw)
    }
}

impl From<Ipv4Addr> for Ip4 {
    fn from(a: Ipv4Addr) -> Self {
        Ip4(u32::from_ne_bytes(a.octets()))
    }
}

impl From<Ip4> for Ipv4Addr {
    fn from(a: Ip4) -> Self {
        Ipv4Addr::from(a.0.to_ne_bytes())
    }
}

impl From<Ipv6Addr> for Ip6 {
    fn from(a: Ipv6Addr) -> Self {
        zerocopy::transmute!(a.octets())
    }
}

impl From<Ip6> for Ipv6Addr {
    fn from(a: Ip6) -> Self {
        let octets: [u8; 16] = zerocopy::transmute!(a.0);
        Ipv6Addr::from(octets)
    }
}

/// A link-layer address.
#[repr(transparent)]
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Mac(pub [u8; 6]);

/// An address family: what differs between IPv4 and IPv6, so that the path is written once.
pub trait Addr:
    Plain
    + Copy
    + Eq
    + core::hash::Hash
    + Ord
    + Debug
    + Default
    + FromBytes
    + IntoBytes
    + Immutable
    + KnownLayout
    + Send
    + Sync
    + 'static
{
    /// Whether this is IPv6.
    const IS_V6: bool;
    /// Length of a full prefix.
    const BITS: u32;
    /// Two addresses in whole words: how many, the words, and the same in memory that CPUs share.
    const PAIR: usize;
    type PairWords: Copy + AsRef<[u64]>;
    type Pair: Cells<Words = Self::PairWords> + Default + Sync;

    fn pair(src: Self, dst: Self) -> Self::PairWords;
    fn unpair(words: Self::PairWords) -> (Self, Self);

    /// The address folded to 64 bits, for hashing.
    fn fold(self) -> u64;
    /// The one's complement sum of the address's 16-bit words, not yet folded to 16 bits.
    fn sum(self) -> u64;
    /// The address with all bits behind `/24` (IPv4) or `/112` (IPv6) cleared: the grain of the
    /// filter's prefix bits.
    fn grain(self) -> Self;
    /// The address's place in its grain.
    fn low(self) -> u32;
    /// The address with all bits behind `/24` (IPv4) or `/64` (IPv6) cleared.
    fn subnet(self) -> Self;
    /// The address as a number, its first bit the highest of the first half; IPv4 has 32 bits of it.
    fn halves(self) -> (u64, u64);
    /// In a table that both families share: [`Ip6::mapped`].
    fn mapped(self) -> Ip6;
    /// The address of this family that is so.
    fn unmapped(addr: Ip6) -> Self;

    /// For people and programs outside the data path.
    fn to_ip(self) -> IpAddr;
    /// The address, if `ip` is of this family.
    fn from_ip(ip: IpAddr) -> Option<Self>;
}

impl Addr for Ip4 {
    const IS_V6: bool = false;
    const BITS: u32 = 32;
    const PAIR: usize = 1;
    type PairWords = [u64; 1];
    type Pair = [Cell64; 1];

    #[inline(always)]
    fn pair(src: Self, dst: Self) -> [u64; 1] {
        [src.0 as u64 | (dst.0 as u64) << 32]
    }

    #[inline(always)]
    fn unpair([word]: [u64; 1]) -> (Self, Self) {
        (Ip4(word as u32), Ip4((word >> 32) as u32))
    }

    #[inline(always)]
    fn mapped(self) -> Ip6 {
        Ip6::mapped(self)
    }

    #[inline(always)]
    fn unmapped(addr: Ip6) -> Self {
        let [.., last] = addr.0;
        Ip4(last)
    }

    #[inline(always)]
    fn fold(self) -> u64 {
        self.0 as u64
    }

    #[inline(always)]
    fn sum(self) -> u64 {
        self.0 as u64
    }

    #[inline(always)]
    fn grain(self) -> Self {
        Ip4(self.0 & u32::from_be(0xffff_ff00))
    }

    #[inline(always)]
    fn low(self) -> u32 {
        u32::from_be(self.0) & 0xff
    }

    #[inline(always)]
    fn subnet(self) -> Self {
        self.grain()
    }

    #[inline(always)]
    fn halves(self) -> (u64, u64) {
        ((u32::from_be(self.0) as u64) << 32, 0)
    }

    fn to_ip(self) -> IpAddr {
        IpAddr::V4(self.into())
    }

    fn from_ip(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V4(a) => Some(a.into()),
            IpAddr::V6(_) => None,
        }
    }
}

impl Addr for Ip6 {
    const IS_V6: bool = true;
    const BITS: u32 = 128;
    const PAIR: usize = 4;
    type PairWords = [u64; 4];
    type Pair = [Cell64; 4];

    #[inline(always)]
    fn pair(src: Self, dst: Self) -> [u64; 4] {
        let (Ip6([a, b, c, d]), Ip6([e, f, g, h])) = (src, dst);
        let word = |low: u32, high: u32| low as u64 | (high as u64) << 32;
        [word(a, b), word(c, d), word(e, f), word(g, h)]
    }

    #[inline(always)]
    fn unpair(words: [u64; 4]) -> (Self, Self) {
        let [a, b, c, d] = words.map(|word| [word as u32, (word >> 32) as u32]);
        (Ip6([a[0], a[1], b[0], b[1]]), Ip6([c[0], c[1], d[0], d[1]]))
    }

    #[inline(always)]
    fn mapped(self) -> Ip6 {
        self
    }

    #[inline(always)]
    fn unmapped(addr: Ip6) -> Self {
        addr
    }

    #[inline(always)]
    fn fold(self) -> u64 {
        let [a, b, c, d] = self.0;
        let high = (a as u64) << 32 | b as u64;
        let low = (c as u64) << 32 | d as u64;
        high.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) ^ low
    }

    #[inline(always)]
    fn sum(self) -> u64 {
        let [a, b, c, d] = self.0;
        a as u64 + b as u64 + c as u64 + d as u64
    }

    #[inline(always)]
    fn grain(self) -> Self {
        let [a, b, c, d] = self.0;
        Ip6([a, b, c, d & u32::from_be(0xffff_0000)])
    }

    #[inline(always)]
    fn low(self) -> u32 {
        u32::from_be(self.0[3]) & 0xffff
    }

    #[inline(always)]
    fn subnet(self) -> Self {
        let [a, b, ..] = self.0;
        Ip6([a, b, 0, 0])
    }

    #[inline(always)]
    fn halves(self) -> (u64, u64) {
        let [a, b, c, d] = self.0;
        let half = |high: u32, low: u32| (u32::from_be(high) as u64) << 32 | u32::from_be(low) as u64;
        (half(a, b), half(c, d))
    }

    fn to_ip(self) -> IpAddr {
        IpAddr::V6(self.into())
    }

    fn from_ip(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V6(a) => Some(a.into()),
            IpAddr::V4(_) => None,
        }
    }
}
