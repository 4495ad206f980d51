//! `trtvlm eval`, as a user sees it.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn demo() -> PathBuf {
    root().join("onnx/uav-tiny")
}

fn items() -> PathBuf {
    root().join("calibration/items.jsonl")
}

fn eval(model: &Path, data: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trtvlm"));
    command
        .env_remove("TRTVLM_LOG")
        .env("RUST_BACKTRACE", "0")
        .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"));
    command.arg("eval").arg(model).arg("--data").arg(data);
    command.args(args).stdin(Stdio::null());
    command
}

fn run(data: &Path, args: &[&str]) -> Output {
    eval(&demo(), data, args).output().expect("eval")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stderr)))
}

/// The items as JSON, their pictures by absolute name.
fn lines() -> Vec<Value> {
    let list = std::fs::read_to_string(items()).expect("items");
    list.lines()
        .map(|line| serde_json::from_str(line).expect(line))
        .collect()
}

/// A folder with the first `n` items, changed by `change`, and their pictures.
fn changed(n: usize, change: impl Fn(usize, &mut Value)) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("dir");
    std::os::unix::fs::symlink(root().join("calibration/images"), dir.path().join("images"))
        .expect("link");
    let mut list = String::new();
    for (i, mut item) in lines().into_iter().take(n).enumerate() {
        change(i, &mut item);
        list.push_str(&format!("{item}\n"));
    }
    let data = dir.path().join("items.jsonl");
    std::fs::write(&data, list).expect("write");
    (dir, data)
}

fn keys(value: &Value) -> Vec<&str> {
    let object = value.as_object().unwrap_or_else(|| panic!("{value}"));
    object.keys().map(String::as_str).collect()
}

