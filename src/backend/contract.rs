//! What the three graphs of a model folder must have, checked before anything runs.
//!
//! | graph     | inputs                                                            | outputs |
//! |-----------|-------------------------------------------------------------------|---------|
//! | `vision`  | `pixel_values`, SmolVLM also `pixel_attention_mask`               | `image_features` |
//! | `embed`   | `input_ids`                                                       | `inputs_embeds` |
//! | `decoder` | `inputs_embeds [b, n, d]`, `attention_mask`, `past_key_values.N.key`/`.value` `[b, kv_heads, past, head_dim]`, often `position_ids` | `logits [b, n, vocab]`, `present.N.key`/`.value` |

use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::onnx::passes::TapNames;
use crate::onnx::{OnnxModel, ValueType};

/// What taps have to know of a decoder that returns its whole cache.
pub fn tap_names(config: &ModelConfig) -> TapNames<'static> {
    let family = config.family;
    TapNames {
        inputs_embeds: family.inputs_embeds,
        past: family.past_prefix,
        present: family.present_prefix,
        n_layers: config.n_layers,
        n_heads: config.n_heads,
    }
}

/// Checks the vision graph.
///
/// # Errors
/// [`Error::Shape`] naming tensor and file.
pub fn check_vision(model: &OnnxModel, config: &ModelConfig) -> Result<()> {
    let graph = Graph::new(model);
    let family = config.family;
    let pixels = graph.input(family.pixel_values)?;
    let s = config.image_size;
    let rank = if family.tiled { 5 } else { 4 };
    graph.rank(pixels, rank)?;
    graph.fixed(pixels, rank - 3, 3)?;
    graph.fixed(pixels, rank - 2, s)?;
    graph.fixed(pixels, rank - 1, s)?;
    if let Some(mask) = family.pixel_attention_mask {
        graph.input(mask)?;
    }
    let features = graph.output(family.image_features)?;
    if let Some(rank) = features.dims.as_ref().map(Vec::len) {
        graph.fixed(features, rank.saturating_sub(1), config.d_model)?;
    }
    Ok(())
}

/// Checks the token embedding graph.
///
/// # Errors
/// [`Error::Shape`] naming tensor and file.
pub fn check_embed(model: &OnnxModel, config: &ModelConfig) -> Result<()> {
    let graph = Graph::new(model);
    graph.input(config.family.input_ids)?;
    let rows = graph.output(config.family.inputs_embeds)?;
    graph.fixed(rows, 2, config.d_model)
}

/// Checks the decoder graph.
///
/// # Errors
/// [`Error::Shape`] naming tensor and file.
pub fn check_decoder(model: &OnnxModel, config: &ModelConfig) -> Result<()> {
    let graph = Graph::new(model);
    let family = config.family;
    let rows = graph.input(family.inputs_embeds)?;
    graph.rank(rows, 3)?;
    graph.fixed(rows, 2, config.d_model)?;
    let logits = graph.output(family.logits)?;
    graph.rank(logits, 3)?;
    for layer in 0..config.n_layers {
        for past in [family.past_key(layer), family.past_value(layer)] {
            let past = graph.input(&past)?;
            graph.rank(past, 4)?;
            graph.fixed(past, 1, config.n_kv_heads)?;
            graph.fixed(past, 3, config.head_dim)?;
        }
        graph.output(&family.present_key(layer))?;
        graph.output(&family.present_value(layer))?;
    }
    let extra = family.past_key(config.n_layers);
    if graph.inputs.iter().any(|value| value.name == extra) {
        return Err(Error::Shape {
            name: extra,
            expected: format!("{} layers, as config.json says", config.n_layers),
            actual: format!("one more in {}", model.path().display()),
        });
    }
    Ok(())
}

struct Graph<'a> {
    model: &'a OnnxModel,
    inputs: Vec<ValueType>,
    outputs: Vec<ValueType>,
}

impl<'a> Graph<'a> {
    fn new(model: &'a OnnxModel) -> Self {
        Self {
            model,
            inputs: model.graph().inputs(),
            outputs: model.graph().outputs(),
        }
    }

    fn input(&self, name: &str) -> Result<&ValueType> {
        self.find(&self.inputs, name, "input")
    }

    fn output(&self, name: &str) -> Result<&ValueType> {
        self.find(&self.outputs, name, "output")
    }

    fn find<'v>(&self, values: &'v [ValueType], name: &str, kind: &str) -> Result<&'v ValueType> {
        values.iter().find(|v| v.name == name).ok_or_else(|| {
            const SHOWN: usize = 6;
            let mut names: Vec<&str> = values.iter().map(|v| v.name.as_str()).collect();
            if names.len() > SHOWN {
                names.truncate(SHOWN);
                names.push("…");
            }
            Error::Shape {
                name: name.to_owned(),
                expected: format!("an {kind} of {}", self.model.path().display()),
                actual: format!("{kind}s {}", names.join(", ")),
            }
        })
    }

    fn rank(&self, value: &ValueType, rank: usize) -> Result<()> {
        match &value.dims {
            Some(dims) if dims.len() != rank => Err(self.mismatch(value, format!("rank {rank}"))),
            _ => Ok(()),
        }
    }

    /// Refuses a stated dimension other than `n`; dimensions that the file leaves open pass.
    fn fixed(&self, value: &ValueType, axis: usize, n: usize) -> Result<()> {
        match value.fixed(axis) {
            Some(found) if found != n => Err(self.mismatch(value, format!("{n} at axis {axis}"))),
            _ => Ok(()),
        }
    }

    fn mismatch(&self, value: &ValueType, expected: String) -> Error {
        Error::Shape {
            name: value.name.clone(),
            expected: format!("{expected} in {}", self.model.path().display()),
            actual: value.to_string(),
        }
    }
}
