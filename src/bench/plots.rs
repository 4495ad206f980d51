//! The pictures.

use std::fmt::Write;

use super::chart::{BOTTOM, Chart, HEIGHT, TOP, WIDTH, round_up};
use super::draft_plots::draft_plots;
use super::report::{Results, RowReport};
use crate::prune::Pruner;
use crate::svg::{self, GREY, text};

/// Where the names of an ablation's rows end, and its bars begin.
const NAMES: f64 = 220.0;

/// A colour for each policy, in the order of [`Pruner::ALL`].
const POLICIES: [&str; 7] = [
    "#b0175f", "#c8502d", "#12876f", "#2a6fbb", "#8a5bb5", "#c79a1b", "#7b858f",
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
    plots.extend(draft_plots(results));
    plots
}

/// What was run, and on what.
pub(super) fn subtitle(results: &Results) -> String {
    let ran = &results.ran;
    format!(
        "{}, {}, {} items, {}",
        ran.model.display(),
        ran.precision,
        ran.items,
        results.machine.cpu
    )
}

/// A curve for each policy: shares from 0 to 1 across, `value` upwards from 0 to `most`.
fn lines(
    results: &Results,
    title: &str,
    unit: &str,
    value: &dyn Fn(&RowReport) -> Option<f64>,
    most: Option<f64>,
) -> String {
    let baseline = results.rows.first().and_then(value).unwrap_or(0.0);
    let values = results.rows.iter().filter(|row| row.sweep.is_some());
    let largest = values.filter_map(value).fold(baseline, f64::max);
    let most = most.unwrap_or_else(|| round_up(largest));
    let axes = ["share of visual tokens kept", unit];
    let ticks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0];
    let mut chart = Chart::new([title, &subtitle(results)], axes, &ticks, most);
    chart.baseline(baseline, "dashed: all tokens");
    for (pruner, color) in Pruner::ALL.into_iter().zip(POLICIES) {
        let name = pruner.name();
        let shares = results.shares().into_iter();
        let points: Vec<(f64, f64)> = shares
            .filter_map(|share| Some((share, value(results.point(name, share)?)?)))
            .collect();
        if !points.is_empty() {
            chart.curve(name, color, Some((1.0, baseline)), &points);
        }
    }
    chart.end()
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
    use crate::decode::{Position, Report, Strategy};
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
            drafters: if sweep {
                vec!["ngram", "head"]
            } else {
                Vec::new()
            },
            most_draft_tokens: 8,
            quantized: true,
        };
        let position = |proposed, accepted| Position { proposed, accepted };
        let speculation = Report {
            steps: 2,
            by_position: vec![position(2, 2), position(2, 1), position(0, 0)],
            ..Report::default()
        };
        let sample = |i: usize| Sample {
            right,
            agrees: true,
            kept: 26,
            tokens: 4,
            speculation: speculation.clone(),
            timings: Timings {
                vision: 20.0,
                decode: 5.0 / (i + 1) as f64,
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
            (Some(true), true, 6),
            (None, true, 5),
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
            "| `head` | 8 |",
        ] {
            assert!(text.contains(name), "{name}: {text}");
        }
        assert!(text.contains("| 100.0 (34 to 100) |"), "{text}");
        assert!(!results(None, false).markdown().contains("random"));
    }
}
