//! `trtvlm inspect`, `doctor` and `completions`, as a user calls them.
#![cfg(feature = "cli")]

use std::fs;
use std::path::Path;

use assert_cmd::Command;
use serde_json::Value;
use trtvlm::bundle::{
    Buckets, BundleWriter, Component, Engine, EngineSet, Flavour, Manifest, ModelInfo, Part,
    Precision, Profile, ProfileInput, SCHEMA_VERSION, Target, TensorInfo,
};

/// A folder with weights beside its decoder, and one with contrib operators.
const EXTERNAL: &str = "tests/data/tiny/fastvlm-tiny-external";
const CONTRIB: &str = "tests/data/tiny/smolvlm-tiny-contrib-sep/onnx/decoder_model_merged.onnx";

fn trtvlm(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trtvlm"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(args);
    command
}

/// stdout of a command that must succeed.
fn text(args: &[&str]) -> String {
    let output = trtvlm(args).assert().success().get_output().clone();
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&text(args)).expect("JSON")
}

/// A bundle with one plan in it, which is none.
fn bundle(dir: &Path) -> String {
    let out = dir.join("b");
    let writer = BundleWriter::create(&out, false).expect("create");
    writer
        .write("engines/vision.plan", b"no plan")
        .expect("write");
    let dims = |n| vec![n, 3, 64, 64];
    let vision = Component {
        name: "vision".to_owned(),
        file: "engines/vision.plan".to_owned(),
        inputs: vec![TensorInfo::new(
            "pixel_values",
            "f16",
            ["tiles", "3", "64", "64"],
        )],
        outputs: vec![TensorInfo::new(
            "image_features",
            "f16",
            ["tiles", "16", "32"],
        )],
        profiles: vec![Profile {
            name: "one tile".to_owned(),
            inputs: vec![ProfileInput {
                name: "pixel_values".to_owned(),
                min: dims(1),
                opt: dims(1),
                max: dims(4),
            }],
        }],
        graph: vec![],
    };
    let manifest = Manifest {
        schema_version: SCHEMA_VERSION,
        created_by: "trtvlm 9.9.9".to_owned(),
        command_line: ["trtvlm", "build", "m\u{1b}[31m"]
            .map(str::to_owned)
            .to_vec(),
        finished_from: None,
        model: ModelInfo {
            family: "fastvlm".to_owned(),
            name: "tiny".to_owned(),
            variant: "fp32".to_owned(),
            sources: vec![],
        },
        precision: Precision::Fp16,
        taps: vec![],
        head_bytes: None,
        quantization: None,
        kv_capacity: 512,
        max_context: 512,
        draft_tokens: 0,
        vocabulary: 1024,
        buckets: Buckets::default(),
        engines: vec![EngineSet {
            target: Target::Sm(86),
            engine: Engine {
                flavour: Flavour::TensorRtRtx,
                version: "1.7.1".to_owned(),
            },
            components: vec![vision],
            memory: vec![Part {
                name: "kv cache".to_owned(),
                bytes: 3 << 20,
            }],
            kernels: None,
        }],
        files: vec![],
    };
    writer.finish(manifest).expect("finish");
    out.to_str().expect("UTF-8").to_owned()
}

