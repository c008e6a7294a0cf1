//! What is shown: counts of one moment, rates by the one before, order and search.
//!
//! Not here: the terminal.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Result;

use crate::agent::running;
use crate::apply::Paths;
use crate::show::{self, Row, Table};

/// One table of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    Services,
    Backends,
    Talkers,
    Drops,
    Ports,
}

impl View {
    pub const ALL: [View; 5] = [View::Services, View::Backends, View::Talkers, View::Drops, View::Ports];

    pub fn title(self) -> &'static str {
        match self {
            View::Services => "Services",
            View::Backends => "Backends",
            View::Talkers => "Talkers",
            View::Drops => "Drops",
            View::Ports => "Ports",
        }
    }

    /// What the numbers of a [`Line`] are, in their order; `true`: bytes.
    pub fn numbers(self) -> &'static [(&'static str, Number)] {
        use Number::{Bytes, Count, Level};
        match self {
            View::Services | View::Backends => &[("NEW/S", Count), ("PACKETS/S", Count), ("BIT/S", Bytes)],
            View::Talkers => &[("CONNECTIONS", Level)],
            View::Drops => &[("NOW/S", Count), ("SO FAR", Level)],
            View::Ports => &[("IN BIT/S", Bytes), ("OUT BIT/S", Bytes), ("LOST/S", Count)],
        }
    }

    /// What the first column is, and the second.
    pub fn words(self) -> [&'static str; 2] {
        match self {
            View::Services => ["SERVICE", "BACKENDS"],
            View::Backends => ["SERVICE", "BACKEND"],
            View::Talkers => ["CLIENT", ""],
            View::Drops => ["REASON", "MEANING"],
            View::Ports => ["PORT", "STATE"],
        }
    }
}

/// Whether a number rises, and is shown as what it rises by a second, or stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    Count,
    Bytes,
    Level,
}

/// A row: words, and counts as they stand.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Line {
    /// What makes it the same one in the next reading.
    pub key: String,
    pub words: [String; 2],
    pub counts: Vec<u64>,
    /// Something is wrong with it.
    pub odd: bool,
}

/// What was read at one moment.
#[derive(Debug)]
pub struct Snapshot {
    pub at: Instant,
    pub about: String,
    pub lines: [Vec<Line>; View::ALL.len()],
}

impl Snapshot {
    pub fn read(paths: &Paths) -> Result<Snapshot> {
        let (about, runs) = running(paths);
        let agent = if runs { "agent runs" } else { "agent is stopped: traffic goes on" };
        let flows = show::flows(paths, false)?;
        let connections = flows.rows();
        let lines = [
            lines(&show::services(paths)?, service),
            lines(&show::backends(paths)?, backend),
            talkers(&flows),
            lines(&show::drops(paths)?, drop),
            lines(&show::ports(paths)?, port),
        ];
        let about = format!("{} · {agent} · revision {} · {connections} connections", about.node, about.revision);
        Ok(Snapshot { at: Instant::now(), about, lines })
    }
}

fn lines(table: &Table, line: fn(Row<'_>) -> Line) -> Vec<Line> {
    let mut all = Vec::with_capacity(table.rows());
    table.for_each(|row| all.push(line(row)));
    all
}

fn sum(row: Row<'_>, columns: [&str; 2]) -> u64 {
    columns.iter().filter_map(|column| row.number(column)).sum()
}

/// New connections, packets and bytes, both ways together.
fn carried(row: Row<'_>) -> Vec<u64> {
    vec![
        row.number("connections").unwrap_or(0),
        sum(row, ["packets", "reply_packets"]),
        sum(row, ["bytes", "reply_bytes"]),
    ]
}

fn service(row: Row<'_>) -> Line {
    let (backends, failing) = (row.number("backends").unwrap_or(0), row.members("failing"));
    let waits = !row.is_none("waiting");
    let words = match (waits, failing) {
        (true, _) => "waits for an address".to_owned(),
        (false, 0) => backends.to_string(),
        (false, _) => format!("{backends}, {failing} fail"),
    };
    let name = row.text("name");
    let odd = waits || failing > 0 || backends == 0;
    Line { key: row.text("id") + &name, words: [name, words], counts: carried(row), odd }
}

fn backend(row: Row<'_>) -> Line {
    let (address, state) = (row.text("address"), row.text("state"));
    let at = if address.contains(':') { format!("[{address}]") } else { address };
    let words = format!("{at}:{} {state}", row.text("port"));
    let odd = state != "active";
    Line { key: row.text("id"), words: [row.text("service"), words], counts: carried(row), odd }
}

fn drop(row: Row<'_>) -> Line {
    let (reason, count) = (row.text("reason"), row.number("count").unwrap_or(0));
    let odd = row.text("kind") == "drop";
    Line { key: reason.clone(), words: [reason, row.text("text")], counts: vec![count, count], odd }
}

fn port(row: Row<'_>) -> Line {
    let state = row.text("state");
    let lost = sum(row, ["rx_errors", "rx_dropped"]) + sum(row, ["tx_errors", "tx_dropped"]);
    let counts = vec![row.number("rx_bytes").unwrap_or(0), row.number("tx_bytes").unwrap_or(0), lost];
    let words = [row.text("name"), format!("{state}, {}", row.text("role"))];
    Line { key: row.text("interface"), words, counts, odd: state != "up" }
}

/// Who has how many connections.
fn talkers(flows: &Table) -> Vec<Line> {
    let mut all: BTreeMap<String, u64> = BTreeMap::new();
    flows.for_each(|row| {
        let client = row.text("client");
        let host = client.rsplit_once(':').map_or(client.as_str(), |(host, _)| host);
        *all.entry(host.trim_matches(['[', ']']).to_owned()).or_default() += 1;
    });
    let line = |(host, count): (String, u64)| Line {
        key: host.clone(),
        words: [host, String::new()],
        counts: vec![count],
        odd: false,
    };
    all.into_iter().map(line).collect()
}

/// A row with its rates, as it is shown.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    pub words: [String; 2],
    /// None: not known yet.
    pub numbers: Vec<Option<f64>>,
    pub odd: bool,
}

