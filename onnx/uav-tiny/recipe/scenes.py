"""Deterministic synthetic aerial scenes (256 x 256, top-down, RGB) with questions and answers.

    scene(seed) -> (u8 [256, 256, 3], meta)      the same seed gives the same pixels, for given numpy and Pillow versions
    qa(meta, family, rng) -> (question, answer), or None if that family cannot be asked of this scene
    eval_items(n) -> n held-out items, families in rotation (seeds from 1 000 000 on; training uses seeds from 0 on)

meta["objects"] = [{cls, color, x, y, box}] in pixels, box = x0, y0, x1, y1.

    python scenes.py pool N PATH       pre-render seeds 0..N-1 to PATH.npy and PATH.jsonl
    python scenes.py look N DIR        write N held-out scenes as PNG and print their descriptions
    python scenes.py items N DIR       write N scenes that neither training nor evaluation has seen (seeds from 2 000 000, or from
                                       --first on), each with a description, two other questions and, in the key `scene`,
                                       the truth: DIR/items.jsonl, DIR/images/

The order of the random calls is part of the data: moving one changes every image after it.
"""
import argparse
import json
import math
import multiprocessing
import os
import random

import numpy as np
from PIL import Image, ImageDraw

SIZE = 256
CLASSES = ["car", "truck", "building", "tree", "person", "boat"]
PLURAL = {"car": "cars", "truck": "trucks", "building": "buildings", "tree": "trees", "person": "people", "boat": "boats"}
COLORS = ["red", "green", "blue", "yellow", "white", "black"]
RGB = {"red": (205, 35, 35), "green": (20, 170, 60), "blue": (35, 70, 215), "yellow": (240, 210, 30),
       "white": (240, 240, 240), "black": (22, 22, 26)}
BACKGROUNDS = ["grass", "asphalt", "soil"]
BACKGROUND_RGB = {"grass": (104, 132, 72), "asphalt": (112, 112, 116), "soil": (162, 118, 84)}
PLACES = [["top left", "top", "top right"], ["left", "center", "right"], ["bottom left", "bottom", "bottom right"]]
NEAR = 100.0         # centres closer than this many pixels are "near"
NEAR_MARGIN = 10.0   # "near" is not asked when the closest pair is within NEAR +- NEAR_MARGIN
BAND = 6.0           # object centres keep this far from the lines of the 3 x 3 grid
FAMILIES = ["find", "count", "near", "color", "describe"]
EVAL_SEED0 = 1_000_000
DRAFT_SEED0 = 2_000_000
SS = 3               # supersampling of object sprites
GLASS = (70, 95, 115, 255)


# ------------------------------------------------------------------------------------------------ pictures
def _background(rng, kind):
    base = np.array(BACKGROUND_RGB[kind], np.float32) + rng.uniform(-10, 10) + rng.uniform(-4, 4, 3)
    img = np.broadcast_to(base.astype(np.float32), (SIZE, SIZE, 3)).copy()
    for cells, amplitude in ((6, 12), (24, 9), (80, 6)):
        noise = Image.fromarray(rng.standard_normal((cells, cells), np.float32)).resize((SIZE, SIZE), Image.BILINEAR)
        tint = (amplitude * (1 + rng.uniform(-0.15, 0.15, 3))).astype(np.float32)
        img += np.asarray(noise)[..., None] * tint
    return img


def _road(rng, img):
    angle, width = rng.uniform(0, math.pi), rng.uniform(22, 32)
    offset = rng.uniform(-70, 70)
    yy, xx = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) - np.float32(SIZE / 2)
    d = xx * np.float32(math.sin(angle)) - yy * np.float32(math.cos(angle)) - np.float32(offset)
    on = np.abs(d) < width / 2 + 0.5                   # only these pixels change
    d, t = np.abs(d[on]), (xx[on] * math.cos(angle) + yy[on] * math.sin(angle))
    m = np.clip(width / 2 - d + 0.5, 0, 1)[:, None].astype(np.float32)
    px = img[on]
    px = px * (1 - m) + np.float32(82 + rng.uniform(-8, 8)) * m + (px - px.mean(0)) * (0.25 * m)
    dash = (0.8 * np.clip(1.4 - d, 0, 1) * ((t + 500) % 18 < 9))[:, None].astype(np.float32)
    img[on] = px * (1 - dash) + 205 * dash
    return img