/// Numbers as the Python package `onnx` counts them in the same files.
#[test]
fn inspect_of_an_onnx_file_agrees_with_the_onnx_package() {
    let decoder = format!("{EXTERNAL}/onnx/decoder_model_merged.onnx");
    let report = json(&["inspect", "--json", &decoder]);
    assert_eq!(report["kind"], "onnx");
    assert_eq!(report["producer"], "pytorch 2.14.1");
    assert_eq!(report["n_nodes"], 801);
    assert_eq!(
        report["ops"][0],
        serde_json::json!({"op": "Constant", "count": 272})
    );
    assert_eq!(report["weights"][0]["tensors"], 38);
    assert_eq!(report["weight_bytes"], 327_552);
    assert_eq!(report["external"][0]["bytes"], 323_584);
    assert_eq!(report["inputs"].as_array().map(Vec::len), Some(9));
    assert_eq!(report["outputs"].as_array().map(Vec::len), Some(7));
    let report = json(&["inspect", "--json", CONTRIB]);
    assert_eq!(report["n_nodes"], 55);
    assert_eq!(report["weight_bytes"], 445_760);
    assert_eq!(
        report["opsets"][1],
        serde_json::json!({"domain": "com.microsoft", "version": 1})
    );
    let shown = text(&["inspect", CONTRIB]);
    for part in [
        "ONNX file",
        "ai.onnx 21, com.microsoft 1",
        "com.microsoft.GroupQueryAttention 3",
        "past_key_values.{0-2}.key    f32 [batch_size, 1, past_sequence_length, 32]",
    ] {
        assert!(shown.contains(part), "{part}:\n{shown}");
    }
}

#[test]
fn inspect_of_a_model_folder_shows_files_and_components() {
    let report = json(&["inspect", "--json", EXTERNAL]);
    assert_eq!(report["kind"], "model");
    assert_eq!(report["family"], "fastvlm");
    assert_eq!(report["n_layers"], 3);
    assert_eq!(report["variant"], "fp32");
    assert_eq!(report["components"].as_array().map(Vec::len), Some(3));
    assert_eq!(report["problem"], Value::Null);
    let shown = text(&["inspect", EXTERNAL]);
    for part in [
        "model folder",
        "onnx/decoder_model_merged.onnx_data",
        "variant fp32",
        "pixel_values",
    ] {
        assert!(shown.contains(part), "{part}:\n{shown}");
    }
    // What is known is shown, and then it fails.
    let output = trtvlm(&["inspect", EXTERNAL, "--variant", "q4"])
        .assert()
        .code(1)
        .get_output()
        .clone();
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        stdout.contains("family") && stderr.contains("`q4`"),
        "{stdout}\n{stderr}"
    );
}

#[test]
fn inspect_of_a_bundle_verifies_it() {
    let dir = tempfile::tempdir().expect("temp dir");
    let path = bundle(dir.path());
    let report = json(&["inspect", "--json", &path]);
    assert_eq!(
        (&report["kind"], &report["verified"]),
        (&"bundle".into(), &true.into())
    );
    assert_eq!(report["manifest"]["engines"][0]["target"], "sm86");
    let shown = text(&["inspect", &path]);
    for part in [
        "bundle, verified",
        "target sm86, TensorRT-RTX 1.7.1",
        "vision: engines/vision.plan, 7 B",
        "pixel_values  f16 [tiles, 3, 64, 64]",
        "one tile  pixel_values  1 x 3 x 64 x 64",
        "kv cache  3.00 MiB",
        "trtvlm build m\\u{1b}[31m",
    ] {
        assert!(shown.contains(part), "{part}:\n{shown}");
    }
    fs::write(Path::new(&path).join("engines/vision.plan"), b"NO plan").expect("write");
    let output = trtvlm(&["inspect", &path])
        .assert()
        .code(1)
        .get_output()
        .clone();
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        stdout.contains("bundle, DAMAGED") && stdout.contains("kv cache"),
        "{stdout}"
    );
    assert!(
        stderr.contains("vision.plan") && stderr.contains("SHA-256 is"),
        "{stderr}"
    );
}

