//! Tests that take minutes: `make test-long`, or `cargo test --all-features --test long -- --ignored`.
//!
//! | variable             | what                           | default                   |
//! |----------------------|--------------------------------|---------------------------|
//! | `TRTVLM_LONG_CASES`  | damaged inputs for each parser | about two minutes of work |
//! | `TRTVLM_LONG_RUNS`   | answers of the soak test       | 500                       |
//! | `TRTVLM_LONG_FRAMES` | frames of a flight             | 100,000                   |
//! | `TRTVLM_LONG_SEED`   | number of the first case       | 0                         |
//! | `TRTVLM_LONG_ITEMS`  | list of items of the demo model that are asked with drafts and without | `calibration` |
//!
//! Each case is damaged by a generator of its own, seeded with the case's number. A failure names
//! that number, and `TRTVLM_LONG_SEED=<number> TRTVLM_LONG_CASES=1` repeats it.

mod damage;
mod drafts;
mod parsers;
mod soak;

fn from_env(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}: {text:?} is no number")),
        Err(_) => default,
    }
}

/// A field of `/proc/self/status` in MiB.
fn memory_mib(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|rest| rest.trim_start_matches(':').split_whitespace().next());
    let kib: u64 = kib.and_then(|kib| kib.parse().ok()).expect("a figure");
    kib >> 10
}
