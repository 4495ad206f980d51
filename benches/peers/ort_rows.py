#!/usr/bin/env python3
"""The peer of `benches/rows.rs`: plain onnxruntime on the same decoder files, the same JSON.

    ort_rows.py DECODER.onnx... [--rows 1,2,3,5,9] [--past 300] [--repeats 7] [--threads N]
"""
import argparse
import json
import os
import time

import numpy as np
import onnxruntime

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


def resident_mib():
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS:")) / 1024


class Decoder:
    def __init__(self, path, threads):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = self.session.get_inputs()
        self.noise = np.random.default_rng(1)
        self.cache = {}
        for i in self.inputs:
            if i.name.startswith("past_key_values"):
                self.cache[i.name] = np.zeros((1, i.shape[1], 0, i.shape[3]), TYPES[i.type])

    def run(self, rows):
        past = next(iter(self.cache.values())).shape[2]
        feed = dict(self.cache)
        for i in self.inputs:
            if i.name == "inputs_embeds":
                feed[i.name] = self.noise.uniform(-1, 1, (1, rows, i.shape[2])).astype(TYPES[i.type])
            elif i.name == "attention_mask":
                feed[i.name] = np.ones((1, past + rows), np.int64)
            elif i.name == "position_ids":
                feed[i.name] = np.arange(past, past + rows, dtype=np.int64)[None]
        start = time.perf_counter()
        values = self.session.run(None, feed)
        ms = (time.perf_counter() - start) * 1e3
        names = [o.name for o in self.session.get_outputs()]
        cache = {n.replace("present", "past_key_values"): v for n, v in zip(names, values) if n != "logits"}
        return ms, cache


def main():
    args = argparse.ArgumentParser()
    args.add_argument("files", nargs="+")
    args.add_argument("--rows", default="1,2,3,5,9")
    args.add_argument("--past", type=int, default=300)
    args.add_argument("--repeats", type=int, default=7)
    args.add_argument("--threads", type=int, default=os.cpu_count())
    args = args.parse_args()
    for path in args.files:
        before, start = resident_mib(), time.perf_counter()
        decoder = Decoder(path, args.threads)
        report = {
            "engine": f"onnxruntime {onnxruntime.__version__}",
            "file": path,
            "past": args.past,
            "load_ms": (time.perf_counter() - start) * 1e3,
            "memory_mib": resident_mib() - before,
        }
        report["prefill_ms"], decoder.cache = decoder.run(args.past)
        # The cache that is given stays as it is: every pass has the same rows behind it.
        least = {r: min(decoder.run(int(r))[0] for _ in range(args.repeats)) for r in args.rows.split(",")}
        report["rows_ms"] = least
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
