#!/bin/sh
# Line coverage of all tests, without code that only a GPU can run. Fails under 85 %.
#
# With cargo-llvm-cov (rustup component add llvm-tools; cargo install --locked cargo-llvm-cov), else with
# cargo-tarpaulin (cargo install --locked cargo-tarpaulin), which needs no LLVM tools. Stable Rust is enough for both.
set -eu
cd "$(dirname "$0")/.."
floor=85
gpu_only='src/(cuda/kernels|backend/tensorrt|trt/run)' # what only runs on a GPU
export CARGO_NET_OFFLINE=true

if cargo llvm-cov --version >/dev/null 2>&1; then
    cargo llvm-cov --locked --all-features --ignore-filename-regex "$gpu_only" --fail-under-lines $floor --summary-only
elif cargo tarpaulin --version >/dev/null 2>&1; then
    # LLVM instrumentation follows the child processes that tests start; its own target folder keeps the normal cache.
    cargo tarpaulin --locked --all-features --engine llvm --follow-exec --skip-clean --target-dir target/coverage \
        --exclude-files 'src/cuda/kernels/*' --exclude-files 'src/backend/tensorrt*' --exclude-files 'src/trt/run*' \
        --exclude-files 'target/*' --exclude-files 'tests/*' --fail-under $floor --out Stdout
else
    echo "coverage: install cargo-llvm-cov (with rustup's llvm-tools) or cargo-tarpaulin first" >&2
    exit 1
fi
