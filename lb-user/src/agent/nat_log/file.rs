//! A file that lines are appended to, and that others may take away at any time.
//!
//! Invariant: a line is whole or counted as lost; what can't be written is thrown away, so that nothing
//! waits for a disk, and somebody is told at the most once a minute.

use std::fmt::{self, Write as _};
use std::fs::{File, Metadata, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tracing::warn;

use crate::show::protocol;

/// How often failures are said.
const SAY: Duration = Duration::from_secs(60);

/// A mapping begins or ends.
pub struct Line {
    pub time: SystemTime,
    pub event: &'static str,
    pub protocol: u8,
    pub inside: SocketAddr,
    pub outside: SocketAddr,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Line { time, event, protocol: number, inside, outside } = self;
        let (time, protocol) = (utc(*time), protocol(*number).to_lowercase());
        writeln!(
            f,
            r#"{{"time":"{time}","event":"{event}","protocol":"{protocol}","inside":"{inside}","outside":"{outside}"}}"#
        )
    }
}

/// RFC 3339, in UTC, with microseconds.
pub fn utc(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, micros) = (since.as_secs(), since.subsec_micros());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March have their leap day at the end; eras of 400 years are all alike.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + next;
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// Where the lines go.
#[derive(Default)]
pub struct LogFile {
    path: Option<PathBuf>,
    /// Open, if it could be opened.
    file: Option<File>,
    /// Lines not yet written, and how many.
    batch: String,
    lines: usize,
    /// The file ends in the middle of a line.
    torn: bool,
    /// Lines lost since it was last said, and why the last one was.
    lost: u64,
    why: String,
    said: Option<Instant>,
}

impl LogFile {
    /// Another file, or none.
    pub fn set(&mut self, path: Option<PathBuf>) {
        self.flush();
        self.say();
        self.path = path;
        self.file = None;
        self.said = None;
        self.open();
        // Whoever has just configured it shall know.
        if self.file.is_none()
            && let Some(path) = &self.path
        {
            warn!("mappings can't be logged to {}: {}; trying again", path.display(), self.why);
        }
    }

    /// Lines that wait.
    pub fn lines(&self) -> usize {
        self.lines
    }

    pub fn line(&mut self, line: &Line) {
        if self.path.is_some() {
            let _ = write!(self.batch, "{line}");
            self.lines += 1;
        }
    }

    /// Counts lines that nobody will read.
    pub fn lose(&mut self, lines: u64, why: &str) {
        if lines != 0 && self.path.is_some() {
            self.lost += lines;
            why.clone_into(&mut self.why);
        }
    }

    /// Writes what waits.
    pub fn flush(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        self.lines = 0;
        let mut written = 0;
        if let Some(file) = self.file.as_mut().filter(|_| !batch.is_empty()) {
            let result = append(file, &batch, &mut self.torn, &mut written);
            self.why = result.err().map_or(std::mem::take(&mut self.why), |error| error.to_string());
        }
        self.lost += batch[written..].matches('\n').count() as u64;
    }

    /// To be called about once a second: follows the file when it was renamed or removed.
    pub fn look(&mut self) {
        self.flush();
        let there = self.path.as_deref().and_then(|path| path.metadata().ok());
        let here = self.file.as_ref().and_then(|file| file.metadata().ok());
        if there.as_ref().map(identity) != here.as_ref().map(identity) || here.is_none() {
            self.open();
        }
        if self.said.is_none_or(|said| said.elapsed() >= SAY) {
            self.say();
        }
    }

    /// Says how many lines were lost.
    pub fn say(&mut self) {
        let lost = std::mem::take(&mut self.lost);
        if let (Some(path), 1..) = (&self.path, lost) {
            warn!("{lost} lines about mappings are not in {}: {}", path.display(), self.why);
            self.said = Some(Instant::now());
        }
    }

    fn open(&mut self) {
        let Some(path) = &self.path else { return };
        match open(path) {
            Ok(file) => {
                self.file = Some(file);
                self.torn = false;
            }
            Err(error) => {
                // What was renamed goes on to be written until there is another.
                self.why = error.to_string();
            }
        }
    }
}

