//! Plain and drafted answers of the demo model, for all drafters, lengths of drafts, shares of visual tokens and both
//! precisions.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use trtvlm::decode::{MAX_DRAFT, Totals};
use trtvlm::items::{Item, read_items};
use trtvlm::pipeline::{Answer, Ask, Pipeline, Pruning, Strategy};
use trtvlm::preprocess::Frame;
use trtvlm::prune::Keep;

/// Shares of the visual tokens, and the lengths of drafts that are tried with each.
fn cases() -> [(f64, Vec<usize>); 4] {
    let all: Vec<usize> = (1..=MAX_DRAFT).collect();
    [
        (1.0, all.clone()),
        (0.5, vec![4]),
        (0.25, all),
        (0.1, vec![4]),
    ]
}

fn items() -> Vec<Item> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = std::env::var_os("TRTVLM_LONG_ITEMS").map(PathBuf::from);
    read_items(&path.unwrap_or_else(|| root.join("calibration"))).expect("items")
}

/// An INT8 bundle for the CPU of the demo model.
fn int8(dir: &Path) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = dir.join("int8");
    let built = Command::new(env!("CARGO_BIN_EXE_trtvlm"))
        .args(["build", "onnx/uav-tiny", "--target", "cpu"])
        .args(["--precision", "int8", "--calibration", "calibration"])
        .args(["--draft-tokens", &MAX_DRAFT.to_string(), "--out"])
        .arg(&out)
        .current_dir(root)
        .output()
        .expect("build");
    let stderr = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "{stderr}");
    out
}

/// True if two answers are one, or part at a choice that is listed as a near tie.
fn agrees(drafted: &Answer, plain: &Answer) -> bool {
    if drafted.token_ids == plain.token_ids {
        return true;
    }
    let mut pairs = drafted.token_ids.iter().zip(&plain.token_ids);
    let parted = pairs.position(|(a, b)| a != b);
    let mut ties = drafted.speculation.near_ties.iter();
    ties.any(|tie| Some(tie.index) == parted)
}

fn compare(model: &Path, items: &[Item]) {
    let mut pipeline = Pipeline::open(model, None).expect("demo model");
    let drafters = pipeline.drafters();
    assert_eq!(drafters.len(), 3, "{drafters:?}");
    let mut reports = BTreeMap::new();
    let (mut n_parted, mut wrong) = (0, Vec::new());
    for item in items {
        let frame = Frame::load(&item.image).expect("frame");
        for (share, lengths) in cases() {
            let mut answer = |draft| {
                let ask = Ask {
                    pruning: Pruning {
                        keep: Keep::new(share).expect("share"),
                        ..Pruning::default()
                    },
                    draft,
                    ..Ask::default()
                };
                pipeline.forget_answers();
                let answer = pipeline.ask(&frame, &item.prompt, &ask, &mut |_| {});
                answer.expect(&item.prompt)
            };
            let plain = answer(Strategy::Off);
            for &drafter in &drafters {
                for &n in &lengths {
                    let drafted = answer(Strategy::Always { drafter, n });
                    n_parted += usize::from(drafted.token_ids != plain.token_ids);
                    if !agrees(&drafted, &plain) {
                        wrong.push(format!("{}, {share}, {drafter} {n}", item.origin));
                    }
                    assert_eq!(drafted.speculation.switched_off, None, "{}", item.origin);
                    let key = (drafter, n, format!("{share}"));
                    let of: &mut Vec<_> = reports.entry(key).or_default();
                    of.push(drafted.speculation);
                }
            }
        }
    }
    for ((drafter, n, share), reports) in &reports {
        let totals = Totals::of(reports.iter());
        let (accepted, proposed) = (totals.accepted, totals.proposed);
        let rate = 100.0 * accepted as f64 / proposed.max(1) as f64;
        let per_pass = totals.tokens_per_pass.unwrap_or(0.0);
        eprintln!(
            "{drafter}, drafts of {n}, {share} of the visual tokens: {rate:.1} % ({accepted} of {proposed}), {per_pass:.2} a pass"
        );
    }
    let n: usize = reports.values().map(Vec::len).sum();
    eprintln!(
        "{}: {n} drafted answers, {n_parted} part at a near tie",
        model.display()
    );
    assert!(wrong.is_empty(), "{} of {n}: {wrong:#?}", wrong.len());
}

#[test]
#[ignore = "long: minutes"]
fn long_comparison_of_drafted_answers_with_plain_ones() {
    let items = items();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    compare(&root.join("onnx/uav-tiny"), &items);
}

#[test]
#[ignore = "long: minutes"]
fn long_comparison_of_drafted_answers_with_plain_ones_in_int8() {
    let items = items();
    let dir = tempfile::tempdir().expect("dir");
    compare(&int8(dir.path()), &items);
}
