//! The gate: a quantized model has to say what the model says, on enough of the items.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::margins::{Heard, Listener};
use super::search::search;
use super::sensitivity::{LayerError, Sensitivity, Steps, default_items, sensitivity};
use super::subject::{Choice, Subject};
use crate::backend::CpuBackend;
use crate::build::{ComponentKind, LeftOut, Nodes};
use crate::error::{Error, Result};
use crate::eval::{EvalOptions, Progress, Share, evaluate};
use crate::items::{Item, spread};
use crate::pipeline::{Ask, Pipeline};
use crate::quantize::Scheme;
use crate::sync::lock;

/// Percent of answers that are expected to differ, below which the measurement of some hundred
/// tokens does not tell from none.
const NOTHING: f64 = 0.5;

/// How the CPU engine computes the integers of a measurement.
fn engine() -> String {
    let instructions = crate::cpu::instructions();
    format!(
        "CPU: large products of integers ({instructions}), the rest quantized and dequantized in FP32"
    )
}

/// What to prove.
#[derive(Debug, Clone, Copy)]
pub struct GateOptions {
    /// Answers, in percent of the items, that may differ from the reference's, or may be expected to
    /// by how far their tokens are from others.
    pub max_drop: f64,
    /// Most tokens of an answer.
    pub max_tokens: Option<usize>,
    /// Items whose layers are looked at, evenly spread; 0 for none unless a layer has to be found.
    pub sensitivity_items: usize,
}

/// What a proof is at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum GateStep {
    /// The reference answers the items.
    Reference(Progress),
    /// Layers are judged.
    Layers(Steps),
    /// The quantized model answers the items, with so many layers left out.
    Trial {
        /// Layers that read floats, or are wholly left in FP16.
        left_out: usize,
        /// How far it is.
        progress: Progress,
    },
}

/// What was proved.
#[derive(Debug, Clone, PartialEq)]
pub struct Proof {
    /// The gate's result.
    pub gate: GateReport,
    /// The layers, if they were judged.
    pub sensitivity: Option<Sensitivity>,
}

/// The gate's result, as it stands in `reports/accuracy.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateReport {
    /// Answers, in percent, that were allowed to differ.
    pub max_drop: f64,
    /// How integers were computed.
    pub engine: String,
    /// Answers with the reference's ids, everything quantized.
    pub before: Share,
    /// The same with what is left out.
    pub after: Share,
    /// Answers that differ then, and part from the reference's where its two best tokens are closer than
    /// FP16 tells apart: they do not count.
    pub near_ties: usize,
    /// Share of the answers to any such items that is expected to have the reference's ids, by the
    /// margins of tokens, everything quantized.
    pub expected_before: f64,
    /// The same with what is left out.
    pub expected_after: f64,
    /// Layers left in FP16, the worst first.
    pub kept: Vec<LayerError>,
    /// Layers of linear operators that read FP16 and have integer weights, the worst first.
    pub weights_only: Vec<LayerError>,
    /// Measurements that it took.
    pub trials: usize,
}

impl GateReport {
    /// The nodes that are left out.
    pub fn left_out(&self) -> LeftOut {
        LeftOut {
            whole: nodes_of(&self.kept),
            activations: nodes_of(&self.weights_only),
        }
    }
}

/// How layers are left out of integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Linear operators keep their integer weights, which are most of what a decoder reads; others are
    /// left in FP16.
    Activations,
    /// All are left in FP16.
    Whole,
}

impl Way {
    /// The layers of these ranks, apart: those left in FP16, and those that read it.
    fn split(self, layers: &[LayerError], ranks: &BTreeSet<usize>) -> [Vec<LayerError>; 2] {
        let is_linear = |op: &String| op == "MatMul" || op == "Gemm";
        let keeps_weights = |layer: &LayerError| match self {
            Self::Activations => layer.ops.iter().all(is_linear),
            Self::Whole => false,
        };
        let chosen = ranks.iter().map(|&rank| layers[rank].clone());
        let (weights_only, whole) = chosen.partition(keeps_weights);
        [whole, weights_only]
    }

    fn left_out(self, layers: &[LayerError], ranks: &BTreeSet<usize>) -> LeftOut {
        let [whole, activations] = self.split(layers, ranks).map(|of| nodes_of(&of));
        LeftOut { whole, activations }
    }
}

