//! Which node announces which load balancer's address, and which other nodes are there.
//!
//! Invariant: what the agent wrote last; where it is away, its tables and their announcements go on as they are.

use anyhow::Result;

use super::{Cell, Table, open};
use crate::announce::peers::Life;
use crate::announce::report::Report;
use crate::apply::Paths;

pub fn announce(paths: &Paths) -> Result<Table> {
    let report = Report::read(&paths.announce());
    let mut table = Table::new(&["what", "name", "interface", "owner", "state", "services", "detail"]);
    let Some(report) = report else {
        // Says what is wrong where nothing is loaded at all.
        open(paths)?;
        return Ok(table);
    };
    for (name, peer) in &report.peers {
        let addresses: Vec<String> = peer.addresses.iter().map(ToString::to_string).collect();
        let state = match peer.state {
            Life::Unknown => "unknown",
            Life::Alive => "alive",
            Life::Gone => "gone",
        };
        let (none, name) = (|| Cell::None, name.clone().into());
        table.push(["node".into(), name, none(), none(), state.into(), none(), addresses.join(", ").into()]);
    }
    for row in &report.addresses {
        let state = match (&row.owner, row.here) {
            (_, true) => "here",
            (Some(_), false) => "elsewhere",
            (None, false) => "nowhere",
        };
        table.push([
            "address".into(),
            row.address.to_string().into(),
            row.interface.clone().into(),
            row.owner.clone().into(),
            state.into(),
            Cell::List(row.services.clone()),
            row.why.clone().into(),
        ]);
    }
    Ok(table)
}
