//! 4-bit weights: from packed files as they are, by our own rounding, on every runner.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use trtvlm::build::{
    BuildOptions, Capacity, ComponentKind, Cuts, Numerics, Quantization, Runner, build, prepare,
};
use trtvlm::bundle::{Bundle, Precision, Target};
use trtvlm::model::Model;
use trtvlm::onnx::passes::has_blocks;
use trtvlm::onnx::{DataType, OnnxModel};
use trtvlm::pipeline::{Ask, Pipeline};
use trtvlm::preprocess::{Frame, Tiles};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn demo() -> PathBuf {
    root().join("onnx/uav-tiny")
}

fn packed() -> PathBuf {
    root().join("tests/data/tiny/fastvlm-tiny-contrib-sep")
}

fn decoder(model: &Path, variant: &str, runner: Runner) -> OnnxModel {
    let model = Model::load(model, Some(variant)).expect("model");
    let quantization = Quantization::of_blocks(32);
    let numerics = Numerics {
        precision: Precision::Int4Weights,
        quantization: Some(&quantization),
    };
    let capacity = Capacity::new(&model.config, None, 4, 1).expect("capacity");
    let (kind, cuts) = (ComponentKind::Decoder, Cuts::default());
    let made = prepare(
        kind,
        &model,
        runner,
        numerics,
        &cuts,
        &capacity,
        &Arc::default(),
    );
    made.expect("prepare").graph
}

/// Builds a bundle with 4-bit weights.
fn bundle(model: &Path, variant: &str, out: &Path, target: Target, cuts: Cuts) -> Bundle {
    let model = Model::load(model, Some(variant)).expect("model");
    let quantization = Quantization::of_blocks(32);
    let worker = PathBuf::from(env!("CARGO_BIN_EXE_trtvlm"));
    let options = BuildOptions {
        out,
        force: false,
        targets: &[target],
        portable: false,
        precision: Precision::Int4Weights,
        quantization: Some(&quantization),
        cuts,
        max_context: None,
        draft_tokens: 4,
        max_tiles: 1,
        workspace_bytes: None,
        timing_cache: None,
        command_line: vec!["test".to_owned()],
        worker: &worker,
        cancel: Arc::default(),
    };
    build(&model, &options, &mut |_| {}).expect("build");
    Bundle::open(out).expect("bundle")
}

fn ids(model: &Path, variant: Option<&str>, question: &str) -> Vec<u32> {
    let frame = Frame::load(&root().join("calibration/images/0024.png")).expect("image");
    let ask = Ask {
        max_tokens: Some(32),
        tiles: Tiles::Count(1),
        ..Ask::default()
    };
    let mut pipeline = Pipeline::open(model, variant).expect("open");
    let answer = pipeline.ask(&frame, question, &ask, &mut |_| {});
    answer.expect("answer").token_ids
}

/// Numbers of products, of blocks in front of them, and of packed products.
fn products(graph: &OnnxModel) -> [usize; 3] {
    ["MatMul", "DequantizeLinear", "com.microsoft.MatMulNBits"]
        .map(|op| graph.graph().node.iter().filter(|n| n.op() == op).count())
}

#[test]
fn packed_weights_keep_their_codes_and_answers_on_every_runner() {
    let file = packed().join("onnx/decoder_model_merged_q4f16.onnx");
    let n_packed = products(&OnnxModel::load(&file).expect("file"))[2];
    assert!(n_packed > 10);
    for (runner, expected) in [
        (Runner::TensorRt, [n_packed, 0]),
        (Runner::Onnx, [n_packed, 0]),
        (Runner::Cpu, [0, n_packed]),
    ] {
        let graph = decoder(&packed(), "q4f16", runner);
        let [_, blocks, packed] = products(&graph);
        assert_eq!([blocks, packed], expected, "{runner:?}");
    }
    // Nothing was rounded again: the answers are those of the file.
    let dir = tempfile::tempdir().expect("dir");
    let expected = ids(&packed(), Some("q4f16"), "describe the scene");
    for (name, target) in [("cpu", Target::Cpu), ("onnx", Target::Onnx)] {
        let out = dir.path().join(name);
        bundle(&packed(), "q4f16", &out, target, Cuts::default());
        assert_eq!(ids(&out, None, "describe the scene"), expected, "{name}");
    }
}

#[test]
fn weights_that_are_rounded_here_are_the_same_on_every_runner() {
    let graph = decoder(&demo(), "fp16", Runner::TensorRt);
    assert_eq!(graph.opset(""), Some(21));
    assert!(has_blocks(graph.graph()));
    let four = graph
        .graph()
        .initializer
        .iter()
        .filter(|t| t.dtype().expect("type") == DataType::I4);
    let four = four.count();
    // Seven linear weights a layer, and the LM head.
    assert_eq!(four, 4 * 7 + 1);
    let dir = tempfile::tempdir().expect("dir");
    let [cpu, onnx] = [("cpu", Target::Cpu), ("onnx", Target::Onnx)].map(|(name, target)| {
        let out = dir.path().join(name);
        let bundle = bundle(&demo(), "fp16", &out, target, Cuts::default());
        assert_eq!(bundle.manifest().precision, Precision::Int4Weights);
        out
    });
    for question in ["describe the scene", "find the blue boat"] {
        assert_eq!(ids(&cpu, None, question), ids(&onnx, None, question));
    }
    assert_eq!(
        products(&OnnxModel::load(&cpu.join("engines/decoder.onnx")).expect("graph"))[2],
        four
    );
}

#[cfg(feature = "tensorrt")]
mod tensorrt {
    use super::*;
    use trtvlm::onnx::passes::{SALIENCY, SALIENCY_ROWS};

    #[test]
    fn tensorrt_builds_blocks_of_packed_and_of_rounded_weights() {
        let dir = tempfile::tempdir().expect("dir");
        for (name, model, variant) in [("rounded", demo(), "fp16"), ("packed", packed(), "q4f16")] {
            let out = dir.path().join(name);
            let bundle = bundle(&model, variant, &out, Target::Sm(86), Cuts::default());
            let set = &bundle.manifest().engines[0];
            assert!(set.engine.to_string().contains("RTX"), "{}", set.engine);
            assert_eq!(set.components.len(), 3, "{name}");
        }
    }

    #[test]
    fn tensorrt_builds_taps_and_an_lm_head_in_parts() {
        let dir = tempfile::tempdir().expect("dir");
        let taps = ["hidden", "hidden-rows", "layer:1", "saliency:0+2"];
        let cuts = Cuts {
            taps: taps.iter().map(|tap| tap.parse().expect("tap")).collect(),
            head_bytes: Some(8 << 10),
        };
        for (name, model, variant) in [("rounded", demo(), "fp16"), ("packed", packed(), "q4f16")] {
            let out = dir.path().join(name);
            let bundle = bundle(&model, variant, &out, Target::Sm(86), cuts.clone());
            let manifest = bundle.manifest();
            assert_eq!(manifest.taps, taps);
            assert_eq!(manifest.head_bytes, Some(8 << 10));
            let decoder = manifest.engines[0].component("decoder").expect("decoder");
            let outputs: Vec<&str> = decoder.outputs.iter().map(|t| t.name.as_str()).collect();
            for tap in ["hidden", "hidden_rows", "layer_1", SALIENCY] {
                assert!(outputs.contains(&tap), "{name}: {outputs:?}");
            }
            for profile in &decoder.profiles {
                let rows = profile.inputs.iter().find(|i| i.name == SALIENCY_ROWS);
                assert!(rows.is_some_and(|rows| rows.min == [1]), "{}", profile.name);
            }
        }
    }
}
