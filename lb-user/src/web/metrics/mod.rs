//! Metrics for Prometheus: all that is counted, in its own text form and in OpenMetrics.
//!
//! Invariant: [`families`] is the only list of what there is.

mod collect;
#[cfg(test)]
mod document;
pub mod families;
mod samples;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use hyper::StatusCode;

use self::families as f;
use self::samples::Samples;
use super::Watched;
use super::listings::Kind;
use crate::agent::{Vitals, running};

/// Answers so far, by status.
#[derive(Debug, Default)]
pub struct Requests(Mutex<BTreeMap<u16, u64>>);

impl Requests {
    pub fn count(&self, status: StatusCode) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(status.as_u16()).or_default() += 1;
    }

    fn add_to(&self, samples: &mut Samples) {
        for (code, count) in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            samples.count(&f::REQUESTS, [&code.to_string()], Some(*count));
        }
    }
}

/// The text of a scrape.
pub(super) async fn scrape(watched: &Watched, names: bool, open_metrics: bool) -> Result<String, std::fmt::Error> {
    let mut samples = Samples::default();
    vitals(&mut samples, &watched.vitals);
    let (about, _) = running(&watched.paths);
    samples.count(&f::ROUTES_REPAIRED, [], Some(about.repaired));
    samples.level(&f::SOURCE_REFUSED, [], 0.0);
    // Of both there may be any number, and no metric.
    let without = |kind: &Kind| matches!(kind, Kind::Flows | Kind::NatTop) || (*kind == Kind::Dns && !names);
    for kind in Kind::ALL.into_iter().filter(|kind| !without(kind)) {
        let read = watched.cache.get(kind).await;
        samples.level(&f::LISTING, [kind.listing().name], f64::from(u8::from(read.is_ok())));
        if let Ok(table) = read {
            collect::listing(&mut samples, kind, &table);
        }
    }
    watched.requests.add_to(&mut samples);
    samples.encode(open_metrics)
}

fn vitals(samples: &mut Samples, vitals: &Vitals) {
    samples.level(&f::BUILD, [env!("CARGO_PKG_VERSION")], 1.0);
    let started = vitals.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    samples.level(&f::STARTED, [], started.as_secs_f64());
    let revisions = vitals.revisions();
    samples.level(&f::REVISION, [], revisions.in_force as f64);
    samples.level(&f::LAG, [], revisions.wished.saturating_sub(revisions.in_force) as f64);
    samples.level(&f::LAG_TIME, [], revisions.since.map_or(0.0, |since| since.elapsed().as_secs_f64()));
    samples.histogram(&f::APPLY, &vitals.applied);
    for (family, counter) in [
        (&f::OPERATIONS, &vitals.operations),
        (&f::FAILED, &vitals.failed),
        (&f::REFUSED, &vitals.refused),
        (&f::REPAIRED, &vitals.repaired),
        (&f::OVERRUNS, &vitals.overruns),
    ] {
        samples.count(family, [], Some(counter.load(Ordering::Relaxed)));
    }
    for (kind, counter) in [("too_large", &vitals.overlay_too_large), ("unreachable", &vitals.overlay_unreachable)] {
        samples.count(&f::OVERLAY_ERRORS, [kind], Some(counter.load(Ordering::Relaxed)));
    }
}
