//! How much a pod may receive and send, as a lease has it.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// Towards the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Rate>,
    /// What it sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Rate>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Bits a second.
    pub rate: u64,
    /// Bits that may go at once after a pause.
    pub burst: u64,
}

impl Bandwidth {
    pub fn is_unlimited(&self) -> bool {
        *self == Bandwidth::default()
    }
}
