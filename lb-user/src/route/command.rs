//! `stellwerk route add`, `get`, `remove`: what they ask, change and wait for.
//!
//! Invariant: the store is the only thing that is written here. The agent watches it and does the
//! rest, so that a route may be added while no agent runs, and before there is a configuration;
//! what can't be checked now, the agent checks, and `route get` says what it found.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use ipnet::IpNet;

use super::decide::{State, decide};
use super::form::Words;
use super::store::{self, Store, Stored};
use super::{Key, Kind, MAIN, Origin, StaticRoute, Wished, check, wish};
use crate::agent::running;
use crate::apply::{self, Paths, namespace};
use crate::config::Config;
use crate::intent::{Network, Port};
use crate::source::netlink::Mirror;

/// How long a command waits for the agent,
const PATIENCE: Duration = Duration::from_secs(2);
/// and, once that has the route, for the next hop's first answer.
const ANSWER: Duration = Duration::from_millis(600);
const AGAIN: Duration = Duration::from_millis(20);

/// What there is to know about routes, whether an agent runs or not.
pub struct Known {
    pub runs: bool,
    path: PathBuf,
    /// None: no agent has run here yet, or it can't be read now.
    config: Option<Config>,
    /// None: of the agent's network namespace, in another one.
    network: Option<Network>,
    notices: Vec<String>,
}

/// What a command did.
pub struct Done {
    pub route: StaticRoute,
    pub said: String,
    pub notices: Vec<String>,
}

/// A wished route and what became of it: a word, and a reason.
pub struct Row {
    pub wished: Wished,
    pub state: &'static str,
    pub reason: Option<String>,
}

impl Known {
    pub fn new(paths: &Paths, store: Option<&Path>) -> Result<Known> {
        let (about, runs) = running(paths);
        let told = Some(&about.routes).filter(|path| !path.as_os_str().is_empty());
        if let (Some(store), Some(told), true) = (store, told, runs) {
            ensure!(store == told, "--routes {}: the agent keeps routes in {}", store.display(), told.display());
        }
        let path = store.or(told.map(PathBuf::as_path)).map_or_else(|| paths.routes(), Path::to_owned);
        let mut notices = Vec::new();
        let config = (!about.config.as_os_str().is_empty()).then(|| Config::load(&about.config));
        let config = config.and_then(|config| {
            config.map_err(|why| notices.push(format!("the configuration doesn't tell the ports: {why}"))).ok()
        });
        let recorded = apply::State::read(paths)?.namespace;
        let here = recorded == 0 || recorded == namespace()?;
        let network = here.then(|| Ok::<_, anyhow::Error>(Mirror::open()?.network().clone())).transpose()?;
        Ok(Known { runs, path, config, network, notices })
    }

    fn ports(&self) -> Option<&[Port]> {
        self.config.as_ref().map(|config| &config.ports[..])
    }

    fn wish(&self, stored: &Stored) -> Vec<Wished> {
        wish(self.config.as_ref().map_or(&[], |config| &config.routes[..]), &stored.routes)
    }

    /// What stands against a new route; a warning, where there is something to say.
    fn check(&self, route: &StaticRoute, stored: &Stored) -> Result<Option<String>> {
        let wrong = |why: String| anyhow!(why);
        let port = self.ports().map(|ports| check::port(ports, &route.interface)).transpose().map_err(wrong)?;
        check::duplicate(route, &self.wish(stored)).map_err(wrong)?;
        let (Some(port), Some(network)) = (port, &self.network) else { return Ok(None) };
        check::facts(route, port, network).map_err(wrong)?;
        Ok(check::covered(route, port, network))
    }

    /// All routes, or those of one port.
    pub fn rows(&self, interface: Option<&str>) -> Result<Vec<Row>> {
        let wish = self.wish(&store::read(&self.path)?);
        if let (Some(name), Some(ports)) = (interface, self.ports())
            && wish.iter().all(|wished| wished.route.interface != name)
        {
            check::port(ports, name).map_err(|why| anyhow!(why))?;
        }
        let rows =
            self.states(&wish).into_iter().zip(wish).map(|((state, reason), wished)| Row { wished, state, reason });
        Ok(rows.filter(|row| interface.is_none_or(|name| row.wished.route.interface == name)).collect())
    }

    fn states(&self, wish: &[Wished]) -> Vec<(&'static str, Option<String>)> {
        let stored = |why: &str| vec![("stored", Some(why.to_owned())); wish.len()];
        let Some(ports) = self.ports() else { return stored("no agent has told of a configuration yet") };
        let Some(network) = &self.network else { return stored("the agent's network namespace is another one") };
        let decision = decide(wish, ports, network);
        let states = wish.iter().zip(decision.states);
        states.map(|(wished, state)| self.state(&wished.route, state, ports, network)).collect()
    }

