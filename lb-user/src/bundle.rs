//! `stellwerk bundle`: one archive for a report: what is in force, counted and known, as the listings have it.
//!
//! Invariant: nothing secret: neither a kubeconfig nor a Secret, and of the configuration no value behind a key that names
//! one. What can't be read is said in place of it: the rest is worth the same.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, Result};

use crate::agent::running;
use crate::apply::Paths;
use crate::show::{self, Table};

/// Keys whose values are nobody's but the owner's.
const SECRET: [&str; 5] = ["token", "password", "secret", "key", "credential"];

/// What is read of each file at the most.
const MOST: usize = 4 << 20;

/// Writes the archive; the names of what is in it.
pub fn write(paths: &Paths, config: Option<&Path>, file: &Path) -> Result<Vec<String>> {
    let shown = || file.display().to_string();
    let mut archive = tar::Builder::new(File::create(file).with_context(shown)?);
    let mut names = Vec::new();
    for (name, content) in contents(paths, config) {
        let content = content.unwrap_or_else(|error| format!("can't be read: {error:#}\n").into_bytes());
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_secs()));
        archive.append_data(&mut header, format!("stellwerk/{name}"), &content[..]).with_context(shown)?;
        names.push(name);
    }
    archive.into_inner().and_then(|mut file| file.flush().and_then(|()| file.sync_all())).with_context(shown)?;
    Ok(names)
}

fn contents(paths: &Paths, config: Option<&Path>) -> Vec<(String, Result<Vec<u8>>)> {
    type Listing = fn(&Paths) -> Result<Table>;
    let listings: [(&str, Listing); 11] = [
        ("status", show::status),
        ("services", show::services),
        ("addresses", show::addresses),
        ("announce", show::announce),
        ("backends", show::backends),
        ("flows", |paths| show::flows(paths, false)),
        ("nat-status", show::nat_status),
        ("nat-top", |paths| show::nat_top(paths, 100)),
        ("routes", |paths| show::routes(paths, None, None)),
        ("ipam", show::ipam),
        ("drops", show::drops),
    ];
    let mut all = vec![("version.txt".to_owned(), Ok(version().into_bytes()))];
    for (name, listing) in listings {
        let json = listing(paths).and_then(|table| {
            let mut text = Vec::new();
            table.write(true, &mut text)?;
            Ok(text)
        });
        all.push((format!("{name}.json"), json));
    }
    for path in [paths.state(), paths.source(), paths.health(), paths.announce(), paths.ipam(), paths.routes()] {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.exists() {
            all.push((format!("files/{name}"), read(&path)));
        }
    }
    let (about, _) = running(paths);
    if let Some(path) = config.or(Some(&about.config)).filter(|path| !path.as_os_str().is_empty()) {
        all.push(("configuration.yaml".into(), read(path).map(|text| without_secrets(&text))));
    }
    all
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut text = std::fs::read(path).with_context(|| path.display().to_string())?;
    text.truncate(MOST);
    Ok(text)
}

/// The same lines, each up to the first value of a secret key.
fn without_secrets(text: &[u8]) -> Vec<u8> {
    let line = |line: &str| {
        let lower = line.to_ascii_lowercase();
        let value = |word: &str| lower.find(word).and_then(|at| Some(at + lower[at..].find(':')?));
        match SECRET.iter().filter_map(|word| value(word)).min() {
            Some(at) => format!("{}: (left out)\n", &line[..at]),
            None => format!("{line}\n"),
        }
    };
    String::from_utf8_lossy(text).lines().map(line).collect::<String>().into_bytes()
}

/// Of the program, the kernel and the system.
fn version() -> String {
    let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let name = file("/etc/os-release").lines().find_map(|line| Some(line.strip_prefix("PRETTY_NAME=")?.to_owned()));
    format!(
        "stellwerk {}\nkernel {}\nsystem {}\n",
        env!("CARGO_PKG_VERSION"),
        file("/proc/sys/kernel/osrelease").trim(),
        name.unwrap_or_else(|| "?".into()).trim_matches('"')
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn secrets_are_left_out() {
        let text = "node: a\nweb:\n  tokenFile: /etc/t\n  listen: 127.0.0.1:9090\n  tls: { key: /k }\n";
        let said = String::from_utf8(super::without_secrets(text.as_bytes())).unwrap();
        assert_eq!(
            said,
            "node: a\nweb:\n  tokenFile: (left out)\n  listen: 127.0.0.1:9090\n  tls: { key: (left out)\n"
        );
    }

    /// Where nothing is loaded each part says so, and the archive is whole.
    #[test]
    fn what_is_not_there_is_said() {
        let dir = std::env::temp_dir().join(format!("stellwerk-bundle-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("b.tar");
        let names = super::write(&crate::apply::Paths::new(dir.join("pins")), None, &file).unwrap();
        assert_eq!(names.len(), 12);
        let mut archive = tar::Archive::new(std::fs::File::open(&file).unwrap());
        let mut texts = Vec::new();
        for entry in archive.entries().unwrap() {
            texts.push(std::io::read_to_string(entry.unwrap()).unwrap());
        }
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(texts[0].starts_with("stellwerk 0."), "{}", texts[0]);
        assert!(texts[1].starts_with("can't be read: nothing is loaded at "), "{}", texts[1]);
    }
}
