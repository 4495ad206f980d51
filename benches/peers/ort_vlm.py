#!/usr/bin/env python3
"""The peer: plain onnxruntime on the same model folder, image and question as `trtvlm run`.

A greedy loop with the published past/present interface, nothing clever and nothing left out. Prints one JSON object a
repeat, with the keys of `trtvlm run --json`.

    ort_vlm.py MODEL --image FILE --prompt TEXT [--variant fp16] [--threads N] [--tiles N] [--max-tokens N] [--repeats N]
"""
import argparse
import json
import math
import os
import resource
import time

import jinja2
import numpy as np
import onnxruntime
from PIL import Image
from tokenizers import Tokenizer

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64, "tensor(bool)": bool}
PARTS = ("vision_encoder", "embed_tokens", "decoder_model_merged")


def started_s():
    """When this process began, on the monotonic clock since boot: interpreter and imports count."""
    with open("/proc/self/stat") as f:
        ticks = int(f.read().rsplit(")", 1)[1].split()[19])
    return ticks / os.sysconf("SC_CLK_TCK")


def since_start_ms():
    return 1000 * (time.clock_gettime(time.CLOCK_BOOTTIME) - started_s())


def read_json(folder, name):
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        return {}
    with open(path) as f:
        return json.load(f)


# ------------------------------------------------------------------------------------------------ image
def to_tensor(image, pre):
    """u8 RGB -> f32 [3, h, w], as the hub's processors compute it."""
    x = np.asarray(image, np.float32) * np.float32(pre["rescale_factor"])
    if pre.get("do_normalize", True):
        x = (x - np.array(pre["image_mean"], np.float32)) / np.array(pre["image_std"], np.float32)
    return x.transpose(2, 0, 1)


