//! The agent: the loop from the sources through the plan to the kernel.
//!
//! Invariant: the kernel's tables hold what the last accepted wish and the network's facts lead to,
//! or are on the way there by steps that are each safe; what was refused changes nothing. When the
//! agent ends, however it ends, everything stays pinned and goes on. Deliberately not here: what a
//! wish means ([`crate::plan`]) and how tables are written ([`crate::apply`]).

mod addresses;
mod announce;
mod cluster;
mod dns;
mod health;
mod health_check;
mod host_ports;
mod lock;
mod manager;
pub mod nat_log;
mod overlay_errors;
mod planning;
mod pods;
mod repair;
mod routes;
mod sockets;
mod sweeping;
mod switch;
mod vitals;
mod wanted;
mod web;
mod wish;

use std::io::Write;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use aya_log::EbpfLogger;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::block_in_place;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{debug, error, info, warn};

use self::announce::Announce;
use self::cluster::Followed;
use self::health::{Health, Reports};
use self::health_check::{Answers, HealthChecks};
use self::manager::Manager;
use self::overlay_errors::OverlayErrors;
use self::planning::Held;
use self::routes::Routes;
use self::wanted::Neighbours;
use self::wish::{Undo, Wish};
use crate::apply::load::{self, Loaded};
use crate::apply::{Kernel, Paths, Served, sys};
use crate::config::Config;
use crate::intent::Network;
use crate::peers::Peers;
use crate::plan::{Apply, Ids, Planned};
use crate::pods::Pods;
use crate::pods::ports::HostPorts;
use crate::source::manifests::Objects;
use crate::source::netlink::{self, Asked, Wanted};
use crate::source::readiness::{at, readable};
use crate::source::watch::{Changed, Watch};
use crate::web::Server;

/// How long neighbours may be asked for later than a change that needs them: the kernel resolves
/// them on the first packet anyway.
const ASK_LATER: Duration = Duration::from_millis(20);
const PRUNE: Duration = Duration::from_secs(10);
/// All tables are read and compared, which costs some 80 ms of processor time.
const COMPARE: Duration = Duration::from_secs(30);
/// What others detach is missed by packets: that is looked at more often, and costs less.
const LOOK: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_secs(1);

pub use cluster::{Refused, Source};
pub use lock::{About, Named, running};
pub use vitals::Vitals;
pub use wish::wrong;

/// What `run` is told.
#[derive(Clone, Debug)]
pub struct Options {
    pub config: PathBuf,
    /// Routes added by command.
    pub routes: PathBuf,
    pub paths: Paths,
}

/// Runs until SIGTERM or SIGINT.
pub fn run(options: &Options) -> Result<()> {
    sys::keep_no_heaps();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(start(options))
}

