//! `--mode quick` and `auto`, as a user sees them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn demo() -> PathBuf {
    root().join("onnx/uav-tiny")
}

fn items() -> PathBuf {
    root().join("calibration/items.jsonl")
}

fn trtvlm(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_trtvlm"))
        .env_remove("TRTVLM_LOG")
        .env("RUST_BACKTRACE", "0")
        .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"))
        .args(args)
        .output()
        .expect("run")
}

fn run(model: &Path, prompt: &str, args: &[&str]) -> Output {
    let (model, image) = (model.display().to_string(), picture());
    let asked = ["run", &model, "--image", &image, "--prompt", prompt];
    trtvlm(&[&asked, args].concat())
}

fn picture() -> String {
    let path = root().join("calibration/images/0024.png");
    path.display().to_string()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", stderr(output));
    serde_json::from_slice(&output.stdout).expect("an object")
}

/// A copy of the demo model with this in place of its quick answers.
fn demo_with(dir: &Path, quick: &[u8]) -> PathBuf {
    let to = dir.join("model");
    fs::create_dir_all(&to).expect("folder");
    for entry in fs::read_dir(demo()).expect("folder") {
        let path = entry.expect("entry").path();
        let name = path.file_name().expect("name").to_owned();
        if path.is_file() && name != "quick.safetensors" {
            fs::copy(&path, to.join(name)).expect("copy");
        }
    }
    std::os::unix::fs::symlink(demo().join("onnx"), to.join("onnx")).expect("link");
    fs::write(to.join("quick.safetensors"), quick).expect("write");
    to
}

#[test]
fn quick_answer_says_who_gave_it_and_how_sure_it_is() {
    let answer = json(&run(
        &demo(),
        "Describe the scene.",
        &["--mode", "quick", "--json"],
    ));
    // What the item says is in the picture.
    assert_eq!(answer["text"], "1 white car and 1 blue boat on grass");
    assert_eq!(answer["token_ids"], serde_json::json!([]));
    assert_eq!(answer["stop"], "eos");
    let mode = &answer["mode"];
    assert_eq!(
        [&mode["asked"], &mode["answered"], &mode["reason"]],
        ["quick", "quick", "asked"]
    );
    assert!(mode["confidence"].as_f64().expect("a number") > 0.5);
    assert!(mode["quick_ms"].as_f64().expect("a time") > 0.0);
    assert_eq!(answer["visual_tokens"]["kept"], 0);

    let output = run(&demo(), "describe the scene", &["--mode", "quick"]);
    assert_eq!(output.stdout, b"1 white car and 1 blue boat on grass\n");
    assert!(stderr(&output).contains("% sure"), "{}", stderr(&output));
    let full = json(&run(&demo(), "describe the scene", &["--json"]));
    assert_eq!(full["mode"]["answered"], "full");
    assert_eq!(full["mode"]["confidence"], Value::Null);
}

#[test]
fn questions_and_arguments_that_cannot_be_are_refused() {
    let cases: [(&str, &[&str], i32, &str); 4] = [
        ("fly home", &["--mode", "quick"], 1, "--mode auto"),
        ("fly home", &["--mode", "fast"], 2, "fast"),
        (
            "fly home",
            &["--confidence", "0.5"],
            1,
            "acts with --mode auto",
        ),
        (
            "fly home",
            &["--mode", "auto", "--confidence", "nan"],
            1,
            "from 0 to 1",
        ),
    ];
    for (prompt, args, code, reason) in cases {
        let output = run(&demo(), prompt, args);
        assert_eq!(output.status.code(), Some(code), "{args:?}");
        assert!(stderr(&output).contains(reason), "{}", stderr(&output));
        assert!(output.stdout.is_empty());
    }
    let output = run(&demo(), "fly home", &["--mode", "auto", "--json"]);
    assert_eq!(json(&output)["mode"]["reason"], "question");
}

