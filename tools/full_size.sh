#!/bin/sh
# Make FastVLM-0.5B and SmolVLM-256M at full size with random weights, build TensorRT engines from them, print time and peak memory.
#
# full_size.sh TRTVLM [DIR]     folders are kept in DIR (default .zoo, 4 GB) and not made again
# Needs the Python packages of tools/zoo/requirements.txt (PYTHON names the interpreter), about 8 GB of memory.
set -eu
cd "$(dirname "$0")/.."
trtvlm=$1
zoo=${2:-.zoo}
python=${PYTHON:-python3}

make_model() { # folder model options...
    [ -f "$zoo/$1/zoo.json" ] && [ ! -e "$zoo/$1.part" ] && return
    folder=$1 model=$2
    shift 2
    rm -rf "$zoo/$folder" "$zoo/$folder.part"
    mkdir -p "$zoo"
    "$python" tools/zoo/make_model.py "$model" --size full --dtype fp32 "$@" --out "$zoo/$folder.part"
    mv "$zoo/$folder.part" "$zoo/$folder"
}

measure() { # model precision: seconds, peak MiB of the process and its children, MB written
    "$python" - "$trtvlm" "$zoo/$1" "$2" "$zoo/engines/$1-$2" <<'END'
import os, resource, subprocess, sys, time
trtvlm, model, precision, out = sys.argv[1:]
start = time.time()
subprocess.run([trtvlm, "build", model, "--target", "sm86", "--precision", precision, "--out", out, "--force"], check=True)
seconds = time.time() - start
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
size = sum(os.path.getsize(os.path.join(d, f)) for d, _, files in os.walk(out) for f in files) / 1e6
print(f"{os.path.basename(model)} {precision}: {seconds:.1f} s, peak {peak:.0f} MiB, {size:.0f} MB in the bundle", flush=True)
END
}

make_model fastvlm-0.5b fastvlm-0.5b --ops plain
make_model smolvlm-256m smolvlm-256m --ops plain --static-vision
mkdir -p "$zoo/engines"
for model in fastvlm-0.5b smolvlm-256m; do
    for precision in fp32 fp16; do
        measure $model $precision
    done
done