def _dimensions(rng, cls):
    u = rng.uniform                                    # all six are drawn, whatever the class
    return {"car": (u(23, 28), u(12, 14)), "truck": (u(37, 45), u(15, 18)), "building": (u(42, 58), u(38, 52)),
            "tree": (u(23, 31),) * 2, "person": (u(7, 8), u(11, 13)), "boat": (u(34, 42), u(13, 15))}[cls]


class _Sprite:
    """An RGBA drawing, pointing to +x, in fractions of length and width from its centre; supersampled by SS."""

    def __init__(self, length, width, rgb):
        pad = 2
        self.image = Image.new("RGBA", (int((length + 2 * pad) * SS), int((width + 2 * pad) * SS)), (0, 0, 0, 0))
        self.draw = ImageDraw.Draw(self.image)
        self.cx, self.cy = self.image.size[0] / 2, self.image.size[1] / 2
        self.length, self.width, self.rgb = length, width, rgb

    def shade(self, f):
        return tuple(int(max(0, min(255, v * f + (18 if f > 1 else 0)))) for v in self.rgb) + (255,)

    def _point(self, x, y):
        return self.cx + x * self.length * SS, self.cy + y * self.width * SS

    def box(self, x0, y0, x1, y1, color, radius=0):
        b = [*self._point(x0, y0), *self._point(x1, y1)]
        if radius:
            self.draw.rounded_rectangle(b, radius * SS, fill=color)
        else:
            self.draw.rectangle(b, fill=color)

    def ellipse(self, x0, y0, x1, y1, color):
        self.draw.ellipse([*self._point(x0, y0), *self._point(x1, y1)], fill=color)

    def polygon(self, points, color):
        self.draw.polygon([self._point(x, y) for x, y in points], fill=color)


def _sprite(rng, cls, rgb, length, width):
    s = _Sprite(length, width, rgb)
    if cls == "car":
        s.box(-.5, -.5, .5, .5, s.shade(1), 4)
        s.box(.08, -.4, .24, .4, GLASS, 1)
        s.box(-.36, -.36, -.26, .36, GLASS, 1)
        s.box(-.24, -.34, .06, .34, s.shade(1.12), 1)
    elif cls == "truck":
        s.box(-.5, -.5, .22, .5, s.shade(1))
        s.box(.26, -.46, .5, .46, s.shade(1.08), 2)
        s.box(.22, -.2, .27, .2, (50, 50, 50, 255))
        s.box(.33, -.4, .40, .4, GLASS)
        for x in (-.38, -.23, -.08, .07):
            s.box(x, -.5, x + .025, .5, s.shade(.7))
    elif cls == "building":
        s.box(-.5, -.5, .5, .5, s.shade(.82))
        s.box(-.46, -.46, .46, 0, s.shade(1.08))
        s.box(-.46, 0, .46, .46, s.shade(.92))
        s.box(.12, -.32, .28, -.16, (150, 150, 150, 255))
        s.box(-.5, -.012, .5, .012, s.shade(.6))
    elif cls == "tree":
        s.ellipse(-.42, -.42, .42, .42, s.shade(.8))
        for _ in range(16):
            a, r, k = rng.uniform(0, 6.283), rng.uniform(.1, .34), rng.uniform(.1, .18)
            x, y = r * math.cos(a), r * math.sin(a)
            s.ellipse(x - k, y - k, x + k, y + k, s.shade(rng.uniform(.6, 1.35)))
    elif cls == "person":
        s.ellipse(-.5, -.5, .5, .5, s.shade(1))
        s.ellipse(-.3, -.2, .42, .2, (205, 160, 130, 255))
        s.ellipse(-.3, -.17, .15, .17, (60, 40, 30, 255))
    elif cls == "boat":
        s.polygon([(-.5, -.4), (-.42, -.5), (.15, -.5), (.5, 0), (.15, .5), (-.42, .5), (-.5, .4)], s.shade(1))
        s.polygon([(-.4, -.3), (.12, -.3), (.34, 0), (.12, .3), (-.4, .3)], (196, 170, 128, 255))
        s.box(-.2, -.2, .02, .2, s.shade(.9))
        s.box(-.05, -.2, .02, .2, GLASS)
    return s.image


