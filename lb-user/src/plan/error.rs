//! Why a wish cannot be planned.
//!
//! Invariant: an error leaves everything as it was: no id is given out, nothing is half planned.
//! Not here: errors of configuration files, which know line and column.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

/// Why [`super::plan`] refuses a wish as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlanError {
    /// A table has no room for what the wish needs.
    Full { table: &'static str, need: u64, capacity: u64 },
    /// Two services want the same address, port and protocol.
    Conflict { addr: IpAddr, port: u16, proto: u8, first: String, second: String },
    /// The same service port stands in the wish twice.
    Duplicate { service: String },
    /// SCTP's checksum covers its ports: they cannot be translated.
    SctpPort { service: String, port: u16, target: u16 },
    /// A range of service addresses ends before it begins or mixes families.
    Range { first: IpAddr, last: IpAddr },
    /// A range of service addresses too long for the filter.
    RangeTooLong { first: IpAddr, last: IpAddr },
    /// A translated subnet too large for the filter.
    Inside { net: IpNet },
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PlanError::Full { table, need, capacity } => {
                write!(f, "table `{table}` is full: {need} entries needed, room for {capacity}; raise its capacity")
            }
            PlanError::Conflict { addr, port, proto, first, second } => {
                write!(f, "services {first} and {second} both want address {addr}, port {port}, protocol {proto}")
            }
            PlanError::Duplicate { service } => write!(f, "service {service} is defined twice"),
            PlanError::SctpPort { service, port, target } => write!(
                f,
                "service {service}: SCTP port {port} and target port {target} differ, but SCTP ports cannot be translated"
            ),
            PlanError::Range { first, last } => write!(f, "service range {first}-{last} is not a range"),
            PlanError::RangeTooLong { first, last } => {
                write!(
                    f,
                    "service range {first}-{last} is too long: at most 65,536 blocks of /24 (IPv4) or /112 (IPv6)"
                )
            }
            PlanError::Inside { net } => {
                write!(f, "the subnet {net} is too large to be translated: at most a /8 (IPv4) or a /48 (IPv6)")
            }
        }
    }
}

impl std::error::Error for PlanError {}
