//! Replays the fuzzer's corpus on stable Rust, and makes its seeds from the packet cases
//! (`BLESS=1`): one file a case, its packets in their order.

use std::fs;
use std::path::{Path, PathBuf};

use lb_common::verdict::Hook;
use stellwerk_tests::case::{Case, What};
use stellwerk_tests::{chaos, packet, runner};

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/path")
}

#[test]
fn the_corpus_holds() {
    let folder = corpus();
    if !folder.parent().is_some_and(Path::exists) {
        println!("left out: the source tree is not here");
        return;
    }
    if std::env::var_os("BLESS").is_some() {
        fs::create_dir_all(&folder).unwrap();
        for case in runner::cases() {
            let case = case.unwrap();
            fs::write(folder.join(case.name.replace(['/', ' ', '.'], "-")), seed(&case)).unwrap();
        }
    }
    let mut files: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() > 80, "the corpus has {} files", files.len());
    for file in files {
        println!("{}", file.display());
        chaos::fuzz(&fs::read(&file).unwrap());
    }
}

fn seed(case: &Case) -> Vec<u8> {
    let mut packets = Vec::new();
    let mut pause = 0;
    for step in &case.steps {
        match &step.what {
            What::Advance(seconds) => pause = (*seconds).min(255) as u8,
            What::Packet(arriving) => {
                let hook = [Hook::Xdp, Hook::Ingress, Hook::Egress].iter().position(|h| *h == arriving.hook).unwrap();
                let place = hook as u8 + 3 * (arriving.ifindex - 102) as u8;
                packets.push((place, pause, packet::build(&arriving.packet, &arriving.names).unwrap()));
                pause = 0;
            }
            _ => {}
        }
    }
    let device = if case.name.starts_with("nat/") { chaos::TRANSLATES } else { 0 };
    chaos::seed(device, packets.iter().map(|(place, pause, bytes)| (*place, *pause, &bytes[..])))
}
