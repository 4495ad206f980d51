//! `trtvlm bench`, as a user sees it.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn bench(model: &str, out: &Path, args: &[&str]) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    Command::new(env!("CARGO_BIN_EXE_trtvlm"))
        .env_remove("TRTVLM_LOG")
        .env("RUST_BACKTRACE", "0")
        .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"))
        .current_dir(root)
        .args(["bench", model, "--data", "calibration", "--out"])
        .arg(out)
        .args(args)
        .output()
        .expect("bench")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn bench_writes_results_a_table_and_plots() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("new/results");
    let args = ["--samples", "2", "--sweep", "norm,grid", "--warm-up", "0"];
    let more = [
        "--quantized",
        "onnx/uav-tiny",
        "--quantized-variant",
        "fp16",
    ];
    let drafts = ["--draft-sweep", "head"];
    let output = bench("onnx/uav-tiny", &out, &[&args[..], &more, &drafts].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let read = |name: &str| std::fs::read_to_string(out.join(name)).expect(name);
    let results: Value = serde_json::from_str(&read("results.json")).expect("JSON");
    let rows = results["rows"].as_array().expect("rows");
    let names: Vec<&str> = rows.iter().filter_map(|row| row["name"].as_str()).collect();
    let ablation = [
        "baseline",
        "pruning",
        "speculation",
        "quantized",
        "pruning + speculation",
        "full",
    ];
    assert_eq!(names[..6], ablation);
    assert_eq!(names.len(), 6 + 2 * 6 + 8);
    // Drafts change no answer.
    for row in [0, 2].into_iter().chain(18..26) {
        assert_eq!(rows[row]["agreement"]["share"], 1.0);
    }
    assert_eq!(rows[25]["drafts"], serde_json::json!(["head", 8]));
    let speculation = &rows[25]["speculation"];
    assert!(speculation["accepted"].as_u64().expect("count") > 0);
    assert!(speculation["drafter_share"].as_f64().expect("share") > 0.0);
    assert_eq!(
        (&rows[0]["kept"], &rows[1]["kept"]),
        (&256.0.into(), &26.0.into())
    );
    assert!(rows[1]["latency_ms"]["prune"]["mean"].as_f64().expect("ms") > 0.0);
    let digests = results["ran"]["digests"].as_array().expect("digests");
    assert!(
        digests
            .iter()
            .all(|file| file["sha256"].as_str().is_some_and(|s| s.len() == 64))
    );
    assert_eq!(results["ran"]["command"][1], "bench");
    for plot in [
        "accuracy.svg",
        "first-token.svg",
        "stages.svg",
        "ablation.svg",
        "acceptance.svg",
        "speed-up.svg",
    ] {
        assert!(read(plot).ends_with("</svg>\n"), "{plot}");
    }
    let table = read("table.md");
    assert!(table.contains("| pruning + speculation |") && table.contains("| `grid` |"));
    assert!(table.contains("| `head` | 8 |"), "{table}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), table);

    let unknown = bench(
        "onnx/uav-tiny",
        &dir.path().join("none"),
        &["--draft-sweep", "best"],
    );
    assert!(stderr(&unknown).contains("the drafter `best` is not available"));

    let again = bench("onnx/uav-tiny", &out, &args);
    assert_eq!(again.status.code(), Some(1));
    assert!(
        stderr(&again).contains("exists (use --force"),
        "{}",
        stderr(&again)
    );
}

#[test]
fn bench_refuses_bad_arguments_before_the_model_is_loaded() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("results");
    for (args, code, expected) in [
        (["--sweep", "best"], 2, "pruner: `best` is none of"),
        (["--keep", "0"], 1, "error: keep: 0"),
        (["--samples", "0"], 1, "error: samples: 0"),
        (["--max-tokens", "0"], 1, "error: max-tokens: 0"),
    ] {
        let output = bench("no/such/model", &out, &args);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{args:?}: {}",
            stderr(&output)
        );
        assert!(
            stderr(&output).contains(expected),
            "{args:?}: {}",
            stderr(&output)
        );
        assert!(!out.exists(), "{args:?}");
    }
}
