//! The last hour, in memory: a sample every ten seconds.
//!
//! Invariant: of a fixed size, whatever happens; counts are as they stand, so that who reads makes rates of them.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::cache::Cache;
use super::listings::Kind;

pub const EVERY: Duration = Duration::from_secs(10);
/// An hour.
const SAMPLES: usize = 360;
/// Interfaces that are followed at the most.
const INTERFACES: usize = 16;

#[derive(Debug, Default)]
pub struct History {
    ring: Mutex<Ring>,
}

#[derive(Debug, Default)]
struct Ring {
    names: Vec<String>,
    samples: VecDeque<Sample>,
}

#[derive(Debug, Clone)]
struct Sample {
    /// Seconds since 1970.
    at: u64,
    /// By the names' order.
    values: Vec<Option<u64>>,
}

/// As it is told.
#[derive(Debug, Serialize)]
pub struct Told {
    pub interval_s: u64,
    pub at: Vec<u64>,
    pub series: Vec<Series>,
}

#[derive(Debug, Serialize)]
pub struct Series {
    pub name: String,
    pub values: Vec<Option<u64>>,
}

impl History {
    fn ring(&self) -> std::sync::MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn told(&self) -> Told {
        let ring = self.ring();
        let series = ring.names.iter().enumerate().map(|(index, name)| Series {
            name: name.clone(),
            values: ring.samples.iter().map(|sample| sample.values.get(index).copied().flatten()).collect(),
        });
        let at = ring.samples.iter().map(|sample| sample.at).collect();
        Told { interval_s: EVERY.as_secs(), at, series: series.collect() }
    }

    fn add(&self, at: u64, values: &[(String, Option<u64>)]) {
        let mut ring = self.ring();
        for (name, _) in values {
            if !ring.names.contains(name) && ring.names.len() < FIXED.len() + 2 * INTERFACES {
                ring.names.push(name.clone());
            }
        }
        let find = |name: &String| values.iter().find(|(other, _)| other == name).and_then(|(_, value)| *value);
        let values = ring.names.iter().map(find).collect();
        while ring.samples.len() >= SAMPLES {
            ring.samples.pop_front();
        }
        ring.samples.push_back(Sample { at, values });
    }

    /// Reads what stands now.
    pub async fn sample(&self, cache: &Cache) {
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let values = now(cache).await;
        self.add(at, &values);
    }
}

/// Series that are always there; those of interfaces follow.
pub const FIXED: [&str; 7] =
    ["connections", "service_packets", "service_bytes", "dropped", "forwarded", "flows", "nat_ports"];

async fn now(cache: &Cache) -> Vec<(String, Option<u64>)> {
    let mut all: Vec<(String, Option<u64>)> = FIXED.iter().map(|name| ((*name).to_owned(), None)).collect();
    let mut add = |name: &str, count: Option<u64>| {
        if let (Some((_, value)), Some(count)) = (all.iter_mut().find(|(other, _)| other == name), count) {
            *value = Some(value.unwrap_or(0) + count);
        }
    };
    if let Ok(services) = cache.get(Kind::Services).await {
        services.for_each(|row| {
            add("connections", row.number("connections"));
            add("service_packets", row.number("packets"));
            add("service_packets", row.number("reply_packets"));
            add("service_bytes", row.number("bytes"));
            add("service_bytes", row.number("reply_bytes"));
        });
    }
    if let Ok(drops) = cache.get(Kind::Drops).await {
        drops.for_each(|row| {
            if row.text("kind") == "drop" {
                add("dropped", row.number("count"));
            }
        });
    }
    if let Ok(status) = cache.get(Kind::Status).await {
        status.for_each(|row| match (row.text("what").as_str(), row.text("name").as_str()) {
            ("forwarding", _) => add("forwarded", row.number("used")),
            ("table", "FLOWS4" | "FLOWS6") => add("flows", row.number("used")),
            ("nat", _) => add("nat_ports", row.number("used")),
            _ => {}
        });
    }
    if let Ok(ports) = cache.get(Kind::Ports).await {
        ports.for_each(|row| {
            if row.text("role") != "inside" {
                all.push((format!("rx_bytes {}", row.text("name")), row.number("rx_bytes")));
                all.push((format!("tx_bytes {}", row.text("name")), row.number("tx_bytes")));
            }
        });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_and_no_more() {
        let history = History::default();
        let sample = |n: u64, more: bool| {
            let mut values = vec![("a".to_owned(), Some(n))];
            values.extend(more.then(|| ("b".to_owned(), Some(n * 2))));
            values
        };
        for n in 0..SAMPLES as u64 + 5 {
            history.add(n * 10, &sample(n, n % 2 == 1));
        }
        let told = history.told();
        assert_eq!((told.at.len(), told.at[0], told.interval_s), (SAMPLES, 50, 10));
        let [a, b] = &told.series[..] else { panic!("{:?}", told.series) };
        assert_eq!((a.name.as_str(), b.name.as_str()), ("a", "b"));
        assert_eq!((a.values[0], a.values[SAMPLES - 1]), (Some(5), Some(364)));
        assert_eq!((b.values[0], b.values[1]), (Some(10), None));
    }

    #[test]
    fn interfaces_without_end_take_no_more_room() {
        let history = History::default();
        for n in 0..100 {
            history.add(n, &[(format!("rx_bytes eth{n}"), Some(1))]);
        }
        assert_eq!(history.told().series.len(), FIXED.len() + 2 * INTERFACES);
    }
}
