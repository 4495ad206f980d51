#!/usr/bin/env python3
"""Passes of a decoder by number of rows: `benches/rows.rs` beside onnxruntime, alternately, on the same files.

    rows.py DECODER.onnx... [--rounds 3] [--rows 1,2,3,5,9] [--past 300] [--repeats 7] [--program FILE] [--out FILE]

The first file is what the others are compared with (FP32). Prints a table of the least times of all rounds:
ms by rows, what rows cost beside one row, tokens a second beside the first file's, memory.
"""
import argparse
import functools
import json
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))


def ours(program, file, rest):
    cargo = ["cargo", "bench", "--locked", "--quiet", "--bench", "rows", "--"]
    command = [*([os.path.abspath(program)] if program else cargo), file, *rest]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT, text=True).stdout


def peer(file, rest):
    command = [sys.executable, os.path.join(HERE, "ort_rows.py"), file, *rest]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def least(runs):
    best = dict(runs[0])
    for key in ("prefill_ms", "load_ms", "memory_mib"):
        best[key] = min(run[key] for run in runs)
    best["rows_ms"] = {r: min(run["rows_ms"][r] for run in runs) for r in runs[0]["rows_ms"]}
    return best


def main():
    args = argparse.ArgumentParser()
    args.add_argument("files", nargs="+")
    args.add_argument("--rounds", type=int, default=3)
    args.add_argument("--rows", default="1,2,3,5,9")
    args.add_argument("--past", default="300")
    args.add_argument("--repeats", default="7")
    args.add_argument("--program", help="benches/rows.rs, built before; default: cargo builds it")
    args.add_argument("--out")
    args = args.parse_args()
    rest = ["--rows", args.rows, "--past", args.past, "--repeats", args.repeats]
    runs = {}
    trtvlm = functools.partial(ours, args.program)
    for _ in range(args.rounds):
        for file in args.files:
            for engine, run in (("trtvlm", trtvlm), ("onnxruntime", peer)):
                report = json.loads(run(os.path.abspath(file), rest))
                runs.setdefault((file, engine), []).append(report)
    best = {key: least(value) for key, value in runs.items()}
    rows = args.rows.split(",")
    one = rows[0]
    print("| file | engine | memory, MiB | prefill, ms | " + " | ".join(f"{r} rows, ms" for r in rows)
          + " | most rows / one | speed beside the first file | beside onnxruntime |")
    print("|" + "---|" * (len(rows) + 7))
    for (file, engine), b in best.items():
        ms = b["rows_ms"]
        first, other = best[(args.files[0], engine)]["rows_ms"], best[(file, "onnxruntime")]["rows_ms"]
        cells = [os.path.basename(file), engine, f"{b['memory_mib']:.0f}", f"{b['prefill_ms']:.0f}"]
        cells += [f"{ms[r]:.1f}" for r in rows]
        cells += [", ".join(f"{r}: {ms[r] / ms[one]:.2f}" for r in rows[1:])]
        cells += [f"{first[one] / ms[one]:.2f}", f"{other[one] / ms[one]:.2f}"]
        print("| " + " | ".join(cells) + " |")
    if args.out:
        with open(args.out, "w") as f:
            json.dump([{**value, "file": os.path.basename(value["file"])} for value in best.values()], f, indent=1)


if __name__ == "__main__":
    main()
