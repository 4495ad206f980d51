"""Write the model folder: ONNX files (FP32 and FP16), configuration, reference weights; and check them against PyTorch.

    python export.py --weights ../hf --out OUT [--check 30]     the committed weights
    python export.py --weights ckpt.pt --out OUT                a checkpoint of train.py

The FP16 files keep FP32 inputs and outputs; opset 17, standard operators only.
"""
import argparse
import json
import os
import shutil

import numpy as np
import onnx
import torch
from torch import nn

import model as M
import scenes

MASKED = -10000.0     # additive mask; fits into fp16, where -inf would make rows without any key NaN


class Vision(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, pixel_values):
        return self.net.get_image_features(pixel_values, return_dict=True).pooler_output


class Embed(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.e = net.model.language_model.embed_tokens

    def forward(self, input_ids):
        return self.e(input_ids)  # the name is in the file


class Decoder(nn.Module):
    """Qwen2 with an explicit KV cache, in plain operators over the trained modules' weights."""

    def __init__(self, net):
        super().__init__()
        self.lm, self.head, c = net.model.language_model, net.lm_head, net.config.text_config
        self.n_heads, self.n_kv = c.num_attention_heads, c.num_key_value_heads
        self.d_head, self.eps = c.hidden_size // c.num_attention_heads, c.rms_norm_eps
        theta = c.rope_parameters["rope_theta"]
        self.register_buffer("inv", theta ** (-torch.arange(0, self.d_head, 2).float() / self.d_head))

    def norm(self, x, w):
        return w * (x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.eps))

    def forward(self, inputs_embeds, attention_mask, position_ids, *past):
        B, S, _ = inputs_embeds.shape
        P = past[0].shape[2]
        d, half = self.d_head, self.d_head // 2
        angle = position_ids[:, :, None].float() * self.inv
        cos, sin = (torch.cat([f(angle)] * 2, -1)[:, None] for f in (torch.cos, torch.sin))

        def rotate(x):
            return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin

        row = torch.arange(S)[:, None] + P            # causal by cache index, not by position id
        visible = (torch.arange(S + P)[None] <= row)[None, None] & (attention_mask > 0)[:, None, None, :]
        bias = torch.where(visible, 0.0, MASKED)
        x, present = inputs_embeds, []
        for i, layer in enumerate(self.lm.layers):
            a, n = layer.self_attn, self.norm(x, layer.input_layernorm.weight)
            q = rotate(a.q_proj(n).view(B, S, self.n_heads, d).transpose(1, 2))
            k = rotate(a.k_proj(n).view(B, S, self.n_kv, d).transpose(1, 2))
            v = a.v_proj(n).view(B, S, self.n_kv, d).transpose(1, 2)
            k, v = torch.cat([past[2 * i], k], 2), torch.cat([past[2 * i + 1], v], 2)
            present += [k, v]
            group = self.n_heads // self.n_kv
            kk, vv = (t[:, :, None].expand(B, self.n_kv, group, S + P, d).reshape(B, self.n_heads, S + P, d) for t in (k, v))
            w = torch.softmax(q @ kk.transpose(2, 3) * d ** -0.5 + bias, -1)
            x = x + a.o_proj((w @ vv).transpose(1, 2).reshape(B, S, self.n_heads * d))
            n = self.norm(x, layer.post_attention_layernorm.weight)
            x = x + layer.mlp.down_proj(nn.functional.silu(layer.mlp.gate_proj(n)) * layer.mlp.up_proj(n))
        return (self.head(self.norm(x, self.lm.norm.weight)), *present)


def export_onnx(net, out):
    os.makedirs(f"{out}/onnx", exist_ok=True)
    c = net.config.text_config
    n, d = c.num_hidden_layers, c.hidden_size // c.num_attention_heads
    torch.manual_seed(0)                              # the example inputs

    def write(wrapper, args, name, inputs, outputs, dynamic):
        # .eval() on the wrapper: torch.onnx.export restores the wrapper's own mode recursively, and a new one is in
        # train mode, so without it the second export would see a model in train mode.
        with torch.no_grad():
            torch.onnx.export(wrapper.eval(), args, f"{out}/onnx/{name}.onnx", input_names=inputs, output_names=outputs,
                              dynamic_axes=dynamic, opset_version=17, dynamo=False, do_constant_folding=True)

    write(Vision(net), (torch.rand(2, 3, M.SIDE, M.SIDE),), "vision_encoder", ["pixel_values"], ["image_features"],
          {"pixel_values": {0: "batch", 2: "height", 3: "width"}, "image_features": {0: "batch", 1: "tokens"}})
    rows = {0: "batch", 1: "sequence_length"}
    write(Embed(net), (torch.zeros(1, 5, dtype=torch.long),), "embed_tokens", ["input_ids"], ["inputs_embeds"],
          {"input_ids": rows, "inputs_embeds": rows})
    names = [f"{i}.{t}" for i in range(n) for t in ("key", "value")]
    past, present = [f"past_key_values.{s}" for s in names], [f"present.{s}" for s in names]
    dynamic = {"inputs_embeds": rows, "attention_mask": {0: "batch", 1: "total_sequence_length"}, "position_ids": rows, "logits": rows}
    dynamic |= {s: {0: "batch", 2: "past_sequence_length"} for s in past}
    dynamic |= {s: {0: "batch", 2: "total_sequence_length"} for s in present}
    cache = [torch.randn(2, c.num_key_value_heads, 7, d) for _ in past]
    args = (torch.randn(2, 5, c.hidden_size), torch.ones(2, 12, dtype=torch.long), torch.arange(7, 12)[None].repeat(2, 1), *cache)
    write(Decoder(net), args, "decoder_model_merged", ["inputs_embeds", "attention_mask", "position_ids"] + past, ["logits"] + present, dynamic)

    from onnxruntime.transformers.float16 import convert_float_to_float16
    for name in ("vision_encoder", "embed_tokens", "decoder_model_merged"):
        m = onnx.load(f"{out}/onnx/{name}.onnx")
        onnx.checker.check_model(m)
        assert all(node.domain == "" for node in m.graph.node), "standard operators only"
        onnx.save(convert_float_to_float16(m, keep_io_types=True, op_block_list=["Range"]), f"{out}/onnx/{name}_fp16.onnx")


