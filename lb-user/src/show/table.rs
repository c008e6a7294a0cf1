//! A listing: columns and rows, for people and for programs.
//!
//! Invariant: the objects of `--json` have the names of the table's columns, in their order.

use std::fmt;

use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};

/// One value of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    None,
    Text(String),
    Number(u64),
    /// A share, in percent.
    Percent(f64),
    /// Seconds.
    Seconds(f64),
    Flag(bool),
    List(Vec<String>),
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Cell::Text(text)
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Cell::Text(text.into())
    }
}

impl From<u64> for Cell {
    fn from(number: u64) -> Self {
        Cell::Number(number)
    }
}

impl From<u32> for Cell {
    fn from(number: u32) -> Self {
        Cell::Number(number.into())
    }
}

impl From<u16> for Cell {
    fn from(number: u16) -> Self {
        Cell::Number(number.into())
    }
}

impl From<usize> for Cell {
    fn from(number: usize) -> Self {
        Cell::Number(number as u64)
    }
}

impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Cell::None, Into::into)
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cell::None => f.write_str("-"),
            Cell::Text(text) if text.is_empty() => f.write_str("-"),
            Cell::Text(text) => f.write_str(text),
            Cell::Number(number) => write!(f, "{number}"),
            Cell::Percent(share) => write!(f, "{share:.1} %"),
            Cell::Seconds(seconds) => write!(f, "{seconds:.0} s"),
            Cell::Flag(flag) => f.write_str(if *flag { "yes" } else { "no" }),
            Cell::List(list) if list.is_empty() => f.write_str("-"),
            Cell::List(list) => f.write_str(&list.join(", ")),
        }
    }
}

impl Serialize for Cell {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Cell::None => serializer.serialize_none(),
            Cell::Text(text) => serializer.serialize_str(text),
            Cell::Number(number) => serializer.serialize_u64(*number),
            Cell::Percent(x) | Cell::Seconds(x) => serializer.serialize_f64((x * 1e3).round() / 1e3),
            Cell::Flag(flag) => serializer.serialize_bool(*flag),
            Cell::List(list) => list.serialize(serializer),
        }
    }
}

/// A listing.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    columns: &'static [&'static str],
    rows: Vec<Vec<Cell>>,
}

/// A row with its columns' names.
struct Row<'a>(&'a [&'static str], &'a [Cell]);

impl Serialize for Row<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (column, cell) in self.0.iter().zip(self.1) {
            map.serialize_entry(column, cell)?;
        }
        map.end()
    }
}

impl Serialize for Table {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.rows.len()))?;
        for row in &self.rows {
            list.serialize_element(&Row(self.columns, row))?;
        }
        list.end()
    }
}

impl Table {
    pub fn new(columns: &'static [&'static str]) -> Self {
        Table { columns, rows: Vec::new() }
    }

    pub fn push<const N: usize>(&mut self, row: [Cell; N]) {
        debug_assert_eq!(N, self.columns.len());
        self.rows.push(row.into());
    }

    /// An array of objects.
    pub fn json(&self) -> serde_json::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Aligned columns; numbers to the right.
    pub fn text(&self) -> String {
        let head: Vec<String> = self.columns.iter().map(|c| c.to_uppercase().replace('_', " ")).collect();
        let rows: Vec<Vec<String>> = self.rows.iter().map(|row| row.iter().map(Cell::to_string).collect()).collect();
        let width =
            |column: usize| rows.iter().chain([&head]).map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..head.len()).map(width).collect();
        let right: Vec<bool> = (0..head.len())
            .map(|column| {
                self.rows.iter().any(|row| matches!(row[column], Cell::Number(_) | Cell::Percent(_) | Cell::Seconds(_)))
            })
            .collect();
        let mut out = String::new();
        for row in [&head].into_iter().chain(&rows) {
            let mut line = String::new();
            for ((cell, &width), &right) in row.iter().zip(&widths).zip(&right) {
                let cell = if right { format!("{cell:>width$}") } else { format!("{cell:<width$}") };
                line.push_str(&cell);
                line.push_str("  ");
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms() {
        let mut table = Table::new(&["name", "slots", "is_remote"]);
        table.push(["a".into(), 7u32.into(), Cell::Flag(true)]);
        table.push([Cell::List(vec!["b".into(), "c".into()]), 1000u32.into(), Cell::None]);
        assert_eq!(table.text(), "NAME  SLOTS  IS REMOTE\na         7  yes\nb, c   1000  -\n");
        let json: serde_json::Value = serde_json::from_str(&table.json().expect("JSON")).expect("JSON");
        assert_eq!(
            json,
            serde_json::json!([
                {"name": "a", "slots": 7, "is_remote": true},
                {"name": ["b", "c"], "slots": 1000, "is_remote": null},
            ])
        );
    }
}
