//! The whole GPU path without a GPU: the TensorRT backend over a double of the CUDA driver and of TensorRT's
//! runtime. Kernels are ours, run in the emulation of `tests/simt`; plans are run by the CPU engine; so that
//! answers are those of the CPU engine or something between them is wrong.
#![cfg(all(feature = "tensorrt", feature = "cli"))]
#![allow(unsafe_code)]

mod twin;

use std::path::{Path, PathBuf};

use trtvlm::decode::{Sampling, Strategy};
use trtvlm::error::Error;
use trtvlm::pipeline::{Answer, Ask, Choice, Pipeline, Pruning};
use trtvlm::preprocess::Frame;
use trtvlm::prune::{Keep, Pruner};
use twin::Twin;

const MODEL: &str = "onnx/uav-tiny";

/// CUDA's code for a failure that nothing recovers from.
const ILLEGAL_ADDRESS: i32 = 700;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A bundle with plans of the double, in FP32.
fn bundle() -> &'static Path {
    static BUNDLE: std::sync::OnceLock<(tempfile::TempDir, PathBuf)> = std::sync::OnceLock::new();
    let (_, path) = BUNDLE.get_or_init(|| {
        let dir = tempfile::tempdir().expect("dir");
        let path = twin::bundle(MODEL, "fp32", dir.path());
        (dir, path)
    });
    path
}

fn frame(name: &str) -> Frame {
    Frame::load(&root().join("calibration/images").join(name)).expect("frame")
}

fn ask(pipeline: &mut Pipeline, question: &str, ask: &Ask<'_>) -> Answer {
    let answer = pipeline.ask(&frame("0024.png"), question, ask, &mut |_| {});
    answer.expect("answer")
}

fn open() -> Pipeline {
    Pipeline::open_on(bundle(), None, Choice::TensorRt).expect("the double's bundle")
}

/// The same graphs' weights on the CPU engine.
fn on_cpu() -> Pipeline {
    Pipeline::open_on(&root().join(MODEL), None, Choice::Cpu).expect("model")
}

const QUESTIONS: [&str; 2] = ["describe the scene", "how many trees are there"];

#[test]
fn answers_are_the_cpu_engines_token_for_token() {
    let _twin = Twin::take();
    let (mut gpu, mut cpu) = (open(), on_cpu());
    assert_eq!(gpu.backend_name(), "tensorrt");
    let drafted = |drafter, n| Strategy::Always { drafter, n };
    for question in QUESTIONS {
        let plain = Ask::default();
        let expected = ask(&mut cpu, question, &plain);
        for draft in [
            Strategy::Off,
            drafted("ngram", 1),
            drafted("ngram", 3),
            drafted("ngram", 4),
            // The draft model runs on the CPU engine, from the plans' hidden states.
            drafted("head", 1),
            drafted("head", 4),
            // Once with costs that are measured, once with those.
            Strategy::Auto,
            Strategy::Auto,
        ] {
            let answer = ask(&mut gpu, question, &Ask { draft, ..plain });
            assert_eq!(
                answer.token_ids, expected.token_ids,
                "{question}, {draft:?}"
            );
            assert_eq!((answer.stop, &answer.text), (expected.stop, &expected.text));
        }
    }
}

#[test]
fn draft_model_beside_plans_guesses_as_it_does_beside_the_cpu_engine() {
    let _twin = Twin::take();
    let (mut gpu, mut cpu) = (open(), on_cpu());
    for n in [1, 4] {
        let drafter = "head";
        let how = Ask {
            draft: Strategy::Always { drafter, n },
            ..Ask::default()
        };
        let (answer, expected) = (
            ask(&mut gpu, QUESTIONS[0], &how).speculation,
            ask(&mut cpu, QUESTIONS[0], &how).speculation,
        );
        assert!(answer.accepted > 0, "{answer:?}");
        assert_eq!(answer.by_position, expected.by_position);
        assert_eq!(answer.switched_off, None);
    }
    let exit = Ask {
        draft: Strategy::Always {
            drafter: "early-exit",
            n: 1,
        },
        ..Ask::default()
    };
    let refused = gpu.ask(&frame("0024.png"), QUESTIONS[0], &exit, &mut |_| {});
    let error = refused.expect_err("no plan of first layers").to_string();
    assert!(error.contains("no plan of their own"), "{error}");
}

#[test]
fn drawn_and_pruned_answers_are_the_cpu_engines_too() {
    let _twin = Twin::take();
    let (mut gpu, mut cpu) = (open(), on_cpu());
    let drawn = Ask {
        sampling: Sampling {
            temperature: 1.5,
            seed: 7,
            ..Sampling::default()
        },
        ..Ask::default()
    };
    let pruned = |pruner| Ask {
        pruning: Pruning {
            keep: Keep::new(0.25).expect("share"),
            pruner: Some(pruner),
            ..Pruning::default()
        },
        ..Ask::default()
    };
    for how in [
        drawn,
        pruned(Pruner::Grid),
        // By a kernel, which moves the rows to where the decoder reads them.
        pruned(Pruner::Norm),
        pruned(Pruner::Norm),
        pruned(Pruner::Similarity),
        pruned(Pruner::Diverse),
        pruned(Pruner::Learned),
    ] {
        let (answer, expected) = (
            ask(&mut gpu, QUESTIONS[0], &how),
            ask(&mut cpu, QUESTIONS[0], &how),
        );
        assert_eq!(answer.token_ids, expected.token_ids, "{how:?}");
        assert_eq!(answer.visual_tokens.indices, expected.visual_tokens.indices);
    }
}

