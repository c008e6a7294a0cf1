//! The simulation: configuration churn, failing applies, restarts and packets over the production
//! code, without a kernel. Everything follows from a seed.
//!
//! What must hold behind every single operation: a connection keeps its backend as long as that is
//! wished for, in both directions; no new connection goes to a backend that leaves or is not there.
//! When all operations have been applied: new connections go only where the wish says, packets
//! leave by the next hop that the network says, and no entry names a backend that is no more.

pub mod packet;
pub mod world;

use std::net::IpAddr;

use lb_common::drop::Drop;
use lb_common::table::Backend;
use lb_common::tables::Tables;
use lb_common::tcp;
use lb_common::verdict::{Arrival, Hook, Verdict};
use lb_common::wire::header::{TCP_ACK, TCP_SYN};
use lb_common::wire::{Addr, Ip4, Ip6};
use lb_user::intent::{Capacity, Endpoint, EndpointState, ServicePort};
use lb_user::plan::{Apply, Contents, Ids, Op, diff, plan};

use crate::fake::{Fake, InFake, SMALL};
use crate::runner::host::{self, Refuses};
use packet::Tuple;
use world::{TICKS, World};

/// A connection as its client and its backend see it.
#[derive(Clone, Copy, Debug)]
struct Connection {
    client: Tuple,
    /// What the backend gets.
    backend: Tuple,
}

/// A run under way.
struct Run {
    world: World,
    fake: Fake,
    ids: Ids,
    connections: Vec<Connection>,
    next_port: u16,
    figures: Figures,
    /// All operations have been applied.
    at_rest: bool,
}

/// What a run has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub operations: u64,
    pub failed_applies: u64,
    pub restarts: u64,
    pub connections: u64,
    pub packets: u64,
    pub ended: u64,
}

/// Runs a seed; panics where something doesn't hold.
pub fn run(seed: u64) -> Figures {
    let world = World::new(seed);
    let capacity = Capacity { connections: SMALL.connections, ..world.intent.tuning.capacity };
    let fake = Fake::new(capacity, TICKS);
    let (ids, connections, figures) = (Ids::default(), Vec::new(), Figures::default());
    let mut run = Run { world, fake, ids, connections, next_port: 1_024, figures, at_rest: false };
    for _ in 0..8 {
        run.round();
        run.world.change();
    }
    run.figures
}

impl Run {
    /// The agent's loop once, with packets between its operations.
    fn round(&mut self) {
        let real = self.fake.read().expect("a fake can be read");
        if self.world.random.one_in(4) {
            self.ids = Ids::recover(&real);
            self.figures.restarts += 1;
        }
        self.forget_connections();
        self.at_rest = false;
        let to = self.plan();
        let ops = diff(&real, &to);
        let fails_at = self.world.random.one_in(3).then(|| self.world.random.below(ops.len().max(1)));
        if self.apply(&ops, fails_at) {
            self.ids.applied();
            self.settled(&to);
        } else {
            self.figures.failed_applies += 1;
            self.ids.settle(&self.fake.read().expect("a fake can be read"));
            // Sometimes the next wish comes first.
            if self.world.random.one_in(2) {
                self.round();
            }
        }
    }

    fn plan(&mut self) -> Contents {
        plan(&self.world.intent, &self.world.network, &mut self.ids, self.world.clock()).expect("a plan")
    }

    fn apply(&mut self, ops: &[Op], fails_at: Option<usize>) -> bool {
        for (i, op) in ops.iter().enumerate() {
            if fails_at == Some(i) {
                return false;
            }
            self.fake.apply(op).expect("there is room");
            self.figures.operations += 1;
            // The filter alone concerns only what is not there yet.
            if !matches!(op, Op::FilterWord { .. }) || self.world.random.one_in(50) {
                self.traffic(1, 2);
            }
        }
        true
    }

    /// Some new connections, and packets of some old ones.
    fn traffic(&mut self, new: usize, old: usize) {
        for _ in 0..new {
            self.open();
        }
        for _ in 0..old.min(self.connections.len()) {
            let connection = *self.world.random.pick(&self.connections);
            self.keeps_its_backend(&connection);
        }
    }

