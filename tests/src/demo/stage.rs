//! The stage: the app under load from both networks in both families, and the board that says what
//! is going on.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::app::App;
use super::report::{Report, Step};
use super::view::View;
use crate::load::{Load, Plan, Reader, Sample};
use crate::netns::device;

/// What is going on, for whoever shows it.
#[derive(Debug, Default)]
pub struct Board {
    pub now: String,
    pub explained: String,
    pub done: Vec<String>,
    /// Replicas that were ever there: name, place, state.
    pub replicas: Vec<(String, String, String)>,
}

/// A load and where it comes from.
#[derive(Debug)]
struct Path {
    label: &'static str,
    load: Load,
}

/// App, load and board. Fields are in the order in which they end.
#[derive(Debug)]
pub struct Stage {
    view: Option<View>,
    paths: Vec<Path>,
    pub app: App,
    pub board: Arc<Mutex<Board>>,
    /// How long things are watched; shorter when nobody watches.
    pub watch: Duration,
}

impl Stage {
    /// Builds everything and starts the load.
    pub fn open(live: bool, once: bool) -> Result<Stage> {
        say!(
            "stellwerk demo: an edge device in network namespaces, with its real agent and real HTTP.\n\
             Building it: Port2 to an Internet (TC), Port3 to a private network (XDP), two nodes,\n\
             three web replicas in pods that the CNI plugin makes, on both nodes; they ask a database for each request\n\
             and find it by its name,\n\
             db.default.svc.cluster.local, for each connection that they open to it …"
        );
        let app = App::start()?;
        let mut paths = Vec::new();
        let [v4, v6] = App::address();
        for (label, ns, target, source) in [
            ("private network, Port3, XDP, IPv4", &app.device.client, v4, None),
            ("private network, Port3, XDP, IPv6", &app.device.client, v6, None),
            ("Internet, Port2, TC, IPv4", &app.device.inet, v4, Some(device::far().v4)),
            ("Internet, Port2, TC, IPv6", &app.device.inet, v6, Some(device::far().v6)),
        ] {
            let plan = Plan {
                source,
                keep_alive: 6,
                fresh: 4,
                pace: Duration::from_millis(40),
                longest: Duration::from_secs(3600),
                ..Plan::new(target)
            };
            paths.push(Path { label, load: Load::start(ns, plan)? });
        }
        let board = Arc::new(Mutex::new(Board::default()));
        let watch = Duration::from_secs(if once { 6 } else { 12 });
        let mut stage = Stage { view: None, paths, app, board, watch };
        for name in ["web-1", "web-2", "web-3"] {
            stage.state(name, "serving");
        }
        if live {
            let readers = stage.paths.iter().map(|p| (p.label, p.load.reader())).collect();
            stage.view = Some(View::open(stage.board.clone(), readers, stage.app.agent.asker())?);
        }
        Ok(stage)
    }

    /// Says what comes now.
    pub fn announce(&self, now: &str, explained: &str) {
        let mut board = self.board();
        board.now = now.to_owned();
        board.explained = explained.to_owned();
        if self.view.is_none() {
            say!("\n── {now}: {explained}");
        }
    }

    /// Notes a step's outcome.
    pub fn note(&self, step: &Step) {
        self.board().done.push(step.line());
        if self.view.is_none() {
            say!("   {}", step.line());
        }
    }

    /// Notes what state a replica is in.
    pub fn state(&self, name: &str, state: &str) {
        let place = self.app.node(name).to_owned();
        let mut board = self.board();
        let at = board.replicas.iter().position(|(n, ..)| n == name);
        match at {
            Some(at) => board.replicas[at].2 = state.to_owned(),
            None => board.replicas.push((name.to_owned(), place, state.to_owned())),
        }
    }

    fn board(&self) -> std::sync::MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Waits until all requests that began before `to` have ended, and returns those that began
    /// between the two moments, by path.
    pub fn judge(&self, from: Instant, to: Instant) -> Vec<(&'static str, Vec<Sample>)> {
        self.paths.iter().for_each(|path| path.load.settle(to));
        self.paths.iter().map(|path| (path.label, path.load.reader().between(from, to))).collect()
    }

    /// All requests so far that began at `from` or later.
    pub fn since(&self, from: Instant) -> Vec<Sample> {
        let readers: Vec<Reader> = self.paths.iter().map(|path| path.load.reader()).collect();
        readers.iter().flat_map(|reader| reader.since(from)).collect()
    }

    /// Ends everything; live, only when the user wants it.
    pub fn close(mut self, report: &Report, live: bool) {
        if live {
            self.announce("all steps done", "the load goes on until you press Enter or Ctrl-C");
            let mut line = String::new();
            let _ = std::io::stdin().read_line(&mut line);
        }
        drop(self.view.take());
        if live {
            report.steps.iter().for_each(|step| say!("{}", step.line()));
        }
        if !report.ok() {
            say!("\nthe agent's last words:\n{}", self.app.agent.log_tail());
        }
        drop(self);
        say!("\n{}; everything was removed.", if report.ok() { "All as expected" } else { "NOT as expected" });
    }
}
