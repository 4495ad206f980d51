//! Replays the inputs of the fuzz targets (`fuzz/src/lib.rs`): seeds, and what was once found.

#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn names(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut names: Vec<PathBuf> = entries.map(|e| e.expect("entry").path()).collect();
    names.sort();
    names
}

/// Runs every input of a target, and those that are cut short or empty.
fn replay(name: &str, target: fn(&[u8]) -> bool) {
    let inputs = names(&fuzz().join("corpus").join(name));
    assert!(!inputs.is_empty(), "{name} has no inputs");
    let mut n_taken = 0;
    for path in inputs {
        let data = fs::read(&path).expect("read");
        for part in [&data[..], &data[..data.len() / 2], &[]] {
            let outcome = catch_unwind(|| target(part));
            let place = || format!("{}, {} bytes of it", path.display(), part.len());
            n_taken += usize::from(outcome.unwrap_or_else(|_| panic!("{}", place())));
        }
    }
    assert!(n_taken > 0, "{name}: every input was refused");
}

macro_rules! corpora {
    ($($name:ident)+) => {
        const TARGETS: &[&str] = &[$(stringify!($name)),+];

        $(#[test]
        fn $name() {
            replay(stringify!($name), targets::$name);
        })+
    };
}

corpora! { onnx manifest tokenizer template configuration scales image items corrections stream capi }

#[test]
fn every_target_has_a_program_and_a_corpus_and_the_reverse() {
    let stems = |folder: &str| -> Vec<String> {
        let names = names(&fuzz().join(folder));
        let stem = |path: &PathBuf| path.file_stem().expect("name").display().to_string();
        names.iter().map(stem).collect()
    };
    let mut targets = TARGETS.to_vec();
    targets.sort_unstable();
    assert_eq!(stems("corpus"), targets);
    assert_eq!(stems("fuzz_targets"), targets);
}
