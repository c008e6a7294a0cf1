//! Who has which port outside: the allocator of translated sources.
//!
//! A plane is one outside address; it has 65,536 ports for each of TCP, UDP and ICMP (whose ids are its
//! ports). A port is one bit, taken by a compare-and-exchange on its word, and an [`Owner`]: the one
//! endpoint inside that it belongs to, whoever that sends to (endpoint-independent mapping, RFC 4787
//! REQ-1). An endpoint has its own port outside, too, if that is in the range and free: its home.
//! Promises:
//!
//! 1. A port has one owner at a time: the bit's, from [`take`] to [`release`].
//! 2. To find one is bounded work: the home, then [`BLOCKS`] words of 64 ports, then [`LOOKS`] owners
//!    whose time may be over, others with every tick.
//! 3. What an agent that dies leaves half done is a bit without an owner, which its successor's sweep
//!    finds ([`release_leaked`]).
//!
//! What is not here: which flows use a mapping, and when one ends ([`crate::path::nat`]).

mod hosts;

pub use hosts::{HOLDERS, HOSTS_FULL, Holder, OVER_QUOTA, admit, charge, refund};

use crate::flow_table::cell::{Cell32, Cell64, Cells, acquire};
use crate::hash;
use crate::table::Settings;
use crate::tables::Configured;
use crate::tcp;
use crate::wire::header::{ICMP, ICMP6, TCP, UDP};
use crate::wire::{Addr, Be16};

/// Protocols whose ports can be changed.
pub const CLASSES: u32 = 3;
/// Ports of a class in a plane.
pub const PORTS: u32 = 1 << 16;
/// Entries of a plane.
pub const PLANE: u32 = CLASSES * PORTS;
/// Words that are searched for a free port.
const BLOCKS: u32 = 8;
/// Owners looked at for one whose time is over, when there is no free port.
const LOOKS: u32 = 2;
/// Places where they are looked for in one tick.
const PLACES: u32 = 32;
/// How often a change is tried that another CPU's change undid.
const TRIES: u32 = 4;

/// Where the arrays are.
pub trait PortTable<A: Addr> {
    /// The bits of 64 ports: those from entry `index * 64` on.
    fn ports(&self, index: u32) -> Option<&Cell64>;
    /// The owner of an entry ([`entry`]).
    fn owner(&self, index: u32) -> Option<&Owner<A>>;
    /// One of the [`HOLDERS`].
    fn holder(&self, index: u32) -> Option<&Holder<A>>;
}

/// The class of a protocol; None: its ports stay as they are, if it has any.
#[inline(always)]
pub fn class(proto: u32) -> Option<u32> {
    const TCP_: u32 = TCP as u32;
    const UDP_: u32 = UDP as u32;
    const ICMP_: u32 = ICMP as u32;
    const ICMP6_: u32 = ICMP6 as u32;
    match proto {
        TCP_ => Some(0),
        UDP_ => Some(1),
        ICMP_ | ICMP6_ => Some(2),
        _ => None,
    }
}

/// The protocol of a class.
pub const fn proto<A: Addr>(class: u32) -> u8 {
    match class {
        0 => TCP,
        1 => UDP,
        _ if A::IS_V6 => ICMP6,
        _ => ICMP,
    }
}

/// The first entry of a plane's class; a port's is so many behind it.
#[inline(always)]
pub fn base(plane: u32, class: u32) -> u32 {
    (plane.wrapping_mul(CLASSES).wrapping_add(class)).wrapping_mul(PORTS)
}

crate::table::cells! {
    /// Who has a port.
    #[repr(C)]
    pub struct Owner<A> {
        meta: Cell32,
        last: Cell32,
        /// The endpoint's address inside, and the first one outside that it sent to.
        addrs: A::Pair,
    }
}

/// An owner's port inside (16 bits, in network order), state (4), flags (4) and generation (8).
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Meta(u32);

impl Meta {
    /// Somebody has the port.
    const HELD: u32 = 1 << 20;
    /// More than one connection uses the mapping: none of them ends it.
    const SHARED: u32 = 1 << 21;
    /// The owner's home is another port.
    const AWAY: u32 = 1 << 22;
    /// An endpoint whose home this port is has another one. It stays when owners come and go.
    const MARK: u32 = 1 << 23;
    const STATE: u32 = 16;
    const GENERATION: u32 = 24;

    #[inline(always)]
    pub fn held(self) -> bool {
        self.0 & Self::HELD != 0
    }

    #[inline(always)]
    pub fn shared(self) -> bool {
        self.0 & Self::SHARED != 0
    }

    #[inline(always)]
    pub fn away(self) -> bool {
        self.0 & Self::AWAY != 0
    }

    #[inline(always)]
    pub fn marked(self) -> bool {
        self.0 & Self::MARK != 0
    }

    #[inline(always)]
    pub fn state(self) -> u8 {
        (self.0 >> Self::STATE & 0xf) as u8
    }

