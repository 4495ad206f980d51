//! The pictures.

use std::fmt::Write;

use super::report::{Results, RowReport};
use crate::prune::Pruner;
use crate::svg::{self, GREY, LINES, text};

/// Size of a picture, in pixels.
const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 540.0;

/// The plot in it.
const LEFT: f64 = 84.0;
const RIGHT: f64 = 760.0;
const TOP: f64 = 96.0;
const BOTTOM: f64 = 470.0;

/// Where the names of an ablation's rows end, and its bars begin.
const NAMES: f64 = 220.0;

/// A colour for each policy, in the order of [`Pruner::ALL`].
const POLICIES: [&str; 6] = [
    "#c8502d", "#12876f", "#2a6fbb", "#8a5bb5", "#c79a1b", "#7b858f",
];

/// Stages of the time to an answer, with their colours.
const STAGES: [(&str, &str); 5] = [
    ("preprocess", "#9aa5b1"),
    ("vision", "#2a6fbb"),
    ("prune", "#c8502d"),
    ("prefill", "#12876f"),
    ("decode", "#c79a1b"),
];

/// A picture with its file's name.
pub struct Plot {
    /// Name of the file.
    pub name: &'static str,
    /// The picture.
    pub svg: String,
}

/// All pictures that the results have something to show in.
pub fn plots(results: &Results) -> Vec<Plot> {
    let mut plots = Vec::new();
    let has_sweep = !results.shares().is_empty();
    let accuracy = |row: &RowReport| row.accuracy.map(|share| share.share * 100.0);
    if has_sweep && results.rows.iter().all(|row| row.accuracy.is_some()) {
        let svg = lines(
            results,
            "Right answers by share of visual tokens kept",
            "right, %",
            &accuracy,
            Some(100.0),
        );
        plots.push(Plot {
            name: "accuracy.svg",
            svg,
        });
    }
    if has_sweep {
        let ttft = |row: &RowReport| Some(row.ttft_ms());
        let svg = lines(
            results,
            "Time to the first token by share of visual tokens kept",
            "ms, median",
            &ttft,
            None,
        );
        plots.push(Plot {
            name: "first-token.svg",
            svg,
        });
    }
    plots.push(Plot {
        name: "stages.svg",
        svg: stages(results),
    });
    plots.push(Plot {
        name: "ablation.svg",
        svg: ablation(results),
    });
    plots
}

fn subtitle(results: &Results) -> String {
    let ran = &results.ran;
    format!(
        "{}, {}, {} items, {}",
        ran.model.display(),
        ran.precision,
        ran.items,
        results.machine.cpu
    )
}

/// A round number that is not below `x`.
fn round_up(x: f64) -> f64 {
    let power = 10f64.powf(x.max(1e-9).log10().floor());
    let steps = [1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0];
    let found = steps.into_iter().find(|step| step * power >= x);
    found.unwrap_or(10.0) * power
}

