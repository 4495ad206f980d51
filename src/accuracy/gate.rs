//! The gate: a quantized model has to say what the model says, on enough of the items.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::search::search;
use super::sensitivity::{LayerError, Sensitivity, Steps, default_items, sensitivity};
use super::subject::{Choice, Subject};
use crate::error::{Error, Result};
use crate::eval::{EvalOptions, Progress, Share, evaluate};
use crate::items::{Item, spread};
use crate::pipeline::{Ask, Pipeline};

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
    /// Answers, in percent of the items, that may differ from the reference's.
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
    /// The quantized model answers the items, with so many layers left in FP16.
    Trial {
        /// Layers left in FP16.
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
    /// The same with what is left in FP16.
    pub after: Share,
    /// Layers left in FP16, the worst first.
    pub kept: Vec<LayerError>,
    /// Measurements that it took.
    pub trials: usize,
}

impl GateReport {
    /// Labels of the nodes that are left in FP16.
    pub fn nodes(&self) -> BTreeSet<String> {
        let nodes = self.kept.iter().flat_map(|layer| &layer.nodes);
        nodes.cloned().collect()
    }
}

/// Compares the quantized model's answers with the model's own on `items`, and leaves layers in
/// FP16, the worst first, until no more differ than are allowed.
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
    let items = reference_answers(subject, items, options, on_step)?;
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
    let mut measure =
        |nodes: &BTreeSet<String>, left_out: usize, on_step: &mut dyn FnMut(GateStep)| {
            trials += 1;
            let mut pipeline = subject.pipeline(Choice::Except(nodes))?;
            let share = ask_all(subject, &mut pipeline, &items, options, &mut |progress| {
                on_step(GateStep::Trial { left_out, progress });
            })?;
            Ok::<_, Error>((
                100.0 * (1.0 - share.share) <= options.max_drop + 1e-9,
                share,
            ))
        };
    let (holds, before) = measure(&BTreeSet::new(), 0, on_step)?;
    let (mut after, mut kept) = (before, Vec::new());
    if !holds {
        // Which layers are to blame has to be known then, asked for or not.
        let judged = match found.take() {
            Some(judged) => judged,
            None => judge(default_items(subject.model)?, on_step)?,
        };
        let layers = &judged.layers;
        let nodes = |ranks: &BTreeSet<usize>| -> BTreeSet<String> {
            let nodes = ranks.iter().flat_map(|&rank| &layers[rank].nodes);
            nodes.cloned().collect()
        };
        let (best, _) = search(layers.len(), &mut |ranks| match ranks.is_empty() {
            true => Ok((false, before)),
            false => measure(&nodes(ranks), ranks.len(), on_step),
        })?;
        if !best.holds {
            return Err(missed(best.value, options.max_drop));
        }
        after = best.value;
        kept = best
            .left_out
            .iter()
            .map(|&rank| layers[rank].clone())
            .collect();
        found = Some(judged);
    }
    Ok(Proof {
        gate: GateReport {
            max_drop: options.max_drop,
            engine: engine(),
            before,
            after,
            kept,
            trials,
        },
        sensitivity: found,
    })
}

fn missed(share: Share, max_drop: f64) -> Error {
    Error::Threshold {
        what: "agreement with the model's own answers, with every layer in FP16,",
        actual: format!(
            "{:.2} % ({} of {})",
            share.share * 100.0,
            share.hits,
            share.of
        ),
        expected: format!("{} %", 100.0 - max_drop),
    }
}

/// The items with the ids that the model itself answers.
fn reference_answers(
    subject: &Subject<'_>,
    items: &[Item],
    options: &GateOptions,
    on_step: &mut dyn FnMut(GateStep),
) -> Result<Vec<Item>> {
    let model = subject.model.clone();
    let precision = model.files.variant.clone();
    let backend = Box::new(subject.reference()?);
    let mut pipeline = Pipeline::with_backend(model, precision, "cpu", backend)?;
    let outcome = evaluate(
        &mut pipeline,
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
    Ok(answered.collect())
}

/// How many answers have the ids of the items.
fn ask_all(
    subject: &Subject<'_>,
    pipeline: &mut Pipeline,
    items: &[Item],
    options: &GateOptions,
    on_progress: &mut dyn FnMut(Progress),
) -> Result<Share> {
    let outcome = evaluate(
        pipeline,
        None,
        items,
        &eval_options(subject, options),
        &mut |progress| on_progress(*progress),
    )?;
    let agreements = outcome.outcomes.iter().filter_map(|o| o.agreement.as_ref());
    Ok(Share::of(agreements.map(|agreement| agreement.agrees)))
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

    const OPTIONS: GateOptions = GateOptions {
        max_drop: 1.0,
        max_tokens: None,
        sensitivity_items: 1,
    };

    #[test]
    fn damaged_layer_alone_is_left_in_fp16() {
        let (model, items) = (model(), items(6));
        let healthy = int8(scales());
        let kind = ComponentKind::Decoder;
        let [node, tensor] = last_product(&subject(&model, &healthy), kind, "o_proj");
        let damaged = int8(&damaged_scales("decoder", &tensor, 0.001));
        let subject = subject(&model, &damaged);
        let mut seen = Vec::new();
        let proof = prove(&subject, &items, &OPTIONS, &mut |step| seen.push(step)).expect("proof");
        assert_eq!(proof.gate.nodes(), [node].into());
        assert!(proof.gate.before.share < 0.99 && proof.gate.after.share == 1.0);
        assert_eq!(proof.gate.after.of, 6);
        assert_eq!(proof.gate.trials, 2);
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
        assert!(proof.gate.kept.is_empty() && proof.sensitivity.is_none());
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
