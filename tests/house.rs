//! The rules of the house: who may use whom, and where unsafe code may stand.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Modules and the floor they stand on: each may use lower floors, and its neighbours to the left
/// on the same floor never.
const FLOORS: &[(&str, u8)] = &[
    ("error", 1),
    ("host", 1),
    ("huge_pages", 1),
    ("limits", 1),
    ("read", 1),
    ("sync", 1),
    ("digest", 1),
    ("svg", 1),
    ("tensor", 2),
    ("model", 2),
    ("trt", 2),
    ("cuda", 2),
    ("onnx", 3),
    ("text", 3),
    ("preprocess", 3),
    ("bundle", 3),
    ("hub", 3),
    ("items", 3),
    ("corrections", 3),
    ("watch", 4),
    ("cpu", 4),
    ("prune", 4),
    ("quantize", 4),
    ("backend", 5),
    ("quick", 5),
    ("build", 6),
    ("decode", 6),
    ("pipeline", 7),
    ("calibrate", 8),
    ("eval", 8),
    ("train", 8),
    ("accuracy", 9),
    ("bench", 9),
    ("capi", 10),
    ("cli", 10),
];

/// Uses of a neighbour on the same floor that are wanted.
const NEIGHBOURS: &[(&str, &str)] = &[("trt", "cuda")];

/// The only files that may allow unsafe code, each with the reason.
const FENCES: &[(&str, &str)] = &[
    ("src/capi/entry.rs", "functions that C calls"),
    ("src/capi/raw.rs", "addresses that C gives"),
    ("src/capi/tests/mod.rs", "calls as C makes them"),
    ("src/cli/signals.rs", "a signal is ignored"),
    (
        "src/cpu/load.rs",
        "rten reads weights where they are mapped",
    ),
    (
        "src/cpu/linear/tile.rs",
        "vector instructions, and addresses within checked slices",
    ),
    (
        "src/cuda/driver.rs",
        "memory, modules, graphs of the CUDA driver",
    ),
    ("src/cuda/ffi.rs", "calls into the CUDA driver and NVRTC"),
    (
        "src/cuda/kernels/launch.rs",
        "kernels are launched with memory that was checked",
    ),
    (
        "src/cuda/kernels/machines.rs",
        "tests launch kernels, on the host and on a GPU",
    ),
    ("src/huge_pages.rs", "an allocator"),
    ("src/onnx/map.rs", "files mapped into memory"),
    ("src/trt/ffi.rs", "the bridge to the C++ shim"),
    ("src/trt/runtime.rs", "plans run on memory of the device"),
];

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("src") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

fn all_sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    sources(&root.join("src"), &mut files);
    files
        .into_iter()
        .map(|path| {
            let name = path
                .strip_prefix(root)
                .expect("inside")
                .display()
                .to_string();
            (name, std::fs::read_to_string(&path).expect("read"))
        })
        .collect()
}

fn floor(module: &str) -> Option<u8> {
    FLOORS.iter().find(|(name, _)| *name == module).map(|f| f.1)
}

/// The modules of this package that code names: `crate::a::b`, and `a` and `c` of `crate::{a, c::d}`.
fn uses(code: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        let text = text.trim_start();
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
        text[..end.unwrap_or(text.len())].to_owned()
    };
    let mut found = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let Some(group) = rest.strip_prefix('{') else {
            found.push(name(rest));
            continue;
        };
        let (mut depth, mut start) = (0, 0);
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                ',' | '}' if depth == 0 => {
                    found.push(name(&group[start..at]));
                    start = at + 1;
                    if c == '}' {
                        break;
                    }
                }
                '}' => depth -= 1,
                _ => {}
            }
        }
    }
    found
}

#[test]
fn uses_are_found_in_paths_and_groups() {
    let code = "use crate::a::b; use crate::{c::{d, e}, f,\n    g_h::i}; fn k() -> crate::l {}";
    assert_eq!(uses(code), ["a", "c", "f", "g_h", "l"]);
}

#[test]
fn modules_use_lower_floors_only() {
    let mut wrong = Vec::new();
    for (file, text) in all_sources() {
        let rest = file.trim_start_matches("src/");
        let module = rest.split(['/', '.']).next().expect("module").to_owned();
        let Some(own) = floor(&module) else {
            assert!(
                ["lib", "main"].contains(&module.as_str()),
                "{file} has no floor"
            );
            continue;
        };
        // Tests at the end of a file may build what they need from anywhere.
        let code = text.split("#[cfg(test)]").next().unwrap_or("");
        for used in uses(code) {
            let Some(other) = floor(&used) else { continue };
            let neighbour = NEIGHBOURS.contains(&(module.as_str(), used.as_str()));
            if used != module && other >= own && own > 1 && !neighbour {
                wrong.push(format!("{file} uses {used}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn unsafe_code_stands_behind_its_fences_only() {
    let allowed: BTreeSet<&str> = FENCES.iter().map(|f| f.0).collect();
    let files = all_sources();
    let found: BTreeSet<&str> = files
        .iter()
        .filter(|(_, text)| text.contains("allow(unsafe_code)"))
        .map(|(file, _)| file.as_str())
        .collect();
    assert_eq!(found, allowed);
}

#[test]
fn readme_shows_the_example_as_it_is_compiled() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| std::fs::read_to_string(root.join(name)).expect("read");
    let (example, readme) = (read("examples/ask.rs"), read("README.md"));
    let code = example.split_once("\n\n").expect("a line about it").1;
    let blocks: Vec<&str> = readme
        .split("```rust\n")
        .skip(1)
        .filter_map(|rest| Some(rest.split_once("```")?.0))
        .collect();
    assert_eq!(blocks, [code]);
    let n_lines = code.lines().filter(|line| !line.is_empty()).count();
    assert!(
        n_lines <= 15,
        "the README says fifteen lines, not {n_lines}"
    );
}

#[test]
fn data_of_the_repository_stays_within_forty_mib() {
    fn bytes(path: &Path) -> u64 {
        let meta = std::fs::symlink_metadata(path).expect("metadata");
        if meta.is_dir() {
            let entries = std::fs::read_dir(path).expect("folder");
            return entries
                .map(|entry| bytes(&entry.expect("entry").path()))
                .sum();
        }
        // A link is not what it leads to.
        if meta.is_file() { meta.len() } else { 0 }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["onnx", "calibration", "tests/data", "tests/golden"];
    let sizes = folders.map(|folder| (folder, bytes(&root.join(folder))));
    let total: u64 = sizes.iter().map(|size| size.1).sum();
    assert!(total <= 40 << 20, "{total}: {sizes:?}");
}
