#!/usr/bin/env python3
"""Compare ONNX files with their lowered forms in ONNX Runtime, the reference for contrib operators.

    cargo build --example lower
    python tools/zoo/compare_lowered.py --lower target/debug/examples/lower files tests/data/tiny/*
    python tools/zoo/compare_lowered.py --lower target/debug/examples/lower ops [--cases N] [--seed S]

`files` runs every graph of each model folder: decoders with a prompt, then steps of 1, 3 and 1 rows
on the cache that the run before returned (each form on its own cache); vision towers with random
pixels, SmolVLM's with two tiles. `ops` makes graphs of one operator with random shapes and
attributes. Both print one line a graph: the largest difference of any output, relative to the
largest absolute value of that output, and exit with 1 if one is above its tolerance.

Tolerances: 2e-5 for FP32 graphs (other orders of summation), 2e-2 for graphs that compute in FP16
(2^-11 a rounding, through three layers).
"""
import argparse, os, pathlib, subprocess, sys, tempfile
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

NP = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16, TensorProto.INT64: np.int64,
      TensorProto.INT32: np.int32, TensorProto.BOOL: np.bool_, TensorProto.UINT8: np.uint8}


def session(path):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def lower(binary, source, target):
    done = subprocess.run([binary, str(source), str(target)], capture_output=True, text=True)
    return None if done.returncode == 0 else done.stderr.strip().splitlines()[-1][:200]


def difference(expected, actual):
    """Largest difference relative to the largest value; infinite if shapes differ or a value is not finite."""
    worst = 0.0
    for a, b in zip(expected, actual, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
            return float("inf")
        if a.size:
            worst = max(worst, float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-6)))
    return worst


class Inputs:
    """Inputs of a graph by name, type and shape, from a seeded generator."""

    def __init__(self, model, seed):
        self.rng = np.random.default_rng(seed)
        self.model = model
        names = {t.name for t in model.graph.initializer}
        self.infos = [i for i in model.graph.input if i.name not in names]

    def draw(self, shape, elem):
        return self.rng.standard_normal(shape).astype(NP[elem])

    def dims(self, info):
        return [d.dim_value or d.dim_param for d in info.type.tensor_type.shape.dim]

    def decoder(self, rows, past):
        """`past` is a list of arrays in the order of the past inputs, or None."""
        n_past = past[0].shape[2] if past else 0
        feed, index = {}, 0
        for info in self.infos:
            elem, dims = info.type.tensor_type.elem_type, self.dims(info)
            if info.name == "inputs_embeds":
                feed[info.name] = self.draw([1, rows, dims[2]], elem)
            elif info.name == "attention_mask":
                feed[info.name] = np.ones([1, n_past + rows], NP[elem])
            elif info.name == "position_ids":
                feed[info.name] = np.arange(n_past, n_past + rows, dtype=NP[elem])[None]
            elif info.name.startswith("past_key_values"):
                feed[info.name] = past[index] if past else np.zeros([1, dims[1], 0, dims[3]], NP[elem])
                index += 1
            else:
                raise SystemExit(f"unknown decoder input {info.name}")
        return feed

    def vision(self):
        feed = {}
        for info in self.infos:
            elem, dims = info.type.tensor_type.elem_type, self.dims(info)
            shape = [d if isinstance(d, int) else 2 if "image" in d else 1 for d in dims]
            feed[info.name] = np.ones(shape, bool) if elem == TensorProto.BOOL else self.draw(shape, elem)
        return feed

    def ids(self):
        return {i.name: self.rng.integers(0, 100, [1, 7]).astype(NP[i.type.tensor_type.elem_type]) for i in self.infos}


def compare_file(original, lowered, name):
    model = onnx.load(original, load_external_data=False)
    inputs = Inputs(model, 7)
    a, b = session(original), session(lowered)
    if not name.startswith("decoder"):
        feed = inputs.ids() if name.startswith("embed") else inputs.vision()
        return difference(a.run(None, feed), b.run(None, feed))
    names = [o.name for o in a.get_outputs()]
    caches = [i.name.replace("past_key_values", "present") for i in inputs.infos if i.name.startswith("past_key")]
    worst, past = 0.0, (None, None)
    for rows in (13, 1, 3, 1):
        feed = inputs.decoder(rows, past[0])
        second = dict(feed)
        if past[1]:
            second.update({n: v for n, v in zip([i.name for i in inputs.infos if i.name.startswith("past_key")], past[1])})
        first, second = a.run(None, feed), b.run(names, second)
        worst = max(worst, difference(first, second))
        past = tuple([out[names.index(c)] for c in caches] for out in (first, second))
    return worst