def _rotate(image, degrees):
    image = image.rotate(degrees, Image.BILINEAR, expand=True)
    return image.resize(tuple(max(1, v // SS) for v in image.size), Image.BOX)


def _paste(img, sprite, x, y, flat_rgb=None, strength=1.0):
    """Alpha-blend a sprite centred at (x, y); with flat_rgb, paint that colour through its alpha (a shadow)."""
    w, h = sprite.size
    a = np.asarray(sprite, np.float32)
    x0, y0 = int(round(x - w / 2)), int(round(y - h / 2))
    sx, sy = max(0, -x0), max(0, -y0)
    ex, ey = min(w, SIZE - x0), min(h, SIZE - y0)
    if ex <= sx or ey <= sy:
        return
    a = a[sy:ey, sx:ex]
    alpha = a[..., 3:4] / 255 * strength
    region = img[y0 + sy:y0 + ey, x0 + sx:x0 + ex]
    region[:] = region * (1 - alpha) + (a[..., :3] if flat_rgb is None else flat_rgb) * alpha


def _place_objects(rng):
    n = int(rng.integers(1, 7))
    dominant = CLASSES[rng.integers(6)] if rng.random() < 0.45 else None
    p_dominant = rng.choice([0.5, 0.75, 1.0])
    objects, lines = [], (SIZE / 3, 2 * SIZE / 3)
    for _ in range(n):
        cls = dominant if dominant and rng.random() < p_dominant else CLASSES[rng.integers(6)]
        color = "green" if cls == "tree" else COLORS[rng.integers(6)]
        for _attempt in range(60):
            length, width = _dimensions(rng, cls)
            rotation = rng.uniform(0, 360)
            c, s = abs(math.cos(math.radians(rotation))), abs(math.sin(math.radians(rotation)))
            hw, hh = (length * c + width * s) / 2, (length * s + width * c) / 2
            if cls == "tree":
                hw = hh = length * .48
            x, y = rng.uniform(hw + 4, SIZE - hw - 4), rng.uniform(hh + 4, SIZE - hh - 4)
            if min(abs(v - line) for v in (x, y) for line in lines) < BAND:
                continue
            m = 10 if cls == "boat" or any(o["cls"] == "boat" for o in objects) else 5
            if any(abs(x - o["x"]) < hw + o["hw"] + m and abs(y - o["y"]) < hh + o["hh"] + m for o in objects):
                continue
            objects.append(dict(cls=cls, color=color, x=x, y=y, hw=hw, hh=hh, length=length, width=width, rotation=rotation))
            break
    return objects


def _pond(o):
    w = Image.new("L", (int((o["length"] + 22) * SS), int((o["width"] + 24) * SS)), 0)
    ImageDraw.Draw(w).ellipse([0, 0, w.size[0] - 1, w.size[1] - 1], fill=255)
    w = _rotate(w, o["rotation"])
    return Image.merge("RGBA", [Image.new("L", w.size, v) for v in (52, 104, 138)] + [w])


def scene(seed):
    rng = np.random.default_rng(seed)
    background = BACKGROUNDS[rng.integers(3)]
    img = _road(rng, _background(rng, background))
    objects = _place_objects(rng)
    sun, shadow = rng.uniform(0, 2 * math.pi), rng.uniform(2.0, 4.5)
    for o in objects:                                  # ponds first, they lie below everything
        if o["cls"] == "boat":
            _paste(img, _pond(o), o["x"], o["y"], strength=0.92)
    for o in objects:
        rgb = np.array((52, 98, 44) if o["cls"] == "tree" else RGB[o["color"]], np.float32) + rng.uniform(-10, 10, 3)
        sprite = _rotate(_sprite(rng, o["cls"], rgb, o["length"], o["width"]), o["rotation"])
        height = {"building": 2.4, "tree": 1.7, "person": 0.9}.get(o["cls"], 1.0) * shadow
        _paste(img, sprite, o["x"] + height * math.cos(sun), o["y"] + height * math.sin(sun), np.float32(18), 0.55)
        _paste(img, sprite, o["x"], o["y"])
    img *= (rng.uniform(0.75, 1.15) * (1 + rng.uniform(-0.05, 0.05, 3))).astype(np.float32)
    img += rng.standard_normal(img.shape, np.float32) * np.float32(rng.uniform(2, 7))
    img = np.clip(img + 0.5, 0, 255).astype(np.uint8)
    objects.sort(key=lambda o: (o["y"], o["x"]))
    truth = [dict(cls=o["cls"], color=o["color"], x=round(o["x"], 2), y=round(o["y"], 2),
                  box=[round(v, 2) for v in (o["x"] - o["hw"], o["y"] - o["hh"], o["x"] + o["hw"], o["y"] + o["hh"])])
             for o in objects]
    return img, dict(seed=int(seed), background=background, objects=truth)


def d4(meta, k):
    """Ground truth under the k-th of the 8 flips: bit 0 mirrors x, bit 1 mirrors y, bit 2 transposes, last."""
    if k == 0:
        return meta
    flipped = []
    for o in meta["objects"]:
        x, y, b = o["x"], o["y"], list(o["box"])
        if k & 1:
            x, b[0], b[2] = SIZE - x, SIZE - b[2], SIZE - b[0]
        if k & 2:
            y, b[1], b[3] = SIZE - y, SIZE - b[3], SIZE - b[1]
        if k & 4:
            x, y, b = y, x, [b[1], b[0], b[3], b[2]]
        flipped.append(dict(o, x=x, y=y, box=b))
    return dict(meta, objects=flipped)


# ------------------------------------------------------------------------------------------------ language
QUESTIONS = {
    "find": ["find the {x}", "where is the {x}", "locate the {x}", "can you find the {x}", "show me the {x}",
             "search for the {x}", "fly to the {x}"],
    "count": ["count the {xs}", "how many {xs} are there", "how many {xs} do you see", "give the number of {xs}",
              "what is the number of {xs}"],
    "near": ["is there a {a} near the {b}", "is there a {a} close to the {b}", "do you see a {a} near the {b}",
             "is any {a} next to the {b}"],
    "color": ["what color is the {x}", "which color is the {x}", "tell me the color of the {x}",
              "what is the color of the {x}", "what colour is the {x}"],
    "describe": ["describe the scene", "what do you see", "describe the image", "list all objects",
                 "give a summary of the scene"],
}


def place(o):
    return PLACES[min(2, int(o["y"] * 3 / SIZE))][min(2, int(o["x"] * 3 / SIZE))]


def name(cls, color):
    return cls if cls == "tree" or color is None else f"{color} {cls}"


def colors_of(cls):
    return ["green"] if cls == "tree" else COLORS


def count_words(n, cls):
    return f"no {PLURAL[cls]}" if n == 0 else f"{n} {cls if n == 1 else PLURAL[cls]}"


def describe(meta):
    """Classes in the order of CLASSES, then colours in the order of COLORS; trees without their colour."""
    parts = []
    for c in CLASSES:
        for color in colors_of(c):
            n = sum(o["cls"] == c and o["color"] == color for o in meta["objects"])
            if n:
                noun = c if n == 1 else PLURAL[c]
                parts.append(f"{n} {noun}" if c == "tree" else f"{n} {color} {noun}")
    listed = "nothing" if not parts else parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return f"{listed} on {meta['background']}"


def near_distance(meta, a, b):
    first = [o for o in meta["objects"] if o["cls"] == a]
    second = [o for o in meta["objects"] if o["cls"] == b]
    return min((math.hypot(p["x"] - q["x"], p["y"] - q["y"]) for p in first for q in second), default=float("inf"))


def _ask_find(meta, template, counts, pairs, rng):
    single = [k for k, v in pairs.items() if v == 1] + [(c, None) for c, v in counts.items() if v == 1 and c != "tree"]
    if single and rng.random() < 0.75:
        cls, color = rng.choice(single)
        o = next(o for o in meta["objects"] if o["cls"] == cls and (color is None or o["color"] == color))
        answer = f"{name(cls, color)} at {place(o)}"
    else:                                              # absent; half the time the right class in another colour
        absent = [(c, k) for c in CLASSES for k in colors_of(c) if (c, k) not in pairs]
        hard = [p for p in absent if counts[p[0]]]
        cls, color = rng.choice(hard if hard and rng.random() < 0.5 else absent)
        answer = f"no {name(cls, color)}"
    return template.format(x=name(cls, color)), answer


def _ask_count(template, counts, rng):
    present = [c for c in CLASSES if counts[c]]
    many = [c for c in present if counts[c] > 1]
    r = rng.random()
    c = rng.choice(many) if many and r < 0.5 else rng.choice(present) if present and r < 0.8 else rng.choice(CLASSES)
    return template.format(xs=PLURAL[c]), count_words(counts[c], c)


def _ask_near(meta, template, counts, rng):
    yes, far, none = [], [], []
    for a in CLASSES:
        for b in CLASSES:
            if a == b or not counts[b]:
                continue
            d = near_distance(meta, a, b)
            if d <= NEAR - NEAR_MARGIN:
                yes.append((a, b))
            elif d == float("inf"):
                none.append((a, b))
            elif d >= NEAR + NEAR_MARGIN:
                far.append((a, b))
    if not yes and rng.random() < 0.65:                # else "no" would be the answer most of the time
        return None
    r = rng.random()
    pool = yes if yes and r < 0.6 else far if far and r < 0.9 else none
    if not pool:
        return None
    a, b = rng.choice(pool)
    return template.format(a=a, b=b), "yes" if pool is yes else "no"


def _ask_color(meta, template, counts, rng):
    single = [o for o in meta["objects"] if counts[o["cls"]] == 1 and o["cls"] != "tree"]
    if not single:
        return None
    o = rng.choice(single)
    return template.format(x=o["cls"]), o["color"]


def qa(meta, family, rng):
    """rng is a random.Random."""
    counts = {c: sum(o["cls"] == c for o in meta["objects"]) for c in CLASSES}
    pairs = {}
    for o in meta["objects"]:
        pairs[(o["cls"], o["color"])] = pairs.get((o["cls"], o["color"]), 0) + 1
    template = rng.choice(QUESTIONS[family])
    if family == "find":
        asked = _ask_find(meta, template, counts, pairs, rng)
    elif family == "count":
        asked = _ask_count(template, counts, rng)
    elif family == "near":
        asked = _ask_near(meta, template, counts, rng)
    elif family == "color":
        asked = _ask_color(meta, template, counts, rng)
    else:
        asked = template, describe(meta)
    if asked is None:
        return None
    q, a = asked
    if rng.random() < 0.15:
        q = q[0].upper() + q[1:]
    if rng.random() < 0.2:
        q += "?" if family in ("count", "near", "color") or q.lower().startswith(("wh", "can")) else "."
    return q, a


def eval_items(n, seed0=EVAL_SEED0):
    """Held-out items, one question a scene: [{image, meta, family, question, answer}]."""
    items, seed = [], seed0
    while len(items) < n:
        family = FAMILIES[len(items) % 5]
        image, meta = scene(seed)
        asked = qa(meta, family, random.Random(seed))
        seed += 1
        if asked is not None:
            items.append(dict(image=image, meta=meta, family=family, question=asked[0], answer=asked[1]))
    return items


# ------------------------------------------------------------------------------------------------ command line
def build_pool(n, path, processes):
    images = np.lib.format.open_memmap(path + ".npy", "w+", np.uint8, (n, SIZE, SIZE, 3))
    with multiprocessing.Pool(processes) as pool, open(path + ".jsonl", "w") as f:
        for i, (image, meta) in enumerate(pool.imap(scene, range(n), chunksize=64)):
            images[i] = image
            f.write(json.dumps(meta) + "\n")
    images.flush()


def _write_items(job):
    seed, folder = job
    image, meta = scene(seed)
    name = f"images/{seed}.png"
    Image.fromarray(image).save(f"{folder}/{name}")
    rng = random.Random(seed)
    families = ["describe"] + rng.sample(FAMILIES[:4], 4)
    asked = [(f, qa(meta, f, rng)) for f in families]
    objects = [dict(kind=o["cls"], colour=o["color"], box=o["box"]) for o in meta["objects"]]
    truth = dict(ground=meta["background"], objects=objects)
    lines = [dict(image=name, family=f, prompt=a[0], answer=a[1], scene=truth) for f, a in asked if a is not None]
    return "".join(json.dumps(line) + "\n" for line in lines[:3])


def write_items(n, folder, processes, first):
    os.makedirs(f"{folder}/images", exist_ok=True)
    jobs = [(seed, folder) for seed in range(first, first + n)]
    with multiprocessing.Pool(processes) as pool, open(f"{folder}/items.jsonl", "w") as f:
        f.writelines(pool.imap(_write_items, jobs, chunksize=8))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("what", choices=["pool", "look", "items"])
    ap.add_argument("n", type=int)
    ap.add_argument("path")
    ap.add_argument("--first", type=int, default=DRAFT_SEED0, help="seed of the first scene of `items`")
    ap.add_argument("--processes", type=int, default=multiprocessing.cpu_count())
    a = ap.parse_args()
    if a.what == "pool":
        build_pool(a.n, a.path, a.processes)
    elif a.what == "items":
        write_items(a.n, a.path, a.processes, a.first)
    else:
        for i in range(a.n):
            image, meta = scene(EVAL_SEED0 + i)
            Image.fromarray(image).save(f"{a.path}/{i:04}.png")
            print(f"{i:04}", describe(meta))


if __name__ == "__main__":
    main()
