//! `cluster.pools`: further addresses for load balancers, and whom they are for.
//!
//! Invariant: a pool has addresses and a name of its own; `default` is that of `cluster.serviceIPs`. Not here:
//! who gets which ([`crate::address`]).

use super::at::{At, Log};
use super::check::Use;
use super::read::{ranges, set};
use super::{Places, value};
use crate::address::{DEFAULT, Pool};
use crate::source::endpoints::{Expression, Labels, Operator, Selector};

const KEYS: &[&str] =
    &["addresses", "autoAssign", "avoidBuggyIPs", "priority", "namespaces", "namespaceSelectors", "serviceSelectors"];
const SELECTOR_KEYS: &[&str] = &["matchLabels", "matchExpressions"];
const EXPRESSION_KEYS: &[&str] = &["key", "operator", "values"];

pub(super) fn pools(places: &mut Places, at: &At<'_>, log: &mut Log) -> Vec<Pool> {
    let mut all = Vec::new();
    for (key, at) in at.entries(log, "a map of pools' names, such as cameras: { addresses: 192.168.30.0/24 }") {
        let name = key.text().unwrap_or("");
        if name.is_empty() || name.contains(char::is_whitespace) {
            log.error(&at, format!("{} is not a pool's name; expected a word such as cameras", key.describe()));
        } else if name == DEFAULT {
            log.error(&at, format!("`{DEFAULT}` is the name of cluster.serviceIPs; expected another one"));
        }
        if at.only(log, KEYS) {
            all.push(pool(name, places, &at, log));
        }
    }
    all
}

fn pool(name: &str, places: &mut Places, at: &At<'_>, log: &mut Log) -> Pool {
    if let Some(at) = at.require(log, "addresses", value::RANGE).filter(|at| at.list_or_one().is_empty()) {
        log.error(&at, format!("is empty; expected {}", value::RANGE));
    }
    let mut pool = Pool::plain(name, ranges(&mut places.extents, at, "addresses", Use::Services, log));
    let flag = |key: &str, log: &mut Log| at.get(key).and_then(|at| at.value(log, "true or false", value::boolean));
    set(&mut pool.auto_assign, flag("autoAssign", log));
    set(&mut pool.avoid_buggy, flag("avoidBuggyIPs", log));
    let right = "a number from 0 to 1000000, the lower one first (0: last)";
    let priority = at.get("priority").and_then(|at| at.value(log, right, |s| value::integer(s, 0, 1_000_000)));
    set(&mut pool.priority, priority);
    if let Some(at) = at.get("namespaces") {
        let all = at.list_or_one();
        pool.namespaces = all.iter().filter_map(|at| at.string(log, "a namespace's name")).collect();
    }
    pool.namespace_selectors = selectors(at, "namespaceSelectors", log);
    pool.service_selectors = selectors(at, "serviceSelectors", log);
    pool
}

fn selectors(at: &At<'_>, key: &str, log: &mut Log) -> Vec<Selector> {
    let Some(list) = at.get(key) else { return Vec::new() };
    list.list_or_one().iter().filter_map(|at| selector(at, log)).collect()
}

fn selector(at: &At<'_>, log: &mut Log) -> Option<Selector> {
    if !at.only(log, SELECTOR_KEYS) {
        return None;
    }
    let mut labels = Labels::new();
    if let Some(at) = at.get("matchLabels") {
        for (key, value) in at.entries(log, "a map of labels, such as app: web") {
            let text = value.value(log, "a label's text", |s| Ok(s.to_owned()));
            labels.extend(key.text().map(str::to_owned).zip(text));
        }
    }
    let mut expressions = Vec::new();
    if let Some(list) = at.get("matchExpressions") {
        let right = "a list such as [{ key: app, operator: In, values: [web] }]";
        expressions.extend(list.list(log, right).iter().filter_map(|at| expression(at, log)));
    }
    if labels.is_empty() && expressions.is_empty() {
        log.error(at, "selects everything; expected labels in matchLabels or matchExpressions");
    }
    Some(Selector { labels, expressions })
}

fn expression(at: &At<'_>, log: &mut Log) -> Option<Expression> {
    if !at.only(log, EXPRESSION_KEYS) {
        return None;
    }
    let right = "In, NotIn, Exists or DoesNotExist";
    let key = at.require(log, "key", "a label's name").and_then(|at| at.string(log, "a label's name"));
    let operator = at.require(log, "operator", right).and_then(|at| {
        at.value(log, right, |s| match s {
            "In" => Ok(Operator::In),
            "NotIn" => Ok(Operator::NotIn),
            "Exists" => Ok(Operator::Exists),
            "DoesNotExist" => Ok(Operator::DoesNotExist),
            _ => Err(String::new()),
        })
    });
    let values: Vec<String> = match at.get("values") {
        Some(at) => {
            at.list_or_one().iter().filter_map(|at| at.value(log, "a label's text", |s| Ok(s.to_owned()))).collect()
        }
        None => Vec::new(),
    };
    let (key, operator) = (key?, operator?);
    let needs = matches!(operator, Operator::In | Operator::NotIn);
    if needs == values.is_empty() {
        log.error(
            at,
            match needs {
                true => "has no values; expected those that In and NotIn are about",
                false => "has values; expected none beside Exists and DoesNotExist",
            },
        );
    }
    Some(Expression { key, operator, values })
}
