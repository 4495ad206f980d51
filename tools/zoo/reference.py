"""Random-weight, structure-faithful FastVLM-0.5B / SmolVLM-256M: recipes, PyTorch models, prompts, images.

Everything is a pure function of (model, size, seed).  All parameters are exact bfloat16 values (the published
checkpoints are bfloat16 too), each drawn from its own generator keyed by (seed, parameter name), and the
LSUV-like rescaling of the FastViT tower uses powers of two only, so a rebuild gives bit-identical weights
even where a different thread count changes the last bits of an activation.
"""
import math
import zlib

import numpy as np
import torch

torch.set_flush_denormal(True)

# ---------------------------------------------------------------------------------------------- recipes
RECIPES = {
    ("fastvlm-0.5b", "full"): dict(
        family="fastvlm", px=1024, img_tokens=256, d=896, ff=4864, layers=24, heads=14, kv_heads=2, head_dim=64,
        vocab=151936, base_vocab=151643, image_id=151646, eos_id=151645, bos_id=151643, pad_id=151643,
        theta=1e6, eps=1e-6, max_pos=32768, timm_args={}, vis_dim=3072),
    ("fastvlm-0.5b", "tiny"): dict(
        family="fastvlm", px=256, img_tokens=16, d=32, ff=96, layers=3, heads=4, kv_heads=2, head_dim=32,
        vocab=512, base_vocab=496, image_id=499, eos_id=498, bos_id=496, pad_id=496,
        theta=1e6, eps=1e-6, max_pos=256,
        timm_args=dict(layers=[1, 1, 1, 1, 1], embed_dims=[8, 8, 16, 32, 64], mlp_ratios=[2, 2, 2, 2, 2]),
        vis_dim=128),
    ("smolvlm-256m", "full"): dict(
        family="smolvlm", px=512, patch=16, shuffle=4, img_tokens=64, d=576, ff=1536, layers=30, heads=9, kv_heads=3,
        head_dim=64, vocab=49280, base_vocab=49152, grid=6, image_id=49190, eos_id=49279, bos_id=1, pad_id=2,
        theta=1e5, eps=1e-5, max_pos=8192, vd=768, vff=3072, vlayers=12, vheads=12, longest_edge=2048),
    ("smolvlm-256m", "tiny"): dict(
        family="smolvlm", px=128, patch=16, shuffle=4, img_tokens=4, d=48, ff=96, layers=3, heads=3, kv_heads=1,
        head_dim=32, vocab=512, base_vocab=472, grid=6, image_id=510, eos_id=511, bos_id=1, pad_id=2,
        theta=1e5, eps=1e-5, max_pos=256, vd=32, vff=80, vlayers=2, vheads=2, longest_edge=512),
}
MODELS = sorted({m for m, _ in RECIPES})


def recipe(model, size):
    return dict(RECIPES[(model, size)], model=model, size=size)


# ---------------------------------------------------------------------------------------------- weights
def _gen(seed, name):
    return torch.Generator().manual_seed((seed * 1000003 + zlib.crc32(name.encode())) & 0x7FFFFFFF)


def _fill(p, seed, name, std, mean=0.0):
    x = torch.empty(p.shape, dtype=torch.float32).normal_(0.0, 1.0, generator=_gen(seed, name))
    p.data.copy_((x * std + mean).to(torch.bfloat16).float())


def _init_common(root, seed, d_text, layers):
    """Unit-scale activations through the pre-norm transformer parts and the projector."""
    for mod_name, mod in root.named_modules():
        for p_name, p in mod.named_parameters(recurse=False):
            name = f"{mod_name}.{p_name}"
            cls = type(mod).__name__
            if isinstance(mod, torch.nn.Embedding):
                _fill(p, seed, name, 0.5 if "position" in name else 3.0 / math.sqrt(d_text))
            elif "RMSNorm" in cls or isinstance(mod, torch.nn.LayerNorm):
                _fill(p, seed, name, 0.1, 1.0 if p_name == "weight" else 0.0)
            elif isinstance(mod, (torch.nn.Linear, torch.nn.Conv2d)):
                if p_name == "bias":
                    _fill(p, seed, name, 0.3 if "q_proj" in name or "k_proj" in name else 0.05)
                else:
                    # the weak attention and strong MLP branch keep greedy decoding from freezing on one token
                    gain = {"o_proj": 0.25, "down_proj": 1.5, "out_proj": 0.5, "fc2": 0.5}.get(name.rsplit(".", 2)[-2], 1.0)
                    if "o_proj" in name or "down_proj" in name:
                        gain *= math.sqrt(3 / layers)    # a deep random stack is chaotic otherwise
                    if "patch_embedding" in name:
                        gain = 2.0
                    _fill(p, seed, name, gain / math.sqrt(p[0].numel()))
            elif "gamma" in name or "layer_scale" in name:
                p.data.fill_(0.296875)
            elif p.dim() <= 1 or isinstance(mod, torch.nn.BatchNorm2d) or "norm" in name.lower():
                _fill(p, seed, name, 0.05, 1.0 if p_name == "weight" else 0.0)