/// Appends whole lines, as far as it goes; a line that was torn is ended first.
fn append(file: &mut File, lines: &str, torn: &mut bool, written: &mut usize) -> std::io::Result<()> {
    if *torn {
        file.write_all(b"\n")?;
        *torn = false;
    }
    while *written < lines.len() {
        match file.write(&lines.as_bytes()[*written..]) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => *written += n,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        *torn = lines.as_bytes()[*written - 1] != b'\n';
    }
    Ok(())
}

/// std opens all files so that no other program inherits them.
fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A folder that goes with the test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("stellwerk-nat-log-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir(&dir).unwrap();
            Folder(dir)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn line(port: u16) -> Line {
        Line {
            time: UNIX_EPOCH + Duration::from_micros(1_789_012_345_678_901),
            event: "begin",
            protocol: 6,
            inside: SocketAddr::new([10, 20, 0, 7].into(), port),
            outside: SocketAddr::new([203, 0, 113, 2].into(), port),
        }
    }

    fn ports(path: &Path) -> Vec<u16> {
        let text = fs::read_to_string(path).unwrap_or_default();
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect(line));
        lines.map(|line| line["inside"].as_str().unwrap().rsplit(':').next().unwrap().parse().unwrap()).collect()
    }

    #[test]
    fn times() {
        for (seconds, want) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_399, "2000-02-28T23:59:59.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (951_868_800, "2000-03-01T00:00:00.000000Z"),
            (1_704_067_199, "2023-12-31T23:59:59.000000Z"),
            (1_709_164_800, "2024-02-29T00:00:00.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        ] {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)), want);
        }
    }

    #[test]
    fn a_line() {
        assert_eq!(
            line(5000).to_string(),
            "{\"time\":\"2026-09-10T03:52:25.678901Z\",\"event\":\"begin\",\"protocol\":\"tcp\",\
             \"inside\":\"10.20.0.7:5000\",\"outside\":\"203.0.113.2:5000\"}\n"
        );
    }

    #[test]
    fn a_file_that_is_rotated_or_removed_is_made_anew() {
        let dir = Folder::new("rotate");
        let (path, old) = (dir.0.join("nat.log"), dir.0.join("nat.log.1"));
        fs::write(&path, line(1).to_string()).unwrap();
        let mut log = LogFile::default();
        log.set(Some(path.clone()));
        log.line(&line(2));
        log.flush();
        fs::rename(&path, &old).unwrap();
        log.line(&line(3));
        log.look();
        log.line(&line(4));
        log.flush();
        assert_eq!((ports(&old), ports(&path)), (vec![1, 2, 3], vec![4]));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o137, 0);
        fs::remove_file(&path).unwrap();
        log.look();
        log.line(&line(5));
        log.set(None);
        log.line(&line(6));
        log.flush();
        assert_eq!((ports(&path), log.lost), (vec![5], 0));
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_the_file_is_tried_again() {
        let dir = Folder::new("fails");
        let path = dir.0.join("sub/nat.log");
        let mut log = LogFile::default();
        log.set(Some(path.clone()));
        log.line(&line(1));
        log.line(&line(2));
        log.flush();
        assert_eq!(log.lost, 2);
        assert!(log.why.contains("No such file"), "{}", log.why);
        fs::create_dir(dir.0.join("sub")).unwrap();
        log.look();
        assert_eq!(log.lost, 0);
        log.line(&line(3));
        log.flush();
        assert_eq!((ports(&path), log.lost), (vec![3], 0));
        // What was said is not said again at once.
        log.set(Some("/dev/full".into()));
        for _ in 0..2 {
            log.line(&line(4));
            log.look();
        }
        assert_eq!(log.lost, 1);
        assert!(log.why.contains("No space left"), "{}", log.why);
    }

    #[test]
    fn a_torn_line_does_not_take_the_next_one_with_it() {
        let dir = Folder::new("torn");
        let path = dir.0.join("nat.log");
        let mut log = LogFile::default();
        log.set(Some(path.clone()));
        fs::write(&path, "{\"time\":\"20").unwrap();
        log.torn = true;
        log.line(&line(1));
        log.flush();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("{{\"time\":\"20\n{}", line(1)));
        assert!(!log.torn);
    }
}
