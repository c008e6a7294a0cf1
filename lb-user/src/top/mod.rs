//! `stellwerk top`: what passes now, in a terminal.
//!
//! Invariant: it reads what the listings read ([`crate::show`]), also while no agent runs, and changes nothing. Reading is
//! a thread's own, so that keys are answered however much there is to read.

mod draw;
mod model;
#[cfg(test)]
mod tests;

use std::io::{IsTerminal, stdout};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use self::model::{Model, Snapshot};
use crate::apply::Paths;

/// Keys are answered at least so often.
const TURN: Duration = Duration::from_millis(100);

/// Runs until it is told to end.
pub fn run(paths: &Paths, every: Duration) -> Result<()> {
    ensure!(
        stdout().is_terminal(),
        "this draws on a terminal; `stellwerk services --json` and others are for programs"
    );
    // What can't be read at all is said in the ordinary way.
    let first = Snapshot::read(paths)?;
    let (tell, told) = channel();
    let paths = paths.clone();
    thread::Builder::new().name("reading".into()).spawn(move || {
        loop {
            thread::sleep(every);
            let read = Snapshot::read(&paths).map_err(|error| format!("{error:#}"));
            if tell.send(read).is_err() {
                return;
            }
        }
    })?;
    let mut model = Model::default();
    model.take(Ok(first));
    let mut terminal = ratatui::try_init()?;
    let result = follow(&mut terminal, &mut model, &told);
    ratatui::restore();
    result
}

fn follow(terminal: &mut DefaultTerminal, model: &mut Model, told: &Receiver<Result<Snapshot, String>>) -> Result<()> {
    loop {
        terminal.draw(|frame| draw::all(frame, model))?;
        let end = Instant::now() + TURN;
        while event::poll(end.saturating_duration_since(Instant::now()))? {
            if let Event::Key(key) = event::read()?
                && key.kind != KeyEventKind::Release
                && pressed(model, key)
            {
                return Ok(());
            }
        }
        match told.recv_timeout(Duration::ZERO) {
            Ok(read) => model.take(read),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

/// Whether this is the end.
fn pressed(model: &mut Model, key: KeyEvent) -> bool {
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return key.code == KeyCode::Char('c');
    }
    if let Some(words) = &mut model.typing {
        match key.code {
            KeyCode::Char(c) => words.push(c),
            KeyCode::Backspace => _ = words.pop(),
            KeyCode::Esc => (model.typing, model.search) = (None, String::new()),
            KeyCode::Enter => model.typing = None,
            _ => {}
        }
        if let Some(words) = &model.typing {
            model.search.clone_from(words);
        }
        return false;
    }
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => return true,
        KeyCode::Char('/') => model.typing = Some(model.search.clone()),
        KeyCode::Char('s') => model.sort_by_next(),
        KeyCode::Char(digit @ '1'..='9') => model.open(digit as usize - '1' as usize),
        KeyCode::Tab | KeyCode::Right => model.open_next(1),
        KeyCode::BackTab | KeyCode::Left => model.open_next(-1),
        KeyCode::Down | KeyCode::Char('j') => model.scroll(1),
        KeyCode::Up | KeyCode::Char('k') => model.scroll(-1),
        KeyCode::PageDown => model.scroll(20),
        KeyCode::PageUp => model.scroll(-20),
        KeyCode::Home => model.scroll(isize::MIN),
        _ => {}
    }
    false
}
