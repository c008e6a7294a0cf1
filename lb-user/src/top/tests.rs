//! The screen, as it would be on a terminal of some size, and what keys do to it.

use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::model::{Line, Model, Snapshot};
use super::{draw, pressed};

fn line(key: &str, second: &str, counts: &[u64], odd: bool) -> Line {
    Line { key: key.into(), words: [key.into(), second.into()], counts: counts.to_vec(), odd }
}

fn snapshot(at: Instant, n: u64) -> Snapshot {
    let service = |name: &str, times: u64, odd| line(name, "2", &[n * times, n * times * 10, n * times * 12_500], odd);
    Snapshot {
        at,
        about: "edge-1 · agent runs · revision 7 · 3 connections".into(),
        lines: [
            vec![
                service("default/a:http", 1, false),
                service("default/b:http", 5, false),
                line("default/c", "0", &[0, 0, 0], true),
            ],
            vec![line("9", "172.27.1.11:8080 active", &[n, n, n], false)],
            vec![line("192.168.20.50", "", &[2], false), line("fd00:20::32", "", &[31], false)],
            vec![line("no_backend", "the service has no backend", &[n * 3, n * 3], true)],
            vec![line("Port2", "up, uplink", &[n * 125_000, n, 0], false)],
        ],
    }
}

/// Two seconds apart.
fn model() -> Model {
    let (mut model, at) = (Model::default(), Instant::now());
    model.take(Ok(snapshot(at, 100)));
    model.take(Ok(snapshot(at + Duration::from_secs(2), 300)));
    model
}

fn screen(model: &Model) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(76, 8)).unwrap();
    terminal.draw(|frame| draw::all(frame, model)).unwrap();
    let buffer = terminal.backend().buffer();
    let row = |y| (0..buffer.area.width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
    (0..buffer.area.height).map(row).collect()
}

fn press(model: &mut Model, keys: &str) {
    for key in keys.chars() {
        let code = match key {
            '→' => KeyCode::Right,
            '←' => KeyCode::Left,
            '↓' => KeyCode::Down,
            '⏎' => KeyCode::Enter,
            '⎋' => KeyCode::Esc,
            key => KeyCode::Char(key),
        };
        assert!(!pressed(model, KeyEvent::new(code, KeyModifiers::NONE)), "{key} is not the end");
    }
}

#[test]
fn services_with_their_rates() {
    let have = screen(&model());
    let words: Vec<String> = have.iter().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(
        words,
        [
            "stellwerk edge-1 · agent runs · revision 7 · 3 connections",
            "1 Services 2 Backends 3 Talkers 4 Drops 5 Ports",
            "SERVICE BACKENDS NEW/S▼ PACKETS/S BIT/S",
            "default/b:http 2 500 5.00k 50.0M",
            "default/a:http 2 100 1.00k 10.0M",
            "! default/c 0 0 0 0",
            "",
            "←→ or 1-5 view ↑↓ scroll s sort / search q end",
        ]
    );
}

#[test]
fn keys() {
    let mut model = model();
    // By packets, by bits, by name.
    press(&mut model, "sss");
    assert!(screen(&model)[3].contains("default/a:http"), "{:#?}", screen(&model));
    press(&mut model, "→→");
    assert!(screen(&model)[3].trim_start().starts_with("fd00:20::32"), "{:#?}", screen(&model));
    press(&mut model, "↓");
    assert!(screen(&model)[3].trim_start().starts_with("192.168.20.50"));
    press(&mut model, "↓↓↓↓4");
    assert!(screen(&model)[3].starts_with("! no_backend"), "{:#?}", screen(&model));
    press(&mut model, "1/B:");
    assert!(screen(&model)[7].starts_with("search: B:"));
    press(&mut model, "⏎");
    let have = screen(&model);
    assert!(
        have[3].contains("default/b:http") && have[4].is_empty() && have[7].starts_with("1 with `B:`"),
        "{have:#?}"
    );
    press(&mut model, "/⎋");
    assert!(screen(&model)[4].contains("http"));
    press(&mut model, "←");
    assert!(screen(&model)[3].contains("Port2"));
    assert!(pressed(&mut model, KeyEvent::new(KeyCode::Char('q'), KeyModifiers::NONE)));
    assert!(pressed(&mut model, KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)));
}

#[test]
fn what_cannot_be_read_is_said_beside_what_was() {
    let mut model = model();
    model.take(Err("nothing is loaded".into()));
    let have = screen(&model);
    assert!(have[3].contains("default/b:http") && have[7] == "! nothing is loaded", "{have:#?}");
    let first = Model::default();
    assert!(screen(&first)[3].is_empty());
    let mut one = Model::default();
    one.take(Ok(snapshot(Instant::now(), 5)));
    assert!(screen(&one)[3].ends_with('-'), "no rate by one reading alone: {:#?}", screen(&one));
}

#[test]
fn numbers_are_short() {
    for (number, want) in
        [(0.0, "0"), (7.0, "7"), (0.5, "0.50"), (999.0, "999"), (999.6, "1.00k"), (12_345.0, "12.3k"), (4.2e9, "4.20G")]
    {
        assert_eq!(draw::short(Some(number)), want);
    }
}
