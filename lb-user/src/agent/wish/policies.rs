//! Policies in the wish, and the pods of this node that they are about.
//!
//! Invariant: while an API hasn't told of all, what was in force before stays; where nothing was, at a start all is shut,
//! and where policies are switched on they are in force once it has.

use super::{HostPorts, Undo, Wish};
use crate::config::Config;
use crate::policy::Policies;
use crate::source::manifests::{Manifests, Update};

/// What pods may do, where that is as policies say.
pub(super) fn of(config: &Config, manifests: Option<&Manifests>, waits: bool, pods: &HostPorts) -> Option<Policies> {
    if !config.judges_pods() {
        return None;
    }
    let cluster = manifests.filter(|_| !waits).map(|manifests| manifests.cluster().clone());
    Some(Policies { cluster, leases: pods.pods().clone() })
}

impl Wish {
    pub(super) fn policies(&self) -> Option<Policies> {
        if self.waits {
            return self.kept_policies();
        }
        of(&self.config, self.manifests.as_ref(), self.waits, &self.host_ports)
    }

    /// Those that were in force before, until an API has told of all: none, if there were none.
    pub(super) fn kept_policies(&self) -> Option<Policies> {
        let Policies { cluster, .. } = self.intent.policies.clone()?;
        Some(Policies { cluster, leases: self.host_ports.pods().clone() })
    }

    /// Wishes for the policies, and the pods that they are about, as they are by now; whether these are others. No plan
    /// refuses them, and so nothing takes them back.
    pub(super) fn take_policies(&mut self) -> bool {
        let now = self.policies();
        let same = match (&self.intent.policies, &now) {
            (Some(before), Some(now)) => before.is(now),
            (before, now) => before.is_none() && now.is_none(),
        };
        self.intent.policies = now;
        !same
    }

    /// The same, as a change to plan.
    pub fn settle_policies(&mut self) -> Option<Undo> {
        self.take_policies().then(|| self.replace(Update::default()))
    }
}