#[test]
fn eval_of_the_golden_items_reports_every_documented_key() {
    let output = run(&items(), &["--json", "--warm-up", "0"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let report = report(&output);
    assert_eq!(
        keys(&report),
        [
            "model",
            "backend",
            "precision",
            "data",
            "items",
            "accuracy",
            "families",
            "quick",
            "agreement",
            "latency_ms",
            "tokens",
            "speculation",
            "peak_memory_bytes",
            "energy",
            "seconds",
        ]
    );
    assert!(
        report["quick"].is_null(),
        "the language model was to answer"
    );
    // What PyTorch answered, by the golden items themselves.
    let lines = lines();
    let right = lines.iter().filter(|l| l["text"] == l["answer"]).count();
    assert!(0 < right && right < lines.len());
    assert_eq!(report["accuracy"]["hits"], right);
    assert_eq!(report["accuracy"]["of"], lines.len());
    let agreement = &report["agreement"];
    assert_eq!(agreement["reference"], "items");
    assert_eq!(agreement["answers"]["hits"], lines.len());
    assert_eq!(agreement["tokens"]["share"], 1.0);
    assert_eq!(agreement["differences"], json!([]));
    assert!(agreement["reference_accuracy"].is_null());
    let n_ids = |l: &Value| l["token_ids"].as_array().map_or(0, Vec::len);
    let n_ids: usize = lines.iter().map(n_ids).sum();
    assert_eq!(report["tokens"]["total"], n_ids);
    let drafts = &report["speculation"];
    let whole = |key: &str| drafts[key].as_u64().expect(key) as usize;
    // Each pass gives a token of its own beside accepted drafts, but one that a draft ended.
    let passes = whole("steps") + whole("accepted");
    assert!((n_ids - lines.len()..=n_ids).contains(&passes), "{drafts}");
    assert_eq!(whole("switched_off"), 0);
    assert!(
        report["tokens"]["per_second"]
            .as_f64()
            .is_some_and(|r| r > 0.0)
    );

    let families = report["families"].as_object().expect("families");
    for (name, family) in families {
        let of = |l: &&Value| l["family"] == name.as_str();
        assert_eq!(family["items"], lines.iter().filter(of).count(), "{name}");
        let right = |l: &&Value| of(l) && l["text"] == l["answer"];
        let right = lines.iter().filter(right).count();
        assert_eq!(family["accuracy"]["hits"], right, "{name}");
    }
    let n_items = families.values().filter_map(|f| f["items"].as_u64());
    assert_eq!(n_items.sum::<u64>(), lines.len() as u64);
    assert_eq!(families.len(), 5);

    let stages = report["latency_ms"].as_object().expect("stages");
    let names = [
        "preprocess",
        "vision",
        "prune",
        "prefill",
        "decode",
        "ttft",
        "total",
    ];
    assert!(stages.keys().eq(names));
    for (stage, spread) in stages {
        assert_eq!(
            keys(spread),
            ["mean", "p50", "p95", "p99", "max"],
            "{stage}"
        );
        let number = |key: &str| spread[key].as_f64().expect(key);
        let ascending = [number("p50"), number("p95"), number("p99"), number("max")];
        assert!(ascending.is_sorted() && ascending[0] >= 0.0, "{spread}");
        assert!(number("mean") <= number("max"), "{spread}");
    }
    assert!(
        report["peak_memory_bytes"]
            .as_u64()
            .is_some_and(|b| b > 10 << 20)
    );
    let energy = keys(&report["energy"]);
    let measured = ["joules", "joules_per_answer", "watts", "source"];
    assert!(
        energy == ["not_available"] || energy == measured,
        "{energy:?}"
    );
}

#[test]
fn eval_for_people_says_the_same_in_words() {
    let output = run(&items(), &["--samples", "2"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    for part in [
        "2 of 2 items asked",
        "100.0 % (34.2 to 100.0), 2 of 2",
        "reference: items",
        "p95",
        "ttft",
        "tokens/s",
        "peak memory: ",
        "energy: ",
    ] {
        assert!(shown.contains(part), "{part} is not in:\n{shown}");
    }
}

#[test]
fn eval_below_a_threshold_exits_with_3_after_its_report() {
    // Of the first two items PyTorch answered the first wrongly.
    let (_dir, data) = changed(2, |i, item| {
        if i == 1 {
            item["token_ids"] = json!([1, 2, 1022]);
        }
    });
    let cases: [(&[&str], i32, &str); 4] = [
        (&["--min-accuracy", "0.5", "--min-agreement", "0.5"], 0, ""),
        (
            &["--min-accuracy", "0.51"],
            3,
            "accuracy is 0.5000 (1 of 2), at least 0.51",
        ),
        (
            &["--min-agreement", "0.9"],
            3,
            "agreement is 0.5000 (1 of 2), at least 0.9",
        ),
        (
            &["--min-accuracy", "1", "--min-agreement", "0"],
            3,
            "accuracy",
        ),
    ];
    for (args, code, reason) in cases {
        let output = run(&data, &[args, &["--json", "--warm-up", "0"]].concat());
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        assert!(stderr.contains(reason), "{args:?}: {stderr}");
        let report = report(&output);
        assert_eq!(report["accuracy"]["hits"], 1);
        let difference = &report["agreement"]["differences"][0];
        assert_eq!(difference["reference_ids"], json!([1, 2, 1022]));
        assert_eq!(difference["at"], 0);
        assert_eq!(difference["text"], "1 white car and 1 blue boat on grass");
    }
}

#[test]
fn eval_with_missing_pictures_or_answers_needs_to_be_told_to_skip_them() {
    let (dir, data) = changed(4, |i, item| match i {
        0 => item["image"] = "images/none.png".into(),
        1 => item["image"] = "broken.png".into(),
        _ => {}
    });
    let json = ["--json", "--warm-up", "0"];
    let output = run(&data, &json);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("2 of 4") && stderr.contains("none.png"),
        "{stderr}"
    );
    assert!(
        stderr.contains("broken.png") && output.stdout.is_empty(),
        "{stderr}"
    );

    // One that is there, and is no picture.
    std::fs::write(dir.path().join("broken.png"), b"\x89PNG\r\n\x1a\nno").expect("write");
    let output = run(&data, &[&json[..], &["--skip-missing"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let found = report(&output);
    assert_eq!(found["items"]["total"], 4);
    assert_eq!(found["items"]["asked"], 2);
    let names = |key: &str| found["items"][key].as_array().expect(key).clone();
    assert!(
        names("missing")[0]
            .as_str()
            .is_some_and(|n| n.ends_with("none.png"))
    );
    assert!(
        names("unreadable")[0]
            .as_str()
            .is_some_and(|n| n.ends_with("broken.png"))
    );

    let (_dir, data) = changed(3, |i, item| {
        if i == 1 {
            item.as_object_mut().expect("object").remove("answer");
        }
    });
    let output = run(&data, &json);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("1 of 3 items have no answer"), "{stderr}");
    let output = run(&data, &[&json[..], &["--skip-missing"]].concat());
    let found = report(&output);
    assert_eq!(found["items"]["unanswered"], 1);
    assert_eq!(
        (&found["accuracy"]["of"], &found["items"]["asked"]),
        (&2.into(), &3.into())
    );
}

#[test]
fn eval_of_what_cannot_be_judged_is_refused_or_says_nothing_of_it() {
    let (_dir, data) = changed(1, |_, item| {
        let item = item.as_object_mut().expect("object");
        item.remove("answer");
        item.remove("token_ids");
        item.remove("family");
    });
    for (args, reason) in [
        (&["--min-accuracy", "0.1"][..], "`answer`"),
        (&["--min-agreement", "0.1"], "`token_ids`"),
        (&["--max-tokens", "0"], "max-tokens"),
        (&["--samples", "0"], "samples"),
        (&["--variant", "q4"], "fp16"),
        (&["--backend", "tensorrt"], "TensorRT"),
        (&["--temperature", "-1"], "temperature"),
    ] {
        let output = run(&data, args);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        assert!(stderr.contains(reason), "{args:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
    for args in [["--min-accuracy", "95"], ["--min-agreement", "nan"]] {
        let output = run(&data, &args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(text(&output.stderr).contains("from 0 to 1"), "{args:?}");
    }
    let found = report(&run(&data, &["--json"]));
    assert!(found["accuracy"].is_null() && found["agreement"].is_null());
    assert_eq!(keys(&found["families"]), ["other"]);
    let output = run(&data.with_file_name("none.jsonl"), &[]);
    assert!(text(&output.stderr).contains("none.jsonl"));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn eval_beside_a_reference_agrees_with_its_ids() {
    let tiny = root().join("tests/data/tiny/fastvlm-tiny-contrib");
    let plain = root().join("tests/data/tiny/fastvlm-tiny-plain");
    let (_dir, data) = changed(2, |_, item| {
        item["token_ids"] = json!([1]);
    });
    let reference = ["--reference", plain.to_str().expect("path")];
    let more = [
        "--reference-variant",
        "fp32",
        "--variant",
        "fp32",
        "--max-tokens",
        "6",
    ];
    let args = [&reference[..], &more, &["--json", "--warm-up", "0"]].concat();
    let output = eval(&tiny, &data, &args).output().expect("eval");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let report = report(&output);
    let agreement = &report["agreement"];
    assert_eq!(agreement["answers"]["hits"], 2, "{agreement}");
    let name = agreement["reference"].as_str().expect("name");
    assert!(name.contains("fastvlm-tiny-plain") && name.contains("fp32"));
    assert_eq!(agreement["reference_accuracy"]["of"], 2);
    assert!(
        report["peak_memory_bytes"].is_null(),
        "two models were in memory"
    );
}

#[test]
fn interrupted_eval_prints_no_report_and_exits_with_130() {
    let dir = tempfile::tempdir().expect("dir");
    std::os::unix::fs::symlink(root().join("calibration/images"), dir.path().join("images"))
        .expect("link");
    // So many that no machine is through with them before the signal.
    let list = std::fs::read_to_string(items()).expect("items").repeat(500);
    let data = dir.path().join("items.jsonl");
    std::fs::write(&data, list).expect("write");
    let mut child = eval(&demo(), &data, &["--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("spawn");
    let mut stderr = child.stderr.take().expect("pipe");
    let mut first = [0u8];
    // The model is loaded when the first line comes.
    stderr.read_exact(&mut first).expect("a line");
    let pid = child.id().to_string();
    let sent = Command::new("kill").args(["-INT", &pid]).status();
    assert!(sent.expect("kill").success());
    let mut said = String::new();
    stderr.read_to_string(&mut said).expect("UTF-8");
    let output = child.wait_with_output().expect("wait");
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
    assert!(
        said.contains("interrupted after") && said.contains("of 8000 items"),
        "{said}"
    );
    assert!(!said.contains("error:"), "{said}");
}
