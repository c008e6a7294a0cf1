//! What this node announces, as services, nodes and ports come and go.
//!
//! Invariant: an address is announced once its services are in force and withdrawn before they leave, and who had been
//! sending to another node is told. Not here: who announces what ([`crate::announce`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

use lb_common::wire::Addr;
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::Agent;
use super::planning::Held;
use super::wish::Wish;
use crate::announce::demand::{self, Demand, Demands};
use crate::announce::gratuitous::{self, All};
use crate::announce::own::{Nodes, choose};
use crate::announce::peers::{Life, Word};
use crate::announce::report::{Peer, Report, Row};
use crate::announce::talk::{self, Lives, Wanted};
use crate::announce::{place, places};
use crate::apply::Paths;
use crate::disk;
use crate::intent::{Network, ServicePort};
use crate::plan::{Contents, Op, Planned};
use crate::source::manifests::ServiceName;

pub(super) struct Announce {
    path: PathBuf,
    talk: watch::Sender<Wanted>,
    pub lives: watch::Receiver<Lives>,
    /// What is in force.
    held: watch::Sender<All>,
    /// What services that are planned ask.
    asked: BTreeMap<ServiceName, Demands>,
    report: Report,
    written: Report,
}

impl Announce {
    /// Goes on where an agent before ended: `held` is what it announced.
    pub fn start(paths: &Paths, held: &Contents) -> Self {
        let path = paths.announce();
        let before = Report::read(&path).unwrap_or_default();
        let before = before.peers.into_iter().map(|(name, peer)| (name, peer.state)).collect();
        let (talk, wanted) = watch::channel(Wanted { before, ..Wanted::default() });
        let (held, held_by) = watch::channel(all(held));
        gratuitous::spawn(held_by);
        let (report, written) = (Report::default(), Report::default());
        Announce { path, talk, lives: talk::spawn(wanted), held, asked: BTreeMap::new(), report, written }
    }

    /// What a service asks now; whether that is another thing than before.
    fn note(&mut self, name: &ServiceName, ports: &[ServicePort], node: &str, planned: &Planned) -> bool {
        let asks = demand::of(ports, node, |endpoint| planned.is_here(endpoint));
        let before = self.asked.remove(name).unwrap_or_default();
        let other = before != asks;
        if !asks.is_empty() {
            self.asked.insert(name.clone(), asks);
        }
        other
    }