    /// Behind a whole list of operations.
    fn settled(&mut self, to: &Contents) {
        self.at_rest = true;
        let again = self.plan();
        assert_eq!(diff(to, &again), [], "the same wish, another plan");
        let mut recovered = Ids::recover(&self.fake.read().expect("a fake can be read"));
        let after = plan(&self.world.intent, &self.world.network, &mut recovered, self.world.clock()).expect("a plan");
        assert_eq!(diff(to, &after), [], "a restart changes something");
        self.entries_are_true::<Ip4>();
        self.entries_are_true::<Ip6>();
        for connection in self.connections.clone() {
            self.keeps_its_backend(&connection);
        }
        for _ in 0..6 {
            if let Some(connection) = self.open() {
                let backend = (connection.backend.dst, connection.backend.dport);
                let service = self.service(&connection.client).expect("a service");
                let wished = takers(service, backend.0.is_ipv4()).any(|e| (e.addr, e.port) == backend);
                assert!(wished, "{backend:?} gets a new connection, but {:?} is wished for", service.endpoints);
            }
        }
    }

    /// No entry of the flow tables names a backend that is no more, or another one.
    fn entries_are_true<A: InFake>(&self) {
        let backends = &A::family(&self.fake).backends;
        for (key, flow) in A::flows(&self.fake).all() {
            let backend = backends.get(&flow.backend).unwrap_or_else(|| panic!("{key:?} {flow:?}: no backend"));
            let is_reply = flow.flags & lb_common::table::Flow::<A>::REPLY != 0;
            let at = if is_reply { (key.src, key.sport) } else { (flow.dst, flow.dport) };
            assert_eq!(at, (backend.addr, backend.port), "{key:?} {flow:?} is of another backend");
        }
    }

    /// Connections whose backend is no more may end.
    fn forget_connections(&mut self) {
        let now = self.world.clock().now;
        let services = &self.world.intent.services;
        let before = self.connections.len();
        self.connections.retain(|c| {
            let service = services.iter().find(|s| is_of(s, &c.client));
            service.is_some_and(|s| {
                let there = |e: &Endpoint| !matches!(e.state, EndpointState::Draining { until } if until <= now);
                s.endpoints.iter().any(|e| there(e) && (e.addr, e.port) == (c.backend.dst, c.backend.dport))
            })
        });
        self.figures.ended += (before - self.connections.len()) as u64;
    }

    fn service(&self, client: &Tuple) -> Option<&ServicePort> {
        self.world.intent.services.iter().find(|s| is_of(s, client))
    }

    /// Sends a packet; what comes out, if it is translated.
    fn send(&mut self, tuple: &Tuple, flags: u8) -> (Verdict, Tuple, [u8; 6]) {
        self.figures.packets += 1;
        let at = Arrival {
            hook: Hook::Ingress,
            ifindex: world::PORT,
            now: self.world.clock().tick,
            gso_size: 0,
            tagged: 0,
            own: 0,
            tunneled: 0,
        };
        let (verdict, bytes) = host::run(&self.fake, &at, packet::build(tuple, flags), Refuses::default());
        let out = if matches!(verdict, Verdict::Continue | Verdict::Transmit { .. }) {
            packet::tuple(&bytes)
        } else {
            *tuple
        };
        let mac = bytes[..6].try_into().expect("six bytes");
        (verdict, out, mac)
    }

    /// A new connection of a service, shaken hands; none where the service has no backend.
    fn open(&mut self) -> Option<Connection> {
        let World { random, intent, .. } = &mut self.world;
        let i = random.below(3) as u8;
        let dst = *random.pick(&world::addresses(i));
        let service = intent.services.iter().find(|s| s.addresses.contains(&dst))?;
        let src = world::ip(if dst.is_ipv4() { "192.168.20.77" } else { "fd20::77" });
        self.next_port = if self.next_port == u16::MAX { 1_024 } else { self.next_port + 1 };
        let client = Tuple { proto: service.protocol.number(), src, sport: self.next_port, dst, dport: service.port };
        let (verdict, backend, _) = self.send(&client, TCP_SYN);
        match verdict {
            Verdict::Continue | Verdict::Transmit { .. } => {}
            Verdict::Refuse(Drop::NoBackend | Drop::NoService | Drop::IcmpRateLimited) => return None,
            Verdict::Drop(Drop::UnusedServiceAddress | Drop::NoBackend | Drop::NoService | Drop::IcmpRateLimited) => {
                return None;
            }
            Verdict::Pass => return None,
            other => panic!("{client:?}: {other:?}"),
        }
        let state = self.state_of(backend.dst, &client);
        assert_eq!(state, Some(Backend::<Ip4>::ACTIVE), "{client:?} is sent to {backend:?}");
        let connection = Connection { client, backend };
        self.reply(&connection, TCP_SYN | TCP_ACK);
        self.keeps_its_backend(&connection);
        self.figures.connections += 1;
        // A backend that is about to be removed may still get it, until its operation.
        let is_wished = self.service(&client).is_some_and(|s| s.endpoints.iter().any(|e| e.addr == backend.dst));
        if is_wished {
            self.connections.push(connection);
        }
        Some(connection)
    }