#[test]
fn inspect_of_a_plan_takes_what_the_manifest_says() {
    let dir = tempfile::tempdir().expect("temp dir");
    let plan = Path::new(&bundle(dir.path())).join("engines/vision.plan");
    let path = plan.to_str().expect("UTF-8");
    let report = json(&["inspect", "--json", path]);
    assert_eq!(
        (&report["kind"], &report["source"]),
        (&"plan".into(), &"manifest".into())
    );
    assert_eq!(report["engine"], "TensorRT-RTX 1.7.1");
    assert_eq!(report["component"]["outputs"][0]["name"], "image_features");
    assert!(text(&["inspect", path]).contains("by the bundle's manifest"));
    let lone = dir.path().join("lone.plan");
    fs::copy(&plan, &lone).expect("copy");
    let lone = lone.to_str().expect("UTF-8");
    let report = json(&["inspect", "--json", lone]);
    assert_eq!(
        (&report["bytes"], &report["component"]),
        (&7.into(), &Value::Null)
    );
    assert!(report["note"].is_string());
    fs::write(&plan, "another").expect("write");
    let output = trtvlm(&["inspect", path])
        .assert()
        .code(1)
        .get_output()
        .clone();
    assert!(String::from_utf8_lossy(&output.stderr).contains("SHA-256 is"));
}

#[test]
fn inspect_of_anything_else_says_what_it_is_not() {
    let dir = tempfile::tempdir().expect("temp dir");
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).expect("write");
        path.to_str().expect("UTF-8").to_owned()
    };
    let here = dir.path().to_str().expect("UTF-8").to_owned();
    for (path, part) in [
        (file("text.onnx", b"hello"), "not an ONNX file"),
        (file("empty.onnx", b""), "the file is empty"),
        (file("empty.plan", b""), "the file is empty"),
        (here.clone(), "neither a model folder"),
        (format!("{here}/none"), "none"),
        ("hf:../x".to_owned(), "`../x`"),
    ] {
        let output = trtvlm(&["inspect", &path])
            .assert()
            .code(1)
            .get_output()
            .clone();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            stderr.contains(part) && output.stdout.is_empty(),
            "{path}: {stderr}"
        );
    }
}

#[test]
fn doctor_reports_and_never_fails() {
    let report = json(&["doctor", "--json"]);
    let items = report["items"].as_array().expect("items");
    for name in [
        "CPU",
        "memory",
        "temporary files",
        "models from the hub",
        "CUDA driver",
    ] {
        assert!(items.iter().any(|i| i["name"] == name), "{name}");
    }
    for item in items {
        assert_eq!(item["status"] == "ok", item["advice"].is_null(), "{item}");
    }
    assert!(text(&["doctor"]).contains("CPU"));
}

#[test]
fn doctor_on_a_crippled_machine_says_what_to_do() {
    let dir = tempfile::tempdir().expect("temp dir");
    let file = dir.path().join("file");
    fs::write(&file, "").expect("write");
    // A library that is none, folders that are none, nothing else.
    fs::write(dir.path().join("libnvinfer_lean.so.11"), "no library").expect("write");
    let output = trtvlm(&["doctor"])
        .env_clear()
        .env("TMPDIR", file.join("x"))
        .env("HF_HOME", file.join("x"))
        .env("TENSORRT_LIB_DIR", dir.path())
        .env("TRTVLM_SDK", dir.path())
        .assert()
        .success()
        .get_output()
        .clone();
    let shown = String::from_utf8_lossy(&output.stdout);
    for part in [
        "missing  temporary files",
        "set TMPDIR",
        "missing  models from the hub",
        "set HF_HOME",
    ] {
        assert!(shown.contains(part), "{part}:\n{shown}");
    }
}

#[test]
fn completions_know_every_subcommand() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = text(&["completions", shell]);
        for command in ["inspect", "doctor", "completions", "run"] {
            assert!(script.contains(command), "{shell}: {command}");
        }
    }
    trtvlm(&["completions", "csh"]).assert().code(2);
}

#[test]
fn inspect_of_a_pipe_is_refused_and_does_not_wait() {
    let dir = tempfile::tempdir().expect("temp dir");
    for name in ["pipe.onnx", "pipe.plan", "pipe"] {
        let pipe = dir.path().join(name);
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.expect("mkfifo").success());
        let output = trtvlm(&["inspect", pipe.to_str().expect("UTF-8")])
            .assert()
            .code(1)
            .get_output()
            .clone();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            stderr.contains(name) && stderr.contains("neither a file"),
            "{stderr}"
        );
    }
}
