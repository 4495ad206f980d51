//! Several TensorRTs in one process, each called through the tables of its own headers.
//!
//! One made-up library per ABI (`tests/data/fake_tensorrt.cpp`), compiled with the headers that
//! this program was built with; the real TensorRT-RTX beside them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use cxx::UniquePtr;

use super::events::{Event, Events, LogLevel};
use super::ffi::shim;
use super::flavour::{ABIS, Abi, Flavour};
use super::library::{Opened, open};
use super::progress::Progress;
use super::search::candidates;
use crate::cuda::LibraryPath;

/// A made-up library, opened as any other, with what it has said so far.
struct Fake {
    abi: &'static Abi,
    opened: Opened,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    /// Compiles the library of `abi` into `folder` and opens it by the way of `doctor` and builds.
    fn open(folder: &Path, abi: &'static Abi) -> Self {
        let major = abi.headers().major;
        let (infer, parser) = match abi.flavour() {
            Flavour::Rtx => ("tensorrt_rtx", "tensorrt_onnxparser_rtx"),
            _ => ("nvinfer", "nvonnxparser"),
        };
        let folder = folder.join(abi.key);
        std::fs::create_dir(&folder).expect("mkdir");
        let path = folder.join(format!("lib{infer}.so.{major}"));
        compile(abi, &path);
        std::fs::copy(&path, folder.join(format!("lib{parser}.so.{major}"))).expect("copy");
        let found = candidates(&LibraryPath::only(&folder));
        assert_eq!(found.len(), 1, "{found:?}");
        let opened = open(&found[0]).expect("there");
        let opened = opened.unwrap_or_else(|info| panic!("{info:?}"));
        Self {
            abi,
            opened,
            heard: Arc::default(),
        }
    }

    fn events(&self) -> Box<Events> {
        let heard = Arc::clone(&self.heard);
        let keep = move |event: Event| {
            let line = match event {
                Event::Log { message, .. } => message,
                Event::Progress(Progress::PhaseStart { phase, .. }) => format!("{phase} phase"),
                other => format!("{other:?}"),
            };
            heard.lock().expect("lines").push(line);
        };
        let cancel = Arc::new(AtomicBool::new(false));
        Box::new(Events::new(
            self.abi,
            LogLevel::Info,
            Arc::new(keep),
            cancel,
        ))
    }

    fn builder(&self) -> UniquePtr<shim::Builder> {
        let library = self.opened.library.clone();
        shim::new_builder(self.abi.key, library, self.events()).expect("builder")
    }

    /// The lines since the last call, without this library's name, which all of them carry.
    fn lines(&self) -> Vec<String> {
        let lines = std::mem::take(&mut *self.heard.lock().expect("lines"));
        let own = |line: String| {
            let rest = line.strip_prefix(self.abi.key).map(str::trim_start);
            rest.unwrap_or_else(|| panic!("{} heard {line}", self.abi.key))
                .to_owned()
        };
        lines.into_iter().map(own).collect()
    }

    fn number(&self) -> i32 {
        number(self.abi)
    }
}

/// What `getInferLibVersion` and the headers' `NV_TENSORRT_VERSION` are for an ABI.
fn number(abi: &Abi) -> i32 {
    let version = abi.headers();
    let number = version.major * 10_000 + version.minor * 100 + version.patch;
    i32::try_from(number).expect("version")
}

/// The folder of an ABI's headers, as the build script found it.
fn headers_of(abi: &Abi) -> PathBuf {
    let mut all = env!("TRTVLM_HEADERS").split(':');
    let found = all.find_map(|entry| entry.strip_prefix(abi.key)?.strip_prefix('='));
    found.expect("an ABI has headers").into()
}

fn compile(abi: &Abi, to: &Path) {
    let made = Command::new("c++")
        .args(["-std=c++17", "-shared", "-fPIC", "-isystem"])
        .arg(headers_of(abi))
        .args(["-isystem", env!("TRTVLM_CUDA_HEADERS")])
        .arg(format!("-DFAKE_LABEL=\"{}\"", abi.key))
        .arg(format!("-DFAKE_VERSION={}", number(abi)))
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fake_tensorrt.cpp"))
        .arg("-o")
        .arg(to)
        .status();
    assert!(made.expect("a C++ compiler built the shim").success());
}

fn fakes(folder: &Path) -> Vec<Fake> {
    let fakes: Vec<Fake> = ABIS.iter().map(|abi| Fake::open(folder, abi)).collect();
    let flavours: Vec<_> = fakes.iter().map(|fake| fake.opened.info.flavour).collect();
    assert!(
        flavours.contains(&Flavour::Rtx) && flavours.contains(&Flavour::Enterprise),
        "built with the headers of {flavours:?} only: run `make sdk`"
    );
    fakes
}

fn knobs(target: i32) -> shim::Knobs {
    shim::Knobs {
        target,
        workspace_bytes: 0,
        optimization_level: -1,
        set_flags: 0,
        clear_flags: 0,
        use_timing_cache: false,
        timing_cache: Vec::new(),
    }
}

