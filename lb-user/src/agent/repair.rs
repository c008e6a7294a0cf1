//! What others broke, set right: pins that were removed, programs that were detached, entries that were changed.
//!
//! Invariant: compared is what the kernel has, not what is remembered of it; each repair is told and counted. Not here:
//! routes ([`super::routes`]), which are told of at once.

use std::sync::atomic::Ordering;

use tracing::{error, warn};

use super::Agent;
use super::planning::Held;
use crate::apply::{is_gone, repin, sockets};
use crate::plan::{Apply, Change, Op, diff};

impl Agent {
    /// A look at what hangs on links, and at all of it if something is missing there.
    pub(super) fn look(&mut self) {
        let (Held::Plan, Some(planned)) = (&self.held, &self.planned) else { return };
        // What can't be read now is told where all is read.
        if self.kernel.hangs(&planned.contents().hooks).is_ok_and(|hangs| !hangs) {
            self.repair();
        }
    }

    /// A look at all of it.
    pub(super) fn repair(&mut self) {
        self.repair_pins();
        if let Err(error) = self.kernel.forget_gone() {
            error!("pins of links that are gone: {error:#}");
        }
        self.prune();
        self.repair_sockets();
        let wanted = self.wanted.borrow().clone();
        self.note_neighbours(wanted);
    }

    fn count_repaired(&mut self, count: usize) {
        self.repaired += count as u64;
        self.vitals.repaired.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Without its pins the next agent would begin with empty tables.
    fn repair_pins(&mut self) {
        match repin::repin(&mut self.kernel.ebpf, &self.options.paths) {
            Ok(names) if names.is_empty() => {}
            Ok(names) => {
                self.count_repaired(names.len());
                warn!("{} pins were gone ({} repairs so far): {}", names.len(), self.repaired, names.join(", "));
            }
            Err(error) => error!("pins that are gone: {error:#}"),
        }
    }

    fn repair_sockets(&mut self) {
        if self.kernel.state.sockets.group.is_none() {
            return;
        }
        match sockets::attached(&self.options.paths) {
            Ok((there, all)) if there == all => {}
            Ok((there, all)) => {
                self.count_repaired(all - there);
                warn!("{} programs at sockets were gone ({} repairs so far)", all - there, self.repaired);
                self.settle_sockets();
            }
            Err(error) => error!("programs at sockets: {error:#}"),
        }
    }

    /// Compares what is really there with what shall be, and repairs.
    fn prune(&mut self) {
        // Where a change failed, the next try compares.
        let (Held::Plan, Some(planned)) = (&self.held, &self.planned) else { return };
        let real = match self.kernel.read() {
            Ok(real) => real,
            Err(error) => return error!("reading the tables: {error:#}"),
        };
        let mut ops = diff(&real, planned.contents());
        // The news of a link that is gone may still be on its way.
        ops.retain(|op| !matches!(op, Op::Hooks(Change::Set(link, hooks)) if is_gone(*link, hooks)));
        if ops.is_empty() {
            return;
        }
        self.count_repaired(ops.len());
        warn!("{} entries were not as they should be ({} so far): {}", ops.len(), self.repaired, kinds(&ops));
        if let Err(error) = self.carry_out(&ops) {
            error!("repairing: {error:#}");
        }
    }
}

/// The first few operations, for people.
fn kinds(ops: &[Op]) -> String {
    let mut text = String::new();
    for op in ops.iter().take(3) {
        let op = format!("{op:?}");
        let end = op.floor_char_boundary(120);
        text.push_str(&op[..end]);
        text.push_str("; ");
    }
    text
}
