//! The accuracy gate of `trtvlm build`, as a user sees it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn trtvlm() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trtvlm"));
    command.env_remove("TRTVLM_LOG").env("RUST_BACKTRACE", "0");
    command.stdin(Stdio::null());
    command
}

fn build(out: &Path, args: &[&str]) -> Output {
    let mut command = trtvlm();
    command.arg("build").arg(root().join("onnx/uav-tiny"));
    command
        .args(["--target", "cpu", "--json", "--out"])
        .arg(out);
    command.args(args).output().expect("build")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(path: PathBuf) -> Value {
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&bytes).expect("JSON")
}

/// Scales of the demo model from a few of its pictures.
fn scales(dir: &Path) -> PathBuf {
    let out = dir.join("scales.json");
    let mut command = trtvlm();
    command.arg("calibrate").arg(root().join("onnx/uav-tiny"));
    command
        .args(["--samples", "4", "--max-tokens", "4", "--out"])
        .arg(&out);
    let output = command.output().expect("calibrate");
    assert!(output.status.success(), "{}", text(&output.stderr));
    out
}

#[test]
fn damaged_scale_is_found_left_in_fp16_and_reported() {
    let dir = tempfile::tempdir().expect("dir");
    let path = scales(dir.path());
    // What the last attention block's output projection alone reads, a thousand times too small.
    let mut damaged = json(path.clone());
    let tensors = damaged["graphs"]["decoder"]["tensors"]
        .as_object_mut()
        .expect("tensors");
    let node = "/o_proj_3/MatMul";
    let model = trtvlm::onnx::OnnxModel::load(
        &root().join("onnx/uav-tiny/onnx/decoder_model_merged_fp16.onnx"),
    );
    let model = model.expect("decoder");
    let reader = model
        .graph()
        .node
        .iter()
        .find(|n| n.label() == node)
        .expect("node");
    let amax = tensors[&reader.input[0]]["amax"]
        .as_object_mut()
        .expect("ranges");
    for range in amax.values_mut() {
        *range = (range.as_f64().expect("number") / 1000.0).into();
    }
    std::fs::write(&path, damaged.to_string()).expect("write");

    let out = dir.path().join("bundle");
    let scales = path.to_str().expect("path");
    let pictures = root().join("calibration");
    let pictures = pictures.to_str().expect("path");
    let exclude = ["--exclude", "*down_proj*"];
    let given = [
        "--precision",
        "int8",
        "--scales",
        scales,
        "--calibration",
        pictures,
    ];
    // What all other layers do to six answers, one of them a near tie, is less.
    let few = ["--samples", "6", "--sensitivity", "1", "--max-drop", "15"];
    let output = build(&out, &[&given[..], &few, &exclude].concat());
    let stderr = text(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(
        stderr.contains("6 of 6 with 0 layers left in FP16, 1 in INT8 weights"),
        "{stderr}"
    );

    let manifest = json(out.join("manifest.json"));
    let accuracy = &manifest["quantization"]["accuracy"];
    assert_eq!(accuracy["kept"], serde_json::json!([]));
    assert_eq!(accuracy["weights_only"], serde_json::json!([node]));
    assert_eq!(
        (&accuracy["items"], &accuracy["after"]),
        (&6.into(), &1.0.into())
    );
    assert!(
        accuracy["before"]
            .as_f64()
            .is_some_and(|share| share < 0.99)
    );
    assert_eq!(manifest["quantization"]["speed"], "unverified");

    let report = json(out.join("reports/accuracy.json"));
    assert_eq!(report["weights_only"][0]["nodes"][0], node);
    assert_eq!(report["max_drop"], 15.0);
    let [before, after] = ["expected_before", "expected_after"].map(|key| report[key].as_f64());
    assert!(before < after && after < Some(1.0), "{before:?} {after:?}");
    assert_eq!(accuracy["expected"], report["expected_after"]);
    let found = json(out.join("reports/sensitivity.json"));
    assert_eq!(found["layers"][0]["name"], node, "the worst is first");
    let layers = found["layers"].as_array().expect("layers");
    assert!(layers.len() > 50 && layers.iter().all(|l| l["logits"]["cosine"].is_f64()));
    let vision = layers.iter().filter(|l| l["component"] == "vision");
    assert!(vision.clone().count() > 20 && vision.clone().all(|l| l["features"].is_object()));
    let svg = std::fs::read_to_string(out.join("reports/sensitivity.svg")).expect("SVG");
    assert!(svg.starts_with("<svg ") && svg.contains("weights only"));
    let report = json(out.join("reports/quantization.json"));
    let decoder = &report["decoder"];
    assert_eq!(decoder["weights_only"], serde_json::json!([node]));
    let quantized = decoder["quantized"].as_array().expect("quantized");
    assert!(quantized.iter().any(|label| *label == node));
}

#[test]
fn gate_is_skipped_on_demand_and_refuses_what_is_no_percentage() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("bundle");
    let output = build(&out, &["--precision", "int8-weights", "--max-drop", "100"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let manifest = json(out.join("manifest.json"));
    assert!(manifest["quantization"].is_object());
    assert!(manifest["quantization"]["accuracy"].is_null());
    assert!(!out.join("reports/accuracy.json").exists());

    let out = dir.path().join("none");
    for (args, code, reason) in [
        (
            &["--precision", "int8", "--max-drop", "nan"],
            2,
            "from 0 to 100",
        ),
        (
            &["--precision", "int8", "--max-drop", "101"],
            2,
            "from 0 to 100",
        ),
        (
            &["--precision", "fp16", "--max-drop", "2"],
            1,
            "quantizes nothing",
        ),
        (
            &["--precision", "fp32", "--sensitivity", "2"],
            1,
            "quantizes nothing",
        ),
    ] {
        let output = build(&out, args);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        assert!(stderr.contains(reason), "{args:?}: {stderr}");
        assert!(!out.exists());
    }
}

#[test]
fn weights_alone_are_proved_without_scales() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("bundle");
    let few = ["--samples", "3", "--sensitivity", "0", "--max-drop", "99"];
    let output = build(&out, &[&["--precision", "int8-weights"][..], &few].concat());
    let stderr = text(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let accuracy = json(out.join("manifest.json"));
    let accuracy = &accuracy["quantization"]["accuracy"];
    assert_eq!(
        (&accuracy["items"], &accuracy["max_drop"]),
        (&3.into(), &99.0.into())
    );
    assert!(accuracy["after"].as_f64().is_some_and(|share| share > 0.5));
    assert!(!out.join("reports/sensitivity.json").exists());
}