def _lsuv(root, run):
    """Scale every conv/linear of a non-normalised tower to unit-ish output, powers of two only."""
    def hook(mod, _, out):
        s = float(out.std())
        if s > 0:
            k = 2.0 ** round(math.log2(s))
            mod.weight.data /= k
            if mod.bias is not None:
                mod.bias.data /= k
            return out / k
        return out
    hooks = [m.register_forward_hook(hook) for m in root.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    with torch.no_grad():
        run()
    for h in hooks:
        h.remove()


def build(model, size, seed, parts=("vision", "text")):
    """-> (recipe, VLM module).  Without "vision" in parts the tower is skipped (left tiny/uninitialised)."""
    r = recipe(model, size)
    text = dict(hidden_size=r["d"], intermediate_size=r["ff"], num_hidden_layers=r["layers"],
                num_attention_heads=r["heads"], num_key_value_heads=r["kv_heads"], head_dim=r["head_dim"],
                vocab_size=r["vocab"], rms_norm_eps=r["eps"], max_position_embeddings=r["max_pos"],
                rope_parameters=dict(rope_type="default", rope_theta=r["theta"]), tie_word_embeddings=True,
                bos_token_id=r["bos_id"], eos_token_id=r["eos_id"], pad_token_id=r["pad_id"])
    if r["family"] == "fastvlm":
        from transformers import FastVlmConfig, FastVlmForConditionalGeneration
        vis = dict(model_type="timm_wrapper", architecture="fastvit_mci3", do_pooling=True, global_pool="avg",
                   hidden_size=r["vis_dim"], model_args=dict(r["timm_args"], inference_mode=True))
        cfg = FastVlmConfig(vision_config=vis, text_config=dict(text, model_type="qwen2"), image_token_id=r["image_id"],
                            image_token_index=r["image_id"], image_seq_length=r["img_tokens"], tie_word_embeddings=True)
        cls = FastVlmForConditionalGeneration
    else:
        from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration
        vis = dict(hidden_size=r["vd"], intermediate_size=r["vff"], num_hidden_layers=r["vlayers"],
                   num_attention_heads=r["vheads"], image_size=r["px"], patch_size=r["patch"])
        cfg = SmolVLMConfig(vision_config=vis, text_config=dict(text, model_type="llama"), scale_factor=r["shuffle"],
                            image_token_id=r["image_id"], tie_word_embeddings=True, pad_token_id=r["pad_id"])
        cls = SmolVLMForConditionalGeneration
    cfg._attn_implementation = "eager"
    with torch.no_grad():
        m = cls._from_config(cfg, attn_implementation="eager").eval().float()
        m.tie_weights()
        _init_common(m, seed, r["d"], r["layers"])
        if "vision" in parts and r["family"] == "fastvlm":
            img = torch.from_numpy(preprocess(r, scene(r["px"], seed))["pixel_values"])
            _lsuv(m, lambda: vision_features(r, m, img))
    return r, m


# ---------------------------------------------------------------------------------------------- images / prompts
def scene(px, seed, n=0):
    """A deterministic u8 RGB picture [px,px,3]: gradient, rectangles, discs, stripes and a little noise."""
    g = np.random.RandomState(1000 * seed + n + 7)
    y, x = np.mgrid[0:px, 0:px].astype(np.float32) / px
    im = np.stack([40 + 160 * x, 60 + 120 * y, 200 - 120 * x * y], -1)
    for _ in range(6):
        cx, cy, w, h = g.rand(4) * [1, 1, .3, .3]
        im[(abs(x - cx) < w) & (abs(y - cy) < h)] = g.randint(0, 256, 3)
    for _ in range(6):
        cx, cy, rad = g.rand(3) * [1, 1, .18]
        im[(x - cx) ** 2 + (y - cy) ** 2 < rad ** 2] = g.randint(0, 256, 3)
    band = (abs(y - g.rand()) < .06)
    im[band] += 60 * np.sign(np.sin(2 * np.pi * 24 * x[band]))[:, None]
    im += g.randn(px, px, 3) * 4
    return im.clip(0, 255).round().astype(np.uint8)


def preprocess(r, *images):
    """u8 RGB images already of the model's side -> the vision encoder's published inputs."""
    x = np.stack([im.astype(np.float32).transpose(2, 0, 1) / 255.0 for im in images])
    if r["family"] == "fastvlm":
        return dict(pixel_values=x)                                   # 0..1, no mean/std
    x = (x - 0.5) / 0.5
    return dict(pixel_values=x[None], pixel_attention_mask=np.ones((1, len(images), r["px"], r["px"]), bool))


def vision_features(r, m, pixel_values, pixel_attention_mask=None):
    """PyTorch reference: [n_tiles, img_tokens, d]."""
    if r["family"] == "fastvlm":
        return m.model.get_image_features(pixel_values, return_dict=True).pooler_output
    out = m.model.get_image_features(pixel_values=pixel_values, pixel_attention_mask=pixel_attention_mask)
    return torch.cat([f.reshape(-1, r["img_tokens"], r["d"]) for f in out.pooler_output])


def prompt_text(r, question, n_tiles=1):
    """Chat text with the image placeholder already expanded, as each family's processor does it."""
    if r["family"] == "fastvlm":
        return ("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
                + "<image>" * r["img_tokens"] + "\n" + question + "<|im_end|>\n<|im_start|>assistant\n")
    img = "<image>" * r["img_tokens"]
    if n_tiles == 1:
        pic = "<fake_token_around_image><global-img>" + img + "<fake_token_around_image>"
    else:
        side = int(math.isqrt(n_tiles - 1))
        pic = ""
        for row in range(side):
            for col in range(side):
                pic += f"<fake_token_around_image><row_{row + 1}_col_{col + 1}>" + img
            pic += "\n"
        pic += "\n<fake_token_around_image><global-img>" + img + "<fake_token_around_image>"
    return f"<|im_start|>User:{pic}{question}<end_of_utterance>\nAssistant:"
