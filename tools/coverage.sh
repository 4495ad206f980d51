#!/bin/sh
# Line coverage of all tests, C++ not counted. Fails under 85 %.
#
# With cargo-llvm-cov (rustup component add llvm-tools; cargo install --locked cargo-llvm-cov), else with
# cargo-tarpaulin (cargo install --locked cargo-tarpaulin), which needs no LLVM tools. Stable Rust is enough for both.
#
# Nothing under src/ is left out: no file there needs a GPU to be run. One that does belongs into `gpu_only`, with its reason.
set -eu
cd "$(dirname "$0")/.."
floor=85
gpu_only= # files under src/, separated by spaces
export CARGO_NET_OFFLINE=true

if cargo llvm-cov --version >/dev/null 2>&1; then
    ignore='(^|/)(tests|examples|benches)/|build\.rs$'
    for file in $gpu_only; do ignore="$ignore|$file\$"; done
    cargo llvm-cov --locked --all-features --ignore-filename-regex "$ignore" --fail-under-lines $floor --summary-only
elif cargo tarpaulin --version >/dev/null 2>&1; then
    set -- --exclude-files 'tests/*' --exclude-files 'examples/*' --exclude-files 'benches/*' --exclude-files 'target/*' --exclude-files build.rs
    for file in $gpu_only; do set -- "$@" --exclude-files "$file"; done
    # LLVM instrumentation follows the processes that tests start; a folder of its own keeps the usual one as it is. The
    # time limit is for one test program.
    cargo tarpaulin --locked --all-features --engine llvm --follow-exec --skip-clean --target-dir target/coverage \
        --timeout 1200 --no-fail-fast "$@" --fail-under $floor --out Stdout
else
    echo "coverage: install cargo-llvm-cov (with rustup's llvm-tools) or cargo-tarpaulin first" >&2
    exit 1
fi
