//! `trtvlm build`, as a user sees it.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

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
    command
        .arg("build")
        .arg(model)
        .arg("--out")
        .arg(out)
        .args(args);
    command.output().expect("run")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn answer(model: &Path) -> Value {
    let output = trtvlm()
        .arg("run")
        .arg(model)
        .arg("--image")
        .arg(root().join("calibration/images/0024.png"))
        .args(["--prompt", "describe the scene", "--json"])
        .output()
        .expect("run");
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Everything in a folder but hidden files.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .expect("dir")
        .map(|entry| {
            entry
                .expect("entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}

#[test]
fn cpu_bundle_answers_as_its_model_folder_does() {
    let dir = tempfile::tempdir().expect("dir");
    let expected = answer(&demo());
    for precision in ["fp32", "fp16"] {
        let out = dir.path().join(precision);
        let output = build(
            &demo(),
            &out,
            &["--target", "cpu", "--precision", precision, "--json"],
        );
        assert!(output.status.success(), "{}", text(&output.stderr));
        let outcome: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(outcome["engines"].as_array().map(Vec::len), Some(3));
        let given = answer(&out);
        assert_eq!(given["token_ids"], expected["token_ids"], "{precision}");
        assert_eq!(given["precision"], precision);
        let bundle = Bundle::open(&out).expect("bundle");
        assert_eq!(bundle.digest(), outcome["manifest_sha256"]);
    }
    assert_eq!(names(dir.path()), ["fp16", "fp32"]);
}

#[test]
fn cpu_bundle_with_four_bit_weights_and_taps_answers_and_says_what_it_has() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("bundle");
    let args = ["--target", "cpu", "--precision", "int4-weights"];
    let more = [
        "--block",
        "64",
        "--tap",
        "hidden,saliency:0+1",
        "--max-drop",
        "100",
    ];
    let output = build(&demo(), &out, &[&args[..], &more].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let given = answer(&out);
    assert_eq!(given["precision"], "int4-weights");
    assert!(
        given["token_ids"]
            .as_array()
            .is_some_and(|ids| ids.len() > 3)
    );
    let bundle = Bundle::open(&out).expect("bundle");
    assert_eq!(bundle.manifest().taps, ["hidden", "saliency:0+1"]);
    let decoder = bundle.manifest().engines[0].component("decoder");
    let outputs = &decoder.expect("decoder").outputs;
    assert!(outputs.iter().any(|t| t.name == "saliency"), "{outputs:?}");
}

#[test]
fn cpu_bundle_of_a_contrib_decoder_is_built_and_answers() {
    let dir = tempfile::tempdir().expect("dir");
    let model = root().join("tests/data/tiny/smolvlm-tiny-contrib-sep");
    let out = dir.path().join("bundle");
    let output = build(&model, &out, &["--target", "cpu"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(
        answer(&out)["token_ids"]
            .as_array()
            .is_some_and(|ids| !ids.is_empty())
    );
}

#[test]
fn build_over_an_existing_bundle_needs_force() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("bundle");
    assert!(build(&demo(), &out, &["--target", "cpu"]).status.success());
    let before = Bundle::open(&out).expect("bundle").digest().to_owned();
    let refused = build(&demo(), &out, &["--target", "cpu", "--precision", "fp32"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text(&refused.stderr).contains("--force"),
        "{}",
        text(&refused.stderr)
    );
    assert_eq!(Bundle::open(&out).expect("bundle").digest(), before);
    let forced = build(
        &demo(),
        &out,
        &["--target", "cpu", "--precision", "fp32", "--force"],
    );
    assert!(forced.status.success(), "{}", text(&forced.stderr));
    assert_ne!(Bundle::open(&out).expect("bundle").digest(), before);
}

#[test]
fn build_with_bad_arguments_leaves_nothing() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("bundle");
    let cases: [(&[&str], i32, &str); 11] = [
        (
            &["--target", "cpu", "--max-context", "10"],
            1,
            "max-context",
        ),
        (
            &["--target", "cpu", "--max-context", "100000"],
            1,
            "max-context",
        ),
        (
            &["--target", "cpu", "--draft-tokens", "99"],
            1,
            "draft-tokens",
        ),
        (&["--target", "cpu", "--variant", "q4"], 1, "fp16"),
        (&["--target", "toaster"], 2, "toaster"),
        (&["--precision", "int1"], 2, "int1"),
        (&["--target", "cpu", "--block", "32"], 1, "int4-weights"),
        (&["--precision", "int4-weights", "--block", "33"], 2, "33"),
        (&["--target", "cpu", "--tap", "layer:9"], 1, "layer 9"),
        (&["--target", "cpu", "--tap", "hidden,hidden"], 1, "twice"),
        (&["--target", "cpu", "--tap", "attention"], 2, "attention"),
    ];
    for (args, status, word) in cases {
        let output = build(&demo(), &out, args);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {stderr}");
        assert!(stderr.contains(word), "{args:?}: {stderr}");
    }
    assert!(names(dir.path()).is_empty(), "{:?}", names(dir.path()));
}

/// A copy of the demo model.
fn copy_of_demo(dir: &Path) -> PathBuf {
    let model = dir.join("model");
    std::fs::create_dir_all(model.join("onnx")).expect("dir");
    for sub in ["", "onnx"] {
        for entry in std::fs::read_dir(demo().join(sub)).expect("demo") {
            let path = entry.expect("entry").path();
            if path.is_file() {
                let to = model.join(sub).join(path.file_name().expect("name"));
                std::fs::copy(&path, to).expect("copy");
            }
        }
    }
    model
}

#[test]
fn cpu_bundle_that_the_engine_cannot_load_is_not_made() {
    let dir = tempfile::tempdir().expect("dir");
    let model = copy_of_demo(dir.path());
    // Of another tower, which is refused first.
    std::fs::remove_file(model.join("quick.safetensors")).expect("remove");
    let vision = model.join("onnx/vision_encoder_fp16.onnx");
    let mut graph = OnnxModel::load(&vision).expect("graph");
    let nodes = &mut graph.graph_mut().node;
    nodes.first_mut().expect("a node").op_type = "Frobnicate".to_owned();
    graph.save(&vision).expect("save");
    let out = dir.path().join("made/for/bundle");
    let output = build(&model, &out, &["--target", "cpu"]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("vision") && stderr.contains("Frobnicate"),
        "{stderr}"
    );
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
    // Nor are the folders above it left.
    assert_eq!(names(dir.path()), ["model"]);
}

#[test]
fn build_beyond_the_limit_on_file_sizes_is_an_error_and_leaves_nothing() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("bundle");
    let program = trtvlm().get_program().to_owned();
    let output = std::process::Command::new("sh")
        .args(["-c", "ulimit -f 256; exec \"$0\" \"$@\""])
        .arg(program)
        .arg("build")
        .arg(demo())
        .arg("--out")
        .arg(&out)
        .args(["--target", "cpu"])
        .output()
        .expect("run");
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("large"), "{stderr}");
    assert!(names(dir.path()).is_empty(), "{:?}", names(dir.path()));
}

#[test]
fn build_takes_no_file_from_outside_the_model_folder() {
    let dir = tempfile::tempdir().expect("dir");
    let model = copy_of_demo(dir.path());
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "{{ messages }}").expect("write");
    std::os::unix::fs::symlink(&secret, model.join("chat_template.jinja")).expect("link");
    let output = build(&model, &dir.path().join("bundle"), &["--target", "cpu"]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("chat_template.jinja"), "{stderr}");
    assert_eq!(names(dir.path()), ["model", "secret"]);
}

#[test]
fn bundle_whose_manifest_contradicts_its_configuration_is_refused_with_both_sides() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("bundle");
    assert!(build(&demo(), &out, &["--target", "cpu"]).status.success());
    let path = out.join("manifest.json");
    let good: Value = serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("JSON");
    for (key, value) in [
        ("vocabulary", 17),
        ("kv_capacity", 0),
        ("max_context", 32_000),
    ] {
        let mut manifest = good.clone();
        manifest[key] = value.into();
        std::fs::write(&path, manifest.to_string()).expect("write");
        let digest = trtvlm::digest::sha256_file(&path, |_| {})
            .expect("digest")
            .sha256;
        std::fs::write(
            out.join("manifest.sha256"),
            format!("{digest}  manifest.json\n"),
        )
        .expect("write");
        let output = trtvlm()
            .arg("run")
            .arg(&out)
            .arg("--image")
            .arg(root().join("calibration/images/0024.png"))
            .args(["--prompt", "x"])
            .output()
            .expect("run");
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{key}: {stderr}");
        assert!(
            stderr.contains("manifest.json") && stderr.contains(&format!("is {value}, expected")),
            "{key}: {stderr}"
        );
    }
}

#[test]
fn build_from_a_folder_that_cannot_be_run_is_refused_with_the_file_named() {
    let dir = tempfile::tempdir().expect("dir");
    let model = copy_of_demo(dir.path());
    for file in [
        "tokenizer.json",
        "tokenizer_config.json",
        "preprocessor_config.json",
    ] {
        let path = model.join(file);
        let good = std::fs::read(&path).expect("read");
        std::fs::write(&path, b"garbage").expect("write");
        let output = build(&model, &dir.path().join("bundle"), &["--target", "cpu"]);
        assert_eq!(output.status.code(), Some(1), "{file}");
        let stderr = text(&output.stderr);
        assert!(stderr.contains(file), "{file}: {stderr}");
        std::fs::write(&path, good).expect("restore");
    }
    assert_eq!(names(dir.path()), ["model"]);
}

#[test]
fn run_of_a_damaged_bundle_is_refused_with_the_file_named() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("bundle");
    assert!(build(&demo(), &out, &["--target", "cpu"]).status.success());
    let path = out.join("engines/decoder.onnx.data");
    let mut bytes = std::fs::read(&path).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).expect("write");
    let output = trtvlm()
        .arg("run")
        .arg(&out)
        .arg("--image")
        .arg(root().join("calibration/images/0024.png"))
        .args(["--prompt", "x"])
        .output()
        .expect("run");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("decoder.onnx.data"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn killed_build_leaves_no_bundle_and_the_next_one_cleans_up() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("bundle");
    for delay_ms in [0, 20, 60, 120, 240, 480] {
        let mut child = trtvlm()
            .arg("build")
            .arg(demo())
            .arg("--out")
            .arg(&out)
            .args(["--target", "cpu", "--force"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("spawn");
        std::thread::sleep(Duration::from_millis(delay_ms));
        child.kill().expect("kill");
        child.wait().expect("wait");
        if out.exists() {
            Bundle::open(&out).expect("what is there is whole");
        }
    }
    let output = build(&demo(), &out, &["--target", "cpu", "--force"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(names(dir.path()), ["bundle"]);
}

#[cfg(not(feature = "tensorrt"))]
#[test]
fn build_for_a_gpu_without_tensorrt_says_how_to_get_it() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("bundle");
    let output = build(&demo(), &out, &["--target", "sm86"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("--features tensorrt"),
        "{}",
        text(&output.stderr)
    );
    assert!(names(dir.path()).is_empty());
}

#[cfg(feature = "tensorrt")]
mod tensorrt {
    use super::*;

    #[test]
    fn plans_and_graphs_stand_in_one_bundle() {
        let dir = tempfile::tempdir().expect("dir");
        let out = dir.path().join("bundle");
        let output = build(&demo(), &out, &["--target", "sm86,cpu", "--json"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let bundle = Bundle::open(&out).expect("bundle");
        let manifest = bundle.manifest();
        assert_eq!(manifest.engines.len(), 2);
        let plans = &manifest.engines[0];
        assert!(plans.engine.to_string().contains("RTX"), "{}", plans.engine);
        let decoder = plans.component("decoder").expect("decoder");
        // inputs_embeds, attention_mask, position_ids, logit_rows, and keys and values of 4 layers.
        // Logits, new rows of these, and the hidden states that the model's draft reads.
        assert_eq!((decoder.inputs.len(), decoder.outputs.len()), (12, 10));
        assert!(decoder.outputs.iter().any(|t| t.name == "hidden"));
        let profiles: Vec<&str> = decoder.profiles.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(profiles, ["prefill", "step"]);
        let floats = decoder.inputs.iter().filter(|t| t.name.starts_with("past"));
        assert!(floats.clone().count() == 8 && floats.clone().all(|t| t.dtype == "f16"));
        for component in &plans.components {
            let path = bundle.file(&component.file).expect("file");
            let bytes = std::fs::metadata(path).expect("file").len();
            // The embedding table is no plan: its weights lie beside its graph.
            let is_plan = component.file.ends_with(".plan");
            assert_eq!(is_plan, component.name != "embed");
            assert!(bytes > 100_000 || !is_plan, "{}", component.file);
        }
        let kernels = plans.kernels.as_ref().expect("kernels: run `make sdk`");
        let cubin = bundle.file(&kernels.file).expect("cubin");
        assert!(std::fs::read(cubin).expect("read").starts_with(b"\x7fELF"));
        assert_eq!(answer(&out)["text"], "1 white car and 1 blue boat on grass");
    }

    #[test]
    fn fp16_plans_are_about_half_the_size_of_fp32_ones() {
        let dir = tempfile::tempdir().expect("dir");
        let bytes = ["fp32", "fp16"].map(|precision| {
            let out = dir.path().join(precision);
            let output = build(
                &demo(),
                &out,
                &["--target", "sm86", "--precision", precision, "--json"],
            );
            assert!(output.status.success(), "{}", text(&output.stderr));
            let outcome: Value = serde_json::from_slice(&output.stdout).expect("JSON");
            outcome["engines"][2]["bytes"].as_u64().expect("bytes") as f64
        });
        let ratio = bytes[1] / bytes[0];
        assert!((0.45..0.7).contains(&ratio), "{ratio}");
    }

    #[test]
    fn plans_only_bundle_on_the_cpu_says_what_it_was_built_for() {
        let dir = tempfile::tempdir().expect("dir");
        let out = dir.path().join("bundle");
        assert!(build(&demo(), &out, &["--target", "sm86"]).status.success());
        let output = trtvlm()
            .arg("run")
            .arg(&out)
            .arg("--image")
            .arg(root().join("calibration/images/0024.png"))
            .args(["--prompt", "x"])
            .output()
            .expect("run");
        assert_eq!(output.status.code(), Some(1));
        let stderr = text(&output.stderr);
        assert!(
            stderr.contains("sm86") && stderr.contains("cpu"),
            "{stderr}"
        );
    }

    /// Contrib operators, packed weights and the filter of padded tiles: none of them would parse.
    #[test]
    fn plans_of_contrib_folders_are_built_in_every_form() {
        let forms = [
            ("fastvlm-tiny-contrib", "fp16"),
            ("fastvlm-tiny-contrib-sep", "q4f16"),
            ("smolvlm-tiny-contrib", "fp32"),
        ];
        for (index, (folder, variant)) in forms.into_iter().enumerate() {
            let dir = tempfile::tempdir().expect("dir");
            let out = dir.path().join("bundle");
            let model = root().join("tests/data/tiny").join(folder);
            let precision = ["fp16", "fp32"][index % 2];
            let args = [
                "--target",
                "sm86",
                "--variant",
                variant,
                "--precision",
                precision,
            ];
            let output = build(&model, &out, &args);
            assert!(
                output.status.success(),
                "{folder}: {}",
                text(&output.stderr)
            );
            let bundle = Bundle::open(&out).expect("bundle");
            assert_eq!(bundle.manifest().engines[0].components.len(), 3, "{folder}");
        }
    }

    #[test]
    fn operators_that_the_parser_does_not_take_are_listed_and_nothing_is_left() {
        use trtvlm::onnx::{OnnxModel, proto::NodeProto};
        let dir = tempfile::tempdir().expect("dir");
        let model = dir.path().join("model");
        let from = root().join("tests/data/tiny/fastvlm-tiny-plain");
        std::fs::create_dir_all(model.join("onnx")).expect("dir");
        for folder in ["", "onnx"] {
            for entry in std::fs::read_dir(from.join(folder)).expect("dir") {
                let path = entry.expect("entry").path();
                if path.is_file() {
                    let to = model.join(folder).join(path.file_name().expect("name"));
                    std::fs::copy(&path, to).expect("copy");
                }
            }
        }
        let embed = model.join("onnx/embed_tokens.onnx");
        let mut graph = OnnxModel::load(&embed).expect("graph");
        let made = graph.graph().node[0].output[0].clone();
        graph.graph_mut().node[0].output[0] = "looked_up".to_owned();
        let swish = NodeProto::new("Swish", &["looked_up"], &[&made]);
        graph.graph_mut().node.push(swish);
        // The graph lies in the file that it replaces.
        let changed = dir.path().join("changed.onnx");
        graph.save(&changed).expect("save");
        drop(graph);
        std::fs::rename(&changed, &embed).expect("rename");
        let data = dir.path().join("changed.onnx.data");
        std::fs::rename(&data, model.join("onnx/changed.onnx.data")).expect("rename");
        let out = dir.path().join("out").join("bundle");
        std::fs::create_dir_all(dir.path().join("out")).expect("dir");
        let output = build(&model, &out, &["--target", "sm86"]);
        assert_eq!(output.status.code(), Some(1));
        let stderr = text(&output.stderr);
        assert!(
            stderr.contains("Swish") && stderr.contains(&made),
            "{stderr}"
        );
        assert!(names(&dir.path().join("out")).is_empty());
    }

    #[test]
    fn unknown_sm_is_refused_with_those_that_are_known() {
        let dir = tempfile::tempdir().expect("dir");
        let out = dir.path().join("bundle");
        for sm in ["sm77", "sm99"] {
            let output = build(&demo(), &out, &["--target", sm]);
            assert_eq!(output.status.code(), Some(1));
            let stderr = text(&output.stderr);
            assert!(stderr.contains(sm) && stderr.contains("sm86"), "{stderr}");
        }
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn interrupted_build_ends_with_130_and_leaves_nothing() {
        let dir = tempfile::tempdir().expect("dir");
        let out = dir.path().join("bundle");
        let child = trtvlm()
            .arg("build")
            .arg(demo())
            .arg("--out")
            .arg(&out)
            .args(["--target", "sm86"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("spawn");
        std::thread::sleep(Duration::from_millis(400));
        let pid = child.id().to_string();
        let signalled = std::process::Command::new("kill")
            .args(["-INT", &pid])
            .status();
        assert!(signalled.expect("kill").success());
        let output = child.wait_with_output().expect("wait");
        assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
        assert!(names(dir.path()).is_empty(), "{:?}", names(dir.path()));
    }
}