/// The nodes of some layers.
fn nodes_of<'a>(layers: impl IntoIterator<Item = &'a LayerError>) -> Nodes {
    let mut nodes = Nodes::new();
    for layer in layers {
        if let Some(kind) = ComponentKind::of_name(&layer.component) {
            nodes
                .entry(kind)
                .or_default()
                .extend(layer.nodes.iter().cloned());
        }
    }
    nodes
}

/// What a trial said.
#[derive(Debug, Clone, Copy)]
struct Trial {
    /// Answers that are the reference's.
    same: Share,
    /// Answers that are not, and part from the reference's at a near tie.
    ties: usize,
    /// Share of any answers that is expected to be.
    expected: f64,
}

impl Trial {
    fn holds(&self, max_drop: f64) -> bool {
        let at_most = |drop: f64, share: f64| 100.0 * (1.0 - share) <= drop + 1e-9;
        // What FP16 would decide by chance says nothing of integers.
        let same = Share::new(self.same.hits + self.ties, self.same.of);
        at_most(max_drop, same.share) && at_most(max_drop.max(NOTHING), self.expected)
    }
}

/// Compares the quantized model's answers with the model's own on `items`, and leaves layers out,
/// the worst first, until no more differ than are allowed, and no more are expected to differ on
/// other items: by how much the margins of tokens are shifted.
///
/// Answers that part at near ties do not count. What is left out of linear operators are their activations, of others everything; if that is not
/// enough with all layers, everything of the worst, whatever they are.
///
/// Items whose picture cannot be read are passed over.
///
/// # Errors
/// [`Error::Threshold`] if even the model with everything in FP16 differs more; [`Error::Argument`]
/// if `max_drop` is no percentage; [`Error::Cancelled`] after a stop; those of reading, quantizing
/// and the engine.
pub fn prove(
    subject: &Subject<'_>,
    items: &[Item],
    options: &GateOptions,
    on_step: &mut dyn FnMut(GateStep),
) -> Result<Proof> {
    if !(0.0..=100.0).contains(&options.max_drop) {
        return Err(Error::Argument {
            name: "max-drop",
            reason: format!("{}, from 0 to 100", options.max_drop),
        });
    }
    let (items, heard) = reference_answers(subject, items, options, on_step)?;
    let heard = Arc::new(heard);
    let judge = |n: usize, on_step: &mut dyn FnMut(GateStep)| {
        let few = spread(items.clone(), n);
        let found = sensitivity(subject, &few, &mut |steps| on_step(GateStep::Layers(steps)))?;
        Ok::<_, Error>(found)
    };
    let mut found = match options.sensitivity_items {
        0 => None,
        n => Some(judge(n, on_step)?),
    };
    let mut trials = 0;
    let mut measure = |nodes: &LeftOut, left_out: usize, on_step: &mut dyn FnMut(GateStep)| {
        trials += 1;
        let backend = subject.backend(Choice::Except(nodes))?;
        let trial = ask_all(subject, backend, &heard, &items, options, &mut |progress| {
            on_step(GateStep::Trial { left_out, progress });
        })?;
        Ok::<_, Error>((trial.holds(options.max_drop), trial))
    };
    let (holds, before) = measure(&LeftOut::default(), 0, on_step)?;
    let (mut after, mut kept, mut weights_only) = (before, Vec::new(), Vec::new());
    if !holds {
        // Which layers are to blame has to be known then, asked for or not.
        let judged = match found.take() {
            Some(judged) => judged,
            None => judge(default_items(subject.model)?, on_step)?,
        };
        let layers = &judged.layers;
        let ways = match subject.quantization.options.scheme {
            Scheme::Int8 => &[Way::Activations, Way::Whole][..],
            Scheme::Int8Weights | Scheme::Int4Weights => &[Way::Whole],
        };
        for &way in ways {
            let (best, _) = search(layers.len(), &mut |ranks| match ranks.is_empty() {
                true => Ok((false, before)),
                false => measure(&way.left_out(layers, ranks), ranks.len(), on_step),
            })?;
            after = best.value;
            if best.holds {
                [kept, weights_only] = way.split(layers, &best.left_out);
                break;
            }
        }
        if kept.is_empty() && weights_only.is_empty() {
            return Err(missed(after, options.max_drop));
        }
        found = Some(judged);
    }
    Ok(Proof {
        gate: GateReport {
            max_drop: options.max_drop,
            engine: engine(),
            before: before.same,
            after: after.same,
            near_ties: after.ties,
            expected_before: rounded(before.expected),
            expected_after: rounded(after.expected),
            kept,
            weights_only,
            trials,
        },
        sensitivity: found,
    })
}

