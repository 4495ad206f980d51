//! Libraries and shim copies against each other: the real TensorRT-RTX that `make sdk` fetches,
//! and small made-up libraries whose factories end the process when they are called.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use cxx::UniquePtr;

use super::events::{Events, LogLevel};
use super::ffi::shim;
use super::flavour::{Abi, Flavour, Version, headers};
use super::library::{LibraryInfo, Opened, discover, discover_in, open};
use super::search::candidates;
use crate::cuda::LibraryPath;

/// The first usable TensorRT-RTX of this machine.
fn rtx() -> Opened {
    let all = candidates(&LibraryPath::from_env()).into_iter();
    let mut usable = all
        .filter(|candidate| candidate.flavour == Flavour::Rtx)
        .filter_map(|candidate| open(&candidate)?.ok());
    usable
        .next()
        .expect("no TensorRT-RTX library was found: run `make sdk`")
}

fn builder_of(abi: &'static Abi, library: &Opened) -> Result<UniquePtr<shim::Builder>, String> {
    let cancel = Arc::new(AtomicBool::new(false));
    let events = Events::new(abi, LogLevel::Warn, Arc::new(|_| {}), cancel);
    shim::new_builder(abi.key, library.library.clone(), Box::new(events))
        .map_err(|e| e.what().to_owned())
}

fn enterprise() -> &'static Abi {
    let (_, version) = headers()
        .into_iter()
        .find(|(flavour, _)| *flavour == Flavour::Enterprise)
        .expect("built without TensorRT headers beside RTX's: run `make sdk`");
    Abi::of_library(Flavour::Enterprise, version).expect("its own headers")
}

/// A library that says it has version `number`, and dies when a factory is called.
fn fake(folder: &Path, file: &str, number: i32) -> PathBuf {
    let source = folder.join("fake.c");
    let path = folder.join(file);
    let text = format!(
        "#include <stdlib.h>\n\
         int getInferLibVersion(void) {{ return {number}; }}\n\
         void *createInferBuilder_INTERNAL(void *l, int v) {{ (void)l; (void)v; abort(); }}\n\
         void *createInferRuntime_INTERNAL(void *l, int v) {{ (void)l; (void)v; abort(); }}\n\
         void *createNvOnnxParser_INTERNAL(void *n, void *l, int v) {{ (void)n; (void)l; (void)v; abort(); }}\n"
    );
    std::fs::write(&source, text).expect("write");
    let made = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(&path)
        .arg(&source)
        .status();
    assert!(
        made.expect("a C compiler built this program, too")
            .success()
    );
    path
}

#[test]
fn shim_of_another_flavour_refuses_the_library_before_the_first_call() {
    let rtx = rtx();
    let refused = builder_of(enterprise(), &rtx)
        .err()
        .expect("must be refused");
    assert!(refused.starts_with("flavour|"), "{refused}");
    assert!(refused.contains(&rtx.version.to_string()), "{refused}");
    assert!(
        refused.contains(&enterprise().headers().to_string()),
        "{refused}"
    );
    // Both copies are in this process, and the right one works with the same library.
    let mut builder = builder_of(rtx.abi, &rtx).expect("builder");
    let onnx = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/tiny/fastvlm-tiny-plain/onnx/embed_tokens.onnx");
    let parsed = builder.pin_mut().parse(onnx.to_str().expect("path"));
    assert!(
        parsed.expect("parse"),
        "{:?}",
        builder.faults().map(|f| f.len())
    );
    assert_eq!(builder.io().expect("io").len(), 2);
}

#[test]
fn builder_is_torn_down_from_the_plan_to_the_builder() {
    let rtx = rtx();
    let mut builder = builder_of(rtx.abi, &rtx).expect("builder");
    let onnx = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/tiny/fastvlm-tiny-plain/onnx/embed_tokens.onnx");
    assert!(
        builder
            .pin_mut()
            .parse(onnx.to_str().expect("path"))
            .expect("parse")
    );
    let range = |n: i64| vec![1, n];
    let ranges = [shim::DimRange {
        input: "input_ids".to_owned(),
        min: range(1),
        opt: range(1),
        max: range(8),
    }];
    builder.pin_mut().add_profile(&ranges).expect("profile");
    let target = rtx.abi.compute_capability("sm86").expect("sm86");
    let knobs = shim::Knobs {
        target,
        workspace_bytes: 0,
        optimization_level: -1,
        set_flags: 0,
        clear_flags: 0,
        use_timing_cache: false,
        timing_cache: Vec::new(),
    };
    builder.pin_mut().build(&knobs).expect("build");
    assert!(!builder.plan().expect("plan").is_empty());
    let order = shim::teardown_order(builder);
    assert_eq!(order, ["plan", "config", "parser", "network", "builder"]);
}

