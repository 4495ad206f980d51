//! Training of drafts, on a small folder with random weights, and what is done with the result.
#![cfg(feature = "train")]

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use trtvlm::Error;
use trtvlm::decode::Strategy;
use trtvlm::items::{Item, read_items};
use trtvlm::model::{DraftKind, Model};
use trtvlm::pipeline::{Ask, Pipeline};
use trtvlm::preprocess::Frame;
use trtvlm::train::{DraftOptions, DraftOutcome, train_draft};

/// Tokens of each answer.
const TOKENS: usize = 10;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn items(n: usize) -> Vec<Item> {
    let mut items = read_items(&root().join("calibration")).expect("items");
    items.truncate(n);
    items
}

/// The same, with a copy of the first one at the end: what is held out can be learned.
fn items_that_repeat(dir: &Path, n: usize) -> Vec<Item> {
    let mut items = items(n);
    let mut last = items[0].clone();
    last.image = dir.join("again.png");
    fs::copy(&items[0].image, &last.image).expect("copy");
    items.push(last);
    items
}

/// A copy of a small folder.
fn folder(dir: &Path, name: &str) -> PathBuf {
    let (from, to) = (root().join("tests/data/tiny").join(name), dir.join(name));
    fs::create_dir_all(to.join("onnx")).expect("dir");
    for sub in ["", "onnx"] {
        for entry in fs::read_dir(from.join(sub)).expect("folder") {
            let path = entry.expect("entry").path();
            if path.is_file() {
                let name = path.file_name().expect("name");
                fs::copy(&path, to.join(sub).join(name)).expect("copy");
            }
        }
    }
    to
}

/// Trains in `out`; stops when it was asked `stop_after` times whether to.
fn train(
    model: &Path,
    kind: DraftKind,
    out: &Path,
    items: &[Item],
    epochs: usize,
    stop_after: usize,
) -> Result<DraftOutcome, Error> {
    let asked = Cell::new(0);
    let cancel = || {
        asked.set(asked.get() + 1);
        asked.get() > stop_after
    };
    let model = Model::load(model, None).expect("model");
    let options = DraftOptions {
        kind,
        items,
        corrections: &[],
        out,
        force: false,
        epochs,
        patience: epochs,
        batch: 2,
        rate: 3e-3,
        // Widths of 32 and 48, of which one is whole heads.
        width: None,
        exit_layer: None,
        vocabulary: 100,
        held_out: 0.2,
        max_tokens: Some(TOKENS),
        seed: 5,
        cancel: &cancel,
    };
    train_draft(&model, &options, &mut |_| {})
}

fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .expect("folder")
        .map(|entry| {
            let path = entry.expect("entry").path();
            let name = path.file_name().expect("name").to_string_lossy();
            (name.into_owned(), fs::read(&path).expect("a file"))
        })
        .collect();
    files.sort();
    files
}

#[test]
fn training_that_was_interrupted_gives_the_files_of_one_that_was_not() {
    let dir = tempfile::tempdir().expect("dir");
    let model = root().join("tests/data/tiny/fastvlm-tiny-plain");
    let items = items(7);
    for kind in DraftKind::ALL {
        let [whole, broken] =
            ["whole", "broken"].map(|name| dir.path().join(format!("{kind}-{name}")));
        let outcome = train(&model, kind, &whole, &items, 3, usize::MAX).expect("trained");
        assert_eq!((outcome.items, outcome.resumed), (7, 0));
        assert_eq!(outcome.epochs.len(), 3);
        assert!(
            outcome.epochs[2].loss < outcome.epochs[0].loss,
            "it learns: {:?}",
            outcome.epochs
        );
        // Stopped while asking, in the first epoch, in the second.
        for stop_after in [3, 5, 8] {
            let error = train(&model, kind, &broken, &items, 3, stop_after).expect_err("stopped");
            assert!(matches!(error, Error::Cancelled), "{error}");
            assert!(
                !broken.join(format!("{kind}.json")).exists(),
                "nothing half made"
            );
        }
        let resumed = train(&model, kind, &broken, &items, 3, usize::MAX).expect("trained");
        assert_eq!(resumed.resumed, 7);
        let names: Vec<String> = files(&whole).into_iter().map(|(name, _)| name).collect();
        let expected = ["json", "onnx", "safetensors"].map(|ending| format!("{kind}.{ending}"));
        assert_eq!(names, expected);
        assert!(files(&broken) == files(&whole), "{kind}");
        let error = train(&model, kind, &whole, &items, 3, usize::MAX).expect_err("is there");
        assert!(matches!(error, Error::Exists { .. }), "{error}");
    }
}