/// A curve for each policy: shares from 0 to 1 across, `value` upwards from 0 to `most`.
fn lines(
    results: &Results,
    title: &str,
    unit: &str,
    value: &dyn Fn(&RowReport) -> Option<f64>,
    most: Option<f64>,
) -> String {
    let mut svg = svg::begin(WIDTH, HEIGHT);
    svg::title(&mut svg, title, &subtitle(results));
    let baseline = results.rows.first().and_then(value).unwrap_or(0.0);
    let values = results.rows.iter().filter(|row| row.sweep.is_some());
    let largest = values.filter_map(value).fold(baseline, f64::max);
    let most = most.unwrap_or_else(|| round_up(largest));
    let x = |share: f64| LEFT + share * (RIGHT - LEFT);
    let y = |value: f64| BOTTOM - value / most.max(f64::MIN_POSITIVE) * (BOTTOM - TOP);
    for tick in 0..=5 {
        let part = f64::from(tick) / 5.0;
        let (across, up) = (x(part), y(part * most));
        // Writing to a `String` cannot fail.
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" y1=\"{up:.1}\" x2=\"{RIGHT}\" y2=\"{up:.1}\" stroke=\"{LINES}\"/>"
        );
        let place = format!("text-anchor=\"end\" fill=\"{GREY}\"");
        text(&mut svg, LEFT - 10.0, up + 4.0, &place, &short(part * most));
        let place = format!("text-anchor=\"middle\" fill=\"{GREY}\"");
        text(&mut svg, across, BOTTOM + 20.0, &place, &short(part));
    }
    let place = format!("text-anchor=\"middle\" fill=\"{GREY}\"");
    text(
        &mut svg,
        (LEFT + RIGHT) / 2.0,
        BOTTOM + 46.0,
        &place,
        "share of visual tokens kept",
    );
    text(
        &mut svg,
        LEFT - 48.0,
        TOP - 12.0,
        &format!("fill=\"{GREY}\""),
        unit,
    );
    let up = y(baseline);
    let _ = writeln!(
        svg,
        "<line x1=\"{LEFT}\" y1=\"{up:.1}\" x2=\"{RIGHT}\" y2=\"{up:.1}\" stroke=\"{GREY}\" stroke-dasharray=\"4 4\"/>"
    );
    let mut legend = TOP + 8.0;
    text(
        &mut svg,
        RIGHT + 26.0,
        legend,
        &format!("fill=\"{GREY}\""),
        "dashed: all tokens",
    );
    for (pruner, color) in Pruner::ALL.into_iter().zip(POLICIES) {
        let shares = results.shares();
        let points: Vec<(f64, f64)> = shares
            .into_iter()
            .filter_map(|share| Some((x(share), y(value(results.point(pruner.name(), share)?)?))))
            .collect();
        if points.is_empty() {
            continue;
        }
        let path: Vec<String> = std::iter::once((x(1.0), y(baseline)))
            .chain(points.iter().copied())
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2.2\" stroke-linejoin=\"round\"/>",
            path.join(" ")
        );
        for (x, y) in points {
            let _ = writeln!(
                svg,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.6\" fill=\"#ffffff\" stroke=\"{color}\" stroke-width=\"2\"/>"
            );
        }
        legend += 26.0;
        let _ = writeln!(
            svg,
            "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{color}\" stroke-width=\"3\"/>",
            RIGHT + 26.0,
            legend - 4.0,
            RIGHT + 48.0,
            legend - 4.0
        );
        text(
            &mut svg,
            RIGHT + 56.0,
            legend,
            "font-size=\"14\"",
            pruner.name(),
        );
    }
    svg::end(&mut svg);
    svg
}

/// A number with as many digits as it needs.
fn short(x: f64) -> String {
    let text = format!("{x:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    text.to_owned()
}

/// Rows of the ablation, each with its name, from top to bottom.
fn bars(results: &Results, svg: &mut String) -> Vec<(f64, f64, RowReport)> {
    let rows: Vec<&RowReport> = results.rows.iter().filter(|row| row.ablation).collect();
    let step = (BOTTOM - TOP) / rows.len().max(1) as f64;
    let mut found = Vec::new();
    for (index, row) in rows.into_iter().enumerate() {
        let middle = TOP + (index as f64 + 0.5) * step;
        let place = "text-anchor=\"end\" font-size=\"14\"";
        text(svg, NAMES - 14.0, middle + 5.0, place, &row.name);
        found.push((middle, step.min(62.0), row.clone()));
    }
    found
}

/// Mean time of each stage of an answer, one bar a row.
fn stages(results: &Results) -> String {
    let mut svg = svg::begin(WIDTH, HEIGHT);
    svg::title(&mut svg, "Where an answer's time goes", &subtitle(results));
    let sum = |row: &RowReport| {
        STAGES
            .iter()
            .map(|(name, _)| row.mean_ms(name))
            .sum::<f64>()
    };
    let ablation = results.rows.iter().filter(|row| row.ablation);
    let most = round_up(ablation.map(sum).fold(0.0, f64::max));
    let scale = (WIDTH - 110.0 - NAMES) / most.max(f64::MIN_POSITIVE);
    for (middle, height, row) in bars(results, &mut svg) {
        let mut x = NAMES;
        for (name, color) in STAGES {
            let width = row.mean_ms(name) * scale;
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"{color}\"/>",
                middle - height * 0.32,
                height * 0.64
            );
            x += width;
        }
        let label = format!("{:.1} ms", sum(&row));
        text(&mut svg, x + 8.0, middle + 5.0, "font-size=\"14\"", &label);
    }
    let mut x = NAMES;
    for (name, color) in STAGES {
        let y = BOTTOM + 26.0;
        let _ = writeln!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"14\" height=\"14\" rx=\"2\" fill=\"{color}\"/>"
        );
        text(&mut svg, x + 20.0, y + 12.0, "font-size=\"14\"", name);
        x += 118.0;
    }
    svg::end(&mut svg);
    svg
}