#[test]
fn shim_refuses_a_compute_capability_that_the_library_refuses() {
    let rtx = rtx();
    let mut builder = builder_of(rtx.abi, &rtx).expect("builder");
    let onnx = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/tiny/fastvlm-tiny-plain/onnx/embed_tokens.onnx");
    assert!(
        builder
            .pin_mut()
            .parse(onnx.to_str().expect("path"))
            .expect("parse")
    );
    let knobs = shim::Knobs {
        target: 87,
        workspace_bytes: 0,
        optimization_level: -1,
        set_flags: 0,
        clear_flags: 0,
        use_timing_cache: false,
        timing_cache: Vec::new(),
    };
    let refused = builder
        .pin_mut()
        .build(&knobs)
        .expect_err("must be refused");
    assert!(refused.what().starts_with("target|"), "{}", refused.what());
    let no_plan = builder.plan().expect_err("no plan was built");
    assert!(no_plan.what().starts_with("state|"), "{}", no_plan.what());
}

#[test]
fn library_older_than_its_headers_is_refused_naming_both() {
    let dir = tempfile::tempdir().expect("temp dir");
    let Version {
        major,
        minor,
        patch,
    } = enterprise().headers();
    assert!(
        minor > 0,
        "the test needs headers with an older minor version"
    );
    let older = i32::try_from(major * 10_000 + (minor - 1) * 100 + patch).expect("version");
    let path = fake(dir.path(), &format!("libnvinfer.so.{major}"), older);
    fake(dir.path(), &format!("libnvonnxparser.so.{major}"), older);
    let found = discover_in(&LibraryPath::only(dir.path()));
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].path, path.canonicalize().expect("path"));
    let problem = found[0].problem.as_deref().expect("refused");
    assert!(
        problem.contains(&Version::from_library(older).to_string()),
        "{problem}"
    );
    assert!(
        problem.contains(&enterprise().headers().to_string()),
        "{problem}"
    );

    // The shim itself refuses it too: the made-up factory would end this process.
    let library = shim::open_library(&path.to_string_lossy(), "").expect("open");
    let cancel = Arc::new(AtomicBool::new(false));
    let events = Events::new(enterprise(), LogLevel::Warn, Arc::new(|_| {}), cancel);
    let refused = shim::new_builder(enterprise().key, library, Box::new(events));
    let refused = refused.err().expect("must be refused");
    assert!(refused.what().starts_with("version|"), "{}", refused.what());
}

#[test]
fn library_whose_name_and_version_disagree_is_refused() {
    let dir = tempfile::tempdir().expect("temp dir");
    fake(dir.path(), "libtensorrt_rtx.so.1", 110_400);
    let found = discover_in(&LibraryPath::only(dir.path()));
    let problem = found[0].problem.as_deref().expect("refused");
    assert!(
        problem.contains("TensorRT-RTX") && problem.contains("11.4.0"),
        "{problem}"
    );
}

#[test]
fn library_of_a_major_version_without_headers_is_refused() {
    let dir = tempfile::tempdir().expect("temp dir");
    fake(dir.path(), "libnvinfer_lean.so.99", 990_000);
    let found = discover_in(&LibraryPath::only(dir.path()));
    assert_eq!(found[0].flavour, Flavour::Lean);
    assert!(!found[0].can_build);
    let problem = found[0].problem.as_deref().expect("refused");
    assert!(
        problem.contains("without headers") && problem.contains("99"),
        "{problem}"
    );
}

#[test]
fn library_that_is_cut_short_or_none_is_reported_and_not_opened() {
    let dir = tempfile::tempdir().expect("temp dir");
    let whole = fake(dir.path(), "whole.so", 110_400);
    let bytes = std::fs::read(&whole).expect("read");
    std::fs::write(
        dir.path().join("libnvinfer.so.11"),
        &bytes[..bytes.len() / 8],
    )
    .expect("write");
    std::fs::write(dir.path().join("libtensorrt_rtx.so.1"), b"text").expect("write");
    let found = discover_in(&LibraryPath::only(dir.path()));
    assert_eq!(found.len(), 2);
    assert!(
        found
            .iter()
            .all(|info| info.problem.is_some() && info.version.is_none()),
        "{found:?}"
    );
}

#[test]
fn library_that_is_usable_says_what_it_builds_for() {
    let info = rtx().info;
    assert!(info.can_build && info.problem.is_none(), "{info:?}");
    assert!(info.path.is_absolute(), "{info:?}");
    assert!(info.targets.contains(&"sm86".to_owned()), "{info:?}");
    assert_eq!(info.headers.map(|v| v.major), Some(1));
}

#[test]
fn discover_on_this_machine_finds_the_sdk_and_says_what_is_wrong_with_the_rest() {
    let found = discover();
    println!("{found:#?}");
    assert!(
        found
            .iter()
            .any(|info| info.flavour == Flavour::Rtx && info.problem.is_none())
    );
    let explained = |info: &LibraryInfo| info.version.is_some() || info.problem.is_some();
    assert!(found.iter().all(explained), "{found:#?}");
}

#[test]
fn nvrtc_of_the_sdk_says_its_version() {
    let found = crate::cuda::nvrtc(&LibraryPath::from_env());
    let found = found.expect("no NVRTC was found: run `make sdk`");
    assert!(found.version >= (11, 0), "{found:?}");
}
