"""Golden values of the `eval` stage: means, percentiles and intervals of shares.

    python -m venv .venv && .venv/bin/pip install numpy==2.4.6
    .venv/bin/python tests/golden/eval/make.py

Writes `statistics.json` beside itself. Percentiles are `numpy.percentile`'s. Wilson's interval is not computed by its formula, but by what it means (Wilson,
"Probable Inference, the Law of Succession, and Statistical Inference", 1927): the shares p from which `hits / of` is at most z standard deviations away,
found by bisection with 40 digits.
"""
import decimal
import json
import pathlib
import statistics

import numpy as np

HERE = pathlib.Path(__file__).parent
decimal.getcontext().prec = 40
Z = decimal.Decimal(statistics.NormalDist().inv_cdf(0.975))


def spread(values):
    p50, p95, p99 = np.percentile(values, [50, 95, 99])
    return {"mean": float(np.mean(values)), "p50": float(p50), "p95": float(p95), "p99": float(p99), "max": float(np.max(values))}


def bound(hits, of, inside, outside):
    """The border between `inside`, a share that is within z deviations, and `outside`, which is not."""
    share = decimal.Decimal(hits) / of
    for _ in range(120):
        p = (inside + outside) / 2
        if abs(share - p) <= Z * (p * (1 - p) / of).sqrt():
            inside = p
        else:
            outside = p
    return float(inside)


def share(hits, of):
    # One step beyond 0 and 1 everything is outside; 0 and 1 are inside only if they are the share itself.
    p = decimal.Decimal(hits) / of
    low = 0.0 if hits == 0 else bound(hits, of, p, decimal.Decimal(0))
    high = 1.0 if hits == of else bound(hits, of, p, decimal.Decimal(1))
    return {"hits": hits, "of": of, "share": hits / of, "interval95": [low, high]}


def main():
    rng = np.random.default_rng(0)
    lists = [[7.5], [3.0, 1.0], [1.0, 2.0, 3.0, 4.0], [5.0] * 6, rng.lognormal(3, 1, 37).tolist(), rng.normal(0, 9, 200).tolist()]
    shares = [(0, 1), (1, 1), (0, 16), (16, 16), (1, 16), (8, 16), (157, 200), (199, 200), (196, 200), (3, 100_000)]
    golden = {"spreads": [[values, spread(values)] for values in lists], "shares": [share(*s) for s in shares]}
    (HERE / "statistics.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
