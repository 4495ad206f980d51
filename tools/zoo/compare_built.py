#!/usr/bin/env python3
"""Ask ONNX Runtime and trtvlm the same question of a model folder and of what `build --target onnx` made of it.

    cargo build
    python tools/zoo/compare_built.py --trtvlm target/debug/trtvlm tests/data/tiny/* [--precision fp32,fp16]

For every variant of each folder a bundle is built in each precision. Three answers of up to 32 tokens are
compared with the answer that ONNX Runtime gives on the folder's own files: ONNX Runtime on the built graphs, and
`trtvlm run` on them. One line a build: both numbers of equal leading ids, and the smallest margin (best logit minus
second best, relative to the largest) before the first difference. Exits with 1 if graphs of unchanged precision (FP32 of FP32 files, FP16 of FP16
files, FP32 of packed files) answer differently where the margin is above 1e-3.

Random weights have near ties, and FP16 of FP32 files rounds: those lines are for reading.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "benches/peers"))
import ort_vlm  # noqa: E402

TOKENS = 32
PARTS = ort_vlm.PARTS


def variants(folder):
    """Suffixes of which all three files are there."""
    names = {p.name for p in (folder / "onnx").glob("*.onnx")}
    suffixes = sorted(n[len(PARTS[0]):-len(".onnx")] for n in names if n.startswith(PARTS[0]))
    return [s[1:] or "fp32" for s in suffixes if all(p + s + ".onnx" in names for p in PARTS)]


class Watched(ort_vlm.Graph):
    """A decoder that keeps the relative margin of each step's first choice."""

    def run(self, values):
        out = super().run(values)
        if "logits" in out:
            top = out["logits"][0, -1].astype("f8")
            best = sorted(top)[-2:]
            self.margins.append((best[1] - best[0]) / max(abs(top).max(), 1e-9))
        return out


def ask_ort(folder, variant, image, question):
    vlm = ort_vlm.Vlm(str(folder), variant, 2)
    vlm.decoder.__class__ = Watched
    vlm.decoder.margins = []
    ids = vlm.ask(image, question, TOKENS, 1)["token_ids"]
    return ids, vlm.decoder.margins


def ask_trtvlm(binary, folder, image, question):
    command = [binary, "run", str(folder), "--image", image, "--prompt", question, "--json", "--tiles", "1",
               "--max-tokens", str(TOKENS)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["token_ids"]


def equal(a, b):
    n = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    return n, n == len(a) == len(b)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trtvlm", required=True)
    parser.add_argument("--precision", default="fp32,fp16", help="precisions to build, a list")
    parser.add_argument("--image", default="calibration/images/0024.png")
    parser.add_argument("--prompt", default="describe the scene")
    parser.add_argument("folders", nargs="+", type=pathlib.Path)
    args = parser.parse_args()
    failed = 0
    for folder in args.folders:
        for variant in variants(folder):
            expected, margins = ask_ort(folder, variant, args.image, args.prompt)
            for precision in args.precision.split(","):
                with tempfile.TemporaryDirectory() as tmp:
                    out = pathlib.Path(tmp, "built")
                    subprocess.run([args.trtvlm, "build", str(folder), "--out", str(out), "--target", "onnx", "--variant", variant,
                                    "--precision", precision], check=True, capture_output=True)
                    ort, _ = ask_ort(out, precision, args.image, args.prompt)
                    own = ask_trtvlm(args.trtvlm, out, args.image, args.prompt)
                lines = []
                unchanged = precision == "fp32" and variant in ("fp32", "q4") or precision == "fp16" and variant in ("fp16", "q4f16")
                for ids in (ort, own):
                    n, same = equal(expected, ids)
                    tie = not same and margins[min(n, len(margins) - 1)] < 1e-3
                    lines.append("equal" if same else f"{n} of {len(expected)}, margin there {margins[min(n, len(margins) - 1)]:.1e}")
                    failed += unchanged and not same and not tie
                print(f"{folder.name} {variant} -> {precision}: onnxruntime {lines[0]}; trtvlm {lines[1]}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
