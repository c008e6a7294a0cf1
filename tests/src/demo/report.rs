//! What came of it: one line a step, and the machine-readable form.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

use crate::load::Summary;

/// One step's outcome.
#[derive(Clone, Debug)]
pub struct Step {
    pub name: &'static str,
    pub summary: Summary,
    pub ok: bool,
    /// What was seen if all is well, else what is not.
    pub why: String,
}

/// All steps that were taken.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub steps: Vec<Step>,
}

impl Report {
    pub fn ok(&self) -> bool {
        !self.steps.is_empty() && self.steps.iter().all(|step| step.ok)
    }

    /// Writes the machine-readable form.
    pub fn write(&self, path: &Path) -> Result<()> {
        let steps: Vec<_> = self.steps.iter().map(Step::json).collect();
        let text = serde_json::to_string_pretty(&json!({ "ok": self.ok(), "steps": steps }))?;
        std::fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))
    }
}

impl Step {
    /// A step that could not be taken.
    pub fn broken(name: &'static str, error: &anyhow::Error) -> Step {
        Step { name, summary: Summary::default(), ok: false, why: format!("{error:#}") }
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "name": self.name,
            "requests": self.summary.requests,
            "failed": self.summary.failed,
            "p50_us": self.summary.p50_us,
            "p99_us": self.summary.p99_us,
            "ok": self.ok,
            "why": self.why,
        })
    }

    /// For people.
    pub fn line(&self) -> String {
        let mark = if self.ok { "ok  " } else { "FAIL" };
        let Summary { requests, failed, p50_us, p99_us, .. } = self.summary;
        format!(
            "{mark} {:<14}{requests:>6} requests, {failed} failed, p50 {p50_us} µs, p99 {p99_us} µs\n       {}",
            self.name, self.why
        )
    }
}
