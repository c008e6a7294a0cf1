//! The live view: a screen redrawn three times a second.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::stage::Board;
use crate::load::{Reader, Sample, Summary};
use crate::netns::agent::Asker;

/// Rates and percentiles are of so long.
const WINDOW: Duration = Duration::from_secs(2);
const REDRAW: Duration = Duration::from_millis(330);

/// The thread that draws. Ends when dropped, and gives the terminal back.
#[derive(Debug)]
pub struct View {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Source {
    board: Arc<Mutex<Board>>,
    paths: Vec<(&'static str, Reader)>,
    agent: Asker,
    drops: Vec<(String, u64)>,
    asked: Option<Instant>,
    /// Failed requests so far, by path, and up to when they are counted.
    failed: Vec<u64>,
    counted: Instant,
}

impl View {
    pub fn open(board: Arc<Mutex<Board>>, paths: Vec<(&'static str, Reader)>, agent: Asker) -> Result<View> {
        let (stop, stopped) = channel();
        let failed = vec![0; paths.len()];
        let source = Source { board, paths, agent, drops: Vec::new(), asked: None, failed, counted: Instant::now() };
        let thread = std::thread::spawn(move || draw_all(source, &stopped));
        Ok(View { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for View {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        say!();
    }
}

fn draw_all(mut source: Source, stopped: &Receiver<()>) {
    print!("\x1b[2J");
    while matches!(stopped.recv_timeout(REDRAW), Err(RecvTimeoutError::Timeout)) {
        let screen = source.screen();
        // Home, each line cleared to its end, the rest cleared: no flicker.
        print!("\x1b[H{}\x1b[J", screen.replace('\n', "\x1b[K\n"));
        let _ = std::io::stdout().flush();
    }
}

impl Source {
    fn screen(&mut self) -> String {
        let from = Instant::now().checked_sub(WINDOW).unwrap_or_else(Instant::now);
        let recent: Vec<Vec<Sample>> = self.paths.iter().map(|(_, reader)| reader.since(from)).collect();
        self.count_failed();
        self.ask();
        let board = self.board.lock().unwrap_or_else(|e| e.into_inner());
        let mut out = format!(
            "\x1b[1mstellwerk\x1b[0m, an edge device in network namespaces\n\n\
             web service: http://192.168.20.100 and http://[fd00:20::1:64]\n\nnow: \x1b[1m{}\x1b[0m\n     {}\n\n",
            board.now, board.explained
        );
        replicas(&mut out, &board, &Summary::of(recent.iter().flatten()));
        let _ = writeln!(
            out,
            "\n{:<36}{:>8}{:>9}{:>9}{:>15}",
            "where users are", "req/s", "p50 µs", "p99 µs", "failed so far"
        );
        for (((label, _), samples), failed) in self.paths.iter().zip(&recent).zip(&self.failed) {
            let Summary { requests, p50_us, p99_us, .. } = Summary::of(samples);
            let _ = writeln!(out, "{label:<36}{:>8}{p50_us:>9}{p99_us:>9}{failed:>15}", requests / WINDOW.as_secs());
        }
        let drops: Vec<_> = self.drops.iter().filter(|(_, n)| *n > 0).map(|(why, n)| format!("{why} {n}")).collect();
        let drops = if drops.is_empty() { "none".to_owned() } else { drops.join(", ") };
        let _ = writeln!(out, "\nwhat the data plane counted (stellwerk drops): {drops}\n");
        for line in &board.done {
            let _ = writeln!(out, "{line}");
        }
        out
    }

    fn count_failed(&mut self) {
        let now = Instant::now();
        // Behind by the longest request, so that none is missed.
        let to = now.checked_sub(Duration::from_secs(4)).unwrap_or(self.counted).max(self.counted);
        for ((_, reader), failed) in self.paths.iter().zip(&mut self.failed) {
            *failed += reader.between(self.counted, to).iter().filter(|s| s.result.is_err()).count() as u64;
        }
        self.counted = to;
    }

    fn ask(&mut self) {
        if self.asked.is_some_and(|at| at.elapsed() < Duration::from_secs(1)) {
            return;
        }
        self.asked = Some(Instant::now());
        if let Ok(rows) = self.agent.rows("drops") {
            self.drops = crate::netns::agent::counts(&rows);
        }
    }
}

fn replicas(out: &mut String, board: &Board, summary: &Summary) {
    let _ = writeln!(
        out,
        "{:<9}{:<9}{:<10}{:<32}{:>8}{:>9}{:>9}",
        "replica", "node", "state", "share of new connections", "req/s", "p50 µs", "p99 µs"
    );
    for (name, node, state) in &board.replicas {
        let figures = summary.replicas.get(name.as_str()).cloned().unwrap_or_default();
        let share = summary.share(name);
        let bar = "█".repeat((share * 24.0).round() as usize);
        let _ = writeln!(
            out,
            "{name:<9}{node:<9}{state:<10}{bar:<24}{:>6.1} %{:>8}{:>9}{:>9}",
            share * 100.0,
            figures.requests / WINDOW.as_secs(),
            figures.p50_us,
            figures.p99_us
        );
    }
}
