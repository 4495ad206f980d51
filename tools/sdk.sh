#!/bin/sh
# Fetch what `cargo build --features tensorrt` and the kernels need, into .sdk/ (or $TRTVLM_SDK).
#
# Everything comes by package name through pip and cargo, and is checked against the table below.
# A finished folder is left alone: running this again does nothing and needs no network.
set -eu
export LC_ALL=C

# The pins. wheel: name version machine sha256 of the file.
# crate: name version; headers: a folder or file in that crate, its place here, and a digest of its contents
# (sha256 over the sorted `sha256sum` list of all files).
pins() {
    cat <<'END'
wheel onnxruntime-ep-nv-tensorrt-rtx-cu13 0.5.0 x86_64 32f575c633d171b4edf4b53d3bb22b72a6c9c0a850d2982ce9a788a5d40d3298
wheel nvidia-cuda-nvrtc 13.5.37 x86_64 86b4d68058807988b7d9af5b44917a0601e9c337f35ccd657bfb3c759ff8d8bc
wheel nvidia-cuda-nvrtc 13.5.37 aarch64 36e4fa2a8ada293f5693d308e531c196ab6f91cf7a0ff479bf96a537d43a6096
wheel nvidia-cuda-runtime 13.5.37 x86_64 df2b79a8852f10d1fef8c848489c49eebb5754051bf870202a862831412b179d
wheel nvidia-cuda-runtime 13.5.37 aarch64 de2dc5a7367974228b0a69588a9acc9340d3768bef1bf38bf0801eb08497cd2d
wheel libclang 18.1.1 x86_64 c533091d8a3bbf7460a00cb6c1a71da93bffe148f172c7d03b1c31fbf8aa2a0b
wheel libclang 18.1.1 aarch64 54dda940a4a0491a9d1532bf071ea3ef26e6dbaf03b5000ed94dd7174e8f9592
crate trtx-sys 0.9.1
headers TensorRT-Headers/TRT-RTX-1.7 tensorrt-rtx/include 1624e91d7cd4eb4c59cf9ebedd76f8c5e2d63142f1111657dd01654437f2e49e
headers TensorRT-Headers/TRT-Enterprise-11.4 tensorrt-11/include 90abf3e9bd46740d7429169acee400bf609b56c1b46431510e9e4baa18882a34
headers TensorRT-Headers/cuda_runtime_api.h cuda/include 717316e2482ec9cbd5708553964781d20abafa37cfac0bd66c1b59817e55e811
layout 1
END
}

die() {
    echo "sdk: $*" >&2
    exit 1
}
say() { echo "sdk: $*" >&2; }

root=$(cd "$(dirname "$0")/.." && pwd)
sdk=${TRTVLM_SDK:-$root/.sdk}
machine=$(uname -m)
[ "$(uname -s)" = Linux ] || die "only Linux is supported"

mkdir -p "$sdk" || die "cannot write $sdk"
sdk=$(cd "$sdk" && pwd)
stamp=$sdk/stamp
wanted=$(pins; echo "machine $machine")
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    say "complete: $sdk"
    exit 0
fi

if command -v flock >/dev/null 2>&1; then # two at once would only download twice
    exec 9>"$sdk/.lock"
    flock 9
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
        exit 0
    fi
fi

command -v cargo >/dev/null 2>&1 || die "cargo is missing: install Rust first (https://rustup.rs)"
python3 -m pip --version >/dev/null 2>&1 ||
    die "python3 with pip is missing: run 'make install-deps' (Debian, Ubuntu: apt-get install python3 python3-pip)"

downloads=$sdk/.downloads # kept until everything is in place, so that an interrupted run goes on
new=$sdk/.new             # assembled here, then renamed
rm -rf "$new"
mkdir -p "$downloads" "$new"

# One wheel: fetched by pip by name and version, accepted only with the pinned digest.
wheel() { # name version sha256
    file=$downloads/$1-$2.whl
    if [ ! -f "$file" ] || [ "$(sha256sum <"$file" | cut -d' ' -f1)" != "$3" ]; then
        say "fetching $1 $2"
        rm -rf "$downloads/part"
        mkdir "$downloads/part"
        echo "$1==$2 --hash=sha256:$3" >"$downloads/part/requirements.txt"
        python3 -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
            --only-binary=:all: --dest "$downloads/part" --requirement "$downloads/part/requirements.txt" >&2 ||
            die "pip could not fetch $1 $2, see above"
        mv "$downloads/part/"*.whl "$file"
        rm -rf "$downloads/part"
    fi
    mkdir -p "$new/.unpacked"
    python3 -m zipfile -e "$file" "$new/.unpacked"
}