def computes_in_half(model):
    halves = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16]
    return bool(halves)


def files(args):
    failed = 0
    for folder in args.folders:
        for path in sorted(pathlib.Path(folder, "onnx").glob("*.onnx")):
            with tempfile.TemporaryDirectory() as tmp:
                target = pathlib.Path(tmp, "lowered.onnx")
                refused = lower(args.lower, path, target)
                if refused:
                    print(f"{'refused':>9}  {path.parent.parent.name}/{path.name}: {refused}")
                    failed += 1
                    continue
                model = onnx.load(path, load_external_data=False)
                left = {n.op_type for n in onnx.load(target, load_external_data=False).graph.node if n.domain}
                off = compare_file(path, target, path.name)
                bad = left or not off <= (2e-2 if computes_in_half(model) else 2e-5)
                failed += bool(bad)
                print(f"{off:9.2e}  {path.parent.parent.name}/{path.name}{'  WRONG' if bad else ''}{left or ''}")
    return failed


# One operator each: (name, graph with one node, feeds).

def value(name, elem, shape):
    return helper.make_tensor_value_info(name, elem, shape)


def graph(node, inputs, outputs, constants, opset=20):
    g = helper.make_graph(node if isinstance(node, list) else [node], "case", inputs, outputs, constants)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(g, opset_imports=imports, ir_version=9)


def const(name, array):
    return numpy_helper.from_array(array, name)


def pick(rng, *choices):
    return choices[rng.integers(len(choices))]


