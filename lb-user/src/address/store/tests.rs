//! What is written is read, whenever it ends; what can't be understood is refused.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::*;
use crate::source::manifests::tests::Folder;

fn stored(count: u32) -> Stored {
    let name = |i: u32| ServiceName { namespace: "default".into(), name: format!("s{i}") };
    let lease = |i: u32| Lease { addresses: vec![std::net::Ipv4Addr::from(i).into()], ..Lease::default() };
    Stored {
        leases: (0..count).map(|i| (name(i), lease(i))).collect(),
        waiting: Waiting::from([(name(count), vec!["gets no IPv4 address".into()])]),
    }
}

#[test]
fn wrong_files() {
    let folder = Folder::new("addresses");
    let path = folder.0.join("deep/addresses.json");
    assert_eq!(read(&path).unwrap(), None);
    write(&path, &stored(3)).unwrap();
    assert_eq!(read(&path).unwrap(), Some(stored(3)));
    let text = fs::read_to_string(&path).unwrap();
    let damaged = "damaged; expected it as the agent wrote it";
    for (text, want) in [
        ("", "EOF while parsing a value at line 1 column 0"),
        (&text[..text.len() / 2], "EOF while parsing"),
        (&text.replace("\"version\": 1", "\"version\": 2"), "is of version 2; expected 1"),
        (&text.replace("0.0.0.1", "0.0.0.x"), "invalid IP address syntax"),
        (&text.replace("default/s1", "s1"), "`s1` is not a service such as default/web"),
        (&text.replace("waiting", "waitin"), "unknown field `waitin`"),
    ] {
        fs::write(&path, text).unwrap();
        let said = format!("{:#}", read(&path).unwrap_err());
        assert!(said.contains(want) && (said.contains(damaged) || said.contains("version 2")), "{said}");
    }
}

/// What a kill leaves beside the file at any point of a write is nobody's loss.
#[test]
fn every_half_of_a_write() {
    let folder = Folder::new("halves");
    let (path, beside) = (folder.0.join("addresses.json"), folder.0.join("addresses.new"));
    write(&path, &stored(2)).unwrap();
    let new = folder.0.join("other.json");
    write(&new, &stored(3)).unwrap();
    let whole = fs::read(&new).unwrap();
    for len in 0..=whole.len() {
        fs::write(&beside, &whole[..len]).unwrap();
        assert_eq!(read(&path).unwrap(), Some(stored(2)), "{len} bytes written");
    }
    fs::rename(&beside, &path).unwrap();
    assert_eq!(read(&path).unwrap(), Some(stored(3)));
    fs::write(&beside, "x".repeat(100_000)).unwrap();
    write(&path, &stored(1)).unwrap();
    assert_eq!(read(&path).unwrap(), Some(stored(1)));
}

/// A process that writes without end, and says what it has written; run by [`a_writer_is_killed`] alone.
#[test]
#[ignore = "a part of another test"]
fn writer() {
    let Some(path) = std::env::var_os("STELLWERK_WRITES") else { return };
    for count in 1.. {
        write(Path::new(&path), &stored(count % 500)).unwrap();
        println!("\nwrote {}", count % 500);
    }
}

#[test]
fn a_writer_is_killed() {
    let folder = Folder::new("killed");
    let path = folder.0.join("addresses.json");
    for round in 0..20 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "address::store::tests::writer", "--nocapture"])
            .env("STELLWERK_WRITES", &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let number = |line: String| line.strip_prefix("wrote ").map(|n| n.parse::<u32>().unwrap());
        let first = lines.by_ref().find_map(number).unwrap();
        std::thread::sleep(Duration::from_micros(700 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let last = lines.filter_map(number).last().unwrap_or(first);
        let found = read(&path).unwrap().unwrap();
        // The one that it said last, or the next one, which it had no time to tell of.
        assert!([stored(last), stored((last + 1) % 500)].contains(&found), "round {round}: {last}");
    }
}
