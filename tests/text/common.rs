//! Folders of the repository, copies of them to damage, and golden files.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::test_runner::Config;
use serde_json::Value;
use trtvlm::Result;
use trtvlm::model::ModelConfig;
use trtvlm::text::{ImageSlot, Text};

pub const DEMO: &str = "onnx/uav-tiny";
pub const FASTVLM: &str = "tests/data/tiny/fastvlm-tiny-plain";
pub const SMOLVLM: &str = "tests/data/tiny/smolvlm-tiny-plain";
pub const FOLDERS: [(&str, &str); 4] = [
    ("uav-tiny", DEMO),
    ("fastvlm-tiny", FASTVLM),
    ("smolvlm-tiny", SMOLVLM),
    // Has merges across line breaks.
    ("seam", "tests/golden/text/seam"),
];

pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

pub fn load(dir: &Path) -> Result<(ModelConfig, Text)> {
    let config = ModelConfig::load(dir)?;
    let text = Text::load(dir, &config)?;
    Ok((config, text))
}

pub fn model(path: &str) -> (ModelConfig, Text) {
    load(&repository(path)).expect("a folder of the repository")
}

pub fn golden(name: &str) -> Value {
    let path = repository(&format!("tests/golden/text/{name}.json"));
    let bytes = fs::read(path).expect("golden");
    serde_json::from_slice(&bytes).expect("JSON")
}

pub fn ids(value: &Value, image: u32) -> Vec<u32> {
    let mut out = Vec::new();
    for n in value.as_array().expect("ids") {
        match n.as_i64().expect("id") {
            n if n < 0 => out.extend(std::iter::repeat_n(image, n.unsigned_abs() as usize)),
            n => out.push(u32::try_from(n).expect("id")),
        }
    }
    out
}

pub fn slots(value: &Value) -> Vec<ImageSlot> {
    let side = |v: &Value| v.as_u64().expect("a count") as usize;
    let slots = value.as_array().expect("slots").iter();
    slots
        .map(|s| match (side(&s[0]), side(&s[1])) {
            (0, 0) => ImageSlot::Single,
            (rows, cols) => ImageSlot::Tiled { rows, cols },
        })
        .collect()
}

/// A copy of a folder's JSON files that a test may damage.
pub fn copy(path: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("tempdir");
    for entry in fs::read_dir(repository(path)).expect("folder") {
        let entry = entry.expect("entry");
        if entry.path().extension().is_some_and(|e| e == "json") {
            fs::copy(entry.path(), dir.path().join(entry.file_name())).expect("copy");
        }
    }
    dir
}

/// Changes a JSON file in a copy.
pub fn edit(dir: &Path, file: &str, change: impl FnOnce(&mut Value)) {
    let path = dir.join(file);
    let mut value = serde_json::from_slice(&fs::read(&path).expect("read")).expect("JSON");
    change(&mut value);
    fs::write(&path, value.to_string()).expect("write");
}

/// Few cases, since each loads a tokenizer. Failures are printed, not written beside the source.
pub fn cases() -> Config {
    Config {
        cases: 64,
        failure_persistence: None,
        ..Config::default()
    }
}