def real(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def case_gqa(rng):
    kv, group, d = int(rng.integers(1, 4)), int(rng.integers(1, 5)), 16 * int(rng.integers(1, 5))
    heads, past, n = kv * group, int(rng.integers(0, 9)), int(rng.integers(1, 8))
    rotary, packed, interleaved = pick(rng, 0, 1), pick(rng, 0, 1), pick(rng, 0, 1)
    partial = rotary and pick(rng, 0, 0, 1)
    width = d // 2 if partial and d % 32 == 0 else d
    scale = pick(rng, None, 0.3)
    ends = pick(rng, 7, 9, 12)
    total = past + n
    angles = rng.uniform(0, 6, [64, width // 2]).astype(np.float32)
    hidden = (heads + 2 * kv) * d if packed else heads * d
    names = ["q", "" if packed else "k", "" if packed else "v", "pk", "pv", "lens", "total"]
    if rotary:
        names += ["cos", "sin"]
    names += [""] * max(0, ends - len(names))
    feeds = {"q": real(rng, 1, n, hidden), "pk": real(rng, 1, kv, past, d), "pv": real(rng, 1, kv, past, d)}
    # A prompt may be padded on the right, and a cache hold rows that are not valid.
    valid = total if pick(rng, 0, 1) else int(rng.integers(n if past else 1, total + 1))
    feeds["lens"], feeds["total"] = np.array([valid - 1], np.int32), np.array(total, np.int32)
    if not packed:
        feeds.update(k=real(rng, 1, n, kv * d), v=real(rng, 1, n, kv * d))
    # A bias has a column for each key: where rows of the cache are not valid, keys stand elsewhere.
    bias = ends == 12 and pick(rng, 0, 1) and (valid == total or not past)
    if bias:
        names[10], feeds["bias"] = "bias", real(rng, 1, pick(rng, 1, heads), n, total)
    attrs = dict(num_heads=heads, kv_num_heads=kv, do_rotary=rotary, rotary_interleaved=interleaved, local_window_size=-1)
    if scale:
        attrs["scale"] = scale
    node = helper.make_node("GroupQueryAttention", names, ["y", "nk", "nv"], domain="com.microsoft", **attrs)
    constants = [const("cos", np.cos(angles)), const("sin", np.sin(angles))] if rotary else []
    f, i = TensorProto.FLOAT, TensorProto.INT32
    inputs = [value("q", f, [1, "n", hidden]), value("pk", f, [1, kv, "past", d]), value("pv", f, [1, kv, "past", d]),
              value("lens", i, [1]), value("total", i, [])]
    inputs += [] if packed else [value("k", f, [1, "n", kv * d]), value("v", f, [1, "n", kv * d])]
    inputs += [value("bias", f, [1, "h", "n", "total"])] if bias else []
    outputs = [value(o, f, None) for o in ("y", "nk", "nv")]
    what = f"heads {heads}/{kv} d {d} rows {n} past {past} rotary {rotary}{'i' * interleaved} width {width} packed {packed} valid {valid}"

    def keep(outputs):
        if past and valid < total:  # ONNX Runtime writes over what is not valid, where we append
            return outputs[:1]
        # Rows that are padding, and the keys that they add, mean nothing.
        y, key, value = outputs
        return outputs if past else [y[:, :valid], key[:, :, :valid], value[:, :, :valid]]

    return what, graph(node, inputs, outputs, constants), feeds, keep


def case_rotary(rng):
    heads, d, n = int(rng.integers(1, 5)), 8 * int(rng.integers(1, 5)), int(rng.integers(1, 9))
    four, interleaved, offset = pick(rng, 0, 1), pick(rng, 0, 1), pick(rng, 0, 1)
    partial = pick(rng, 0, 1) and d % 16 == 0
    width = d // 2 if partial else d
    attrs = dict(interleaved=interleaved, num_heads=heads if partial else pick(rng, 0, heads))
    if partial:
        attrs["rotary_embedding_dim"] = width
    angles = rng.uniform(0, 6, [64, width // 2]).astype(np.float32)
    positions = np.array([3], np.int64) if offset else rng.integers(0, 64, [1, n])
    x = real(rng, 1, heads, n, d) if four else real(rng, 1, n, heads * d)
    node = helper.make_node("RotaryEmbedding", ["x", "p", "cos", "sin"], ["y"], domain="com.microsoft", **attrs)
    f = TensorProto.FLOAT
    inputs = [value("x", f, [1, heads, "n", d] if four else [1, "n", heads * d]),
              value("p", TensorProto.INT64, [1] if offset else [1, "n"])]
    constants = [const("cos", np.cos(angles)), const("sin", np.sin(angles))]
    what = f"heads {heads} d {d} width {width} rows {n} rank {x.ndim} interleaved {interleaved} offset {offset} attrs {attrs['num_heads']}"
    return what, graph(node, inputs, [value("y", f, None)], constants), {"x": x, "p": positions}, None


def case_norm(rng):
    kind = pick(rng, "SkipSimplifiedLayerNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization")
    d, n, half = int(rng.integers(1, 70)), int(rng.integers(1, 9)), pick(rng, 0, 1)
    dtype, elem = (np.float16, TensorProto.FLOAT16) if half else (np.float32, TensorProto.FLOAT)
    make = lambda *s: real(rng, *s).astype(dtype)
    feeds = {"x": make(1, n, d)}
    constants = [const("gamma", make(d)), const("beta", make(d)), const("bias", make(d))]
    outputs, domain = ["y"], "com.microsoft"
    if kind == "SimplifiedLayerNormalization":
        names, domain = ["x", "gamma"], ""
    else:
        feeds["skip"] = make(1, n, d)
        names = ["x", "skip", "gamma"] + (["beta"] if kind == "SkipLayerNormalization" else [])
        if pick(rng, 0, 1):
            names.append("bias")
        if pick(rng, 0, 1):
            outputs = ["y", "", "", "sum"]
    node = helper.make_node(kind, names, outputs, domain=domain, epsilon=1e-5)
    inputs = [value(k, elem, [1, "n", d]) for k in feeds]
    constants = [c for c in constants if c.name in names]
    opset = pick(rng, 17, 20)
    made = graph(node, inputs, [value(o, elem, None) for o in outputs if o], constants, opset)
    return f"{kind} d {d} {dtype.__name__} {len(names)} operands {len(outputs)} outputs opset {opset}", made, feeds, None


def case_gelu(rng):
    kind = pick(rng, "Gelu", "BiasGelu", "FastGelu", "QuickGelu", "standard", "standard tanh")
    d, feeds, constants, attrs = int(rng.integers(1, 40)), {}, [], {}
    feeds["x"] = 4 * real(rng, 1, 5, d)
    names = ["x"]
    if kind == "BiasGelu" or kind == "FastGelu" and pick(rng, 0, 1):
        names, constants = ["x", "b"], [const("b", real(rng, d))]
    if kind == "QuickGelu" and pick(rng, 0, 1):
        attrs["alpha"] = 1.5
    if kind == "standard tanh":
        attrs["approximate"] = "tanh"
    standard = kind.startswith("standard")
    node = helper.make_node("Gelu" if standard else kind, names, ["y"], domain="" if standard else "com.microsoft", **attrs)
    f = TensorProto.FLOAT
    made = graph(node, [value("x", f, [1, "n", d])], [value("y", f, None)], constants)
    return f"{kind} {len(names)} operands {attrs}", made, feeds, None


def case_mha(rng):
    heads, d, n, t = int(rng.integers(1, 5)), 8 * int(rng.integers(1, 4)), int(rng.integers(1, 9)), int(rng.integers(1, 9))
    h = heads * d
    feeds = {"q": real(rng, 1, n, h), "k": real(rng, 1, t, h), "v": real(rng, 1, t, h)}
    names, constants = ["q", "k", "v"], []
    if pick(rng, 0, 1):
        names, constants = names + ["b"], [const("b", real(rng, 3 * h))]
    if pick(rng, 0, 1):
        names += [""] * (5 - len(names)) + ["mask"]
        feeds["mask"] = real(rng, 1, pick(rng, 1, heads), n, t)
    attrs = dict(num_heads=heads) | ({"scale": 0.2} if pick(rng, 0, 1) else {})
    node = helper.make_node("MultiHeadAttention", names, ["y"], domain="com.microsoft", **attrs)
    f = TensorProto.FLOAT
    inputs = [value(k, f, [1, None, h] if k != "mask" else [1, None, None, None]) for k in feeds]
    return f"heads {heads} d {d} rows {n} keys {t} operands {len(names)}", graph(node, inputs, [value("y", f, None)], constants), feeds, None


def case_n_bits(rng):
    bits, block = pick(rng, 4, 8), pick(rng, 16, 32, 64, 128)
    n, k, half = int(rng.integers(1, 40)), int(rng.integers(1, 5)) * 32, pick(rng, 0, 1)
    dtype, elem = (np.float16, TensorProto.FLOAT16) if half else (np.float32, TensorProto.FLOAT)
    blocks = -(-k // block)
    constants = [const("b", rng.integers(0, 256, [n, blocks, block * bits // 8]).astype(np.uint8)),
                 const("s", (0.1 * real(rng, n, blocks)).astype(dtype))]
    names = ["a", "b", "s"]
    zeros = pick(rng, "none", "codes", "floats")
    if zeros != "none":
        names.append("z")
        packed = rng.integers(0, 256, [n, -(-blocks * bits // 8)]).astype(np.uint8)
        constants.append(const("z", packed if zeros == "codes" else rng.uniform(0, 2**bits, [n, blocks]).astype(dtype)))
    if pick(rng, 0, 1):
        names += [""] * (5 - len(names)) + ["bias"]
        constants.append(const("bias", real(rng, n).astype(dtype)))
    node = helper.make_node("MatMulNBits", names, ["y"], domain="com.microsoft", K=k, N=n, bits=bits, block_size=block)
    feeds = {"a": real(rng, 1, 3, k).astype(dtype)}
    made = graph(node, [value("a", elem, [1, 3, k])], [value("y", elem, None)], constants)
    return f"bits {bits} block {block} {n} x {k} {dtype.__name__} zeros {zeros} operands {len(names)}", made, feeds, None


def case_gather(rng):
    v, d, block = int(rng.integers(2, 30)), 32 * int(rng.integers(1, 5)), pick(rng, 16, 32, 128)
    kind = pick(rng, "u8 of 4", "u8 of 8", "u4", "i4")
    blocks, bits = -(-d // block), 8 if kind == "u8 of 8" else 4
    zeros = pick(rng, 0, 1)
    if kind.startswith("u8"):
        data = const("t", rng.integers(0, 256, [v, d * bits // 8]).astype(np.uint8))
        zp = const("z", rng.integers(0, 256, [v, -(-blocks * bits // 8)]).astype(np.uint8))
    else:
        elem = TensorProto.UINT4 if kind == "u4" else TensorProto.INT4
        nibbles = lambda n: rng.integers(0, 256, [-(-n // 2)]).astype(np.uint8).tobytes()
        data = helper.make_tensor("t", elem, [v, d], nibbles(v * d), raw=True)
        zp = helper.make_tensor("z", elem, [v, blocks], nibbles(v * blocks), raw=True)
    constants = [data, const("s", 0.1 * real(rng, v, blocks))] + ([zp] if zeros else [])
    names = ["t", "i", "s"] + (["z"] if zeros else [])
    node = helper.make_node("GatherBlockQuantized", names, ["y"], domain="com.microsoft", bits=bits, block_size=block, quantize_axis=1, gather_axis=0)
    feeds = {"i": rng.integers(0, v, [1, 6])}
    made = graph(node, [value("i", TensorProto.INT64, [1, "n"])], [value("y", TensorProto.FLOAT, None)], constants, 21)
    return f"{kind} {v} x {d} block {block} zeros {zeros}", made, feeds, None


def case_fused(rng):
    n, k, m = (int(x) for x in rng.integers(1, 9, 3))
    ta, tb, weight = pick(rng, 0, 1), pick(rng, 0, 1), pick(rng, 0, 1)
    b = real(rng, *((m, k) if tb else (k, m)))
    feeds = {"a": real(rng, *((2, k, n) if ta else (2, n, k)))}
    inputs = [value("a", TensorProto.FLOAT, [2, None, None])]
    if not weight:
        feeds["b"] = b
        inputs.append(value("b", TensorProto.FLOAT, [None, None]))
    node = helper.make_node("FusedMatMul", ["a", "b"], ["y"], domain="com.microsoft", alpha=pick(rng, 1.0, 0.5), transA=ta, transB=tb)
    made = graph(node, inputs, [value("y", TensorProto.FLOAT, None)], [const("b", b)] if weight else [])
    return f"transA {ta} transB {tb} weight {weight}", made, feeds, None


CASES = dict(gqa=case_gqa, rotary=case_rotary, norm=case_norm, gelu=case_gelu, mha=case_mha,
             n_bits=case_n_bits, gather=case_gather, fused=case_fused)


def ops(args):
    failed = 0
    for kind, make in CASES.items():
        worst, skipped, bad = 0.0, 0, 0
        for seed in range(args.seed, args.seed + args.cases):
            what, model, feeds, keep = make(np.random.default_rng(seed))
            keep = keep or (lambda outputs: outputs)
            with tempfile.TemporaryDirectory() as tmp:
                source, target = pathlib.Path(tmp, "a.onnx"), pathlib.Path(tmp, "b.onnx")
                onnx.save(model, source)
                refused = lower(args.lower, source, target)
                try:
                    expected = session(source).run(None, feeds)
                except Exception as error:  # a form that ONNX Runtime itself does not run
                    skipped += 1
                    if args.verbose:
                        print(f"  {kind} {seed}: {what}: not run: {str(error).splitlines()[0][:160]}")
                    continue
                off = float("inf") if refused else difference(keep(expected), keep(session(target).run(None, feeds)))
            half = any(t.data_type == TensorProto.FLOAT16 for t in model.graph.initializer)
            worst = max(worst, off)
            if not off <= (4e-3 if half else 2e-5):
                bad += 1
                print(f"  WRONG {kind} {seed}: {what}: {refused or off}")
        print(f"{worst:9.2e}  {kind}: {args.cases - skipped} cases, {skipped} that ONNX Runtime does not run, {bad} wrong")
        failed += bad
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lower", required=True, help="the example program `lower`")
    parser.add_argument("--verbose", action="store_true")
    sub = parser.add_subparsers(dest="mode", required=True)
    sub.add_parser("files").add_argument("folders", nargs="+")
    many = sub.add_parser("ops")
    many.add_argument("--cases", type=int, default=40)
    many.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.lower = os.path.abspath(args.lower)
    sys.exit(1 if (files if args.mode == "files" else ops)(args) else 0)


if __name__ == "__main__":
    main()
