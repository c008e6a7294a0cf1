//! Everything at a glance: the agent, the kernel, what hangs on which interface, how full tables are.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use anyhow::Result;
use lb_common::drop::{Drop as Reason, Note};
use lb_common::table::{Flow, Link, Plain, Service};
use lb_common::wire::{Addr, Ip4};

use super::{Cell, Table as Listing, addresses, interface, interfaces, mirror, nat::Brief, open};
use crate::agent::nat_log::utc;
use crate::agent::{Source, running};
use crate::apply::maps::FamilyMaps;
use crate::apply::table::Table;
use crate::apply::{Maps, Paths, Point, Sockets, State, attached, sockets};
use crate::health::report::Report;
use crate::route::command::Known;
use crate::source::live::Api;
use crate::source::netlink::Mirror;

/// The whole.
pub fn status(paths: &Paths) -> Result<Listing> {
    let maps = open(paths)?;
    let mut listing = Listing::new(&["what", "name", "state", "used", "capacity", "detail"]);
    let (about, runs) = running(paths);
    let mut fact = |what: &'static str, name: String, state: &'static str, detail: String| {
        listing.push([what.into(), name.into(), state.into(), Cell::None, Cell::None, detail.into()]);
    };
    let process = if about.pid == 0 { String::new() } else { format!("process {}", about.pid) };
    fact("agent", process, if runs { "running" } else { "stopped" }, format!("revision {}", about.revision));
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let settings = maps.settings.get(&0)?.unwrap_or_default();
    fact("kernel", release.trim().to_owned(), "", format!("{} ticks/s", settings.ticks_per_second));
    let state = State::read(paths)?;
    let mirror = mirror(&state)?;
    let names = interfaces(mirror.as_ref());
    for (name, mode, detail) in hooks(paths, &state, mirror.as_ref(), &names)? {
        fact("hook", name, mode, detail);
    }
    listing.push(sockets(paths, &maps, &state)?);
    for row in policies(&maps, &state)? {
        listing.push(row);
    }
    for row in source(&Source::read(paths)?, SystemTime::now()) {
        listing.push(row);
    }
    listing.push(forwarding(&maps, mirror.as_ref(), &names)?);
    if let Some((used, wished)) = routes(paths, about.repaired)? {
        let detail = format!("{} changes by others repaired", about.repaired).into();
        listing.push(["routes".into(), "operators'".into(), Cell::None, used.into(), wished.into(), detail]);
    }
    if let Some((waiting, asking)) = addresses::brief(paths).filter(|(_, asking)| *asking > 0) {
        let used = (asking - waiting).into();
        let detail = if waiting == 0 { String::new() } else { format!("{waiting} wait: see `stellwerk addresses`") };
        listing.push(["addresses".into(), "load balancers".into(), Cell::None, used, asking.into(), detail.into()]);
    }
    let report = Report::read(&paths.health());
    if report.probed > 0 {
        let services: BTreeSet<String> =
            report.failing.iter().map(|f| format!("{}/{}", f.namespace, f.service)).collect();
        let services: Vec<String> = services.into_iter().collect();
        let detail = if services.is_empty() { String::new() } else { format!("failing, of {}", services.join(", ")) };
        let (failing, probed) = (report.failing.len().into(), report.probed.into());
        listing.push(["health".into(), "endpoints".into(), Cell::None, failing, probed, detail.into()]);
    }
    if let Some(nat) = Brief::read(&maps, &settings)? {
        let links: Vec<String> = nat.links.iter().map(|link| interface(*link, &names)).collect();
        let (links, used, capacity) = (links.join(", ").into(), nat.used.into(), nat.capacity.into());
        listing.push(["nat".into(), links, "on".into(), used, capacity, nat.detail.into()]);
    }
    for (port, check) in &state.health_checks {
        let (word, why) = match &check.trouble {
            _ if !runs => ("stopped", String::new()),
            None => ("listening", String::new()),
            Some(why) => ("failed", format!(": {why}")),
        };
        let detail = format!("port {port}{why}").into();
        let name = check.service.clone().into();
        listing.push(["health check".into(), name, word.into(), Cell::None, Cell::None, detail]);
    }
    let mut tables = fills(&maps)?;
    if state.policies.is_some() {
        tables.extend(policy_tables(&maps)?);
    }
    for (name, used, capacity) in tables {
        listing.push(["table".into(), name.into(), Cell::None, used.into(), capacity.into(), Cell::None]);
    }
    Ok(listing)
}

/// Whether services are balanced at sockets, and what became of the calls.
fn sockets(paths: &Paths, maps: &Maps, state: &State) -> Result<[Cell<'static>; 6]> {
    let (there, all) = sockets::attached(paths)?;
    let [translated, left, full] =
        [Note::SocketTranslated, Note::SocketLeft, Note::SocketTableFull].map(|note| maps.notes.sum(note as u32));
    let refused = maps.drops.sum(Reason::SocketRefused as u32)?;
    let mut detail = format!("{refused} refused; {} left to packets, {} for want of room", left?, full?);
    let (word, name) = match &state.sockets {
        Sockets { group: Some(group), .. } if there == all => ("on", group.clone()),
        Sockets { group: Some(group), .. } => {
            detail = format!("{there} of {all} programs are there; {detail}");
            ("failed", group.clone())
        }
        Sockets { trouble: Some(trouble), .. } => {
            detail = trouble.clone();
            ("failed", String::new())
        }
        Sockets { .. } => ("off", String::new()),
    };
    let name = if name.is_empty() { Cell::None } else { name.into() };
    Ok(["sockets".into(), name, word.into(), translated?.into(), Cell::None, detail.into()])
}

