//! What is told at one moment: values by metric and labels, and their text.
//!
//! Invariant: no two samples have the same metric and labels; counts of the same are added up, so that rows that differ
//! in nothing that is told never make a scrape invalid.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::families::{self, Family, Kind};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Value {
    Count(u64),
    Level(f64),
}

/// Samples of all metrics.
#[derive(Debug, Default)]
pub struct Samples {
    /// By the metric's name.
    all: BTreeMap<String, BTreeMap<Vec<String>, Value>>,
    histograms: BTreeMap<String, Histogram>,
}

impl Samples {
    pub fn count<const N: usize>(&mut self, family: &'static Family, labels: [&str; N], count: Option<u64>) {
        debug_assert!(family.kind == Kind::Counter && family.labels.len() == N, "{family:?}");
        let Some(count) = count else { return };
        let series = self.all.entry(family.name()).or_default();
        let value = series.entry(labels.map(str::to_owned).to_vec()).or_insert(Value::Count(0));
        if let Value::Count(sum) = value {
            *sum += count;
        }
    }

    pub fn level<const N: usize>(&mut self, family: &'static Family, labels: [&str; N], level: f64) {
        debug_assert!(family.kind == Kind::Gauge && family.labels.len() == N, "{family:?}");
        let series = self.all.entry(family.name()).or_default();
        let value = series.entry(labels.map(str::to_owned).to_vec()).or_insert(Value::Level(0.0));
        if let Value::Level(sum) = value {
            *sum += level;
        }
    }

    /// As [`Samples::level`], of what may be unknown.
    pub fn number<const N: usize>(&mut self, family: &'static Family, labels: [&str; N], level: Option<u64>) {
        if let Some(level) = level {
            self.level(family, labels, level as f64);
        }
    }

    pub fn histogram(&mut self, family: &'static Family, histogram: &Histogram) {
        debug_assert!(family.kind == Kind::Histogram && family.labels.is_empty(), "{family:?}");
        self.histograms.insert(family.name(), histogram.clone());
    }

    /// The text of a scrape, in OpenMetrics or in Prometheus' own form.
    pub fn encode(self, open_metrics: bool) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut out = String::new();
        match open_metrics {
            true => text::encode(&mut out, &registry)?,
            false => prometheus_text::encode(&mut out, &registry)?,
        }
        Ok(out)
    }
}

impl Collector for Samples {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for family in families::ALL {
            let unit = family.unit.map(|unit| Unit::Other(unit.into()));
            let kind = match family.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
                Kind::Histogram => MetricType::Histogram,
            };
            let series = self.all.get(&family.name());
            let histogram = self.histograms.get(&family.name());
            if series.is_none() && histogram.is_none() {
                continue;
            }
            let mut metric = encoder.encode_descriptor(family.base, family.help, unit.as_ref(), kind)?;
            for (labels, value) in series.into_iter().flatten() {
                let labels: Vec<(&str, &str)> =
                    family.labels.iter().copied().zip(labels.iter().map(String::as_str)).collect();
                let one = metric.encode_family(&labels)?;
                match value {
                    Value::Count(count) => ConstCounter::new(*count).encode(one)?,
                    Value::Level(level) => ConstGauge::new(*level).encode(one)?,
                }
            }
            if let Some(histogram) = histogram {
                histogram.encode(metric)?;
            }
        }
        Ok(())
    }
}
