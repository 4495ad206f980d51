"""Golden values of observed activations, from onnxruntime.

    python -m venv .venv && .venv/bin/pip install numpy onnx==1.23.2 onnxruntime==1.31.0
    .venv/bin/python tests/golden/quantize/make_observed.py

Writes `observed.json` beside itself: for the vision tower of `tests/data/tiny/fastvlm-tiny-plain` and a made picture (`pixels(side)`, a formula that the tests
share), smallest, largest and mean absolute value of what each Conv and MatMul reads, and the largest absolute values of the first channels (last axis).
"""
import json
import pathlib

import numpy as np
import onnx
import onnxruntime

HERE = pathlib.Path(__file__).parent
MODEL = HERE.parents[1] / "data/tiny/fastvlm-tiny-plain"


def pixels(side):
    c, y, x = np.mgrid[0:3, 0:side, 0:side].astype(np.int64)
    values = ((x * 3 + y * 5 + (x // 7) * (y // 5) * (11 + c)) % 256).astype(np.float32)
    return (values / np.float32(255))[None]


def main():
    model = onnx.load(MODEL / "onnx/vision_encoder.onnx")
    constants = {t.name for t in model.graph.initializer}
    constants |= {o for n in model.graph.node if n.op_type == "Constant" for o in n.output}
    names = []
    for node in model.graph.node:
        if node.op_type in ("Conv", "MatMul"):
            names += [n for n in node.input[:2] if n not in constants and n not in names]
    given = {i.name for i in model.graph.input}
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in given)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    side = json.loads((MODEL / "preprocessor_config.json").read_text())["crop_size"]["height"]
    picture = pixels(side)
    wanted = [n for n in names if n not in given]
    found = dict(zip(wanted, session.run(wanted, {"pixel_values": picture})))
    found["pixel_values"] = picture
    out = {}
    for name in names:
        x = found[name]
        out[name] = {
            "min": float(x.min()),
            "max": float(x.max()),
            "mean_abs": float(np.abs(x.astype(np.float64)).mean()),
            "values": x.size,
            "channels": [float(c) for c in np.abs(x).reshape(-1, x.shape[-1]).max(0)[:3]],
        }
    (HERE / "observed.json").write_text(json.dumps({"onnxruntime": onnxruntime.__version__, "values": out}, indent=1) + "\n")
    print(len(out), "values")


main()
