//! How much each layer's integers change what the model says.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::deviation::{Deviation, Measures};
use super::layers::{Layer, Layers, Step, is_large, whole};
use super::recorded::{Recorded, Recorder};
use super::subject::Subject;
use crate::build::ComponentKind;
use crate::cpu::Stretches;
use crate::error::{Error, Result};
use crate::items::Item;
use crate::model::{Model, ModelConfig};
use crate::onnx::OnnxModel;
use crate::pipeline::{Ask, Pipeline};
use crate::preprocess::{Frame, Tiles};
use crate::sync::lock;

/// Items that are looked at where the user does not say, and of large models.
const DEFAULT_ITEMS: usize = 8;
const ITEMS_OF_LARGE: usize = 2;

/// Tokens of each answer that are scored.
pub const SCORED_TOKENS: usize = 8;

/// What was found out about every layer, the worst first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sensitivity {
    /// Precision of the build.
    pub precision: String,
    /// Method that chose the ranges of activations; `None` where none are quantized.
    pub method: Option<String>,
    /// Items that were looked at.
    pub items: usize,
    /// Tokens whose logits were compared.
    pub tokens: usize,
    /// Everything quantized at once.
    pub whole: LayerError,
    /// One layer quantized at a time.
    pub layers: Vec<LayerError>,
}

/// What happens when a layer alone is quantized.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerError {
    /// `vision` or `decoder`; `all` for everything at once.
    pub component: String,
    /// The node, or the first and the last of a block.
    pub name: String,
    /// Operators, each once.
    pub ops: Vec<String>,
    /// Labels of the nodes that were quantized.
    pub nodes: Vec<String>,
    /// At what the layer makes; `None` for everything at once.
    pub output: Option<Measures>,
    /// At the visual tokens; `None` for layers of the decoder.
    pub features: Option<Measures>,
    /// At the logits of the answer's tokens.
    pub logits: Measures,
    /// Tokens that another one would have replaced.
    pub changed: usize,
}

/// How far an analysis is: layers times items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Steps {
    /// Done.
    pub done: usize,
    /// All.
    pub total: usize,
}

/// Sums of one layer over all items.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    output: Deviation,
    features: Deviation,
    logits: Deviation,
    changed: usize,
}

/// Judges every layer on `items`, of which those without a readable picture are passed over.
///
/// For each item the reference answers once. Then its graphs are run again a stretch at a time: at
/// each layer the same stretch is run with integers, and the rest of the model continues from
/// what that made. Frames are not split into tiles. Components of many weights are judged in
/// blocks of neighbouring nodes.
///
/// # Errors
/// [`Error::Cancelled`] after a stop; [`Error::Malformed`] if no picture can be read; those of
/// reading, quantizing and the engine.
pub fn sensitivity(
    subject: &Subject<'_>,
    items: &[Item],
    on_step: &mut dyn FnMut(Steps),
) -> Result<Sensitivity> {
    let config = &subject.model.config;
    let recorded = record(subject, items)?;
    let family = config.family;
    let decoder = Layers::load(subject, ComponentKind::Decoder, family.logits)?;
    let vision = Layers::load(subject, ComponentKind::Vision, family.image_features)?;
    let mut sums = [&vision, &decoder].map(|c| vec![Sums::default(); c.n_layers()]);
    let mut all = Sums::default();
    let mut steps = Steps {
        done: 0,
        total: recorded.len() * (vision.n_layers() + decoder.n_layers()),
    };
    on_step(steps);
    for item in &recorded {
        let judge = Judge {
            subject,
            item,
            config,
            decoder: &decoder,
            logits: whole(
                &decoder.reference,
                &decoder.output,
                &item.decoder_inputs(config, None)?,
            )?,
        };
        let mut step = || {
            steps.done += 1;
            on_step(steps);
            subject.check_cancel()
        };
        judge.vision(&vision, &mut sums[0], &mut step)?;
        judge.decoder(&mut sums[1], &mut step)?;
        judge.whole(&vision, &mut all)?;
    }
    let mut layers = Vec::new();
    for (component, sums) in [&vision, &decoder].into_iter().zip(&sums) {
        let of = component.layers.iter().flatten().zip(sums);
        layers.extend(of.map(|(layer, sums)| error(component.kind, layer, sums)));
    }
    layers.sort_by(|a, b| {
        let badness = |e: &LayerError| [e.logits.badness(), e.output.map_or(0.0, |m| m.badness())];
        let worst_first = badness(b).partial_cmp(&badness(a));
        worst_first
            .unwrap_or(std::cmp::Ordering::Equal)
            .then_with(|| a.name.cmp(&b.name))
    });
    Ok(Sensitivity {
        precision: subject.precision.to_string(),
        method: subject.quantization.method().map(|m| m.name().to_owned()),
        items: recorded.len(),
        tokens: recorded.iter().map(Recorded::n_scored).sum(),
        whole: LayerError {
            component: "all".to_owned(),
            name: "all".to_owned(),
            ops: Vec::new(),
            nodes: Vec::new(),
            output: None,
            features: (vision.n_layers() > 0).then(|| all.features.measures()),
            logits: all.logits.measures(),
            changed: all.changed,
        },
        layers,
    })
}

