#!/usr/bin/env python3
"""Golden values from the PyTorch model (FP32) for a folder made by make_model.py -> DIR/golden.safetensors.

Also runs every ONNX file of the folder with onnxruntime and prints the largest absolute differences. Block-quantized
files of a random network are far from FP32, so they get golden values of their own, from onnxruntime on those very
files -> DIR/golden_q4.safetensors, DIR/golden_q4f16.safetensors."""
import argparse
import glob
import json
import os

import numpy as np
import torch
from safetensors.numpy import save_file

import graphs
import reference

QUESTION = "Describe the image in detail."
N_TILES = 5                                          # SmolVLM: a 2x2 split and the global view


def padded_inputs(r, tiles):
    """The tiles' vision inputs with the lower half of tile 1 masked and zeroed, and tile 3 all zero (the encoder drops it)."""
    inputs = reference.preprocess(r, *tiles)
    half = r["px"] // 2
    inputs["pixel_attention_mask"][0, 1, half:] = False
    inputs["pixel_values"][0, 1, :, half:] = 0
    inputs["pixel_values"][0, 3] = 0
    return inputs


def features(r, m, inputs):
    return reference.vision_features(r, m, *[torch.from_numpy(v) for v in inputs.values()]).numpy()


def greedy(text, head, config, embeds, n_tokens):
    """-> ids, margins between the two best logits of each step, prefill logits, first layer's keys and values."""
    from transformers.cache_utils import DynamicCache
    cache = DynamicCache(config=config)
    ids, margins, prefill = [], [], None
    n, x = embeds.shape[1], embeds
    while len(ids) < n_tokens:
        position = torch.arange(n - x.shape[1], n)[None]
        h = text(inputs_embeds=x, attention_mask=torch.ones(1, n, dtype=torch.long), position_ids=position,
                 past_key_values=cache, use_cache=True).last_hidden_state
        logits = head(h)
        if prefill is None:
            layer = cache.layers[0]
            prefill = logits.numpy(), layer.keys.numpy().copy(), layer.values.numpy().copy()
        best = torch.topk(logits[0, -1], 2).values
        ids.append(int(logits[0, -1].argmax()))
        margins.append(float(best[0] - best[1]))
        x, n = text.embed_tokens(torch.tensor([[ids[-1]]])), n + 1
    return ids, margins, *prefill


@torch.no_grad()
def golden(r, m, seed, n_tokens, tokenizer):
    n_images = 1 if r["family"] == "fastvlm" else N_TILES
    tiles = np.stack([reference.scene(r["px"], seed, n) for n in range(n_images)])
    g = {"image": tiles[0], "image_features": features(r, m, reference.preprocess(r, tiles[0]))}
    if n_images > 1:
        g["tiles"] = tiles
        g["tiles_image_features"] = features(r, m, reference.preprocess(r, *tiles))
        g["padded_image_features"] = features(r, m, padded_inputs(r, tiles))
    prompt = reference.prompt_text(r, QUESTION)
    ids = np.array([tokenizer.encode(prompt, add_special_tokens=False).ids], np.int64)
    slot = ids == r["image_id"]
    assert slot.sum() == g["image_features"][..., 0].size, "image placeholders"
    text, head, config = graphs.text_parts(r, m)
    embeds = text.embed_tokens(torch.from_numpy(ids))
    embeds[torch.from_numpy(slot)] = torch.from_numpy(g["image_features"].reshape(-1, r["d"]))
    g["input_ids"], g["inputs_embeds"] = ids, embeds.numpy()
    out, margins, g["prefill_logits"], g["prefill_key_0"], g["prefill_value_0"] = greedy(text, head, config, embeds, n_tokens)
    g["greedy_ids"], g["greedy_margin"] = np.array(out, np.int64), np.array(margins, np.float32)
    return g


def check_vision(r, run, g):
    cases = [("1 tile", "image_features", reference.preprocess(r, g["image"]))]
    if "tiles" in g:
        cases.append((f"{N_TILES} tiles", "tiles_image_features", reference.preprocess(r, *g["tiles"])))
        cases.append(("padded", "padded_image_features", padded_inputs(r, g["tiles"])))
    said = []
    for name, key, inputs in cases:
        y = run(inputs)["image_features"]
        said.append(f"{name} {np.abs(y - g[key]).max():.3g}" if y.shape == g[key].shape else f"{name} {y.shape} vs {g[key].shape}")
    return "max|d features| " + ", ".join(said) + f" (|ref| max {np.abs(g['image_features']).max():.3g})"


