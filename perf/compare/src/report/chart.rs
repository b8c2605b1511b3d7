//! A forest plot: one line per comparison, its ratio and interval, better always to the right.

use std::fmt::Write;

use crate::result::{CellResult, Document, Figure, FigureResult};
use crate::statistics::{Better, CLAIM_MIN_RATIO, Verdict};

const WIDTH: f64 = 1000.0;
const LABEL_RIGHT: f64 = 380.0;
const PLOT_LEFT: f64 = 400.0;
const PLOT_RIGHT: f64 = 820.0;
const TEXT_LEFT: f64 = 835.0;
const TOP: f64 = 92.0;
const ROW: f64 = 19.0;
const CELL_GAP: f64 = 11.0;
/// What lies beyond these is drawn as an arrow at the edge; its figures are beside it.
const SCALE_MIN: f64 = 0.4;
const SCALE_MAX: f64 = 2.5;
const TICKS: [f64; 7] = [0.4, 0.5, 0.7, 1.0, 1.4, 2.0, 2.5];

const INK: &str = "#1b1f24";
const FAINT: &str = "#6b7280";
const GRID: &str = "#e2e5ea";
const BETTER: &str = "#0f7b4f";
const WORSE: &str = "#b3261e";
const EVEN: &str = "#6b7280";

pub(super) fn svg(document: &Document) -> String {
    let mut body = String::new();
    let mut y = TOP;
    for cell in &document.cells {
        y = cell_rows(&mut body, cell, y);
    }
    let bottom = y;
    let height = bottom + 60.0;
    let mut svg = String::new();
    put(
        &mut svg,
        format_args!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"system-ui, sans-serif\" font-size=\"12\">"
        ),
    );
    put(
        &mut svg,
        format_args!("<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>"),
    );
    heading(&mut svg, document);
    axis(&mut svg, bottom);
    svg.push_str(&body);
    svg.push_str("</svg>\n");
    svg
}

fn put(svg: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(svg, "{arguments}");
}

fn heading(svg: &mut String, document: &Document) {
    let it = &document.environment;
    let conditions = escape(&format!(
        "{}, {}, {}, profile {}",
        it.cpu, it.kernel, it.network.congestion_control, it.profile
    ));
    put(
        svg,
        format_args!(
            "<text x=\"20\" y=\"28\" font-size=\"17\" font-weight=\"600\" fill=\"{INK}\">bowline against others: how many times better</text>"
        ),
    );
    put(
        svg,
        format_args!(
            "<text x=\"20\" y=\"47\" fill=\"{FAINT}\">Median ratio of pairs with its 95 % interval; queue depth 1: p50 latency (inverted), otherwise IOPS. {conditions}</text>"
        ),
    );
    put(
        svg,
        format_args!(
            "<text x=\"20\" y=\"64\" fill=\"{FAINT}\">Grey band: noise of bowline against itself, at least 3 %; nothing inside it is claimed. Green and red are claims, grey is none.</text>"
        ),
    );
}

fn axis(svg: &mut String, bottom: f64) {
    let top = TOP - 10.0;
    for tick in TICKS {
        let x = place(tick);
        let (color, width) = if (tick - 1.0).abs() < f64::EPSILON {
            (INK, 1.2)
        } else {
            (GRID, 1.0)
        };
        put(
            svg,
            format_args!(
                "<line x1=\"{x:.1}\" y1=\"{top}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\" stroke=\"{color}\" stroke-width=\"{width}\"/>"
            ),
        );
        let y = bottom + 16.0;
        put(
            svg,
            format_args!(
                "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\" fill=\"{FAINT}\">{tick}×</text>"
            ),
        );
    }
    let y = bottom + 36.0;
    put(
        svg,
        format_args!(
            "<text x=\"{PLOT_LEFT}\" y=\"{y:.1}\" fill=\"{FAINT}\">← worse</text><text x=\"{PLOT_RIGHT}\" y=\"{y:.1}\" text-anchor=\"end\" fill=\"{FAINT}\">better →</text>"
        ),
    );
}

/// The rows of one cell; gives where the next begins.
fn cell_rows(svg: &mut String, cell: &CellResult, top: f64) -> f64 {
    let figure = Figure::main(&cell.cell);
    let title = escape(&if cell.client == "bowline-perf" {
        cell.name.clone()
    } else {
        format!("{} ({})", cell.name, cell.client)
    });
    let mut y = top + ROW;
    let label_y = y + 4.0;
    put(
        svg,
        format_args!(
            "<text x=\"20\" y=\"{label_y:.1}\" font-weight=\"600\" fill=\"{INK}\">{title}</text>"
        ),
    );
    if cell.unpublished.is_some() {
        put(
            svg,
            format_args!(
                "<text x=\"{PLOT_LEFT}\" y=\"{label_y:.1}\" fill=\"{FAINT}\">not published: other processes were busy</text>"
            ),
        );
        return y + CELL_GAP;
    }
    let others = cell.comparisons.iter().filter(|one| one.role != "itself");
    for comparison in others {
        if let Some(found) = comparison.figure(figure) {
            row(svg, &comparison.role, found, y);
            y += ROW;
        }
    }
    y - ROW + CELL_GAP + ROW / 2.0
}

