//! Bundles: written whole or not at all, opened verified or not at all.

mod faults;
mod hostile;
mod replace;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use trtvlm::bundle::{
    Buckets, Bundle, BundleWriter, Component, Engine, EngineSet, Flavour, MANIFEST_DIGEST,
    Manifest, ModelInfo, Part, Precision, Profile, ProfileInput, SCHEMA_VERSION, Target,
    TensorInfo,
};

fn manifest() -> Manifest {
    let vision = Component {
        name: "vision".to_owned(),
        file: "engines/vision.plan".to_owned(),
        inputs: vec![TensorInfo::new("pixel_values", "f32", ["1", "tiles"])],
        outputs: vec![TensorInfo::new("image_features", "f32", ["256"])],
        profiles: vec![Profile {
            name: "tiles 1".to_owned(),
            inputs: vec![ProfileInput {
                name: "pixel_values".to_owned(),
                min: vec![1, 1],
                opt: vec![1, 1],
                max: vec![1, 4],
            }],
        }],
        graph: vec![],
    };
    Manifest {
        schema_version: SCHEMA_VERSION,
        created_by: "trtvlm 0.1.0".to_owned(),
        command_line: vec!["trtvlm".to_owned(), "build".to_owned(), "a b".to_owned()],
        finished_from: None,
        model: ModelInfo {
            family: "fastvlm".to_owned(),
            name: "uav-tiny".to_owned(),
            variant: "fp32".to_owned(),
            sources: vec![],
        },
        precision: Precision::Fp16,
        taps: vec![],
        head_bytes: None,
        quantization: None,
        kv_capacity: 512,
        max_context: 512,
        draft_tokens: 4,
        vocabulary: 1024,
        buckets: Buckets {
            prefill: vec![64, 320],
            step: vec![1, 5],
            visual_tokens: vec![],
        },
        engines: vec![EngineSet {
            target: Target::Sm(86),
            engine: Engine {
                flavour: Flavour::TensorRtRtx,
                version: "1.7.1".to_owned(),
            },
            components: vec![vision],
            memory: vec![Part {
                name: "kv cache".to_owned(),
                bytes: 1 << 20,
            }],
            kernels: None,
        }],
        files: vec![],
    }
}

fn fill(writer: &BundleWriter, plan: &[u8]) {
    writer.write("config.json", b"{}").expect("write");
    writer.write("engines/vision.plan", plan).expect("write");
}

fn build(out: &Path, force: bool, plan: &[u8]) -> trtvlm::Result<Bundle> {
    let writer = BundleWriter::create(out, force)?;
    fill(&writer, plan);
    writer.finish(manifest())
}

/// Names in `dir`, hidden ones too.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .expect("read dir")
        .map(|entry| {
            entry
                .expect("entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}

/// A directory with a bundle `b` in it.
fn with_bundle() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("temp dir");
    let out = dir.path().join("b");
    build(&out, false, b"plan").expect("build");
    (dir, out)
}

#[test]
fn bundle_written_and_opened_is_the_same() {
    let dir = tempfile::tempdir().expect("temp dir");
    let out = dir.path().join("deep/er/b");
    let written = build(&out, false, b"plan").expect("build");
    let read_bytes = AtomicU64::new(0);
    let opened = Bundle::open_with(&out, |bytes, total| {
        read_bytes.fetch_add(bytes, Ordering::Relaxed);
        assert_eq!(total, 6);
    })
    .expect("open");
    assert_eq!(read_bytes.into_inner(), 6);
    assert_eq!(opened.manifest(), written.manifest());
    assert_eq!(opened.digest(), written.digest());
    assert_eq!(opened.manifest().engines, manifest().engines);
    let listed: Vec<(&str, u64)> = opened
        .manifest()
        .files
        .iter()
        .map(|f| (f.path.as_str(), f.bytes))
        .collect();
    assert_eq!(listed, [("config.json", 2), ("engines/vision.plan", 4)]);
    let plan = opened.file("engines/vision.plan").expect("listed");
    assert_eq!(fs::read(plan).expect("read"), b"plan");
    assert_eq!(opened.file("../b/config.json"), None);
    assert!(Bundle::is_bundle(&out) && !Bundle::is_bundle(dir.path()));
    assert_eq!(names(out.parent().expect("parent")), ["b"]);
}

#[test]
fn bundle_digest_file_satisfies_sha256sum() {
    let (_dir, out) = with_bundle();
    let status = Command::new("sha256sum")
        .args(["--check", "--strict", MANIFEST_DIGEST])
        .current_dir(&out)
        .stdout(Stdio::null())
        .status()
        .expect("sha256sum");
    assert!(status.success());
}
