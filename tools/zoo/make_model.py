#!/usr/bin/env python3
"""Make a structure-faithful, random-weight ONNX folder of FastVLM-0.5B or SmolVLM-256M.  See README.md."""
import argparse
import gc
import logging
import os
import shutil
import tempfile
import time
import warnings

import reference
import graphs
import side_files

warnings.filterwarnings("ignore")
logging.getLogger("onnxruntime.quantization").setLevel(logging.WARNING)

SUFFIX = {"fp32": "", "fp16": "_fp16", "q4": "_q4", "q4f16": "_q4f16"}


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("model", choices=reference.MODELS)
    ap.add_argument("--size", choices=["tiny", "full"], default="tiny")
    ap.add_argument("--ops", choices=["plain", "contrib"], default="plain", help="decoder graph")
    ap.add_argument("--rotary", choices=["in-gqa", "separate"], default="in-gqa", help="with --ops contrib")
    ap.add_argument("--dtype", default="fp32", help="comma list of " + ",".join(SUFFIX))
    ap.add_argument("--fp16-kv", choices=["float16", "float32"], default="float16",
                    help="KV inputs/outputs of *_fp16/_q4f16 decoders (inputs_embeds and logits stay float32)")
    ap.add_argument("--static-vision", action="store_true", help="smolvlm: leave out the padding-tile filter (NonZero)")
    ap.add_argument("--parts", default="vision,embed,decoder")
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("-o", "--out", required=True)
    a = ap.parse_args()
    dtypes, parts = a.dtype.split(","), a.parts.split(",")
    assert all(d in SUFFIX for d in dtypes), f"--dtype: choose from {list(SUFFIX)}"
    onnx_dir = os.path.join(a.out, "onnx")
    os.makedirs(onnx_dir, exist_ok=True)
    tmp = tempfile.mkdtemp(dir=a.out)
    t0 = time.time()

    def say(*x):
        print(f"[{time.time() - t0:7.1f}s]", *x, flush=True)

    r, m = reference.build(a.model, a.size, a.seed, [p for p in ("vision", "text") if p == "text" or "vision" in parts])
    say("weights", round(sum(p.numel() for p in m.parameters()) / 1e6, 2), "M parameters")
    side_files.write_side_files(r, a.out, dtypes, a.ops, a.seed, a.rotary if a.ops == "contrib" else None)

    makers = dict(
        vision=("vision_encoder", lambda p: graphs.export_vision(r, m, p, a.static_vision)),
        embed=("embed_tokens", lambda p: graphs.export_embed(r, m, p)),
        decoder=("decoder_model_merged", lambda p: graphs.export_decoder_contrib(r, m, a.rotary) if a.ops == "contrib"
                 else graphs.export_decoder_plain(r, m, p)))
    for part in parts:
        stem, make = makers[part]
        g = make(os.path.join(tmp, stem + ".onnx"))
        say(stem, "ops", graphs.op_histogram(g))
        keep = {v.name for v in list(g.graph.input) + list(g.graph.output)
                if a.fp16_kv == "float32" or not v.name.startswith(("past", "present"))}
        for dt in sorted(dtypes, key=list(SUFFIX).index):
            path = os.path.join(onnx_dir, stem + SUFFIX[dt] + ".onnx")
            last = dt == max(dtypes, key=list(SUFFIX).index)
            h = g
            if dt != "fp32" and not last:
                h = type(g).FromString(g.SerializeToString())
            if dt in ("q4", "q4f16"):
                h = graphs.to_q4(h)
            if dt in ("fp16", "q4f16"):
                h = graphs.to_fp16(h, keep)
            graphs.save(h, path)
            del h
            say("wrote", path, os.path.getsize(path))
        del g
        gc.collect()
    shutil.rmtree(tmp)


if __name__ == "__main__":
    main()
