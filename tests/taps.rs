//! Taps of a decoder give PyTorch's hidden states and attention, and TensorRT builds them.
//!
//! Golden values: `tests/golden/taps/make.py`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rten::{NodeId, Value, ValueOrView};
use rten_tensor::prelude::*;
use rten_tensor::{NdTensor, Tensor};
use safetensors::SafeTensors;
use trtvlm::build::{Capacity, ComponentKind, Cuts, Numerics, Runner, prepare};
use trtvlm::bundle::Precision;
use trtvlm::cpu::Session;
use trtvlm::model::Model;
use trtvlm::onnx::passes::{LOGIT_ROWS, SALIENCY_ROWS};

/// Largest difference, relative to the largest value: sums in another order.
const TOLERANCE: f32 = 5e-6;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Floats of a file of golden values, with their shapes.
fn floats(path: &Path) -> HashMap<String, (Vec<usize>, Vec<f32>)> {
    let file = std::fs::read(path).expect("golden");
    let tensors = SafeTensors::deserialize(&file).expect("safetensors");
    let all = tensors.tensors().into_iter();
    let floats = all.filter(|(_, view)| view.dtype() == safetensors::Dtype::F32);
    let read = |bytes: &[u8]| -> Vec<f32> {
        let numbers = bytes.chunks_exact(4);
        numbers
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect()
    };
    floats
        .map(|(name, view)| (name, (view.shape().to_vec(), read(view.data()))))
        .collect()
}

/// A decoder with taps, cut for a cache of fixed capacity or not.
struct Decoder {
    session: Session,
    model: Model,
    fixed: bool,
}

impl Decoder {
    fn new(folder: &str, taps: &[&str], runner: Runner) -> Self {
        let dir = root().join("tests/data/tiny").join(folder);
        let model = Model::load(&dir, Some("fp32")).expect(folder);
        let numerics = Numerics {
            precision: Precision::Fp32,
            quantization: None,
        };
        let cuts = Cuts {
            taps: taps.iter().map(|tap| tap.parse().expect("tap")).collect(),
            head_bytes: None,
        };
        let capacity = Capacity::new(&model.config, None, 4, 1).expect("capacity");
        let kind = ComponentKind::Decoder;
        let made = prepare(
            kind,
            &model,
            runner,
            numerics,
            &cuts,
            &capacity,
            &Arc::default(),
        );
        let session = Session::load(&made.expect("prepare").graph).expect("session");
        Self {
            session,
            model,
            fixed: runner == Runner::TensorRt,
        }
    }

