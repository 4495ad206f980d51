"""The demo model: transformers' FastVlmForConditionalGeneration = timm FastViT (mci3 family, shrunk) + 2-layer projector + small Qwen2."""
import os

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import nn
from transformers import FastVlmConfig, FastVlmForConditionalGeneration

FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))   # onnx/uav-tiny
SIDE, GRID = 256, 16
N_VISUAL = GRID * GRID
EOS, PAD, IMAGE = 1022, 1020, 1023


def config():
    # mci3 has 5 stages; one whose width equals the previous one's, with downsamples[i] False, does not downsample. So the
    # strides are 4, 8, 16, 16, 16, and 256 x 256 pixels give 16 x 16 tokens. Stages 3 and 4 keep mci3's attention mixer
    # and conditional position encoding (7 x 7 depthwise).
    tower = dict(layers=[1, 1, 2, 1, 2], embed_dims=[48, 96, 192, 192, 192], mlp_ratios=[2, 2, 3, 3, 3],
                 downsamples=[False, True, True, False, False], layer_scale_init_value=0.2, inference_mode=True)
    vision = dict(model_type="timm_wrapper", architecture="fastvit_mci3", do_pooling=True, global_pool="avg",
                  hidden_size=384, initializer_range=0.02, model_args=tower)
    text = dict(model_type="qwen2", hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=4,
                num_key_value_heads=2, vocab_size=1024, tie_word_embeddings=True, max_position_embeddings=1024,
                rope_theta=10000.0, rms_norm_eps=1e-6, bos_token_id=None, eos_token_id=EOS, pad_token_id=PAD,
                use_sliding_window=False)
    return FastVlmConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, image_seq_length=N_VISUAL,
                         tie_word_embeddings=True, eos_token_id=EOS, pad_token_id=PAD)


def build():
    """A new model. Single-branch convolutions without batch norm (`inference_mode`, as in FastVLM's released
    configurations) need a variance-preserving start to be trainable from scratch."""
    net = FastVlmForConditionalGeneration(config())
    for name, module in net.model.vision_tower.named_modules():
        conv = getattr(module, "reparam_conv", None)
        if not isinstance(conv, nn.Conv2d):
            continue
        if name.endswith(("token_mixer", "pos_emb")):  # these are y = conv(x), without a residual: start near identity
            nn.init.normal_(conv.weight, std=0.02)
            conv.weight.data[:, :, conv.kernel_size[0] // 2, conv.kernel_size[1] // 2] += 1.0
        else:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        nn.init.zeros_(conv.bias)
    return net


def load(path):
    """FP32, in eval mode: from a checkpoint of train.py, or from a folder of transformers weights such as ../hf."""
    if os.path.isdir(path):
        net = FastVlmForConditionalGeneration.from_pretrained(path, dtype=torch.float32)
    else:
        net = build()
        net.load_state_dict(torch.load(path, map_location="cpu")["net"])
    return net.eval().float()


def fast_cpu_training(net):
    """Take depthwise convolutions out of autocast: on a CPU their bf16 backward is 2.5 times slower than FP32."""
    def fp32_forward(m):
        def forward(x):
            with torch.autocast(x.device.type, enabled=False):
                y = F.conv2d(x.float(), m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups)
            return y.to(x.dtype)
        return forward
    for m in net.modules():
        if isinstance(m, nn.Conv2d) and m.groups > 1:
            m.forward = fp32_forward(m)
    return net


class Prompt:
    """Token ids of '<|im_start|>user\\n' + 256 image slots + '\\nQUESTION<|im_end|>\\n<|im_start|>assistant\\n'."""

    def __init__(self, folder=FOLDER):
        self.tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
        assert [self.tokenizer.token_to_id(t) for t in ("<|im_end|>", "<|endoftext|>", "<image>")] == [EOS, PAD, IMAGE]
        self.head = self._ids("<|im_start|>user\n")
        self.prefix = self.head + [IMAGE] * N_VISUAL + self._ids("\n")
        self.tail = self._ids("<|im_end|>\n<|im_start|>assistant\n")
        self.cache = {}

    def _ids(self, text):
        return self.tokenizer.encode(text).ids

    def question(self, text):
        """What follows the prefix, up to where the answer begins."""
        if text not in self.cache:
            self.cache[text] = self._ids(text) + self.tail
        return self.cache[text]

    def answer(self, text):
        return self._ids(text) + [EOS]

    def full(self, question):
        return self.prefix + self.question(question)

    def text(self, ids):
        return self.tokenizer.decode([t for t in ids if t != EOS])


def pixels(u8):
    """u8 [n, h, w, 3] -> f32 [n, 3, h, w] in 0..1; no mean, no standard deviation (as FastVLM)."""
    return torch.as_tensor(u8).permute(0, 3, 1, 2).float().div_(255.0)


@torch.no_grad()
def generate(net, px, ids, max_new_tokens=48):
    """Greedy, by transformers itself: the golden token ids, closing eos included."""
    ids = torch.tensor([ids])
    out = net.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=px, do_sample=False,
                       max_new_tokens=max_new_tokens, eos_token_id=EOS, pad_token_id=PAD)
    return out[0, ids.shape[1]:].tolist()
