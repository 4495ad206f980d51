"""Golden values of the `quantize` stage: ranges that calibration methods choose.

    python -m venv .venv && .venv/bin/pip install numpy==2.4.6 scipy==1.17.1 onnxruntime==1.31.0
    .venv/bin/python tests/golden/quantize/make.py

Writes `ranges.json` beside itself. The data are not stored: `values(case)` below is a formula that the tests share.

Definitions, each written down from its source and not from the program that is tested:
  entropy     Migacz, "8-bit Inference with TensorRT" (GTC 2017), as pytorch-quantization's `_compute_amax_entropy` does it: bins of |x|, 128
              levels, what lies beyond the range goes into its last bin, scipy's entropy, the last of several minima
  mse         `_compute_amax_mse` of the same file: middles of bins, fake-quantized to 127 steps, weighted with the counts
  percentile  upper edge of the first bin at which the cumulative share reaches the percentile
  raw_mse     least mean squared error over the values themselves, without a histogram
Exact zeros are counted apart and are in no bin; the range of the histogram is the power of two above the largest value.

`ort_entropy_bins` and `ort_percentile` come from onnxruntime's HistogramCollector: its entropy search on the same bins, mirrored around an empty
one for zero, with 255 quantized bins; its percentile on the same values. Its entropy is not the same: levels are whole numbers of bins, rounded down,
the last one takes the rest; the expanded distribution is truncated to integers, and empty bins are smoothed.
"""
import json
import pathlib

import numpy as np
import onnxruntime
from onnxruntime.quantization.calibrate import HistogramCollector
from scipy.stats import entropy as kl

HERE = pathlib.Path(__file__).parent
N_BINS = 4096
N_VALUES = 200_000
CASES = ["uniform", "gauss", "relu", "heavy", "outliers", "tiny"]


class Draws:
    def __init__(self, seed):
        self.state = seed

    def next(self):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 40) / 2**24


def values(case):
    draws = Draws(len(case))
    gauss = lambda: sum(draws.next() for _ in range(12)) - 6.0
    out = []
    for i in range(N_VALUES):
        if case == "uniform":
            x = draws.next() * 2.0 - 1.0
        elif case == "heavy":
            x = (draws.next() - 0.5) / (draws.next() + 1.0 / 1024.0)
        else:
            x = gauss()
            if case == "relu":
                x = max(x, 0.0)
            elif case == "outliers" and i % 997 == 0:
                x *= 64.0
            elif case == "tiny":
                x *= 1e-6
        out.append(x)
    return np.array(out, np.float64).astype(np.float32)


def histogram(x):
    a = np.abs(x.astype(np.float64))
    top = 2.0 ** (np.floor(np.log2(a.max())) + 1)
    counts, edges = np.histogram(a[a > 0], bins=N_BINS, range=(0, top))
    last = np.nonzero(counts)[0][-1]
    return counts[: last + 1], edges[: last + 2]


def by_entropy(counts):
    best = None
    for n in range(128, len(counts) + 1):
        level = np.arange(n) * 128 // n
        inside = counts[:n].astype(np.float64)
        full = inside > 0
        weight = np.bincount(level, inside, 128)
        n_full = np.bincount(level, full, 128)
        q = np.where(full, weight[level] / np.maximum(n_full[level], 1), 0.0)
        p = inside.copy()
        p[-1] += counts[n:].sum()
        divergence = kl(p / p.sum(), q / q.sum())
        if best is None or divergence <= best[1]:
            best = (n, divergence)
    return best


def by_mse(counts, edges):
    middles = (edges[1:] + edges[:-1]) / 2
    best = None
    for n in range(128, len(counts) + 1):
        scale = edges[n] / 127
        q = np.clip(np.round(middles / scale), -127, 127) * scale
        error = ((q - middles) ** 2 * counts).mean()
        if best is None or error <= best[1]:
            best = (n, error)
    return best[0]


def raw_mse(x):
    a = np.abs(x.astype(np.float64))
    best = np.inf
    for amax in a.max() * np.linspace(0.01, 1.0, 331):
        scale = amax / 127
        q = np.clip(np.round(a / scale), 0, 127) * scale
        best = min(best, ((q - a) ** 2).mean())
    return best


def by_percentile(counts, n_zeros, percentile):
    inside = n_zeros + np.cumsum(counts)
    return int(np.searchsorted(inside, (counts.sum() + n_zeros) * percentile / 100)) + 1


def ort_entropy(counts, edges):
    signed = np.concatenate([counts[::-1], [0], counts]).astype(np.int64)
    both = np.concatenate([-edges[::-1], edges]).astype(np.float32)
    wide = np.float32(1e30)
    collector = HistogramCollector("entropy", True, 1, 255, None, "same")
    threshold = collector.get_entropy_threshold((signed, both, -wide, wide), 255)[1]
    return int(round(float(threshold) / edges[1]))


def ort_percentile(x, percentile):
    collector = HistogramCollector("percentile", True, N_BINS, 255, percentile, "same")
    collector.collect({"x": x})
    return float(collector.compute_collection_result()["x"][1])


def main():
    cases = {}
    for case in CASES:
        x = values(case)
        counts, edges = histogram(x)
        n_zeros = int((x == 0).sum())
        n_entropy, divergence = by_entropy(counts)
        cases[case] = {
            "abs_max": float(np.abs(x).max()),
            "zeros": n_zeros,
            "bin_width": float(edges[1]),
            "bins": [int(c) for c in counts[:8]],
            "entropy_bins": n_entropy,
            "mse_bins": by_mse(counts, edges),
            "percentile_bins": {str(p): by_percentile(counts, n_zeros, p) for p in (99.0, 99.9, 99.99)},
            "raw_mse": float(raw_mse(x)),
            "raw_percentile": float(np.percentile(np.abs(x), 99.9)),
            "ort_entropy_bins": ort_entropy(counts, edges),
            "ort_percentile": ort_percentile(x, 99.9),
        }
        print(case, cases[case], divergence, flush=True)
    golden = {"onnxruntime": onnxruntime.__version__, "numpy": np.__version__, "cases": cases}
    (HERE / "ranges.json").write_text(json.dumps(golden, indent=1) + "\n")


main()