fn row(svg: &mut String, role: &str, found: &FigureResult, y: f64) {
    let it = &found.estimate;
    let (ratio, low, high) = match found.figure.better() {
        Better::Higher => (it.ratio, it.low, it.high),
        Better::Lower => (1.0 / it.ratio, 1.0 / it.high, 1.0 / it.low),
    };
    let color = match found.verdict {
        Verdict::Better => BETTER,
        Verdict::Worse => WORSE,
        Verdict::Equal | Verdict::Undecided | Verdict::TooFewPairs | Verdict::Ungated => EVEN,
    };
    let text_y = y + 4.0;
    put(
        svg,
        format_args!(
            "<text x=\"{LABEL_RIGHT}\" y=\"{text_y:.1}\" text-anchor=\"end\" fill=\"{INK}\">{}</text>",
            escape(role)
        ),
    );
    let floor = found.noise.max(CLAIM_MIN_RATIO);
    let (left, right) = (place(1.0 / floor), place(floor));
    put(
        svg,
        format_args!(
            "<rect x=\"{left:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"#d5d9e0\" opacity=\"0.7\"/>",
            y - ROW / 2.0 + 1.0,
            right - left,
            ROW - 2.0
        ),
    );
    interval(svg, [low, ratio, high], y, color);
    put(
        svg,
        format_args!(
            "<text x=\"{TEXT_LEFT}\" y=\"{text_y:.1}\" fill=\"{color}\">{ratio:.2} [{low:.2}, {high:.2}]</text>"
        ),
    );
}

/// The median with its interval. What the axis does not reach is an arrow at its end: filled for
/// the median, open for an end of the interval.
fn interval(svg: &mut String, [low, ratio, high]: [f64; 3], y: f64, color: &str) {
    let (left, right) = (place(low), place(high));
    put(
        svg,
        format_args!(
            "<line x1=\"{left:.1}\" y1=\"{y:.1}\" x2=\"{right:.1}\" y2=\"{y:.1}\" stroke=\"{color}\" stroke-width=\"2.5\"/>"
        ),
    );
    if low < SCALE_MIN {
        arrow(svg, (PLOT_LEFT, -1.0), y, color, "#ffffff");
    }
    if high > SCALE_MAX {
        arrow(svg, (PLOT_RIGHT, 1.0), y, color, "#ffffff");
    }
    if ratio < SCALE_MIN {
        arrow(svg, (PLOT_LEFT, -1.0), y, color, color);
    } else if ratio > SCALE_MAX {
        arrow(svg, (PLOT_RIGHT, 1.0), y, color, color);
    } else {
        let x = place(ratio);
        put(
            svg,
            format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\" fill=\"{color}\"/>"),
        );
    }
}

/// From an end of the axis outwards.
fn arrow(svg: &mut String, (x, direction): (f64, f64), y: f64, color: &str, fill: &str) {
    let tip = x + direction * 9.0;
    let (above, below) = (y - 5.0, y + 5.0);
    put(
        svg,
        format_args!(
            "<path d=\"M{x:.1} {above:.1} L{tip:.1} {y:.1} L{x:.1} {below:.1} Z\" stroke=\"{color}\" fill=\"{fill}\"/>"
        ),
    );
}

/// Where a ratio is on the logarithmic axis.
fn place(ratio: f64) -> f64 {
    let bounded = ratio.clamp(SCALE_MIN, SCALE_MAX);
    let share = (bounded / SCALE_MIN).ln() / (SCALE_MAX / SCALE_MIN).ln();
    PLOT_LEFT + share * (PLOT_RIGHT - PLOT_LEFT)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axis_is_symmetric_about_one() {
        let middle = f64::midpoint(PLOT_LEFT, PLOT_RIGHT);
        assert!((place(1.0) - middle).abs() < 1e-9);
        assert!((place(2.0) - middle - (middle - place(0.5))).abs() < 1e-9);
        assert!((place(1000.0) - PLOT_RIGHT).abs() < 1e-9);
        assert!((place(0.0) - PLOT_LEFT).abs() < 1e-9);
    }

    #[test]
    fn what_the_axis_does_not_reach_is_an_arrow() {
        let drawn = |interval_of: [f64; 3]| {
            let mut svg = String::new();
            interval(&mut svg, interval_of, 10.0, BETTER);
            let marks = ["<circle", "fill=\"#ffffff\"", "<path"];
            marks.map(|mark| svg.matches(mark).count())
        };
        assert_eq!(drawn([0.9, 1.0, 1.1]), [1, 0, 0]);
        assert_eq!(drawn([2.0, 2.4, 2.6]), [1, 1, 1]);
        // Only the median's arrow is filled.
        assert_eq!(drawn([0.1, 0.3, 0.5]), [0, 1, 2]);
        assert_eq!(drawn([2.6, 3.0, 3.5]), [0, 1, 2]);
    }

    #[test]
    fn names_cannot_break_the_markup() {
        assert_eq!(escape("<a&\"b\">"), "&lt;a&amp;&quot;b&quot;&gt;");
    }
}
