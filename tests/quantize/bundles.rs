//! `trtvlm build --precision int8`, as a user sees it.

use std::path::Path;
use std::process::{Command, Output};

use assert_cmd::cargo::CommandCargoExt;
use trtvlm::bundle::Bundle;
use trtvlm::onnx::passes::check_types;
use trtvlm::onnx::proto::NodeProto;
use trtvlm::onnx::{DataType, OnnxModel};

use super::support::{demo, demo_scales, tiny};

fn trtvlm(args: &[&str]) -> Output {
    let mut command = Command::cargo_bin("trtvlm").expect("binary");
    command.env_remove("TRTVLM_LOG").args(args);
    command.output().expect("run")
}

fn build(model: &Path, out: &Path, args: &[&str]) -> Output {
    let paths = [model, out].map(|path| path.display().to_string());
    let mut all = vec!["build", &paths[0], "--out", &paths[1]];
    all.extend(args);
    // What the gate does has tests of its own; random weights would not pass it.
    if !args.contains(&"fp16") {
        all.extend(["--max-drop", "100"]);
    }
    trtvlm(&all)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A file of the demo model's scales.
fn scales(dir: &Path) -> String {
    let path = dir.join("demo.json");
    demo_scales().save(&path).expect("save");
    path.display().to_string()
}

#[test]
fn int8_bundle_observes_by_itself_and_says_what_it_did() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("bundle");
    let args = ["--precision", "int8", "--target", "cpu", "--samples", "4"];
    let output = build(&demo(), &out, &args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(
        text(&output.stderr).contains("no --calibration"),
        "a warning"
    );
    let bundle = Bundle::open(&out).expect("bundle");
    let info = bundle
        .manifest()
        .quantization
        .as_ref()
        .expect("quantization");
    assert_eq!((info.method.as_deref(), info.items), (Some("mse"), 4));
    assert_eq!(info.speed, "unverified");
    let decoder = info.components["decoder"];
    // Seven products in each of four layers, and the head; two of activations in each layer.
    assert_eq!(
        (decoder.quantized, decoder.weights, decoder.kept),
        (29, 29, 8)
    );
    assert!(info.components["vision"].quantized > 40);
    let report = std::fs::read(out.join("reports/quantization.json")).expect("report");
    let report: serde_json::Value = serde_json::from_slice(&report).expect("json");
    let quantized = report["decoder"]["quantized"].as_array().expect("list");
    assert!(
        quantized.iter().any(|name| name == "/head/MatMul"),
        "{quantized:?}"
    );
    let left: Vec<_> = std::fs::read_dir(dir.path()).expect("dir").collect();
    assert_eq!(
        left.len(),
        1,
        "the file of scales has moved into the bundle"
    );

    // Its report is a file of scales, too; weights are a quarter of FP32's.
    let again = dir.path().join("again");
    let observed = out.join("reports/calibration.json").display().to_string();
    let args = [
        "--precision",
        "int8",
        "--target",
        "cpu",
        "--scales",
        &observed,
        "--calibration-method",
        "max",
        "--no-quantize-head",
        "--no-quantize-embedding",
        "--exclude",
        "*q_proj*",
        "--exclude",
        "Conv",
    ];
    let output = build(&demo(), &again, &args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let bundle = Bundle::open(&again).expect("bundle");
    let info = bundle
        .manifest()
        .quantization
        .as_ref()
        .expect("quantization");
    assert_eq!(info.method.as_deref(), Some("max"));
    assert!(!info.lm_head && !info.embedding);
    assert_eq!(info.components["decoder"].quantized, 29 - 4 - 1);
}

#[test]
fn int8_weights_bundle_needs_no_pictures() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("bundle");
    let args = ["--precision", "int8-weights", "--target", "cpu"];
    let output = build(&tiny("smolvlm-tiny-contrib"), &out, &args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let bundle = Bundle::open(&out).expect("bundle");
    let info = bundle
        .manifest()
        .quantization
        .as_ref()
        .expect("quantization");
    assert_eq!((info.method.as_deref(), info.items), (None, 0));
    assert!(!info.components.contains_key("vision"));
    let decoder = info.components["decoder"];
    assert!(decoder.weights > 10 && decoder.tensors == 0, "{decoder:?}");
}

#[test]
fn scales_and_options_that_do_not_fit_are_refused_and_leave_nothing() {
    let dir = tempfile::tempdir().expect("dir");
    let path = scales(dir.path());
    let demo = demo();
    let other = tiny("fastvlm-tiny-plain");
    let damaged = dir.path().join("damaged.json").display().to_string();
    let whole = std::fs::read_to_string(&path).expect("scales");
    // A NaN has no form in JSON; `null` stands where one was written.
    let broken = whole.replacen("\"min\": ", "\"min\": null, \"other\": ", 1);
    std::fs::write(&damaged, broken).expect("write");
    let cases: [(&Path, &[&str], i32, &str); 10] = [
        (
            &other,
            &["--precision", "int8", "--scales", &path],
            1,
            "digest",
        ),
        (
            &demo,
            &["--precision", "int8", "--scales", &damaged],
            1,
            "damaged.json",
        ),
        (
            &demo,
            &["--precision", "int8", "--scales", "/nowhere.json"],
            1,
            "/nowhere.json",
        ),
        (
            &demo,
            &["--precision", "fp32", "--scales", &path],
            1,
            "quantizes nothing",
        ),
        (
            &other,
            &["--precision", "fp16", "--scales", &path],
            1,
            "digest",
        ),
        (
            &demo,
            &[
                "--precision",
                "fp16",
                "--scales",
                &path,
                "--calibration-method",
                "max",
            ],
            1,
            "quantizes nothing",
        ),
        (
            &demo,
            &[
                "--precision",
                "fp16",
                "--scales",
                &path,
                "--exclude",
                "Conv",
            ],
            1,
            "quantizes nothing",
        ),
        (
            &demo,
            &["--precision", "int8-weights", "--scales", &path],
            1,
            "no ranges",
        ),
        (
            &demo,
            &["--precision", "int8", "--smooth", "2"],
            2,
            "from 0 to 1",
        ),
        (&demo, &["--precision", "int8", "--include", ""], 2, "empty"),
    ];
    let out = dir.path().join("bundle");
    for (model, args, code, expected) in cases {
        let mut all = vec!["--target", "cpu"];
        all.extend(args);
        let output = build(model, &out, &all);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        assert!(stderr.contains(expected), "{args:?}: {stderr}");
        assert!(!out.exists(), "{args:?}");
    }
}

#[test]
fn fp16_bundle_takes_ranges_and_computes_gated_products_in_half() {
    let dir = tempfile::tempdir().expect("dir");
    let path = scales(dir.path());
    let halves = |name: &str, args: &[&str]| {
        let out = dir.path().join(name);
        let all = [&["--target", "onnx", "--precision", "fp16"], args].concat();
        let output = build(&demo(), &out, &all);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let decoder = out.join("onnx/decoder_model_merged_fp16.onnx");
        let decoder = OnnxModel::load(&decoder).expect("decoder");
        let types = check_types(&decoder).expect("types");
        let gated = |node: &&NodeProto| node.op_type == "Sigmoid";
        let made = decoder.graph().node.iter().filter(gated);
        let made: Vec<_> = made.map(|node| types.get(&node.output[0])).collect();
        (out, made)
    };
    let (out, careful) = halves("careful", &[]);
    assert_eq!(careful.len(), 4, "one in each layer");
    assert!(careful.iter().all(|t| *t == Some(DataType::F32)));
    assert!(!out.join("reports/calibration.json").exists());
    let (out, seen) = halves("seen", &["--scales", &path]);
    assert_eq!(seen.len(), careful.len());
    assert!(seen.iter().all(|t| *t == Some(DataType::F16)), "{seen:?}");
    let report = std::fs::read(out.join("reports/calibration.json")).expect("report");
    assert_eq!(report, std::fs::read(&path).expect("scales"));
}

#[cfg(feature = "tensorrt")]
mod plans {
    use super::super::support::root;
    use super::*;

    #[test]
    fn int8_plans_are_built_by_the_real_builder() {
        let dir = tempfile::tempdir().expect("dir");
        let path = scales(dir.path());
        for precision in ["int8", "int8-weights"] {
            let out = dir.path().join(precision);
            let mut args = vec!["--target", "sm86", "--precision", precision];
            if precision == "int8" {
                args.extend(["--scales", &path]);
            }
            let output = build(&demo(), &out, &args);
            assert!(
                output.status.success(),
                "{precision}: {}",
                text(&output.stderr)
            );
            let bundle = Bundle::open(&out).expect("bundle");
            for component in &bundle.manifest().engines[0].components {
                let path = bundle.file(&component.file).expect("file");
                let bytes = std::fs::metadata(path).expect("file").len();
                let is_plan = component.file.ends_with(".plan");
                assert!(bytes > 100_000 || !is_plan, "{}", component.file);
            }
        }
    }

    #[test]
    fn int8_plans_of_a_tiled_model_with_contrib_operators_are_built() {
        let dir = tempfile::tempdir().expect("dir");
        let out = dir.path().join("bundle");
        let data = root().join("calibration").display().to_string();
        let args = [
            "--target",
            "sm86",
            "--precision",
            "int8",
            "--calibration",
            &data,
            "--samples",
            "1",
            "--tiles",
            "2",
        ];
        let output = build(&tiny("smolvlm-tiny-contrib"), &out, &args);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(Bundle::open(&out).is_ok());
    }
}
