//! Lines of the agent and the data plane, to standard error.
//!
//! Invariant: whoever reads them by machine, by JSON or by journald, gets the level of each; `RUST_LOG` says which lines
//! there are. Not here: what is worth a line.

use std::fmt;
use std::io::{IsTerminal, stderr};
use std::os::unix::fs::MetadataExt;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The form of lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// For people, and for journald where it reads
    #[default]
    Text,
    /// One object a line
    Json,
}

/// Begins.
pub fn start(form: Form) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,aya=warn,aya_obj=warn"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr).with_target(false);
    match form {
        Form::Json => builder.json().flatten_event(true).init(),
        Form::Text if journald_reads() => builder.event_format(Journal).init(),
        Form::Text => builder.with_ansi(stderr().is_terminal()).init(),
    }
}

/// Whether standard error is the stream that systemd connected with its journal.
fn journald_reads() -> bool {
    let named = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    // Of a thing that isn't a file the kernel knows device and number all the same.
    std::fs::metadata("/proc/self/fd/2").is_ok_and(|stderr| named == format!("{}:{}", stderr.dev(), stderr.ino()))
}

/// Lines with the level as sd-daemon(3) has it; journald knows the time.
struct Journal;

fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

impl<S, N> FormatEvent<S, N> for Journal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut text = String::new();
        let plain = Format::default().without_time().with_level(false).with_target(false).with_ansi(false);
        plain.format_event(context, Writer::new(&mut text), event)?;
        let priority = priority(*event.metadata().level());
        // Of several lines each is an entry of its own.
        text.lines().try_for_each(|line| writeln!(out, "<{priority}>{line}"))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Lines {
        type Writer = Lines;

        fn make_writer(&self) -> Lines {
            self.clone()
        }
    }

    fn say() {
        tracing::info!("ready: revision {}", 3);
        tracing::warn!(port = 7, "odd");
        tracing::error!("refused:\nc.yaml:1:2: a: wrong\nc.yaml:2:2: b: wrong");
    }

    fn text(lines: &Lines) -> String {
        String::from_utf8(lines.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn each_line_of_the_journal_has_its_level() {
        let lines = Lines::default();
        let subscriber = tracing_subscriber::fmt().with_writer(lines.clone()).event_format(Journal).finish();
        tracing::subscriber::with_default(subscriber, say);
        assert_eq!(
            text(&lines),
            "<6>ready: revision 3\n<4>odd port=7\n<3>refused:\n<3>c.yaml:1:2: a: wrong\n<3>c.yaml:2:2: b: wrong\n"
        );
    }

    #[test]
    fn each_line_is_an_object() {
        let lines = Lines::default();
        let subscriber = tracing_subscriber::fmt().with_writer(lines.clone()).json().flatten_event(true).finish();
        tracing::subscriber::with_default(subscriber, say);
        let all: Vec<serde_json::Value> = text(&lines).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(all.len(), 3);
        assert_eq!((&all[1]["level"], &all[1]["message"], &all[1]["port"]), (&"WARN".into(), &"odd".into(), &7.into()));
        assert!(all[2]["message"].as_str().unwrap().contains("b: wrong"), "{all:?}");
    }
}
