#!/usr/bin/env python3
"""Token ids of a CPU bundle's graphs in onnxruntime against those of `trtvlm run` on the same bundle.

Q/DQ are evaluated as they are written. Exits with 1 if an answer differs.

    same_answers.py MODEL BUNDLE --data ITEMS.jsonl [--items N] [--program target/debug/trtvlm]

MODEL is the folder with FP32 files that the bundle was built from: its tokenizer and embedding table are used.
"""
import argparse
import json
import os
import subprocess
import sys

import ort_vlm
import quantize


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model")
    ap.add_argument("bundle")
    ap.add_argument("--data", required=True)
    ap.add_argument("--items", type=int, default=40)
    ap.add_argument("--program", default="target/debug/trtvlm")
    a = ap.parse_args()
    vlm = ort_vlm.Vlm(a.model, "fp32", 0)
    vlm.embed = quantize.Session(os.path.join(a.bundle, "engines", "embed.onnx"))
    vision, decoder = (quantize.Session(os.path.join(a.bundle, "engines", n + ".onnx")) for n in ("vision", "decoder"))
    differ = []
    items = quantize.items(a.data, a.items)
    for path, question in items:
        inputs, grid = quantize.pixels(vlm, path)
        features = vision.run(inputs)["image_features"]
        ids = quantize.prompt_ids(vlm, features, question, grid)
        found = quantize.answer(vlm, decoder, ids, features, 64)[1]
        run = subprocess.run([a.program, "run", a.bundle, "--image", path, "--prompt", question, "--json"], capture_output=True, text=True, check=True)
        if json.loads(run.stdout)["token_ids"] != found:
            differ.append([path, question])
    print(json.dumps({"bundle": a.bundle, "items": len(items), "same": len(items) - len(differ), "differ": differ}))
    sys.exit(bool(differ))


if __name__ == "__main__":
    main()