/// Calls of a journal whose name begins so.
fn n_calls(journal: &[String], call: &str) -> usize {
    journal.iter().filter(|line| line.starts_with(call)).count()
}

/// Bytes of each copy from the device.
fn bytes_read(journal: &[String]) -> Vec<usize> {
    let copies = journal.iter();
    let copies = copies.filter_map(|line| line.strip_prefix("cuMemcpyDtoHAsync "));
    copies.map(|bytes| bytes.parse().expect("bytes")).collect()
}

#[test]
fn passes_are_replays_and_nothing_is_allocated_after_open() {
    let twin = Twin::take();
    let mut gpu = open();
    let how = Ask {
        draft: Strategy::Always {
            drafter: "ngram",
            n: 4,
        },
        ..Ask::default()
    };
    // The first prompts of a length run as they are, and are captured.
    for _ in 0..2 {
        ask(&mut gpu, QUESTIONS[0], &how);
    }
    twin.reset();
    let answer = ask(&mut gpu, QUESTIONS[0], &how);
    let journal = twin.journal();
    let n = |call: &str| n_calls(&journal, call);
    for call in [
        "cuMemAlloc",
        "createExecutionContext",
        "cuStreamBeginCapture",
        "enqueueV3",
        "setInputShape",
    ] {
        assert_eq!(n(call), 0, "{call}: {journal:#?}");
    }
    // Vision, prompt, and a replay a pass; one launch chooses the token behind the prompt.
    assert_eq!(
        n("cuGraphLaunch"),
        2 + answer.speculation.steps,
        "{journal:#?}"
    );
    assert_eq!(n("cuLaunchKernel"), 1, "{journal:#?}");
    // No tensor comes back: what is read is the state and the tokens, twice a pass.
    let read = bytes_read(&journal);
    assert_eq!(read.len(), 2 * (1 + answer.speculation.steps));
    assert!(read.iter().all(|&bytes| bytes <= 128), "{read:?}");
    drop(gpu);
    assert_eq!(twin.n_live(), 0);
}

#[test]
fn pruning_by_a_kernel_reads_back_which_rows_stay_and_no_row() {
    let twin = Twin::take();
    let mut gpu = open();
    let how = Ask {
        pruning: Pruning {
            keep: Keep::new(0.25).expect("share"),
            pruner: Some(Pruner::Norm),
            ..Pruning::default()
        },
        ..Ask::default()
    };
    for _ in 0..2 {
        ask(&mut gpu, QUESTIONS[0], &how);
    }
    twin.reset();
    let answer = ask(&mut gpu, QUESTIONS[0], &how);
    let journal = twin.journal();
    let n = |call: &str| n_calls(&journal, call);
    // One launch prunes, one chooses the token behind the prompt; all else is replayed.
    assert_eq!(n("cuLaunchKernel"), 2, "{journal:#?}");
    let kept = &answer.visual_tokens;
    let read = bytes_read(&journal);
    assert_eq!(read[..2], [4 * kept.indices.len(), 4 * kept.total]);
    assert!(read[2..].iter().all(|&bytes| bytes <= 128), "{read:?}");
    drop(gpu);
    assert_eq!(twin.n_live(), 0);
}

#[test]
fn work_that_cannot_be_captured_is_enqueued_and_the_answer_is_the_same() {
    let twin = Twin::take();
    let expected = ask(&mut on_cpu(), QUESTIONS[0], &Ask::default());
    for call in [
        "cuStreamBeginCapture",
        "cuStreamEndCapture",
        "cuGraphInstantiate",
    ] {
        twin.reset();
        twin.fail(call, 1, 900);
        let mut gpu = open();
        assert!(twin.has_failed(), "{call}");
        let answer = ask(&mut gpu, QUESTIONS[0], &Ask::default());
        assert_eq!(answer.token_ids, expected.token_ids, "{call}");
        drop(gpu);
        assert_eq!(twin.n_live(), 0, "{call}");
    }
}

/// Calls that are made once more after everything has failed: they free.
const FREES: [&str; 7] = [
    "cuMemFree",
    "cuModuleUnload",
    "cuStreamDestroy",
    "cuDevicePrimaryCtxRelease",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuStreamEndCapture",
];