    /// Outputs `names` for new rows behind `past` (keys and values of all layers), and the new keys
    /// and values.
    fn run(
        &self,
        embeds: &[f32],
        past: &[NdTensor<f32, 4>],
        salient: &[i32],
        names: &[&str],
    ) -> (Vec<Vec<f32>>, Vec<NdTensor<f32, 4>>) {
        let (config, family) = (&self.model.config, self.model.config.family);
        let rows = embeds.len() / config.d_model;
        let n_past = past.first().map_or(0, |past| past.size(2));
        let mut inputs: Vec<(NodeId, ValueOrView<'_>)> = Vec::new();
        let mut give = |name: &str, value: Value| {
            if self.session.has_input(name) {
                inputs.push((self.session.input(name).expect(name), value.into()));
            }
        };
        let positions: Vec<i32> = (n_past..n_past + rows).map(|p| p as i32).collect();
        let embeds = Tensor::from_data(&[1, rows, config.d_model], embeds.to_vec());
        give(family.inputs_embeds, embeds.into());
        let mask = Tensor::<i32>::full(&[1, n_past + rows], 1);
        give(family.attention_mask, mask.into());
        give(
            family.position_ids,
            Tensor::from_data(&[1, rows], positions).into(),
        );
        give(
            LOGIT_ROWS,
            Tensor::from_data(&[1], vec![rows as i32 - 1]).into(),
        );
        give(
            SALIENCY_ROWS,
            Tensor::from_data(&[salient.len()], salient.to_vec()).into(),
        );
        let present = if self.fixed {
            "new"
        } else {
            family.present_prefix
        };
        let mut outputs: Vec<NodeId> = names
            .iter()
            .map(|name| self.session.output(name).expect(name))
            .collect();
        for layer in 0..config.n_layers {
            for (index, kind) in ["key", "value"].into_iter().enumerate() {
                let empty = || NdTensor::zeros([1, config.n_kv_heads, 0, config.head_dim]);
                let past = past.get(2 * layer + index).cloned().unwrap_or_else(empty);
                give(
                    &format!("{}.{layer}.{kind}", family.past_prefix),
                    past.into_dyn().into(),
                );
                let name = format!("{present}.{layer}.{kind}");
                outputs.push(self.session.output(&name).expect("present"));
            }
        }
        let mut values = self.session.run(inputs, &outputs).expect("run").into_iter();
        let taken = values.by_ref().take(names.len());
        let taken = taken.map(|value| value.into_tensor::<f32>().expect("floats").into_data());
        let taken = taken.collect();
        let cache = values.map(|value| {
            let value: Tensor<f32> = value.into_tensor().expect("floats");
            value.try_into().expect("four dimensions")
        });
        (taken, cache.collect())
    }
}

fn difference(expected: &[f32], found: &[f32]) -> f32 {
    assert_eq!(expected.len(), found.len());
    let largest = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
    let pairs = expected.iter().zip(found);
    pairs.fold(0f32, |most, (a, b)| most.max((a - b).abs())) / largest
}

#[test]
fn taps_of_every_form_of_decoder_are_those_of_pytorch() {
    let taps = [
        "hidden",
        "hidden-rows",
        "layer:0",
        "layer:1",
        "saliency:0+2",
    ];
    let outputs = ["hidden", "hidden_rows", "layer_0", "layer_1", "saliency"];
    for family in ["fastvlm", "smolvlm"] {
        let golden = floats(&root().join(format!("tests/golden/taps/{family}.safetensors")));
        for form in ["plain", "contrib", "contrib-sep"] {
            let folder = format!("{family}-tiny-{form}");
            let plain = root().join(format!("tests/data/tiny/{family}-tiny-plain"));
            let embeds = &floats(&plain.join("golden.safetensors"))["inputs_embeds"].1;
            for runner in [Runner::TensorRt, Runner::Cpu] {
                let decoder = Decoder::new(&folder, &taps, runner);
                let d = decoder.model.config.d_model;
                let rows = (embeds.len() / d) as i32;
                let salient = [3, rows - 4, rows - 1];
                let (found, _) = decoder.run(embeds, &[], &salient, &outputs);
                let last = |name: &str| golden[name].1[(rows as usize - 1) * d..].to_vec();
                for (name, found, expected) in [
                    ("hidden", &found[0], golden["hidden"].1.clone()),
                    ("hidden_rows", &found[1], last("hidden")),
                    ("layer_0", &found[2], golden["layer_0"].1.clone()),
                    ("layer_1", &found[3], golden["layer_1"].1.clone()),
                    ("saliency", &found[4], golden["saliency_02"].1.clone()),
                ] {
                    let off = difference(&expected, found);
                    assert!(off <= TOLERANCE, "{folder} {runner:?} {name}: {off}");
                }
            }
        }
    }
}

#[test]
fn taps_of_a_step_are_those_of_the_same_row_in_a_prompt() {
    for folder in ["fastvlm-tiny-plain", "smolvlm-tiny-contrib"] {
        let family = folder.split('-').next().expect("family");
        let golden = floats(&root().join(format!("tests/golden/taps/{family}.safetensors")));
        let plain = root().join(format!("tests/data/tiny/{family}-tiny-plain"));
        let embeds = &floats(&plain.join("golden.safetensors"))["inputs_embeds"].1;
        let decoder = Decoder::new(
            folder,
            &["hidden", "layer:1", "saliency:0"],
            Runner::TensorRt,
        );
        let d = decoder.model.config.d_model;
        let before = embeds.len() / d - 1;
        let outputs = ["hidden", "layer_1", "saliency"];
        let (_, cache) = decoder.run(&embeds[..before * d], &[], &[0], &outputs);
        let (found, _) = decoder.run(&embeds[before * d..], &cache, &[0], &outputs);
        for (name, found) in [("hidden", &found[0]), ("layer_1", &found[1])] {
            let off = difference(&golden[name].1[before * d..], found);
            assert!(off <= TOLERANCE, "{folder} {name}: {off}");
        }
        // One row's attention to each row of the sequence.
        let sum: f32 = found[2].iter().sum();
        assert!(found[2].len() == before + 1 && (sum - 1.0).abs() < 1e-5);
    }
}
