//! The decoder that a runtime with a cache of fixed capacity uses is the decoder of the file.
//!
//! Both are run side by side over a prefill and 32 steps of one to five rows, with rows taken back
//! as after rejected drafts. The original's cache grows and is cut; the other one's is a block whose
//! unused slots hold garbage.

use std::path::Path;

use rten::{NodeId, Value, ValueOrView};
use rten_tensor::prelude::*;
use rten_tensor::{NdTensor, Tensor};
use trtvlm::cpu::Session;
use trtvlm::model::{Model, ModelConfig};
use trtvlm::onnx::OnnxModel;
use trtvlm::onnx::passes::{
    LOGIT_ROWS, NEW_PREFIX, group_queries, prepare_fp32, return_new_rows, select_logit_rows,
    split_lm_head,
};

/// Slots of the fixed cache.
const CAPACITY: usize = 160;
/// Rows of the prompt.
const PROMPT: usize = 37;
/// What unused slots hold.
const GARBAGE: f32 = 1e3;
/// Largest difference, relative to the largest logit: sums in another order.
const TOLERANCE: f32 = 2e-6;

/// A decoder with one sequence in its cache.
struct Decoder {
    session: Session,
    config: ModelConfig,
    past: Vec<NodeId>,
    present: Vec<NodeId>,
    cache: Vec<NdTensor<f32, 4>>,
    /// True if the cache has a fixed capacity.
    fixed: bool,
    n_rows: usize,
}

impl Decoder {
    fn new(graph: &OnnxModel, config: ModelConfig, fixed: bool) -> Self {
        let session = Session::load(graph).expect("session");
        let family = config.family;
        let names: Vec<String> = (0..config.n_layers)
            .flat_map(|layer| ["key", "value"].map(|kind| format!("{layer}.{kind}")))
            .collect();
        let prefix = if fixed {
            format!("{NEW_PREFIX}.")
        } else {
            format!("{}.", family.present_prefix)
        };
        let id = |found: trtvlm::Result<NodeId>| found.expect("tensor");
        let past = names
            .iter()
            .map(|n| id(session.input(&format!("{}.{n}", family.past_prefix))));
        let present = names
            .iter()
            .map(|n| id(session.output(&format!("{prefix}{n}"))));
        let (past, present): (Vec<_>, Vec<_>) = (past.collect(), present.collect());
        let slots = if fixed { CAPACITY } else { 0 };
        let shape = [1, config.n_kv_heads, slots, config.head_dim];
        let cache = vec![NdTensor::full(shape, GARBAGE); past.len()];
        Self {
            session,
            past,
            present,
            cache,
            fixed,
            n_rows: 0,
            config,
        }
    }

    /// Logits of all new rows.
    fn step(&mut self, embeds: &[f32]) -> Vec<f32> {
        let d = self.config.d_model;
        let rows = embeds.len() / d;
        // A prefill of the fixed cache binds none of it.
        let bound = if self.fixed && self.n_rows > 0 {
            CAPACITY
        } else {
            self.n_rows
        };
        let used = (0..bound).map(|slot| i32::from(slot < self.n_rows));
        let mask: Vec<i32> = used.chain(std::iter::repeat_n(1, rows)).collect();
        let positions: Vec<i32> = (self.n_rows..self.n_rows + rows)
            .map(|p| p as i32)
            .collect();
        let wanted: Vec<i32> = (0..rows as i32).collect();
        let family = self.config.family;
        let mut inputs: Vec<(NodeId, ValueOrView<'_>)> = Vec::new();
        let mut give = |name: &str, value: Value| {
            if self.session.has_input(name) {
                inputs.push((self.session.input(name).expect(name), value.into()));
            }
        };
        give(
            family.inputs_embeds,
            Tensor::from_data(&[1, rows, d], embeds.to_vec()).into(),
        );
        give(
            family.attention_mask,
            Tensor::from_data(&[1, bound + rows], mask).into(),
        );
        give(
            family.position_ids,
            Tensor::from_data(&[1, rows], positions).into(),
        );
        give(LOGIT_ROWS, Tensor::from_data(&[rows], wanted).into());
        for (&id, cache) in self.past.iter().zip(&self.cache) {
            let bound = cache.slice((.., .., ..bound)).to_tensor();
            inputs.push((id, Value::from(bound.into_dyn()).into()));
        }
        let mut outputs = vec![self.session.output("logits").expect("logits")];
        outputs.extend(&self.present);
        let mut values = self.session.run(inputs, &outputs).expect("run").into_iter();
        let logits = values.next().expect("logits").into_tensor::<f32>();
        for (cache, value) in self.cache.iter_mut().zip(values) {
            let value: Tensor<f32> = value.into_tensor().expect("floats");
            let value: NdTensor<f32, 4> = value.try_into().expect("four dimensions");
            if self.fixed {
                assert_eq!(value.size(2), rows);
                let mut slots = cache.slice_mut((.., .., self.n_rows..self.n_rows + rows));
                slots.copy_from(&value.view());
            } else {
                *cache = value;
            }
        }
        self.n_rows += rows;
        logits.expect("floats").into_data()
    }

    /// Takes the newest `n` rows back.
    fn roll_back(&mut self, n: usize) {
        self.n_rows -= n;
        if !self.fixed {
            for cache in &mut self.cache {
                *cache = cache.slice((.., .., ..self.n_rows)).to_tensor();
            }
        }
    }
}

/// Numbers between −1 and 1 that differ from call to call.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn rows(&mut self, n: usize, d: usize) -> Vec<f32> {
        let number = || (self.next() % 20_001) as f32 / 10_000.0 - 1.0;
        std::iter::repeat_with(number).take(n * d).collect()
    }
}

