//! The screen: a line about the node, the views' names, a table, a line about keys.
//!
//! Invariant: what is odd is said by a sign, not by colour alone.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table};

use super::model::{Model, Shown, View};

const KEYS: &str = "←→ or 1-5 view   ↑↓ scroll   s sort   / search   q end";

pub fn all(frame: &mut Frame<'_>, model: &Model) {
    let [about, views, table, foot] =
        Layout::vertical([Constraint::Length(1), Constraint::Length(1), Constraint::Min(2), Constraint::Length(1)])
            .areas(frame.area());
    let bold = Style::new().add_modifier(Modifier::BOLD);
    frame.render_widget(Line::from(vec![Span::styled("stellwerk ", bold), model.about().into()]), about);
    let name = |(at, view): (usize, &View)| {
        let text = format!(" {} {} ", at + 1, view.title());
        let chosen = *view == model.view();
        Span::styled(text, if chosen { bold.add_modifier(Modifier::REVERSED) } else { Style::new() })
    };
    frame.render_widget(Line::from(View::ALL.iter().enumerate().map(name).collect::<Vec<_>>()), views);
    let rows = model.shown();
    frame.render_widget(rows_of(model, &rows), table);
    let text = match (&model.typing, &model.trouble) {
        (Some(words), _) => format!("search: {words}▏ (Enter keeps it, Esc forgets it)"),
        (None, Some(why)) => format!("! {why}"),
        (None, None) if model.search.is_empty() => KEYS.to_owned(),
        (None, None) => format!("{} with `{}`   {KEYS}", rows.len(), model.search),
    };
    frame.render_widget(Paragraph::new(text), foot);
}

fn rows_of<'a>(model: &Model, rows: &'a [Shown]) -> Table<'a> {
    let view = model.view();
    let numbers = view.numbers();
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let mark = |at: Option<usize>| if model.sorted_by() == at { "▼" } else { "" };
    let [first, second] = view.words();
    let mut head = vec![Cell::from(format!("  {first}{}", mark(None))), Cell::from(second)];
    head.extend(numbers.iter().enumerate().map(|(at, (title, _))| right(format!("{title}{}", mark(Some(at))))));
    let row = |shown: &'a Shown| {
        let sign = if shown.odd { "! " } else { "  " };
        let mut cells = vec![Cell::from(format!("{sign}{}", shown.words[0])), Cell::from(shown.words[1].as_str())];
        cells.extend(shown.numbers.iter().map(|number| right(short(*number))));
        Row::new(cells).style(if shown.odd { bold } else { Style::new() })
    };
    let widths = [Constraint::Fill(3), Constraint::Fill(3)]
        .into_iter()
        .chain(numbers.iter().map(|(title, _)| Constraint::Length(title.len().max(9) as u16 + 1)));
    Table::new(rows.iter().skip(model.offset).map(row), widths).header(Row::new(head).style(bold))
}

fn right(text: String) -> Cell<'static> {
    Cell::from(Line::from(text).right_aligned())
}

/// Three digits and a prefix.
pub fn short(number: Option<f64>) -> String {
    let Some(mut number) = number else { return "-".into() };
    let mut prefix = "";
    for next in ["k", "M", "G", "T"] {
        if number < 999.5 {
            break;
        }
        (number, prefix) = (number / 1000.0, next);
    }
    let digits = match number {
        _ if prefix.is_empty() && number.fract() == 0.0 => 0,
        x if x >= 99.5 => 0,
        x if x >= 9.95 => 1,
        _ => 2,
    };
    format!("{number:.digits$}{prefix}")
}
