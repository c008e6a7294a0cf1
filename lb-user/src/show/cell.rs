//! One value of a row, for people ([`fmt::Display`]) and for programs ([`Serialize`]).

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;

use serde::{Serialize, Serializer};

#[derive(Debug)]
pub enum Cell<'a> {
    None,
    Text(Cow<'a, str>),
    Endpoint(SocketAddr),
    Number(u64),
    /// A share, in percent.
    Percent(f64),
    /// Seconds.
    Seconds(f64),
    Flag(bool),
    List(Vec<String>),
}

impl Cell<'_> {
    pub fn is_number(&self) -> bool {
        matches!(self, Cell::Number(_) | Cell::Percent(_) | Cell::Seconds(_))
    }
}

impl From<String> for Cell<'_> {
    fn from(text: String) -> Self {
        Cell::Text(text.into())
    }
}

impl<'a> From<&'a str> for Cell<'a> {
    fn from(text: &'a str) -> Self {
        Cell::Text(text.into())
    }
}

impl<'a> From<Cow<'a, str>> for Cell<'a> {
    fn from(text: Cow<'a, str>) -> Self {
        Cell::Text(text)
    }
}

impl From<SocketAddr> for Cell<'_> {
    fn from(endpoint: SocketAddr) -> Self {
        Cell::Endpoint(endpoint)
    }
}

impl From<u64> for Cell<'_> {
    fn from(number: u64) -> Self {
        Cell::Number(number)
    }
}

impl From<u32> for Cell<'_> {
    fn from(number: u32) -> Self {
        Cell::Number(number.into())
    }
}

impl From<u16> for Cell<'_> {
    fn from(number: u16) -> Self {
        Cell::Number(number.into())
    }
}

impl From<usize> for Cell<'_> {
    fn from(number: usize) -> Self {
        Cell::Number(number as u64)
    }
}

impl<'a, T: Into<Cell<'a>>> From<Option<T>> for Cell<'a> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Cell::None, Into::into)
    }
}

impl fmt::Display for Cell<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cell::None => f.write_str("-"),
            Cell::Text(text) if text.is_empty() => f.write_str("-"),
            Cell::Text(text) => f.write_str(text),
            Cell::Endpoint(endpoint) => write!(f, "{endpoint}"),
            Cell::Number(number) => write!(f, "{number}"),
            Cell::Percent(share) => write!(f, "{share:.1} %"),
            Cell::Seconds(seconds) => write!(f, "{seconds:.0} s"),
            Cell::Flag(flag) => f.write_str(if *flag { "yes" } else { "no" }),
            Cell::List(list) if list.is_empty() => f.write_str("-"),
            Cell::List(list) => f.write_str(&list.join(", ")),
        }
    }
}

impl Serialize for Cell<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Cell::None => serializer.serialize_none(),
            Cell::Text(text) => serializer.serialize_str(text),
            Cell::Endpoint(endpoint) => serializer.collect_str(endpoint),
            Cell::Number(number) => serializer.serialize_u64(*number),
            Cell::Percent(x) | Cell::Seconds(x) => serializer.serialize_f64((x * 1e3).round() / 1e3),
            Cell::Flag(flag) => serializer.serialize_bool(*flag),
            Cell::List(list) => list.serialize(serializer),
        }
    }
}
