//! A listing: columns and rows, for people and for programs.
//!
//! Invariant: the objects of `--json` have the names of the table's columns, in their order. Rows become
//! text piece by piece, on all cores, so that a listing of a million takes no more time and room than its text.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::ops::Range;
use std::sync::Arc;

use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};

use super::cell::Cell;
use super::parallel::in_order;

/// Rows that are written at once.
const PIECE: usize = 2048;

/// Receives the cells of a row.
type Receive<'a> = &'a mut dyn FnMut(&[Cell<'_>]);

/// Rows of one kind, which are made into cells when they are written.
struct Part {
    rows: usize,
    give: Box<dyn Fn(usize, Receive<'_>) + Send + Sync>,
}

/// A listing.
pub struct Table {
    columns: &'static [&'static str],
    parts: Vec<Part>,
}

impl Table {
    pub fn new(columns: &'static [&'static str]) -> Self {
        Table { columns, parts: Vec::new() }
    }

    pub fn push<const N: usize>(&mut self, row: [Cell<'static>; N]) {
        debug_assert_eq!(N, self.columns.len());
        self.parts.push(Part { rows: 1, give: Box::new(move |_, receive| receive(&row)) });
    }

    /// Adds many rows, of which `cells` makes cells.
    pub fn extend<R, C, const N: usize>(
        &mut self,
        rows: Vec<R>,
        context: &Arc<C>,
        cells: impl for<'a> Fn(&'a R, &'a C) -> [Cell<'a>; N] + Send + Sync + 'static,
    ) where
        R: Send + Sync + 'static,
        C: Send + Sync + 'static,
    {
        debug_assert_eq!(N, self.columns.len());
        let (count, context) = (rows.len(), context.clone());
        let give = move |at: usize, receive: Receive<'_>| receive(&cells(&rows[at], &context));
        self.parts.push(Part { rows: count, give: Box::new(give) });
    }

    /// Writes an array of objects, or aligned columns, numbers to the right.
    pub fn write(&self, json: bool, out: &mut impl Write) -> io::Result<()> {
        if json { self.write_json(out) } else { self.write_text(out) }
    }

    /// As [`Table::write`], to a string.
    #[cfg(test)]
    pub fn string(&self, json: bool) -> String {
        let mut out = Vec::new();
        self.write(json, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    /// Hands over each row.
    pub fn for_each(&self, mut receive: impl FnMut(Row<'_>)) {
        for part in &self.parts {
            for row in 0..part.rows {
                (part.give)(row, &mut |cells| receive(Row { columns: self.columns, cells }));
            }
        }
    }

    /// An array of objects without a space too many, of so many rows at the most.
    pub fn compact(&self, limit: usize) -> serde_json::Result<Vec<u8>> {
        let mut out = vec![b'['];
        let (mut done, mut rows) = (Ok(()), 0);
        self.for_each(|row| {
            if rows < limit && done.is_ok() {
                if rows > 0 {
                    out.push(b',');
                }
                rows += 1;
                done = serde_json::to_writer(&mut out, &Object(row.columns, row.cells));
            }
        });
        done?;
        out.push(b']');
        Ok(out)
    }

    pub fn columns(&self) -> &'static [&'static str] {
        self.columns
    }

    pub fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.rows).sum()
    }

    fn pieces(&self) -> usize {
        self.rows().div_ceil(PIECE)
    }

    /// Hands over the rows of a piece.
    fn each(&self, piece: usize, receive: Receive<'_>) {
        let wanted = piece * PIECE..(piece + 1) * PIECE;
        let mut first = 0;
        for part in &self.parts {
            let end = first + part.rows;
            for row in wanted.start.max(first)..wanted.end.min(end) {
                (part.give)(row - first, receive);
            }
            first = end;
        }
    }

    fn write_json(&self, out: &mut impl Write) -> io::Result<()> {
        let count = self.pieces();
        if count == 0 {
            return out.write_all(b"[]\n");
        }
        let array = |piece| serde_json::to_vec_pretty(&Objects { table: self, piece });
        let mut before = b"[";
        in_order(count, array, |array| {
            out.write_all(before)?;
            before = b",";
            // All pieces are one array.
            let array = array?;
            out.write_all(&array[1..array.len() - 2])
        })?;
        out.write_all(b"\n]\n")
    }

    fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        let mut head = Texts::new(self.columns.len());
        for column in self.columns {
            head.text += &column.to_uppercase().replace('_', " ");
            head.end_cell();
        }
        let mut pieces = vec![head];
        let text = |piece| {
            let mut texts = Texts::new(self.columns.len());
            self.each(piece, &mut |cells| cells.iter().for_each(|cell| texts.push(cell)));
            texts
        };
        in_order(self.pieces(), text, |texts| {
            pieces.push(texts);
            Ok(())
        })?;
        let columns: Vec<Column> = (0..self.columns.len())
            .map(|at| {
                let all = pieces.iter().map(|texts| &texts.columns[at]);
                all.fold(Column::default(), |all, one| Column {
                    width: all.width.max(one.width),
                    right: all.right | one.right,
                })
            })
            .collect();
        in_order(pieces.len(), |piece| pieces[piece].align(&columns), |lines| out.write_all(&lines))
    }
}

