"""Accuracy, golden data, and what happens when visual tokens are dropped (PyTorch, FP32).

    python eval.py items  --items ../../../calibration/items.jsonl   real greedy decoding: accuracy, and token ids against the file
    python eval.py acc    --n 200                                    exact match per family on held-out items
    python eval.py golden --n 200 --out OUT                          OUT/items.jsonl, scenes.jsonl, images/
    python eval.py prune  --n 200 --out prune.json                   exact match with the best-scored visual tokens only

`acc` and `prune` teacher-force: all argmaxes right means that greedy decoding gives exactly the reference answer. `golden`
runs the real generate() and counts how often both agree.
"""
import argparse
import json
import os

import numpy as np
import torch
from PIL import Image

import model as M
import scenes

NEG = -1e9
BATCH = 25


@torch.no_grad()
def visual_tokens(net, items):
    parts = [np.stack([i["image"] for i in items[s:s + BATCH]]) for s in range(0, len(items), BATCH)]
    return torch.cat([net.get_image_features(M.pixels(p), return_dict=True).pooler_output for p in parts])


def answers(net, prompt, visual, keep, items, repack=False, attention=False):
    """One prompt an item, padded on the right; visual [n, 256, d], keep [n, k] ascending token indices.

    -> exact match [n]; with attention also how much, per layer, the question and the last token look at each kept token."""
    n, k = keep.shape
    embed, n_head = net.model.language_model.embed_tokens, len(prompt.head)
    pairs = [(prompt.question(i["question"]), prompt.answer(i["answer"])) for i in items]
    length = max(len(q) + len(a) - 1 for q, a in pairs)
    ids = torch.full((n, length), M.PAD)
    for b, (q, a) in enumerate(pairs):
        ids[b, :len(q) + len(a) - 1] = torch.tensor(q + a[:-1])
    prefix = embed(torch.tensor(prompt.prefix))
    shown = visual.gather(1, keep[..., None].expand(-1, -1, visual.shape[-1]))
    x = torch.cat([prefix[None, :n_head].expand(n, -1, -1), shown, prefix[None, -1:].expand(n, -1, -1), embed(ids)], 1)
    size = x.shape[1]
    if repack:
        position = torch.arange(size).expand(n, -1)
    else:
        after = n_head + M.N_VISUAL + torch.arange(1 + length)
        position = torch.cat([torch.arange(n_head).expand(n, -1), n_head + keep, after.expand(n, -1)], 1)
    mask = torch.full((size, size), NEG).triu(1)[None, None].expand(n, 1, size, size)
    out = net.model.language_model(inputs_embeds=x, attention_mask=mask, position_ids=position, use_cache=False, output_attentions=attention)
    first = n_head + k + 1                            # where the question begins
    logits = net.lm_head(out.last_hidden_state[:, first:])
    right = torch.tensor([bool((logits[b, len(q) - 1:len(q) - 1 + len(a)].argmax(1) == torch.tensor(a)).all()) for b, (q, a) in enumerate(pairs)])
    if not attention:
        return right
    n_words = torch.tensor([len(q) - len(prompt.tail) for q, _ in pairs])      # the question without the chat tail
    words = (torch.arange(length)[None] < n_words[:, None]).float()
    heads = [a.mean(1)[:, :, n_head:n_head + k] for a in out.attentions]
    by_question = torch.stack([(h[:, first:] * words[..., None]).sum(1) / words.sum(1)[:, None] for h in heads])
    last_row = first + n_words + len(prompt.tail) - 1
    by_last = torch.stack([h[torch.arange(n), last_row] for h in heads])
    return right, by_question, by_last


@torch.no_grad()
def right_answers(net, prompt, visual, keep, items, **options):
    return torch.cat([answers(net, prompt, visual[s:s + BATCH], keep[s:s + BATCH], items[s:s + BATCH], **options) for s in range(0, len(items), BATCH)])


def by_family(items, right):
    def share(flags):
        return round(float(np.mean(flags)), 4) if flags else None
    flags = [(i["family"], bool(r)) for i, r in zip(items, right)]
    return {f: share([r for g, r in flags if g == f]) for f in scenes.FAMILIES} | {"all": share([r for _, r in flags])}


def all_tokens(n):
    return torch.arange(M.N_VISUAL).expand(n, -1)


