//! The demonstration: the edge device of the design, a real app behind a real address, and what
//! happens to its users when replicas leave, come and die, and when the agent itself is killed.
//!
//! Cut: [`app`] is what runs, [`stage`] drives load and steps, [`steps`] say what is done and what is
//! expected, [`view`] shows it live, [`report`] is the outcome.

/// `println!`, but a reader that went away (`cargo xtask demo | head`) ends no story.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

pub mod app;
pub mod report;
pub mod stage;
pub mod steps;
pub mod view;

use std::path::PathBuf;

use anyhow::Result;

/// How the demonstration is run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The steps once, as fast as they can be judged, without a live view.
    pub once: bool,
    /// Where the report is written.
    pub json: Option<PathBuf>,
}

/// Runs all of it; true if every expectation was met.
pub fn run(options: &Options) -> Result<bool> {
    if let Some(path) = &options.json {
        // What can't be written is told now, and no earlier run's verdict is taken for this one's.
        report::Report::default().write(path)?;
    }
    let live = !options.once && std::io::IsTerminal::is_terminal(&std::io::stdout());
    let mut stage = stage::Stage::open(live, options.once)?;
    let report = steps::all(&mut stage);
    if let Some(path) = &options.json {
        report.write(path)?;
    }
    stage.close(&report, live);
    Ok(report.ok())
}
