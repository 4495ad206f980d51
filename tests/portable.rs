//! What leaves this machine: graphs for other runtimes.

use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::cargo::CommandCargoExt;
use serde_json::Value;
use trtvlm::bundle::Bundle;
use trtvlm::onnx::OnnxModel;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn demo() -> PathBuf {
    root().join("onnx/uav-tiny")
}

fn tiny(name: &str) -> PathBuf {
    root().join("tests/data/tiny").join(name)
}

fn trtvlm() -> std::process::Command {
    let mut command = std::process::Command::cargo_bin("trtvlm").expect("binary");
    command.env_remove("TRTVLM_LOG").env("RUST_BACKTRACE", "0");
    command
}

fn build(model: &Path, out: &Path, args: &[&str]) -> Output {
    let mut command = trtvlm();
    command.arg("build").arg(model).arg("--out").arg(out);
    command.args(args).output().expect("run")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Token ids of an answer of at most 32 tokens.
fn ids(model: &Path, variant: Option<&str>) -> Vec<u64> {
    let image = root().join("calibration/images/0024.png");
    let mut command = trtvlm();
    command.arg("run").arg(model).arg("--image").arg(image);
    command.args(["--prompt", "describe the scene", "--json"]);
    command.args(["--max-tokens", "32", "--tiles", "2"]);
    command.args(variant.map(|variant| format!("--variant={variant}")));
    let output = command.output().expect("run");
    assert!(output.status.success(), "{}", stderr(&output));
    let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let ids = answer["token_ids"].as_array().expect("ids").iter();
    ids.map(|id| id.as_u64().expect("id")).collect()
}

/// Names of the graphs of a folder.
fn graphs(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir.join("onnx")).expect("onnx");
    let mut names: Vec<String> = entries
        .map(|e| e.expect("entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn onnx_target_of_each_form_of_decoder_has_standard_operators_and_gives_the_same_answer() {
    let dir = tempfile::tempdir().expect("dir");
    for (folder, variant) in [
        ("fastvlm-tiny-plain", "fp32"),
        ("fastvlm-tiny-contrib", "fp32"),
        ("fastvlm-tiny-contrib-sep", "q4f16"),
        ("smolvlm-tiny-plain", "fp32"),
        ("smolvlm-tiny-contrib-sep", "fp32"),
    ] {
        let (model, out) = (tiny(folder), dir.path().join(folder));
        let args = ["--target", "onnx", "--precision", "fp32", "--variant"];
        let output = build(&model, &out, &[&args[..], &[variant]].concat());
        assert!(output.status.success(), "{folder}: {}", stderr(&output));
        let names = [
            "decoder_model_merged.onnx",
            "embed_tokens.onnx",
            "vision_encoder.onnx",
        ];
        assert_eq!(graphs(&out), names, "{folder}");
        for name in names {
            let graph = OnnxModel::load(&out.join("onnx").join(name)).expect(name);
            let foreign = graph.graph().node.iter().find(|n| !n.domain.is_empty());
            assert!(foreign.is_none(), "{folder} {name}: {foreign:?}");
        }
        let expected = ids(&model, Some(variant));
        assert!(expected.len() > 1, "{folder}");
        assert_eq!(ids(&out, None), expected, "{folder}");
    }
}

#[test]
fn onnx_target_keeps_the_interface_of_the_hub() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("folder");
    let model = tiny("fastvlm-tiny-contrib");
    let args = ["--target", "onnx", "--variant", "fp16"];
    let output = build(&model, &out, &args);
    assert!(output.status.success(), "{}", stderr(&output));
    let given = OnnxModel::load(&model.join("onnx/decoder_model_merged.onnx")).expect("given");
    let made = out.join("onnx/decoder_model_merged_fp16.onnx");
    let made = OnnxModel::load(&made).expect("made");
    // Those of the FP32 file, though its weights are FP16.
    for (given, made) in [
        (given.graph().inputs(), made.graph().inputs()),
        (given.graph().outputs(), made.graph().outputs()),
    ] {
        let names = |values: &[trtvlm::onnx::ValueType]| -> Vec<_> {
            values.iter().map(|v| (v.name.clone(), v.dtype)).collect()
        };
        assert_eq!(names(&made), names(&given));
    }
    // What stands beside the graphs is what the model folder has.
    for name in ["config.json", "tokenizer.json", "preprocessor_config.json"] {
        let read = |dir: &Path| std::fs::read(dir.join(name)).expect(name);
        assert_eq!(read(&out), read(&model), "{name}");
    }
}

#[test]
fn onnx_target_of_the_demo_model_in_fp16_is_a_verified_bundle_that_answers() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("folder");
    let output = build(&demo(), &out, &["--target", "onnx"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(ids(&out, None), ids(&demo(), None));
    let bundle = Bundle::open(&out).expect("bundle");
    let set = &bundle.manifest().engines[0];
    assert_eq!(
        (set.target.to_string(), set.components.len()),
        ("onnx".to_owned(), 3)
    );
    assert!(set.engine.to_string().starts_with("ONNX opset"));

    // A graph that was changed is refused, as in every bundle.
    let path = out.join("onnx/decoder_model_merged_fp16.onnx");
    let mut bytes = std::fs::read(&path).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).expect("write");
    let output = trtvlm().arg("inspect").arg(&out).output().expect("inspect");
    assert!(String::from_utf8_lossy(&output.stdout).contains("DAMAGED"));
}
