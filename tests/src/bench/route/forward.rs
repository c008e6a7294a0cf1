//! Net ns a packet that is forwarded to a random destination: the product's whole program beside a forwarder that
//! asks `bpf_fib_lookup`, with the same routes in the kernel, and beside one that asks nobody.
//!
//! Invariant: before anything is measured, product and kernel have made the very same bytes of a sample of
//! packets; a row whose packets differ, or weren't forwarded, is marked.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context, Result};
use aya::maps::MapData;
use aya::programs::Xdp;
use lb_common::table::Prefix;
use lb_user::apply::fib::Parts;
use lb_user::apply::table::Table;
use lb_user::apply::{Kernel, Paths, load};
use lb_user::fib::Fib;
use lb_user::intent::{Capacity, Forwarding, Intent, Neighbour, Network};
use stellwerk_tests::bpf::{self, Target};
use stellwerk_tests::netns::{Lab, clean};
use stellwerk_tests::routes::Drawn;
use stellwerk_tests::routes::kernel::{Routes, gateway};

use super::super::machine::{pin_cpu, thread_ns};
use super::super::report::{Reach, Row};
use super::super::scene::{address, link, port, put};
use super::super::series::{median, minus, ratio};
use super::programs::{self, Hop, V4, V6};

const REDIRECT: u32 = 4;
/// The link that packets come in by: a test run's are loopback's.
const IN: u32 = 1;
const OUT: u32 = 2;
/// Packets that are compared.
const SAMPLE: u64 = 2_000;
/// What the table of routes may take.
const ROOM: u64 = 1 << 29;

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    /// Returns at once.
    Stub,
    /// Forwards to one next hop.
    Bare,
    Kernel,
    Ours,
}

/// The programs, with the same routes.
struct Forwarders<A: lb_common::wire::Addr> {
    product: Kernel,
    wrapper: OwnedFd,
    target: Target,
    stub: OwnedFd,
    bare: OwnedFd,
    kernel: OwnedFd,
    turn: Table<u32, u64>,
    length: usize,
    sent: u64,
    // Behind what uses its memory and its pins.
    _fib: Fib<A, Parts>,
    _lab: Lab,
}

/// The rows of a table, whose routes the scene's kernel has. `reach`: the product's part of the kernel's time.
pub fn rows<A: Drawn>(
    scene: &Routes<A>,
    table: &[(Prefix<A>, u32)],
    what: &str,
    reach: Option<f64>,
    quick: bool,
) -> Result<Vec<Row>> {
    neighbours(scene, table)?;
    scene.ns().run(|| -> Result<Vec<Row>> {
        pin_cpu()?;
        let mut forwarders = Forwarders::new(scene, table).context("the forwarders")?;
        forwarders.rows(what, reach, quick)
    })?
}

fn mac(value: u32) -> [u8; 6] {
    [2, 0, 0, 1, (value >> 8) as u8, value as u8]
}

fn values<A: Drawn>(table: &[(Prefix<A>, u32)]) -> Vec<u32> {
    let mut values: Vec<u32> = table.iter().map(|(_, value)| *value).collect();
    values.sort_unstable();
    values.dedup();
    values
}

/// Gives the kernel's next hops link-layer addresses, and its link the one that the product's has.
fn neighbours<A: Drawn>(scene: &Routes<A>, table: &[(Prefix<A>, u32)]) -> Result<()> {
    let text = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    let own = link(OUT, "out").mac.context("a link's address")?;
    let mut lines = vec![format!("link set r0 address {}", text(own))];
    lines.extend(values(table).into_iter().map(|value| {
        format!("neigh replace {} lladdr {} dev r0 nud permanent", gateway::<A>(value), text(mac(value)))
    }));
    scene.ns().ip(&lines.join("\n"))
}

/// A port that packets come in by, and the link of all next hops.
fn world<A: Drawn>(table: &[(Prefix<A>, u32)]) -> (Intent, Network) {
    let intent = Intent { node: "bench".into(), ports: vec![port("port")], ..Intent::default() };
    let neighbour = |value| Neighbour { link: OUT, addr: gateway::<A>(value), mac: Some(mac(value)) };
    let network = Network {
        links: vec![link(IN, "port"), link(OUT, "out")],
        addresses: vec![
            address(IN, "192.168.20.1/24"),
            address(IN, "fd00:14::1/64"),
            address(OUT, "10.0.255.254/16"),
            address(OUT, "fd00::1:0/64"),
        ],
        neighbours: values(table).into_iter().map(neighbour).collect(),
        forwarding: [(IN, Forwarding { v4: true, v6: true, rp_filter: 0 })].into(),
        ..Network::default()
    };
    (intent, network)
}

