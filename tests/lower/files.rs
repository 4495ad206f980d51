//! Every tiny model folder, before and after.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rten::{Value, ValueOrView};
use rten_tensor::prelude::*;
use rten_tensor::{NdTensor, Tensor};
use safetensors::SafeTensors;
use trtvlm::cpu::Session;
use trtvlm::onnx::passes::{
    Fp16Options, LowerOptions, check_types, lower, prepare_fp16, prepare_fp32,
};
use trtvlm::onnx::{DataType, OnnxModel};

use crate::support::{Floats, close, numbers};

/// Other orders of summation, through three layers.
const TOLERANCE: f32 = 5e-6;
/// Weights are rounded by up to 2^-11 (5e-4) of their size; activations are FP32 on this engine.
const FP16_TOLERANCE: f32 = 2e-3;

const DIMS: [(&str, usize); 2] = [("batch_size", 1), ("num_images", 1)];

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny")
}

/// All graphs of all folders whose file name begins with `part`.
fn graphs(part: &str) -> Vec<(String, OnnxModel)> {
    let mut found = Vec::new();
    for folder in std::fs::read_dir(tiny()).expect("folders") {
        let onnx = folder.expect("folder").path().join("onnx");
        for file in std::fs::read_dir(onnx).into_iter().flatten() {
            let path = file.expect("file").path();
            let name = path
                .file_name()
                .expect("name")
                .to_string_lossy()
                .into_owned();
            if name.starts_with(part) && name.ends_with(".onnx") {
                let label = path
                    .strip_prefix(tiny())
                    .expect("inside")
                    .display()
                    .to_string();
                found.push((label, OnnxModel::load(&path).expect("graph")));
            }
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// A decoder with its cache.
struct Decoder {
    session: Session,
    d_model: usize,
    caches: Vec<(String, Floats)>,
}

impl Decoder {
    fn new(model: &OnnxModel) -> Self {
        let inputs = model.graph().inputs();
        let embeds = inputs
            .iter()
            .find(|i| i.name == "inputs_embeds")
            .expect("embeds");
        let caches = inputs
            .iter()
            .filter(|i| i.name.starts_with("past_key_values"));
        let caches = caches.map(|input| {
            let (heads, d) = (
                input.fixed(1).expect("heads"),
                input.fixed(3).expect("size"),
            );
            let name = input.name.trim_start_matches("past_key_values.").to_owned();
            (name, (vec![1, heads, 0, d], Vec::new()))
        });
        Self {
            d_model: embeds.fixed(2).expect("width"),
            caches: caches.collect(),
            session: Session::load(model).expect("session"),
        }
    }

    /// Logits of `rows` new rows, and the cache.
    fn run(&mut self, rows: usize, seed: u64) -> Vec<Floats> {
        let past = self.caches[0].1.0[2];
        let total = past + rows;
        let value = |(shape, values): &Floats| -> Value {
            Tensor::from_data(shape.as_slice(), values.clone()).into()
        };
        let ones = NdTensor::from_data([1, total], vec![1i32; total]);
        let positions: Vec<i32> = (past as i32..total as i32).collect();
        let positions = NdTensor::from_data([1, rows], positions);
        let mut named: Vec<(String, Value)> = vec![
            (
                "inputs_embeds".to_owned(),
                value(&numbers(seed, &[1, rows, self.d_model])),
            ),
            ("attention_mask".to_owned(), ones.into()),
            ("position_ids".to_owned(), positions.into()),
        ];
        for (name, cache) in &self.caches {
            named.push((format!("past_key_values.{name}"), value(cache)));
        }
        let session = &self.session;
        let named = named
            .into_iter()
            .filter(|(name, _)| session.has_input(name));
        let inputs = named.map(|(name, value)| {
            (
                session.input(&name).expect("input"),
                ValueOrView::Value(value),
            )
        });
        let mut outputs = vec![session.output("logits").expect("logits")];
        for (name, _) in &self.caches {
            outputs.push(session.output(&format!("present.{name}")).expect("cache"));
        }
        let values = session
            .run(inputs.collect(), &outputs)
            .expect("run")
            .into_iter();
        let floats = |value: Value| {
            let tensor = value.into_tensor::<f32>().expect("floats");
            (tensor.shape().to_vec(), tensor.into_data())
        };
        let values: Vec<Floats> = values.map(floats).collect();
        for ((_, cache), new) in self.caches.iter_mut().zip(&values[1..]) {
            cache.clone_from(new);
        }
        values
    }
}

/// A prompt, then steps, each form on its own cache.
#[track_caller]
fn compare_decoders(what: &str, original: &OnnxModel, other: &OnnxModel, tolerance: f32) {
    let (mut a, mut b) = (Decoder::new(original), Decoder::new(other));
    for (step, rows) in [11, 1, 1, 4, 1, 1].into_iter().enumerate() {
        let seed = 17 + step as u64;
        let result = close(&a.run(rows, seed), &b.run(rows, seed), tolerance);
        result.unwrap_or_else(|e| panic!("{what}, step {step}: {e}"));
    }
    assert_eq!(b.caches[0].1.0[2], 19, "{what}");
}

#[test]
fn lowered_decoders_give_the_logits_and_the_cache_of_the_file() {
    let mut n_lowered = 0;
    for (what, file) in graphs("decoder") {
        let mut model = file.clone();
        let report = lower(&mut model, &LowerOptions::default()).expect(&what);
        assert!(
            model.graph().node.iter().all(|n| n.domain.is_empty()),
            "{what}"
        );
        assert!(model.opset("").is_some_and(|opset| opset <= 20), "{what}");
        if what.contains("contrib") {
            n_lowered += 1;
            assert_eq!(
                report.lowered["com.microsoft.GroupQueryAttention"], 3,
                "{what}"
            );
            assert_eq!(report.masks.len(), 1, "{what}");
            let inside = !what.contains("contrib-sep");
            assert_eq!(report.positions.len(), usize::from(inside), "{what}");
        }
        let names = |values: Vec<trtvlm::onnx::ValueType>| -> Vec<String> {
            values.iter().map(|v| format!("{} {v}", v.name)).collect()
        };
        assert_eq!(
            names(file.graph().inputs()),
            names(model.graph().inputs()),
            "{what}"
        );
        assert_eq!(
            names(file.graph().outputs()),
            names(model.graph().outputs()),
            "{what}"
        );
        compare_decoders(&what, &file, &model, TOLERANCE);
    }
    assert!(n_lowered >= 6, "{n_lowered}");
}

#[test]
fn prepared_contrib_decoders_give_the_logits_and_the_cache_of_the_file() {
    for (what, file) in graphs("decoder") {
        if !what.contains("contrib") {
            continue;
        }
        let mut single = file.clone();
        prepare_fp32(&mut single, &DIMS).expect(&what);
        check_types(&single).expect(&what);
        compare_decoders(&format!("{what} fp32"), &file, &single, FP16_TOLERANCE);
        let mut half = file.clone();
        let report = prepare_fp16(&mut half, &DIMS, &Fp16Options::default()).expect(&what);
        let types = check_types(&half).expect(&what);
        assert!(report.beyond_range.is_empty(), "{what}: {report:?}");
        compare_decoders(&format!("{what} fp16"), &file, &half, FP16_TOLERANCE);
        // Norms, Softmax and gates in FP32, products in FP16.
        for node in &half.graph().node {
            let expected = match node.op_type.as_str() {
                "ReduceMean" | "Sqrt" | "Softmax" | "Sigmoid" => DataType::F32,
                "MatMul" => DataType::F16,
                _ => continue,
            };
            assert_eq!(
                types.get(&node.output[0]),
                Some(expected),
                "{what}: {}",
                node.name
            );
        }
    }
}

#[test]
fn dequantized_weights_are_stored_in_the_type_that_is_asked_for() {
    for weights in [DataType::F16, DataType::F32] {
        for (what, mut model) in graphs("decoder_model_merged_q4f16") {
            let weights = Some(weights);
            lower(
                &mut model,
                &LowerOptions {
                    weights,
                    ..LowerOptions::default()
                },
            )
            .expect(&what);
            let large = model.graph().initializer.iter();
            let large = large.filter(|t| t.name.ends_with("_dequantized"));
            let types: Vec<_> = large.map(|t| t.dtype().ok()).collect();
            assert!(
                types.len() == 22 && types.iter().all(|t| *t == weights),
                "{what}"
            );
        }
    }
}

fn golden(folder: &str) -> HashMap<String, (Vec<usize>, Vec<u8>)> {
    let file = std::fs::read(tiny().join(folder).join("golden.safetensors")).expect("golden");
    let tensors = SafeTensors::deserialize(&file).expect("safetensors");
    let views = tensors.tensors().into_iter();
    views
        .map(|(name, view)| (name, (view.shape().to_vec(), view.data().to_vec())))
        .collect()
}

/// Features of tiles `[n, 3, side, side]`, of which `mask` says what is picture.
fn features(model: &OnnxModel, tiles: Floats, mask: Vec<i32>) -> Floats {
    let session = Session::load(model).expect("session");
    let (shape, pixels) = tiles;
    let (n, side) = (shape[0], shape[2]);
    let pixels: Value = Tensor::from_data(&[1, n, 3, side, side], pixels).into();
    let mask: Value = Tensor::from_data(&[1, n, side, side], mask).into();
    let inputs = vec![
        (
            session.input("pixel_values").expect("pixels"),
            pixels.into(),
        ),
        (
            session.input("pixel_attention_mask").expect("mask"),
            mask.into(),
        ),
    ];
    let output = session.output("image_features").expect("features");
    let value = session.run(inputs, &[output]).expect("run").remove(0);
    let tensor = value.into_tensor::<f32>().expect("floats");
    (tensor.shape().to_vec(), tensor.into_data())
}

/// The golden tiles: the lower half of tile 1 is padding, and so is all of tile 3.
#[test]
fn lowered_vision_tower_returns_features_of_all_tiles_in_order() {
    let golden = golden("smolvlm-tiny-plain");
    let (shape, bytes) = &golden["tiles"];
    let [n, side, _, 3] = shape[..] else {
        panic!("{shape:?}")
    };
    let (expected_shape, expected) = &golden["padded_image_features"];
    assert_eq!((n, expected_shape[0]), (5, 4));
    let expected: Vec<f32> = expected
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().expect("four")))
        .collect();
    let plane = side * side;
    let (mut pixels, mut mask) = (vec![0f32; n * 3 * plane], vec![1i32; n * plane]);
    for tile in 0..n {
        for at in 0..plane {
            let padded = tile == 3 || (tile == 1 && at >= plane / 2);
            // A tile that is given counts, so tile 3 is not marked as padding.
            mask[tile * plane + at] = i32::from(!padded || tile == 3);
            for channel in 0..3 {
                let byte = bytes[(tile * plane + at) * 3 + channel];
                let value = f32::from(byte) / 127.5 - 1.0;
                pixels[(tile * 3 + channel) * plane + at] = if padded { 0.0 } else { value };
            }
        }
    }
    let mut n_towers = 0;
    for (what, mut model) in graphs("vision_encoder")
        .into_iter()
        .filter(|(w, _)| w.starts_with("smol"))
    {
        n_towers += 1;
        lower(&mut model, &LowerOptions::default()).expect(&what);
        let selects = ["NonZero", "GatherND"];
        assert!(
            model
                .graph()
                .node
                .iter()
                .all(|n| !selects.contains(&n.op_type.as_str())),
            "{what}"
        );
        let (shape, all) = features(
            &model,
            (vec![n, 3, side, side], pixels.clone()),
            mask.clone(),
        );
        assert_eq!(shape[0], n, "{what}: one block of rows a tile");
        let block = all.len() / n;
        let kept: Vec<f32> = [0, 1, 2, 4]
            .iter()
            .flat_map(|&tile| &all[tile * block..(tile + 1) * block])
            .copied()
            .collect();
        let of_four = vec![4, shape[1], shape[2]];
        let (expected, kept) = ((of_four.clone(), expected.clone()), (of_four, kept));
        close(&[expected], &[kept], 2e-4).unwrap_or_else(|e| panic!("{what}: {e}"));
    }
    assert_eq!(n_towers, 3);
}