/// In steps of a hundredth of a percent.
fn rounded(share: f64) -> f64 {
    (share * 1e4).round() / 1e4
}

fn missed(trial: Trial, max_drop: f64) -> Error {
    let same = trial.same;
    Error::Threshold {
        what: "agreement with the model's own answers, with every layer in FP16,",
        actual: format!(
            "{:.2} % ({} of {}, and {:.2} % are expected to by the margins of their tokens)",
            same.share * 100.0,
            same.hits,
            same.of,
            trial.expected * 100.0
        ),
        expected: format!("{} %", 100.0 - max_drop),
    }
}

/// The items with the ids that the model itself answers, and what was heard of them.
fn reference_answers(
    subject: &Subject<'_>,
    items: &[Item],
    options: &GateOptions,
    on_step: &mut dyn FnMut(GateStep),
) -> Result<(Vec<Item>, Heard)> {
    let heard = Arc::new(Mutex::new(Heard::default()));
    let backend = Listener::new(subject.reference()?, Arc::default(), Arc::clone(&heard));
    let outcome = evaluate(
        &mut pipeline(subject, backend)?,
        None,
        items,
        &eval_options(subject, options),
        &mut |progress| on_step(GateStep::Reference(*progress)),
    )?;
    let answered = outcome.outcomes.into_iter().map(|outcome| Item {
        token_ids: Some(outcome.answer.token_ids),
        eos: None,
        ..items[outcome.item].clone()
    });
    let answered = answered.collect();
    Ok((answered, std::mem::take(&mut *lock(&heard))))
}

fn pipeline(subject: &Subject<'_>, backend: Listener) -> Result<Pipeline> {
    let precision = subject.precision.to_string();
    Pipeline::with_backend(subject.model.clone(), precision, "cpu", Box::new(backend))
}

/// How many answers have the ids of the items, whose tokens `reference` has heard.
fn ask_all(
    subject: &Subject<'_>,
    backend: CpuBackend,
    reference: &Arc<Heard>,
    items: &[Item],
    options: &GateOptions,
    on_progress: &mut dyn FnMut(Progress),
) -> Result<Trial> {
    let heard = Arc::new(Mutex::new(Heard::default()));
    let listener = Listener::new(backend, Arc::clone(reference), Arc::clone(&heard));
    let outcome = evaluate(
        &mut pipeline(subject, listener)?,
        None,
        items,
        &eval_options(subject, options),
        &mut |progress| on_progress(*progress),
    )?;
    if let Some(missing) = outcome.unreadable.first() {
        // What is heard of later ones would be compared with the tokens of others.
        let reason = "could be read before the measurement, and cannot any more";
        return Err(Error::malformed(missing, reason));
    }
    let agreements = outcome.outcomes.iter().map(|o| o.agreement.as_ref());
    let agreements = agreements.enumerate().filter_map(|(i, a)| Some((i, a?)));
    let ties = agreements.clone().filter(|(answer, agreement)| {
        !agreement.agrees && reference.is_tie(*answer, agreement.n_equal)
    });
    Ok(Trial {
        ties: ties.count(),
        same: Share::of(agreements.map(|(_, agreement)| agreement.agrees)),
        expected: 1.0 - reference.expected(&lock(&heard).shifts),
    })
}