    fn state(
        &self,
        route: &StaticRoute,
        state: State,
        ports: &[Port],
        network: &Network,
    ) -> (&'static str, Option<String>) {
        let own = |prefix: IpNet| network.own.routes.iter().filter(move |(k, _)| k.table == MAIN && k.prefix == prefix);
        let link = check::port(ports, &route.interface).ok().and_then(|port| check::link(port, network));
        let there = own(route.destination).any(|(key, target)| {
            let has_hop = target.hops.iter().any(|hop| link.is_some_and(|link| link.index == hop.link));
            key.metric == route.metric && target.kind == route.kind && (route.kind != Kind::Unicast || has_hop)
        });
        let best = own(route.destination).all(|(key, _)| key.metric >= route.metric);
        let next_hop = route.next_hop.map(|addr| addr.to_string()).unwrap_or_default();
        match state {
            State::Invalid(why) => ("invalid", Some(why)),
            State::Down(why) => ("down", Some(why)),
            // Nobody asks next hops: what is in the kernel is what there is to say.
            _ if !self.runs && there => (if best { "active" } else { "standby" }, None),
            _ if !self.runs => ("stored", Some("no agent runs".into())),
            State::Silent(best) => {
                let stays = if best && there { "; it stays, since no other does" } else { "" };
                ("unanswered", Some(format!("the next hop {next_hop} doesn't answer{stays}")))
            }
            State::Active if there => ("active", None),
            State::Standby if there || route.kind != Kind::Unicast => ("standby", None),
            _ => ("missing", Some(missing(route, network))),
        }
    }
}

fn missing(route: &StaticRoute, network: &Network) -> String {
    let same = |prefix: IpNet, metric: u32| prefix == route.destination && metric == route.metric;
    let key = Key { table: MAIN, prefix: route.destination, metric: route.metric };
    let others = network.routes.iter().any(|r| same(r.prefix, r.path.metric)) && !network.own.routes.contains_key(&key);
    if others {
        "the kernel has another route of that prefix and metric, which is not ours; expected another metric".into()
    } else {
        "the kernel doesn't have it: the agent's log says why".into()
    }
}

pub fn add(paths: &Paths, words: &Words, store: Option<&Path>) -> Result<Done> {
    let route = words.route().map_err(|why| anyhow!(why))?;
    let known = Known::new(paths, store)?;
    let mut store = Store::open(&known.path)?;
    let warning = known.check(&route, &store.stored)?;
    store.stored.routes.push(route.clone());
    let generation = store.write()?;
    let mut done = Done { said: format!("added: {route}"), route, notices: Vec::new() };
    done.notices.extend(warning.map(|warning| format!("warning: {warning}")));
    let unchecked = known.ports().is_none() || known.network.is_none();
    done.notices.extend(known.notices.iter().cloned());
    if !known.runs {
        let checked = if unchecked { ", checked against its port then" } else { "" };
        done.notices.push(format!("no agent runs: the route is stored, and in force once one does{checked}"));
        return Ok(done);
    }
    done.notices.extend(await_force(paths, generation));
    done.notices.extend(await_answer(paths, &done.route)?);
    Ok(done)
}

pub fn remove(paths: &Paths, words: &Words, store: Option<&Path>) -> Result<Done> {
    let destination = words.destination().map_err(|why| anyhow!(why))?;
    let known = Known::new(paths, store)?;
    let mut store = Store::open(&known.path)?;
    let Some(index) = store.stored.routes.iter().position(|route| route.is(words.interface, destination)) else {
        bail!(not_there(&known, words.interface, destination, &store.stored));
    };
    let route = store.stored.routes.remove(index);
    let generation = store.write()?;
    let mut done = Done { said: format!("removed: {route}"), route, notices: Vec::new() };
    if known.runs {
        done.notices.extend(await_force(paths, generation));
    } else if known.network.is_some_and(|network| network.own.routes.keys().any(|key| key.prefix == destination)) {
        done.notices
            .push("no agent runs: the kernel keeps the route until one does, or until `stellwerk unload`".into());
    }
    Ok(done)
}

fn not_there(known: &Known, interface: &str, destination: IpNet, stored: &Stored) -> String {
    let of_port = known.wish(stored).into_iter().filter(|wished| wished.route.interface == interface);
    let of_port: Vec<Wished> = of_port.collect();
    let in_file =
        of_port.iter().find(|wished| wished.origin == Origin::File && wished.route.destination == destination);
    if let Some(place) = in_file.and_then(|wished| known.config.as_ref()?.place_of(wished)) {
        return format!(
            "{interface}'s route to {destination} was not added by command; expected its removal from {place}"
        );
    }
    if let (true, Some(Err(why))) = (of_port.is_empty(), known.ports().map(|ports| check::port(ports, interface))) {
        return why;
    }
    let there: Vec<_> = of_port.iter().map(|wished| wished.route.destination.to_string()).collect();
    let right = if there.is_empty() { "it has none".into() } else { format!("expected one of {}", there.join(", ")) };
    format!("{interface} has no route to {destination}; {right}")
}

/// Waits until the agent has brought a generation of the store into force.
fn await_force(paths: &Paths, generation: u64) -> Option<String> {
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        let (about, runs) = running(paths);
        if !runs {
            return Some("the agent has ended meanwhile: in force once one runs".into());
        }
        if about.generation >= generation {
            return None;
        }
        sleep(AGAIN);
    }
    Some(format!("the agent has not taken it over after {} s: its log says why", PATIENCE.as_secs()))
}

/// Waits for the next hop's first answer; what there is to say where there is none.
fn await_answer(paths: &Paths, route: &StaticRoute) -> Result<Option<String>> {
    let begin = Instant::now();
    loop {
        let rows = Known::new(paths, None)?.rows(Some(&route.interface))?;
        let row = rows.into_iter().find(|row| row.wished.route == *route).context("the route is gone again")?;
        if matches!(row.state, "active" | "standby") {
            return Ok(None);
        }
        if begin.elapsed() > ANSWER {
            return Ok(Some(format!("the route is {}: {}", row.state, row.reason.unwrap_or_default())));
        }
        sleep(AGAIN);
    }
}
