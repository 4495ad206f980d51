//! Pictures of the sweep over drafters and lengths of drafts.

use super::chart::{Chart, round_up};
use super::plots::{Plot, subtitle};
use super::report::{Results, RowReport};
use crate::decode::Position;

/// Colours of drafters, in the order in which they occur.
const DRAFTERS: [&str; 4] = ["#2a6fbb", "#c8502d", "#12876f", "#8a5bb5"];

/// What the sweep over drafts has to show; nothing without one.
pub(super) fn draft_plots(results: &Results) -> Vec<Plot> {
    let drafters = results.drafters();
    if drafters.is_empty() {
        return Vec::new();
    }
    vec![
        Plot {
            name: "acceptance.svg",
            svg: acceptance(results, &drafters),
        },
        Plot {
            name: "speed-up.svg",
            svg: speed_up(results, &drafters),
        },
    ]
}

/// Lengths of drafts from 1 to the longest.
fn lengths(results: &Results) -> Vec<f64> {
    let longest = results
        .rows
        .iter()
        .filter_map(|row| Some(row.drafts.as_ref()?.1));
    (1..=longest.max().unwrap_or(1)).map(|n| n as f64).collect()
}

/// Rows of a drafter by the length of its drafts, shortest first.
fn rows_of<'a>(results: &'a Results, drafter: &str) -> Vec<(f64, &'a RowReport)> {
    let rows = results.rows.iter().filter_map(|row| {
        let (name, n) = row.drafts.as_ref()?;
        (name == drafter).then_some((*n as f64, row))
    });
    rows.collect()
}

/// Share of the drafts that are so long whose tokens up to a place were all accepted; of the longest drafts of each
/// drafter.
fn acceptance(results: &Results, drafters: &[&str]) -> String {
    let title = ["Drafts accepted up to each place", &subtitle(results)];
    let axes = ["place in the draft", "accepted, %"];
    let mut chart = Chart::new(title, axes, &lengths(results), 100.0);
    for (drafter, color) in drafters.iter().zip(DRAFTERS.iter().cycle()) {
        let rows = rows_of(results, drafter);
        let Some((_, longest)) = rows.last() else {
            continue;
        };
        let by_position = longest.speculation.by_position.iter();
        let percent = |p: &Position| 100.0 * p.accepted as f64 / p.proposed.max(1) as f64;
        let places = by_position.enumerate().filter(|(_, p)| p.proposed > 0);
        let points: Vec<(f64, f64)> = places
            .map(|(place, p)| (place as f64 + 1.0, percent(p)))
            .collect();
        chart.curve(drafter, color, None, &points);
    }
    chart.end()
}

/// How many times faster than without drafts tokens after the first one come, by the length of drafts.
fn speed_up(results: &Results, drafters: &[&str]) -> String {
    let faster = |row: &RowReport| results.decode_speed_up(row);
    let swept = results.rows.iter().filter(|row| row.drafts.is_some());
    let most = round_up(swept.map(faster).fold(1.0, f64::max));
    let title = [
        "How many times faster tokens come, by the length of drafts",
        &subtitle(results),
    ];
    let axes = ["most tokens of a draft", "times plain decoding"];
    let mut chart = Chart::new(title, axes, &lengths(results), most);
    chart.baseline(1.0, "dashed: without drafts");
    for (drafter, color) in drafters.iter().zip(DRAFTERS.iter().cycle()) {
        let rows = rows_of(results, drafter).into_iter();
        let points: Vec<(f64, f64)> = rows.map(|(n, row)| (n, faster(row))).collect();
        chart.curve(drafter, color, None, &points);
    }
    chart.end()
}