    /// What the tables say of a service's backend.
    fn state_of(&self, addr: IpAddr, client: &Tuple) -> Option<u8> {
        fn of<A: InFake>(fake: &Fake, addr: IpAddr, client: &Tuple) -> Option<u8> {
            let family = A::family(fake);
            let key = |k: &lb_common::table::ServiceKey<A>| (k.addr.to_ip(), k.port.get(), k.proto);
            let wanted = (client.dst, client.dport, client.proto);
            let service = family.services.iter().find(|(k, _)| key(k) == wanted)?.1;
            let is_it = |b: &&Backend<A>| b.service == service.id && b.addr.to_ip() == addr;
            family.backends.values().find(is_it).map(|b| b.state)
        }
        if addr.is_ipv4() { of::<Ip4>(&self.fake, addr, client) } else { of::<Ip6>(&self.fake, addr, client) }
    }

    fn keeps_its_backend(&mut self, connection: &Connection) {
        let (verdict, out, mac) = self.send(&connection.client, TCP_ACK);
        assert_eq!(out, connection.backend, "{verdict:?}: {connection:?} has lost its backend\n{}", self.flows());
        self.leaves_rightly(verdict, out.dst, mac);
        self.reply(connection, TCP_ACK);
    }

    fn reply(&mut self, connection: &Connection, flags: u8) {
        let (verdict, out, mac) = self.send(&connection.backend.reversed(), flags);
        let expected = connection.client.reversed();
        assert_eq!(out, expected, "{verdict:?}: the answer of {connection:?} is lost\n{}", self.flows());
        self.leaves_rightly(verdict, out.dst, mac);
    }

    /// A packet that we transmit goes to a neighbour that the tables have; when nothing is under
    /// way, to the one that its route leads to.
    fn leaves_rightly(&self, verdict: Verdict, dst: IpAddr, mac: [u8; 6]) {
        let Verdict::Transmit { ifindex } = verdict else { return };
        let leads_to =
            |index: u32| self.fake.next_hops.get(&index).is_some_and(|h| h.ifindex == ifindex && h.dst.0 == mac);
        let known = if self.at_rest {
            let v4 = Ip4::from_ip(dst).and_then(|dst| Tables::route(&self.fake, dst));
            v4.or_else(|| Tables::route(&self.fake, Ip6::from_ip(dst)?)).is_some_and(leads_to)
        } else {
            self.fake.next_hops.keys().any(|&index| leads_to(index))
        };
        assert!(known, "{dst} by link {ifindex} to {mac:x?}: not what the tables say");
    }

    fn flows(&self) -> String {
        let (v4, v6) = (self.fake.flows4.all(), self.fake.flows6.all());
        let established = v4.iter().filter(|(_, flow)| tcp::answered(flow.state)).count();
        format!("{} IPv4 entries, {established} of them established; {} IPv6 entries", v4.len(), v6.len())
    }
}

fn is_of(service: &ServicePort, client: &Tuple) -> bool {
    service.addresses.contains(&client.dst) && (service.port, service.protocol.number()) == (client.dport, client.proto)
}

/// The endpoints of a family that take new connections.
fn takers(service: &ServicePort, v4: bool) -> impl Iterator<Item = &Endpoint> {
    let of_family = move |e: &&Endpoint| e.addr.is_ipv4() == v4;
    let any_ready = service.endpoints.iter().filter(of_family).any(|e| e.state == EndpointState::Ready);
    service.endpoints.iter().filter(of_family).filter(move |e| !any_ready || e.state == EndpointState::Ready)
}