fn eval_options<'a>(subject: &'a Subject<'_>, options: &GateOptions) -> EvalOptions<'a> {
    EvalOptions {
        ask: Ask {
            max_tokens: options.max_tokens,
            cancel: Some(&subject.cancel),
            ..Ask::default()
        },
        skip_missing: true,
        warm_up: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{
        damaged_scales, int8, items, last_product, model, scales, subject,
    };
    use super::*;
    use crate::build::ComponentKind;

    // What all other layers do to six answers, one of them a near tie, is less.
    const OPTIONS: GateOptions = GateOptions {
        max_drop: 15.0,
        max_tokens: None,
        sensitivity_items: 1,
    };

    #[test]
    fn nodes_of_layers_stay_apart_by_component() {
        let layer = |component: &str| LayerError {
            component: component.to_owned(),
            name: "n".to_owned(),
            ops: Vec::new(),
            nodes: vec!["n".to_owned(), component.to_owned()],
            output: None,
            features: None,
            logits: super::super::Deviation::default().measures(),
            changed: 0,
        };
        let found = nodes_of(&[layer("vision"), layer("decoder")]);
        for kind in [ComponentKind::Vision, ComponentKind::Decoder] {
            let expected = ["n".to_owned(), kind.name().to_owned()].into();
            assert_eq!(found[&kind], expected);
        }
    }

    #[test]
    fn trial_holds_if_neither_what_differs_nor_what_is_expected_to_is_too_much() {
        let of_ties = |hits, ties, expected, max_drop| {
            let same = Share::new(hits, 100);
            let trial = Trial {
                same,
                ties,
                expected,
            };
            trial.holds(max_drop)
        };
        let holds = |hits, expected, max_drop| of_ties(hits, 0, expected, max_drop);
        assert!(of_ties(97, 2, 0.99, 1.0) && !of_ties(97, 1, 0.99, 1.0));
        assert!(holds(99, 0.99, 1.0) && !holds(98, 0.99, 1.0) && !holds(100, 0.98, 1.0));
        // Less than half a percent is not told from none.
        assert!(holds(100, 0.996, 0.0) && !holds(99, 1.0, 0.0) && !holds(100, 0.99, 0.0));
    }

    #[test]
    fn damaged_layer_alone_reads_floats() {
        let (model, items) = (model(), items(6));
        let healthy = int8(scales());
        let kind = ComponentKind::Decoder;
        let [node, tensor] = last_product(&subject(&model, &healthy), kind, "o_proj");
        let damaged = int8(&damaged_scales("decoder", &tensor, 0.001));
        let subject = subject(&model, &damaged);
        let mut seen = Vec::new();
        let proof = prove(&subject, &items, &OPTIONS, &mut |step| seen.push(step)).expect("proof");
        let left_out = proof.gate.left_out();
        assert_eq!(left_out.activations, [(kind, [node].into())].into());
        assert!(left_out.whole.is_empty());
        assert!(proof.gate.before.share < 0.99 && proof.gate.after.share == 1.0);
        assert_eq!(proof.gate.after.of, 6);
        assert_eq!(proof.gate.trials, 2);
        let [before, after] = [proof.gate.expected_before, proof.gate.expected_after];
        assert!(before < after && after < 1.0, "{before} {after}");
        assert_eq!(proof.sensitivity.expect("layers").items, 1);
        assert!(matches!(seen[0], GateStep::Reference(_)));
        assert!(
            seen.iter()
                .any(|s| matches!(s, GateStep::Trial { left_out: 1, .. }))
        );
    }

    #[test]
    fn gate_that_holds_leaves_nothing_out() {
        let (model, items) = (model(), items(2));
        let quantization = int8(scales());
        let options = GateOptions {
            max_drop: 100.0,
            sensitivity_items: 0,
            ..OPTIONS
        };
        let subject = subject(&model, &quantization);
        let proof = prove(&subject, &items, &options, &mut |_| {}).expect("proof");
        let gate = &proof.gate;
        assert!(gate.kept.is_empty() && gate.weights_only.is_empty());
        assert!(proof.sensitivity.is_none());
        assert_eq!(
            (proof.gate.before, proof.gate.trials),
            (proof.gate.after, 1)
        );
        for max_drop in [-1.0, 101.0, f64::NAN] {
            let options = GateOptions {
                max_drop,
                ..OPTIONS
            };
            let error = prove(&subject, &items, &options, &mut |_| {}).expect_err("no percentage");
            assert!(
                matches!(
                    error,
                    Error::Argument {
                        name: "max-drop",
                        ..
                    }
                ),
                "{error}"
            );
        }
    }
}