/// What pods may do, where policies say that, and what doesn't fit.
fn policies(maps: &Maps, state: &State) -> Result<Vec<[Cell<'static>; 6]>> {
    let Some(policies) = &state.policies else { return Ok(Vec::new()) };
    let [ingress, egress] = [Reason::PolicyIngress, Reason::PolicyEgress].map(|reason| maps.drops.sum(reason as u32));
    let detail = format!(
        "{} policies; of {} pods {} are selected to them and {} from them; {} and {} packets refused",
        policies.policies, policies.pods, policies.ingress, policies.egress, ingress?, egress?
    );
    let state = if policies.troubles.is_empty() { "on" } else { "failed" };
    let row = |state: &'static str, detail: String| {
        ["policy".into(), Cell::None, state.into(), Cell::None, Cell::None, detail.into()]
    };
    let troubles = policies.troubles.iter().map(|trouble| row("refused", trouble.clone()));
    Ok([row(state, detail)].into_iter().chain(troubles).collect())
}

/// Where services come from, and what of it is not in force as it is now.
fn source(source: &Source, now: SystemTime) -> Vec<[Cell<'static>; 6]> {
    if source.name.is_empty() {
        return Vec::new();
    }
    let (state, detail) = source.api.as_ref().map_or(("files", Cell::None), |api| self::api(api, now));
    let mut rows = vec![["cluster".into(), source.name.clone().into(), state.into(), Cell::None, Cell::None, detail]];
    rows.extend(source.refused.iter().map(|refused| {
        let (place, message) = (refused.place.clone().into(), refused.message.clone().into());
        ["refused".into(), place, Cell::None, Cell::None, Cell::None, message]
    }));
    rows
}

fn api(api: &Api, now: SystemTime) -> (&'static str, Cell<'static>) {
    let Some(away) = &api.away else {
        return if api.listed { ("current", Cell::None) } else { ("starting", Cell::None) };
    };
    let utc = utc(away.since);
    let seconds = now.duration_since(away.since).unwrap_or_default().as_secs();
    let attempts = if away.attempts == 1 { "attempt" } else { "attempts" };
    let never = if api.listed { "" } else { "; not listed since the agent's start" };
    let since = utc.split_once('.').map_or(&*utc, |(seconds, _)| seconds);
    let detail = format!("since {since}Z ({seconds} s, {} {attempts}): {}{never}", away.attempts, away.error);
    ("away", detail.into())
}

/// The links that packets are forwarded from ahead of the kernel, and how many were.
fn forwarding(maps: &Maps, mirror: Option<&Mirror>, names: &BTreeMap<u32, String>) -> Result<[Cell<'static>; 6]> {
    let mut links = maps.links.entries()?;
    links.retain(|(_, link)| link.flags & (Link::FORWARDS4 | Link::FORWARDS6) != 0);
    let mut shown: Vec<String> = links.iter().map(|(link, _)| interface(*link, names)).collect();
    shown.sort();
    let state = if links.is_empty() { "kernel" } else { "fast" };
    let counted = maps.counters.sum(Flow::<Ip4>::FORWARDED)?;
    let mut detail = format!("{} bytes", counted.bytes);
    let policy = mirror.map_or([false; 2], |mirror| mirror.network().policy);
    for (family, _) in ["IPv4", "IPv6"].into_iter().zip(policy).filter(|(_, policy)| *policy) {
        detail.push_str(&format!("; {family} by the kernel, since there are policy rules of others"));
    }
    let name = if links.is_empty() { Cell::None } else { shown.join(", ").into() };
    Ok(["forwarding".into(), name, state.into(), counted.packets.into(), Cell::None, detail.into()])
}

/// Operators' routes in the kernel, and how many there shall be; None where there never was one.
fn routes(paths: &Paths, repaired: u64) -> Result<Option<(usize, usize)>> {
    // Whether what is stored can be read is `route get`'s to say.
    let Ok(rows) = Known::new(paths, None).and_then(|known| known.rows(None)) else { return Ok(None) };
    let used = rows.iter().filter(|row| matches!(row.state, "active" | "standby")).count();
    Ok((!rows.is_empty() || repaired > 0).then_some((used, rows.len())))
}

