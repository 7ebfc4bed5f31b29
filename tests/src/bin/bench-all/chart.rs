//! Line charts as hand-written SVG: panels, two side by side, over one axis of categories.

use std::fmt::Write as _;

use crate::report::short;

/// The categories, at equal distances.
#[derive(Debug)]
pub(crate) struct Axis<'a> {
    pub(crate) title: &'a str,
    /// Where there are many, most are empty.
    pub(crate) labels: &'a [String],
}

/// A line: its name, and a figure for each category.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Series<'a>(pub(crate) &'a str, pub(crate) &'a [f64]);

/// A vertical axis, which begins at 0, and its lines.
#[derive(Debug)]
pub(crate) struct Panel<'a> {
    pub(crate) title: &'a str,
    pub(crate) series: &'a [Series<'a>],
}

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 280.0;
/// Panels side by side.
const ACROSS: usize = 2;
/// With more points than these, a line has no circles.
const CIRCLES: usize = 12;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 400.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 220.0;
/// Told apart by those who see no red or green, too (Okabe and Ito).
const COLOURS: [&str; 4] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"];

pub(crate) fn chart(axis: &Axis<'_>, panels: &[Panel<'_>]) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a few panels")]
    let (width, height) = (
        WIDTH * panels.len().min(ACROSS) as f64,
        HEIGHT * panels.len().div_ceil(ACROSS) as f64,
    );
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    for (number, panel) in panels.iter().enumerate() {
        #[expect(clippy::cast_precision_loss, reason = "a few panels")]
        let (x, y) = (
            WIDTH * (number % ACROSS) as f64,
            HEIGHT * (number / ACROSS) as f64,
        );
        // Writing into a String cannot fail, here and below.
        let _ = writeln!(svg, "<g transform=\"translate({x} {y})\">");
        draw(&mut svg, axis, panel);
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw(svg: &mut String, axis: &Axis<'_>, panel: &Panel<'_>) {
    let figures = panel.series.iter().flat_map(|series| series.1);
    let top = ceiling(figures.copied().fold(0.0, f64::max));
    let x = |at: usize| {
        #[expect(clippy::cast_precision_loss, reason = "a few categories")]
        let (at, last) = (at as f64, (axis.labels.len().max(2) - 1) as f64);
        LEFT + 20.0 + (RIGHT - LEFT - 40.0) * at / last
    };
    let y = |figure: f64| BOTTOM - (BOTTOM - TOP) * figure / top;

    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"20\" font-weight=\"bold\">{}</text>",
        panel.title
    );
    for quarter in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let (figure, at) = (top * quarter, y(top * quarter));
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {at:.1}H{RIGHT}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            at + 4.0,
            short(figure)
        );
    }
    let labels = axis.labels.iter().enumerate();
    for (at, label) in labels.filter(|(_, label)| !label.is_empty()) {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>",
            x(at),
            BOTTOM + 18.0
        );
    }
    let middle = f64::midpoint(LEFT, RIGHT);
    let _ = writeln!(
        svg,
        "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
        BOTTOM + 36.0,
        axis.title
    );
    for ((number, Series(name, figures)), colour) in panel.series.iter().enumerate().zip(COLOURS) {
        let points = figures
            .iter()
            .enumerate()
            .map(|(at, figure)| (x(at), y(*figure)));
        let line: Vec<_> = points
            .clone()
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            line.join(" ")
        );
        for (x, y) in points.filter(|_| figures.len() <= CIRCLES) {
            let _ = writeln!(
                svg,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>"
            );
        }
        #[expect(clippy::cast_precision_loss, reason = "a few lines")]
        let place = LEFT + 120.0 * number as f64;
        let _ = writeln!(
            svg,
            "<text x=\"{place}\" y=\"{}\" fill=\"{colour}\">{name}</text>",
            HEIGHT - 6.0
        );
    }
}

/// The next round number.
fn ceiling(figure: f64) -> f64 {
    if figure <= 0.0 {
        return 1.0;
    }
    let size = 10_f64.powf(figure.log10().floor());
    let steps = [1.0, 2.0, 4.0, 6.0, 8.0, 10.0];
    let step = steps.iter().find(|step| *step * size >= figure);
    step.unwrap_or(&10.0) * size
}