async fn start(options: &Options) -> Result<()> {
    let lock = lock::take(&options.paths, std::path::absolute(&options.config)?, options.routes.clone())?;
    let config = Config::load(&options.config)?;
    // Before anything that it names is read: no change falls between.
    let watch = Watch::new(&options.config, config.manifests.as_deref())?;
    let network = wish::check(&config, &options.paths)?;
    let peers = Arc::new(Peers::default());
    peers.set(config.readers()?)?;
    let mut dns = dns::Dns::start(&options.paths, &peers)?;
    let (followed, objects) = Followed::first(&config, &options.paths).await;
    // Before the tables are anybody else's.
    let served = Served::read(&options.paths).unwrap_or_else(|error| {
        warn!("names wait for the first plan: {error:#}");
        Served::default()
    });
    let resume = |wish: &Wish| dns.resume(wish, lock.revision(), &network, &served);
    let (mut wish, loaded) = block_in_place(|| read_and_load(config, &options.paths, objects, resume))?;
    let (wanted, wanted_by) = watch::channel(Wanted::new());
    let (probed, probed_by) = watch::channel(Wanted::new());
    let vitals = Arc::<Vitals>::default();
    let asked = Asked { wanted: wanted_by, probed: probed_by, overruns: vitals.overruns.clone() };
    let network_by = block_in_place(|| netlink::spawn(asked))?;
    let network = network_by.borrow().clone();
    let mut kernel = Kernel::new(&options.paths, loaded)?;
    log_lines(&mut kernel);
    // What the tables have room for was settled when they were made.
    wish.intent.tuning.capacity = kernel.capacity;
    let current = block_in_place(|| kernel.read())?;
    // Before it is read, as the files above.
    let stored = routes::watch(&options.routes);
    let nat_log = nat_log::start(&options.paths, wish.intent.nat.log.clone())?;
    let ends = nat_log.ends();
    kernel.ends.tell = Box::new(move |ended| ends.send(ended));
    let (health, reports) = Health::start(&options.paths)?;
    let announce = Announce::start(&options.paths, &current);
    let pods = Pods::new(&options.paths, &peers);
    let mut agent = Agent {
        options: options.clone(),
        ids: Ids::recover(&current),
        planned: None,
        held: Held::Other(Box::new(current)),
        behind: true,
        neighbours: Neighbours::default(),
        kernel,
        wish,
        network,
        wanted,
        lock,
        manager: Manager::new(),
        peers,
        followed,
        told: None,
        nat_log,
        health,
        routes: Routes::new(options.routes.clone(), probed)?,
        health_checks: HealthChecks::default(),
        announce,
        overlay_errors: OverlayErrors::start(),
        gives: false,
        dns,
        pods_ports: pods.host_ports(),
        pods,
        unjudged: None,
        retry: None,
        deadline: None,
        ask: None,
        repaired: 0,
        web: Server::start(&options.paths, &vitals)?,
        vitals,
    };
    // Before it says that it is ready: whoever waits for that may end it at once.
    let stop = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
    block_in_place(|| agent.first())?;
    sweeping::start(&options.paths, agent.nat_log.ends())?;
    agent.serve(watch, network_by, stored, reports, stop).await
}

/// The verifier takes as long as the files do: both at once. What can be done with the wish alone is not to wait.
fn read_and_load(
    config: Config,
    paths: &Paths,
    objects: Option<Objects>,
    early: impl FnOnce(&Wish),
) -> Result<(Wish, Loaded)> {
    let (tuning, policies) = (config.tuning.clone(), config.judges_pods());
    thread::scope(|scope| {
        let loading = scope.spawn(|| load::load(paths, &tuning.capacity, tuning.trace_port != 0, policies));
        let wish = Wish::read(config, paths, objects).inspect(early);
        let loaded = loading.join().unwrap_or_else(|panic| resume_unwind(panic));
        match (wish, loaded) {
            (Ok(wish), Ok(loaded)) => Ok((wish, loaded)),
            (Ok(_), Err(error)) => Err(error),
            (Err(error), loaded) => {
                loaded.and_then(|loaded| loaded.take_back(paths)).unwrap_or_else(|error| warn!("{error:#}"));
                Err(error)
            }
        }
    })
}

/// The data plane's own lines, where the object has any.
fn log_lines(kernel: &mut Kernel) {
    if kernel.ebpf.map("AYA_LOGS").is_none() {
        return;
    }
    match EbpfLogger::init(&mut kernel.ebpf).context("its log map").and_then(|logger| Ok(readable(logger)?)) {
        Ok(mut logger) => {
            _ = tokio::spawn(async move {
                while let Ok(mut ready) = logger.readable_mut().await {
                    ready.get_inner_mut().flush();
                    ready.clear_ready();
                }
            })
        }
        Err(error) => warn!("the data plane's log is not read: {error:#}"),
    }
}

