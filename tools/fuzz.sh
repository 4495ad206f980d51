#!/bin/sh
# Fuzz with libFuzzer: fuzz.sh [TARGET...] (all of fuzz/Cargo.toml); FUZZ_SECONDS for each, by default 60.
#
# The stable compiler serves: coverage is LLVM's own pass, and for AddressSanitizer, which is unstable, RUSTC_BOOTSTRAP=1 is set. What
# is built are the locked dependencies. New inputs go to target/fuzz/corpus, one that ends a target to target/fuzz/artifacts; it is
# copied to fuzz/corpus/TARGET when its cause is mended.
set -eu
cd "$(dirname "$0")/.."
host=$(rustc -vV | sed -n 's/^host: //p')
work=${CARGO_TARGET_DIR:-$PWD/target}/fuzz
[ $# -gt 0 ] || set -- $(sed -n '/^\[\[bin\]\]/,$s/^name = "\(.*\)"/\1/p' fuzz/Cargo.toml)

cp Cargo.lock fuzz/Cargo.lock
export RUSTC_BOOTSTRAP=1
export RUSTFLAGS="--cfg fuzzing -Zsanitizer=address -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
-Cdebug-assertions -Coverflow-checks -Ccodegen-units=1"
for target; do
    "${CARGO:-cargo}" build --manifest-path fuzz/Cargo.toml --target-dir "$work" --target "$host" --release --bin "$target"
done
failed=
for target; do
    mkdir -p "$work/corpus/$target" "$work/artifacts/$target"
    "$work/$host/release/$target" -max_total_time="${FUZZ_SECONDS:-60}" -timeout=20 -rss_limit_mb=4096 -print_final_stats=1 \
        -artifact_prefix="$work/artifacts/$target/" "$work/corpus/$target" "fuzz/corpus/$target" || failed="$failed $target"
done
[ -z "$failed" ] || {
    echo "fuzz: found something in$failed: see $work/artifacts" >&2
    exit 1
}
