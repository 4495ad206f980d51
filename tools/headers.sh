#!/bin/sh
# Does the shim compile, without a warning, with these TensorRT headers?
#
# TENSORRT_INCLUDE_DIR=DIR[:DIR...] tools/headers.sh
#
# Each DIR holds NvInfer.h, NvInferVersion.h and NvOnnxParser.h of one TensorRT (10.3 or newer) or TensorRT-RTX, as its package
# installs them. One after the other they go through build.rs, as in a build for them: the C++ shim with -Wall -Wextra -Werror, the
# constants that bindgen reads, and the Rust side that uses them. A DIR without NvInferVersion.h (CUDA's headers) is passed on to all.
set -eu
cd "$(dirname "$0")/.."
[ -n "${TENSORRT_INCLUDE_DIR-}" ] || {
    echo "headers: set TENSORRT_INCLUDE_DIR to the folders to try, separated by colons" >&2
    exit 2
}

sets= cuda=
old_ifs=$IFS
IFS=:
for dir in $TENSORRT_INCLUDE_DIR; do
    [ -n "$dir" ] || continue
    dir=$(cd "$dir" && pwd) || exit 2
    if [ -f "$dir/NvInferVersion.h" ]; then sets=$sets:$dir; else cuda=$cuda:$dir; fi
done
[ -n "$sets" ] || {
    echo "headers: none of these folders holds NvInferVersion.h" >&2
    exit 2
}

# The version as the headers spell it; 10.x spells it in numbers, newer ones by way of other macros.
version() {
    printf '#include <NvInferVersion.h>\nversion NV_TENSORRT_MAJOR NV_TENSORRT_MINOR NV_TENSORRT_PATCH\n' |
        "${CXX:-c++}" -E -P -x c++ -I "$1" - 2>/dev/null | sed -n 's/^version \([0-9]*\) \([0-9]*\) \([0-9]*\)$/\1.\2.\3/p'
}

failed=0
for dir in ${sets#:}; do
    name="$(version "$dir") in $dir"
    if TRTVLM_WERROR=1 TENSORRT_INCLUDE_DIR=$dir$cuda "${CARGO:-cargo}" check --locked --quiet --lib --features tensorrt; then
        echo "ok      $name"
    else
        echo "failed  $name"
        failed=1
    fi
done
IFS=$old_ifs
exit $failed