#[test]
fn every_call_that_fails_is_an_error_and_leaves_nothing_behind() {
    let twin = Twin::take();
    let how = Ask::default();
    let run = || -> trtvlm::Result<Answer> {
        let mut gpu = Pipeline::open_on(bundle(), None, Choice::TensorRt)?;
        gpu.ask(&frame("0024.png"), QUESTIONS[1], &how, &mut |_| {})
    };
    run().expect("an answer");
    let journal = twin.journal();
    let calls: std::collections::BTreeMap<&str, usize> = journal
        .iter()
        .map(|line| line.split(' ').next().expect("call"))
        .fold(Default::default(), |mut calls, call| {
            *calls.entry(call).or_default() += 1;
            calls
        });
    let captures = [
        "cuStreamBeginCapture",
        "cuStreamEndCapture",
        "cuGraphInstantiate",
    ];
    for (call, n) in calls {
        // Nobody can do anything about those that free, and captures have a test of their own.
        if FREES.contains(&call) || captures.contains(&call) || call == "setDeviceMemoryV2" {
            continue;
        }
        for nth in [1, n.div_ceil(2), n] {
            twin.reset();
            twin.fail(call, nth as i32, ILLEGAL_ADDRESS);
            let outcome = run();
            assert!(twin.has_failed(), "{call} {nth}");
            let journal = twin.journal();
            let at = journal
                .iter()
                .position(|line| line.ends_with("FAILS"))
                .expect("failure");
            // A call that fails while it is captured is made again, uncaptured.
            let is_captured = journal[..at]
                .iter()
                .rev()
                .find_map(|line| match line.as_str() {
                    "cuStreamBeginCapture" => Some(true),
                    "cuStreamEndCapture" => Some(false),
                    _ => None,
                })
                .unwrap_or(false);
            if is_captured {
                assert!(outcome.is_ok(), "{call} {nth}: {:?}", outcome.err());
            } else {
                let error = outcome.expect_err(call);
                let is_typed = matches!(
                    error,
                    Error::Cuda { .. } | Error::Engine { .. } | Error::Unavailable { .. }
                );
                assert!(is_typed, "{call} {nth}: {error}");
                let after = journal[at + 1..]
                    .iter()
                    .find(|line| !FREES.iter().any(|free| line.starts_with(free)));
                assert_eq!(after, None, "{call} {nth}");
            }
            assert_eq!(twin.n_live(), 0, "{call} {nth}: {journal:#?}");
        }
    }
}

#[test]
fn device_without_enough_memory_is_refused_with_both_figures() {
    let twin = Twin::take();
    twin.set_capacity(4 << 20);
    let error = Pipeline::open_on(bundle(), None, Choice::TensorRt)
        .err()
        .expect("too small");
    let Error::OutOfMemory {
        what,
        needed_bytes,
        available_bytes,
    } = &error
    else {
        panic!("{error}");
    };
    assert!(what.contains("double of a GPU"), "{what}");
    assert!(needed_bytes > available_bytes, "{error}");
    assert_eq!(twin.n_live(), 0);
}

#[test]
fn bundle_for_another_gpu_or_driver_is_refused_with_both_sides() {
    let twin = Twin::take();
    let refused = || {
        Pipeline::open_on(bundle(), None, Choice::TensorRt)
            .err()
            .expect("refused")
            .to_string()
    };
    twin.set_device(86, 13000);
    let error = refused();
    assert!(error.contains("sm86") && error.contains("sm87"), "{error}");
    twin.set_device(87, 12060);
    let error = refused();
    assert!(error.contains("12.6") && error.contains("13."), "{error}");
    assert_eq!(twin.n_live(), 0);
}

#[test]
fn frames_in_tiles_of_any_number_are_answered_as_on_the_cpu() {
    let _twin = Twin::take();
    let model = "tests/data/tiny/smolvlm-tiny-plain";
    let dir = tempfile::tempdir().expect("dir");
    let path = twin::bundle(model, "fp32", dir.path());
    let mut gpu = Pipeline::open_on(&path, None, Choice::Auto).expect("bundle");
    assert_eq!(gpu.backend_name(), "tensorrt");
    let mut cpu = Pipeline::open_on(&root().join(model), None, Choice::Cpu).expect("model");
    for tiles in [1, 3, 1] {
        let how = Ask {
            tiles: trtvlm::preprocess::Tiles::Count(tiles),
            max_tokens: Some(6),
            ..Ask::default()
        };
        let (answer, expected) = (
            ask(&mut gpu, "what is this", &how),
            ask(&mut cpu, "what is this", &how),
        );
        assert_eq!(answer.token_ids, expected.token_ids, "{tiles} tiles");
    }
}

#[test]
fn half_precision_answers_as_the_cpu_engine_does() {
    let _twin = Twin::take();
    let dir = tempfile::tempdir().expect("dir");
    let path = twin::bundle(MODEL, "fp16", dir.path());
    let mut gpu = Pipeline::open_on(&path, None, Choice::TensorRt).expect("bundle");
    let mut cpu = on_cpu();
    for question in QUESTIONS {
        let how = Ask::default();
        let (answer, expected) = (ask(&mut gpu, question, &how), ask(&mut cpu, question, &how));
        assert_eq!(answer.token_ids, expected.token_ids, "{question}");
    }
}
