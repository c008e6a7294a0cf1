//! The listings of the command line that can be asked for over HTTP.
//!
//! Invariant: one list; routes, metrics and the description of the interface go by it.

use anyhow::Result;

use crate::apply::Paths;
use crate::show::{self, Table};

/// What is behind a path below [`BASE`].
#[derive(Clone, Copy)]
pub struct Listing {
    pub name: &'static str,
    pub read: fn(&Paths) -> Result<Table>,
}

/// Where listings are.
pub const BASE: &str = "/api/v1/";
/// Hosts inside that are told of at the most.
const TOP: usize = 100;

/// In the order of [`Kind`].
pub const LISTINGS: &[Listing] = &[
    Listing { name: "status", read: show::status },
    Listing { name: "ports", read: show::ports },
    Listing { name: "services", read: show::services },
    Listing { name: "backends", read: show::backends },
    Listing { name: "addresses", read: show::addresses },
    Listing { name: "announce", read: show::announce },
    Listing { name: "routes", read: |paths| show::routes(paths, None, None) },
    Listing { name: "nat", read: show::nat_status },
    Listing { name: "nat/top", read: |paths| show::nat_top(paths, TOP) },
    Listing { name: "drops", read: show::drops },
    Listing { name: "flows", read: |paths| show::flows(paths, false) },
    Listing { name: "flows/counts", read: show::flow_counts },
    Listing { name: "pods", read: show::ipam },
    Listing { name: "dns", read: crate::dns::query::counts },
];

/// Which listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub enum Kind {
    Status,
    Ports,
    Services,
    Backends,
    Addresses,
    Announce,
    Routes,
    Nat,
    NatTop,
    Drops,
    Flows,
    FlowCounts,
    Pods,
    Dns,
}

impl Kind {
    pub fn listing(self) -> &'static Listing {
        &LISTINGS[self as usize]
    }

    /// By what is behind [`BASE`] in a path.
    pub fn find(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.listing().name == name)
    }

    pub const ALL: [Kind; 14] = [
        Kind::Status,
        Kind::Ports,
        Kind::Services,
        Kind::Backends,
        Kind::Addresses,
        Kind::Announce,
        Kind::Routes,
        Kind::Nat,
        Kind::NatTop,
        Kind::Drops,
        Kind::Flows,
        Kind::FlowCounts,
        Kind::Pods,
        Kind::Dns,
    ];
}

const _: () = assert!(Kind::ALL.len() == LISTINGS.len() && Kind::Dns as usize == LISTINGS.len() - 1);