/// A row, whose cells are found by their columns.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    columns: &'static [&'static str],
    cells: &'a [Cell<'a>],
}

impl<'a> Row<'a> {
    fn cell(&self, column: &str) -> &'a Cell<'a> {
        let at = self.columns.iter().position(|name| *name == column);
        debug_assert!(at.is_some(), "no column {column} of {:?}", self.columns);
        at.and_then(|at| self.cells.get(at)).unwrap_or(&Cell::None)
    }

    /// As people read it; empty where there is nothing.
    pub fn text(&self, column: &str) -> String {
        match self.cell(column) {
            Cell::None => String::new(),
            Cell::Text(text) => text.to_string(),
            other => other.to_string(),
        }
    }

    pub fn number(&self, column: &str) -> Option<u64> {
        match self.cell(column) {
            Cell::Number(number) => Some(*number),
            _ => None,
        }
    }

    /// Of a share, from 0 to 1.
    pub fn ratio(&self, column: &str) -> Option<f64> {
        match self.cell(column) {
            Cell::Percent(percent) => Some(percent / 100.0),
            _ => None,
        }
    }

    /// How many members a list has.
    pub fn members(&self, column: &str) -> usize {
        match self.cell(column) {
            Cell::List(list) => list.len(),
            _ => 0,
        }
    }

    pub fn is_none(&self, column: &str) -> bool {
        matches!(self.cell(column), Cell::None)
    }
}

/// A piece as an array of objects.
struct Objects<'a> {
    table: &'a Table,
    piece: usize,
}

impl Serialize for Objects<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(None)?;
        let mut done = Ok(());
        self.table.each(self.piece, &mut |cells| {
            if done.is_ok() {
                done = list.serialize_element(&Object(self.table.columns, cells));
            }
        });
        done?;
        list.end()
    }
}

/// A row with its columns' names.
struct Object<'a>(&'a [&'static str], &'a [Cell<'a>]);

impl Serialize for Object<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (column, cell) in self.0.iter().zip(self.1) {
            map.serialize_entry(column, cell)?;
        }
        map.end()
    }
}

/// How a column is aligned.
#[derive(Clone, Default)]
struct Column {
    width: usize,
    right: bool,
}

/// The cells of a piece as text, row behind row, not yet aligned.
struct Texts {
    text: String,
    /// Of each cell.
    ends: Vec<usize>,
    columns: Vec<Column>,
}

impl Texts {
    fn new(columns: usize) -> Self {
        Texts { text: String::new(), ends: Vec::new(), columns: vec![Column::default(); columns] }
    }

