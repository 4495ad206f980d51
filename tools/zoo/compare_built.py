#!/usr/bin/env python3
"""Ask ONNX Runtime and trtvlm the same questions of a model folder and of what `build --target onnx` made of it.

    cargo build
    python tools/zoo/compare_built.py --trtvlm target/debug/trtvlm tests/data/tiny/* [--precision fp32,fp16,int8,int8-weights,int4-weights] [--items 1]

For every variant of each folder a bundle is built in each precision. Answers of up to 32 tokens to the questions of --data are
compared with those that ONNX Runtime gives on the folder's own files: ONNX Runtime on the built graphs, and
`trtvlm run` on them; for graphs of integers also these two with each other. One line a build: how many answers are equal, and of the first that is not
the number of equal leading ids and the margin there (best logit minus second best, relative to the largest). Exits with 1 if graphs of
unchanged precision (FP32 of FP32 files, FP16 of FP16 files, FP32 of packed files) answer differently where the margin is above 1e-3, or
if the two runtimes part in that way on the same graphs of stored integers (int8-weights, int4-weights).

Random weights have near ties, and FP16 and integers of FP32 files round: those lines are for reading. So are the two runtimes' int8 answers: ONNX
Runtime rounds the biases of convolutions to integers, too.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "benches/peers"))
import ort_vlm  # noqa: E402
import quantize  # noqa: E402

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


class Ort:
    """A folder's graphs in ONNX Runtime: ids and margins of each answer."""

    def __init__(self, folder, variant):
        self.vlm = ort_vlm.Vlm(str(folder), variant, 2)
        self.vlm.decoder.__class__ = Watched

    def ask(self, items):
        answers = []
        for image, question in items:
            self.vlm.decoder.margins = []
            ids = self.vlm.ask(image, question, TOKENS, 1)["token_ids"]
            answers.append((ids, self.vlm.decoder.margins))
        return answers


def ask_trtvlm(binary, folder, items):
    answers = []
    for image, question in items:
        command = [binary, "run", str(folder), "--image", image, "--prompt", question, "--json", "--tiles", "1", "--max-tokens", str(TOKENS)]
        answers.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["token_ids"])
    return answers


def compare(expected, found):
    """A description, and the largest margin at which an answer leaves what is expected (None: all are equal)."""
    parted = []
    for (a, margins), b in zip(expected, found):
        n = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
        if not n == len(a) == len(b):
            parted.append((n, len(a), margins[min(n, len(margins) - 1)]))
    if not parted:
        return "equal", None
    n, of, margin = parted[0]
    return f"{len(expected) - len(parted)} of {len(expected)} equal ({n} of {of} ids, margin there {margin:.1e})", max(p[2] for p in parted)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trtvlm", required=True)
    parser.add_argument("--precision", default="fp32,fp16", help="precisions to build, a list")
    parser.add_argument("--calibration", default="calibration", help="pictures for int8")
    parser.add_argument("--data", default="calibration/items.jsonl", help="questions")
    parser.add_argument("--items", type=int, default=1, help="of them, the first")
    parser.add_argument("folders", nargs="+", type=pathlib.Path)
    args = parser.parse_args()
    failed = 0
    items = quantize.items(args.data, args.items)
    for folder in args.folders:
        for variant in variants(folder):
            expected = Ort(folder, variant).ask(items)
            for precision in args.precision.split(","):
                with tempfile.TemporaryDirectory() as tmp:
                    out = pathlib.Path(tmp, "built")
                    options = ["--max-drop", "100", "--sensitivity", "0"] if precision.startswith("int") else []
                    options += ["--calibration", args.calibration] if precision == "int8" else []
                    subprocess.run([args.trtvlm, "build", str(folder), "--out", str(out), "--target", "onnx", "--variant", variant,
                                    "--precision", precision, *options], check=True, capture_output=True)
                    ort = Ort(out, precision).ask(items)
                    own = ask_trtvlm(args.trtvlm, out, items)
                unchanged = precision == "fp32" and variant in ("fp32", "q4") or precision == "fp16" and variant in ("fp16", "q4f16")
                line = []
                for name, ids in (("onnxruntime", [ids for ids, _ in ort]), ("trtvlm", own)):
                    text, margin = compare(expected, ids)
                    line.append(f"{name} {text}")
                    failed += unchanged and margin is not None and margin >= 1e-3
                if precision.startswith("int"):
                    text, margin = compare(ort, own)
                    line.append(f"with each other {text}")
                    failed += precision != "int8" and margin is not None and margin >= 1e-3
                print(f"{folder.name} {variant} -> {precision}: {'; '.join(line)}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