def check_decoder(r, run, g, table):
    """Teacher-forced with the golden ids, so that one near tie does not spoil the rest."""
    n = g["input_ids"].shape[1]
    kv = {k: np.zeros((1, r["kv_heads"], 0, r["head_dim"]), np.float32) for k in graphs.kv_names(r["layers"])}
    o = run(dict(kv, inputs_embeds=g["inputs_embeds"], attention_mask=np.ones((1, n), np.int64), position_ids=np.arange(n)[None]))
    said = f"max|d logits| prefill {np.abs(o['logits'] - g['prefill_logits']).max():.3g} (std {g['prefill_logits'].std():.2f})"
    said += f", key {np.abs(o['present.0.key'] - g['prefill_key_0']).max():.3g}"
    ids = [int(o["logits"][0, -1].argmax())]
    for t in g["greedy_ids"][:-1]:
        kv = {k.replace("present", "past_key_values"): v for k, v in o.items() if k != "logits"}
        n += 1
        o = run(dict(kv, inputs_embeds=table[[[t]]], attention_mask=np.ones((1, n), np.int64), position_ids=np.array([[n - 1]])))
        ids.append(int(o["logits"][0, -1].argmax()))
    return said + f", greedy {int((np.array(ids) == g['greedy_ids']).sum())}/{len(ids)}"


def session(path):
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    s = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda values: dict(zip([o.name for o in s.get_outputs()], s.run(None, graphs.feeds_for(s, values))))


def golden_of_files(folder, suffix, r, g):
    """Greedy decoding with the folder's own files, vision to last token, by onnxruntime."""
    vision, embed, decoder = (session(os.path.join(folder, "onnx", f + suffix + ".onnx"))
                              for f in ("vision_encoder", "embed_tokens", "decoder_model_merged"))
    out = {"image_features": vision(reference.preprocess(r, g["image"]))["image_features"].astype(np.float32)}
    x = embed({"input_ids": g["input_ids"]})["inputs_embeds"].astype(np.float32)
    x[g["input_ids"] == r["image_id"]] = out["image_features"].reshape(-1, r["d"])
    kv = {k: np.zeros((1, r["kv_heads"], 0, r["head_dim"]), np.float32) for k in graphs.kv_names(r["layers"])}
    n, ids, margins = 0, [], []
    while len(ids) < len(g["greedy_ids"]):
        rows = x.shape[1]
        o = decoder(dict(kv, inputs_embeds=x, attention_mask=np.ones((1, n + rows), np.int64), position_ids=np.arange(n, n + rows)[None]))
        kv, n = {k.replace("present", "past_key_values"): v for k, v in o.items() if k != "logits"}, n + rows
        logits = o["logits"][0, -1].astype(np.float32)
        if not ids:
            out["last_logits"] = logits
        best = np.sort(logits)[-2:]
        ids.append(int(logits.argmax()))
        margins.append(best[1] - best[0])
        x = embed({"input_ids": np.array([[ids[-1]]])})["inputs_embeds"].astype(np.float32)
    return dict(out, greedy_ids=np.array(ids, np.int64), greedy_margin=np.array(margins, np.float32))


def check_folder(folder, r, g, table):
    for path in sorted(glob.glob(os.path.join(folder, "onnx", "*.onnx"))):
        name = os.path.basename(path)
        try:
            run = session(path)
            if name.startswith("vision"):
                said = check_vision(r, run, g)
            elif name.startswith("embed"):
                text = g["input_ids"] != r["image_id"]
                said = f"max|d embeds| {np.abs(run(g)['inputs_embeds'][text] - g['inputs_embeds'][text]).max():.3g}"
            else:
                said = check_decoder(r, run, g, table)
        except Exception as e:                       # go on: the point is to list what fails
            said = f"FAILED {type(e).__name__}: {str(e)[:300]}"
        print(f"  {name:38s} {said}", flush=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("dir")
    ap.add_argument("--tokens", type=int, default=32)
    a = ap.parse_args()
    with open(os.path.join(a.dir, "zoo.json")) as f:
        z = json.load(f)
    r, m = reference.build(z["model"], z["size"], z["seed"])
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(os.path.join(a.dir, "tokenizer.json"))
    g = golden(r, m, z["seed"], a.tokens, tokenizer)
    made = {"golden.safetensors": g}
    for suffix in ("_q4", "_q4f16"):
        if suffix[1:] in z["dtypes"]:
            made[f"golden{suffix}.safetensors"] = golden_of_files(a.dir, suffix, r, g)
    for name, values in made.items():
        path = os.path.join(a.dir, name)
        save_file({k: np.ascontiguousarray(v) for k, v in values.items()}, path,
                  metadata={"model": z["model"], "size": z["size"], "seed": str(z["seed"]), "question": QUESTION,
                            "prompt": reference.prompt_text(r, QUESTION)})
        os.chmod(path, 0o644)                        # safetensors makes it private
    print("greedy:", g["greedy_ids"].tolist(), "smallest margin", float(g["greedy_margin"].min()))
    check_folder(a.dir, r, g, graphs.text_parts(r, m)[0].embed_tokens.weight.detach().numpy())


if __name__ == "__main__":
    main()
