"""Golden values of the `preprocess` stage, from Pillow and transformers' PIL image processors.

    python -m venv .venv && .venv/bin/pip install transformers==5.23.0 pillow==13.0.0 torch torchvision safetensors
    .venv/bin/python tests/golden/preprocess/make.py

Writes beside itself:
  images/             one small file of every kind that is accepted
  decoded.safetensors each of them as PIL.Image.open(..).convert("RGB"), u8 [h, w, 3]
  resize.json         sha256 of PIL's resize of made frames, every filter
  cases.json          sha256, shape and a few samples of pixel values (f32, little endian)

Frames larger than a stamp are not stored: `frame(w, h)` below is a formula that the tests share.
"""
import hashlib
import json
import pathlib
import struct
import zlib

import numpy as np
from PIL import Image
from safetensors.numpy import save_file
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

HERE = pathlib.Path(__file__).parent
IMAGES = HERE / "images"


def frame(w, h):
    """Slopes, hard edges and noise-like texture, from integers only."""
    y, x, c = np.mgrid[0:h, 0:w, 0:3].astype(np.int64)
    slopes = x * (3 + c) // 2 + y * (5 - c)
    texture = (x // 7) * (y // 5) * (11 + c)
    return ((slopes ^ texture) & 255).astype(np.uint8)


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


# ------------------------------------------------------------------------------------------ files
def stamp():
    w, h = 37, 23
    g = np.random.RandomState(3)
    y, x = np.mgrid[0:h, 0:w]
    rgb = np.stack([x * 255 // (w - 1), y * 255 // (h - 1), (x + y) * 7 % 256], -1)
    rgb[5:9, 6:12] = [250, 10, 40]
    rgb = (rgb + g.randint(-6, 7, rgb.shape)).clip(0, 255).astype(np.uint8)
    alpha = ((x * 9 + y * 5) % 256).astype(np.uint8)
    grey16 = ((x * 65535 // (w - 1) + y * 13) % 65536).astype(">u2")
    grey16[:12] //= 200
    words = g.randint(0, 65536, (h, w, 4)).astype(">u2")
    return x, y, rgb, alpha, grey16, words


def png(name, rows, color, bits, transparent=None):
    """Kinds of PNG that Pillow reads and does not write."""
    def chunk(tag, data):
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))
    header = struct.pack(">IIBBBBB", 37, 23, bits, color, 0, 0, 0)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    (IMAGES / name).write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
        + (chunk(b"tRNS", transparent) if transparent else b"")
        + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b""))


def packed(values, bits):
    low = np.unpackbits(values.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits:]
    return np.packbits(low.reshape(values.shape[0], -1), axis=-1)


def make_images():
    IMAGES.mkdir(exist_ok=True)
    x, y, pixels, alpha, grey16, words = stamp()
    rgb = Image.fromarray(pixels)
    grey, cmyk, one = rgb.convert("L"), rgb.convert("CMYK"), rgb.convert("1")
    rgba = Image.fromarray(np.dstack([pixels, alpha]))
    grey_alpha = Image.merge("LA", (grey, Image.fromarray(alpha)))
    palette = rgb.quantize(60)
    small_palettes = {n: rgb.quantize(2 ** n) for n in (1, 2, 4)}

    def save(name, image, **options):
        image.save(IMAGES / name, **options)

    save("rgb.png", rgb)
    save("grey.png", grey)
    save("grey_alpha.png", grey_alpha)
    save("rgba.png", rgba)
    save("grey1.png", one)
    save("palette8.png", palette)
    for n, image in small_palettes.items():
        save(f"palette{n}.png", image)
    save("palette8_alpha.png", palette, transparency=bytes(range(60)))
    save("grey_transparent.png", grey, transparency=100)
    save("rgb_transparent.png", rgb, transparency=(250, 10, 40))
    for n in (2, 4):
        png(f"grey{n}.png", packed((x + y) % 2 ** n, n), 0, n)
    png("grey2_transparent.png", packed((x + y) % 4, 2), 0, 2, b"\0\1")
    png("grey16.png", grey16, 0, 16)
    png("grey16_transparent.png", grey16, 0, 16, b"\0\1")
    png("grey16_alpha.png", words[..., :2], 4, 16)
    png("rgb16.png", words[..., :3], 2, 16)
    png("rgba16.png", words, 6, 16)

    for name, sampling in (("444", 0), ("422", 1), ("420", 2)):
        save(f"ycc{name}.jpg", rgb, quality=90, subsampling=sampling)
    save("progressive.jpg", rgb, quality=85, progressive=True)
    save("grey.jpg", grey, quality=90)
    save("rgb.jpg", rgb, quality=95, keep_rgb=True)
    turned = Image.Exif()
    turned[0x112] = 6
    save("exif_turned.jpg", rgb, quality=90, exif=turned)
    save("cmyk_adobe.jpg", cmyk, quality=95)
    adobe = (IMAGES / "cmyk_adobe.jpg").read_bytes()
    tag = adobe.find(b"Adobe")
    assert adobe[tag + 11] == 0
    (IMAGES / "ycck_adobe.jpg").write_bytes(adobe[:tag + 11] + b"\2" + adobe[tag + 12:])
    (IMAGES / "cmyk_plain.jpg").write_bytes(adobe[:tag - 4] + adobe[tag + 12:])

    save("rgb.bmp", rgb)
    save("rgba.bmp", rgba)
    save("palette.bmp", palette)
    save("grey1.bmp", one)
    save("palette.gif", palette)
    save("transparent.gif", palette, transparency=3)
    save("animation.gif", rgb, save_all=True, append_images=[Image.fromarray(255 - pixels)])
    save("rgb_lzw.tif", rgb, compression="tiff_lzw")
    save("rgb_jpeg.tif", rgb, compression="jpeg")
    save("rgba.tif", rgba)
    save("cmyk.tif", cmyk)
    save("grey1.tif", one)
    save("grey16.tif", Image.fromarray(grey16.astype("<u2")))
    save("rgb.webp", rgb, lossless=True)
    save("rgba.webp", rgba, lossless=True, exact=True)
    save("lossy.webp", rgb, quality=80)
    save("rgb.ppm", rgb)
    save("grey.pgm", grey)
    save("grey1.pbm", one)
    (IMAGES / "grey16.pgm").write_bytes(b"P5\n37 23\n65535\n" + grey16.tobytes())
    (IMAGES / "rgb16.ppm").write_bytes(b"P6\n37 23\n65535\n" + words[..., :3].tobytes())
    (IMAGES / "ascii.ppm").write_bytes(b"P3\n2 2\n255\n1 2 3 4 5 6 7 8 9 10 11 12\n")
    rgb.crop((0, 0, 1, 1)).save(IMAGES / "one_pixel.png")

    decoded = {p.name: np.asarray(Image.open(p).convert("RGB")).copy() for p in sorted(IMAGES.iterdir())}
    save_file(decoded, HERE / "decoded.safetensors")


# ----------------------------------------------------------------------------------------- resize
def make_resizes():
    g = np.random.RandomState(1)
    fixed = [(1920, 1080, 1820, 1024), (1, 1, 9, 7), (300, 1, 1, 300), (37, 23, 37, 40), (37, 23, 20, 23)]
    cases = []
    for i in range(240):
        w, h, to_w, to_h = fixed[i // 6] if i // 6 < len(fixed) else (int(v) for v in g.randint(1, 260, 4))
        out = np.asarray(Image.fromarray(frame(w, h)).resize((to_w, to_h), i % 6))
        cases.append([i % 6, w, h, to_w, to_h, digest(out)])
    (HERE / "resize.json").write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")


# ----------------------------------------------------------------------------------- pixel values
CROP = dict(do_convert_rgb=True, do_resize=True, do_center_crop=True, do_rescale=True, do_normalize=True,
            rescale_factor=0.00392156862745098, image_mean=[0.0, 0.0, 0.0], image_std=[1.0, 1.0, 1.0], resample=3)
CLIP = dict(CROP, image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711])
TILED = dict(do_convert_rgb=True, do_image_splitting=True, do_normalize=True, do_pad=True, do_rescale=True,
             do_resize=True, image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=1, rescale_factor=0.00392156862745098)
CLASSES = dict(CLIPImageProcessor=CLIPImageProcessorPil, LlavaImageProcessor=LlavaImageProcessorPil,
               Idefics3ImageProcessor=Idefics3ImageProcessorPil, SmolVLMImageProcessor=Idefics3ImageProcessorPil)


def square(n):
    return dict(height=n, width=n)


def crop(side, shortest=None, **other):
    return dict(CROP, size=dict(shortest_edge=shortest or side), crop_size=square(side), **other)


def tiled(side, longest, **other):
    return dict(TILED, max_image_size=dict(longest_edge=side), size=dict(longest_edge=longest), **other)


def padded(image, config):
    """LLaVA's expand2square, in the colour of the mean."""
    side = max(image.size)
    out = Image.new("RGB", (side, side), tuple(int(m * 255) for m in config["image_mean"]))
    out.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return out


def reference(kind, config, image, fit, tiles, aspect):
    config = dict(config)
    if "crop_size" in config:
        side = config["crop_size"]["height"]
        if fit == "pad" or (fit == "processor" and aspect == "pad"):
            image = padded(image, config)
        if fit != "processor":
            config.update(size=square(side), do_center_crop=False, do_resize=True)
        out = CLASSES[kind](**config)(image, return_tensors="np")
        return out["pixel_values"], None, None
    if fit == "pad":
        image = padded(image, config)

    def run(c):
        out = CLASSES[kind](**c, return_row_col_info=True)(image, return_tensors="np")
        grid = (out["rows"][0][0], out["cols"][0][0])
        mask = out["pixel_attention_mask"][0] if "pixel_attention_mask" in out else None
        return out["pixel_values"][0], mask, grid if grid != (0, 0) else None

    side = config["max_image_size"]["longest_edge"]
    if tiles is None:
        return run(config)
    if tiles > 1:
        edges = [config["size"]["longest_edge"]] + [n * side for n in range(64, 1, -1)]
        for edge in (e for e in edges if e <= config["size"]["longest_edge"]):
            out = run(dict(config, size=dict(longest_edge=edge)))
            if len(out[0]) <= tiles:
                return out
    return run(dict(config, do_image_splitting=False, do_resize=image.size != (side, side)))


def make_cases():
    cases = []

    def case(name, kind, config, size, fit="processor", tiles=None, aspect=None):
        image = Image.fromarray(frame(*size))
        values, mask, grid = reference(kind, config, image, fit, tiles, aspect)
        # The processor leaves f64 where nothing casts to f32; models are fed f32.
        values = np.asarray(values).astype("<f4")
        flat = values.reshape(-1)
        at = [int(i) for i in np.linspace(0, flat.size - 1, 12)]
        assert mask is None or (mask == 1).all()
        cases.append(dict(
            name=name, config=dict(config, image_processor_type=kind), image_aspect_ratio=aspect, frame=size, fit=fit,
            tiles=tiles, shape=values.shape, grid=grid, mask=mask is not None, sha256=digest(values),
            samples=[[i, float(flat[i])] for i in at]))

    for size in [(1280, 720), (300, 500), (641, 479), (90, 40), (1024, 1024)]:
        case("fastvlm", "CLIPImageProcessor", crop(1024), size)
    for size in [(1280, 720), (300, 501), (33, 700), (64, 64)]:
        case("fastvlm pad", "CLIPImageProcessor", crop(256), size, aspect="pad")
        case("fastvlm --fit pad", "CLIPImageProcessor", crop(256), size, fit="pad")
        case("fastvlm --fit stretch", "CLIPImageProcessor", crop(256), size, fit="stretch", aspect="pad")
    for resample in range(6):
        case("filter", "CLIPImageProcessor", dict(crop(96), resample=resample), (211, 130))
        case("filter", "CLIPImageProcessor", dict(crop(96), resample=resample), (51, 77))
    clip = dict(CLIP, size=dict(shortest_edge=120), crop_size=square(101))
    case("clip", "CLIPImageProcessor", clip, (333, 211))
    case("clip pad", "CLIPImageProcessor", clip, (211, 333), aspect="pad")
    case("clip --fit pad", "CLIPImageProcessor", clip, (333, 210), fit="pad")
    case("llava do_pad", "LlavaImageProcessor", dict(clip, do_pad=True), (333, 210))
    case("crop larger than size", "CLIPImageProcessor", dict(clip, crop_size=square(135)), (333, 211))
    case("crop larger than size", "CLIPImageProcessor", dict(clip, crop_size=square(200)), (150, 200))
    case("no resize", "CLIPImageProcessor", dict(clip, do_resize=False), (90, 200))
    case("exact size", "CLIPImageProcessor", dict(clip, size=dict(height=150, width=130)), (90, 200))
    case("no normalize", "CLIPImageProcessor", dict(clip, do_normalize=False), (90, 200))
    case("no rescale", "CLIPImageProcessor", dict(clip, do_rescale=False), (90, 200))
    case("odd factor", "CLIPImageProcessor", dict(clip, rescale_factor=0.0123), (90, 200))

    for size in [(200, 120), (120, 200), (64, 64), (300, 20), (1, 50), (63, 65), (257, 256)]:
        case("smolvlm", "Idefics3ImageProcessor", tiled(64, 256), size)
        case("smolvlm 1 tile", "SmolVLMImageProcessor", tiled(64, 256), size, tiles=1)
        case("smolvlm 7 tiles", "SmolVLMImageProcessor", tiled(64, 256), size, tiles=7)
    case("smolvlm", "Idefics3ImageProcessor", tiled(512, 2048), (1280, 720))
    case("smolvlm over 4096", "Idefics3ImageProcessor", tiled(700, 5000), (300, 160))
    case("smolvlm odd edge", "Idefics3ImageProcessor", tiled(64, 200), (200, 120))
    case("smolvlm odd edge, 13 tiles", "Idefics3ImageProcessor", tiled(64, 300), (200, 120), tiles=13)
    case("smolvlm --fit pad", "Idefics3ImageProcessor", tiled(64, 128), (200, 120), fit="pad")
    case("smolvlm --fit stretch", "Idefics3ImageProcessor", tiled(64, 128), (200, 120), fit="stretch")
    case("smolvlm no split", "Idefics3ImageProcessor", dict(tiled(64, 256), do_image_splitting=False), (64, 64))
    case("smolvlm no resize", "Idefics3ImageProcessor", dict(tiled(64, 256), do_resize=False), (100, 130))
    case("smolvlm exact", "Idefics3ImageProcessor", dict(tiled(64, 256), size=dict(height=70, width=190)), (100, 130))
    case("smolvlm no mask", "Idefics3ImageProcessor", dict(tiled(64, 128), do_pad=False), (100, 130))
    (HERE / "cases.json").write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")


if __name__ == "__main__":
    make_images()
    make_resizes()
    make_cases()
