//! A NetworkPolicy (networking.k8s.io/v1).
//!
//! Invariant: what isn't understood is refused, as it might be what shuts. Not here: what policies mean
//! ([`crate::policy`]).

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::document::{Placed, Said, ServiceName, metadata, port_number, protocol, strings};
use crate::config::{self, At, Log};
use crate::intent::Protocol;
use crate::policy::{Peer, Policy, Port, Rule, Which};
use crate::source::endpoints::{Expression, Labels, Operator, Selector};

const SPEC: &[&str] = &["podSelector", "policyTypes", "ingress", "egress"];
const BLOCK: &str = "a subnet such as 10.0.0.0/8 or 2001:db8::/32";
const OPERATOR: &str = "In, NotIn, Exists or DoesNotExist";
const PORT: &str = "a port number from 1 to 65535, or the name of a container's port";

pub(super) fn read(at: &At<'_>, log: &mut Log) -> Option<Placed<ServiceName, Policy>> {
    let name = metadata(at, log)?;
    let said = Said::new(log, at);
    let spec = at.require(log, "spec", "a map with the policy's podSelector")?;
    if !spec.only(log, SPEC) {
        return None;
    }
    let selector = spec.get("podSelector").map_or(Selector::default(), |at| selector(&at, log));
    let ingress = rules(&spec, "ingress", "from", log);
    let egress = rules(&spec, "egress", "to", log);
    // As the API's defaults: who has no rules about what leaves says nothing about it.
    let (mut to, mut from) = (true, !egress.is_empty());
    if let Some(list) = spec.get("policyTypes") {
        (to, from) = (false, false);
        for at in list.list(log, "a list of Ingress and Egress") {
            match at.value(log, "Ingress or Egress", |s| match s {
                "Ingress" => Ok(true),
                "Egress" => Ok(false),
                _ => Err(String::new()),
            }) {
                Some(true) => to = true,
                Some(false) => from = true,
                None => {}
            }
        }
    }
    let (ingress, egress) = (to.then_some(ingress), from.then_some(egress));
    let policy = Policy { namespace: name.namespace.clone(), name: name.name.clone(), selector, ingress, egress };
    Some(Placed { name, object: policy, said })
}

fn selector(at: &At<'_>, log: &mut Log) -> Selector {
    if !at.only(log, &["matchLabels", "matchExpressions"]) {
        return Selector::default();
    }
    let labels = at.get("matchLabels").map_or(Labels::new(), |at| strings(&at, log));
    let mut expressions = Vec::new();
    if let Some(list) = at.get("matchExpressions") {
        for at in list.list(log, "a list of expressions") {
            expressions.extend(expression(&at, log));
        }
    }
    Selector { labels, expressions }
}

fn expression(at: &At<'_>, log: &mut Log) -> Option<Expression> {
    if !at.only(log, &["key", "operator", "values"]) {
        return None;
    }
    let key = at.require(log, "key", "a label's key")?.string(log, "a label's key")?;
    let mut values = BTreeSet::new();
    let list = at.get("values");
    for at in list.iter().flat_map(At::list_or_one) {
        values.extend(at.value(log, "a label's value", |s| Ok(s.to_owned())));
    }
    let operator = at.require(log, "operator", OPERATOR)?;
    let (with, without) = ("has no values", "has values, and takes none");
    let read = |text: &str| match text {
        "In" | "NotIn" if values.is_empty() => Err(with.to_owned()),
        "Exists" | "DoesNotExist" if !values.is_empty() => Err(without.to_owned()),
        "In" => Ok(Operator::In),
        "NotIn" => Ok(Operator::NotIn),
        "Exists" => Ok(Operator::Exists),
        "DoesNotExist" => Ok(Operator::DoesNotExist),
        _ => Err(String::new()),
    };
    let operator = operator.value(log, OPERATOR, read)?;
    Some(Expression { key, operator, values: values.into_iter().collect() })
}

fn rules(spec: &At<'_>, key: &str, peers: &str, log: &mut Log) -> Vec<Rule> {
    let Some(list) = spec.get(key) else { return Vec::new() };
    let mut all = Vec::new();
    for at in list.list(log, "a list of rules") {
        if !at.only(log, &[peers, "ports"]) {
            continue;
        }
        let mut rule = Rule::default();
        if let Some(list) = at.get(peers) {
            for at in list.list(log, "a list of peers") {
                rule.peers.extend(peer(&at, log));
            }
        }
        if let Some(list) = at.get("ports") {
            for at in list.list(log, "a list of ports") {
                rule.ports.extend(port(&at, log));
            }
        }
        all.push(rule);
    }
    all
}

fn peer(at: &At<'_>, log: &mut Log) -> Option<Peer> {
    if !at.only(log, &["podSelector", "namespaceSelector", "ipBlock"]) {
        return None;
    }
    let (pods, namespaces) = (at.get("podSelector"), at.get("namespaceSelector"));
    match at.get("ipBlock") {
        Some(_) if pods.is_some() || namespaces.is_some() => {
            log.error(at, "has ipBlock beside selectors; expected one or the other");
            None
        }
        Some(block) => self::block(&block, log),
        None if pods.is_none() && namespaces.is_none() => {
            log.error(at, "names nobody; expected podSelector, namespaceSelector or ipBlock");
            None
        }
        None => {
            let namespaces = namespaces.map(|at| selector(&at, log));
            let pods = pods.map_or(Selector::default(), |at| selector(&at, log));
            Some(Peer::Pods { namespaces, pods })
        }
    }
}

fn block(at: &At<'_>, log: &mut Log) -> Option<Peer> {
    if !at.only(log, &["cidr", "except"]) {
        return None;
    }
    let subnet = |text: &str| config::prefix(text).map(|(net, _)| net.trunc());
    let net: IpNet = at.require(log, "cidr", BLOCK)?.value(log, BLOCK, subnet)?;
    let mut except = Vec::new();
    if let Some(list) = at.get("except") {
        let right = format!("a part of {net}");
        for at in list.list(log, "a list of subnets") {
            let part =
                |text: &str| subnet(text).and_then(|e| if net.contains(&e) { Ok(e) } else { Err(String::new()) });
            except.extend(at.value(log, &right, part));
        }
    }
    Some(Peer::Block { net, except })
}

fn port(at: &At<'_>, log: &mut Log) -> Option<Port> {
    if !at.only(log, &["protocol", "port", "endPort"]) {
        return None;
    }
    let protocol: Protocol = protocol(at, log)?;
    let last = at.get("endPort");
    let Some(port) = at.get("port") else {
        if let Some(last) = last {
            log.error(&last, "is given without `port`; expected the first port of the range");
        }
        return Some(Port { protocol, which: Which::All });
    };
    let number = port.node.text().and_then(|text| text.parse::<i64>().ok());
    if number.is_none() {
        let name = port.string(log, PORT)?;
        if let Some(last) = last {
            log.error(&last, "is given with the name of a port; expected a number there");
        }
        return Some(Port { protocol, which: Which::Named(name) });
    }
    let first = port_number(&port, log)?;
    let end = match last {
        None => first,
        Some(last) => {
            let right = format!("a port number from {first} to 65535");
            last.value(log, &right, |s| config::integer(s, first.into(), 65_535))? as u16
        }
    };
    Some(Port { protocol, which: Which::Range(first, end) })
}
