//! Packet cases: one readable file a case, for IPv4 and IPv6.
//!
//! A [`Case`] is a list of steps: tables that change, packets and what becomes of them, time that
//! passes, and what the tables hold then. [`crate::runner`] runs it. The format stands in
//! `tests/cases/README.md`.

mod device;
pub mod parse;
mod policies;
pub mod world;

use lb_common::verdict::Hook;
use lb_user::plan::{Contents, Op};

use crate::packet::{Names, Spec};
use crate::runner::host::Refuses;
pub use world::{TICKS, World};

/// One file for one IP version.
#[derive(Clone, Debug)]
pub struct Case {
    /// `service/tcp.case v6`
    pub name: String,
    pub world: World,
    pub steps: Vec<Step>,
    /// Why it can't run in the kernel, if so.
    pub host_only: Option<String>,
}

/// Lines of the file: first and behind the last.
pub type Lines = std::ops::Range<usize>;

#[derive(Clone, Debug)]
pub struct Step {
    /// The lines that say what happens.
    pub at: Lines,
    /// The lines that say what is expected, which blessing replaces.
    pub expected_at: Lines,
    pub what: What,
}

#[derive(Clone, Debug)]
pub enum What {
    /// The tables become these.
    Tables(Box<Contents>),
    /// Connections of backends are ended.
    Apply(Op),
    Packet(Box<Arriving>),
    /// Seconds that pass.
    Advance(u32),
    /// The flows are these, a line each.
    Flows(Vec<String>),
    /// The mappings between inside and outside are these, a line each.
    Mappings(Vec<String>),
    /// A backend was counted so: `connections=1 packets=2`.
    Counted {
        name: String,
        id: u32,
        text: String,
    },
}

#[derive(Clone, Debug)]
pub struct Arriving {
    pub hook: Hook,
    pub ifindex: u32,
    pub gso_size: u32,
    pub tagged: bool,
    /// At egress, the link that it came in by; 0: this node itself sends it.
    pub from: u32,
    pub refuses: Refuses,
    pub packet: Spec,
    pub expected: Vec<Expected>,
    /// Link-layer addresses that the packet has unless it says others.
    pub names: Names,
}

/// One expectation: `out VERDICT [PACKET]` or `note LABEL`.
#[derive(Clone, Debug, PartialEq)]
pub enum Expected {
    Out { verdict: String, packet: Option<Spec> },
    Note(String),
}

impl Case {
    /// The labels of drops and notes that the case expects.
    pub fn labels(&self) -> Vec<String> {
        let packets = self.steps.iter().filter_map(|step| match &step.what {
            What::Packet(arriving) => Some(arriving),
            _ => None,
        });
        let label = |expected: &Expected| match expected {
            Expected::Note(label) => Some(label.clone()),
            Expected::Out { verdict, .. } => {
                let (kind, label) = verdict.split_once(' ')?;
                matches!(kind, "drop" | "refuse").then(|| label.to_string())
            }
        };
        packets.flat_map(|p| p.expected.iter().filter_map(label)).collect()
    }
}
