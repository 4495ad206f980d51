"""Train the demo model.

    python train.py vision --minutes 6 --out vision.pt                        tower alone: what is in each cell
    python train.py vlm --init vision.pt --minutes 35 --out ckpt.pt           answers; --init also takes ../hf
    python train.py vlm ... --out ckpt.pt --resume                            go on where an interrupted run stopped

Each image carries several question/answer blocks in one sequence: every block sees the image prefix and itself only
(block mask, positions restart after the prefix), which equals that many separate prompts. The auxiliary head of the tower
stage lives here only; it is no part of the exported model.

The learning rate follows a cosine over --steps, or over --minutes of wall time: then a slow machine finishes cleanly too,
but gives other weights. Runs on a CPU (bf16 autocast) or a GPU.
"""
import argparse
import json
import math
import os
import queue
import random
import threading
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import model as M
import scenes

TEXT_SLOTS = 168                    # text positions per image
FAMILY_WEIGHTS = dict(find=2.2, count=2.2, near=2.0, color=0.8, describe=1.0)
WARMUP_STEPS = 150
SAVE_SECONDS = 150
CELL = M.SIDE // M.GRID
DEV_SEED0 = scenes.EVAL_SEED0 + 500_000   # scenes to watch progress on; apart from the held-out items


class Aux(nn.Module):
    """Dense head over the tower's feature map, per cell: class of the object whose centre is there (7), class that covers the
    cell (7), colour of the centre object (6) and its x, y (2); of the image: background (3)."""

    def __init__(self, d):
        super().__init__()
        self.fc, self.bg, self.xy = nn.Linear(d, 20), nn.Linear(d, 3), nn.Linear(d, 2)

    def forward(self, features, target):
        x = features.flatten(2).transpose(1, 2).float()
        y = self.fc(x)
        center, covered, color = target["center"].flatten(), target["covered"].flatten(), target["color"].flatten()
        rare = [1.0] * 6                              # most cells are empty
        loss = F.cross_entropy(y[..., :7].reshape(-1, 7), center, weight=y.new_tensor([0.15] + rare))
        loss = loss + 0.5 * F.cross_entropy(y[..., 7:14].reshape(-1, 7), covered, weight=y.new_tensor([0.4] + rare))
        loss = loss + 0.3 * F.cross_entropy(self.bg(x.mean(1)), target["background"])
        there = center > 0
        if there.any():
            loss = loss + 0.5 * F.cross_entropy(y[..., 14:].reshape(-1, 6)[there], color[there])
            loss = loss + 2 * F.smooth_l1_loss(self.xy(x).reshape(-1, 2)[there], target["xy"].reshape(-1, 2)[there], beta=0.1)
        with torch.no_grad():
            class_right = (y[..., :7].reshape(-1, 7)[there].argmax(1) == center[there]).float().mean()
            color_right = (y[..., 14:].reshape(-1, 6)[there].argmax(1) == color[there]).float().mean()
        return loss, class_right, color_right