    #[inline(always)]
    pub fn port(self) -> Be16 {
        Be16::from_raw(self.0 as u16)
    }

    #[inline(always)]
    fn with_state(self, state: u8) -> Self {
        Meta(self.0 & !(0xf << Self::STATE) | (state as u32 & 0xf) << Self::STATE)
    }

    /// Nobody's, as the next generation.
    #[inline(always)]
    fn freed(self) -> Self {
        Meta((self.0 >> Self::GENERATION).wrapping_add(1) << Self::GENERATION | self.0 & Self::MARK)
    }
}

/// A mapping, as it is handed to [`own`].
#[derive(Clone, Copy)]
pub struct Mapping<A> {
    pub inside: A,
    /// Whom it is made to send to.
    pub remote: A,
    pub port: Be16,
    pub state: u8,
    /// It is not the endpoint's home.
    pub away: bool,
    pub now: u32,
}

impl<A: Addr> Owner<A> {
    #[inline(always)]
    pub fn meta(&self) -> Meta {
        Meta(self.meta.load())
    }

    #[inline(always)]
    pub fn last(&self) -> u32 {
        self.last.load()
    }

    /// The address inside, and the first one outside, if they are those of `meta`.
    #[inline(always)]
    pub fn addrs(&self, meta: Meta) -> Option<(A, A)> {
        let addrs = A::unpair(self.addrs.load());
        acquire();
        let same = (self.meta().0 ^ meta.0) >> Meta::GENERATION == 0;
        (meta.held() && same).then_some(addrs)
    }

    /// The endpoint inside, and the first address that it sent to.
    #[inline(always)]
    pub fn whose(&self) -> Option<(A, Be16, A)> {
        let meta = self.meta();
        let (inside, remote) = self.addrs(meta)?;
        Some((inside, meta.port(), remote))
    }

    /// What the port is to an endpoint, if it has it.
    #[inline(always)]
    pub fn of(&self, inside: A, port: Be16) -> Option<Meta> {
        let meta = self.meta();
        if meta.port() != port {
            return None;
        }
        let (owner, _) = self.addrs(meta)?;
        (owner == inside).then_some(meta)
    }

    /// Whether the mapping is so long past its timeout that no connection can have kept it.
    #[inline(always)]
    pub fn is_over(&self, settings: &Settings, proto: u8, now: u32) -> bool {
        settings.is_long_over(proto, self.meta().state(), self.last(), now)
    }

    /// Keeps the mapping, and brings it to a state if that is a later one.
    #[inline(always)]
    pub fn keep(&self, meta: Meta, state: u8, now: u32) {
        self.last.store(now);
        if state != meta.state() && (state == tcp::ESTABLISHED || !tcp::protected(meta.state())) {
            // Another CPU's change is as good.
            let _ = self.meta.swap_if(meta.0, meta.with_state(state).0);
        }
    }

    /// Another connection uses the mapping.
    #[inline(always)]
    pub fn share(&self, meta: Meta) {
        if !meta.shared() {
            // Where it fails another CPU shares it, too, or it ended just now.
            let _ = self.meta.swap_if(meta.0, meta.0 | Meta::SHARED);
        }
    }

    /// Notes that an endpoint whose home this is has another port.
    #[inline(always)]
    pub fn mark(&self) {
        for _ in 0..TRIES {
            let meta = self.meta();
            if meta.marked() || self.meta.swap_if(meta.0, meta.0 | Meta::MARK) {
                break;
            }
        }
    }

    /// For tests: changes when it was used last.
    #[cfg(not(target_arch = "bpf"))]
    pub fn retime(&self, change: impl Fn(u32) -> u32) {
        self.last.store(change(self.last.load()));
    }

    /// For tests that try one thing twice.
    #[cfg(not(target_arch = "bpf"))]
    pub fn copy(&self, other: &Self) {
        self.meta.store(other.meta.load());
        self.last.store(other.last.load());
        self.addrs.store(other.addrs.load());
    }
}

/// Takes a free entry's bit; false where it is taken.
#[inline(always)]
pub fn take<A: Addr, T: PortTable<A>>(table: &T, index: u32) -> bool {
    let Some(word) = table.ports(index / 64) else {
        return false;
    };
    let bit = 1u64 << (index % 64);
    for _ in 0..TRIES {
        let old = word.load();
        if old & bit != 0 {
            return false;
        }
        if word.swap_if(old, old | bit) {
            return true;
        }
    }
    false
}

/// Gives an entry's bit back.
#[inline(always)]
pub fn clear<A: Addr, T: PortTable<A>>(table: &T, index: u32) {
    let Some(word) = table.ports(index / 64) else {
        return;
    };
    // The bit is ours alone, its word isn't. Where it can't be had, the sweep finds the bit.
    for _ in 0..TRIES * 4 {
        let old = word.load();
        if word.swap_if(old, old & !(1 << (index % 64))) {
            break;
        }
    }
}

