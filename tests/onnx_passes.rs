//! Precision passes on published forms of graphs: what they compute, and in which types.
//!
//! The CPU engine computes FP16 graphs in FP32 with the rounded weights, so that these tests see
//! the rounding of weights and every mistake of the passes, but not the rounding of activations.
//! Tolerances are relative to the largest value of each output.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rten::{Value, ValueOrView};
use rten_tensor::{NdTensor, Tensor};
use safetensors::SafeTensors;
use trtvlm::Error;
use trtvlm::cpu::Session;
use trtvlm::onnx::passes::{
    Fp16Options, Fp16Report, Types, check_types, prepare_fp16, prepare_fp32,
};
use trtvlm::onnx::{DataType, Dim, OnnxModel};

const PLAIN: [&str; 2] = ["fastvlm-tiny-plain", "smolvlm-tiny-plain"];
const PARTS: [&str; 3] = ["vision_encoder", "embed_tokens", "decoder_model_merged"];
const DIMS: [(&str, usize); 2] = [("batch_size", 1), ("num_images", 1)];

/// Scaling queries instead of scores changes the order of roundings, and nothing else.
const FP32_TOLERANCE: f32 = 1e-6;
/// Weights are rounded by up to 2^-11 (5e-4) of their size; sums of them by less.
const FP16_TOLERANCE: f32 = 1e-3;

type Outputs = HashMap<String, Vec<f32>>;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/tiny")
        .join(name)
}

fn load(folder: &Path, part: &str) -> OnnxModel {
    OnnxModel::load(&folder.join("onnx").join(format!("{part}.onnx"))).expect("graph")
}

fn fp16(mut model: OnnxModel, io: DataType) -> (OnnxModel, Fp16Report) {
    let options = Fp16Options {
        io,
        ..Fp16Options::default()
    };
    let report = prepare_fp16(&mut model, &DIMS, &options).expect("fp16");
    (model, report)
}

fn fp32(mut model: OnnxModel) -> OnnxModel {
    prepare_fp32(&mut model, &DIMS).expect("fp32");
    model
}

fn golden(folder: &Path) -> HashMap<String, (Vec<usize>, Vec<u8>)> {
    let file = std::fs::read(folder.join("golden.safetensors")).expect("golden");
    let tensors = SafeTensors::deserialize(&file).expect("safetensors");
    let views = tensors.tensors().into_iter();
    views
        .map(|(name, view)| (name, (view.shape().to_vec(), view.data().to_vec())))
        .collect()
}

fn floats((shape, bytes): &(Vec<usize>, Vec<u8>)) -> Value {
    let values = bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().expect("four")));
    Tensor::from_data(shape, values.collect::<Vec<f32>>()).into()
}

fn run(model: &OnnxModel, inputs: Vec<(String, Value)>) -> Outputs {
    let session = Session::load(model).expect("session");
    let inputs = inputs
        .into_iter()
        .map(|(name, value)| {
            (
                session.input(&name).expect("input"),
                ValueOrView::Value(value),
            )
        })
        .collect();
    let names: Vec<String> = model
        .graph()
        .outputs()
        .into_iter()
        .map(|o| o.name)
        .collect();
    let ids: Vec<_> = names
        .iter()
        .map(|name| session.output(name).expect("output"))
        .collect();
    let values = session.run(inputs, &ids).expect("run").into_iter();
    let values = values.map(|v| v.into_tensor::<f32>().expect("floats").into_data());
    names.into_iter().zip(values).collect()
}

/// Inputs of a vision tower: the golden image, no padding.
fn vision_inputs(model: &OnnxModel, folder: &Path) -> Vec<(String, Value)> {
    let (shape, bytes) = &golden(folder)["image"];
    let (height, width) = (shape[0], shape[1]);
    let plane = |channel: usize| {
        let pixels = bytes.chunks_exact(3).map(move |pixel| pixel[channel]);
        pixels.map(|byte| f32::from(byte) / 127.5 - 1.0)
    };
    let pixels: Vec<f32> = (0..3).flat_map(plane).collect();
    let inputs = model.graph().inputs().into_iter();
    inputs
        .map(|input| {
            let rank = input.dims.map_or(0, |dims| dims.len());
            let value = if input.name == "pixel_values" {
                let shape = [1, 1, 3, height, width];
                Tensor::from_data(&shape[5 - rank..], pixels.clone()).into()
            } else {
                Tensor::<i32>::full(&[1, 1, height, width], 1).into()
            };
            (input.name, value)
        })
        .collect()
}