    fn push(&mut self, cell: &Cell<'_>) {
        let at = self.ends.len() % self.columns.len();
        self.columns[at].right |= cell.is_number();
        // Writing to a string doesn't fail.
        let _ = write!(self.text, "{cell}");
        self.end_cell();
    }

    fn end_cell(&mut self) {
        let range = self.ends.last().copied().unwrap_or_default()..self.text.len();
        let (width, at) = (self.cell(range).1, self.ends.len() % self.columns.len());
        self.columns[at].width = self.columns[at].width.max(width);
        self.ends.push(self.text.len());
    }

    /// A cell and how wide it is.
    fn cell(&self, range: Range<usize>) -> (&[u8], usize) {
        let cell = &self.text[range];
        (cell.as_bytes(), cell.chars().count())
    }

    /// Lines, of cells in columns.
    fn align(&self, columns: &[Column]) -> Vec<u8> {
        let line = columns.iter().map(|column| column.width + 2).sum::<usize>();
        let mut out = Vec::with_capacity(self.ends.len() / columns.len() * line);
        let mut start = 0;
        for row in self.ends.chunks_exact(columns.len()) {
            for (&end, column) in row.iter().zip(columns) {
                let (cell, width) = self.cell(start..end);
                start = end;
                let pad = column.width - width;
                if column.right {
                    out.resize(out.len() + pad, b' ');
                    out.extend_from_slice(cell);
                    out.extend_from_slice(b"  ");
                } else {
                    out.extend_from_slice(cell);
                    out.resize(out.len() + pad + 2, b' ');
                }
            }
            let blank = out.iter().rev().take_while(|byte| **byte == b' ').count();
            out.truncate(out.len() - blank);
            out.push(b'\n');
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
        assert_eq!((table.string(false), table.string(true)), ("NAME  SLOTS  IS REMOTE\n".into(), "[]\n".into()));
        table.push(["a".into(), 7u32.into(), Cell::Flag(true)]);
        table.push([Cell::List(vec!["b".into(), "c".into()]), 1000u32.into(), Cell::None]);
        assert_eq!(table.string(false), "NAME  SLOTS  IS REMOTE\na         7  yes\nb, c   1000  -\n");
        let json: serde_json::Value = serde_json::from_str(&table.string(true)).expect("JSON");
        assert_eq!(
            json,
            serde_json::json!([
                {"name": "a", "slots": 7, "is_remote": true},
                {"name": ["b", "c"], "slots": 1000, "is_remote": null},
            ])
        );
    }

    /// More rows than are written at once are as those that are, whatever kinds they are of.
    #[test]
    fn pieces_are_one_listing() {
        const MANY: u64 = 2 * PIECE as u64 + 100;
        let mut table = Table::new(&["number", "name"]);
        let context = Arc::new("größe".to_owned());
        table.push([Cell::None, "first".into()]);
        table.extend((0..MANY).collect(), &context, |number, name: &String| {
            [(*number).into(), if number % 2 == 0 { name.as_str().into() } else { Cell::None }]
        });
        table.push([MANY.into(), "\"\\\u{1}".into()]);
        let mut text = "NUMBER  NAME\n     -  first\n".to_owned();
        let mut objects = vec![serde_json::json!({"name": "first", "number": null})];
        for number in 0..MANY {
            let name = (number % 2 == 0).then_some("größe");
            text += &format!("{number:6}  {}\n", name.unwrap_or("-"));
            objects.push(serde_json::json!({"name": name, "number": number}));
        }
        text += &format!("{MANY:6}  \"\\\u{1}\n");
        objects.push(serde_json::json!({"name": "\"\\\u{1}", "number": MANY}));
        assert_eq!(table.string(false), text);
        let json = table.string(true);
        assert_eq!(serde_json::from_str::<Vec<serde_json::Value>>(&json).expect("JSON"), objects);
        assert!(
            json.ends_with("  },\n  {\n    \"number\": 4196,\n    \"name\": \"\\\"\\\\\\u0001\"\n  }\n]\n"),
            "{json}"
        );
    }
}