/// Gives an entry that was taken its owner.
#[inline(always)]
pub fn own<A: Addr, T: PortTable<A>>(table: &T, index: u32, mapping: &Mapping<A>) {
    let Some(owner) = table.owner(index) else {
        return;
    };
    owner.addrs.store(A::pair(mapping.inside, mapping.remote));
    owner.last.store(mapping.now);
    for _ in 0..TRIES {
        let old = owner.meta();
        let away = if mapping.away { Meta::AWAY } else { 0 };
        let new = Meta(old.freed().0 | Meta::HELD | away | mapping.port.raw() as u32).with_state(mapping.state);
        // Only a mark can come between.
        if owner.meta.swap_if(old.0, new.0) {
            break;
        }
    }
}

/// Gives a port back: of several that do, one. Its host's count is the winner's to lower.
#[inline(always)]
pub fn release<A: Addr, T: PortTable<A>>(table: &T, index: u32, meta: Meta) -> bool {
    meta.held() && free(table, index, meta)
}

#[inline(always)]
fn free<A: Addr, T: PortTable<A>>(table: &T, index: u32, meta: Meta) -> bool {
    let freed = table.owner(index).is_some_and(|owner| owner.meta.swap_if(meta.0, meta.freed().0));
    if freed {
        clear(table, index);
    }
    freed
}

/// Frees an entry's bit that had no owner when it was looked at before, and has none now.
pub fn release_leaked<A: Addr, T: PortTable<A>>(table: &T, index: u32, before: Meta) -> bool {
    // Whoever took it meanwhile has made it the next generation.
    !before.held() && free(table, index, before)
}

/// Where an endpoint's port would best be: its own, if that is in the range, else one of the same parity.
#[inline(always)]
pub fn home(settings: &Settings, port: Be16) -> u32 {
    let (first, count) = settings.ports();
    let (port, last) = (port.get() as u32, first + count - 1);
    if port >= first && port <= last {
        return port;
    }
    // `count` is even, and the range may begin with an odd port.
    first + (port.wrapping_sub(first & 1)) % count
}

/// No entry.
pub const NONE: u32 = u32::MAX;

/// Takes a free port of a class, of the parity of `home` if there is one: from a block on that `hash`
/// says. [`NONE`]: none was found.
#[inline(always)]
pub fn search<A: Addr, T: PortTable<A> + Configured>(table: &T, base: u32, home: u32, hash: u32) -> u32 {
    let settings = table.settings();
    let (first, count) = settings.ports();
    let last = first + count - 1;
    // Never 0, which the compiler can't see.
    let (low, words) = (first / 64, (last / 64).wrapping_sub(first / 64).wrapping_add(1).max(1));
    let (start, stride) = (hash::slot(hash, words), words / BLOCKS + 1);
    let parity = 0x5555_5555_5555_5555u64 << (home & 1);
    let turn = hash & 63;
    let mut from = start;
    for _ in 0..BLOCKS {
        let at = low + from;
        // Spread: ports that are their endpoints' own lie side by side.
        from += stride;
        from -= if from >= words { words } else { 0 };
        let Some(word) = table.ports(base / 64 + at) else {
            break;
        };
        let old = word.load();
        let mut free = !old;
        if at == low {
            free &= u64::MAX << (first & 63);
        }
        if at == last / 64 {
            free &= u64::MAX >> (63 - (last & 63));
        }
        if free == 0 {
            continue;
        }
        let alike = free & parity;
        let set = if alike == 0 { free } else { alike };
        let bit = (set.rotate_right(turn).trailing_zeros() + turn) & 63;
        if word.swap_if(old, old | 1 << bit) {
            return base + at * 64 + bit;
        }
    }
    NONE
}

/// An owner whose time is over, of a few that lie side by side; [`NONE`] without one. Who they are changes with
/// every tick, by a `secret`, and lies in [`PLACES`] places: those who find none meet the same lines of memory again.
#[inline(always)]
pub fn stale<A: Addr, T: PortTable<A> + Configured>(
    table: &T,
    base: u32,
    hash: u32,
    secret: u32,
    proto: u8,
    now: u32,
) -> u32 {
    let settings = table.settings();
    let (first, count) = settings.ports();
    let turn = now.wrapping_mul(PLACES).wrapping_add(hash % PLACES);
    let start = hash::slot(turn.wrapping_mul(secret | 1), count);
    for i in 0..LOOKS {
        let at = start + i;
        let index = base + first + if at < count { at } else { at - count };
        let Some(owner) = table.owner(index) else {
            break;
        };
        if owner.meta().held() && owner.is_over(&settings, proto, now) {
            return index;
        }
    }
    NONE
}

const _: () = {
    use crate::wire::{Ip4, Ip6};
    assert!(size_of::<Owner<Ip4>>() == 16 && size_of::<Owner<Ip6>>() == 40);
};