/// Speed beside the baseline's, one bar a row, with the share of right answers.
fn ablation(results: &Results) -> String {
    let mut svg = svg::begin(WIDTH, HEIGHT);
    svg::title(
        &mut svg,
        "How many times faster a whole answer comes, and how many are right",
        &subtitle(results),
    );
    let total = |row: &RowReport| row.mean_ms("total");
    let base = results.rows.first().map_or(0.0, total);
    let faster = |row: &RowReport| base / total(row).max(f64::MIN_POSITIVE);
    let ablation = results.rows.iter().filter(|row| row.ablation);
    let most = round_up(ablation.map(faster).fold(1.0, f64::max));
    let scale = (WIDTH - 330.0 - NAMES) / most;
    let one = NAMES + scale;
    let _ = writeln!(
        svg,
        "<line x1=\"{one:.1}\" y1=\"{TOP}\" x2=\"{one:.1}\" y2=\"{BOTTOM}\" stroke=\"{GREY}\" stroke-dasharray=\"4 4\"/>"
    );
    for (middle, height, row) in bars(results, &mut svg) {
        let width = faster(&row) * scale;
        let _ = writeln!(
            svg,
            "<rect x=\"{NAMES}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{:.1}\" rx=\"2\" fill=\"#12876f\"/>",
            middle - height * 0.32,
            height * 0.64
        );
        let right = match row.accuracy {
            Some(share) => {
                let [low, high] = share.interval95.map(|x| x * 100.0);
                format!(
                    ", right {:.1} % ({low:.0} to {high:.0})",
                    share.share * 100.0
                )
            }
            None => String::new(),
        };
        let label = format!("{:.2} times{right}", faster(&row));
        text(
            &mut svg,
            NAMES + width + 10.0,
            middle + 5.0,
            "font-size=\"14\"",
            &label,
        );
    }
    svg::end(&mut svg);
    svg
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::{Configuration, Machine, Plan, Ran, Sample};
    use super::*;
    use crate::decode::Strategy;
    use crate::pipeline::{Ask, Timings};

    fn results(right: Option<bool>, sweep: bool) -> Results {
        let plan = Plan {
            ask: Ask::default(),
            draft: Strategy::Off,
            pruners: if sweep {
                Pruner::ALL.to_vec()
            } else {
                Vec::new()
            },
            shares: vec![0.5, 0.1],
            quantized: true,
        };
        let sample = |i: usize| Sample {
            right,
            agrees: true,
            kept: 26,
            tokens: 4,
            timings: Timings {
                vision: 20.0,
                prefill: 10.0 / (i + 1) as f64,
                ttft: 30.0,
                total: 40.0 / (i + 1) as f64,
                ..Timings::default()
            },
        };
        let row = |(i, configuration): (usize, &Configuration<'_>)| {
            RowReport::new(configuration, &[sample(i), sample(i)])
        };
        let all = plan.configurations().expect("plan");
        Results {
            machine: Machine::here(),
            ran: Ran {
                model: PathBuf::from("a<b"),
                precision: "fp32".to_owned(),
                digests: Vec::new(),
                quantized: None,
                data: PathBuf::from("items.jsonl"),
                items: 2,
                command: vec!["trtvlm".to_owned(), "bench".to_owned()],
            },
            rows: all.iter().enumerate().map(row).collect(),
        }
    }

    #[test]
    fn plots_are_well_formed_and_stay_within_their_pictures() {
        for (right, sweep, n) in [
            (Some(true), true, 4),
            (None, true, 3),
            (Some(false), false, 2),
        ] {
            let plots = plots(&results(right, sweep));
            assert_eq!(plots.len(), n);
            for plot in plots {
                let svg = plot.svg;
                assert!(svg.contains("a&lt;b") && !svg.contains("NaN") && !svg.contains("inf"));
                assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
                let numbers = svg.split('"').filter_map(|part| part.parse::<f64>().ok());
                for number in numbers {
                    assert!((0.0..=WIDTH).contains(&number), "{}: {number}", plot.name);
                }
            }
        }
    }

    #[test]
    fn markdown_has_a_row_for_each_configuration_and_policy() {
        let text = results(Some(true), true).markdown();
        for name in [
            "| baseline |",
            "| full |",
            "| `random` |",
            "right, % with 95 %",
        ] {
            assert!(text.contains(name), "{name}: {text}");
        }
        assert!(text.contains("| 100.0 (34 to 100) |"), "{text}");
        assert!(!results(None, false).markdown().contains("random"));
    }
}
