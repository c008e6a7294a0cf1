//! Net ns as bars, with the limit of each as a mark: one SVG without dependencies.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};

use super::report::{Report, Row};

const LINE: usize = 26;
const LEFT: usize = 250;
const WIDTH: usize = 560;

pub fn write(report: &Report, file: &Path) -> Result<()> {
    std::fs::write(file, draw(report)).with_context(|| format!("writing {}", file.display()))
}

/// The scale is logarithmic: figures go from a few to a thousand ns.
fn x(value: f64, most: f64) -> usize {
    LEFT + ((value.max(1.0).log10() / most.log10()) * WIDTH as f64) as usize
}

fn draw(report: &Report) -> String {
    let rows: Vec<&Row> = report.rows.iter().filter(|row| row.unit == "ns").collect();
    let figures = rows.iter().flat_map(|row| [Some(row.value), row.limit]).flatten();
    let most = figures.fold(10.0, f64::max) * 1.1;
    let height = 50 + rows.len() * LINE;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"20\">net ns a packet (bar), the limit in the same run (line)</text>\n",
        LEFT + WIDTH + 70
    );
    for decade in [1.0, 10.0, 100.0, 1000.0].into_iter().filter(|&d| d <= most) {
        let at = x(decade, most);
        let _ = writeln!(
            svg,
            "<line x1=\"{at}\" y1=\"30\" x2=\"{at}\" y2=\"{}\" stroke=\"#ddd\"/>\
             <text x=\"{at}\" y=\"{}\" fill=\"#888\" text-anchor=\"middle\">{decade}</text>",
            height - 16,
            height - 3
        );
    }
    for (i, row) in rows.iter().enumerate() {
        bar(&mut svg, row, 34 + i * LINE, most);
    }
    svg.push_str("</svg>\n");
    svg
}

fn bar(svg: &mut String, row: &Row, y: usize, most: f64) {
    let end = x(row.value, most);
    let colour = match (row.reach, row.ok()) {
        (None, true) => "#9aa5b1",
        (_, true) => "#2f7d4f",
        _ => "#b5482f",
    };
    let (text, middle) = (y + 14, y + 14);
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{text}\" text-anchor=\"end\">{}</text>\
         <rect x=\"{LEFT}\" y=\"{y}\" width=\"{}\" height=\"18\" fill=\"{colour}\"/>\
         <text x=\"{}\" y=\"{middle}\">{:.0}</text>",
        LEFT - 8,
        row.name.replace('<', "&lt;"),
        end.saturating_sub(LEFT).max(1),
        end + 5,
        row.value
    );
    if let Some(limit) = row.limit {
        let at = x(limit, most);
        let _ = writeln!(
            svg,
            "<line x1=\"{at}\" y1=\"{}\" x2=\"{at}\" y2=\"{}\" stroke=\"black\" stroke-width=\"2\"/>",
            y - 2,
            y + 20
        );
    }
}