def run_items(net, prompt, path):
    with open(path) as f:
        items = [json.loads(line) for line in f]
    right, same = [], 0
    for i in items:
        image = np.asarray(Image.open(os.path.join(os.path.dirname(path), i["image"])).convert("RGB"))
        ids = M.generate(net, M.pixels(image[None]), prompt.full(i["prompt"]))
        right.append(prompt.text(ids) == i["answer"])
        same += ids == i["token_ids"]
    print(by_family(items, right), f"token ids as in the file: {same} of {len(items)}")


def accuracy(net, prompt, n):
    items = scenes.eval_items(n)
    print(by_family(items, right_answers(net, prompt, visual_tokens(net, items), all_tokens(n), items)))


def golden(net, prompt, n, out):
    items = scenes.eval_items(n)
    os.makedirs(f"{out}/images", exist_ok=True)
    forced = right_answers(net, prompt, visual_tokens(net, items), all_tokens(n), items)
    right, agree = [], 0
    with open(f"{out}/items.jsonl", "w") as f, open(f"{out}/scenes.jsonl", "w") as g:
        for number, item in enumerate(items):
            image = f"images/{number:04}.png"
            Image.fromarray(item["image"]).save(f"{out}/{image}")
            prompt_ids = prompt.full(item["question"])
            ids = M.generate(net, M.pixels(item["image"][None]), prompt_ids)
            text = prompt.text(ids)
            right.append(text == item["answer"])
            agree += right[-1] == bool(forced[number])
            f.write(json.dumps(dict(image=image, family=item["family"], prompt=item["question"], answer=item["answer"], text=text,
                                    token_ids=ids, eos=[M.EOS], prompt_tokens=len(prompt_ids))) + "\n")
            meta = item["meta"]
            g.write(json.dumps(dict(image=image, background=meta["background"], objects=meta["objects"])) + "\n")
    print(by_family(items, right), f"teacher-forced and greedy agree on {agree} of {n}")


def objects_kept(keep, items):
    """Share of the objects whose centre's cell was kept."""
    def share(kept, meta):
        kept = set(kept.tolist())
        return np.mean([int(o["y"] // 16) * 16 + int(o["x"] // 16) in kept for o in meta["objects"]])
    return round(float(np.mean([share(k, i["meta"]) for k, i in zip(keep, items)])), 3)


def prune(net, prompt, n, path):
    items = scenes.eval_items(n)
    visual, lm = visual_tokens(net, items), net.model.language_model
    lm.set_attn_implementation("eager")               # the others do not return attention
    with torch.no_grad():
        parts = [answers(net, prompt, visual[s:s + BATCH], all_tokens(n)[s:s + BATCH], items[s:s + BATCH], attention=True) for s in range(0, n, BATCH)]
    lm.set_attn_implementation("sdpa")
    by_question, by_last = torch.cat([p[1] for p in parts], 1), torch.cat([p[2] for p in parts], 1)
    scores = {"random": torch.rand(n, M.N_VISUAL, generator=torch.Generator().manual_seed(0)),
              "norm, largest": visual.norm(dim=-1), "norm, smallest": -visual.norm(dim=-1)}
    for layer, s in enumerate(by_question):
        scores[f"question's attention, layer {layer}"] = s
    scores["question's attention, mean"] = by_question.mean(0)
    scores["last token's attention, mean"] = by_last.mean(0)
    rows = [dict(score="none", keep=1.0, **by_family(items, torch.cat([p[0] for p in parts])))]
    for name, s in scores.items():
        for ratio in (0.5, 0.25, 0.1):
            keep = s.topk(round(M.N_VISUAL * ratio), dim=1).indices.sort(1).values
            for repack in (False, True):
                right = right_answers(net, prompt, visual, keep, items, repack=repack)
                rows.append(dict(score=name, keep=ratio, positions="re-packed" if repack else "original",
                                 objects_kept=objects_kept(keep, items), **by_family(items, right)))
                print(rows[-1], flush=True)
    with open(path, "w") as f:
        json.dump(rows, f, indent=1)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("what", choices=["items", "acc", "golden", "prune"])
    ap.add_argument("--weights", default=f"{M.FOLDER}/hf", help="folder of transformers weights, or checkpoint of train.py")
    ap.add_argument("--items", help="an items.jsonl")
    ap.add_argument("--n", type=int, default=200)
    ap.add_argument("--out", default="eval")
    a = ap.parse_args()
    net, prompt = M.load(a.weights), M.Prompt()
    if a.what == "items":
        run_items(net, prompt, a.items)
    elif a.what == "acc":
        accuracy(net, prompt, a.n)
    elif a.what == "golden":
        golden(net, prompt, a.n, a.out)
    else:
        prune(net, prompt, a.n, a.out)


if __name__ == "__main__":
    main()
