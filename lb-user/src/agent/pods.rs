//! Pods' interfaces, as the agent's loop has to do with them: what they get, and when their programs are in force.

use std::collections::BTreeSet;

use tracing::error;

use super::Agent;
use crate::apply;
use crate::pods::Served;
use crate::pods::wire::PREFIX;

impl Agent {
    /// Tells what pods get by now.
    pub(super) fn settle_pods(&mut self) {
        let settings = self.wish.pods(&self.network);
        self.pods.configure(settings);
    }

    /// The tables are as planned: so are the programs of these links, and the host ports.
    pub(super) fn tell_pods(&self) {
        if let Some(planned) = &self.planned {
            let (ports, contents) = (&self.wish.host_ports, planned.contents());
            // Where policies are judged, nothing passes before it is known what a pod may do.
            let known = |link: &u32| self.wish.intent.policies.is_none() || contents.pods.contains_key(link);
            self.pods.served(Served {
                links: contents.hooks.keys().filter(|link| known(link)).copied().collect(),
                ports: ports.revision(),
                refused: ports.refused().clone(),
            });
        }
    }

    /// Says what of policies allows nothing since it doesn't fit, and what is in force.
    pub(super) fn note_policies(&mut self) {
        let Some(planned) = &self.planned else { return };
        let summary = self.wish.intent.policies.as_ref().map(|_| planned.policy_summary());
        let state = summary.map(|summary| apply::Policies {
            policies: summary.policies,
            pods: summary.pods,
            ingress: summary.ingress,
            egress: summary.egress,
            troubles: summary.troubles.iter().cloned().collect(),
        });
        let before = &self.kernel.state.policies;
        if *before == state {
            return;
        }
        let known = |trouble: &&String| before.as_ref().is_some_and(|before| before.troubles.contains(*trouble));
        for trouble in state.iter().flat_map(|state| &state.troubles).filter(|trouble| !known(trouble)) {
            error!("{trouble}");
        }
        if let Err(error) = self.kernel.state.change(&self.options.paths, |all| all.policies = state) {
            error!("{error:#}");
        }
    }

    /// Nothing is to be restored at interfaces that are gone; of pods there come ever new ones.
    pub(super) fn forget_pods(&mut self) {
        let there: BTreeSet<&str> = self.network.links.iter().map(|link| link.name.as_str()).collect();
        let gone = |name: &String| name.starts_with(PREFIX) && !there.contains(name.as_str());
        let state = &mut self.kernel.state;
        if !state.clsact.values().chain(state.filters.values()).any(gone) {
            return;
        }
        let changed = state.change(&self.options.paths, |state| {
            state.clsact.retain(|_, name| !gone(name));
            state.filters.retain(|_, name| !gone(name));
        });
        if let Err(error) = changed {
            error!("{error:#}");
        }
    }
}
