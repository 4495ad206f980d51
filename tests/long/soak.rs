//! One pipeline for a long time: nothing grows.

use std::path::Path;

use trtvlm::pipeline::{Ask, Pipeline};
use trtvlm::preprocess::{Fit, Frame};

use super::{from_env, memory_mib};

/// What the allocator may keep beyond what it had when everything was in use once.
const SLACK_MIB: u64 = 16;

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("/proc").count()
}

#[test]
#[ignore = "long: a minute or two"]
fn long_run_of_questions_does_not_grow() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pipeline = Pipeline::open(&root.join("onnx/uav-tiny"), None).expect("model");
    let images = root.join("calibration/images");
    let mut paths: Vec<_> = std::fs::read_dir(images)
        .expect("images")
        .map(|entry| entry.expect("entry").path())
        .collect();
    paths.sort();
    let questions = [
        "describe the scene",
        "how many trees are there",
        "find the blue boat",
    ];
    let n = from_env("TRTVLM_LONG_RUNS", 500) as usize;
    // Everything is in use once after all images, ways to fit and questions have had a turn.
    let warm = (n / 4).max(paths.len());
    assert!(
        n >= 2 * warm,
        "TRTVLM_LONG_RUNS: at least {}",
        2 * paths.len()
    );
    let mut before = (0, 0);
    let mut first = Vec::new();
    for run in 0..n {
        let frame = Frame::load(&paths[run % paths.len()]).expect("image");
        let ask = Ask {
            fit: [Fit::Processor, Fit::Pad, Fit::Stretch][run % 3],
            ..Ask::default()
        };
        let question = questions[run / paths.len() % questions.len()];
        let answer = pipeline
            .ask(&frame, question, &ask, &mut |_| {})
            .expect("answer");
        assert!(!answer.token_ids.is_empty());
        if run == 0 {
            first = answer.token_ids;
        }
        if run + 1 == warm {
            before = (memory_mib("VmRSS"), open_files());
        }
    }
    let after = (memory_mib("VmRSS"), open_files());
    eprintln!("{n} answers: {before:?} MiB and files when warm, {after:?} at the end");
    assert!(
        after.0 <= before.0 + SLACK_MIB,
        "resident memory went from {} to {} MiB",
        before.0,
        after.0
    );
    assert_eq!(after.1, before.1, "open files");
    let frame = Frame::load(&paths[0]).expect("image");
    let again = pipeline.ask(&frame, questions[0], &Ask::default(), &mut |_| {});
    assert_eq!(again.expect("answer").token_ids, first, "the first answer");
}

/// As a camera asks: one session, raw frames of one size, memory that is used again.
#[test]
#[ignore = "long: hours for a hundred thousand frames"]
fn long_flight_of_frames_does_not_grow() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pipeline = Pipeline::open(&root.join("onnx/uav-tiny"), None).expect("model");
    let frame = Frame::load(&root.join("calibration/images/0024.png")).expect("image");
    let ask = Ask {
        max_tokens: Some(4),
        ..Ask::default()
    };
    let n = from_env("TRTVLM_LONG_FRAMES", 100_000);
    let warm = n.min(100);
    let mut before = (0, 0);
    for number in 0..n {
        let question = ["describe the scene", "find the blue boat"][number as usize % 2];
        let answer = pipeline.answer(&frame, question, &ask, &mut |_| {});
        assert!(!answer.expect("answer").token_ids.is_empty());
        if number + 1 == warm {
            before = (memory_mib("VmRSS"), open_files());
        }
    }
    let after = (memory_mib("VmRSS"), open_files());
    eprintln!("{n} frames: {before:?} MiB and files when warm, {after:?} at the end");
    assert!(
        after.0 <= before.0 + SLACK_MIB && after.1 == before.1,
        "{before:?} {after:?}"
    );
}
