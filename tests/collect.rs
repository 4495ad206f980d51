//! Refused drafts: collected by `run` and `eval`, learned from by `train draft`.
#![cfg(feature = "train")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn trtvlm(args: &[&str], paths: &[(&str, &Path)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trtvlm"));
    command
        .env_remove("TRTVLM_LOG")
        .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"))
        .current_dir(root())
        .args(args);
    for (name, path) in paths {
        command.arg(name).arg(path);
    }
    command.output().expect("trtvlm")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Answers about two pictures with drafts of the head; four questions have something refused.
fn eval(file: &Path, args: &[&str]) -> Output {
    let fixed = ["eval", "onnx/uav-tiny", "--data", "calibration", "--json"];
    let fixed = [&fixed[..], &["--samples", "6", "--draft", "head"]].concat();
    trtvlm(&[&fixed[..], args].concat(), &[("--collect", file)])
}

fn lines(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).expect("corrections");
    assert!(text.is_empty() || text.ends_with('\n'), "whole lines");
    let lines = text.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().expect("JSON")
}

#[test]
fn refused_drafts_are_collected_once_for_each_answer() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("refused.jsonl");
    let output = eval(&file, &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let collected = lines(&file);
    assert!(!collected.is_empty());
    let n_refused: usize = collected
        .iter()
        .map(|c| c["refused"].as_array().expect("refused").len())
        .sum();
    let drafts = &report["speculation"];
    let n = |key: &str| drafts[key].as_u64().expect(key) as usize;
    assert!(n_refused > 0 && n_refused <= n("proposed") - n("accepted"));
    assert!(stderr(&output).contains(&format!("{n_refused} refused drafts collected")));
    for correction in &collected {
        let ids = correction["token_ids"].as_array().expect("ids");
        for refused in correction["refused"].as_array().expect("refused") {
            let at = refused["index"].as_u64().expect("index") as usize;
            assert_eq!(refused["chosen"], ids[at]);
            assert_ne!(refused["chosen"], refused["drafted"]);
            assert_eq!(refused["drafter"], "head");
        }
    }
    // A second time: added, not replaced.
    assert!(eval(&file, &[]).status.success());
    assert_eq!(lines(&file).len(), 2 * collected.len());

    let image = root().join("calibration/images/0024.png");
    let args = ["run", "onnx/uav-tiny", "--prompt", "describe the scene"];
    let paths = [("--image", image.as_path()), ("--collect", &file)];
    let output = trtvlm(&args, &paths);
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn train_learns_from_refused_drafts_of_its_own_model_only() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("refused.jsonl");
    assert!(eval(&file, &[]).status.success());
    let out = dir.path().join("drafts");
    let train = |out: &Path, file: &Path| {
        let fixed = ["train", "draft", "onnx/uav-tiny", "--data", "calibration"];
        let args = ["--kind", "early-exit", "--samples", "4", "--epochs", "1"];
        let args = [&fixed[..], &args, &["--width", "32", "--json"]].concat();
        trtvlm(&args, &[("--out", out), ("--corrections", file)])
    };
    let output = train(&out, &file);
    assert!(output.status.success(), "{}", stderr(&output));
    let outcome: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let n = outcome["corrections"].as_u64().expect("corrections") as usize;
    // Pictures that are judged are left out.
    assert!(n > 0 && n <= lines(&file).len(), "{outcome}");
    assert_eq!(outcome["items"], 4 + n);

    let text = fs::read_to_string(&file).expect("read");
    let decoder = lines(&file)[0]["decoder"].as_str().expect("it").to_owned();
    let other = "7".repeat(64);
    let foreign = dir.path().join("foreign.jsonl");
    fs::write(&foreign, text.replace(&decoder, &other)).expect("write");
    let broken = dir.path().join("broken.jsonl");
    fs::write(&broken, &text[..text.len() / 2]).expect("write");
    for (bad, reasons) in [
        (&foreign, [other.as_str(), decoder.as_str()]),
        (&broken, ["broken.jsonl", "line"]),
        (
            &dir.path().join("none.jsonl"),
            ["none.jsonl", "No such file"],
        ),
    ] {
        let out = dir.path().join("other");
        let output = train(&out, bad);
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        for reason in reasons {
            assert!(stderr(&output).contains(reason), "{}", stderr(&output));
        }
        assert!(!out.exists(), "refused before anything was asked");
    }
    // A picture that was replaced teaches nothing.
    let replaced = dir.path().join("replaced.jsonl");
    let digest = lines(&file)[0]["image_sha256"]
        .as_str()
        .expect("it")
        .to_owned();
    let first = text.lines().next().expect("a line");
    fs::write(&replaced, format!("{}\n", first.replace(&digest, &other))).expect("write");
    let output = train(&dir.path().join("third"), &replaced);
    let outcome: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(outcome["corrections"], 0);
    assert!(
        stderr(&output).contains("not the picture"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn collect_into_what_cannot_be_written_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().expect("dir");
    let letter = dir.path().join("letter.txt");
    fs::write(&letter, "a letter\n").expect("write");
    let nowhere: PathBuf = dir.path().join("no/folder.jsonl");
    for (file, args, reason) in [
        (dir.path(), &[][..], "directory"),
        (&nowhere, &[], "No such file"),
        (&letter, &[], "letter.txt: line 1"),
        (Path::new("/dev/full"), &[], "not a regular file"),
        (
            &letter,
            &["--temperature", "1"],
            "collect: acts with greedy",
        ),
    ] {
        let output = eval(file, args);
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(stderr(&output).contains(reason), "{}", stderr(&output));
        assert!(
            output.stdout.is_empty(),
            "refused before anything was asked"
        );
    }
    assert_eq!(fs::read(&letter).expect("read"), b"a letter\n");
    let args = ["run", "onnx/uav-tiny", "--prompt", "p", "--draft", "ngram"];
    let image = root().join("calibration/images/0024.png");
    let file = dir.path().join("refused.jsonl");
    let paths = [("--image", image.as_path()), ("--collect", &file)];
    let output = trtvlm(&args, &paths);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("collect: acts with --draft auto"),
        "{}",
        stderr(&output)
    );
    let tiny = ["run", "tests/data/tiny/fastvlm-tiny-plain", "--prompt", "p"];
    let output = trtvlm(&tiny, &paths);
    assert!(
        stderr(&output).contains("no trained drafts"),
        "{}",
        stderr(&output)
    );
    assert!(!file.exists());
}

#[test]
fn collect_on_a_full_disk_leaves_whole_lines_and_says_so() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("refused.jsonl");
    // A file cannot become larger than 1 KiB, in the middle of a line; the signal that would end the program is ignored.
    let script = "trap '' XFSZ; ulimit -f 1; exec \"$@\"";
    let output = Command::new("bash")
        .args(["-c", script, "bash", env!("CARGO_BIN_EXE_trtvlm")])
        .args(["eval", "onnx/uav-tiny", "--data", "calibration", "--json"])
        .args(["--draft", "head", "--collect"])
        .arg(&file)
        .env("XDG_CACHE_HOME", dir.path())
        .current_dir(root())
        .output()
        .expect("trtvlm");
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("refused.jsonl"),
        "{}",
        stderr(&output)
    );
    assert!(
        stderr(&output).contains("File too large"),
        "{}",
        stderr(&output)
    );
    // The report stands; what was collected are whole lines.
    serde_json::from_slice::<Value>(&output.stdout).expect("the report");
    let n = lines(&file).len();
    assert!(n > 0, "what fitted");
}
