#!/usr/bin/env python3
"""The peer of `trtvlm build --precision int8`: onnxruntime's `quantize_static` on the same FP32 graphs, pictures and method.

Both are compared with the FP32 graphs in onnxruntime: signal to quantization noise at the visual tokens and at the logits (of the
prompt's last row and of every answer token, the answer being the FP32 graphs' own), in dB. Prints one JSON object.

    quantize.py MODEL --method entropy --calibration ITEMS.jsonl --data ITEMS.jsonl [--items N] [--bundle BUNDLE]

MODEL has FP32 files; BUNDLE is what `trtvlm build MODEL --precision int8 --target cpu --calibration ITEMS.jsonl
--calibration-method METHOD` wrote. onnxruntime quantizes Conv, MatMul and Gemm with constant weights: QDQ, int8, symmetric, weights
per channel.
"""
import argparse
import json
import os
import tempfile

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import HistogramCalibrater
from onnxruntime.quantization.shape_inference import quant_pre_process
from PIL import Image

import ort_vlm

METHODS = {"max": CalibrationMethod.MinMax, "entropy": CalibrationMethod.Entropy, "percentile": CalibrationMethod.Percentile}


class Session(ort_vlm.Graph):
    def __init__(self, path):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Q/DQ are evaluated as they are written: integer kernels that saturate would be another comparison.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = {i.name: (ort_vlm.TYPES[i.type], i.shape) for i in self.session.get_inputs()}
        self.outputs = [o.name for o in self.session.get_outputs()]


class Reader(CalibrationDataReader):
    def __init__(self, feeds):
        self.feeds = iter(feeds)

    def get_next(self):
        return next(self.feeds, None)


def one_by_one(collect):
    """Its histograms take feeds of one shape at a time; they are merged from call to call."""
    def collect_each(self, reader):
        while (feed := reader.get_next()) is not None:
            collect(self, Reader([feed]))
    return collect_each


HistogramCalibrater.collect_data = one_by_one(HistogramCalibrater.collect_data)


def items(path, n):
    with open(path) as f:
        rows = [json.loads(line) for line in f if line.strip()][:n]
    folder = os.path.dirname(path)
    return [(os.path.join(folder, row["image"]), row["prompt"]) for row in rows]


def empty_cache(vlm):
    return {n: np.zeros((1, vlm.decoder.inputs[n][1][1], 0, vlm.decoder.inputs[n][1][3]), np.float32) for n in vlm.past}


def rows_of(vlm, ids, features=None):
    x = vlm.embed.run({"input_ids": ids})["inputs_embeds"].astype(np.float32)
    if features is not None:
        x[ids == vlm.image_id] = features.reshape(-1, features.shape[-1])
    return x


def prompt_ids(vlm, features, question, grid):
    text = ort_vlm.expand(ort_vlm.chat(vlm.folder, question), vlm.family, features.shape[1], *grid)
    return np.array([vlm.tokenizer.encode(text, add_special_tokens=False).ids], np.int64)


def pixels(vlm, path):
    image = Image.open(path).convert("RGB")
    if vlm.family == "smolvlm":
        return ort_vlm.smolvlm_inputs(image, vlm.pre, 1)
    return ort_vlm.fastvlm_inputs(image, vlm.pre, vlm.config)


def step(vlm, decoder, x, cache, seen):
    """One pass; returns the last row's logits and the new cache."""
    n = x.shape[1]
    feed = dict(cache, inputs_embeds=x, attention_mask=np.ones((1, seen + n), np.int64), position_ids=np.arange(seen, seen + n)[None],
                logit_rows=np.array([n - 1], np.int64))
    y = decoder.run(feed)
    return y["logits"][0, -1], {k: y[k.replace("past_key_values", "present")] for k in vlm.past}, feed


def answer(vlm, decoder, ids, features, limit, forced=None):
    """Logits of every pass, the ids, and what the decoder was fed."""
    logits, out, feeds = [], [], []
    x, cache, seen = rows_of(vlm, ids, features), empty_cache(vlm), 0
    while len(out) < (len(forced) if forced is not None else limit):
        row, cache, feed = step(vlm, decoder, x, cache, seen)
        feeds.append({k: v for k, v in feed.items() if k in vlm.decoder.inputs})
        seen += x.shape[1]
        logits.append(row)
        out.append(int(row.argmax()) if forced is None else forced[len(out)])
        if out[-1] in vlm.eos:
            break
        x = rows_of(vlm, np.array([[out[-1]]], np.int64))
    return np.stack(logits), out, feeds


