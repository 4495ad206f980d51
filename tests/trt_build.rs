//! Builds plans with the real builder, in a child process, without a GPU.
//!
//! Needs the libraries that `make sdk` fetches. The child is this test program itself, run with
//! [`build_child`] as its only test.
#![cfg(feature = "tensorrt")]

mod trt_common;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha256};
use trt_common::{build, decoder_profile, names_in, onnx, range, spec};
use trtvlm::Error;
use trtvlm::trt::{DType, Flavour, IoMode, Profile, Progress, Sm};

/// The child's entry; in an ordinary run of all tests it does nothing.
#[test]
fn build_child() {
    trt_common::enter_child();
}

#[test]
fn build_of_a_vision_tower_for_sm86_writes_the_plan_it_reports() {
    let dir = tempfile::tempdir().expect("temp dir");
    let mut spec = spec(
        &onnx("fastvlm-tiny-plain", "vision_encoder"),
        dir.path(),
        "vision",
    );
    spec.profiles.push(Profile {
        dims: vec![range("pixel_values", [1, 3, 256, 256], [1, 3, 256, 256])],
    });
    let mut phases = Vec::new();
    let report = build(&spec, &AtomicBool::new(false), &mut |progress| {
        if let Progress::PhaseStart { phase, .. } = progress {
            phases.push(phase.clone());
        }
    })
    .expect("build");

    assert_eq!((report.flavour, report.target), (Flavour::Rtx, Sm::Sm(86)));
    assert!(
        report.version.major == 1 && report.version.minor >= 7,
        "{}",
        report.version
    );
    let plan = std::fs::read(&spec.plan).expect("plan");
    let digest: String = Sha256::digest(&plan)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    assert_eq!(report.plan_sha256, digest);
    assert_eq!(report.plan_bytes, plan.len() as u64);
    assert!(
        report.plan_bytes > 100_000 && report.peak_rss_bytes > 10 << 20 && report.seconds > 0.0
    );
    assert_eq!(
        names_in(dir.path()),
        ["vision.plan"],
        "nothing else is left behind"
    );

    let described: Vec<_> = report
        .io
        .iter()
        .map(|t| (t.name.as_str(), t.mode, &t.dtype))
        .collect();
    assert_eq!(
        described,
        [
            ("pixel_values", IoMode::Input, &DType::F32),
            ("image_features", IoMode::Output, &DType::F32)
        ]
    );
    assert_eq!(report.io[0].shape, [-1, 3, 256, 256]);
    assert_eq!(phases.first().map(String::as_str), Some("Parsing ONNX"));
    assert_eq!(phases.last().map(String::as_str), Some("Writing plan"));
    assert!(
        phases.len() > 2,
        "TensorRT's own phases come between: {phases:?}"
    );
}

#[test]
fn build_of_a_decoder_takes_its_cache_tensors_and_two_profiles() {
    let dir = tempfile::tempdir().expect("temp dir");
    let mut spec = spec(
        &onnx("fastvlm-tiny-plain", "decoder_model_merged"),
        dir.path(),
        "decoder",
    );
    spec.profiles = vec![
        decoder_profile([1, 16, 64], [0, 0, 0]),
        decoder_profile([1, 1, 5], [1, 64, 128]),
    ];
    let report = build(&spec, &AtomicBool::new(false), &mut |_| {}).expect("build");
    assert_eq!(report.profiles, spec.profiles);
    let count = |mode: IoMode, prefix: &str| {
        report
            .io
            .iter()
            .filter(|t| t.mode == mode && t.name.starts_with(prefix))
            .count()
    };
    assert_eq!(count(IoMode::Input, "past_key_values."), 6);
    assert_eq!(count(IoMode::Output, "present."), 6);
    let find = |name: &str| report.io.iter().find(|t| t.name == name).expect("tensor");
    assert_eq!(find("attention_mask").dtype, DType::I64);
    assert_eq!(find("past_key_values.0.key").shape, [-1, 2, -1, 32]);
    assert_eq!(find("logits").mode, IoMode::Output);
}

#[test]
fn build_with_every_setting_passes_and_rtx_leaves_the_timing_cache_alone() {
    let dir = tempfile::tempdir().expect("temp dir");
    let embed = onnx("fastvlm-tiny-plain", "embed_tokens");
    let mut spec = spec(&embed, dir.path(), "embed");
    spec.flavour = Some(Flavour::Rtx);
    spec.profiles.push(Profile {
        dims: vec![range("input_ids", [1, 1], [1, 64])],
    });
    spec.workspace_bytes = Some(64 << 20);
    spec.optimization_level = Some(2);
    spec.tf32 = true;
    spec.verbose_log = true;
    spec.timing_cache = Some(dir.path().join("timings"));
    let report = build(&spec, &AtomicBool::new(false), &mut |_| {}).expect("build");
    assert_eq!(report.io.len(), 2);
    assert_eq!(names_in(dir.path()), ["embed.plan"]);
}

