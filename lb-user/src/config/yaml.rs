//! YAML as a tree of text with places, made from the parser's events.
//!
//! A tree and not serde's derives: so all errors of a file can be told at once, each with its key
//! path and the value as it was written, and scalars keep their text (`1e3` is a fine node name).
//! Invariant: a map's keys are scalars, each given once; a tree's size is bounded by the text's.
//! Not here: what any key means.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use granit_parser::{Event, Parser, ScalarStyle, Span};
use serde_json::Value;

use super::error::{Error, Place};

/// Nodes that a document's aliases may copy.
const MAX_COPIED: usize = 100_000;

#[derive(Clone, Debug, PartialEq)]
pub struct Node<'a> {
    pub place: Place,
    pub kind: Kind<'a>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Kind<'a> {
    Scalar { text: Cow<'a, str>, plain: bool },
    List(Vec<Node<'a>>),
    Map(Vec<(Node<'a>, Node<'a>)>),
}

impl<'a> Node<'a> {
    pub fn is_null(&self) -> bool {
        matches!(&self.kind, Kind::Scalar { text, plain: true } if matches!(&**text, "" | "~" | "null" | "Null" | "NULL"))
    }

    /// A scalar's text; None for anything else, null included.
    pub fn text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Scalar { text, .. } if !self.is_null() => Some(text),
            _ => None,
        }
    }

    /// A map's value.
    pub fn get(&self, key: &str) -> Option<&Node<'a>> {
        match &self.kind {
            Kind::Map(pairs) => pairs.iter().find(|(k, _)| k.text() == Some(key)).map(|(_, v)| v),
            _ => None,
        }
    }

    /// What it is, for a message.
    pub fn describe(&self) -> String {
        match &self.kind {
            _ if self.is_null() => "nothing".into(),
            Kind::Scalar { text, .. } => {
                let short: String = text.chars().take(60).collect();
                let dots = if short.len() < text.len() { "…" } else { "" };
                format!("`{}{dots}`", short.escape_debug())
            }
            Kind::List(_) => "a list".into(),
            Kind::Map(_) => "a map".into(),
        }
    }
}

/// The same tree of what is no text: it has no places.
pub fn of_json(value: &Value) -> Node<'_> {
    fn scalar<'t>(text: impl Into<Cow<'t, str>>, plain: bool) -> Kind<'t> {
        Kind::Scalar { text: text.into(), plain }
    }
    let kind = match value {
        Value::Null => scalar("", true),
        Value::Bool(value) => scalar(if *value { "true" } else { "false" }, true),
        Value::Number(number) => scalar(number.to_string(), true),
        Value::String(text) => scalar(text, false),
        Value::Array(items) => Kind::List(items.iter().map(of_json).collect()),
        Value::Object(pairs) => {
            let key = |key| Node { place: Place::NOWHERE, kind: scalar(key, false) };
            Kind::Map(pairs.iter().map(|(name, value)| (key(name), of_json(value))).collect())
        }
    };
    Node { place: Place::NOWHERE, kind }
}

/// All documents of a text; empty ones are left out.
pub fn parse<'a>(file: &Arc<str>, text: &'a str) -> Result<Vec<Node<'a>>, Error> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut builder = Builder { file, events: Parser::new_from_str(text), anchors: HashMap::new(), copied: 0 };
    let mut documents = Vec::new();
    while let Some((event, span)) = builder.next()? {
        match event {
            Event::DocumentStart(..) => {
                builder.anchors.clear();
                builder.copied = 0;
            }
            Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
            event => {
                let node = builder.node(event, span)?;
                if !node.is_null() {
                    documents.push(node);
                }
            }
        }
    }
    Ok(documents)
}

struct Builder<'a, 'f> {
    file: &'f Arc<str>,
    events: Parser<'a, granit_parser::StrInput<'a>>,
    anchors: HashMap<usize, Node<'a>>,
    copied: usize,
}

fn place(span: &Span) -> Place {
    Place { line: span.start.line() as u32, column: span.start.col() as u32 + 1 }
}

