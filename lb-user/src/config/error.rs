//! What is wrong in a file, and where: one line each.
//!
//! Invariant: every message names the file, the line and column, the key path, the value and what
//! would be right, so that nobody has to look anything up. Not here: what the rules are.

use std::fmt;
use std::sync::Arc;

/// A place in a file, counted from one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub line: u32,
    pub column: u32,
}

impl Place {
    /// Of what stands in no file.
    pub const NOWHERE: Place = Place { line: 0, column: 0 };
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// One message about one place; an error or, in a list of notices, a notice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub file: Arc<str>,
    /// None: the whole file.
    pub place: Option<Place>,
    /// `ports.Port2.gateway`; empty for the whole file.
    pub path: String,
    pub message: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file)?;
        if let Some(place) = self.place.filter(|place| *place != Place::NOWHERE) {
            write!(f, "{place}:")?;
        }
        if !self.path.is_empty() {
            write!(f, " {}:", self.path)?;
        }
        write!(f, " {}", self.message)
    }
}

impl std::error::Error for Error {}

/// Everything that is wrong, in the order of the files and their lines; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errors(pub Vec<Error>);

impl Errors {
    /// An error about a whole file.
    pub fn of_file(file: &Arc<str>, message: impl Into<String>) -> Self {
        Errors(vec![Error { file: file.clone(), place: None, path: String::new(), message: message.into() }])
    }

    /// Orders by file and place.
    pub fn sorted(mut self) -> Self {
        self.0.sort_by(|a, b| (&a.file, a.place).cmp(&(&b.file, b.place)));
        self
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}
