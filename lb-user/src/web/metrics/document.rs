//! docs/metrics.md, made of the registry, and the dashboard, held against it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use super::families::{self, Family, Kind};

fn file(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

const HEAD: &str = "\
# Metrics

What the agent tells at `/metrics` ([configuration.md](configuration.md#watching)), in Prometheus' text form, or in OpenMetrics to
who accepts `application/openmetrics-text`. Every number is that of the listing that the command line prints
([json.md](json.md)). Of an `interface`, `service` or `backend` that goes, the series end.

This file is made of the registry in `lb-user/src/web/metrics/families.rs`: `BLESS=1 cargo test -p lb-user metrics`.
Names and labels are a contract: some are added, none is renamed or given another meaning.
[`examples/grafana/stellwerk.json`](../examples/grafana/stellwerk.json) is a dashboard of them.

| name | type | unit | labels | meaning |
|---|---|---|---|---|
";

fn document() -> String {
    let mut text = HEAD.to_owned();
    for family in families::ALL {
        let Family { kind, unit, labels, help, .. } = family;
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        let (name, unit, labels) = (family.name(), unit.unwrap_or(""), labels.join(", "));
        writeln!(text, "| `{name}` | {kind} | {unit} | {labels} | {help} |").unwrap();
    }
    text
}

#[test]
fn the_document_is_of_the_registry() {
    let (path, want) = (file("docs/metrics.md"), document());
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &want).unwrap();
    }
    let have = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(have == want, "docs/metrics.md is not of the registry: BLESS=1 writes it anew");
}

/// Names of metrics in a text.
fn names(text: &str) -> BTreeSet<&str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c| !is_part(c)).filter(|word| word.starts_with("stellwerk_")).collect()
}

#[test]
fn the_dashboard_asks_for_what_there_is() {
    let text = std::fs::read_to_string(file("examples/grafana/stellwerk.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let with = |panel: &serde_json::Value| panel["type"] == "row" || !panel["targets"].as_array().unwrap().is_empty();
    assert!(panels.len() > 10 && panels.iter().all(with), "a panel asks for nothing");
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "two panels have one id");
    let known: BTreeSet<String> = families::ALL
        .iter()
        .flat_map(|family| match family.kind {
            Kind::Histogram => ["_bucket", "_count", "_sum"].map(|end| family.name() + end).to_vec(),
            _ => vec![family.name()],
        })
        .collect();
    let unknown: Vec<&str> = names(&text).into_iter().filter(|name| !known.contains(*name)).collect();
    assert!(unknown.is_empty(), "the dashboard asks for {unknown:?}");
    assert!(names(&text).len() > 20, "{:?}", names(&text));
}