/// Interface, mode and point of each program that hangs on a link.
fn hooks(
    paths: &Paths,
    state: &State,
    mirror: Option<&Mirror>,
    names: &BTreeMap<u32, String>,
) -> Result<Vec<(String, &'static str, String)>> {
    let all = attached(paths, state)?.into_iter().map(|((link, point), program)| {
        let name = interface(link, names);
        let mode = match (point, mirror.and_then(|mirror| mirror.xdp_modes().get(&link))) {
            (Point::Xdp, Some(1)) => "native",
            (Point::Xdp, Some(2)) => "generic",
            (Point::Xdp, _) => "attached",
            _ if state.filters.contains_key(&link) => "filter",
            _ => "tcx",
        };
        (name, mode, format!("{} (program {program})", point.label()))
    });
    Ok(all.collect())
}

fn count<K: Plain, V: Plain + Default + PartialEq>(table: &Table<K, V>) -> Result<(String, u64, u32)> {
    let entries = table.entries()?;
    // An array's entry is there when it isn't zero.
    let used = entries.iter().filter(|(_, value)| !table.raw().is_array() || *value != V::default()).count();
    Ok((table.name.into(), used as u64, table.capacity()))
}

fn fills(maps: &Maps) -> Result<Vec<(String, u64, u32)>> {
    let mut all = vec![count(&maps.names)?, slots(maps)?, count(&maps.next_hops)?];
    for (index, name) in [(0, "ROUTES4"), (1, "ROUTES6")] {
        let [count, room] = maps.route_counts.get(&index)?.unwrap_or_default();
        all.push((name.into(), count.into(), room));
    }
    family(&maps.v4, &mut all)?;
    family(&maps.v6, &mut all)?;
    Ok(all)
}

/// Where policies are in force.
fn policy_tables(maps: &Maps) -> Result<[(String, u64, u32); 5]> {
    let Maps { v4, v6, .. } = maps;
    let (peers4, peers6) = (count(&v4.allowed)?, count(&v6.allowed)?);
    Ok([peers4, peers6, count(&maps.peer_ports)?, count(&v4.admitted)?, count(&v6.admitted)?])
}

fn family<A: Addr>(tables: &FamilyMaps<A>, all: &mut Vec<(String, u64, u32)>) -> Result<()> {
    all.extend([
        count(&tables.services)?,
        count(&tables.sources)?,
        count(&tables.backends)?,
        count(&tables.owned)?,
        (if A::IS_V6 { "FLOWS6" } else { "FLOWS4" }.into(), tables.flows.entries().len() as u64, tables.flows.slots()),
        count(&tables.affinity)?,
        count(&tables.fragments)?,
        count(&tables.sockets)?,
    ]);
    Ok(())
}

/// Slots in rows that services use.
fn slots(maps: &Maps) -> Result<(String, u64, u32)> {
    let mut rows = BTreeMap::new();
    rows.extend(maps.v4.services.entries()?.iter().flat_map(|(_, service)| Service::rows(service)));
    rows.extend(maps.v6.services.entries()?.iter().flat_map(|(_, service)| Service::rows(service)));
    Ok(("SLOTS".into(), rows.values().map(|&count| u64::from(count)).sum(), maps.slots.capacity()))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::agent::Refused;
    use crate::source::live::Away;

    #[test]
    fn sources() {
        let rows = |source: &Source| {
            let mut listing = Listing::new(&["what", "name", "state", "used", "capacity", "detail"]);
            for row in super::source(source, UNIX_EPOCH + Duration::from_secs(75)) {
                listing.push(row);
            }
            serde_json::from_str::<serde_json::Value>(&listing.string(true)).unwrap()
        };
        assert_eq!(rows(&Source::default()), serde_json::json!([]));
        let refused = Refused { place: "cluster/a.yaml:5:38".into(), message: "spec: wrong".into() };
        let folder = Source { name: "cluster".into(), api: None, refused: vec![refused] };
        let row = |what: &str, name: &str, state: Option<&str>, detail: Option<&str>| serde_json::json!({ "what": what, "name": name, "state": state, "used": null, "capacity": null, "detail": detail });
        let want = [
            row("cluster", "cluster", Some("files"), None),
            row("refused", "cluster/a.yaml:5:38", None, Some("spec: wrong")),
        ];
        assert_eq!(rows(&folder), serde_json::json!(want));
        let of = |api| Source { name: "in-cluster".into(), api: Some(api), refused: Vec::new() };
        assert_eq!(
            rows(&of(Api::default())),
            serde_json::json!([row("cluster", "in-cluster", Some("starting"), None)])
        );
        let listed = Api { listed: true, away: None };
        assert_eq!(rows(&of(listed)), serde_json::json!([row("cluster", "in-cluster", Some("current"), None)]));
        let since = UNIX_EPOCH + Duration::from_millis(65_500);
        let away = |attempts| Some(Away { since, error: "nodes: Connection refused".into(), attempts });
        let cases = [
            (
                Api { listed: true, away: away(1) },
                "since 1970-01-01T00:01:05Z (9 s, 1 attempt): nodes: Connection refused",
            ),
            (
                Api { listed: false, away: away(3) },
                "since 1970-01-01T00:01:05Z (9 s, 3 attempts): nodes: Connection refused; not listed since the agent's start",
            ),
        ];
        for (api, detail) in cases {
            assert_eq!(rows(&of(api)), serde_json::json!([row("cluster", "in-cluster", Some("away"), Some(detail))]));
        }
    }
}
