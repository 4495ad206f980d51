//! What rows of a sequence attend to: layers of a decoder, run for their attention alone.

use std::collections::HashSet;
use std::ops::Range;

use rten::{NodeId, Value, ValueOrView};
use rten_tensor::{Tensor, TensorView};

use super::contract;
use super::cpu::cut_decoder;
use crate::cpu::Session;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::onnx::DataType;
use crate::onnx::passes::{LowerOptions, SALIENCY, SALIENCY_ROWS, Tap, add_taps, lower};

/// Layers of the decoder that the pruner `attention` looks at, the first ones: FastV (arXiv 2403.06764) drops
/// tokens by the attention of the second. A pass of all layers would cost what pruning saves.
pub(super) const PRUNER_LAYERS: usize = 2;

/// The part of a decoder that makes the attention of some of its layers.
pub struct Saliency {
    session: Session,
    embeds: NodeId,
    rows: NodeId,
    attention_mask: Option<NodeId>,
    position_ids: Option<NodeId>,
    /// Caches, all of them empty, with their shape `[1, kv_heads, 0, head_dim]`.
    past: Vec<NodeId>,
    kv_shape: [usize; 4],
    saliency: NodeId,
}

impl Saliency {
    /// Reads the decoder once more, and loads what makes the attention of `layers`, as far as it has them: the
    /// weights up to there are in memory twice.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the attention is not found; those of reading and loading it.
    pub fn load(model: &Model, layers: Range<usize>) -> Result<Self> {
        let config = &model.config;
        let family = config.family;
        let mut decoder = cut_decoder(model)?;
        let options = LowerOptions {
            weights: Some(DataType::F32),
            ..LowerOptions::default()
        };
        lower(&mut decoder, &options)?;
        let names = contract::tap_names(config);
        let tap = Tap::Saliency(layers.filter(|&layer| layer < config.n_layers).collect());
        add_taps(&mut decoder, &[tap], &names)?;
        let graph = decoder.graph_mut();
        graph.output.retain(|output| output.name == SALIENCY);
        graph.remove_unused();
        let mut read = HashSet::new();
        for node in &graph.node {
            node.each_read(&mut |name| {
                read.insert(name.to_owned());
            });
        }
        graph.input.retain(|input| read.contains(&input.name));
        let session = Session::load(&decoder)?;
        let optional = |name: &str| {
            let present = session.has_input(name);
            present.then(|| session.input(name)).transpose()
        };
        let mut past = Vec::new();
        for layer in 0..config.n_layers {
            for name in [family.past_key(layer), family.past_value(layer)] {
                past.extend(optional(&name)?);
            }
        }
        Ok(Self {
            embeds: session.input(family.inputs_embeds)?,
            rows: session.input(SALIENCY_ROWS)?,
            attention_mask: optional(family.attention_mask)?,
            position_ids: optional(family.position_ids)?,
            saliency: session.output(SALIENCY)?,
            past,
            kv_shape: [1, config.n_kv_heads, 0, config.head_dim],
            session,
        })
    }

    /// How much the rows `from` attend to each row of a sequence, `[n]`, mean over them, the heads and the layers;
    /// `rows` are those of the sequence, `[n, d_model]`.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn run(&self, rows: Vec<f32>, positions: &[u32], from: &[i32]) -> Result<Vec<f32>> {
        let n = positions.len();
        let d_model = rows.len() / n.max(1);
        let positions: Vec<i32> = positions.iter().map(|&p| p as i32).collect();
        let from = TensorView::from_data(&[from.len()], from);
        let mut inputs: Vec<(NodeId, ValueOrView<'_>)> = vec![
            (
                self.embeds,
                Tensor::from_data(&[1, n, d_model], rows).into(),
            ),
            (self.rows, from.into()),
        ];
        if let Some(id) = self.attention_mask {
            inputs.push((id, Tensor::<i32>::full(&[1, n], 1).into()));
        }
        if let Some(id) = self.position_ids {
            inputs.push((id, Tensor::from_data(&[1, n], positions).into()));
        }
        for &id in &self.past {
            inputs.push((id, Tensor::<f32>::zeros(&self.kv_shape).into()));
        }
        let value = self
            .session
            .run(inputs, &[self.saliency])?
            .into_iter()
            .next();
        let found = value.and_then(Value::into_tensor::<f32>);
        let found = found.map(|tensor| tensor.into_data()).unwrap_or_default();
        if found.len() != n {
            return Err(Error::Shape {
                name: SALIENCY.to_owned(),
                expected: format!("[1, {n}] f32"),
                actual: format!("{} numbers", found.len()),
            });
        }
        Ok(found)
    }
}