# The source of one crate: a throw-away package depends on it, cargo fetches and checks it.
crate() { # name version
    say "fetching the source of crate $1 $2"
    package=$new/.crate
    mkdir -p "$package/src"
    : >"$package/src/lib.rs"
    cat >"$package/Cargo.toml" <<END
[package]
name = "fetch"
version = "0.0.0"
edition = "2021"
[dependencies]
$1 = "=$2"
[workspace]
END
    (cd "$package" && cargo metadata --quiet --format-version 1 >metadata.json) ||
        die "cargo could not fetch $1 $2, see above"
    source=$(python3 - "$package/metadata.json" "$1" <<'END'
import json, os, sys
packages = json.load(open(sys.argv[1]))["packages"]
print(next(os.path.dirname(p["manifest_path"]) for p in packages if p["name"] == sys.argv[2]))
END
    )
}

headers() { # path in the crate, place here, digest
    mkdir -p "$new/$2"
    if [ -d "$source/$1" ]; then
        digest=$(cd "$source/$1" && find . -type f | sort | xargs sha256sum | sha256sum | cut -d' ' -f1)
        cp -r "$source/$1/." "$new/$2/"
    else
        digest=$(sha256sum <"$source/$1" | cut -d' ' -f1)
        cp "$source/$1" "$new/$2/"
    fi
    [ "$digest" = "$3" ] || die "$1 has digest $digest, expected $3: not using it"
}

pins >"$new/.pins"
libraries=no
while read -r kind a b c d; do
    case $kind in
    wheel)
        [ "$c" = "$machine" ] || continue
        wheel "$a" "$b" "$d"
        [ "$a" = onnxruntime-ep-nv-tensorrt-rtx-cu13 ] && libraries=yes
        ;;
    crate) crate "$a" "$b" ;;
    headers) headers "$a" "$b" "$c" ;;
    esac
done <"$new/.pins"

# From the wheels' own layout to ours.
unpacked=$new/.unpacked
if [ $libraries = yes ]; then
    mkdir -p "$new/tensorrt-rtx/lib"
    for lib in tensorrt_rtx tensorrt_onnxparser_rtx; do
        mv "$unpacked"/onnxruntime_ep_nv_tensorrt_rtx/lib$lib.so.1.7.1 "$new/tensorrt-rtx/lib/"
        ln -s lib$lib.so.1.7.1 "$new/tensorrt-rtx/lib/lib$lib.so.1"
        ln -s lib$lib.so.1 "$new/tensorrt-rtx/lib/lib$lib.so"
    done
    mv "$unpacked"/onnxruntime_ep_nv_tensorrt_rtx/libcudart.so.13.* "$new/tensorrt-rtx/lib/libcudart.so.13"
    mv "$unpacked"/onnxruntime_ep_nv_tensorrt_rtx/Acknowledgements.txt "$new/tensorrt-rtx/"
else
    say "no TensorRT-RTX libraries for $machine: headers only; on a Jetson TensorRT comes with JetPack"
fi
if [ -d "$unpacked/nvidia/cu13/lib" ]; then
    mkdir -p "$new/cuda/lib"
    mv "$unpacked"/nvidia/cu13/lib/libnvrtc.so.13 "$unpacked"/nvidia/cu13/lib/libnvrtc-builtins.so.* "$new/cuda/lib/"
    ln -s libnvrtc.so.13 "$new/cuda/lib/libnvrtc.so"
    # Only what kernels include: the small cuda_runtime_api.h for the shim lies beside them.
    mv "$unpacked"/nvidia/cu13/include/cuda_fp16.h* "$unpacked"/nvidia/cu13/include/cuda_bf16.h* \
        "$unpacked"/nvidia/cu13/include/cuda_fp8.h* "$new/cuda/include/"
fi
mkdir -p "$new/libclang"
find "$unpacked" -name libclang.so -exec mv {} "$new/libclang/" \;
[ -f "$new/libclang/libclang.so" ] || say "no libclang for $machine: install it with the system's package manager"

# In place, old parts out; the stamp last, so that only a complete folder has one.
rm -f "$stamp"
for part in tensorrt-rtx tensorrt-11 cuda libclang; do
    rm -rf "${sdk:?}/$part"
    mv "$new/$part" "$sdk/$part"
done
rm -rf "$new"
echo "$wanted" >"$stamp.new"
mv "$stamp.new" "$stamp"
rm -rf "$downloads"
say "ready: $sdk (TensorRT-RTX and CUDA are under NVIDIA's licences)"