impl<'a> Builder<'a, '_> {
    fn error(&self, place: Place, message: impl Into<String>) -> Error {
        Error { file: self.file.clone(), place: Some(place), path: String::new(), message: message.into() }
    }

    fn next(&mut self) -> Result<Option<(Event<'a>, Span)>, Error> {
        // Comments are told where anybody in the program wants them of the parser; a kubeconfig's reader does.
        match self.events.find(|event| !matches!(event, Ok((Event::Comment(..), _)))) {
            None => Ok(None),
            Some(Ok(event)) => Ok(Some(event)),
            Some(Err(e)) => {
                let place = Place { line: e.marker().line() as u32, column: e.marker().col() as u32 + 1 };
                Err(self.error(place, format!("not YAML: {}", e.info())))
            }
        }
    }

    fn some(&mut self, start: Place) -> Result<(Event<'a>, Span), Error> {
        self.next()?.ok_or_else(|| self.error(start, "not YAML: the text ends inside what starts here"))
    }

    /// The node that `event` starts. Recursion is bounded by the parser's limit of nesting.
    fn node(&mut self, event: Event<'a>, span: Span) -> Result<Node<'a>, Error> {
        let start = place(&span);
        let (kind, anchor) = match event {
            Event::Scalar(text, style, anchor, _) => {
                (Kind::Scalar { text, plain: style == ScalarStyle::Plain }, anchor)
            }
            Event::SequenceStart(_, anchor, _) => (self.list(start)?, anchor),
            Event::MappingStart(_, anchor, _) => (self.map(start)?, anchor),
            Event::Alias(id) => return self.alias(id, start),
            other => return Err(self.error(start, format!("not YAML: unexpected {other:?}"))),
        };
        let node = Node { place: start, kind };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn alias(&mut self, id: usize, at: Place) -> Result<Node<'a>, Error> {
        let Some(node) = self.anchors.get(&id) else {
            return Err(self.error(at, "not YAML: an alias inside its own anchor"));
        };
        self.copied += size(node);
        if self.copied > MAX_COPIED {
            return Err(self.error(at, format!("aliases copy more than {MAX_COPIED} values")));
        }
        Ok(Node { place: at, kind: node.kind.clone() })
    }

    fn list(&mut self, start: Place) -> Result<Kind<'a>, Error> {
        let mut items = Vec::new();
        loop {
            match self.some(start)? {
                (Event::SequenceEnd, _) => return Ok(Kind::List(items)),
                (event, span) => items.push(self.node(event, span)?),
            }
        }
    }

    fn map(&mut self, start: Place) -> Result<Kind<'a>, Error> {
        let mut pairs: Vec<(Node<'a>, Node<'a>)> = Vec::new();
        let mut merged = Vec::new();
        loop {
            let (event, span) = self.some(start)?;
            if event == Event::MappingEnd {
                break;
            }
            let key = self.node(event, span)?;
            let Kind::Scalar { text, plain } = &key.kind else {
                return Err(self.error(key.place, format!("a key must be a word, not {}", key.describe())));
            };
            if let Some((first, _)) =
                pairs.iter().find(|(k, _)| matches!(&k.kind, Kind::Scalar { text: t, .. } if t == text))
            {
                return Err(self.error(key.place, format!("the key `{text}` is given twice, first at {}", first.place)));
            }
            let merge = *plain && text == "<<";
            let (event, span) = self.some(start)?;
            let value = self.node(event, span)?;
            match value.kind {
                Kind::Map(from) if merge => merged.extend(from),
                kind => pairs.push((key, Node { place: value.place, kind })),
            }
        }
        for (key, value) in merged {
            if !pairs.iter().any(|(k, _)| k.kind == key.kind) {
                pairs.push((key, value));
            }
        }
        Ok(Kind::Map(pairs))
    }
}

fn size(node: &Node<'_>) -> usize {
    1 + match &node.kind {
        Kind::Scalar { .. } => 0,
        Kind::List(items) => items.iter().map(size).sum(),
        Kind::Map(pairs) => pairs.iter().map(|(k, v)| size(k) + size(v)).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(node: &Node<'_>) -> String {
        match &node.kind {
            Kind::Scalar { text, .. } => format!("{text}@{}", node.place),
            Kind::List(items) => format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(", ")),
            Kind::Map(pairs) => {
                let pairs: Vec<_> = pairs.iter().map(|(k, v)| format!("{}: {}", show(k), show(v))).collect();
                format!("{{{}}}", pairs.join(", "))
            }
        }
    }

    fn check(text: &str, want: &str) {
        let got = match parse(&"f".into(), text) {
            Ok(documents) => documents.iter().map(show).collect::<Vec<_>>().join(" --- "),
            Err(e) => e.to_string(),
        };
        assert_eq!(got, want, "for {text:?}");
    }

    #[test]
    fn trees_and_errors() {
        check("", "");
        check("# nothing\n---\n", "");
        check("a: 1\n---\nb: [x, 'y']\n", "{a@1:1: 1@1:4} --- {b@3:1: [x@3:5, y@3:8]}");
        check("a: &x {p: 1}\nb: *x\n", "{a@1:1: {p@1:8: 1@1:11}, b@2:1: {p@1:8: 1@1:11}}");
        check(
            "a: &x {p: 1, q: 2}\nb: {<<: *x, p: 3}\n",
            "{a@1:1: {p@1:8: 1@1:11, q@1:14: 2@1:17}, b@2:1: {p@2:13: 3@2:16, q@1:14: 2@1:17}}",
        );
        check("a: 1\na: 2\n", "f:2:1: the key `a` is given twice, first at 1:1");
        check("{[a]: 1}", "f:1:2: a key must be a word, not a list");
        check("a: *x\n", "f:1:4: not YAML: while parsing node, found unknown anchor");
        check("a: [1\n", "f:1:4: not YAML: unclosed bracket '['");
        check("\u{feff}a: 1\n", "{a@1:1: 1@1:4}");
    }

    #[test]
    fn laughs_are_bounded() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for i in 1..9 {
            let before = [format!("*a{}", i - 1)].iter().cycle().take(10).cloned().collect::<Vec<_>>().join(", ");
            text += &format!("a{i}: &a{i} [{before}]\n");
        }
        let error = parse(&"f".into(), &text).unwrap_err();
        assert_eq!(error.message, "aliases copy more than 100000 values");
    }
}