#[test]
fn build_for_an_sm_that_no_library_knows_names_those_it_knows() {
    for target in [Sm::Sm(87), Sm::Sm(90)] {
        let dir = tempfile::tempdir().expect("temp dir");
        let mut spec = spec(
            &onnx("fastvlm-tiny-plain", "embed_tokens"),
            dir.path(),
            "embed",
        );
        spec.target = target;
        spec.flavour = Some(Flavour::Rtx);
        match build(&spec, &AtomicBool::new(false), &mut |_| {}) {
            Err(Error::Unavailable { what, reason }) => {
                assert!(what.contains(&target.to_string()), "{what}");
                assert!(reason.contains("sm80, sm86, sm89"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
        assert!(names_in(dir.path()).is_empty());
    }
}

#[test]
fn build_that_crashes_the_parser_is_an_error_with_its_signal() {
    let dir = tempfile::tempdir().expect("temp dir");
    let onnx = onnx("fastvlm-tiny-contrib-sep", "decoder_model_merged");
    let mut spec = spec(&onnx, dir.path(), "decoder");
    spec.flavour = Some(Flavour::Rtx);
    match build(&spec, &AtomicBool::new(false), &mut |_| {}) {
        Err(Error::Crashed { component, reason }) => {
            assert_eq!(component, "decoder");
            assert!(reason.contains("SIGFPE"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    assert!(names_in(dir.path()).is_empty());
}

#[test]
fn build_of_an_operator_that_the_parser_lacks_names_the_node() {
    let dir = tempfile::tempdir().expect("temp dir");
    let mut spec = spec(
        &onnx("fastvlm-tiny-contrib", "decoder_model_merged"),
        dir.path(),
        "decoder",
    );
    spec.flavour = Some(Flavour::Rtx);
    match build(&spec, &AtomicBool::new(false), &mut |_| {}) {
        Err(Error::Unsupported { node, op, reason }) => {
            assert_eq!(op, "GroupQueryAttention");
            assert!(!node.is_empty() && !reason.is_empty());
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn build_of_a_truncated_or_foreign_file_is_malformed() {
    let dir = tempfile::tempdir().expect("temp dir");
    let whole = std::fs::read(onnx("fastvlm-tiny-plain", "vision_encoder")).expect("read");
    let cases: [(&str, &[u8]); 3] = [
        ("half", &whole[..whole.len() / 2]),
        ("text", b"this is no model"),
        ("empty", b""),
    ];
    for (name, bytes) in cases {
        let file = dir.path().join(format!("{name}.onnx"));
        std::fs::write(&file, bytes).expect("write");
        let spec = spec(&file, dir.path(), name);
        match build(&spec, &AtomicBool::new(false), &mut |_| {}) {
            Err(Error::Malformed { path, .. }) => assert_eq!(path, file, "{name}"),
            other => panic!("{name}: {other:?}"),
        }
        assert!(!spec.plan.exists());
    }
    let missing = spec(&dir.path().join("none.onnx"), dir.path(), "none");
    let outcome = build(&missing, &AtomicBool::new(false), &mut |_| {});
    assert!(matches!(outcome, Err(Error::Io { path, .. }) if path == missing.onnx));
}

#[test]
fn build_with_profiles_that_do_not_fit_names_the_tensor() {
    let dir = tempfile::tempdir().expect("temp dir");
    let vision = onnx("fastvlm-tiny-plain", "vision_encoder");
    let cases = [
        (vec![], "pixel_values"),
        (vec![range("pixels", [1], [1])], "pixels"),
        (
            vec![range("pixel_values", [1, 3, 256], [1, 3, 256])],
            "pixel_values",
        ),
        (
            vec![range("pixel_values", [1, 3, 128, 256], [1, 3, 256, 256])],
            "pixel_values",
        ),
        (
            vec![
                range("pixel_values", [1, 3, 256, 256], [1, 3, 256, 256]),
                range("pixel_values", [1, 3, 256, 256], [1, 3, 256, 256]),
            ],
            "pixel_values",
        ),
    ];
    for (dims, tensor) in cases {
        let mut spec = spec(&vision, dir.path(), "vision");
        spec.profiles.push(Profile { dims });
        match build(&spec, &AtomicBool::new(false), &mut |_| {}) {
            Err(Error::Shape { name, .. }) => assert_eq!(name, tensor),
            other => panic!("{:?}: {other:?}", spec.profiles),
        }
    }
    assert!(names_in(dir.path()).is_empty());
}

#[test]
fn build_that_needs_more_memory_than_there_is_names_both_figures() {
    let dir = tempfile::tempdir().expect("temp dir");
    let mut spec = spec(
        &onnx("fastvlm-tiny-plain", "embed_tokens"),
        dir.path(),
        "embed",
    );
    spec.weight_bytes = Some(1 << 50);
    match build(&spec, &AtomicBool::new(false), &mut |_| {}) {
        Err(Error::OutOfMemory {
            needed_bytes,
            available_bytes,
            ..
        }) => {
            assert_eq!(needed_bytes, trtvlm::trt::planned_bytes(1 << 50));
            assert!(0 < available_bytes && available_bytes < needed_bytes);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn build_that_is_cancelled_stops_and_leaves_nothing() {
    let dir = tempfile::tempdir().expect("temp dir");
    let mut spec = spec(
        &onnx("fastvlm-tiny-plain", "decoder_model_merged"),
        dir.path(),
        "decoder",
    );
    spec.profiles = vec![decoder_profile([1, 16, 64], [0, 0, 0])];
    let cancel = AtomicBool::new(false);
    let outcome = build(&spec, &cancel, &mut |_| {
        cancel.store(true, Ordering::Relaxed)
    });
    assert!(matches!(outcome, Err(Error::Cancelled)), "{outcome:?}");
    assert!(names_in(dir.path()).is_empty());
}

#[test]
fn build_into_a_folder_that_is_missing_is_an_io_error() {
    let dir = tempfile::tempdir().expect("temp dir");
    let mut spec = spec(
        &onnx("fastvlm-tiny-plain", "vision_encoder"),
        dir.path(),
        "vision",
    );
    spec.plan = dir.path().join("none/vision.plan");
    spec.profiles.push(Profile {
        dims: vec![range("pixel_values", [1, 3, 256, 256], [1, 3, 256, 256])],
    });
    let outcome = build(&spec, &AtomicBool::new(false), &mut |_| {});
    assert!(matches!(outcome, Err(Error::Io { path, .. }) if path == spec.plan));
}

#[test]
fn describe_of_what_is_no_plan_is_refused_with_or_without_a_gpu() {
    use trtvlm::trt::describe_plan;
    let dir = tempfile::tempdir().expect("temp dir");
    let file = dir.path().join("a.plan");
    assert!(matches!(describe_plan(&file), Err(Error::Io { .. })));
    std::fs::write(&file, b"").expect("write");
    assert!(matches!(describe_plan(&file), Err(Error::Malformed { .. })));
    std::fs::write(&file, b"no plan at all").expect("write");
    let outcome = describe_plan(&file);
    let without_gpu = trtvlm::cuda::probe().is_err();
    match outcome {
        Err(Error::Unavailable { .. }) => assert!(without_gpu),
        Err(Error::Engine { code, .. }) => assert!(!without_gpu && code == "plan"),
        other => panic!("{other:?}"),
    }
}

#[test]
#[ignore = "needs a GPU"]
fn describe_of_a_plan_for_this_gpu_agrees_with_its_build() {
    let dir = tempfile::tempdir().expect("temp dir");
    let mut spec = spec(
        &onnx("fastvlm-tiny-plain", "decoder_model_merged"),
        dir.path(),
        "decoder",
    );
    spec.target = Sm::Current;
    spec.profiles = vec![
        decoder_profile([1, 16, 64], [0, 0, 0]),
        decoder_profile([1, 1, 5], [1, 64, 128]),
    ];
    let report = build(&spec, &AtomicBool::new(false), &mut |_| {}).expect("build");
    let plan = trtvlm::trt::describe_plan(Path::new(&spec.plan)).expect("describe");
    assert_eq!(
        (plan.flavour, plan.version),
        (report.flavour, report.version)
    );
    assert_eq!(plan.profiles.len(), 2);
    let names = |io: &[trtvlm::trt::TensorDesc]| {
        let mut names: Vec<_> = io.iter().map(|t| t.name.clone()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&plan.io), names(&report.io));
    assert!(plan.n_layers > 0);
}
