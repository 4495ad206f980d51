#!/usr/bin/env python3
"""Variants of the demo model with outliers, which small models lack: what they answer in FP32, FP16 and INT8, as a table.

    tools/outliers.py TRTVLM MODEL --data ITEMS.jsonl --calibration DIR|JSONL [--only TEXT] [--json OUT.json]

MODEL is the demo model's folder with FP32 files (`onnx/uav-tiny/recipe/export.py`). Every 31st channel behind a norm's gain is made larger
by a factor and the rows of the weights behind it smaller, and every 31st gated unit (columns of `up_proj` against rows of `down_proj`): in
FP32 that changes no answer. Answers are compared with the `token_ids` of the items.

FP16 is what `build --target onnx --precision fp16` writes, run by onnxruntime with every FP16 value as an output, so that
each is rounded to FP16: the largest of all passes is printed, and how many are not finite. INT8 is the CPU bundle of
`build --precision int8`, gate included. Needs the packages of benches/peers/requirements.txt and onnx.
"""
import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import onnx
from onnx import numpy_helper

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "benches/peers"))
import ort_vlm  # noqa: E402
import quantize  # noqa: E402

DECODER = "decoder_model_merged"
# Name, factor of norm gains, factor of gated units.
VARIANTS = [("as it is", 1, 1), ("gains x 200", 200, 1), ("units x 1000", 1, 1000), ("both", 200, 1000)]


def outliers(n, factor):
    """A factor for each of `n` channels."""
    return np.where(np.arange(n) % 31 == 7, np.float32(factor), np.float32(1))


def make(model, out, gain, unit):
    """Writes the variant as a model folder of FP32 files."""
    (out / "onnx").mkdir(parents=True)
    for path in model.iterdir():
        if path.is_file():
            shutil.copy(path, out)
    for part in ort_vlm.PARTS[:2]:
        shutil.copy(model / "onnx" / f"{part}.onnx", out / "onnx")
    decoder = onnx.load(model / "onnx" / f"{DECODER}.onnx")
    constants = {t.name: t for t in decoder.graph.initializer}
    weights = {n.name: n.input[1] for n in decoder.graph.node if n.op_type == "MatMul"}

    def scale(name, rows=None, cols=None):
        w = numpy_helper.to_array(constants[name])
        w = w * (1 if rows is None else rows[:, None]) * (1 if cols is None else cols)
        constants[name].CopyFrom(numpy_helper.from_array(w.astype(np.float32), name))

    n_layers = sum(name.startswith("/down_proj") for name in weights)
    for layer in range(n_layers):
        weight = {op: weights[f"/{op}{f'_{layer}' if layer else ''}/MatMul"] for op in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj")}
        units, d = numpy_helper.to_array(constants[weight["down_proj"]]).shape
        gains, ups = outliers(d, gain), outliers(units, unit)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            scale(f"lm.layers.{layer}.{norm}.weight", cols=gains)
        for op in ("q_proj", "k_proj", "v_proj", "gate_proj"):
            scale(weight[op], rows=1 / gains)
        scale(weight["up_proj"], rows=1 / gains, cols=ups)
        scale(weight["down_proj"], rows=1 / ups)
    onnx.save(decoder, out / "onnx" / f"{DECODER}.onnx")


def show_halves(path):
    """Makes every FP16 value of a graph an output."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path))
    known = {o.name for o in graph.graph.output} | {i.name for i in graph.graph.input}
    for value in graph.graph.value_info:
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16 and value.name not in known:
            value.type.tensor_type.ClearField("shape")
            graph.graph.output.append(value)
    onnx.save(graph, path)


class Watched(ort_vlm.Graph):
    """A graph that keeps the largest FP16 number of all runs, and how many values are none."""

    def run(self, values):
        out = super().run(values)
        for value in out.values():
            if value.dtype == np.float16:
                finite = np.isfinite(value)
                self.bad += value.size - int(finite.sum())
                self.most = max(self.most, float(np.abs(value[finite]).max(initial=0)))
        return out


def ask(folder, variant, items, watch=False):
    """Ids of all answers, the largest FP16 number, and how many values are no numbers."""
    vlm = ort_vlm.Vlm(str(folder), variant, 0)
    graphs = [vlm.vision, vlm.decoder] if watch else []
    for graph in graphs:
        graph.__class__, graph.most, graph.bad = Watched, 0.0, 0
    ids = [vlm.ask(image, prompt, 64, 1)["token_ids"] for image, prompt in items]
    return ids, max((g.most for g in graphs), default=0), sum(g.bad for g in graphs)


def run(command):
    print("$ " + " ".join(map(str, command)), file=sys.stderr, flush=True)
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("trtvlm", type=pathlib.Path)
    p.add_argument("model", type=pathlib.Path)
    p.add_argument("--data", type=pathlib.Path, required=True)
    p.add_argument("--calibration", type=pathlib.Path, required=True)
    p.add_argument("--only", default="", help="variants whose name contains this")
    p.add_argument("--json", type=pathlib.Path)
    a = p.parse_args()
    items = quantize.items(a.data, None)
    with open(a.data) as f:
        expected = [json.loads(line)["token_ids"] for line in f if line.strip()]
    rows = []
    print("| variant | FP32 | FP16 | largest FP16 value | not finite | INT8 | right answers | in FP16 | in INT8 weights |\n" + "|---" * 9 + "|", flush=True)
    for name, gain, unit in VARIANTS:
        if a.only not in name:
            continue
        with tempfile.TemporaryDirectory() as tmp:
            folder, half, bundle = (pathlib.Path(tmp, part) for part in ("model", "fp16", "int8"))
            make(a.model, folder, gain, unit)
            equal = lambda ids: sum(map(list.__eq__, ids, expected))
            fp32 = equal(ask(folder, "fp32", items)[0])
            run([a.trtvlm, "build", folder, "--target", "onnx", "--precision", "fp16", "--out", half, "--json"])
            for part in (ort_vlm.PARTS[0], DECODER):
                show_halves(half / "onnx" / f"{part}_fp16.onnx")
            ids, most, bad = ask(half, "fp16", items, watch=True)
            run([a.trtvlm, "build", folder, "--target", "cpu", "--precision", "int8", "--calibration", a.calibration, "--out", bundle, "--json"])
            report = run([a.trtvlm, "eval", bundle, "--data", a.data, "--json"])
            gate = json.loads((bundle / "manifest.json").read_text())["quantization"]["accuracy"]
        int8, right = report["agreement"]["answers"]["hits"], report["accuracy"]["share"]
        kept, half_kept = len(gate["kept"]), len(gate.get("weights_only", []))
        rows.append({"variant": name, "items": len(items), "fp32": fp32, "fp16": equal(ids), "largest": most, "not_finite": bad, "int8": int8, "right": right, "gate": gate})
        print(f"| {name} | {fp32} | {equal(ids)} | {most:.0f} | {bad} | {int8} | {100 * right:.1f} % | {kept} | {half_kept} |", flush=True)
    if a.json:
        a.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
