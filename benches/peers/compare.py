#!/usr/bin/env python3
"""`trtvlm run` and the onnxruntime peer, alternately, on the same ONNX files, image and question.

    compare.py MODEL --image FILE --prompt TEXT [--variant V] [--rounds 5] [--repeats 3] [--threads N] [--name NAME]

Every round starts each program once (the order changes from round to round) with --repeats questions a process, and once more with
--max-tokens 1: the time from start to exit of that process is its start to first token. Medians over rounds; the first
question of a process is warm-up, unless it is the only one. Token ids must be equal. Peak memory is the kernel's figure for the
process (wait4), the largest of the rounds' medians.

Writes benches/results/NAME.json and prints a Markdown table. Ratios are the result; absolute times belong to the machine.
"""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
RESULTS = os.path.join(os.path.dirname(HERE), "results")


def run(command, env):
    """-> JSON lines, wall ms, peak bytes. Memory is of this child alone."""
    with tempfile.TemporaryFile() as errors:
        t0 = time.perf_counter()
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=env)
        out = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        wall_ms = 1000 * (time.perf_counter() - t0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            errors.seek(0)
            sys.exit(f"{' '.join(command)}: exit {child.returncode}\n{errors.read().decode(errors='replace')}")
    return [json.loads(line) for line in out.splitlines() if line.strip()], wall_ms, 1024 * usage.ru_maxrss


def commands(a):
    common = ["--prompt", a.prompt]
    if a.variant:
        common += ["--variant", a.variant]
    if a.tiles:
        common += ["--tiles", str(a.tiles)]

    def limit(n):
        return ["--max-tokens", str(n)] if n else []

    def ours(repeats, n):
        return [a.trtvlm, "run", a.model, "--json", "--backend", "cpu", *a.ours.split(), *common, *limit(n), "--image", *[a.image] * repeats]

    def peer(repeats, n):
        threads = ["--threads", str(a.threads)] if a.threads else []
        return [a.python, os.path.join(HERE, "ort_vlm.py"), a.model, *common, *limit(n), *threads, "--image", a.image, "--repeats", str(repeats)]
    return {"trtvlm": ours, "onnxruntime": peer}


def figures(lines, wall_ms, peak, first_wall_ms):
    warm = lines[1:] or lines
    ms = {k: statistics.median(line["timings_ms"][k] for line in warm) for k in ("vision", "prefill", "decode", "ttft")}
    n_steps = len(lines[0]["token_ids"]) - 1
    return {"vision_ms": ms["vision"], "prefill_ms": ms["prefill"], "decode_ms_per_token": ms["decode"] / n_steps if n_steps else None,
            "ttft_ms": ms["ttft"], "start_to_first_token_ms": first_wall_ms, "peak_memory_mib": peak / 2**20, "process_ms": wall_ms}


LABELS = {"vision_ms": "vision, ms", "prefill_ms": "prefill, ms", "decode_ms_per_token": "decode, ms a token",
          "ttft_ms": "time to first token, loaded, ms", "start_to_first_token_ms": "process start to first token, ms",
          "peak_memory_mib": "peak memory, MiB"}


def table(median):
    rows = ["| | trtvlm | onnxruntime | onnxruntime / trtvlm |", "|---|---|---|---|"]
    for key, label in LABELS.items():
        x, y = median["trtvlm"][key], median["onnxruntime"][key]
        if x is not None and y is not None:
            rows.append(f"| {label} | {x:.1f} | {y:.1f} | {y / x:.2f} |")
    return "\n".join(rows)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model")
    ap.add_argument("--image", required=True)
    ap.add_argument("--prompt", required=True)
    ap.add_argument("--variant")
    ap.add_argument("--tiles", type=int)
    ap.add_argument("--max-tokens", type=int, help="default: the model's; for models that know nothing, 32 or so")
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--repeats", type=int, default=3)
    ap.add_argument("--threads", type=int, help="for both; default: what each chooses")
    ap.add_argument("--trtvlm", default=os.path.join(os.environ.get("CARGO_TARGET_DIR", "target"), "release", "trtvlm"))
    ap.add_argument("--ours", default="", help="further options of `trtvlm run`, in one string")
    ap.add_argument("--python", default=sys.executable)
    ap.add_argument("--name", help="of the result file; default: the model folder's")
    a = ap.parse_args()
    env = dict(os.environ)
    if a.threads:
        env["RTEN_NUM_THREADS"] = str(a.threads)

    samples, ids = {"trtvlm": [], "onnxruntime": []}, {}
    for r in range(a.rounds):
        programs = list(commands(a).items())
        for name, command in programs if r % 2 == 0 else programs[::-1]:
            first, first_wall_ms, _ = run(command(1, 1), env)
            lines, wall_ms, peak = run(command(a.repeats, a.max_tokens), env)
            got = {tuple(line["token_ids"]) for line in lines}
            ids.setdefault(name, set()).update(got)
            assert all(first[0]["token_ids"][0] == g[0] for g in got)
            samples[name].append(figures(lines, wall_ms, peak, first_wall_ms))
            print(f"round {r + 1} {name}: " + ", ".join(f"{k} {v:.1f}" for k, v in samples[name][-1].items() if v is not None), file=sys.stderr, flush=True)
    equal = ids["trtvlm"] == ids["onnxruntime"] and len(ids["trtvlm"]) == 1
    median = {n: {k: statistics.median(x[k] for x in s) if s[0][k] is not None else None for k in s[0]} for n, s in samples.items()}
    result = {"model": a.model, "image": a.image, "prompt": a.prompt, "variant": a.variant or "default", "tiles": a.tiles, "options": a.ours, "rounds": a.rounds, "repeats": a.repeats,
              "threads": a.threads, "cpus": os.cpu_count(), "machine": platform.machine(), "token_ids_equal": equal, "median": median, "rounds_all": samples}
    os.makedirs(RESULTS, exist_ok=True)
    path = os.path.join(RESULTS, (a.name or os.path.basename(os.path.normpath(a.model))) + ".json")
    with open(path, "w") as f:
        json.dump(result, f, indent=1)
        f.write("\n")
    print(table(median))
    print(f"\ntoken ids {'equal' if equal else 'DIFFER'}; {path}")
    if not equal:
        sys.exit(3)


if __name__ == "__main__":
    main()
