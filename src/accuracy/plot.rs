//! A picture of the layers, the worst first.

use std::fmt::Write;

use super::sensitivity::{LayerError, Sensitivity};
use crate::build::{ComponentKind, LeftOut, Nodes};
use crate::svg::{self, GREY, INK, LINES, text};

/// Layers that are drawn.
const ROWS: usize = 32;

/// Characters of a layer's name.
const NAME: usize = 54;

/// Width of the picture, of the names, and of the plot, in pixels.
const WIDTH: f64 = 1120.0;
const LEFT: f64 = 400.0;
const PLOT: f64 = 590.0;

/// Height of a row, and of what stands above all rows.
const ROW: f64 = 21.0;
const TOP: f64 = 118.0;

/// Radius of a ring, in pixels.
const RING: f64 = 4.2;

/// The axis goes no further down.
const FLOOR_DB: f64 = -20.0;

const VISION: &str = "#2a6fbb";
const DECODER: &str = "#12876f";
const KEPT: &str = "#c8502d";
const WEIGHTS_ONLY: &str = "#d9a02b";

/// Draws the layers of `found` as SVG, those that are left out in colours of their own.
///
/// A bar is as long as the signal-to-noise ratio at the logits when only that layer is quantized, a
/// ring stands at that of the layer's own output.
pub fn plot(found: &Sensitivity, model: &str, left_out: &LeftOut) -> String {
    let rows = &found.layers[..found.layers.len().min(ROWS)];
    let ratios = rows.iter().flat_map(|layer| {
        let own = layer.output.and_then(|m| m.sqnr_db);
        [layer.logits.sqnr_db, own]
    });
    let ratios = ratios.chain([found.whole.logits.sqnr_db]).flatten();
    let (low, high) = ratios.fold((0f64, 10f64), |(low, high), db| {
        (low.min(db.max(FLOOR_DB)), high.max(db))
    });
    let axis = Axis::new(low, high);
    let bottom = TOP + rows.len() as f64 * ROW;
    let height = bottom + 64.0;
    let mut svg = svg::begin(WIDTH, height);
    let title = format!("{model}: what each layer costs in {}", found.precision);
    let method = match &found.method {
        Some(method) => format!(", ranges by {method}"),
        None => String::new(),
    };
    let of = match found.layers.len() > rows.len() {
        true => format!("the worst {} of {} layers", rows.len(), found.layers.len()),
        false => format!("{} layers", rows.len()),
    };
    let subtitle = format!(
        "Signal-to-noise ratio when only that layer is quantized; {of}, {} items, {} tokens{method}",
        found.items, found.tokens
    );
    svg::title(&mut svg, &title, &subtitle);
    legend(&mut svg, left_out);

    for db in axis.ticks() {
        let x = axis.x(db);
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"{LINES}\"/>"
        );
        let place = format!("text-anchor=\"middle\" fill=\"{GREY}\"");
        text(&mut svg, x, bottom + 18.0, &place, &format!("{db}"));
    }
    let place = format!("text-anchor=\"middle\" fill=\"{GREY}\"");
    text(
        &mut svg,
        LEFT + PLOT / 2.0,
        bottom + 42.0,
        &place,
        "dB: more is better",
    );
    for (index, layer) in rows.iter().enumerate() {
        let color = color(layer, left_out);
        row(&mut svg, &axis, TOP + index as f64 * ROW, layer, color);
    }
    if let Some(db) = found.whole.logits.sqnr_db {
        let x = axis.x(db);
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"{INK}\" stroke-dasharray=\"4 3\"/>",
            TOP - 6.0
        );
        let label = format!("all at once: {db:.1} dB");
        text(&mut svg, x + 5.0, TOP - 8.0, "font-weight=\"600\"", &label);
    }
    svg::end(&mut svg);
    svg
}

fn color(layer: &LayerError, left_out: &LeftOut) -> &'static str {
    let kind = ComponentKind::of_name(&layer.component);
    let has = |nodes: &Nodes| {
        let of_component = kind.and_then(|kind| nodes.get(&kind));
        of_component.is_some_and(|labels| layer.nodes.iter().any(|n| labels.contains(n)))
    };
    match kind {
        _ if has(&left_out.whole) => KEPT,
        _ if has(&left_out.activations) => WEIGHTS_ONLY,
        Some(ComponentKind::Vision) => VISION,
        _ => DECODER,
    }
}

fn row(svg: &mut String, axis: &Axis, y: f64, layer: &LayerError, color: &str) {
    let middle = y + ROW / 2.0;
    let place = "text-anchor=\"end\" font-size=\"12\"";
    text(
        svg,
        LEFT - 10.0,
        middle + 4.0,
        place,
        &shortened(&layer.name),
    );
    let zero = axis.x(0.0);
    // What differs nowhere has no ratio: its bar is as long as there are.
    let end = axis.x(layer.logits.sqnr_db.unwrap_or(axis.high));
    let (from, to) = (zero.min(end), zero.max(end));
    let _ = writeln!(
        svg,
        "<rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"2\" fill=\"{color}\"/>",
        y + 3.5,
        (to - from).max(1.0),
        ROW - 7.0
    );
    let label = match layer.logits.sqnr_db {
        Some(db) => format!("{db:.1}"),
        None => "exact".to_owned(),
    };
    let label = match layer.changed {
        0 => label,
        n => format!("{label}, {n} changed"),
    };
    let mut right = to;
    if let Some(own) = layer.output.and_then(|m| m.sqnr_db) {
        let x = axis.x(own);
        right = right.max(x + RING);
        let _ = writeln!(
            svg,
            "<circle cx=\"{x:.1}\" cy=\"{middle:.1}\" r=\"{RING}\" fill=\"#ffffff\" stroke=\"{color}\" stroke-width=\"1.8\"/>"
        );
    }
    let place = format!("fill=\"{GREY}\" font-size=\"11.5\"");
    text(svg, right + 7.0, middle + 4.0, &place, &label);
}

