//! Routes that were added here: by command or in the configuration. No others of the kernel's.

use std::path::Path;

use anyhow::Result;

use super::Table;
use crate::apply::Paths;
use crate::route::StaticRoute;
use crate::route::command::{Known, Row};

const COLUMNS: &[&str] =
    &["interface", "destination", "next_hop", "metric", "weight", "type", "origin", "state", "reason"];

/// All of them, or those of a port.
pub fn routes(paths: &Paths, store: Option<&Path>, interface: Option<&str>) -> Result<Table> {
    Ok(table(Known::new(paths, store)?.rows(interface)?))
}

/// The one.
pub fn route(paths: &Paths, store: Option<&Path>, route: &StaticRoute) -> Result<Table> {
    let rows = Known::new(paths, store)?.rows(Some(&route.interface))?;
    Ok(table(rows.into_iter().filter(|row| row.wished.route == *route)))
}

fn table(rows: impl IntoIterator<Item = Row>) -> Table {
    let mut table = Table::new(COLUMNS);
    for Row { wished, state, reason } in rows {
        let route = wished.route;
        table.push([
            route.interface.into(),
            route.destination.to_string().into(),
            route.next_hop.map(|addr| addr.to_string()).into(),
            route.metric.into(),
            route.weight.into(),
            route.kind.name().into(),
            wished.origin.name().into(),
            state.into(),
            reason.into(),
        ]);
    }
    table
}
