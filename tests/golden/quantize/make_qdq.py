#!/usr/bin/env python3
"""Golden values of 8-bit quantization, in numpy alone: `qdq.json`.

Scales are max / 127 rounded to FP16, at least 2^-14; codes are rounded half to even (numpy's rint) and saturate at 127. A product and
a convolution are computed in FP64 from the dequantized operands, as a Q/DQ graph defines them. `smooth` has the factors of SmoothQuant
(arXiv 2211.10438, equation 4, alpha 0.5), with their geometric mean taken out.

    make_qdq.py > qdq.json
"""
import json

import numpy as np

rng = np.random.default_rng(7)


def scale_of(amax):
    return np.maximum(np.float16(np.float32(amax) / np.float32(127)).astype(np.float32), np.float32(2.0**-14))


def codes_of(x, scale, least=-127):
    return np.clip(np.rint(np.asarray(x, np.float32) / scale), least, 127).astype(np.int8)


def fake(x, scale):
    # QuantizeLinear saturates at the ends of int8; weights are symmetric.
    return codes_of(x, scale, -128).astype(np.float64) * np.float64(scale)


def matmul():
    x = rng.normal(size=(5, 24)).astype(np.float32)
    w = (rng.normal(size=(24, 7)) * rng.uniform(0.01, 3, size=7)).astype(np.float32)
    w[:, 2] = 0
    w[3, 4] = 40
    amax = np.float32(2.0)                                    # some values saturate
    s_x, s_w = scale_of(amax), scale_of(np.abs(w).max(0))
    y = fake(x, s_x) @ (codes_of(w, s_w).astype(np.float64) * s_w.astype(np.float64))
    return {"x": x, "w": w, "amax": amax, "x_scale": s_x, "w_scale": s_w, "w_codes": codes_of(w, s_w), "y": y}


def conv(groups):
    cin, cout, k = 4, 8, 3
    x = rng.normal(size=(1, cin, 6, 6)).astype(np.float32)
    w = (rng.normal(size=(cout, cin // groups, k, k)) * rng.uniform(0.001, 1, size=(cout, 1, 1, 1))).astype(np.float32)
    b = rng.normal(size=cout).astype(np.float32)
    amax = np.abs(x).max()
    s_x, s_w = scale_of(amax), scale_of(np.abs(w).max((1, 2, 3)))
    q = np.pad(fake(x, s_x), ((0, 0), (0, 0), (1, 1), (1, 1)))
    d = codes_of(w, s_w[:, None, None, None]).astype(np.float64) * s_w.astype(np.float64)[:, None, None, None]
    y = np.zeros((1, cout, 6, 6))
    for o in range(cout):
        first = o // (cout // groups) * (cin // groups)
        for i in range(cin // groups):
            for r in range(k):
                for c in range(k):
                    y[0, o] += d[o, i, r, c] * q[0, first + i, r:r + 6, c:c + 6]
        y[0, o] += b[o]
    return {"x": x, "w": w, "b": b, "amax": amax, "x_scale": s_x, "w_scale": s_w,
            "w_codes": codes_of(w, s_w[:, None, None, None]), "y": y}


def smooth():
    amax = rng.uniform(0.1, 50, size=16).astype(np.float32)
    w = rng.normal(size=(16, 6)).astype(np.float32)
    amax[5], w[9] = 0, 0
    raw = np.full(16, np.nan)
    for j in range(16):
        if amax[j] > 0 and np.abs(w[j]).max() > 0:
            raw[j] = np.sqrt(np.float64(amax[j]) / np.abs(w[j]).max())
    mean = np.exp(np.nanmean(np.log(raw)))
    return {"amax": amax, "w": w, "factors": np.where(np.isnan(raw), 1.0, raw / mean)}


def plain(value):
    value = np.asarray(value)
    flat = value.reshape(-1).tolist()
    return {"shape": list(value.shape), "data": flat if value.dtype == np.int8 else [float(np.float32(v)) for v in flat]}


cases = {"matmul": matmul(), "conv": conv(1), "conv_groups": conv(4), "smooth": smooth()}
print(json.dumps({name: {key: plain(v) for key, v in case.items()} for name, case in cases.items()}, separators=(",", ":")))