#[test]
fn broken_or_foreign_file_is_told_and_only_refused_where_it_is_asked_for() {
    let whole = fs::read(demo().join("quick.safetensors")).expect("file");
    let mut foreign = whole.clone();
    // A digit of the fingerprint of its vision tower.
    let key = br#"\"fingerprint\":\""#;
    let at = foreign.windows(key.len()).position(|w| w == key);
    let at = at.expect("a fingerprint") + key.len();
    foreign[at] = if foreign[at] == b'0' { b'1' } else { b'0' };
    for (bytes, reason) in [
        (&whole[..whole.len() - 9], "safetensors"),
        (foreign.as_slice(), "fingerprint of the vision tower"),
    ] {
        let dir = tempfile::tempdir().expect("dir");
        let model = demo_with(dir.path(), bytes);
        let output = run(&model, "describe the scene", &[]);
        assert!(output.status.success(), "{}", stderr(&output));
        let told = stderr(&output);
        assert!(told.contains(reason) && told.contains("not used"), "{told}");
        for mode in ["quick", "auto"] {
            let output = run(&model, "describe the scene", &["--mode", mode]);
            assert_eq!(output.status.code(), Some(1), "{mode}");
            let told = stderr(&output);
            assert!(
                told.contains("quick mode is not available")
                    && told.contains("quick.safetensors")
                    && told.contains(reason),
                "{told}"
            );
        }
        let to = dir.path().join("bundle").display().to_string();
        let model = model.display().to_string();
        let built = trtvlm(&["build", "--target", "cpu", "--out", &to, &model]);
        assert_eq!(built.status.code(), Some(1));
        assert!(stderr(&built).contains("quick.safetensors"));
    }
}

#[test]
fn bundle_answers_as_the_folder_that_it_was_made_of() {
    let dir = tempfile::tempdir().expect("dir");
    let bundle = dir.path().join("bundle");
    let (from, to) = (demo().display().to_string(), bundle.display().to_string());
    let built = trtvlm(&[
        "build",
        "--target",
        "cpu",
        "--precision",
        "fp16",
        "--out",
        &to,
        &from,
    ]);
    assert!(built.status.success(), "{}", stderr(&built));
    assert!(bundle.join("quick.safetensors").is_file());
    let output = run(&bundle, "describe the scene", &["--mode", "quick"]);
    assert_eq!(output.stdout, b"1 white car and 1 blue boat on grass\n");
}

#[test]
fn evaluation_reports_quick_answers_beside_those_of_the_language_model() {
    let data = items().display().to_string();
    let eval = |args: &[&str]| {
        let model = demo().display().to_string();
        let asked = [
            "eval",
            &model,
            "--data",
            &data,
            "--draft",
            "off",
            "--samples",
            "8",
        ];
        trtvlm(&[&asked, args].concat())
    };
    let full = json(&eval(&["--json"]));
    assert_eq!(full["quick"], Value::Null);
    for mode in ["quick", "auto"] {
        let report = json(&eval(&["--mode", mode, "--json"]));
        let quick = &report["quick"];
        assert_eq!(quick["mode"], mode);
        assert_eq!(quick["full_accuracy"], full["accuracy"], "{mode}");
        assert_eq!(quick["refused"], 0);
        let answered = quick["answered"]["hits"].as_u64().expect("a number");
        let right = &quick["accuracy"];
        match mode {
            "quick" => assert_eq!(answered, 8),
            _ => assert!((1..=8).contains(&answered)),
        }
        assert_eq!(right["of"], answered);
        for (name, family) in report["families"].as_object().expect("families") {
            let of_full = &full["families"][name]["accuracy"];
            assert_eq!(&family["full_accuracy"], of_full, "{mode} {name}");
            assert_eq!(family["quick"]["of"], family["items"]);
        }
        // Ids are those of the language model's answers alone.
        let agreement = &report["agreement"];
        match mode {
            "quick" => assert_eq!(agreement, &Value::Null),
            _ if answered < 8 => assert_eq!(agreement["answers"]["of"], 8 - answered),
            _ => assert_eq!(agreement, &Value::Null),
        }
        assert!(
            quick["full_latency_ms"]["total"]["mean"]
                .as_f64()
                .expect("ms")
                > 0.0
        );
    }
    let output = eval(&["--mode", "quick", "--min-agreement", "0.5"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("--mode quick"),
        "{}",
        stderr(&output)
    );
    let output = eval(&["--mode", "quick"]);
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(table.contains("language model right"), "{table}");
}

#[test]
fn evaluation_counts_a_question_without_a_template_as_answered_wrong() {
    let dir = tempfile::tempdir().expect("dir");
    fs::copy(picture(), dir.path().join("a.png")).expect("copy");
    let list = dir.path().join("items.jsonl");
    let lines = r#"{"image": "a.png", "prompt": "fly home", "answer": ""}
{"image": "a.png", "prompt": "describe the scene", "answer": "1 white car and 1 blue boat on grass"}"#;
    fs::write(&list, lines).expect("write");
    let (model, data) = (demo().display().to_string(), list.display().to_string());
    let report = json(&trtvlm(&[
        "eval", &model, "--data", &data, "--mode", "quick", "--json",
    ]));
    assert_eq!(report["quick"]["refused"], 1);
    assert_eq!(report["quick"]["answered"]["hits"], 1);
    assert_eq!(report["accuracy"]["hits"], 1);
    assert_eq!(report["backend"], "cpu");
}
