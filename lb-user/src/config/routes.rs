//! Operators' routes: `routes`, the same as those added by command.
//!
//! Invariant: what a route may be is [`crate::route`]'s; here is where it was said.

use super::at::{At, Log};
use super::{Config, Error, Places};
use crate::intent::Network;
use crate::route::{Kind, METRIC, Origin, StaticRoute, Wished, check, form, wish};

const KEYS: &[&str] = &["interface", "destination", "nextHop", "metric", "weight", "type"];
const PORT: &str = "a port's name, such as Port3";

pub(super) fn routes(places: &mut Places, list: &At<'_>, log: &mut Log) -> Vec<StaticRoute> {
    let mut all = Vec::new();
    for at in list.list_or_one() {
        let Some(route) = route(&at, log) else { continue };
        match form::whole(&route) {
            Ok(()) => {
                places.note_member(list, &at);
                all.push(route);
            }
            Err(why) => log.error(&at, why),
        }
    }
    all
}

fn route(at: &At<'_>, log: &mut Log) -> Option<StaticRoute> {
    if !at.only(log, KEYS) {
        return None;
    }
    let before = log.errors.len();
    let interface = at.require(log, "interface", PORT).and_then(|at| at.string(log, PORT));
    let destination = match at.require(log, "destination", form::DESTINATION) {
        Some(at) => said(Some(at), log, form::DESTINATION, |text| form::destination(text, false)),
        None => None,
    };
    let route = StaticRoute {
        interface: interface?,
        destination: destination?,
        next_hop: said(at.get("nextHop"), log, form::NEXT_HOP, form::next_hop),
        metric: said(at.get("metric"), log, form::METRICS, form::metric).unwrap_or(METRIC),
        weight: said(at.get("weight"), log, form::WEIGHTS, form::weight).unwrap_or(1),
        kind: said(at.get("type"), log, form::KINDS, form::kind).unwrap_or(Kind::Unicast),
    };
    (log.errors.len() == before).then_some(route)
}

/// A value whose reader names it in its message itself.
fn said<T>(at: Option<At<'_>>, log: &mut Log, right: &str, read: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
    let at = at?;
    let Some(text) = at.node.text() else {
        return at.value(log, right, |_| Err(String::new()));
    };
    read(text).map_err(|why| log.error(&at, why)).ok()
}

/// Each is on a port that there is, and none is there twice.
pub(super) fn whole(config: &Config, log: &mut Log) {
    let all = wish(&config.routes, &[]);
    for (i, route) in config.routes.iter().enumerate() {
        let port = check::port(&config.ports, &route.interface).map(drop);
        if let Err(why) = port.and_then(|()| duplicate(config, route, &all[..i])) {
            log.errors.push(config.error_at(&config.member("routes", i), why));
        }
    }
}

fn duplicate(config: &Config, route: &StaticRoute, before: &[Wished]) -> Result<(), String> {
    match before.iter().position(|other| other.route.is(&route.interface, route.destination)) {
        None => Ok(()),
        Some(first) => Err(format!(
            "{} has a route to {} already, {}; expected one",
            route.interface,
            route.destination,
            config.member("routes", first)
        )),
    }
}

/// What the kernel's facts say against them.
pub(super) fn verify(config: &Config, network: &Network) -> Vec<Error> {
    let wrong = config.routes.iter().enumerate().filter_map(|(i, route)| {
        let port = check::port(&config.ports, &route.interface).ok()?;
        let why = check::facts(route, port, network).err()?;
        Some(config.error_at(&config.member("routes", i), why))
    });
    wrong.collect()
}

impl Config {
    /// Where a route of the file stands.
    pub fn place_of(&self, wished: &Wished) -> Option<String> {
        let index = self.routes.iter().position(|route| *route == wished.route && wished.origin == Origin::File)?;
        let place = self.places.by_path.get(&self.member("routes", index))?;
        Some(format!("{}:{place}", self.file))
    }
}
