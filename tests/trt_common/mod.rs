//! What the TensorRT tests share: model files, specs, and the child process.
#![allow(dead_code)] // each test program uses its own part

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use trtvlm::Result;
use trtvlm::trt::{BuildReport, BuildSpec, DimRange, Profile, Progress, Sm, build_in_child};

/// The test that every program with builds has, and that is the child's entry.
pub const CHILD: &str = "build_child";

/// Arguments that make a test program run its entry alone. More names may follow: they name no
/// test, and tell one child from another.
pub const CHILD_ARGS: [&str; 4] = ["--exact", "--nocapture", "--test-threads=1", CHILD];

/// Becomes the child if this process was started with [`CHILD_ARGS`].
pub fn enter_child() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|a| a == "--exact") && args.iter().any(|a| a == CHILD) {
        std::process::exit(trtvlm::trt::child::run());
    }
}

/// Builds in a child of this test program.
pub fn build(
    spec: &BuildSpec,
    cancel: &AtomicBool,
    on_progress: &mut dyn FnMut(&Progress),
) -> Result<BuildReport> {
    let exe = std::env::current_exe().expect("test program");
    build_in_child(spec, &exe, &CHILD_ARGS, on_progress, cancel)
}

/// An ONNX file of one of the tiny model folders.
pub fn onnx(model: &str, component: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny");
    root.join(model)
        .join("onnx")
        .join(format!("{component}.onnx"))
}

/// A build for SM 8.6 of `onnx` into `folder/<component>.plan`.
pub fn spec(onnx: &Path, folder: &Path, component: &str) -> BuildSpec {
    BuildSpec::new(onnx, folder.join(format!("{component}.plan")), Sm::Sm(86))
}

/// A range whose optimum is its maximum.
pub fn range<const N: usize>(input: &str, min: [i64; N], max: [i64; N]) -> DimRange {
    let (input, opt) = (input.to_owned(), max.to_vec());
    DimRange {
        input,
        min: min.to_vec(),
        opt,
        max: max.to_vec(),
    }
}

/// A profile of the tiny FastVLM decoder: rows and past rows as `[min, opt, max]`.
pub fn decoder_profile(rows: [i64; 3], past: [i64; 3]) -> Profile {
    let dims = |input: &str, shape: &dyn Fn(usize) -> Vec<i64>| DimRange {
        input: input.to_owned(),
        min: shape(0),
        opt: shape(1),
        max: shape(2),
    };
    let mut all = vec![
        dims("inputs_embeds", &|i| vec![1, rows[i], 32]),
        dims("attention_mask", &|i| vec![1, rows[i] + past[i]]),
        dims("position_ids", &|i| vec![1, rows[i]]),
    ];
    for layer in 0..3 {
        for part in ["key", "value"] {
            let name = format!("past_key_values.{layer}.{part}");
            all.push(dims(&name, &|i| vec![1, 2, past[i], 32]));
        }
    }
    Profile { dims: all }
}

/// Names of all files in a folder.
pub fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("folder");
    let mut names: Vec<String> = entries
        .map(|e| e.expect("entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
