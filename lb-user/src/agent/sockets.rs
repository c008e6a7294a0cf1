//! Services at the socket, as the configuration has it by now.

use tracing::error;

use super::Agent;
use crate::apply::sockets;

impl Agent {
    /// Once the tables are as the wish has them.
    pub(super) fn settle_sockets(&mut self) {
        let kernel = &mut self.kernel;
        let settled = sockets::settle(&mut kernel.ebpf, &self.options.paths, &mut kernel.state, self.wish.sockets());
        if let Err(error) = settled {
            error!("{error:#}");
        }
    }
}