struct Agent {
    options: Options,
    kernel: Kernel,
    wish: Wish,
    network: Network,
    /// What the tables shall hold.
    planned: Option<Planned>,
    held: Held,
    /// The wish or the network may be ahead of the plan: the next one is of everything.
    behind: bool,
    ids: Ids,
    wanted: watch::Sender<Wanted>,
    neighbours: Neighbours,
    lock: lock::Lock,
    manager: Manager,
    peers: Arc<Peers>,
    /// The Kubernetes API, where services come from one.
    followed: Option<Followed>,
    /// What was last told of where services come from.
    told: Option<cluster::Source>,
    nat_log: nat_log::NatLog,
    health: Health,
    routes: Routes,
    health_checks: HealthChecks,
    announce: Announce,
    overlay_errors: OverlayErrors,
    /// It is this node that gives addresses to a live cluster's services.
    gives: bool,
    dns: dns::Dns,
    pods: Pods,
    pods_ports: watch::Receiver<HostPorts>,
    /// Changes that no plan has judged yet, since the kernel couldn't be asked.
    unjudged: Option<wish::Undo>,
    /// When to try again what failed.
    retry: Option<Instant>,
    /// When the next leaving endpoint's time is up.
    deadline: Option<Instant>,
    /// When to look which neighbours are wanted.
    ask: Option<Instant>,
    /// Entries that others broke and we set right.
    repaired: u64,
    web: Server,
    vitals: Arc<Vitals>,
}

impl Agent {
    fn first(&mut self) -> Result<()> {
        self.wish.intent.revision = self.lock.revision() + 1;
        self.settle_routes();
        // Who watches sees a first plan that fails, too.
        self.configure_web();
        self.replan(None)?;
        self.tell_source();
        // Those of an agent before may be others.
        self.note_health_checks();
        self.settle_health();
        self.configure_names();
        self.settle_sockets();
        self.settle_pods();
        self.settle_overlay_errors();
        self.tell_pods();
        self.kernel.forget_other_layouts()?;
        self.ask_neighbours();
        _ = self.follow_nodes();
        self.settle_giver();
        if self.waits() {
            warn!("what is pinned stays in force as it is until the Kubernetes API has told of the cluster");
        }
        self.tell_vitals();
        let revision = self.wish.intent.revision;
        info!("ready: revision {revision}, {} services", self.wish.intent.services.len());
        let mut out = std::io::stdout();
        // Whoever waits for the line may be gone; traffic is not.
        _ = writeln!(out, "ready: revision {revision}").and_then(|()| out.flush());
        self.manager.ready(self.status());
        Ok(())
    }