/// Inputs of a prefill of the golden prompt whose first `n_padding` rows are masked.
fn decoder_inputs(model: &OnnxModel, folder: &Path, n_padding: usize) -> Vec<(String, Value)> {
    let embeds = &golden(folder)["inputs_embeds"];
    let n_rows = embeds.0[1];
    let mask: Vec<i32> = (0..n_rows).map(|row| i32::from(row >= n_padding)).collect();
    let positions: Vec<i32> = (0..n_rows as i32).collect();
    let mut inputs = vec![
        ("inputs_embeds".to_owned(), floats(embeds)),
        (
            "attention_mask".to_owned(),
            NdTensor::from_data([1, n_rows], mask).into(),
        ),
        (
            "position_ids".to_owned(),
            NdTensor::from_data([1, n_rows], positions).into(),
        ),
    ];
    for input in model.graph().inputs() {
        if input.name.starts_with("past_key_values") {
            let shape = [
                1,
                input.fixed(1).expect("heads"),
                0,
                input.fixed(3).expect("size"),
            ];
            inputs.push((input.name, Tensor::<f32>::zeros(&shape).into()));
        }
    }
    inputs
}

#[track_caller]
fn assert_close(what: &str, expected: &Outputs, actual: &Outputs, tolerance: f32) {
    assert_eq!(expected.len(), actual.len(), "{what}");
    for (name, expected) in expected {
        let actual = &actual[name];
        assert_eq!(expected.len(), actual.len(), "{what}: {name}");
        let largest = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
        let pairs = expected.iter().zip(actual);
        // `max` would pass over NaN.
        let worst = pairs
            .map(|(a, b)| (a - b).abs())
            .fold(0f32, |worst, d| if d <= worst { worst } else { d });
        assert!(
            worst <= tolerance * largest,
            "{what}: {name} is off by {worst}, largest {largest}"
        );
    }
}

#[test]
fn prepared_vision_towers_give_the_features_of_the_file() {
    for name in PLAIN {
        let folder = folder(name);
        let file = load(&folder, "vision_encoder");
        let expected = run(&file, vision_inputs(&file, &folder));
        for (what, model, tolerance) in [
            ("fp32", fp32(file.clone()), FP32_TOLERANCE),
            ("fp16", fp16(file.clone(), DataType::F16).0, FP16_TOLERANCE),
            (
                "fp16, fp32 io",
                fp16(file.clone(), DataType::F32).0,
                FP16_TOLERANCE,
            ),
        ] {
            let actual = run(&model, vision_inputs(&model, &folder));
            assert_close(&format!("{name} {what}"), &expected, &actual, tolerance);
        }
    }
}

#[test]
fn prepared_decoders_give_the_logits_and_the_cache_of_the_file() {
    for name in PLAIN {
        let folder = folder(name);
        let file = load(&folder, "decoder_model_merged");
        let expected = run(&file, decoder_inputs(&file, &folder, 0));
        for (what, model, tolerance) in [
            ("fp32", fp32(file.clone()), FP32_TOLERANCE),
            ("fp16", fp16(file.clone(), DataType::F16).0, FP16_TOLERANCE),
            (
                "fp16, fp32 io",
                fp16(file.clone(), DataType::F32).0,
                FP16_TOLERANCE,
            ),
        ] {
            let actual = run(&model, decoder_inputs(&model, &folder, 0));
            assert_close(&format!("{name} {what}"), &expected, &actual, tolerance);
        }
    }
}

#[test]
fn prepared_decoders_with_masked_rows_stay_finite() {
    for name in PLAIN {
        let folder = folder(name);
        let file = load(&folder, "decoder_model_merged");
        let n_padding = 5;
        let expected = run(&file, decoder_inputs(&file, &folder, n_padding));
        let model = fp16(file, DataType::F16).0;
        let actual = run(&model, decoder_inputs(&model, &folder, n_padding));
        assert!(actual.values().flatten().all(|v| v.is_finite()), "{name}");
        // Rows that are not masked see what they saw before; the others see no meaning.
        let vocab = model.graph().outputs()[0].fixed(2).expect("vocabulary");
        let rows = |outputs: &Outputs| {
            let logits = outputs["logits"][n_padding * vocab..].to_vec();
            Outputs::from([("logits".to_owned(), logits)])
        };
        assert_close(name, &rows(&expected), &rows(&actual), FP16_TOLERANCE);
    }
}

