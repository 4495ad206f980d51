#!/usr/bin/env python3
"""Compare decoders with those that TensorRT gets, cut for a KV cache of fixed capacity, in ONNX Runtime.

    cargo build
    python tools/zoo/compare_cuts.py --trtvlm target/debug/trtvlm tests/data/tiny/* [--precision fp32]

For every variant of each folder the graphs of a portable bundle are made. Both decoders run a prompt of 37 rows and 32
steps of one to five rows, with rows taken back after steps as after rejected drafts. The original's cache grows and is cut;
the other's is a block of 192 rows whose unused ones hold garbage. One line a variant: the largest difference of any
logit relative to the largest of its step. Exits with 1 above 2e-5 (FP32) or 2e-2 (files or builds in FP16).
"""
import argparse
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnxruntime as ort

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from compare_built import variants  # noqa: E402

CAPACITY, PROMPT, STEPS, GARBAGE = 192, 37, 32, 1e3
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


class Decoder:
    def __init__(self, path, fixed):
        options = ort.SessionOptions()
        options.log_severity_level = 4
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = {i.name: (TYPES[i.type], i.shape) for i in self.session.get_inputs()}
        self.past = [n for n in self.inputs if n.startswith("past_key_values")]
        self.fixed, self.rows = fixed, 0
        self.names = ["logits"] + [n.replace("past_key_values", "new" if fixed else "present") for n in self.past]
        slots = CAPACITY if fixed else 0
        self.cache = [np.full((1, self.inputs[n][1][1], slots, self.inputs[n][1][3]), GARBAGE, self.inputs[n][0]) for n in self.past]

    def step(self, embeds):
        n = embeds.shape[1]
        bound = (CAPACITY if self.rows else 0) if self.fixed else self.rows
        mask = np.concatenate([np.arange(bound) < self.rows, np.ones(n)])[None]
        feeds = {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": np.arange(self.rows, self.rows + n)[None],
                 "logit_rows": np.arange(n)}
        feeds |= {name: cache[:, :, :bound] for name, cache in zip(self.past, self.cache)}
        feeds = {k: np.ascontiguousarray(v, self.inputs[k][0]) for k, v in feeds.items() if k in self.inputs}
        logits, *new = self.session.run(self.names, feeds)
        if self.fixed:
            for cache, rows in zip(self.cache, new):
                cache[:, :, self.rows:self.rows + n] = rows
        else:
            self.cache = new
        self.rows += n
        return logits.astype(np.float64)

    def roll_back(self, n):
        self.rows -= n
        if not self.fixed:
            self.cache = [c[:, :, :self.rows] for c in self.cache]


def compare(original, cut, d, seed=7):
    rng, worst = np.random.default_rng(seed), 0.0
    both = Decoder(original, False), Decoder(cut, True)
    for step in range(STEPS + 1):
        n = PROMPT if step == 0 else int(rng.integers(1, 6))
        embeds = rng.uniform(-1, 1, (1, n, d)).astype(np.float32)
        a, b = (decoder.step(embeds) for decoder in both)
        off = np.abs(a - b).max() / np.abs(a).max()
        worst = max(worst, off if np.isfinite(off) else np.inf)
        back = 0 if step == 0 else int(rng.integers(0, n))
        for decoder in both:
            decoder.roll_back(back)
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trtvlm", required=True)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("folders", nargs="+", type=pathlib.Path)
    args = parser.parse_args()
    failed = 0
    for folder in args.folders:
        for variant in variants(folder):
            with tempfile.TemporaryDirectory() as tmp:
                out = pathlib.Path(tmp, "portable")
                subprocess.run([args.trtvlm, "build", str(folder), "--out", str(out), "--target", "sm86", "--portable", "--variant", variant,
                                "--precision", args.precision], check=True, capture_output=True)
                original = folder / "onnx" / f"decoder_model_merged{'' if variant == 'fp32' else '_' + variant}.onnx"
                d = Decoder(original, False).inputs["inputs_embeds"][1][2]
                off = compare(original, out / "engines/decoder.sm86.onnx", d)
            half = "16" in variant or args.precision != "fp32"
            bad = not off <= (2e-2 if half else 2e-5)
            failed += bad
            print(f"{off:9.2e}  {folder.name} {variant} -> {args.precision}{'  WRONG' if bad else ''}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
