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
    command
        .env_remove("TRTVLM_LOG")
        .env("RUST_BACKTRACE", "0")
        .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"));
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

#[test]
fn portable_bundle_needs_no_tensorrt_and_holds_graphs_and_profiles_for_its_builder() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("bundle");
    let model = tiny("fastvlm-tiny-contrib");
    let args = ["--target", "sm87", "--portable", "--variant", "fp32"];
    let output = build(&model, &out, &args);
    assert!(output.status.success(), "{}", stderr(&output));
    let bundle = Bundle::open(&out).expect("bundle");
    let set = &bundle.manifest().engines[0];
    assert!(set.is_portable());
    let decoder = set.component("decoder").expect("decoder");
    assert_eq!(decoder.file, "engines/decoder.sm87.onnx");
    let profiles: Vec<&str> = decoder.profiles.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(profiles, ["prefill", "step"]);
    for component in &set.components {
        let graph = OnnxModel::load(&bundle.file(&component.file).expect("file"));
        let graph = graph.expect("graph");
        assert!(graph.graph().node.iter().all(|node| node.domain.is_empty()));
        // What the manifest says of the graph is what the bundle holds.
        for digest in &component.graph {
            let name = format!("engines/{}", digest.path);
            let files = bundle.manifest().files.iter();
            let listed = files.filter(|f| f.path == name && f.sha256 == digest.sha256);
            assert_eq!(listed.count(), 1, "{name}");
        }
    }

    // There is nothing in it to run.
    let mut run = trtvlm();
    run.arg("run").arg(&out).arg("--image");
    run.arg(root().join("calibration/images/0024.png"));
    let output = run.args(["--prompt", "x"]).output().expect("run");
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(text.contains("sm87") && text.contains("build"), "{text}");
}

#[test]
fn portable_bundle_for_a_gpu_that_does_not_exist_is_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("bundle");
    let output = build(&demo(), &out, &["--target", "sm78", "--portable"]);
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(text.contains("sm78") && text.contains("sm87"), "{text}");
    assert!(!out.exists());
}

#[test]
fn portable_bundle_on_a_machine_of_another_kind_is_refused_with_both_sides() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("bundle");
    let args = ["--target", "sm87", "--portable"];
    assert!(build(&demo(), &out, &args).status.success());
    let finished = dir.path().join("finished");
    for (args, words) in [
        (&["--target", "sm86"][..], &["sm86", "sm87"][..]),
        (&["--target", "cpu"], &["cpu", "sm87"]),
        (&["--target", "sm87,sm86"], &["one target"]),
        (&["--precision", "fp32"], &["precision", "bundle"]),
        (&["--max-context", "512"], &["max-context", "bundle"]),
        (&["--portable"], &["portable", "bundle"]),
    ] {
        let output = build(&out, &finished, args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let text = stderr(&output);
        for word in words {
            assert!(text.contains(word), "{args:?}: {text}");
        }
        assert!(!finished.exists(), "{args:?}");
    }

    // What has no graphs to be built is no portable bundle.
    let cpu = dir.path().join("cpu");
    assert!(build(&demo(), &cpu, &["--target", "cpu"]).status.success());
    let output = build(&cpu, &finished, &["--target", "sm86"]);
    let text = stderr(&output);
    assert!(text.contains("no portable bundle"), "{text}");
}

#[cfg(feature = "tensorrt")]
mod tensorrt {
    use super::*;

    /// Targets of a bundle with what its engines are.
    fn engines(bundle: &Bundle) -> Vec<String> {
        let sets = bundle.manifest().engines.iter();
        sets.map(|set| format!("{} {}", set.target, set.engine))
            .collect()
    }

    #[test]
    fn target_that_this_tensorrt_does_not_build_for_becomes_a_portable_bundle() {
        let dir = tempfile::tempdir().expect("dir");
        for sm in ["sm87", "sm90"] {
            let out = dir.path().join(sm);
            let output = build(&demo(), &out, &["--target", sm]);
            let text = stderr(&output);
            assert!(output.status.success(), "{text}");
            assert!(text.contains(sm) && text.contains("sm86"), "{text}");
            let bundle = Bundle::open(&out).expect("bundle");
            assert!(bundle.manifest().engines[0].is_portable());
            let files = bundle.manifest().files.iter();
            assert_eq!(files.filter(|f| f.path.ends_with(".plan")).count(), 0);
        }
    }

    #[test]
    fn portable_bundle_that_is_finished_equals_one_that_was_built_at_once() {
        let dir = tempfile::tempdir().expect("dir");
        let [direct, portable, finished] =
            ["direct", "portable", "finished"].map(|name| dir.path().join(name));
        let model = demo();
        let args = ["--target", "sm86,cpu"];
        let output = build(&model, &direct, &args);
        assert!(output.status.success(), "{}", stderr(&output));
        let output = build(&model, &portable, &[&args[..], &["--portable"]].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        let before = Bundle::open(&portable)
            .expect("portable")
            .digest()
            .to_owned();
        let output = build(&portable, &finished, &["--target", "sm86"]);
        assert!(output.status.success(), "{}", stderr(&output));

        let [direct, portable, finished] =
            [direct, portable, finished].map(|dir| Bundle::open(&dir).expect("bundle"));
        assert_eq!(portable.digest(), before);
        assert_eq!(engines(&direct), engines(&finished));
        let sets = |bundle: &Bundle| bundle.manifest().engines.clone();
        for (a, b) in sets(&direct).iter().zip(sets(&finished)) {
            for (a, b) in a.components.iter().zip(&b.components) {
                // The builder read the same bytes, and was given the same profiles.
                assert_eq!(a.graph, b.graph, "{}", a.name);
                assert_eq!((&a.file, &a.profiles), (&b.file, &b.profiles));
                assert_eq!((&a.inputs, &a.outputs), (&b.inputs, &b.outputs));
            }
        }
        let files = |bundle: &Bundle| -> Vec<(String, String)> {
            let files = bundle.manifest().files.iter();
            let files = files.map(|f| (f.path.clone(), f.sha256.clone()));
            files.filter(|(path, _)| !path.ends_with(".plan")).collect()
        };
        assert_eq!(files(&direct), files(&finished));
        let origin = finished.manifest().finished_from.as_ref().expect("origin");
        assert_eq!(origin.manifest_sha256, portable.digest());
        assert_eq!(origin.command_line, portable.manifest().command_line);
        assert_eq!(ids(finished.dir(), None), ids(&model, None));

        let again = dir.path().join("again");
        let output = build(finished.dir(), &again, &["--target", "sm86"]);
        assert_eq!(output.status.code(), Some(1));
        let text = stderr(&output);
        assert!(text.contains("built already for sm86"), "{text}");
        assert!(!again.exists());
    }

    #[test]
    fn portable_bundle_with_a_damaged_graph_is_refused_before_it_is_parsed() {
        let dir = tempfile::tempdir().expect("dir");
        let out = dir.path().join("bundle");
        let args = ["--target", "sm86", "--portable"];
        assert!(build(&demo(), &out, &args).status.success());
        let path = out.join("engines/vision.sm86.onnx");
        let mut bytes = std::fs::read(&path).expect("read");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).expect("write");
        let finished = dir.path().join("finished");
        let output = build(&out, &finished, &["--target", "sm86"]);
        assert_eq!(output.status.code(), Some(1));
        let text = stderr(&output);
        assert!(text.contains("vision.sm86.onnx"), "{text}");
        assert!(text.contains("SHA-256"), "{text}");
        assert!(!finished.exists());
    }
}