def write_configs(net, out):
    def dump(name, value):
        with open(f"{out}/{name}", "w") as f:
            json.dump(value, f, indent=2)

    net.save_pretrained(f"{out}/hf", safe_serialization=True)
    net.config.save_pretrained(out)
    with open(f"{out}/config.json") as f:
        config = json.load(f)
    config.pop("architectures", None)                 # to the end, as it was
    for part in (config, config["text_config"]):      # there only when the weights came from a folder
        part.pop("dtype", None)
    dump("config.json", dict(config, architectures=["FastVlmForConditionalGeneration"]))
    dump("generation_config.json", dict(do_sample=False, eos_token_id=M.EOS, pad_token_id=M.PAD, max_new_tokens=48))
    dump("preprocessor_config.json", dict(
        image_processor_type="CLIPImageProcessor", processor_class="LlavaProcessor", do_convert_rgb=True, do_resize=True,
        size={"shortest_edge": M.SIDE}, resample=3, do_center_crop=True, crop_size=dict(height=M.SIDE, width=M.SIDE),
        do_rescale=True, rescale_factor=1 / 255, do_normalize=True, image_mean=[0.0] * 3, image_std=[1.0] * 3))
    dump("processor_config.json", dict(processor_class="LlavaProcessor", image_token="<image>", patch_size=16,
                                       num_additional_image_tokens=0, vision_feature_select_strategy="full",
                                       image_seq_length=M.N_VISUAL))
    dump("special_tokens_map.json", dict(eos_token="<|im_end|>", pad_token="<|endoftext|>",
                                         additional_special_tokens=["<|im_start|>", "<|im_end|>", "<image>"]))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"{M.FOLDER}/{name}", out)


class OnnxModel:
    """Greedy decoding of the exported files by onnxruntime."""

    def __init__(self, folder, suffix=""):
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.vision, self.embed, self.decoder = (
            onnxruntime.InferenceSession(f"{folder}/onnx/{f}{suffix}.onnx", options, providers=["CPUExecutionProvider"])
            for f in ("vision_encoder", "embed_tokens", "decoder_model_merged"))
        self.past = [i for i in self.decoder.get_inputs() if i.name.startswith("past")]

    def generate(self, px, ids, max_new_tokens=48):
        """-> token ids, logits of the first one."""
        features = self.vision.run(None, {"pixel_values": px})[0]
        ids = np.array([ids], np.int64)
        x = self.embed.run(None, {"input_ids": ids})[0]
        x[ids == M.IMAGE] = features.reshape(-1, features.shape[-1])
        past = {i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32) for i in self.past}
        n, out, first = 0, [], None
        while len(out) < max_new_tokens:
            rows = x.shape[1]
            logits, *present = self.decoder.run(None, dict(
                inputs_embeds=x, attention_mask=np.ones((1, n + rows), np.int64), position_ids=np.arange(n, n + rows)[None], **past))
            past = {i.name: v for i, v in zip(self.past, present)}
            n += rows
            if first is None:
                first = logits[0, -1].copy()          # onnxruntime may use the buffer again
            out.append(int(logits[0, -1].argmax()))
            if out[-1] == M.EOS:
                break
            x = self.embed.run(None, {"input_ids": np.array([[out[-1]]], np.int64)})[0]
        return out, first


def check(net, folder, n):
    prompt, items = M.Prompt(), scenes.eval_items(n)
    for suffix in ("", "_fp16"):
        onnx_model, same, largest = OnnxModel(folder, suffix), 0, 0.0
        for item in items:
            px, ids = M.pixels(item["image"][None]).contiguous(), prompt.full(item["question"])
            expected = M.generate(net, px, ids)
            got, first = onnx_model.generate(px.numpy(), ids)
            with torch.no_grad():
                logits = net(input_ids=torch.tensor([ids]), pixel_values=px, logits_to_keep=1).logits[0, -1].numpy()
            same, largest = same + (expected == got), max(largest, float(np.abs(logits - first).max()))
            if expected != got:
                print("differs:", prompt.text(expected), "|", prompt.text(got))
        print(f"onnx{suffix or ' fp32'}: greedy ids equal PyTorch's on {same} of {n}; first token's logits within {largest:.1e}", flush=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--weights", default=f"{M.FOLDER}/hf")
    ap.add_argument("--out", required=True)
    ap.add_argument("--check", type=int, default=30, help="compare on this many held-out items")
    ap.add_argument("--only-check", action="store_true")
    a = ap.parse_args()
    net = M.load(a.weights)
    if not a.only_check:
        export_onnx(net, a.out)
        write_configs(net, a.out)
    check(net, a.out, a.check)


if __name__ == "__main__":
    main()
