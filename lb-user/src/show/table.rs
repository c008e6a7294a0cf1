//! A listing: columns and rows, for people and for programs.
//!
//! Invariant: the objects of `--json` have the names of the table's columns, in their order.

use std::fmt;
use std::fmt::Write as _;

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
    /// Row behind row.
    cells: Vec<Cell>,
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
        let rows = self.cells.chunks_exact(self.columns.len());
        let mut list = serializer.serialize_seq(Some(rows.len()))?;
        for row in rows {
            list.serialize_element(&Row(self.columns, row))?;
        }
        list.end()
    }
}

impl Table {
    pub fn new(columns: &'static [&'static str]) -> Self {
        Table { columns, cells: Vec::new() }
    }

    pub fn push<const N: usize>(&mut self, row: [Cell; N]) {
        debug_assert_eq!(N, self.columns.len());
        self.cells.extend(row);
    }

    /// An array of objects.
    pub fn json(&self) -> serde_json::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Aligned columns; numbers to the right.
    pub fn text(&self) -> String {
        let count = self.columns.len();
        let mut right = vec![false; count];
        // All cells' text in a row, and of each where it ends and how wide it is.
        let (mut text, mut cells, mut widths) = (String::new(), Vec::new(), vec![0; count]);
        for column in self.columns {
            text += &column.to_uppercase().replace('_', " ");
            cells.push(text.len());
        }
        for (at, cell) in self.cells.iter().enumerate() {
            // Writing to a string doesn't fail.
            let _ = write!(text, "{cell}");
            cells.push(text.len());
            right[at % count] |= matches!(cell, Cell::Number(_) | Cell::Percent(_) | Cell::Seconds(_));
        }
        let starts = std::iter::once(0).chain(cells.iter().copied());
        let cells: Vec<(&str, usize)> = starts
            .zip(&cells)
            .map(|(start, &end)| &text[start..end])
            .map(|cell| (cell, cell.chars().count()))
            .collect();
        for (at, (_, width)) in cells.iter().enumerate() {
            widths[at % count] = (*width).max(widths[at % count]);
        }
        let mut out = String::with_capacity(cells.len() / count * (widths.iter().sum::<usize>() + 2 * count));
        for row in cells.chunks_exact(count) {
            for ((&(cell, own), &width), &right) in row.iter().zip(&widths).zip(&right) {
                let pad = std::iter::repeat_n(' ', width - own);
                if right {
                    out.extend(pad);
                    out += cell;
                } else {
                    out += cell;
                    out.extend(pad);
                }
                out += "  ";
            }
            out.truncate(out.trim_end_matches(' ').len());
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