#[test]
fn builders_of_two_flavours_call_their_own_libraries_by_their_own_slots() {
    let dir = tempfile::tempdir().expect("temp dir");
    let fakes = fakes(dir.path());
    for fake in &fakes {
        assert_eq!(fake.opened.version, fake.abi.headers(), "{}", fake.abi.key);
        assert_eq!(fake.opened.library.version(), fake.number());
    }
    // All objects live at once, and every step is done by each before the next step.
    let mut builders: Vec<_> = fakes.iter().map(Fake::builder).collect();
    for fake in &fakes {
        let factory = format!("createInferBuilder {}", fake.number());
        assert_eq!(
            fake.lines(),
            [
                factory.as_str(),
                "createNetworkV2",
                "createNvOnnxParser",
                "createBuilderConfig",
                "setProgressMonitor",
            ]
        );
    }
    for (fake, builder) in fakes.iter().zip(&mut builders) {
        assert!(builder.pin_mut().parse("any.onnx").expect("parse"));
        assert!(builder.io().expect("io").is_empty());
        assert_eq!(
            fake.lines(),
            ["parseFromFile", "getNbInputs", "getNbOutputs"]
        );
    }
    for (fake, builder) in fakes.iter().zip(&mut builders) {
        let rtx = fake.abi.flavour() == Flavour::Rtx;
        let target = if rtx { 86 } else { -1 };
        builder.pin_mut().build(&knobs(target)).expect("build");
        let mut expected = vec!["getFlags", "setFlags", "buildSerializedNetwork", "phase"];
        if rtx {
            let target = [
                "setNbComputeCapabilities",
                "setComputeCapability",
                "getComputeCapability",
            ];
            expected.splice(0..0, target);
        }
        assert_eq!(fake.lines(), expected, "{}", fake.abi.key);
    }
    for (fake, builder) in fakes.iter().zip(&builders) {
        assert_eq!(builder.plan().expect("plan"), fake.abi.key.as_bytes());
        assert_eq!(fake.lines(), ["data", "size"]);
        assert!(builder.timing_cache().expect("cache").is_empty());
        let rtx = fake.abi.flavour() == Flavour::Rtx;
        let expected: &[&str] = if rtx { &[] } else { &["getTimingCache"] };
        assert_eq!(fake.lines(), expected, "{}", fake.abi.key);
    }
}

#[test]
fn plans_of_two_flavours_are_described_by_their_own_libraries() {
    let dir = tempfile::tempdir().expect("temp dir");
    let file = dir.path().join("a.plan");
    std::fs::write(&file, b"plan").expect("write");
    let path = file.to_str().expect("path");
    let fakes = fakes(dir.path());
    let plans: Vec<_> = fakes
        .iter()
        .map(|fake| {
            let library = fake.opened.library.clone();
            shim::open_plan(fake.abi.key, library, path, fake.events()).expect("plan")
        })
        .collect();
    for (fake, plan) in fakes.iter().zip(&plans) {
        let factory = format!("createInferRuntime {}", fake.number());
        assert_eq!(fake.lines(), [factory.as_str(), "deserializeCudaEngine"]);
        assert!(plan.io().expect("io").is_empty());
        assert_eq!(plan.n_profiles().expect("profiles"), 0);
        assert_eq!(
            plan.device_memory_bytes().expect("bytes"),
            i64::from(fake.number())
        );
        assert_eq!(plan.n_layers().expect("layers"), fake.number());
        assert_eq!(
            fake.lines(),
            [
                "getNbIOTensors",
                "getNbOptimizationProfiles",
                "getDeviceMemorySizeV2",
                "getNbLayers",
            ]
        );
    }
}

#[test]
fn real_library_works_beside_made_up_ones() {
    let dir = tempfile::tempdir().expect("temp dir");
    let fakes = fakes(dir.path());
    let builders: Vec<_> = fakes.iter().map(Fake::builder).collect();
    let all = candidates(&LibraryPath::from_env()).into_iter();
    let mut usable = all
        .filter(|candidate| candidate.flavour == Flavour::Rtx)
        .filter_map(|candidate| open(&candidate)?.ok());
    let real = usable
        .next()
        .expect("no TensorRT-RTX library was found: run `make sdk`");
    let cancel = Arc::new(AtomicBool::new(false));
    let events = Events::new(real.abi, LogLevel::Warn, Arc::new(|_| {}), cancel);
    let mut builder =
        shim::new_builder(real.abi.key, real.library.clone(), Box::new(events)).expect("builder");
    let onnx = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/tiny/fastvlm-tiny-plain/onnx/embed_tokens.onnx");
    let parsed = builder.pin_mut().parse(onnx.to_str().expect("path"));
    assert!(parsed.expect("parse"));
    assert_eq!(builder.io().expect("io").len(), 2);
    for (fake, mut own) in fakes.iter().zip(builders) {
        assert_eq!(fake.lines().len(), 5, "only what it was asked to do");
        assert!(own.pin_mut().parse("any.onnx").expect("parse"));
        assert_eq!(fake.lines(), ["parseFromFile"]);
    }
}
