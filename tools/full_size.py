#!/usr/bin/env python3
"""Make FastVLM-0.5B and SmolVLM-256M at full size with random weights, calibrate them, build TensorRT engines for SM 8.6
from their plain, contrib and q4f16 files in every precision, and print time and peak memory of each build.

full_size.py TRTVLM [--zoo DIR] [--calibration DIR] [--only TEXT] [--json FILE]

Folders are kept in --zoo (default .zoo, 8 GB) and not made again, nor are scales. Needs the Python packages of
tools/zoo/requirements.txt, 8 GB of memory and Linux. Memory is the largest sum of the proportional set sizes of the
process and its children, looked at ten times a second."""
import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
FOLDERS = {
    "fastvlm-0.5b": ["fastvlm-0.5b", "--ops", "plain", "--dtype", "fp32"],
    "fastvlm-0.5b-contrib": ["fastvlm-0.5b", "--ops", "contrib", "--rotary", "separate", "--dtype", "fp32,q4f16"],
    "smolvlm-256m": ["smolvlm-256m", "--ops", "plain", "--dtype", "fp32"],
    "smolvlm-256m-contrib": ["smolvlm-256m", "--ops", "contrib", "--rotary", "in-gqa", "--dtype", "fp32,q4f16"],
}
# Folder, files, precision, further options.
BUILDS = [
    (folder, "fp32", precision, options)
    for folder in ("fastvlm-0.5b", "smolvlm-256m")
    for precision, options in [
        ("fp32", []), ("fp16", []), ("int8", []), ("int8-weights", []), ("int4-weights", []), ("fp16", ["--head-mib", "64"]),
    ]
] + [
    (folder, variant, precision, [])
    for folder in ("fastvlm-0.5b-contrib", "smolvlm-256m-contrib")
    for variant, precision in [("fp32", "fp16"), ("fp32", "int8"), ("q4f16", "fp16"), ("q4f16", "int8"), ("q4f16", "int4-weights")]
]


def tree(root):
    """Process ids of `root` and all that descend from it."""
    parents = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as f:
                parents.setdefault(int(f.read().rsplit(")", 1)[1].split()[1]), []).append(int(pid))
        except OSError:
            pass
    found, left = [], [root]
    while left:
        found.append(left.pop())
        left += parents.get(found[-1], [])
    return found


def memory(pids):
    """Sum of proportional set sizes in bytes, files that are mapped included."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup") as f:
                total += sum(int(line.split()[1]) for line in f if line.startswith("Pss:")) * 1024
        except OSError:
            pass
    return total


def measure(command):
    """Seconds and peak bytes of a command and its children; ends the program if the command fails."""
    start, peak, done = time.time(), 0, threading.Event()
    child = subprocess.Popen(command)

    def watch():
        nonlocal peak
        while not done.wait(0.1):
            peak = max(peak, memory(tree(child.pid)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    status = child.wait()
    done.set()
    watcher.join()
    if status:
        sys.exit(f"{' '.join(command)}: exit status {status}")
    return time.time() - start, peak


def size(folder):
    return sum(os.path.getsize(os.path.join(d, f)) for d, _, files in os.walk(folder) for f in files)


def make_folder(zoo, name):
    path = os.path.join(zoo, name)
    if not os.path.exists(os.path.join(path, "zoo.json")):
        part = path + ".part"
        shutil.rmtree(part, ignore_errors=True)
        model, *options = FOLDERS[name]
        script = os.path.join(HERE, "zoo", "make_model.py")
        subprocess.run([sys.executable, script, model, "--size", "full", *options, "--out", part], check=True)
        os.rename(part, path)
    return path


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("trtvlm")
    ap.add_argument("--zoo", default=".zoo")
    ap.add_argument("--calibration", default=os.path.join(HERE, "..", "calibration"))
    ap.add_argument("--only", default="", help="builds whose line contains this")
    ap.add_argument("--json", help="append each measurement to this file, an object a line")
    a = ap.parse_args()
    os.makedirs(os.path.join(a.zoo, "engines"), exist_ok=True)

    def note(**what):
        if a.json:
            with open(a.json, "a") as f:
                print(json.dumps(what), file=f)

    print("| model, files | precision | seconds | peak GiB | of its FP32 files | bundle, MB |\n|---|---|---|---|---|---|", flush=True)
    for folder, variant, precision, options in BUILDS:
        label = " ".join([folder, variant, precision, *options])
        if a.only not in label:
            continue
        path = make_folder(a.zoo, folder)
        onnx = os.path.join(path, "onnx")
        fp32 = sum(os.path.getsize(os.path.join(onnx, f)) for f in os.listdir(onnx) if not f.split(".")[0].endswith("_q4f16"))
        out = os.path.join(a.zoo, "engines", label.replace(" ", "-"))
        command = [a.trtvlm, "build", path, "--variant", variant, "--target", "sm86", "--precision", precision, "--out", out, "--force", *options]
        if precision == "int8":
            scales = os.path.join(a.zoo, f"{folder}-{variant}.scales.json")
            if not os.path.exists(scales):
                seconds, peak = measure([a.trtvlm, "calibrate", path, "--variant", variant, "--calibration", a.calibration, "--out", scales])
                print(f"| {folder} {variant} | calibration | {seconds:.0f} | {peak / 2**30:.2f} | {peak / fp32:.2f} | |", flush=True)
                note(model=folder, files=variant, step="calibrate", seconds=seconds, peak_bytes=peak, fp32_bytes=fp32)
            command += ["--scales", scales]
        if precision not in ("fp32", "fp16"):
            # Answers of random weights prove nothing.
            command += ["--max-drop", "100", "--sensitivity", "0"]
        seconds, peak = measure(command)
        written = size(out)
        print(f"| {folder} {variant} | {' '.join([precision, *options])} | {seconds:.0f} | {peak / 2**30:.2f} | {peak / fp32:.2f} | {written / 1e6:.0f} |", flush=True)
        note(model=folder, files=variant, step="build", precision=precision, options=options, seconds=seconds, peak_bytes=peak, fp32_bytes=fp32, bundle_bytes=written)
        shutil.rmtree(out)


main()