#[test]
fn answers_with_trained_drafts_are_those_without_in_folder_and_bundle() {
    let dir = tempfile::tempdir().expect("dir");
    let items = items_that_repeat(dir.path(), 4);
    for name in [
        "fastvlm-tiny-plain",
        "fastvlm-tiny-contrib",
        "smolvlm-tiny-contrib-sep",
    ] {
        let model = folder(dir.path(), name);
        for kind in DraftKind::ALL {
            train(&model, kind, &model.join("drafts"), &items, 30, usize::MAX).expect(name);
        }
        let bundle = dir.path().join(format!("{name}-bundle"));
        let built = Command::new(env!("CARGO_BIN_EXE_trtvlm"))
            .args(["build", "--target", "cpu", "--precision", "fp32", "--out"])
            .args([&bundle, &model])
            .output()
            .expect("build");
        let stderr = String::from_utf8_lossy(&built.stderr).into_owned();
        assert!(built.status.success(), "{name}: {stderr}");
        for path in [&model, &bundle] {
            let mut pipeline = Pipeline::open(path, None).expect(name);
            let mut n_proposed = [0; 2];
            for item in &items {
                let frame = Frame::load(&item.image).expect("frame");
                let mut answer = |draft| {
                    let ask = Ask {
                        draft,
                        max_tokens: Some(TOKENS),
                        ..Ask::default()
                    };
                    let answer = pipeline.ask(&frame, &item.prompt, &ask, &mut |_| {});
                    answer.expect(name)
                };
                let plain = answer(Strategy::Off);
                for (kind, n_proposed) in DraftKind::ALL.into_iter().zip(&mut n_proposed) {
                    for n in 1..=4 {
                        let drafter = kind.name();
                        let drafted = answer(Strategy::Always { drafter, n });
                        let report = &drafted.speculation;
                        let context = format!("{name}, {kind}, {n}: {report:?}");
                        assert_eq!(report.switched_off, None, "{context}");
                        let is_same = drafted.token_ids == plain.token_ids;
                        assert!(is_same || !report.near_ties.is_empty(), "{context}");
                        *n_proposed += report.proposed;
                    }
                }
            }
            assert!(n_proposed.iter().all(|&n| n > 10), "{name}: {n_proposed:?}");
        }
        let mut pipeline = Pipeline::open(&bundle, None).expect(name);
        let frame = Frame::load(&items[0].image).expect("frame");
        let ask = Ask {
            draft: Strategy::Always {
                drafter: "head",
                n: 5,
            },
            ..Ask::default()
        };
        let error = pipeline.ask(&frame, "a question", &ask, &mut |_| {});
        let error = error.expect_err("the bundle was built for 4").to_string();
        assert!(
            error.contains("5, and a pass of this model checks at most 4"),
            "{error}"
        );
    }
}

fn run(model: &Path, cache: &Path, draft: &str) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_trtvlm"))
        .arg("run")
        .arg(model)
        .args(["--prompt", "describe the scene", "--json", "--draft", draft])
        .args(["--max-tokens", "6", "--image"])
        .arg(root().join("calibration/images/0024.png"))
        .env_remove("TRTVLM_LOG")
        .env("XDG_CACHE_HOME", cache)
        .output()
        .expect("run");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    (output.status.code(), out, err)
}