def dense_targets(metas):
    n = len(metas)
    center, covered, color = (np.zeros((n, M.GRID, M.GRID), np.int64) for _ in range(3))
    xy = np.zeros((n, M.GRID, M.GRID, 2), np.float32)
    middle = (np.arange(M.GRID) + 0.5) * CELL
    for b, meta in enumerate(metas):
        for o in meta["objects"]:
            k = 1 + scenes.CLASSES.index(o["cls"])
            x0, y0, x1, y1 = o["box"]
            sx, sy = (x1 - x0) * .1, (y1 - y0) * .1
            xs, ys = (middle > x0 + sx) & (middle < x1 - sx), (middle > y0 + sy) & (middle < y1 - sy)
            covered[b][np.ix_(ys, xs)] = k
            i, j = int(o["y"] // CELL), int(o["x"] // CELL)
            center[b, i, j], covered[b, i, j], color[b, i, j] = k, k, scenes.COLORS.index(o["color"])
            xy[b, i, j] = o["x"] / 128 - 1, o["y"] / 128 - 1
    background = torch.tensor([scenes.BACKGROUNDS.index(meta["background"]) for meta in metas])
    return dict(center=torch.from_numpy(center), covered=torch.from_numpy(covered), color=torch.from_numpy(color),
                xy=torch.from_numpy(xy), background=background)


def pack(prompt, metas, rng):
    """Fill each image's text slots with question/answer blocks.

    -> dict of ids, position, block [n, TEXT_SLOTS] (block -1: padding); per answer token: row, slot before it, target,
    weight, index of its question; and the list of (family, question, answer)."""
    n, n_prefix = len(metas), len(prompt.prefix)
    ids, position = np.full((n, TEXT_SLOTS), M.PAD, np.int64), np.zeros((n, TEXT_SLOTS), np.int64)
    block = np.full((n, TEXT_SLOTS), -1, np.int64)
    row, slot, target, weight, asked, questions = [], [], [], [], [], []
    families, family_weights = list(FAMILY_WEIGHTS), list(FAMILY_WEIGHTS.values())
    for b, meta in enumerate(metas):
        used, k, seen = 0, 0, set()
        for _ in range(14):
            family = rng.choices(families, family_weights)[0]
            pair = scenes.qa(meta, family, rng)
            if pair is None or pair in seen:
                continue
            seen.add(pair)
            q, a = prompt.question(pair[0]), prompt.answer(pair[1])
            length = len(q) + len(a) - 1              # the closing <|im_end|> is only a target
            if used + length > TEXT_SLOTS:
                continue
            here = slice(used, used + length)
            ids[b, here], position[b, here], block[b, here] = q + a[:-1], n_prefix + np.arange(length), k
            for i, token in enumerate(a):
                row.append(b)
                slot.append(used + len(q) - 1 + i)
                target.append(token)
                weight.append(len(a) ** -0.5)
                asked.append(len(questions))
            questions.append((family, *pair))
            used, k = used + length, k + 1
    return dict(ids=torch.from_numpy(ids), position=torch.from_numpy(position), block=torch.from_numpy(block), row=torch.tensor(row),
                slot=torch.tensor(slot), target=torch.tensor(target), weight=torch.tensor(weight), asked=torch.tensor(asked)), questions


def block_mask(block, n_prefix):
    """bool [n, 1, s, s], true = may attend: the prefix, and earlier tokens of the same block."""
    n, slots = block.shape
    s = n_prefix + slots
    m = torch.ones(s, s, dtype=torch.bool, device=block.device).tril().expand(n, s, s).clone()
    m[:, n_prefix:, n_prefix:] &= block[:, :, None] == block[:, None, :]
    return m[:, None]


def choose_tokens(target, k):
    """Curriculum: k of the visual tokens per image, those with objects first, then random ones; ascending."""
    wanted = (target["covered"].flatten(1) > 0).float() + 2 * (target["center"].flatten(1) > 0).float()
    return (wanted + torch.rand(wanted.shape, device=wanted.device)).topk(k, dim=1).indices.sort(1).values


class AlignLoss:
    """A visual token, read through the tied output head, should name what is there: class, colour, row, column; or the
    background. (In the spirit of LLaVA's first stage.)"""

    def __init__(self, prompt, device):
        def first_ids(words):
            return torch.tensor([prompt.tokenizer.encode(" " + w).ids[0] for w in words], device=device)
        self.cls, self.color, self.background = first_ids(scenes.CLASSES), first_ids(scenes.COLORS), first_ids(scenes.BACKGROUNDS)
        self.vertical, self.horizontal = first_ids(("top", "center", "bottom")), first_ids(("left", "center", "right"))

    def __call__(self, net, visual, target):
        logp = net.lm_head(net.model.language_model.norm(visual)).float().log_softmax(-1)
        center = target["center"].flatten(1)
        b, i = (center > 0).nonzero(as_tuple=True)
        k = center[b, i] - 1
        at = logp[b, i]

        def score(ids):
            return at.gather(1, ids[:, None])[:, 0]

        def third(v):
            return ((v + 0.5) * 3 / M.GRID).long()
        tree = k == scenes.CLASSES.index("tree")
        color = torch.where(tree, score(self.cls[k]), score(self.color[target["color"].flatten(1)[b, i]]))
        place = score(self.vertical[third(i // M.GRID)]) + score(self.horizontal[third(i % M.GRID)])
        objects = -(0.4 * score(self.cls[k]) + 0.3 * color + 0.15 * place).mean()
        named = logp.gather(2, self.background[target["background"]][:, None, None].expand(-1, logp.shape[1], 1))[..., 0]
        return objects - 0.2 * (named * (target["covered"].flatten(1) == 0)).mean()


def forward(net, prompt, px, packed, tower, keep=None, frozen=False):
    """-> logits at the answer slots, tower feature map, visual tokens. keep [n, k]: visual tokens shown to the language model,
    at their own positions."""
    with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
        features = tower(px)
    visual = net.model.multi_modal_projector(features.flatten(2).permute(0, 2, 1)).float()
    lm, device = net.model.language_model, px.device
    n, n_head, n_prefix = len(px), len(prompt.head), len(prompt.prefix)
    shown = visual if keep is None else visual.gather(1, keep[..., None].expand(-1, -1, visual.shape[-1]))
    prefix = lm.embed_tokens(torch.tensor(prompt.prefix, device=device))
    x = torch.cat([prefix[None, :n_head].expand(n, -1, -1), shown, prefix[None, n_head + M.N_VISUAL:].expand(n, -1, -1),
                   lm.embed_tokens(packed["ids"])], 1)
    at = torch.arange(n_prefix, device=device).expand(n, -1)
    if keep is not None:
        at = torch.cat([at[:, :n_head], n_head + keep, at[:, -1:]], 1)
    mask = block_mask(packed["block"], at.shape[1])
    h = lm(inputs_embeds=x, attention_mask=mask, position_ids=torch.cat([at, packed["position"]], 1), use_cache=False).last_hidden_state
    return net.lm_head(h[packed["row"], at.shape[1] + packed["slot"]]), features, visual


class Pool:
    """Pre-rendered scenes of `scenes.py pool`, flipped at random."""

    def __init__(self, path):
        self.images = np.load(path + ".npy", mmap_mode="r")
        with open(path + ".jsonl") as f:
            self.metas = [json.loads(line) for line in f]

    def batch(self, rng, n):
        images, metas = np.empty((n, M.SIDE, M.SIDE, 3), np.uint8), []
        for b in range(n):
            i, k = rng.randrange(len(self.metas)), rng.randrange(8)
            image = self.images[i]
            if k & 1:
                image = image[:, ::-1]
            if k & 2:
                image = image[::-1]
            if k & 4:
                image = image.transpose(1, 0, 2)
            images[b] = image
            metas.append(scenes.d4(self.metas[i], k))
        return images, metas


def prefetch(make, depth=4):
    q = queue.Queue(depth)

    def work():
        while True:
            q.put(make())
    threading.Thread(target=work, daemon=True).start()
    return q.get


@torch.no_grad()
def progress_report(net, prompt, device, n=96, seed0=DEV_SEED0, cache={}):
    """Exact match per family on scenes apart from training and evaluation, by teacher forcing (all argmaxes right means that
    greedy decoding gives exactly this answer)."""
    if n not in cache:
        cache[n] = [scenes.scene(seed0 + i) for i in range(n)]
    was_training = net.model.vision_tower.training
    net.eval()
    tower, right, total = net.model.vision_tower.timm_model.forward_features, {}, {}
    for start in range(0, n, 32):
        part = cache[n][start:start + 32]
        packed, questions = pack(prompt, [meta for _, meta in part], random.Random(start))
        packed = {k: v.to(device) for k, v in packed.items()}
        px = M.pixels(np.stack([image for image, _ in part])).to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            logits, _, _ = forward(net, prompt, px, packed, tower)
        wrong = set(packed["asked"][logits.argmax(1) != packed["target"]].tolist())
        for i, (family, _, _) in enumerate(questions):
            total[family] = total.get(family, 0) + 1
            right[family] = right.get(family, 0) + (i not in wrong)
    net.train()
    net.model.vision_tower.train(was_training)
    return {f: round(right[f] / total[f], 3) for f in scenes.FAMILIES if f in total}


def optimizer_of(net, aux, stage, lr, tower_lr, fused):
    tower = list(net.model.vision_tower.parameters()) + list(aux.parameters())
    in_tower = {id(p) for p in tower}
    rest = [p for p in net.parameters() if id(p) not in in_tower] if stage == "vlm" else []
    groups = []
    for params, base in ((tower, tower_lr), (rest, lr)):
        for params, decay in (([p for p in params if p.ndim > 1], 0.05), ([p for p in params if p.ndim <= 1], 0.0)):
            if params:
                groups.append(dict(params=params, lr=base, base=base, weight_decay=decay))
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=fused)


def arguments():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("stage", choices=["vision", "vlm"])
    ap.add_argument("--out", required=True, help="checkpoint; written every 150 s and at the end")
    ap.add_argument("--init", help="start from this checkpoint, or folder of transformers weights")
    ap.add_argument("--resume", action="store_true", help="go on from --out if it exists: weights, optimizer, time used")
    length = ap.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float)
    length.add_argument("--steps", type=int)
    ap.add_argument("--pool", default="pool", help="of scenes.py pool, without suffix")
    ap.add_argument("--batch", type=int, default=8)
    ap.add_argument("--lr", type=float, default=2e-3)
    ap.add_argument("--tower-lr", type=float, help="default: --lr")
    ap.add_argument("--aux", type=float, default=0.3, help="weight of the dense loss, decaying (vlm, tower not frozen)")
    ap.add_argument("--align", type=float, default=0.0, help="weight of the alignment loss, decaying")
    ap.add_argument("--freeze", action="store_true", help="freeze the tower")
    ap.add_argument("--curriculum", default="", help="0.35:40,0.55:96 = 40 visual tokens for the first 35 %% of the run, ...; then all")
    ap.add_argument("--compile", action="store_true", help="torch.compile tower and language model")
    ap.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    ap.add_argument("--seed", type=int, default=0)
    return ap.parse_args()


class Trainer:
    def __init__(self, a):
        self.a, self.device = a, torch.device(a.device)
        torch.manual_seed(a.seed)
        self.rng, self.prompt = random.Random(a.seed), M.Prompt()
        self.net, self.aux = M.build(), Aux(384)
        self.step, self.used_s = 0, 0.0
        state = self._initial_state()
        self.net = self.net.train().to(self.device, memory_format=torch.channels_last)
        self.aux.to(self.device)
        if self.device.type == "cpu":
            M.fast_cpu_training(self.net)
        if a.freeze:
            self.net.model.vision_tower.requires_grad_(False).eval()
        self.tower = self.net.model.vision_tower.timm_model.forward_features
        if a.compile:
            self.tower = torch.compile(self.tower, dynamic=False)
            self.net.model.language_model.compile(dynamic=False)
        self.optimizer = optimizer_of(self.net, self.aux, a.stage, a.lr, a.tower_lr or a.lr, fused=True)
        if state and "optimizer" in state:
            self.optimizer.load_state_dict(state["optimizer"])
        self.align = AlignLoss(self.prompt, self.device)
        self.plan = [(float(t), int(k)) for t, k in (x.split(":") for x in a.curriculum.split(",") if x)]
        pool = Pool(a.pool)

        def make():
            images, metas = pool.batch(self.rng, a.batch)
            packed = pack(self.prompt, metas, self.rng)[0] if a.stage == "vlm" else None
            return M.pixels(images), dense_targets(metas), packed
        self.next_batch = prefetch(make)

    def _initial_state(self):
        """Weights from --out (with --resume) or --init; the state to resume from, if any."""
        a = self.a
        if a.resume and os.path.exists(a.out):
            state = torch.load(a.out, map_location="cpu")
            self.step, self.used_s = state["step"], state["used_s"]
            self.rng.seed(a.seed + self.step)         # other batches than those already seen
            print(f"resuming at step {self.step} after {self.used_s:.0f} s", flush=True)
        elif a.init and os.path.isdir(a.init):
            self.net.load_state_dict(M.load(a.init).state_dict())
            return None
        elif a.init:
            state = torch.load(a.init, map_location="cpu")
            state.pop("optimizer", None)
        else:
            return None
        self.net.load_state_dict(state["net"])
        self.aux.load_state_dict(state["aux"], strict=False)
        return state

    def save(self):
        state = dict(net=self.net.state_dict(), aux=self.aux.state_dict(), optimizer=self.optimizer.state_dict(),
                     step=self.step, used_s=self.used_s)
        torch.save(state, self.a.out + ".part")
        os.replace(self.a.out + ".part", self.a.out)

    def loss(self, px, target, packed, progress):
        a, figures = self.a, {}
        if a.stage == "vision":
            with torch.autocast(self.device.type, torch.bfloat16):
                features = self.tower(px)
            loss, figures["class"], figures["color"] = self.aux(features, target)
            return loss, figures
        with torch.autocast(self.device.type, torch.bfloat16):
            k = next((k for until, k in self.plan if progress < until), None)
            keep = choose_tokens(target, k) if k else None
            logits, features, visual = forward(self.net, self.prompt, px, packed, self.tower, keep, a.freeze)
            logits = logits.float()
            token_loss = F.cross_entropy(logits, packed["target"], reduction="none")
            loss = figures["lm"] = (token_loss * packed["weight"]).sum() / packed["weight"].sum()
            figures["token"] = (logits.argmax(1) == packed["target"]).float().mean()
        if not a.freeze:
            dense, figures["class"], figures["color"] = self.aux(features, target)
            loss = loss + a.aux * (1 - progress) * dense
        if a.align:
            figures["align"] = self.align(self.net, visual, target)
            loss = loss + a.align * (1 - progress) * figures["align"]
        return loss, figures

    def one_step(self, progress):
        factor = min(1, (self.step + 1) / WARMUP_STEPS) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
        for g in self.optimizer.param_groups:
            g["lr"] = g["base"] * factor
        px, target, packed = self.next_batch()
        px = px * (1 + 0.1 * (torch.rand(len(px), 1, 1, 1) - 0.5))    # brightness
        px = px.to(self.device).contiguous(memory_format=torch.channels_last)
        target = {k: v.to(self.device) for k, v in target.items()}
        packed = packed and {k: v.to(self.device) for k, v in packed.items()}
        loss, figures = self.loss(px, target, packed, progress)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        trained = [p for g in self.optimizer.param_groups for p in g["params"] if p.grad is not None]
        figures["gradient"] = nn.utils.clip_grad_norm_(trained, 1.0)
        self.optimizer.step()
        self.step += 1
        return dict(figures, loss=loss)

    def run(self):
        a, mean = self.a, {}
        started = last_save = time.time() - self.used_s
        while True:
            self.used_s = time.time() - started
            progress = self.step / a.steps if a.steps else self.used_s / (a.minutes * 60)
            if progress >= 1:
                break
            for k, v in self.one_step(progress).items():
                v = float(v.detach())
                mean[k] = 0.98 * mean.get(k, v) + 0.02 * v
            if self.step % 50 == 0 or self.step in (1, 5, 20):
                said = " ".join(f"{k} {v:.3f}" for k, v in mean.items())
                print(f"step {self.step} {time.time() - started:.0f} s {100 * progress:.0f} % {said}", flush=True)
            if time.time() - last_save > SAVE_SECONDS:
                self.save()
                if a.stage == "vlm":
                    print("exact match", progress_report(self.net, self.prompt, self.device), flush=True)
                last_save = time.time()
        self.save()
        if a.stage == "vlm":
            print("exact match", progress_report(self.net, self.prompt, self.device, 256), flush=True)


if __name__ == "__main__":
    Trainer(arguments()).run()
