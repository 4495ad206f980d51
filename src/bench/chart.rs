//! Curves over a grid, with a legend beside them.

use std::fmt::Write;

use crate::svg::{self, GREY, LINES, text};

/// Size of a picture, in pixels.
pub(super) const WIDTH: f64 = 960.0;
pub(super) const HEIGHT: f64 = 540.0;

/// The plot in it.
pub(super) const TOP: f64 = 96.0;
pub(super) const BOTTOM: f64 = 470.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = 760.0;

/// Horizontal lines of the grid above the axis.
const N_LINES: u32 = 5;

/// A picture of curves that is being drawn.
pub(super) struct Chart {
    svg: String,
    /// Values at the left and right edge.
    across: [f64; 2],
    /// Value at the upper edge; 0 is at the lower one.
    most: f64,
    /// Where the next line of the legend stands.
    legend: f64,
}

impl Chart {
    /// Draws the grid: `ticks` across, which the first and the last bound, and 0 to `most` upwards.
    pub(super) fn new(title: [&str; 2], axes: [&str; 2], ticks: &[f64], most: f64) -> Self {
        let mut svg = svg::begin(WIDTH, HEIGHT);
        svg::title(&mut svg, title[0], title[1]);
        let ends = [ticks.first(), ticks.last()].map(|end| end.copied().unwrap_or(0.0));
        let mut chart = Self {
            svg,
            across: ends,
            most: most.max(f64::MIN_POSITIVE),
            legend: TOP + 8.0,
        };
        for line in 0..=N_LINES {
            let value = most * f64::from(line) / f64::from(N_LINES);
            let up = chart.y(value);
            // Writing to a `String` cannot fail.
            let _ = writeln!(
                chart.svg,
                "<line x1=\"{LEFT}\" y1=\"{up:.1}\" x2=\"{RIGHT}\" y2=\"{up:.1}\" stroke=\"{LINES}\"/>"
            );
            let place = format!("text-anchor=\"end\" fill=\"{GREY}\"");
            text(&mut chart.svg, LEFT - 10.0, up + 4.0, &place, &short(value));
        }
        let place = format!("text-anchor=\"middle\" fill=\"{GREY}\"");
        for &tick in ticks {
            let x = chart.x(tick);
            text(&mut chart.svg, x, BOTTOM + 20.0, &place, &short(tick));
        }
        let middle = (LEFT + RIGHT) / 2.0;
        text(&mut chart.svg, middle, BOTTOM + 46.0, &place, axes[0]);
        let place = format!("fill=\"{GREY}\"");
        text(&mut chart.svg, LEFT - 48.0, TOP - 12.0, &place, axes[1]);
        chart
    }

    /// A dashed line at a value, which the first line of the legend explains.
    pub(super) fn baseline(&mut self, value: f64, what: &str) {
        let up = self.y(value);
        let _ = writeln!(
            self.svg,
            "<line x1=\"{LEFT}\" y1=\"{up:.1}\" x2=\"{RIGHT}\" y2=\"{up:.1}\" stroke=\"{GREY}\" stroke-dasharray=\"4 4\"/>"
        );
        let place = format!("fill=\"{GREY}\"");
        text(&mut self.svg, RIGHT + 26.0, self.legend, &place, what);
        self.legend += 26.0;
    }

    /// A curve through points, the first of which has no mark if `from` is given.
    pub(super) fn curve(
        &mut self,
        name: &str,
        color: &str,
        from: Option<(f64, f64)>,
        points: &[(f64, f64)],
    ) {
        let path: Vec<String> = from
            .iter()
            .chain(points)
            .map(|&(x, y)| format!("{:.1},{:.1}", self.x(x), self.y(y)))
            .collect();
        let _ = writeln!(
            self.svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2.2\" stroke-linejoin=\"round\"/>",
            path.join(" ")
        );
        for &(x, y) in points {
            let (x, y) = (self.x(x), self.y(y));
            let _ = writeln!(
                self.svg,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.6\" fill=\"#ffffff\" stroke=\"{color}\" stroke-width=\"2\"/>"
            );
        }
        let (x, y) = (RIGHT + 26.0, self.legend);
        let _ = writeln!(
            self.svg,
            "<line x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{color}\" stroke-width=\"3\"/>",
            y - 4.0,
            x + 22.0,
            y - 4.0
        );
        text(&mut self.svg, x + 30.0, y, "font-size=\"14\"", name);
        self.legend += 26.0;
    }

    /// The picture.
    pub(super) fn end(mut self) -> String {
        svg::end(&mut self.svg);
        self.svg
    }

    fn x(&self, value: f64) -> f64 {
        let [first, last] = self.across;
        LEFT + (value - first) / (last - first).max(f64::MIN_POSITIVE) * (RIGHT - LEFT)
    }

    fn y(&self, value: f64) -> f64 {
        BOTTOM - value / self.most * (BOTTOM - TOP)
    }
}

/// A round number that is not below `x`.
pub(super) fn round_up(x: f64) -> f64 {
    let power = 10f64.powf(x.max(1e-9).log10().floor());
    let steps = [1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0];
    let found = steps.into_iter().find(|step| step * power >= x);
    found.unwrap_or(10.0) * power
}

/// A number with as many digits as it needs.
fn short(x: f64) -> String {
    let text = format!("{x:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    text.to_owned()
}
