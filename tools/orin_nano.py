#!/usr/bin/env python3
"""What the Jetson Orin Nano can do at best with a model: bytes and operations of every product and convolution against the
board's rates, printed as the tables of docs/orin-nano.md.

orin_nano.py FOLDER [--tokens N] [--text N] [--tiles N]

FOLDER is a model folder with FP32 files without contrib operators (tools/zoo/make_model.py makes them at full size). Weights are
not read. Needs onnx and numpy."""
import argparse
import json
import os

import numpy as np
import onnx
from onnx import numpy_helper, shape_inference

# Dense rates in operations a second (a multiplication and an addition are two) and bytes a second, by power mode.
BOARDS = {
    "15 W, 67 GB/s": {"fp16": 10e12, "int8": 20e12, "bytes": 67e9},
    "25 W, 102 GB/s": {"fp16": 16.7e12, "int8": 33.4e12, "bytes": 102e9},
}
WIDTH = {"fp16": 2.0, "int8": 1.0, "int4": 0.5 + 2 / 32}


def load(path):
    """A graph without its weights' data."""
    return onnx.load(path, load_external_data=False)


def with_sizes(model, sizes):
    """Shapes of every value, with these sizes of named dimensions."""
    for value in list(model.graph.input):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                name = dim.dim_param
                if name not in sizes:
                    raise SystemExit(f"no size for the dimension {name} of {value.name}: {sorted(sizes)}")
                dim.dim_value = sizes[name]
    model = shape_inference.infer_shapes(model, data_prop=True)
    shapes = {}
    for value in list(model.graph.value_info) + list(model.graph.input) + list(model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if all(d.HasField("dim_value") for d in dims):
            shapes[value.name] = [d.dim_value for d in dims]
    for tensor in model.graph.initializer:
        shapes[tensor.name] = list(tensor.dims)
    return model, shapes


def products(model, shapes):
    """(name, operations, weights, elements in and out) of every convolution and product."""
    weights = {t.name for t in model.graph.initializer}
    found, unknown = [], []
    for node in model.graph.node:
        if node.op_type not in ("Conv", "MatMul", "Gemm"):
            continue
        a, b, out = (shapes.get(name) for name in (node.input[0], node.input[1], node.output[0]))
        if a is None or b is None or out is None:
            unknown.append(node.name)
            continue
        n = int(np.prod(out))
        if node.op_type == "Conv":
            macs = n * int(np.prod(b[1:]))
        else:
            macs = n * a[-1]
        stored = int(np.prod(b)) if node.input[1] in weights else 0
        moved = int(np.prod(a)) + n + (0 if stored else int(np.prod(b)))
        found.append((node.name, node.op_type, 2 * macs, stored, moved))
    if unknown:
        raise SystemExit(f"{len(unknown)} products of unknown shape, such as {unknown[0]}")
    return found


def seconds(parts, board, weights, rate):
    """Sum over products of the larger of compute and memory time; `weights` and `rate` name precisions."""
    width = WIDTH["int8" if rate == "int8" else "fp16"]
    total = 0.0
    for _, _, ops, stored, moved in parts:
        total += max(ops / board[rate], (stored * WIDTH[weights] + moved * width) / board["bytes"])
    return total


def vision_parts(config, folder, tiles):
    """Products of the vision tower, and the visual tokens that it makes: of a transformer from its configuration, of any other
    tower from its graph."""
    vit = config.get("vision_config", {})
    if "patch_size" in vit and "scale_factor" in config:
        d, inner, layers = vit["hidden_size"], vit["intermediate_size"], vit["num_hidden_layers"]
        n, shuffle = (vit["image_size"] // vit["patch_size"]) ** 2, config["scale_factor"] ** 2
        parts = []

        def linear(name, rows, k, m):
            parts.append((name, "MatMul", 2 * tiles * rows * k * m, k * m, tiles * rows * (k + m)))

        linear("patches", n, 3 * vit["patch_size"] ** 2, d)
        for layer in range(layers):
            for which in "qkvo":
                linear(f"{layer}.{which}", n, d, d)
            linear(f"{layer}.up", n, d, inner)
            linear(f"{layer}.down", n, inner, d)
            # Fused: scores stay on the chip.
            parts.append((f"{layer}.attention", "MatMul", 4 * tiles * n * n * d, 0, 4 * tiles * n * d))
        linear("connector", n // shuffle, d * shuffle, config["text_config"]["hidden_size"])
        return parts, tiles * n // shuffle
    graph = load(os.path.join(folder, "onnx", "vision_encoder.onnx"))
    names = {d.dim_param for v in graph.graph.input for d in v.type.tensor_type.shape.dim if d.dim_param}
    graph, shapes = with_sizes(graph, dict.fromkeys(names, 1))
    rows = shapes[graph.graph.output[0].name][:-1]
    return products(graph, shapes), int(np.prod(rows))


def decoder_parts(config, rows, past, head_rows=1):
    """Products of the decoder for `rows` new rows over `past` cached ones, from the configuration."""
    text = config.get("text_config", config)
    d, layers = text["hidden_size"], text["num_hidden_layers"]
    heads, kv = text["num_attention_heads"], text.get("num_key_value_heads", text["num_attention_heads"])
    inner, vocab = text["intermediate_size"], text["vocab_size"]
    hd = text.get("head_dim", d // heads)
    parts = []

    def linear(name, n, k, m):
        parts.append((name, "MatMul", 2 * n * k * m, k * m, n * (k + m)))

    for layer in range(layers):
        for name, m in (("q", heads * hd), ("k", kv * hd), ("v", kv * hd)):
            linear(f"{layer}.{name}", rows, d, m)
        linear(f"{layer}.o", rows, heads * hd, d)
        linear(f"{layer}.gate", rows, d, inner)
        linear(f"{layer}.up", rows, d, inner)
        linear(f"{layer}.down", rows, inner, d)
        total = past + rows
        # Two products of attention; keys and values are read once.
        parts.append((f"{layer}.attention", "MatMul", 4 * rows * total * heads * hd, 0, 2 * total * kv * hd))
    linear("head", head_rows, d, vocab)
    return parts


def head_of(parts):
    return [part for part in parts if part[0] == "head"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--tokens", type=int, default=16, help="tokens of an answer")
    parser.add_argument("--text", type=int, default=30, help="tokens of a question with its template")
    parser.add_argument("--tiles", type=int, default=1, help="pictures of a frame")
    args = parser.parse_args()
    config = json.load(open(os.path.join(args.folder, "config.json")))
    tower, n_visual = vision_parts(config, args.folder, args.tiles)
    name = os.path.basename(os.path.normpath(args.folder))
    text = config.get("text_config", config)
    kv_row = 2 * text["num_hidden_layers"] * text.get("num_key_value_heads", text["num_attention_heads"]) \
        * text.get("head_dim", text["hidden_size"] // text["num_attention_heads"])
    table = text["vocab_size"] * text["hidden_size"]
    step = decoder_parts(config, 1, n_visual + args.text)

    def total(parts, index):
        return sum(part[index] for part in parts)

    print(f"### {name}: {n_visual} visual tokens, {args.text} of text\n")
    print("| stage | operations | weights | other elements in and out |")
    print("|---|---|---|---|")
    rows = {"vision": tower}
    kept = {}
    for keep in (1.0, 0.1):
        n = max(1, round(n_visual * keep)) + args.text
        kept[keep] = n
        rows[f"prefill, keep {keep} ({n} rows)"] = decoder_parts(config, n, 0)
    rows["one token"] = step
    rows["a pass of 5 rows"] = decoder_parts(config, 5, n_visual + args.text, 5)
    for stage, parts in rows.items():
        print(f"| {stage} | {total(parts, 2) / 1e9:.1f} G | {total(parts, 3) / 1e6:.0f} M | {total(parts, 4) / 1e6:.1f} M |")
    print(f"\nLM head: {total(head_of(step), 3) / 1e6:.0f} M of the decoder's weights. KV cache: {2 * kv_row} bytes a row in FP16.\n")

    print("Least milliseconds by stage:\n")
    print("| board | precision | vision | prefill, keep 1.0 | prefill, keep 0.1 | one token | pass of 5 |")
    print("|---|---|---|---|---|---|---|")
    best = {}
    for board_name, board in BOARDS.items():
        for label, weights, rate in (("fp16", "fp16", "fp16"), ("int8", "int8", "int8"), ("int4-weights, vision int8", "int4", "fp16")):
            tower_weights, tower_rate = ("fp16", "fp16") if label == "fp16" else ("int8", "int8")
            v = seconds(tower, board, tower_weights, tower_rate)
            prefill = {keep: seconds(decoder_parts(config, n, 0), board, weights, rate) for keep, n in kept.items()}
            one = seconds(step, board, weights, rate)
            five = seconds(rows["a pass of 5 rows"], board, weights, rate)
            best[board_name, label] = (v, prefill, one, five)
            print(f"| {board_name} | {label} | {v * 1e3:.1f} | {prefill[1.0] * 1e3:.1f} | {prefill[0.1] * 1e3:.1f} | {one * 1e3:.2f} | {five * 1e3:.2f} |")

    print(f"\nLeast milliseconds of a frame with an answer of {args.tokens} tokens, and frames a second:\n")
    print("| board | precision | all tokens | keep 0.1 | keep 0.1, 3.05 tokens a pass | and half of the head's rows |")
    print("|---|---|---|---|---|---|")
    for (board_name, label), (v, prefill, one, five) in best.items():
        board = BOARDS[board_name]
        weights, rate = {"fp16": ("fp16", "fp16"), "int8": ("int8", "int8")}.get(label, ("int4", "fp16"))
        after = args.tokens - 1
        plain = v + prefill[1.0] + after * one
        pruned = v + prefill[0.1] + after * one
        # Drafts of one layer with a head of 16 thousand rows, four in a row before each pass.
        layer = [part for part in step if part[0].startswith("0.")]
        d = text["hidden_size"]
        small_head = [("draft head", "MatMul", 2 * d * 16000, d * 16000, d)]
        draft = seconds(layer + small_head, board, "fp16", "fp16")
        per_pass = (1 - 0.75**5) / 0.25
        drafted = v + prefill[0.1] + after / per_pass * (five + 4 * draft)
        head_one = seconds(head_of(rows["a pass of 5 rows"]), board, weights, rate)
        halved = drafted - after / per_pass * head_one / 2
        cells = " | ".join(f"{t * 1e3:.0f} ({1 / t:.1f})" for t in (plain, pruned, drafted, halved))
        print(f"| {board_name} | {label} | {cells} |")

    weights_all = total(tower, 3) + total(step, 3)
    print("\nDevice memory that nothing avoids, MiB (weights, embedding table, KV cache of 2048 rows):\n")
    print("| precision | weights | table | cache | sum |")
    print("|---|---|---|---|---|")
    for label, w, t in (("fp16", 2.0, 2.0), ("int8", 1.0, 1.0), ("int4-weights, rest int8", None, 1.0)):
        bytes_w = weights_all * w if w else total(tower, 3) + total(step, 3) * WIDTH["int4"]
        cache = 2 * kv_row * 2048
        parts = [bytes_w, table * t, cache]
        print(f"| {label} | " + " | ".join(f"{p / 2**20:.0f}" for p in parts + [sum(parts)]) + " |")


if __name__ == "__main__":
    main()
