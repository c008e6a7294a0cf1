//! A strict reader of metrics in Prometheus' text form and in OpenMetrics.
//!
//! Invariant: what one of the two forms forbids is an error here: samples of no metric, metrics in two parts, the same
//! series twice, names and labels of odd characters, endings that don't go with the type.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};

/// A scrape's samples, by the series as it is written.
pub type Samples = BTreeMap<String, f64>;

/// The metric whose samples come.
#[derive(Default)]
struct Metric {
    name: String,
    kind: String,
    helped: bool,
}

/// Reads a scrape; `open`: in OpenMetrics.
pub fn parse(text: &str, open: bool) -> Result<Samples> {
    let text = match open {
        true => text.strip_suffix("# EOF\n").context("OpenMetrics end with # EOF")?,
        false => text,
    };
    ensure!(text.ends_with('\n'), "the last line has no end");
    let mut samples = Samples::new();
    let mut seen = BTreeSet::new();
    let mut metric = Metric::default();
    for (number, line) in (1..).zip(text.lines()) {
        read(line, open, &mut metric, &mut seen, &mut samples).with_context(|| format!("line {number}: {line}"))?;
    }
    Ok(samples)
}

fn read(line: &str, open: bool, metric: &mut Metric, seen: &mut BTreeSet<String>, samples: &mut Samples) -> Result<()> {
    let Some(comment) = line.strip_prefix("# ") else {
        let (series, value) = sample(line, open, metric)?;
        ensure!(samples.insert(series, value).is_none(), "the series is there twice");
        return Ok(());
    };
    let (word, rest) = comment.split_once(' ').context("a comment of one word")?;
    let (name, rest) = rest.split_once(' ').context("without a text")?;
    match word {
        "HELP" => {
            ensure!(is_name(name), "an odd name");
            ensure!(seen.insert(name.to_owned()), "the metric is there twice");
            *metric = Metric { name: name.to_owned(), kind: String::new(), helped: true };
        }
        "TYPE" => {
            ensure!(metric.helped && metric.name == name && metric.kind.is_empty(), "not behind its HELP");
            ensure!(matches!(rest, "counter" | "gauge" | "histogram"), "an unknown type");
            metric.kind = rest.to_owned();
        }
        "UNIT" => {
            ensure!(open && metric.name == name, "a unit of nothing");
            ensure!(name.ends_with(&format!("_{rest}")), "the name doesn't end with its unit");
        }
        _ => bail!("neither HELP nor TYPE nor UNIT"),
    }
    Ok(())
}

fn sample(line: &str, open: bool, metric: &Metric) -> Result<(String, f64)> {
    let (series, value) = line.rsplit_once(' ').context("without a value")?;
    let value: f64 = value.parse().context("no number")?;
    let (name, labels) = match series.split_once('{') {
        Some((name, rest)) => (name, rest.strip_suffix('}').context("labels without an end")?),
        None => (series, ""),
    };
    let ends: &[&str] = match (metric.kind.as_str(), open) {
        ("counter", true) => &["_total"],
        ("histogram", _) => &["_bucket", "_sum", "_count"],
        ("counter" | "gauge", _) => &[""],
        _ => bail!("of no metric"),
    };
    ensure!(ends.iter().any(|end| name == format!("{}{end}", metric.name)), "not of {}", metric.name);
    ensure!(metric.kind != "counter" || name.ends_with("_total"), "a counter that doesn't end with _total");
    ensure!(metric.kind == "gauge" || value >= 0.0, "a count below zero");
    let names = labels_of(labels)?;
    ensure!(names.contains("le") == name.ends_with("_bucket"), "`le` is of buckets, and of buckets alone");
    Ok((series.to_owned(), value))
}

/// The labels' names.
fn labels_of(mut text: &str) -> Result<BTreeSet<&str>> {
    let mut names = BTreeSet::new();
    while !text.is_empty() {
        let (name, rest) = text.split_once("=\"").context("a label without a value")?;
        ensure!(is_name(name) && !name.contains(':'), "an odd label");
        ensure!(names.insert(name), "the label {name} is there twice");
        let end = end_of(rest).context("a label's value without an end")?;
        text = &rest[end + 1..];
        ensure!(text.is_empty() || text.starts_with(',') && text.len() > 1, "no comma between labels");
        text = text.strip_prefix(',').unwrap_or(text);
    }
    Ok(names)
}

/// Where a value's quotation ends.
fn end_of(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(at, c)| {
        let end = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        end.then_some(at)
    })
}

fn is_name(name: &str) -> bool {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    !name.is_empty() && name.chars().all(part) && !name.starts_with(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = "# HELP a_total x\n# TYPE a_total counter\na_total{b=\"c\\\"}\"} 1\na_total{b=\"d\"} 2\n";
    const OPEN: &str = "# HELP t_seconds x\n# TYPE t_seconds gauge\n# UNIT t_seconds seconds\nt_seconds 1.5\n# EOF\n";

    #[test]
    fn well_formed() {
        let samples = parse(PLAIN, false).unwrap();
        assert_eq!((samples.len(), samples["a_total{b=\"d\"}"]), (2, 2.0));
        assert_eq!(parse(OPEN, true).unwrap()["t_seconds"], 1.5);
    }

    #[test]
    fn malformed() {
        for (text, open, why) in [
            (OPEN.replace("# EOF\n", ""), true, "# EOF"),
            (PLAIN.replace("\"d\"", "\"c\\\"}\""), false, "twice"),
            (PLAIN.replace("# TYPE a_total counter\n", ""), false, "of no metric"),
            (PLAIN.replace("a_total{b=\"d\"}", "b_total"), false, "not of a_total"),
            (PLAIN.replace("a_total", "a"), false, "doesn't end with _total"),
            (PLAIN.replace("2\n", "two\n"), false, "no number"),
            (PLAIN.replace("{b=\"d\"}", "{b=\"d}"), false, "without an end"),
            (PLAIN.to_owned() + PLAIN, false, "the metric is there twice"),
            (OPEN.replace("seconds seconds", "seconds bytes"), true, "its unit"),
            (PLAIN.replace("d\"}", "d\",b=\"e\"}"), false, "b is there twice"),
        ] {
            let error = format!("{:#}", parse(&text, open).expect_err(why));
            assert!(error.contains(why), "{error}\nin\n{text}");
        }
    }
}