    async fn serve(
        &mut self,
        mut watch: Watch,
        mut network: watch::Receiver<Network>,
        mut stored: Option<Watch>,
        mut reports: Reports,
        [mut terminate, mut interrupt]: [Signal; 2],
    ) -> Result<()> {
        let [mut prune, mut compare, mut look] = [PRUNE, COMPARE, LOOK].map(|each| {
            let mut interval = interval(each);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval.reset();
            interval
        });
        let mut told = Vec::new();
        loop {
            self.manager.status(self.status());
            let feed = self.feed();
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                changed = watch.changed() => {
                    block_in_place(|| self.files_changed(&changed));
                    if changed.config {
                        watch = self.watch_again(watch);
                    }
                }
                news = cluster::news(feed) => block_in_place(|| self.cluster_news(news)),
                Ok(()) = network.changed() => {
                    let now = network.borrow_and_update().clone();
                    block_in_place(|| self.network_changed(now));
                }
                1.. = reports.recv_many(&mut told, 4_096) => block_in_place(|| self.probed(std::mem::take(&mut told))),
                Ok(()) = self.announce.lives.changed() => block_in_place(|| self.settle_announcements()),
                Ok(()) = self.pods_ports.changed() => block_in_place(|| self.host_ports_changed()),
                () = routes::changed(&mut stored) => block_in_place(|| self.stored_routes_changed()),
                () = at(self.routes.retry) => block_in_place(|| self.settle_routes()),
                () = at(self.deadline) => block_in_place(|| self.replan_or_retry(None)),
                () = at(self.retry) => block_in_place(|| self.replan_or_retry(None)),
                Some(told) = self.overlay_errors.told.recv() => block_in_place(|| self.overlay_told(told)),
                () = at(self.overlay_errors.mtus.next()) => block_in_place(|| self.forget_narrow_ways()),
                () = self.health_checks.changed() => block_in_place(|| self.note_health_checks()),
                () = at(self.ask) => block_in_place(|| self.ask_neighbours()),
                () = self.manager.due() => self.manager.alive(),
                _ = look.tick() => block_in_place(|| self.look()),
                _ = compare.tick() => block_in_place(|| self.repair()),
                _ = prune.tick() => block_in_place(|| {
                    self.settle_routes();
                    self.wish.keep_addresses();
                    self.forget_pods();
                    self.retry_host_ports();
                    self.tell_vitals();
                }),
            }
        }
        self.manager.stopping();
        info!("stopped; traffic goes on, and a new agent takes over");
        Ok(())
    }

    /// The manifests may be elsewhere by now. An edit that follows this one at once is seen, too.
    fn watch_again(&self, old: Watch) -> Watch {
        match old.again(&self.options.config, self.wish.manifests()) {
            Ok(new) => new.unwrap_or(old),
            Err(error) => {
                error!("still watching the former files: {error}");
                old
            }
        }
    }

    fn files_changed(&mut self, changed: &Changed) {
        if changed.config {
            self.manager.reloading();
        }
        let result = match (changed.config, &changed.manifests) {
            (true, _) => self.wish.config_changed(&self.options.config, &self.options.paths),
            (false, Some(scope)) => self.wish.manifests_changed(scope),
            (false, None) => return,
        };
        self.wish_changed(result);
        if changed.config {
            self.settle_routes();
            self.follow_again();
            self.configure_names();
            self.configure_web();
            self.settle_sockets();
            self.settle_peers();
            self.manager.ready(self.status());
        }
        self.tell_source();
    }

    fn settle_peers(&self) {
        if let Err(error) = self.wish.readers().and_then(|readers| Ok(self.peers.set(readers)?)) {
            error!("who may ask at the agent's sockets stays as it was: {error:#}");
        }
    }

    fn wish_changed(&mut self, result: Result<Option<Undo>>) {
        match result {
            Ok(None) => debug!("what services are made of changed, but not what it means"),
            Ok(Some(undo)) => self.replan_or_retry(Some(undo)),
            Err(error) => {
                self.vitals.refused.fetch_add(1, Ordering::Relaxed);
                error!("refused, and what runs stays:\n{error:#}");
            }
        }
        self.settle_health();
        self.settle_pods();
        self.settle_overlay_errors();
        if self.follow_nodes() {
            self.settle_announcements();
        } else {
            self.settle_giver();
        }
    }

    /// Answers health checks by what is in force.
    fn answer_health_checks(&mut self) {
        let Some(planned) = &self.planned else { return };
        let intent = &self.wish.intent;
        let answers = Answers::new(&intent.services, &intent.node_port_addresses, |e| planned.is_here(e));
        if self.health_checks.set(answers) {
            self.note_health_checks();
        }
    }

    fn note_health_checks(&mut self) {
        let known = self.health_checks.known();
        if let Err(error) = self.kernel.state.change(&self.options.paths, |state| state.health_checks = known) {
            error!("{error:#}");
        }
    }

    fn ask_neighbours(&mut self) {
        self.ask = None;
        let Some(wanted) = self.neighbours.take().filter(|wanted| *self.wanted.borrow() != *wanted) else { return };
        self.note_neighbours(wanted.clone());
        self.wanted.send_replace(wanted);
    }

    /// Notes which the kernel keeps fresh for us, unless that is noted.
    fn note_neighbours(&mut self, wanted: Wanted) {
        let noted = self.kernel.state.change(&self.options.paths, |state| state.neighbours = wanted);
        if let Err(error) = noted {
            error!("{error:#}");
        }
    }
}