fn legend(svg: &mut String, left_out: &LeftOut) {
    let mut x = 28.0;
    let y = 86.0;
    let mut entries = vec![(VISION, "vision tower"), (DECODER, "decoder")];
    if !left_out.whole.is_empty() {
        entries.push((KEPT, "left in FP16"));
    }
    if !left_out.activations.is_empty() {
        entries.push((WEIGHTS_ONLY, "weights only"));
    }
    for (color, what) in entries {
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{:.1}\" width=\"14\" height=\"11\" rx=\"2\" fill=\"{color}\"/>",
            y - 10.0
        );
        text(svg, x + 20.0, y, "", what);
        x += 44.0 + 7.0 * what.len() as f64;
    }
    text(svg, x, y, &format!("fill=\"{GREY}\""), "bar: at the logits");
    x += 132.0;
    let _ = writeln!(
        svg,
        "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"{RING}\" fill=\"#ffffff\" stroke=\"{GREY}\" stroke-width=\"1.8\"/>",
        x + 5.0,
        y - 4.5
    );
    text(
        svg,
        x + 16.0,
        y,
        &format!("fill=\"{GREY}\""),
        "ring: at its own output",
    );
}

/// The scale of the plot.
struct Axis {
    low: f64,
    high: f64,
    step: f64,
}

impl Axis {
    fn new(low: f64, high: f64) -> Self {
        let step = [5.0, 10.0, 20.0, 50.0, 100.0]
            .into_iter()
            .find(|step| (high - low) / step <= 11.0)
            .unwrap_or(1000.0);
        Self {
            low: (low / step).floor() * step,
            high: (high / step).ceil() * step,
            step,
        }
    }

    fn x(&self, db: f64) -> f64 {
        let share = (db.clamp(self.low, self.high) - self.low) / (self.high - self.low);
        LEFT + share * PLOT
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let n = ((self.high - self.low) / self.step).round() as usize;
        (0..=n.min(64)).map(|i| self.low + i as f64 * self.step)
    }
}

/// The end of a name that is long: layers differ in it.
fn shortened(name: &str) -> String {
    let n = name.chars().count();
    if n <= NAME {
        return name.to_owned();
    }
    let tail: String = name.chars().skip(n - (NAME - 1)).collect();
    format!("…{tail}")
}

#[cfg(test)]
mod tests {
    use super::super::Measures;
    use super::*;

    fn layer(name: &str, own: Option<f64>, logits: Option<f64>) -> LayerError {
        let measures = |sqnr_db| Measures {
            sqnr_db,
            cosine: 1.0,
        };
        LayerError {
            component: "vision".to_owned(),
            name: name.to_owned(),
            ops: vec!["Conv".to_owned()],
            nodes: vec![name.to_owned()],
            output: Some(measures(own)),
            features: None,
            logits: measures(logits),
            changed: 0,
        }
    }

    fn found(layers: Vec<LayerError>) -> Sensitivity {
        Sensitivity {
            precision: "int8".to_owned(),
            method: Some("entropy".to_owned()),
            items: 2,
            tokens: 9,
            whole: layer("all", None, Some(12.5)),
            layers,
        }
    }

    #[test]
    fn plot_is_well_formed_whatever_the_names_and_ratios_are() {
        let layers = vec![
            layer("</text><script>alert(1)</script>", Some(-3.0), Some(-2.0)),
            layer("a & b \u{1b}[2J", Some(-200.0), Some(-200.0)),
            layer(&"/very/long".repeat(30), Some(30.0), None),
            layer("kept", None, Some(20.0)),
            layer("half", None, Some(20.0)),
        ];
        let of = |name: &str| Nodes::from([(ComponentKind::Vision, [name.to_owned()].into())]);
        let left_out = LeftOut {
            whole: of("kept"),
            activations: of("half"),
        };
        let svg = plot(&found(layers), "m<odel", &left_out);
        assert!(!svg.contains("<script") && !svg.contains('\u{1b}'));
        assert!(svg.contains("m&lt;odel: what each layer costs in int8"));
        assert!(svg.contains("all at once: 12.5 dB") && svg.contains(">exact<"));
        assert!(svg.contains(KEPT) && svg.contains("left in FP16"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        let numbers = svg.split('"').filter_map(|part| part.parse::<f64>().ok());
        assert!(
            numbers.into_iter().all(|n| (0.0..=WIDTH).contains(&n)),
            "{svg}"
        );
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        let none = plot(&found(Vec::new()), "m", &LeftOut::default());
        assert!(none.ends_with("</svg>\n") && !none.contains("left in FP16"));
    }

    #[test]
    fn names_keep_their_end_and_layers_their_order() {
        let name = format!("/start{}/end/Conv", "/x".repeat(60));
        let short = shortened(&name);
        assert_eq!(short.chars().count(), NAME);
        assert!(short.starts_with('…') && short.ends_with("/x/end/Conv"));
        let layers = (0..40).map(|i| layer(&format!("n{i}"), None, Some(f64::from(i))));
        let svg = plot(&found(layers.collect()), "m", &LeftOut::default());
        let at = |name: &str| svg.find(&format!(">{name}<"));
        assert!(at("n0") < at("n1") && at("n31").is_some() && at("n32").is_none());
        assert!(svg.contains("the worst 32 of 40 layers"));
    }
}