def fastvlm_inputs(image, pre, config):
    """CLIP's processor: shortest edge to size, centre crop; `image_aspect_ratio: pad` squares the image first."""
    w, h = image.size
    if config.get("image_aspect_ratio") == "pad" and w != h:
        side = max(w, h)
        square = Image.new("RGB", (side, side), tuple(int(m * 255) for m in pre["image_mean"]))
        square.paste(image, ((side - w) // 2, (side - h) // 2))
        image, (w, h) = square, (side, side)
    edge = pre["size"]["shortest_edge"]
    size = (edge, int(edge * h / w)) if w <= h else (int(edge * w / h), edge)
    image = image if size == image.size else image.resize(size, pre["resample"])
    ch, cw = pre["crop_size"]["height"], pre["crop_size"]["width"]
    left, top = (size[0] - cw) // 2, (size[1] - ch) // 2
    image = image.crop((left, top, left + cw, top + ch))
    return {"pixel_values": to_tensor(image, pre)[None]}, (0, 0)


def smolvlm_inputs(image, pre, tiles):
    """Idefics3's processor: longest edge to size, both edges up to multiples of the tile, tiles row by row, then the whole
    image as one tile. With one tile only the last, straight from the image."""
    side, filter_ = pre["max_image_size"]["longest_edge"], pre["resample"]
    if tiles == 1:
        x = to_tensor(image.resize((side, side), filter_), pre)[None, None]
        return {"pixel_values": x, "pixel_attention_mask": np.ones((1, 1, side, side), bool)}, (0, 0)
    w, h = image.size
    aspect, longest = w / h, pre["size"]["longest_edge"]
    if w >= h:
        w, h = longest, int(longest / aspect)
        h += h % 2
    else:
        w, h = int(longest * aspect), longest
        w += w % 2
    image = image.resize((max(w, 1), max(h, 1)), filter_)
    w, h = image.size
    aspect = w / h
    if w >= h:
        w = math.ceil(w / side) * side
        h = math.ceil(int(w / aspect) / side) * side
    else:
        h = math.ceil(h / side) * side
        w = math.ceil(int(h * aspect) / side) * side
    image = image.resize((w, h), filter_)
    pictures, rows, cols = [], 0, 0
    if w > side or h > side:
        rows, cols = h // side, w // side
        pictures = [image.crop((x, y, x + side, y + side)) for y in range(0, h, side) for x in range(0, w, side)]
    pictures.append(image.resize((side, side), filter_))
    x = np.stack([to_tensor(p, pre) for p in pictures])[None]
    return {"pixel_values": x, "pixel_attention_mask": np.ones((1, len(pictures), side, side), bool)}, (rows, cols)


# ------------------------------------------------------------------------------------------------ text
def chat(folder, question):
    """The rendered chat, with one `<image>`."""
    template = read_json(folder, "tokenizer_config.json").get("chat_template")
    jinja = os.path.join(folder, "chat_template.jinja")
    if os.path.exists(jinja):
        with open(jinja) as f:
            template = f.read()
    elif os.path.exists(os.path.join(folder, "chat_template.json")):
        template = read_json(folder, "chat_template.json")["chat_template"]
    if "type" in template:
        content = [{"type": "image"}, {"type": "text", "text": question}]
    else:                                             # takes strings only
        content = "<image>\n" + question
    env = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    return env.from_string(template).render(messages=[{"role": "user", "content": content}], add_generation_prompt=True)


def expand(text, family, tokens_per_tile, rows, cols):
    slot = "<image>" * tokens_per_tile
    if family == "smolvlm":
        edge, whole = "<fake_token_around_image>", "<global-img>"
        split = "".join("".join(f"{edge}<row_{r + 1}_col_{c + 1}>{slot}" for c in range(cols)) + "\n" for r in range(rows))
        slot = f"{split}\n{edge}{whole}{slot}{edge}" if rows else f"{edge}{whole}{slot}{edge}"
    return text.replace("<image>", slot, 1)


# ------------------------------------------------------------------------------------------------ model
class Graph:
    def __init__(self, folder, name, suffix, threads):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        # By default (4) it quantizes the float activations of products with stored integers, too.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        self.session = onnxruntime.InferenceSession(os.path.join(folder, "onnx", name + suffix + ".onnx"), options, providers=["CPUExecutionProvider"])
        self.inputs = {i.name: (TYPES[i.type], i.shape) for i in self.session.get_inputs()}
        self.outputs = [o.name for o in self.session.get_outputs()]

    def run(self, values):
        feeds = {n: np.ascontiguousarray(values[n], dtype=t) for n, (t, _) in self.inputs.items()}
        return dict(zip(self.outputs, self.session.run(None, feeds)))


class Vlm:
    def __init__(self, folder, variant, threads):
        def there(suffix):
            return all(os.path.exists(os.path.join(folder, "onnx", p + suffix + ".onnx")) for p in PARTS)
        if variant is None:
            variant = "fp32" if there("") else "fp16"
        suffix = "" if variant == "fp32" else "_" + variant
        self.folder, self.variant = folder, variant
        self.config, self.generation = read_json(folder, "config.json"), read_json(folder, "generation_config.json")
        self.pre = read_json(folder, "preprocessor_config.json")
        self.family = "smolvlm" if self.config["model_type"] in ("idefics3", "smolvlm") else "fastvlm"
        self.image_id = self.config.get("image_token_id", self.config.get("image_token_index"))
        eos = self.generation.get("eos_token_id", self.config.get("eos_token_id"))
        self.eos = set(eos if isinstance(eos, list) else [eos])
        self.tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
        self.vision, self.embed, self.decoder = (Graph(folder, p, suffix, threads) for p in PARTS)
        self.past = [n for n in self.decoder.inputs if n.startswith("past_key_values")]

    def ask(self, path, question, max_tokens, tiles):
        t0 = time.perf_counter()
        image = Image.open(path).convert("RGB")
        inputs, (rows, cols) = smolvlm_inputs(image, self.pre, tiles) if self.family == "smolvlm" else fastvlm_inputs(image, self.pre, self.config)
        t1 = time.perf_counter()
        features = self.vision.run(inputs)["image_features"].astype(np.float32)
        t2 = time.perf_counter()
        text = expand(chat(self.folder, question), self.family, features.shape[1], rows, cols)
        ids = np.array([self.tokenizer.encode(text, add_special_tokens=False).ids], np.int64)
        x = self.embed.run({"input_ids": ids})["inputs_embeds"].astype(np.float32)
        x[ids == self.image_id] = features.reshape(-1, features.shape[-1])
        cache = {}
        for n in self.past:
            dtype, (_, heads, _, d) = self.decoder.inputs[n]
            cache[n] = np.zeros((1, heads, 0, d), dtype)
        out, seen, first = [], 0, {}
        while len(out) < max_tokens:
            n = x.shape[1]
            y = self.decoder.run(dict(cache, inputs_embeds=x, attention_mask=np.ones((1, seen + n), np.int64),
                                      position_ids=np.arange(seen, seen + n)[None]))
            cache = {k: y[k.replace("past_key_values", "present")] for k in self.past}
            seen += n
            out.append(int(y["logits"][0, -1].argmax()))
            if len(out) == 1:
                first = dict(prefill=time.perf_counter(), start=since_start_ms())
            if out[-1] in self.eos:
                break
            x = self.embed.run({"input_ids": np.array([[out[-1]]])})["inputs_embeds"]
        end = time.perf_counter()
        ms = {"preprocess": t1 - t0, "vision": t2 - t1, "prefill": first["prefill"] - t2, "decode": end - first["prefill"],
              "ttft": first["prefill"] - t0, "total": end - t0}
        return {
            "text": self.tokenizer.decode(out, skip_special_tokens=True), "token_ids": out,
            "stop": "eos" if out[-1] in self.eos else "length", "backend": "onnxruntime", "precision": self.variant,
            "prompt_tokens": ids.shape[1], "visual_tokens": {"total": int((ids == self.image_id).sum())},
            "timings_ms": {k: round(1000 * v, 3) for k, v in ms.items()}, "start_to_first_token_ms": round(first["start"], 1),
            "peak_memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        }


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model")
    ap.add_argument("--image", required=True)
    ap.add_argument("--prompt", required=True)
    ap.add_argument("--variant", help="fp32, fp16, q4, q4f16, ...; default fp32, else fp16")
    ap.add_argument("--threads", type=int, default=0, help="0: what onnxruntime chooses")
    ap.add_argument("--tiles", type=int, help="SmolVLM: 1 for the whole image only")
    ap.add_argument("--max-tokens", type=int)
    ap.add_argument("--repeats", type=int, default=1, help="ask this often in one process")
    a = ap.parse_args()
    vlm = Vlm(a.model, a.variant, a.threads)
    limit = a.max_tokens or vlm.generation.get("max_new_tokens", 64)
    for _ in range(a.repeats):
        print(json.dumps(vlm.ask(a.image, a.prompt, limit, a.tiles)), flush=True)


if __name__ == "__main__":
    main()
