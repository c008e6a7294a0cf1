//! Figures as a table and as JSON (`docs/json.md`).

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

/// One line.
#[derive(Debug, Clone)]
pub struct Row {
    pub name: String,
    pub value: f64,
    /// `ns` is net nanoseconds a packet.
    pub unit: &'static str,
    /// What it is held against.
    pub limit: Option<f64>,
    pub ratio: Option<f64>,
    pub reach: Option<Reach>,
    /// Conditions beside the figure itself: the proof that it is of the right path.
    pub proven: bool,
    pub verdicts: BTreeMap<String, Value>,
}

/// What a ratio (or, without one, a value) should be.
#[derive(Debug, Clone, Copy)]
pub enum Reach {
    AtMost(f64),
    AtLeast(f64),
}

impl Row {
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Row {
        Row {
            name: name.into(),
            value,
            unit,
            limit: None,
            ratio: None,
            reach: None,
            proven: true,
            verdicts: BTreeMap::new(),
        }
    }

    /// Held against a limit that was measured beside it.
    pub fn against(mut self, limit: f64, ratio: f64, reach: Reach) -> Row {
        (self.limit, self.ratio, self.reach) = (Some(limit), Some(ratio), Some(reach));
        self
    }

    /// The figure itself is judged.
    pub fn reach(mut self, reach: Reach) -> Row {
        self.reach = Some(reach);
        self
    }

    pub fn verdict(mut self, name: &str, value: impl Into<Value>) -> Row {
        self.verdicts.insert(name.into(), value.into());
        self
    }

    /// Notes something that must hold for the figure to mean what it says.
    pub fn prove(mut self, holds: bool) -> Row {
        self.proven &= holds;
        self
    }

    pub fn ok(&self) -> bool {
        let judged = self.ratio.unwrap_or(self.value);
        // Figures are printed with two places, and judged as printed.
        let judged = (judged * 100.0).round() / 100.0;
        self.proven
            && match self.reach {
                None => true,
                Some(Reach::AtMost(most)) => judged <= most,
                Some(Reach::AtLeast(least)) => judged >= least,
            }
    }

    fn json(&self) -> Value {
        let mut row = Map::new();
        row.insert("name".into(), json!(self.name));
        if self.unit == "ns" {
            row.insert("net_ns".into(), json!(rounded(self.value)));
        } else {
            row.insert("value".into(), json!(rounded(self.value)));
            row.insert("unit".into(), json!(self.unit));
        }
        row.insert("limit".into(), json!(self.limit.map(rounded)));
        row.insert("ratio".into(), json!(self.ratio.map(rounded)));
        row.insert("reach".into(), json!(self.reach.map(|r| r.to_string())));
        row.insert("ok".into(), json!(self.ok()));
        row.insert("verdicts".into(), json!(self.verdicts));
        Value::Object(row)
    }
}

impl std::fmt::Display for Reach {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Reach::AtMost(most) => write!(f, "<= {most}"),
            Reach::AtLeast(least) => write!(f, ">= {least}"),
        }
    }
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// All of one run.
#[derive(Debug)]
pub struct Report {
    pub bench: &'static str,
    pub rows: Vec<Row>,
}

impl Report {
    pub fn ok(&self) -> bool {
        self.rows.iter().all(Row::ok)
    }

    /// Prints the table and writes the JSON; true if all is reached.
    pub fn publish(&self, file: Option<&Path>) -> Result<bool> {
        print!("{self}");
        if let Some(file) = file {
            let text = format!("{:#}\n", self.json());
            std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))?;
        }
        Ok(self.ok())
    }

    fn json(&self) -> Value {
        json!({
            "bench": self.bench,
            "kernel": kernel(),
            "cpu": cpu(),
            "ok": self.ok(),
            "rows": self.rows.iter().map(Row::json).collect::<Vec<_>>(),
        })
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        writeln!(f, "bench {} · kernel {} · {}", self.bench, kernel(), cpu())?;
        let width = self.rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
        writeln!(f, "{:width$} {:>12} {:10} {:>10} {:>7}  {:8}", "", "figure", "", "limit", "ratio", "reach")?;
        for row in &self.rows {
            let unit = if row.unit == "ns" { "net ns" } else { row.unit };
            let limit = row.limit.map_or(String::new(), number);
            let ratio = row.ratio.map_or(String::new(), |r| format!("{r:.2}"));
            let reach = row.reach.map_or(String::new(), |r| r.to_string());
            let ok = match (row.ok(), row.proven, row.reach) {
                (true, _, None) => "",
                (true, ..) => "ok",
                (false, false, _) => "WRONG PATH",
                (false, ..) => "missed",
            };
            let value = number(row.value);
            writeln!(f, "{:width$} {value:>12} {unit:10} {limit:>10} {ratio:>7}  {reach:8} {ok}", row.name)?;
            if !row.proven {
                writeln!(f, "{:width$} {:?}", "", row.verdicts)?;
            }
        }
        Ok(())
    }
}

/// Three digits or so.
fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 1e6 => format!("{:.2} M", value / 1e6),
        v if v >= 1e4 => format!("{:.1} k", value / 1e3),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

fn cpu() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}
