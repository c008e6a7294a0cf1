//! Keys and values of the kernel's tables, each defined once.
//!
//! Invariant: every type is plain bytes without hidden padding (refused at compile
//! time: [`plain!`]) and holds no `bool`, `enum` or `Option`: the kernel can hand back any bits. Sizes are
//! asserted, so that a change of layout is a visible change. Which map holds what, who writes it
//! and what happens when it is full stands in `lb-ebpf/src/maps.rs`. Fields carry their names into
//! other versions of the tables ([`Fields`]): one that means something else gets another name, and 0 in
//! a new one means what was before it (`docs/decisions/0016-other-layouts.md`).

use zerocopy::{FromBytes, Immutable};

/// Plain bytes: any bits are a value, and there is no padding.
///
/// zerocopy's own `IntoBytes` cannot be derived for a generic struct of aligned fields, so that
/// [`plain!`] proves the same: the fields' sizes add up to the struct's, in both families
/// (`docs/decisions/0001-aligned-wire-types.md`).
///
/// # Safety
/// No padding and no invalid bit patterns.
#[expect(unsafe_code, reason = "the map hand-over rests on this proof, which only `plain!` gives")]
pub unsafe trait Plain: FromBytes + Immutable + Copy + 'static {}

/// A part of a key or value: its name, and where it lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field {
    /// Empty: it is the whole.
    pub name: &'static str,
    pub at: usize,
    pub size: usize,
}

/// What a key or value consists of, so that another version's tables can be told from these and moved into them.
pub trait Fields {
    const FIELDS: &'static [Field];
}

macro_rules! whole {
    ($t:ty) => {
        impl Fields for $t {
            const FIELDS: &'static [Field] = &[Field { name: "", at: 0, size: size_of::<$t>() }];
        }
    };
}

whole!(());
whole!(u32);
whole!(u64);
whole!(crate::flow_table::cell::Cell64);
whole!(crate::wire::Ip4);
whole!(crate::wire::Ip6);
impl<T, const N: usize> Fields for [T; N] {
    const FIELDS: &'static [Field] = &[Field { name: "", at: 0, size: size_of::<[T; N]>() }];
}

/// [`Fields`] of a struct: for who defines it, [`plain!`] and [`cells!`], so that none is forgotten.
macro_rules! fields {
    ($name:ident $(<$a:ident>)? { $($f:ident: $t:ty,)+ }) => {
        impl $(<$a: crate::wire::Addr>)? crate::table::Fields for $name $(<$a>)? {
            const FIELDS: &'static [crate::table::Field] = &[$(crate::table::Field {
                name: stringify!($f),
                at: core::mem::offset_of!(Self, $f),
                size: core::mem::size_of::<$t>(),
            },)+];
        }
    };
}
pub(crate) use fields;

/// Defines a struct of words that several CPUs write at once, with its [`Fields`].
macro_rules! cells {
    ($(#[$m:meta])* pub struct $name:ident<$a:ident> { $($(#[$fm:meta])* $v:vis $f:ident: $t:ty,)+ }) => {
        $(#[$m])*
        #[derive(Default)]
        pub struct $name<$a: crate::wire::Addr> { $($(#[$fm])* $v $f: $t,)+ }
        crate::table::fields! { $name<$a> { $($f: $t,)+ } }
    };
}
pub(crate) use cells;

// SAFETY: integers have neither padding nor invalid bits; an array adds none, nor does a transparent struct of either.
#[expect(unsafe_code, reason = "integers, arrays of plain values and addresses are plain")]
mod integers {
    unsafe impl super::Plain for u16 {}
    unsafe impl super::Plain for u32 {}
    unsafe impl super::Plain for u64 {}
    unsafe impl super::Plain for crate::wire::Ip4 {}
    unsafe impl super::Plain for crate::wire::Ip6 {}
    unsafe impl<T: super::Plain, const N: usize> super::Plain for [T; N] {}
}

/// Defines a key or value with explicit padding and a stated size.
macro_rules! plain {
    ($(#[$m:meta])* pub struct $name:ident<$a:ident> { $($(#[$fm:meta])* pub $f:ident: $t:ty,)+ } v4 = $s4:literal, v6 = $s6:literal) => {
        $(#[$m])*
        #[repr(C)]
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, zerocopy::FromBytes, zerocopy::Immutable)]
        pub struct $name<$a: crate::wire::Addr> { $($(#[$fm])* pub $f: $t,)+ }
        const _: () = {
            const fn fields<$a: crate::wire::Addr>() -> usize { 0 $(+ core::mem::size_of::<$t>())+ }
            assert!(core::mem::size_of::<$name<crate::wire::Ip4>>() == $s4 && fields::<crate::wire::Ip4>() == $s4);
            assert!(core::mem::size_of::<$name<crate::wire::Ip6>>() == $s6 && fields::<crate::wire::Ip6>() == $s6);
        };
        // SAFETY: the assertions above leave no byte for padding in either family.
        #[expect(unsafe_code, reason = "proven by the size assertions beside it")]
        unsafe impl<$a: crate::wire::Addr> crate::table::Plain for $name<$a> {}
        crate::table::fields! { $name<$a> { $($f: $t,)+ } }
    };
    ($(#[$m:meta])* pub struct $name:ident { $($(#[$fm:meta])* $v:vis $f:ident: $t:ty,)+ } size = $s:literal) => {
        $(#[$m])*
        #[repr(C)]
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
        pub struct $name { $($(#[$fm])* $v $f: $t,)+ }
        const _: () = {
            assert!(core::mem::size_of::<$name>() == $s && 0 $(+ core::mem::size_of::<$t>())+ == $s);
        };
        // SAFETY: the assertion above leaves no byte for padding.
        #[expect(unsafe_code, reason = "proven by the size assertion beside it")]
        unsafe impl crate::table::Plain for $name {}
        crate::table::fields! { $name { $($f: $t,)+ } }
    };
}

pub mod filter;
pub mod flow;
pub mod monitor;
pub mod nat;
pub mod network_policy;
pub mod route;
pub mod service;
pub mod settings;
pub mod socket;

pub use flow::{Flow, FlowKey, FragmentKey, FragmentPorts};
pub use nat::{MappingEvent, PrefixPair, Uplink};
pub use network_policy::{Admitted, Peer, PeerPort, PeerPortPrefix, PeerPrefix, Pod};
pub use route::{Announced, Group, Link, NextHop, Owned, Prefix, Tunnel};
pub use service::{Affinity, AffinityKey, Backend, Counters, Name, Service, ServiceKey, Source, SourcePrefix};
pub use settings::{BOTH, Settings, age};
pub use socket::{SocketKey, SocketPeer};
