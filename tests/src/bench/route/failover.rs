//! How long nothing arrives when the better of two routers fails: a host behind the device asks every millisecond,
//! and each answer says which router gave it. An outage is from the failed one's last answer to the other's first.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use stellwerk_tests::load::{Task, echo};
use stellwerk_tests::netns::between::{ECHO, PORTS};
use stellwerk_tests::netns::probe::{self, Datagram, From};
use stellwerk_tests::netns::{Between, Ns, clean};

use super::super::report::{Reach, Row};
use super::super::series::median;

/// Longer than any figure that means something.
const PATIENCE: Duration = Duration::from_secs(15);
const BEAT: Duration = Duration::from_millis(1);
/// Both routers have it.
const FAR: ([u8; 4], u16) = ([10, 1, 0, 1], ECHO);
/// The routers' names, in their answers.
const BETTER: u8 = b'b';
const OTHER: u8 = b'o';

/// What fails, how it is made to and how it comes back, at the better router; milliseconds that were promised.
const KINDS: [(&str, &str, &str, f64); 2] = [
    ("link down", "link set eth0 down", "link set eth0 up", 50.0),
    ("silent next hop", "addr del 192.168.30.1/24 dev eth0", "addr add 192.168.30.1/24 dev eth0", 1_000.0),
];

/// The device between a host and two routers, with an operator's route by each.
struct Routers {
    between: Between,
    socket: UdpSocket,
    _servers: [Task; 2],
    _other: Ns,
}

pub fn rows(quick: bool) -> Result<Vec<Row>> {
    let routers = Routers::open().context("two routers")?;
    let times = if quick { 7 } else { 21 };
    let mut rows = Vec::new();
    for (what, fail, back, most) in KINDS {
        let mut outages = Vec::new();
        for _ in 0..times {
            clean::check()?;
            outages.push(routers.outage(fail).with_context(|| what.to_owned())?.as_secs_f64() * 1e3);
            routers.between.b.ip(&format!("{back}\nroute replace default via 192.168.30.2"))?;
        }
        let row =
            |name: &str, value| Row::new(format!("failover, {what}: {name}"), value, "ms").verdict("times", times);
        rows.push(row("median", median(&outages)));
        rows.push(row("most", outages.iter().copied().fold(0.0, f64::max)).reach(Reach::AtMost(most)));
    }
    Ok(rows)
}

impl Routers {
    fn open() -> Result<Routers> {
        let between = Between::open("")?;
        let other = between.lab.ns("other")?;
        between.lab.wire((&between.dev, "eth3"), (&other, "eth0"))?;
        between.dev.ip("addr add 192.168.40.2/24 dev eth3")?;
        other.ip("addr add 192.168.40.1/24 dev eth0\nroute add default via 192.168.40.2")?;
        for router in [&between.b, &other] {
            router.ip("addr add 10.1.0.1/32 dev lo")?;
        }
        let at = [SocketAddr::from(FAR)];
        let servers = [echo::serve(&between.b, "better", &at)?, echo::serve(&other, "other", &at)?];
        between.configure(&format!("{PORTS}  Port5: {{ interface: eth3 }}\nroutes: []\n"))?;
        for (port, hop, metric) in [("Port4", "192.168.30.1", "100"), ("Port5", "192.168.40.1", "200")] {
            let words = ["route", "add", "-i", port, "-d", "10.1.0.0/16", "-n", hop, "-m", metric];
            let end = Instant::now() + PATIENCE;
            // Until the agent knows the new port.
            while let Err(error) = between.agent.command(&words) {
                ensure!(Instant::now() < end, "{error:#}");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        let socket = probe::udp_socket(&From::ns(&between.a), at[0], Datagram::default())?;
        socket.set_nonblocking(true)?;
        Ok(Routers { between, socket, _servers: servers, _other: other })
    }

    /// Asks, and takes all answers that are there: who gave the last one.
    fn beat(&self) -> Result<Option<u8>> {
        let (mut last, mut buffer) = (None, [0; 64]);
        // While there is no way the network says so; that is no answer.
        _ = self.socket.send(b"who?");
        loop {
            match self.socket.recv(&mut buffer) {
                Ok(_) => last = Some(buffer[0]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {}
            }
        }
        std::thread::sleep(BEAT);
        Ok(last)
    }

    /// Waits until for a while nobody but the better router has answered.
    fn settle(&self) -> Result<()> {
        let (end, mut since) = (Instant::now() + PATIENCE, None);
        loop {
            match self.beat()? {
                Some(BETTER) => {
                    let since = *since.get_or_insert_with(Instant::now);
                    if since.elapsed() > Duration::from_millis(500) {
                        return Ok(());
                    }
                }
                Some(_) => since = None,
                None => {}
            }
            ensure!(Instant::now() < end, "the better router doesn't answer\n{}", self.between.agent.log_tail());
        }
    }

    /// Has the better router fail: for how long nothing arrived.
    fn outage(&self, fail: &str) -> Result<Duration> {
        self.settle()?;
        std::thread::scope(|scope| {
            let failing = scope.spawn(|| self.between.b.ip(fail));
            let (end, mut last) = (Instant::now() + PATIENCE, Instant::now());
            let outage = loop {
                match self.beat()? {
                    Some(BETTER) => last = Instant::now(),
                    Some(OTHER) => break last.elapsed(),
                    _ => {}
                }
                ensure!(Instant::now() < end, "nobody takes over\n{}", self.between.agent.log_tail());
            };
            failing.join().map_err(|_| anyhow::anyhow!("the failure broke"))??;
            Ok(outage)
        })
    }
}
