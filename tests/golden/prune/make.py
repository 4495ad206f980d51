"""Golden values of the `prune` stage: which rows each policy keeps.

    python -m venv .venv && .venv/bin/pip install numpy==2.4.6
    .venv/bin/python tests/golden/prune/make.py

Writes `choices.json` beside itself. Everything is done in the way that its definition says, in float64, not in the fast one: `diverse` computes the determinant of every
candidate set at each step (the greedy maximum of a determinantal point process, CDPruner, arXiv 2506.10967), `similarity` looks at all neighbouring groups before each merge.
"""
import json
import pathlib

import numpy as np

HERE = pathlib.Path(__file__).parent
MASK = (1 << 64) - 1


def numbers(seed, n):
    def number(i):
        mixed = (seed * 1_000_003 + i) * 0x9E3779B97F4A7C15 & MASK
        mixed = (mixed ^ mixed >> 29) * 0xBF58476D1CE4E5B9 & MASK
        return np.float32((mixed >> 40) / (1 << 24) - 0.5)

    return np.array([number(i) for i in range(n)], np.float32).astype(np.float64)


def largest(scores, k):
    return sorted(int(i) for i in np.argsort(-scores, kind="stable")[:k])


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def diverse(rows, question, k):
    relevance = unit(rows) @ unit(question)
    relevance = (relevance - relevance.min() + 1e-6) / (relevance.max() - relevance.min())
    kernel = relevance[:, None] * (unit(rows) @ unit(rows).T) * relevance[None, :]
    chosen = []
    for _ in range(k):
        rest = [i for i in range(len(rows)) if i not in chosen]
        volumes = [np.linalg.slogdet(kernel[np.ix_(chosen + [i], chosen + [i])])[1] for i in rest]
        chosen.append(rest[int(np.argmax(volumes))])
    return sorted(chosen)


def similarity(rows, pictures, height, width, k):
    alike = unit(rows) @ unit(rows).T
    place = lambda i: (i // (height * width), i // width % height, i % width)

    def beside(i, j):
        (p, r, c), (q, s, d) = place(i), place(j)
        return p == q and abs(r - s) + abs(c - d) == 1

    groups = [{i} for i in range(len(rows))]
    for near in (beside, lambda i, j: abs(i - j) == 1):
        while len(groups) > k:
            best = max(
                (alike[i, j], a, b)
                for a in range(len(groups)) for b in range(a) for i in groups[a] for j in groups[b] if near(i, j)
            ) if any(near(i, j) for a in groups for b in groups if a is not b for i in a for j in b) else None
            if best is None:
                break
            _, a, b = best
            groups[b] |= groups.pop(a)
    kept = []
    for group in groups:
        members = sorted(group)
        mean = rows[members].mean(0)
        kept.append((members[int(np.argmax(unit(rows[members]) @ unit(mean)))], members))
    kept.sort()
    slots, weights = [0] * len(rows), [0.0] * len(rows)
    for slot, (_, members) in enumerate(kept):
        for i in members:
            slots[i], weights[i] = slot, float(np.float32(1) / np.float32(len(members)))
    return [i for i, _ in kept], slots, weights


def main():
    cases = []
    for seed, (pictures, height, width, d) in enumerate([(1, 6, 6, 48), (1, 4, 7, 40), (3, 3, 3, 33), (1, 1, 24, 64)]):
        seed = 10 * seed + 1
        n = pictures * height * width
        rows, question, saliency = numbers(seed, n * d).reshape(n, d), numbers(seed + 1, d), numbers(seed + 2, n)
        for k in (1, 2, n // 5, n // 2):
            case = {"seed": seed, "pictures": pictures, "height": height, "width": width, "d": d, "keep": k}
            cases.append(case | {"policy": "norm", "indices": largest(-np.linalg.norm(rows, axis=1), k)})
            cases.append(case | {"policy": "attention", "indices": largest(saliency, k)})
            cases.append(case | {"policy": "diverse", "indices": diverse(rows, question, k)})
            indices, slots, weights = similarity(rows, pictures, height, width, k)
            cases.append(case | {"policy": "similarity", "indices": indices, "slots": slots, "weights": weights})
    (HERE / "choices.json").write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")


if __name__ == "__main__":
    main()
