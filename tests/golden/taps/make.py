#!/usr/bin/env python3
"""Golden values of taps, from PyTorch in FP32: hidden states and attention of the tiny models' prompts.

    python tests/golden/taps/make.py        # writes <family>.safetensors beside this file

Reads `inputs_embeds` of `tests/data/tiny/<family>-tiny-plain/golden.safetensors`, whose model `tools/zoo/reference.py`
makes anew from its seed. Saved are, for the prompt `[1, rows, d]`:

| key | shape | |
|-----|-------|-|
| `layer_0`, `layer_1` | `[1, rows, d]` | `hidden_states[1]`, `[2]` of transformers: what the layer hands on |
| `hidden` | `[1, rows, d]` | `last_hidden_state`, behind the last norm |
| `saliency_rows` | `[n]` | the rows that were chosen |
| `saliency_0`, `saliency_02` | `[1, rows]` | mean over those rows, all heads and the layers named of the attention's probabilities |
"""
import json
import pathlib
import sys

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path.insert(0, str(ROOT / "tools/zoo"))
import graphs  # noqa: E402
import reference  # noqa: E402


@torch.no_grad()
def main():
    for family in ("fastvlm", "smolvlm"):
        folder = ROOT / "tests/data/tiny" / f"{family}-tiny-plain"
        zoo = json.loads((folder / "zoo.json").read_text())
        recipe, model = reference.build(zoo["model"], zoo["size"], zoo["seed"])
        text, _, config = graphs.text_parts(recipe, model)
        config._attn_implementation = "eager"
        embeds = torch.from_numpy(load_file(folder / "golden.safetensors")["inputs_embeds"])
        out = text(inputs_embeds=embeds, output_hidden_states=True, output_attentions=True, use_cache=False)
        rows = np.array([3, embeds.shape[1] - 4, embeds.shape[1] - 1], np.int64)
        mean = {n: np.mean([out.attentions[layer][0][:, rows].numpy().mean((0, 1)) for layer in layers], 0)[None]
                for n, layers in (("saliency_0", [0]), ("saliency_02", [0, 2]))}
        made = {"layer_0": out.hidden_states[1], "layer_1": out.hidden_states[2], "hidden": out.last_hidden_state}
        made = {k: v.numpy() for k, v in made.items()} | mean | {"saliency_rows": rows}
        path = HERE / f"{family}.safetensors"
        save_file({k: np.ascontiguousarray(v) for k, v in made.items()}, path)
        path.chmod(0o644)
        print(family, {k: v.shape for k, v in made.items()}, "attention sums to", float(mean["saliency_0"].sum()))


if __name__ == "__main__":
    main()