impl<A: Drawn> Forwarders<A> {
    fn new(scene: &Routes<A>, table: &[(Prefix<A>, u32)]) -> Result<Self> {
        let lab = Lab::new()?;
        let mut product = Kernel::load(&Paths::new(lab.pins()), &Capacity::default(), false)?;
        let (intent, network) = world(table);
        put(&mut product, &intent, &network)?;
        let hops = product.maps.next_hops.entries()?;
        let hops: HashMap<[u8; 6], u32> = hops.into_iter().map(|(index, hop)| (hop.dst.0, index)).collect();
        // In the table of routes zero is none.
        let route = |(prefix, value): &(Prefix<A>, u32)| Some((*prefix, hops.get(&mac(*value))? + 1));
        let routes: Option<Vec<_>> = table.iter().map(route).collect();
        let parts = Parts::open::<A>(&product.paths.maps(), ROOM)?;
        let fib = Fib::load(parts, &routes.context("a next hop isn't in the product's table")?)?;

        let layout = if A::IS_V6 { V6 } else { V4 };
        let (own, out) = (link(IN, "").mac.context("no address")?, link(OUT, "").mac.context("no address")?);
        let pin = |name: &str| MapData::from_pin(PathBuf::from(scene.dir()).join(name)).context(name.to_owned());
        let (turn, to) = (pin("TURN")?, pin(if A::IS_V6 { "TO6" } else { "TO4" })?);
        let target = Target::new()?;
        Ok(Forwarders {
            wrapper: programs::wrapper(&layout, &layout.packet(own, [2; 6]), &turn, &to, &target)?,
            target,
            stub: programs::stub()?,
            bare: programs::bare(&layout, &Hop { link: scene.link(), dst: mac(table[0].1), src: out })?,
            kernel: programs::kernel(&layout, scene.link())?,
            turn: Table::open(scene.dir(), "TURN")?,
            length: layout.length.max(64) as usize,
            sent: 0,
            product,
            _fib: fib,
            _lab: lab,
        })
    }

    /// Nanoseconds a packet, with the wrapper's own; what the last packet's program returned, and what that became.
    fn run(&mut self, lane: Lane, packets: u32) -> Result<(f64, u32, Vec<u8>)> {
        let program = self.product.ebpf.program(load::XDP).context("the product's program")?;
        match lane {
            Lane::Stub => self.target.set(self.stub.as_fd())?,
            Lane::Bare => self.target.set(self.bare.as_fd())?,
            Lane::Kernel => self.target.set(self.kernel.as_fd())?,
            Lane::Ours => self.target.set(<&Xdp>::try_from(program)?.fd()?.as_fd())?,
        }
        self.sent += if lane == Lane::Ours { u64::from(packets) } else { 0 };
        let mut packet = vec![0; self.length];
        let before = thread_ns();
        let code = bpf::test_run(self.wrapper.as_fd(), &mut packet, packets)?;
        Ok(((thread_ns() - before) / f64::from(packets), code, packet))
    }

    /// Of a sample of packets, how many the product didn't forward as the kernel does.
    fn wrong(&mut self) -> Result<u64> {
        let mut wrong = 0;
        for turn in 0..SAMPLE {
            let mut one = |lane| {
                self.turn.set(&0, &turn)?;
                self.run(lane, 1)
            };
            let ((_, theirs, right), (_, ours, packet)) = (one(Lane::Kernel)?, one(Lane::Ours)?);
            wrong += u64::from((theirs, ours) != (REDIRECT, REDIRECT) || packet != right);
        }
        Ok(wrong)
    }

    fn rows(&mut self, what: &str, reach: Option<f64>, quick: bool) -> Result<Vec<Row>> {
        let counted = |forwarders: &Self| Ok::<_, anyhow::Error>(forwarders.product.maps.counters.sum(0)?.packets);
        let before = counted(self)?;
        let wrong = self.wrong()?;
        let (packets, rounds) = if quick { (200_000, 7) } else { (500_000, 15) };
        const LANES: [Lane; 4] = [Lane::Stub, Lane::Ours, Lane::Kernel, Lane::Bare];
        let (mut gross, mut forwarded) = (LANES.map(|_| Vec::new()), true);
        // The first round warms up.
        for round in 0..=rounds {
            clean::check()?;
            for (gross, lane) in gross.iter_mut().zip(LANES) {
                let (ns, code, _) = self.run(lane, packets)?;
                gross.extend((round > 0).then_some(ns));
                forwarded &= code == REDIRECT || lane == Lane::Stub;
            }
        }
        let [stub, ours, kernel, bare] = gross;
        let [ours, kernel, bare] = [ours, kernel, bare].map(|gross| minus(&gross, &stub));
        let name = format!("{what}: a packet forwarded");
        let row = Row::new(&name, median(&ours), "ns");
        let part = ratio(&ours, &kernel);
        let row = match reach {
            Some(most) => row.against(median(&kernel), part, Reach::AtMost(most)),
            None => Row { limit: Some(median(&kernel)), ratio: Some(part), ..row },
        };
        let counted = counted(self)? - before;
        let own = row
            .verdict("wrong_packets", wrong)
            .verdict("sent", self.sent)
            .verdict("counted", counted)
            .prove(wrong == 0 && forwarded && counted == self.sent);
        let other = Row::new(format!("{name}, bpf_fib_lookup"), median(&kernel), "ns").prove(forwarded);
        let least = Row::new(format!("{name}, to one next hop"), median(&bare), "ns").prove(forwarded);
        Ok(vec![own, other, least.verdict("stub_ns", median(&stub))])
    }
}