#[test]
fn draft_of_another_model_or_vocabulary_is_refused_with_both_digests() {
    let dir = tempfile::tempdir().expect("dir");
    let model = folder(dir.path(), "fastvlm-tiny-plain");
    let drafts = model.join("drafts");
    train(&model, DraftKind::Head, &drafts, &items(4), 3, usize::MAX).expect("trained");
    let (code, _, stderr) = run(&model, dir.path(), "head");
    assert_eq!(code, Some(0), "{stderr}");

    let spec_path = drafts.join("head.json");
    let text = fs::read_to_string(&spec_path).expect("description");
    let spec: Value = serde_json::from_str(&text).expect("JSON");
    let other = "5".repeat(64);
    let targets = serde_json::json!([{"file": "decoder.onnx", "fingerprint": other}]);
    let own = |key: &str| spec[key].as_str().expect(key).to_owned();
    let own_target = spec["targets"][0]["fingerprint"].as_str().expect("target");
    for (key, value, expected) in [
        ("targets", targets, own_target.to_owned()),
        (
            "tokenizer_sha256",
            other.clone().into(),
            own("tokenizer_sha256"),
        ),
        ("graph_sha256", other.clone().into(), own("graph_sha256")),
    ] {
        let mut bad = spec.clone();
        bad[key] = value;
        fs::write(&spec_path, serde_json::to_vec(&bad).expect("JSON")).expect("write");
        let (code, stdout, stderr) = run(&model, dir.path(), "head");
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{key}: {stderr}");
        for part in [
            "error: the drafter `head` is not available",
            &other,
            &expected,
        ] {
            assert!(stderr.contains(part), "{key}: {stderr}");
        }
        // Whoever does not ask for it is told, and answered.
        let (code, _, stderr) = run(&model, dir.path(), "auto");
        assert_eq!(code, Some(0), "{key}: {stderr}");
        assert!(stderr.contains("nothing is drafted with it"), "{stderr}");
        let out = dir.path().join("bundle");
        let built = Command::new(env!("CARGO_BIN_EXE_trtvlm"))
            .args(["build", "--target", "cpu", "--precision", "fp32", "--out"])
            .args([&out, &model])
            .output()
            .expect("build");
        assert_eq!(built.status.code(), Some(1), "{key}");
        assert!(!out.exists(), "{key}");
    }
    for (key, value) in [("d_model", 64), ("vocabulary", 1 << 19)] {
        let mut bad = spec.clone();
        bad[key] = match key {
            "vocabulary" => serde_json::json!([1, value]),
            _ => value.into(),
        };
        fs::write(&spec_path, serde_json::to_vec(&bad).expect("JSON")).expect("write");
        let (code, _, stderr) = run(&model, dir.path(), "head");
        assert_eq!(code, Some(1), "{key}: {stderr}");
        assert!(stderr.contains(&value.to_string()), "{key}: {stderr}");
    }
    // Of the right words, with another number of logits: found out when it is asked.
    let mut bad = spec.clone();
    bad["vocabulary"] = serde_json::json!([1, 2]);
    fs::write(&spec_path, serde_json::to_vec(&bad).expect("JSON")).expect("write");
    let (code, stdout, stderr) = run(&model, dir.path(), "head");
    assert_eq!(code, Some(0), "{stderr}");
    let answer: Value = serde_json::from_str(&stdout).expect("JSON");
    let reason = answer["speculation"]["switched_off"].as_str().expect("off");
    assert!(reason.contains("logits"), "{reason}");
    assert!(
        stderr.contains("the rest of the answer comes without drafts"),
        "{stderr}"
    );
}

#[test]
fn train_with_arguments_that_cannot_be_is_refused_before_anything_is_asked() {
    let dir = tempfile::tempdir().expect("dir");
    let model = root().join("tests/data/tiny/fastvlm-tiny-plain");
    let data = root().join("calibration/items.jsonl");
    let one = dir.path().join("one.jsonl");
    let picture = root().join("calibration/images/0024.png");
    fs::copy(picture, dir.path().join("0024.png")).expect("copy");
    let line = r#"{"image": "0024.png", "prompt": "describe the scene"}"#;
    fs::write(&one, format!("{line}\n{line}\n")).expect("write");
    let out = dir.path().join("out");
    let all: &Path = &data;
    for (data, args, expected) in [
        (all, ["head", "--epochs", "0"], "epochs"),
        (all, ["head", "--width", "33"], "width"),
        (all, ["head", "--exit-layer", "0"], "exit-layer"),
        (all, ["early-exit", "--exit-layer", "2"], "exit-layer"),
        (all, ["head", "--rate", "NaN"], "rate"),
        (all, ["head", "--held-out", "1"], "held-out"),
        (all, ["head", "--max-tokens", "1"], "max-tokens"),
        (&one, ["head", "--seed", "1"], "two pictures"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_trtvlm"))
            .args(["train", "draft", "--out"])
            .args([&out, &model])
            .arg("--data")
            .arg(data)
            .arg("--kind")
            .args(args)
            .output()
            .expect("train");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        assert!(stderr.contains(expected), "{args:?}: {stderr}");
        assert!(!out.exists(), "{args:?}");
    }
}
