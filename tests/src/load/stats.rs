//! What happened to requests, and its summary.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One request.
#[derive(Clone, Debug)]
pub struct Sample {
    /// When it began; with a connection of its own, when that began.
    pub at: Instant,
    pub took: Duration,
    /// It had a connection of its own.
    pub fresh: bool,
    /// It was a connection's first.
    pub first: bool,
    /// Who answered, or why nobody did.
    pub result: Result<Arc<str>, Arc<str>>,
    /// The replica that answered on this connection before, if any.
    pub before: Option<Arc<str>>,
}

/// Figures of some requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub requests: u64,
    pub failed: u64,
    pub p50_us: u64,
    pub p99_us: u64,
    pub max_us: u64,
    /// Answered requests by replica.
    pub replicas: BTreeMap<Arc<str>, Figures>,
    /// Failed requests by reason.
    pub failures: BTreeMap<Arc<str>, u64>,
}

/// One replica's figures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub requests: u64,
    /// Connections whose first request it answered.
    pub connections: u64,
    pub p50_us: u64,
    pub p99_us: u64,
}

impl Summary {
    pub fn of<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> Summary {
        let mut summary = Summary::default();
        let mut all = Vec::new();
        let mut by_replica: BTreeMap<Arc<str>, (Vec<u64>, u64)> = BTreeMap::new();
        for sample in samples {
            summary.requests += 1;
            match &sample.result {
                Ok(replica) => {
                    let took = sample.took.as_micros() as u64;
                    all.push(took);
                    let (times, connections) = by_replica.entry(replica.clone()).or_default();
                    times.push(took);
                    *connections += u64::from(sample.first);
                }
                Err(why) => {
                    summary.failed += 1;
                    *summary.failures.entry(why.clone()).or_default() += 1;
                }
            }
        }
        [summary.p50_us, summary.p99_us, summary.max_us] = percentiles(&mut all, [50, 99, 100]);
        for (name, (mut times, connections)) in by_replica {
            let requests = times.len() as u64;
            let [p50_us, p99_us] = percentiles(&mut times, [50, 99]);
            summary.replicas.insert(name, Figures { requests, connections, p50_us, p99_us });
        }
        summary
    }

    /// A replica's share of new connections, 0 to 1.
    pub fn share(&self, replica: &str) -> f64 {
        let all: u64 = self.replicas.values().map(|f| f.connections).sum();
        let its = self.replicas.get(replica).map_or(0, |f| f.connections);
        if all == 0 { 0.0 } else { its as f64 / all as f64 }
    }
}

/// Values below which so many of a hundred are; zeros for no values.
fn percentiles<const N: usize>(values: &mut [u64], which: [usize; N]) -> [u64; N] {
    values.sort_unstable();
    which.map(|p| match values.len() {
        0 => 0,
        n => values[((n * p).div_ceil(100)).clamp(1, n) - 1],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_members() {
        let mut values: Vec<u64> = (1..=200).rev().collect();
        assert_eq!(percentiles(&mut values, [50, 99, 100]), [100, 198, 200]);
        assert_eq!(percentiles(&mut [7], [50, 99]), [7, 7]);
        assert_eq!(percentiles(&mut [], [50]), [0]);
    }
}