def db(signal, noise):
    return round(float(10 * np.log10(signal / max(noise, 1e-30))), 2)


def quantize(source, feeds, method, out):
    plain = out + ".plain.onnx"
    quant_pre_process(source, plain, skip_symbolic_shape=True, skip_optimization=True)
    quantize_static(plain, out, Reader(feeds), quant_format=QuantFormat.QDQ, op_types_to_quantize=["Conv", "MatMul", "Gemm"], per_channel=True,
                    activation_type=QuantType.QInt8, weight_type=QuantType.QInt8, calibrate_method=METHODS[method],
                    extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "MatMulConstBOnly": True})
    return Session(out)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model")
    ap.add_argument("--bundle", dest="bundles", action="append", default=[], help="may be repeated")
    ap.add_argument("--method", choices=METHODS, default="max")
    ap.add_argument("--calibration", required=True)
    ap.add_argument("--data", required=True)
    ap.add_argument("--items", type=int, default=40, help="of the data")
    ap.add_argument("--samples", type=int, default=16, help="of the calibration")
    ap.add_argument("--tokens", type=int, default=8, help="of each calibration answer")
    ap.add_argument("--no-peer", action="store_true", help="bundles only")
    a = ap.parse_args()
    vlm = ort_vlm.Vlm(a.model, "fp32", 0)
    sides = {b: [Session(os.path.join(b, "engines", n + ".onnx")) for n in ("vision", "decoder")] for b in a.bundles}
    with tempfile.TemporaryDirectory() as tmp:
        if not a.no_peer:
            vision_feeds, decoder_feeds = [], []
            for path, question in items(a.calibration, a.samples):
                inputs, grid = pixels(vlm, path)
                vision_feeds.append({n: np.ascontiguousarray(inputs[n], dtype=t) for n, (t, _) in vlm.vision.inputs.items()})
                features = vlm.vision.run(inputs)["image_features"]
                ids = prompt_ids(vlm, features, question, grid)
                decoder_feeds += answer(vlm, vlm.decoder, ids, features, a.tokens)[2]
            folder = os.path.join(a.model, "onnx")
            sides["onnxruntime"] = [quantize(os.path.join(folder, name + ".onnx"), feeds, a.method, os.path.join(tmp, name + ".onnx"))
                                    for name, feeds in (("vision_encoder", vision_feeds), ("decoder_model_merged", decoder_feeds))]
    power = {"features": 0.0, "logits": 0.0}
    noise = {side: dict.fromkeys(("features", "logits", "decoder"), 0.0) for side in sides}
    same = dict.fromkeys(sides, 0)
    n_rows = 0
    for path, question in items(a.data, a.items):
        inputs, grid = pixels(vlm, path)
        features = vlm.vision.run(inputs)["image_features"]
        ids = prompt_ids(vlm, features, question, grid)
        logits, out, _ = answer(vlm, vlm.decoder, ids, features, 64)
        power["features"] += float((features.astype(np.float64) ** 2).sum())
        power["logits"] += float((logits.astype(np.float64) ** 2).sum())
        n_rows += len(out)
        for side, (vision, decoder) in sides.items():
            found = vision.run(inputs)["image_features"]
            both = answer(vlm, decoder, ids, found, 64, out)[0]
            alone = answer(vlm, decoder, ids, features, 64, out)[0]
            for key, x, y in (("features", features, found), ("logits", logits, both), ("decoder", logits, alone)):
                noise[side][key] += float(((x.astype(np.float64) - y) ** 2).sum())
            same[side] += int((both.argmax(1) == logits.argmax(1)).sum())
    print(json.dumps({
        "model": a.model, "method": a.method, "items": a.items, "rows": n_rows,
        "sqnr_db": {side: {"features": db(power["features"], n["features"]), "logits": db(power["logits"], n["logits"]),
                           "logits_decoder_alone": db(power["logits"], n["decoder"]), "same_argmax": round(same[side] / n_rows, 4)}
                    for side, n in noise.items()}}, indent=1))


if __name__ == "__main__":
    main()
