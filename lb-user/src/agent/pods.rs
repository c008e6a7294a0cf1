//! Pods' interfaces, as the agent's loop has to do with them: what they get, and when their programs are in force.

use tracing::error;

use super::Agent;
use crate::apply::sysctl;
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
            let ports = &self.wish.host_ports;
            self.pods.served(Served {
                links: planned.contents().hooks.keys().copied().collect(),
                ports: ports.revision(),
                refused: ports.refused().clone(),
            });
        }
    }

    /// Nothing is to be restored at interfaces that are gone; of pods there come ever new ones.
    pub(super) fn forget_pods(&mut self) {
        let state = &self.kernel.state;
        let ours = |text: &str| text.contains(PREFIX);
        let kept = |name: &String| !ours(name) || sysctl::path(name).exists();
        let links = || state.clsact.iter().chain(&state.filters);
        if state.sysctls.keys().all(kept) && !links().any(|(_, name)| ours(name)) {
            return;
        }
        let there = |name: &String| !ours(name) || self.network.links.iter().any(|link| link.name == *name);
        let changed = self.kernel.state.change(&self.options.paths, |state| {
            state.sysctls.retain(|name, _| kept(name));
            state.clsact.retain(|_, name| there(name));
            state.filters.retain(|_, name| there(name));
        });
        if let Err(error) = changed {
            error!("{error:#}");
        }
    }
}
