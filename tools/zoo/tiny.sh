#!/bin/sh
# Remake tests/data/tiny: every form once, files that are the same in several forms as links to the plain folder.
# Needs the Python packages of requirements.txt. Usage: tools/zoo/tiny.sh [OUT]
set -eu
zoo=$(cd "$(dirname "$0")" && pwd)
out=${1:-$zoo/../../tests/data/tiny}
python=${PYTHON:-python3}
mkdir -p "$out"

make_one() { # model folder dtypes options...
    model=$1 folder=$out/$2 dtypes=$3
    shift 3
    rm -rf "$folder"
    "$python" "$zoo/make_model.py" "$model" --size tiny --dtype "$dtypes" "$@" --out "$folder"
    "$python" "$zoo/make_golden.py" "$folder"
}

link_same() { # folder plain
    (cd "$out/$1" && find . -type f | while read -r f; do
        here=${f#./}
        there=$(cd ../"$2" && pwd)/$here
        case $here in
        # the goldens' values are the same, their bytes need not be
        golden.safetensors) ;;
        *) cmp -s "$here" "$there" || continue ;;
        esac
        case $here in onnx/*) up=../.. ;; *) up=.. ;; esac
        ln -sf "$up/$2/$here" "$here"
    done)
}

for family in fastvlm:fastvlm-0.5b smolvlm:smolvlm-256m; do
    name=${family%%:*} model=${family#*:}
    fp16=fp32 q4=fp32
    [ $name = smolvlm ] || { fp16=fp32,fp16 && q4=fp32,q4f16; } # once is enough
    make_one "$model" "$name-tiny-plain" fp32 --ops plain
    make_one "$model" "$name-tiny-contrib" $fp16 --ops contrib --rotary in-gqa
    make_one "$model" "$name-tiny-contrib-sep" $q4 --ops contrib --rotary separate
    link_same "$name-tiny-contrib" "$name-tiny-plain"
    link_same "$name-tiny-contrib-sep" "$name-tiny-plain"
done

# The plain FastVLM folder once more, its decoder's weights in a file of their own.
rm -rf "$out/fastvlm-tiny-external"
cp -r "$out/fastvlm-tiny-plain" "$out/fastvlm-tiny-external"
"$python" "$zoo/../make_external_data.py" "$out/fastvlm-tiny-external/onnx/decoder_model_merged.onnx"
link_same fastvlm-tiny-external fastvlm-tiny-plain
