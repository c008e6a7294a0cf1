//! Typed reading of a YAML tree: a cursor that knows its key path, and the log it complains to.
//!
//! Invariant: reading never stops at the first error; a value that is wrong is logged with its
//! place and path, and read as absent. Not here: the keys of any file.

use std::fmt;
use std::sync::Arc;

use super::error::{Error, Errors, Place};
use super::yaml::{Kind, Node};

/// What was found wrong or worth saying in one file.
#[derive(Debug)]
pub struct Log {
    pub file: Arc<str>,
    pub errors: Vec<Error>,
    pub notices: Vec<Error>,
}

impl Log {
    pub fn new(file: Arc<str>) -> Self {
        Log { file, errors: Vec::new(), notices: Vec::new() }
    }

    pub fn error(&mut self, at: &At<'_>, message: impl Into<String>) {
        self.errors.push(Error {
            file: self.file.clone(),
            place: Some(at.node.place),
            path: at.to_string(),
            message: message.into(),
        });
    }

    pub fn notice(&mut self, at: &At<'_>, message: impl Into<String>) {
        self.notices.push(Error {
            file: self.file.clone(),
            place: Some(at.node.place),
            path: at.to_string(),
            message: message.into(),
        });
    }

    /// The value with the notices, or all errors.
    pub fn finish<T>(self, value: T) -> Result<(T, Vec<Error>), Errors> {
        if self.errors.is_empty() { Ok((value, self.notices)) } else { Err(Errors(self.errors).sorted()) }
    }
}

#[derive(Clone, Copy)]
enum Step<'r> {
    Root,
    Key(&'r str),
    Index(usize),
}

/// A node and the way to it.
#[derive(Clone, Copy)]
pub struct At<'r> {
    pub node: &'r Node<'r>,
    up: Option<&'r At<'r>>,
    step: Step<'r>,
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(up) = self.up else { return Ok(()) };
        write!(f, "{up}")?;
        match self.step {
            Step::Root => Ok(()),
            Step::Key(key) if up.up.is_none() => write!(f, "{key}"),
            Step::Key(key) => write!(f, ".{key}"),
            Step::Index(index) => write!(f, "[{index}]"),
        }
    }
}

impl<'r> At<'r> {
    pub fn root(node: &'r Node<'r>) -> Self {
        At { node, up: None, step: Step::Root }
    }

    pub fn place(&self) -> Place {
        self.node.place
    }

    fn child<'s>(&'s self, node: &'s Node<'s>, step: Step<'s>) -> At<'s> {
        At { node, up: Some(self), step }
    }

    /// The value of a key; None where it is absent or null.
    pub fn get<'s>(&'s self, key: &'s str) -> Option<At<'s>> {
        self.node.get(key).filter(|n| !n.is_null()).map(|n| self.child(n, Step::Key(key)))
    }

    /// The value of a key that must be there.
    pub fn require<'s>(&'s self, log: &mut Log, key: &'s str, right: &str) -> Option<At<'s>> {
        if let Some(at) = self.get(key) {
            return Some(at);
        }
        let empty = Node { place: self.node.place, kind: Kind::List(Vec::new()) };
        log.error(&At { node: &empty, up: Some(self), step: Step::Key(key) }, format!("is missing; expected {right}"));
        None
    }

    /// The keys and values of a map.
    pub fn entries<'s>(&'s self, log: &mut Log, right: &str) -> Vec<(&'s Node<'s>, At<'s>)> {
        match &self.node.kind {
            Kind::Map(pairs) => {
                pairs.iter().map(|(key, value)| (key, self.child(value, Step::Key(key.text().unwrap_or(""))))).collect()
            }
            _ => {
                self.wrong(log, right);
                Vec::new()
            }
        }
    }

    /// Logs every key that is not in `known`; false if this is no map at all.
    pub fn only(&self, log: &mut Log, known: &[&str]) -> bool {
        let Kind::Map(pairs) = &self.node.kind else {
            self.wrong(log, &format!("a map with the keys {}", known.join(", ")));
            return false;
        };
        for (key, _) in pairs {
            let name = key.text().unwrap_or("");
            if !known.contains(&name) {
                let at = self.child(key, Step::Key(name));
                log.error(&at, format!("unknown key; expected {}", one_of(name, known)));
            }
        }
        true
    }

    /// The items of a list.
    pub fn list<'s>(&'s self, log: &mut Log, right: &str) -> Vec<At<'s>> {
        match &self.node.kind {
            Kind::List(items) => items.iter().enumerate().map(|(i, n)| self.child(n, Step::Index(i))).collect(),
            _ => {
                self.wrong(log, right);
                Vec::new()
            }
        }
    }

    /// The items of a list, or the one scalar.
    pub fn list_or_one<'s>(&'s self) -> Vec<At<'s>> {
        match &self.node.kind {
            Kind::List(items) => items.iter().enumerate().map(|(i, n)| self.child(n, Step::Index(i))).collect(),
            _ => vec![*self],
        }
    }

    /// A scalar, read by `read`, which says what is wrong with it if anything is.
    pub fn value<T>(&self, log: &mut Log, right: &str, read: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        match self.node.text() {
            None => self.wrong(log, right),
            Some(text) => match read(text) {
                Ok(value) => return Some(value),
                Err(why) if why.is_empty() => self.wrong(log, right),
                Err(why) => log.error(self, format!("{} {why}; expected {right}", self.node.describe())),
            },
        }
        None
    }

    /// A non-empty text.
    pub fn string(&self, log: &mut Log, right: &str) -> Option<String> {
        self.value(log, right, |s| if s.is_empty() { Err(String::new()) } else { Ok(s.to_owned()) })
    }

    fn wrong(&self, log: &mut Log, right: &str) {
        log.error(self, format!("{} is not {right}", self.node.describe()));
    }
}

/// The known word that looks most like `name`, or all of them.
fn one_of(name: &str, known: &[&str]) -> String {
    let near = known.iter().find(|k| k.eq_ignore_ascii_case(name) || distance(name, k) <= 1 + k.len() / 8);
    match near {
        Some(near) => format!("`{near}`"),
        None => format!("one of {}", known.join(", ")),
    }
}

/// Edits between two words (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = change.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