/// All that is held between two drawings.
#[derive(Debug, Default)]
pub struct Model {
    now: Option<Snapshot>,
    before: Option<Snapshot>,
    /// Why there is nothing newer.
    pub trouble: Option<String>,
    view: usize,
    /// Of each view: the number that rows are ordered by; behind the last one by words.
    sorts: [usize; View::ALL.len()],
    pub offset: usize,
    pub search: String,
    /// The search while it is typed.
    pub typing: Option<String>,
}

impl Model {
    pub fn take(&mut self, read: Result<Snapshot, String>) {
        match read {
            Ok(snapshot) => {
                self.trouble = None;
                self.before = self.now.replace(snapshot);
            }
            Err(why) => self.trouble = Some(why),
        }
    }

    pub fn about(&self) -> &str {
        self.now.as_ref().map_or("", |snapshot| &snapshot.about)
    }

    pub fn view(&self) -> View {
        View::ALL[self.view]
    }

    pub fn open(&mut self, view: usize) {
        if view < View::ALL.len() {
            (self.view, self.offset) = (view, 0);
        }
    }

    pub fn open_next(&mut self, step: isize) {
        let count = View::ALL.len();
        self.open((self.view + count).wrapping_add_signed(step) % count);
    }

    pub fn scroll(&mut self, step: isize) {
        self.offset = self.offset.saturating_add_signed(step).min(self.shown().len().saturating_sub(1));
    }

    pub fn sort_by_next(&mut self) {
        let sort = &mut self.sorts[self.view];
        *sort = (*sort + 1) % (View::ALL[self.view].numbers().len() + 1);
    }

    /// What rows are ordered by; None: by their words.
    pub fn sorted_by(&self) -> Option<usize> {
        let sort = self.sorts[self.view];
        (sort < self.view().numbers().len()).then_some(sort)
    }

    /// The rows of the view, in their order.
    pub fn shown(&self) -> Vec<Shown> {
        let Some(now) = &self.now else { return Vec::new() };
        let before = self.before.as_ref();
        let seconds = before.map_or(0.0, |before| (now.at - before.at).as_secs_f64());
        let old: BTreeMap<&str, &Line> =
            before.iter().flat_map(|before| &before.lines[self.view]).map(|line| (line.key.as_str(), line)).collect();
        let search = self.search.to_lowercase();
        let mut all: Vec<Shown> = now.lines[self.view]
            .iter()
            .filter(|line| search.split_whitespace().all(|word| line.words.join(" ").to_lowercase().contains(word)))
            .map(|line| {
                let old = old.get(line.key.as_str()).filter(|_| seconds > 0.0);
                let number = |(at, (_, kind)): (usize, &(&str, Number))| {
                    let count = *line.counts.get(at)?;
                    if *kind == Number::Level {
                        return Some(count as f64);
                    }
                    // A count that fell began anew.
                    let risen = count.checked_sub(*old?.counts.get(at)?)? as f64 / seconds;
                    Some(if *kind == Number::Bytes { risen * 8.0 } else { risen })
                };
                let numbers = self.view().numbers().iter().enumerate().map(number).collect();
                Shown { words: line.words.clone(), numbers, odd: line.odd }
            })
            .collect();
        let by = self.sorted_by();
        let value = |shown: &Shown| by.and_then(|by| shown.numbers[by]).unwrap_or(-1.0);
        all.sort_by(|a, b| value(b).total_cmp(&value(a)).then_with(|| a.words.cmp(&b.words)));
        all
    }
}