/// The decoder of the file beside the one that a fixed cache needs.
fn compare(name: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny");
    let model = Model::load(&folder.join(name), Some("fp32")).expect(name);
    let config = model.config;
    let whole = OnnxModel::load(&model.files.decoder).expect(name);
    let mut cut = whole.clone();
    let family = config.family;
    select_logit_rows(&mut cut).expect("rows");
    prepare_fp32(&mut cut, &[("batch_size", 1)]).expect("fp32");
    let n = return_new_rows(&mut cut, family.past_prefix, family.present_prefix);
    assert_eq!(n.expect("cache"), 2 * config.n_layers, "{name}");
    group_queries(&mut cut, config.n_heads, config.n_kv_heads).expect("groups");
    let weight = (config.vocab * config.d_model) as u64;
    let n = split_lm_head(&mut cut, weight / 3);
    assert!(n.expect("head") >= 3, "{name}");

    let mut numbers = Numbers(7);
    let mut original = Decoder::new(&whole, config.clone(), false);
    let mut fixed = Decoder::new(&cut, config.clone(), true);
    let mut worst = 0f32;
    for step in 0..33 {
        let rows = match step {
            0 => PROMPT,
            _ => [1, 3, 1, 5, 2][step % 5],
        };
        let embeds = numbers.rows(rows, config.d_model);
        let (expected, logits) = (original.step(&embeds), fixed.step(&embeds));
        assert_eq!(expected.len(), logits.len(), "{name} {step}");
        let scale = expected.iter().fold(0f32, |max, x| max.max(x.abs()));
        let pairs = expected.iter().zip(&logits);
        let difference = pairs.fold(0f32, |max, (a, b)| max.max((a - b).abs()));
        worst = worst.max(difference / scale);
        let back = match step {
            0 => 0,
            _ => numbers.next() as usize % rows,
        };
        original.roll_back(back);
        fixed.roll_back(back);
    }
    assert!(fixed.n_rows > PROMPT + 32 && fixed.n_rows < CAPACITY);
    assert!(worst <= TOLERANCE, "{name}: {worst}");
    eprintln!("{name}: {worst:e}");
}

#[test]
fn cut_decoder_over_prefill_steps_and_roll_backs_equals_the_original() {
    for name in ["fastvlm-tiny-plain", "smolvlm-tiny-plain"] {
        compare(name);
    }
}

#[test]
fn cut_decoder_of_contrib_operators_equals_the_original() {
    for family in ["fastvlm", "smolvlm"] {
        for form in ["contrib", "contrib-sep"] {
            compare(&format!("{family}-tiny-{form}"));
        }
    }
}

#[test]
fn cut_decoder_repeats_no_keys_and_values() {
    for name in ["fastvlm-tiny-plain", "smolvlm-tiny-plain"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny");
        let model = Model::load(&folder.join(name), Some("fp32")).expect(name);
        let config = model.config;
        let mut graph = OnnxModel::load(&model.files.decoder).expect(name);
        let n = group_queries(&mut graph, config.n_heads, config.n_kv_heads);
        assert_eq!(n.expect("groups"), config.n_layers, "{name}");
        let nodes = graph.graph().node.iter();
        let expanded = nodes.filter(|n| n.op_type == "Expand" && n.label().contains("self_attn"));
        assert_eq!(expanded.count(), 0, "{name}");
    }
}