/// How many items are looked at where the user does not say: a large model takes its time.
///
/// # Errors
/// Those of reading the graphs.
pub fn default_items(model: &Model) -> Result<usize> {
    for kind in [ComponentKind::Vision, ComponentKind::Decoder] {
        if is_large(&OnnxModel::load(kind.source(model))?) {
            return Ok(ITEMS_OF_LARGE);
        }
    }
    Ok(DEFAULT_ITEMS)
}

/// Lets the reference answer, and keeps what its graphs read.
fn record(subject: &Subject<'_>, items: &[Item]) -> Result<Vec<Recorded>> {
    let config = &subject.model.config;
    let newest = Arc::new(Mutex::new(Recorded::default()));
    let backend = Recorder::new(subject.reference()?, config, Arc::clone(&newest));
    let model = subject.model.clone();
    let mut pipeline = Pipeline::with_backend(model, "fp32".to_owned(), "cpu", Box::new(backend))?;
    let ask = Ask {
        max_tokens: Some(SCORED_TOKENS),
        tiles: Tiles::Count(1),
        cancel: Some(&subject.cancel),
        ..Ask::default()
    };
    let mut recorded = Vec::with_capacity(items.len());
    let mut unreadable = None;
    for item in items {
        match Frame::load(&item.image) {
            Ok(frame) => {
                pipeline.ask(&frame, &item.prompt, &ask, &mut |_| {})?;
                subject.check_cancel()?;
                recorded.push(lock(&newest).clone());
            }
            Err(error) => {
                tracing::warn!("skipped: {error}");
                unreadable = Some(error);
            }
        }
    }
    match unreadable {
        Some(error) if recorded.is_empty() => Err(error),
        _ => Ok(recorded),
    }
}

/// One item, and what the reference says of it.
struct Judge<'a> {
    subject: &'a Subject<'a>,
    item: &'a Recorded,
    config: &'a ModelConfig,
    decoder: &'a Layers,
    logits: Vec<f32>,
}

impl Judge<'_> {
    fn vision(
        &self,
        vision: &Layers,
        sums: &mut [Sums],
        step: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        if sums.is_empty() {
            return Ok(());
        }
        let inputs = || self.item.vision_inputs(self.config);
        let features = whole(&vision.reference, &vision.output, &inputs()?)?;
        let mut sums = sums.iter_mut();
        vision.walk(inputs()?, &mut |at| {
            let Some(sums) = sums.next() else {
                return Ok(());
            };
            sums.add_output(&at);
            sums.features.add(&features, at.end);
            let logits = self.logits_of(&self.decoder.reference, Some(at.end))?;
            sums.add_logits(&self.logits, &logits, self.config.vocab);
            step()
        })
    }

    fn decoder(&self, sums: &mut [Sums], step: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let mut sums = sums.iter_mut();
        let inputs = self.item.decoder_inputs(self.config, None)?;
        self.decoder.walk(inputs, &mut |at| {
            let Some(sums) = sums.next() else {
                return Ok(());
            };
            sums.add_output(&at);
            sums.add_logits(&self.logits, at.end, self.config.vocab);
            step()
        })
    }

    /// Everything quantized.
    fn whole(&self, vision: &Layers, sums: &mut Sums) -> Result<()> {
        let mut changed = None;
        if vision.n_layers() > 0 {
            let inputs = || self.item.vision_inputs(self.config);
            let features = whole(&vision.reference, &vision.output, &inputs()?)?;
            let other = whole(&vision.quantized, &vision.output, &inputs()?)?;
            sums.features.add(&features, &other);
            changed = Some(other);
        }
        let logits = self.logits_of(&self.decoder.quantized, changed.as_deref())?;
        sums.add_logits(&self.logits, &logits, self.config.vocab);
        self.subject.check_cancel()
    }

    fn logits_of(&self, decoder: &Stretches, features: Option<&[f32]>) -> Result<Vec<f32>> {
        let inputs = self.item.decoder_inputs(self.config, features)?;
        whole(decoder, &self.decoder.output, &inputs)
    }
}

impl Sums {
    fn add_output(&mut self, at: &Step<'_>) {
        for name in &at.layer.outputs {
            let [made, other] = [at.made, at.other].map(|v| v.f32(name).unwrap_or_default().1);
            self.output.add(&made, &other);
        }
    }

    fn add_logits(&mut self, reference: &[f32], other: &[f32], n_vocab: usize) {
        self.logits.add(reference, other);
        let rows = reference.chunks(n_vocab).zip(other.chunks(n_vocab));
        self.changed += rows
            .filter(|(r, x)| most_likely(r) != most_likely(x))
            .count();
    }
}

/// Index of the largest number, the first of several.
fn most_likely(logits: &[f32]) -> Option<usize> {
    let numbers = logits.iter().enumerate();
    numbers
        .rev()
        .max_by(|a, b| a.1.total_cmp(b.1))
        .map(|(i, _)| i)
}