#[test]
fn prepared_graphs_are_typed_consistently_and_keep_their_interface() {
    for name in PLAIN {
        for part in PARTS {
            for io in [DataType::F16, DataType::F32] {
                let file = load(&folder(name), part);
                let before = file.graph().clone();
                let (model, report) = fp16(file, io);
                let what = format!("{name}/{part}");
                check_types(&model).unwrap_or_else(|e| panic!("{what}: {e}"));
                let old: Vec<_> = [before.inputs(), before.outputs()].concat();
                let new: Vec<_> = [model.graph().inputs(), model.graph().outputs()].concat();
                assert_eq!(old.len(), new.len(), "{what}");
                for (old, new) in old.into_iter().zip(new) {
                    assert_eq!(old.name, new.name, "{what}");
                    let float = old.dtype.is_some_and(DataType::is_float);
                    let expected = if float { Some(io) } else { old.dtype };
                    assert_eq!(new.dtype, expected, "{what}: {}", new.name);
                    assert_ne!(
                        new.dims.map(|d| d[0].clone()),
                        Some(Dim::Named("batch_size".into()))
                    );
                }
                let mut casts: Vec<_> = model
                    .graph()
                    .node
                    .iter()
                    .filter(|n| n.op_type == "Cast")
                    .map(|n| (&n.input[0], n.attr("to").and_then(|a| a.i)))
                    .collect();
                let n_casts = casts.len();
                casts.sort();
                casts.dedup();
                assert_eq!(casts.len(), n_casts, "{what}: a value is cast twice");
                assert!(report.beyond_range.is_empty(), "{what}: {report:?}");
            }
        }
    }
}

#[test]
fn prepared_graphs_hold_half_the_bytes_of_their_weights() {
    for name in PLAIN {
        for part in PARTS {
            let file = load(&folder(name), part);
            let single = fp32(file.clone()).weight_bytes();
            let (_, report) = fp16(file, DataType::F16);
            // Shapes are integers, and norms keep their FP32 weights.
            let half = report.weight_bytes as f64 / single as f64;
            assert!((0.5..0.53).contains(&half), "{name}/{part}: {half}");
        }
    }
}

#[test]
fn norms_softmax_and_gates_are_single_and_products_are_half() {
    for name in PLAIN {
        let (model, _) = fp16(load(&folder(name), "decoder_model_merged"), DataType::F16);
        let types = check_types(&model).expect("types");
        let count = |op: &str, dtype: DataType| {
            let of = |types: &Types, name: &str| types.get(name) == Some(dtype);
            let nodes = model.graph().node.iter().filter(|n| n.op_type == op);
            nodes.filter(|n| of(&types, &n.output[0])).count()
        };
        for op in [
            "Pow",
            "ReduceMean",
            "Sqrt",
            "Softmax",
            "Sigmoid",
            "Cos",
            "Sin",
        ] {
            assert!(count(op, DataType::F32) > 0, "{name}: {op}");
            assert_eq!(count(op, DataType::F16), 0, "{name}: {op}");
        }
        for op in ["MatMul", "Transpose"] {
            assert!(count(op, DataType::F16) > 0, "{name}: {op}");
            assert_eq!(count(op, DataType::F32), 0, "{name}: {op}");
        }
    }
}

/// The demo model's files are FP16, with casts at their borders and nodes out of order.
#[test]
fn files_stored_as_fp16_are_prepared_like_others() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("onnx/uav-tiny/onnx");
    for part in PARTS {
        let file = OnnxModel::load(&root.join(format!("{part}_fp16.onnx"))).expect("graph");
        let single = fp32(file.clone());
        let types = check_types(&single).expect("types");
        let halves = single.graph().node.iter().flat_map(|n| &n.output);
        let n_halves = halves
            .filter(|v| types.get(v) == Some(DataType::F16))
            .count();
        assert_eq!(n_halves, 0, "{part}");
        let (half, report) = fp16(file.clone(), DataType::F16);
        check_types(&half).expect("types");
        assert_eq!(report.n_flushed, 0, "{part}: the file is rounded already");
        let bytes = report.weight_bytes as f64 / single.weight_bytes() as f64;
        assert!(bytes < 0.52, "{part}: {bytes}");
    }
    let pixels = || {
        let values: Vec<f32> = (0..3 * 256 * 256)
            .map(|i| (i % 251) as f32 / 250.0)
            .collect();
        let pixels = Tensor::from_data(&[1, 3, 256, 256], values);
        vec![("pixel_values".to_owned(), Value::from(pixels))]
    };
    let file = OnnxModel::load(&root.join("vision_encoder_fp16.onnx")).expect("graph");
    let expected = run(&file, pixels());
    let actual = run(&fp16(file, DataType::F16).0, pixels());
    assert_close("uav-tiny", &expected, &actual, FP32_TOLERANCE);
}

#[test]
fn decoders_with_operators_that_are_not_lowered_are_refused_naming_their_nodes() {
    let mut model = load(&folder("fastvlm-tiny-contrib"), "decoder_model_merged");
    for node in &mut model.graph_mut().node {
        if node.op_type == "GroupQueryAttention" {
            node.set_int("local_window_size", 128);
        }
    }
    let error = prepare_fp16(&mut model, &DIMS, &Fp16Options::default()).expect_err("window");
    let Error::Unsupported { node, op, reason } = &error else {
        panic!("{error}");
    };
    assert_eq!(op, "com.microsoft.GroupQueryAttention");
    assert_eq!(node.split(", ").count(), 3, "{error}");
    assert!(reason.contains("local_window_size"), "{error}");
}
