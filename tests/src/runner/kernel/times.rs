//! Times in the kernel's tables: in its own ticks, and moved.

use anyhow::Result;
use lb_common::flow_table;
use lb_common::port_table::{PLANE, PortTable};
use lb_common::table::Plain;
use lb_common::wire::Addr;
use lb_user::apply::maps::{FamilyMaps, Maps};
use lb_user::apply::table::Table;
use lb_user::plan::{Change, FamilyOp, Op};

use crate::case::TICKS;

/// An operation with its times in ticks of another rate.
pub fn in_ticks(op: &Op, rate: u32) -> Op {
    let mut op = op.clone();
    let scale = |ticks: &mut u32| *ticks = (u64::from(*ticks) * u64::from(rate) / u64::from(TICKS)) as u32;
    match &mut op {
        Op::Settings(s) => {
            s.ticks_per_second = rate;
            let times = [
                &mut s.tcp_established,
                &mut s.tcp_transitory,
                &mut s.tcp_closed,
                &mut s.udp_unanswered,
                &mut s.udp_answered,
                &mut s.sctp_established,
                &mut s.sctp_transitory,
                &mut s.fragment,
            ];
            times.into_iter().for_each(scale);
            *s = s.calmed();
        }
        Op::V4(FamilyOp::Service(Change::Set(_, s))) => scale(&mut s.affinity),
        Op::V6(FamilyOp::Service(Change::Set(_, s))) => scale(&mut s.affinity),
        _ => {}
    }
    op
}

/// Changes when everything was used last.
pub fn retime(maps: &Maps, change: impl Fn(u32) -> u32) -> Result<()> {
    family(&maps.v4, &change)?;
    family(&maps.v6, &change)
}

fn family<A: Addr>(maps: &FamilyMaps<A>, change: &impl Fn(u32) -> u32) -> Result<()> {
    for (_, hit) in maps.flows.entries() {
        flow_table::touch(&maps.flows, &hit, change(hit.flow.last));
    }
    let ports = &maps.ports;
    let taken: Vec<u32> = ports.taken(0, ports.planes() * PLANE).map(|t| t.index).collect();
    taken.into_iter().filter_map(|index| ports.owner(index)).for_each(|owner| owner.retime(change));
    change_all(&maps.affinity, |a| a.last = change(a.last))?;
    change_all(&maps.admitted, |a| a.last = change(a.last))?;
    change_all(&maps.allowed_fragments, |last| *last = change(*last))?;
    change_all(&maps.fragments, |f| f.last = change(f.last))
}

fn change_all<K: Plain, V: Plain>(table: &Table<K, V>, change: impl Fn(&mut V)) -> Result<()> {
    for (key, mut value) in table.entries()? {
        change(&mut value);
        table.set(&key, &value)?;
    }
    Ok(())
}
