#!/usr/bin/env python3
"""Accuracy of every precision beside each other: builds CPU bundles, asks each the same questions, prints a Markdown table.

    tools/quantization_table.py TRTVLM MODEL --data ITEMS.jsonl [--calibration DIR|JSONL] [--json OUT.json]

Needs the standard library only. Agreement is with the `token_ids` of the items (PyTorch, FP32). The rows `int8` are without the accuracy gate; `gated` is the one
that `trtvlm build --precision int8` makes, with the worst layers in FP16 if it has to.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

METHODS = ["entropy", "percentile", "mse", "max"]


def run(command):
    print("$ " + " ".join(map(str, command)), file=sys.stderr)
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def rows():
    raw = ["--max-drop", "100", "--sensitivity", "0"]
    yield "fp32", ["--precision", "fp32"], False
    yield "fp16", ["--precision", "fp16"], False
    for method in METHODS:
        yield f"int8, {method}", ["--precision", "int8", "--calibration-method", method, *raw], True
    yield "int8, gated", ["--precision", "int8"], True
    yield "int8-weights", ["--precision", "int8-weights", *raw], False
    yield "int4-weights", ["--precision", "int4-weights", *raw], False


def main():
    p = argparse.ArgumentParser()
    p.add_argument("trtvlm", type=pathlib.Path)
    p.add_argument("model", type=pathlib.Path)
    p.add_argument("--data", type=pathlib.Path, required=True)
    p.add_argument("--calibration", type=pathlib.Path, help="pictures for calibration [default: the model folder's sample set]")
    p.add_argument("--variant", help="files of the model folder")
    p.add_argument("--only", help="rows to make, a comma list of their beginnings")
    p.add_argument("--json", type=pathlib.Path)
    a = p.parse_args()
    trtvlm = a.trtvlm.resolve()
    calibration = ["--calibration", a.calibration] if a.calibration else []
    variant = ["--variant", a.variant] if a.variant else []
    results = []
    with tempfile.TemporaryDirectory() as folder:
        scales = pathlib.Path(folder) / "scales.json"
        run([trtvlm, "calibrate", a.model, "--out", scales, "--json", *calibration, *variant])
        for number, (name, options, observed) in enumerate(rows()):
            if a.only and not any(name.startswith(only) for only in a.only.split(",")):
                continue
            out = pathlib.Path(folder) / str(number)
            extra = ["--scales", scales, *calibration] if observed else []
            built = run([trtvlm, "build", a.model, "--target", "cpu", "--out", out, "--json", *options, *extra, *variant])
            report = run([trtvlm, "eval", out, "--data", a.data, "--json"])
            manifest = json.loads((out / "manifest.json").read_text())
            gate = (manifest.get("quantization") or {}).get("accuracy")
            results.append({"row": name, "bytes": built["bytes"], "accuracy": report["accuracy"], "agreement": report["agreement"]["answers"], "tokens": report["agreement"]["tokens"],
                            "families": {f: v["accuracy"]["share"] for f, v in report["families"].items()}, "gate": gate})
    percent = lambda s: f"{100 * s['share']:.1f} % ({s['hits']} of {s['of']})"
    print("| precision | answers equal to FP32's | right answers | 95 % interval | bundle, MB |\n|---|---|---|---|---|")
    for r in results:
        low, high = (100 * x for x in r["accuracy"]["interval95"])
        gate = r["gate"] or {}
        left_out = [f"{len(gate.get(key, []))} nodes {where}" for key, where in [("kept", "in FP16"), ("weights_only", "in INT8 weights")] if gate.get(key)]
        kept = "".join(f", {what}" for what in left_out)
        print(f"| {r['row']}{kept} | {percent(r['agreement'])} | {percent(r['accuracy'])} | {low:.1f} to {high:.1f} | {r['bytes'] / 1e6:.1f} |")
    if a.json:
        a.json.write_text(json.dumps({"model": str(a.model), "data": str(a.data), "rows": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
