//! `--keep`, `--pruner` and `--overlay`, as a user sees them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

const PRUNERS: [&str; 7] = [
    "learned",
    "attention",
    "diverse",
    "similarity",
    "norm",
    "grid",
    "random",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn demo() -> PathBuf {
    root().join("onnx/uav-tiny")
}

fn tiny(name: &str) -> PathBuf {
    root().join("tests/data/tiny").join(name)
}

fn picture() -> PathBuf {
    root().join("calibration/images/0024.png")
}

fn run(model: &Path, image: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_trtvlm"))
        .env_remove("TRTVLM_LOG")
        .env("RUST_BACKTRACE", "0")
        .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"))
        .arg("run")
        .arg(model)
        .arg("--image")
        .arg(image)
        .args(["--prompt", "describe the scene", "--draft", "off"])
        .args(args)
        .output()
        .expect("run")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn answer(model: &Path, image: &Path, args: &[&str]) -> Value {
    let output = run(model, image, &[args, &["--json"]].concat());
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    serde_json::from_slice(&output.stdout).expect("an answer")
}

fn indices(answer: &Value) -> Vec<u64> {
    let indices = answer["visual_tokens"]["indices"].as_array();
    let indices = indices.expect("indices").iter();
    indices
        .map(|index| index.as_u64().expect("index"))
        .collect()
}

#[test]
fn run_with_every_pruner_keeps_a_tenth_and_says_which() {
    let whole = answer(&demo(), &picture(), &[]);
    for pruner in PRUNERS {
        let args = ["--keep", "0.1", "--pruner", pruner];
        let pruned = answer(&demo(), &picture(), &args);
        let visual = &pruned["visual_tokens"];
        assert_eq!(
            (&visual["total"], &visual["kept"]),
            (&256.into(), &26.into())
        );
        assert_eq!(visual["pruner"], pruner);
        let kept = indices(&pruned);
        assert!(
            kept.len() == 26 && kept.is_sorted_by(|a, b| a < b),
            "{pruner}: {kept:?}"
        );
        assert!(kept.iter().all(|&token| token < 256));
        let tokens = |answer: &Value| answer["prompt_tokens"].as_u64().expect("tokens");
        assert_eq!(tokens(&whole) - tokens(&pruned), 230, "{pruner}");
        assert!(pruned["timings_ms"]["prune"].as_f64().expect("time") > 0.0);
        assert_eq!(
            indices(&answer(&demo(), &picture(), &args)),
            kept,
            "{pruner} again"
        );
    }
}

#[test]
fn run_that_keeps_all_answers_as_if_nothing_was_said() {
    let whole = answer(&demo(), &picture(), &[]);
    let kept = answer(&demo(), &picture(), &["--keep", "1", "--pruner", "norm"]);
    assert_eq!(whole["token_ids"], kept["token_ids"]);
    assert_eq!(whole["visual_tokens"], kept["visual_tokens"]);
    assert!(whole["visual_tokens"]["pruner"].is_null());
}

#[test]
fn run_that_keeps_less_than_one_token_keeps_one_and_says_so() {
    let output = run(&demo(), &picture(), &["--keep", "0.0001", "--json"]);
    assert!(
        stderr(&output).contains("one is kept"),
        "{}",
        stderr(&output)
    );
    let answer: Value = serde_json::from_slice(&output.stdout).expect("an answer");
    assert_eq!(answer["visual_tokens"]["kept"], 1);
}

#[test]
fn run_with_padding_chooses_among_tokens_that_see_the_frame() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("wide.png");
    let wide = image::RgbImage::from_fn(512, 256, |x, y| {
        image::Rgb([(x / 2) as u8, y as u8, (x * y / 512) as u8])
    });
    wide.save(&path).expect("png");
    for pruner in PRUNERS {
        let args = ["--keep", "0.25", "--pruner", pruner, "--fit", "pad"];
        let kept = indices(&answer(&demo(), &path, &args));
        // A quarter of 128 tokens is 32; the next of the counts of 256 is 0.15 of them.
        assert_eq!(kept.len(), 39, "{pruner}");
        assert!(
            kept.iter().all(|token| (64..192).contains(token)),
            "{pruner}"
        );
    }
}

/// The forms of a family have the same weights, whatever their attention is written with.
#[test]
fn run_on_every_form_of_tiny_folder_keeps_the_same_tokens_of_its_tiles() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("picture.png");
    let mixed = image::RgbImage::from_fn(300, 200, |x, y| {
        image::Rgb([(x * 7 + y) as u8, (x / 3 * y / 5) as u8, (y * 11) as u8])
    });
    mixed.save(&path).expect("png");
    for family in ["fastvlm", "smolvlm"] {
        // Nothing was trained for them.
        for pruner in &PRUNERS[1..] {
            let of = |form: &str| {
                let folder = tiny(&format!("{family}-tiny-{form}"));
                let knobs = ["--keep", "0.2", "--pruner", pruner, "--variant", "fp32"];
                answer(
                    &folder,
                    &path,
                    &[&knobs[..], &["--max-tokens", "2"]].concat(),
                )
            };
            let plain = of("plain");
            let visual = &plain["visual_tokens"];
            let (total, kept) = (&visual["total"], &visual["kept"]);
            let (total, kept) = (total.as_u64().expect("n"), kept.as_u64().expect("n"));
            assert_eq!(kept, total.div_ceil(5), "{family}, {pruner}");
            for form in ["contrib", "contrib-sep"] {
                assert_eq!(
                    indices(&of(form)),
                    indices(&plain),
                    "{family}, {form}, {pruner}"
                );
            }
        }
    }
}