fn error(kind: ComponentKind, layer: &Layer, sums: &Sums) -> LayerError {
    LayerError {
        component: kind.name().to_owned(),
        name: layer.name.clone(),
        ops: layer.ops.iter().cloned().collect(),
        nodes: layer.nodes.clone(),
        output: Some(sums.output.measures()),
        features: (kind == ComponentKind::Vision).then(|| sums.features.measures()),
        logits: sums.logits.measures(),
        changed: sums.changed,
    }
}

impl Subject<'_> {
    /// Says whether to stop.
    pub(super) fn check_cancel(&self) -> Result<()> {
        match self.cancel.load(Ordering::Relaxed) {
            true => Err(Error::Cancelled),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{
        damaged_scales, int8, items, last_product, model, scales, subject,
    };
    use super::*;
    use crate::accuracy::Choice;

    #[test]
    fn most_likely_of_equals_is_the_first() {
        assert_eq!(most_likely(&[1.0, 3.0, 3.0, 2.0]), Some(1));
        assert_eq!(most_likely(&[]), None);
    }

    #[test]
    fn layer_error_is_that_of_a_graph_in_which_only_it_is_quantized() {
        let (model, items) = (model(), items(1));
        let quantization = int8(scales());
        let subject = subject(&model, &quantization);
        let mut last = None;
        let found = sensitivity(&subject, &items, &mut |steps| last = Some(steps)).expect("found");
        let last = last.expect("steps");
        assert_eq!(
            (last.done, last.total),
            (found.layers.len(), found.layers.len())
        );
        assert_eq!(found.items, 1);
        assert!(
            found
                .layers
                .is_sorted_by(|a, b| a.logits.badness() >= b.logits.badness())
        );

        let config = &model.config;
        let item = record(&subject, &items).expect("reference").remove(0);
        let run = |only: &[String], features: Option<&[f32]>| {
            let mut quantization = quantization.clone();
            quantization.options.only = Some(only.iter().cloned().collect());
            let subject = Subject {
                quantization: &quantization,
                ..super::super::testing::subject(&model, &quantization)
            };
            let (kind, output, inputs) = match features {
                None => (
                    ComponentKind::Vision,
                    config.family.image_features,
                    item.vision_inputs(config),
                ),
                Some(features) => (
                    ComponentKind::Decoder,
                    config.family.logits,
                    item.decoder_inputs(config, Some(features)),
                ),
            };
            let none = crate::build::LeftOut::default();
            let graph = subject.graph(kind, Choice::Except(&none)).expect("graph");
            let cuts = crate::cpu::cut(graph.graph.graph(), &[], 1);
            let graph = Stretches::load(graph.graph, cuts).expect("load");
            whole(&graph, output, &inputs.expect("inputs")).expect("run")
        };
        let features = run(&[], None);
        let logits = run(&[], Some(&features));
        let mut compared = 0;
        for component in ["vision", "decoder"] {
            let of = found.layers.iter().filter(|l| l.component == component);
            // A residual alone is not quantized: it goes with its convolution.
            for layer in of.filter(|l| l.ops != ["Add"]).step_by(17) {
                let mut deviation = Deviation::default();
                let logits_then = match component {
                    "vision" => {
                        let features = run(&layer.nodes, None);
                        run(&[], Some(&features))
                    }
                    _ => run(&layer.nodes, Some(&features)),
                };
                deviation.add(&logits, &logits_then);
                let (direct, found) = (deviation.measures(), layer.logits);
                // Beyond 90 dB it is the order of sums in FP32 that differs.
                let [a, b] = [direct, found].map(|m| m.sqnr_db.unwrap_or(200.0).min(90.0));
                assert!((a - b).abs() < 0.1, "{}: {direct:?} {found:?}", layer.name);
                compared += 1;
            }
        }
        assert!(compared >= 5, "{compared}");
    }

    #[test]
    fn damaged_layer_is_the_worst() {
        let (model, items) = (model(), items(1));
        let healthy = int8(scales());
        let kind = ComponentKind::Decoder;
        let [node, tensor] = last_product(&subject(&model, &healthy), kind, "o_proj");
        let damaged = int8(&damaged_scales("decoder", &tensor, 0.001));
        let found = sensitivity(&subject(&model, &damaged), &items, &mut |_| {}).expect("found");
        assert_eq!(found.layers[0].nodes, [node]);
        let output = found.layers[0].output.expect("its own");
        assert!(output.sqnr_db.is_some_and(|db| db < 3.0), "{output:?}");
    }

    #[test]
    fn stop_is_obeyed_between_layers() {
        let (model, items) = (model(), items(1));
        let quantization = int8(scales());
        let subject = subject(&model, &quantization);
        let cancel = Arc::clone(&subject.cancel);
        let mut n = 0;
        let stopped = sensitivity(&subject, &items, &mut |steps| {
            n = steps.done;
            cancel.store(steps.done == 3, Ordering::Relaxed);
        });
        assert!(matches!(stopped, Err(Error::Cancelled)));
        assert_eq!(n, 3);
    }
}