    /// These services were planned anew: the operations that come before theirs, and those that come behind.
    pub fn part<'p>(
        &mut self,
        services: impl Iterator<Item = (&'p ServiceName, &'p [ServicePort])>,
        planned: &mut Planned,
        wish: &Wish,
        network: &Network,
    ) -> (Vec<Op>, Vec<Op>) {
        let mut other = false;
        for (name, ports) in services {
            other |= self.note(name, ports, &wish.intent.node, planned);
        }
        if other { planned.announce(&self.wanted(wish, network)) } else { Default::default() }
    }

    /// All were planned anew: the plan then says what is announced, too.
    pub fn whole(&mut self, services: &[ServicePort], planned: &mut Planned, wish: &Wish, network: &Network) {
        self.asked.clear();
        for ports in services.chunk_by(|a, b| (&a.namespace, &a.name) == (&b.namespace, &b.name)) {
            let name = ServiceName { namespace: ports[0].namespace.clone(), name: ports[0].name.clone() };
            _ = self.note(&name, ports, &wish.intent.node, planned);
        }
        _ = planned.announce(&self.wanted(wish, network));
    }

    /// The nodes, as they are seen now.
    fn nodes(&self, wish: &Wish) -> Nodes {
        let (peers, excluded) = wish.nodes();
        let lives = self.lives.borrow();
        let life = |name: &String| lives.get(name).copied().unwrap_or(Life::Unknown);
        let peers = peers.into_keys().map(|name| (name.clone(), life(&name))).collect();
        Nodes { own: wish.intent.node.clone(), peers, excluded }
    }

    /// The node that gives addresses to a live cluster's services; `gives`: this one does now.
    pub fn giver(&self, wish: &Wish, gives: bool) -> Option<String> {
        let mut nodes = Nodes { excluded: BTreeSet::new(), ..self.nodes(wish) };
        let others = nodes.peers.values().any(|life| *life != Life::Gone);
        if others && !wish.announce().enabled {
            // It tells nobody that it is there.
            nodes.excluded.insert(nodes.own.clone());
        }
        choose(IpAddr::V6(Ipv6Addr::UNSPECIFIED), &Demand::default(), &nodes, gives).owner
    }

    /// What is to be announced here.
    fn wanted(&mut self, wish: &Wish, network: &Network) -> All {
        let (intent, settings) = (&wish.intent, wish.announce());
        let mut demands = Demands::new();
        self.asked.values().for_each(|asks| demand::join(&mut demands, asks));
        let places = places(intent, network);
        let nodes = self.nodes(wish);
        let held = self.held.borrow();
        let mut all = All::new();
        let mut rows = Vec::new();
        for (addr, demand) in demands.iter().filter(|_| settings.enabled) {
            let services = demand.services.iter().cloned().collect();
            let mut row =
                Row { address: *addr, interface: None, owner: None, here: false, services, why: String::new() };
            match place(&places, *addr) {
                None => row.why = "in no network of a compute port that is up".into(),
                Some(place) => {
                    let choice = choose(*addr, demand, &nodes, held.contains_key(addr));
                    if choice.here {
                        all.insert(*addr, place.by);
                    }
                    let others = choice.others.iter().map(|(node, why)| format!("{node}: {why}"));
                    row.why = others.collect::<Vec<_>>().join("; ");
                    row.interface = Some(place.interface.clone());
                    (row.owner, row.here) = (choice.owner, choice.here);
                }
            }
            rows.push(row);
        }
        let peers = wish.nodes().0.into_iter();
        let peer = |(name, addresses)| {
            let state = nodes.peers[&name];
            (name, Peer { addresses, state })
        };
        self.report = Report {
            node: intent.node.clone(),
            port: settings.port,
            peers: peers.map(peer).collect(),
            addresses: rows,
        };
        all
    }

    /// This is in force now.
    fn settled(&mut self, contents: &Contents) {
        let now = all(contents);
        _ = self.held.send_if_modified(|old| {
            for addr in old.keys().filter(|addr| !now.contains_key(addr)) {
                info!("{addr} is not announced here any more");
            }
            for addr in now.keys().filter(|addr| !old.contains_key(addr)) {
                info!("{addr} is announced here");
            }
            let other = *old != now;
            *old = now;
            other
        });
        if self.report != self.written {
            let text = serde_json::to_vec(&self.report).unwrap_or_default();
            match disk::exchange(&self.path, &text) {
                Ok(()) => self.written = self.report.clone(),
                Err(error) => warn!("writing {}: {error}", self.path.display()),
            }
        }
    }
}

fn all(contents: &Contents) -> All {
    let v4 = contents.v4.announced.iter().map(|(addr, by)| (addr.to_ip(), *by));
    let v6 = contents.v6.announced.iter().map(|(addr, by)| (addr.to_ip(), *by));
    v4.chain(v6).collect()
}

impl Agent {
    /// Whatever is in force says what is announced.
    pub(super) fn note_announced(&mut self) {
        if let Some(planned) = &self.planned {
            self.announce.settled(planned.contents());
        }
    }

    /// Other nodes are there, or other ones are wished for.
    pub(super) fn settle_announcements(&mut self) {
        _ = self.follow_nodes();
        self.settle_giver();
        let Some(planned) = self.planned.as_mut().filter(|_| !self.behind && matches!(self.held, Held::Plan)) else {
            return self.replan_or_retry(None);
        };
        let (mut ops, announced) = planned.announce(&self.announce.wanted(&self.wish, &self.network));
        ops.extend(announced);
        if let Err(error) = self.carry_out(&ops) {
            return error!("announcing addresses: {error:#}");
        }
        self.note_announced();
    }

    /// Tells the other nodes of this one; whether they, or what is told, are others than before.
    pub(super) fn follow_nodes(&mut self) -> bool {
        let settings = self.wish.announce();
        let (mut peers, excluded) = self.wish.nodes();
        let node = self.wish.intent.node.clone();
        let word = if settings.enabled && !excluded.contains(&node) { Word::Here } else { Word::Leaving };
        if !self.wish.intent.ports.iter().any(|port| port.compute) {
            peers.clear();
        }
        let before = self.announce.talk.borrow().before.clone();
        let new = Wanted { node, port: settings.port, word: Some(word), peers, before };
        self.announce.talk.send_if_modified(|old| {
            let other = *old != new;
            *old = new;
            other
        })
    }
}