#[test]
fn keep_and_overlay_are_checked_before_the_model_is_loaded() {
    let dir = tempfile::tempdir().expect("dir");
    let at = |name: &str| dir.path().join(name).display().to_string();
    std::fs::create_dir(at("folder.png")).expect("folder");
    let (folder, jpeg, deep) = (at("folder.png"), at("a.jpg"), at("none/a.png"));
    let cases: [(&[&str], &str); 10] = [
        (&["--keep", "0"], "error: keep: 0, expected a share above 0"),
        (&["--keep", "-0.5"], "error: keep: -0.5"),
        (&["--keep", "nan"], "error: keep: NaN"),
        (&["--keep", "1.01"], "error: keep: 1.01"),
        (&["--keep", "inf"], "error: keep: inf"),
        (&["--pruner", "norm"], "error: pruner: acts with --keep"),
        (
            &["--positions", "packed"],
            "error: positions: acts with --keep",
        ),
        (&["--overlay", &folder], "error: "),
        (&["--overlay", &jpeg], "error: overlay: "),
        (&["--overlay", &deep], "error: "),
    ];
    for (args, expected) in cases {
        let output = run(Path::new("no/such/model"), &picture(), args);
        let stderr = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        assert!(stderr.starts_with(expected), "{args:?}: {stderr}");
        assert!(!stderr.contains("no/such/model"), "{args:?}: {stderr}");
    }
    for args in [["--pruner", "best"], ["--keep", "half"]] {
        let output = run(Path::new("no/such/model"), &picture(), &args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn overlay_is_a_picture_and_replaces_only_files() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("out.png");
    std::fs::write(&path, "what was there").expect("write");
    let out = path.to_str().expect("path");
    let args = ["--keep", "0.1", "--pruner", "norm", "--overlay", out];
    let output = run(&demo(), &picture(), &args);
    assert!(output.status.success(), "{}", stderr(&output));
    let sheet = image::open(&path).expect("a picture").to_rgb8();
    // Kept tokens and, beside them, scores.
    assert!(sheet.width() > 2 * 600 && sheet.height() >= 600);
    assert_eq!(std::fs::read_dir(dir.path()).expect("dir").count(), 1);
}
